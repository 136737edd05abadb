from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES, classes_from_names
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.measure import column_unit, measure_objects, summarise
from napari_cellbrush.errors import ImageError


def ellipse(long: float, short: float, degrees: float, size: int = 121) -> NDArray[np.uint8]:
    """An ellipse whose long axis has an angle to the right, anticlockwise."""
    down, right = np.mgrid[:size, :size] - size // 2
    angle = np.radians(degrees)
    along, across = right * np.cos(angle) - down * np.sin(angle), right * np.sin(angle) + down * np.cos(angle)
    return ((along / long) ** 2 + (across / short) ** 2 <= 1).astype(np.uint8)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_an_ellipse_has_the_values_of_geometry(degrees: float) -> None:
    found = measure_objects(ellipse(50, 25, degrees), pixel_size=PixelSize(0.5, 0.5, unit="µm"))
    assert found["area"][0] == pytest.approx(np.pi * 25 * 12.5, rel=0.01)
    assert found["equivalent_diameter"][0] == pytest.approx(2 * np.sqrt(25 * 12.5), rel=0.01)
    assert found["perimeter"][0] == pytest.approx(121.1, rel=0.02)
    assert found["eccentricity"][0] == pytest.approx(np.sqrt(0.75), abs=0.005)
    assert found["solidity"][0] > 0.97
    assert abs((found["orientation"][0] - degrees + 90) % 180 - 90) < 0.5
    assert found["centroid_y"][0] == found["centroid_x"][0] == pytest.approx(30)
    assert not found["touches_border"][0]


@settings(deadline=None, max_examples=60)
@given(ids=arrays(np.int32, (6, 7), elements=st.sampled_from([0, 1, 3, 100_000])), seed=st.integers(0, 1000))
def test_sums_are_those_of_each_object_alone(ids: NDArray[np.int32], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 65_536, (2, *ids.shape)).astype(np.uint16)
    found = measure_objects(ids, image=image, channel_names=["DAPI", "GFP"], pixel_size=PixelSize(2.0, 3.0))
    assert len({len(values) for values in found.values()}) == 1
    np.testing.assert_array_equal(found["id"], sorted(set(ids.ravel().tolist()) - {0}))
    for row, number in enumerate(found["id"]):
        rows, columns = np.nonzero(ids == number)
        assert found["area"][row] == 6 * len(rows)
        assert found["centroid_x"][row] == pytest.approx(3 * columns.mean())
        assert (found["bbox_y0"][row], found["bbox_x1"][row]) == (rows.min(), columns.max() + 1)
        assert found["touches_border"][row] == (rows.min() == 0 or rows.max() == 5 or columns.min() == 0
                                                or columns.max() == 6)
        for channel, values in zip(("DAPI", "GFP"), image[:, ids == number].astype(int), strict=True):
            assert found[f"mean_intensity_{channel}"][row] == pytest.approx(values.mean())
            assert found[f"integrated_intensity_{channel}"][row] == values.sum()
            assert (found[f"min_intensity_{channel}"][row], found[f"max_intensity_{channel}"][row]) == (
                values.min(), values.max())


def test_a_body_has_a_volume_and_a_plane_of_it_an_area() -> None:
    ids = np.zeros((4, 6, 6), np.uint8)
    ids[1:3, 1:4, 1:3] = 2
    size = PixelSize(0.5, 0.5, z=2.0, unit="µm")
    body = measure_objects(ids, "ZYX", pixel_size=size)
    assert body["volume"].tolist() == [12 * 0.5]
    assert body["centroid_z"].tolist() == [3.0]
    assert "perimeter" not in body
    planes = measure_objects(ids, "ZYX", pixel_size=size, planewise=True)
    assert planes["plane"].tolist() == [1, 2]
    assert planes["area"].tolist() == [1.5, 1.5]


def test_an_id_has_a_row_in_every_frame() -> None:
    ids = np.ones((3, 2, 2), np.uint8)
    ids[1] = 0
    found = measure_objects(ids, "TYX", image=np.arange(12).reshape(3, 2, 2))
    assert found["frame"].tolist() == [0, 2]
    assert found["mean_intensity"].tolist() == [1.5, 9.5]


def test_the_class_is_the_most_frequent_one_that_makes_objects() -> None:
    ids = np.array([[1, 1, 1, 1, 2, 2]])
    class_map = np.array([[3, 3, 3, 2, 3, 3]], np.uint8)
    assert measure_objects(ids, class_map=class_map, classes=DEFAULT_CLASSES)["class"].tolist()[0] == "cell"
    classes = classes_from_names(["background", "a", "b"])
    assert measure_objects(ids, class_map=class_map, classes=classes)["class"].tolist() == ["b", "b"]


def test_oblong_pixels_have_no_perimeter_but_everything_else() -> None:
    found = measure_objects(ellipse(20, 20, 0, 61), pixel_size=PixelSize(1.0, 2.0))
    assert np.isnan(found["perimeter"][0])
    assert found["eccentricity"][0] == pytest.approx(np.sqrt(0.75), abs=0.01)
    assert found["orientation"][0] == pytest.approx(0, abs=1)


def test_without_objects_there_are_columns_without_rows() -> None:
    empty = measure_objects(np.zeros((3, 3), np.uint8), image=np.zeros((3, 3)))
    assert list(empty) == list(measure_objects(np.ones((3, 3), np.uint8), image=np.zeros((3, 3))))
    assert all(len(values) == 0 for values in empty.values())


def test_units_follow_the_dimension() -> None:
    units = [column_unit(name, "µm") for name in ("area", "volume", "perimeter", "solidity", "orientation", "bbox_y0")]
    assert units == ["µm²", "µm³", "µm", "", "degree", "pixel"]


@pytest.mark.parametrize(("ids", "axes", "message"), [
    (np.ones((2, 2, 2), int), "YX", r"\(2, 2, 2\)"), (np.ones((2, 2), int), "XY", "XY"),
    (np.ones((2, 2)), "YX", "float64"), (np.full((2, 2), -1), "YX", "below 0"),
])
def test_what_is_no_map_of_ids_is_refused(ids: NDArray[np.generic], axes: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        measure_objects(ids, axes)


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ImageError, match=r"\(3, 3\)"):
        measure_objects(np.ones((2, 2), int), image=np.ones((3, 3)))


def test_a_summary_has_medians_and_a_row_for_each_frame_even_an_empty_one() -> None:
    ids = np.zeros((3, 20, 20), np.int32)
    ids[0, :2, :2], ids[0, 5:9, 5:9], ids[0, 12:15, 12:14] = 1, 2, 3
    ids[2, :3, :3] = 4
    first, second, third = summarise(measure_objects(ids, "TYX", image=ids * 2.0), 3)
    assert [row["frame"] for row in (first, second, third)] == [0, 1, 2]
    assert [row["objects"] for row in (first, second, third)] == [3, 0, 1]
    assert (first["median_area"], third["median_area"], first["median_mean_intensity"]) == (6, 9, 4)
    assert np.isnan(second["median_area"])
    assert "frame" not in summarise(measure_objects(ids[0]))[0]
    assert not any("centroid" in name or "bbox" in name for name in first)
