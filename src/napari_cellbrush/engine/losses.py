"""Losses that see labelled pixels only.

Unlabelled pixels are left out before anything is computed, so nothing that stands there, infinities included,
can reach the loss or its gradient; and every term is a weighted mean over labelled pixels, so its size does not
depend on how much is painted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import LossName

_FOCAL_GAMMA = 2.0
#: Tversky: costs of false positives and of false negatives.
_TVERSKY_ALPHA, _TVERSKY_BETA = 0.3, 0.7


def segmentation_loss(logits: Tensor, labels: Tensor, loss: LossName, class_balance: bool,
                      pixel_weights: Tensor | None = None) -> Tensor:
    """How wrong class logits are on labelled pixels.

    Parameters
    ----------
    logits
        BKHW float, softmax form (a sigmoid's z stands as (0, z), whose cross-entropy is the binary one).
    labels
        BHW integer; 0 unlabelled, k + 1 for class number k.
    loss
        Which loss; see the functions of this module for their sources.
    class_balance
        Give each class that is present the same total weight.
    pixel_weights
        BHW float ≥ 0, for example border weights; weight 0 leaves a pixel out. All 1 if not given.

    Returns
    -------
    Tensor
        Scalar float32. Without a labelled pixel it is 0 with zero gradient.
    """
    chosen = labels > 0 if pixel_weights is None else (labels > 0) & (pixel_weights > 0)
    log_probability = functional.log_softmax(logits.permute(0, 2, 3, 1)[chosen].float(), dim=1)
    if not len(log_probability):
        return log_probability.sum()
    truth = functional.one_hot(labels[chosen].long() - 1, logits.shape[1]).float()
    weights = torch.ones_like(truth[:, 0]) if pixel_weights is None else pixel_weights[chosen].float()
    if class_balance:
        weights = weights / (truth @ (weights @ truth))
    return _LOSSES[loss](log_probability, truth, weights / weights.sum())


def cross_entropy(log_probability: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Weighted softmax cross-entropy (Ronneberger, Fischer, Brox 2015, equation 1).

    Here and below: ``log_probability`` NK, ``truth`` NK one-hot, ``weights`` N with sum 1, N labelled pixels.
    """
    return -(weights * (log_probability * truth).sum(dim=1)).sum()


def focal(log_probability: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Focal loss with γ = 2 (Lin et al. 2017, equation 4): easy pixels count less."""
    right = (log_probability * truth).sum(dim=1)
    return -(weights * (1 - right.exp()) ** _FOCAL_GAMMA * right).sum()


def dice(log_probability: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """1 − soft Dice (Milletari, Navab, Ahmadi 2016), averaged over the classes present."""
    return _one_minus_index(log_probability, truth, weights, 0.5, 0.5)


def tversky(log_probability: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """1 − Tversky index (Salehi, Erdogmus, Gholipour 2017), averaged over the classes present."""
    return _one_minus_index(log_probability, truth, weights, _TVERSKY_ALPHA, _TVERSKY_BETA)


def cross_entropy_dice(log_probability: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Sum of both, as in nnU-Net (Isensee et al. 2021)."""
    return cross_entropy(log_probability, truth, weights) + dice(log_probability, truth, weights)


def _one_minus_index(log_probability: Tensor, truth: Tensor, weights: Tensor, alpha: float, beta: float) -> Tensor:
    """1 − TP / (TP + α FP + β FN) over present classes; α = β = 1/2 makes it Dice."""
    probability = log_probability.exp()
    both = weights @ (probability * truth)
    said, true = weights @ probability, weights @ truth
    # A class nobody painted has no true pixels here: its index would be 0 however good the network is.
    present = true > 0
    index = both[present] / (both + alpha * (said - both) + beta * (true - both))[present]
    return 1 - index.mean()


_LOSSES: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy, "dice": dice, "cross_entropy_dice": cross_entropy_dice, "focal": focal,
    "tversky": tversky}
