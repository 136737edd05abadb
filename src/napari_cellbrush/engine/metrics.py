"""How good a result is: intersection over union of classes, average precision and SEG of objects.

Knows arrays only. Nothing here samples or approximates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from napari_cellbrush.errors import ImageError

#: Thresholds of the Data Science Bowl 2018 (Caicedo et al. 2019, Nature Methods 16, 1247).
DSB_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True)
class ClassScores:
    """Intersection over union of each class, in [0, 1]."""

    #: NaN for a class that neither truth nor prediction has.
    per_class: tuple[float, ...]
    #: Over the classes that truth or prediction have; NaN without a labelled pixel.
    mean: float


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """Objects found and missed, at each threshold of intersection over union."""

    thresholds: tuple[float, ...]
    #: Per threshold, int64.
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """TP / (TP + FP + FN) per threshold, called average precision in Cellpose and StarDist.

        It is 1 where nothing is and nothing was found. Schmidt et al. 2018, MICCAI, 265; Stringer et al. 2021,
        Nature Methods 18, 100; Caicedo et al. 2019.
        """
        return _ratio(self.true_positives, self.true_positives + self._errors)

    @property
    def f1(self) -> NDArray[np.float64]:
        """2 TP / (2 TP + FP + FN) per threshold: the harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self._errors)

    @property
    def _errors(self) -> NDArray[np.int64]:
        return self.false_positives + self.false_negatives

    def __add__(self, other: ObjectScores) -> ObjectScores:
        """The counts of two images together.

        Raises
        ------
        ValueError
            If they were counted at different thresholds.
        """
        if self.thresholds != other.thresholds:
            raise ValueError(f"Cannot add counts at {self.thresholds} and {other.thresholds}")
        return ObjectScores(self.thresholds, self.true_positives + other.true_positives,
                            self.false_positives + other.false_positives,
                            self.false_negatives + other.false_negatives)


def pixel_confusion(prediction: NDArray[Any], truth: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Count labelled pixels by true and predicted class.

    Parameters
    ----------
    prediction
        Any shape; k + 1 for class number k. A labelled pixel without a class counts as predicted none.
    truth
        The same shape; 0 unlabelled.
    n_classes
        K.

    Returns
    -------
    NDArray
        K × (K + 1) int64: true class × predicted class, the last column holding what was predicted as none.

    Raises
    ------
    ImageError
        If shapes differ or a value is no class.
    """
    _check_shapes(prediction, truth)
    labelled = truth > 0
    true, said = truth[labelled].astype(np.int64), prediction[labelled].astype(np.int64)
    for values in (true, said):
        if values.size and not 0 <= values.min() <= values.max() <= n_classes:
            raise ImageError(f"A class map holds values {values.min()} to {values.max()}, but there are {n_classes} "
                             "classes", "Compare class maps of the same classes")
    # Class 0, none, moves to the last column.
    key = (true - 1) * (n_classes + 1) + (said - 1) % (n_classes + 1)
    table: NDArray[np.int64] = np.bincount(key, minlength=n_classes * (n_classes + 1)).astype(np.int64)
    return table.reshape(n_classes, n_classes + 1)


def iou_from_confusion(confusion: NDArray[np.int64]) -> ClassScores:
    """Intersection over union (Jaccard 1912) of each class.

    Parameters
    ----------
    confusion
        What :func:`pixel_confusion` gave; sums over several images are one image's worth of pixels.
    """
    n_classes = len(confusion)
    both = np.diagonal(confusion)
    either = confusion.sum(axis=1) + confusion.sum(axis=0)[:n_classes] - both
    per_class = [float(b) / float(e) if e else float("nan") for b, e in zip(both, either, strict=True)]
    known = [score for score in per_class if score == score]
    return ClassScores(tuple(per_class), sum(known) / len(known) if known else float("nan"))


def class_iou(prediction: NDArray[Any], truth: NDArray[Any], n_classes: int) -> ClassScores:
    """Intersection over union of each class over the labelled pixels of ``truth``; see :func:`pixel_confusion`."""
    return iou_from_confusion(pixel_confusion(prediction, truth, n_classes))


def average_precision(prediction: NDArray[Any], truth: NDArray[Any],
                      thresholds: Sequence[float] = DSB_THRESHOLDS) -> ObjectScores:
    """Match predicted and true objects one to one, and count hits and misses.

    A pair may match if its intersection over union reaches the threshold; as many pairs as possible are matched
    (optimal assignment, as in StarDist and Cellpose).

    Parameters
    ----------
    prediction, truth
        Whole numbers of the same shape, of any number of axes; 0 background, ids ≥ 1 in any order and with gaps.
    thresholds
        Each in (0, 1].

    Returns
    -------
    ObjectScores
        Counts per threshold, and the average precision and F1 that follow from them.

    Raises
    ------
    ImageError
        If shapes differ or ids are negative or not whole numbers.
    """
    overlap = _overlap(prediction, truth)
    hits = np.array([_hits(overlap, threshold) for threshold in thresholds], np.int64)
    return ObjectScores(tuple(thresholds), hits, overlap.n_predicted - hits, overlap.n_true - hits)


@dataclass(frozen=True)
class SegScore:
    """Sum of the true objects' scores, and their number, so that images can be added up."""

    total: float
    n_objects: int

    @property
    def mean(self) -> float:
        """SEG, in [0, 1]; NaN without a true object."""
        return self.total / self.n_objects if self.n_objects else float("nan")

    def __add__(self, other: SegScore) -> SegScore:
        """Both images together: each object counts the same."""
        return SegScore(self.total + other.total, self.n_objects + other.n_objects)


def seg_score(prediction: NDArray[Any], truth: NDArray[Any]) -> SegScore:
    """The SEG measure of the Cell Tracking Challenge (Maška et al. 2014, Bioinformatics 30, 1609).

    A true object scores its intersection over union with the predicted object that covers more than half of its
    pixels, and 0 where there is none. What was found where nothing is does not count.

    Parameters
    ----------
    prediction, truth
        As for :func:`average_precision`.

    Raises
    ------
    ImageError
        If shapes differ or ids are negative or not whole numbers.
    """
    overlap = _overlap(prediction, truth)
    # More than half of an object can be covered by one other alone, so no pair needs to be chosen.
    covering = 2 * overlap.both > overlap.true_area
    return SegScore(float(overlap.iou[covering].sum()), overlap.n_true)


@dataclass(frozen=True, eq=False)
class _Overlap:
    """Pairs of predicted and true objects that share pixels."""

    n_predicted: int
    n_true: int
    #: Numbers of the objects of each pair, from 0.
    predicted: NDArray[np.integer]
    true: NDArray[np.integer]
    #: Shared pixels, and those of the true object.
    both: NDArray[np.int64]
    true_area: NDArray[np.int64]
    iou: NDArray[np.float64]


def _overlap(prediction: NDArray[Any], truth: NDArray[Any]) -> _Overlap:
    _check_shapes(prediction, truth)
    (predicted_ids, n_predicted), (true_ids, n_true) = (_dense_ids(values) for values in (prediction, truth))
    # A table of all pairs would not fit for many objects; the pairs that occur are about as many as the objects.
    pixels = sparse.coo_matrix((np.ones(len(true_ids), np.int64), (predicted_ids, true_ids)),
                               shape=(n_predicted + 1, n_true + 1))
    area_predicted, area_true = (np.bincount(ids, minlength=1) for ids in (predicted_ids, true_ids))
    pairs = pixels.tocsr()[1:, 1:].tocoo()
    union = area_predicted[pairs.row + 1] + area_true[pairs.col + 1] - pairs.data
    return _Overlap(n_predicted, n_true, pairs.row, pairs.col, pairs.data, area_true[pairs.col + 1],
                    pairs.data / union)


def _dense_ids(values: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Flat ids without gaps, 0 staying background, and their number."""
    if values.dtype.kind not in "iub" or (values.size and values.min() < 0):
        raise ImageError(f"An object mask holds values of type {values.dtype}, some below 0 or not whole",
                         "Use 0 for background and whole numbers from 1 on for objects")
    flat = values.ravel()
    largest = int(flat.max()) if flat.size else 0
    if largest > 4 * flat.size + 65_535:
        ids, dense = np.unique(flat, return_inverse=True)
        return dense.astype(np.int64) + int(ids[0] != 0), int(np.count_nonzero(ids))
    present = np.zeros(largest + 1, bool)
    present[flat.astype(np.int64)] = True
    present[0] = False
    number = np.cumsum(present) * present
    return number[flat.astype(np.int64)], int(present.sum())


def _hits(overlap: _Overlap, threshold: float) -> int:
    """Size of the largest one-to-one matching of pairs that reach the threshold."""
    possible = overlap.iou >= threshold
    if not possible.any():
        return 0
    graph = sparse.csr_matrix((possible[possible], (overlap.predicted[possible], overlap.true[possible])),
                              shape=(overlap.n_predicted, overlap.n_true))
    return int((sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _check_shapes(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    if prediction.shape != truth.shape:
        raise ImageError(f"The prediction has the shape {prediction.shape}, the truth {truth.shape}",
                         "Compare results of the same image")


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)
