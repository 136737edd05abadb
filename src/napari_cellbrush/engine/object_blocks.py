"""Objects of images larger than memory: block by block, with none cut or counted twice at a seam.

Each block is looked at with its surroundings, and the pieces of an object that lie in several blocks are joined where
the surroundings of neighbouring blocks agree on it. Knows array-likes and how to cut them; what an object is,
:mod:`~napari_cellbrush.engine.objects` knows.

Why it is exact: a pixel's object follows from its best path to a seed (see :func:`.flooding.flooded`), which runs
inside the object. A block sees every object that reaches into it as a whole if the object is smaller than the
overlap, so it gives each of its pixels to the same object as the untiled image would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from napari_cellbrush.config import ClassDefinition, ObjectsConfig
from napari_cellbrush.engine.objects import (
    ObjectIds,
    Window,
    check_probabilities,
    first_pixels,
    ids_from_classes,
    ids_from_probabilities,
    narrowed,
    new_numbers,
    numbered_in_turn,
    score_reach,
    touching_border,
)
from napari_cellbrush.errors import ImageError
from napari_cellbrush.events import StopToken

#: Side of the blocks, without their surroundings.
BLOCK_PX = 1024
#: Objects smaller than this come out as if the image had been looked at in one piece.
OVERLAP_PX = 128

#: The same for planes that are in memory anyway: an ordinary image is one block, and a block needs half a gigabyte.
_LARGE_BLOCK_PX, _LARGE_OVERLAP_PX = 3072, 256

IdsOfWindow = Callable[[Window], NDArray[np.int32]]


def number_objects(
    probabilities: NDArray[np.float32] | NDArray[np.uint8], classes: Sequence[ClassDefinition],
    config: ObjectsConfig | None = None, *, indices: Sequence[tuple[int, ...]] | None = None,
    earlier: NDArray[Any] | None = None, stop: StopToken | None = None,
) -> ObjectIds:
    """Number the objects of a stack of planes of any size, or of some of its planes.

    Parameters
    ----------
    probabilities
        K, any stack axes, YX: float32 in [0, 1], or uint8 in 255ths (see :func:`.objects.as_bytes`).
    classes, config
        See :func:`.objects.objects_from_probabilities`.
    indices
        The planes to number anew, along the stack axes; all if not given.
    earlier
        Ids on all planes, of which those of other planes stay. Without them, all planes are numbered.
    stop
        Looked at before every plane and block; what is not yet numbered holds 0.

    Returns
    -------
    NDArray
        Stack axes + YX, uint16 or uint32; no id on two planes.
    """
    shape = probabilities.shape[1:]
    chosen = np.ndindex(shape[:-2]) if indices is None or earlier is None else sorted(indices)

    def plane(index: tuple[int, ...]) -> NDArray[Any]:
        place: tuple[int | slice, ...] = (slice(None), *index)
        ids: NDArray[Any] = blockwise_objects_from_probabilities(
            probabilities[place], classes, config, block_px=_LARGE_BLOCK_PX, overlap_px=_LARGE_OVERLAP_PX, stop=stop)
        return ids

    return numbered_in_turn(shape, chosen, plane, earlier=earlier, stop=stop)


def objects_in_window(
    probabilities: NDArray[np.float32] | NDArray[np.uint8], within: tuple[slice, slice],
    classes: Sequence[ClassDefinition], config: ObjectsConfig,
) -> NDArray[np.uint32]:
    """Objects of a part of a plane, as the whole plane has them if they are smaller than the usual overlap.

    Parameters
    ----------
    probabilities
        KYX of the plane, of which only the surroundings of the part are read.
    within
        Rows and columns of the part.
    classes, config
        See :func:`.objects.objects_from_probabilities`.

    Returns
    -------
    NDArray
        YX uint32 over the part; ids 1…n with gaps.
    """
    check_probabilities(probabilities.shape, classes)
    part = Window(*within, probabilities.shape[1:])
    window = part.widened(OVERLAP_PX + config.max_hole_px + 1)
    read = window.widened(score_reach(config))
    ids = ids_from_probabilities(probabilities[(slice(None), *read.within)], read, window, classes, config)
    n = int(ids.max(initial=0)) + 1
    sizes = np.bincount(ids.ravel(), minlength=n)
    new_ids, _ = new_numbers(sizes, first_pixels(ids, n), touching_border(ids, n, window), config)
    return new_ids[ids[part.inside(window)]]


def blockwise_objects_from_classes(
    class_map: Any, classes: Sequence[ClassDefinition], min_object_px: int = 0, *, block_px: int = BLOCK_PX,
    overlap_px: int = OVERLAP_PX, out: Any = None, stop: StopToken | None = None,
) -> Any:
    """The same as :func:`.objects.objects_from_classes` for one plane, a block at a time.

    Parameters
    ----------
    class_map
        YX, anything with shape and slicing (numpy, zarr, dask).
    classes, min_object_px
        As there.
    block_px, overlap_px, out, stop
        See :func:`join_blocks`.

    Returns
    -------
    array
        As there, and equal to it wherever objects, rims included, are smaller than ``overlap_px``; or ``out``.
    """
    def ids_of(window: Window) -> NDArray[np.int32]:
        return ids_from_classes(np.asarray(class_map[window.within]), classes)

    return join_blocks(ids_of, class_map.shape, ObjectsConfig(min_object_px=min_object_px), block_px=block_px,
                       overlap_px=overlap_px, out=out, stop=stop)


def blockwise_objects_from_probabilities(
    probabilities: Any, classes: Sequence[ClassDefinition], config: ObjectsConfig | None = None, *,
    block_px: int = BLOCK_PX, overlap_px: int = OVERLAP_PX, out: Any = None, stop: StopToken | None = None,
) -> Any:
    """The same as :func:`.objects.objects_from_probabilities` for one plane, a block at a time.

    Parameters
    ----------
    probabilities
        KYX float, anything with shape and slicing (numpy, zarr, dask).
    classes, config
        As there.
    block_px, overlap_px, out, stop
        See :func:`join_blocks`.

    Returns
    -------
    array
        As there, and equal to it wherever objects are smaller than ``overlap_px``; or ``out``.

    Raises
    ------
    ImageError
        If there is not one probability per class, or ``out`` does not fit.
    """
    check_probabilities(probabilities.shape, classes)
    config = config or ObjectsConfig()

    def ids_of(window: Window) -> NDArray[np.int32]:
        read = window.widened(score_reach(config))
        return ids_from_probabilities(np.asarray(probabilities[(slice(None), *read.within)]), read, window, classes,
                                      config)

    # Whether a hole is one shows in the objects around it.
    return join_blocks(ids_of, probabilities.shape[1:], config, block_px=block_px,
                       overlap_px=overlap_px + config.max_hole_px + 1, out=out, stop=stop)


def join_blocks(
    ids_of: IdsOfWindow, shape: Sequence[int], config: ObjectsConfig, *, block_px: int = BLOCK_PX,
    overlap_px: int = OVERLAP_PX, out: Any = None, stop: StopToken | None = None,
) -> Any:
    """Number the objects of an image of which only windows are looked at.

    Parameters
    ----------
    ids_of
        Gives the objects of a window, YX int32 with any ids ≥ 1, each connected over edges. A pixel's object must
        not depend on the window, as long as it holds the whole object; a running model may stand behind it.
    shape
        Y and X of the image.
    config
        The smallest object, and whether those at the border are left out.
    block_px
        Side of the blocks. Memory grows with (block_px + 2 overlap_px)², with the width of the image and with the
        number of objects, not with the area of the image.
    overlap_px
        How far a block looks around; larger objects are joined too, but their outlines may differ near seams.
    out
        Where to put the ids: YX uint32 or wider, anything with slicing and assignment to slices; all of it is
        written. If None, a numpy array is made.
    stop
        Looked at before every block; what is finished by then is numbered, the rest 0.

    Returns
    -------
    array
        ``out``; or YX uint16, or uint32 for more than 65,535 objects. 0 background, ids 1…n by first pixel.

    Raises
    ------
    ImageError
        If sizes are not positive, or ``out`` has another shape or too narrow a type.
    """
    height, width = (int(length) for length in shape)
    if block_px < 1 or overlap_px < 1:
        raise ImageError(f"Got blocks of {block_px} px that overlap by {overlap_px} px, need at least 1",
                         "Choose an overlap larger than an object, and blocks larger than that")
    target = np.zeros((height, width), np.uint32) if out is None else _checked(out, (height, width))
    blocks = list(_blocks(height, width, block_px))
    pieces = _Pieces(width)
    n_done = 0
    for block in blocks:
        if stop and stop.stopped:
            break
        window = block.widened(overlap_px)
        target[block.within] = pieces.add(block, window, ids_of(window))
        n_done += 1
    new_ids, n_objects = pieces.joined(config)
    for number, block in enumerate(blocks):
        target[block.within] = new_ids[np.asarray(target[block.within])] if number < n_done else 0
    return narrowed(target, n_objects) if out is None else out


class _Pieces:
    """What is known of the objects' parts in the blocks so far; parts are numbered from 1 in order of the blocks."""

    def __init__(self, width: int) -> None:
        self._sizes = [np.zeros(1, np.int64)]
        self._first = [np.zeros(1, np.int64)]
        self._at_border = [np.zeros(1, bool)]
        self._n = 1
        self._same: list[NDArray[np.int64]] = [np.zeros((2, 0), np.int64)]
        #: Last line of the blocks above or on the left, and the one after it, as seen from those blocks.
        self._above = np.zeros((2, width), np.int64)
        self._left = np.zeros((2, 0), np.int64)

    def add(self, block: Window, window: Window, ids: NDArray[np.int32]) -> NDArray[np.uint32]:
        """Parts of a block; blocks come row by row, from the left."""
        numbers = self._number(block, ids, block.inside(window))
        rows, columns = block.inside(window)
        if block.rows.start > 0:
            self._match(self._above[:, block.columns], numbers[rows.start - 1 : rows.start + 1, columns])
        if block.columns.start > 0:
            self._match(self._left, numbers[rows, columns.start - 1 : columns.start + 1].T)
        if block.rows.stop < block.image[0]:
            self._above[:, block.columns] = numbers[rows.stop - 1 : rows.stop + 1, columns]
        if block.columns.stop < block.image[1]:
            self._left = numbers[rows, columns.stop - 1 : columns.stop + 1].T
        return numbers[rows, columns].astype(np.uint32)

    def joined(self, config: ObjectsConfig) -> tuple[NDArray[np.uint32], int]:
        """The final id of each part, and how many objects there are."""
        same = np.concatenate(self._same, axis=1)
        graph = sparse.coo_matrix((np.ones(same.shape[1], bool), (same[0], same[1])), shape=(self._n, self._n))
        # Background, part 0, has no partner and comes first.
        n, whole = sparse.csgraph.connected_components(graph, directed=False)
        sizes, at_border = np.zeros(n, np.int64), np.zeros(n, bool)
        first = np.full(n, np.iinfo(np.int64).max)
        np.add.at(sizes, whole, np.concatenate(self._sizes))
        np.minimum.at(first, whole, np.concatenate(self._first))
        np.logical_or.at(at_border, whole, np.concatenate(self._at_border))
        new_ids, n_objects = new_numbers(sizes, first, at_border, config)
        return new_ids[whole], n_objects

    def _number(self, block: Window, ids: NDArray[np.int32], place: tuple[slice, slice]) -> NDArray[np.int64]:
        """The window with the numbers of this block's parts; ids that do not reach into the block become 0."""
        core = ids[place]
        n = int(ids.max(initial=0)) + 1
        sizes = np.bincount(core.ravel(), minlength=n)
        present = np.flatnonzero(sizes[1:]) + 1
        numbers = np.zeros(n, np.int64)
        numbers[present] = np.arange(self._n, self._n + len(present))
        rows, columns = np.divmod(first_pixels(core, n)[present], core.shape[1])
        self._sizes.append(sizes[present])
        self._first.append((rows + block.rows.start) * block.image[1] + columns + block.columns.start)
        self._at_border.append(touching_border(core, n, block)[present])
        self._n += len(present)
        return numbers[ids]

    def _match(self, before: NDArray[np.int64], now: NDArray[np.int64]) -> None:
        """Join parts that cross a seam; both hold the line before it and the line after it, each as one block saw it.

        An object crosses where both blocks say that it goes on from one line to the other.
        """
        crossing = (before[0] == before[1]) & (now[0] == now[1]) & (before[0] > 0) & (now[0] > 0)
        self._same.append(np.unique(np.stack([before[0][crossing], now[0][crossing]]), axis=1))


def _blocks(height: int, width: int, block_px: int) -> Iterator[Window]:
    for top in range(0, height, block_px):
        for left in range(0, width, block_px):
            yield Window(slice(top, min(top + block_px, height)), slice(left, min(left + block_px, width)),
                         (height, width))


def _checked(out: Any, shape: tuple[int, int]) -> Any:
    dtype = np.dtype(out.dtype)
    if tuple(out.shape) != shape or dtype.kind not in "iu" or np.iinfo(dtype).max < np.iinfo(np.uint32).max:
        raise ImageError(f"Got an array of shape {tuple(out.shape)} and type {dtype} for the ids, need {shape} and "
                         "uint32", "Make one of this shape and type")
    return out
