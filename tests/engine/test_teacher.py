"""The base as a teacher of unlabelled pixels."""

from __future__ import annotations

import pytest
import torch

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig, TrainingConfig, classes_from_names
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.model import Model, ModelCard, new_model, with_classes
from napari_cellbrush.engine.teacher import Teacher, rightness, teacher_for

@pytest.fixture
def base() -> Model:
    card = ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=1, any_channels=True, n_steps=1,
                     network=NetworkConfig(depth=3, base_filters=8))
    return new_model(card, 0)


@pytest.fixture
def teacher(base: Model) -> Teacher:
    return Teacher(base, 2.0, choose_device())


@pytest.fixture
def patch(base: Model) -> torch.Tensor:
    size = base.network.geometry.input_size_at_least(120)
    return torch.rand((2, 1, size, size), generator=torch.Generator().manual_seed(0))


def labels_like(logits: torch.Tensor) -> torch.Tensor:
    """What the network itself says, on the upper rows only."""
    labels = logits.argmax(dim=1) + 1
    labels[:, 4:] = 0
    return labels


def test_rightness_is_one_for_certainty_and_zero_for_chance_for_errors_and_for_nothing() -> None:
    labels = torch.tensor([[[1, 2, 0]]] * 3 + [[[0, 0, 0]]])
    certain = torch.eye(3)[None, :, :2]
    probabilities = torch.zeros(4, 3, 1, 3)
    probabilities[0, :, 0, :2] = certain[0]
    probabilities[1] = 1 / 3
    probabilities[2, 2] = 1
    probabilities[3, 0] = 1
    torch.testing.assert_close(rightness(probabilities, labels), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_in_rightness_painted_classes_count_alike() -> None:
    labels = torch.ones(1, 1, 100, dtype=torch.long)
    labels[0, 0, 0] = 2
    always_first = torch.zeros(1, 2, 1, 100)
    always_first[:, 0] = 1
    assert float(rightness(always_first, labels)) == pytest.approx(0)


def test_who_says_what_the_base_says_loses_nothing(base: Model, teacher: Teacher, patch: torch.Tensor) -> None:
    with torch.no_grad():
        logits = base.network(patch)
    assert float(teacher.loss(patch, logits, labels_like(logits))) == pytest.approx(0, abs=1e-5)


def test_only_unlabelled_pixels_of_patches_where_the_base_is_right_are_taught(base: Model, teacher: Teacher,
                                                                             patch: torch.Tensor) -> None:
    with torch.no_grad():
        said = base.network(patch)
    labels = labels_like(said)
    labels[1, :4] = said[1, :, :4].argmin(dim=0) + 1
    logits = torch.zeros_like(said, requires_grad=True)
    teacher.loss(patch, logits, labels).backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, :4].any()
    assert (logits.grad[0, :, 4:].abs().sum(dim=0) > 0).all()
    assert not logits.grad[1].any()


def test_nothing_is_lost_where_everything_is_labelled(base: Model, teacher: Teacher, patch: torch.Tensor) -> None:
    with torch.no_grad():
        said = base.network(patch)
    assert float(teacher.loss(patch, torch.randn_like(said), said.argmax(dim=1) + 1)) == 0


def test_there_is_no_teacher_for_new_classes_for_random_weights_and_where_it_is_switched_off(base: Model) -> None:
    device, config = choose_device(), TrainingConfig()
    assert teacher_for(base, base, base.card.classes, config, device)
    assert not teacher_for(base, base, base.card.classes, config.replace(base_weight=0), device)
    new = classes_from_names(["background", "myelin", "axon"])
    assert not teacher_for(base, with_classes(base, new, 0), new, config, device)
    random = Model(base.network, base.card.replace(n_steps=0))
    assert not teacher_for(random, random, base.card.classes, config, device)
