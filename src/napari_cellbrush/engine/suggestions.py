"""What a person might paint next: places a model does not know, strokes it contradicts, classes that lack strokes.

It takes class probabilities from wherever they come and knows no network. Nothing here changes a stroke: a person
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_cellbrush.config import ClassDefinition

#: About half the length of a stroke: what one stroke tells about, and how far apart two suggestions are.
REACH_PX = 24.0
#: Places are looked for on at most so many points along a side: finer ones would not move a camera otherwise.
_MAX_SIDE = 1024
#: A stroke is a probable slip if its class has less than this probability there on average, …
_BELIEVED_LESS_THAN = 0.1
#: … and one other class has more than this: being unsure is no contradiction.
_CONTRADICTED_BY = 0.8
#: A class with fewer strokes than this share of another's is worth a hint.
_FEW_SHARE = 0.25
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Place:
    """Where a stroke would help."""

    #: In pixels of the plane.
    row: float
    column: float
    #: How much, in [0, 1]; for comparing places.
    gain: float


@dataclass(frozen=True)
class Slip:
    """A stroke that a model contradicts."""

    #: A pixel of the stroke, near its middle.
    row: int
    column: int
    n_pixels: int
    #: Class numbers from 0 on: what was painted, and what the model says.
    painted: int
    said: int
    #: Mean probability of what the model says, in [0, 1].
    confidence: float


def uncertainty(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """One minus the margin between the two most probable classes (Scheffer, Decomain, Wrobel 2001).

    Parameters
    ----------
    probabilities
        KYX in [0, 1]; all 0 where nothing is known yet.

    Returns
    -------
    NDArray
        YX in [0, 1]; 1 where two classes are as probable as each other, 0 where nothing is known yet.
    """
    top = np.partition(probabilities, -2, axis=0)[-2:].astype(np.float32)
    return np.where(top[1] > 0, 1 - (top[1] - top[0]), 0).astype(np.float32)


def disagreement(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float32]:
    """Total variation between two models' answers, half the sum of absolute differences.

    Parameters
    ----------
    one, other
        KYX in [0, 1].

    Returns
    -------
    NDArray
        YX in [0, 1]; 0 where either knows nothing yet.
    """
    known = one.any(axis=0) & other.any(axis=0)
    return np.where(known, 0.5 * np.abs(one.astype(np.float32) - other).sum(axis=0), 0).astype(np.float32)


def stroke_gain(labels: NDArray[np.integer], probabilities: NDArray[np.floating],
                other: NDArray[np.floating] | None = None, reach_px: float = REACH_PX) -> NDArray[np.float32]:
    """How much a stroke at each pixel would tell: uncertainty × disagreement × distance from what is painted.

    Uncertainty and disagreement are averaged over what a stroke covers, because single pixels of every outline are
    uncertain. Two models that agree while both are unsure leave half of it.

    Parameters
    ----------
    labels
        YX, 0 unlabelled.
    probabilities, other
        KYX of one model or of two.
    reach_px
        Standard deviation of what a stroke covers; strokes tell something about several times as much around.

    Returns
    -------
    NDArray
        YX float32 in [0, 1].
    """
    unsure: NDArray[np.floating] = uncertainty(probabilities)
    if other is not None:
        unsure = 0.5 * np.maximum(unsure, uncertainty(other)) * (1 + disagreement(probabilities, other))
    covered = ndimage.gaussian_filter(unsure, reach_px / 2, mode="constant")
    if not labels.any():
        return np.asarray(covered, np.float32)
    distance = ndimage.distance_transform_edt(labels == 0)
    return np.asarray(covered * (1 - np.exp(-distance / (2 * reach_px))), np.float32)


def next_places(labels: NDArray[np.integer], probabilities: NDArray[np.floating],
                other: NDArray[np.floating] | None = None, n: int = 1, reach_px: float = REACH_PX) -> list[Place]:
    """Where the next strokes help most, the best place first, each further than two reaches from those before.

    Parameters
    ----------
    labels, probabilities, other, reach_px
        As in :func:`stroke_gain`.
    n
        How many places at most; fewer where nothing is uncertain.
    """
    step = max(1, -(-max(labels.shape) // _MAX_SIDE))
    gain = stroke_gain(_any_of(labels, step), _mean_of(probabilities, step),
                       None if other is None else _mean_of(other, step), reach_px / step)
    rows, columns = np.ogrid[: gain.shape[0], : gain.shape[1]]
    places: list[Place] = []
    while len(places) < n and gain.size and gain.max() > 1e-6:
        row, column = np.unravel_index(int(gain.argmax()), gain.shape)
        places.append(Place((row + 0.5) * step - 0.5, (column + 0.5) * step - 0.5, float(gain[row, column])))
        gain[(rows - row) ** 2 + (columns - column) ** 2 < (2 * reach_px / step) ** 2] = 0
    return places


def _any_of(labels: NDArray[np.integer], step: int) -> NDArray[np.integer]:
    """Each block's highest label: no stroke is lost."""
    if step == 1:
        return labels
    rows, columns = np.arange(0, labels.shape[0], step), np.arange(0, labels.shape[1], step)
    reduced: NDArray[np.integer] = np.maximum.reduceat(np.maximum.reduceat(labels, rows, axis=0), columns, axis=1)
    return reduced


def _mean_of(probabilities: NDArray[np.floating], step: int) -> NDArray[np.floating]:
    """Each block's mean, block by block, so that no copy in full size is needed."""
    if step == 1:
        return probabilities
    rows, columns = np.arange(0, probabilities.shape[1], step), np.arange(0, probabilities.shape[2], step)
    heights = np.diff(np.append(rows, probabilities.shape[1]))[:, None]
    widths = np.diff(np.append(columns, probabilities.shape[2]))
    return np.stack([np.add.reduceat(np.add.reduceat(part.astype(np.float32), rows, axis=0), columns, axis=1)
                     / (heights * widths) for part in probabilities])


def probable_slips(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> list[Slip]:
    """Strokes whose class a model all but rules out, the largest first.

    A model that learnt from a stroke and still contradicts it after many steps has found that all others say
    something else; one that did not learn from it (it was held out) is a witness of its own.

    Parameters
    ----------
    labels
        YX, 0 unlabelled, k + 1 for class number k. A stroke is a set of connected pixels of one class.
    probabilities
        KYX in [0, 1] of a model that has learnt enough; all 0 where nothing is known.
    """
    slips = []
    for number in range(len(probabilities)):
        strokes, n = ndimage.label((labels == number + 1) & probabilities.any(axis=0), _EIGHT_NEIGHBOURS)
        if not n:
            continue
        index = np.arange(1, n + 1)
        mean = np.stack([ndimage.mean(part, strokes, index) for part in probabilities])
        sizes = np.bincount(strokes.ravel())[1:]
        said = mean.argmax(axis=0)
        for stroke in np.flatnonzero((mean[number] < _BELIEVED_LESS_THAN) & (mean.max(axis=0) > _CONTRADICTED_BY)):
            row, column = _middle(strokes == stroke + 1)
            slips.append(Slip(row, column, int(sizes[stroke]), number, int(said[stroke]),
                              float(mean[said[stroke], stroke])))
    return sorted(slips, key=lambda slip: -slip.n_pixels)


def _middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    pixels = np.argwhere(mask)
    row, column = pixels[np.abs(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column)


def strokes_per_class(labels: NDArray[np.integer], n_classes: int) -> tuple[int, ...]:
    """How many connected pieces each class has in a plane YX."""
    return tuple(int(ndimage.label(labels == number + 1, _EIGHT_NEIGHBOURS)[1]) for number in range(n_classes))


def painting_hints(n_strokes: Sequence[int], classes: Sequence[ClassDefinition]) -> list[str]:
    """What the strokes so far lack, as sentences; empty if nothing does.

    Parameters
    ----------
    n_strokes
        Strokes of each class, over all planes and images.
    classes
        The class table.
    """
    if not any(n_strokes):
        return []
    hints = []
    has_objects = any(n and c.role == "object" for n, c in zip(n_strokes, classes, strict=True))
    for n, definition in zip(n_strokes, classes, strict=True):
        if n == 0 and definition.role == "boundary" and has_objects:
            hints.append(f"No '{definition.name}' painted yet: draw a few thin lines where cells touch.")
        elif n == 0:
            hints.append(f"No '{definition.name}' painted yet.")
    most = max(range(len(classes)), key=lambda number: n_strokes[number])
    few = [number for number, n in enumerate(n_strokes) if 0 < n <= _FEW_SHARE * n_strokes[most]]
    if few:
        names = " and ".join(f"'{classes[number].name}' {n_strokes[number]}" for number in few)
        hints.append(f"'{classes[most].name}' has {n_strokes[most]} strokes, {names}: paint more of what is rare.")
    return hints
