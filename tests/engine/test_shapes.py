from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.segmentation import relabel_sequential

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.measure import measure_objects
from napari_cellbrush.engine.shapes import runs_of

few_ids = arrays(np.int32, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 2, 5]))


def assert_like_scikit_image(ids: NDArray[np.int32], size: PixelSize) -> None:
    found = measure_objects(ids, pixel_size=size)
    for row, region in enumerate(regionprops(ids, spacing=(size.y, size.x))):
        expected = {"area": region.area, "equivalent_diameter": region.equivalent_diameter_area,
                    "eccentricity": region.eccentricity, "solidity": region.solidity,
                    "centroid_y": region.centroid[0], "centroid_x": region.centroid[1],
                    "bbox_y0": region.bbox[0], "bbox_x0": region.bbox[1], "bbox_y1": region.bbox[2],
                    "bbox_x1": region.bbox[3]}
        if size.y == size.x:
            expected["perimeter"] = perimeter_crofton(region.image) * size.x
        for name, value in expected.items():
            # Rounding errors of 1e-16 in a round object's moments are 1e-8 in its eccentricity.
            assert found[name][row] == pytest.approx(value, rel=1e-9, abs=1e-6), name
        if region.eccentricity > 1e-3:  # a round object has no direction
            difference = found["orientation"][row] - 90 - np.degrees(region.orientation)
            assert abs((difference + 90) % 180 - 90) < 1e-6


@settings(deadline=None, max_examples=150)
@given(ids=few_ids, size=st.sampled_from([PixelSize(1.0, 1.0), PixelSize(0.25, 0.25), PixelSize(0.5, 0.7)]))
def test_any_pixels_have_the_values_of_scikit_image(ids: NDArray[np.int32], size: PixelSize) -> None:
    assert_like_scikit_image(ids, size)


def test_large_objects_of_many_corners_have_them_too() -> None:
    noise = np.random.default_rng(0).random((240, 320))
    ids = label(noise < 0.62, connectivity=1).astype(np.int32)
    assert (np.bincount(ids.ravel())[1:] > 1000).any()
    assert_like_scikit_image(ids[:, :200], PixelSize(1.0, 1.0))


def test_far_from_the_origin_no_digits_are_lost() -> None:
    near = np.zeros((12, 15), np.int32)
    near[2:5, 3:9], near[7, 1:3] = 1, 1
    far = np.zeros((30_000, 200), np.int32)
    far[-12:, -15:] = near
    here, there = measure_objects(near), measure_objects(far)
    for name in ("eccentricity", "orientation", "solidity", "perimeter"):
        assert here[name][0] == there[name][0]
    assert there["centroid_y"][0] - here["centroid_y"][0] == pytest.approx(30_000 - 12, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(ids=arrays(np.int32, (3, 4, 5), elements=st.sampled_from([0, 1, 2])))
def test_bodies_have_the_values_of_scikit_image(ids: NDArray[np.int32]) -> None:
    found = measure_objects(ids, "ZYX", pixel_size=PixelSize(0.5, 0.25, z=2.0))
    for row, region in enumerate(regionprops(ids, spacing=(2.0, 0.5, 0.25))):
        assert found["volume"][row] == pytest.approx(region.area)
        assert found["equivalent_diameter"][row] == pytest.approx(region.equivalent_diameter_area)
        assert [found[f"centroid_{letter}"][row] for letter in "zyx"] == pytest.approx(region.centroid)
        assert [found[f"bbox_{letter}{end}"][row] for end in "01" for letter in "zyx"] == list(region.bbox)


@settings(deadline=None, max_examples=60)
@given(ids=few_ids)
def test_runs_are_the_pixels(ids: NDArray[np.int32]) -> None:
    dense = relabel_sequential(ids)[0]
    if not dense.any():
        return
    runs, again = runs_of(dense), np.zeros_like(dense)
    for owner, row, start, stop in zip(runs.owner, runs.rows[0], runs.start, runs.stop, strict=True):
        assert not again[row, start:stop].any()
        again[row, start:stop] = owner + 1
    np.testing.assert_array_equal(again, dense)
