"""Compares an earlier model with the chosen one, as a layer of what differs in the view."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from napari.layers import Labels
from qtpy.QtCore import QObject

from napari_cellbrush.config import ClassDefinition, DeviceName, InferenceConfig
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.tiling import Region
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.events import InferenceEvent, StopToken
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.guiding import window_seen
from napari_cellbrush.napari_ui.runs import load_torch
from napari_cellbrush.napari_ui.worker import Job
from napari_cellbrush.session import ImageEntry

if TYPE_CHECKING:
    from napari_cellbrush.engine.comparison import Difference
    from napari_cellbrush.napari_ui.workbench import Workbench


@dataclass(frozen=True, eq=False)
class ComparisonTask:
    """Everything that a comparison needs; models by their names in the library."""

    first: str
    second: str
    planes: Planes
    index: tuple[int, ...]
    region: Region
    config: InferenceConfig
    device_name: DeviceName


def compare(task: ComparisonTask, stop: StopToken) -> Generator[InferenceEvent, None, Difference | None]:
    """Segment the same pixels with both models."""
    load_torch()
    from napari_cellbrush.engine.comparison import compare
    from napari_cellbrush.engine.device import choose_device
    from napari_cellbrush.engine.model_file import find_model, read_model

    first, second = (read_model(find_model(name)) for name in (task.first, task.second))
    return (yield from compare(first, second, task.planes, task.index, task.region, config=task.config,
                               device=choose_device(task.device_name), stop=stop))


class Comparing(QObject):
    """The comparisons of one viewer, one at a time."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._run = bench.session.comparison
        self._job: Job | None = None
        self._layer: Labels | None = None
        #: The chosen model that the last comparison was with.
        self._with = ""
        bench.session.models_changed.connect(self._on_models_changed)
        bench.book.removed.connect(self._on_layer_removed)

    def start(self, name: str) -> None:
        """Show where the view would look different with another model than the chosen one."""
        session, bench = self._session, self._bench
        image, why_not = session.image, session.why_not_segment()
        layer = bench.book.layer(image.key if image else None)
        if self._run.busy or image is None or layer is None or why_not:
            return
        try:
            planes = layers.planes_of(layer, image.axes)
            task = ComparisonTask(session.model, name, planes,
                                  layers.plane_index(layer, image.axes, bench.book.viewer.dims.point),
                                  window_seen(bench.book.viewer, layer, image.axes), session.inference_config,
                                  session.options.device_name)
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        self._run.begin(f"Comparing '{name}' with '{session.model}'…")
        self._job = bench.job(partial(compare, task), "comparing models")
        found = session.find_model(name)
        classes = found.card.classes if found is not None else session.classes
        self._job.finished.connect(partial(self._on_ended, task, image, classes))
        self._job.stopped.connect(partial(self._on_ended, task, image, classes))
        self._job.failed.connect(lambda error: self._run.end(str(error), "error"))
        self._job.start()

    def _on_ended(self, task: ComparisonTask, image: ImageEntry, classes: tuple[ClassDefinition, ...],
                  found: Difference | None) -> None:
        self._job = None
        if found is None:
            self._run.end("Stopped.")
            return
        self._bench.after_drag(partial(self._show, image, classes, found))
        self._run.end(f"{found.share:.1%} of the view differ: the new layer shows what '{task.second}' says there, "
                      f"instead of '{task.first}'.")
        self._with = task.first
        self._on_models_changed()

    def _show(self, image: ImageEntry, classes: tuple[ClassDefinition, ...], found: Difference) -> None:
        on = self._bench.book.layer(image.key)
        if on is None:
            return
        if self._layer is None or layers.note_of(self._layer).get("image") != image.key:
            self._layer = layers.new_difference(on, image.axes, f"{image.name} difference")
            layers.note_on(self._layer, image=image.key)
            self._bench.book.add(self._layer)
        self._bench.showing.reveal(self._layer)
        self._layer.colormap = layers.class_colormap(self._session.in_own_colours(classes))
        array = layers.in_engine_order(self._layer.data, layers.labels_axes(image.axes))
        array[...] = 0
        place: tuple[int | slice, ...] = (*found.index, *found.region)
        array[place] = found.classes
        self._layer.refresh(extent=False)

    def _on_models_changed(self) -> None:
        """Beside another model than the chosen one, a difference says nothing."""
        if self._with and self._with != self._session.model and not self._run.busy:
            self._with = ""
            self._run.say("")
            if self._layer is not None:
                self._bench.showing.hide(self._layer)

    def _on_layer_removed(self, key: str) -> None:
        if self._layer is not None and str(self._layer.unique_id) == key:
            self._layer = None
