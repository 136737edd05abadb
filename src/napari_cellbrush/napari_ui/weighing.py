"""What each labelled pixel weighs in training, as a layer to look at: the border weight map of the 2015 paper."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image
from numpy.typing import NDArray
from qtpy.QtCore import QObject

from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.worker import Job
from napari_cellbrush.session import ImageEntry

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Shown where the settings give none: the paper's.
PAPER_WEIGHT = 10.0


class Weighing(QObject):
    """The layers of weights of one viewer, one for an image."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._run = bench.session.training
        self._job: Job | None = None
        #: Key of the layer of weights, by that of its image.
        self._keys: dict[str, str] = {}

    def show(self) -> None:
        """Compute and show the weights of the chosen image; says so where there is nothing to weigh."""
        session, image = self._session, self._session.image
        if image is None or self._job is not None or self._run.busy:
            return
        if image.key not in session.taught_images():
            self._run.say(f"Nothing is painted or accepted on '{image.name}' that could weigh anything.", "warning")
            return
        config = session.training_config
        try:
            task = runs.WeighTask(self._bench.annotating.snapshot(image.key),
                                  self._bench.proofreading.checked(image.key), session.classes,
                                  config.border_weight or PAPER_WEIGHT, config.border_sigma_px / self._scale(image))
        except CellbrushError as error:
            self._run.say(str(error), "error")
            return
        self._job = self._bench.job(partial(runs.weigh, task), "weighing pixels", exclusive=False)
        self._job.finished.connect(partial(self._on_finished, task, image))
        self._job.failed.connect(self._on_failed)
        self._job.start()

    def _scale(self, image: ImageEntry) -> float:
        """Network pixels per image pixel, as far as it is known before a training: stated, else as in the last one."""
        entry, stated = self._session.find_model(self._session.base), self._session.training_config.diameter_px
        if entry is not None and stated:
            return float(entry.card.scale_for(stated))
        return self._bench.fine_tuning.scale_of(image.key)

    def _on_finished(self, task: runs.WeighTask, image: ImageEntry, weights: NDArray[np.float32]) -> None:
        self._job = None
        self._bench.after_drag(partial(self._show, task, image, weights))

    def _show(self, task: runs.WeighTask, image: ImageEntry, weights: NDArray[np.float32]) -> None:
        book, image_layer = self._bench.book, self._bench.book.layer(image.key)
        if image_layer is None:
            return
        axes = layers.labels_axes(image.axes)
        layer = book.layer(self._keys.get(image.key))
        data = layers.in_layer_order(weights, axes)
        if layer is None or layer.data.shape != data.shape:
            layer = Image(data, name=f"{image.name} pixel weights", colormap="inferno", blending="translucent",
                          metadata={layers.METADATA_KEY: {"axes": axes, "image": image.key, "output": "weights"}},
                          **layers.placement(image_layer, image.axes))
            self._keys[image.key] = book.add(layer, above=image_layer)
        else:
            layer.data = data
        layer.contrast_limits = (0, 1 + task.w0)
        self._bench.showing.reveal(layer)
        off = "" if self._session.training_config.border_weight else (
            " The border weight is 0 now, so all would weigh 1: this is what the paper's 10 gives.")
        self._run.say(f"Labelled pixels weigh 1 to {float(weights.max()):.3g}, before classes are balanced, with a "
                      f"reach of {task.sigma_px:.3g} px.{off}")

    def _on_failed(self, error: CellbrushError) -> None:
        self._job = None
        self._run.say(str(error), "error")
