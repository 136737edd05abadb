"""Learning while somebody paints: a training without an end, which better weights leave as they come.

Strokes arrive in an inbox and are learnt from after the step at hand. New ones join the training as it is; the
weights start over from the base where strokes were taken back, and once more when nothing improves any longer and
strokes have joined meanwhile: weights that were led on from stroke to stroke then compete with weights that saw all
of them from the first step, and the held-out score decides. Held-out strokes stay held out as more are painted
(:class:`.annotation.GrowingHoldOut`), so no score ever counts a pixel whose label was learnt from.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine import probe
from napari_cellbrush.engine.annotation import Annotation, GrowingHoldOut, Split, collect_annotation, rescaled
from napari_cellbrush.engine.device import Device, choose_device
from napari_cellbrush.engine.diameter import object_diameters
from napari_cellbrush.engine.held_out import QUICK_TILES, HeldOut, HeldOutScore
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.model import Model, known_classes, knows_all, with_classes, with_dropout
from napari_cellbrush.engine.patches import Patches
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.teacher import agreement, teacher_for
from napari_cellbrush.engine.training import n_channels, sizes_by_fingerprint, tuned_model
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.errors import AnnotationError
from napari_cellbrush.events import (
    ContinuousEvent,
    ContinuousScored,
    ContinuousStep,
    Improved,
    NothingToLearn,
    PauseToken,
    Settled,
    StopToken,
    StrokesTaken,
    Waiting,
)

#: Weights that score less than this above the best of the same strokes are not worth segmenting the image anew.
LEAST_GAIN = 0.005
#: Seconds that a step may take: new strokes and a pause wait for its end. Slow devices learn from fewer patches a step.
LONGEST_STEP_S = 0.5
#: Seconds between two looks at inbox, pause and stop while there is nothing to compute.
_LOOK_EVERY_S = 0.05


class StrokeInbox:
    """Holds the newest strokes. Any thread may put; the training takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._labels: tuple[Any, ...] = ()
        self._generation = 0

    def put(self, labels: Sequence[Any]) -> int:
        """Replace what is there by all strokes as they are now.

        Parameters
        ----------
        labels
            One array per image, stack axes + YX, 0 unlabelled, k + 1 for class number k. Copies: the caller must not
            write to them any more.

        Returns
        -------
        int
            The generation of these strokes; the first is 1.
        """
        with self._changed:
            self._labels = tuple(labels)
            self._generation += 1
            self._changed.notify_all()
            return self._generation

    @property
    def generation(self) -> int:
        """Of the newest strokes; 0 while there are none."""
        return self._generation

    def take(self) -> tuple[int, tuple[Any, ...]]:
        """The newest strokes and their generation; they stay here."""
        with self._changed:
            return self._generation, self._labels

    def wait_for_newer(self, generation: int, seconds: float) -> bool:
        """Wait for newer strokes, at most so long; whether there are any."""
        with self._changed:
            return self._changed.wait_for(lambda: self._generation > generation, seconds)


def learn_continuously(
    base: Model,
    images: Sequence[Planes],
    inbox: StrokeInbox,
    config: TrainingConfig,
    *,
    classes: tuple[ClassDefinition, ...] | None = None,
    device: Device | None = None,
    stop: StopToken | None = None,
    pause: PauseToken | None = None,
    name: str = "",
) -> Generator[ContinuousEvent, None, Model | None]:
    """Fine-tune copies of ``base`` on whatever lies in the inbox, until stopped.

    Parameters
    ----------
    base
        Where the weights start; never changed.
    images
        The images, all with the same number of channels, in the order of the inbox's labels.
    inbox
        Where strokes arrive, as often as one likes; only the newest count.
    config
        All settings but the time: the rate stays at ``learning_rate`` after the warm-up; ``validate_every`` is the
        number of steps between two scores, and it rests after ``patience`` scores without a better one (8 if it is 0),
        but not before ``max_steps``. Where a step takes longer than :data:`LONGEST_STEP_S`, ``batch_size`` is halved.
    classes
        The classes the labels mean; those of the base if not given. Other classes need another run.
    device, stop
        Where to compute (chosen if not given); who ends it, after the step or tile at hand.
    pause
        While it is held, no step begins.
    name
        Name for the cards of the models.

    Yields
    ------
    ContinuousEvent
        :class:`StrokesTaken` or :class:`NothingToLearn` for strokes that arrived, then :class:`ContinuousStep`,
        :class:`ContinuousScored`, and :class:`Improved` where the held-out score says so; :class:`Settled` once
        nothing improves any more, :class:`Waiting` again and again while it is paused or rests. Without enough
        strokes for a score there is no :class:`Improved`.

    Returns
    -------
    Model or None
        The last one that improved, if it still holds: strokes were not taken back since.

    Raises
    ------
    OutOfMemory, TrainingDiverged
        As :func:`.training.train`.
    """
    stop, pause, device = stop or StopToken(), pause or PauseToken(), device or choose_device()
    run = _Continuous(base, images, inbox, config, classes or base.card.classes, device, stop, name)
    while not stop.stopped:
        if inbox.generation > run.generation:
            yield run.take_strokes()
        elif pause.held:
            pause.wait(_LOOK_EVERY_S)
            yield Waiting()
        elif run.is_resting:
            inbox.wait_for_newer(run.generation, _LOOK_EVERY_S)
            yield Waiting()
        elif run.is_score_due:
            yield from run.score()
        else:
            yield run.step()
    return run.best_model()


@dataclass(frozen=True, eq=False)
class _Best:
    """Weights that a score said to be the best so far."""

    network: UNet
    step: int
    #: Of the strokes that they learnt from.
    generation: int
    #: On the present held-out strokes.
    scored: HeldOutScore
    base_score: float | None


class _Continuous:
    """Everything that changes from step to step."""

    def __init__(self, base: Model, images: Sequence[Planes], inbox: StrokeInbox, config: TrainingConfig,
                 classes: tuple[ClassDefinition, ...], device: Device, stop: StopToken, name: str) -> None:
        self._base, self._config, self._classes, self._device, self._name = base, config, classes, device, name
        self._images, self._inbox, self._stop = images, inbox, stop
        self._start = with_dropout(with_classes(base.for_channels(n_channels(images)), classes, config.seed),
                                   config.dropout)
        #: Classes that the head was fitted to.
        self._painted: set[int] = set()
        self._needs_head = probe.needs_head(base, classes, config)
        self._teacher = teacher_for(base, n_channels(images), classes, config, device)
        self._can_score_base = base.card.n_steps > 0 and knows_all(base, classes)
        diameters_px = object_diameters(base, images, config.diameter_px, device, stop, classes=classes)
        self._scales = base.card.scales_for(diameters_px, len(images))
        self._tuned_on = sizes_by_fingerprint(images, diameters_px)
        self._sources = [Resampled(image, scale) for image, scale in zip(images, self._scales, strict=True)]
        self._hold_out = GrowingHoldOut(config.held_out_fraction, config.seed)
        self.generation = 0
        #: The newest strokes that the present weights made a step on.
        self._learnt_generation = 0
        self._has_grown = False
        self._n_patches = config.batch_size
        self._annotation: Annotation | None = None
        self._held_out: HeldOut | None = None
        self._patches: Patches | None = None
        self._forget()

    # ------------------------------------------------------------------------------------------------ strokes

    def take_strokes(self) -> StrokesTaken | NothingToLearn:
        """Learn from the newest strokes from now on."""
        self.generation, labels = self._inbox.take()
        try:
            annotation = collect_annotation(self._images, labels, self._classes)
        except AnnotationError as error:
            # Whatever was learnt came from strokes that are gone.
            self._annotation = None
            self._hold_out.forget()
            self._forget()
            return NothingToLearn(self.generation, str(error))
        restarted = self._hold_out.takes_back(annotation)
        if restarted:
            self._hold_out.forget()
            self._forget()
        self._has_grown = self._has_grown or self._learner.n_steps > 0
        self._annotation = annotation
        self._use(self._hold_out.split(annotation))
        if self._needs_head and self._learner.n_steps and not self._split.train.painted_classes <= self._painted:
            # A class that was not painted when the head was fitted: fit it anew.
            self._restart()
        self._rounds_without_better = 0
        self._is_settled = False
        return StrokesTaken(self.generation, self._split.train.n_pixels,
                            self._split.validation.n_pixels if self._split.validation else 0, self._split.reason,
                            restarted, annotation.n_strokes, self._split)

    def _use(self, split: Split) -> None:
        self._split = split
        self._patches = Patches(self._sources, rescaled(split.train, self._scales), self._classes,
                                self._config.replace(seed=(self._config.seed + self.generation) % 2**31),
                                self._learner.network.geometry, self._device)
        self._held_out = HeldOut(self._sources, rescaled(split.validation, self._scales), self._config,
                                 self._start.network, self._device, QUICK_TILES) if split.validation else None
        self._base_score: float | None = None
        self._is_best_scored = False

    def _forget(self) -> None:
        """Go back to the base, with no better weights known."""
        if self._teacher:
            # How far it can be trusted was told by strokes that are gone.
            self._teacher.trust(0.0, 1.0)
        self._restart()
        self._best: _Best | None = None

    def _restart(self) -> None:
        """Go back to the base; better weights stay what they are."""
        self._learner = Learner(self._start, self._config, self._device, self._teacher)
        self._learner.expect_no_end()
        self._has_grown = False
        self._scored_at = 0
        self._was_interrupted = False
        self._rounds_without_better = 0
        self._is_settled = False

    # --------------------------------------------------------------------------------------------- what is next

    @property
    def is_resting(self) -> bool:
        """Whether there is nothing to compute until other strokes come."""
        return self._annotation is None or self._is_settled

    @property
    def is_score_due(self) -> bool:
        """Whether enough steps were made since the last score."""
        return self._held_out is not None and self._learner.n_steps >= self._scored_at + self._config.validate_every

    def step(self) -> ContinuousStep:
        """Learn from one batch."""
        if self._patches is None:
            raise RuntimeError("there are no strokes")
        if self._needs_head and not self._learner.n_steps:
            self._learner.fit_head((self._patches.next_batch(1) for _ in range(probe.N_LIVE_PATCHES)),
                                   len(self._classes), known_classes(self._base, self._classes))
            self._painted = self._split.train.painted_classes
        began = time.perf_counter()
        loss = self._learner.step(*self._patches.next_batch(self._n_patches))
        self._learnt_generation = self.generation
        is_first = self._learner.n_steps == 1  # which also chooses kernels
        if not is_first and time.perf_counter() - began > LONGEST_STEP_S:
            self._n_patches = max(1, self._n_patches // 2)
        if self._held_out is None and self._learner.n_steps >= self._config.max_steps:
            self._is_settled = True
        return ContinuousStep(self.generation, self._learner.n_steps, loss)

    # --------------------------------------------------------------------------------------------------- scores

    def score(self) -> Generator[ContinuousEvent, None, None]:
        """Measure the present weights, and what they compete with where that was measured on other strokes."""
        scored = self._measure(self._learner.averaged)
        if scored is None or not self._measure_rivals():
            return
        self._was_interrupted = False
        self._scored_at = self._learner.n_steps
        best = self._best
        better = self._is_better(scored)
        if better:
            best = _Best(copy.deepcopy(self._learner.averaged), self._learner.n_steps, self._learnt_generation,
                         scored, self._base_score)
            self._best, self._rounds_without_better = best, 0
        else:
            self._rounds_without_better += 1
        yield ContinuousScored(self.generation, self._learner.n_steps, scored.iou, scored.interval,
                               best.scored.iou if best else None, self._base_score)
        model = self.best_model() if better else None
        if model is not None:
            yield Improved(self.generation, self._learner.n_steps, model, scored.iou, scored.interval, self._base_score)
        patience = self._config.patience or TrainingConfig().patience
        if self._rounds_without_better >= patience and self._learner.n_steps >= self._config.max_steps:
            yield from self._settle()

    def _is_better(self, scored: HeldOutScore) -> bool:
        """Whether weights with this score are worth it: better than the base and than the best of the same strokes.

        Than the best that know fewer strokes they need not be worse: few held-out ones, all of them right, would keep
        those for ever.
        """
        if self._base_score is not None and scored.iou < self._base_score + LEAST_GAIN:
            return False
        if self._best is None:
            return True
        is_newer = self._learnt_generation > self._best.generation
        return scored.iou >= self._best.scored.iou + (0.0 if is_newer else LEAST_GAIN)

    def _settle(self) -> Generator[ContinuousEvent, None, None]:
        if self._has_grown:
            # Led on from stroke to stroke: see whether weights that learn from all strokes at once are better.
            self._restart()
            return
        self._is_settled = True
        yield Settled(self.generation)

    def _measure_rivals(self) -> bool:
        """Score base and best on the present strokes, once; whether that could be done in peace."""
        if self._base_score is None and self._can_score_base:
            scored = self._measure(self._on_device(self._start.network))
            if scored is None:
                return False
            self._base_score = scored.iou
            if self._teacher:
                self._teacher.trust(agreement(scored.confusion, self._classes), self._split.train.strokes_per_class)
        if self._best is not None and not self._is_best_scored:
            scored = self._measure(self._best.network)
            if scored is None:
                return False
            self._best = replace(self._best, scored=scored, base_score=self._base_score)
        self._is_best_scored = True
        return True

    def _measure(self, network: UNet) -> HeldOutScore | None:
        """None if new strokes came (but not twice in a row: somebody who paints on wants a score too) or a stop."""
        if self._held_out is None:
            return None
        scored = self._held_out.score(network, self)
        if scored is None:
            self._was_interrupted = True
        return scored

    @property
    def stopped(self) -> bool:
        """Whether a score is to be given up."""
        has_news = self._inbox.generation > self.generation
        return self._stop.stopped or (has_news and not self._was_interrupted)

    def _on_device(self, network: UNet) -> UNet:
        return copy.deepcopy(network).to(self._device.torch_device).eval()

    def best_model(self) -> Model | None:
        """The best weights, as a model of its own."""
        best = self._best
        if best is None or self._annotation is None:
            return None
        return tuned_model(best.network, self._start, self._base, self._annotation, self._config, name=self._name,
                           tuned_on=self._tuned_on, n_steps=best.step, base_score=best.base_score,
                           score=best.scored.iou)
