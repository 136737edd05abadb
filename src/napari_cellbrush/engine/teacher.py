"""The base as a teacher of what strokes do not tell, so that a few of them do not undo what it knew.

Strokes lie in the middle of things, equally many of each class: a network that sees nothing else soon finds too many
boundaries, and held-out strokes, which lie alike, cannot tell. The base can: it says what unpainted pixels are (Li &
Hoiem 2016, "Learning without forgetting", ECCV), and how frequent the classes are, for whoever learns them as if they
were equally frequent finds too much of the rare ones (Menon et al. 2021, "Long-tail learning via logit adjustment",
ICLR, turned round: there images are unbalanced and answers are to be balanced, here strokes are balanced and answers
are not to be).

What it says of pixels is worth so many strokes, times a high power of how far it agrees with those that were painted
(see :func:`agreement`): it is hardly heard where the person means something else, and the less, the more is painted.
Simulated strokes on images that it knows agree by 0.8 to 1, those of one who paints whole cells where it knows nuclei
by 0.6. What it says of frequencies counts however much is painted, as more strokes are no less balanced. (Training
images of tissue and phase contrast, twenty strokes a class on one, weights of 11,160 steps, the base worth fifty times
the square of its score, mean of two seeds. In other images objects had an average precision of 0.567 at an intersection
over union of 0.5 and 0.169 at 0.75, and the classes' intersection over union was 0.583; without frequencies they were
0.553, 0.124 and 0.574. Weights of 12,160 steps: 0.661, 0.290 and 0.607; worth a hundred times the fourth power of the
agreement, 0.673, 0.303 and 0.603.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine.device import Device, autocast
from napari_cellbrush.engine.metrics import iou_from_confusion
from napari_cellbrush.engine.model import Model, class_logits, meant_classes

#: Probabilities below this are not told apart.
_LEAST_PROBABILITY = 1e-6
#: Power of the agreement by which a base is heard: half as much if it is wrong about a twelfth of what is painted.
_STRICTNESS = 8
#: How far a base is taken to agree where only its errors are painted, which do not tell.
_RIGHT_ELSEWHERE = 0.9
#: No class is taken to be rarer: where the base sees nothing of one in a patch, its strokes are still to be learnt.
_LEAST_FREQUENCY = 0.01


class Teacher:
    """A base, asked about classes it knows.

    Parameters
    ----------
    base
        For the images' number of channels; copied.
    meant
        Float, classes of the base × classes to answer: the share of each that is meant by another.
    worth
        How many strokes of each class a base is worth that agrees with all of them, see :func:`agreement`.
    device
        Where to compute.
    least_score
        How far it is taken to agree at least, whatever the strokes say.
    """

    def __init__(self, base: Model, meant: Tensor, worth: float, device: Device, least_score: float = 0.0) -> None:
        self._least_score = least_score
        self._meant = meant.to(device.torch_device)
        self._worth = worth
        self._weight = self._score = 0.0
        self._device = device
        self._network = base.network.folded().requires_grad_(False).to(device.torch_device)
        # It is asked about the patches that the learner sees.
        self._network.pad()
        if device.channels_last:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub

    @property
    def is_heard(self) -> bool:
        """Whether it counts at all: not before it is known how good it is."""
        return self._weight > 0

    def trust(self, score: float, strokes_per_class: float) -> None:
        """Say how far the base agrees with the strokes, see :func:`agreement`, and how many there are of a class.

        The loss of strokes is a mean, however many there are; therefore what speaks against them is divided by their
        number, as a prior is that weighs the same whatever was observed.
        """
        self._score = max(score, self._least_score)
        self._weight = self._worth * self._score**_STRICTNESS / max(1.0, strokes_per_class)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """Log probabilities BKhw float32 of normalised images BCHW."""
        with autocast(self._device):
            logits = class_logits(self._network(images)).float()
        found = torch.einsum("bjhw,jk->bkhw", logits.softmax(dim=1), self._meant)
        return found.clamp_min(_LEAST_PROBABILITY).log()

    def as_if_equally_frequent(self, answer: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits for a loss in which all painted classes weigh the same, so that without it they fit these patches.

        Parameters
        ----------
        answer
            Of the base, BKhw, see :meth:`answer`. Its mean says how frequent classes are in these patches, as far as
            the base is right (see :meth:`trust`); beyond that they are taken to be equally frequent.
        logits
            BKhw float32 of the network that learns.
        labels
            Bhw integer; 0 unlabelled. Of classes that are not there, nothing is changed.

        Returns
        -------
        Tensor
            BKhw; the logits, less the logarithm of how frequent each painted class is among the painted ones (see
            Menon et al. 2021, equation 10). Exact for cross-entropy, near enough for the other losses.
        """
        found = answer.exp().mean(dim=(0, 2, 3))
        frequency = (self._score * found + (1 - self._score) / len(found)).clamp_min(_LEAST_FREQUENCY)
        painted = torch.bincount(labels.flatten().long(), minlength=len(found) + 1)[1:] > 0
        if not painted.any():
            return logits
        surplus = (frequency / frequency[painted].mean()).log() * painted
        return logits - surplus[:, None, None]

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
            Scalar: the Kullback-Leibler divergence in the mean over unlabelled pixels, as it counts beside the mean
            loss of labelled ones; see :meth:`trust`. 0 without any.
        """
        unlabelled = labels == 0
        divergence = functional.kl_div(logits.log_softmax(dim=1), answer, log_target=True, reduction="none").sum(dim=1)
        far = (divergence * unlabelled).sum() / unlabelled.sum().clamp_min(1)
        return self._weight * far


def agreement(confusion: NDArray[np.int64], classes: Sequence[ClassDefinition]) -> float:
    """Whether a base and strokes mean the same by the classes.

    Strokes on boundaries have no say: they are lines as thin as a hand is steady, and who misses them by a pixel means
    the same. What speaks is where the base calls cell what was painted as background, or the other way round.

    Parameters
    ----------
    confusion
        K × K: pixels of strokes by painted and said class.
    classes
        What the K classes mean.

    Returns
    -------
    float
        Mean intersection over union, in [0, 1], of the painted classes that are no boundary; of all, where fewer than
        two are, for who calls everything by one name is right about that one. 0 without any.
    """
    asked = [number for number, (row, definition) in enumerate(zip(confusion, classes, strict=False))
             if definition.role != "boundary" and row.any()]
    if len(asked) < 2:
        return iou_from_confusion(confusion).mean if confusion.any() else 0.0
    scores = iou_from_confusion(np.where(np.isin(np.arange(len(confusion)), asked)[:, None], confusion, 0)).per_class
    return float(np.mean([scores[number] for number in asked]))


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
    meant = meant_classes(base.card.classes, classes)
    if not config.base_worth_strokes or base.card.n_steps == 0 or meant is None:
        return None
    least_score = _RIGHT_ELSEWHERE if config.only_errors_painted else 0.0
    return Teacher(base.for_channels(n_channels), meant, config.base_worth_strokes, device, least_score)
