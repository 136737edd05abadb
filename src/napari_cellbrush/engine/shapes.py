"""Sizes and shapes of all objects at once, from the runs of pixels that they are made of.

Values are those of scikit-image's ``regionprops``, which looks at objects one by one and takes ten times as long
for thousands of them. Knows dense ids and counts pixels; knows nothing of units, tables and images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Runs:
    """Pixels of one object beside each other in a row, ordered by object, then row, then column."""

    #: Number of the object, from 0; every object has a run.
    owner: Whole
    #: Index of the row along each axis but the last, axes × runs.
    rows: Whole
    #: First column, and one after the last.
    start: Whole
    stop: Whole
    #: Position of each object's first run.
    first: NDArray[np.intp]

    @property
    def length(self) -> Whole:
        """Pixels of each run."""
        return self.stop - self.start

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum of one value a run over each object."""
        summed: NDArray[Any] = np.add.reduceat(values, self.first)
        return summed


def runs_of(ids: NDArray[Any]) -> Runs:
    """The runs of objects 1…n, all of which are there; ``ids`` has two axes or more."""
    lines = ids.reshape(-1, ids.shape[-1])
    begins, ends = lines > 0, lines > 0
    changes = lines[:, 1:] != lines[:, :-1]
    begins[:, 1:] &= changes
    ends[:, :-1] &= changes
    row, start = np.nonzero(begins)
    stop = np.nonzero(ends)[1] + 1
    owner = lines[row, start].astype(np.int64) - 1
    order = np.argsort(owner, kind="stable")
    owner = owner[order]
    return Runs(owner, np.stack(np.unravel_index(row[order], ids.shape[:-1])), start[order], stop[order],
                np.flatnonzero(np.diff(owner, prepend=-1)))


def boxes(runs: Runs) -> tuple[Whole, Whole]:
    """First pixel of each object's bounding box, and one after the last, axes × objects."""
    low = np.minimum.reduceat(np.vstack([runs.rows, runs.start]), runs.first, axis=1)
    return low, np.maximum.reduceat(np.vstack([runs.rows + 1, runs.stop]), runs.first, axis=1)


def centroids(runs: Runs, low: Whole) -> Real:
    """In pixels, axes × objects. Counted from the boxes' first pixel ``low``, so that large images lose no digits."""
    size = runs.total(runs.length)
    beside = runs.length * (runs.start + runs.stop - 1 - 2 * low[-1, runs.owner]) / 2
    sums = [runs.total(runs.length * (row - low[axis, runs.owner])) for axis, row in enumerate(runs.rows)]
    centres: Real = low + np.stack([*sums, runs.total(beside)]) / size
    return centres


def ellipses(runs: Runs, low: Whole, spacing: tuple[float, float]) -> tuple[Real, Real]:
    """Eccentricity, and angle from the row axis in radians, of the ellipse with an object's second moments (YX)."""
    size = runs.total(runs.length).astype(np.float64)
    down = (runs.rows[0] - low[0, runs.owner]).astype(np.float64)
    start, stop = runs.start - low[1, runs.owner], runs.stop - low[1, runs.owner]
    right = runs.length * (start + stop - 1) / 2
    sum_y, sum_x = runs.total(runs.length * down), runs.total(right)
    # Products of whole numbers: symmetrical objects get exactly equal moments.
    yy = (size * runs.total(runs.length * down**2) - sum_y**2) * spacing[0] ** 2
    xx = (size * runs.total(_squares_below(stop) - _squares_below(start)) - sum_x**2) * spacing[1] ** 2
    xy = (size * runs.total(right * down) - sum_y * sum_x) * spacing[0] * spacing[1]
    half = np.hypot((yy - xx) / 2, xy)
    long, short = (yy + xx) / 2 + half, np.maximum((yy + xx) / 2 - half, 0)
    eccentricity = np.sqrt(1 - np.divide(short, long, out=np.ones_like(long), where=long > 0))
    return eccentricity, np.arctan2(2 * xy, yy - xx) / 2


def perimeters(ids: NDArray[Any], n: int) -> Real:
    """By Crofton's formula: how often lines in four directions leave each object (YX), in pixels."""
    leaves = [np.bincount(ids[_leaving(ids, down, right)], minlength=n + 1)[1:]
              for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))]
    straight, diagonal = leaves[0] + leaves[1], leaves[2] + leaves[3]
    lengths: Real = math.pi / 4 * (straight + diagonal / math.sqrt(2))
    return lengths


def convex_areas(runs: Runs, low: Whole, high: Whole) -> Whole:
    """Pixels whose centres lie in the convex hull of an object (YX); pixels are diamonds, as in scikit-image."""
    heights = high[0] - low[0]
    owner = np.repeat(np.arange(len(heights)), heights)
    row = np.arange(len(owner)) - np.repeat(np.cumsum(heights) - heights, heights) + low[0, owner]
    right = _hull_ends(runs.owner, runs.rows[0], runs.stop - 1, owner, row)
    left = _hull_ends(runs.owner, runs.rows[0], -runs.start, owner, row)
    return np.bincount(owner, right + left + 1, minlength=len(heights)).astype(np.int64)


def _hull_ends(owner: Whole, row: Whole, column: Whole, at_owner: Whole, at_row: Whole) -> Whole:
    """The last column inside the right side of objects' hulls, for each of many objects and rows."""
    # Half pixels are whole here, so that nothing is rounded. A diamond has its corners half a pixel above, beside and
    # below the centre; `place` runs through all rows of all objects, with a gap in between.
    gap = 2 * int(row.max()) + 4
    place, reach = owner * gap + 2 * row + 1, 2 * column
    places = np.concatenate([place - 1, place, place + 1])
    reaches = np.concatenate([reach, reach + 1, reach])
    order = np.lexsort((reaches, places))
    places, reaches = places[order], reaches[order]
    farthest = np.append(places[1:] != places[:-1], True)
    places, reaches = places[farthest], reaches[farthest]
    while True:
        # What does not stick out between its neighbours is no corner of a convex hull, whatever else is left out.
        before, after = np.diff(places)[:-1], np.diff(places)[1:]
        same = places[2:] // gap == places[:-2] // gap
        inside = same & ((reaches[1:-1] - reaches[:-2]) * after <= (reaches[2:] - reaches[1:-1]) * before)
        if not inside.any():
            break
        kept = np.concatenate([[True], ~inside, [True]])
        places, reaches = places[kept], reaches[kept]
    wanted = at_owner * gap + 2 * at_row + 1
    below = np.searchsorted(places, wanted, side="right") - 1
    span = places[below + 1] - places[below]
    # Rounded down to whole pixels: reach / 2.
    risen = reaches[below] * span + (reaches[below + 1] - reaches[below]) * (wanted - places[below])
    ends: Whole = risen // (2 * span)
    return ends


def _squares_below(number: Whole) -> Real:
    """0² + 1² + … + (number − 1)²."""
    values = number.astype(np.float64)
    return (values - 1) * values * (2 * values - 1) / 6


def _leaving(ids: NDArray[Any], down: int, right: int) -> NDArray[np.bool_]:
    """Pixels of objects whose neighbour in a direction is none of theirs, or outside."""
    different = ids > 0
    here = different[: len(ids) - down, max(0, -right) : ids.shape[1] - max(0, right)]
    there = ids[down:, max(0, right) : ids.shape[1] - max(0, -right)]
    here &= ids[: len(ids) - down, max(0, -right) : ids.shape[1] - max(0, right)] != there
    return different
