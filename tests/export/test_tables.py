from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.measure import measure_objects
from napari_cellbrush.errors import ExportError
from napari_cellbrush.export.tables import save_rows, save_table


def test_a_table_reads_back_to_ten_digits_with_units_in_its_header(tmp_path: Path) -> None:
    ids = np.kron(np.array([[1, 0], [0, 70_000]]), np.ones((5, 5), int))
    image = np.random.default_rng(0).random(ids.shape)
    columns = measure_objects(ids, image=image, pixel_size=PixelSize(0.1, 0.1, unit="µm"))
    path = save_table(tmp_path / "objects.csv", columns, unit="µm")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "70000"]
    for title, name in (("area [µm²]", "area"), ("mean_intensity", "mean_intensity")):
        assert [float(row[title]) for row in rows] == [float(f"{value:.10g}") for value in columns[name]]
    assert [row["touches_border"] for row in rows] == ["1", "1"]
    assert {"centroid_y [µm]", "orientation [degree]", "bbox_x1 [pixel]", "solidity"} <= set(rows[0])


def test_numbers_read_well_and_keep_what_matters(tmp_path: Path) -> None:
    numbers = {"long": 221.81250000000003, "thirds": 1 / 3, "tiny": 1 / 3e12, "sum": 2.0**53 - 1, "exact": 0.25,
               "unknown": float("nan")}
    text = {"long": "221.8125", "thirds": "0.3333333333", "tiny": "3.333333333e-13", "sum": "9007199254740991.0",
            "exact": "0.25", "unknown": "nan"}
    table = save_table(tmp_path / "table.csv", {name: np.array([value]) for name, value in numbers.items()})
    rows = save_rows(tmp_path / "rows.csv", [{"name": "cells", "n": 3, **numbers}])
    assert table.read_text(encoding="utf-8-sig").splitlines()[1].split(",") == list(text.values())
    assert rows.read_text(encoding="utf-8-sig").splitlines()[1].split(",") == ["cells", "3", *text.values()]


def test_no_object_is_a_header_alone(tmp_path: Path) -> None:
    path = save_table(tmp_path / "none.csv", measure_objects(np.zeros((4, 4), int)))
    assert len(path.read_text(encoding="utf-8-sig").splitlines()) == 1


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="different lengths"):
        save_table(tmp_path / "a.csv", {"id": np.arange(2), "area": np.arange(3)})
    assert not list(tmp_path.iterdir())
