"""Painted labels: what they say, which strokes are kept back for scoring, and where training looks next.

Label arrays hold 0 for unlabelled and k + 1 for class number k. A stroke is a set of connected labelled pixels
(corners connect). This module knows arrays; it knows nothing of networks or viewers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage.measure import label as label_by_value

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.errors import AnnotationError

if TYPE_CHECKING:
    from napari_cellbrush.engine.accepted import Accepted
    from napari_cellbrush.engine.planes import Planes

#: Held-out pixels lie further than this from every training pixel; strokes closer to each other stay together.
GAP_PX = 8
#: Connected labels longer than a block are cut into blocks: coarsely if that gives enough of them, else finer.
_BLOCKS_PX = (128, 64)
#: Separate strokes of each class that training keeps.
_STROKES_TO_TRAIN_ON = 2
#: So many corrections count as one stroke that was painted before an answer was seen: in where training looks, and
#: again among the labels that it sees together. Whoever corrects looks for errors: their share of the strokes says
#: nothing of how frequent they are, and learnt as if it did, they undo what was right. (Five strokes a class, then
#: twice five on errors; membranes, phase contrast and axons: docs/benchmarks.md. Visited less often alone, membranes
#: fell to 0.585.) Where all strokes were painted in view of an answer, none is told from the others here.
CORRECTIONS_PER_STROKE = 4
#: Long strokes are visited piece by piece, each about as large as what one training patch learns from.
_PIECE_PX = 64
#: Random choices of held-out strokes that are compared; fewer where there are many strokes and all are alike.
_MOST_TRIALS = 32
#: Background that is known around a checked object. Around a cell as large as those that the bundled model knows, it is
#: about as much as the cell.
RING_PX = 5
#: Thickness of the rims of objects, as a share of their median diameter: 2 px of 24, as in pretraining.
RIM_SHARE = 1 / 12
#: No rim is thicker: images are reduced to an eighth at most.
MOST_RIM_PX = 16
#: What is smaller than this share of the median diameter, weighted by diameters, is a fragment.
FRAGMENT = 0.4
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True, eq=False)
class LabelledPlane:
    """The labels of one plane that has any."""

    #: Which image, by its position in the list of images.
    image: int
    #: The plane's index along the image's stack axes, () for a 2D image.
    index: tuple[int, ...]
    #: YX uint8; 0 unlabelled, k + 1 for class number k.
    labels: NDArray[np.uint8]
    #: YX; which labelled pixels correct an answer that was seen. None where none do.
    corrections: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Annotation:
    """All labelled planes of all images."""

    planes: tuple[LabelledPlane, ...]
    n_classes: int
    #: For messages; empty where nobody named them.
    class_names: tuple[str, ...] = ()

    @property
    def painted_classes(self) -> set[int]:
        """Numbers of the classes that have a pixel."""
        return {number for number, count in enumerate(self.pixels_per_class) if count}

    @cached_property
    def pixels_per_class(self) -> tuple[int, ...]:
        """Labelled pixels of each class."""
        counts = np.zeros(self.n_classes + 1, np.int64)
        for plane in self.planes:
            counts += np.bincount(plane.labels.ravel(), minlength=self.n_classes + 1)
        return tuple(int(count) for count in counts[1:])

    @property
    def n_pixels(self) -> int:
        """Labelled pixels of all classes."""
        return sum(self.pixels_per_class)

    @cached_property
    def n_corrections(self) -> int:
        """Labelled pixels that correct an answer."""
        return sum(int(np.count_nonzero(plane.corrections & (plane.labels > 0)))
                   for plane in self.planes if plane.corrections is not None)

    @property
    def unseen(self) -> Annotation:
        """What was painted before an answer was seen, on the same planes; all, if that is less than two classes."""
        if not self.n_corrections:
            return self
        first = replace(self, planes=tuple(
            replace(plane, labels=np.where(plane.corrections, np.uint8(0), plane.labels))
            if plane.corrections is not None else plane for plane in self.planes))
        return first if len(first.painted_classes) > 1 else self

    @cached_property
    def n_strokes(self) -> int:
        """Connected pieces of one class, over all planes."""
        return sum(int(ndimage.label(plane.labels == number + 1, _EIGHT_NEIGHBOURS)[1])
                   for plane in self.planes for number in range(self.n_classes))

    @cached_property
    def strokes_per_class(self) -> float:
        """Mean over the painted classes. A connected piece counts once for each 64 px of its longer side, or part."""
        n_strokes = 0
        for plane in self.planes:
            for number in range(self.n_classes):
                pieces, _ = ndimage.label(plane.labels == number + 1, _EIGHT_NEIGHBOURS)
                n_strokes += sum(-(-max(side.stop - side.start for side in box) // _PIECE_PX)
                                 for box in ndimage.find_objects(pieces))
        return n_strokes / max(1, len(self.painted_classes))

    def name_of(self, number: int) -> str:
        """A class in words."""
        return f"'{self.class_names[number]}'" if self.class_names else f"number {number + 1}"


@dataclass(frozen=True, eq=False)
class Split:
    """Annotation to train on, and annotation to score on."""

    train: Annotation
    #: None where a fair score cannot be had.
    validation: Annotation | None
    #: Why there is none, as a sentence for the user; else empty.
    reason: str


def collect_annotation(images: Sequence[Planes], labels: Sequence[Any], classes: Sequence[ClassDefinition],
                       corrections: Sequence[Any] | None = None) -> Annotation:
    """Check labels against their images and keep the planes that have any.

    Parameters
    ----------
    images
        The images.
    labels
        One array-like (numpy, dask, zarr, …) per image, of its spatial shape; read plane by plane.
        Booleans, integers, and floats that are whole numbers are taken.
    classes
        What the values 1… mean.
    corrections
        One boolean array-like per image, of the same shape as its labels, or None for an image without any: which
        labelled pixels were painted where an answer was seen to be wrong.

    Raises
    ------
    AnnotationError
        If shapes differ, a value is no class, or fewer than two classes are painted.
    """
    given = (None,) * len(images) if corrections is None else corrections
    for n, what in ((len(labels), "labels"), (len(given), "corrections")):
        if n != len(images):
            raise AnnotationError(f"Got {len(images)} image(s) and {n} set(s) of {what}",
                                  f"Give one set of {what} per image, in the same order")
    planes = [plane for number, image in enumerate(images)
              for plane in labelled_planes(number, image, labels[number], len(classes), given[number])]
    annotation = Annotation(tuple(planes), len(classes), tuple(definition.name for definition in classes))
    painted = sorted(annotation.painted_classes)
    if not painted:
        raise AnnotationError("The annotation is empty", "Paint a few strokes of at least two classes")
    if len(painted) == 1:
        raise AnnotationError(f"Only the class {annotation.name_of(painted[0])} is painted, need at least two classes",
                              "Paint a few strokes of another class too, for example of the background")
    return annotation


def rescaled(annotation: Annotation, scales: Sequence[float]) -> Annotation:
    """The labels of each image at its scale, so many times their size; no stroke is lost by it.

    Where several labelled pixels become one, the most frequent class wins, unlabelled ones having no say.
    """
    if all(scale == 1 for scale in scales):
        return annotation
    planes = [_plane_rescaled(plane, scales[plane.image]) for plane in annotation.planes]
    return replace(annotation, planes=tuple(planes))


def _plane_rescaled(plane: LabelledPlane, scale: float) -> LabelledPlane:
    corrected = None if plane.corrections is None else _rescaled(plane.corrections.astype(np.uint8), scale) > 0
    return replace(plane, labels=_rescaled(plane.labels, scale), corrections=corrected)


def _rescaled(labels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    if scale == 1:
        return labels
    height, width = (max(1, round(size * scale)) for size in labels.shape)
    if scale > 1:
        rows, columns = (np.minimum((np.arange(new) + 0.5) / scale, old - 1).astype(np.intp)
                         for new, old in zip((height, width), labels.shape, strict=True))
        enlarged: NDArray[np.uint8] = labels[rows[:, None], columns]
        return enlarged
    rows, columns = np.nonzero(labels)
    rows, columns = (np.minimum((at + 0.5) * scale, new - 1).astype(np.int64)
                     for at, new in zip((rows, columns), (height, width), strict=True))
    key, counts = np.unique((rows * width + columns) * 256 + labels[labels > 0], return_counts=True)
    smaller = np.zeros(height * width, np.uint8)
    # Later entries overwrite earlier ones: the most frequent class comes last.
    order = np.argsort(counts, kind="stable")
    smaller[key[order] // 256] = key[order] % 256
    return smaller.reshape(height, width)


def labelled_planes(number: int, image: Planes, labels: Any, n_classes: int,
                    corrections: Any = None) -> Iterator[LabelledPlane]:
    """The planes of image ``number`` that have any labels, checked against the image.

    Raises
    ------
    AnnotationError
        If shapes differ or a value is no class.
    """
    array = _fitting(labels, image, "labels")
    wrong = None if corrections is None else _fitting(corrections, image, "corrections")
    for index in image.indices():
        window: Any = (*index, slice(None), slice(None))
        plane = whole_numbers(np.asarray(array[window]), f"the labels of '{image.name}'")
        low, high = (int(plane.min()), int(plane.max())) if plane.size else (0, 0)
        if low < 0 or high > n_classes:
            raise AnnotationError(
                f"The labels of '{image.name}' hold the value {low if low < 0 else high}, but there are only "
                f"{n_classes} classes", f"Use 0 for unlabelled and 1 to {n_classes} for the classes")
        if high:
            corrected = None if wrong is None else np.asarray(wrong[window]).astype(bool) & (plane > 0)
            yield LabelledPlane(number, index, plane.astype(np.uint8),
                                corrected if corrected is not None and corrected.any() else None)


def _fitting(given: Any, image: Planes, what: str) -> Any:
    """An array-like of the image's shape without channels, as it was given."""
    array = given if hasattr(given, "shape") else np.asarray(given)
    if tuple(array.shape) != tuple(image.spatial_shape):
        raise AnnotationError(
            f"The {what} of '{image.name}' have the shape {tuple(array.shape)}, the image needs "
            f"{tuple(image.spatial_shape)}", f"Make the {what} as large as the image, without an axis for channels")
    return array


def whole_numbers(values: NDArray[Any], what: str) -> NDArray[Any]:
    """Booleans and integers as they are, floats as integers if nothing is lost.

    Raises
    ------
    AnnotationError
        If values are not whole numbers; ``what`` names them.
    """
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    # Beyond 2^53 a float no longer tells neighbouring ids apart.
    if values.dtype.kind == "f" and np.all(np.abs(values) < 2**53) and np.array_equal(values, np.rint(values)):
        return values.astype(np.int64)
    raise AnnotationError(f"Values of {what} are not whole numbers (type {values.dtype})",
                          "Labels are whole numbers, 0 for unlabelled; check that this is not the image")


def objects_to_classes(instances: NDArray[Any], boundary_px: int | None = None,
                       ignore_value: int | None = None) -> NDArray[np.uint8]:
    """Turn an instance mask into background, cell and boundary.

    The boundary is the inner rim of each connected piece of an object. Every piece keeps a core: one that the rim
    would fill gets a thinner rim, then only a rim towards the objects it touches, and at the very least one pixel.

    Parameters
    ----------
    instances
        YX whole numbers; 0 background, any ids ≥ 1, with gaps or in several pieces.
    boundary_px
        Thickness of the rim in pixels; 0 gives none. If not given, it is in proportion to the objects of this plane, 1
        to 16: as thick as the bundled model knows it once the image is rescaled for it.
    ignore_value
        Pixels with this value become unlabelled. Objects end there all the same.

    Returns
    -------
    NDArray
        YX uint8; 0 unlabelled, 1 background, 2 cell, 3 boundary.

    Raises
    ------
    AnnotationError
        If ids are negative or not whole numbers.
    """
    ids = whole_numbers(instances, "the instance mask")
    ignored = ids == ignore_value if ignore_value is not None else np.zeros(ids.shape, bool)
    ids = np.where(ignored, 0, ids)
    if ids.size and ids.min() < 0:
        raise AnnotationError(f"The instance mask holds the id {int(ids.min())}",
                              "Use 0 for background and ids from 1 on, or name the value to ignore")
    pieces: NDArray[np.int64] = label_by_value(ids, background=0, connectivity=2)
    core = _cores(pieces, _rim_px(pieces) if boundary_px is None else boundary_px)
    classes = np.where(pieces == 0, 1, np.where(core, 2, 3)).astype(np.uint8)
    classes[ignored] = 0
    return classes


def median_diameter(instances: NDArray[np.integer[Any]]) -> float:
    """Of discs as large as the objects of an instance mask, in pixels; 0 where there are none."""
    areas = np.bincount(instances.ravel())[1:]
    return float(np.median(2 * np.sqrt(areas[areas > 0] / np.pi))) if areas.any() else 0.0


def typical_diameter(areas: NDArray[np.intp]) -> float:
    """Median diameter of objects that may have come apart, in pixels: fragments and specks have no say.

    Parameters
    ----------
    areas
        Pixels of each object, at least one. (On training images of six sets, a fifth of whose pixels were held out, the
        answer is 0.06 to 0.17 octaves off the median of the instances.)
    """
    diameters = 2 * np.sqrt(areas / np.pi)
    return float(np.median(diameters[diameters > FRAGMENT * weighted_median(diameters, diameters)]))


def weighted_median(values: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    """The value up to which half of the weight lies; both of one axis and at least one entry."""
    order = np.argsort(values)
    up_to = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(up_to, up_to[-1] / 2)])


def _rim_px(pieces: NDArray[np.int64]) -> int:
    areas = np.bincount(pieces.ravel())[1:]
    return min(max(1, round(RIM_SHARE * typical_diameter(areas))), MOST_RIM_PX) if len(areas) else 0


def in_classes(targets: NDArray[np.uint8], classes: Sequence[ClassDefinition]) -> NDArray[np.uint8]:
    """What :func:`objects_to_classes` gave, in the numbers of one's own classes, found by their roles.

    Parameters
    ----------
    targets
        Any shape; 0 unlabelled, 1 background, 2 cell, 3 boundary.
    classes
        Of several with one role, the first is taken. Without a boundary, an object's rim is a part of it.

    Raises
    ------
    AnnotationError
        If no class is background, or none an object.
    """
    first = {role: number for number, role in reversed(list(enumerate((c.role for c in classes), start=1)))}
    if "background" not in first or "object" not in first:
        raise AnnotationError("Objects become background and cells, but no class counts as background, or none as "
                              "object", "Say in the class table what counts as what")
    values = np.array([0, first["background"], first["object"], first.get("boundary", first["object"])], np.uint8)
    named: NDArray[np.uint8] = values[targets]
    return named


def accepted_to_classes(ids: NDArray[Any], accepted: NDArray[np.bool_], empty: NDArray[np.bool_] | None = None,
                        ring_px: int = RING_PX, boundary_px: int | None = None) -> NDArray[np.uint8]:
    """Turn objects that somebody checked into dense targets; what lies further from them stays unlabelled.

    Parameters
    ----------
    ids
        YX whole numbers; 0 background.
    accepted
        YX; pixels of the objects that were checked.
    empty
        YX; where somebody said that there is no object. It counts where ``ids`` is 0.
    ring_px
        Background that goes with each object; other objects are left out of it.
    boundary_px
        See :func:`objects_to_classes`.

    Returns
    -------
    NDArray
        YX uint8; 0 unlabelled, 1 background, 2 cell, 3 boundary.
    """
    targets = objects_to_classes(np.where(accepted, ids, 0), boundary_px)
    background = np.zeros(ids.shape, bool) if empty is None else empty.copy()
    if accepted.any():
        background |= ndimage.distance_transform_edt(~accepted) <= ring_px
    targets[~accepted & ~(background & (ids == 0))] = 0
    return targets


def taught_by_objects(strokes: NDArray[np.uint8], ids: NDArray[Any], accepted: Accepted,
                      classes: Sequence[ClassDefinition]) -> NDArray[np.uint8]:
    """Strokes, and where there are none, what the accepted objects of the same image teach.

    With several classes of objects, an object teaches the one that most of the strokes in it say; without a stroke,
    its inside teaches nothing.

    Parameters
    ----------
    strokes
        Stack axes + YX; 0 unlabelled, k + 1 for class number k.
    ids
        The same shape: the objects.
    accepted
        Which of them are right, and where there is none.
    classes
        What the numbers mean; see :func:`in_classes`.

    Raises
    ------
    AnnotationError
        If no class is background, or none an object.
    """
    labels = strokes.copy()
    kinds = [value for value, definition in enumerate(classes, start=1) if definition.role == "object"]
    for index in np.ndindex(strokes.shape[:-2]):
        covered, empty = accepted.covers(ids[index]), accepted.empty_at(index, strokes.shape[-2:])
        if covered.any() or empty.any():
            targets = accepted_to_classes(ids[index], covered, empty)
            dense = in_classes(targets, classes)
            if len(kinds) > 1:
                inside = np.isin(dense, kinds)
                dense[inside] = _painted_class(strokes[index], np.where(covered, ids[index], 0), kinds)[inside]
            labels[index] = np.where(strokes[index] > 0, strokes[index], dense)
    return labels


def _painted_class(strokes: NDArray[np.uint8], ids: NDArray[Any], kinds: Sequence[int]) -> NDArray[np.uint8]:
    """YX: the class, one of ``kinds``, that most of the strokes in each object say; 0 where there are none."""
    numbers, dense = np.unique(ids, return_inverse=True)
    dense = dense.reshape(ids.shape)
    counts = np.stack([np.bincount(dense[strokes == kind], minlength=len(numbers)) for kind in kinds])
    of_object = np.where(counts.any(axis=0), np.array(kinds)[counts.argmax(axis=0)], 0).astype(np.uint8)
    of_object[numbers == 0] = 0
    painted: NDArray[np.uint8] = of_object[dense]
    return painted


def _cores(pieces: NDArray[np.int64], boundary_px: int) -> NDArray[np.bool_]:
    """Pixels inside the rims; each piece takes the thickest rim that leaves it any."""
    n = int(pieces.max()) if pieces.size else 0
    if not boundary_px:
        return pieces > 0
    depth, deepest = np.zeros(pieces.shape, np.int32), np.zeros(n + 1, np.int32)
    peeled = pieces
    for step in range(boundary_px):
        peeled = _peeled(peeled, corners=step % 2 == 1)
        depth += peeled > 0
        deepest[peeled[peeled > 0]] = step + 1
    core: NDArray[np.bool_] = (depth > 0) & (depth == deepest[pieces])
    lacking = deepest == 0
    lacking[0] = False
    # Thinner than two rims: only apart from what they touch, or else a pixel.
    for fewest in (_apart, partial(_middles, n=n)):
        if lacking.any():
            level = fewest(pieces)
            core |= lacking[level]
            lacking &= np.bincount(level.ravel(), minlength=n + 1) == 0
    return core


def _peeled(pieces: NDArray[np.int64], corners: bool) -> NDArray[np.int64]:
    """Pieces less the pixels beside another value; alternating corners makes rims about round."""
    kept = pieces.copy()
    for here, there in _neighbours(corners):
        differs = pieces[here] != pieces[there]
        kept[here][differs] = 0
        kept[there][differs] = 0
    return kept


def _apart(pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pieces less the pixels beside another piece."""
    kept = pieces.copy()
    for here, there in _neighbours(corners=True):
        touching = (pieces[here] != pieces[there]) & (pieces[here] > 0) & (pieces[there] > 0)
        kept[here][touching] = 0
        kept[there][touching] = 0
    return kept


def _middles(pieces: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """One pixel of each piece: the middle one in reading order."""
    flat = np.flatnonzero(pieces)
    order = flat[np.argsort(pieces.ravel()[flat], kind="stable")]
    sizes = np.bincount(pieces.ravel()[flat], minlength=n + 1)
    chosen = order[(np.cumsum(sizes) - sizes + sizes // 2)[1:]] if n else flat
    middles = np.zeros_like(pieces)
    middles.ravel()[chosen] = pieces.ravel()[chosen]
    return middles


def _neighbours(corners: bool) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Pairs of windows that lay each pixel beside one of its neighbours."""
    every, front, back = slice(None), slice(None, -1), slice(1, None)
    yield (front, every), (back, every)
    yield (every, front), (every, back)
    if corners:
        yield (front, front), (back, back)
        yield (front, back), (back, front)


def hold_out(annotation: Annotation, fraction: float, seed: int) -> Split:
    """Keep whole strokes back to score a model on.

    Strokes closer than :data:`GAP_PX`, in one plane, or overlapping in neighbouring planes of a stack, stay
    together. Labels longer than a block are cut along a grid of blocks, and pixels held out are left out of both
    parts within :data:`GAP_PX` of a training pixel, so dense labels can be held out too.

    Corrections are held out only where the other strokes are too few: a score on errors says little of all the rest,
    and cannot be compared with one from before them.

    Parameters
    ----------
    annotation
        All strokes.
    fraction
        Wanted share of each class's pixels to hold out, in [0, 1).
    seed
        The same seed holds out the same strokes.

    Returns
    -------
    Split
        With a validation part only if every painted class is in it and keeps two separate strokes for training;
        else with everything in ``train`` and the reason why.
    """
    if fraction <= 0:
        return Split(annotation, None, "The settings hold no strokes out, so there is no score.")
    for strokes, block in product(dict.fromkeys((annotation.unseen, annotation)), _BLOCKS_PX):
        groups = _Groups(strokes, block)
        for held in _choices(groups, fraction, seed):
            split = _divided(annotation, groups, held)
            if split.validation and _all_painted(annotation, split.train, split.validation):
                return split
    return Split(annotation, None, _too_few(annotation, groups.strokes_per_class))


class GrowingHoldOut:
    """Holds strokes out while more and more are painted: what was once learnt from is never scored on.

    Strokes held out stay so, and a share of the new ones joins them, each class for itself and before a score is
    possible: otherwise all early strokes would be used up. Where a new stroke touches one that was learnt from, it is
    learnt from too.

    Parameters
    ----------
    fraction
        Wanted share of each class's pixels to hold out, in [0, 1).
    seed
        The same seed and the same strokes in the same order hold out the same.
    """

    def __init__(self, fraction: float, seed: int) -> None:
        self._fraction = fraction
        self._seed = seed
        self.forget()

    def forget(self) -> None:
        """Start over: nothing was learnt yet."""
        self._before: dict[tuple[int, tuple[int, ...]], NDArray[np.uint8]] = {}
        self._reserved: dict[tuple[int, tuple[int, ...]], NDArray[np.bool_]] = {}

    def takes_back(self, annotation: Annotation) -> bool:
        """Whether a pixel that was learnt from is unlabelled now, or of another class."""
        now = {(plane.image, plane.index): plane.labels for plane in annotation.planes}
        for place, before in self._before.items():
            learnt = (before > 0) & ~self._reserved[place]
            if (now.get(place, np.zeros_like(before))[learnt] != before[learnt]).any():
                return True
        return False

    def split(self, annotation: Annotation) -> Split:
        """Divide all strokes painted so far; those in ``train`` count as learnt from.

        Without a fair score as yet, ``validation`` is None, and strokes may be held out all the same.
        """
        if self._fraction <= 0:
            return Split(annotation, None, "The settings hold no strokes out, so there is no score.")
        groups = _Groups(annotation, _BLOCKS_PX[-1])
        held = self._held_groups(annotation, groups)
        split = _divided(annotation, groups, held)
        in_held = [held[groups.group_of_piece][pieces] for pieces in groups.maps]
        for plane, mask in zip(annotation.planes, in_held, strict=True):
            self._before[plane.image, plane.index] = plane.labels.copy()
            self._reserved[plane.image, plane.index] = mask
        if split.validation and _all_painted(annotation, split.train, split.validation):
            return split
        return Split(split.train, None, _too_few(annotation, groups.strokes_per_class))

    def _held_groups(self, annotation: Annotation, groups: _Groups) -> NDArray[np.bool_]:
        learnt, held = (np.zeros(len(groups.pixels), bool) for _ in range(2))
        for plane, pieces in zip(annotation.planes, groups.maps, strict=True):
            before = self._before.get((plane.image, plane.index))
            if before is not None:
                reserved = self._reserved[plane.image, plane.index]
                learnt[groups.group_of_piece[pieces[(before > 0) & ~reserved]]] = True
                held[groups.group_of_piece[pieces[reserved & (plane.labels > 0)]]] = True
        held &= ~learnt
        held[0] = False
        candidates = np.flatnonzero(groups.safe_pixels.any(axis=1) & ~learnt & ~held)
        order = np.random.default_rng(self._seed).permutation(candidates)
        return _one_choice(groups, order, self._fraction, held)[0]


def _all_painted(whole: Annotation, *parts: Annotation) -> bool:
    """Whether each part has pixels of every class that the whole has."""
    return all(part.painted_classes == whole.painted_classes for part in parts)


def _too_few(annotation: Annotation, strokes: NDArray[np.int64]) -> str:
    needed = _STROKES_TO_TRAIN_ON + 1
    short = [f"{annotation.name_of(number)} has {int(strokes[number])}" for number in sorted(annotation.painted_classes)
             if strokes[number] < needed]
    found = f" ({', '.join(short)})" if short else ""
    return f"Paint at least {needed} separate strokes of every class, well apart, to get a score{found}."


class _Groups:
    """Labelled pixels sorted into groups that are held out or trained on as a whole.

    Attributes
    ----------
    maps
        Per plane, YX int32: piece of each labelled pixel, 0 for none.
    group_of_piece
        Group of each piece; pieces of neighbouring planes that overlap share one. Group 0 is nothing.
    pixels, safe_pixels
        Groups × classes: labelled pixels; those further than the gap from a cut, whatever the others are.
    """

    def __init__(self, annotation: Annotation, block: int) -> None:
        self.maps: list[NDArray[np.int32]] = []
        pixels, safe_pixels, n_pieces = [np.zeros((1, annotation.n_classes), np.int64)], [], 1
        safe_pixels.append(pixels[0])
        for plane in annotation.planes:
            pieces, safe = _pieces(plane.labels, block)
            n = int(pieces.max())
            pixels.append(_count(pieces, plane.labels, n, annotation.n_classes))
            safe_pixels.append(_count(np.where(safe, pieces, 0), plane.labels, n, annotation.n_classes))
            self.maps.append(np.where(pieces > 0, pieces + (n_pieces - 1), 0).astype(np.int32))
            n_pieces += n
        self.group_of_piece = _joined(self.maps, list(_neighbouring_planes(annotation)), n_pieces)
        self.pixels = self._summed(np.concatenate(pixels))
        self.safe_pixels = self._summed(np.concatenate(safe_pixels))

    @property
    def strokes_per_class(self) -> NDArray[np.int64]:
        """Groups in which each class is found."""
        found: NDArray[np.int64] = np.count_nonzero(self.pixels, axis=0)
        return found

    def _summed(self, of_pieces: NDArray[np.int64]) -> NDArray[np.int64]:
        total = np.zeros((int(self.group_of_piece.max()) + 1, of_pieces.shape[1]), np.int64)
        np.add.at(total, self.group_of_piece, of_pieces)
        return total


def _pieces(labels: NDArray[np.uint8], block: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Number strokes from 1, long ones block by block; and tell which pixels are safely away from a cut."""
    labelled = labels > 0
    # Two strokes grow together if at most GAP_PX apart.
    grown = ndimage.maximum_filter(labelled, size=GAP_PX + 1)
    strokes, n = ndimage.label(grown, _EIGHT_NEIGHBOURS, output=np.int32)
    strokes *= labelled
    longest = [0 if box is None else max(side.stop - side.start for side in box)
               for box in ndimage.find_objects(strokes, n)]
    is_long = np.array([0, *longest]) > block
    if not is_long.any():
        return strokes, labelled
    cut = is_long[strokes]
    height, width = labels.shape
    n_across = -(-width // block)
    row_block, column_block = np.arange(height) // block, np.arange(width) // block
    number = (row_block[:, None] * n_across + column_block)[cut]
    n_blocks = (-(-height // block)) * n_across
    key = (np.cumsum(is_long) - 1)[strokes[cut]] * n_blocks + number
    used = np.zeros(int(is_long.sum()) * n_blocks, bool)
    used[key] = True
    strokes[cut] = n + np.cumsum(used)[key]
    far_row, far_column = _away_from_cuts(height, block), _away_from_cuts(width, block)
    return strokes, labelled & (~cut | (far_row[:, None] & far_column))


def _away_from_cuts(length: int, block: int) -> NDArray[np.bool_]:
    position = np.arange(length) % block
    far: NDArray[np.bool_] = (position >= GAP_PX) & (position < block - GAP_PX)
    return far


def _count(pieces: NDArray[np.int32], labels: NDArray[np.uint8], n_pieces: int, n_classes: int) -> NDArray[np.int64]:
    """Pieces × classes."""
    key = pieces.astype(np.int64) * (n_classes + 1) + labels
    table = np.bincount(key.ravel(), minlength=(n_pieces + 1) * (n_classes + 1))
    return table.reshape(n_pieces + 1, n_classes + 1)[1:, 1:].astype(np.int64)


def _neighbouring_planes(annotation: Annotation) -> Iterator[tuple[int, int]]:
    """Positions of labelled planes of one image that are one step apart along one stack axis."""
    position_of = {(plane.image, plane.index): position for position, plane in enumerate(annotation.planes)}
    for position, plane in enumerate(annotation.planes):
        for axis, step in enumerate(plane.index):
            after = (*plane.index[:axis], step + 1, *plane.index[axis + 1 :])
            if (plane.image, after) in position_of:
                yield position, position_of[plane.image, after]


def _joined(maps: list[NDArray[np.int32]], neighbours: list[tuple[int, int]], n_pieces: int) -> NDArray[np.int32]:
    """Group of each piece: neighbouring planes show nearly the same, so what overlaps there is one stroke."""
    links = [np.zeros((0, 2), np.int32)]
    for before, after in neighbours:
        overlap = (maps[before] > 0) & (maps[after] > 0)
        pairs = np.stack([maps[before][overlap], maps[after][overlap]], axis=1)
        # Along a row the same pair repeats: keeping its first pixel makes this cheap.
        changes = np.any(pairs[1:] != pairs[:-1], axis=1)
        links.append(np.unique(pairs[np.concatenate([[True], changes])[: len(pairs)]], axis=0))
    from_, to = np.concatenate(links).T
    graph = sparse.coo_matrix((np.ones(len(from_), np.uint8), (from_, to)), shape=(n_pieces, n_pieces))
    group: NDArray[np.int32] = sparse.csgraph.connected_components(graph, directed=False)[1]
    # Piece 0 is linked to nothing and comes first, so its group is 0.
    return group


def _choices(groups: _Groups, fraction: float, seed: int) -> list[NDArray[np.bool_]]:
    """Up to three choices of groups to hold out, the one closest to the wanted share of every class first."""
    total = groups.pixels.sum(axis=0)
    present = total > 0
    if (groups.strokes_per_class[present] <= _STROKES_TO_TRAIN_ON).any():
        return []
    random = np.random.default_rng(seed)
    candidates = np.flatnonzero(groups.safe_pixels.any(axis=1))
    n_trials = max(2, min(_MOST_TRIALS, 20_000 // max(1, len(candidates))))
    rated = []
    for trial in range(n_trials):
        held, share = _one_choice(groups, random.permutation(candidates), fraction)
        if (share[present] > 0).all():
            rated.append((float(np.abs(share[present] - fraction).sum()), trial, held))
    return [held for _, _, held in sorted(rated, key=lambda entry: entry[:2])[:3]]


def _one_choice(groups: _Groups, order: NDArray[np.intp], fraction: float,
                held: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Hold groups out in the given order while that brings the shares closer to the wanted ones.

    Those ``held`` already stay so. Each class keeps enough groups to train on, and gets a first one however large it
    is.
    """
    shares = groups.safe_pixels / np.maximum(groups.pixels.sum(axis=0), 1)
    held = np.zeros(len(shares), bool) if held is None else held.copy()
    share = shares[held].sum(axis=0)
    left = groups.strokes_per_class - np.count_nonzero(groups.pixels[held], axis=0)
    present = left > 0
    for group in order:
        has = groups.pixels[group] > 0
        if (left[has] <= _STROKES_TO_TRAIN_ON).any():
            continue
        after = share + shares[group]
        is_first = ((share == 0) & (after > 0)).any()
        if is_first or np.abs(after - fraction)[present].sum() < np.abs(share - fraction)[present].sum():
            held[group] = True
            share = after
            left = left - has
        if (share >= fraction)[present].all():
            break
    return held, share


def _divided(annotation: Annotation, groups: _Groups, held: NDArray[np.bool_]) -> Split:
    held_pieces = held[groups.group_of_piece]
    is_held = [held_pieces[pieces] for pieces in groups.maps]
    train = [np.where(mask, 0, plane.labels) for mask, plane in zip(is_held, annotation.planes, strict=True)]
    kept = [np.where(mask, plane.labels, 0) for mask, plane in zip(is_held, annotation.planes, strict=True)]
    # A band around training pixels belongs to neither part: what lies beside them is all but known.
    beside = {position: [position] for position in range(len(train))}
    for before, after in _neighbouring_planes(annotation):
        beside[before].append(after)
        beside[after].append(before)
    for position, labels in enumerate(train):
        near = ndimage.maximum_filter(labels > 0, size=2 * GAP_PX + 1)
        for other in beside[position]:
            kept[other][near] = 0
    return Split(_with_labels(annotation, train), _with_labels(annotation, kept), "")


def _with_labels(annotation: Annotation, labels: list[NDArray[np.uint8]]) -> Annotation:
    planes = [replace(plane, labels=values.astype(np.uint8, copy=False))
              for plane, values in zip(annotation.planes, labels, strict=True) if values.any()]
    return Annotation(tuple(planes), annotation.n_classes, annotation.class_names)


class StrokeSampler:
    """Says where to train next: classes in turn, and each stroke of a class before any is visited again.

    Where a class has corrections, its other strokes are visited :data:`CORRECTIONS_PER_STROKE` times in a round.

    Parameters
    ----------
    annotation
        The strokes to learn from. Long ones are visited piece by piece.
    seed
        The same seed gives the same order.
    """

    def __init__(self, annotation: Annotation, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._width = [plane.labels.shape[1] for plane in annotation.planes]
        self._strokes = [strokes for strokes in _strokes_per_class(annotation) if strokes]
        self._visits = [_visits(annotation, strokes) for strokes in self._strokes]
        self._round: list[list[int]] = [[] for _ in self._strokes]
        self._turn = 0

    def next_centres(self, n: int) -> list[tuple[int, int, int]]:
        """The next ``n`` labelled pixels: position in ``annotation.planes``, row, column."""
        return [self._next() for _ in range(n)] if self._strokes else []

    def state(self) -> dict[str, Any]:
        """Where it is, as JSON can hold it; a copy."""
        left = [list(strokes) for strokes in self._round]
        return {"random": self._random.bit_generator.state, "round": left, "turn": self._turn}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a sampler of the same strokes.

        Raises
        ------
        KeyError, ValueError, TypeError
            If the state is none of such a sampler.
        """
        left = [[int(stroke) for stroke in strokes] for strokes in state["round"]]
        if len(left) != len(self._strokes) or any(
                not 0 <= stroke < len(known) for known, strokes in zip(self._strokes, left, strict=True)
                for stroke in strokes):
            raise ValueError("other strokes")
        self._random.bit_generator.state = state["random"]
        self._round, self._turn = left, int(state["turn"])

    def _next(self) -> tuple[int, int, int]:
        turn = self._turn % len(self._strokes)
        self._turn += 1
        if not self._round[turn]:
            self._round[turn] = self._random.permutation(self._visits[turn]).tolist()
        plane, pixels = self._strokes[turn][self._round[turn].pop()]
        row, column = divmod(int(pixels[self._random.integers(len(pixels))]), self._width[plane])
        return plane, row, column


def _visits(annotation: Annotation, strokes: Sequence[tuple[int, NDArray[np.intp]]]) -> NDArray[np.intp]:
    """Numbers of one class's strokes, each as often as it is visited in a round: once, if all are of one kind."""
    corrected = [(where := annotation.planes[plane].corrections) is not None and where.ravel()[pixels].mean() > 0.5
                 for plane, pixels in strokes]
    each = np.where(corrected, 1, CORRECTIONS_PER_STROKE)
    return np.repeat(np.arange(len(strokes)), each // each.min())


def _strokes_per_class(annotation: Annotation) -> list[list[tuple[int, NDArray[np.intp]]]]:
    """Per class, its strokes: position of the plane and flat positions of the pixels."""
    strokes: list[list[tuple[int, NDArray[np.intp]]]] = [[] for _ in range(annotation.n_classes)]
    for position, plane in enumerate(annotation.planes):
        for number in range(annotation.n_classes):
            mask = plane.labels == number + 1
            if mask.any():
                strokes[number] += [(position, pixels) for pixels in _pixels_of_pieces(mask)]
    return strokes


def _pixels_of_pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Flat positions of the pixels of each connected piece, large ones block by block."""
    pieces, _ = ndimage.label(mask, _EIGHT_NEIGHBOURS)
    flat = np.flatnonzero(mask)
    rows, columns = np.divmod(flat, mask.shape[1])
    n_across = -(-mask.shape[1] // _PIECE_PX)
    n_blocks = -(-mask.shape[0] // _PIECE_PX) * n_across
    key = pieces.ravel()[flat].astype(np.int64) * n_blocks + (rows // _PIECE_PX) * n_across + columns // _PIECE_PX
    order = np.argsort(key, kind="stable")
    ends = np.flatnonzero(np.diff(key[order])) + 1
    return np.split(flat[order], ends)
