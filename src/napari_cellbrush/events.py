"""What a running training or inference tells the world, and the token that stops it.

Generators of the engine yield these frozen values; nobody below the docks holds a callback into a GUI.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Event = TypeVar("Event")
Result = TypeVar("Result")


def run_to_end(run: Generator[Event, None, Result], on_event: Callable[[Event], object] | None = None) -> Result:
    """Drive a run to its end, telling ``on_event`` everything it yields, and give its result."""
    while True:
        try:
            event = next(run)
        except StopIteration as end:
            result: Result = end.value
            return result
        if on_event:
            on_event(event)


class StopToken:
    """A thread-safe wish to stop, looked at after every training step and every tile, held-out ones too."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        """Ask the run that holds this token to end with the best it has so far."""
        self._event.set()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()


class PauseToken:
    """A thread-safe wish to compute nothing for a while, as long as somebody draws; looked at between two steps."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        """Ask the run that holds this token to wait."""
        self._free.clear()

    def release(self) -> None:
        """Let it go on."""
        self._free.set()

    @property
    def held(self) -> bool:
        """Whether somebody asked."""
        return not self._free.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until released, at most so long; whether it is free now."""
        return self._free.wait(seconds)


@dataclass(frozen=True)
class Preparing:
    """Before the first step: what is about to be done, of what may take a while."""

    #: Measuring how large objects are, or fitting the last layer to classes that the base does not know.
    what: Literal["sizes", "head"]


@dataclass(frozen=True)
class BaseScoring:
    """Before the first step, and only where scores can be compared: the base is about to be measured."""

    #: Tiles of strokes to look at.
    n_tiles: int


def span_in_words(lengths_px: Collection[float]) -> str:
    """For example "24 px" or "40 to 70 px"; there must be one at least."""
    shortest, longest = f"{min(lengths_px):.0f}", f"{max(lengths_px):.0f}"
    return f"{shortest} px" if shortest == longest else f"{shortest} to {longest} px"


@dataclass(frozen=True)
class TrainingStarted:
    """What is about to happen, known before the first step."""

    device: str
    precision: str
    n_steps: int
    n_training_pixels: int
    n_held_out_pixels: int
    #: Why no stroke is held out, as a sentence; empty where a score will be measured.
    no_score_reason: str
    #: The base model's score on the held-out pixels, in [0, 1]; None where it cannot be measured.
    base_score: float | None
    #: Diameter of the objects of each image, in its pixels, that the run goes by; empty where nobody knows, and for a
    #: base that works at any scale.
    diameters_px: tuple[float, ...] = ()
    #: Network pixels per image pixel, of each image.
    scales: tuple[float, ...] = ()
    #: Connected pieces of one class, over all planes and images.
    n_strokes: int = 0
    #: Of the training pixels, those that correct an answer; they count less.
    n_corrections: int = 0


@dataclass(frozen=True)
class TrainingStep:
    """One optimiser step."""

    step: int
    n_steps: int
    loss: float
    learning_rate: float
    seconds_elapsed: float
    seconds_left: float


@dataclass(frozen=True)
class ValidationScored:
    """The averaged (EMA) weights, measured on the held-out strokes."""

    step: int
    score: float
    best_score: float
    #: Where the score of other strokes of this kind would lie, 95 %; None where too few strokes are held out.
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TrainingResumed:
    """An interrupted training goes on after this step; follows :class:`TrainingStarted`."""

    step: int
    #: Of each step so far, from step 1.
    losses: tuple[float, ...]
    #: Step and held-out score, in order.
    scores: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TrainingNote:
    """Something a person should know about a training that goes on all the same."""

    text: str


TrainingEvent = (Preparing | BaseScoring | TrainingStarted | TrainingStep | ValidationScored | TrainingResumed
                 | TrainingNote)


@dataclass(frozen=True)
class StrokesTaken:
    """The newest strokes are learnt from now."""

    #: What :meth:`.continuous.StrokeInbox.put` gave for them.
    generation: int
    n_training_pixels: int
    n_held_out_pixels: int
    #: Why no score is possible yet, as a sentence; empty where there will be one.
    no_score_reason: str
    #: Whether strokes were taken back: everything learnt so far is forgotten.
    restarted: bool
    #: Painted in all, held-out ones included.
    n_strokes: int = 0
    #: Which strokes are learnt from and which are held out, an :class:`.engine.annotation.Split`.
    split: Any = None


@dataclass(frozen=True)
class NothingToLearn:
    """The newest strokes cannot be learnt from; the run waits for others."""

    generation: int
    #: A sentence.
    reason: str


@dataclass(frozen=True)
class ContinuousStep:
    """One optimiser step of a run without an end."""

    generation: int
    #: Since the base.
    step: int
    loss: float


@dataclass(frozen=True)
class ContinuousScored:
    """The present weights, measured on the held-out strokes of this generation."""

    generation: int
    step: int
    score: float
    #: Where the score of other strokes would lie, 95 %; None where too few strokes are held out.
    interval: tuple[float, float] | None
    #: Of the best weights so far, and of the base, on the same strokes; None where there are none.
    best_score: float | None
    base_score: float | None


@dataclass(frozen=True, eq=False)
class Improved:
    """Weights that score better on the held-out strokes than the base and than any before them, or as well as any
    before them and know more strokes."""

    generation: int
    step: int
    #: An :class:`.engine.model.Model` of its own.
    model: Any
    score: float
    interval: tuple[float, float] | None
    base_score: float | None


@dataclass(frozen=True)
class Settled:
    """More steps bring nothing; the run rests until strokes change."""

    generation: int


@dataclass(frozen=True)
class Waiting:
    """Nothing is computed for the moment: whoever wants the device may have it."""


ContinuousEvent = StrokesTaken | NothingToLearn | ContinuousStep | ContinuousScored | Improved | Settled | Waiting


@dataclass(frozen=True)
class InferenceStarted:
    """What is about to be computed, known before the first tile."""

    device: str
    precision: str
    n_tiles: int
    tile_size: int
    #: Diameter of the objects, in image pixels, that the run goes by; None for a model that works at any scale.
    diameter_px: float | None = None
    #: Network pixels per image pixel.
    scale: float = 1.0


@dataclass(frozen=True)
class TileSegmented:
    """One finished tile of one plane."""

    tile: int
    n_tiles: int
    #: Index of the plane along the image's stack axes (time, depth), empty for a 2D image.
    plane: tuple[int, ...]
    rows: slice
    columns: slice
    #: KYX float32 in [0, 1]: class probabilities of the window.
    probabilities: NDArray[np.float32]
    #: YX uint8, 1…K: the most probable class.
    classes: NDArray[np.uint8]
    seconds_elapsed: float
    seconds_left: float


@dataclass(frozen=True)
class TileSizeReduced:
    """The device ran out of memory; the run starts over the tile at hand with smaller ones."""

    tile_size: int
    n_tiles: int


InferenceEvent = InferenceStarted | TileSegmented | TileSizeReduced


@dataclass(frozen=True)
class HeadFitted:
    """The instant classifier learnt from the strokes."""

    #: Of the strokes.
    generation: int
    #: False where fewer than two classes are painted: there is no answer then.
    ready: bool
    #: Labelled pixels that it learnt from.
    n_pixels: int
    seconds: float


@dataclass(frozen=True, eq=False)
class LiveTile:
    """The live answer for a part of one plane."""

    #: Of the strokes behind it.
    generation: int
    plane: tuple[int, ...]
    rows: slice
    columns: slice
    #: YX uint8, 1…K: the most probable class.
    classes: NDArray[np.uint8]
    #: Whether the tuned model gave it, rather than the instant classifier.
    by_tuned: bool
    #: Whether all that is looked at is answered with it.
    completes_view: bool
    #: That it took, features that were not known yet included.
    seconds: float


@dataclass(frozen=True)
class LiveScored:
    """Instant classifier and tuned model, measured on the same held-out strokes."""

    #: Of the strokes.
    generation: int
    #: Mean intersection over union in [0, 1]; None where there is none yet.
    instant_score: float | None
    tuned_score: float | None
    #: Whether the mask is the tuned model's now.
    tuned_leads: bool


LiveEvent = HeadFitted | LiveTile | LiveScored
