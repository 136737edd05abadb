from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from napari_cellbrush.engine import fused_unet
from napari_cellbrush.engine.fused_unet import FusedUNet, fused_unet_works
from napari_cellbrush.engine.unet import UNet

pytestmark = pytest.mark.skipif(not fused_unet_works(torch.float32), reason="this PyTorch has no oneDNN operators")


def make_network(**options: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(**{"n_classes": 3, "base_filters": 8, "depth": 3, "batch_norm": True, **options}).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@given(depth=st.integers(3, 4), in_channels=st.integers(1, 5), n_classes=st.integers(1, 4), batch_norm=st.booleans(),
       blocks=st.tuples(st.integers(0, 4), st.integers(0, 4)))
@settings(max_examples=15, deadline=None)
def test_it_gives_what_the_plain_network_gives(depth: int, in_channels: int, n_classes: int, batch_norm: bool,
                                               blocks: tuple[int, int]) -> None:
    network = make_network(depth=depth, in_channels=in_channels, n_classes=n_classes, batch_norm=batch_norm)
    height, width = (network.geometry.smallest_input + n * network.geometry.stride for n in blocks)
    image = torch.randn(1, in_channels, height, width)
    with torch.inference_mode():
        torch.testing.assert_close(FusedUNet(network.folded(), torch.float32)(image), network(image),
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not fused_unet_works(torch.bfloat16), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("size", [188, 252, 396])
def test_bfloat16_gives_every_pixel_the_same_bits_in_tiles_of_every_size(size: int) -> None:
    """Wide layers are needed: only from 128 channels on does the order of sums depend on the row's length."""
    network = FusedUNet(make_network(base_filters=32, depth=4).folded(), torch.bfloat16)
    image = torch.randn(1, 1, 540, 572, dtype=torch.bfloat16)
    with torch.inference_mode():
        whole, part = network(image), network(image[..., 64 : 64 + size, 112 : 112 + size])
    assert torch.equal(part, whole[..., 64 : 64 + part.shape[-2], 112 : 112 + part.shape[-1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_it_is_made_from_stays_as_it_was(dtype: torch.dtype) -> None:
    if not fused_unet_works(dtype):
        pytest.skip(f"the fused operators do not run on this CPU in {dtype}")
    network = make_network().folded()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    FusedUNet(network, dtype)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("error", [AttributeError("no such operator"), RuntimeError("unknown schema")])
def test_a_pytorch_without_the_operators_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(*_: Any) -> Any:
        raise error

    fused_unet_works.cache_clear()
    monkeypatch.setattr(fused_unet, "_packed", missing)
    assert not fused_unet_works(torch.float32)
    fused_unet_works.cache_clear()


def test_operators_that_give_other_values_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_unet_works.cache_clear()
    monkeypatch.setattr(fused_unet, "_pooled", lambda x: x[..., ::2, ::2])
    assert not fused_unet_works(torch.float32)
    fused_unet_works.cache_clear()
