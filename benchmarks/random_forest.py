"""The peer of every accuracy figure: a random forest on multi-scale filters of each pixel, as in ilastik and Labkit.

Berg et al. 2019 (ilastik), Nature Methods 16, 1226; Arzt et al. 2022 (Labkit), Frontiers in Computer Science 4.
Needs scikit-learn, which napari-cellbrush itself does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

#: ilastik's default range of scales and number of trees.
SIGMAS_PX = (0.7, 10.0)
N_TREES = 100


class RandomForest:
    """Learns the class of a pixel from filters around it.

    Parameters
    ----------
    seed
        The same seed grows the same trees.
    max_pixels
        At most this many labelled pixels per class are learnt from, drawn at random.
    """

    def __init__(self, seed: int = 0, max_pixels: int = 20_000) -> None:
        self._random = np.random.default_rng(seed)
        self._max_pixels = max_pixels
        self._trees = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=-1, class_weight="balanced")

    def fit(self, images: Sequence[NDArray[Any]], labels: Sequence[NDArray[np.integer]]) -> Self:
        """Learn from images CYX and their labels YX; 0 unlabelled, k + 1 for class number k."""
        features, truth = [], []
        for image, painted in zip(images, labels, strict=True):
            chosen = self._some_of_each_class(painted)
            features.append(pixel_features(image).reshape(painted.size, -1)[chosen])
            truth.append(painted.ravel()[chosen])
        self._trees.fit(np.concatenate(features), np.concatenate(truth))
        return self

    def predict(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Class map YX of an image CYX, 1…K."""
        features = pixel_features(image)
        found = self._trees.predict(features.reshape(-1, features.shape[-1]))
        return found.reshape(features.shape[:2]).astype(np.uint8)

    def probabilities(self, image: NDArray[Any], n_classes: int) -> NDArray[np.float32]:
        """Shares of the trees, KYX, of an image CYX; 0 for classes that nobody painted."""
        features = pixel_features(image)
        shares = self._trees.predict_proba(features.reshape(-1, features.shape[-1]))
        found = np.zeros((n_classes, *features.shape[:2]), np.float32)
        found[self._trees.classes_ - 1] = shares.T.reshape(-1, *features.shape[:2])
        return found

    def _some_of_each_class(self, painted: NDArray[np.integer]) -> NDArray[np.intp]:
        chosen = []
        for value in np.unique(painted[painted > 0]):
            pixels = np.flatnonzero(painted == value)
            chosen.append(self._random.permutation(pixels)[: self._max_pixels])
        return np.concatenate(chosen) if chosen else np.zeros(0, np.intp)


def pixel_features(image: NDArray[Any]) -> NDArray[np.float32]:
    """YXF: smoothed values, edges (gradient) and textures (Hessian eigenvalues) of each channel at every scale."""
    low, high = SIGMAS_PX
    return np.concatenate([
        multiscale_basic_features(channel.astype(np.float32), sigma_min=low, sigma_max=high)
        for channel in image], axis=-1).astype(np.float32)
