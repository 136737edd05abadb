from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.engine.linking import MIN_IOU, MIN_WITHIN, link_planes, link_through_depth
from napari_cellbrush.errors import ImageError

stacks = arrays(np.int32, st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)),
                elements=st.sampled_from([0, 0, 1, 2, 3, 100_000]))


def balls(shape: tuple[int, int, int], centres: list[tuple[int, int, int]], radius: int) -> NDArray[np.uint16]:
    ids = np.zeros(shape, np.uint16)
    grid = np.indices(shape)
    for number, centre in enumerate(centres, start=1):
        ids[sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2] = number
    return ids


def test_balls_come_back_from_planes_numbered_at_random() -> None:
    truth = balls((20, 60, 60), [(6, 15, 15), (8, 15, 40), (12, 42, 20), (10, 42, 44)], 7)
    random = np.random.default_rng(0)
    planes = np.stack([np.concatenate([[0], 1 + random.permutation(50)])[plane] for plane in truth])
    linked = link_planes(planes, 0.01)
    assert linked.max() == 4
    assert len(set(zip(linked.ravel().tolist(), truth.ravel().tolist(), strict=True))) == 5


@settings(deadline=None, max_examples=100)
@given(ids=stacks, threshold=st.sampled_from([0.05, 0.3, 0.7, 1.0]))
def test_each_object_has_at_most_one_partner_and_as_good_ones_as_possible(ids: NDArray[np.int32],
                                                                          threshold: float) -> None:
    linked = link_planes(ids, threshold)
    np.testing.assert_array_equal(linked > 0, ids > 0)
    assert sorted(set(linked.ravel().tolist()) - {0}) == list(range(1, int(linked.max(initial=0)) + 1))
    for z, plane in enumerate(ids):
        assert len(set(zip(plane.ravel().tolist(), linked[z].ravel().tolist(), strict=True))) == len(np.unique(plane))
    for (below, above), (first, second) in zip(itertools.pairwise(ids), itertools.pairwise(linked), strict=True):
        pairs = list(itertools.product(np.unique(below[below > 0]), np.unique(above[above > 0])))
        both = {(a, b): ((below == a) & (above == b)).sum() for a, b in pairs}
        iou = {(a, b): both[a, b] / ((below == a) | (above == b)).sum() for a, b in pairs}
        within = {(a, b): both[a, b] / min((below == a).sum(), (above == b).sum()) for a, b in pairs}
        chosen = {(a, b) for a, b in pairs if first[below == a][0] == second[above == b][0]}
        alike = {pair for pair in chosen if iou[pair] >= threshold}
        assert sum(iou[pair] for pair in alike) == pytest.approx(best_sum(iou, threshold))
        taken_below, taken_above = ({pair[side] for pair in alike} for side in (0, 1))
        left = {(a, b): within[a, b] for a, b in pairs
                if iou[a, b] < MIN_IOU and a not in taken_below and b not in taken_above}
        assert all(left[pair] >= MIN_WITHIN for pair in chosen - alike)
        assert sum(left[pair] for pair in chosen - alike) == pytest.approx(best_sum(left, MIN_WITHIN))


def best_sum(table: dict[tuple[int, int], float], threshold: float) -> float:
    """Largest sum over one-to-one pairs of a table, by trying all."""
    above = sorted({b for _, b in table})
    below = sorted({a for a, _ in table})
    choices = [*above, *[None] * len(below)]
    return max((sum(table[pair] for pair in zip(below, choice, strict=True)
                    if table.get(pair, 0.0) >= threshold)
                for choice in set(itertools.permutations(choices, len(below)))), default=0.0)


def test_the_ends_of_a_body_belong_to_it_though_their_sections_are_small() -> None:
    # Planes far apart: from the outermost section to the next, discs grow tenfold.
    ids = np.zeros((7, 40, 80), np.uint16)
    rows, columns = np.indices((40, 80))
    for z, radius in enumerate((3, 10, 14, 15, 14, 10, 3)):
        ids[z] = sum(n * ((rows - 20) ** 2 + (columns - at) ** 2 <= radius**2) for n, at in ((1, 20), (2, 60)))
    np.testing.assert_array_equal(link_planes(ids), ids)


@pytest.mark.parametrize(("threshold", "n"), [(0.3, 1), (0.6, 2), (1.0, 2)])
def test_a_strict_threshold_parts_what_is_less_alike(threshold: float, n: int) -> None:
    ids = np.zeros((2, 20, 20), np.uint8)
    ids[0, 2:12, 2:12], ids[1, 2:12, 5:15] = 1, 1  # 0.54
    assert link_planes(ids, threshold).max() == n


def test_what_mostly_lies_beside_another_is_none_of_its_ends() -> None:
    ids = np.zeros((2, 20, 20), np.uint8)
    ids[0, 2:14, 2:14], ids[1, 11:17, 11:17] = 1, 1
    assert link_planes(ids).max() == 2


def test_an_empty_plane_ends_an_object() -> None:
    ids = np.array([[[1, 1]], [[0, 0]], [[1, 1]]], np.uint8)
    np.testing.assert_array_equal(link_planes(ids)[:, 0, 0], [1, 0, 2])


@pytest.mark.parametrize("ids", [np.zeros((3, 3), int), np.zeros((2, 3, 3)), np.full((1, 2, 2), -1)])
def test_what_is_no_stack_of_ids_is_refused(ids: NDArray[np.generic]) -> None:
    with pytest.raises(ImageError, match="ZYX"):
        link_planes(ids)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_a_threshold_out_of_bounds_is_refused(threshold: float) -> None:
    with pytest.raises(ImageError, match=str(threshold)):
        link_planes(np.zeros((1, 2, 2), np.uint8), threshold)


def test_frames_are_linked_one_by_one_in_any_order_of_axes() -> None:
    ids = np.zeros((2, 3, 4, 4), np.uint8)
    ids[0, 0, 1, 1], ids[0, 1, 1, 1], ids[1, 1:, 2, 2] = 3, 4, 5
    expected = np.zeros_like(ids)
    expected[0, :2, 1, 1], expected[1, 1:, 2, 2] = 1, 2
    np.testing.assert_array_equal(link_through_depth(ids, "TZ"), expected)
    np.testing.assert_array_equal(link_through_depth(ids.swapaxes(0, 1), "ZT"), expected.swapaxes(0, 1))
