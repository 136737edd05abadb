from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from napari_cellbrush.config import DEFAULT_CLASSES, ObjectsConfig, classes_from_names
from napari_cellbrush.engine.object_blocks import (
    blockwise_objects_from_classes,
    blockwise_objects_from_probabilities,
    join_blocks,
)
from napari_cellbrush.engine.objects import Window, objects_from_classes, objects_from_probabilities
from napari_cellbrush.errors import ImageError
from napari_cellbrush.events import StopToken

sizes = st.tuples(st.integers(1, 50), st.integers(1, 50))
#: Small enough for several in an image; hundreds of blocks would only take long.
blocks = st.integers(5, 30)
seeds = st.integers(0, 2**32 - 1)


def random_probabilities(shape: tuple[int, int], seed: int, blur: float, n_classes: int = 3) -> NDArray[np.float32]:
    """KYX blobs; a third of the images is coarse enough to hold many equal values."""
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(n_classes, *shape)), (0, blur, blur))
    raised = np.exp(3 * noise / max(noise.std(), 1e-6))
    values = raised / raised.sum(axis=0)
    return (np.round(values * 4) / 4 if seed % 3 == 0 else values).astype(np.float32)


def largest_side(ids: NDArray[Any]) -> int:
    places = [place for place in ndimage.find_objects(ids) if place]
    return max((side.stop - side.start for place in places for side in place), default=0)


@settings(deadline=None, max_examples=60)
@given(shape=sizes, seed=seeds, blur=st.sampled_from([0.0, 0.7, 1.5]), block=blocks,
       smallest=st.sampled_from([0, 7]))
def test_objects_of_a_class_map_are_those_of_the_whole(shape: tuple[int, int], seed: int, blur: float, block: int,
                                                       smallest: int) -> None:
    class_map = (random_probabilities(shape, seed, blur).argmax(axis=0) + 1).astype(np.uint8)
    overlap = largest_side(objects_from_classes(class_map, DEFAULT_CLASSES)) + 1
    found = blockwise_objects_from_classes(class_map, DEFAULT_CLASSES, smallest, block_px=block, overlap_px=overlap)
    np.testing.assert_array_equal(found, objects_from_classes(class_map, DEFAULT_CLASSES, smallest))


@settings(deadline=None, max_examples=60)
@given(shape=sizes, seed=seeds, blur=st.sampled_from([0.7, 1.5, 3.0]), block=blocks,
       smoothing=st.sampled_from([0.0, 0.4, 1.0]), least_dip=st.sampled_from([0.05, 0.3, 0.5]),
       least_certainty=st.sampled_from([0.0, 0.6, 0.8]), neck=st.sampled_from([0.0, 2.5]),
       hole=st.sampled_from([0, 5]), clear=st.booleans(),
       names=st.sampled_from([["background", "cell", "boundary"], ["background", "cell"], ["background", "a", "b"]]))
def test_objects_of_probabilities_are_those_of_the_whole(
        shape: tuple[int, int], seed: int, blur: float, block: int, smoothing: float, least_dip: float,
        least_certainty: float, neck: float, hole: int, clear: bool, names: list[str]) -> None:
    classes = classes_from_names(names)
    probabilities = random_probabilities(shape, seed, blur, len(classes))
    config = ObjectsConfig(smoothing_px=smoothing, least_dip=least_dip, least_certainty=least_certainty, neck_px=neck,
                           max_hole_px=hole, min_object_px=0)
    overlap = largest_side(objects_from_probabilities(probabilities, classes, config)) + 1
    config = config.replace(min_object_px=5, clear_border=clear)
    found = blockwise_objects_from_probabilities(probabilities, classes, config, block_px=block, overlap_px=overlap)
    np.testing.assert_array_equal(found, objects_from_probabilities(probabilities, classes, config))


@settings(deadline=None, max_examples=40)
@given(shape=sizes, seed=seeds, blur=st.sampled_from([0.0, 1.5]), block=blocks)
def test_without_rims_to_divide_objects_of_any_size_are_joined(shape: tuple[int, int], seed: int, blur: float,
                                                               block: int) -> None:
    class_map = (random_probabilities(shape, seed, blur, 2).argmax(axis=0) + 1).astype(np.uint8)
    found = blockwise_objects_from_classes(class_map, DEFAULT_CLASSES, block_px=block, overlap_px=1)
    np.testing.assert_array_equal(found, objects_from_classes(class_map, DEFAULT_CLASSES))


@pytest.mark.parametrize("block", [9, 64, 200])
def test_a_spiral_through_every_block_is_one_object(block: int) -> None:
    class_map = np.ones((129, 129), np.uint8)
    for k in range(0, 60, 4):
        class_map[k, k : 129 - k] = class_map[128 - k, k : 129 - k] = 2
        class_map[k : 129 - k, k] = class_map[k : 129 - k, 128 - k] = 2
        class_map[k + 1 : k + 4, k] = 1
        class_map[k + 4, k + 1 : k + 4] = class_map[k + 4, k] = 2
    expected = objects_from_classes(class_map, DEFAULT_CLASSES)
    found = blockwise_objects_from_classes(class_map, DEFAULT_CLASSES, block_px=block, overlap_px=2)
    np.testing.assert_array_equal(found, expected)


def test_windows_are_as_small_as_promised() -> None:
    windows: list[Window] = []

    def ids_of(window: Window) -> NDArray[np.int32]:
        windows.append(window)
        return np.zeros(window.shape, np.int32)

    join_blocks(ids_of, (1000, 700), ObjectsConfig(), block_px=100, overlap_px=20)
    assert len(windows) == 70
    assert max(max(window.shape) for window in windows) == 140


def test_ids_beyond_16_bits_stay_unique_and_go_into_a_zarr(tmp_path: Path) -> None:
    class_map = np.ones((600, 600), np.uint8)
    class_map[::2, ::2] = 2
    out = zarr.create_array(store=str(tmp_path / "ids.zarr"), shape=(600, 600), chunks=(128, 128), dtype="uint32")
    assert blockwise_objects_from_classes(class_map, DEFAULT_CLASSES, block_px=128, overlap_px=8, out=out) is out
    np.testing.assert_array_equal(out[::2, ::2], np.arange(1, 90_001).reshape(300, 300))


def test_a_stop_leaves_the_rest_empty() -> None:
    stop = StopToken()

    def ids_of(window: Window) -> NDArray[np.int32]:
        stop.stop()
        return np.ones(window.shape, np.int32)

    out = np.full((20, 20), 9, np.uint32)
    join_blocks(ids_of, (20, 20), ObjectsConfig(), block_px=10, overlap_px=2, out=out, stop=stop)
    assert (out[:10, :10] == 1).all()
    assert out.sum() == 100


@pytest.mark.parametrize("out", [np.zeros((4, 5), np.uint32), np.zeros((4, 4), np.uint16), np.zeros((4, 4))])
def test_an_array_that_cannot_hold_the_ids_is_refused(out: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match="uint32"):
        blockwise_objects_from_classes(np.ones((4, 4), np.uint8), DEFAULT_CLASSES, out=out)


@pytest.mark.parametrize(("block", "overlap"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_that_make_no_sense_are_refused(block: int, overlap: int) -> None:
    with pytest.raises(ImageError, match=f"{block} px that overlap by {overlap}"):
        blockwise_objects_from_classes(np.ones((4, 4), np.uint8), DEFAULT_CLASSES, block_px=block, overlap_px=overlap)
