"""How a model learns from strokes: a generator that reads from top to bottom like a recipe.

It knows images as :class:`.planes.Planes`, labels as arrays, and nothing of viewers. Whoever drives the generator
receives events and, as its return value, a :class:`TrainingResult`. Where a file is named, the run keeps its state
there and goes on from it.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine import probe
from napari_cellbrush.engine.annotation import Annotation, collect_annotation, hold_out, rescaled
from napari_cellbrush.engine.device import Device, choose_device, is_out_of_memory
from napari_cellbrush.engine.diameter import Painted, measured_in_relation, object_diameters
from napari_cellbrush.engine.held_out import HeldOut, HeldOutScore
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.model import (
    Model,
    ModelCard,
    build_network,
    known_classes,
    knows_all,
    new_model,
    with_classes,
    with_dropout,
)
from napari_cellbrush.engine.patches import Patches
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.teacher import agreement, teacher_for
from napari_cellbrush.engine.training_state import (
    Outline,
    Part,
    PartState,
    StateKeeper,
    TrainingState,
    cloned,
    copy_into,
    digest,
    read_state,
)
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.errors import AnnotationError, CellbrushError, OutOfMemory, TrainingStateError
from napari_cellbrush.events import (
    BaseScoring,
    Preparing,
    StopToken,
    TrainingEvent,
    TrainingNote,
    TrainingResumed,
    TrainingStarted,
    TrainingStep,
    ValidationScored,
)

#: What ends a training: all steps are done, the time is up, somebody stopped it, or scores have long not risen.
Ended = Literal["steps", "time", "stopped", "no_progress"]


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training."""

    #: The best weights seen (averaged over steps), with their card.
    model: Model
    #: False where the base scored better on the held-out strokes than anything trained.
    improved: bool
    base_score: float | None
    score: float | None
    #: Why there is no score, as a sentence; empty where there is one.
    no_score_reason: str
    ended: Ended
    n_steps: int
    seconds: float
    #: Where the score of other strokes would lie, 95 %; see :func:`.held_out.score_interval`.
    interval: tuple[float, float] | None = None

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to end it early."""
        return self.ended == "stopped"


def scratch_model(classes: tuple[ClassDefinition, ...], n_channels: int, config: TrainingConfig) -> Model:
    """An untrained model of the shape that ``config.network`` describes."""
    card = ModelCard(name="scratch", classes=classes, in_channels=n_channels, network=config.network)
    return new_model(card, config.seed)


def train(
    base: Model,
    images: Sequence[Planes],
    labels: Sequence[Any],
    config: TrainingConfig,
    *,
    classes: tuple[ClassDefinition, ...] | None = None,
    device: Device | None = None,
    stop: StopToken | None = None,
    name: str = "",
    state_file: Path | None = None,
    corrections: Sequence[Any] | None = None,
) -> Generator[TrainingEvent, None, TrainingResult]:
    """Fine-tune a copy of ``base`` on all labelled pixels; the base itself never changes.

    Parameters
    ----------
    base
        Where the weights start. Its last layer is kept if it knows all classes, else fitted (:mod:`.probe`).
    images
        The images, all with the same number of channels.
    labels
        One array-like per image: stack axes + YX integers, 0 unlabelled, k + 1 for class number k.
    config
        All settings; ``config.network`` counts only for :func:`scratch_model`. The time limit includes all that
        happens before the first step, but one step is always made.
    classes
        The classes the labels mean; those of the base if not given.
    device, stop
        Where to compute (chosen if not given); who may end the run early, keeping the best so far. A stopped run
        measures nothing any more: without an earlier score it has none, and its model takes the objects of other images
        to be as large as those it learnt from.
    name
        Name for the new model's card.
    state_file
        Where to keep the full state of the run, every few seconds and when it is stopped. If the file exists and was
        written from the same base, images, strokes, classes and settings, the run goes on from it: on a CPU, all
        weights are those of a run that was never interrupted, as long as the time limit does not end it. Only the
        time limit may differ. The file is never removed here: do so once the result is safe.
    corrections
        One boolean array-like per image, of the same shape as its labels, or None for an image without any: which
        labelled pixels were painted where an answer was seen to be wrong. They show what is rare, and count less
        (:data:`.annotation.CORRECTIONS_PER_STROKE`); how far the base is right, the others say, and they are
        scored on.

    Yields
    ------
    TrainingEvent
        :class:`Preparing` and :class:`BaseScoring` where that is to be done, :class:`TrainingStarted`, then
        :class:`TrainingResumed` if it goes on, then steps and scores; a :class:`TrainingNote` where a state cannot be
        used or kept.

    Raises
    ------
    AnnotationError
        If nothing can be learnt from the labels.
    OutOfMemory
        If not even a batch of one patch fits.
    TrainingDiverged
        If the loss is no longer a number.
    TrainingStateError
        If a kept state that should fit does not.
    """
    device = device or choose_device()
    try:
        return (yield from _train(base, images, labels, corrections, config, classes or base.card.classes, device,
                                  stop or StopToken(), name, state_file))
    except (RuntimeError, MemoryError) as error:
        # A step splits its batch and goes on; this is memory for the network itself, the patches or the score.
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{device.name} has too little memory to train this network", "Close other programs, "
                          "choose a smaller patch size in the advanced settings, or train on the CPU") from error


def _train(
    base: Model,
    images: Sequence[Planes],
    labels: Sequence[Any],
    corrections: Sequence[Any] | None,
    config: TrainingConfig,
    classes: tuple[ClassDefinition, ...],
    device: Device,
    stop: StopToken,
    name: str,
    state_file: Path | None,
) -> Generator[TrainingEvent, None, TrainingResult]:
    began = time.perf_counter()
    annotation = collect_annotation(images, labels, classes, corrections)
    split = hold_out(annotation, config.held_out_fraction, config.seed)
    start = with_dropout(with_classes(base.for_channels(n_channels(images)), classes, config.seed), config.dropout)
    origin = _origin(base, images, annotation, classes, config, device) if state_file else {}
    kept, note = _kept_state(state_file, origin)
    course = _Course()
    if kept:
        kept.restore({"course": course})
        began -= course.seconds
    else:
        if base.card.diameter_px is not None and not config.diameter_px:
            yield Preparing("sizes")
        course.diameters_px = object_diameters(base, images, config.diameter_px, device, stop,
                                               Painted(split.train, classes))
    scales = base.card.scales_for(course.diameters_px, len(images))
    tuned_on = sizes_by_fingerprint(images, course.diameters_px)

    sources = [Resampled(image, scale) for image, scale in zip(images, scales, strict=True)]
    teacher = teacher_for(base, n_channels(images), classes, config, device)
    learner = Learner(start, config, device, teacher)
    learnt = rescaled(split.train, scales)
    patches = Patches(sources, learnt, classes, config, learner.network.geometry, device)
    held_out = HeldOut(sources, rescaled(split.validation, scales), config, start.network, device) \
        if split.validation else None
    best = _Best(learner.averaged)

    if kept:
        kept.restore({"learner": learner, "patches": patches, "best": best})
    elif probe.needs_head(base, classes, config):
        yield Preparing("head")
        learner.fit_head((patches.next_batch() for _ in range(probe.N_BATCHES)), len(classes),
                         known_classes(base, classes))
    elif base.card.n_steps > 0 and knows_all(base, classes):
        # Strokes that are learnt from say how far the base can be trusted; held-out ones are for scores alone, and
        # corrections would say it of errors.
        trusted = HeldOut(sources, learnt.unseen, config, start.network, device) if teacher else None
        yield from _score_base(course, learner.averaged, held_out, trusted, classes, stop)
    if not kept and stop.stopped:
        # Nobody may go on from a state without what was being measured.
        state_file = None
    if teacher:
        teacher.trust(course.teacher_score or 0.0, split.train.strokes_per_class)
    yield TrainingStarted(
        device.name, learner.precision, config.max_steps, split.train.n_pixels,
        split.validation.n_pixels if split.validation else 0, split.reason, course.base_score,
        course.diameters_px or (), scales, annotation.n_strokes, split.train.n_corrections)
    if kept:
        yield TrainingResumed(course.step, tuple(course.losses), tuple(course.scores))
    if note:
        yield TrainingNote(note)

    learning = _Learning(config, course, learner, patches, held_out, best, began)

    def state() -> TrainingState:
        outline = Outline(name, course.step, config.max_steps, tuple(image.name for image in images))
        return TrainingState(outline, origin, {part: value.state() for part, value in learning.parts.items()})

    with StateKeeper(state_file) as keeper:
        ended = yield from learning.to_the_end(stop, keeper, state)

    score = best.score if best.network else None
    model = tuned_model(best.network or learner.averaged, start, base, annotation, config, name=name,
                        tuned_on=tuned_on, n_steps=course.step, base_score=course.base_score, score=score)
    learner.release()
    if course.diameters_px:
        model, problem = _measured_by_itself(model, images, course.diameters_px, device, stop)
        if problem:
            yield TrainingNote(problem)
    improved = score is None or course.base_score is None or score >= course.base_score
    no_score = split.reason if split.reason or score is not None else "The training was stopped before its first score."
    return TrainingResult(model, improved, course.base_score, score, no_score, ended, course.step,
                          time.perf_counter() - began, best.interval)


def _score_base(course: _Course, network: UNet, held_out: HeldOut | None, trusted: HeldOut | None,
                classes: tuple[ClassDefinition, ...], stop: StopToken) -> Generator[TrainingEvent, None, None]:
    """Measure the base before its first step, as far as there are strokes to measure it on and nobody stops it."""
    yield BaseScoring(sum(strokes.n_tiles for strokes in (held_out, trusted) if strokes))
    scored, agreeing = (strokes.score(network, stop) if strokes else None for strokes in (held_out, trusted))
    course.base_score = scored.iou if scored else None
    course.teacher_score = agreement(agreeing.confusion, classes) if agreeing else None


def _kept_state(file: Path | None, origin: dict[str, str]) -> tuple[TrainingState | None, str]:
    """The state to go on from, or a sentence why there is one that cannot be used."""
    if file is None or not file.exists():
        return None, ""
    try:
        kept = read_state(file)
    except TrainingStateError as error:
        return None, str(error)
    changed = kept.differs(origin)
    if changed:
        return None, f"Not as they were when this training was interrupted: {changed}. It starts anew."
    return kept, ""


def _origin(base: Model, images: Sequence[Planes], annotation: Annotation, classes: tuple[ClassDefinition, ...],
            config: TrainingConfig, device: Device) -> dict[str, str]:
    """Digests of all that decides about a run. Images are told apart by shape and statistics: they may be huge."""
    seen = [f"{image.name}{image.spatial_shape}{image.n_channels}{image.normalisation()}" for image in images]
    strokes = (part for plane in annotation.planes
               for part in (f"{plane.image}{plane.index}{plane.labels.shape}", plane.labels.tobytes(),
                            b"" if plane.corrections is None else np.packbits(plane.corrections).tobytes()))
    return {"the base": base.weights_hash, "the images": digest(seen), "the strokes": digest(strokes),
            "the classes": digest(c.model_dump_json() for c in classes),
            "the settings": digest([config.replace(max_minutes=1).model_dump_json()]),
            "the device": f"{device.kind} {device.precision}"}


def sizes_by_fingerprint(images: Sequence[Planes], diameters_px: Sequence[float] | None) -> dict[str, float]:
    """What a card remembers of the images that a model is tuned on; empty where nobody knows how large objects are."""
    return {image.fingerprint(): px for image, px in zip(images, diameters_px or (), strict=False)}


def tuned_model(
    network: UNet,
    start: Model,
    base: Model,
    annotation: Annotation,
    config: TrainingConfig,
    *,
    name: str,
    tuned_on: Mapping[str, float],
    n_steps: int,
    base_score: float | None,
    score: float | None,
) -> Model:
    """A copy of weights that were tuned from ``start``, on the CPU, with the card that says how."""
    labelled = dict(zip((c.name for c in start.card.classes), annotation.pixels_per_class, strict=True))
    card = start.card.replace(
        name=name or f"{base.card.name} tuned", training=config.model_dump(), base_name=base.card.name,
        base_hash=base.weights_hash, created=datetime.now(UTC).isoformat(timespec="seconds"), versions=_versions(),
        # Where nobody could tell a diameter, the model learnt at the images' own scale, and works at that.
        diameter_px=base.card.diameter_px if tuned_on else None,
        image_diameter_px=median(tuned_on.values()) if tuned_on else None, measured_as_px=None, tuned_on=tuned_on,
        n_steps=base.card.n_steps + n_steps, labelled_pixels=labelled,
        base_score=base_score, score=score, description="")
    return Model(_on_cpu(network, card), card)


def _measured_by_itself(model: Model, images: Sequence[Planes], diameters_px: Sequence[float], device: Device,
                        stop: StopToken) -> tuple[Model, str]:
    """The model that knows how large it finds its own images, by which it measures others, and what went wrong."""
    try:
        ratio = measured_in_relation(model, images, diameters_px, device, stop)
        card = model.card.replace(measured_as_px=(model.card.image_diameter_px or 0.0) * ratio if ratio else None)
    except (CellbrushError, MemoryError, OSError, RuntimeError) as error:
        # What was learnt must not be lost to this.
        return model, f"Other images will be taken to hold objects of the same size ({error})"
    return Model(model.network, card), ""


def n_channels(images: Sequence[Planes]) -> int:
    """The number of channels that all images have.

    Raises
    ------
    AnnotationError
        If it differs.
    """
    counts = {image.n_channels for image in images}
    if len(counts) != 1:
        names = ", ".join(f"{image.name}: {image.n_channels}" for image in images)
        raise AnnotationError(f"One model needs images with the same number of channels, got {names}",
                              "Train on images of one kind at a time")
    return counts.pop()


def _versions() -> dict[str, str]:
    return {"napari-cellbrush": version("napari-cellbrush"), "torch": torch.__version__,
            "python": platform.python_version()}


def _on_cpu(network: UNet, card: ModelCard) -> UNet:
    plain = build_network(card)
    plain.load_state_dict({name: tensor.detach().cpu().float() for name, tensor in network.state_dict().items()})
    return plain.eval()


class _Learning:
    """The steps of a run, and the scores between them.

    Parameters
    ----------
    config
        How to learn, and how long.
    course, learner, patches, held_out, best
        All that changes from step to step; ``held_out`` is None where there are too few strokes for a score.
    began
        When the run did, by :func:`time.perf_counter`; one that was interrupted, as if it had gone on at once.
    """

    def __init__(self, config: TrainingConfig, course: _Course, learner: Learner, patches: Patches,
                 held_out: HeldOut | None, best: _Best, began: float) -> None:
        self._config, self._course, self._learner = config, course, learner
        self._patches, self._held_out, self._best = patches, held_out, best
        self._began = began
        self._prepared = time.perf_counter() - began - course.learning_seconds

    @property
    def parts(self) -> dict[str, Part]:
        """What a kept state is made of."""
        return {"course": self._course, "learner": self._learner, "patches": self._patches, "best": self._best}

    def to_the_end(self, stop: StopToken, keeper: StateKeeper,
                   state: Callable[[], TrainingState]) -> Generator[TrainingEvent, None, Ended]:
        """Learn until steps or time are used up, scores no longer rise, or somebody stops it; at least one step."""
        while True:
            ended = self._out_of_steps_or_time()
            scored = self._score(stop, last=ended is not None)
            if scored:
                yield scored
            if self._course.step and stop.stopped:
                ended = "stopped"
            elif self._config.patience and self._best.rounds_without_better >= self._config.patience:
                ended = ended or "no_progress"
            if ended:
                break
            problem = keeper.offer(state) if self._course.step else None
            if problem:
                yield TrainingNote(str(problem))
            yield self._step()
        problem = keeper.keep(state) if ended == "stopped" else None
        if problem:
            yield TrainingNote(str(problem))
        return ended

    def _out_of_steps_or_time(self) -> Ended | None:
        """Why no step follows, as far as the clock and the counter know."""
        if not self._course.step:
            return None
        if self._course.step >= self._config.max_steps:
            return "steps"
        return "time" if self._course.seconds >= 60 * self._config.max_minutes else None

    def _score(self, stop: StopToken, last: bool) -> ValidationScored | None:
        """Score the averaged weights, if it is time and nobody stops it."""
        if self._held_out is None or not self._course.is_score_due(self._config.validate_every, last):
            return None
        scored = self._held_out.score(self._learner.averaged, stop)
        if scored is None:
            return None
        self._best.offer(scored, self._learner.averaged)
        self._course.add_score(scored.iou)
        return ValidationScored(self._course.step, scored.iou, self._best.score, scored.interval)

    def _step(self) -> TrainingStep:
        course, learner = self._course, self._learner
        course.add_loss(learner.step(*self._patches.next_batch()))
        course.seconds = time.perf_counter() - self._began
        course.learning_seconds = max(1e-9, course.seconds - self._prepared)
        n_left, seconds_left = course.left(self._config)
        learner.expect(course.step + n_left)
        return TrainingStep(course.step, self._config.max_steps, course.losses[-1], learner.learning_rate,
                            course.seconds, seconds_left)


class _Best:
    """The best averaged weights so far. Equal scores are told apart by the held-out loss."""

    def __init__(self, like: UNet) -> None:
        self.network: UNet | None = None
        self.score = 0.0
        self.interval: tuple[float, float] | None = None
        self.rounds_without_better = 0
        self._loss = math.inf
        self._like = like

    def offer(self, scored: HeldOutScore, network: UNet) -> None:
        if self.network is None or (scored.iou, -scored.loss) > (self.score, -self._loss):
            self.score, self._loss, self.interval = scored.iou, scored.loss, scored.interval
            self.network = copy.deepcopy(network)
            self.rounds_without_better = 0
        else:
            self.rounds_without_better += 1

    def state(self) -> PartState:
        tensors = cloned(self.network.state_dict()) if self.network else {}
        return PartState(tensors, {"score": self.score, "rounds_without_better": self.rounds_without_better,
                                   "interval": self.interval, "loss": self._loss if self.network else None})

    def restore(self, state: PartState) -> None:
        values = state.values
        if state.tensors:
            self.network = copy.deepcopy(self._like)
            copy_into(self.network.state_dict(), state.tensors)
            self.score, self._loss = float(values["score"]), float(values["loss"])
            self.interval = (float(values["interval"][0]), float(values["interval"][1])) if values["interval"] else None
        self.rounds_without_better = int(values["rounds_without_better"])


@dataclass
class _Course:
    """How far a run is, what it saw on the way, and what was measured before its first step."""

    step: int = 0
    #: Since the run began, without the time between an interruption and going on.
    seconds: float = 0.0
    #: The same without what happened before the first step.
    learning_seconds: float = 0.0
    #: Of the objects of each image, in its pixels.
    diameters_px: tuple[float, ...] | None = None
    base_score: float | None = None
    #: The base's on the strokes that are learnt from.
    teacher_score: float | None = None
    losses: list[float] = field(default_factory=list)
    #: Step and score.
    scores: list[tuple[int, float]] = field(default_factory=list)

    def add_loss(self, loss: float) -> None:
        self.step += 1
        self.losses.append(loss)

    def add_score(self, score: float) -> None:
        self.scores.append((self.step, score))

    def is_score_due(self, every: int, last: bool) -> bool:
        """Whether the step just made is to be scored and was not yet: a run may be stopped in between."""
        scored_at = self.scores[-1][0] if self.scores else 0
        return self.step > scored_at and (last or self.step % every == 0)

    def left(self, config: TrainingConfig) -> tuple[float, float]:
        """Steps and seconds that are left, be it for want of steps or of time."""
        n_steps, seconds = config.max_steps - self.step, 60 * config.max_minutes - self.seconds
        per_step = self.learning_seconds / self.step
        # The plan itself, not an estimate of it, unless the time is short: its last digit is part of the rate.
        if per_step * n_steps <= seconds:
            return n_steps, per_step * n_steps
        return max(0.0, seconds / per_step), max(0.0, seconds)

    def state(self) -> PartState:
        return PartState({"losses": torch.tensor(self.losses, dtype=torch.float64),
                          "scores": torch.tensor(self.scores, dtype=torch.float64).reshape(-1, 2)},
                         {"step": self.step, "seconds": self.seconds, "learning_seconds": self.learning_seconds,
                          "diameters_px": self.diameters_px, "base_score": self.base_score,
                          "teacher_score": self.teacher_score})

    def restore(self, state: PartState) -> None:
        values = state.values
        self.step, self.seconds = int(values["step"]), float(values["seconds"])
        self.learning_seconds = float(values["learning_seconds"])
        self.base_score, self.teacher_score = (
            None if values[name] is None else float(values[name]) for name in ("base_score", "teacher_score"))
        diameters = values["diameters_px"]
        self.diameters_px = None if diameters is None else tuple(float(px) for px in diameters)
        self.losses = [float(loss) for loss in state.tensors["losses"].tolist()]
        self.scores = [(int(step), float(score)) for step, score in state.tensors["scores"].tolist()]
