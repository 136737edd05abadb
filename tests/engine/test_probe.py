"""The fitted first head: it must know the strokes before anything else has learnt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.model import class_logits
from napari_cellbrush.engine.probe import fit_head
from napari_cellbrush.engine.unet import UNet

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
SIZE = 140
#: No class that the base knows.
NONE: frozenset[int] = frozenset()


def network(n_outputs: int) -> UNet:
    torch.manual_seed(0)
    return UNet(1, n_outputs, base_filters=32, depth=2, batch_norm=True).eval()


def halves(net: UNet) -> tuple[Tensor, Tensor, None]:
    """Dark and bright halves, with a stroke in each: classes 1 and 2 of three."""
    size = net.geometry.input_size_at_least(SIZE)
    image = torch.full((1, 1, size, size), -0.5)
    image[..., size // 2 :] = 1.0
    out = net.geometry.output_size(size)
    labels = torch.zeros(1, out, out, dtype=torch.long)
    labels[:, 10:20, 5 : out // 2 - 20] = 2
    labels[:, 10:20, out // 2 + 20 : -5] = 3
    return image + 0.05 * torch.randn(image.shape), labels, None


def batches(net: UNet) -> Iterator[tuple[Tensor, Tensor, None]]:
    return (halves(net) for _ in range(2))


def test_strokes_are_known_without_a_step_and_unpainted_new_classes_are_never_answered() -> None:
    net = network(3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit_head(net, batches(net), 3, NONE, CPU)
    image, labels, _ = halves(net)
    painted = labels > 0
    with torch.no_grad():
        said = net(image).argmax(1) + 1
    assert (said[painted] == labels[painted]).float().mean() > 0.98
    after = net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("known", "fitted"), [({1}, True), ({1, 2}, True), ({0}, False), ({0, 1, 2}, False)])
def test_what_the_base_knows_of_an_unpainted_class_is_kept_whole(known: set[int], fitted: bool) -> None:
    """Fitted rows and old ones are on different scales."""
    net = network(3)
    before = net.head.weight.clone()
    fit_head(net, batches(net), 3, frozenset(known), CPU)
    assert torch.equal(net.head.weight, before) != fitted


def test_a_sigmoid_is_fitted_too() -> None:
    net = network(1)
    fit_head(net, ((image, (labels - 1).clamp(0), weights) for image, labels, weights in batches(net)), 2, NONE, CPU)
    image, labels, _ = halves(net)
    with torch.no_grad():
        said = class_logits(net(image)).argmax(1) + 2
    assert (said[labels > 0] == labels[labels > 0]).float().mean() > 0.98


def test_one_class_alone_fits_nothing() -> None:
    net = network(3)
    before = net.head.weight.clone()
    image, labels, _ = halves(net)
    fit_head(net, [(image, torch.where(labels == 2, 2, 0), None)], 3, NONE, CPU)
    assert torch.equal(net.head.weight, before)


@pytest.mark.parametrize("n_pixels", [1, 3])
def test_a_few_pixels_are_enough(n_pixels: int) -> None:
    net = network(2)
    image, labels, _ = halves(net)
    few = torch.zeros_like(labels)
    few[:, 10, 10 : 10 + n_pixels], few[:, 10, -10 - n_pixels : -10] = 1, 2
    fit_head(net, [(image, few, None)], 2, NONE, CPU)
    with torch.no_grad():
        said = net(image).argmax(1) + 1
    assert torch.equal(said[few > 0], few[few > 0])
