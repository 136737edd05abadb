"""How large the objects of an image are, by which it is rescaled for a network that knows objects of one size.

Where nobody says it and no whole object is labelled, the network itself is asked: shown the same place at several
scales, it is surest, and finds objects of the size it knows, at about the right one; there it looks once more. Where it
sees too little and somebody painted, it need not be sure but right: at the right scale the strokes are likeliest for
it.

Tuning changes how large a network finds things, so a tuned one is asked how much larger they are than where it was
tuned. Small differences are taken as chance, for images of one experiment have one magnification or a few. (Two
measured images of one of six training sets at a time: the diameter of the first is 0.58 octaves off for the second in
the mean, its own 0.30; where both are of about one size, 0.28 and 0.27.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import clear_border

from napari_cellbrush.config import ClassDefinition, InferenceConfig
from napari_cellbrush.engine.annotation import (
    Annotation,
    LabelledPlane,
    StrokeSampler,
    typical_diameter,
)
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.model import SCALES, Model, meant_classes
from napari_cellbrush.engine.objects import objects_from_classes
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.predictor import TilePredictor, most_probable
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.events import StopToken

#: Diameters that differ by less than this factor are taken as one.
ALIKE = 1.4
#: Scales that are tried, the likeliest first, less than an octave from one to the next. What is seen there counts so
#: much: reduced enough, clumps of anything look like cells. (208 looks for the diameter on 58 training images at up to
#: four sizes each: 3 of them were wrong by more than an octave when the last counted 0.8, 7 when all counted the same.
#: In 159 looks with later weights 3 were wrong with 0.8, 2 with 0.65. In 165 at three sizes with those of 17,960 steps,
#: 8 were wrong and images were 0.33 octaves off in the mean; 10 and 0.36 when the last two counted 0.75 and 0.65; with
#: weights of 2,700 steps more, 8 and 0.33, 12 and 0.40.)
_SCALES = {1.0: 1.0, 0.6: 0.97, 1.7: 0.97, 2.9: 0.8, 0.35: 0.65, 0.2: 0.5}
#: Octaves around the right scale that are tried where a diameter is known. (Whole cells are at most so much larger than
#: the nuclei by which a base measured them.)
_NEAR_OCTAVES = 1.2
#: Side of what is looked at, in network pixels.
_WINDOW_PX = 268
#: Places that are looked at in the end, at the scale found.
_PLACES_AT_LAST = 3
#: Share of the pixels that must lie, surely, in objects of the right size: below the first nobody knows, above the last
#: look no further. (On 71 training images the best scale always had more than the first and was wrong by more than half
#: an octave in 11 of them; where 0.3 was asked, phase contrast was measured in one image of nine instead of in all.)
_LEAST_EVIDENCE, _ENOUGH_EVIDENCE = 0.2, 0.42
#: The least where other things are to be found than the network knows.
_LEAST_EVIDENCE_FOR_OTHERS = 0.3
#: An object counts the less, the more octaves its diameter is off (standard deviation of a Gaussian).
_TOLERANCE_OCTAVES = 0.5
#: Whole objects must be at least this share of what is found; where they are less, evidence is less too.
_LEAST_SHARE = 0.25
#: Smaller spots are noise, in network pixels.
_LEAST_DIAMETER_PX = 6.0
#: Fewer objects that are labelled as a whole do not tell how large the others are.
_LEAST_WHOLE_OBJECTS = 3
#: So many strokes of each class are looked at, as far as this from one of their pixels, in image pixels. (On seven
#: training images that the network knows badly, four gave a diameter within a factor of 1.3, two within one of 2.3.)
_STROKES_PER_CLASS, _STROKE_REACH_PX = 4, 13
#: Probabilities below this are not told apart: one pixel that is surely wrong shall not outweigh all others.
_LEAST_PROBABILITY = 1e-3
#: A scale at which strokes lose this much more than at the best one is e times less likely.
_LOSS_PER_E = 0.2
#: Where they lose this much more, larger scales are not looked at: they are worse still, and tiles there cost most.
_HOPELESS_LOSS = 1.0
#: Strokes in one square with this side, in network pixels, are seen in one tile.
_TOGETHER_PX = 100


@dataclass(frozen=True, eq=False)
class Painted:
    """Strokes on the images, at the images' scale, and what they mean."""

    annotation: Annotation
    classes: tuple[ClassDefinition, ...]

    def on(self, image: int) -> Painted:
        """What is painted on one of the images."""
        planes = tuple(plane for plane in self.annotation.planes if plane.image == image)
        return replace(self, annotation=replace(self.annotation, planes=planes))


def object_diameters(model: Model, images: Sequence[Planes], stated_px: float, device: Device,
                     stop: StopToken | None = None, painted: Painted | None = None,
                     classes: Sequence[ClassDefinition] = ()) -> tuple[float, ...] | None:
    """Diameter of the objects of each image, in its pixels: stated, known, told by whole objects, or measured.

    A model that was tuned knows that of its own images. In others, whole objects that are painted or accepted tell it
    (see :func:`diameter_of_whole`; of classes that the model knows), or the model measures in relation to its own. A
    base measures images where it sees enough that it knows, else their strokes, if they are of classes that it knows
    and tell scales apart. (On 12 training images of phase contrast and tissue, five strokes a class were 0.4 octaves
    off in the mean, the images 0.2.)

    Images of one experiment have one magnification or a few: those whose diameters are alike (:data:`ALIKE`) get the
    median of theirs, others keep their own.

    Parameters
    ----------
    model, images, stated_px, device, stop
        What is asked, on what, what the person said (0 for nothing), and where.
    painted
        Strokes and whole objects, where there are any.
    classes
        What is to be found, where nothing is painted yet; the model's own classes if not given. For others than it
        knows, what it sees must be surer, and smaller than what it knows: an image is enlarged, but not reduced by the
        size of what it takes for objects, or other things may be lost. (It sees axons twice as large as they are, with
        their sheaths; reduced by as much, twenty strokes gave a mean intersection over union of 0.55 instead of 0.65.)

    Returns
    -------
    tuple of float or None
        None for a model that works at any scale, where no measurement is sure enough, or if stopped. An image that
        tells nothing gets the median of the others.
    """
    if model.card.diameter_px is None:
        return None
    if stated_px:
        return (stated_px,) * len(images)
    card = model.card
    wanted = painted.classes if painted else classes
    knows_them = not wanted or meant_classes(card.classes, wanted) is not None

    def told(number: int) -> float | None:
        image, on_it = images[number], painted.on(number) if painted else None
        known = card.tuned_on.get(image.fingerprint()) or (diameter_of_whole(on_it) if on_it and knows_them else None)
        if known or card.image_diameter_px:
            return known or _diameter_beside_tuned_on(model, image, device, stop)
        return _diameter_if_sure(model, image, knows_them, device, stop) or (
            diameter_on_strokes(model, images, on_it, device, stop) if on_it else None)

    found = [told(number) for number in range(len(images))]
    if stop and stop.stopped:
        return None
    known = [px for px in found if px is not None]
    if not known and card.image_diameter_px:
        known = [card.image_diameter_px]
    return tuple(_typical(known, px) for px in found) if known else None


def object_diameter(model: Model, image: Planes, stated_px: float, device: Device, stop: StopToken | None = None,
                    classes: Sequence[ClassDefinition] = ()) -> float | None:
    """The same of one image on which nothing is painted."""
    found = object_diameters(model, [image], stated_px, device, stop, classes=classes)
    return found[0] if found else None


def diameter_of_whole(painted: Painted) -> float | None:
    """Typical diameter of the objects of one image that are labelled as a whole, in its pixels.

    Whole is what has labels all round and does not reach the image's edge: every object of an instance mask, an
    accepted one, one painted with its rim; not a stroke. None where there are fewer than
    :data:`_LEAST_WHOLE_OBJECTS`, and where no class is a boundary: objects that touch would look like one.
    """
    if not any(definition.role == "boundary" for definition in painted.classes):
        return None
    areas = [np.zeros(0, np.intp)]
    for plane in painted.annotation.planes:
        areas += _areas_of_whole(plane.labels, painted.classes)
    found = np.concatenate(areas)
    return typical_diameter(found) if len(found) >= _LEAST_WHOLE_OBJECTS else None


def _areas_of_whole(labels: NDArray[np.uint8], classes: Sequence[ClassDefinition]) -> list[NDArray[np.intp]]:
    """Of each connected piece of labels that has several classes."""
    pieces, _ = ndimage.label(labels > 0, np.ones((3, 3), bool), output=np.int32)
    areas = []
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        piece = np.where(pieces[box] == number, labels[box], 0)
        if np.count_nonzero(np.bincount(piece.ravel())[1:]) > 1:
            open_to = ndimage.maximum_filter(piece == 0, 3) & (piece > 0)
            ids = clear_border(objects_from_classes(piece, classes))
            of_ids = np.bincount(ids.ravel())
            of_ids[np.unique(ids[open_to])] = of_ids[0] = 0
            areas.append(of_ids[of_ids > 0])
    return areas


def _typical(known: Sequence[float], px: float | None) -> float:
    """Median of the diameters that are like this one; of all, where it is not known."""
    return float(np.median([other for other in known if px is None or max(other / px, px / other) < ALIKE]))


def _diameter_if_sure(model: Model, image: Planes, knows_them: bool, device: Device,
                      stop: StopToken | None) -> float | None:
    """What a base measures; None where that is not to be believed, the less if it is to find what it does not know."""
    measured = measured_diameter(model, image, device, stop)
    least = _LEAST_EVIDENCE if knows_them else _LEAST_EVIDENCE_FOR_OTHERS
    largest = math.inf if knows_them else model.card.diameter_px or math.inf
    if measured is None or measured.evidence <= least or measured.diameter_px > largest:
        return None
    return measured.diameter_px


def _diameter_beside_tuned_on(model: Model, image: Planes, device: Device, stop: StopToken | None) -> float | None:
    """What a tuned model measures in another image, in relation to its own, or what it knows if that is near it."""
    card = model.card
    if not card.measured_as_px or not card.image_diameter_px:
        return None
    measured = measured_diameter(model, image, device, stop)
    if measured is None:
        return None
    here = card.image_diameter_px * measured.diameter_px / card.measured_as_px
    nearest = min(card.tuned_on.values() or [card.image_diameter_px], key=lambda px: abs(math.log(px / here)))
    return nearest if abs(math.log(nearest / here)) <= math.log(ALIKE) else here


def measured_in_relation(model: Model, images: Sequence[Planes], diameters: Sequence[float], device: Device,
                         stop: StopToken | None = None) -> float | None:
    """How many times as large as they are a model finds the objects of images, by the median.

    Looked for near the right scale alone: a mistake here would be one about every other image. (Tuned on a few strokes
    on errors alone, a model took specks in its own image for objects of 6 px instead of 41, and with them cells of
    other images for seven times as large as they are.)

    Parameters
    ----------
    model, images
        With a ``diameter_px`` on its card, and what it looks at.
    diameters
        Of the objects of each image, in its pixels.
    device, stop
        Where, and who may end it.

    Returns
    -------
    float or None
        None where it is nowhere sure enough, or if stopped.

    Raises
    ------
    ImageError
        If an image cannot be read.
    """
    ratios = [measured.diameter_px / px for image, px in zip(images, diameters, strict=True)
              if (measured := measured_diameter(model, image, device, stop, px))]
    return float(np.median(ratios)) if ratios and not (stop and stop.stopped) else None


class Measurement(NamedTuple):
    """Of one image."""

    diameter_px: float
    #: Share of the pixels that lie, surely, in objects of the right size; counted less at scales that are seldom right.
    evidence: float


def measured_diameter(model: Model, planes: Planes, device: Device, stop: StopToken | None = None,
                      near_px: float = 0.0) -> Measurement | None:
    """Typical diameter of the objects in the middle plane, in image pixels; None where the network is not sure.

    Parameters
    ----------
    model
        With a ``diameter_px`` on its card.
    planes
        The image.
    device
        Where to compute; about nine tiles, fewer for images like the ones the network knows best.
    stop
        Looked at before every tile; what was not seen to the end is not known.
    near_px
        About what it must be, in image pixels, if that is known.
    """
    if stop and stop.stopped:
        return None
    wanted = model.card.diameter_px or 1.0
    predictor = TilePredictor(model.for_channels(planes.n_channels), planes.normalisation(), device, InferenceConfig())
    index = tuple(n // 2 for n in planes.stack_shape)
    richest = _richest_places(planes, index)

    def look(scale: float, counts: float = 1.0, n_places: int = 1) -> Measurement:
        source = Resampled(planes, scale)
        seen = [_looked_at(predictor, model, source, index, corner) for corner in _apart(richest, source)[:n_places]
                if not (stop and stop.stopped)]
        if stop and stop.stopped:
            return Measurement(0.0, 0.0)
        seen_px, evidence = _typical_object(seen, model, wanted)
        return Measurement(seen_px / scale, counts * evidence)

    found = Measurement(0.0, _LEAST_EVIDENCE)
    for scale, counts in _scales_near(wanted / near_px).items() if near_px else _SCALES.items():
        if stop and stop.stopped:
            return None
        found = max(found, look(scale, counts), key=lambda measured: measured.evidence)
        if found.evidence > _ENOUGH_EVIDENCE:
            break
    if not found.diameter_px or (stop and stop.stopped):
        return None
    # Once more, at the size that evidence is counted by. (Bright field, 12 training images: average precision 0.586
    # instead of 0.549; four other sets between 0.004 less and 0.010 more.) One place has few objects. (Three instead
    # of one: 0.16 octaves off instead of 0.24 in bright field, alike in 54 training images of four other sets.)
    again = look(float(np.clip(wanted / found.diameter_px, *SCALES)), n_places=_PLACES_AT_LAST)
    if stop and stop.stopped:
        return None
    return found._replace(diameter_px=again.diameter_px) if again.evidence > _LEAST_EVIDENCE else found


def _scales_near(scale: float) -> dict[float, float]:
    """Those that are tried around a scale that is about right, the nearest first; all count the same."""
    octaves = {tried: abs(math.log2(tried / scale)) for tried in _SCALES}
    nearest = sorted(octaves, key=lambda tried: octaves[tried])
    return dict.fromkeys([tried for tried in nearest if octaves[tried] <= _NEAR_OCTAVES] or nearest[:1], 1.0)


def diameter_on_strokes(model: Model, images: Sequence[Planes], painted: Painted, device: Device,
                        stop: StopToken | None = None) -> float | None:
    """Typical diameter of the painted objects, in image pixels: that at which strokes are likeliest for the model.

    A few strokes of each class are shown at up to six scales, always the same pixels of them. The answer is a mean of
    the logarithms of the scales, each counting as likely as its loss makes it: few strokes are seldom best at one
    alone.

    Parameters
    ----------
    model
        With a ``diameter_px`` on its card.
    images, painted
        The images, and the strokes on them.
    device
        Where to compute; up to 24 small tiles for each class.
    stop
        Looked at before every tile.

    Returns
    -------
    float or None
        None for classes that the model does not know or a single one, if no scale explains the strokes better than
        chance or all do alike, or if stopped.
    """
    meant = meant_classes(model.card.classes, painted.classes)
    n_painted = len(painted.annotation.painted_classes)
    if meant is None or n_painted < 2 or (stop and stop.stopped):
        return None
    places = [(painted.annotation.planes[position], row, column) for position, row, column
              in StrokeSampler(painted.annotation.unseen, 0).next_centres(_STROKES_PER_CLASS * n_painted)]
    predictors = {number: TilePredictor(model.for_channels(images[number].n_channels), images[number].normalisation(),
                                        device, InferenceConfig())
                  for number in {plane.image for plane, _, _ in places}}
    scales, losses = np.array(sorted(_SCALES)), list[float]()
    for scale in scales:
        if losses and losses[-1] > min(losses) + _HOPELESS_LOSS:
            break
        of_places = []
        for plane, centres in _seen_together(places, scale):
            if stop and stop.stopped:
                return None
            source = Resampled(images[plane.image], float(scale))
            of_places += _losses_near(predictors[plane.image], model, meant.numpy(), plane, source, centres)
        losses.append(float(np.mean(of_places)))
    if min(losses) >= math.log(n_painted) or max(losses) - min(losses) < _LOSS_PER_E:
        return None
    likelihood = np.exp((min(losses) - np.array(losses)) / _LOSS_PER_E)
    octaves = np.log2(scales[: len(losses)])
    return (model.card.diameter_px or 1.0) / 2 ** float(np.average(octaves, weights=likelihood))


def _seen_together(places: Sequence[tuple[LabelledPlane, int, int]], scale: float
                   ) -> Iterable[tuple[LabelledPlane, list[tuple[int, int]]]]:
    """Planes and the places on them that lie, at a scale, in one square of a grid, so that one tile shows them all."""
    together: dict[tuple[int, int, int], tuple[LabelledPlane, list[tuple[int, int]]]] = {}
    for plane, row, column in places:
        square = id(plane), int(row * scale) // _TOGETHER_PX, int(column * scale) // _TOGETHER_PX
        together.setdefault(square, (plane, []))[1].append((row, column))
    return together.values()


def _losses_near(predictor: TilePredictor, model: Model, meant: NDArray[np.float32], plane: LabelledPlane,
                 source: Resampled, centres: Sequence[tuple[int, int]]) -> list[float]:
    """For each of some pixels of a plane, the mean, over the classes painted near it, of the mean −log p of theirs.

    ``meant`` is known classes × painted classes, ``source`` the image of ``plane`` at the scale to look at.
    """
    geometry = model.network.geometry
    (top, bottom), (left, right) = (
        (_scaled(min(at) - _STROKE_REACH_PX, source.scale), _scaled(max(at) + _STROKE_REACH_PX, source.scale) + 1)
        for at in zip(*centres, strict=True))
    window = source.read_mirrored(plane.index, top - geometry.margin, left - geometry.margin,
                                  geometry.input_size_for(bottom - top), geometry.input_size_for(right - left))
    said = np.einsum("jhw,jk->khw", predictor.predict(window), meant)
    losses = []
    for centre in centres:
        box = tuple(slice(max(0, at - _STROKE_REACH_PX), at + _STROKE_REACH_PX + 1) for at in centre)
        rows, columns = (at + part.start for at, part in zip(np.nonzero(plane.labels[box]), box, strict=True))
        classes = plane.labels[rows, columns] - 1
        there = _scaled(rows, source.scale) - top, _scaled(columns, source.scale) - left
        surprise = -np.log(np.maximum(said[(classes, *there)], _LEAST_PROBABILITY))
        losses.append(float(np.mean([surprise[classes == one].mean() for one in np.unique(classes)])))
    return losses


def _scaled(at: Any, scale: float) -> Any:
    """Where an image's pixels lie at a scale."""
    return np.floor((at + 0.5) * scale).astype(np.intp)


def _richest_places(planes: Planes, index: tuple[int, ...]) -> list[tuple[float, float]]:
    """Rows and columns of nine places in the image, those with the most contrast first: many are empty if it is sparse.
    """
    def contrast(centre: tuple[float, float]) -> float:
        rows, columns = (slice(max(0, int(at) - _WINDOW_PX // 2), min(size, int(at) + _WINDOW_PX // 2))
                         for at, size in zip(centre, planes.shape_yx, strict=True))
        return float(planes.normalisation().apply(planes.read(index, rows, columns))[:, ::2, ::2].std())

    rows, columns = ([share * size for share in (0.5, 0.2, 0.8)] for size in planes.shape_yx)
    return sorted(product(rows, columns), key=contrast, reverse=True)


def _apart(places: Sequence[tuple[float, float]], source: Resampled) -> list[tuple[int, ...]]:
    """Corners of the windows around places, as far as the image goes, less those that mostly show what others do."""
    corners = list[tuple[int, ...]]()
    for place in places:
        corner = tuple(min(max(0, round(at * source.scale) - _WINDOW_PX // 2), max(0, size - _WINDOW_PX))
                       for at, size in zip(place, source.shape_yx, strict=True))
        if all(max(abs(a - b) for a, b in zip(corner, other, strict=True)) >= _WINDOW_PX / 2 for other in corners):
            corners.append(corner)
    return corners


def _looked_at(predictor: TilePredictor, model: Model, source: Resampled, index: tuple[int, ...],
               corner: tuple[int, ...]) -> NDArray[np.float32]:
    """Probabilities KYX of a window of an image, as far as the image goes."""
    geometry = model.network.geometry
    height, width = (min(size, _WINDOW_PX) for size in source.shape_yx)
    window = source.read_mirrored(index, corner[0] - geometry.margin, corner[1] - geometry.margin,
                                  geometry.input_size_for(height), geometry.input_size_for(width))
    return predictor.predict(window)[:, :height, :width]


def _typical_object(seen: Sequence[NDArray[np.float32]], model: Model, wanted_px: float) -> Measurement:
    """Geometric mean of diameters in network pixels, weighted by surely covered area per diameter: specks count little.

    So neither fragments, which are many, nor clumps, which are large, decide. Nor do objects count that the windows
    cut, which look smaller than they are. 0 where there are none.
    """
    found = [_whole_objects(probabilities, model) for probabilities in seen]
    diameters, sure = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
    if not len(diameters):
        return Measurement(0.0, 0.0)
    typical = 2 ** float(np.average(np.log2(diameters), weights=sure / diameters))
    octaves = np.log2(diameters / wanted_px)
    fitting = sure * np.exp(-(octaves**2) / (2 * _TOLERANCE_OCTAVES**2))
    return Measurement(typical, float(fitting.sum() / max(1.0, sum(n_pixels for *_, n_pixels in found))))


def _whole_objects(probabilities: NDArray[np.float32], model: Model
                   ) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Diameters and surely covered pixels of the objects in a window, and of how many pixels these are a share."""
    found = objects_from_classes(most_probable(probabilities), model.card.classes)
    ids = clear_border(found)
    second, first = np.sort(probabilities, axis=0)[-2:]
    diameters = 2 * np.sqrt(np.bincount(ids.ravel(), minlength=1)[1:] / np.pi)
    sure = np.bincount(ids.ravel(), (first - second).ravel(), minlength=1)[1:]
    large = (diameters >= _LEAST_DIAMETER_PX) & (sure > 0)
    n_pixels = max(np.count_nonzero(ids), _LEAST_SHARE * np.count_nonzero(found))
    return diameters[large], sure[large], float(n_pixels)
