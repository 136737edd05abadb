from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, NetworkConfig, ObjectsConfig, classes_from_names
from napari_cellbrush.engine import inference, predictor
from napari_cellbrush.engine.device import Device, choose_device
from napari_cellbrush.engine.inference import segment_array, segment_planes
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.planes import Planes, mirrored
from napari_cellbrush.errors import ImageError, ModelError, OutOfMemory
from napari_cellbrush.events import InferenceStarted, StopToken, TileSegmented, TileSizeReduced

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=True)


def make_model(depth: int = 3, n_channels: int = 1, batch_norm: bool = True, base_filters: int = 8,
               **card: Any) -> Model:
    network = NetworkConfig(depth=depth, base_filters=base_filters, batch_norm=batch_norm)
    model = new_model(ModelCard(name="m", classes=card.pop("classes", DEFAULT_CLASSES), in_channels=n_channels,
                                network=network, **card), seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


MODEL = make_model()


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def probabilities(model: Model, pixels: np.ndarray, tile: int, axes: str = "YX") -> np.ndarray:
    config = InferenceConfig(tile_size_px=tile, precision="float32")
    return segment_array(model, Planes(pixels, axes), "probabilities", config=config, device=CPU)


def by_hand(model: Model, pixels: np.ndarray) -> np.ndarray:
    """The original network, batch norm and all, over the whole mirrored image at once."""
    network, geometry = model.network.eval(), model.network.geometry
    planes = Planes(pixels, "YX")
    height, width = pixels.shape
    rows = mirrored(-geometry.margin, geometry.input_size_for(height), height)
    columns = mirrored(-geometry.margin, geometry.input_size_for(width), width)
    window = planes.normalisation().apply(pixels[None])[:, rows[:, None], columns]
    with torch.inference_mode():
        return network(torch.from_numpy(window)[None]).softmax(1)[0, :, :height, :width].numpy()


@given(height=st.integers(1, 150), width=st.integers(2, 150), tile=st.integers(60, 260), depth=st.sampled_from([3, 4]))
@settings(max_examples=25, deadline=None)
def test_tiled_equals_untiled_for_any_size(height: int, width: int, tile: int, depth: int) -> None:
    model, pixels = make_model(depth), image(height, width)
    found, expected = probabilities(model, pixels, tile), by_hand(model, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found.argmax(0), probabilities(model, pixels, 2000).argmax(0))
    # Against other operators two classes may tie to the last digit; everywhere else the class must be the same.
    gap = np.diff(np.sort(expected, axis=0)[-2:], axis=0)[0]
    assert (found.argmax(0) == expected.argmax(0))[gap > 1e-5].all()


def test_with_mirror_images_the_answer_is_the_mean_of_four_and_tiles_still_do_not_show() -> None:
    pixels, model = image(150, 131), make_model(4)
    config = InferenceConfig(precision="float32", mirrored=True)
    found = segment_array(model, Planes(pixels, "YX"), "probabilities", device=CPU,
                          config=config.replace(tile_size_px=200))
    ways = [lambda a: a, lambda a: a[..., ::-1], lambda a: a[..., ::-1, :], lambda a: a[..., ::-1, ::-1]]
    plane, margin = Planes(pixels, "YX"), model.network.geometry.margin
    size = model.network.geometry.input_size_for(60)
    window = plane.read_mirrored((), 48 - margin, 32 - margin, size, size)
    one_way = predictor.TilePredictor(model, plane.normalisation(), CPU, InferenceConfig(precision="float32"))
    expected = np.mean([way(one_way.predict(way(window).copy())) for way in ways], axis=0)
    np.testing.assert_allclose(found[:, 48:108, 32:92], expected[:, :60, :60], atol=1e-4)
    untiled = segment_array(model, Planes(pixels, "YX"), "probabilities", config=config, device=CPU)
    np.testing.assert_allclose(found, untiled, atol=1e-4)


@pytest.mark.parametrize("shape", [(845, 47), (1, 200), (200, 1), (3, 3)])
def test_narrow_images_give_the_same_in_tiles(shape: tuple[int, int]) -> None:
    pixels = image(*shape)
    np.testing.assert_allclose(probabilities(MODEL, pixels, 120), by_hand(MODEL, pixels), atol=1e-4)


@given(top=st.integers(0, 100), left=st.integers(0, 100), height=st.integers(1, 60), width=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_a_region_gives_what_the_whole_image_gives_there(top: int, left: int, height: int, width: int) -> None:
    pixels = image(160, 160)
    whole = probabilities(MODEL, pixels, 400)
    region = (slice(top, top + height), slice(left, left + width))
    for event in segment_planes(MODEL, Planes(pixels, "YX"), config=InferenceConfig(precision="float32"), device=CPU,
                                region=region):
        if isinstance(event, TileSegmented):
            np.testing.assert_allclose(event.probabilities, whole[:, event.rows, event.columns], atol=1e-4)


@pytest.mark.skipif(choose_device("cpu").half is None, reason="this CPU is not faster in half precision")
@pytest.mark.parametrize("tile", [220, 300])
def test_in_half_precision_at_most_one_pixel_in_ten_thousand_depends_on_its_tile(tile: int) -> None:
    model, pixels = make_model(depth=4, base_filters=32), image(310, 270)
    first, second = (segment_array(model, Planes(pixels, "YX"), device=choose_device("cpu"),
                                   config=InferenceConfig(tile_size_px=size)) for size in (tile, 600))
    assert len(np.unique(second)) == 3
    assert (first != second).mean() <= 1e-4


@pytest.mark.skipif(choose_device("cpu").half is None, reason="this CPU is not faster in half precision")
def test_half_precision_stays_near_full_precision() -> None:
    pixels = image(300, 280)
    half = segment_array(MODEL, Planes(pixels, "YX"), "probabilities", device=choose_device("cpu"))
    assert np.abs(half - probabilities(MODEL, pixels, 400)).max() < 0.1


def test_features_beyond_the_range_of_float16_are_computed_in_float32() -> None:
    """On a CPU too slow to be chosen, but there to be tested."""
    device = replace(CPU, half=torch.float16)
    model, pixels = make_model(), image(60, 50)
    first = model.network.down[0].conv1
    first.weight.data *= 1e6
    model.network.up[-1].conv1.weight.data *= 1e-6
    config = InferenceConfig(precision="float32")
    expected = segment_array(model, Planes(pixels, "YX"), "probabilities", device=CPU, config=config)
    found = segment_array(model, Planes(pixels, "YX"), "probabilities", device=device)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_the_fused_operators_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = image(150, 140)
    expected = probabilities(MODEL, pixels, 200)
    monkeypatch.setattr(predictor, "fused_unet_works", lambda dtype: False)
    np.testing.assert_allclose(probabilities(MODEL, pixels, 200), expected, atol=1e-4)


def test_without_the_fused_operators_a_cpu_computes_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain ones add up bfloat16 in an order that depends on the tile."""
    monkeypatch.setattr(predictor, "fused_unet_works", lambda dtype: False)
    run = segment_planes(MODEL, Planes(image(60, 50), "YX"), device=replace(CPU, half=torch.bfloat16))
    assert next(run).precision == "float32"


@given(n_classes=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_class_map_is_the_argmax_and_ties_go_to_the_first(n_classes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, (n_classes, 7, 9)).astype(np.float32)
    np.testing.assert_array_equal(predictor.most_probable(scores), scores.argmax(axis=0) + 1)


def test_stacks_are_segmented_plane_by_plane_like_single_images() -> None:
    stack = image(2, 3, 50, 40)
    whole = segment_array(MODEL, Planes(stack * 1.0, "TZYX"), "classes", device=CPU)
    assert whole.shape == stack.shape
    assert whole.dtype == np.uint8
    assert set(np.unique(whole)) <= {1, 2, 3}


def test_probabilities_have_the_class_axis_first_and_sum_to_one() -> None:
    found = segment_array(MODEL, Planes(image(2, 50, 40), "ZYX"), "probabilities", device=CPU)
    assert found.shape == (3, 2, 50, 40)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_objects_have_ids_of_their_own_on_every_plane() -> None:
    found = segment_array(MODEL, Planes(image(2, 90, 80), "ZYX"), "objects", device=CPU,
                          config=InferenceConfig(objects=ObjectsConfig(min_object_px=1, smoothing_px=0,
                                                                       least_certainty=0)))
    first, second = (set(np.unique(plane)) - {0} for plane in found)
    assert first
    assert second
    assert not first & second


def test_a_sigmoid_gives_two_probabilities() -> None:
    network = NetworkConfig(depth=3, base_filters=8, activation="sigmoid")
    card = ModelCard(name="m", classes=classes_from_names(["background", "cell"]), in_channels=1, network=network)
    found = segment_array(new_model(card, 0), Planes(image(40, 40), "YX"), "probabilities", device=CPU)
    assert found.shape == (2, 40, 40)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_model_of_other_channels_is_refused() -> None:
    with pytest.raises(ModelError, match=r"2 channel.*needs 1"):
        segment_array(MODEL, Planes(image(2, 40, 40), "CYX"), device=CPU)


def test_a_base_for_any_channels_segments_colour() -> None:
    model = make_model(any_channels=True)
    grey = image(60, 50)
    found = segment_array(model, Planes(np.stack([grey] * 3, -1), "YXS"), "probabilities", device=CPU)
    np.testing.assert_allclose(found, segment_array(model, Planes(grey, "YX"), "probabilities", device=CPU), atol=1e-4)


def test_a_bad_pixel_far_from_the_start_ends_with_its_place() -> None:
    pixels = image(40, 3000)
    planes = Planes(pixels, "YX")
    planes.normalisation()
    pixels[20, 2990] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        segment_array(MODEL, planes, device=CPU, config=InferenceConfig(tile_size_px=200))


class Spy:
    """An array that remembers the largest window that was read."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype, self.largest = array.shape, array.dtype, 0

    def __getitem__(self, key: Any) -> np.ndarray:
        window = self._array[key]
        self.largest = max(self.largest, window.size)
        return window


def test_no_more_than_a_tile_is_read_at_once() -> None:
    spy = Spy(image(700, 900))
    segment_array(MODEL, Planes(spy, "YX"), device=CPU, config=InferenceConfig(tile_size_px=260))
    assert spy.largest <= 276**2


def test_memory_does_not_grow_with_the_image() -> None:
    """Of a lazy image and a receiver that keeps nothing, as numpy's allocations are counted."""
    def peak(n_rows: int) -> int:
        planes = Planes(Spy(np.broadcast_to(image(1, 300), (n_rows, 300))), "YX")
        planes.normalisation()
        tracemalloc.start()
        for _ in segment_planes(MODEL, planes, device=CPU, config=InferenceConfig(tile_size_px=150)):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(300)
    growth, image_growth = peak(3000) - peak(300), 2700 * 300 * 4
    assert growth < 0.1 * image_growth  # the plan of tiles; neither the image nor any answer


def test_every_window_is_read_once_in_a_thread_that_ends_with_the_run() -> None:
    reads = []

    class Watched(Planes):
        def read_mirrored(self, index: tuple[int, ...], top: int, left: int, height: int, width: int) -> np.ndarray:
            reads.append((top, left, threading.current_thread().name))
            return super().read_mirrored(index, top, left, height, width)

    events = list(segment_planes(MODEL, Watched(image(300, 300), "YX"), device=CPU,
                                 config=InferenceConfig(tile_size_px=200)))
    assert len({read[:2] for read in reads}) == len(reads) == len(events) - 1
    assert all(name.startswith("cellbrush-read") for *_, name in reads)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cellbrush-read")]


def test_an_abandoned_run_leaves_no_thread_behind() -> None:
    run = segment_planes(MODEL, Planes(image(300, 300), "YX"), device=CPU, config=InferenceConfig(tile_size_px=200))
    next(run)
    next(run)
    run.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cellbrush-read")]


def test_a_view_beyond_the_image_is_cut_at_its_border() -> None:
    pixels = image(90, 80)
    answered = np.zeros(pixels.shape, int)
    for event in segment_planes(MODEL, Planes(pixels, "YX"), device=CPU, region=(slice(50, 500), slice(0, 1000))):
        if isinstance(event, TileSegmented):
            answered[event.rows, event.columns] += 1
            assert event.classes.shape == answered[event.rows, event.columns].shape
    assert (answered[50:] == 1).all()
    assert not answered[:50].any()


def test_the_automatic_tile_shrinks_with_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(free: float) -> int:
        monkeypatch.setattr(inference, "free_memory", lambda device: int(free))
        return inference.tile_size(InferenceConfig(), MODEL, CPU)

    assert size(1e12) == size(1e11) > size(5e7) > size(1e7) >= MODEL.network.geometry.smallest_input
    assert size(0) == size(1)


def test_tiles_begin_where_the_user_looks() -> None:
    events = segment_planes(MODEL, Planes(image(600, 600), "YX"), config=InferenceConfig(tile_size_px=200),
                            device=CPU, centre=(580, 20))
    first = next(event for event in events if isinstance(event, TileSegmented))
    assert first.rows.start <= 580 < first.rows.stop
    assert first.columns.start <= 20 < first.columns.stop


def test_progress_counts_every_tile_of_every_plane() -> None:
    events = list(segment_planes(MODEL, Planes(image(2, 300, 300), "ZYX"), device=CPU,
                                 config=InferenceConfig(tile_size_px=200)))
    assert isinstance(events[0], InferenceStarted)
    assert [event.tile for event in events[1:]] == list(range(1, events[0].n_tiles + 1))
    assert events[-1].seconds_left == 0


def test_a_stop_ends_after_the_tile_at_hand() -> None:
    stop = StopToken()
    run = segment_planes(MODEL, Planes(image(600, 600), "YX"), device=CPU, stop=stop,
                         config=InferenceConfig(tile_size_px=200))
    next(run)
    next(run)
    stop.stop()
    with pytest.raises(StopIteration) as end:
        next(run)
    assert end.value.value is False


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_halves_the_tile_and_gives_the_same_result(monkeypatch: pytest.MonkeyPatch,
                                                                 error: Exception) -> None:
    pixels = image(500, 420)
    expected = probabilities(MODEL, pixels, 600)
    predict = inference.TilePredictor.predict

    def short_of_memory(self: Any, window: np.ndarray) -> np.ndarray:
        if window.shape[-1] > 180:
            raise error
        return predict(self, window)

    monkeypatch.setattr(inference.TilePredictor, "predict", short_of_memory)
    np.testing.assert_allclose(probabilities(MODEL, pixels, 600), expected, atol=1e-4)
    events = list(segment_planes(MODEL, Planes(pixels, "YX"), device=CPU, config=InferenceConfig(tile_size_px=600)))
    sizes = [event.tile_size for event in events if isinstance(event, TileSizeReduced)]
    assert len(sizes) == 2
    assert sizes[1] <= 180 < sizes[0] <= 300


def test_memory_that_fails_in_mid_run_loses_no_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = image(500, 420)
    expected = probabilities(MODEL, pixels, 260)
    predict, calls = inference.TilePredictor.predict, []

    def fails_once(self: Any, window: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return predict(self, window)

    monkeypatch.setattr(inference.TilePredictor, "predict", fails_once)
    np.testing.assert_allclose(probabilities(MODEL, pixels, 260), expected, atol=1e-4)


def test_memory_too_small_for_any_tile_ends_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> np.ndarray:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(inference.TilePredictor, "predict", never)
    with pytest.raises(OutOfMemory, match="choose the CPU"):
        segment_array(MODEL, Planes(image(300, 300), "YX"), device=CPU)


def test_other_errors_of_the_network_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> np.ndarray:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(inference.TilePredictor, "predict", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        segment_array(MODEL, Planes(image(300, 300), "YX"), device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    pixels = image(700, 600)
    config = InferenceConfig(precision="float32")
    cpu, gpu = (segment_array(MODEL, Planes(pixels, "YX"), "probabilities", config=config, device=device)
                for device in (CPU, choose_device("cuda")))
    np.testing.assert_allclose(gpu, cpu, atol=1e-3)
    half = segment_array(MODEL, Planes(pixels, "YX"), "probabilities", device=choose_device("cuda"))
    assert np.abs(half - cpu).max() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_with_little_memory_goes_on_with_smaller_tiles() -> None:
    device = choose_device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.3 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        model = new_model(MODEL.card.replace(network=NetworkConfig(base_filters=64).model_dump()), 0)
        events = list(segment_planes(model, Planes(image(3000, 3000), "YX"), device=device,
                                     config=InferenceConfig(tile_size_px=3000)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(isinstance(event, TileSizeReduced) for event in events)
    assert sum(event.classes.size for event in events if isinstance(event, TileSegmented)) == 3000**2
