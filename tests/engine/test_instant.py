from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from napari_cellbrush.engine import instant
from napari_cellbrush.engine.features import FeatureTile
from napari_cellbrush.engine.instant import InstantHead, fit
from napari_cellbrush.engine.tiling import Tile


@pytest.fixture
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping clouds of very different sizes in five features."""
    random = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [400, 40, 150])
    centres = np.array([[0, 0, 0, 0, 0], [2, 0, 1, 0, 0], [0, 2, 0, 1, 0]])
    features = centres[classes] + random.normal(size=(len(classes), 5))
    return (features * [1, 10, 0.1, 1, 1] + 3).astype(np.float32), classes


def objective(head: InstantHead, features: np.ndarray, classes: np.ndarray) -> float:
    """The same in plain words: mean cross-entropy per class, and the penalty on standardised weights."""
    losses = -log_softmax(head.of_pixels(features), axis=1)[np.arange(len(classes)), classes]
    fitting = np.mean([losses[classes == k].mean() for k in np.unique(classes)])
    return float(fitting + instant._PENALTY / 2 * ((head.weights * features.std(axis=0)[:, None]) ** 2).sum())


def test_no_small_change_of_any_weight_makes_it_better(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, classes = blobs
    head = fit(features, classes, 3, np.ones(5, np.float32))
    best = objective(head, features, classes)
    random = np.random.default_rng(1)
    for _ in range(30):
        change = random.normal(0, 0.05, head.weights.shape) / features.std(axis=0)[:, None]
        other = InstantHead((head.weights + change).astype(np.float32), head.bias, head.known)
        assert objective(other, features, classes) > best - 1e-5


def test_a_rare_class_is_found_as_well_as_a_frequent_one(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, classes = blobs
    found = fit(features, classes, 3, np.ones(5, np.float32)).of_pixels(features).argmax(axis=1)
    recalls = [np.mean(found[classes == k] == k) for k in range(3)]
    assert min(recalls) > 0.7


def test_painting_a_stroke_twice_as_thick_changes_nothing(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, classes = blobs
    once = fit(features, classes, 3, np.ones(5, np.float32))
    twice = fit(np.tile(features, (2, 1)), np.tile(classes, 2), 3, np.ones(5, np.float32))
    np.testing.assert_allclose(once.weights, twice.weights, atol=2e-3)


def test_the_same_strokes_give_the_same_bits(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, classes = blobs
    first, second = (fit(features, classes, 3, np.ones(5, np.float32)) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)


def test_a_class_that_nobody_painted_is_never_answered(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, classes = blobs
    some = classes != 1
    head = fit(features[some], classes[some], 4, np.ones(5, np.float32))
    assert head.known == (True, False, True, False)
    assert set(head.of_pixels(features * 100).argmax(axis=1)) <= {0, 2}


def test_a_feature_that_never_varies_says_nothing(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    features, classes = blobs
    features[:, 4] = 7
    head = fit(features, classes, 3, np.ones(5, np.float32))
    assert (head.weights[4] == 0).all()
    assert np.isfinite(head.of_pixels(features)).all()


def test_features_of_little_importance_have_little_to_say() -> None:
    random = np.random.default_rng(0)
    classes = np.repeat([0, 1], 100)
    features = np.stack([classes, classes], axis=1) + random.normal(0, 0.1, (200, 2))
    head = fit(features.astype(np.float32), classes, 2, np.array([1, 0.1], np.float32))
    assert np.abs(head.weights[1]).max() < 0.05 * np.abs(head.weights[0]).max()


def test_a_tile_is_answered_as_its_pixels_are() -> None:
    """Interpolating logits and applying the head to interpolated features is the same, because the head is linear."""
    random = np.random.default_rng(0)
    tile = Tile(slice(256, 280), slice(0, 40), 256 - 44, -44, 0, 0)
    height, width = 28, 44
    levels = tuple(random.normal(size=((height + 4 * (s - 1)) // s, (width + 4 * (s - 1)) // s, f)).astype(np.float16)
                   for s, f in ((1, 3), (2, 4), (4, 5)))
    features = FeatureTile(tile, levels)
    head = InstantHead(random.normal(size=(12, 3)).astype(np.float32), np.zeros(3, np.float32), (True, True, True))
    whole = head.of_tile(features)
    assert whole.shape == (3, height, width)
    rows, columns = np.mgrid[256:280, 0:40]
    found = head.of_pixels(features.at(rows.ravel(), columns.ravel())).T.reshape(3, 24, 40)
    np.testing.assert_allclose(whole[:, :24, :40], found, atol=1e-4)
