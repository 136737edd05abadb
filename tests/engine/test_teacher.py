"""The base as a teacher of unlabelled pixels."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_cellbrush.config import DEFAULT_CLASSES, ClassDefinition, NetworkConfig, TrainingConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.losses import segmentation_loss
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.teacher import Teacher, agreement, teacher_for

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
BACKGROUND, CELL, BOUNDARY = DEFAULT_CLASSES


@pytest.fixture
def base() -> Model:
    card = ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=1, any_channels=True, n_steps=1,
                     network=NetworkConfig(depth=3, base_filters=8))
    return new_model(card, 0)


@pytest.fixture
def images() -> Tensor:
    return torch.rand((2, 1, 64, 64), generator=torch.Generator().manual_seed(0))


def logits_of_learner(model: Model, images: Tensor) -> Tensor:
    """What a network with the model's weights says of every pixel of patches."""
    network = copy.deepcopy(model.network)
    network.pad()
    with torch.no_grad():
        logits: Tensor = network(images)
    return logits


def teacher(base: Model, classes: tuple[ClassDefinition, ...] = DEFAULT_CLASSES, device: Device = CPU) -> Teacher:
    found = teacher_for(base, 1, classes, TrainingConfig(base_worth_strokes=2), device)
    assert found is not None
    found.trust(1.0, 1.0)
    return found


@pytest.mark.parametrize(("half", "tolerance"), [(None, 1e-5), (torch.bfloat16, 2e-3)])
def test_who_says_what_the_base_says_loses_nothing(base: Model, images: Tensor, half: torch.dtype | None,
                                                   tolerance: float) -> None:
    asked = teacher(base, device=replace(CPU, half=half))
    logits = logits_of_learner(base, images)
    labels = torch.zeros(logits[:, 0].shape, dtype=torch.long)
    assert float(asked.loss(asked.answer(images), logits, labels)) == pytest.approx(0, abs=tolerance)
    assert float(asked.loss(asked.answer(images), 3 * logits, labels)) > 10 * tolerance


def test_only_unlabelled_pixels_are_taught(base: Model, images: Tensor) -> None:
    asked = teacher(base)
    answer = asked.answer(images)
    labels = torch.zeros(answer[:, 0].shape, dtype=torch.long)
    labels[:, :4] = 2
    logits = torch.zeros_like(answer, requires_grad=True)
    asked.loss(answer, logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[:, :, :4].any()
    assert (logits.grad[:, :, 4:].abs().sum(dim=1) > 0).all()
    assert float(asked.loss(answer, logits.detach(), torch.ones_like(labels))) == 0


def test_a_base_counts_by_its_agreement_and_less_beside_many_strokes(base: Model, images: Tensor) -> None:
    asked = teacher(base)
    answer = asked.answer(images)
    labels = torch.zeros(answer[:, 0].shape, dtype=torch.long)

    def loss(score: float, strokes_per_class: float) -> float:
        asked.trust(score, strokes_per_class)
        return float(asked.loss(answer, torch.zeros_like(answer), labels))

    assert loss(0.9, 4) == pytest.approx(loss(1.0, 4) * 0.9**8)
    assert loss(0.6, 4) < loss(1.0, 4) / 50
    assert loss(1.0, 20) == pytest.approx(loss(1.0, 5) / 4)
    assert loss(0.0, 4) == 0 < loss(1.0, 4)
    asked.trust(0.0, 4)
    assert not asked.is_heard


def test_a_base_is_heard_whatever_strokes_say_that_lie_only_on_its_errors(base: Model, images: Tensor) -> None:
    def loss(score: float, only_errors_painted: bool) -> float:
        config = TrainingConfig(only_errors_painted=only_errors_painted)
        asked = teacher_for(base, 1, DEFAULT_CLASSES, config, CPU)
        assert asked is not None
        asked.trust(score, 5)
        answer = asked.answer(images)
        return float(asked.loss(answer, torch.zeros_like(answer), torch.zeros(answer[:, 0].shape, dtype=torch.long)))

    assert loss(0.05, only_errors_painted=False) < 1e-6
    assert loss(0.05, only_errors_painted=True) == pytest.approx(loss(0.9, only_errors_painted=False))
    assert loss(1.0, only_errors_painted=True) == loss(1.0, only_errors_painted=False)


def test_a_base_with_other_channels_answers_as_for_the_image(base: Model, images: Tensor) -> None:
    three = teacher_for(base, 3, DEFAULT_CLASSES, TrainingConfig(), CPU)
    assert three is not None
    torch.testing.assert_close(three.answer(images.repeat(1, 3, 1, 1)), teacher(base).answer(images), rtol=1e-3,
                               atol=1e-3)


def test_classes_in_another_order_and_without_the_boundary_mean_the_same(base: Model, images: Tensor) -> None:
    said = teacher(base).answer(images).exp()
    swapped = teacher(base, (BOUNDARY, BACKGROUND, CELL)).answer(images).exp()
    torch.testing.assert_close(swapped, said[:, [2, 0, 1]])
    two = teacher(base, (BACKGROUND, CELL)).answer(images).exp()
    torch.testing.assert_close(two, torch.stack([said[:, 0], said[:, 1] + said[:, 2]], dim=1))


def test_a_sigmoid_can_teach_in_either_order(images: Tensor) -> None:
    card = ModelCard(name="tiny", classes=(BACKGROUND, CELL), in_channels=1, n_steps=1,
                     network=NetworkConfig(depth=3, base_filters=8, activation="sigmoid"))
    model = new_model(card, 0)
    said, swapped = (teacher(model, classes).answer(images) for classes in ((BACKGROUND, CELL), (CELL, BACKGROUND)))
    torch.testing.assert_close(swapped, said.flip(1))


def test_the_loss_of_a_step_leaves_out_what_is_said_of_unlabelled_pixels(base: Model, images: Tensor) -> None:
    other = new_model(base.card, seed=1)
    labels = torch.zeros((2, *images.shape[-2:]), dtype=torch.long)
    labels[:, 0], labels[:, 1] = 1, 2

    def step(listened: Teacher | None) -> tuple[float, Tensor]:
        learner = Learner(other, TrainingConfig(class_balance=False), CPU, listened)
        return learner.step(images, labels), learner.network.head.weight

    alone, taught = step(None), step(teacher(base))
    assert alone[0] == taught[0]
    assert not torch.equal(alone[1], taught[1])


def test_balanced_strokes_do_not_make_rare_classes_frequent(base: Model, images: Tensor) -> None:
    """Of pixels that say nothing, what minimises the balanced loss is what the base says of frequencies."""
    asked = teacher(base)
    answer = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    answer = (answer + torch.tensor([2.0, 0.5, -1.0])[:, None, None]).log_softmax(dim=1)
    frequencies = answer.exp().mean(dim=(0, 2, 3))
    labels = torch.zeros((2, 64, 64), dtype=torch.long)
    labels[0, 0], labels[0, 1, :32], labels[1, 2, :16] = 1, 2, 3

    def learnt(score: float) -> Tensor:
        asked.trust(score, 1.0)
        logits = torch.zeros((1, 3, 1, 1), requires_grad=True)
        optimiser = torch.optim.LBFGS([logits], lr=0.5, max_iter=100)

        def loss() -> Tensor:
            optimiser.zero_grad()
            said = asked.as_if_equally_frequent(answer, logits.expand(2, 3, 64, 64), labels)
            found = segmentation_loss(said, labels, "cross_entropy", True)
            found.backward()  # type: ignore[no-untyped-call]
            return found

        optimiser.step(loss)
        return logits.detach().softmax(dim=1).flatten()

    torch.testing.assert_close(learnt(1.0), frequencies, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(learnt(0.0), torch.full((3,), 1 / 3), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(learnt(0.5), (frequencies + 1 / 3) / 2, atol=1e-3, rtol=1e-3)


def test_a_class_that_nobody_painted_is_left_as_it_was(base: Model, images: Tensor) -> None:
    """It may be rarest, and would otherwise be pushed down most at every stroke of another."""
    asked = teacher(base)
    answer = torch.tensor([0.7, 0.25, 0.05]).log()[None, :, None, None].expand(1, 3, 64, 64)
    labels = torch.zeros((1, 64, 64), dtype=torch.long)
    labels[:, 0], labels[:, 1] = 1, 2
    said = asked.as_if_equally_frequent(answer, answer, labels).softmax(dim=1)[0, :, 0, 0]
    # What the base says is already right, so cell is as likely as background beside strokes of both.
    torch.testing.assert_close(said, torch.tensor([0.475, 0.475, 0.05]))
    untouched = asked.as_if_equally_frequent(answer, answer, torch.zeros_like(labels))
    assert torch.equal(untouched, answer)


def test_a_class_that_the_base_never_sees_can_be_learnt(base: Model) -> None:
    asked = teacher(base)
    answer = torch.tensor([1 - 2e-6, 1e-6, 1e-6]).log()[None, :, None, None].expand(1, 3, 64, 64)
    labels = torch.zeros((1, 64, 64), dtype=torch.long)
    labels[:, 0], labels[:, 1] = 1, 2
    logits = answer.clone().requires_grad_()
    said = asked.as_if_equally_frequent(answer, logits, labels)
    segmentation_loss(said, labels, "cross_entropy", True).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    # Of the strokes' pixels, each weighs 1 of 128.
    assert float(logits.grad[0, 1, 1].mean()) < -0.9 / 128


def test_balanced_strokes_leave_background_as_frequent_as_the_base_says(base: Model, images: Tensor) -> None:
    labels = torch.zeros((2, *images.shape[-2:]), dtype=torch.long)
    labels[:, 0], labels[:, 8], labels[:, 16] = 1, 2, 3
    biased = new_model(base.card, 0)
    with torch.no_grad():
        biased.network.head.bias += torch.tensor([3.0, 0.0, 0.0])
    asked = teacher(biased)

    def background_after(class_balance: bool) -> float:
        learner = Learner(biased, TrainingConfig(class_balance=class_balance, warmup_steps=0), CPU, asked)
        for _ in range(20):
            learner.step(images, labels)
        return float(logits_of_learner(Model(learner.network, biased.card), images).softmax(dim=1)[:, 0].mean())

    assert background_after(class_balance=True) > background_after(class_balance=False) + 0.01


def test_thin_lines_have_no_say_in_what_is_meant() -> None:
    # Half of the boundary is missed, and cells are said to be rim at their edge.
    meant_alike = np.array([[90, 0, 0], [0, 80, 20], [50, 0, 50]])
    assert agreement(meant_alike, DEFAULT_CLASSES) == pytest.approx((1.0 + 0.8) / 2)
    # As good a score of all three classes, but cells of which only the nuclei are found.
    meant_otherwise = np.array([[100, 0, 0], [60, 40, 0], [0, 0, 100]])
    assert agreement(meant_otherwise, DEFAULT_CLASSES) == pytest.approx((100 / 160 + 0.4) / 2)


def test_only_painted_classes_are_asked_about() -> None:
    # What is called boundary, or any class that nobody painted, is not what was painted.
    debris = CELL.model_copy(update={"name": "debris"})
    counts = np.array([[90, 0, 5, 5], [40, 60, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert agreement(counts, (BACKGROUND, CELL, BOUNDARY, debris)) == pytest.approx((90 / 140 + 0.6) / 2)


def test_who_calls_everything_by_one_name_agrees_with_nobody() -> None:
    # Cells and their boundaries are painted, and all is said to be cell.
    assert agreement(np.array([[0, 0, 0], [0, 50, 0], [0, 50, 0]]), DEFAULT_CLASSES) == pytest.approx(0.25)
    assert agreement(np.zeros((0, 0), np.int64), DEFAULT_CLASSES) == 0


def test_there_is_no_teacher_for_new_classes_for_random_weights_and_where_it_is_switched_off(base: Model) -> None:
    config = TrainingConfig()

    def exists(model: Model, classes: tuple[ClassDefinition, ...], config: TrainingConfig) -> bool:
        return teacher_for(model, 1, classes, config, CPU) is not None

    assert exists(base, DEFAULT_CLASSES, config)
    assert not exists(base, DEFAULT_CLASSES, config.replace(base_worth_strokes=0))
    assert not exists(base, (*DEFAULT_CLASSES, CELL.model_copy(update={"name": "debris"})), config)
    assert not exists(base, (CELL, BOUNDARY), config)
    assert not exists(Model(base.network, base.card.replace(n_steps=0)), DEFAULT_CLASSES, config)
