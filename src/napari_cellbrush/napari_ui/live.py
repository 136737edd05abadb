"""Live: while it is on, a mask follows the strokes on the chosen image.

One job follows one subject (an image, its annotation layer, a number of classes, a model). Whatever changes the
subject ends that job without another word from it and starts the next one, so that no answer can reach a wrong layer;
answers to older strokes of the same subject are told by their generation and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtWidgets import QApplication

from napari_cellbrush.config import MADE_BY_LIVE, DeviceName, LiveConfig
from napari_cellbrush.engine.live_inbox import HeldOutStrokes, Index, LiveInbox, Strokes, TunedAnswer, View
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.events import (
    ContinuousScored,
    HeadFitted,
    Improved,
    LiveEvent,
    LiveScored,
    LiveTile,
    PauseToken,
    StrokesTaken,
)
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.live_learning import LiveLearning
from napari_cellbrush.napari_ui.live_runs import KnownFeatures, LiveTask, follow_strokes
from napari_cellbrush.napari_ui.live_strokes import StrokeWatch
from napari_cellbrush.napari_ui.worker import Job, memory_in_words, one_blas_thread

if TYPE_CHECKING:
    from napari_cellbrush.engine.features import FeatureSource
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Milliseconds between two looks at the camera and the mouse.
PULSE_MS = 40
#: Milliseconds after which a mask is repainted although not all that is seen is answered yet. A repaint stops the
#: window for tens of them where the processor draws.
REPAINT_MS = 300


@dataclass(frozen=True)
class _Subject:
    """What one job follows."""

    image: str
    axes: str
    annotation: str
    n_classes: int
    base: str
    diameter_px: float
    device_name: DeviceName

    def shares_features(self, other: _Subject) -> bool:
        """Whether what is known of the image stays right."""
        return all(getattr(self, name) == getattr(other, name) for name in (
            "image", "axes", "base", "diameter_px", "device_name"))


class Live(QObject):
    """The live loop of one viewer."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._run = bench.session.live
        # Shared, so that segmenting hides the live mask as it hides other results.
        self._results = bench.segmenting.results
        self._subject: _Subject | None = None
        self._known = KnownFeatures()
        self._job: Job | None = None
        self._inbox = LiveInbox()
        self._pause = PauseToken()
        self._learning_pause = PauseToken()
        self._learning = LiveLearning(bench, self._learning_pause)
        #: Of the newest strokes; and the same by what learning calls them.
        self._generation = 0
        self._generations: dict[int, int] = {}
        #: What learning said last: how strokes are split, and its best model.
        self._split: StrokesTaken | None = None
        self._tuned: TunedAnswer | None = None
        self._fitted: HeadFitted | None = None
        self._scored: LiveScored | None = None
        self._watch: StrokeWatch | None = None
        self._mask: Labels | None = None
        self._mask_axes = ""
        self._view: View | None = None
        self._is_dirty = False
        #: Whether what was written since the mask was last shown completes what is seen.
        self._is_whole = False
        #: Generation of the strokes behind the newest answer.
        self.answered = 0
        self._repaint = QTimer(self)
        self._repaint.setSingleShot(True)
        self._repaint.setInterval(REPAINT_MS)
        self._repaint.timeout.connect(self._show_mask)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(lambda: self._bench.after_drag(self._follow))
        self._pulse = QTimer(self)
        self._pulse.setInterval(PULSE_MS)
        self._pulse.timeout.connect(self._on_pulse)
        session = self._session
        for signal in (session.image_chosen, session.annotations_changed, session.classes_changed,
                       session.models_changed, session.options_changed):
            signal.connect(self._follow_soon)
        session.axes_changed.connect(self._on_axes_changed)
        self._learning.split.connect(self._on_split)
        self._learning.improved.connect(self._on_improved)
        self._learning.scored.connect(self._on_tuned_scored)
        self._learning.failed.connect(self._on_learning_failed)
        bench.book.removed.connect(self._on_layer_removed)

    @property
    def is_on(self) -> bool:
        """Whether a mask follows the strokes, or waits for some."""
        return self._run.busy

    def features_of(self, image_key: str) -> FeatureSource | None:
        """Features of an image, while they are at hand because live follows it."""
        return self._known.source if self._subject is not None and self._subject.image == image_key else None

    def switch(self, on: bool | None = None) -> None:
        """Switch live on or off; the other one if not said."""
        on = not self.is_on if on is None else on
        if on and not self.is_on:
            self._bench.after_drag(self._switch_on)
        elif not on and self.is_on:
            self._switch_off("")

    def configure(self, config: LiveConfig) -> None:
        """Go on with other settings; the memory counts from the next image on."""
        self._session.live_config = config
        self._follow_soon()

    def close(self) -> None:
        """End everything, because the window closes."""
        self._pulse.stop()
        self._soon.stop()
        self._is_dirty = False  # nobody looks any more
        one_blas_thread.release(self)
        self._end_job()
        self._learning.end()

    # -------------------------------------------------------------------------------------------- on and off

    def _switch_on(self) -> None:
        image = self._session.image
        if image is None:
            self._run.end("Open an image first.", "warning")
            return
        try:
            self._bench.annotating.new_annotation(image.key)
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        self._run.begin("Looking at the image…")
        one_blas_thread.hold(self)
        self._bench.look_around_soon()
        self._pulse.start()
        self._follow()

    def _switch_off(self, text: str, error: bool = False) -> None:
        self._pulse.stop()
        one_blas_thread.release(self)
        self._end_job()
        self._learning.end_and_save()
        self._pause.release()
        self._learning_pause.release()
        self._known = KnownFeatures()
        self._run.end(text, "error" if error else "info")

    def _follow_soon(self) -> None:
        if self.is_on:
            self._soon.start(0)

    def _on_axes_changed(self, image_key: str) -> None:
        self._follow_soon()

    def _follow(self) -> None:
        """Follow what is chosen now."""
        if not self.is_on:
            return
        if self._learning.follow():
            self._teach()
        subject = self._wanted()
        if subject == self._subject:
            return
        if subject is None or self._subject is None or not subject.shares_features(self._subject):
            self._known = KnownFeatures()
        self._end_job()
        if subject is None:
            return
        try:
            with memory_in_words("making room for the mask"):
                self._start(subject)
        except CellbrushError as error:
            self._switch_off(str(error), error=True)

    def _wanted(self) -> _Subject | None:
        session = self._session
        image = session.image
        annotation = session.annotation_of(image.key) if image else None
        if image is None or annotation is None or session.models is None:
            self._run.say("Looking for models…" if image and annotation else
                          "Choose an image with an annotation, or make one: Live waits for strokes.")
            return None
        diameter_px = session.inference_config.diameter_px or session.training_config.diameter_px
        return _Subject(image.key, image.axes, annotation, len(session.classes), session.base, diameter_px,
                        session.options.device_name)

    def _start(self, subject: _Subject) -> None:
        session, book = self._session, self._bench.book
        image, strokes = session.find_image(subject.image), book.layer(subject.annotation)
        if image is None or strokes is None:
            return
        self._subject, self._view = subject, None
        self._mask = self._results.live_mask(image, session.classes)
        self._mask_axes = layers.labels_axes(image.axes)
        layers.note_on(self._mask, provenance={"made_by": MADE_BY_LIVE, "base": subject.base,
                                               "classes": [definition.name for definition in session.classes]})
        # Generations go on from image to image: a late word about strokes never fits the strokes of another image.
        self._watch = StrokeWatch(strokes, book.viewer.dims, self._generation + 1, self._on_new_strokes)
        self._on_strokes(self._watch.strokes)
        self._on_split(self._split)
        self._inbox.offer(self._tuned)
        task = LiveTask(subject.base, layers.planes_of(book.layer(image.key), image.axes), session.classes,
                        session.live_config, session.training_config, subject.diameter_px, subject.device_name,
                        self._inbox, self._pause, self._known)
        self._run.say("Looking at the image…")
        self._job = self._bench.job(partial(follow_strokes, task), "following the strokes", exclusive=False)
        self._job.received.connect(self._on_event)
        self._job.drained.connect(self._on_drained)
        self._job.failed.connect(lambda error: self._switch_off(str(error), error=True))
        self._look()
        self._job.start()

    def _end_job(self) -> None:
        self._show_mask()
        self._subject = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._job is not None:
            self._job.close()
            self._job.deleteLater()
            self._job = None
        self._inbox = LiveInbox()
        self._mask = None
        self._fitted, self._scored = None, None

    # ------------------------------------------------------------------------------------------- to the job

    def _on_new_strokes(self, strokes: Strokes) -> None:
        """Whoever paints on after a segmentation wants to see what the stroke does."""
        image = self._session.find_image(self._subject.image) if self._subject else None
        if image is not None:
            self._results.show_live_again(image)
        self._on_strokes(strokes)

    def _on_strokes(self, strokes: Strokes) -> None:
        self._generation = strokes.generation
        self._inbox.paint(strokes)
        self._teach()

    def _teach(self) -> None:
        """Let the strokes of all images be learnt from."""
        try:
            number = self._learning.take_strokes()
        except CellbrushError as error:  # too little memory for a copy
            self._on_learning_failed(str(error))
            return
        if number == 1:
            self._generations.clear()
        self._generations[number] = self._generation

    def _on_pulse(self) -> None:
        """Whoever draws has the computer, then the answer in view, then learning; and tell what the view shows."""
        if self._job is not None:
            self._look()
        draws = QApplication.mouseButtons() != Qt.MouseButton.NoButton
        for pause, is_held in ((self._pause, draws), (self._learning_pause, draws or self._inbox.is_behind)):
            if is_held:
                pause.hold()
            else:
                pause.release()

    def _look(self) -> None:
        """Tell what the view shows, if it shows anything else than before."""
        view = self._seen()
        if view is not None and view != self._view:
            self._view = view
            self._inbox.show(view)

    def _seen(self) -> View | None:
        if self._subject is None:
            return None
        viewer, layer = self._bench.book.viewer, self._bench.book.layer(self._subject.image)
        if layer is None:
            return None
        dims, axes = viewer.dims, self._subject.axes
        region = layers.region_in_sight(layer, axes, dims)
        if region is None:
            return None
        return View(layers.plane_index(layer, axes, dims.point), *region)

    # ----------------------------------------------------------------------------------------- from the job

    def _on_event(self, event: LiveEvent) -> None:
        if self._mask is None or event.generation != self._generation:
            return
        if isinstance(event, LiveTile):
            self._write(event, self._mask)
            return
        if isinstance(event, HeadFitted):
            self._fitted = event
            if not event.ready and self._mask.data.any():  # every stroke that said otherwise was taken back
                self._mask.data[...] = 0
                self._is_dirty = self._is_whole = True
        else:
            self._scored = event
        self._run.say(standing_in_words(self._fitted, self._scored))

    def _write(self, tile: LiveTile, mask: Labels) -> None:
        self.answered = tile.generation
        place: tuple[int | slice, ...] = (*tile.plane, tile.rows, tile.columns)
        layers.in_engine_order(mask.data, self._mask_axes)[place] = tile.classes
        self._is_dirty = True
        self._is_whole = self._is_whole or tile.completes_view

    def _on_drained(self) -> None:
        """Show what was written as soon as all that is seen is answered, else after a while."""
        if self._is_whole:
            self._show_mask()
        elif self._is_dirty and not self._repaint.isActive():
            self._repaint.start()

    def _show_mask(self) -> None:
        self._repaint.stop()
        self._is_whole = False
        if self._is_dirty and self._mask is not None:
            self._is_dirty = False
            self._mask.refresh(extent=False, thumbnail=False, highlight=False)

    # -------------------------------------------------------------------------------------------- from learning

    def _on_split(self, taken: StrokesTaken | None) -> None:
        self._split = taken
        image = self._learning.position_of(self._subject.image) if self._subject else -1
        if taken is None or taken.split.validation is None or image < 0:
            self._inbox.hold_out(None)
            return
        self._inbox.hold_out(HeldOutStrokes(self._generations.get(taken.generation, 0),
                                            _planes_of(taken.split.train, image),
                                            _planes_of(taken.split.validation, image)))

    def _on_improved(self, improved: Improved | None) -> None:
        self._offer(TunedAnswer(improved.model, improved.score, self._generations.get(improved.generation, 0))
                    if improved is not None else None)

    def _on_tuned_scored(self, scored: ContinuousScored) -> None:
        # A score that is itself the best is followed by the model it belongs to.
        if self._tuned is not None and scored.best_score is not None and scored.score != scored.best_score:
            self._offer(replace(self._tuned, score=scored.best_score,
                                generation=self._generations.get(scored.generation, 0)))

    def _offer(self, tuned: TunedAnswer | None) -> None:
        if tuned is not None or self._tuned is not None:
            self._tuned = tuned
            self._inbox.offer(tuned)

    def _on_learning_failed(self, sentence: str) -> None:
        self._run.say(f"The instant answer goes on, but nothing is learnt beside it: {sentence}", "warning")

    def _on_layer_removed(self, key: str) -> None:
        if self._mask is not None and str(self._mask.unique_id) == key:
            self._switch_off("Off, because its layer was removed.")
        else:
            self._follow_soon()


def standing_in_words(fitted: HeadFitted | None, scored: LiveScored | None) -> str:
    """Who answers, how well, and from what; for the person."""
    if fitted is None or not fitted.ready:
        return "Paint at least two classes: then the mask follows."
    instant = scored.instant_score if scored is not None else None
    tuned = scored.tuned_score if scored is not None else None
    if instant is None:
        return f"Instant answer, learnt from {fitted.n_pixels:,} pixels."
    if tuned is None:
        return f"Instant answer: {instant:.2f} on held-out strokes."
    if scored is not None and scored.tuned_leads:
        return f"Tuned model: {tuned:.2f} on held-out strokes (instant answer {instant:.2f})."
    return f"Instant answer: {instant:.2f} on held-out strokes (tuned model {tuned:.2f})."


def _planes_of(annotation: Any, image: int) -> dict[Index, NDArray[np.uint8]]:
    """An image's labelled planes by their index, of an :class:`.engine.annotation.Annotation`."""
    return {plane.index: plane.labels for plane in annotation.planes if plane.image == image}
