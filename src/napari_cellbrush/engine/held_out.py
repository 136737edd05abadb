"""The score of a model on strokes it never learnt from, and how far that score can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from napari_cellbrush.config import TrainingConfig
from napari_cellbrush.engine.annotation import Annotation, LabelledPlane
from napari_cellbrush.engine.device import Device, autocast
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.metrics import iou_from_confusion
from napari_cellbrush.engine.model import class_logits
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.tiling import Tile, plan_tiles
from napari_cellbrush.engine.unet import UNet

#: Tiles of held-out strokes scored at a time; enough for a stable score, few enough to stay fast on dense labels.
_MAX_SCORED_TILES = 24
#: The same where strokes wait for the score.
QUICK_TILES = 8
#: Side of what a tile answers at least, in network pixels: the same evidence however deep the network is.
_ANSWERED_PX = 64
#: Of how many held-out strokes an interval can be told: fewer say nothing about other strokes.
STROKES_FOR_INTERVAL = 4
_N_RESAMPLES = 1000
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True, eq=False)
class HeldOutScore:
    """What a network is worth on the held-out strokes."""

    #: Mean intersection over union of the classes, over all labelled pixels; in [0, 1].
    iou: float
    #: Mean cross-entropy, which tells equal scores apart.
    loss: float
    #: Where the score of other strokes of this kind would lie, 95 %; None for too few strokes.
    interval: tuple[float, float] | None = None
    #: K × K: labelled pixels by true and said class. Of one that was not measured, nothing.
    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))


class Interruption(Protocol):
    """Whoever may want a score to be given up, as a :class:`~napari_cellbrush.events.StopToken` may."""

    @property
    def stopped(self) -> bool:
        """Whether it is to be given up."""


@dataclass(frozen=True, eq=False)
class _CutTile:
    #: 1CHW, normalised.
    image: Tensor
    #: 1hw int64, 0 unlabelled.
    labels: Tensor
    #: hw: number of the stroke from 0 at each labelled pixel.
    strokes: NDArray[np.int64]


class HeldOut:
    """The held-out strokes, cut into tiles once and scored again and again.

    Parameters
    ----------
    images, annotation
        At the network's scale.
    config, network, device
        Whether classes are balanced and which tiles are drawn, which shape the networks to score have, and where and
        how precisely they compute.
    max_tiles
        Of all tiles with strokes, at most so many are looked at, drawn at random for each class in turn.
    """

    def __init__(self, images: Sequence[Resampled], annotation: Annotation, config: TrainingConfig, network: UNet,
                 device: Device, max_tiles: int = _MAX_SCORED_TILES) -> None:
        self._config = config
        self._device = device
        self._margin = network.geometry.margin
        self._n_classes = annotation.n_classes
        geometry = network.geometry
        size = geometry.input_size_for(_ANSWERED_PX)
        tiles, n_strokes = [], 0
        for plane in annotation.planes:
            strokes, n = ndimage.label(plane.labels > 0, _EIGHT_NEIGHBOURS, output=np.int32)
            strokes += n_strokes - 1
            tiles += [(plane, strokes, tile) for tile in _labelled_tiles(plane, geometry, size)]
            n_strokes += n
        held = [frozenset(np.unique(plane.labels[tile.rows, tile.columns]).tolist()) - {0} for plane, _, tile in tiles]
        self._tiles = [self._cut(images, *tiles[position]) for position in _drawn(held, max_tiles, config.seed)]
        self._n_strokes = n_strokes

    def _cut(self, images: Sequence[Resampled], plane: LabelledPlane, strokes: NDArray[np.int32],
             tile: Tile) -> _CutTile:
        raw = images[plane.image].read_mirrored(plane.index, tile.top, tile.left, tile.height, tile.width)
        image = torch.from_numpy(images[plane.image].normalisation().apply(raw))[None]
        shape = (tile.height - 2 * self._margin, tile.width - 2 * self._margin)
        labels, numbers = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for whole, part in ((plane.labels, labels), (strokes, numbers)):
            found = whole[tile.rows, tile.columns]
            part[: found.shape[0], : found.shape[1]] = found
        return _CutTile(image, torch.from_numpy(labels)[None], numbers)

    @property
    def n_tiles(self) -> int:
        """How many tiles a score looks at."""
        return len(self._tiles)

    @torch.inference_mode()
    def score(self, network: UNet, stop: Interruption) -> HeldOutScore | None:
        """Measure a network over the held-out labelled pixels.

        None if stopped: whoever stops wants the window back, and part of the tiles compares with nothing.
        """
        device, k = self._device, self._n_classes
        counts = np.zeros(self._n_strokes * k * k, np.int64)
        losses, weights = [], []
        for tile in self._tiles:
            if stop.stopped:
                return None
            with autocast(device):
                logits = class_logits(network(tile.image.to(device.torch_device))).float().cpu()
            losses.append(float(segmentation_loss(logits, tile.labels, "cross_entropy", self._config.class_balance)))
            labelled = tile.labels[0].numpy() > 0
            weights.append(int(labelled.sum()))
            true, said = tile.labels[0].numpy()[labelled] - 1, logits.argmax(1)[0].numpy()[labelled]
            counts += np.bincount((tile.strokes[labelled] * k + true) * k + said, minlength=len(counts))
        of_strokes = counts.reshape(-1, k, k)
        confusion = of_strokes.sum(axis=0)
        return HeldOutScore(iou_from_confusion(confusion).mean, float(np.average(losses, weights=weights)),
                            score_interval(of_strokes), confusion)


def score_interval(confusions: NDArray[np.int64]) -> tuple[float, float] | None:
    """A 95 % interval of the mean intersection over union, over strokes rather than pixels.

    Pixels of one stroke are all but copies of each other, so whole strokes are drawn with replacement (the
    percentile bootstrap of clusters; Efron & Tibshirani 1993, chapter 13; Field & Welsh 2007). It knows nothing of
    places where nobody painted, and is a little too narrow for few strokes.

    Parameters
    ----------
    confusions
        Strokes × K × K: labelled pixels by true and said class.

    Returns
    -------
    tuple of float
        Lower and upper end; None for fewer than :data:`STROKES_FOR_INTERVAL` strokes.
    """
    seen = confusions[confusions.any(axis=(1, 2))]
    if len(seen) < STROKES_FOR_INTERVAL:
        return None
    n = len(seen)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _N_RESAMPLES)
    total = np.tensordot(draws, seen, axes=1).astype(float)
    both = np.einsum("rkk->rk", total)
    either = total.sum(axis=1) + total.sum(axis=2) - both
    iou = np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
    low, high = np.percentile(np.nanmean(iou, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _drawn(held: Sequence[frozenset[int]], n: int, seed: int) -> list[int]:
    """Which tiles to look at, by the classes that each holds: a class without a tile would count as never found."""
    left = np.random.default_rng(seed).permutation(len(held)).tolist()
    drawn: list[int] = []
    for wanted in cycle(sorted(frozenset().union(*held))):
        if not left or len(drawn) == n:
            break
        drawn.append(next((position for position in left if wanted in held[position]), left[0]))
        left.remove(drawn[-1])
    return sorted(drawn)


def _labelled_tiles(plane: LabelledPlane, geometry: UNetGeometry, size: int) -> list[Tile]:
    rows, columns = plane.labels.shape
    tiles = plan_tiles((slice(0, rows), slice(0, columns)), geometry, size)
    return [tile for tile in tiles if plane.labels[tile.rows, tile.columns].any()]
