"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, for convolutions as for linear layers.

PyTorch's own takes two-dimensional parameters alone; a convolution is one of outputs × (inputs · rows · columns).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the quintic Newton–Schulz iteration, by which all singular values come near 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
#: Root mean square of an update, so that rates mean what they mean for Adam (Liu et al. 2025, "Muon is scalable").
_UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Parameters
    ----------
    params
        Weights with two or more axes; the first against all others make a matrix.
    lr, momentum, weight_decay
        As in AdamW, the momentum that of Adam's first moment.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, keep = self.state[weight], group["momentum"]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - keep)
        ahead = gradient.lerp(state["momentum"], keep).flatten(1)
        direction = orthogonalised(ahead) * _UPDATE_RMS * max(ahead.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(direction.view(weight.shape), alpha=group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthogonal rows (or columns, whichever are fewer), up to about a third in length."""
    first, third, fifth = _QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        squared = wide @ wide.T
        wide = first * wide + (third * squared + fifth * squared @ squared) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
