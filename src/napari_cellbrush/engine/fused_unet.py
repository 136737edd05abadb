"""The folded U-Net as oneDNN runs it fastest on a CPU: the values of :class:`.unet.UNet`, sooner.

Weights are laid out for the kernels once and not at every tile, ReLU happens inside the convolutions, and pooling
keeps no indices. The operators are those that PyTorch's own compiler emits; nobody promises that they stay, so
:func:`fused_unet_works` tries them before they are used.
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

from napari_cellbrush.engine.unet import UNet

#: oneDNN adds up a bfloat16 convolution in another order where rows are shorter than 53 pixels (measured with AMX, bit
#: by bit, over hundreds of shapes; the number of rows and of threads does not matter). One order for all keeps a
#: pixel's result the same to the last bit in tiles of every size; a level's second convolution sees 2 pixels less.
_SHORTEST_ROW = 60

#: Weights and bias of each convolution of one level.
_Packed = list[tuple[Tensor, Tensor | None]]


class FusedUNet:
    """A network for inference on a CPU.

    Parameters
    ----------
    network
        Folded, float32.
    dtype
        Of weights and features: float32 or bfloat16.
    """

    def __init__(self, network: UNet, dtype: torch.dtype) -> None:
        self._down = [_packed(block, dtype) for block in network.down]
        self._up = [_packed(block, dtype) for block in network.up]
        plain = copy.deepcopy(network).to(dtype)
        plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self._rise, self._head = plain.rise, plain.head
        self._shortest_row = _SHORTEST_ROW if dtype == torch.bfloat16 else 1

    def __call__(self, image: Tensor) -> Tensor:
        """BKhw logits of BCHW, of the network's dtype and channels last, as :meth:`.unet.UNet.forward` gives them."""
        logits: Tensor = self._head(self.decoded(image)[-1])
        return logits

    def decoded(self, image: Tensor) -> list[Tensor]:
        """The expanding path's levels, coarsest first, as :meth:`.unet.UNet.decoded` gives them."""
        skips: list[Tensor] = []
        x = image
        for block in self._down:
            x = _pooled(skips[-1]) if skips else x
            skips.append(self._convolved(x, block))
        x = skips.pop()
        levels: list[Tensor] = []
        for rise, block in zip(self._rise, self._up, strict=True):
            x = self._convolved(_joined(skips.pop(), rise(x)), block)
            levels.append(x)
        return levels

    def _convolved(self, x: Tensor, block: _Packed) -> Tensor:
        """Unpadded convolutions, each with its ReLU; columns added for the row's length leave no trace."""
        width = x.shape[-1]
        if width < self._shortest_row:
            x = nn.functional.pad(x, (0, self._shortest_row - width))
        for weight, bias in block:
            x = torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "relu", [], "")
        return x[..., : width - 2 * len(block)]


@functools.cache
def fused_unet_works(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this CPU has the operators, and they give what the plain network gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(base_filters=8, depth=3).eval()
        image = torch.rand(1, 1, network.geometry.smallest_input, network.geometry.smallest_input)
    try:
        with torch.inference_mode():
            found = FusedUNet(network, dtype)(image.to(dtype)).float()
            expected = network(image)
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.std()))


def _packed(block: nn.Module, dtype: torch.dtype) -> _Packed:
    """Weights and biases of a level's convolutions, in the layout that oneDNN prefers."""
    packed: _Packed = []
    for layer in block.children():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], 1, None)
            packed.append((weight, None if layer.bias is None else layer.bias.detach().to(dtype)))
    return packed


def _pooled(x: Tensor) -> Tensor:
    """2×2 maximum; max_pool2d would also write down, in 64 bit, where each maximum was."""
    rows = torch.maximum(x[..., 0::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _joined(skip: Tensor, x: Tensor) -> Tensor:
    """The centre of a contracting level's features in front of the risen ones."""
    top, left = (skip.shape[-2] - x.shape[-2]) // 2, (skip.shape[-1] - x.shape[-1]) // 2
    centre = skip[..., top : top + x.shape[-2], left : left + x.shape[-1]]
    return torch.cat([centre, x], dim=1)
