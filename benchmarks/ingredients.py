"""Ingredients of a recipe that were tried and are not in the program, for the ablation of ``from_strokes.py``.

Each is a context in which training differs. They reach into the engine where it has no setting for them, because a
setting that does not help should not exist.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from napari_cellbrush.config import TrainingConfig
from napari_cellbrush.engine import learner, training
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.teacher import Teacher
from napari_cellbrush.engine.unet import UNet

#: Each block of the network (14 of them) learns this much more slowly than the one after it.
LAYER_FACTOR = 0.85
#: Share of the way back to the base per step, divided by the rate.
PULL_TO_BASE = 30.0


@contextmanager
def layer_wise_rates() -> Iterator[None]:
    """The last layers learn fastest (Howard & Ruder 2018, "discriminative fine-tuning")."""
    def optimiser(network: UNet, config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
        in_order = [*network.down, *(block for pair in zip(network.rise, network.up, strict=True) for block in pair),
                    network.head]
        groups = [{"params": list(block.parameters()), "lr": rate * LAYER_FACTOR**distance}
                  for distance, block in enumerate(reversed(in_order))]
        return torch.optim.AdamW(groups, rate, weight_decay=config.weight_decay)

    with patch.object(learner, "_optimiser", optimiser):
        yield


@contextmanager
def decay_towards_base() -> Iterator[None]:
    """Weights are drawn to where they began instead of to zero (Li et al. 2018, "L2-SP")."""
    class Drawn(torch.optim.AdamW):
        def __init__(self, network: UNet, rate: float) -> None:
            super().__init__(network.parameters(), rate, weight_decay=0)
            self._began: list[torch.Tensor] = []

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            # Not before: where the base does not know the classes, its head is fitted first.
            self._began = self._began or [weight.clone() for weight in self.param_groups[0]["params"]]
            super().step(closure)
            group = self.param_groups[0]
            for weight, began in zip(group["params"], self._began, strict=True):
                weight.lerp_(began, group["lr"] * PULL_TO_BASE)

    with patch.object(learner, "_optimiser", lambda network, config, rate: Drawn(network, rate)):
        yield


@contextmanager
def average_as_teacher() -> Iterator[None]:
    """The averaged weights teach where nothing is painted, not the base, and are always heard.

    As a mean teacher (Tarvainen & Valpola 2017), but that both see the same augmented patch.
    """
    class Taught(learner.Learner):
        def __init__(self, start: Model, config: TrainingConfig, device: Device, base: Teacher | None = None) -> None:
            super().__init__(start, config, device, base)
            average = Teacher(start, torch.eye(start.n_classes), 1.0, device)
            # Padded, as what it is asked is too small for the average as it is; the tensors are the average's own.
            shared = {id(tensor): tensor for tensor in self.averaged.state_dict(keep_vars=True).values()}
            average._network = copy.deepcopy(self.averaged, shared)
            average._network.pad()
            average.trust(1.0, 1.0)
            # What is learnt must not decide how frequent classes are.
            average.as_if_equally_frequent = lambda _, logits, __: logits  # type: ignore[method-assign]
            self._teacher = average

    with patch.object(training, "Learner", Taught):
        yield


#: Name of a row of the ablation: the context of its training.
INGREDIENTS: dict[str, Callable[[], Any]] = {
    "smaller rates further from the head": layer_wise_rates,
    "decay towards the base": decay_towards_base,
    "average as teacher": average_as_teacher,
}
