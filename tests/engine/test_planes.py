from __future__ import annotations

import threading
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_cellbrush.engine import planes as planes_module
from napari_cellbrush.engine.planes import Planes, measure_normalisation, mirrored
from napari_cellbrush.errors import ImageError


class Spy:
    """An array that remembers how large the windows were that somebody read."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.windows: list[int] = []

    def __getitem__(self, key: Any) -> np.ndarray:
        window = self._array[key]
        self.windows.append(window.size)
        return window


@given(start=st.integers(-300, 300), size=st.integers(1, 200), length=st.integers(2, 60))
@settings(deadline=None)
def test_mirroring_is_numpys_reflection(start: int, size: int, length: int) -> None:
    before, after = max(0, -start), max(0, start + size - length)
    expected = np.pad(np.arange(length), (before, after), mode="reflect")[start + before : start + before + size]
    np.testing.assert_array_equal(mirrored(start, size, length), expected)


def test_a_single_row_or_column_is_repeated() -> None:
    assert mirrored(-5, 12, 1).tolist() == [0] * 12


def test_a_window_as_large_as_its_mirrored_source_is_mirrored_all_the_same() -> None:
    image = np.array([[1, 2]], np.uint8)
    assert Planes(image, "YX").read_mirrored((), 0, 1, 1, 2).tolist() == [[[2, 1]]]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_mirrored_windows_are_windows_of_the_reflected_image(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    top, left = data.draw(st.integers(-20, 20)), data.draw(st.integers(-20, 20))
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    image = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    window = Planes(image, "YX").read_mirrored((), top, left, rows, columns)
    expected = image[np.ix_(mirrored(top, rows, height), mirrored(left, columns, width))]
    np.testing.assert_array_equal(window, expected[None].astype(np.float32))


@pytest.mark.parametrize(("axes", "index"), [("TZCYX", (1, 2)), ("CZTYX", (2, 1)), ("ZTYXC", (2, 1)),
                                            ("XYCZT", (2, 1))])
def test_planes_are_the_same_whatever_the_order_of_axes(axes: str, index: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 5, 6))  # TZCYX
    planes = Planes(image.transpose(["TZCYX".index(letter) for letter in axes]), axes)
    np.testing.assert_array_equal(planes.read(index, slice(0, 5), slice(0, 6)), image[1, 2])
    assert (planes.n_channels, planes.shape_yx, planes.spatial_shape) == (4, (5, 6), (*planes.stack_shape, 5, 6))
    assert len(planes.indices()) == 6


@pytest.mark.parametrize(("n_samples", "alpha", "n_channels"), [
    (4, None, 3), (3, None, 3), (2, None, 2), (5, None, 5), (4, False, 4), (4, True, 3), (2, True, 1), (1, True, 1)])
@pytest.mark.parametrize("axes", ["YXS", "SYX"])
def test_transparency_is_no_channel_and_everything_else_is_one(
    axes: str, n_samples: int, alpha: bool | None, n_channels: int
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (n_samples, 4, 5), dtype=np.uint8)
    planes = Planes(image if axes == "SYX" else np.moveaxis(image, 0, -1), axes, alpha=alpha)
    assert planes.n_channels == n_channels
    np.testing.assert_array_equal(planes.read((), slice(0, 4), slice(0, 5)), image[:n_channels])


def test_four_channels_are_four_unless_the_last_is_said_to_be_alpha() -> None:
    image = np.random.default_rng(0).random((4, 4, 5))
    assert Planes(image, "CYX").n_channels == 4
    assert Planes(image, "CYX", alpha=True).read((), slice(0, 4), slice(0, 5)).shape == (3, 4, 5)


def test_looking_through_a_plane_finds_what_is_no_number_wherever_it_is() -> None:
    image = np.zeros((2, 1030, 1100), np.float32)
    image[1, 1029, 1099] = np.nan
    planes = Planes(image, "ZYX")
    planes.check((0,))
    with pytest.raises(ImageError, match=r"plane \(1,\), near row 1024, column 1024"):
        planes.check((1,))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float16, np.float64])
def test_every_plain_type_of_numbers_is_read(dtype: type) -> None:
    image = np.arange(12).reshape(3, 4).astype(dtype)
    np.testing.assert_array_equal(Planes(image, "YX").read((), slice(0, 3), slice(0, 4))[0], image.astype(np.float32))


@pytest.mark.parametrize("array", [np.zeros((3, 3), complex), np.full((3, 3), "a"), np.zeros((0, 3))])
def test_images_without_plain_numbers_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError):
        Planes(array, "YX")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_numbers_are_refused_with_their_place(value: float) -> None:
    image = np.random.default_rng(0).random((20, 20))
    image[7, 3] = value
    with pytest.raises(ImageError, match="NaN or infinite"):
        Planes(image, "YX").normalisation()


def test_a_constant_image_is_refused_with_its_value() -> None:
    with pytest.raises(ImageError, match="constant: every pixel is 7"):
        Planes(np.full((30, 30), 7, np.uint8), "YX").normalisation()


def test_a_constant_channel_beside_others_becomes_zero() -> None:
    image = np.stack([np.full((30, 30), 7.0), np.random.default_rng(0).random((30, 30))])
    planes = Planes(image, "CYX")
    normalised = planes.normalisation().apply(planes.read((), slice(0, 30), slice(0, 30)))
    assert not normalised[0].any()
    assert normalised[1].std() > 0.1


def test_normalisation_brings_the_percentiles_to_minus_one_and_one() -> None:
    image = np.random.default_rng(0).normal(500, 40, (2, 300, 200)).astype(np.float32)
    planes = Planes(image, "CYX")
    normalised = planes.normalisation().apply(image)
    low, high = np.percentile(normalised.reshape(2, -1), [1, 99.8], axis=1)
    np.testing.assert_allclose(low, -1, atol=1e-3)
    np.testing.assert_allclose(high, 1, atol=1e-3)
    assert normalised.min() >= -2
    assert normalised.max() <= 4


@given(scale=st.floats(0.01, 1000), shift=st.floats(-1000, 1000))
@settings(max_examples=30, deadline=None)
def test_normalisation_forgets_gain_and_offset_of_the_camera(scale: float, shift: float) -> None:
    image = np.random.default_rng(0).random((40, 40))
    first, second = Planes(image, "YX"), Planes(image * scale + shift, "YX")
    window = (slice(0, 40), slice(0, 40))
    np.testing.assert_allclose(first.normalisation().apply(first.read((), *window)),
                               second.normalisation().apply(second.read((), *window)), atol=0.05)


def test_few_bright_spots_on_black_still_have_contrast() -> None:
    image = np.zeros((500, 500), np.uint8)
    image[250, 250] = 200
    assert Planes(image, "YX").normalisation().high == (200.0,)


def test_a_rare_object_in_a_huge_empty_image_is_not_called_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes_module, "SAMPLE_PIXELS", 256 * 256)
    image = np.zeros((2048, 2048), np.uint8)
    image[1300:1310, 700:710] = 9
    assert Planes(image, "YX").normalisation().high == (9.0,)


def test_statistics_of_a_large_image_are_measured_on_a_bounded_sample() -> None:
    spy = Spy(np.random.default_rng(0).integers(0, 999, (12, 1024, 1024), dtype=np.uint16))
    measure_normalisation(Planes(spy, "ZYX"))
    assert sum(spy.windows) < 5_000_000
    assert max(spy.windows) <= 256 * 256


def test_the_sample_looks_at_all_planes_alike() -> None:
    image = np.zeros((40, 512, 512), np.uint16)
    image[:] = np.arange(40)[:, None, None]
    low, high = (v[0] for v in (measure_normalisation(Planes(image, "ZYX")).low,
                                measure_normalisation(Planes(image, "ZYX")).high))
    assert low <= 2
    assert high >= 37


def test_lazy_arrays_are_read_window_by_window() -> None:
    computed: list[tuple[int, ...]] = []

    def block(block: np.ndarray) -> np.ndarray:
        computed.append(block.shape)
        return block

    lazy = da.from_array(np.random.default_rng(0).random((4, 512, 512)), chunks=(1, 128, 128)).map_blocks(
        block, dtype=float, meta=np.empty((0, 0, 0)))
    Planes(lazy, "ZYX").read((2,), slice(130, 250), slice(10, 100))
    assert computed == [(1, 128, 128)]


def test_statistics_are_measured_once_however_many_threads_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = planes_module.measure_normalisation

    def counted(planes: Planes) -> object:
        calls.append(1)
        return original(planes)

    monkeypatch.setattr(planes_module, "measure_normalisation", counted)
    planes = Planes(np.random.default_rng(0).random((200, 200)), "YX")
    threads = [threading.Thread(target=planes.normalisation) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
