"""The base as a teacher where nothing is painted, so that a few strokes do not undo what it knew.

Strokes lie in the middle of things, equally many of each class: a network that sees nothing else soon finds too many
boundaries, and held-out strokes, which lie alike, cannot tell. The base can (Li & Hoiem 2016, "Learning without
forgetting", ECCV). It counts by the square of its score on the strokes, so that it is hardly heard where it is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine.device import Device, autocast
from napari_cellbrush.engine.model import Model, class_logits

#: Probabilities below this are not told apart.
_LEAST_PROBABILITY = 1e-6


class Teacher:
    """A base, asked about classes it knows.

    Parameters
    ----------
    base
        For the images' number of channels; copied.
    meant
        Float, classes of the base × classes to answer: the share of each that is meant by another.
    weight
        Of a base that is right about every stroke, beside the strokes.
    device
        Where to compute.
    """

    def __init__(self, base: Model, meant: Tensor, weight: float, device: Device) -> None:
        self._meant = meant.to(device.torch_device)
        self._weight = weight
        self._device = device
        self._network = base.network.folded().requires_grad_(False).to(device.torch_device)
        if device.channels_last:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        #: The score of the base on strokes, in [0, 1]; nobody listens before it is known.
        self.score = 0.0

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """Log probabilities BKhw float32 of normalised images BCHW."""
        with autocast(self._device):
            logits = class_logits(self._network(images)).float()
        found = torch.einsum("bjhw,jk->bkhw", logits.softmax(dim=1), self._meant)
        return found.clamp_min(_LEAST_PROBABILITY).log()

    def loss(self, answer: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """How far logits are from what the base says of unlabelled pixels.

        Parameters
        ----------
        answer
            Of the base, BKhw, see :meth:`answer`.
        logits
            BKhw float32 of the network that learns.
        labels
            Bhw integer; 0 unlabelled.

        Returns
        -------
        Tensor
            Scalar: the Kullback-Leibler divergence in the mean over unlabelled pixels, times the weight and the square
            of the base's score; 0 without any.
        """
        unlabelled = labels == 0
        divergence = functional.kl_div(logits.log_softmax(dim=1), answer, log_target=True, reduction="none").sum(dim=1)
        far = (divergence * unlabelled).sum() / unlabelled.sum().clamp_min(1)
        return self._weight * self.score**2 * far


def teacher_for(base: Model, n_channels: int, classes: tuple[ClassDefinition, ...], config: TrainingConfig,
                device: Device) -> Teacher | None:
    """The teacher that the settings ask for.

    Parameters
    ----------
    base
        Where the training starts.
    n_channels
        Of the images.
    classes, config, device
        Of the training.

    Returns
    -------
    Teacher or None
        None where the base is untrained, knows not every class, or knows one that could be any of several.
    """
    meant = _meant(base.card.classes, classes)
    if not config.base_weight or base.card.n_steps == 0 or meant is None:
        return None
    return Teacher(base.for_channels(n_channels), meant, config.base_weight, device)


def _meant(known: tuple[ClassDefinition, ...], classes: tuple[ClassDefinition, ...]) -> Tensor | None:
    """Known classes × classes: 1 where one means the other. The boundary of objects, where nobody asks, is theirs."""
    names = [definition.name for definition in classes]
    objects = [number for number, definition in enumerate(classes) if definition.role == "object"]
    meant = torch.zeros(len(known), len(classes))
    for number, definition in enumerate(known):
        if definition.name in names:
            meant[number, names.index(definition.name)] = 1
        elif definition.role == "boundary" and len(objects) == 1:
            meant[number, objects[0]] = 1
        else:
            return None
    return meant if bool(meant.any(dim=0).all()) else None
