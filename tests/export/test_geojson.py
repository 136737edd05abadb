from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.errors import ExportError
from napari_cellbrush.export.geojson import save_geojson


def test_polygons_holes_pieces_and_classes_are_written(tmp_path: Path) -> None:
    ids = np.zeros((8, 8), np.uint16)
    ids[1:4, 1:4], ids[2, 2], ids[6, 6], ids[6, 0], ids[6, 2] = 1, 0, 4, 9, 9
    path = save_geojson(tmp_path / "objects.geojson", ids, object_classes={1: DEFAULT_CLASSES[1]})
    ring, pixel, pieces = json.loads(path.read_text())["features"]
    assert ring["geometry"]["type"] == "Polygon"
    assert ring["geometry"]["coordinates"][0] == [[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]]
    assert sorted(ring["geometry"]["coordinates"][1][:-1]) == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert ring["properties"] == {"objectType": "detection", "name": "1",
                                  "classification": {"name": "cell", "color": [0xF2, 0xB1, 0x34]}}
    assert pixel["properties"] == {"objectType": "detection", "name": "4"}
    assert pixel["geometry"]["coordinates"] == [[[6, 6], [7, 6], [7, 7], [6, 7], [6, 6]]]
    assert pieces["geometry"]["type"] == "MultiPolygon"
    assert len(pieces["geometry"]["coordinates"]) == 2
    assert "plane" not in ring["geometry"]


def test_planes_are_named(tmp_path: Path) -> None:
    ids = np.zeros((2, 3, 2, 2), np.uint8)
    ids[1, 2, 0, 0] = 1
    (feature,) = json.loads(save_geojson(tmp_path / "a.geojson", ids, "TZYX").read_text())["features"]
    assert feature["geometry"]["plane"] == {"c": -1, "z": 2, "t": 1}


def test_no_object_is_a_file_without_features(tmp_path: Path) -> None:
    assert json.loads(save_geojson(tmp_path / "a.geojson", np.zeros((2, 2), int)).read_text())["features"] == []


def test_axes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ZYX"):
        save_geojson(tmp_path / "a.geojson", np.zeros((2, 2), int), "ZYX")
