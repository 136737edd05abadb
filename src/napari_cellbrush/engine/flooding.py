"""A watershed whose answer at a pixel does not depend on where the image was cut.

Usual watersheds break ties by the order in which pixels entered a queue, and that order changes with everything
else in the image, so a window of an image and the whole of it differ. Here every tie is broken by the pixel's own
neighbourhood. Knows arrays; knows nothing of cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Level of pixels that are not to be flooded.
NEVER = 255


def flooded(seeds: NDArray[np.int32], levels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Grow seeds over a landscape, the lowest places first (Beucher and Lantuéjoul 1979; Meyer 1994).

    The water rises level by level. On each level, all seeds advance by one pixel (over edges, not corners) at the
    same time, until they can go no further; a pixel that several reach in the same step goes to the one that comes
    from above, else from the left, the right, below. Therefore a pixel's seed depends on its best path to a seed
    alone: in any window that holds this path, the pixel gets the same seed as in the whole image, as long as every
    seed that wins a pixel there does so in the whole image too.

    Parameters
    ----------
    seeds
        YX int32; 0 where there is none. Seeds keep their pixels.
    levels
        YX uint8, like ``seeds``; 0…254 height of the landscape, 255 where no seed may go.

    Returns
    -------
    NDArray
        YX int32: the seed of each pixel, 0 where none came.
    """
    width = seeds.shape[1] + 2
    ids = np.pad(seeds, 1).ravel()
    # A pixel that has its seed is closed like one that no seed may enter.
    level = np.pad(np.where(seeds > 0, np.uint8(NEVER), levels), 1, constant_values=NEVER).ravel()
    steps = (width, 1, -1, -width)
    shore = _open_beside(ids > 0, level, steps)
    known = np.zeros(ids.shape, bool)
    known[shore] = True
    # Pixels beside the water, by their level: none is flooded before the water has come so high, and then all are.
    waiting = _by_level(shore, level)
    while waiting:
        height = min(waiting)
        front = _adopted(np.concatenate(waiting.pop(height)), ids, level, steps)
        higher = [front[:0]]
        while front.size:
            front = _advanced(front, height, ids, level, known, steps, higher)
        for later, found in _by_level(np.concatenate(higher), level).items():
            waiting.setdefault(later, []).extend(found)
    return np.ascontiguousarray(ids.reshape(-1, width)[1:-1, 1:-1])


def _open_beside(filled: NDArray[np.bool_], level: NDArray[np.uint8], steps: tuple[int, ...]) -> NDArray[np.intp]:
    """Pixels still to be flooded beside filled ones."""
    beside = np.zeros_like(filled)
    for step in steps:
        if step > 0:
            beside[step:] |= filled[:-step]
        else:
            beside[:step] |= filled[-step:]
    return np.flatnonzero(beside & (level < NEVER))


def _by_level(pixels: NDArray[np.intp], level: NDArray[np.uint8]) -> dict[int, list[NDArray[np.intp]]]:
    """Pixels in groups of one level each."""
    order = np.argsort(level[pixels], kind="stable")
    levels, first = np.unique(level[pixels[order]], return_index=True)
    # Of no pixels there is one empty group, and no level.
    groups = np.split(pixels[order], first[1:])
    return {int(height): [group] for height, group in zip(levels, groups, strict=False)}


def _adopted(pixels: NDArray[np.intp], ids: NDArray[np.int32], level: NDArray[np.uint8],
             steps: tuple[int, ...]) -> NDArray[np.intp]:
    """Give pixels that waited for their level the seed of a neighbour, as it was before any of them had one."""
    found = ids[pixels - steps[0]]
    for step in steps[1:]:
        found = np.where(found > 0, found, ids[pixels - step])
    ids[pixels] = found
    level[pixels] = NEVER
    return pixels


def _advanced(front: NDArray[np.intp], height: int, ids: NDArray[np.int32], level: NDArray[np.uint8],
              known: NDArray[np.bool_], steps: tuple[int, ...], higher: list[NDArray[np.intp]]) -> NDArray[np.intp]:
    """One step of all seeds: the pixels won, while those that lie ``higher`` are told to wait, once each."""
    seeds, won = ids[front], []
    for step in steps:
        reached = front + step
        heights = level[reached]
        low = heights <= height
        now = reached[low]
        ids[now] = seeds[low]
        level[now] = NEVER
        won.append(now)
        new = reached[~low & (heights < NEVER) & ~known[reached]]
        known[new] = True
        higher.append(new)
    return np.concatenate(won)
