"""Export in a window: takes a copy of a layer, writes it beside the window, says what was written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from qtpy.QtCore import QObject

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.engine.axes import PixelSize, check_axes
from napari_cellbrush.errors import CellbrushError, ExportError
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.runs import ExportFormat
from napari_cellbrush.napari_ui.worker import Job, memory_in_words
from napari_cellbrush.session import OF_OBJECTS, ImageEntry, MaskEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_cellbrush.napari_ui.workbench import Workbench

#: What the suggested name of a file ends with.
ENDINGS: dict[ExportFormat, str] = {"tiff": ".tif", "compact": ".ome.tif", "rois": "_rois.zip", "geojson": ".geojson",
                                    "table": ".csv", "overlay": "_overlay.png"}


class Exporting(QObject):
    """The exports of one viewer, one at a time."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._run = bench.session.export
        self._job: Job | None = None
        #: What made the pixels that a layer's table was measured on, by key.
        self._measured: dict[str, Any] = {}
        #: Where something was written last.
        self._folder: Path | None = None
        bench.session.segmentation.changed.connect(self._forget_old_tables)

    def formats(self, mask: MaskEntry) -> tuple[ExportFormat, ...]:
        """What a layer can be written as: regions, polygons and so on where it may hold objects."""
        strokes = mask.key in self._bench.session.annotations.values()
        objects = mask.labels and mask.output in (*OF_OBJECTS, "") and not strokes
        return get_args(ExportFormat) if objects else ("tiff", "compact")

    def is_seen(self, mask: MaskEntry) -> bool:
        """Whether a layer is shown."""
        layer = self._bench.book.layer(mask.key)
        return layer is not None and bool(layer.visible)

    def default_path(self, mask: MaskEntry, format: ExportFormat = "tiff") -> Path:
        """A file where one was written last, or beside the layer's (or its image's) own, or in the home folder."""
        paths = self._paths(self._bench.book.layer(mask.key))
        beside = paths[0].parent if paths else Path.home()
        folder = self._folder if self._folder and self._folder.is_dir() else beside
        return folder / f"{_file_stem(mask.name)}{ENDINGS[format]}"

    def axes(self, mask: MaskEntry) -> str:
        """The likeliest axes of a mask, as they will be written."""
        return _written_axes(self._bench.book.layer(mask.key))

    def pixel_size(self, mask: MaskEntry, axes: str) -> PixelSize:
        """The size of a pixel, as somebody said, or from the layer or, where it has none, from the file of the image.

        Raises
        ------
        ImageError
            If the axes do not fit the mask.
        """
        return self._size(mask, _layer_axes(self._bench.book.layer(mask.key), axes))

    def say_pixel_size(self, mask: MaskEntry, size: PixelSize | None) -> None:
        """Say how large the pixels of a layer are, and of all others of the same image; None: as read."""
        for key in set(self._image_keys(mask)):
            self._bench.session.say_pixel_size(key, size)

    def image(self, mask: MaskEntry) -> ImageEntry | None:
        """The image that objects were found in, or that somebody said.

        For labels from elsewhere the one after which they are named, else the one that is worked on, if it fits, else
        the only one that does.
        """
        session, note = self._bench.session, layers.note_of(self._bench.book.layer(mask.key))
        fitting = self.fitting_images(mask)
        if "image" in note:
            # An image that was closed and opened again has another key and, as a rule, its name.
            return next((image for image in fitting if image.key == note["image"]), None) or next(
                (image for image in fitting if image.name == note.get("image_name")), None)
        named = max((image for image in fitting if image.name in mask.name), key=lambda image: len(image.name),
                    default=None)
        at_hand = session.image if session.image in fitting else None
        return named or at_hand or (fitting[0] if len(fitting) == 1 else None)

    def is_at_work(self, mask: MaskEntry) -> bool:
        """Whether a mask is of the image that is worked on, or of none that is known."""
        return self.image(mask) in (None, self._bench.session.image)

    def fitting_images(self, mask: MaskEntry) -> list[ImageEntry]:
        """Images of the shape that a layer's labels have."""
        return [image for image in self._bench.session.images
                if image.axes and layers.labels_shape(image.axes, image.shape) == mask.shape]

    def start(self, mask: MaskEntry, path: Path, axes: str, *, overwrite: bool, format: ExportFormat = "tiff") -> None:
        """Write a layer; ends at once, with a sentence, if that is not possible."""
        layer = self._bench.book.layer(mask.key)
        if self._run.busy or layer is None:
            return
        try:
            with memory_in_words(f"copying '{mask.name}'"):
                task = self._task(mask, path, _layer_axes(layer, axes), overwrite, format)
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        self._run.begin(f"Writing {path.name}…")
        self._job = self._bench.job(partial(runs.export, task), "exporting", exclusive=False, to_the_end=True)
        self._job.finished.connect(partial(self._on_finished, mask.key, task))
        self._job.failed.connect(self._on_failed)
        self._job.start()

    # ------------------------------------------------------------------------------------------------ before

    def _task(self, mask: MaskEntry, path: Path, layer_axes: str, overwrite: bool,
              format: ExportFormat) -> runs.ExportTask:
        layer = self._bench.book.layer(mask.key)
        data, written = layers.without_channel(np.array(layers.full_resolution(layer)), layer_axes)
        task = runs.ExportTask(path, format, data, written, self._size(mask, layer_axes), self._provenance(layer),
                               overwrite)
        return task if format in ("tiff", "compact") else self._with_surroundings(task, mask, layer_axes)

    def _paths(self, layer: Any) -> list[Path]:
        """Files that the layer and the image under it were read from."""
        sources = (layer, self._bench.book.layer(layers.note_of(layer).get("image")))
        return [Path(str(source.source.path)) for source in sources if source is not None and source.source.path]

    def _image_keys(self, mask: MaskEntry) -> tuple[str, str]:
        """That of the image of a mask, and the one it had when the mask was made: images are closed and opened."""
        image, noted = self.image(mask), layers.note_of(self._bench.book.layer(mask.key)).get("image", mask.key)
        return image.key if image else noted, noted

    def _size(self, mask: MaskEntry, axes: str) -> PixelSize:
        read = self._size_as_read(self._bench.book.layer(mask.key), axes)
        said = next(filter(None, map(self._bench.session.pixel_size_said, self._image_keys(mask))), None)
        return said.over(read, axes) if said else read

    def _size_as_read(self, layer: Any, axes: str) -> PixelSize:
        size = layers.pixel_size(layer, axes)
        if size.is_known:
            return size
        height, width = (layers.full_resolution(layer).shape[axes.index(letter)] for letter in "YX")
        # napari's own reader leaves out what ImageJ wrote into a TIFF.
        known = (facts.pixel_size for facts in map(layers.file_facts, self._paths(layer))
                 if facts and facts.shape_yx == (height, width) and facts.pixel_size.is_known)
        found = next(known, size)
        return found if "Z" in axes else replace(found, z=None)

    def _with_surroundings(self, task: runs.ExportTask, mask: MaskEntry, layer_axes: str) -> runs.ExportTask:
        """The task with all that is known of the objects."""
        if "C" in task.axes:
            raise ExportError(f"The axes '{task.axes}' name channels (C), and objects have none",
                              "Say what the axes of the layer mean: T time, Z depth, Y row, X column")
        viewer, layer = self._bench.book.viewer, self._bench.book.layer(mask.key)
        image = self.image(mask) if task.format in ("table", "overlay") else None
        class_map, classes = self._class_map(layer) if task.format in ("table", "geojson") else (None, ())
        size = task.pixel_size
        if size.unit == "pixel" and size.is_known:
            size = replace(size, unit="unit")
        return replace(
            task, mask=layers.in_engine_order(task.mask, task.axes), pixel_size=size,
            axes="".join(letter for letter in task.axes if letter in "TZ") + "YX",
            image=None if image is None else layers.planes_of(self._bench.book.layer(image.key), image.axes),
            class_map=class_map, classes=classes,
            plane=layers.plane_index(layer, layer_axes, viewer.dims.point) if task.format == "overlay" else ())

    def _class_map(self, objects: Any) -> tuple[NDArray[Any] | None, tuple[ClassDefinition, ...]]:
        """What the same model said of each pixel, if that is still there, and what it means."""
        note = layers.note_of(objects)
        made = note.get("provenance", {})
        entry = self._bench.session.find_model(made.get("model", ""))
        if entry is None or [definition.name for definition in entry.card.classes] != made.get("classes"):
            return None, ()
        for layer in self._bench.book.viewer.layers:
            other = layers.note_of(layer)
            if (other.get("output"), other.get("image"), other.get("axes")) == (
                    "classes", note.get("image"), note.get("axes")) and (
                    other.get("provenance", {}).get("model_weights_sha256") == made["model_weights_sha256"]
                    and layer.data.shape == objects.data.shape):
                return (layers.in_engine_order(np.array(layer.data), note["axes"]),
                        self._bench.session.in_own_colours(entry.card.classes))
        return None, ()

    def _provenance(self, layer: Any) -> dict[str, Any]:
        from napari_cellbrush import __version__

        made: dict[str, Any] = layers.note_of(layer).get("provenance", {})
        checked = self._bench.session.accepted_in(str(layer.unique_id)).in_numbers()
        return {**made, **checked, "program": "napari-cellbrush", "layer": layer.name, "exported_with": __version__}

    # ------------------------------------------------------------------------------------------------- after

    def _on_finished(self, key: str, task: runs.ExportTask, exported: runs.Exported) -> None:
        self._folder = exported.path.parent
        blind = exported.columns is not None and task.image is None
        self._run.end(f"Saved {exported.path.name}: {exported.contents}{', without intensities' if blind else ''}.",
                      "success")
        layer = self._bench.book.layer(key)
        if exported.columns is not None and layer is not None:
            self._show_table(key, layer, exported.columns, task.pixel_size.unit)

    def _on_failed(self, error: CellbrushError) -> None:
        self._run.end(str(error), "error")

    def _show_table(self, key: str, layer: Any, columns: dict[str, NDArray[Any]], unit: str) -> None:
        """Put measurements where napari shows them beside the pointer."""
        from napari_cellbrush.engine.measure import WHERE, column_title

        ids = columns["id"]
        if len(np.unique(ids)) < len(ids):
            return  # an object with a row per frame has no single value to show
        layer.features = {"index": ids} | {column_title(name, unit): values for name, values in columns.items()
                                           if not name.startswith(WHERE)}
        self._measured[key] = layers.note_of(layer).get("provenance")
        layer.events.paint.connect(self._on_painted)

    def _on_painted(self, event: Any) -> None:
        self._forget_table(str(event.source.unique_id))

    def _forget_old_tables(self) -> None:
        """A new run gives other objects the same numbers."""
        for key, made in list(self._measured.items()):
            layer = self._bench.book.layer(key)
            if layer is None or layers.note_of(layer).get("provenance") != made:
                self._forget_table(key)

    def _forget_table(self, key: str) -> None:
        layer = self._bench.book.layer(key)
        if self._measured.pop(key, key) != key and layer is not None:
            layer.features = None


def with_ending(path: Path, format: ExportFormat) -> Path:
    """The same file for another format: its ending is replaced if it is one of ours, else added to."""
    endings = sorted([*ENDINGS.values(), ".ome.tiff", ".tiff", ".zip", ".json", ".png"], key=len, reverse=True)
    name = path.name.lower()
    own = next((ending for ending in endings if name.endswith(ending) and name != ending), "")
    return path.with_name(path.name[: len(path.name) - len(own)] + ENDINGS[format])


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
    # napari's second layer of a name is "name [1]".
    kept = "".join(c if c.isalnum() or c in " .()+-_" else "_" for c in name.replace(" [", "-").rstrip("]")).strip(" .")
    return kept.replace(" ", "_") or "mask"
