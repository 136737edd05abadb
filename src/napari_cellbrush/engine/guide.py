"""Looks over a part of a plane with a model, and with the instant classifier where there is one, for the next stroke.

Joins :mod:`.inference`, :mod:`.instant` and :mod:`.suggestions`; a generator of inference events, because looking
takes as long as segmenting does.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import ClassDefinition, InferenceConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.features import FeatureSource
from napari_cellbrush.engine.inference import segment_planes
from napari_cellbrush.engine.instant import fit
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.suggestions import (
    Place,
    Slip,
    next_places,
    painting_hints,
    probable_slips,
    strokes_per_class,
    uncertainty,
)
from napari_cellbrush.engine.tiling import Region, relative_to
from napari_cellbrush.events import InferenceEvent, StopToken, TileSegmented

#: Places that are looked for at once.
N_PLACES = 8


@dataclass(frozen=True, eq=False)
class ModelAnswers:
    """What a model said of a part of a plane, kept for the next look."""

    model_hash: str
    index: tuple[int, ...]
    region: Region
    #: KYX float16.
    probabilities: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Guide:
    """What a person might do next."""

    answers: ModelAnswers
    #: The best place first, in pixels of the plane.
    places: tuple[Place, ...]
    #: Strokes that the tuned model contradicts, in pixels of the plane.
    slips: tuple[Slip, ...]
    #: What the strokes of the image lack, as sentences.
    hints: tuple[str, ...]
    #: YX uint8 of the region, 255 where the model cannot tell two classes apart.
    unsure: NDArray[np.uint8]


def look_over(
    model: Model,
    planes: Planes,
    index: tuple[int, ...],
    region: Region,
    strokes: NDArray[np.uint8],
    classes: Sequence[ClassDefinition],
    *,
    source: FeatureSource | None = None,
    earlier: ModelAnswers | None = None,
    config: InferenceConfig,
    device: Device,
    stop: StopToken,
) -> Generator[InferenceEvent, None, Guide | None]:
    """Find out where strokes would help in a part of a plane.

    Parameters
    ----------
    model
        The tuned model, or whatever segments now.
    planes, index, region
        The image; which of its planes; rows and columns of it.
    strokes
        Stack axes + YX of the whole image, 0 unlabelled.
    classes
        What the strokes mean.
    source
        Features of the image for the instant classifier; without it, the model speaks alone.
    earlier
        Answers of an earlier look, used again if they are of the same model and place.
    config, device, stop
        How, where, and who may end it.

    Returns
    -------
    Guide or None
        None if it was stopped.
    """
    answers = earlier
    if answers is None or (answers.model_hash, answers.index, answers.region) != (model.weights_hash, index, region):
        answers = yield from _answers(model, planes, index, region, config, device, stop)
    if answers is None or stop.stopped:
        return None
    rows, columns = region
    labels = strokes[index][rows, columns]
    said = answers.probabilities.astype(np.float32)
    # Another model's classes say how sure it is, but cannot be compared with strokes.
    comparable = [c.name for c in classes] == [c.name for c in model.card.classes]
    other = instant_probabilities(source, index, region, strokes[index], len(classes)) \
        if source is not None and comparable else None
    slips = probable_slips(labels, said) if comparable and model.card.labelled_pixels else []
    counts = np.zeros(len(classes), np.int64)
    for at in planes.indices():
        counts += strokes_per_class(strokes[at], len(classes)) if strokes[at].any() else 0
    return Guide(
        answers,
        tuple(replace(place, row=place.row + rows.start, column=place.column + columns.start)
              for place in next_places(labels, said, other, N_PLACES)),
        tuple(replace(slip, row=slip.row + rows.start, column=slip.column + columns.start) for slip in slips),
        tuple(painting_hints(counts.tolist(), classes)),
        np.rint(255 * uncertainty(said)).astype(np.uint8))


def _answers(model: Model, planes: Planes, index: tuple[int, ...], region: Region, config: InferenceConfig,
             device: Device, stop: StopToken) -> Generator[InferenceEvent, None, ModelAnswers | None]:
    rows, columns = region
    shape = (model.n_classes, rows.stop - rows.start, columns.stop - columns.start)
    probabilities = np.zeros(shape, np.float16)
    # Whoever asks where to paint waits for it: once is enough.
    for event in segment_planes(model, planes, config=config.replace(mirrored=False), device=device, indices=(index,),
                                region=region, stop=stop):
        if isinstance(event, TileSegmented):
            probabilities[:, *relative_to((event.rows, event.columns), region)] = event.probabilities
        yield event
    return None if stop.stopped else ModelAnswers(model.weights_hash, index, region, probabilities)


def instant_probabilities(source: FeatureSource, index: tuple[int, ...], region: Region, labels: NDArray[np.uint8],
                          n_classes: int) -> NDArray[np.float32] | None:
    """What the instant classifier says of a part of a plane, fitted to the strokes there.

    Parameters
    ----------
    source
        Features of the image.
    index, region
        Which plane, and which rows and columns of it.
    labels
        YX of the whole plane, 0 unlabelled.
    n_classes
        K.

    Returns
    -------
    NDArray or None
        KYX float32 in [0, 1]; None where fewer than two classes are painted in the region's tiles.
    """
    image, tiles = source.image, [source.features(index, tile) for tile in source.tiles(region)]
    windows = [image.image_window(tile.place.rows, tile.place.columns) for tile in tiles]
    features, numbers = [], []
    for tile, (rows, columns) in zip(tiles, windows, strict=True):
        down, across = np.nonzero(labels[rows, columns])
        features.append(tile.at(*image.network_points(down + rows.start, across + columns.start)))
        numbers.append(labels[rows, columns][down, across].astype(np.int64) - 1)
    classes = np.concatenate(numbers)
    if len(np.unique(classes)) < 2:
        return None
    head = fit(np.concatenate(features), classes, n_classes, source.importance)
    logits = np.zeros((n_classes, *labels.shape), np.float32)
    for tile, (rows, columns) in zip(tiles, windows, strict=True):
        logits[:, rows, columns] = image.to_image(head.of_tile(tile), tile.place.rows, tile.place.columns)
    part = logits[:, region[0], region[1]]
    weights = np.exp(part - part.max(axis=0))
    shares: NDArray[np.float32] = weights / weights.sum(axis=0)
    return shares
