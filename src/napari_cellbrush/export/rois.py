"""Objects as ImageJ regions of interest: a zip file that Fiji's ROI Manager opens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import roifile
from numpy.typing import NDArray

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.outlines import Polygon, Ring, outlines
from napari_cellbrush.errors import ExportError

#: Coordinates of plain ROIs are 16-bit whole numbers.
_LARGEST_SIDE = 2**15 - 1
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0


def save_rois(path: Path | str, ids: NDArray[Any], axes: str = "YX", *, overwrite: bool = False) -> Path:
    """Write one region of interest per object and plane; the file appears whole or not at all.

    An object in one piece without holes becomes a traced region (like that of ImageJ's wand), any other a composite
    one. Both run along the edges of pixels, so a mask made of them in ImageJ has exactly the object's pixels.

    Parameters
    ----------
    path
        The zip file.
    ids
        Whole numbers; 0 background.
    axes
        A letter of T, Z, Y, X per axis of ``ids``, in this order; regions lie on the slice and frame they are from.
    overwrite
        Replace an existing file, rather than add to it.

    Returns
    -------
    Path
        The file. Regions are called by their id, with plane and frame from 1 behind it: "17", "17-z3", "17-t2-z3".
        Without any object it is an empty zip, so that every image has its file, and none an old one.

    Raises
    ------
    ExportError
        If axes do not fit, the image is too large for ImageJ, or the file cannot be written.
    """
    path = Path(path)
    letters = axes.upper()
    if letters not in ("YX", "ZYX", "TYX", "TZYX") or ids.ndim != len(letters):
        raise ExportError(f"The axes '{axes}' do not fit objects of shape {ids.shape}",
                          "Give one letter an axis: YX, ZYX, TYX or TZYX")
    if max(ids.shape[-2:]) > _LARGEST_SIDE:
        raise ExportError(f"The image is {ids.shape[-1]} × {ids.shape[-2]} px, ImageJ regions reach to "
                          f"{_LARGEST_SIDE}", "Export a part of it, or GeoJSON")
    with written_whole(path, overwrite=overwrite) as hidden:
        roifile.roiwrite(hidden, _regions(ids, letters), mode="w")
    return path


def _regions(ids: NDArray[Any], letters: str) -> Iterator[roifile.ImagejRoi]:
    for index in np.ndindex(ids.shape[:-2]):
        place = {letter.lower(): position + 1 for letter, position in zip(letters, index, strict=False)}
        where = "".join(f"-{letter}{position}" for letter, position in place.items())
        # A hyperstack with one axis besides rows and columns is a plain stack to ImageJ: its slice counts.
        position = math.prod(place.values()) if len(place) == 1 else 0
        for number, polygons in outlines(ids[index]).items():
            region = _region(polygons)
            region.name = f"{number}{where}"
            region.position = position
            if len(place) > 1:
                region.z_position, region.t_position = place["z"], place["t"]
            yield region


def _region(polygons: list[Polygon]) -> roifile.ImagejRoi:
    rings = [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
    corners = np.concatenate(rings)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    if len(rings) == 1:
        # Whole numbers alone: with fractions, ImageJ would not take it for a trace along the edges of pixels.
        return roifile.ImagejRoi(
            roitype=roifile.ROI_TYPE.TRACED, left=left, top=top, right=right, bottom=bottom,
            n_coordinates=len(corners), integer_coordinates=(corners - [left, top]).astype(np.int32))
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT, left=left, top=top, right=right, bottom=bottom,
        multi_coordinates=np.concatenate([_segments(ring) for ring in rings]).astype(np.float32),
        shape_roi_size=sum(3 * len(ring) + 1 for ring in rings))


def _segments(ring: Ring) -> NDArray[np.float64]:
    """A ring as Java's GeneralPath writes it: kind of segment, x, y."""
    kinds = np.where(np.arange(len(ring)) == 0, _MOVE, _LINE)
    return np.append(np.column_stack([kinds, ring]).ravel(), _CLOSE)
