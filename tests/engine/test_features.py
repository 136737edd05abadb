from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
from napari_cellbrush.engine.device import Device, choose_device
from napari_cellbrush.engine.features import TILE_PX, FeatureSource
from napari_cellbrush.engine.fused_unet import FusedUNet, fused_unet_works
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.planes import Planes

CPU = Device("cpu", "CPU", None, None, channels_last=True)
EVERYWHERE = slice(None), slice(None)
GENEROUS = 1 << 30


def model(depth: int = 3) -> Model:
    card = ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1, any_channels=True,
                     network=NetworkConfig(depth=depth, base_filters=8))
    return new_model(card, 0)


def source(image: np.ndarray, axes: str = "YX", scale: float = 1.0, depth: int = 3,
           budget: int = GENEROUS) -> FeatureSource:
    return FeatureSource(model(depth), Planes(image, axes), scale, CPU, budget)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 330)).astype(np.float32)


def test_the_last_level_is_what_the_head_sees(noise: np.ndarray) -> None:
    features = source(noise)
    tile = features.tiles(EVERYWHERE)[0]
    window = features.image.read_mirrored((), tile.top, tile.left, tile.height, tile.width)
    network = model().network.folded()
    with torch.inference_mode():
        image = torch.from_numpy(features.image.normalisation().apply(window))[None]
        expected = network.features(image)[0].permute(1, 2, 0).numpy()
    found = features.features((), tile).levels[0][..., :8]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(not fused_unet_works(torch.float32), reason="this CPU or PyTorch lacks the fused operators")
def test_the_fused_network_gives_the_same_levels() -> None:
    network = model().network.folded()
    image = torch.rand(1, 1, 124, 124)
    with torch.inference_mode():
        for found, expected in zip(FusedUNet(network, torch.float32).decoded(image), network.decoded(image),
                                   strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("depth", [3, 4])
def test_features_at_a_point_do_not_depend_on_the_tile(noise: np.ndarray, scale: float, depth: int) -> None:
    """The last row of one tile is the first spare row of its neighbour, at every level."""
    big = np.tile(noise, (3, 1))
    features = source(big, scale=scale, depth=depth)
    above, below = features.tiles((slice(None), slice(0, 1)))[:2]
    edge = float(below.rows.start)
    columns = np.arange(5, 60, 1.7)
    rows = np.full(len(columns), edge)
    np.testing.assert_allclose(features.features((), above).at(rows, columns),
                               features.features((), below).at(rows, columns), atol=4e-3)


def test_cells_of_every_level_lie_where_they_say() -> None:
    """A ramp is smoothed into the same ramp: its value at a point is the point's position, at every level."""
    ramp = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (300, 1))
    features = source(ramp)
    tile = features.tiles(EVERYWHERE)[0]
    found = features.features((), tile)
    columns = np.arange(60, 240, 7.3)
    points = found.at(np.full(len(columns), 128.0), columns)
    low, high = features.image.normalisation().low[0], features.image.normalisation().high[0]
    expected = 2 * (columns / 399 - low) / (high - low) - 1
    first = 0
    for number, width in enumerate(found.widths):
        smoothed = points[:, first + (8 << number)]
        np.testing.assert_allclose(smoothed, expected, atol=2e-3)
        first += width


def test_filters_know_edges_ridges_and_texture() -> None:
    image = np.zeros((120, 120), np.float32)
    image[:, 60:] = 1  # an edge
    image[30, :40] = 1  # a ridge
    image += np.random.default_rng(0).normal(0, 1e-3, image.shape).astype(np.float32)
    features = source(image)
    tile = features.tiles(EVERYWHERE)[0]
    value, edge, larger, smaller, spread = features.features((), tile).levels[0][..., 8:13].astype(float).T
    assert edge[60, 80] > 10 * edge[20, 80]
    assert value[100, 80] > value[20, 80]
    assert smaller[20, 30] < -0.1 < larger[20, 30]
    assert spread[60, 80] > 10 * spread[100, 80]


def test_every_channel_has_its_filters_and_its_share_of_trust() -> None:
    image = np.random.default_rng(0).normal(size=(4, 60, 60)).astype(np.float32)
    features = source(image, "CYX")
    tile = features.tiles(EVERYWHERE)[0]
    found = features.features((), tile)
    assert found.widths == tuple((8 << level) + 4 * 10 for level in range(3))
    assert features.importance.shape == (sum(found.widths),)
    assert (features.importance[8:48] == 1).all()


def test_panning_finds_the_same_tiles_again(noise: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    features = source(np.tile(noise, (3, 3)))
    computed = []
    compute = FeatureSource._computed
    monkeypatch.setattr(FeatureSource, "_computed", lambda *a: computed.append(a[2].top) or compute(*a))
    for shift in (0, 10, 40):
        for tile in features.tiles((slice(shift, shift + 200), slice(0, 200))):
            features.features((), tile)
    assert len(computed) == 1


def test_the_memory_stays_within_its_budget_and_the_oldest_tile_goes_first(noise: np.ndarray) -> None:
    big = np.tile(noise, (3, 3))
    one = source(big).features((), source(big).tiles(EVERYWHERE)[0]).n_bytes
    features = source(big, budget=int(2.5 * one))
    first, second, third, fourth = features.tiles(EVERYWHERE)[:4]
    for tile in (first, second, first, third):
        features.features((), tile)
    assert features.n_bytes <= 2.5 * one
    assert features.has((), first)
    assert not features.has((), second)
    features.features((), fourth, keep=False)
    assert not features.has((), fourth)


def test_tiles_cover_a_region_at_any_scale(noise: np.ndarray) -> None:
    for scale in (0.3, 1.0, 2.1):
        features = source(noise, scale=scale)
        covered = np.zeros(noise.shape, int)
        for tile in features.tiles(EVERYWHERE):
            assert tile.rows.start % TILE_PX == 0
            covered[features.image.image_window(tile.rows, tile.columns)] += 1
        assert (covered == 1).all()
    assert features.tiles((slice(0, 0), slice(None))) == []


def test_the_real_device_gives_features_too(noise: np.ndarray) -> None:
    features = FeatureSource(model(), Planes(noise, "YX"), 1.0, choose_device(), GENEROUS)
    found = features.features((), features.tiles(EVERYWHERE)[0])
    assert all(level.dtype == np.float16 and np.isfinite(level).all() for level in found.levels)
