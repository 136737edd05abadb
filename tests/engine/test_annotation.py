from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import disk

from napari_cellbrush.config import DEFAULT_CLASSES, classes_from_names
from napari_cellbrush.engine.annotation import (
    CORRECTIONS_PER_STROKE,
    GAP_PX,
    Annotation,
    LabelledPlane,
    Split,
    StrokeSampler,
    collect_annotation,
    hold_out,
    in_classes,
    objects_to_classes,
    rescaled,
)
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.errors import AnnotationError

SEEDS = st.integers(0, 2**31)
EIGHT = np.ones((3, 3), bool)
TWO = classes_from_names(["background", "cell"])


# ---------------------------------------------------------------- collecting


def collect(labels: Any, shape: tuple[int, ...] = (20, 30), axes: str = "YX") -> Annotation:
    return collect_annotation([Planes(np.zeros(shape, np.uint8), axes, "embryo")], [labels], DEFAULT_CLASSES)


def two_strokes(shape: tuple[int, ...] = (20, 30), dtype: Any = np.uint8) -> NDArray[Any]:
    labels = np.zeros(shape, dtype)
    labels[..., 2:4, 3:10], labels[..., 9:11, 3:10] = 1, 3
    return labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int8, np.int64, np.float32, np.float64])
def test_every_whole_number_type_is_taken(dtype: Any) -> None:
    annotation = collect(two_strokes(dtype=dtype))
    assert annotation.pixels_per_class == (14, 0, 14)
    assert annotation.n_pixels == 28
    assert annotation.planes[0].labels.dtype == np.uint8


@pytest.mark.parametrize("lazily", [da.from_array, zarr.array])
def test_lazy_stacks_are_read_plane_by_plane_and_empty_planes_dropped(lazily: Any) -> None:
    labels = np.zeros((2, 5, 20, 30), np.uint8)
    labels[0, 3], labels[1, 1] = two_strokes(), two_strokes()
    annotation = collect(lazily(labels), (2, 5, 20, 30), "TZYX")
    assert [plane.index for plane in annotation.planes] == [(0, 3), (1, 1)]
    np.testing.assert_array_equal(annotation.planes[1].labels, two_strokes())


def test_channels_need_no_labels_of_their_own() -> None:
    assert collect(two_strokes(), (4, 20, 30), "CYX").n_pixels == 28


def test_several_images_are_told_apart() -> None:
    images = [Planes(np.zeros((20, 30)), "YX"), Planes(np.zeros((20, 30)), "YX")]
    only_first, only_third = two_strokes(), two_strokes()
    only_first[only_first == 3], only_third[only_third == 1] = 0, 0
    annotation = collect_annotation(images, [only_first, only_third], DEFAULT_CLASSES)
    assert [plane.image for plane in annotation.planes] == [0, 1]


def test_later_painting_does_not_reach_a_collected_annotation() -> None:
    labels = two_strokes()
    annotation = collect(labels)
    labels[:] = 2
    assert annotation.planes[0].labels.max() == 3
    assert (annotation.planes[0].labels == 0).any()


@pytest.mark.parametrize(("labels", "words"), [
    (two_strokes((21, 30)), [r"\(21, 30\)", r"\(20, 30\)", "embryo"]),
    (np.zeros((20, 30), np.uint8), ["empty"]),
    (np.where(two_strokes() == 1, 1, 0), ["'background'", "two classes"]),
    (two_strokes() == 1, ["'background'", "two classes"]),
    (np.where(two_strokes() == 1, 4, 1), ["4", "3 classes"]),
    (np.where(two_strokes() == 1, -1, 1), ["-1"]),
    (np.where(two_strokes() == 1, 70_000, 1), ["70000"]),
    (np.where(two_strokes() == 1, 256, 1), ["256"]),
    (two_strokes() * 0.5, ["whole", "float64"]),
    (np.where(two_strokes() == 1, np.nan, 1), ["whole"]),
    (np.where(two_strokes() == 1, np.inf, 1), ["whole"]),
    (two_strokes().astype(complex), ["whole", "complex"]),
    (two_strokes().astype(str), ["whole"]),
])
def test_labels_that_cannot_be_used_are_refused_in_words(labels: Any, words: list[str]) -> None:
    with pytest.raises(AnnotationError) as refusal:
        collect(labels)
    for word in words:
        assert refusal.match(word)
    assert refusal.value.remedy


def test_as_many_labels_as_images_are_needed() -> None:
    with pytest.raises(AnnotationError, match="1 image"):
        collect_annotation([Planes(np.zeros((20, 30)), "YX")], [], DEFAULT_CLASSES)


# ---------------------------------------------------------------- objects to classes


def cores(classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    return label(classes == 2, connectivity=1)


def test_the_rim_is_inside_the_object_and_as_thick_as_asked() -> None:
    ids = np.zeros((40, 40), int)
    ids[10:30, 10:30] = 9
    classes = objects_to_classes(ids, boundary_px=2)
    expected = np.ones((40, 40), np.uint8)
    expected[10:30, 10:30], expected[12:28, 12:28] = 3, 2
    corners = np.abs(np.abs(np.mgrid[:40, :40] - 19.5) - 7.5).sum(0) < 1
    np.testing.assert_array_equal(classes[~corners], expected[~corners])


@pytest.mark.parametrize("boundary_px", [1, 2, 3, 4, 5, 8])
def test_the_rim_of_a_disc_is_about_round(boundary_px: int) -> None:
    ids = np.pad(disk(40), 5).astype(int)
    rim = objects_to_classes(ids, boundary_px) == 3
    depth = ndimage.distance_transform_edt(ids)
    assert rim[(depth > 0) & (depth <= boundary_px)].all()
    assert not rim[depth > 1.15 * boundary_px + 0.1].any()


def test_pieces_that_meet_at_a_corner_are_one_object() -> None:
    ids = np.zeros((8, 24), int)
    ids[2:4, 2:12], ids[4:6, 12:22] = 1, 1
    np.testing.assert_array_equal(objects_to_classes(ids) == 2, ids == 1)


def test_without_a_rim_all_of_an_object_is_cell() -> None:
    ids = np.array([[0, 1, 1, 2, 2]])
    assert objects_to_classes(ids, boundary_px=0).tolist() == [[1, 2, 2, 2, 2]]


def test_an_image_border_that_cuts_an_object_is_no_boundary() -> None:
    assert (objects_to_classes(np.ones((6, 6), int)) == 2).all()


@given(ids=arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4)),
       boundary_px=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_piece_keeps_a_core_and_nothing_else_changes_class(ids: NDArray[np.int32], boundary_px: int) -> None:
    classes = objects_to_classes(ids, boundary_px)
    np.testing.assert_array_equal(classes == 1, ids == 0)
    assert set(np.unique(classes)) <= {1, 2, 3}
    pieces = label(ids, background=0, connectivity=2)
    for piece in range(1, pieces.max() + 1):
        assert (classes[pieces == piece] == 2).any()


@given(height=st.integers(2, 9), width=st.integers(2, 9), boundary_px=st.integers(1, 3), gap_id=st.integers(2, 10**6))
def test_two_touching_objects_get_a_boundary_between_their_cores(height: int, width: int, boundary_px: int,
                                                                 gap_id: int) -> None:
    ids = np.zeros((height + 4, 2 * width + 4), np.int64)
    ids[2:-2, 2 : 2 + width], ids[2:-2, 2 + width : -2] = 1, gap_id
    classes = objects_to_classes(ids, boundary_px)
    assert label(classes == 2, connectivity=2).max() == 2
    assert (classes[:, 2 + width - 1 : 2 + width + 1] != 2).all()


def test_thin_cells_side_by_side_are_told_apart_and_thin_cells_alone_stay_cells() -> None:
    ids = np.zeros((12, 30), int)
    ids[2:4, 2:28], ids[4:6, 2:28], ids[9:11, 2:28] = 1, 2, 3
    classes = objects_to_classes(ids)
    assert cores(classes).max() == 3
    assert (classes[3:5, 2:28] == 3).all()
    assert (classes[9:11, 2:28] == 2).all()


def test_pieces_of_one_id_are_objects_of_their_own() -> None:
    ids = np.zeros((12, 30), int)
    ids[2:10, 2:10], ids[2:10, 18:28] = 5, 5
    assert cores(objects_to_classes(ids)).max() == 2


def test_renaming_ids_changes_nothing() -> None:
    random = np.random.default_rng(0)
    ids = label(ndimage.gaussian_filter(random.normal(size=(80, 80)), 3) > 0)
    renamed = np.append(0, random.permutation(4 * ids.max())[: ids.max()] + 1)[ids]
    np.testing.assert_array_equal(objects_to_classes(ids), objects_to_classes(renamed))


@pytest.mark.parametrize("ignore_value", [0, 7, -1, 65535])
def test_ignored_pixels_become_unlabelled(ignore_value: int) -> None:
    ids = np.zeros((12, 12), int)
    ids[2:10, 2:10] = 3
    ids[0:2, :] = ignore_value
    classes = objects_to_classes(ids, ignore_value=ignore_value)
    np.testing.assert_array_equal(classes == 0, ids == ignore_value)
    assert (classes[2, 2:10] == 3).all()


@pytest.mark.parametrize("ids", [np.array([[0, -3]]), np.array([[0.5, 1]]), np.array([[np.nan, 1]])])
def test_instance_masks_that_cannot_be_used_are_refused(ids: NDArray[Any]) -> None:
    with pytest.raises(AnnotationError):
        objects_to_classes(ids)


@pytest.mark.parametrize(("diameter", "rim_px"), [(5, 1), (24, 2), (48, 4), (72, 6)])
def test_rims_are_as_thick_as_objects_are_large(diameter: int, rim_px: int) -> None:
    """So that once rescaled they are what the bundled model knows; the odd object decides nothing."""
    rows, columns = np.indices((8 * diameter, 8 * diameter)) % (2 * diameter)
    inside = np.hypot(rows - diameter, columns - diameter) < diameter / 2
    ids = label(np.pad(inside, ((0, 200), (0, 200))))
    ids[-70:-10, -70:-10] = ids.max() + 1
    ids[-8::2, ::9] = ids.max() + 1 + np.arange(ids[-8::2, ::9].size).reshape(ids[-8::2, ::9].shape)
    np.testing.assert_array_equal(objects_to_classes(ids), objects_to_classes(ids, rim_px))


def test_a_giant_object_has_no_giant_rim_and_takes_little_memory() -> None:
    ids = np.zeros((700, 700), np.uint8)
    ids[10:-10, 10:-10] = 1
    tracemalloc.start()
    try:
        classes = objects_to_classes(ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(classes, objects_to_classes(ids, 16))
    assert peak < 80 * ids.size


def test_at_their_own_scale_labels_are_what_they_were() -> None:
    labels = np.zeros((2, 20, 30), np.uint8)
    labels[0, 2:4, 3:10], labels[0, 9:11, 3:10] = 1, 2
    annotation = collect(labels, labels.shape, "ZYX")
    assert rescaled(annotation, [1.0]) is annotation


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint32, np.int64, np.float32])
def test_instance_masks_of_every_type_are_taken(dtype: Any) -> None:
    ids = np.zeros((12, 12), dtype)
    ids[2:10, 2:10] = 1
    assert np.bincount(objects_to_classes(ids, 2).ravel()).tolist() == [0, 80, 16, 48]


def test_seventy_thousand_objects_all_keep_their_core() -> None:
    rows, columns = np.mgrid[:1064, :1064]
    classes = objects_to_classes(rows // 4 * 266 + columns // 4 + 1)
    assert cores(classes).max() == 266 * 266


# ---------------------------------------------------------------- holding strokes out


def annotate(*planes: NDArray[np.uint8], n_classes: int = 2) -> Annotation:
    return Annotation(tuple(LabelledPlane(number, (), labels) for number, labels in enumerate(planes)), n_classes)


def stack(*planes: NDArray[np.uint8], n_classes: int = 2) -> Annotation:
    return Annotation(tuple(LabelledPlane(0, (z,), labels) for z, labels in enumerate(planes)), n_classes)


def test_long_strokes_count_as_several_and_classes_count_alike() -> None:
    labels = np.zeros((300, 300), np.uint8)
    labels[10, 10:60] = labels[30, 10:74] = 1  # two of up to 64 px
    labels[50, 10:75] = 1  # one that is longer
    labels[np.arange(100, 290), np.arange(100, 290)] = 2  # one of three times the length, over corners
    annotation = collect_annotation([Planes(np.zeros((300, 300)), "YX")], [labels], DEFAULT_CLASSES)
    assert annotation.strokes_per_class == pytest.approx((4 + 3) / 2)


def strokes(seed: int, n_each: int, n_classes: int = 2, shape: tuple[int, int] = (200, 220)) -> NDArray[np.uint8]:
    """Short horizontal dashes at random places, later ones over earlier ones."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for value in random.permutation(np.repeat(np.arange(n_classes) + 1, n_each)):
        row, column = random.integers(0, shape[0] - 3), random.integers(0, shape[1] - 30)
        labels[row : row + 3, column : column + random.integers(3, 30)] = value
    return labels


@dataclass(frozen=True)
class Part:
    """One side of a split, laid back over the planes it came from."""

    planes: list[NDArray[np.uint8]]

    @classmethod
    def of(cls, whole: Annotation, part: Annotation) -> Part:
        found = {(plane.image, plane.index): plane.labels for plane in part.planes}
        assert set(found) <= {(plane.image, plane.index) for plane in whole.planes}
        return cls([found.get((plane.image, plane.index), np.zeros_like(plane.labels)) for plane in whole.planes])


def check(whole: Annotation, split: Split) -> None:
    """Everything that is promised of any split."""
    train = Part.of(whole, split.train)
    painted = [count > 0 for count in whole.pixels_per_class]
    assert [count > 0 for count in split.train.pixels_per_class] == painted
    if split.validation is None:
        assert split.reason.endswith(".")
        assert split.train.n_pixels == whole.n_pixels
        return
    assert split.reason == ""
    held = Part.of(whole, split.validation)
    assert [count > 0 for count in split.validation.pixels_per_class] == painted
    for original, learnt, scored in zip(whole.planes, train.planes, held.planes, strict=True):
        assert not ((learnt > 0) & (scored > 0)).any()
        np.testing.assert_array_equal(learnt[learnt > 0], original.labels[learnt > 0])
        np.testing.assert_array_equal(scored[scored > 0], original.labels[scored > 0])
        near = ndimage.binary_dilation(learnt > 0, np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1)))
        assert not (near & (scored > 0)).any()


def summary(split: Split) -> list[bytes]:
    planes = [*split.train.planes, *(split.validation.planes if split.validation else ())]
    return [split.reason.encode(), *(plane.labels.tobytes() for plane in planes)]


@given(seed=SEEDS, n_each=st.integers(1, 25), n_classes=st.integers(2, 4), n_images=st.integers(1, 3),
       fraction=st.floats(0, 0.5))
@settings(max_examples=40, deadline=None)
def test_no_split_shares_invents_or_loses_a_class(seed: int, n_each: int, n_classes: int, n_images: int,
                                                  fraction: float) -> None:
    planes = [strokes(seed + number, n_each, n_classes) for number in range(n_images)]
    whole = annotate(*planes, n_classes=n_classes)
    split = hold_out(whole, fraction, seed % 100)
    check(whole, split)
    assert summary(split) == summary(hold_out(whole, fraction, seed % 100))


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_strokes_are_held_out_whole(seed: int) -> None:
    whole = annotate(strokes(seed, 12))
    split = hold_out(whole, 0.2, 0)
    if split.validation is None:
        return
    held = Part.of(whole, split.validation).planes[0] > 0
    numbered, n = ndimage.label(whole.planes[0].labels > 0, EIGHT)
    box = ndimage.find_objects(numbered)
    for number in range(1, n + 1):
        if max(side.stop - side.start for side in box[number - 1]) <= 64:
            assert np.ptp(held[numbered == number].astype(int)) == 0


def test_about_the_wanted_share_of_each_class_is_held_out() -> None:
    whole = annotate(strokes(0, 60, 3, (500, 500)), n_classes=3)
    split = hold_out(whole, 0.2, 0)
    assert split.validation is not None
    for all_of_it, held in zip(whole.pixels_per_class, split.validation.pixels_per_class, strict=True):
        assert 0.15 < held / all_of_it < 0.3


def test_another_seed_holds_out_other_strokes() -> None:
    whole = annotate(strokes(0, 20, 2, (500, 500)))
    assert len({b"".join(summary(hold_out(whole, 0.2, seed))) for seed in range(5)}) > 1


def dashes(n_each: int) -> NDArray[np.uint8]:
    """Dashes of both classes, each far from all others."""
    labels = np.zeros((40 * n_each + 20, 100), np.uint8)
    for number in range(n_each):
        labels[40 * number + 10, 10:30], labels[40 * number + 10, 60:90] = 1, 2
    return labels


@pytest.mark.parametrize(("n_each", "scored"), [(1, False), (2, False), (3, True), (4, True)])
def test_three_separate_strokes_of_every_class_are_needed(n_each: int, scored: bool) -> None:
    split = hold_out(annotate(dashes(n_each)), 0.2, 0)
    assert (split.validation is not None) == scored
    if scored:
        assert ndimage.label(split.train.planes[0].labels)[1] >= 2 * 2


def test_the_reason_names_the_classes_that_lack_strokes() -> None:
    labels = dashes(4)
    labels[40:, 60:] = 0
    split = hold_out(replace(annotate(labels), class_names=("background", "cell")), 0.2, 0)
    assert split.validation is None
    assert "at least 3 separate strokes" in split.reason
    assert "'cell' has 1" in split.reason
    assert "background" not in split.reason


def test_two_strokes_closer_than_the_gap_are_one() -> None:
    near, far = np.zeros((2, 200, 60), np.uint8)
    for labels, distance in ((near, GAP_PX), (far, GAP_PX + 2)):
        for number in range(3):
            labels[60 * number, 10:40] = 1
            labels[60 * number + distance, 10:40] = 2
    for labels in (near, far):
        whole = annotate(labels)
        for seed in range(5):
            split = hold_out(whole, 0.3, seed)
            check(whole, split)
            assert split.validation is not None
    both = [hold_out(annotate(near), 0.3, seed).validation for seed in range(5)]
    assert all(part is not None and part.pixels_per_class[0] == part.pixels_per_class[1] for part in both)


def test_one_long_stroke_of_each_class_is_cut_with_a_band_between_the_parts() -> None:
    labels = np.zeros((300, 1000), np.uint8)
    labels[100:104], labels[200:204] = 1, 2
    whole = annotate(labels)
    split = hold_out(whole, 0.2, 0)
    check(whole, split)
    assert split.validation is not None
    assert 0.1 < split.validation.n_pixels / whole.n_pixels < 0.35
    assert split.train.n_pixels / whole.n_pixels > 0.55


def test_a_cross_over_the_whole_image_can_be_held_out() -> None:
    labels = np.zeros((900, 900), np.uint8)
    labels[450:455] = 1
    labels[:, 440:444] = 2
    whole = annotate(labels)
    split = hold_out(whole, 0.2, 0)
    check(whole, split)
    assert split.validation is not None


@pytest.mark.parametrize("shape", [(256, 256), (520, 696), (140, 900)])
def test_dense_labels_can_be_held_out(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    dense = (ndimage.gaussian_filter(random.normal(size=shape), 4) > 0).astype(np.uint8) + 1
    for whole in (annotate(dense), annotate(dense, 3 - dense)):
        split = hold_out(whole, 0.2, 0)
        check(whole, split)
        assert split.validation is not None
        assert 0.05 < split.validation.n_pixels / whole.n_pixels < 0.35
        assert split.train.n_pixels / whole.n_pixels > 0.5


def test_strokes_one_above_the_other_in_neighbouring_planes_stay_together() -> None:
    empty = np.zeros_like(dashes(4))
    whole = stack(dashes(4), dashes(4), empty, dashes(4))
    for seed in range(5):
        split = hold_out(whole, 0.2, seed)
        check(whole, split)
        assert split.validation is not None
        train = Part.of(whole, split.train).planes
        np.testing.assert_array_equal(train[0], train[1])
    distinct = [Part.of(whole, hold_out(whole, 0.2, seed).train).planes for seed in range(5)]
    assert any((planes[1] != planes[3]).any() for planes in distinct)


def test_no_held_out_pixel_lies_beside_a_training_pixel_of_a_neighbouring_plane() -> None:
    whole = stack(*(strokes(z, 14) for z in range(4)))
    for seed in range(4):
        split = hold_out(whole, 0.2, seed)
        check(whole, split)
        if split.validation is None:
            continue
        train, held = Part.of(whole, split.train).planes, Part.of(whole, split.validation).planes
        for z in range(3):
            for learnt, scored in ((train[z], held[z + 1]), (train[z + 1], held[z])):
                near = ndimage.binary_dilation(learnt > 0, np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1)))
                assert not (near & (scored > 0)).any()


def test_a_dense_stack_is_held_out_in_columns() -> None:
    random = np.random.default_rng(0)
    dense = (ndimage.gaussian_filter(random.normal(size=(5, 300, 300)), (1, 4, 4)) > 0).astype(np.uint8) + 1
    whole = stack(*dense)
    split = hold_out(whole, 0.2, 0)
    check(whole, split)
    assert split.validation is not None
    assert len(split.validation.planes) == 5


def test_nothing_is_held_out_where_the_settings_say_so() -> None:
    whole = annotate(dashes(5))
    split = hold_out(whole, 0.0, 0)
    assert split.validation is None
    assert split.train is whole
    assert "settings" in split.reason


def test_a_class_nobody_painted_stands_in_nobodys_way() -> None:
    assert hold_out(annotate(dashes(4), n_classes=5), 0.2, 0).validation is not None


def test_a_handful_of_strokes_does_not_lose_most_of_its_pixels_to_the_score() -> None:
    """One stroke is ten times as long as the others: choosing it would leave little to learn from."""
    labels = dashes(5)
    labels[10:18, 10:50], labels[10:18, 60:99] = 1, 2
    for seed in range(10):
        split = hold_out(annotate(labels), 0.2, seed)
        assert split.train.n_pixels > 0.5 * annotate(labels).n_pixels


def test_a_class_found_mostly_beside_the_cuts_can_be_held_out() -> None:
    """Where labels are cut, the band between the parts swallows it; only a spot elsewhere can be scored."""
    labels = np.ones((640, 640), np.uint8)
    for cut in range(128, 640, 128):
        labels[cut - 3 : cut + 3, 20:620:12] = 2
    labels[320, 320] = 2
    for seed in range(6):
        split = hold_out(annotate(labels), 0.04, seed)
        check(annotate(labels), split)
        assert split.validation is not None


# ---------------------------------------------------------------- visiting strokes


@given(seed=SEEDS, n_each=st.integers(1, 12), n_classes=st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_classes_take_turns_and_every_stroke_is_visited_once_a_round(seed: int, n_each: int, n_classes: int) -> None:
    whole = annotate(strokes(seed, n_each, n_classes), strokes(seed + 1, n_each, n_classes), n_classes=n_classes)
    painted = [value for value in range(1, n_classes + 1) if whole.pixels_per_class[value - 1]]
    numbered = {(position, value): ndimage.label(plane.labels == value, EIGHT)
                for position, plane in enumerate(whole.planes) for value in painted}
    # Strokes crossing a border of the 64 px grid are visited in two pieces: twice the number of strokes is enough.
    rounds = 4 * max(sum(numbered[position, value][1] for position in (0, 1)) for value in painted)
    centres = StrokeSampler(whole, 0).next_centres(rounds * len(painted))
    values = [int(whole.planes[position].labels[row, column]) for position, row, column in centres]
    assert values == painted * rounds
    visited = {(position, value, int(numbered[position, value][0][row, column]))
               for (position, row, column), value in zip(centres, values, strict=True)}
    assert visited == {(position, value, number + 1) for (position, value), (_, n) in numbered.items()
                       for number in range(n)}


def test_no_stroke_is_visited_twice_before_all_were_visited_once() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[::8, ::8] = 1
    centres = StrokeSampler(annotate(labels), 0).next_centres(64)
    assert len(set(centres)) == 64
    assert StrokeSampler(annotate(labels), 1).next_centres(64) != centres


def test_a_long_stroke_is_visited_over_its_whole_length() -> None:
    labels = np.zeros((100, 1280), np.uint8)
    labels[50, :], labels[80, 5] = 1, 1
    columns = [column for _, row, column in StrokeSampler(annotate(labels), 0).next_centres(21) if row == 50]
    assert sorted(column // 64 for column in columns) == list(range(20))


def test_all_pixels_of_a_stroke_are_visited_in_the_end() -> None:
    labels = np.zeros((30, 30), np.uint8)
    labels[3:6, 7:11] = 1
    centres = StrokeSampler(annotate(labels), 0).next_centres(300)
    assert {(row, column) for _, row, column in centres} == {tuple(p) for p in np.argwhere(labels)}


def test_the_same_seed_visits_the_same_pixels() -> None:
    whole = annotate(strokes(1, 9))
    assert StrokeSampler(whole, 5).next_centres(40) == StrokeSampler(whole, 5).next_centres(40)


def test_asking_piecewise_or_at_once_gives_the_same_pixels() -> None:
    first, second = (StrokeSampler(annotate(strokes(1, 9)), 5) for _ in range(2))
    assert first.next_centres(12) == [centre for _ in range(4) for centre in second.next_centres(3)]


def corrected(labels: Any, corrections: Any) -> Annotation:
    image = Planes(np.zeros(labels.shape, np.float32), "YX")
    return collect_annotation([image], [labels], TWO, [corrections])


def test_strokes_painted_before_an_answer_are_visited_more_often_than_corrections() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[::16, 0], labels[::16, 32] = 1, 2
    corrections = np.zeros(labels.shape, bool)
    corrections[32:] = labels[32:] > 0
    # Of each class, two of either kind.
    centres = StrokeSampler(corrected(labels, corrections), 0).next_centres(2 * 2 * (CORRECTIONS_PER_STROKE + 1))
    visits = Counter((row, column) for _, row, column in centres)
    assert visits == {(row, column): 1 if row >= 32 else CORRECTIONS_PER_STROKE
                      for row in range(0, 64, 16) for column in (0, 32)}


def test_where_all_strokes_are_corrections_none_is_preferred() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[::16, 0], labels[::16, 32] = 1, 2
    all_corrected, none_corrected = corrected(labels, labels > 0), corrected(labels, labels < 0)
    assert StrokeSampler(all_corrected, 3).next_centres(40) == StrokeSampler(none_corrected, 3).next_centres(40)
    assert all_corrected.unseen is all_corrected


def test_what_was_painted_before_an_answer_is_found_again() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[::16, 0], labels[::16, 32] = 1, 2
    annotation = corrected(labels, np.indices(labels.shape)[0] >= 32)
    np.testing.assert_array_equal(annotation.unseen.planes[0].labels[:32], labels[:32])
    assert not annotation.unseen.planes[0].labels[32:].any()
    assert (annotation.n_pixels, annotation.n_corrections, annotation.unseen.n_corrections) == (8, 4, 0)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_corrections_stay_corrections_at_another_scale(scale: float) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[8:16, 8:40], labels[40:48, 8:40] = 1, 2
    plane = rescaled(corrected(labels, labels == 2), [scale]).planes[0]
    assert plane.corrections is not None
    np.testing.assert_array_equal(plane.corrections, plane.labels == 2)


def rows_of_strokes(rows: range) -> NDArray[np.uint8]:
    """One stroke of each of two classes in each of the rows."""
    labels = np.zeros((600, 200), np.uint8)
    labels[list(rows), 10:40], labels[list(rows), 110:140] = 1, 2
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_the_strokes_held_out_stay_the_same_when_an_answer_is_corrected(seed: int) -> None:
    first, later = rows_of_strokes(range(20, 120, 20)), rows_of_strokes(range(150, 590, 20))
    before = hold_out(corrected(first, first < 0), 0.2, seed)
    after = hold_out(corrected(first + later, later > 0), 0.2, seed)
    assert before.validation is not None
    assert after.validation is not None
    np.testing.assert_array_equal(after.validation.planes[0].labels, before.validation.planes[0].labels)
    np.testing.assert_array_equal(after.train.planes[0].labels, before.train.planes[0].labels + later)


def test_a_correction_beside_a_held_out_stroke_is_learnt_and_not_scored_on() -> None:
    first = rows_of_strokes(range(20, 120, 20))
    held = hold_out(corrected(first, first < 0), 0.2, 0).validation
    assert held is not None
    beside = np.roll(held.planes[0].labels, 3, axis=0)
    split = hold_out(corrected(first + beside, beside > 0), 0.2, 0)
    assert split.validation is not None
    assert (split.train.planes[0].labels[beside > 0] > 0).all()
    check(annotate(first + beside), split)


def test_corrections_are_held_out_where_other_strokes_are_too_few_for_a_score() -> None:
    first, later = rows_of_strokes(range(20, 60, 20)), rows_of_strokes(range(150, 590, 20))
    split = hold_out(corrected(first + later, later > 0), 0.2, 0)
    assert split.validation is not None
    assert split.validation.n_corrections > 0


@pytest.mark.parametrize("lazily", [np.asarray, lambda mask: da.from_array(mask, chunks=3), zarr.array])
def test_corrections_may_be_lazy_and_of_some_images_only(lazily: Any) -> None:
    image, labels = Planes(np.zeros((8, 8), np.float32), "YX"), np.ones((8, 8), np.uint8)
    labels[4:] = 2
    annotation = collect_annotation([image, image], [labels, labels], TWO, [None, lazily(labels == 2)])
    first, second = annotation.planes
    assert first.corrections is None
    np.testing.assert_array_equal(second.corrections, labels == 2)
    # Nothing that is unlabelled corrects anything.
    nothing = collect_annotation([image, image], [labels, 0 * labels + (labels == 1)], TWO, [None, labels == 2])
    assert nothing.n_corrections == 0


def test_labels_that_are_missing_are_refused_in_words() -> None:
    with pytest.raises(AnnotationError, match="labels of"):
        collect_annotation([Planes(np.zeros((8, 8), np.float32), "YX")], [None], TWO)


def test_corrections_of_another_shape_are_refused() -> None:
    labels = np.ones((8, 8), np.uint8)
    with pytest.raises(AnnotationError, match=r"corrections of '.*' have the shape \(8, 9\).*\(8, 8\)"):
        corrected(labels, np.zeros((8, 9), bool))
    with pytest.raises(AnnotationError, match=r"1 image\(s\) and 2 set\(s\) of corrections"):
        collect_annotation([Planes(np.zeros((8, 8), np.float32), "YX")], [labels], TWO, [None, None])


@pytest.mark.parametrize("scale", [0.125, 0.3, 0.7])
def test_a_reduced_annotation_keeps_every_stroke_and_adds_no_class(scale: float) -> None:
    labels = np.zeros((97, 83), np.uint8)
    random = np.random.default_rng(0)
    for value, row, column in zip([1, 2, 3] * 8, random.integers(0, 97, 24), random.integers(0, 83, 24), strict=True):
        labels[row, column] = value
    smaller = rescaled(collect(labels, labels.shape), [scale]).planes[0].labels
    assert smaller.shape == (round(97 * scale), round(83 * scale))
    for row, column in np.argwhere(labels):
        assert smaller[min(int((row + 0.5) * scale), len(smaller) - 1),
                       min(int((column + 0.5) * scale), smaller.shape[1] - 1)] > 0
    assert np.count_nonzero(smaller) <= 24


def test_where_labels_become_one_pixel_the_most_frequent_class_wins() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[0, :4], labels[1, 0], labels[4, 4] = 2, 1, 3
    smaller = rescaled(collect(labels, labels.shape), [0.25]).planes[0].labels
    np.testing.assert_array_equal(smaller, [[2, 0], [0, 3]])


def test_an_enlarged_annotation_is_the_same_picture() -> None:
    labels = np.random.default_rng(1).integers(0, 4, (9, 7)).astype(np.uint8)
    larger = rescaled(collect(labels, labels.shape), [3.0]).planes[0].labels
    np.testing.assert_array_equal(larger, np.kron(labels, np.ones((3, 3), np.uint8)))


def test_targets_take_the_numbers_of_the_classes_with_their_role() -> None:
    background, cell, boundary = DEFAULT_CLASSES
    targets = np.array([[0, 1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(in_classes(targets, DEFAULT_CLASSES), targets)
    other = cell.replace(name="other")
    np.testing.assert_array_equal(in_classes(targets, (boundary, cell, other, background)), [[0, 4, 2, 1]])
    np.testing.assert_array_equal(in_classes(targets, (background, cell)), [[0, 1, 2, 2]])
    with pytest.raises(AnnotationError, match="class table"):
        in_classes(targets, (cell, boundary))
