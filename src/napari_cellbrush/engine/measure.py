"""Objects → a table of their sizes, shapes and intensities, in physical units.

Knows ids, pixel values and pixel sizes; knows nothing of files. Columns are plain arrays of one length, which a table
of a viewer, a CSV file or a data frame all take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import relabel_sequential

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.shapes import boxes, centroids, convex_areas, ellipses, perimeters, runs_of
from napari_cellbrush.errors import ImageError

#: What columns begin with that say which object it is, and where.
WHERE = ("id", "frame", "plane", "centroid_", "bbox_")
#: What has no median that says anything.
_NOT_SUMMARISED = (*WHERE, "touches_border", "orientation", "class")

Columns = dict[str, NDArray[Any]]

#: Power of the unit of length that each column is measured in; columns that are not here are plain numbers.
LENGTH_POWERS = {"area": 2, "volume": 3, "equivalent_diameter": 1, "perimeter": 1, "centroid_z": 1, "centroid_y": 1,
                 "centroid_x": 1}
#: Units of columns that have one of their own.
OWN_UNITS = {"orientation": "degree", "bbox_z0": "pixel", "bbox_y0": "pixel", "bbox_x0": "pixel", "bbox_z1": "pixel",
             "bbox_y1": "pixel", "bbox_x1": "pixel"}


def measure_objects(
    ids: NDArray[Any], axes: str = "YX", *, image: NDArray[Any] | None = None,
    channel_names: Sequence[str] | None = None, pixel_size: PixelSize | None = None,
    class_map: NDArray[Any] | None = None, classes: Sequence[ClassDefinition] = (), planewise: bool = False,
) -> Columns:
    """Measure every object.

    Parameters
    ----------
    ids
        Whole numbers; 0 background.
    axes
        A letter of T, Z, Y, X per axis of ``ids``, in this order. Frames of a time lapse are measured one by one, so
        that an id has a row in each frame it is in.
    image
        Pixel values of the shape of ``ids``, or with a channel axis in front of it.
    channel_names
        For the columns' names; the number of the channel, from 1, if not given.
    pixel_size
        Lengths, areas, volumes and centroids are in its unit. The origin is the centre of the first pixel. Where the
        distance of planes is not known but that of pixels is, what depends on it is NaN.
    class_map
        Like ``ids``; k + 1 for class number k. An object's class is the most frequent one with the role "object" in it.
    classes
        What the numbers in ``class_map`` mean.
    planewise
        Measure the objects of a stack plane by plane, with areas; otherwise as bodies, with volumes.

    Returns
    -------
    dict
        One array per column, all with one entry per object, in the order of frames, planes and ids:

        - ``id``; ``frame`` and ``plane``, from 0, where there are any.
        - ``area`` or ``volume``; ``equivalent_diameter``, that of a disc or ball as large.
        - ``perimeter`` by Crofton's formula in four directions (Legland et al. 2016, Bioinformatics 32, 3532; NaN
          where pixels are not square), ``eccentricity`` and ``orientation`` of the ellipse with the same second
          moments (the angle of its long axis to the right, anticlockwise, 0 to 180 degrees), ``solidity``, the share
          of the convex hull that the object fills. These four in the plane only.
        - ``centroid_z``, ``_y``, ``_x``; ``bbox_z0``, ``_y0``, ``_x0`` (first pixel) and ``bbox_z1``, ``_y1``,
          ``_x1`` (one after the last), in pixels; ``touches_border``, of the image's Y or X.
        - for every channel ``mean_``, ``min_``, ``max_`` and ``integrated_intensity`` (the sum of pixel values),
          with ``_`` and the channel's name behind it where there are channels.
        - ``class``: its name.

    Raises
    ------
    ImageError
        If axes or shapes do not fit, or ids are negative or not whole.
    """
    letters = _checked_axes(ids, axes)
    channels = _channels(ids, image, channel_names)
    if class_map is not None and (class_map.shape != ids.shape or not classes):
        raise ImageError(f"Got classes of shape {class_map.shape} with {len(classes)} names for objects of shape "
                         f"{ids.shape}", "Give the class map that the objects come from, and what its numbers mean")
    size = pixel_size or PixelSize(1.0, 1.0)
    body = letters.replace("T", "").replace("Z", "" if planewise else "Z")
    outer = letters[: len(letters) - len(body)]
    tables = []
    for index in np.ndindex(ids.shape[: len(outer)]):
        place = {name: index[outer.index(letter)] for letter, name in (("T", "frame"), ("Z", "plane"))
                 if letter in outer}
        tables.append(_measured(ids[index], body, place, {name: values[index] for name, values in channels.items()},
                                size, None if class_map is None else class_map[index], classes))
    if not tables:
        raise ImageError(f"The objects of shape {ids.shape} have no plane", "Give at least one")
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def summarise(columns: Columns, n_frames: int | None = None) -> list[dict[str, int | float]]:
    """A table of objects in a row, or in one for each frame of a time lapse.

    Parameters
    ----------
    columns
        Of :func:`measure_objects`.
    n_frames
        Of a time lapse, also those without an object.

    Returns
    -------
    list of dict
        Per row ``frame``, of a time lapse; ``objects``, how many there are; and ``median_`` of every column of sizes,
        shapes and intensities over those where it could be measured, NaN where there is none.
    """
    numbers = [name for name in columns if not name.startswith(_NOT_SUMMARISED)]
    rows: list[dict[str, int | float]] = []
    for frame in [None] if n_frames is None else range(n_frames):
        chosen = slice(None) if frame is None else columns["frame"] == frame
        known = {name: values[np.isfinite(values)] for name, values in ((name, columns[name][chosen])
                                                                        for name in numbers)}
        rows.append({**({} if frame is None else {"frame": frame}), "objects": len(columns["id"][chosen]),
                     **{f"median_{name}": float(np.median(values)) if len(values) else math.nan
                        for name, values in known.items()}})
    return rows


def column_unit(column: str, unit: str) -> str:
    """The unit of a column for lengths in ``unit``, for example "µm²"; empty for plain numbers."""
    if column in OWN_UNITS:
        return OWN_UNITS[column]
    return f"{unit}{('', '²', '³')[LENGTH_POWERS[column] - 1]}" if column in LENGTH_POWERS else ""


def column_title(column: str, unit: str) -> str:
    """A column's name with its unit, for people: "area [µm²]"."""
    own = column_unit(column, unit)
    return f"{column} [{own}]" if own else column


def classes_of_objects(ids: NDArray[Any], class_map: NDArray[Any],
                       classes: Sequence[ClassDefinition]) -> dict[int, ClassDefinition]:
    """The class of each id: the most frequent one with the role "object" in it.

    Parameters
    ----------
    ids
        Whole numbers of any shape; 0 background.
    class_map
        Like ``ids``; k + 1 for class number k.
    classes
        What the numbers in ``class_map`` mean.
    """
    dense, _, originals = relabel_sequential(np.asarray(ids))
    inside, n = dense > 0, int(dense.max(initial=0))
    winners = _most_frequent(dense[inside] - 1, class_map[inside], n, classes)
    return {int(originals[number]): classes[winner - 1] for number, winner in enumerate(winners, start=1) if winner}


def _measured(ids: NDArray[Any], body: str, place: Mapping[str, int], channels: Mapping[str, NDArray[Any]],
              size: PixelSize, class_map: NDArray[Any] | None, classes: Sequence[ClassDefinition]) -> Columns:
    dense, _, originals = relabel_sequential(np.asarray(ids))
    n = int(dense.max(initial=0))
    numbers = np.asarray(originals[np.arange(1, n + 1)])
    columns: Columns = {"id": numbers.astype(np.int64)}
    columns |= {name: np.full(n, position, np.int64) for name, position in place.items()}
    columns |= _shapes(dense, n, body, size)
    inside = dense > 0
    owners = dense[inside] - 1
    for name, values in channels.items():
        columns |= _intensities(owners, values[inside], n, name)
    if class_map is not None:
        names = np.array(["", *(definition.name for definition in classes)], dtype=object)
        columns["class"] = names[_most_frequent(owners, class_map[inside], n, classes)]
    return columns


def _shapes(dense: NDArray[Any], n: int, body: str, size: PixelSize) -> Columns:
    if not n:
        # An empty table has columns too: measure one pixel, and keep none of it.
        one = _shapes(np.ones((1,) * len(body), np.uint8), 1, body, size)
        return {name: values[:0] for name, values in one.items()}
    flat = body == "YX"
    # What is not known cannot be measured, and 1 µm would be a guess.
    depth = size.z or (1.0 if size.unit == "pixel" else math.nan)
    spacing = tuple({"Z": depth, "Y": size.y, "X": size.x}[letter] for letter in body)
    runs = runs_of(dense)
    low, high = boxes(runs)
    pixels = runs.total(runs.length)
    extent = pixels * math.prod(spacing)
    columns: Columns = {"area" if flat else "volume": extent,
                        "equivalent_diameter": (2 * len(body) * extent / math.pi) ** (1 / len(body))}
    if flat:
        square = math.isclose(size.y, size.x, rel_tol=1e-6)
        eccentricity, angle = ellipses(runs, low, (size.y, size.x))
        columns["perimeter"] = size.y * perimeters(dense, n) if square else np.full(n, np.nan)
        columns["eccentricity"], columns["solidity"] = eccentricity, pixels / convex_areas(runs, low, high)
        columns["orientation"] = (90 + np.degrees(angle)) % 180
    for letter, values, step in zip(body.lower(), centroids(runs, low), spacing, strict=True):
        columns[f"centroid_{letter}"] = values * step
    for end, corner in enumerate((low, high)):
        columns |= {f"bbox_{letter}{end}": values for letter, values in zip(body.lower(), corner, strict=True)}
    ends = np.array(dense.shape[-2:])[:, None]
    columns["touches_border"] = ((low[-2:] == 0) | (high[-2:] == ends)).any(axis=0)
    return columns


def _intensities(owners: NDArray[Any], values: NDArray[Any], n: int, channel: str) -> Columns:
    """By sums over all objects at once, which thousands of objects need."""
    values = values.astype(np.float64)
    count, total = np.bincount(owners, minlength=n), np.bincount(owners, values, minlength=n)
    lowest, highest = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(lowest, owners, values)
    np.maximum.at(highest, owners, values)
    behind = f"_{channel}" if channel else ""
    return {f"mean_intensity{behind}": total / count, f"min_intensity{behind}": lowest,
            f"max_intensity{behind}": highest, f"integrated_intensity{behind}": total}


def _most_frequent(owners: NDArray[Any], values: NDArray[Any], n: int,
                   classes: Sequence[ClassDefinition]) -> NDArray[np.intp]:
    """Value of each object's class; 0 where no class makes objects."""
    n_values = len(classes) + 1
    counts = np.bincount(owners * n_values + np.minimum(values, len(classes)), minlength=n * n_values)
    of_objects = np.array([False] + [definition.role == "object" for definition in classes])
    winners: NDArray[np.intp] = np.where(of_objects, counts.reshape(n, n_values), -1).argmax(axis=1)
    return winners


def _checked_axes(ids: NDArray[Any], axes: str) -> str:
    letters = axes.upper()
    if letters not in ("YX", "ZYX", "TYX", "TZYX") or ids.ndim != len(letters):
        raise ImageError(f"Got objects of shape {ids.shape} with the axes '{axes}'",
                         "Give one letter an axis: YX, ZYX, TYX or TZYX")
    if ids.dtype.kind not in "iub" or (ids.size and ids.min() < 0):
        raise ImageError(f"The objects have values of type {ids.dtype}, some below 0 or not whole",
                         "Use 0 for background and whole numbers from 1 on for objects")
    return letters


def _channels(ids: NDArray[Any], image: NDArray[Any] | None, names: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    if image is None:
        return {}
    if image.shape == ids.shape:
        return {names[0] if names else "": image}
    if image.shape[1:] != ids.shape or (names and len(names) != len(image)):
        raise ImageError(f"Got an image of shape {image.shape} with {len(names or [])} channel names for objects of "
                         f"shape {ids.shape}", "Give the image that the objects were found in, channels in front")
    return dict(zip(names or [str(number + 1) for number in range(len(image))], image, strict=True))
