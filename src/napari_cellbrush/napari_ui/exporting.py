"""Export in a window: takes a copy of a layer, writes it beside the window, says what was written."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from napari_cellbrush.engine.axes import PixelSize, check_axes
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.worker import Job, memory_in_words
from napari_cellbrush.session import MaskEntry

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench


class Exporting(QObject):
    """The exports of one viewer, one at a time."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._run = bench.session.export
        self._job: Job | None = None

    def default_path(self, mask: MaskEntry) -> Path:
        """A file beside the one that the layer (or the image under it) was read from, else in the home folder."""
        layer = self._bench.book.layer(mask.key)
        image_name = layers.note_of(layer).get("image", "")
        sources = [layer, *(other for other in self._bench.book.viewer.layers if other.name == image_name)]
        paths = [Path(str(source.source.path)) for source in sources if source.source.path]
        folder = paths[0].parent if paths else Path.home()
        return folder / f"{_file_stem(mask.name)}.tif"

    def axes(self, mask: MaskEntry) -> str:
        """The likeliest axes of a mask, as they will be written."""
        return _written_axes(self._bench.book.layer(mask.key))

    def pixel_size(self, mask: MaskEntry, axes: str) -> PixelSize:
        """The size of a pixel, from the layer.

        Raises
        ------
        ImageError
            If the axes do not fit the mask.
        """
        layer = self._bench.book.layer(mask.key)
        return layers.pixel_size(layer, _layer_axes(layer, axes))

    def start(self, mask: MaskEntry, path: Path, axes: str, *, overwrite: bool, compress: bool = False) -> None:
        """Write a mask; ends at once, with a sentence, if that is not possible."""
        layer = self._bench.book.layer(mask.key)
        if self._run.busy or layer is None:
            return
        try:
            size = self.pixel_size(mask, axes)
            with memory_in_words(f"copying '{mask.name}'"):
                copy = np.array(layers.full_resolution(layer))
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        data, written = layers.without_channel(copy, _layer_axes(layer, axes))
        task = runs.ExportTask(path, data, written, size, self._provenance(layer), overwrite, compress)
        self._run.begin(f"Writing {path.name}…")
        self._job = self._bench.job(partial(runs.export, task), "exporting", exclusive=False)
        self._job.finished.connect(self._on_finished)
        self._job.failed.connect(self._on_failed)
        self._job.start()

    def _provenance(self, layer: Any) -> dict[str, Any]:
        from napari_cellbrush import __version__

        made: dict[str, Any] = layers.note_of(layer).get("provenance", {})
        return {**made, "program": "napari-cellbrush", "layer": layer.name, "exported_with": __version__}

    def _on_finished(self, exported: runs.Exported) -> None:
        values = "probabilities" if exported.highest is None else f"ids 1–{exported.highest:,}"
        values = "no object at all" if exported.highest == 0 else values
        self._run.end(f"Saved {exported.path.name}: {values}, {exported.dtype}, {exported.kind}.", "success")

    def _on_failed(self, error: CellbrushError) -> None:
        self._run.end(str(error), "error")


def _written_axes(layer: Any) -> str:
    axes = layers.mask_axes(layer)
    if not axes:
        return ""
    data = layers.full_resolution(layer)
    return axes.replace("C", "") if "C" in axes and data.shape[axes.index("C")] == 1 else axes


def _layer_axes(layer: Any, axes: str) -> str:
    """The axes a person wrote, with the layer's channel axis of length one where it has that."""
    noted = layers.mask_axes(layer)
    if "C" in noted and axes.upper() == noted.replace("C", ""):
        return noted
    return check_axes(axes, layers.full_resolution(layer).shape)


def _file_stem(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in " .()+-_" else "_" for c in name).strip(" .")
    return kept.replace(" ", "_") or "mask"
