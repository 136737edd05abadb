"""What the pixels of a patch weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_cellbrush.config import AugmentationConfig, TrainingConfig, classes_from_names
from napari_cellbrush.engine.annotation import CORRECTIONS_PER_STROKE, collect_annotation
from napari_cellbrush.engine.border_weights import annotation_weights
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.patches import Patches
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.resampling import Resampled

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
TWO = classes_from_names(["background", "cell"])
STILL = AugmentationConfig(elastic_sigma_px=0, rotation_deg=0, flips=False, scale_range=0, gain=0, offset=0, gamma=0,
                           noise=0, blur_px=0)


def two_cells() -> NDArray[np.uint8]:
    labels = np.zeros((96, 96), np.uint8)
    labels[40:60, 20:44], labels[40:60, 48:70], labels[10:14, 10:80] = 2, 2, 1
    return labels


def batch(corrections: Any, border_weight: float = 0) -> tuple[Tensor, Tensor | None]:
    """Labels and weights of a patch that shows all of the image."""
    image = Planes(np.random.default_rng(0).random((96, 96)).astype(np.float32), "YX")
    config = TrainingConfig(batch_size=1, patch_px=192, augmentation=STILL, border_weight=border_weight)
    patches = Patches([Resampled(image, 1.0)], collect_annotation([image], [two_cells()], TWO, [corrections]), TWO,
                      config, UNetGeometry(3, padded=True), CPU)
    _, labels, weights = patches.next_batch()
    return labels, weights


def test_without_corrections_and_border_weights_all_pixels_weigh_the_same() -> None:
    assert batch(None)[1] is None


def test_corrections_weigh_less_than_other_pixels() -> None:
    labels, weights = batch(two_cells() == 2)
    assert weights is not None
    assert (labels == 2).any()
    assert (labels == 1).any()
    torch.testing.assert_close(weights[labels == 1], torch.ones(int((labels == 1).sum())))
    torch.testing.assert_close(weights[labels == 2] * CORRECTIONS_PER_STROKE, torch.ones(int((labels == 2).sum())))


def test_corrections_between_cells_weigh_less_than_other_pixels_there() -> None:
    labels, weights = batch(two_cells() == 2, border_weight=10)
    expected = annotation_weights(two_cells(), TWO, w0=10, sigma_px=TrainingConfig().border_sigma_px)
    assert weights is not None
    assert expected.max() > 2
    torch.testing.assert_close(weights[labels == 2].sort().values * CORRECTIONS_PER_STROKE,
                               torch.from_numpy(np.sort(expected[two_cells() == 2])))
