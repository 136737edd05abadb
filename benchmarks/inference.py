"""How fast images are segmented, beside the untiled network and MONAI's SlidingWindowInferer on the same weights.

    python benchmarks/inference.py [--size PX] [--rounds N] [--threads N] [--base-filters N] [--float32]

All ways take turns in every round, so that a busy machine disturbs all of them alike; ratios are taken within a round.
Each way starts from an image in memory and ends with a class map; normalisation is measured beforehand, except in
"first tile". All but one get folded batch norm, weights in half precision (where the device is faster with it)
and channels last:

- "tiles": what the plugin does;
- "tiles, PyTorch's operators": the same without oneDNN's fused operators;
- "MONAI, unpadded": the same unpadded network. MONAI wants an answer as large as its window, so the image is mirrored
  at its borders beforehand, the answer is padded with zeros, and a weight map leaves only its valid centre;
- "MONAI, padded": how it is usually called: the same weights with zero-padded convolutions, whose windows overlap by
  its default of 25 %. Its answer differs near the borders of windows;
- "MONAI, padded, as trained": the same with batch norm in place and autocast, which is what a few lines of code get;
- "untiled": the whole image as one window, on an image small enough for it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from skimage.data import immunohistochemistry
from torch import Tensor, nn

from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, NetworkConfig
from napari_cellbrush.engine import inference
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.inference import segment_array, segment_planes
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.events import TileSegmented

#: MONAI's windows, in pixels: each the fastest for it of 380, 508, 636, 764 and 1020 (or the multiple of 16 beside it).
UNPADDED_WINDOW = 636
PADDED_WINDOW = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="side of the image, in pixels")
    parser.add_argument("--small", type=int, default=832, help="side of the image that is also run untiled, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--float32", action="store_true", help="do not use half precision")
    parser.add_argument("--model", help="name or file of a model; random weights if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    precision = "float32" if arguments.float32 else "auto"
    ways = Ways(make_model(arguments), InferenceConfig(precision=precision))
    n_parameters = sum(p.numel() for p in ways.model.network.parameters())
    print(f"{choose_device().description}, {arguments.threads} thread(s), torch {torch.__version__}; depth 4, base "
          f"{ways.model.network.base_filters}, {n_parameters / 1e6:.1f} M parameters, {ways.dtype}; "
          f"{arguments.rounds} rounds\n")
    tiled = {"tiles": ways.tiles, "tiles, PyTorch's operators": ways.plain_tiles,
             "MONAI, unpadded": ways.monai_unpadded, "MONAI, padded": ways.monai_padded,
             "MONAI, padded, as trained": ways.monai_usual}
    print_table(arguments.size, arguments.rounds, tiled)
    print_table(arguments.small, arguments.rounds, {"tiles": ways.tiles, "untiled": ways.untiled})
    print_first_tile(arguments.size, arguments.rounds, ways)


def make_model(arguments: argparse.Namespace) -> Model:
    if arguments.model:
        return read_model(find_model(arguments.model))
    card = ModelCard(name="benchmark", classes=DEFAULT_CLASSES, in_channels=1,
                     network=NetworkConfig(base_filters=arguments.base_filters))
    return new_model(card, 0)


def make_image(size: int) -> Planes:
    """Real tissue in grey, mirrored to the size."""
    tissue = immunohistochemistry().mean(axis=-1).astype(np.uint8)
    planes = Planes(np.pad(tissue, [(0, max(0, size - n)) for n in tissue.shape], mode="reflect")[:size, :size], "YX")
    planes.normalisation()
    return planes


class Ways:
    """The ways to segment an image with one model; each returns a class map."""

    def __init__(self, model: Model, config: InferenceConfig) -> None:
        self.model, self.config, self.device = model, config, choose_device()
        half = config.precision == "auto" and self.device.half is not None
        self.dtype = self.device.half if half and self.device.half else torch.float32
        network = copy.deepcopy(model.network.folded()).to(self.device.torch_device, self.dtype)
        self.network = network.to(memory_format=torch.channels_last)
        self.padded = copy.deepcopy(self.network)
        self.padded.pad()

    def tiles(self, planes: Planes) -> np.ndarray:
        return segment_array(self.model, planes, config=self.config, device=self.device)

    def plain_tiles(self, planes: Planes) -> np.ndarray:
        with mock.patch.object(inference, "FusedUNet", return_value=self.network):
            return self.tiles(planes)

    def untiled(self, planes: Planes) -> np.ndarray:
        geometry = self.model.network.geometry
        height, width = planes.shape_yx
        window = (geometry.input_size_for(height), geometry.input_size_for(width))
        return self._classes(self.network(self._tensor(planes, *window)))[:height, :width]

    def monai_unpadded(self, planes: Planes) -> np.ndarray:
        geometry = self.model.network.geometry
        margin, valid = geometry.margin, geometry.output_size(UNPADDED_WINDOW) - 4
        height, width = planes.shape_yx
        weights = torch.zeros(1, 1, UNPADDED_WINDOW, UNPADDED_WINDOW)
        weights[..., margin : margin + valid, margin : margin + valid] = 1

        def predict(window: Tensor) -> Tensor:
            return nn.functional.pad(self.network(window), [margin] * 4)

        image = self._tensor(planes, *(max(size, valid) + 2 * margin + 4 for size in (height, width)))
        # MONAI rounds its step down: half a pixel more keeps it a multiple of the network's stride.
        logits = sliding_window_inference(image, UNPADDED_WINDOW, 1, predict, roi_weight_map=weights,
                                          overlap=1 - (valid + 0.5) / UNPADDED_WINDOW)
        return self._classes(logits[..., margin : margin + height, margin : margin + width])

    def monai_padded(self, planes: Planes) -> np.ndarray:
        return self._classes(SlidingWindowInferer(PADDED_WINDOW, 1)(self._tensor(planes, *planes.shape_yx, margin=0),
                                                                    self.padded))

    def monai_usual(self, planes: Planes) -> np.ndarray:
        network = copy.deepcopy(self.model.network).eval().to(self.device.torch_device)
        network.pad()
        image = self._tensor(planes, *planes.shape_yx, margin=0).float().contiguous()
        with torch.autocast(self.device.kind, self.dtype, enabled=self.dtype != torch.float32):
            return self._classes(SlidingWindowInferer(PADDED_WINDOW, 1)(image, network))

    def _tensor(self, planes: Planes, height: int, width: int, margin: int | None = None) -> Tensor:
        margin = self.model.network.geometry.margin if margin is None else margin
        raw = planes.read_mirrored((), -margin, -margin, height, width)
        image = torch.from_numpy(planes.normalisation().apply(raw))[None]
        return image.to(self.device.torch_device, self.dtype).contiguous(memory_format=torch.channels_last)

    def _classes(self, logits: Tensor) -> np.ndarray:
        return inference.most_probable(logits[0].float().softmax(0).contiguous().cpu().numpy())


def print_table(size: int, rounds: int, ways: dict[str, Callable[[Planes], np.ndarray]]) -> None:
    planes = make_image(size)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                answers[name] = way(planes)
                if turn:  # in the first, kernels are chosen and caches filled
                    seconds[name].append(time.perf_counter() - began)
    first = next(iter(ways))
    print(f"| {size} × {size} px | s, median (lowest to highest) | Mpx/s | time against {first} | other class |")
    print("|---|---|---|---|---|")
    for name in ways:
        low, median, high = np.percentile(seconds[name], [0, 50, 100])
        ratios = np.array(seconds[name]) / np.array(seconds[first])
        print(f"| {name} | {median:.2f} ({low:.2f} to {high:.2f}) | {size**2 / median / 1e6:.2f} "
              f"| {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f}) "
              f"| {100 * (answers[name] != answers[first]).mean():.3f} % |")
    print()


def print_first_tile(size: int, rounds: int, ways: Ways) -> None:
    seconds = []
    for _ in range(rounds):
        data = make_image(size).data
        began = time.perf_counter()
        events = segment_planes(ways.model, Planes(data, "YX"), config=ways.config, device=ways.device)
        next(event for event in events if isinstance(event, TileSegmented))
        seconds.append(time.perf_counter() - began)
        events.close()
    low, median, high = np.percentile(seconds, [0, 50, 100])
    print(f"First tile of the large image, its statistics and the model's preparation included: {median:.2f} s "
          f"({low:.2f} to {high:.2f}).")


if __name__ == "__main__":
    main()
