"""Where to paint next: looks over the plane that is shown, moves the camera, shows how unsure the model is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QObject

from napari_cellbrush.engine.tiling import Region
from napari_cellbrush.errors import AnnotationError, CellbrushError
from napari_cellbrush.events import InferenceEvent, TileSegmented
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.guiding_runs import GuideTask, look_over
from napari_cellbrush.napari_ui.proofreading import show_box
from napari_cellbrush.napari_ui.worker import Job
from napari_cellbrush.session import Advice, ImageEntry

if TYPE_CHECKING:
    from napari_cellbrush.engine.guide import Guide, ModelAnswers
    from napari_cellbrush.engine.suggestions import Place, Slip
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Side of the part of a plane that is looked over, around what the view shows.
WINDOW_PX = 1536
#: How far the view shows around a place at least, in half strokes.
_SURROUNDINGS = 4


class Guiding(QObject):
    """Suggestions for one viewer."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._run = bench.session.guiding
        self._job: Job | None = None
        self._image: ImageEntry | None = None
        self._answers: ModelAnswers | None = None
        self._unsure: Image | None = None
        self._wants_layer = False
        self._bind_keys()
        bench.book.removed.connect(self._on_layer_removed)

    def why_not(self) -> str:
        """Why no place can be looked for, as a sentence; empty if it can."""
        return self._session.why_not_segment()

    def next_place(self) -> None:
        """Look for the place where a stroke helps most, and go there."""
        self._look(wants_layer=False)

    def show_uncertainty(self, on: bool = True) -> None:
        """Show how unsure the model is, as a layer; or take it away."""
        if on:
            self._look(wants_layer=True)
        elif self._unsure is not None:
            self._bench.book.viewer.layers.remove(self._unsure)

    def stop(self) -> None:
        """End the look."""
        if self._job is not None:
            self._run.stopping()
            self._job.stop()

    def go_to_slip(self, slip: Slip) -> None:
        """Show a stroke that is probably wrong."""
        if self._image is not None and self._answers is not None:
            self._show(slip)

    # ------------------------------------------------------------------------------------------------ looking

    def _look(self, wants_layer: bool) -> None:
        if self._run.busy:
            return
        why_not = self.why_not()
        if why_not:
            self._run.end(why_not, "warning")
            return
        self._wants_layer = wants_layer
        try:
            task = self._task()
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        self._run.begin(f"Looking with '{task.model}'…")
        self._job = self._bench.job(partial(look_over, task), "looking for the next place")
        self._job.received.connect(self._on_event)
        self._job.finished.connect(self._on_ended)
        self._job.stopped.connect(self._on_ended)
        self._job.failed.connect(self._on_failed)
        self._job.start()

    def _task(self) -> GuideTask:
        session, bench = self._session, self._bench
        image, layer = session.image, bench.book.layer(session.image.key if session.image else None)
        if image is None or layer is None:
            raise AnnotationError("There is no image", "Open one first")
        if image != self._image:
            self._image, self._answers = image, None
        planes = layers.planes_of(layer, image.axes)
        return GuideTask(
            session.model, planes, layers.plane_index(layer, image.axes, bench.book.viewer.dims.point),
            window_seen(bench.book.viewer, layer, image.axes), bench.annotating.snapshot(image.key), session.classes,
            session.inference_config, session.options.device_name, bench.live.features_of(image.key), self._answers)

    def _on_event(self, event: InferenceEvent) -> None:
        if isinstance(event, TileSegmented):
            self._run.advance(event.tile / event.n_tiles, event.seconds_left, f"tile {event.tile} of {event.n_tiles}")

    def _on_ended(self, guide: Guide | None) -> None:
        self._job = None
        if guide is None:
            self._run.end("Stopped.")
            return
        self._answers = guide.answers
        self._session.set_advice(Advice(guide.hints, guide.slips))
        if self._wants_layer:
            self._bench.after_drag(partial(self._show_unsure, guide))
            self._run.end("Bright is where the model cannot tell two classes apart.")
        elif guide.places:
            self._show(guide.places[0])
            self._run.end("A stroke here would help most. Paint, then press N again.")
        else:
            self._run.end("The model is sure of everything here. Look at another part or plane.", "success")

    def _on_failed(self, error: CellbrushError) -> None:
        self._job = None
        self._run.end(str(error), "error")

    # ------------------------------------------------------------------------------------------------ showing

    def _show(self, place: Place | Slip) -> None:
        """Bring a place to the middle of the view, near enough to paint."""
        from napari_cellbrush.engine.suggestions import REACH_PX

        layer = self._bench.annotating.layer_of(self._image.key) if self._image else None
        if layer is None or self._image is None or self._answers is None:
            return
        reach = _SURROUNDINGS * REACH_PX
        box = tuple(slice(int(at - reach), int(at + reach) + 1) for at in (place.row, place.column))
        show_box(self._bench.book.viewer, layer, layers.mask_axes(layer), self._answers.index, (box[0], box[1]))

    def _show_unsure(self, guide: Guide) -> None:
        image = self._image
        layer = self._bench.book.layer(image.key) if image is not None else None
        if image is None or layer is None:
            return
        if self._unsure is None:
            self._unsure = layers.new_uncertainty(layer, image.axes, f"{image.name} uncertainty")
            layers.note_on(self._unsure, image=image.key)
            self._bench.book.add(self._unsure, above=layer)
            self._bench.showing.reveal(self._unsure)
        rows, columns = guide.answers.region
        view = layers.in_engine_order(self._unsure.data, layers.labels_axes(image.axes))
        place: tuple[int | slice, ...] = (*guide.answers.index, rows, columns)
        view[place] = guide.unsure
        self._unsure.refresh(extent=False)

    @property
    def shows_uncertainty(self) -> bool:
        """Whether there is such a layer."""
        return self._unsure is not None

    def _on_layer_removed(self, key: str) -> None:
        if self._unsure is not None and str(self._unsure.unique_id) == key:
            self._unsure = None
            self._run.changed.emit()

    # --------------------------------------------------------------------------------------------------- keys

    def _bind_keys(self) -> None:
        def go_on(_: Any) -> None:
            self.next_place()

        def bind_annotations() -> None:
            for key in self._session.annotations.values():
                layer = self._bench.book.layer(key)
                if isinstance(layer, Labels):
                    layer.bind_key("N", go_on, overwrite=True)

        self._bench.book.viewer.bind_key("N", go_on, overwrite=True)
        self._session.annotations_changed.connect(bind_annotations)


def window_seen(viewer: Any, layer: Layer, axes: str) -> Region:
    """All of a small plane, else the surroundings of what the view shows."""
    shape = layers.planes_of(layer, axes).shape_yx
    seen = layers.region_in_sight(layer, axes, viewer.dims) or (slice(0, shape[0]), slice(0, shape[1]))
    rows, columns = (_around((part.start + part.stop) // 2, size) for part, size in zip(seen, shape, strict=True))
    return rows, columns


def _around(centre: int, size: int) -> slice:
    start = int(np.clip(centre - WINDOW_PX // 2, 0, max(0, size - WINDOW_PX)))
    return slice(start, min(size, start + WINDOW_PX))
