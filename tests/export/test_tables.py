from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.measure import measure_objects
from napari_cellbrush.errors import ExportError
from napari_cellbrush.export.tables import save_table


def test_a_table_reads_back_exactly_with_units_in_its_header(tmp_path: Path) -> None:
    ids = np.kron(np.array([[1, 0], [0, 70_000]]), np.ones((5, 5), int))
    image = np.random.default_rng(0).random(ids.shape)
    columns = measure_objects(ids, image=image, pixel_size=PixelSize(0.1, 0.1, unit="µm"))
    path = save_table(tmp_path / "objects.csv", columns, unit="µm")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "70000"]
    assert [float(row["area [µm²]"]) for row in rows] == columns["area"].tolist()
    assert [float(row["mean_intensity"]) for row in rows] == columns["mean_intensity"].tolist()
    assert [row["touches_border"] for row in rows] == ["1", "1"]
    assert {"centroid_y [µm]", "orientation [degree]", "bbox_x1 [pixel]", "solidity"} <= set(rows[0])


def test_no_object_is_a_header_alone(tmp_path: Path) -> None:
    path = save_table(tmp_path / "none.csv", measure_objects(np.zeros((4, 4), int)))
    assert len(path.read_text(encoding="utf-8-sig").splitlines()) == 1


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="different lengths"):
        save_table(tmp_path / "a.csv", {"id": np.arange(2), "area": np.arange(3)})
    assert not list(tmp_path.iterdir())
