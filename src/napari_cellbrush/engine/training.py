"""How a model learns from strokes: a generator that reads from top to bottom like a recipe.

It knows images as :class:`.planes.Planes`, labels as arrays, and nothing of viewers, files or threads. Whoever
drives the generator receives events and, as its return value, a :class:`TrainingResult`.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_cellbrush.config import ClassDefinition, TrainingConfig
from napari_cellbrush.engine import augment
from napari_cellbrush.engine.annotation import (
    Annotation,
    LabelledPlane,
    StrokeSampler,
    collect_annotation,
    hold_out,
    rescaled,
)
from napari_cellbrush.engine.border_weights import annotation_weights
from napari_cellbrush.engine.device import Device, autocast, choose_device, is_out_of_memory
from napari_cellbrush.engine.diameter import object_diameter
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.metrics import class_iou
from napari_cellbrush.engine.model import (
    Model,
    ModelCard,
    build_network,
    class_logits,
    knows_all,
    new_model,
    with_classes,
    with_dropout,
)
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.tiling import Tile, plan_tiles
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.errors import AnnotationError, OutOfMemory, TrainingDiverged
from napari_cellbrush.events import (
    BaseScoring,
    StopToken,
    TrainingEvent,
    TrainingStarted,
    TrainingStep,
    ValidationScored,
)

#: What ends a training: all steps are done, the time is up, somebody stopped it, or scores have long not risen.
Ended = Literal["steps", "time", "stopped", "no_progress"]

#: Tiles of held-out strokes scored at a time; enough for a stable score, few enough to stay fast on dense labels.
_MAX_SCORED_TILES = 24
#: Random weights have further to go than a base's: with the base's rate they learn hardly anything in a minute.
_SCRATCH_RATE = 5
#: A stroke's pixel lies at most this share of the patch's half side from its centre, so that deformation keeps it in.
_JITTER = 0.7


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training."""

    #: The best weights seen (averaged over steps), with their card.
    model: Model
    #: False where the base scored better on the held-out strokes than anything trained.
    improved: bool
    base_score: float | None
    score: float | None
    #: Why there is no score, as a sentence; empty where there is one.
    no_score_reason: str
    ended: Ended
    n_steps: int
    seconds: float

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to end it early."""
        return self.ended == "stopped"


def scratch_model(classes: tuple[ClassDefinition, ...], n_channels: int, config: TrainingConfig) -> Model:
    """An untrained model of the shape that ``config.network`` describes."""
    card = ModelCard(name="scratch", classes=classes, in_channels=n_channels, network=config.network)
    return new_model(card, config.seed)


def train(
    base: Model,
    images: Sequence[Planes],
    labels: Sequence[Any],
    config: TrainingConfig,
    *,
    classes: tuple[ClassDefinition, ...] | None = None,
    device: Device | None = None,
    stop: StopToken | None = None,
    name: str = "",
) -> Generator[TrainingEvent, None, TrainingResult]:
    """Fine-tune a copy of ``base`` on all labelled pixels; the base itself never changes.

    Parameters
    ----------
    base
        Where the weights start. Its head is kept for classes of the same name.
    images
        The images, all with the same number of channels.
    labels
        One array-like per image: stack axes + YX integers, 0 unlabelled, k + 1 for class number k.
    config
        All settings; ``config.network`` counts only for :func:`scratch_model`. The time limit includes all that
        happens before the first step, but one step is always made.
    classes
        The classes the labels mean; those of the base if not given.
    device, stop
        Where to compute (chosen if not given); who may end the run early, keeping the best so far. A stopped run
        measures nothing any more: without an earlier score it has none.
    name
        Name for the new model's card.

    Yields
    ------
    TrainingEvent
        :class:`BaseScoring` if the base can be scored, :class:`TrainingStarted`, then steps and scores.

    Raises
    ------
    AnnotationError
        If nothing can be learnt from the labels.
    OutOfMemory
        If not even a batch of one patch fits.
    TrainingDiverged
        If the loss is no longer a number.
    """
    device = device or choose_device()
    try:
        return (yield from _train(base, images, labels, config, classes or base.card.classes, device,
                                  stop or StopToken(), name))
    except (RuntimeError, MemoryError) as error:
        # A step splits its batch and goes on; this is memory for the network itself, the patches or the score.
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{device.name} has too little memory to train this network", "Close other programs, "
                          "choose a smaller input size in the advanced settings, or train on the CPU") from error


def _train(
    base: Model,
    images: Sequence[Planes],
    labels: Sequence[Any],
    config: TrainingConfig,
    classes: tuple[ClassDefinition, ...],
    device: Device,
    stop: StopToken,
    name: str,
) -> Generator[TrainingEvent, None, TrainingResult]:
    began = time.perf_counter()
    annotation = collect_annotation(images, labels, classes)
    split = hold_out(annotation, config.held_out_fraction, config.seed)

    start = with_dropout(with_classes(base.for_channels(_n_channels(images)), classes, config.seed), config.dropout)
    diameter = object_diameter(base, images, config.diameter_px, device)
    scale = base.card.scale_for(diameter)
    sources = [Resampled(image, scale) for image in images]
    learner = _Learner(start, config, device)
    patches = _Patches(sources, rescaled(split.train, scale), classes, config, start.network, device)
    held_out = _HeldOut(sources, rescaled(split.validation, scale), learner) if split.validation else None

    base_score = None
    if held_out and base.card.n_steps > 0 and knows_all(base, classes):
        yield BaseScoring(held_out.n_tiles)
        scored = held_out.score(learner.averaged, stop)
        base_score = scored[0] if scored else None
    yield TrainingStarted(
        device.name, learner.precision, config.max_steps, split.train.n_pixels,
        split.validation.n_pixels if split.validation else 0, split.reason, base_score, diameter, scale)

    best = _Best()
    prepared = time.perf_counter() - began
    step, ended = 0, None
    while not ended:
        step += 1
        loss = learner.step(*patches.next_batch())
        elapsed = time.perf_counter() - began
        step_seconds = max(1e-9, elapsed - prepared) / step
        left = min(step_seconds * (config.max_steps - step), 60 * config.max_minutes - elapsed)
        learner.expect(step + left / step_seconds)
        yield TrainingStep(step, config.max_steps, loss, learner.learning_rate, elapsed, max(0.0, left))

        ended = _end(step, elapsed, config)
        if held_out and (ended or step % config.validate_every == 0):
            scored = held_out.score(learner.averaged, stop)
            if scored:
                best.offer(*scored, learner.averaged)
                yield ValidationScored(step, best.latest, best.score)
        if stop.stopped:
            ended = "stopped"
        elif config.patience and best.rounds_without_better >= config.patience:
            ended = ended or "no_progress"

    score = best.score if best.network else None
    labelled = dict(zip((c.name for c in classes), annotation.pixels_per_class, strict=True))
    card = start.card.replace(
        name=name or f"{base.card.name} tuned", training=config.model_dump(), base_name=base.card.name,
        base_hash=base.weights_hash, created=datetime.now(UTC).isoformat(timespec="seconds"), versions=_versions(),
        # Where nobody could tell a diameter, the model learnt at the images' own scale, and works at that.
        diameter_px=base.card.diameter_px if diameter else None, image_diameter_px=diameter,
        n_steps=base.card.n_steps + step, labelled_pixels=labelled, base_score=base_score, score=score, description="")
    model = Model(_on_cpu(best.network or learner.averaged, card), card)
    learner.release()
    improved = score is None or base_score is None or score >= base_score
    no_score = split.reason if split.reason or score is not None else "The training was stopped before its first score."
    return TrainingResult(model, improved, base_score, score, no_score, ended, step, time.perf_counter() - began)


def _end(step: int, elapsed: float, config: TrainingConfig) -> Ended | None:
    """Why this step is the last, as far as the clock and the counter know."""
    if step >= config.max_steps:
        return "steps"
    return "time" if elapsed >= 60 * config.max_minutes else None


def _n_channels(images: Sequence[Planes]) -> int:
    counts = {image.n_channels for image in images}
    if len(counts) != 1:
        names = ", ".join(f"{image.name}: {image.n_channels}" for image in images)
        raise AnnotationError(f"One model needs images with the same number of channels, got {names}",
                              "Train on images of one kind at a time")
    return counts.pop()


def _versions() -> dict[str, str]:
    return {"napari-cellbrush": version("napari-cellbrush"), "torch": torch.__version__,
            "python": platform.python_version()}


def _on_cpu(network: UNet, card: ModelCard) -> UNet:
    plain = build_network(card)
    plain.load_state_dict({name: tensor.detach().cpu().float() for name, tensor in network.state_dict().items()})
    return plain.eval()


class _Best:
    """The best averaged weights so far. Equal scores are told apart by the held-out loss."""

    def __init__(self) -> None:
        self.network: UNet | None = None
        self.score = 0.0
        self.latest = 0.0
        self.rounds_without_better = 0
        self._loss = math.inf

    def offer(self, score: float, loss: float, network: UNet) -> None:
        self.latest = score
        if self.network is None or (score, -loss) > (self.score, -self._loss):
            self.score, self._loss, self.network = score, loss, copy.deepcopy(network)
            self.rounds_without_better = 0
        else:
            self.rounds_without_better += 1


class _Learner:
    """Network, averaged network, optimiser and schedule on one device."""

    def __init__(self, start: Model, config: TrainingConfig, device: Device) -> None:
        self.config = config
        self.device = device
        self.precision = device.precision
        self.network = copy.deepcopy(start.network).to(device.torch_device)
        if device.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
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
    def learning_rate(self) -> float:
        return float(self._schedule.get_last_lr()[0])

    def step(self, images: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
        """One optimiser step on B patches and what their pixels weigh; at once if memory permits, else in parts."""
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
                                      f"{images.shape[-1]} px", "Choose a smaller input size in the advanced "
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

    def expect(self, n_steps: float) -> None:
        """How many steps there will be: fewer than planned, if the time is short. The rate then falls sooner."""
        self._n_expected = min(self.config.max_steps, n_steps)

    def release(self) -> None:
        """Give the device's memory back."""
        del self.network, self.averaged, self._optimiser, self._schedule, self._scaler
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
                with autocast(self.device):
                    logits = class_logits(self.network(part))
                loss = segmentation_loss(logits.float(), truth, config.loss, config.class_balance, weight)
                loss = loss * (len(part) / len(images))
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total

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


class _Patches:
    """Random, augmented patches around the training strokes, on the device."""

    def __init__(self, images: Sequence[Resampled], annotation: Annotation, classes: Sequence[ClassDefinition],
                 config: TrainingConfig, network: UNet, device: Device) -> None:
        geometry = network.geometry
        self._images = images
        self._planes = annotation.planes
        self._weights = [annotation_weights(plane.labels, classes, w0=config.border_weight,
                                            sigma_px=config.border_sigma_px)
                         for plane in annotation.planes] if config.border_weight else None
        self._config = config
        self._device = device
        self._input_size = geometry.input_size_at_least(config.patch_size_px)
        self._output_size = geometry.output_size(self._input_size)
        self._source_size = augment.source_size(config.augmentation, self._input_size)
        self._sampler = StrokeSampler(annotation, config.seed)
        self._jitter = np.random.default_rng(config.seed)
        self._random = torch.Generator().manual_seed(config.seed)

    def next_batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalised images BCHW float32, labels Bhw int64, and what pixels weigh Bhw float32, after augmentation."""
        windows = [self._read(*centre) for centre in self._sampler.next_centres(self._config.batch_size)]
        images, maps = (torch.from_numpy(np.stack(part)).to(self._device.torch_device)
                        for part in zip(*windows, strict=True))
        drawn = augment.draw(self._config.augmentation, len(windows), self._input_size, self._random)
        images, maps = augment.apply(drawn, images, maps, self._input_size, self._output_size)
        if self._device.channels_last:
            images = images.to(memory_format=torch.channels_last)
        return images, maps[:, 0].long(), maps[:, 1].float() if self._weights else None

    def _read(self, position: int, row: int, column: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """A source window CSS around a labelled pixel, and its maps MSS: labels and, where wanted, weights."""
        plane = self._planes[position]
        reach = int(_JITTER * self._output_size / 2)
        shift = self._jitter.integers(-reach, reach + 1, size=2)
        size = self._source_size
        top, left = row + int(shift[0]) - size // 2, column + int(shift[1]) - size // 2
        image = self._images[plane.image]
        pixels = image.normalisation().apply(image.read_mirrored(plane.index, top, left, size, size))
        maps: list[NDArray[Any]] = [plane.labels, self._weights[position]] if self._weights else [plane.labels]
        return pixels, np.stack([_window(part, top, left, size) for part in maps])


class _HeldOut:
    """The held-out strokes, cut into tiles once and scored again and again."""

    def __init__(self, images: Sequence[Resampled], annotation: Annotation, learner: _Learner) -> None:
        self._learner = learner
        geometry = learner.network.geometry
        size = geometry.input_size_at_least(learner.config.patch_size_px)
        tiles = [(plane, tile) for plane in annotation.planes for tile in _labelled_tiles(plane, geometry, size)]
        order = np.random.default_rng(learner.config.seed).permutation(len(tiles))[:_MAX_SCORED_TILES]
        self._tiles = [self._cut(images, *tiles[position]) for position in sorted(order)]
        self._n_classes = annotation.n_classes

    def _cut(self, images: Sequence[Resampled], plane: LabelledPlane, tile: Tile) -> tuple[Tensor, Tensor]:
        raw = images[plane.image].read_mirrored(plane.index, tile.top, tile.left, tile.height, tile.width)
        image = torch.from_numpy(images[plane.image].normalisation().apply(raw))[None]
        margin = self._learner.network.geometry.margin
        height, width = tile.height - 2 * margin, tile.width - 2 * margin
        labels = np.zeros((height, width), np.int64)
        found = plane.labels[tile.rows, tile.columns]
        labels[: found.shape[0], : found.shape[1]] = found
        return image, torch.from_numpy(labels)[None]

    @property
    def n_tiles(self) -> int:
        return len(self._tiles)

    @torch.inference_mode()
    def score(self, network: UNet, stop: StopToken) -> tuple[float, float] | None:
        """Mean intersection over union in [0, 1] and mean cross-entropy, over held-out labelled pixels.

        None if stopped: whoever stops wants the window back, and part of the tiles compares with nothing.
        """
        device, config = self._learner.device, self._learner.config
        answers, truths, losses = [], [], []
        for image, labels in self._tiles:
            if stop.stopped:
                return None
            with autocast(device):
                logits = class_logits(network(image.to(device.torch_device))).float().cpu()
            losses.append(float(segmentation_loss(logits, labels, "cross_entropy", config.class_balance)))
            labelled = labels > 0
            answers.append(logits.argmax(1)[labelled] + 1)
            truths.append(labels[labelled])
        iou = class_iou(torch.cat(answers).numpy(), torch.cat(truths).numpy(), self._n_classes)
        return iou.mean, float(np.average(losses, weights=[len(part) for part in truths]))


def _labelled_tiles(plane: LabelledPlane, geometry: Any, size: int) -> list[Tile]:
    rows, columns = plane.labels.shape
    tiles = plan_tiles((slice(0, rows), slice(0, columns)), geometry, size)
    return [tile for tile in tiles if plane.labels[tile.rows, tile.columns].any()]


def _window(plane: NDArray[Any], top: int, left: int, size: int) -> NDArray[Any]:
    """A square window that may stick out of the plane; outside it is 0, unlabelled."""
    window = np.zeros((size, size), plane.dtype)
    rows = slice(max(top, 0), min(top + size, plane.shape[0]))
    columns = slice(max(left, 0), min(left + size, plane.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = plane[rows, columns]
    return window
