"""The instant answer: a linear classifier on features, fitted to the strokes in milliseconds.

Multinomial logistic regression with an L2 penalty and balanced classes. It is fitted anew after every stroke, never led
on from the last fit: the same strokes give the same answer, whatever was painted and taken back before. Being linear,
it is applied to each level of the features on its own; only its few logits are brought to full resolution, not the
hundreds of features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch.nn import functional

from napari_cellbrush.engine.features import FeatureTile

#: Pixels that one fit learns from: pixels of one stroke are alike, and more of them changed no score (measured).
MAX_PIXELS = 2_000
#: Weight of the penalty against that of all pixels together, on features of standard deviation one times importance.
_PENALTY = 0.05
#: Iterations of one fit.
_MAX_ITERATIONS = 20
#: Largest gradient, in any weight, of a fit that has ended.
_TOLERANCE = 1e-3
#: Features that vary less than this on the strokes say nothing.
_LEAST_SPREAD = 1e-4
#: Features that are widened at once: a quarter of a megabyte.
_CACHED_VALUES = 1 << 16
#: Logit of a class that nobody painted: finite, because logits are interpolated.
_NEVER = np.float32(-1e4)


@dataclass(frozen=True, eq=False)
class InstantHead:
    """A linear classifier on features.

    Attributes
    ----------
    weights
        FK float32, features of all levels in a row.
    bias
        K float32.
    known
        Whether each of the K classes was painted; the others are never answered.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    known: tuple[bool, ...]

    @property
    def n_classes(self) -> int:
        """Classes it tells apart, painted or not."""
        return len(self.known)

    def of_pixels(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits NK of features NF."""
        return self._without_unknown(features @ self.weights + self.bias)

    def of_tile(self, tile: FeatureTile) -> NDArray[np.float32]:
        """Logits KYX of the tile's network pixels and as many beyond its end as its finest level has."""
        height, width = tile.levels[0].shape[:2]
        parts = np.split(self.weights, np.cumsum(tile.widths)[:-1])
        logits = torch.from_numpy(self.bias)[:, None, None].expand(-1, height, width)
        for number, (level, weights) in enumerate(zip(tile.levels, parts, strict=True)):
            stride = 1 << number
            coarse = torch.from_numpy(_applied(level, weights))
            fine = functional.interpolate(coarse[None], scale_factor=stride, mode="bilinear")[0] if number else coarse
            first = 2 * (stride - 1)
            logits = logits + fine[:, first : first + height, first : first + width]
        return self._without_unknown(logits.numpy(), axis=0)

    def _without_unknown(self, logits: NDArray[np.float32], axis: int = -1) -> NDArray[np.float32]:
        if not all(self.known):
            np.moveaxis(logits, axis, -1)[..., ~np.array(self.known)] = _NEVER
        return logits


def _applied(level: NDArray[np.float16], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits KYX of features YXF, a few rows at a time: what is widened to float32 stays in the processor's cache.

    torch widens half precision faster and numpy multiplies with few columns faster, each by a factor of three.
    """
    logits = np.empty((weights.shape[1], *level.shape[:2]), np.float32)
    n_rows = max(1, _CACHED_VALUES // level[0].size)
    for top in range(0, len(level), n_rows):
        part = torch.from_numpy(level[top : top + n_rows]).float().numpy()
        logits[:, top : top + n_rows] = (weights.T @ part.reshape(-1, len(weights)).T).reshape(-1, *part.shape[:2])
    return logits


def fit(features: NDArray[np.float32], classes: NDArray[np.integer], n_classes: int,
        importance: NDArray[np.float32]) -> InstantHead:
    """Fit a head to labelled pixels; every class has the same weight, however much of it is painted.

    Parameters
    ----------
    features
        NF float32.
    classes
        N, class numbers from 0 on; at least two different ones.
    n_classes
        Of the class table.
    importance
        F, above 0: standard deviation of each feature's weight before anything is known, relative to the others
        (the penalty is that of a Gaussian prior).
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > _LEAST_SPREAD, importance / np.maximum(spread, _LEAST_SPREAD), 0).astype(np.float32)
    standard = (features - mean) * scale
    counts = np.bincount(classes, minlength=n_classes)
    loss = _Loss(standard, classes, counts)
    first = np.zeros((features.shape[1] + 1, n_classes))
    found = optimize.minimize(loss, first.ravel(), jac=True, method="L-BFGS-B",
                              options={"maxiter": _MAX_ITERATIONS, "gtol": _TOLERANCE})
    solution = found.x.reshape(first.shape)
    weights = solution[:-1] * scale[:, None]
    return InstantHead(weights.astype(np.float32), (solution[-1] - mean @ weights).astype(np.float32),
                       tuple(bool(n) for n in counts))


class _Loss:
    """Cross-entropy of balanced classes, with its penalty, and its gradient."""

    def __init__(self, standard: NDArray[np.float32], classes: NDArray[np.integer],
                 counts: NDArray[np.integer]) -> None:
        self._features = standard
        self._never = np.where(counts > 0, 0, _NEVER).astype(np.float32)
        self._pixels = np.arange(len(classes))
        self._classes = classes
        self._balance = (1 / counts.clip(1) / np.count_nonzero(counts)).astype(np.float32)[classes]

    def __call__(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.astype(np.float32).reshape(-1, len(self._never))
        logits = self._features @ weights[:-1] + weights[-1] + self._never
        logits -= logits.max(axis=1, keepdims=True)
        error = np.exp(logits)
        total = error.sum(axis=1, keepdims=True)
        value = self._balance @ (np.log(total[:, 0]) - logits[self._pixels, self._classes])
        error /= total
        error[self._pixels, self._classes] -= 1
        error *= self._balance[:, None]
        gradient = np.vstack([self._features.T @ error + np.float32(_PENALTY) * weights[:-1], error.sum(axis=0)])
        return float(value) + _PENALTY / 2 * float((weights[:-1] ** 2).sum()), gradient.astype(np.float64).ravel()
