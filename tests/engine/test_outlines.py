from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.engine.outlines import Ring, outlines
from napari_cellbrush.errors import ImageError

planes = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                elements=st.sampled_from([0, 1, 1, 2, 70_000]))


def filled(rings: list[Ring], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Even-odd rule at the pixels' centres: every vertical edge on the left of a pixel turns it."""
    mask = np.zeros(shape, bool)
    for ring in rings:
        for (x, y), (next_x, next_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if x == next_x:
                mask[min(y, next_y) : max(y, next_y), x:] ^= True
    return mask


def area(ring: Ring) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


@settings(deadline=None, max_examples=150)
@given(ids=planes)
def test_polygons_hold_exactly_the_pixels_and_are_simple(ids: NDArray[np.int32]) -> None:
    found = outlines(ids)
    assert list(found) == sorted(set(ids.ravel().tolist()) - {0})
    for number, polygons in found.items():
        rings = [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
        np.testing.assert_array_equal(filled(rings, ids.shape), ids == number)
        assert sum(area(ring) for ring in rings) == (ids == number).sum()
        for polygon in polygons:
            assert area(polygon.outer) > 0
            assert all(area(hole) < 0 for hole in polygon.holes)
        for ring in rings:
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps == 0).sum(axis=1) == 1).all()


def test_one_pixel_has_four_corners() -> None:
    ids = np.zeros((3, 3), np.uint8)
    ids[1, 2] = 5
    np.testing.assert_array_equal(outlines(ids)[5][0].outer, [[2, 1], [3, 1], [3, 2], [2, 2]])


def test_a_hole_that_touches_the_rim_at_a_corner_is_a_ring_of_its_own() -> None:
    ids = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    (polygon,) = outlines(ids)[1]
    assert len(polygon.holes) == 1
    assert area(polygon.holes[0]) == -1


def test_a_stack_is_refused() -> None:
    with pytest.raises(ImageError, match="one plane"):
        outlines(np.zeros((2, 3, 3), np.uint8))
