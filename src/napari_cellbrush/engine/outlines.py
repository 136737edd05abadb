"""Objects → polygons along the edges of their pixels, and exactly these.

Vertices are corners of pixels: the first pixel of an image has the corners (0, 0) and (1, 1). Knows ids; knows
nothing of the files that polygons go into.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from napari_cellbrush.errors import ImageError

Ring = NDArray[np.int64]

#: Along the upper, right, lower and left edge of a pixel, with the pixel on the right hand: row and column steps.
_AHEAD = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
#: The corner of a pixel where each of these edges begins.
_CORNER = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])


@dataclass(eq=False)
class Polygon:
    """One piece of an object, connected over edges. Rings are N × 2 int64, x and y, not closed, and never cross."""

    #: Clockwise as seen on the screen.
    outer: Ring
    #: Anticlockwise.
    holes: list[Ring] = field(default_factory=list)


def outlines(ids: NDArray[Any]) -> dict[int, list[Polygon]]:
    """Polygons of every object of a plane.

    The rings of a polygon touch themselves and each other at single corners at most, so they are valid "simple
    features" (ISO 19125); filling them by the even-odd rule gives the object's pixels again.

    Parameters
    ----------
    ids
        YX whole numbers; 0 background.

    Returns
    -------
    dict
        From id to its pieces, ids ascending, pieces by their first pixel.

    Raises
    ------
    ImageError
        If it is no plane.
    """
    if ids.ndim != 2:
        raise ImageError(f"Got objects of shape {ids.shape}, need one plane YX", "Give one plane at a time")
    pieces: NDArray[np.int64] = label(np.pad(ids, 1), background=0, connectivity=1)
    polygons: dict[int, Polygon] = {}
    first: dict[int, tuple[int, int]] = {}
    for piece, pixel, ring in _rings(pieces):
        # Twice the area, by the shoelace formula: positive is clockwise where y points down.
        x, y = ring.T
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0:
            polygons[piece] = Polygon(ring, polygons[piece].holes if piece in polygons else [])
            first[piece] = pixel
        else:
            polygons.setdefault(piece, Polygon(ring)).holes.append(ring)
    found: dict[int, list[Polygon]] = {}
    for piece in sorted(polygons):
        row, column = first[piece]
        found.setdefault(int(ids[row, column]), []).append(polygons[piece])
    return dict(sorted(found.items()))


def _rings(pieces: NDArray[np.int64]) -> Iterator[tuple[int, tuple[int, int], Ring]]:
    """Every ring with its piece and the pixel it begins at; ``pieces`` has an empty rim, which is not counted."""
    edges, following = _edges(pieces)
    direction, row, column = edges
    order = following.tolist()
    done = bytearray(len(order))
    corners = np.stack([row, column], axis=1) + _CORNER[direction]
    for start in range(len(order)):
        if done[start]:
            continue
        ring, edge = [], start
        while not done[edge]:
            done[edge] = 1
            ring.append(edge)
            edge = order[edge]
        pixel = int(row[start]) - 1, int(column[start]) - 1
        for simple in _simple_rings(corners[ring]):
            yield int(pieces[row[start], column[start]]), pixel, _without_straight(simple)[:, ::-1] - 1


def _edges(pieces: NDArray[np.int64]) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.int64]]:
    """Directed edges between a piece and what is not it (direction, row, column of its pixel), and the next of each."""
    same = [pieces == np.roll(pieces, (-down, -right), (0, 1)) for down, right in _AHEAD[[3, 0, 1, 2]]]
    outside = np.stack([(pieces > 0) & ~beyond for beyond in same])
    direction, row, column = np.nonzero(outside)
    piece = pieces[row, column]
    ahead = row + _AHEAD[direction, 0], column + _AHEAD[direction, 1]
    beside = _AHEAD[(direction - 1) % 4]
    across = ahead[0] + beside[:, 0], ahead[1] + beside[:, 1]
    # Around the pixel's own corner; else straight on; else along the pixel across.
    turns_right = pieces[ahead] != piece
    straight = ~turns_right & (pieces[across] != piece)
    next_direction = np.where(turns_right, direction + 1, np.where(straight, direction, direction - 1)) % 4
    next_row, next_column = (np.where(turns_right, own, np.where(straight, front, far))
                             for own, front, far in zip((row, column), ahead, across, strict=True))
    numbers = np.ravel_multi_index((direction, row, column), outside.shape)
    following = np.searchsorted(numbers, np.ravel_multi_index((next_direction, next_row, next_column), outside.shape))
    return (direction, row, column), following


def _simple_rings(corners: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut a ring that visits a corner twice into rings that do not."""
    keys = (corners[:, 0] << 32 | corners[:, 1]).tolist()
    if len(set(keys)) == len(keys):
        yield corners
        return
    path: list[int] = []
    place: dict[int, int] = {}
    for number, key in enumerate(keys):
        if key in place:
            cut = place[key]
            yield corners[path[cut:]]
            for removed in path[cut:]:
                del place[keys[removed]]
            del path[cut:]
        place[key] = len(path)
        path.append(number)
    yield corners[path]


def _without_straight(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """The corners at which a ring turns."""
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    turns: NDArray[np.int64] = corners[(before != after).any(axis=1)]
    return turns
