from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from napari_cellbrush.config import DEFAULT_CLASSES, classes_from_names
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.annotation import RING_PX, accepted_to_classes, objects_to_classes, taught_by_objects
from napari_cellbrush.engine.proofreading import (
    Boxes,
    Edit,
    around_accepted,
    crossed,
    deleted,
    filled,
    free_ids,
    merged,
    next_object,
    runs_of_pixels,
    split,
)
from napari_cellbrush.errors import AnnotationError


def disc(row: int, column: int, radius: int, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def plane_of(*masks: np.ndarray) -> np.ndarray:
    plane = np.zeros(masks[0].shape, np.uint16)
    for number, mask in enumerate(masks, start=1):
        plane[mask] = number
    return plane


def applied(plane: np.ndarray, edit: Edit) -> np.ndarray:
    after = plane.copy()
    rows, columns, values = edit.pixels()
    after[rows, columns] = values
    return after


# ------------------------------------------------------------------------------------------------- where objects are


@given(arrays(np.uint16, (9, 11), elements=st.integers(0, 5)), arrays(np.uint16, (9, 11), elements=st.integers(0, 5)),
       st.tuples(*[st.integers(0, 8)] * 2), st.tuples(*[st.integers(0, 10)] * 2))
@settings(max_examples=80, deadline=None)
def test_boxes_stay_right_when_a_window_changes(before, other, rows, columns):
    plane = before.copy()
    boxes = Boxes(plane)
    window = slice(min(rows), max(rows) + 1), slice(min(columns), max(columns) + 1)
    plane[window] = other[window]
    boxes.update(window, set(np.unique([before[window], other[window]]).tolist()))
    assert dict(boxes) == dict(Boxes(plane))


def test_boxes_of_huge_ids_with_gaps_are_found():
    plane = np.zeros((5, 6), np.uint32)
    plane[1:3, 2:5], plane[4, 0] = 4_000_000_000, 7
    assert dict(Boxes(plane)) == {4_000_000_000: (slice(1, 3), slice(2, 5)), 7: (slice(4, 5), slice(0, 1))}


def test_only_objects_that_are_seen_as_a_whole_lie_within_a_window():
    boxes = Boxes(plane_of(disc(10, 10, 5), disc(10, 40, 5), disc(50, 10, 5)))
    assert boxes.within((slice(0, 30), slice(0, 42))) == {1}


def test_next_goes_through_what_is_not_done_and_around():
    boxes = Boxes(np.array([[1, 2, 4, 7]]))
    assert [next_object(boxes, current, {4}) for current in (0, 1, 2, 5, 7)] == [1, 2, 7, 7, 1]
    assert [next_object(boxes, current, {4}, -1) for current in (7, 2, 1)] == [2, 1, 7]
    assert next_object(boxes, 4, {1, 2, 4, 7}) == 0


def test_new_ids_follow_the_highest_and_then_fill_gaps_of_a_narrow_type():
    assert free_ids(np.array([3, 9], np.uint8), 2) == [10, 11]
    full = np.delete(np.arange(256), [4, 9]).astype(np.uint8)
    assert free_ids(full, 2) == [4, 9]
    with pytest.raises(AnnotationError, match="uint8"):
        free_ids(full, 3)


# ------------------------------------------------------------------------------------------------------ corrections


def test_merging_keeps_the_first_id_and_every_pixel():
    plane = plane_of(disc(20, 20, 8), disc(20, 33, 8), disc(45, 60, 6))
    edit = merged(plane, Boxes(plane), 2, 1)
    after = applied(plane, edit)
    np.testing.assert_array_equal(after == 2, (plane == 1) | (plane == 2))
    np.testing.assert_array_equal(after == 3, plane == 3)
    assert edit.touched == {1, 2}


def test_merging_closes_a_narrow_gap_but_takes_nothing_from_a_neighbour():
    plane = np.zeros((30, 40), np.uint16)
    plane[10:20, 5:15], plane[10:20, 18:28] = 1, 2
    plane[10:12, 15:18] = 3
    after = applied(plane, merged(plane, Boxes(plane), 1, 2))
    assert ndimage.label(after == 1)[1] == 1
    np.testing.assert_array_equal(after == 3, plane == 3)


def test_objects_far_apart_become_one_of_two_pieces():
    plane = plane_of(disc(10, 10, 5), disc(50, 70, 5))
    after = applied(plane, merged(plane, Boxes(plane), 1, 2))
    assert np.count_nonzero(after == 1) == np.count_nonzero(plane)


@given(st.floats(0, np.pi), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_a_line_across_parts_an_object_without_losing_a_pixel(angle, seed):
    plane = plane_of(disc(30, 40, 14))
    step = np.array([np.sin(angle), np.cos(angle)])
    middle = np.array([30, 40]) + np.random.default_rng(seed).integers(-5, 6, 2)
    path = [tuple(middle - 25 * step), tuple(middle + 25 * step)]
    after = applied(plane, split(plane, Boxes(plane), 1, path, itertools.count(2)))
    np.testing.assert_array_equal(after > 0, plane > 0)
    sizes = [np.count_nonzero(after == number) for number in (1, 2)]
    # The line's own pixels may go to either side.
    assert sizes[0] >= sizes[1] - 30 > -30
    assert after.max() == 2
    # Each side of the line is one part, but for the pixels on it.
    rows, columns = np.nonzero(plane)
    side = (rows - middle[0]) * step[1] - (columns - middle[1]) * step[0]
    for far in (side > 2, side < -2):
        assert len(set(after[rows[far], columns[far]])) == 1


def test_a_curved_line_parts_and_one_that_ends_inside_does_not():
    plane = plane_of(disc(30, 40, 14))
    boxes = Boxes(plane)
    curve = [(10, 30), (30, 38), (35, 40), (50, 55)]
    assert applied(plane, split(plane, boxes, 1, curve, itertools.count(9))).max() == 9
    with pytest.raises(AnnotationError, match="does not part"):
        split(plane, boxes, 1, [(10, 40), (30, 40)], itertools.count(2))


def test_the_pieces_of_an_object_that_a_line_does_not_cross_keep_its_id():
    plane = np.where(disc(20, 20, 10) | disc(45, 65, 12), np.uint16(4), np.uint16(0))
    after = applied(plane, split(plane, Boxes(plane), 4, [(20, 0), (20, 40)], itertools.count(5)))
    assert set(np.unique(after[disc(45, 65, 12)])) == {4}
    assert set(np.unique(after[disc(20, 20, 10)])) == {4, 5}


def test_the_object_that_a_line_means_is_the_one_it_crosses_most():
    plane = plane_of(disc(20, 20, 12), disc(20, 40, 7))
    assert crossed(plane, [(20, 2), (20, 36)]) == 1
    assert crossed(plane, [(59, 0), (59, 30)]) == 0
    assert crossed(plane, [(-50, -10), (-20, 200)]) == 0


def test_deleting_and_filling_change_their_object_alone():
    ring = disc(20, 20, 10) & ~disc(20, 20, 4)
    plane = plane_of(ring, disc(20, 20, 1))
    boxes = Boxes(plane)
    after = applied(plane, filled(plane, boxes, 1))
    np.testing.assert_array_equal(after > 0, disc(20, 20, 10))
    np.testing.assert_array_equal(after == 2, plane == 2)
    gone = applied(plane, deleted(plane, boxes, 1))
    np.testing.assert_array_equal(gone, np.where(plane == 2, 2, 0))
    with pytest.raises(AnnotationError, match="no holes"):
        filled(plane, boxes, 2)


def test_a_correction_looks_at_the_surroundings_of_its_objects_alone():
    """What it does not look at may be anything: the same edit comes out of a cut-out of the plane."""
    plane = plane_of(disc(20, 20, 8), disc(20, 33, 8))
    large = np.full((2000, 2000), 9, np.uint16)
    large[500:560, 700:780] = plane
    boxes = {1: (slice(512, 529), slice(712, 729)), 2: (slice(512, 529), slice(725, 742))}
    edit = merged(large, boxes, 1, 2)
    assert edit.before.size < 2500
    assert applied(large, edit)[520, 733] == 1


# ------------------------------------------------------------------------------------------------ what is accepted


@given(arrays(bool, (7, 9)))
@settings(max_examples=60, deadline=None)
def test_emptied_places_come_back_pixel_by_pixel(mask):
    accepted = Accepted().with_emptied(runs_of_pixels((3,), *np.nonzero(mask)))
    np.testing.assert_array_equal(accepted.empty_at((3,), mask.shape), mask)
    assert not accepted.empty_at((2,), mask.shape).any()


id_planes = arrays(np.uint16, (2, 8, 10), elements=st.integers(0, 6))


@given(id_planes, id_planes, st.frozensets(st.integers(1, 6)), arrays(bool, (8, 10)), st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_later_predictions_never_change_what_is_accepted(new, earlier, ids, mask, min_object_px):
    accepted = Accepted(ids).with_emptied(runs_of_pixels((1,), *np.nonzero(mask)))
    joined = around_accepted(new, earlier, accepted, min_object_px)
    locked = np.isin(earlier, list(ids))
    np.testing.assert_array_equal(joined[locked], earlier[locked])
    # No new object took an accepted number, and none grew or fell together with another.
    assert not np.isin(joined[~locked], list(ids)).any()
    pairs = {(int(a), int(b)) for a, b in zip(joined[~locked].flat, new[~locked].flat, strict=True) if a}
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    # Where an object was deleted, and none is now, there is none again.
    emptied = np.stack([np.zeros_like(mask), mask]) & (earlier == 0)
    assert not joined[emptied].any()


def test_a_new_object_under_an_accepted_one_is_the_same_and_a_neighbour_gives_way():
    earlier = np.zeros((40, 60), np.uint16)
    earlier[10:20, 10:20] = 5
    new = np.zeros((40, 60), np.uint16)
    new[9:21, 9:19], new[10:20, 19:31], new[30:35, 40:50] = 1, 5, 3
    joined = around_accepted(new, earlier, Accepted(frozenset({5})))
    assert not joined[9, 9:19].any()
    assert (joined[10:20, 10:20] == 5).all()
    (neighbour,) = set(np.unique(joined[10:20, 20:31]))
    assert neighbour not in (0, 5)
    np.testing.assert_array_equal(joined[30:35, 40:50], 3)


def test_what_was_deleted_does_not_come_back():
    mask = disc(20, 20, 8)
    accepted = Accepted().with_emptied(runs_of_pixels((), *np.nonzero(mask)))
    new = plane_of(disc(20, 21, 8), disc(45, 60, 6))
    joined = around_accepted(new, np.zeros_like(new), accepted)
    assert not joined[:35, :35].any()
    assert (joined[disc(45, 60, 6)] > 0).all()


def test_nothing_accepted_changes_nothing():
    new = plane_of(disc(20, 21, 8), disc(45, 60, 6))
    np.testing.assert_array_equal(around_accepted(new, new * 0, Accepted()), new)
    ids = new.copy()
    Accepted(frozenset({2})).keep_only(ids)
    np.testing.assert_array_equal(ids, np.where(new == 2, 2, 0))


# ------------------------------------------------------------------------------------------------- what they teach


def test_accepted_objects_teach_inside_rim_and_a_ring_of_background():
    ids = plane_of(disc(20, 20, 8), disc(20, 33, 6), disc(50, 60, 5))
    accepted = np.isin(ids, [1])
    targets = accepted_to_classes(ids, accepted)
    np.testing.assert_array_equal(targets[accepted], objects_to_classes(np.where(accepted, ids, 0))[accepted])
    assert {2, 3} == set(np.unique(targets[accepted]))
    distance = ndimage.distance_transform_edt(~accepted)
    ring = (distance > 0) & (distance <= RING_PX)
    np.testing.assert_array_equal(targets == 1, ring & (ids == 0))
    assert not targets[(ids > 1) | (distance > RING_PX)].any()


def test_touching_accepted_objects_keep_a_boundary_between_them():
    ids = plane_of(disc(20, 20, 8), disc(20, 35, 8))
    targets = accepted_to_classes(ids, ids > 0)
    cores = ndimage.label(targets == 2)[0]
    assert cores[20, 20] != cores[20, 35] != 0


def test_a_deleted_object_teaches_background_until_something_is_there_again():
    empty = disc(20, 20, 8)
    ids = plane_of(disc(20, 24, 3))
    targets = accepted_to_classes(ids, np.zeros(ids.shape, bool), empty)
    np.testing.assert_array_equal(targets == 1, empty & (ids == 0))
    assert not targets[ids > 0].any()


def test_strokes_win_over_objects_and_elsewhere_objects_teach():
    ids = plane_of(disc(20, 20, 8), disc(45, 60, 6))
    strokes = np.zeros(ids.shape, np.uint8)
    strokes[18:22, 10:30] = 1
    labels = taught_by_objects(strokes, ids, Accepted(frozenset({1})), DEFAULT_CLASSES)
    np.testing.assert_array_equal(labels[strokes > 0], 1)
    dense = accepted_to_classes(ids, ids == 1)
    np.testing.assert_array_equal(labels[strokes == 0], dense[strokes == 0])
    assert not strokes[0].any()


def test_planes_of_a_stack_teach_by_themselves():
    ids = np.stack([plane_of(disc(20, 20, 8)), plane_of(disc(45, 60, 6)) * 2])
    empty = runs_of_pixels((0,), *np.nonzero(disc(45, 20, 5)))
    labels = taught_by_objects(np.zeros(ids.shape, np.uint8), ids, Accepted(frozenset({2}), frozenset(empty)),
                               DEFAULT_CLASSES)
    np.testing.assert_array_equal(labels[0], disc(45, 20, 5))
    np.testing.assert_array_equal(labels[1], accepted_to_classes(ids[1], ids[1] == 2))


def test_of_several_kinds_of_cells_an_object_teaches_the_one_painted_in_it():
    classes = classes_from_names(["background", "round", "long", "boundary"])
    ids = plane_of(disc(20, 20, 8), disc(20, 50, 8), disc(45, 30, 8))
    strokes = np.zeros(ids.shape, np.uint8)
    strokes[20, 18:23], strokes[20, 48:53], strokes[21, 48:50] = 2, 3, 2
    labels = taught_by_objects(strokes, ids, Accepted(frozenset({1, 2, 3})), classes)
    rim = accepted_to_classes(ids, ids > 0) == 3
    assert set(np.unique(labels[(ids == 1) & ~rim])) == {2}
    assert set(np.unique(labels[(ids == 2) & ~rim & (strokes == 0)])) == {3}
    assert set(np.unique(labels[(ids == 3) & ~rim])) == {0}
    assert (labels[rim & (strokes == 0)] == 4).all()
