from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.test_inference import make_model

from napari_cellbrush.config import InferenceConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.inference import segment_array, segment_planes
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.events import InferenceStarted, TileSegmented

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=True)
SCALES = st.sampled_from([0.125, 0.31, 0.5, 0.77, 1.0, 1.3, 2.0, 2.9])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def whole(image: Resampled) -> np.ndarray:
    return image.read_mirrored((), 0, 0, *image.shape_yx)


@given(scale=SCALES, top=st.integers(-30, 40), left=st.integers(-30, 40), size=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_a_pixel_does_not_depend_on_the_window_it_is_read_in(scale: float, top: int, left: int, size: int) -> None:
    image = Resampled(Planes(noise(2, 60, 70), "CYX"), scale)
    large = image.read_mirrored((), top - 17, left - 9, size + 40, size + 40)
    np.testing.assert_array_equal(image.read_mirrored((), top, left, size, size),
                                  large[:, 17 : 17 + size, 9 : 9 + size])


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.8, 1.0, 1.5, 3.0])
def test_a_ramp_stays_a_ramp(scale: float) -> None:
    rows = np.arange(80, dtype=np.float32)
    found = whole(Resampled(Planes(np.repeat(rows[:, None], 40, axis=1), "YX"), scale))[0]
    expected = (np.arange(len(found)) + 0.5) / scale - 0.5
    border = int(3 + 2 / scale)
    inside = (expected > border) & (expected < 79 - border)
    np.testing.assert_allclose(found[inside, 5], expected[inside], atol=0.13)


def test_fine_patterns_fade_rather_than_alias() -> None:
    checkers = np.indices((200, 200)).sum(0).astype(np.float32) % 2
    found = whole(Resampled(Planes(checkers, "YX"), 0.3))[0]
    assert np.abs(found - 0.5).max() < 0.1


@given(height=st.integers(1, 90), scale=SCALES, cuts=st.lists(st.integers(1, 80), max_size=4))
@settings(max_examples=100, deadline=None)
def test_windows_that_tile_the_network_pixels_tile_the_image(height: int, scale: float, cuts: list[int]) -> None:
    image = Resampled(Planes(noise(height, 20), "YX"), scale)
    n = image.shape_yx[0]
    ends = [0, *sorted({cut for cut in cuts if cut < n}), n]
    parts = [image.image_window(slice(a, b), slice(0, 1))[0] for a, b in itertools.pairwise(ends)]
    covered = [row for part in parts for row in range(part.start, part.stop)]
    assert covered == list(range(height))


@given(height=st.integers(2, 140), width=st.integers(2, 140), tile=st.integers(60, 200),
       diameter=st.sampled_from([6.0, 10.0, 18.0, 40.0, 77.0]))
@settings(max_examples=30, deadline=None)
def test_a_rescaled_image_gives_the_same_in_one_tile_or_many(height: int, width: int, tile: int,
                                                             diameter: float) -> None:
    model, image = make_model(diameter_px=20.0), Planes(noise(height, width), "YX")
    found, expected = (segment_array(model, image, "probabilities", device=CPU, config=InferenceConfig(
        tile_size_px=size, precision="float32", diameter_px=diameter)) for size in (tile, 2000))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


@given(top=st.integers(0, 100), left=st.integers(0, 100), height=st.integers(1, 60), width=st.integers(1, 60),
       diameter=st.sampled_from([8.0, 50.0]))
@settings(max_examples=20, deadline=None)
def test_a_region_of_a_rescaled_image_is_answered_once_and_like_the_whole(
        top: int, left: int, height: int, width: int, diameter: float) -> None:
    model, planes = make_model(diameter_px=20.0), Planes(noise(160, 160), "YX")
    config = InferenceConfig(precision="float32", diameter_px=diameter, tile_size_px=120)
    expected = segment_array(model, planes, "probabilities", config=config, device=CPU)
    times = np.zeros((160, 160), int)
    for event in segment_planes(model, planes, config=config, device=CPU,
                                region=(slice(top, top + height), slice(left, left + width))):
        if isinstance(event, TileSegmented):
            times[event.rows, event.columns] += 1
            np.testing.assert_allclose(event.probabilities, expected[:, event.rows, event.columns], atol=2e-6)
    assert (times[top : top + height, left : left + width] == 1).all()
    assert times.sum() == (min(160, top + height) - top) * (min(160, left + width) - left)


def test_the_scale_follows_from_the_diameter_and_small_differences_are_left() -> None:
    model, planes = make_model(diameter_px=20.0), Planes(noise(64, 64), "YX")

    def scale(**config: float) -> float:
        started = next(segment_planes(model, planes, config=InferenceConfig(**config), device=CPU))
        assert isinstance(started, InferenceStarted)
        return started.scale

    assert scale(diameter_px=40) == pytest.approx(1.2 * 0.5)
    assert scale(diameter_px=10) == pytest.approx(1.2 * 2)
    assert scale(diameter_px=20) == scale(diameter_px=22) == 1.0
    assert scale(diameter_px=2000) == 0.125
    assert scale(diameter_px=1) == 3.0


def test_a_model_without_a_diameter_works_at_the_images_own_scale() -> None:
    started = next(segment_planes(make_model(), Planes(noise(64, 64), "YX"), device=CPU,
                                  config=InferenceConfig(diameter_px=50)))
    assert isinstance(started, InferenceStarted)
    assert started.scale == 1


def test_objects_come_back_where_they_are() -> None:
    """Brightness says the class, so a class map must lie on the image however it was rescaled."""
    disc = (np.hypot(*(np.indices((120, 120)) - 60.0)) < 30).astype(np.float32)
    for scale in (0.4, 2.5):
        image = Resampled(Planes(disc, "YX"), scale)
        rows, columns = slice(0, image.shape_yx[0]), slice(0, image.shape_yx[1])
        back = image.to_image(whole(image), rows, columns)[0] > 0.5
        assert (back == (disc > 0)).mean() > 0.99
