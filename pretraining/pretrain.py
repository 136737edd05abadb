"""Train the bundled base on the packed images.

    python pretraining/pretrain.py --data pretraining.npz --out RUN_FOLDER [--steps N] [--resume]

Deterministic by seed on one device, resumable, and it writes its curve to ``RUN_FOLDER/curve.csv``. The same
network, augmentation and loss as in the plugin; a GPU is used where there is one. ``--start FILE`` goes on from
an earlier release's weights. The rate is constant until the last two fifths of the steps, so a run can be made longer
until then and is still the run it would have been.

An unpadded network answers a third of what it reads. Convolutions are therefore padded at first, which triples what
a step learns from; the last steps are unpadded, as the network will be used.

Beside the classes the network learns how far each pixel of an object is from its rim and where the object's centre
lies. ``checkpoint.pt`` keeps that part of the head, and ``benchmarks/heads.py`` compares what can be made of it; the
model has the classes alone, so that ``--start`` learns shapes anew.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from muon import Muon
from numpy.typing import NDArray
from pack import DIAMETER_PX, SEEN_PX, from_bytes
from scipy import ndimage
from skimage.segmentation import find_boundaries
from torch import Tensor, nn
from torch.nn import functional

from napari_cellbrush.config import DEFAULT_CLASSES, AugmentationConfig, NetworkConfig
from napari_cellbrush.engine import augment
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.border_weights import border_weights
from napari_cellbrush.engine.device import Device, autocast, choose_device
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.model import Model, ModelCard, build_network
from napari_cellbrush.engine.model_file import read_model, save_model
from napari_cellbrush.engine.planes import LIMITS
from napari_cellbrush.engine.unet import UNet

#: How often each set is drawn: wide domains and many-sided sets more often than many like images.
SHARES = {"dsb2018_fluo": 0.30, "dsb2018_histology": 0.17, "dsb2018_brightfield": 0.08, "bbbc039_nuclei_dev": 0.11,
          "usiigaci_phase": 0.13, "axondeepseg_sem": 0.07, "baby_yeast_5z": 0.09, "fib25_em_3d": 0.05}
AUGMENTATION = AugmentationConfig(scale_range=0, gain=0.3, offset=0.15, gamma=0.4, noise=0.06, blur_px=1.2)
#: Objects are shown at the size at which the program shows them, times 2 to the power of a number up to this.
OCTAVES = 0.75
#: Images of tiny objects are not enlarged beyond this.
MOST_ENLARGED = 3.0
#: Share of patches around a place where objects touch, and around a random object. The rest lie anywhere. Most pixels
#: of most images are soon learnt; what is learnt last is where one cell ends and the next begins.
ON_GAPS, ON_OBJECTS = 0.5, 0.3
#: Share of patches that may reach over the image's edge, where there is nothing to learn but what mirrored images look
#: like. The others are moved inside, but for corners that rotation turns out of the image.
OVER_EDGE = 0.2
#: Objects this near to each other, in pixels of the packed image, touch.
GAP_PX = 3.0
#: Boundaries are thin: weigh them up, but less than to equality, or they would swallow small cells.
CLASS_WEIGHTS = np.array([0.0, 1.0, 1.0, 1.5], np.float32)
#: Border weights of the paper (equation 2), narrower because objects are smaller here than there.
BORDER_WEIGHT, BORDER_SIGMA_PX = 4.0, 2.5
#: Largest step size of each optimiser.
RATES = {"muon": 1e-3, "adamw": 6e-4}
#: Share of the steps, at the end, in which the rate falls.
COOLING = 0.4
#: Share of the steps, at the end, without padding.
UNPADDED = 0.1
#: Side of patches with padding, a multiple of the network's stride, and without, a valid input size.
PADDED_SIZE = 192
UNPADDED_SIZE = 380
INVERT = 0.25
#: Share of the patches to which structure finer than a Gaussian, whose standard deviation is in this range, in the
#: network's pixels, is added once more, times a number in that range. Images of one set come from one microscope; a
#: network that is shown no others takes its halos for what tells cells.
OTHER_OPTICS, OPTICS_SIGMA_PX, OPTICS_GAIN = 0.5, (1.5, 10.0), (-0.6, 1.2)
#: Channels after those of the classes: distance to the rim, rows and columns to the centre; in radii of the objects
#: that the network is to see.
N_SHAPE = 3
RADIUS_PX = DIAMETER_PX / 2
#: Weight of the shape's error beside the classes'.
SHAPE_WEIGHT = 0.5
#: Sets without whole objects: classes, and neurites that wind through the image.
SHAPELESS = ("axondeepseg_sem", "fib25_em_3d")
DESCRIPTION = (
    "Background / cell / boundary for nuclei in fluorescence, stained tissue and bright field, phase-contrast "
    "cells, budding yeast, axons and neuropil in electron microscopy. Trained on training images of the Data Science "
    "Bowl 2018 (BBBC038, CC0), BBBC039 (CC0), Usiigaci (MIT), AxonDeepSeg (MIT), BABY (MIT) and FlyEM FIB-25 "
    "(CC BY). Weights: BSD-3-Clause.")

#: Patches B1HW, classes Bhw, their weights Bhw, shapes BShw.
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Plane:
    """One packed image, CYX bytes, with its truth YX and the median diameter of its objects in pixels."""

    image: NDArray[np.uint8]
    truth: NDArray[np.uint16]
    diameter: float

    @property
    def n_objects(self) -> int:
        """How many objects, or classes, stand in the truth."""
        return int(np.count_nonzero(np.bincount(self.truth.ravel())[2:]))

    @cached_property
    def gaps(self) -> NDArray[np.intp]:
        """Where, in the flattened truth, objects touch: the distances to the nearest two sum to below GAP_PX."""
        nearness = border_weights(_objects(self.truth), class_weight=0, w0=1, sigma_px=GAP_PX)
        return np.flatnonzero(nearness > math.exp(-1 / 2))


class Images:
    """All packed planes in memory, drawn set by set; within a set, planes with many objects more often."""

    def __init__(self, path: Path, seed: int) -> None:
        packed = np.load(path, allow_pickle=False)
        self._planes: dict[str, list[Plane]] = defaultdict(list)
        for key in sorted(key.removesuffix("/image") for key in packed.files if key.endswith("/image")):
            plane = Plane(packed[f"{key}/image"], packed[f"{key}/truth"], float(packed[f"{key}/diameter"]))
            self._planes[key.split("/")[0]].append(plane)
        crowds = {name: np.sqrt([plane.n_objects + 1 for plane in planes]) for name, planes in self._planes.items()}
        self._chances = {name: crowd / crowd.sum() for name, crowd in crowds.items()}
        self._seed = seed

    def batch(self, step: int, n: int, size: int, answered: int) -> tuple[Tensor, Tensor, list[str]]:
        """Source windows B1YX float32, their truth BYX, and the sets they are from.

        The same ones whenever the step is run. ``size`` is the side of the windows in the network's pixels,
        ``answered`` that of the middle which is learnt from; the rest is room for rotation and margins.
        """
        self.random = np.random.default_rng([self._seed, step])
        names = [str(name) for name in self.random.choice(list(SHARES), size=n, p=np.array(list(SHARES.values())))]
        windows = [self._window(self._planes[name][self.random.choice(len(self._chances[name]), p=self._chances[name])],
                                size, answered) for name in names]
        images, truths = (torch.stack(part) for part in zip(*windows, strict=True))
        return images, truths, names

    def _window(self, plane: Plane, size: int, answered: int) -> tuple[Tensor, Tensor]:
        octaves = self.random.uniform(-OCTAVES, OCTAVES)
        enlarged = min(SEEN_PX / plane.diameter * 2**octaves, MOST_ENLARGED)
        side = max(2, round(size / enlarged))
        row, column = self._centre(plane)
        height, width = plane.truth.shape
        if self.random.random() >= OVER_EDGE:
            inside = round(answered / enlarged)
            row, column = _moved_inside(row, inside, height), _moved_inside(column, inside, width)
        rows, columns = _reach(row, side), _reach(column, side)
        grey = self._grey(from_bytes(plane.image[:, _mirror(rows, height)[:, None], _mirror(columns, width)]))
        truth = np.zeros((side, side), np.float32)
        here = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
        truth[here] = plane.truth[np.ix_(rows[(rows >= 0) & (rows < height)],
                                         columns[(columns >= 0) & (columns < width)])]
        image = functional.interpolate(torch.from_numpy(grey)[None, None], size=(size, size), mode="bilinear",
                                       antialias=enlarged < 1, align_corners=False)[0]
        image = self._as_through_other_optics(image)
        return image, functional.interpolate(torch.from_numpy(truth)[None, None], size=(size, size),
                                             mode="nearest-exact")[0, 0].int()

    def _centre(self, plane: Plane) -> tuple[int, int]:
        chance, truth = self.random.random(), plane.truth
        places = plane.gaps if chance < ON_GAPS else np.empty(0, np.intp)
        if not len(places) and chance < ON_GAPS + ON_OBJECTS and truth.max() > 1:
            places = np.flatnonzero(truth == self.random.choice(np.unique(truth[truth > 1])))
        place = int(self.random.choice(places)) if len(places) else int(self.random.integers(truth.size))
        row, column = divmod(place, truth.shape[1])
        return row, column

    def _grey(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """One random mixture of the channels, near their mean; sometimes inverted."""
        shares = self.random.dirichlet(np.full(len(image), 3.0)).astype(np.float32)
        grey = np.tensordot(shares, image, axes=1).astype(np.float32)
        return -grey if self.random.random() < INVERT else grey

    def _as_through_other_optics(self, image: Tensor) -> Tensor:
        """The image 1YX, at the network's scale, with fine structure and halos stronger or weaker than they are."""
        if self.random.random() >= OTHER_OPTICS:
            return image
        coarse = ndimage.gaussian_filter(image[0].numpy(), self.random.uniform(*OPTICS_SIGMA_PX), mode="mirror")
        return (image + self.random.uniform(*OPTICS_GAIN) * (image - torch.from_numpy(coarse))).clamp(*LIMITS)


def _objects(truth: NDArray[np.generic]) -> NDArray[np.int64]:
    """Ids of objects from packed truth: 0 is background or unknown."""
    return np.maximum(truth.astype(np.int64) - 1, 0)


def _moved_inside(centre: int, side: int, length: int) -> int:
    """The centre nearest to this one from which ``side`` pixels fit into ``length``, or the middle."""
    return min(max(centre, side // 2), length - side + side // 2) if side <= length else length // 2


def _reach(centre: int, length: int) -> NDArray[np.int64]:
    return np.arange(length) + centre - length // 2


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
                     network=NetworkConfig(base_filters=arguments.base_filters), diameter_px=DIAMETER_PX,
                     description=DESCRIPTION)
    start = read_model(arguments.start) if arguments.start else None
    n_before = start.card.n_steps if start else 0
    network = with_shape(start.network if start else build_network(card))
    network.to(device.torch_device, memory_format=torch.channels_last)
    mean = copy.deepcopy(network).eval().requires_grad_(False)
    optimisers = _optimisers(network, arguments)
    images = Images(arguments.data, arguments.seed)
    checkpoint, first = arguments.out / "checkpoint.pt", 0
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if (state.get("optimiser") != arguments.optimiser
                or state["network"]["head.weight"].shape != network.head.weight.shape):
            raise SystemExit(f"{checkpoint} is of another recipe. Go on from its weights: "
                             f"--start {arguments.out / 'cells.safetensors'}")
        network.load_state_dict(state["network"])
        mean.load_state_dict(state["mean"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        first = state["step"]
    began, recent = time.perf_counter(), []
    for step, batch in enumerate(_batches(images, first, arguments, network.depth, device), start=first):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = arguments.rate * _rate_factor(step, arguments.steps)
        network.pad(_is_padded(step, arguments))
        recent.append(_step(network, optimisers, batch, device))
        _average(mean, network, min(0.995, (step + 1) / (step + 10)))
        if (step + 1) % 25 == 0:
            _log(arguments.out / "curve.csv", step + 1, float(np.mean(recent)), time.perf_counter() - began)
            recent.clear()
        if (step + 1) % 100 == 0 or step + 1 == arguments.steps:
            torch.save({"network": network.state_dict(), "mean": mean.state_dict(), "step": step + 1,
                        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                        "optimiser": arguments.optimiser}, checkpoint)
            _export(mean, card.replace(n_steps=n_before + step + 1), arguments.out / "cells.safetensors")


def _optimisers(network: UNet, arguments: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions, AdamW for what has one axis and for the head."""
    if arguments.optimiser == "adamw":
        return [torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-3)]
    inner = [weight for name, weight in network.named_parameters() if weight.ndim > 1 and not name.startswith("head.")]
    others = [weight for name, weight in network.named_parameters() if weight.ndim == 1 or name.startswith("head.")]
    return [Muon(inner, lr=arguments.rate, weight_decay=1e-3),
            torch.optim.AdamW(others, lr=arguments.rate, weight_decay=1e-3)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="earlier weights to go on from")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--patches", type=int, default=4, metavar="N", help="patches a step, half as many unpadded")
    parser.add_argument("--rate", type=float, help="largest step size; what suits the optimiser if not given")
    parser.add_argument("--optimiser", choices=list(RATES), default="muon")
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    arguments.rate = arguments.rate or RATES[arguments.optimiser]
    return arguments


def with_shape(network: UNet) -> UNet:
    """The same network with a longer head: ``N_SHAPE`` channels after those of the classes."""
    longer = copy.deepcopy(network)
    longer.head = nn.Conv2d(network.base_filters, network.n_classes + N_SHAPE, kernel_size=1)
    with torch.no_grad():
        for name, tensor in network.head.named_parameters():
            longer.head.get_parameter(name)[: network.n_classes] = tensor
    return longer


def _is_padded(step: int, arguments: argparse.Namespace) -> bool:
    return step < (1 - UNPADDED) * arguments.steps


def _batches(images: Images, first: int, arguments: argparse.Namespace, depth: int,
             device: Device) -> Iterator[Batch]:
    """What each step from ``first`` on learns from, made while the network learns from the one before."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        coming = None
        for step in range(first, arguments.steps):
            batch = coming.result() if coming else _batch(images, step, arguments, depth, device)
            if step + 1 < arguments.steps:
                coming = beside.submit(_batch, images, step + 1, arguments, depth, device)
            yield batch


def _batch(images: Images, step: int, arguments: argparse.Namespace, depth: int, device: Device) -> Batch:
    padded = _is_padded(step, arguments)
    size, n = (PADDED_SIZE, arguments.patches) if padded else (UNPADDED_SIZE, (arguments.patches + 1) // 2)
    geometry = UNetGeometry(depth, padded)
    random = torch.Generator().manual_seed(arguments.seed + 1_000_003 * step)
    source = augment.source_size(AUGMENTATION, size)
    answered = geometry.output_size(size)
    pixels, truths, names = images.batch(step, n, source, answered)
    drawn = augment.draw(AUGMENTATION, len(pixels), size, random)
    pixels, truths = augment.apply(drawn, pixels.to(device.torch_device), truths.to(device.torch_device), size,
                                   answered)
    # Boundaries are drawn last, so that they are equally thick however much the image was enlarged.
    targets, weights, shapes = (torch.from_numpy(np.stack(part)).to(device.torch_device) for part in zip(
        *((*_targets(truth, name == "axondeepseg_sem"), shape_of(np.zeros_like(truth) if name in SHAPELESS else truth))
          for truth, name in zip(truths.cpu().numpy(), names, strict=True)), strict=True))
    return pixels.to(memory_format=torch.channels_last), targets, weights, shapes


def _targets(truth: NDArray[np.int64], is_classes: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Background 1, cell 2, boundary 3, and 0 where the truth is silent; and what each pixel weighs."""
    if is_classes:
        return truth, CLASS_WEIGHTS[truth]
    classes = np.where(truth == 0, 0, objects_to_classes(_objects(truth), boundary_px=2)).astype(np.int64)
    return classes, border_weights(_objects(truth), known=truth > 0, class_weight=CLASS_WEIGHTS[classes],
                                   w0=BORDER_WEIGHT, sigma_px=BORDER_SIGMA_PX)


def shape_of(truth: NDArray[np.integer]) -> NDArray[np.float32]:
    """What the network is to say of objects beside their classes.

    Parameters
    ----------
    truth
        YX, packed: 0 unknown, 1 background, objects from 2.

    Returns
    -------
    NDArray
        SYX float32 in radii: the distance to the nearest pixel of the rim, 0 in the background; rows and columns to the
        object's centre of mass. NaN where nobody knows, because the border or unknown pixels cut the object.
    """
    objects = _objects(truth)
    shape = np.full((N_SHAPE, *truth.shape), np.nan, np.float32)
    # The rim of each object is its own: one distance transform does for all of them.
    rim = find_boundaries(objects, mode="inner")
    distance = ndimage.distance_transform_edt(~rim) if rim.any() else np.full(truth.shape, np.inf)
    to_unknown = ndimage.distance_transform_edt(np.pad(truth > 0, 1))[1:-1, 1:-1]
    # What is cut off may be nearer than the rim that is seen, where that is no nearer than the cut.
    shape[0] = np.where(objects == 0, 0, np.where(distance < to_unknown - 1, distance / RADIUS_PX, np.nan))
    shape[0][truth == 0] = np.nan
    whole = (objects > 0) & ~np.isin(objects, np.unique(objects[to_unknown <= 1]))
    _, number = np.unique(objects[whole], return_inverse=True)
    n_pixels = np.bincount(number)
    for channel, position in zip((1, 2), np.nonzero(whole), strict=True):
        centre = np.bincount(number, weights=position) / n_pixels
        shape[channel][whole] = (centre[number] - position) / RADIUS_PX
    return shape


def _shape_error(said: Tensor, truth: Tensor) -> Tensor:
    """Mean over the channels of how far shapes BSHW are from the truth where it is known."""
    known = ~truth.isnan()
    wrong = functional.smooth_l1_loss(said, truth.nan_to_num(), beta=0.1, reduction="none") * known
    return (wrong.sum((0, 2, 3)) / known.sum((0, 2, 3)).clamp_min(1)).mean()


def _step(network: UNet, optimisers: Sequence[torch.optim.Optimizer], batch: Batch, device: Device) -> float:
    pixels, targets, weights, shapes = batch
    network.train()
    network.zero_grad(set_to_none=True)
    with autocast(device):
        answer = network(pixels)
    logits, said = answer.float().split([answer.shape[1] - N_SHAPE, N_SHAPE], dim=1)
    loss = segmentation_loss(logits, targets, "cross_entropy", False, weights)
    loss = loss + SHAPE_WEIGHT * _shape_error(said, shapes)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    # What makes Muon's matrices orthogonal is products, too, and need not be exact.
    with autocast(device):
        for optimiser in optimisers:
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
    """Warm-up, constant, then falling like 1 − √progress (Hägele et al. 2024)."""
    cooling = max(1, round(COOLING * n_steps))
    progress = max(0.0, (step - (n_steps - cooling)) / cooling)
    return min(1.0, (step + 1) / 100) * max(0.01, 1 - math.sqrt(progress))


def _log(path: Path, step: int, loss: float, seconds: float) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file).writerow([step, f"{loss:.4f}", f"{seconds:.0f}"])


def _export(mean: UNet, card: ModelCard, path: Path) -> None:
    plain = build_network(card)
    # The classes' part of the head.
    plain.load_state_dict({name: tensor.cpu()[: plain.n_classes] if name.startswith("head.") else tensor.cpu()
                           for name, tensor in mean.state_dict().items()})
    path.unlink(missing_ok=True)
    save_model(Model(plain.eval(), card), path, half=True)


if __name__ == "__main__":
    main()
