"""A simulated annotator: short strokes along the middle of what it knows to be there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import skeletonize

#: As a person with a small brush paints: 3 px wide, about 50 px long.
BRUSH_PX = 3
LENGTH_PX = 50
#: Nobody goes further than this to find the middle of what is to be painted.
NEAR_PX = 12


def paint(truth: NDArray[np.uint8], n_each: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Strokes on a class map.

    Parameters
    ----------
    truth
        YX; 1…K, 0 where nobody knows.
    n_each
        Strokes per class.
    random
        Where they begin.

    Returns
    -------
    NDArray
        YX uint8, 0 unlabelled. No stroke leaves its class.
    """
    labels = np.zeros(truth.shape, np.uint8)
    for value in np.unique(truth[truth > 0]):
        region = truth == value
        # The middle of a padded mask: otherwise the image's border would count as the middle.
        middle = skeletonize(region)
        if not middle.any():
            middle = region
        for _ in range(n_each):
            labels[_brushed(_stroke(middle, *random.choice(np.argwhere(middle))), region)] = value
    return labels


def stroke_at(truth: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    """One stroke on a class map at a place, of the class that is there: along its middle line where that is near.

    Where it is not, as in the background, the stroke is a dash across the place.

    Parameters
    ----------
    truth
        YX; 1…K, 0 where nobody knows: then the nearest place where somebody does.
    row, column
        Inside the map.

    Returns
    -------
    NDArray
        YX uint8, 0 unlabelled. No stroke leaves its class.
    """
    known = np.argwhere(truth > 0)
    row, column = known[((known - (row, column)) ** 2).sum(axis=1).argmin()]
    region = truth == truth[row, column]
    middle = skeletonize(region)
    points = np.argwhere(middle)
    far = ((points - (row, column)) ** 2).sum(axis=1)
    if not len(points) or far.min() > NEAR_PX**2:
        middle = np.zeros_like(region)
        middle[row] = region[row]
        start = (row, column)
    else:
        start = points[far.argmin()]
    return np.where(_brushed(_stroke(middle, *start), region), truth[row, column], 0).astype(np.uint8)


def _brushed(stroke: NDArray[np.bool_], region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    brushed: NDArray[np.bool_] = ndimage.binary_dilation(stroke, np.ones((BRUSH_PX, BRUSH_PX))) & region
    return brushed




def correct(labels: NDArray[np.uint8], truth: NDArray[np.uint8], answer: NDArray[np.integer], n_each: int,
            random: np.random.Generator) -> NDArray[np.uint8]:
    """The strokes so far, and new ones where an answer is most wrong.

    Parameters
    ----------
    labels
        YX, the strokes so far; 0 unlabelled.
    truth, answer
        YX; 1…K.
    n_each
        New strokes per class, one in each of the largest pieces that should be of the class and are not.
    random
        Where in a piece they begin.
    """
    labels = labels.copy()
    for value in np.unique(truth[truth > 0]):
        region = truth == value
        pieces: NDArray[np.integer] = label(region & (answer != value), connectivity=1)
        largest = np.argsort(np.bincount(pieces.ravel())[1:], kind="stable")[::-1][:n_each] + 1
        for piece in largest:
            wrong = pieces == piece
            middle = skeletonize(wrong)
            middle = middle if middle.any() else wrong
            labels[_brushed(_stroke(middle, *random.choice(np.argwhere(middle))), region)] = value
    return labels


def _stroke(middle: NDArray[np.bool_], row: int, column: int) -> NDArray[np.bool_]:
    """The middle line within half a stroke's length, along the line, of a pixel of it."""
    reach = LENGTH_PX // 2
    top, left = max(0, row - reach), max(0, column - reach)
    window = middle[top : row + reach + 1, left : column + reach + 1]
    seed = np.zeros_like(window)
    seed[row - top, column - left] = True
    stroke = np.zeros_like(middle)
    stroke[top : row + reach + 1, left : column + reach + 1] = ndimage.binary_dilation(
        seed, np.ones((3, 3)), iterations=reach, mask=window)
    return stroke
