"""A first head for classes that the base does not know: fitted to the strokes rather than random.

Gradients through a random head spoil the features of the base before the head is any good, so the head is fitted
first, on frozen features (linear probing, then fine-tuning; Kumar et al. 2022, "Fine-tuning can distort pretrained
features and underperform out-of-distribution", ICLR).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine.device import Device, autocast
from napari_cellbrush.engine.instant import MAX_PIXELS, InstantHead, fit
from napari_cellbrush.engine.model import Model, knows_all
from napari_cellbrush.engine.unet import UNet

#: Augmented batches whose strokes the head is fitted to.
N_BATCHES = 6
#: Single patches instead while somebody paints, who wants the computer back.
N_LIVE_PATCHES = 6


def needs_head(base: Model, classes: tuple[ClassDefinition, ...], config: TrainingConfig) -> bool:
    """Whether a base that learnt something knows nothing of some of the classes."""
    return config.fit_head and base.card.n_steps > 0 and not knows_all(base, classes)


@torch.no_grad()
def fit_head(network: UNet, batches: Iterable[tuple[Tensor, Tensor, Tensor | None]], n_classes: int,
             known: frozenset[int], device: Device) -> None:
    """Fit the last layer of a network to labelled pixels, in place.

    Nothing is fitted where a class that the base knows has no pixel: what it knows of that class would not compare with
    fitted ones. New classes without a pixel begin at zero.

    Parameters
    ----------
    network
        On the device; its batch norm uses the statistics it has.
    batches
        Images BCHW, labels Bhw, 0 unlabelled and k + 1 for class number k, and their weights, which do not count.
    n_classes
        Of the class table.
    known
        Numbers of the classes that the base knows.
    device
        Where the network is.
    """
    features, classes = _labelled_features(network.eval(), batches, device)
    painted = set(np.unique(classes).tolist())
    if len(painted) < 2 or not known <= painted:
        return
    head = fit(features, classes, n_classes, np.ones(features.shape[1], np.float32))
    _take_over(network, head)


def _labelled_features(network: UNet, batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
                       device: Device) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features NF and class numbers N of at most :data:`.instant.MAX_PIXELS` labelled pixels a batch."""
    features, classes = [], []
    for images, labels, _ in batches:
        with autocast(device):
            found = network.features(images).permute(0, 2, 3, 1)
        labelled = torch.nonzero(labels > 0)
        places = labelled[:: max(1, math.ceil(len(labelled) / MAX_PIXELS))].unbind(1)
        features.append(found[places].float().cpu().numpy())
        classes.append((labels[places] - 1).cpu().numpy())
    return np.concatenate(features), np.concatenate(classes)


def _take_over(network: UNet, fitted: InstantHead) -> None:
    weight, bias = torch.from_numpy(fitted.weights.T.copy()), torch.from_numpy(fitted.bias)
    if network.n_classes == 1:
        # A sigmoid's z is the difference of the logits of a softmax over two classes.
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    network.head.weight.copy_(weight[:, :, None, None])
    if network.head.bias is not None:
        network.head.bias.copy_(bias)
