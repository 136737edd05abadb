"""Corrections of objects by hand: what each does to the ids of a plane, and what later predictions leave alone.

Every correction looks at the surroundings of its objects alone, found through the boxes that are known of them, so
its cost does not grow with the image. Knows ids; knows nothing of layers, models and classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import line
from skimage.measure import label

from napari_cellbrush.engine.accepted import Accepted, PixelRun
from napari_cellbrush.engine.objects import ObjectIds, narrowed
from napari_cellbrush.errors import AnnotationError

#: Rows and columns, to index a plane with.
Box = tuple[slice, slice]

#: A gap up to twice as wide between two objects is closed when they are joined.
_BRIDGE_PX = 3
#: What a cut chips off an object in fewer pixels is no part of its own.
_CHIP_PX = 8
#: A new object that lies under what is accepted with more of its pixels than this is the same one.
_SAME_FRACTION = 0.5
#: The largest id for which boxes are found without counting the ids first.
_DENSE_IDS = 1_000_000


@dataclass(frozen=True, eq=False)
class Edit:
    """New ids of a part of a plane."""

    window: Box
    before: NDArray[Any]
    #: YX, like ``before``.
    after: NDArray[Any]

    def pixels(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
        """Rows and columns, in the plane, of the pixels that change, and their new ids."""
        rows, columns = np.nonzero(self.before != self.after)
        return rows + self.window[0].start, columns + self.window[1].start, self.after[rows, columns]

    @property
    def touched(self) -> frozenset[int]:
        """Ids of the objects that gain or lose pixels."""
        changes = self.before != self.after
        return frozenset(np.unique([self.before[changes], self.after[changes]]).tolist()) - {0}


# ------------------------------------------------------------------------------------------------- where objects are


class Boxes(Mapping[int, Box]):
    """The smallest box around each object of a plane: found once, then kept right change by change.

    Parameters
    ----------
    plane
        YX whole numbers; 0 background. It is looked at, and may be changed as long as :meth:`update` is told.
    """

    def __init__(self, plane: NDArray[Any]) -> None:
        self._plane = plane
        self._boxes = _boxes_in(plane, (0, 0))

    def __getitem__(self, number: int) -> Box:
        return self._boxes[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._boxes)

    def __len__(self) -> int:
        return len(self._boxes)

    def update(self, window: Box, touched: Collection[int]) -> None:
        """Pixels of a window have changed, and no others; objects outside of ``touched`` have the same as before."""
        for number in touched:
            # What lies outside of the window was inside of the object's box before.
            place = _joined(self._boxes.pop(number, window), window)
            found = _boxes_in((self._plane[place] == number).astype(np.uint8), (place[0].start, place[1].start))
            self._boxes |= {number: found[1]} if found and number else {}

    def within(self, window: Box) -> frozenset[int]:
        """Objects that lie in a window with every pixel."""
        return frozenset(number for number, box in self._boxes.items() if _joined(box, window) == window)


def _boxes_in(ids: NDArray[Any], origin: tuple[int, int]) -> dict[int, Box]:
    names: NDArray[Any] | None = None
    if ids.size and ids.max() > _DENSE_IDS:
        names, dense = np.unique(ids, return_inverse=True)
        ids = dense.reshape(ids.shape) + 1
    boxes = {}
    for position, box in enumerate(ndimage.find_objects(ids), start=1):
        number = position if names is None else int(names[position - 1])
        if box is not None and number:
            boxes[number] = (slice(box[0].start + origin[0], box[0].stop + origin[0]),
                             slice(box[1].start + origin[1], box[1].stop + origin[1]))
    return boxes


def next_object(boxes: Boxes, current: int, done: Collection[int], step: int = 1) -> int:
    """The object after (or, with a step of -1, before) the current one that is not done yet; 0 if all are.

    In the order of ids, which is that of reading for objects just found, and from the other end on behind the last.
    """
    left = sorted(boxes.keys() - set(done) - {current})
    if not left:
        return current if current in boxes and current not in done else 0
    position = int(np.searchsorted(left, current)) - (step < 0)
    return left[position % len(left)]


def free_ids(ids: NDArray[Any], n: int, highest: int | None = None) -> list[int]:
    """Numbers for ``n`` new objects: those after the highest one, as far as the type holds them, else gaps.

    Raises
    ------
    AnnotationError
        If the type of ``ids`` holds no more.
    """
    top = int(ids.max(initial=0)) if highest is None else highest
    limit = int(np.iinfo(ids.dtype).max)
    if top + n <= limit:
        return list(range(top + 1, top + n + 1))
    used = np.unique(ids)
    gaps = np.setdiff1d(np.arange(1, min(limit, len(used) + n) + 1), used)[:n].tolist()
    if len(gaps) < n:
        raise AnnotationError(f"The layer holds {limit:,} objects, and its type ({ids.dtype}) no more",
                              "In the layer list, right-click the layer and convert it to uint32")
    return [int(number) for number in gaps]


# ----------------------------------------------------------------------------------------------------- corrections


def merged(plane: NDArray[Any], boxes: Mapping[int, Box], first: int, second: int) -> Edit:
    """Two objects become one, which keeps the id ``first``; a narrow gap between them is closed."""
    window = _widened(_joined(boxes[first], boxes[second]), _BRIDGE_PX + 1, plane.shape)
    before = plane[window].copy()
    both = (before == first) | (before == second)
    after = np.where(both, before.dtype.type(first), before)
    if not (ndimage.binary_dilation(before == first) & (before == second)).any():
        disc = np.hypot(*np.mgrid[-_BRIDGE_PX : _BRIDGE_PX + 1, -_BRIDGE_PX : _BRIDGE_PX + 1]) <= _BRIDGE_PX
        # Beyond the window there is nothing: closing must not be cut off at its edge.
        closed = ndimage.binary_closing(np.pad(both, _BRIDGE_PX), disc)[(slice(_BRIDGE_PX, -_BRIDGE_PX),) * 2]
        gaps: NDArray[np.int64] = label(closed & (before == 0), connectivity=1)
        beside = [np.unique(gaps[ndimage.binary_dilation(before == number)]) for number in (first, second)]
        after[np.isin(gaps, beside[0]) & np.isin(gaps, beside[1]) & (gaps > 0)] = first
    return Edit(window, before, after)


def split(plane: NDArray[Any], boxes: Mapping[int, Box], number: int, path: Sequence[tuple[float, float]],
          new_ids: Iterator[int]) -> Edit:
    """An object falls apart along a line; its largest part keeps the id, and so do pieces that the line leaves whole.

    Parameters
    ----------
    plane, boxes
        YX, and where its objects are.
    number
        The object.
    path
        Rows and columns of the line's points; it may begin and end outside of the object.
    new_ids
        For the other parts.

    Raises
    ------
    AnnotationError
        If the line does not part the object.
    """
    window = boxes[number]
    before = plane[window].copy()
    mask = before == number
    open_mask = mask & ~_drawn(path, window, mask.shape)
    parts: NDArray[np.int64] = label(open_mask, connectivity=1)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    whole: NDArray[np.int64] = label(mask, connectivity=1)
    real = np.flatnonzero(sizes >= _CHIP_PX)
    if len(real) <= np.count_nonzero(np.bincount(whole.ravel())[1:] >= _CHIP_PX):
        raise AnnotationError("The line does not part the object",
                              "Draw it across the whole object, from outside to outside")
    names, piece_of = np.zeros(len(sizes), before.dtype), np.zeros(len(sizes), np.int64)
    piece_of[parts] = whole
    keep_the_id: set[int] = set()
    for part in real[np.argsort(-sizes[real], kind="stable")]:
        names[part] = next(new_ids) if int(piece_of[part]) in keep_the_id else number
        keep_the_id.add(int(piece_of[part]))
    owner = names[parts]
    # The line's own pixels, and chips, go to the nearest part.
    rows, columns = ndimage.distance_transform_edt(owner == 0, return_distances=False, return_indices=True)
    return Edit(window, before, np.where(mask, owner[rows, columns], before))


def crossed(plane: NDArray[Any], path: Sequence[tuple[float, float]]) -> int:
    """The object that a line runs through with most of its pixels; 0 if through none."""
    whole = (slice(0, plane.shape[0]), slice(0, plane.shape[1]))
    rows, columns = _pixels_of(path, whole)
    counts = dict(zip(*(found.tolist() for found in np.unique(plane[rows, columns], return_counts=True)), strict=True))
    return max((number for number in counts if number), key=lambda number: counts[number], default=0)


def deleted(plane: NDArray[Any], boxes: Mapping[int, Box], number: int) -> Edit:
    """An object becomes background."""
    window = boxes[number]
    before = plane[window].copy()
    return Edit(window, before, np.where(before == number, before.dtype.type(0), before))


def filled(plane: NDArray[Any], boxes: Mapping[int, Box], number: int) -> Edit:
    """Background that an object surrounds becomes a part of it.

    Raises
    ------
    AnnotationError
        If there is none.
    """
    window = boxes[number]
    before = plane[window].copy()
    holes = ndimage.binary_fill_holes(before == number) & (before == 0)
    if not holes.any():
        raise AnnotationError("The object has no holes", "A bay that is open to the outside is filled with the brush")
    return Edit(window, before, np.where(holes, before.dtype.type(number), before))


def runs_of_pixels(index: tuple[int, ...], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> set[PixelRun]:
    """Pixels of a plane, as :attr:`Accepted.emptied` holds them."""
    if not len(rows):
        return set()
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    begins = np.concatenate([[True], (np.diff(rows) != 0) | (np.diff(columns) > 1)])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(rows)) - 1
    return {(*index, *run) for run in zip(rows[first].tolist(), columns[first].tolist(),
                                          (columns[last] + 1).tolist(), strict=True)}


# ------------------------------------------------------------------------------------------------ later predictions


def around_accepted(new: NDArray[Any], earlier: NDArray[Any], accepted: Accepted, min_object_px: int = 0) -> ObjectIds:
    """Objects of a later prediction, with those that are accepted in their places, pixel by pixel and by their ids.

    A new object that lies mostly where an accepted one is, or one was deleted, is left out; of any other, the pixels
    elsewhere stay. New objects give way in their numbers too.

    Parameters
    ----------
    new
        Stack axes + YX, what was found; 0 background.
    earlier
        The same shape: where the accepted objects are.
    accepted
        What a person has checked.
    min_object_px
        A new object of which fewer pixels are left is left out.

    Returns
    -------
    NDArray
        Like ``new``; uint16, or uint32 beyond the id 65,535.
    """
    names = np.arange(int(new.max(initial=0)) + 1, dtype=np.uint32)
    sizes, left = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for index in np.ndindex(new.shape[:-2]):
        sizes += np.bincount(new[index].ravel(), minlength=len(names))
        left += np.bincount(new[index][~_kept(earlier[index], accepted, index)], minlength=len(names))
    stays = (left == sizes) | ((left >= sizes * (1 - _SAME_FRACTION)) & (left >= max(1, min_object_px)))
    names[~stays] = 0
    clashing = sorted(set(names.tolist()) & accepted.ids)
    taken = np.union1d(names, np.array(sorted(accepted.ids), np.int64))
    names[clashing] = np.setdiff1d(np.arange(1, len(taken) + len(clashing) + 1), taken)[: len(clashing)]
    joined = np.empty(new.shape, np.uint32)
    for index in np.ndindex(new.shape[:-2]):
        free = ~_kept(earlier[index], accepted, index)
        joined[index] = np.where(free, names[new[index]], np.where(accepted.covers(earlier[index]), earlier[index], 0))
    return narrowed(joined, int(joined.max(initial=0)))


def _kept(plane: NDArray[Any], accepted: Accepted, index: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels of a plane that a later prediction may not change."""
    kept: NDArray[np.bool_] = accepted.covers(plane) | (accepted.empty_at(index, plane.shape) & (plane == 0))
    return kept


# --------------------------------------------------------------------------------------------------------- windows


def _drawn(path: Sequence[tuple[float, float]], window: Box, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    drawn = np.zeros(shape, bool)
    rows, columns = _pixels_of(path, window)
    drawn[rows - window[0].start, columns - window[1].start] = True
    return drawn


def _pixels_of(path: Sequence[tuple[float, float]], window: Box) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pixels of a line inside a window; they hang together over corners at least."""
    points = np.rint(np.asarray(path, float).reshape(-1, 2)).astype(np.intp)
    pieces = [np.stack(line(*start, *stop)) for start, stop in itertools.pairwise(points)]
    rows, columns = np.concatenate([points[:1].T, *pieces], axis=1)
    inside = ((rows >= window[0].start) & (rows < window[0].stop)
              & (columns >= window[1].start) & (columns < window[1].stop))
    return rows[inside], columns[inside]


def _joined(first: Box, second: Box) -> Box:
    rows, columns = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return rows, columns


def _widened(window: Box, margin: int, shape: tuple[int, ...]) -> Box:
    rows, columns = (slice(max(0, side.start - margin), min(length, side.stop + margin))
                     for side, length in zip(window, shape, strict=True))
    return rows, columns
