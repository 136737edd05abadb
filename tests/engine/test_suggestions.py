from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, NetworkConfig
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.guide import look_over
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.model import ModelCard, new_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.suggestions import (
    disagreement,
    next_places,
    painting_hints,
    probable_slips,
    stroke_gain,
    strokes_per_class,
    uncertainty,
)
from napari_cellbrush.events import StopToken, run_to_end

SHAPE = (120, 160)


def sure_but(unsure: tuple[slice, slice], k: int = 3) -> NDArray[np.float32]:
    """A model that is sure of class 1 everywhere but in a window."""
    probabilities = np.full((k, *SHAPE), 0.01, np.float32)
    probabilities[1] = 1 - 0.01 * (k - 1)
    probabilities[(slice(None), *unsure)] = 1 / k
    return probabilities


def nothing() -> NDArray[np.uint8]:
    return np.zeros(SHAPE, np.uint8)


def test_the_next_place_is_where_the_model_is_unsure() -> None:
    place = next_places(nothing(), sure_but(np.s_[80:110, 20:60]))[0]
    assert (place.row, place.column) == pytest.approx((94.5, 39.5), abs=6)


def test_of_two_places_a_model_is_unsure_of_the_one_that_is_painted_comes_second() -> None:
    probabilities, labels = sure_but(np.s_[10:40, 10:50]), nothing()
    probabilities[:, 80:110, 100:150] = 1 / 3
    labels[85:105, 105:145] = 1
    first = next_places(labels, probabilities)[0]
    assert first.row < 45
    labels[:, :] = 0
    labels[15:35, 15:45] = 1
    assert next_places(labels, probabilities)[0].row > 75


def test_two_models_that_disagree_matter_more_than_one_that_is_unsure() -> None:
    unsure, other = sure_but(np.s_[10:40, 10:50]), sure_but(np.s_[10:40, 10:50])
    for probabilities, said in ((unsure, (0.2, 0.7, 0.1)), (other, (0.7, 0.2, 0.1))):
        probabilities[:, 80:110, 100:140] = np.reshape(said, (3, 1, 1))
    assert next_places(nothing(), unsure)[0].row < 45
    assert next_places(nothing(), unsure, other, reach_px=12)[0].row < 45
    other[:, 10:40, 10:50] = unsure[:, 10:40, 10:50] = np.reshape((0.45, 0.4, 0.15), (3, 1, 1))
    unsure[:, 80:110, 100:140], other[:, 80:110, 100:140] = (np.reshape(p, (3, 1, 1)) for p in (
        (0.52, 0.43, 0.05), (0.05, 0.43, 0.52)))
    assert next_places(nothing(), unsure, other)[0].row > 75


def test_one_unsure_pixel_is_no_place_but_a_patch_is() -> None:
    probabilities = sure_but(np.s_[90:110, 120:150])
    probabilities[:, 20, 20] = 1 / 3
    place = next_places(nothing(), probabilities)[0]
    assert place.row > 80


def test_nothing_is_suggested_where_nothing_was_predicted_or_nothing_is_unsure() -> None:
    assert next_places(nothing(), np.zeros((3, *SHAPE), np.float32), n=3) == []
    sure = np.zeros((2, *SHAPE), np.float32)
    sure[0] = 1
    assert next_places(nothing(), sure, n=3) == []
    half = sure.copy()
    half[:, :, 80:] = 0.5
    half[:, :60] = 0  # not predicted yet
    assert all(place.row > 55 and place.column > 60 for place in next_places(nothing(), half, n=3))


def test_several_places_lie_apart() -> None:
    places = next_places(nothing(), np.full((2, *SHAPE), 0.5, np.float32), n=4, reach_px=15)
    assert len(places) == 4
    assert [place.gain for place in places] == sorted((place.gain for place in places), reverse=True)
    for number, one in enumerate(places):
        for other in places[:number]:
            assert np.hypot(one.row - other.row, one.column - other.column) >= 30


def test_a_large_plane_gives_the_same_place_as_a_small_one() -> None:
    probabilities = sure_but(np.s_[80:110, 20:60])
    small = next_places(nothing(), probabilities)[0]
    large = next_places(np.kron(nothing(), np.ones((20, 20), np.uint8)), np.kron(probabilities, np.ones((1, 20, 20))),
                        reach_px=24 * 20)[0]
    assert (large.row / 20, large.column / 20) == pytest.approx((small.row, small.column), abs=3)


@settings(max_examples=40, deadline=None)
@given(npst.arrays(np.float32, st.tuples(st.integers(2, 4), st.just(12), st.just(15)),
                   elements=st.floats(0.0, 1.0, width=32)), st.integers(0, 2**32 - 1))
def test_gain_is_between_0_and_1_and_0_on_what_is_painted(logits: NDArray[np.float32], seed: int) -> None:
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    labels = np.random.default_rng(seed).integers(0, 2, (12, 15)).astype(np.uint8)
    labels[0, 0] = 1
    for other in (None, probabilities[::-1]):
        gain = stroke_gain(labels, probabilities, other)
        assert gain.shape == (12, 15)
        assert (gain >= 0).all()
        assert (gain <= 1 + 1e-6).all()
        assert (gain[labels > 0] == 0).all()


def test_uncertainty_and_disagreement_by_hand() -> None:
    one = np.array([[0.5, 0.9, 1.0, 0.0], [0.5, 0.1, 0.0, 0.0]], np.float32)[:, None]
    other = np.array([[0.5, 0.1, 1.0, 0.5], [0.5, 0.9, 0.0, 0.5]], np.float32)[:, None]
    np.testing.assert_allclose(uncertainty(one), [[1, 0.2, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(disagreement(one, other), [[0, 0.8, 0, 0]], atol=1e-6)


# ------------------------------------------------------------------------------------------------------- slips


def test_a_stroke_that_the_model_contradicts_is_a_probable_slip_and_no_other() -> None:
    probabilities, labels = sure_but(np.s_[:, 100:]), nothing()
    labels[10:14, 10:30] = 2  # what the model says
    labels[50:54, 10:40] = 1  # it is sure of class 1: a slip
    labels[80:83, 10:20] = 3  # a smaller one
    labels[20:24, 110:150] = 1  # it does not know
    slips = probable_slips(labels, probabilities)
    assert [(slip.painted, slip.said, slip.n_pixels) for slip in slips] == [(0, 1, 120), (2, 1, 30)]
    assert labels[slips[0].row, slips[0].column] == 1
    assert 50 <= slips[0].row < 54
    assert slips[0].confidence == pytest.approx(0.98)


def test_a_stroke_that_is_partly_right_or_not_predicted_yet_is_no_slip() -> None:
    probabilities, labels = sure_but(np.s_[0:1, 0:1]), nothing()
    labels[50:54, 10:40] = 1
    probabilities[:, 50:54, 10:20] = np.reshape((0.9, 0.05, 0.05), (3, 1, 1))
    assert probable_slips(labels, probabilities) == []
    assert probable_slips(labels, np.zeros_like(probabilities)) == []


# ------------------------------------------------------------------------------------------------------- hints


def test_hints_say_what_is_missing_and_what_is_rare() -> None:
    assert painting_hints((0, 0, 0), DEFAULT_CLASSES) == []
    assert painting_hints((4, 5, 3), DEFAULT_CLASSES) == []
    assert painting_hints((4, 5, 0), DEFAULT_CLASSES) == [
        "No 'boundary' painted yet: draw a few thin lines where cells touch."]
    assert painting_hints((4, 0, 2), DEFAULT_CLASSES) == ["No 'cell' painted yet."]
    assert painting_hints((16, 3, 4), DEFAULT_CLASSES) == [
        "'background' has 16 strokes, 'cell' 3 and 'boundary' 4: paint more of what is rare."]


def test_strokes_are_counted_by_connected_pieces_of_one_class() -> None:
    labels = nothing()
    labels[5, 5:9] = labels[6, 9] = labels[20, 20] = 1
    labels[5, 10] = 2
    assert strokes_per_class(labels, 3) == (2, 1, 0)


def test_a_look_does_not_wait_for_mirror_images() -> None:
    model = new_model(ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1,
                                network=NetworkConfig(depth=3, base_filters=8)), seed=0)
    planes, place = Planes(np.random.default_rng(0).normal(size=(64, 64)), "YX"), (slice(0, 64), slice(0, 64))
    configs = InferenceConfig(), InferenceConfig(mirrored=True)
    as_it_is, mirrored = (segment_array(model, planes, "probabilities", config=config) for config in configs)
    assert np.abs(as_it_is - mirrored).max() > 0.01
    looks = [run_to_end(look_over(model, planes, (), place, np.zeros((64, 64), np.uint8), DEFAULT_CLASSES,
                                  config=config, device=choose_device("cpu"), stop=StopToken())) for config in configs]
    np.testing.assert_array_equal(looks[0].unsure, looks[1].unsure)
