from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import LossName
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.model import class_logits

LOSSES: tuple[LossName, ...] = get_args(LossName)
SEEDS = st.integers(0, 2**31)
every_loss = pytest.mark.parametrize("loss", LOSSES)
balanced_or_not = pytest.mark.parametrize("balance", [False, True])


def random_batch(seed: int, labelled: float = 0.2, n_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits 2×K×12×11 and labels with about the given share of labelled pixels, two of them at least."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n_classes, 12, 11, generator=random) * 3
    labels = torch.randint(1, n_classes + 1, (2, 12, 11), generator=random)
    labels[torch.rand(labels.shape, generator=random) >= labelled] = 0
    labels[0, 0, 0], labels[1, 3, 4] = 1, 2
    return logits, labels


def loss_by_loops(logits: Tensor, labels: Tensor, loss: LossName, balance: bool,
                  pixel_weights: Tensor | None) -> float:
    """The definition in float64, pixel by pixel."""
    pixels: list[tuple[NDArray[np.float64], int, float]] = []
    for b, y, x in np.argwhere(labels.numpy() > 0):
        z = logits[b, :, y, x].double().numpy()
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        pixels.append((p, int(labels[b, y, x]) - 1, 1.0 if pixel_weights is None else float(pixel_weights[b, y, x])))
    classes = sorted({k for _, k, _ in pixels})
    totals = {k: sum(w for _, other, w in pixels if other == k) for k in classes}
    pixels = [(p, k, w / totals[k] if balance else w) for p, k, w in pixels]
    weight = sum(w for _, _, w in pixels)

    def index(k: int, alpha: float, beta: float) -> float:
        tp = sum(w * p[k] for p, true, w in pixels if true == k)
        fp = sum(w * p[k] for p, true, w in pixels if true != k)
        fn = sum(w * (1 - p[k]) for p, true, w in pixels if true == k)
        return tp / (tp + alpha * fp + beta * fn)

    ce = sum(-w * math.log(p[k]) for p, k, w in pixels) / weight
    focal = sum(-w * (1 - p[k])**2 * math.log(p[k]) for p, k, w in pixels) / weight
    dice = 1 - sum(index(k, 0.5, 0.5) for k in classes) / len(classes)
    tversky = 1 - sum(index(k, 0.3, 0.7) for k in classes) / len(classes)
    return {"cross_entropy": ce, "dice": dice, "cross_entropy_dice": ce + dice, "focal": focal,
            "tversky": tversky}[loss]


@every_loss
@balanced_or_not
@pytest.mark.parametrize("weighted", [False, True])
@given(seed=SEEDS, labelled=st.floats(0.02, 1), n_classes=st.integers(2, 5))
@settings(max_examples=8, deadline=None)
def test_each_loss_is_its_definition(loss: LossName, balance: bool, weighted: bool, seed: int, labelled: float,
                                     n_classes: int) -> None:
    logits, labels = random_batch(seed, labelled, n_classes)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) + 0.01 if weighted else None
    expected = loss_by_loops(logits, labels, loss, balance, weights)
    assert float(segmentation_loss(logits, labels, loss, balance, weights)) == pytest.approx(expected, abs=1e-5)


def test_balanced_cross_entropy_is_torchs_with_inverse_class_frequencies() -> None:
    logits, labels = random_batch(0, 0.5)
    counts = torch.bincount(labels.ravel(), minlength=4)[1:]
    expected = functional.cross_entropy(logits, labels - 1, weight=1 / counts, ignore_index=-1)
    torch.testing.assert_close(segmentation_loss(logits, labels, "cross_entropy", True), expected)


def test_a_sigmoids_cross_entropy_is_the_binary_one() -> None:
    output = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) * 4
    labels = torch.randint(0, 3, (2, 9, 9), generator=torch.Generator().manual_seed(1))
    labelled = labels > 0
    expected = functional.binary_cross_entropy_with_logits(output[:, 0][labelled], (labels[labelled] == 2).float())
    torch.testing.assert_close(segmentation_loss(class_logits(output), labels, "cross_entropy", False), expected)


@every_loss
@balanced_or_not
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_unlabelled_pixels_get_exactly_zero_gradient(loss: LossName, balance: bool, seed: int) -> None:
    logits, labels = random_batch(seed)
    logits.requires_grad_()
    segmentation_loss(logits, labels, loss, balance).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    unlabelled = (labels == 0)[:, None].expand_as(logits)
    assert bool((logits.grad[unlabelled] == 0).all())
    assert bool((logits.grad.abs().sum(dim=1)[labels > 0] > 0).any())


@every_loss
@balanced_or_not
@pytest.mark.parametrize("rubbish", [1e4, -1e4, math.inf, -math.inf, math.nan])
def test_nothing_at_unlabelled_pixels_reaches_the_loss_or_a_gradient(loss: LossName, balance: bool,
                                                                     rubbish: float) -> None:
    logits, labels = random_batch(4)
    spoilt = torch.where((labels == 0)[:, None], torch.tensor(rubbish), logits)
    results = []
    for values in (logits, spoilt):
        values = values.clone().requires_grad_()
        result = segmentation_loss(values, labels, loss, balance)
        result.backward()  # type: ignore[no-untyped-call]
        results.append((result.detach(), values.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] is not None
    assert results[1][1] is not None
    assert torch.equal(results[0][1], results[1][1])


@every_loss
@balanced_or_not
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_without_labels_loss_and_gradient_are_zero(loss: LossName, balance: bool, value: float) -> None:
    logits = torch.full((2, 3, 5, 5), value, requires_grad=True)
    result = segmentation_loss(logits, torch.zeros(2, 5, 5, dtype=torch.int64), loss, balance)
    result.backward()  # type: ignore[no-untyped-call]
    assert float(result.detach()) == 0
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())


def perfect(labels: Tensor, everywhere: Tensor, n_classes: int = 3, certainty: float = 12.0) -> Tensor:
    """Logits that say ``labels`` where there are some, and ``everywhere`` elsewhere."""
    answer = torch.where(labels > 0, labels, everywhere) - 1
    return certainty * functional.one_hot(answer, n_classes).permute(0, 3, 1, 2).float()


@every_loss
@balanced_or_not
def test_at_one_percent_labels_right_is_near_zero_and_wrong_is_far_from_it(loss: LossName, balance: bool) -> None:
    """Masking by multiplying logits with 0, as some tools do, makes these two nearly equal."""
    random = torch.Generator().manual_seed(0)
    everywhere = torch.randint(1, 4, (2, 100, 100), generator=random)
    labels = torch.where(torch.rand(everywhere.shape, generator=random) < 0.01, everywhere, 0)
    right = float(segmentation_loss(perfect(labels, everywhere), labels, loss, balance))
    shifted = torch.where(labels > 0, labels % 3 + 1, 0)
    wrong = float(segmentation_loss(perfect(shifted, everywhere), labels, loss, balance))
    assert right < 0.01
    assert wrong > 0.9


@every_loss
@balanced_or_not
@given(seed=SEEDS, times=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_more_unlabelled_pixels_change_nothing(loss: LossName, balance: bool, seed: int, times: int) -> None:
    logits, labels = random_batch(seed)
    random = torch.Generator().manual_seed(seed)
    more_logits = torch.cat([logits, *[9 * torch.randn(logits.shape, generator=random) for _ in range(times)]], dim=2)
    more_labels = torch.cat([labels, *[torch.zeros_like(labels) for _ in range(times)]], dim=1)
    first = segmentation_loss(logits, labels, loss, balance)
    torch.testing.assert_close(segmentation_loss(more_logits, more_labels, loss, balance), first, rtol=1e-6, atol=1e-7)


@every_loss
@balanced_or_not
def test_painting_everything_twice_changes_nothing(loss: LossName, balance: bool) -> None:
    logits, labels = random_batch(7)
    torch.testing.assert_close(
        segmentation_loss(torch.cat([logits, logits]), torch.cat([labels, labels]), loss, balance),
        segmentation_loss(logits, labels, loss, balance))


@every_loss
def test_balance_makes_up_for_painting_one_class_more(loss: LossName) -> None:
    """The same evidence for class 2, painted five times over, weighs no more."""
    logits, labels = random_batch(3, 1.0, 2)
    only_second = torch.where(labels == 2, labels, 0)
    more_logits, more_labels = torch.cat([logits] * 5), torch.cat([labels, *[only_second] * 4])
    once, more = (segmentation_loss(z, y, loss, True) for z, y in ((logits, labels), (more_logits, more_labels)))
    torch.testing.assert_close(more, once)
    assert float(segmentation_loss(more_logits, more_labels, loss, False)) != pytest.approx(
        float(segmentation_loss(logits, labels, loss, False)), rel=1e-3)


@every_loss
@balanced_or_not
def test_the_size_of_all_weights_together_does_not_matter(loss: LossName, balance: bool) -> None:
    logits, labels = random_batch(5)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.testing.assert_close(segmentation_loss(logits, labels, loss, balance, weights),
                               segmentation_loss(logits, labels, loss, balance, 50 * weights))


@every_loss
@balanced_or_not
def test_weight_zero_is_as_good_as_unlabelled(loss: LossName, balance: bool) -> None:
    logits, labels = random_batch(6, 0.6)
    weights = (torch.arange(labels.numel()).reshape(labels.shape) % 3 > 0).float()
    kept = torch.where(weights > 0, labels, 0)
    assert torch.equal(segmentation_loss(logits, labels, loss, balance, weights),
                       segmentation_loss(logits, kept, loss, balance))
    assert float(segmentation_loss(logits, labels, loss, balance, torch.zeros(labels.shape))) == 0


@every_loss
@balanced_or_not
def test_one_class_alone_can_be_learnt_from(loss: LossName, balance: bool) -> None:
    _, labels = random_batch(8)
    only_first = torch.where(labels == 1, labels, 0)
    right, wrong = (float(segmentation_loss(perfect(labels * 0 + k, only_first), only_first, loss, balance))
                    for k in (1, 2))
    assert right < 0.01 < wrong


@every_loss
def test_certain_and_wrong_gives_a_finite_gradient(loss: LossName) -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    labels = torch.full((1, 4, 4), 2)
    result = segmentation_loss(logits, labels, loss, True)
    result.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(float(result.detach()))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@every_loss
def test_half_precision_logits_are_summed_in_float32(loss: LossName) -> None:
    logits, labels = random_batch(9, 0.9)
    result = segmentation_loss(logits.bfloat16(), labels, loss, True)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, segmentation_loss(logits.bfloat16().float(), labels, loss, True))
