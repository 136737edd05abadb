from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import roifile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.errors import ExportError
from napari_cellbrush.export.rois import save_rois

planes = arrays(np.int32, st.tuples(st.integers(1, 8), st.integers(1, 8)),
                elements=st.sampled_from([0, 1, 1, 2, 70_000]))


def mask_of(region: roifile.ImagejRoi, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Even-odd rule at the pixels' centres, as ImageJ makes a mask of a region."""
    mask = np.zeros(shape, bool)
    rings = region.coordinates(multi=True)
    for ring in rings if isinstance(rings, list) else [rings]:
        corners = np.asarray(ring)
        assert (corners == np.round(corners)).all()
        for (x, y), (next_x, next_y) in zip(corners.astype(int), np.roll(corners, -1, axis=0).astype(int), strict=True):
            if x == next_x and y != next_y:
                mask[min(y, next_y) : max(y, next_y), x:] ^= True
    return mask


@settings(deadline=None, max_examples=60)
@given(ids=planes.filter(np.any))
def test_regions_read_back_are_the_objects_pixel_by_pixel(ids: NDArray[np.int32]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = roifile.ImagejRoi.fromfile(save_rois(Path(folder) / "rois.zip", ids))
    assert [int(region.name) for region in found] == sorted(set(ids.ravel().tolist()) - {0})
    for region in found:
        np.testing.assert_array_equal(mask_of(region, ids.shape), ids == int(region.name))
        rows, columns = np.nonzero(ids == int(region.name))
        assert (region.top, region.left) == (rows.min(), columns.min())
        assert (region.bottom, region.right) == (rows.max() + 1, columns.max() + 1)


def test_simple_objects_are_traced_regions_and_others_composite(tmp_path: Path) -> None:
    ids = np.zeros((9, 9), np.uint8)
    ids[1:4, 1:4], ids[5:8, 1:4], ids[6, 2] = 1, 2, 0
    whole, ring = roifile.ImagejRoi.fromfile(save_rois(tmp_path / "rois.zip", ids))
    assert whole.roitype == roifile.ROI_TYPE.TRACED
    assert not whole.composite
    assert ring.composite


def test_regions_lie_on_their_slice_and_frame(tmp_path: Path) -> None:
    ids = np.zeros((2, 3, 4, 4), np.uint8)
    ids[1, 2, :2, :2] = 7
    (region,) = roifile.ImagejRoi.fromfile(save_rois(tmp_path / "tz.zip", ids, "TZYX"))
    assert (region.name, region.t_position, region.z_position) == ("7-t2-z3", 2, 3)
    (region,) = roifile.ImagejRoi.fromfile(save_rois(tmp_path / "z.zip", ids[1], "ZYX"))
    assert (region.name, region.position) == ("7-z3", 3)


def test_a_file_is_replaced_only_if_asked_and_never_added_to(tmp_path: Path) -> None:
    path = tmp_path / "rois.zip"
    save_rois(path, np.array([[1, 0, 2]]))
    with pytest.raises(ExportError, match="exists"):
        save_rois(path, np.array([[3]]))
    save_rois(path, np.array([[3]]), overwrite=True)
    assert [region.name for region in roifile.ImagejRoi.fromfile(path)] == ["3"]
    save_rois(path, np.zeros((1, 3), int), overwrite=True)
    assert zipfile.ZipFile(path).namelist() == []
    assert [found.name for found in tmp_path.iterdir()] == ["rois.zip"]


@pytest.mark.parametrize(("ids", "axes", "message"), [
    (np.ones((2, 2, 2), int), "YX", "axes 'YX'"), (np.broadcast_to(np.uint8(1), (1, 40_000)), "YX", "40000"),
])
def test_what_imagej_cannot_hold_is_refused(tmp_path: Path, ids: NDArray[np.int64], axes: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        save_rois(tmp_path / "rois.zip", ids, axes)
