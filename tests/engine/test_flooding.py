from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_cellbrush.engine.flooding import NEVER, flooded

#: Where a pixel's neighbours lie, in the order in which ties are broken.
NEIGHBOURS = ((-1, 0), (0, -1), (0, 1), (1, 0))
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def landscapes(draw: st.DrawFn) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    shape = draw(sizes)
    levels = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 2, 254, NEVER])))
    seeds = draw(arrays(np.int32, shape, elements=st.sampled_from([0, 0, 0, 0, 1, 2, 3])))
    return seeds, levels


def neighbours(place: tuple[int, int], shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for down, right in NEIGHBOURS:
        row, column = place[0] + down, place[1] + right
        if 0 <= row < shape[0] and 0 <= column < shape[1]:
            yield row, column


def by_definition(seeds: NDArray[np.int32], levels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Raise the water level by level, and move all seeds one pixel at a time, in plain loops."""
    ids = seeds.copy()
    for height in range(NEVER):
        while True:
            won = {}
            for place in zip(*np.nonzero((ids == 0) & (levels <= height)), strict=True):
                won[place] = next((ids[n] for n in neighbours(place, ids.shape) if ids[n]), 0)
            if not any(won.values()):
                break
            for place, seed in won.items():
                ids[place] = seed
    return ids


@settings(deadline=None, max_examples=100)
@given(landscape=landscapes())
def test_it_is_the_flooding_that_is_described(landscape: tuple[NDArray[np.int32], NDArray[np.uint8]]) -> None:
    np.testing.assert_array_equal(flooded(*landscape), by_definition(*landscape))


def test_a_ridge_parts_two_basins_however_far_its_crest_is_from_the_middle() -> None:
    levels = np.array([[0, 1, 2, 3, 4, 5, 6, 9, 1, 0]], np.uint8)
    seeds = np.zeros_like(levels, np.int32)
    seeds[0, 0], seeds[0, -1] = 1, 2
    np.testing.assert_array_equal(flooded(seeds, levels)[0, :7], 1)
    np.testing.assert_array_equal(flooded(seeds, levels)[0, 8:], 2)


def test_nothing_grows_without_a_seed_or_over_closed_pixels() -> None:
    closed = np.full((4, 4), NEVER, np.uint8)
    seeds = np.zeros((4, 4), np.int32)
    assert not flooded(seeds, np.zeros_like(closed)).any()
    seeds[1, 1] = 7
    np.testing.assert_array_equal(flooded(seeds, closed), seeds)
