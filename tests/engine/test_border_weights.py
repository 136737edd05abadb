from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as label_by_value

from napari_cellbrush.config import DEFAULT_CLASSES, classes_from_names
from napari_cellbrush.engine.border_weights import (
    NEGLIGIBLE,
    PAPER_W0,
    annotation_weights,
    border_weights,
    reach_px,
    updated_border_weights,
)
from napari_cellbrush.errors import AnnotationError

sigmas = st.sampled_from([0.5, 1.0, 2.0, 5.0])


@st.composite
def instance_masks(draw: st.DrawFn) -> NDArray[np.int32]:
    """Scattered pixels and blocks of a few ids, in several pieces, touching or not, or none at all."""
    ids = draw(arrays(np.int32, st.tuples(st.integers(1, 24), st.integers(1, 24)), fill=st.just(0),
                      elements=st.sampled_from([0, 0, 0, 1, 2, 7, 70_000])))
    return ndimage.grey_dilation(ids, size=draw(st.sampled_from([1, 3])))


def by_the_formula(ids: NDArray[Any], w0: float, sigma: float) -> NDArray[np.float64]:
    distances = [ndimage.distance_transform_edt(ids != number) for number in np.unique(ids) if number]
    if len(distances) < 2:
        return np.ones(ids.shape)
    d1, d2 = np.sort(distances, axis=0)[:2]
    return 1 + w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))


@settings(deadline=None, max_examples=60)
@given(ids=instance_masks(), w0=st.sampled_from([1.0, 10.0]), sigma=sigmas)
def test_it_is_equation_2_wherever_that_is_not_negligible(ids: NDArray[np.int32], w0: float, sigma: float) -> None:
    weights, expected = border_weights(ids, w0=w0, sigma_px=sigma), by_the_formula(ids, w0, sigma)
    counts = expected - 1 > NEGLIGIBLE * 1.0001
    np.testing.assert_allclose(weights[counts], expected[counts], rtol=1e-6)
    assert (np.abs(weights - expected) <= NEGLIGIBLE * 1.001).all() or counts.any()
    assert np.abs(weights - expected)[~counts].max(initial=0) <= NEGLIGIBLE * 1.001


@settings(deadline=None, max_examples=60)
@given(ids=instance_masks(), data=st.data(), sigma=sigmas)
def test_an_edit_is_brought_up_to_date_in_a_window(ids: NDArray[np.int32], data: st.DataObject, sigma: float) -> None:
    weights = border_weights(ids, sigma_px=sigma)
    top, left = (data.draw(st.integers(0, length - 1)) for length in ids.shape)
    edited = slice(top, top + data.draw(st.integers(1, 4))), slice(left, left + data.draw(st.integers(1, 4)))
    ids[edited] = data.draw(st.sampled_from([0, 1, 9]))
    updated_border_weights(weights, ids, edited, sigma_px=sigma)
    np.testing.assert_array_equal(weights, border_weights(ids, sigma_px=sigma))


def test_an_edit_costs_a_window_and_not_the_image() -> None:
    ids = np.zeros((400, 400), np.int32)
    weights = border_weights(ids)
    rows, columns = updated_border_weights(weights, ids, (slice(200, 210), slice(100, 110)))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (10 + 2 * reach_px(), 10 + 2 * reach_px())


def test_only_labelled_pixels_weigh_and_class_weights_are_added() -> None:
    ids = np.zeros((9, 9), np.uint16)
    ids[:, :3], ids[:, 5:] = 1, 2
    known = np.zeros(ids.shape, bool)
    known[4] = True
    balance = np.where(ids > 0, 0.5, 2.0)
    weights = border_weights(ids, known=known, class_weight=balance)
    assert not weights[~known].any()
    np.testing.assert_allclose(weights[4, 3:5], 2 + 10 * np.exp(-9 / 50), rtol=1e-6)
    np.testing.assert_allclose(weights[4, 2], 0.5 + 10 * np.exp(-9 / 50), rtol=1e-6)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"known": np.ones((2, 2), bool)}, "known-mask of shape"),
    ({"class_weight": np.ones(3)}, "class weights of shape"),
    ({"sigma_px": 0.0}, "sigma = 0"),
    ({"w0": -1.0}, "w0 = -1"),
])
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        border_weights(np.zeros((3, 3), np.uint8), **arguments)


def test_a_painted_pixel_weighs_what_the_gap_between_painted_cells_says() -> None:
    """Across several blocks, with strokes for cells, and whatever is not painted weighing nothing."""
    random = np.random.default_rng(0)
    labels = np.where(random.random((300, 530)) < 0.2, random.integers(1, 4, (300, 530)), 0).astype(np.uint8)
    labels[250:262, 250:262] = 1
    labels[250:262, 255:257] = 2
    cells = label_by_value(np.where(labels == 2, labels, 0), background=0, connectivity=2)
    np.testing.assert_array_equal(annotation_weights(labels, DEFAULT_CLASSES, sigma_px=3),
                                  border_weights(cells, known=labels > 0, sigma_px=3))


def test_cells_of_different_classes_that_touch_are_two() -> None:
    classes = classes_from_names(["background", "round", "long"])
    labels = np.ones((9, 20), np.uint8)
    labels[:, 4:8], labels[:, 8:12] = 2, 3
    assert annotation_weights(labels, classes)[4, 8] > 1 + PAPER_W0 * 0.9
    labels[labels == 3] = 2
    assert annotation_weights(labels, classes).max() == 1


def test_a_plane_without_labels_weighs_nothing() -> None:
    assert not annotation_weights(np.zeros((300, 40), np.uint8), DEFAULT_CLASSES).any()
