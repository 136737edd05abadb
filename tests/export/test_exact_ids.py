"""The ids that break files elsewhere, through every export and back; read by a reader that shares no code with ours."""

from __future__ import annotations

import csv
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
from numpy.typing import NDArray
from PIL import Image

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.image_file import open_labels
from napari_cellbrush.engine.measure import measure_objects
from napari_cellbrush.export.geojson import save_geojson
from napari_cellbrush.export.mask_tiff import save_mask
from napari_cellbrush.export.rois import save_rois
from napari_cellbrush.export.tables import save_table

#: The largest of 8 and 16 bits, their neighbours, and one that 16 bits turn into another.
IDS = (1, 255, 256, 65_535, 65_536, 70_000)
SHAPES = {"YX": (40, 70), "ZYX": (3, 40, 70), "TYX": (3, 40, 70), "TZYX": (2, 3, 40, 70)}


def mask(ids: tuple[int, ...] = IDS, axes: str = "YX", dtype: Any = np.uint32) -> NDArray[Any]:
    """An object of each id on every plane, in rows of different lengths, so that no axis can be taken for another."""
    values = np.zeros(SHAPES[axes], dtype)
    for place, index in enumerate(np.ndindex(values.shape[:-2])):
        for number, one in enumerate(ids):
            values[index][2 + 6 * number : 6 + 6 * number, 3 : 10 + 5 * number + place] = one
    return values


class PlainTiff:
    """Reads TIFF by its specification (Adobe, 1992; BigTIFF, 2007): strips and tiles, bare or deflated, one sample."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._order = {b"II": "<", b"MM": ">"}[self._data[:2]]
        self.is_big = self._number("H", 2) == 43
        self.pages = []
        place = self._number("Q", 8) if self.is_big else self._number("I", 4)
        while place:
            tags, place = self._directory(place)
            self.pages.append(tags)

    def description(self) -> str:
        return bytes(self.pages[0][270]).rstrip(b"\0").decode()

    def values(self) -> NDArray[Any]:
        return np.stack([self._page(tags) for tags in self.pages])

    def _number(self, kind: str, place: int) -> int:
        return int(struct.unpack_from(self._order + kind, self._data, place)[0])

    def _directory(self, place: int) -> tuple[dict[int, list[int]], int]:
        n, size, first = (self._number("Q", place), 20, place + 8) if self.is_big else (
            self._number("H", place), 12, place + 2)
        tags = {}
        for entry in range(first, first + n * size, size):
            tag, kind = self._number("H", entry), self._number("H", entry + 2)
            count = self._number("Q" if self.is_big else "I", entry + 4)
            letter = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
            if letter is None:
                continue
            inside, at = (8, entry + 12) if self.is_big else (4, entry + 8)
            if count * struct.calcsize(letter) > inside:
                at = self._number("Q" if self.is_big else "I", at)
            tags[tag] = list(struct.unpack_from(f"{self._order}{count}{letter}", self._data, at))
        end = first + n * size
        return tags, self._number("Q" if self.is_big else "I", end)

    def _page(self, tags: dict[int, list[int]]) -> NDArray[Any]:
        width, height, bits = tags[256][0], tags[257][0], tags[258][0]
        kind = "f" if tags.get(339, [1])[0] == 3 else "u"
        dtype = np.dtype(f"{self._order}{kind}{bits // 8}")
        offsets, counts = (tags[324], tags[325]) if 324 in tags else (tags[273], tags[279])
        pieces = [self._data[offset : offset + count] for offset, count in zip(offsets, counts, strict=True)]
        if tags.get(259, [1])[0] in (8, 32946):
            pieces = [zlib.decompress(piece) for piece in pieces]
        assert 324 not in tags, "no tiles are written"
        return np.frombuffer(b"".join(pieces), dtype)[: width * height].reshape(height, width)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("n_ids", [2, 4, 6], ids=["8 bit", "16 bit", "32 bit"])
def test_masks_are_exact_for_a_reader_of_its_own_and_for_ours(n_ids: int, axes: str, compress: bool,
                                                              tmp_path: Path) -> None:
    values = mask(IDS[:n_ids], axes)
    path = save_mask(tmp_path / "m.tif", values, axes=axes, compress=compress)
    read = PlainTiff(path).values().reshape(values.shape)
    assert np.array_equal(read, values)
    assert read.dtype.itemsize == {2: 1, 4: 2, 6: 4}[n_ids]
    assert np.array_equal(open_labels(path, axes), values)


@pytest.mark.parametrize(("axes", "said"), [("ZYX", ["slices=3"]), ("TYX", ["frames=3"]),
                                            ("TZYX", ["slices=3", "frames=2"])])
def test_imagej_is_told_time_depth_and_each_size_by_name(axes: str, said: list[str], tmp_path: Path) -> None:
    path = save_mask(tmp_path / "m.tif", mask(IDS[:4], axes), axes=axes, pixel_size=PixelSize(0.1, 0.2, 0.3, "µm"))
    description = PlainTiff(path).description().splitlines()
    assert set(said) <= set(description)
    assert ("spacing=0.3" in description) == ("Z" in axes)
    with Image.open(path) as picture:
        # X before Y, in pixels per unit.
        assert (float(picture.tag_v2[282]), float(picture.tag_v2[283])) == pytest.approx((5, 10))


def test_pillow_reads_the_same_ids(tmp_path: Path) -> None:
    for n_ids in (2, 4):
        path = save_mask(tmp_path / f"{n_ids}.tif", mask(IDS[:n_ids]))
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), mask(IDS[:n_ids]))


def test_regions_are_called_by_their_ids_and_hold_their_pixels(tmp_path: Path) -> None:
    values = mask()
    regions = roifile.roiread(save_rois(tmp_path / "r.zip", values))
    assert sorted(int(region.name) for region in regions) == sorted(IDS)
    for region in regions:
        rows, columns = np.nonzero(values == int(region.name))
        assert (region.top, region.left, region.bottom, region.right) == (
            rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


def test_polygons_and_tables_name_the_same_ids(tmp_path: Path) -> None:
    values = mask()
    features = json.loads(save_geojson(tmp_path / "g.geojson", values).read_text())["features"]
    assert sorted(int(feature["properties"]["name"]) for feature in features) == sorted(IDS)
    with save_table(tmp_path / "t.csv", measure_objects(values)).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    areas = {int(row["id"]): float(next(v for k, v in row.items() if k.startswith("area"))) for row in rows}
    assert areas == {one: float(np.count_nonzero(values == one)) for one in IDS}


@pytest.mark.skipif("CELLBRUSH_LARGE" not in os.environ, reason="takes a minute: set CELLBRUSH_LARGE=1")
def test_more_than_four_gigabytes_are_bigtiff(tmp_path: Path) -> None:
    """Memory that nobody wrote to takes no room, and deflated zeros take little on the disk."""
    values = np.zeros((70_000, 65_536), np.uint8)
    values[-1, -1] = 7
    plain = PlainTiff(save_mask(tmp_path / "large.ome.tif", values, compress=True))
    assert plain.is_big
    (page,) = plain.pages
    assert (page[257][0], page[256][0]) == values.shape
    last = zlib.decompress(plain._data[page[273][-1] : page[273][-1] + page[279][-1]])
    assert last[-1] == 7
    assert not any(last[:-1])
