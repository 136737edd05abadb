"""How much more a pixel counts for lying between two objects: the weight map of Ronneberger et al. 2015, equation 2.

Knows masks of instances and of classes; knows nothing of losses or images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as label_by_value

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.engine.annotation import whole_numbers
from napari_cellbrush.errors import AnnotationError

#: Weight between objects that touch, and standard deviation in pixels, as in the paper.
PAPER_W0 = 10.0
PAPER_SIGMA_PX = 5.0
#: Border weights below this are taken as 0; the class weight is about 1.
NEGLIGIBLE = 1e-3
#: Rows that are worked on at a time: what they need fits the cache of a core.
_BAND_PX = 256


def border_weights(
    instances: NDArray[Any], *, known: NDArray[np.bool_] | None = None, class_weight: NDArray[Any] | float = 1.0,
    w0: float = PAPER_W0, sigma_px: float = PAPER_SIGMA_PX,
) -> NDArray[np.float32]:
    """w(x) = w_c(x) + w0 · exp(−(d1(x) + d2(x))² / 2σ²) (Ronneberger, Fischer, Brox 2015, MICCAI, equation 2).

    d1 and d2 are the distances in pixels from x to the nearest and the second nearest object; inside an object d1 is
    0. The exponential is left out where it is below :data:`NEGLIGIBLE`, which makes w exact elsewhere and at most
    that much too small there. The cost depends on the number of pixels and on σ, not on the number of objects.

    Parameters
    ----------
    instances
        YX whole numbers; 0 background, each other value one object.
    known
        YX; where somebody labelled. Elsewhere w is 0. Objects that nobody labelled cannot be minded.
    class_weight
        w_c, a number or YX.
    w0, sigma_px
        As in the formula.

    Returns
    -------
    NDArray
        YX float32.

    Raises
    ------
    AnnotationError
        If ids are not whole numbers, or shapes or parameters do not fit.
    """
    ids = whole_numbers(instances, "the instance mask")
    fits = (known is None or known.shape == ids.shape) and np.shape(class_weight) in ((), ids.shape)
    if ids.ndim != 2 or not fits:
        known_shape = () if known is None else known.shape
        raise AnnotationError(f"Got instances of shape {ids.shape}, a known-mask of shape {known_shape} and class "
                              f"weights of shape {np.shape(class_weight)}, need one plane YX of one shape",
                              "Give one plane at a time")
    if not (w0 >= 0 and sigma_px > 0):
        raise AnnotationError(f"Got w0 = {w0} and sigma = {sigma_px} px, need w0 from 0 on and sigma above 0",
                              f"The paper has {PAPER_W0} and {PAPER_SIGMA_PX}")
    weights = np.zeros(ids.shape, np.float32)
    weights += np.asarray(class_weight, np.float32)
    weights += _between(ids, w0, sigma_px)
    return weights if known is None else np.where(known, weights, np.float32(0))


def annotation_weights(labels: NDArray[np.uint8], classes: Sequence[ClassDefinition], *, w0: float = PAPER_W0,
                       sigma_px: float = PAPER_SIGMA_PX) -> NDArray[np.float32]:
    """What each labelled pixel weighs in training: more, the narrower the gap between two painted cells.

    Painted pieces of a class with the role "object" are the objects of :func:`border_weights`, whether strokes or
    whole cells. Two strokes in one cell make no gap, unless somebody painted something else between them.

    Parameters
    ----------
    labels
        YX; 0 unlabelled, k + 1 for class number k.
    classes
        What the numbers mean.
    w0, sigma_px
        As in :func:`border_weights`.

    Returns
    -------
    NDArray
        YX float32; 0 where nothing is labelled, else from 1 to 1 + w0. Memory is used, and time spent, only where
        something is labelled.
    """
    of_objects = [value for value, definition in enumerate(classes, start=1) if definition.role == "object"]
    pieces: NDArray[np.int32] = label_by_value(np.where(np.isin(labels, of_objects), labels, 0), background=0,
                                               connectivity=2).astype(np.int32)
    # Pages of zeros that are never written take no memory.
    weights = np.zeros(labels.shape, np.float32)
    reach = reach_px(w0, sigma_px)
    for top, left in np.ndindex(*(-(-side // _BAND_PX) for side in labels.shape)):
        block = tuple(slice(at * _BAND_PX, min((at + 1) * _BAND_PX, side))
                      for at, side in zip((top, left), labels.shape, strict=True))
        known = labels[block] > 0
        if known.any():
            read = _widened(block, reach, labels.shape)
            inner = _inside(block, read)
            weights[block] = np.where(known, border_weights(pieces[read], w0=w0, sigma_px=sigma_px)[inner], 0)
    return weights


def updated_border_weights(
    weights: NDArray[np.float32], instances: NDArray[Any], edited: tuple[slice, slice], *,
    known: NDArray[np.bool_] | None = None, class_weight: NDArray[Any] | float = 1.0, w0: float = PAPER_W0,
    sigma_px: float = PAPER_SIGMA_PX,
) -> tuple[slice, slice]:
    """Bring weights up to date after an edit, in place; the result is that of :func:`border_weights` on everything.

    Parameters
    ----------
    weights
        YX float32, what :func:`border_weights` gave before the edit. A class weight that changed is seen only around
        the edit.
    instances, known, class_weight, w0, sigma_px
        After the edit.
    edited
        Rows and columns outside of which nothing changed.

    Returns
    -------
    tuple of slice
        Rows and columns of ``weights`` that were computed anew.
    """
    reach = reach_px(w0, sigma_px)
    changed = _widened(edited, reach, instances.shape)
    read = _widened(changed, reach, instances.shape)
    of_window = border_weights(instances[read], known=None if known is None else known[read], w0=w0, sigma_px=sigma_px,
                               class_weight=class_weight if np.ndim(class_weight) == 0
                               else np.asarray(class_weight)[read])
    weights[changed] = of_window[_inside(changed, read)]
    return changed


def reach_px(w0: float = PAPER_W0, sigma_px: float = PAPER_SIGMA_PX) -> int:
    """The largest d1 + d2, in pixels, at which the border weight is not negligible."""
    return math.ceil(sigma_px * math.sqrt(2 * math.log(max(w0 / NEGLIGIBLE, 1.0))))


def _between(ids: NDArray[Any], w0: float, sigma_px: float) -> NDArray[np.float32]:
    reach = reach_px(w0, sigma_px)
    if not reach or not ids.any():
        return np.zeros(ids.shape, np.float32)
    nearest, (rows, columns) = ndimage.distance_transform_edt(ids == 0, return_indices=True)
    nearest_id, second = ids[rows, columns], np.empty(ids.shape, np.int32)
    for top in range(0, len(ids), _BAND_PX):
        band = slice(top, min(top + _BAND_PX, len(ids)))
        read = slice(max(0, band.start - reach), band.stop + reach)
        inner = slice(band.start - read.start, band.stop - read.start)
        second[band] = _second_nearest(ids[read], nearest_id[read], reach)[inner]
    total = nearest + np.sqrt(second)
    exponential = w0 * np.exp(-(total**2) / (2 * sigma_px**2))
    return np.where(exponential >= NEGLIGIBLE, exponential, 0).astype(np.float32)


def _second_nearest(ids: NDArray[Any], nearest_id: NDArray[Any], reach: int) -> NDArray[np.int32]:
    """Squared distance to the nearest object but ``nearest_id``; more than reach² stands for anything beyond.

    First along columns, then along rows, like a distance transform. In a column only the two objects nearest to a
    row can matter to that row: were the second nearest object a third one there, two would be nearer than it.
    """
    far = np.int32(4 * reach**2 + 1)
    (first_id, first), (_, second) = _two_nearest_in_column(ids, reach, far)
    best = np.full(ids.shape, far, np.int32)
    for step in range(-reach, reach + 1):
        here, there = _shifted(ids.shape[1], step)
        other = np.where(first_id[:, there] != nearest_id[:, here], first[:, there], second[:, there])
        np.minimum(best[:, here], other + np.int32(step**2), out=best[:, here])
    return best


def _two_nearest_in_column(ids: NDArray[Any], reach: int, far: np.int32) -> tuple[
        tuple[NDArray[Any], NDArray[np.int32]], tuple[NDArray[Any], NDArray[np.int32]]]:
    """The two nearest objects of each pixel in its column, with squared distances."""
    first_id, second_id = ids.copy(), np.zeros_like(ids)
    first, second = np.where(ids > 0, np.int32(0), far), np.full(ids.shape, far, np.int32)
    for distance in range(1, reach + 1):
        for step in (-distance, distance):
            here, there = _shifted(ids.shape[0], step)
            found = ids[there]
            new = (found > 0) & (second_id[here] == 0) & (found != first_id[here])
            # What is found first of all is the nearest, what is found next and is another object the second.
            to_first = new & (first_id[here] == 0)
            to_second = new & ~to_first
            np.copyto(first_id[here], found, where=to_first)
            np.copyto(first[here], np.int32(distance**2), where=to_first)
            np.copyto(second_id[here], found, where=to_second)
            np.copyto(second[here], np.int32(distance**2), where=to_second)
    return (first_id, first), (second_id, second)


def _shifted(length: int, step: int) -> tuple[slice, slice]:
    """Positions that have a neighbour ``step`` further, and those neighbours."""
    return slice(max(0, -step), max(0, length - max(0, step))), slice(max(0, step), max(0, length + min(0, step)))


def _widened(window: tuple[slice, ...], margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = (slice(max(0, side.start - margin), min(length, side.stop + margin))
                     for side, length in zip(window, shape, strict=True))
    return rows, columns


def _inside(window: tuple[slice, ...], larger: tuple[slice, slice]) -> tuple[slice, ...]:
    """Where a window lies in an array that covers a larger one."""
    return tuple(slice(w.start - r.start, w.stop - r.start) for w, r in zip(window, larger, strict=True))
