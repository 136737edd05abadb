from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from napari_cellbrush.engine.metrics import (
    SegScore,
    average_precision,
    class_iou,
    iou_from_confusion,
    pixel_confusion,
    seg_score,
)
from napari_cellbrush.errors import ImageError

SHAPE = (7, 9)


def iou_by_sets(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], value: int) -> float:
    """Intersection over union as sets of labelled positions."""
    labelled = {tuple(p) for p in np.argwhere(truth > 0)}
    said = {tuple(p) for p in np.argwhere(prediction == value)} & labelled
    true = {tuple(p) for p in np.argwhere(truth == value)}
    return len(said & true) / len(said | true) if said | true else math.nan


def hits_by_assignment(prediction: NDArray[np.int32], truth: NDArray[np.int32],
                       threshold: float) -> tuple[int, int, int]:
    """TP, FP, FN with a full table of all pairs and the Hungarian method."""
    found, true = (sorted(set(values[values > 0].tolist())) for values in (prediction, truth))
    iou = np.zeros((len(found), len(true)))
    for i, p in enumerate(found):
        for j, t in enumerate(true):
            iou[i, j] = np.sum((prediction == p) & (truth == t)) / np.sum((prediction == p) | (truth == t))
    rows, columns = linear_sum_assignment(iou >= threshold, maximize=True)
    hits = int((iou[rows, columns] >= threshold).sum())
    return hits, len(found) - hits, len(true) - hits


@given(prediction=arrays(np.uint8, SHAPE, elements=st.integers(0, 3)),
       truth=arrays(np.uint8, SHAPE, elements=st.integers(0, 3)))
def test_class_iou_is_the_ratio_of_sets_of_labelled_pixels(prediction: NDArray[np.uint8],
                                                           truth: NDArray[np.uint8]) -> None:
    scores = class_iou(prediction, truth, 3)
    expected = [iou_by_sets(prediction, truth, value) for value in (1, 2, 3)]
    np.testing.assert_allclose(scores.per_class, expected)
    known = [value for value in expected if not math.isnan(value)]
    np.testing.assert_allclose(scores.mean, np.mean(known) if known else math.nan)


def test_unlabelled_pixels_do_not_count() -> None:
    truth = np.array([[1, 2, 0, 0]])
    assert class_iou(np.array([[1, 2, 1, 2]]), truth, 2).per_class == (1.0, 1.0)


def test_a_labelled_pixel_that_got_no_class_is_an_error_of_its_class() -> None:
    scores = class_iou(np.array([[1, 0]]), np.array([[1, 1]]), 2)
    assert scores.per_class[0] == 0.5
    assert math.isnan(scores.per_class[1])
    assert scores.mean == 0.5


def test_confusions_of_several_images_add_up_to_one_score() -> None:
    random = np.random.default_rng(0)
    pairs = [random.integers(1, 4, (2, 20, 20)) for _ in range(3)]
    total = sum((pixel_confusion(p, t, 3) for p, t in pairs), np.zeros((3, 4), np.int64))
    joined = class_iou(np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs]), 3)
    assert iou_from_confusion(total) == joined


@given(prediction=arrays(np.int32, SHAPE, elements=st.sampled_from([0, 1, 2, 5, 90, 70_000])),
       truth=arrays(np.int32, SHAPE, elements=st.sampled_from([0, 1, 3, 7, 2_000_000_000])),
       threshold=st.sampled_from([0.05, 0.2, 1 / 3, 0.5, 0.75, 1.0]))
@settings(max_examples=150, deadline=None)
def test_objects_are_matched_as_the_full_assignment_does(prediction: NDArray[np.int32], truth: NDArray[np.int32],
                                                         threshold: float) -> None:
    scores = average_precision(prediction, truth, (threshold,))
    counted = (scores.true_positives[0], scores.false_positives[0], scores.false_negatives[0])
    assert counted == hits_by_assignment(prediction, truth, threshold)


@given(truth=arrays(np.int32, SHAPE, elements=st.sampled_from([0, 1, 3, 7])))
def test_the_truth_itself_is_perfect_whatever_its_ids(truth: NDArray[np.int32]) -> None:
    renamed = np.where(truth > 0, 1000 - 3 * truth, 0)
    scores = average_precision(renamed, truth)
    assert np.all(scores.average_precision == 1)
    assert np.all(scores.f1 == 1)
    assert not scores.false_positives.any()


def test_average_precision_and_f1_follow_from_the_counts() -> None:
    truth = np.array([[1, 1, 0, 2, 2, 0, 3, 3]])
    found = np.array([[5, 5, 0, 6, 0, 0, 0, 0]])
    scores = average_precision(found, truth, (0.5, 0.75))
    assert scores.true_positives.tolist() == [2, 1]
    np.testing.assert_allclose(scores.average_precision, [2 / 3, 1 / 4])
    np.testing.assert_allclose(scores.f1, [4 / 5, 2 / 5])


def test_two_halves_of_one_object_do_not_both_count() -> None:
    truth = np.ones((1, 4), int)
    found = np.array([[1, 1, 2, 2]])
    scores = average_precision(found, truth, (0.5,))
    assert (scores.true_positives[0], scores.false_positives[0], scores.false_negatives[0]) == (1, 1, 0)


def test_counts_of_images_add_up() -> None:
    truth = np.array([[1, 1, 0, 2]])
    both = average_precision(truth, truth, (0.5,)) + average_precision(np.zeros_like(truth), truth, (0.5,))
    assert (both.true_positives[0], both.false_negatives[0]) == (2, 2)
    with pytest.raises(ValueError, match="Cannot add"):
        both + average_precision(truth, truth, (0.6,))


def test_nothing_found_where_nothing_is_is_right() -> None:
    empty = np.zeros((4, 4), np.uint16)
    assert average_precision(empty, empty, (0.5,)).average_precision.tolist() == [1.0]
    assert average_precision(empty, empty + 1, (0.5,)).average_precision.tolist() == [0.0]


def test_seventy_thousand_objects_are_all_matched() -> None:
    rows, columns = np.mgrid[:1064, :1064]
    truth = rows // 4 * 266 + columns // 4 + 1
    assert average_precision(truth[::-1], truth, (0.5,)).true_positives.tolist() == [266 * 266]


@pytest.mark.parametrize("spoil", [
    lambda values: values[:-1], lambda values: values - 5, lambda values: values.astype(float)])
def test_masks_that_cannot_be_compared_are_refused(spoil: object) -> None:
    truth = np.ones((4, 4), np.int64)
    with pytest.raises(ImageError):
        average_precision(spoil(truth), truth)  # type: ignore[operator]


def test_a_class_map_of_other_classes_is_refused() -> None:
    with pytest.raises(ImageError, match="3"):
        class_iou(np.full((2, 2), 3), np.ones((2, 2), int), 2)
    with pytest.raises(ImageError, match="shape"):
        class_iou(np.ones((2, 3), int), np.ones((2, 2), int), 2)


def seg_by_sets(prediction: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """As the Cell Tracking Challenge describes it, object by object."""
    scores = []
    for t in set(truth[truth > 0].tolist()):
        reference = truth == t
        best = 0.0
        for p in set(prediction[reference].tolist()) - {0}:
            found = prediction == p
            if (found & reference).sum() > 0.5 * reference.sum():
                best = (found & reference).sum() / (found | reference).sum()
        scores.append(best)
    return float(np.mean(scores)) if scores else math.nan


@settings(deadline=None)
@given(arrays(np.int32, SHAPE, elements=st.integers(0, 4)),
       arrays(np.int32, SHAPE, elements=st.sampled_from([0, 3, 9])))
def test_seg_is_the_mean_over_true_objects_of_what_covers_most_of_them(prediction: NDArray[np.int32],
                                                                      truth: NDArray[np.int32]) -> None:
    assert seg_score(prediction, truth).mean == pytest.approx(seg_by_sets(prediction, truth), nan_ok=True)


def test_half_an_object_is_not_found_and_images_are_added_by_objects() -> None:
    truth = np.zeros((4, 8), np.uint8)
    truth[:, :4], truth[:, 4:] = 1, 2
    half = np.where(np.arange(8) < 2, 5, 0) * np.ones((4, 1), int)
    assert seg_score(half, truth) == SegScore(0.0, 2)
    assert (seg_score(truth, truth) + seg_score(half, truth)).mean == 0.5
