"""Train the bundled base on the packed images.

    python pretraining/pretrain.py --data pretraining.npz --out RUN_FOLDER [--steps N] [--resume]

Deterministic by seed on one device, resumable, and it writes its curve to ``RUN_FOLDER/curve.csv``. The same
network, augmentation and loss as in the plugin; a GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pack import from_bytes
from torch import Tensor

from napari_cellbrush.config import DEFAULT_CLASSES, AugmentationConfig, NetworkConfig
from napari_cellbrush.engine import augment
from napari_cellbrush.engine.device import Device, autocast, choose_device
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.model import Model, ModelCard, build_network
from napari_cellbrush.engine.model_file import save_model
from napari_cellbrush.engine.unet import UNet

#: How often each set is drawn: wide domains and many-sided sets more often than many like images.
SHARES = {"dsb2018_fluo": 0.28, "dsb2018_histology": 0.17, "dsb2018_brightfield": 0.08, "bbbc039_nuclei_dev": 0.13,
          "usiigaci_phase": 0.13, "axondeepseg_sem": 0.07, "baby_yeast_5z": 0.09, "fib25_em_3d": 0.05}
AUGMENTATION = AugmentationConfig(scale_range=0.4, gain=0.3, offset=0.15, gamma=0.4, noise=0.08, blur_px=1.5)
#: Boundaries are a few pixels thin: weigh them up, but less than to equality, or they would swallow small cells.
CLASS_WEIGHTS = torch.tensor([0.0, 1.0, 1.0, 3.0])
INVERT = 0.25
DESCRIPTION = (
    "Background / cell / boundary for nuclei in fluorescence, stained tissue and bright field, phase-contrast "
    "cells, budding yeast, axons and neuropil in electron microscopy. Trained on training images of the Data Science "
    "Bowl 2018 (BBBC038, CC0), BBBC039 (CC0), Usiigaci (MIT), AxonDeepSeg (MIT), BABY (MIT) and FlyEM FIB-25 "
    "(CC BY). Weights: BSD-3-Clause.")


class Images:
    """All packed planes in memory, drawn set by set."""

    def __init__(self, path: Path, seed: int) -> None:
        packed = np.load(path, allow_pickle=False)
        self._planes: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = defaultdict(list)
        for key in sorted(key for key in packed.files if key.endswith("/image")):
            self._planes[key.split("/")[0]].append((packed[key], packed[key.removesuffix("image") + "target"]))
        self._seed = seed

    def batch(self, step: int, n: int, size: int) -> tuple[Tensor, Tensor]:
        """Source windows B1YX float32 and targets BYX uint8; the same ones whenever the step is run."""
        self.random = np.random.default_rng([self._seed, step])
        names = self.random.choice(list(SHARES), size=n, p=np.array(list(SHARES.values())))
        windows = [self._window(self._planes[str(name)], size) for name in names]
        images, targets = (np.stack(part) for part in zip(*windows, strict=True))
        return torch.from_numpy(images), torch.from_numpy(targets)

    def _window(self, planes: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
                size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        image, target = planes[self.random.integers(len(planes))]
        height, width = target.shape
        row, column = self.random.integers(height), self.random.integers(width)
        rows, columns = _reach(row, height, size), _reach(column, width, size)
        grey = self._grey(from_bytes(image[:, _mirror(rows, height)[:, None], _mirror(columns, width)]))
        inside = np.zeros((size, size), np.uint8)
        here = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
        inside[here] = target[np.ix_(rows[(rows >= 0) & (rows < height)], columns[(columns >= 0) & (columns < width)])]
        return grey[None], inside

    def _grey(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """One random mixture of the channels, near their mean; sometimes inverted."""
        shares = self.random.dirichlet(np.full(len(image), 3.0)).astype(np.float32)
        grey = np.tensordot(shares, image, axes=1).astype(np.float32)
        return -grey if self.random.random() < INVERT else grey


def _reach(centre: int, length: int, size: int) -> NDArray[np.int64]:
    return np.arange(size) + centre - size // 2


def _mirror(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    period = max(1, 2 * (length - 1))
    folded = np.abs(positions) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(folded)


def main() -> None:
    """Train, checkpoint, save."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    device = choose_device()
    card = ModelCard(name="cells", classes=DEFAULT_CLASSES, in_channels=1, any_channels=True,
                     network=NetworkConfig(base_filters=arguments.base_filters), description=DESCRIPTION)
    network = build_network(card).to(device.torch_device, memory_format=torch.channels_last)
    mean = copy.deepcopy(network).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-3)
    images = Images(arguments.data, arguments.seed)
    checkpoint, first = arguments.out / "checkpoint.pt", 0
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    began, recent = time.perf_counter(), []
    for step in range(first, arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = arguments.rate * _rate_factor(step, arguments.steps)
        recent.append(_step(network, optimiser, _batch(images, step, arguments, network, device), device))
        _average(mean, network, min(0.998, (step + 1) / (step + 10)))
        if (step + 1) % 100 == 0:
            _log(arguments.out / "curve.csv", step + 1, float(np.mean(recent)), time.perf_counter() - began)
            recent.clear()
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            torch.save({"network": network.state_dict(), "mean": mean.state_dict(),
                        "optimiser": optimiser.state_dict(), "step": step + 1}, checkpoint)
            _export(mean, card.replace(n_steps=step + 1), arguments.out / "cells.safetensors")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=380)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def _batch(images: Images, step: int, arguments: argparse.Namespace, network: UNet,
           device: Device) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(arguments.seed + 1_000_003 * step)
    source = augment.source_size(AUGMENTATION, arguments.patch)
    pixels, targets = images.batch(step, arguments.batch, source)
    drawn = augment.draw(AUGMENTATION, len(pixels), arguments.patch, random)
    output = network.geometry.output_size(arguments.patch)
    pixels, targets = augment.apply(drawn, pixels.to(device.torch_device), targets.to(device.torch_device),
                                    arguments.patch, output)
    return pixels.to(memory_format=torch.channels_last), targets


def _step(network: UNet, optimiser: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], device: Device) -> float:
    pixels, targets = batch
    network.train()
    optimiser.zero_grad(set_to_none=True)
    with autocast(device):
        logits = network(pixels)
    weights = CLASS_WEIGHTS.to(targets.device)[targets]
    loss = segmentation_loss(logits.float(), targets, "cross_entropy", False, weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _average(mean: UNet, network: UNet, keep: float) -> None:
    with torch.no_grad():
        for kept, now in zip(mean.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(now, 1 - keep)
            else:
                kept.copy_(now)


def _rate_factor(step: int, n_steps: int) -> float:
    if step < 100:
        return (step + 1) / 100
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, n_steps - 100)))


def _log(path: Path, step: int, loss: float, seconds: float) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file).writerow([step, f"{loss:.4f}", f"{seconds:.0f}"])


def _export(mean: UNet, card: ModelCard, path: Path) -> None:
    plain = build_network(card)
    plain.load_state_dict({name: tensor.cpu() for name, tensor in mean.state_dict().items()})
    path.unlink(missing_ok=True)
    save_model(Model(plain.eval(), card), path, half=True)


if __name__ == "__main__":
    main()
