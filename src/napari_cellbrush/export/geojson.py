"""Objects as GeoJSON polygons, as QuPath imports and exports them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.outlines import Polygon, Ring, outlines
from napari_cellbrush.errors import ExportError


def save_geojson(
    path: Path | str, ids: NDArray[Any], axes: str = "YX", *,
    object_classes: Mapping[int, ClassDefinition] | None = None, overwrite: bool = False,
) -> Path:
    """Write one feature (RFC 7946) per object and plane; the file appears whole or not at all.

    Coordinates are pixels of the image, x before y, the upper left corner of the first pixel being (0, 0), which is
    QuPath's convention. Polygons run along the edges of pixels.

    Parameters
    ----------
    path
        The file.
    ids
        Whole numbers; 0 background.
    axes
        A letter of T, Z, Y, X per axis of ``ids``, in this order.
    object_classes
        Class of each id, whose name and colour QuPath shows; objects without one have no classification.
    overwrite
        Replace an existing file.

    Returns
    -------
    Path
        The file: a FeatureCollection of detections, named by their id, with z and t of the plane where there is any.

    Raises
    ------
    ExportError
        If the axes do not fit, or the file cannot be written.
    """
    path = Path(path)
    letters = axes.upper()
    if letters not in ("YX", "ZYX", "TYX", "TZYX") or ids.ndim != len(letters):
        raise ExportError(f"The axes '{axes}' do not fit objects of shape {ids.shape}",
                          "Give one letter an axis: YX, ZYX, TYX or TZYX")
    features = []
    for index in np.ndindex(ids.shape[:-2]):
        place = {letter.lower(): position for letter, position in zip(letters, index, strict=False)}
        features += [_feature(number, polygons, place, (object_classes or {}).get(number))
                     for number, polygons in outlines(ids[index]).items()]
    with written_whole(path, overwrite=overwrite) as hidden:
        hidden.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def _feature(number: int, polygons: list[Polygon], place: Mapping[str, int],
             definition: ClassDefinition | None) -> dict[str, Any]:
    parts = [[_closed(polygon.outer), *(_closed(hole) for hole in polygon.holes)] for polygon in polygons]
    geometry: dict[str, Any] = ({"type": "Polygon", "coordinates": parts[0]} if len(parts) == 1
                                else {"type": "MultiPolygon", "coordinates": parts})
    if place:
        geometry["plane"] = {"c": -1, "z": place.get("z", 0), "t": place.get("t", 0)}
    properties: dict[str, Any] = {"objectType": "detection", "name": str(number)}
    if definition:
        properties["classification"] = {"name": definition.name, "color": list(bytes.fromhex(definition.color[1:]))}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _closed(ring: Ring) -> list[list[int]]:
    """A ring whose last point is its first; RFC 7946 wants outer rings to have a positive area, as they have."""
    points: list[list[int]] = ring.tolist()
    return [*points, points[0]]
