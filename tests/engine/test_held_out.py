"""Which strokes a score looks at."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from napari_cellbrush.config import TrainingConfig, classes_from_names
from napari_cellbrush.engine.annotation import collect_annotation
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.held_out import HeldOut
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.events import StopToken

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
TWO = classes_from_names(["background", "cell"])


def who_always_says(class_number: int, depth: int = 3) -> UNet:
    network = UNet(1, 2, 8, depth, batch_norm=True).eval()
    torch.nn.init.zeros_(network.head.weight)
    with torch.no_grad():
        network.head.bias.copy_(torch.eye(2)[class_number])
    return network


def held_out(labels: NDArray[Any], network: UNet, seed: int = 0, max_tiles: int = 24) -> HeldOut:
    image = Planes(np.random.default_rng(0).normal(size=labels.shape).astype(np.float32), "YX")
    annotation = collect_annotation([image], [labels], TWO)
    return HeldOut([Resampled(image, 1.0)], annotation, TrainingConfig(seed=seed), network, CPU, max_tiles)


def iou(strokes: HeldOut, network: UNet) -> float:
    scored = strokes.score(network, StopToken())
    assert scored is not None
    return scored.iou


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_always_looked_at(seed: int) -> None:
    labels = np.zeros((600, 600), np.uint8)
    labels[::20, 40:] = 1
    labels[305:308, 300:320] = 2
    strokes = held_out(labels, who_always_says(1), seed, max_tiles=4)
    # A class of which no tile is drawn is never right: all that is said of it is wrong.
    assert strokes.n_tiles == 4
    assert iou(strokes, who_always_says(1)) > 0


def test_all_strokes_are_looked_at_where_there_are_few() -> None:
    labels = np.zeros((600, 600), np.uint8)
    labels[50:53, 100:120], labels[500:503, 400:420] = 1, 2
    strokes = held_out(labels, who_always_says(0), max_tiles=8)
    assert strokes.n_tiles == 2
    # Of two strokes of the same length one is right: background 1/2, cell 0.
    assert iou(strokes, who_always_says(0)) == pytest.approx(0.25)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_a_tile_shows_as_much_to_every_network(depth: int) -> None:
    labels = np.zeros((960, 960), np.uint8)
    labels[:] = 1
    labels[::2] = 2
    n = held_out(labels, who_always_says(0, depth), max_tiles=10_000).n_tiles
    assert (960 / 96) ** 2 <= n <= (960 / 64) ** 2


def test_whole_masks_take_no_more_memory_for_more_tiles() -> None:
    labels = np.ones((1200, 1200), np.uint8)
    labels[::2] = 2
    network = who_always_says(0)
    tracemalloc.start()
    try:
        held_out(labels, network, max_tiles=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * labels.size  # 150 tiles and more, of 4 bytes a pixel and more, were there one for each
