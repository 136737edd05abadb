"""The network: Ronneberger, Fischer, Brox 2015, unpadded unless it learns, with optional batch norm.

It knows tensors only. Which sizes it takes is written in :mod:`.geometry`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from napari_cellbrush.engine.geometry import UNetGeometry


class UNet(nn.Module):
    """The U-Net, unpadded until :meth:`pad`.

    With ``base_filters=64, depth=4, batch_norm=False`` it is the net of the paper: 23 convolutional layers,
    572 → 388 pixels, 31,030,658 parameters for one input channel and two classes.

    Parameters
    ----------
    in_channels
        Channels of the image.
    n_classes
        Channels of the output (logits).
    base_filters
        Feature channels of the first level; doubled at each of the ``depth`` levels.
    depth
        Number of 2×2 max-poolings.
    batch_norm
        Normalise after each 3×3 convolution; :meth:`folded` removes it for inference.
    dropout
        Share of channels dropped at the end of the contracting path, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        base_filters: int = 64,
        depth: int = 4,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.n_classes = n_classes
        self.base_filters = base_filters
        self.depth = depth
        self.batch_norm = batch_norm
        self.geometry = UNetGeometry(depth)
        widths = [base_filters * 2**level for level in range(depth + 1)]
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(_two_convolutions(i, o, batch_norm) for i, o in zip(inputs, widths, strict=True))
        self.dropout = nn.Dropout2d(dropout)
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, kernel_size=2, stride=2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(_two_convolutions(2 * w, w, batch_norm) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(base_filters, n_classes, kernel_size=1)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Class logits of the image's centre; of all of it with padding.

        Parameters
        ----------
        image
            BCHW float; H and W are valid sizes of ``self.geometry``.

        Returns
        -------
        Tensor
            BKhw logits; h = H − 2·margin, w = W − 2·margin.
        """
        logits: Tensor = self.head(self.features(image))
        return logits

    def features(self, image: Tensor) -> Tensor:
        """What the head sees: BFhw with F = ``base_filters``."""
        return self.decoded(image)[-1]

    def decoded(self, image: Tensor) -> list[Tensor]:
        """What each level of the expanding path gives, coarsest first: BFhw with F = ``base_filters``·2^level.

        At stride s = 2^level, row j covers the output's rows from s·j − 2(s − 1) on: without padding, two convolutions
        take two rows off at each level.
        """
        skips: list[Tensor] = []
        x: Tensor = image
        for level, block in enumerate(self.down):
            x = block(x)
            if level < self.depth:
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        x = self.dropout(x)
        levels: list[Tensor] = []
        for rise, block, skip in zip(self.rise, self.up, reversed(skips), strict=True):
            x = rise(x)
            x = block(torch.cat([_centre_crop(skip, x.shape[-2], x.shape[-1]), x], dim=1))
            levels.append(x)
        return levels

    def pad(self, padded: bool = True) -> None:
        """Pad the convolutions with zeros, so that every pixel of a patch is answered; or undo that.

        For learning: of what an unpadded net computes on a small patch, most is for context that answers nothing.
        """
        self.geometry = UNetGeometry(self.depth, padded)
        for block in [*self.down, *self.up]:
            for module in block.children():
                if isinstance(module, nn.Conv2d):
                    module.padding = (int(padded), int(padded))

    def folded(self) -> UNet:
        """A copy for inference: batch norm folded into the convolutions, dropout and padding off.

        A pixel's result then depends on its neighbourhood alone, never on the rest of its tile or batch.
        """
        plain = copy.deepcopy(self).eval()
        plain.pad(False)
        for block in [*plain.down, *plain.up]:
            for name in ("norm1", "norm2"):
                if name in block._modules:
                    convolution = f"conv{name[-1]}"
                    block._modules[convolution] = fuse_conv_bn_eval(block._modules[convolution], block._modules[name])
                    del block._modules[name]
        plain.batch_norm = False
        return plain


def _two_convolutions(n_in: int, n_out: int, batch_norm: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for position, channels in ((1, n_in), (2, n_out)):
        layers[f"conv{position}"] = nn.Conv2d(channels, n_out, kernel_size=3)
        if batch_norm:
            layers[f"norm{position}"] = nn.BatchNorm2d(n_out)
        layers[f"relu{position}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015: standard deviation sqrt(2/N), N the inputs of one neuron, as the paper asks (section 3)."""
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or module.weight.is_meta:
        # Without memory there is nothing to draw, and torch would load its compiler (seconds) to do so.
        return
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    else:
        # With kernel 2 and stride 2 each output pixel has one input pixel of every channel.
        nn.init.normal_(module.weight, std=(2.0 / module.in_channels) ** 0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _centre_crop(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
