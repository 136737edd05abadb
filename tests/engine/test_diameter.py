from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops
from skimage.morphology import erosion
from skimage.segmentation import clear_border
from tests.engine.test_inference import make_model

from napari_cellbrush.config import DEFAULT_CLASSES, ClassDefinition, InferenceConfig, classes_from_names
from napari_cellbrush.engine import diameter
from napari_cellbrush.engine.annotation import accepted_to_classes, collect_annotation, objects_to_classes
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.diameter import (
    Measurement,
    Painted,
    diameter_of_whole,
    diameter_on_strokes,
    measured_diameter,
    measured_in_relation,
    object_diameter,
    object_diameters,
)
from napari_cellbrush.engine.inference import segment_array, segment_planes
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.predictor import TilePredictor
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.errors import ImageError
from napari_cellbrush.events import InferenceStarted, StopToken
from napari_cellbrush.export.provenance import mask_provenance

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=True)
MODEL = make_model(diameter_px=24.0)


def discs(diameter_px: float, size: int = 500, where: slice = slice(None)) -> NDArray[np.float32]:
    rows, columns = np.indices((size, size))
    pitch = 2 * diameter_px
    inside = np.hypot(rows % pitch - pitch / 2, columns % pitch - pitch / 2) < diameter_px / 2
    image = np.zeros((size, size), np.float32)
    image[where] = inside[where]
    return image


@pytest.fixture
def knows_discs_of_24_px(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that sees bright discs, the surer the nearer their diameter is to 24 px."""
    knows_discs(monkeypatch, least=0.5)


@pytest.fixture
def knows_only_discs_of_24_px(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes other discs for background."""
    knows_discs(monkeypatch, least=0)


def knows_discs(monkeypatch: pytest.MonkeyPatch, least: float) -> None:
    margin = MODEL.network.geometry.margin

    def predict(self: TilePredictor, window: NDArray[np.float32]) -> NDArray[np.float32]:
        image = window[0]
        probabilities = np.zeros((3, *image.shape), np.float32)
        probabilities[0] = 1
        ids = label(image > 0.5)
        for region in regionprops(ids):
            octaves = np.log2(max(region.equivalent_diameter_area, 1) / 24)
            sure = least + (1 - least) * np.exp(-(octaves**2))
            probabilities[:, ids == region.label] = np.array([1 - sure, sure, 0], np.float32)[:, None]
        return probabilities[:, margin:-margin, margin:-margin]

    monkeypatch.setattr(TilePredictor, "predict", predict)


@pytest.mark.usefixtures("knows_discs_of_24_px")
@pytest.mark.parametrize("true_px", [9.0, 15.0, 25.0, 40.0, 70.0, 110.0])
def test_the_diameter_of_discs_is_found_over_the_whole_range(true_px: float) -> None:
    found = measured_diameter(MODEL, Planes(discs(true_px), "YX"), CPU)
    assert found is not None
    assert found.diameter_px == pytest.approx(true_px, rel=0.25)


@pytest.mark.usefixtures("knows_discs_of_24_px")
def test_objects_in_one_corner_of_a_large_image_are_found() -> None:
    image = discs(20, 1200)
    image[:, 400:] = image[400:, :] = 0
    found = measured_diameter(MODEL, Planes(image, "YX"), CPU)
    assert found is not None
    assert found.diameter_px == pytest.approx(20, rel=0.25)


@pytest.mark.usefixtures("knows_discs_of_24_px")
def test_one_place_with_larger_objects_does_not_decide() -> None:
    """The richest of nine places, by a hair."""
    image = 0.99 * discs(20, 1200)
    large = discs(30, 1200)
    image[100:400, 100:400] = large[100:400, 100:400]
    found = measured_diameter(MODEL, Planes(image, "YX"), CPU)
    assert found is not None
    assert 20 < found.diameter_px < 26


@pytest.mark.parametrize(("evidence", "expected_px"), [(0.3, 15.0), (0.1, 20.0)])
def test_it_is_looked_at_once_more_and_that_counts_if_enough_is_seen(monkeypatch: pytest.MonkeyPatch, evidence: float,
                                                                     expected_px: float) -> None:
    """First 20 px at scale 1; then at the scale at which these are 24."""
    scales: list[float] = []

    def looked_at(predictor: object, model: object, source: Resampled, *_: object) -> NDArray[np.float32]:
        scales.append(source.scale)
        return np.zeros((3, 1, 1), np.float32)

    def typical_object(*_: object) -> Measurement:
        return Measurement(20, 0.5) if len(scales) == 1 else Measurement(15 * scales[-1], evidence)

    monkeypatch.setattr(diameter, "_looked_at", looked_at)
    monkeypatch.setattr(diameter, "_typical_object", typical_object)
    found = measured_diameter(MODEL, Planes(discs(20), "YX"), CPU)
    assert scales[0] == 1
    assert scales[1:] == pytest.approx([24 / 20] * len(scales[1:]))
    assert found == (pytest.approx(expected_px), 0.5)


def test_a_measurement_that_is_stopped_before_its_last_look_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopToken()

    def typical_object(*_: object) -> Measurement:
        stop.stop()
        return Measurement(20, 0.5)

    monkeypatch.setattr(diameter, "_typical_object", typical_object)
    assert measured_diameter(MODEL, Planes(discs(20), "YX"), CPU, stop) is None


def test_a_network_that_is_sure_of_nothing_gives_no_diameter(monkeypatch: pytest.MonkeyPatch) -> None:
    margin = MODEL.network.geometry.margin
    monkeypatch.setattr(TilePredictor, "predict", lambda self, window: np.full(
        (3, window.shape[1] - 2 * margin, window.shape[2] - 2 * margin), 1 / 3, np.float32))
    assert measured_diameter(MODEL, Planes(discs(20), "YX"), CPU) is None


@pytest.mark.usefixtures("knows_discs_of_24_px")
def test_the_middle_plane_of_a_stack_is_measured() -> None:
    stack = np.stack([discs(60), discs(30), discs(10)])
    found = measured_diameter(MODEL, Planes(stack, "ZYX"), CPU)
    assert found is not None
    assert found.diameter_px == pytest.approx(30, rel=0.25)


@pytest.mark.usefixtures("knows_only_discs_of_24_px")
@pytest.mark.parametrize("true_px", [9.0, 15.0, 25.0, 40.0, 70.0, 110.0])
def test_strokes_tell_the_diameter_of_what_is_painted(true_px: float) -> None:
    image = discs(true_px)
    planes = Planes(image, "YX")
    found = diameter_on_strokes(MODEL, [planes], painted(planes, image), CPU)
    assert found == pytest.approx(true_px, rel=0.3)


@pytest.mark.usefixtures("knows_only_discs_of_24_px")
def test_strokes_are_asked_where_the_image_alone_says_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    image = discs(40)
    planes, strokes = Planes(image, "YX"), painted(Planes(image, "YX"), image)

    def found(measured: Measurement | None, stated_px: float = 0) -> float | None:
        monkeypatch.setattr(diameter, "measured_diameter", lambda *_: measured)
        return only(object_diameters(MODEL, [planes], stated_px, CPU, painted=strokes))

    assert found(None) == pytest.approx(40, rel=0.3)
    assert found(Measurement(15.0, evidence=0.1)) == found(None)
    assert found(Measurement(15.0, evidence=0.25)) == 15
    assert found(None, stated_px=12) == 12


def test_what_is_seen_of_other_classes_may_enlarge_the_image_but_not_reduce_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = discs(40)
    planes = Planes(image, "YX")
    foreign = replace(painted(planes, image), classes=classes_from_names(["sheath", "axon"]))

    def found(px: float, evidence: float, strokes: Painted | None = None, classes: tuple[ClassDefinition, ...] = ()
              ) -> float | None:
        monkeypatch.setattr(diameter, "measured_diameter", lambda *_: Measurement(px, evidence))
        return only(object_diameters(MODEL, [planes], 0, CPU, painted=strokes, classes=classes))

    for px in (12, 60):
        assert found(px, 0.25) == found(px, 0.25, classes=MODEL.card.classes) == px
        assert found(px, 0.25, classes=foreign.classes) is None
        assert found(px, 0.25, foreign) is None
    assert found(12, 0.35, classes=foreign.classes) == found(12, 0.35, foreign) == 12
    assert found(60, 0.9, classes=foreign.classes) is found(60, 0.9, foreign) is None


@pytest.mark.usefixtures("knows_only_discs_of_24_px")
def test_strokes_on_one_plane_of_a_stack_of_several_channels_are_found_up_to_the_border() -> None:
    model = make_model(diameter_px=24.0, any_channels=True)
    image = discs(40)[10:, 10:]
    stack = np.stack([np.stack([np.zeros_like(image), image]), np.stack([np.zeros_like(image)] * 2)])
    planes = Planes(stack[:, ::-1], "ZCYX")
    labels = np.zeros((2, *image.shape), np.uint8)
    labels[0] = dashes(image)
    labels[0, 40:-40, 40:-40] = 0
    strokes = Painted(collect_annotation([planes], [labels], DEFAULT_CLASSES), DEFAULT_CLASSES)
    assert diameter_on_strokes(model, [planes], strokes, CPU) == pytest.approx(40, rel=0.5)


def test_a_network_to_which_all_scales_are_alike_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    margin = MODEL.network.geometry.margin
    monkeypatch.setattr(TilePredictor, "predict", lambda self, window: np.full(
        (3, window.shape[1] - 2 * margin, window.shape[2] - 2 * margin), [[[0.49]], [[0.49]], [[0.02]]], np.float32))
    planes = Planes(discs(25), "YX")
    assert diameter_on_strokes(MODEL, [planes], painted(planes, discs(25)), CPU) is None


@pytest.mark.usefixtures("knows_only_discs_of_24_px")
def test_strokes_take_few_tiles_where_they_lie_near_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """At small scales one tile shows many strokes, and scales far above the best one are not looked at."""
    widths, predict = [], TilePredictor.predict

    def look(self: TilePredictor, window: NDArray[np.float32]) -> NDArray[np.float32]:
        widths.append(window.shape[2] - 2 * MODEL.network.geometry.margin)
        return predict(self, window)

    monkeypatch.setattr(TilePredictor, "predict", look)
    image = discs(80, 300)
    planes = Planes(image, "YX")
    assert diameter_on_strokes(MODEL, [planes], painted(planes, image), CPU) == pytest.approx(80, rel=0.35)
    n_without_either = 6 * 2 * 4
    assert len(widths) < 0.6 * n_without_either
    assert max(widths) < 200


@pytest.mark.usefixtures("knows_discs_of_24_px")
def test_strokes_that_the_network_contradicts_at_every_scale_tell_nothing() -> None:
    image = discs(25)
    planes = Planes(image, "YX")
    wrong = painted(planes, 1 - image)
    assert diameter_on_strokes(MODEL, [planes], wrong, CPU) is None
    assert only(object_diameters(MODEL, [planes], 0, CPU, painted=wrong)) == pytest.approx(25, rel=0.25)
    other = replace(painted(planes, image), classes=classes_from_names(["background", "axon"]))
    assert diameter_on_strokes(MODEL, [planes], other, CPU) is None


def painted(planes: Planes, inside: NDArray[np.float32]) -> Painted:
    """Horizontal dashes over the whole image, but for rims: background is 1, cell is 2."""
    return Painted(collect_annotation([planes], [dashes(inside)], DEFAULT_CLASSES), DEFAULT_CLASSES)


def only(diameters: tuple[float, ...] | None) -> float | None:
    """That of the one image."""
    if diameters is None:
        return None
    (found,) = diameters
    return found


def dashes(inside: NDArray[np.float32]) -> NDArray[np.uint8]:
    rows = np.arange(inside.shape[0])[:, None]
    rim = ndimage.maximum_filter(inside, 5) != ndimage.minimum_filter(inside, 5)
    return np.where((rows % 16 == 4) & ~rim, 1 + (inside > 0.5), 0).astype(np.uint8)


@pytest.mark.parametrize(("shape", "axes"), [((3, 400), "YX"), ((400, 3), "YX"), ((1, 1, 30), "TYX"),
                                             ((40, 50, 3), "YXS")])
def test_images_of_any_shape_can_be_measured(shape: tuple[int, ...], axes: str) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = measured_diameter(make_model(diameter_px=24.0, any_channels=True), Planes(image, axes), CPU)
    assert found is None or found.diameter_px > 0


def test_what_is_stated_or_known_from_tuning_comes_before_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diameter, "measured_diameter", lambda *_: Measurement(33.0, evidence=0.5))
    image = Planes(discs(20), "YX")
    tuned = make_model(diameter_px=24.0, image_diameter_px=50.0)
    assert object_diameter(make_model(), image, 12.0, CPU) is None
    assert object_diameter(MODEL, image, 12.0, CPU) == 12
    assert object_diameter(MODEL, image, 0.0, CPU) == 33
    assert object_diameter(tuned, image, 0.0, CPU) == 50
    assert object_diameter(tuned, image, 12.0, CPU) == 12


@pytest.mark.parametrize(("seen_px", "expected"), [(60.0, 100), (15.0, 25), (41.0, 50), (22.0, 50), (None, 50)])
def test_a_tuned_model_measures_other_images_in_relation_to_its_own(
    monkeypatch: pytest.MonkeyPatch, seen_px: float | None, expected: float
) -> None:
    monkeypatch.setattr(diameter, "measured_diameter",
                        lambda *_: None if seen_px is None else Measurement(seen_px, evidence=0.5))
    own, other = (Planes(discs(size), "YX") for size in (20, 30))
    tuned = make_model(diameter_px=24.0, image_diameter_px=50.0, measured_as_px=30.0,
                       tuned_on={own.fingerprint(): 50.0})
    assert object_diameter(tuned, other, 0, CPU) == expected
    assert object_diameter(tuned, own, 0, CPU) == 50
    assert object_diameters(tuned, [own, other], 0, CPU) == (50, expected)
    assert object_diameter(tuned, other, 12, CPU) == 12
    stop = StopToken()
    stop.stop()
    assert object_diameter(tuned, other, 0, CPU, stop) is None


def measures(monkeypatch: pytest.MonkeyPatch, *diameters: float | None) -> None:
    """What is measured of one image after the other."""
    answers = iter(diameters)

    def measured(*_: object) -> Measurement | None:
        px = next(answers)
        return None if px is None else Measurement(px, evidence=0.5)

    monkeypatch.setattr(diameter, "measured_diameter", measured)


def test_images_keep_a_diameter_each_where_they_are_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Planes(discs(20, 60), "YX")] * 5
    measures(monkeypatch, 70, 40, None, 66, 44)
    assert object_diameters(MODEL, images, 0, CPU) == (68, 42, 55, 68, 42)
    measures(monkeypatch, 20, 21, 22, 24, 27)
    assert object_diameters(MODEL, images, 0, CPU) == (22, 22, 22, 22, 22)
    measures(monkeypatch, *[None] * 5)
    assert object_diameters(MODEL, images, 0, CPU) is None
    assert object_diameters(MODEL, images, 30, CPU) == (30,) * 5


def test_a_model_tuned_on_images_of_two_sizes_knows_each_and_takes_others_as_the_nearest(
    monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, other = (Planes(discs(size), "YX") for size in (20, 40, 30))
    tuned = make_model(diameter_px=24.0, image_diameter_px=55.0, measured_as_px=66.0,
                       tuned_on={small.fingerprint(): 40.0, large.fingerprint(): 70.0})
    measures(monkeypatch)
    assert object_diameters(tuned, [large, small], 0, CPU) == (70, 40)
    # It finds everything a fifth larger than it is.
    for seen, taken in ((45, 40), (80, 70), (160, pytest.approx(160 / 1.2)), (20, pytest.approx(20 / 1.2))):
        measures(monkeypatch, seen)
        assert object_diameter(tuned, other, 0, CPU) == taken


def test_a_card_of_an_earlier_version_knows_one_diameter_for_all_its_images() -> None:
    card = make_model(diameter_px=24.0, image_diameter_px=50.0, tuned_on=["one", "two"]).card
    assert card.tuned_on == {"one": 50, "two": 50}
    assert make_model(tuned_on=["one"]).card.tuned_on == {}


def told_by(labels: NDArray[np.uint8], classes: tuple[ClassDefinition, ...] = DEFAULT_CLASSES) -> float | None:
    """What whole objects say on the first of two images; on the second nothing is painted."""
    planes = Planes(np.zeros(labels.shape), "YX" if labels.ndim == 2 else "ZYX")
    annotation = collect_annotation([planes, planes], [labels, np.zeros_like(labels)], classes)
    known, of_the_other = (diameter_of_whole(Painted(annotation, classes).on(number)) for number in range(2))
    assert of_the_other is None
    return known


@pytest.mark.parametrize("px", [12.0, 30.0])
def test_whole_objects_tell_the_diameter_and_strokes_do_not(px: float) -> None:
    ids = label(discs(px, 300) > 0.5)
    whole = objects_to_classes(ids)
    assert told_by(whole) == pytest.approx(px, rel=0.1)
    # Without background, or with a hole of unpainted pixels, nobody knows where an object ends.
    assert told_by(np.where((whole == 1) & (np.indices(whole.shape)[0] > 0), 0, whole)) is None
    with_holes = np.where(erosion(ids, np.ones((3, 3))) > 0, 0, whole)
    assert told_by(with_holes) is None
    assert told_by(np.where(ids % 2 == 0, whole, with_holes)) == pytest.approx(px, rel=0.1)
    assert told_by(dashes(discs(px, 300))) is None


@pytest.mark.parametrize("n", [2, 3])
def test_three_whole_objects_are_enough(n: int) -> None:
    ids = label(discs(20, 300) > 0.5)
    accepted = np.isin(ids, np.unique(clear_border(ids))[1 : n + 1])
    told = told_by(accepted_to_classes(ids, accepted))
    assert told == (pytest.approx(20, rel=0.1) if n == 3 else None)
    # They may lie on several planes of a stack.
    planes = np.stack([accepted_to_classes(ids, ids == number) for number in np.unique(ids[accepted])])
    assert told_by(planes) == told


def test_the_arms_of_branched_cells_do_not_make_them_small() -> None:
    """Where an arm is thinner than two rims, it comes apart from its cell."""
    ids = label(discs(60, 700) > 0.5)
    classes = objects_to_classes(ids)
    for row in range(4, 690, 8):
        if not classes[row - 2 : row + 3, :10].max() > 1:
            classes[row, 2:7] = 2
    assert told_by(classes) == pytest.approx(60, rel=0.1)


def test_objects_without_a_rim_say_nothing_for_touching_ones_look_like_one() -> None:
    classes = classes_from_names(["background", "cell"])
    assert told_by(np.minimum(objects_to_classes(label(discs(20, 300) > 0.5)), 2), classes) is None


def test_whole_objects_that_the_model_does_not_know_do_not_reduce_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image = discs(60, 700)
    planes, whole = Planes(image, "YX"), objects_to_classes(label(image > 0.5))
    foreign = tuple(definition.replace(name=f"my {definition.name}") for definition in DEFAULT_CLASSES)
    strokes = Painted(collect_annotation([planes], [whole], foreign), foreign)
    assert told_by(whole, foreign) == pytest.approx(60, rel=0.1)
    measures(monkeypatch, None, None)
    assert object_diameters(MODEL, [planes], 0, CPU, painted=strokes) is None
    assert object_diameters(MODEL, [planes], 0, CPU, painted=replace(strokes, classes=DEFAULT_CLASSES)) == (
        pytest.approx(60, rel=0.1),)


def test_what_a_model_was_tuned_on_comes_before_whole_objects_and_these_before_a_measurement(
    monkeypatch: pytest.MonkeyPatch) -> None:
    image = discs(20, 300)
    own, other = Planes(image, "YX"), Planes(image + 1, "YX")
    whole = objects_to_classes(label(image > 0.5))
    strokes = Painted(collect_annotation([own, other], [whole, whole], DEFAULT_CLASSES), DEFAULT_CLASSES)
    tuned = make_model(diameter_px=24.0, image_diameter_px=90.0, tuned_on={own.fingerprint(): 90.0})
    measures(monkeypatch)
    assert object_diameters(tuned, [own, other], 0, CPU, painted=strokes) == (90, pytest.approx(20, rel=0.1))
    assert object_diameters(MODEL, [own, other], 0, CPU, painted=strokes) == (pytest.approx(20, rel=0.1),) * 2


def test_an_image_that_tells_nothing_does_not_move_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, other = (Planes(discs(size), "YX") for size in (20, 40, 30))
    tuned = make_model(diameter_px=24.0, image_diameter_px=55.0, measured_as_px=66.0,
                       tuned_on={small.fingerprint(): 40.0, large.fingerprint(): 70.0})
    measures(monkeypatch, None)
    assert object_diameters(tuned, [small, large, other], 0, CPU) == (40, 70, 55)


def test_each_image_that_shows_too_little_is_asked_by_its_own_strokes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Planes(discs(size, 200), "YX") for size in (20, 80, 30)]
    labels = [dashes(discs(size, 200)) for size in (20, 80)]
    annotation = collect_annotation(images, [*labels, np.zeros_like(labels[0])], DEFAULT_CLASSES)
    measures(monkeypatch, 20, None, None)
    monkeypatch.setattr(diameter, "_losses_near", lambda _, __, ___, plane, source, centres: [abs(np.log2(
        source.scale * (80 if plane.image == 1 else 0) / 24))] * len(centres))
    found = object_diameters(MODEL, images, 0, CPU, painted=Painted(annotation, DEFAULT_CLASSES))
    assert found == (20, pytest.approx(80, rel=0.35), pytest.approx(50, rel=0.3))


@pytest.mark.usefixtures("knows_discs_of_24_px")
def test_a_tuned_model_sees_twice_as_large_objects_at_half_the_scale() -> None:
    own, other = (Planes(discs(size), "YX") for size in (20, 40))
    ratio = measured_in_relation(MODEL, [own], [30.0], CPU)
    assert ratio == pytest.approx(20 / 30, rel=0.2)
    tuned = make_model(diameter_px=24.0, image_diameter_px=30.0, measured_as_px=30 * ratio)
    assert object_diameter(tuned, other, 0, CPU) == pytest.approx(60, rel=0.2)


@pytest.mark.parametrize("true_px", [9.0, 24.0, 100.0])
def test_a_tuned_model_that_takes_specks_for_objects_is_not_misled_about_its_own_image(
        true_px: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def typical_object(seen: object, *_: object) -> Measurement:
        return Measurement(24.0, 0.9 if scales[-1] == sure_at else 0.25)

    def looked_at(predictor: object, model: object, source: Resampled, *_: object) -> NDArray[np.float32]:
        scales.append(source.scale)
        return np.zeros((3, 4, 4), np.float32)

    scales: list[float] = []
    sure_at = 0.2 if true_px < 24 else 2.9
    monkeypatch.setattr(diameter, "_looked_at", looked_at)
    monkeypatch.setattr(diameter, "_typical_object", typical_object)
    image = Planes(discs(true_px), "YX")
    ratio = measured_in_relation(MODEL, [image], [true_px], CPU)
    assert ratio is not None
    assert abs(np.log2(ratio)) < 1
    assert sure_at not in scales
    assert max(abs(np.log2(24 / true_px / scale)) for scale in scales) < 1.5


def test_an_image_has_the_same_fingerprint_under_any_name_and_another_one_another() -> None:
    image = discs(20)
    same = (Planes(image.astype(np.float64), "YX", "two"), Planes(image[None], "TYX"), Planes(image[None], "CYX"))
    assert {part.fingerprint() for part in same} == {Planes(image, "YX", "one").fingerprint()}
    others = (image * 2, image[:-1], np.stack([image, image]))
    assert len({Planes(part, "YX" if part.ndim == 2 else "ZYX").fingerprint() for part in (image, *others)}) == 4


def test_settings_say_the_diameter_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diameter, "measured_diameter", lambda *_: Measurement(33.0, evidence=0.5))
    image = Planes(discs(20), "YX")
    def settings(model: Model) -> object:
        started = next(segment_planes(model, image, device=CPU))
        assert isinstance(started, InferenceStarted)
        return mask_provenance(model, output="classes", config=InferenceConfig(), image_name="i",
                               started=started)["settings"]

    assert settings(MODEL) == InferenceConfig(diameter_px=33).model_dump()
    assert settings(make_model()) == InferenceConfig().model_dump()


def test_a_run_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    monkeypatch.setattr(diameter, "measured_diameter", lambda *_: measured.append(1))
    segment_array(MODEL, Planes(discs(20, 60), "YX"), device=CPU)
    assert len(measured) == 1


def test_a_measurement_can_be_stopped_between_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, seen = StopToken(), []

    def look(*_: object) -> NDArray[np.float32]:
        seen.append(1)
        if len(seen) == 2:
            stop.stop()
        return np.full((3, 50, 50), 1 / 3, np.float32)

    monkeypatch.setattr(diameter, "_looked_at", look)
    assert object_diameter(MODEL, Planes(discs(20), "YX"), 0, CPU, stop) is None
    assert len(seen) == 2


@pytest.mark.usefixtures("knows_only_discs_of_24_px")
def test_a_look_at_strokes_can_be_stopped_between_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, seen, predict = StopToken(), [], TilePredictor.predict

    def look(self: TilePredictor, window: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(1)
        if len(seen) == 3:
            stop.stop()
        return predict(self, window)

    monkeypatch.setattr(TilePredictor, "predict", look)
    planes = Planes(discs(25), "YX")
    assert diameter_on_strokes(MODEL, [planes], painted(planes, discs(25)), CPU, stop) is None
    assert len(seen) == 3


def test_an_image_that_cannot_be_read_says_so() -> None:
    image = discs(20)
    image[250, 250] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        measured_diameter(MODEL, Planes(image, "YX"), CPU)
