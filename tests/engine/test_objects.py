from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES, ClassDefinition, classes_from_names
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.metrics import average_precision
from napari_cellbrush.engine.objects import objects_from_classes

FOUR = ((0, 1), (1, 0), (0, -1), (-1, 0))
class_maps = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 3]))


def as_map(*rows: str) -> NDArray[np.uint8]:
    return np.array([[int(letter) for letter in row] for row in rows], np.uint8)


def steps_through(class_map: NDArray[np.uint8], starts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fewest steps over edges from the starts through boundary pixels, by plain breadth-first search."""
    steps = np.where(starts, 0.0, np.inf)
    queue = deque(map(tuple, np.argwhere(starts)))
    while queue:
        row, column = queue.popleft()
        for down, right in FOUR:
            place = (row + down, column + right)
            inside = 0 <= place[0] < class_map.shape[0] and 0 <= place[1] < class_map.shape[1]
            if inside and class_map[place] == 3 and steps[place] == np.inf:
                steps[place] = steps[row, column] + 1
                queue.append(place)
    return steps


@settings(deadline=None, max_examples=150)
@given(class_map=class_maps)
def test_each_boundary_pixel_belongs_to_an_object_that_reaches_it_first(class_map: NDArray[np.uint8]) -> None:
    ids = objects_from_classes(class_map, DEFAULT_CLASSES)
    cells = class_map == 2
    steps = {i: steps_through(class_map, cells & (ids == i)) for i in range(1, int(ids.max()) + 1)}
    for place in np.argwhere(class_map == 3):
        row, column = place
        nearest = min((s[row, column] for s in steps.values()), default=np.inf)
        if nearest == np.inf:
            assert ids[row, column] == 0
        else:
            assert steps[int(ids[row, column])][row, column] == nearest
    assert ((ids > 0) | (class_map == 3))[cells].all()
    assert not ids[(class_map == 0) | (class_map == 1)].any()


@settings(deadline=None, max_examples=100)
@given(class_map=class_maps, smallest=st.integers(0, 9))
def test_ids_have_no_gaps_and_small_objects_are_left_out(class_map: NDArray[np.uint8], smallest: int) -> None:
    every = objects_from_classes(class_map, DEFAULT_CLASSES)
    kept = objects_from_classes(class_map, DEFAULT_CLASSES, smallest)
    sizes = np.bincount(every.ravel())
    large = [i for i in range(1, len(sizes)) if sizes[i] >= smallest]
    assert sorted(set(kept.ravel().tolist()) - {0}) == list(range(1, len(large) + 1))
    for new, old in enumerate(large, start=1):
        np.testing.assert_array_equal(kept == new, every == old)


def test_cells_that_touch_at_a_corner_are_two_and_at_an_edge_one() -> None:
    assert objects_from_classes(as_map("21", "12"), DEFAULT_CLASSES).max() == 2
    assert objects_from_classes(as_map("22", "12"), DEFAULT_CLASSES).max() == 1


def test_two_cells_share_the_boundary_between_them() -> None:
    ids = objects_from_classes(as_map("1233332"), DEFAULT_CLASSES)
    np.testing.assert_array_equal(ids, [[0, 1, 1, 1, 2, 2, 2]])


def test_a_boundary_without_a_cell_is_no_object() -> None:
    assert not objects_from_classes(as_map("13331"), DEFAULT_CLASSES).any()


def test_touching_cells_of_different_classes_stay_two_objects() -> None:
    classes = classes_from_names(["background", "round cell", "long cell"])
    np.testing.assert_array_equal(objects_from_classes(as_map("1223"), classes), [[0, 1, 1, 2]])


def test_roles_count_not_positions() -> None:
    classes = tuple(ClassDefinition(name=role, color="#000000", role=role)  # type: ignore[arg-type]
                    for role in ("boundary", "object", "background"))
    np.testing.assert_array_equal(objects_from_classes(as_map("321233"), classes), [[0, 1, 1, 2, 0, 0]])


def test_planes_of_a_stack_go_on_counting() -> None:
    stack = np.stack([as_map("212"), as_map("111"), as_map("122")])
    np.testing.assert_array_equal(objects_from_classes(stack, DEFAULT_CLASSES), [[[1, 0, 2]], [[0, 0, 0]], [[0, 3, 3]]])


@pytest.mark.parametrize(("n", "dtype"), [(255 * 257, np.uint16), (65_536, np.uint32)])
def test_ids_beyond_16_bits_are_exact(n: int, dtype: type) -> None:
    class_map = np.ones((2, 2 * n), np.uint8)
    class_map[0, ::2] = 2
    ids = objects_from_classes(class_map, DEFAULT_CLASSES)
    assert ids.dtype == dtype
    np.testing.assert_array_equal(ids[0, ::2], np.arange(1, n + 1))


def test_discs_come_back_from_their_classes() -> None:
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:160, :160]
    truth = np.zeros((160, 160), np.uint16)
    for number, (row, column) in enumerate(random.integers(10, 150, (25, 2)), start=1):
        truth[(rows - row) ** 2 + (columns - column) ** 2 < 10**2] = number
    found = objects_from_classes(objects_to_classes(truth), DEFAULT_CLASSES, min_object_px=1)
    assert average_precision(found, truth, [0.7]).average_precision[0] > 0.9


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 40)])
def test_odd_sizes_are_fine(shape: tuple[int, int]) -> None:
    assert objects_from_classes(np.full(shape, 2, np.uint8), DEFAULT_CLASSES).shape == shape
