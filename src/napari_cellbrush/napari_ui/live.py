"""Live: while it is on, a mask follows the strokes on the chosen image.

One job follows one subject (an image, its annotation layer, a number of classes, a model). Whatever changes the
subject ends that job without another word from it and starts the next one, so that no answer can reach a wrong layer;
answers to older strokes of the same subject are told by their generation and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from napari.layers import Labels
from qtpy.QtCore import QObject, QTimer

from napari_cellbrush.config import DeviceName
from napari_cellbrush.engine.live_inbox import LiveInbox, Strokes, View
from napari_cellbrush.errors import AnnotationError, CellbrushError
from napari_cellbrush.events import HeadFitted, LiveEvent, LiveTile
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.live_runs import KnownFeatures, LiveTask, follow_strokes
from napari_cellbrush.napari_ui.live_strokes import StrokeWatch
from napari_cellbrush.napari_ui.result_layers import ResultLayers
from napari_cellbrush.napari_ui.worker import Job, memory_in_words

if TYPE_CHECKING:
    from napari_cellbrush.engine.features import FeatureSource
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Milliseconds between two looks at the camera and the mouse.
PULSE_MS = 40


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
        self._results = ResultLayers(bench.book, bench.session)
        self._subject: _Subject | None = None
        self._known = KnownFeatures()
        self._job: Job | None = None
        self._inbox = LiveInbox()
        self._watch: StrokeWatch | None = None
        self._mask: Labels | None = None
        self._mask_axes = ""
        self._view: View | None = None
        self._is_dirty = False
        #: Generation of the strokes behind the newest answer.
        self.answered = 0
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

    def close(self) -> None:
        """End everything, because the window closes."""
        self._pulse.stop()
        self._soon.stop()
        self._end_job()

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
        self._bench.look_around_soon()
        self._pulse.start()
        self._follow()

    def _switch_off(self, text: str, error: bool = False) -> None:
        self._pulse.stop()
        self._end_job()
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
        self._subject, self._view, self._inbox = subject, None, LiveInbox()
        self._mask = self._results.live_mask(image, session.classes)
        self._mask_axes = layers.labels_axes(image.axes)
        self._watch = StrokeWatch(strokes, book.viewer.dims, self._on_strokes)
        self._inbox.paint(self._watch.strokes)
        task = LiveTask(subject.base, layers.planes_of(book.layer(image.key), image.axes), session.classes,
                        session.live_config, session.training_config, subject.diameter_px, subject.device_name,
                        self._inbox, self._known)
        self._run.say("Looking at the image…")
        self._job = self._bench.job(partial(follow_strokes, task), "following the strokes", exclusive=False)
        self._job.received.connect(self._on_event)
        self._job.drained.connect(self._on_drained)
        self._job.failed.connect(lambda error: self._switch_off(str(error), error=True))
        self._look()
        self._job.start()

    def _end_job(self) -> None:
        self._subject = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._job is not None:
            self._job.close()
            self._job.deleteLater()
            self._job = None
        self._mask = None

    # ------------------------------------------------------------------------------------------- to the job

    def _on_strokes(self, strokes: Strokes) -> None:
        self._inbox.paint(strokes)

    def _on_pulse(self) -> None:
        if self._job is not None:
            self._look()

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
        n_more = dims.ndim - layer.ndim
        try:
            region = layers.visible_region(layer, axes, [axis - n_more for axis in dims.displayed])
        except AnnotationError:  # the image lies outside the view
            return None
        if region is None:
            return None
        return View(layers.plane_index(layer, axes, dims.point), *region)

    # ----------------------------------------------------------------------------------------- from the job

    def _on_event(self, event: LiveEvent) -> None:
        if self._watch is None or self._mask is None or event.generation != self._watch.strokes.generation:
            return
        if isinstance(event, HeadFitted):
            self._hear(event, self._mask)
        else:
            self._write(event, self._mask)

    def _hear(self, fitted: HeadFitted, mask: Labels) -> None:
        if fitted.ready:
            self._run.say(f"Follows {fitted.n_pixels:,} painted pixels.")
            return
        self._run.say("Paint at least two classes.")
        if mask.data.any():  # every stroke that said otherwise was taken back
            mask.data[...] = 0
            self._is_dirty = True

    def _write(self, tile: LiveTile, mask: Labels) -> None:
        self.answered = tile.generation
        place: tuple[int | slice, ...] = (*tile.plane, tile.rows, tile.columns)
        layers.in_engine_order(mask.data, self._mask_axes)[place] = tile.classes
        self._is_dirty = True

    def _on_drained(self) -> None:
        if self._is_dirty and self._mask is not None:
            self._is_dirty = False
            self._mask.refresh(extent=False, thumbnail=False, highlight=False)

    def _on_layer_removed(self, key: str) -> None:
        if self._mask is not None and str(self._mask.unique_id) == key:
            self._switch_off("Off, because its layer was removed.")
        else:
            self._follow_soon()

