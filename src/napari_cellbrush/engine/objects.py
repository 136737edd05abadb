"""Class maps or probabilities → objects: who is one cell, and where it ends.

Knows arrays and class roles; knows nothing of models, layers or files. An object's pixels follow from its
neighbourhood alone, never from where an image was cut; :mod:`~napari_cellbrush.engine.object_blocks` relies on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from napari_cellbrush.config import ClassDefinition, ClassRole, ObjectsConfig
from napari_cellbrush.engine.flooding import NEVER, flooded
from napari_cellbrush.errors import ImageError
from napari_cellbrush.events import StopToken

ObjectIds = NDArray[np.uint16] | NDArray[np.uint32]

#: Heights of the landscape that probabilities are cut into. More do not change the average precision.
_LEVELS = 64
#: Steps in which the heights of maxima are told apart, and with them those of dips.
_MAXIMA = np.arange(11, dtype=np.float32) / 10
_ROLES: tuple[ClassRole, ...] = ("background", "object", "boundary")
#: The byte that stands for a probability of 1.
MOST = 255
#: A Gaussian is cut off at this many standard deviations.
_TRUNCATE = 3.0


@dataclass(frozen=True)
class Window:
    """A rectangle of an image."""

    rows: slice
    columns: slice
    #: Height and width of the image.
    image: tuple[int, int]

    @classmethod
    def whole(cls, shape: tuple[int, int]) -> Window:
        """All of an image."""
        return cls(slice(0, shape[0]), slice(0, shape[1]), shape)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def within(self) -> tuple[slice, slice]:
        """Rows and columns, to index an image with."""
        return self.rows, self.columns

    def widened(self, margin: int) -> Window:
        """The window with a margin, as far as the image goes."""
        (height, width), rows, columns = self.image, self.rows, self.columns
        return Window(slice(max(0, rows.start - margin), min(height, rows.stop + margin)),
                      slice(max(0, columns.start - margin), min(width, columns.stop + margin)), self.image)

    def inside(self, larger: Window) -> tuple[slice, slice]:
        """Where this window lies in an array that covers ``larger``."""
        return tuple(slice(own.start - other.start, own.stop - other.start)  # type: ignore[return-value]
                     for own, other in zip(self.within, larger.within, strict=True))

    def cut(self) -> NDArray[np.bool_]:
        """YX: pixels of the window beside which the image goes on."""
        cut = np.zeros(self.shape, bool)
        cut[:1] |= self.rows.start > 0
        cut[-1:] |= self.rows.stop < self.image[0]
        cut[:, :1] |= self.columns.start > 0
        cut[:, -1:] |= self.columns.stop < self.image[1]
        return cut


def objects_from_classes(
    class_map: NDArray[np.uint8], classes: Sequence[ClassDefinition], min_object_px: int = 0, *,
    stop: StopToken | None = None,
) -> ObjectIds:
    """Number the objects of a class map.

    Each connected region (over edges, not corners) of a class with the role "object" is one object. It then grows
    into the pixels of "boundary" classes that it reaches first, because a boundary is the outer rim of the cells
    it separates. Planes of a stack are looked at one by one; their ids go on counting.

    Parameters
    ----------
    class_map
        YX, or any stack axes in front of YX; k + 1 for class number k, 0 for nothing.
    classes
        What the numbers mean.
    min_object_px
        Objects with fewer pixels, rim included, are left out.
    stop
        Looked at before every plane.

    Returns
    -------
    NDArray
        Like ``class_map``; 0 background, ids 1…n without gaps, in the order of their first pixels; uint16, or uint32
        for more than 65,535 objects. Planes after a stop hold 0.
    """
    config = ObjectsConfig(min_object_px=min_object_px)

    def plane(index: tuple[int, ...]) -> NDArray[np.uint32]:
        return numbered(ids_from_classes(class_map[index], classes), config)

    return numbered_in_turn(class_map.shape, np.ndindex(class_map.shape[:-2]), plane, stop=stop)


def as_bytes(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities in 255ths: a quarter of the memory, and finer than the levels they are cut into."""
    rounded: NDArray[np.uint8] = np.rint(probabilities * np.float32(MOST)).astype(np.uint8)
    return rounded


def objects_from_probabilities(
    probabilities: NDArray[np.float32] | NDArray[np.uint8], classes: Sequence[ClassDefinition],
    config: ObjectsConfig | None = None, *, stop: StopToken | None = None,
) -> ObjectIds:
    """Number the objects of class probabilities, by a watershed that starts where a cell is surest.

    The score of a pixel is the probability of the object classes less that of the boundary classes, smoothed;
    without a boundary class it falls towards rims instead, so that necks part cells. Maxima of the score between which
    it dips far enough are seeds, however low. Seeds are flooded downhill over the foreground (marker-based watershed,
    Beucher and Meyer 1993); objects that are nowhere certain enough are left out, then holes are filled. Planes of a
    stack are looked at one by one.

    Parameters
    ----------
    probabilities
        KYX float32 in [0, 1] or uint8 in 255ths, or K, any stack axes, YX. A pixel of zeros is background.
    classes
        What the K classes mean. Touching cells of different object classes stay two objects where each has a seed.
    config
        How to do it.
    stop
        Looked at before every plane.

    Returns
    -------
    NDArray
        The shape of ``probabilities`` without K; ids as :func:`objects_from_classes` numbers them.

    Raises
    ------
    ImageError
        If there is not one probability per class.
    """
    check_probabilities(probabilities.shape, classes)
    config = config or ObjectsConfig()

    def plane(index: tuple[int, ...]) -> NDArray[np.uint32]:
        values: NDArray[Any] = probabilities[(slice(None), *index)]  # type: ignore[arg-type]
        whole = Window.whole(values.shape[1:])
        return numbered(ids_from_probabilities(values, whole, whole, classes, config), config)

    shape = probabilities.shape[1:]
    return numbered_in_turn(shape, np.ndindex(shape[:-2]), plane, stop=stop)


def check_probabilities(shape: Sequence[int], classes: Sequence[ClassDefinition]) -> None:
    """Complain unless ``shape`` is K, any stack axes, Y and X.

    Raises
    ------
    ImageError
        If it is not.
    """
    if len(shape) < 3 or shape[0] != len(classes):
        raise ImageError(f"Got probabilities of shape {tuple(shape)}, need one plane for each of the {len(classes)} "
                         "classes in front (KYX)", "Give what segmenting with the output 'probabilities' returned")


def ids_from_classes(class_map: NDArray[np.uint8], classes: Sequence[ClassDefinition]) -> NDArray[np.int32]:
    """Objects of a plane YX, or of a window of one, with any ids ≥ 1; see :func:`objects_from_classes`."""
    objects = np.isin(class_map, _values(classes, "object"))
    boundary = np.isin(class_map, _values(classes, "boundary"))
    # Pixels of different classes never join: label() connects equal values only.
    seeds: NDArray[np.int32] = label(np.where(objects, class_map, 0), background=0, connectivity=1).astype(np.int32)
    return flooded(seeds, np.where(boundary, 0, NEVER).astype(np.uint8))


def ids_from_probabilities(probabilities: NDArray[Any], read: Window, window: Window,
                           classes: Sequence[ClassDefinition], config: ObjectsConfig) -> NDArray[np.int32]:
    """Objects of a window, with any ids ≥ 1; see :func:`objects_from_probabilities`.

    Parameters
    ----------
    probabilities
        KYX over the window ``read``: ``window`` and at least :func:`score_reach` pixels around it.
    """
    values = probabilities.astype(np.float32, copy=False)
    if probabilities.dtype == np.uint8:
        values *= np.float32(1 / MOST)
    totals = [_total(values, classes, role) for role in _ROLES]
    # SciPy's filters work beside each other.
    with ThreadPoolExecutor(len(_ROLES)) as pool:
        background, cell, boundary = pool.map(partial(_smoothed, config=config), totals)
    foreground, score = np.maximum(cell, boundary) > background, cell - boundary
    if config.neck_px and not _values(classes, "boundary"):
        # Distances beyond the neck's do not matter, which keeps them independent of what lies far away.
        score = score * np.minimum(ndimage.distance_transform_edt(foreground) / config.neck_px, 1).astype(np.float32)
    place = window.inside(read)
    winner = _winner(values[(slice(None), *place)], classes)
    foreground, score = foreground[place], score[place]
    certainty = (totals[1] + totals[2])[place]
    seeds = _seeds(score, np.where(foreground, winner, 0), config.least_dip, window.cut())
    heights = np.clip((1 - score) * (_LEVELS / 2), 0, _LEVELS - 1)
    ids = flooded(seeds, np.where(foreground, heights, NEVER).astype(np.uint8))
    # Decided on the seed, which is the object's alone: its other pixels may owe their certainty to a neighbour.
    is_certain = np.zeros(int(seeds.max(initial=0)) + 1, bool)
    is_certain[seeds[certainty >= config.least_certainty]] = True
    return _without_holes(np.where(is_certain[ids], ids, 0), config.max_hole_px)


def score_reach(config: ObjectsConfig) -> int:
    """How far from a pixel its score looks, in pixels."""
    return math.ceil(config.neck_px) + _gaussian_radius(config) + 1


def numbered(ids: NDArray[np.int32], config: ObjectsConfig) -> NDArray[np.uint32]:
    """A plane YX without the objects that are too small or touch the border, ids 1…n by first pixel."""
    n = int(ids.max(initial=0)) + 1
    sizes = np.bincount(ids.ravel(), minlength=n)
    new_ids, _ = new_numbers(sizes, first_pixels(ids, n), touching_border(ids, n, Window.whole(ids.shape)), config)
    return new_ids[ids]


def new_numbers(sizes: NDArray[np.int64], first: NDArray[np.int64], at_border: NDArray[np.bool_],
                config: ObjectsConfig) -> tuple[NDArray[np.uint32], int]:
    """New id of each old one, 0 for those left out and for old id 0, and how many are kept."""
    keep = sizes >= max(1, config.min_object_px)
    keep[0] = False
    if config.clear_border:
        keep &= ~at_border
    kept = np.flatnonzero(keep)
    new_ids = np.zeros(len(sizes), np.uint32)
    new_ids[kept[np.argsort(first[kept], kind="stable")]] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    return new_ids, len(kept)


def first_pixels(ids: NDArray[np.integer[Any]], n: int) -> NDArray[np.int64]:
    """Position of the first pixel of each id below ``n`` in the flattened array; the array's size if it has none."""
    first = np.full(n, ids.size, np.int64)
    # Where ids repeat, the value assigned last remains.
    first[ids.ravel()[::-1]] = np.arange(ids.size - 1, -1, -1)
    return first


def touching_border(ids: NDArray[np.integer[Any]], n: int, window: Window) -> NDArray[np.bool_]:
    """Whether each id below ``n`` has a pixel at the image's border."""
    touching = np.zeros(n, bool)
    height, width = window.image
    for at_border, line in ((window.rows.start == 0, ids[:1]), (window.rows.stop == height, ids[-1:]),
                            (window.columns.start == 0, ids[:, :1]), (window.columns.stop == width, ids[:, -1:])):
        if at_border:
            touching[line.ravel()] = True
    return touching


def numbered_in_turn(
    shape: Sequence[int], indices: Iterable[tuple[int, ...]], ids_of: Callable[[tuple[int, ...]], NDArray[Any]], *,
    earlier: NDArray[Any] | None = None, stop: StopToken | None = None,
) -> ObjectIds:
    """Objects of a stack, part by part: ids go on counting, so that none is in two parts.

    Parameters
    ----------
    shape
        Of the stack.
    indices
        The parts to number, in this order: planes, or frames of several planes, by their first axes.
    ids_of
        Gives the objects of a part: whole numbers, 0 background, ids 1…n.
    earlier
        Ids of the whole stack, of which those of all other parts stay; 0 if not given.
    stop
        Looked at before every part; what is not yet numbered holds 0.

    Returns
    -------
    NDArray
        Of ``shape``; uint16, or uint32 beyond the id 65,535.
    """
    parts = list(indices)
    ids = np.zeros(shape, np.uint32) if earlier is None else earlier.astype(np.uint32)
    for index in parts:
        ids[index] = 0
    highest = int(ids.max(initial=0))
    for index in parts:
        if stop and stop.stopped:
            break
        part = ids_of(index)
        ids[index] = np.where(part > 0, part.astype(np.uint32) + np.uint32(highest), 0)
        highest += int(part.max(initial=0))
    return narrowed(ids, highest)


def narrowed(ids: NDArray[np.uint32], n_objects: int) -> ObjectIds:
    """The same ids as uint16 where they fit."""
    return ids if n_objects > np.iinfo(np.uint16).max else ids.astype(np.uint16)


def _seeds(score: NDArray[np.float32], cells: NDArray[np.uint8], least_dip: float,
           cut: NDArray[np.bool_]) -> NDArray[np.int32]:
    """One seed for each maximum from which every way to a higher one falls by ``least_dip`` or more.

    A seed is all that is connected above its maximum less the dip (the dynamics of maxima, Grimaud 1992), maxima being
    told apart in the steps of :data:`_MAXIMA`. A maximum below 0 is nowhere rather inside than at a boundary, and no
    seed. Never a seed that goes on outside the window: it may have a higher maximum there, and its object is not looked
    at here.

    Parameters
    ----------
    score
        YX, in [−1, 1].
    cells
        YX: class of the cell, 0 outside; pixels of different classes never join.
    least_dip
        In (0, 1].
    cut
        YX: pixels of the window beside which the image goes on.
    """
    seeds, n_seeds = np.zeros(cells.size, np.int32), 0
    at_cut = np.flatnonzero(cut)
    for value in np.unique(cells[cells > 0]):
        of_class = np.where(cells == value, score, np.float32(-2))
        n_reached = np.zeros(cells.size, np.uint8)
        for maximum in _MAXIMA:
            n_reached += (of_class >= maximum).ravel()
        # A pixel of each seed so far. A piece that reaches higher holds such a seed; or what reached higher was cut,
        # and then so is this piece.
        higher = np.empty(0, np.intp)
        for n_steps in range(len(_MAXIMA), 0, -1):
            highest = np.flatnonzero(n_reached == n_steps)
            if not highest.size:
                continue
            pieces, n_pieces = ndimage.label(of_class >= _MAXIMA[n_steps - 1] - np.float32(least_dip))
            pieces = pieces.ravel()
            pixel_of = np.full(n_pieces + 1, -1)
            pixel_of[pieces[highest]] = highest
            pixel_of[pieces[higher]] = pixel_of[pieces[at_cut]] = pixel_of[0] = -1
            is_seed = pixel_of >= 0
            seeds += np.where(is_seed, n_seeds + np.cumsum(is_seed), 0).astype(np.int32)[pieces]
            n_seeds += int(is_seed.sum())
            higher = np.concatenate([higher, pixel_of[is_seed]])
    return seeds.reshape(cells.shape)


def _without_holes(ids: NDArray[np.int32], max_hole_px: int) -> NDArray[np.int32]:
    """Fill background that one object surrounds, up to ``max_hole_px`` wide and high."""
    if not max_hole_px or not ids.any():
        return ids
    holes: NDArray[np.int32] = label(ids == 0, background=0, connectivity=2).astype(np.int32)
    places = ndimage.find_objects(holes)
    height, width = ids.shape
    small = [number for number, (rows, columns) in enumerate(places, start=1)
             if rows.stop - rows.start <= max_hole_px and columns.stop - columns.start <= max_hole_px
             and rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width]
    filled = ids.copy()
    for number in small:
        rows, columns = places[number - 1]
        around = slice(rows.start - 1, rows.stop + 1), slice(columns.start - 1, columns.stop + 1)
        hole = holes[around] == number
        neighbours = np.unique(ids[around][ndimage.binary_dilation(hole) & ~hole])
        if len(neighbours) == 1:
            filled[around][hole] = neighbours[0]
    return filled


def _smoothed(values: NDArray[np.float32], config: ObjectsConfig) -> NDArray[np.float32]:
    radius = _gaussian_radius(config)
    if not radius:
        return values
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(values, config.smoothing_px, radius=radius, mode="nearest")
    return smooth


def _gaussian_radius(config: ObjectsConfig) -> int:
    return math.ceil(_TRUNCATE * config.smoothing_px)


def _total(probabilities: NDArray[np.float32], classes: Sequence[ClassDefinition], role: ClassRole
           ) -> NDArray[np.float32]:
    total = np.zeros(probabilities.shape[1:], np.float32)
    for value in _values(classes, role):
        total += probabilities[value - 1]
    return total


def _winner(probabilities: NDArray[np.float32], classes: Sequence[ClassDefinition]) -> NDArray[np.uint8]:
    """YX: number, from 1, of the most probable object class among the object classes."""
    values = _values(classes, "object")
    if len(values) < 2:
        return np.ones(probabilities.shape[1:], np.uint8)
    winner: NDArray[np.uint8] = probabilities[[value - 1 for value in values]].argmax(axis=0).astype(np.uint8)
    return winner + np.uint8(1)


def _values(classes: Sequence[ClassDefinition], role: ClassRole) -> list[int]:
    return [position + 1 for position, definition in enumerate(classes) if definition.role == role]
