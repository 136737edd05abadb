from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from napari_cellbrush.engine.unet import UNet


def with_random_statistics(network: UNet) -> UNet:
    """Batch norm as after training, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)
    return network.eval()


def test_the_papers_network_has_31030658_parameters() -> None:
    assert sum(parameter.numel() for parameter in UNet().parameters()) == 31_030_658


def test_the_papers_network_has_23_convolutional_layers() -> None:
    layers = [m for m in UNet().modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(layers) == 23


def test_the_papers_network_takes_572_and_gives_388() -> None:
    with torch.device("meta"):
        assert UNet()(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_output_sizes_follow_the_geometry(depth: int, batch_norm: bool) -> None:
    with torch.device("meta"):
        network = UNet(3, 5, 8, depth, batch_norm).eval()
        size = network.geometry.smallest_input + network.geometry.stride
        other = size + 2 * network.geometry.stride
        output = network(torch.empty(2, 3, size, other))
    assert output.shape == (2, 5, network.geometry.output_size(size), network.geometry.output_size(other))


@pytest.mark.parametrize("depth", [3, 4])
def test_with_padding_every_pixel_is_answered_and_in_the_middle_as_without(depth: int) -> None:
    torch.manual_seed(0)
    network = with_random_statistics(UNet(2, 3, 8, depth, batch_norm=True))
    margin, stride, size = network.geometry.margin, network.geometry.stride, network.geometry.smallest_input
    side = (size // stride + 12) * stride
    image = torch.randn(1, 2, side, side)
    # Two convolutions come before the first pooling: from here on both pool the same pixels together.
    begin = 5 * stride + 2
    with torch.inference_mode():
        plain = network(image[..., begin : begin + size, begin : begin + size])
        network.pad()
        padded = network(image)
    assert padded.shape[-2:] == image.shape[-2:]
    assert network.geometry.output_size(side) == side
    middle = slice(begin + margin, begin + margin + plain.shape[-1])
    torch.testing.assert_close(padded[..., middle, middle], plain, atol=1e-4, rtol=1e-4)


def test_padding_can_be_taken_off_again_and_stays_with_the_network_that_has_it() -> None:
    network = with_random_statistics(UNet(1, 2, 8, 3, batch_norm=True))
    image = torch.randn(1, 1, 108, 108)
    other = copy.deepcopy(network)
    with torch.inference_mode():
        before = network(image)
        network.pad()
        assert torch.equal(other(image), before)
        torch.testing.assert_close(network.folded()(image), before, atol=1e-4, rtol=1e-4)
        network.pad(False)
        assert torch.equal(network(image), before)
    assert network.geometry == other.geometry


def test_folding_batch_norm_keeps_the_answer() -> None:
    network = with_random_statistics(UNet(2, 3, 8, 3, batch_norm=True))
    image = torch.randn(1, 2, 108, 124, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network.folded()(image), network(image), atol=1e-4, rtol=1e-4)


def test_folding_leaves_no_batch_norm_and_the_original_untouched() -> None:
    network = with_random_statistics(UNet(1, 2, 8, 3, batch_norm=True))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.folded().modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_pixel_sees_exactly_the_margin_around_it() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 8, 3).double().eval()
    margin = network.geometry.margin
    size = network.geometry.input_size_for(12)
    image = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    # Output pixel 0 is the corner: nothing further than the margin before it may matter.
    network(image)[0, 0, 0, 0].backward()
    seen = image.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert seen.min() >= 0
    assert seen.max() <= 2 * margin + network.geometry.stride - 1


def test_a_shift_by_the_stride_shifts_the_answer() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 8, 3).eval()
    stride = network.geometry.stride
    size = network.geometry.input_size_for(20)
    image = torch.randn(1, 1, size + stride, size)
    with torch.inference_mode():
        first, second = network(image[:, :, :size]), network(image[:, :, stride:])
    torch.testing.assert_close(first[:, :, stride:], second[:, :, :-stride], atol=1e-5, rtol=1e-5)


def test_initial_activations_neither_vanish_nor_explode() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 16, 4).eval()
    with torch.inference_mode():
        features = network.features(torch.randn(1, 1, 220, 220))
    assert 0.1 < features.std() < 10


def test_dropout_acts_only_while_training() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 8, 3, dropout=0.5)
    image = torch.randn(1, 1, 108, 108)
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))
