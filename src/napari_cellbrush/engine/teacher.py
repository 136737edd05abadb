"""The base as a teacher where nothing is painted, so that a few strokes do not undo what it knew.

Strokes lie in the middle of things, equally many of each class: a network that sees nothing else soon finds too many
boundaries, and held-out strokes, which lie alike, cannot tell. The base can (Li & Hoiem 2016, "Learning without
forgetting", ECCV). It counts as far as it is right about the strokes of the same patch, so that strokes which
contradict it are not held back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine.device import Device, autocast
from napari_cellbrush.engine.model import Model, class_logits, knows_all


class Teacher:
    """A base that knows all classes.

    Parameters
    ----------
    start
        The base, made ready for the image's channels and the classes; copied.
    weight
        Of what it says beside the strokes, where it is right about all of them.
    device
        Where to compute.
    """

    def __init__(self, start: Model, weight: float, device: Device) -> None:
        self._weight = weight
        self._device = device
        self._network = start.network.folded().requires_grad_(False).to(device.torch_device)
        if device.channels_last:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub

    def loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """How far logits are from what the base says of unlabelled pixels.

        Parameters
        ----------
        images
            BCHW float32, normalised.
        logits
            BKhw float32 of the network that learns.
        labels
            Bhw integer; 0 unlabelled, k + 1 for class number k.

        Returns
        -------
        Tensor
            Scalar: the Kullback-Leibler divergence in the mean over each patch's unlabelled pixels, times the weight
            and how right the base is there, in the mean over patches.
        """
        unlabelled = labels == 0
        if not unlabelled.any():
            return logits.new_zeros(())
        with torch.no_grad(), autocast(self._device):
            said = class_logits(self._network(images)).float().log_softmax(dim=1)
        divergence = functional.kl_div(logits.log_softmax(dim=1), said, log_target=True, reduction="none").sum(dim=1)
        far = (divergence * unlabelled).sum((1, 2)) / unlabelled.sum((1, 2)).clamp_min(1)
        return self._weight * (rightness(said.exp(), labels) * far).mean()


def rightness(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How right class probabilities are about the labelled pixels of each patch.

    Parameters
    ----------
    probabilities
        BKHW float.
    labels
        BHW integer; 0 unlabelled, k + 1 for class number k.

    Returns
    -------
    Tensor
        B float: 1 where the painted classes are certain, 0 where they are no likelier than by chance or nothing is
        painted. Each painted class counts alike.
    """
    n_classes = probabilities.shape[1]
    truth = functional.one_hot(labels.long(), n_classes + 1)[..., 1:].permute(0, 3, 1, 2)
    n_pixels = truth.sum((2, 3))
    of_classes = (probabilities * truth).sum((2, 3)) / n_pixels.clamp_min(1)
    found = of_classes.sum(1) / (n_pixels > 0).sum(1).clamp_min(1)
    by_chance = 1 / n_classes
    return ((found - by_chance) / (1 - by_chance)).clamp_min(0)


def teacher_for(base: Model, start: Model, classes: tuple[ClassDefinition, ...], config: TrainingConfig,
                device: Device) -> Teacher | None:
    """The teacher that the settings ask for; None where the base is untrained or does not know every class.

    Parameters
    ----------
    base, start
        The base, and what became of it for the image's channels and ``classes``.
    classes, config, device
        Of the training.
    """
    if not config.base_weight or base.card.n_steps == 0 or not knows_all(base, classes):
        return None
    return Teacher(start, config.base_weight, device)
