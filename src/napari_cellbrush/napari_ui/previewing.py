"""Objects with other settings at once: made anew from what the model said before, first where the camera looks.

The model does not run; its answers are kept. The part in view comes within a fraction of a second, the rest after it,
and both are what a segmentation with these settings would give.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject, QTimer

from napari_cellbrush.config import ObjectsConfig
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.worker import Job, memory_in_words
from napari_cellbrush.session import objects_in_words

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Milliseconds without another change before objects are made anew.
AFTER_MS = 120


class Previewing(QObject):
    """Keeps the objects of the chosen image in step with the settings of the session."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._job: Job | None = None
        self._layer: Labels | None = None
        #: What was accepted when the job began.
        self._accepted = Accepted()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(AFTER_MS)
        self._timer.timeout.connect(self._start)
        bench.session.segmentation.changed.connect(self._on_segmentation)
        bench.book.removed.connect(self._on_layer_removed)

    def soon(self) -> None:
        """Settings changed: make the objects anew once the hand rests."""
        self.stop()
        self._timer.start()

    def stop(self) -> None:
        """Forget what is under way; the objects stay as they are shown."""
        self._timer.stop()
        job, self._job = self._job, None
        if job is not None:
            job.close()
            job.deleteLater()

    def _start(self) -> None:
        self._bench.after_drag(self._start_now)

    def _start_now(self) -> None:
        task = self._task()
        if task is None:
            return
        self._job = self._bench.job(partial(runs.preview, task), "making objects with other settings", exclusive=False)
        self._job.received.connect(partial(self._on_event, task))
        self._job.failed.connect(self._on_failed)
        self._job.finished.connect(self._on_finished)
        self._job.start()

    def _task(self) -> runs.PreviewTask | None:
        session, image = self._session, self._session.image
        if image is None or session.segmentation.busy:
            return None
        layer, answers = self._bench.segmenting.results.answered_objects(image)
        if layer is None or answers.probabilities is None or not layer.visible:
            return None
        self._layer, axes = layer, layers.mask_axes(layer)
        self._accepted = session.accepted_in(str(layer.unique_id))
        try:
            with memory_in_words("copying the accepted objects"):
                earlier = np.array(layers.in_engine_order(layer.data, axes)) if self._accepted else None
        except CellbrushError as error:
            session.segmentation.say(str(error), "error")
            return None
        dims = self._bench.book.viewer.dims
        region = layers.region_in_sight(layer, axes, dims)  # out of sight there is nothing to be quick about
        index = layers.plane_index(layer, axes, dims.point)
        return runs.PreviewTask(answers, session.inference_config.objects, index, region, earlier, self._accepted)

    def _on_event(self, task: runs.PreviewTask, event: runs.PreviewEvent) -> None:
        layer = self._layer
        if layer is None or self._job is None:
            return
        if isinstance(event, runs.ViewRenumbered):
            self._show_view(layer, task, event)
        else:
            self._bench.segmenting.write_objects(layer, event.ids, self._accepted)
            self._note(layer, task.config)
            words, kind = objects_in_words(event.n_objects)
            self._session.segmentation.say(f"With these settings: {words}", kind)
        layer.refresh(extent=False, thumbnail=False, highlight=False)

    def _show_view(self, layer: Labels, task: runs.PreviewTask, event: runs.ViewRenumbered) -> None:
        plane = layers.in_engine_order(layer.data, layers.mask_axes(layer))[task.index]
        accepted = self._session.accepted_in(str(layer.unique_id))
        kept = accepted.covers(plane[event.region]) | (
            accepted.empty_at(task.index, plane.shape)[event.region] & (plane[event.region] == 0))
        highest = int(plane.max(initial=0))
        if highest + int(event.ids.max(initial=0)) <= np.iinfo(layer.dtype).max:
            plane[event.region] = np.where(kept, plane[event.region],
                                           np.where(event.ids > 0, event.ids + highest, 0))
            self._bench.segmenting.objects_written.emit(layer)

    @staticmethod
    def _note(layer: Labels, config: ObjectsConfig) -> None:
        made: dict[str, Any] = layers.note_of(layer).get("provenance", {})
        settings = {**made.get("settings", {}), "objects": config.model_dump()}
        layers.note_on(layer, provenance={**made, "settings": settings})

    def _on_finished(self, _: None) -> None:
        self._job = None

    def _on_failed(self, error: CellbrushError) -> None:
        self._job = None
        self._session.segmentation.say(str(error), "error")

    def _on_segmentation(self) -> None:
        if self._session.segmentation.busy:
            self.stop()

    def _on_layer_removed(self, key: str) -> None:
        if self._layer is not None and str(self._layer.unique_id) == key:
            self._layer = None
            self.stop()
