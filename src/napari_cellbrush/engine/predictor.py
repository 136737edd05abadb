"""A model made ready to answer windows of an image on one device."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_cellbrush.config import InferenceConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.fused_unet import FusedUNet, fused_unet_works
from napari_cellbrush.engine.model import Model, class_logits
from napari_cellbrush.engine.planes import Normalisation
from napari_cellbrush.engine.unet import UNet

#: Axes of BCYX along which an image is mirrored, one way after the other.
_WAYS_TO_MIRROR = ((2,), (3,), (2, 3))


class TilePredictor:
    """A model made ready to run on one device: batch norm folded, right precision and memory layout."""

    def __init__(self, model: Model, normalisation: Normalisation, device: Device, config: InferenceConfig) -> None:
        self._folded = model.network.folded()
        self._normalisation = normalisation
        self._device = device
        self._mirrors = _WAYS_TO_MIRROR if config.mirrored else ()
        self._load(precision_of(config, device))

    def _load(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._network = _network_on(self._device, self._folded, dtype)
        self.precision = str(dtype).removeprefix("torch.")

    @torch.inference_mode()
    def predict(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities KYX float32 of a raw window CYX of a valid size, without its margins."""
        image = torch.from_numpy(self._normalisation.apply(window))[None]
        total = self._probabilities(image)
        for axes in self._mirrors:
            total += self._probabilities(image.flip(axes)).flip(axes)
        probabilities: NDArray[np.float32] = (total / (1 + len(self._mirrors)))[0].contiguous().cpu().numpy()
        return probabilities

    def _probabilities(self, image: Tensor) -> Tensor:
        logits = self._logits(image)
        if self._dtype == torch.float16 and not bool(logits.isfinite().all()):
            # Features beyond 65,504 do not fit: a model like that runs in full precision from here on.
            self._load(torch.float32)
            logits = self._logits(image)
        return logits.float().softmax(dim=1)

    @torch.inference_mode()
    def decoded(self, window: NDArray[np.float32]) -> list[Tensor]:
        """What the expanding path makes of a raw window CYX of a valid size, finest level first: YXF each."""
        image = torch.from_numpy(self._normalisation.apply(window))[None]
        with _exact_products(self._device, self._dtype):
            levels = self._network.decoded(self._on_device(image))
        return [level[0].permute(1, 2, 0) for level in reversed(levels)]

    def _logits(self, image: Tensor) -> Tensor:
        with _exact_products(self._device, self._dtype):
            return class_logits(self._network(self._on_device(image)))

    def _on_device(self, image: Tensor) -> Tensor:
        image = image.to(self._device.torch_device, self._dtype)
        return image.contiguous(memory_format=torch.channels_last) if self._device.channels_last else image


def precision_of(config: InferenceConfig, device: Device) -> torch.dtype:
    """What weights and features are kept in.

    On CUDA float16 is as fast as bfloat16 and rounds eight times finer, so that fewer pixels depend on their tile;
    its small range matters to gradients rather than to the features of a trained network. On a CPU bfloat16 gives
    every pixel the same bits in every tile only with the fused operators.
    """
    if config.precision == "float32" or device.half is None:
        return torch.float32
    if device.kind == "cuda":
        return torch.float16
    return device.half if device.half != torch.bfloat16 or fused_unet_works(device.half) else torch.float32


def _network_on(device: Device, folded: UNet, dtype: torch.dtype) -> UNet | FusedUNet:
    if device.kind == "cpu" and device.channels_last and fused_unet_works(dtype):
        return FusedUNet(folded, dtype)
    network = copy.deepcopy(folded).to(device.torch_device, dtype)
    if device.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    return network


def _exact_products(device: Device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """By default cuDNN rounds the factors of float32 products to 10 bits (TF32); float32 shall mean float32."""
    if device.kind == "cuda" and dtype == torch.float32:
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


def most_probable(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class map YX uint8, 1…K, of probabilities KYX; the first of equal ones, as argmax has it, in half its time."""
    classes = np.ones(probabilities.shape[1:], np.uint8)
    best = probabilities[0]
    for position, candidate in enumerate(probabilities[1:], start=2):
        np.putmask(classes, candidate > best, np.uint8(position))
        best = np.maximum(best, candidate)
    return classes
