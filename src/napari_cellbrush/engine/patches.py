"""Random, augmented patches around strokes: what a training step learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine import augment
from napari_cellbrush.engine.annotation import CORRECTIONS_PER_STROKE, Annotation, StrokeSampler
from napari_cellbrush.engine.border_weights import annotation_weights
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.training_state import PartState

#: A stroke's pixel lies at most this share of the patch's half side from its centre, so that deformation keeps it in.
_JITTER = 0.7


class Patches:
    """Random, augmented patches around the training strokes, on the device.

    Parameters
    ----------
    images, annotation
        At the network's scale.
    classes
        What the labels mean, which border weights need to know.
    config, geometry, device
        How large patches are and how they vary, which sizes the network that learns takes, and where they are made.
    """

    def __init__(self, images: Sequence[Resampled], annotation: Annotation, classes: Sequence[ClassDefinition],
                 config: TrainingConfig, geometry: UNetGeometry, device: Device) -> None:
        self._images = images
        self._planes = annotation.planes
        self._weights = [annotation_weights(plane.labels, classes, w0=config.border_weight,
                                            sigma_px=config.border_sigma_px)
                         for plane in annotation.planes] if config.border_weight else None
        self._has_weights = bool(config.border_weight or annotation.n_corrections)
        self._config = config
        self._device = device
        self._input_size = geometry.input_size_at_least(config.patch_px)
        self._output_size = geometry.output_size(self._input_size)
        self._source_size = augment.source_size(config.augmentation, self._input_size)
        self._sampler = StrokeSampler(annotation, config.seed)
        self._jitter = np.random.default_rng(config.seed)
        self._random = torch.Generator().manual_seed(config.seed)

    def next_batch(self, n: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalised images BCHW float32, labels Bhw int64, and what pixels weigh Bhw float32, after augmentation.

        B is ``n``, or the settings' batch size.
        """
        windows = [self._read(*centre) for centre in self._sampler.next_centres(n or self._config.batch_size)]
        images, maps = (torch.from_numpy(np.stack(part)).to(self._device.torch_device)
                        for part in zip(*windows, strict=True))
        drawn = augment.draw(self._config.augmentation, len(windows), self._input_size, self._random)
        images, maps = augment.apply(drawn, images, maps, self._input_size, self._output_size)
        if self._device.channels_last:
            images = images.to(memory_format=torch.channels_last)
        return images, maps[:, 0].long(), maps[:, 1].float() if self._has_weights else None

    def state(self) -> PartState:
        """Where the random numbers are, and which strokes are still to come in this round."""
        return PartState({"augmentation": self._random.get_state().clone()},
                         {"jitter": self._jitter.bit_generator.state, "sampler": self._sampler.state()})

    def restore(self, state: PartState) -> None:
        """Go on from a state of patches of the same strokes."""
        self._random.set_state(state.tensors["augmentation"])
        self._jitter.bit_generator.state = state.values["jitter"]
        self._sampler.restore(state.values["sampler"])

    def _read(self, position: int, row: int, column: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """A source window CSS around a labelled pixel, and its maps MSS: labels and, where wanted, weights."""
        plane = self._planes[position]
        reach = int(_JITTER * self._output_size / 2)
        shift = self._jitter.integers(-reach, reach + 1, size=2)
        size = self._source_size
        top, left = row + int(shift[0]) - size // 2, column + int(shift[1]) - size // 2
        image = self._images[plane.image]
        pixels = image.normalisation().apply(image.read_mirrored(plane.index, top, left, size, size))
        labels = _window(plane.labels, top, left, size)
        if not self._has_weights:
            return pixels, labels[None]
        weights = _window(self._weights[position], top, left, size) if self._weights else np.ones_like(labels, float)
        if plane.corrections is not None:
            weights = np.where(_window(plane.corrections, top, left, size), weights / CORRECTIONS_PER_STROKE, weights)
        return pixels, np.stack([labels, weights.astype(np.float32)])


def _window(plane: NDArray[Any], top: int, left: int, size: int) -> NDArray[Any]:
    """A square window that may stick out of the plane; outside it is 0, unlabelled."""
    window = np.zeros((size, size), plane.dtype)
    rows = slice(max(top, 0), min(top + size, plane.shape[0]))
    columns = slice(max(left, 0), min(left + size, plane.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = plane[rows, columns]
    return window
