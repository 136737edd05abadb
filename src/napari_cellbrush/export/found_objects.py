"""Objects, with all that is known of them, into a file of a chosen kind: the one way of docks and command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.measure import Columns, classes_of_objects, measure_objects
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.export.geojson import save_geojson
from napari_cellbrush.export.overlay import picture_of, save_overlay
from napari_cellbrush.export.rois import save_rois
from napari_cellbrush.export.tables import save_table

ObjectFormat = Literal["table", "rois", "geojson", "overlay"]
#: The order of axes that all of these files want.
_ORDER = "TZYX"


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """Objects, and what is known of them."""

    #: Whole numbers; 0 background.
    ids: NDArray[Any]
    #: A letter of T, Z, Y, X per axis of ``ids``, Y and X last.
    axes: str
    pixel_size: PixelSize
    #: What they were found in; without its channels of the shape of ``ids``.
    image: Planes | None = None
    #: Like ``ids``; k + 1 for class number k.
    class_map: NDArray[Any] | None = None
    #: What the numbers in ``class_map`` mean.
    classes: tuple[ClassDefinition, ...] = ()
    #: Whether objects of a stack are measured plane by plane, rather than as bodies; None: where no id is on two
    #: planes.
    planewise: bool | None = None


def save_objects(path: Path, objects: FoundObjects, kind: ObjectFormat, *, plane: tuple[int, ...] = (),
                 overwrite: bool = False) -> Columns | None:
    """Write one kind of file; whole or not at all.

    Parameters
    ----------
    path
        The file.
    objects
        What to write.
    kind
        "table": measurements as CSV, of every channel. "rois": ImageJ regions. "geojson": polygons for QuPath.
        "overlay": a picture.
    plane
        Which plane of a stack a picture shows.
    overwrite
        Replace an existing file.

    Returns
    -------
    dict
        The table, if one was written.

    Raises
    ------
    CellbrushError
        If the objects do not fit their image, or the file cannot be written.
    """
    order, axes = _in_order(objects)
    ids = objects.ids.transpose(order)
    if kind == "table":
        columns = measured(objects)
        save_table(path, columns, unit=objects.pixel_size.unit, overwrite=overwrite)
        return columns
    if kind == "rois":
        save_rois(path, ids, axes, overwrite=overwrite)
    elif kind == "geojson":
        of_objects = ({} if objects.class_map is None
                      else classes_of_objects(objects.ids, objects.class_map, objects.classes))
        save_geojson(path, ids, axes, object_classes=of_objects, overwrite=overwrite)
    else:
        backdrop = None if objects.image is None else picture_of(objects.image, plane)
        save_overlay(path, objects.ids[plane], backdrop, overwrite=overwrite)
    return None


def measured(objects: FoundObjects) -> Columns:
    """The table of the objects, with all channels of their image; see :func:`.measure.measure_objects`.

    Raises
    ------
    ImageError
        If the objects do not fit their image.
    """
    order, axes = _in_order(objects)
    image, names = None, None
    if objects.image is not None:
        pixels = _pixels(objects.image).transpose([0, *(position + 1 for position in order)])
        image = pixels[0] if len(pixels) == 1 else pixels
        names = ["red", "green", "blue"] if "S" in objects.image.axes and len(pixels) == 3 else None
    return measure_objects(
        objects.ids.transpose(order), axes, image=image, channel_names=names, pixel_size=objects.pixel_size,
        class_map=None if objects.class_map is None else objects.class_map.transpose(order), classes=objects.classes,
        planewise=_on_single_planes(objects.ids) if objects.planewise is None else objects.planewise)


def _in_order(objects: FoundObjects) -> tuple[list[int], str]:
    """Which axis comes where in a file, and the letters then."""
    order = [objects.axes.index(letter) for letter in _ORDER if letter in objects.axes]
    return order, "".join(objects.axes[position] for position in order)


def _on_single_planes(ids: NDArray[Any]) -> bool:
    numbers = np.concatenate([np.unique(plane[plane > 0]) for plane in ids.reshape(-1, *ids.shape[-2:])])
    return len(np.unique(numbers)) == len(numbers)


def _pixels(planes: Planes) -> NDArray[np.float32]:
    """All pixel values, channels first."""
    values = np.empty((planes.n_channels, *planes.spatial_shape), np.float32)
    rows, columns = (slice(0, length) for length in planes.shape_yx)
    for index in planes.indices():
        place: tuple[int | slice, ...] = (slice(None), *index)
        values[place] = planes.read(index, rows, columns)
    return values
