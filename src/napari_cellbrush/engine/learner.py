"""Network, averaged network, optimiser and schedule on one device: what turns a batch of patches into a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from napari_cellbrush.config import TrainingConfig
from napari_cellbrush.engine.device import Device, autocast, is_out_of_memory
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.model import Model, class_logits
from napari_cellbrush.engine.probe import fit_head
from napari_cellbrush.engine.teacher import Teacher
from napari_cellbrush.engine.training_state import PartState, cloned, copy_into
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.errors import OutOfMemory, TrainingDiverged

#: Random weights have further to go than a base's: with the base's rate they learn hardly anything in a minute.
_SCRATCH_RATE = 5


class Learner:
    """A network that learns on padded patches, and the average (EMA) of its weights, which is scored and kept.

    The average is unpadded, as the tuned network will be.

    Parameters
    ----------
    start
        Where the weights begin; copied.
    config, device
        How to learn, and where.
    teacher
        Who says what unlabelled pixels are and how frequent classes are, if anybody; heard as soon as it is trusted.
    """

    def __init__(self, start: Model, config: TrainingConfig, device: Device, teacher: Teacher | None = None) -> None:
        self.config = config
        self._teacher = teacher
        self.device = device
        self.precision = device.precision
        self.network = copy.deepcopy(start.network).to(device.torch_device)
        if device.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.network.pad()
        self._from_scratch = start.card.n_steps == 0
        self._n_expected = float(config.max_steps)
        rate = config.learning_rate * (_SCRATCH_RATE if self._from_scratch else 1)
        self._optimiser = _optimiser(self.network, config, rate)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, self._rate_factor)
        # Small gradients vanish in float16, unlike in bfloat16, unless the loss is scaled up.
        self._scaler = torch.amp.GradScaler(device.kind, enabled=device.half == torch.float16)
        self._n_chunks = 1
        self._n_steps = 0

    @property
    def n_steps(self) -> int:
        """Steps made so far."""
        return self._n_steps

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def step(self, images: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
        """One optimiser step on B patches and what their pixels weigh; at once if memory permits, else in parts.

        Returns the loss on the labelled pixels, of balanced classes as if they were as frequent as strokes.
        """
        self._set_mode()
        while True:
            try:
                loss = self._gradients(images, labels, weights)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._n_chunks >= len(images):
                    raise OutOfMemory(f"{self.device.name} has too little memory to train on one patch of "
                                      f"{images.shape[-1]} px", "Choose a smaller patch size in the advanced "
                                      "settings, or train on the CPU") from error
                self._n_chunks = min(2 * self._n_chunks, len(images))
        if not math.isfinite(loss):
            raise TrainingDiverged(f"The loss became {loss} at step {self._n_steps + 1}",
                                   "Lower the learning rate in the advanced settings and start again")
        self._scaler.unscale_(self._optimiser)
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._n_steps += 1
        # Where the scale was too large for float16, the weights stay as they are and the next step has a smaller one.
        if self._scaler.get_scale() >= scale:
            self._schedule.step()
            self._average()
        return loss

    def fit_head(self, batches: Iterable[tuple[Tensor, Tensor, Tensor | None]], n_classes: int,
                 known: frozenset[int]) -> None:
        """Fit the last layer alone, in one go, before the first step; see :func:`.probe.fit_head`."""
        fit_head(self.network, batches, n_classes, known, self.device)
        self.averaged.head.load_state_dict(self.network.head.state_dict())

    def expect(self, n_steps: float) -> None:
        """How many steps there will be: fewer than planned, if the time is short. The rate then falls sooner."""
        self._n_expected = min(self.config.max_steps, n_steps)

    def expect_no_end(self) -> None:
        """Keep the rate as it is after the warm-up; the average of the weights stands in for its fall."""
        self._n_expected = math.inf

    def state(self) -> PartState:
        """Weights, averages, moments of the optimiser, and where the schedule is."""
        moments = {f"{number}.{name}": value for number, entry in self._optimiser.state_dict()["state"].items()
                   for name, value in entry.items() if isinstance(value, Tensor)}
        tensors = {**cloned(self.network.state_dict(), "network."), **cloned(self.averaged.state_dict(), "averaged."),
                   **cloned(moments, "moments.")}
        schedule = {name: value for name, value in self._schedule.state_dict().items() if name != "lr_lambdas"}
        return PartState(tensors, {
            "n_steps": self._n_steps, "n_expected": self._n_expected, "n_chunks": self._n_chunks,
            "rates": [group["lr"] for group in self._optimiser.param_groups], "schedule": schedule,
            "scaler": self._scaler.state_dict()})

    def restore(self, state: PartState) -> None:
        """Go on from a state of a learner with the same start and settings."""
        copy_into(self.network.state_dict(), state.tensors, "network.")
        copy_into(self.averaged.state_dict(), state.tensors, "averaged.")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.tensors.items():
            if key.startswith("moments."):
                number, name = key.removeprefix("moments.").split(".")
                moments.setdefault(int(number), {})[name] = value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": moments})
        for group, rate in zip(self._optimiser.param_groups, state.values["rates"], strict=True):
            group["lr"] = float(rate)
        self._schedule.load_state_dict({**state.values["schedule"], "lr_lambdas": [None]})
        self._scaler.load_state_dict(state.values["scaler"])
        self._n_steps, self._n_chunks = int(state.values["n_steps"]), int(state.values["n_chunks"])
        self._n_expected = float(state.values["n_expected"])

    def release(self) -> None:
        """Give the device's memory back."""
        del self.network, self.averaged, self._teacher, self._optimiser, self._schedule, self._scaler
        if self.device.kind == "cuda":
            torch.cuda.empty_cache()

    def _gradients(self, images: Tensor, labels: Tensor, weights: Tensor | None) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        config, total = self.config, 0.0
        # Dropout draws from the global generator, which others may use: give each step its own state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + self._n_steps)
            n = self._n_chunks
            for part, truth, weight in zip(images.chunk(n), labels.chunk(n),
                                           weights.chunk(n) if weights is not None else [None] * n, strict=False):
                # Before the network's own features, so that never both are in memory.
                answer = self._teacher.answer(part) if self._teacher and self._teacher.is_heard else None
                with autocast(self.device):
                    logits = class_logits(self.network(part)).float()
                of_strokes, loss = self._losses(logits, answer, truth, weight)
                share = len(part) / len(images)
                total += float(of_strokes.detach()) * share
                if not bool(loss.isfinite()):
                    return float(loss.detach())
                self._scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return total

    def _losses(self, logits: Tensor, answer: Tensor | None, truth: Tensor,
                weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of the strokes, and the same with what the teacher says of unlabelled pixels, if one answered."""
        config, said, elsewhere = self.config, logits, logits.new_zeros(())
        if self._teacher and answer is not None:
            elsewhere = self._teacher.loss(answer, logits, truth)
            if config.class_balance:
                said = self._teacher.as_if_equally_frequent(answer, logits, truth)
        of_strokes = segmentation_loss(said, truth, config.loss, config.class_balance, weight)
        return of_strokes, of_strokes + elsewhere

    def _set_mode(self) -> None:
        self.network.train()
        if not self._from_scratch:
            # A handful of patches of one image would spoil the statistics that thousands of images gave the base.
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _average(self) -> None:
        # Early on the average follows closely, so that random first weights are soon forgotten.
        keep = min(self.config.ema_decay, self._n_steps / (self._n_steps + 9))
        with torch.no_grad():
            for mean, now in zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - keep)
                else:
                    mean.copy_(now)

    def _rate_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to a hundredth (Loshchilov & Hutter 2017)."""
        warmup = min(self.config.warmup_steps, self.config.max_steps // 2)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1.0, self._n_expected - warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _optimiser(network: UNet, config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    parameters, decay = network.parameters(), config.weight_decay
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay)
