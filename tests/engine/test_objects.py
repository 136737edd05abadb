from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction

from napari_cellbrush.config import DEFAULT_CLASSES, ClassDefinition, ObjectsConfig, classes_from_names
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.metrics import average_precision
from napari_cellbrush.engine.objects import objects_from_classes, objects_from_probabilities
from napari_cellbrush.errors import ImageError
from napari_cellbrush.events import StopToken

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


# ------------------------------------------------------------------------------------------- from probabilities


def two_discs(gap: float, boundary: float, shape: tuple[int, int] = (60, 100)) -> NDArray[np.float32]:
    """Sure cells at columns 30 and 30 + gap, radius 14, with a boundary of some probability between them."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    left, right = (np.hypot(rows - 30, columns - column) for column in (30, 30 + gap))
    inside = np.minimum(left, right) < 14
    between = inside & (np.abs(left - right) < 3)
    cell = np.where(inside, np.where(between, 0.95 - boundary, 0.95), 0.05)
    rim = np.where(between, boundary, 0.0)
    return np.stack([1 - cell - rim, cell, rim]).astype(np.float32)


def test_a_boundary_too_faint_to_win_still_parts_two_cells() -> None:
    probabilities = two_discs(24, boundary=0.42)
    class_map = (probabilities.argmax(axis=0) + 1).astype(np.uint8)
    assert objects_from_classes(class_map, DEFAULT_CLASSES).max() == 1
    ids = objects_from_probabilities(probabilities, DEFAULT_CLASSES, ObjectsConfig(smoothing_px=1))
    assert ids.max() == 2
    np.testing.assert_array_equal(np.unique(ids[:, 30]), [0, 1])
    np.testing.assert_array_equal(np.unique(ids[:, 54]), [0, 2])
    assert abs(int((ids == 1).sum()) - int((ids == 2).sum())) < 40


@given(arrays(np.int8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(-8, 9)),
       st.integers(2, 10))
@settings(deadline=None)
def test_there_is_one_object_for_each_maximum_of_sufficient_dynamics(tenths: NDArray[np.int8], least_dip: int) -> None:
    inside = tenths >= -7
    score = np.where(inside, tenths / 10 + 0.05, 0)
    probabilities = np.stack([1.0 - inside, inside * (1 + score) / 2, inside * (1 - score) / 2]).astype(np.float32)
    config = ObjectsConfig(smoothing_px=0, max_hole_px=0, min_object_px=0, least_dip=least_dip / 10 - 0.08)
    ids = objects_from_probabilities(probabilities, DEFAULT_CLASSES, config)
    # Whatever lies outside is infinitely deep.
    depths = np.pad(np.where(inside, tenths, -100).astype(np.int32), 1, constant_values=-100)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    # Maxima that shallower dips part become one plateau.
    levelled = reconstruction(depths - (least_dip - 1), depths, footprint=cross)
    maxima = label(local_maxima(levelled, connectivity=1) & (depths > -100), connectivity=1)
    # Where even the maximum is rather a boundary, there is no object.
    assert ids.max(initial=0) == len(np.unique(maxima[(maxima > 0) & (depths >= 0)]))


@pytest.mark.parametrize("tenths", range(1, 11))
def test_a_maximum_between_two_steps_is_one_object(tenths: int) -> None:
    probabilities = np.stack([np.zeros((30, 30)), np.full((30, 30), 0.5), np.full((30, 30), 0.5)]).astype(np.float32)
    probabilities[:, 10:20, 10:20] = np.array([1 - tenths / 10, tenths / 10, 0], np.float32)[:, None, None]
    config = ObjectsConfig(smoothing_px=0, least_certainty=0, least_dip=0.05)
    assert objects_from_probabilities(probabilities, DEFAULT_CLASSES, config).max() == 1


def test_without_a_boundary_class_narrow_necks_are_cut_instead() -> None:
    probabilities = two_discs(40, boundary=0.0)[:2]
    probabilities[:, 27:34, 40:60] = np.array([0.05, 0.95])[:, None, None]
    classes = classes_from_names(["background", "cell"])
    assert objects_from_probabilities(probabilities, classes, ObjectsConfig(neck_px=0)).max() == 1
    assert objects_from_probabilities(probabilities, classes).max() == 2


def a_sure_and_a_faint_disc() -> NDArray[np.float32]:
    """The one on the left is a cell with a probability of 0.7."""
    probabilities = two_discs(40, boundary=0.0)
    probabilities[:, :, :50] = 0.45 * probabilities[:, :, :50] + np.array([0.275, 0.275, 0])[:, None, None]
    return probabilities


def test_a_cell_fainter_than_the_dip_is_not_lost() -> None:
    config = ObjectsConfig(least_dip=0.8, least_certainty=0.6)
    probabilities = a_sure_and_a_faint_disc()
    assert (probabilities[1, :, :50] - probabilities[2, :, :50]).max() < config.least_dip
    assert objects_from_probabilities(probabilities, DEFAULT_CLASSES, config).max() == 2


@pytest.mark.parametrize(("least", "n"), [(0.0, 2), (0.69, 2), (0.71, 1), (0.96, 0)])
def test_what_is_nowhere_certain_is_no_object(least: float, n: int) -> None:
    ids = objects_from_probabilities(a_sure_and_a_faint_disc(), DEFAULT_CLASSES, ObjectsConfig(least_certainty=least))
    assert ids.max() == n


def test_an_uncertain_cell_is_not_given_to_a_certain_one_that_it_touches() -> None:
    probabilities = np.zeros((3, 20, 41), np.float32)
    probabilities[1, :, :20], probabilities[:2, :, 21:] = 1, np.array([0.35, 0.65])[:, None, None]
    probabilities[1:, :, 20] = np.array([0.2, 0.8])[:, None]
    both, certain = (objects_from_probabilities(probabilities, DEFAULT_CLASSES,
                                                ObjectsConfig(smoothing_px=0, least_certainty=least))
                     for least in (0.0, 0.9))
    np.testing.assert_array_equal(np.unique(both), [1, 2])
    np.testing.assert_array_equal(certain, np.where(both == both[0, 0], 1, 0))


def test_what_was_not_segmented_makes_nothing_beside_it_certain() -> None:
    probabilities = a_sure_and_a_faint_disc()
    probabilities[:, :, 30:] = 0
    assert objects_from_probabilities(probabilities, DEFAULT_CLASSES).max() == 0


def test_a_thin_object_is_certain_however_much_is_smoothed() -> None:
    probabilities = np.zeros((3, 30, 60), np.float32)
    probabilities[1, 14:17, 5:55] = 1
    probabilities[0] = 1 - probabilities[1]
    assert objects_from_probabilities(probabilities, DEFAULT_CLASSES).max() == 1


def test_a_faint_boundary_between_faint_pieces_parts_none() -> None:
    """Cell and boundary are about equally likely all over, which the network's noise decides: nothing to part."""
    probabilities = two_discs(24, boundary=0.0)
    inside, doubt = probabilities[1] > 0.5, 0.1 * (np.indices(probabilities.shape[1:])[1] // 5 % 2) - 0.05
    probabilities[1:] = np.where(inside, np.stack([0.475 + doubt, 0.475 - doubt]), probabilities[1:])
    assert objects_from_probabilities(probabilities, DEFAULT_CLASSES, ObjectsConfig(smoothing_px=0)).max() == 1


def test_holes_are_filled_up_to_the_given_width() -> None:
    probabilities = two_discs(40, boundary=0.0)
    probabilities[:, 27:34, 27:34] = np.array([1, 0, 0])[:, None, None]
    probabilities[:, 26:37, 66:77] = np.array([1, 0, 0])[:, None, None]
    ids = objects_from_probabilities(probabilities, DEFAULT_CLASSES, ObjectsConfig(smoothing_px=0, max_hole_px=7))
    assert ids[30, 30] == ids[30, 20] > 0
    assert ids[30, 70] == 0 < ids[30, 60]


def test_a_gap_between_two_cells_is_no_hole() -> None:
    columns = np.arange(20)[None, :].repeat(20, axis=0)
    cell = np.where(np.abs(columns - 9.5) < 2, 0.0, 1.0)
    cell[[0, 1, -2, -1]] = 1
    boundary = np.zeros_like(cell)
    boundary[[0, 1, -2, -1], 8:12] = 1
    probabilities = np.stack([1 - np.maximum(cell, boundary), np.maximum(cell - boundary, 0), boundary])
    ids = objects_from_probabilities(probabilities.astype(np.float32), DEFAULT_CLASSES, ObjectsConfig(smoothing_px=0))
    assert ids.max() == 2
    assert not ids[4:16, 9:11].any()


def test_objects_at_the_border_are_left_out_if_asked() -> None:
    probabilities = two_discs(40, boundary=0.0)[:, :, :75]
    assert objects_from_probabilities(probabilities, DEFAULT_CLASSES).max() == 2
    ids = objects_from_probabilities(probabilities, DEFAULT_CLASSES, ObjectsConfig(clear_border=True))
    assert ids.max() == ids[30, 30] == 1
    assert not ids[:, 60:].any()


def test_smoothing_swallows_specks_and_keeps_outlines() -> None:
    probabilities = two_discs(40, boundary=0.0)
    truth = probabilities[1] > 0.5
    random = np.random.default_rng(0)
    noisy = np.where(random.random(truth.shape) < 0.08, probabilities[[1, 0, 2]], probabilities)
    rough = objects_from_probabilities(noisy, DEFAULT_CLASSES, ObjectsConfig(smoothing_px=0, min_object_px=0))
    smooth = objects_from_probabilities(noisy, DEFAULT_CLASSES, ObjectsConfig(min_object_px=0))
    assert rough.max() > 50
    assert smooth.max() == 2
    assert ((smooth > 0) != truth).mean() < 0.02


def test_planes_of_a_stack_are_those_of_the_planes_alone_and_a_stop_leaves_the_rest_empty() -> None:
    plane = two_discs(40, boundary=0.0)
    stack = np.stack([plane, plane[:, ::-1], plane], axis=1)
    ids = objects_from_probabilities(stack, DEFAULT_CLASSES)
    np.testing.assert_array_equal(ids[2], np.where(ids[0] > 0, ids[0] + 4, 0))
    stop = StopToken()
    stop.stop()
    assert not objects_from_probabilities(stack, DEFAULT_CLASSES, stop=stop).any()
    assert not objects_from_classes(np.full((2, 3, 3), 2, np.uint8), DEFAULT_CLASSES, stop=stop).any()


def test_where_nothing_was_segmented_nothing_is_found() -> None:
    assert not objects_from_probabilities(np.zeros((3, 9, 9), np.float32), DEFAULT_CLASSES).any()
    assert objects_from_probabilities(np.zeros((3, 0, 9), np.float32), DEFAULT_CLASSES).shape == (0, 9)


@pytest.mark.parametrize("shape", [(2, 5, 5), (5, 5)])
def test_probabilities_of_other_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"3 classes"):
        objects_from_probabilities(np.zeros(shape, np.float32), DEFAULT_CLASSES)
