from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig, TrainingConfig, classes_from_names
from napari_cellbrush.engine import diameter, held_out, training
from napari_cellbrush.engine.annotation import Annotation
from napari_cellbrush.engine.device import Device, choose_device
from napari_cellbrush.engine.diameter import Measurement, Painted
from napari_cellbrush.engine.inference import segment_array, segment_planes
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.patches import Patches
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.teacher import Teacher
from napari_cellbrush.engine.training import TrainingResult, scratch_model, train
from napari_cellbrush.errors import AnnotationError, ImageError, ModelError, OutOfMemory, TrainingDiverged
from napari_cellbrush.events import (
    BaseScoring,
    Preparing,
    StopToken,
    TrainingEvent,
    TrainingNote,
    TrainingStarted,
    TrainingStep,
    ValidationScored,
)

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
TWO = classes_from_names(["background", "cell"])
TINY = TrainingConfig(max_steps=4, batch_size=2, patch_px=96, validate_every=2,
                      network=NetworkConfig(depth=3, base_filters=8))


def blobs(size: int = 160, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bright discs on a dark, noisy ground, and where they are."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    inside = np.zeros((size, size), bool)
    for row, column in random.integers(10, size - 10, size=(12, 2)):
        inside |= (rows - row) ** 2 + (columns - column) ** 2 < 81
    return (inside + random.normal(0, 0.2, inside.shape)).astype(np.float32), inside


def strokes(inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Short dashes over the whole image, labelled by what lies under them."""
    labels = np.zeros(inside.shape, np.uint8)
    labels[8::16, :] = np.where(inside[8::16, :], 2, 1)
    labels[:, ::12] = 0
    return labels


def run(base: Model, image: Any, labels: Any, config: TrainingConfig = TINY,
        **options: Any) -> tuple[list[TrainingEvent], TrainingResult]:
    planes = [Planes(image, "YX")] if not isinstance(image, list) else [Planes(i, "YX") for i in image]
    generator = train(base, planes, labels if isinstance(image, list) else [labels], config,
                      **{"classes": TWO, "device": CPU, **options})
    events: list[TrainingEvent] = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


@pytest.fixture
def scratch() -> Model:
    return scratch_model(TWO, 1, TINY)


def test_a_base_that_agrees_with_few_strokes_keeps_its_answers_elsewhere(scratch: Model) -> None:
    image, inside = blobs()
    learning = TINY.replace(max_steps=150, learning_rate=3e-3, patience=0, held_out_fraction=0)
    _, trained = run(scratch, image, strokes(inside), learning)
    before = segment_array(trained.model, Planes(image, "YX"), "probabilities")
    few = strokes(inside)
    few[40:] = 0

    def moved(base_worth_strokes: float) -> float:
        _, tuned = run(trained.model, image, few, TINY.replace(max_steps=20, learning_rate=3e-3, held_out_fraction=0,
                                                               ema_decay=0, base_worth_strokes=base_worth_strokes))
        after = segment_array(tuned.model, Planes(image, "YX"), "probabilities")
        return float(np.abs(after - before)[:, few == 0].mean())

    assert moved(TrainingConfig().base_worth_strokes) < 0.5 * moved(0.0)


def test_strokes_that_contradict_the_base_are_learnt(scratch: Model) -> None:
    image, inside = blobs()
    _, trained = run(scratch, image, strokes(inside), TINY.replace(max_steps=60, learning_rate=3e-3, patience=0,
                                                                   held_out_fraction=0))
    rows, columns = np.mgrid[:160, :160]
    # What was cell is background now, and each stroke lies by itself.
    apart = np.where((rows // 20 + columns // 20) % 2 == 0, strokes(~inside), 0)
    _, tuned = run(trained.model, image, apart, TINY.replace(max_steps=60, learning_rate=3e-3, held_out_fraction=0))
    found = segment_array(tuned.model, Planes(image, "YX")) == 2
    assert (found == ~inside).mean() > 0.9


def test_held_out_strokes_neither_tell_the_diameter_nor_how_far_the_base_is_trusted(
    scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Painted] = []
    trusted: list[float] = []
    monkeypatch.setattr(training, "object_diameters", lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(Teacher, "trust", lambda self, score, strokes_per_class: trusted.append(strokes_per_class))
    image, inside = blobs()
    base = Model(scratch.network, scratch.card.replace(n_steps=1))
    events, _ = run(base, image, strokes(inside))
    started = next(event for event in events if isinstance(event, TrainingStarted))
    assert started.n_held_out_pixels > 0
    (painted,) = asked
    assert (painted.annotation.n_pixels, painted.classes) == (started.n_training_pixels, TWO)
    assert trusted == [painted.annotation.strokes_per_class]


def test_corrections_do_not_say_how_far_the_base_is_trusted(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image, inside = blobs()
    _, trained = run(scratch, image, strokes(inside), TINY.replace(max_steps=150, learning_rate=3e-3, patience=0,
                                                                   held_out_fraction=0))
    trusted: list[float] = []
    monkeypatch.setattr(Teacher, "trust", lambda self, score, strokes_per_class: trusted.append(score))
    right, wrong = strokes(inside), strokes(~inside)
    right[80:], wrong[:80] = 0, 0
    for corrections in (None, [wrong > 0]):
        run(trained.model, image, right + wrong, TINY.replace(max_steps=1, held_out_fraction=0),
            corrections=corrections)
    run(trained.model, image, right, TINY.replace(max_steps=1, held_out_fraction=0))
    of_all, told, of_the_right = trusted
    assert told == pytest.approx(of_the_right, abs=0.02)
    assert of_all < 0.6 < told


def test_few_corrections_do_not_undo_what_the_other_strokes_say(scratch: Model) -> None:
    """The same stroke pattern says the opposite in a corner: told that it corrects, it counts less elsewhere."""
    image, inside = blobs()
    labels = strokes(inside)
    labels[120:] = strokes(~inside)[120:]
    corrections = np.zeros(labels.shape, bool)
    corrections[120:] = True

    def right(**options: Any) -> float:
        _, tuned = run(scratch, image, labels, TINY.replace(max_steps=80, learning_rate=3e-3, held_out_fraction=0),
                       **options)
        found = segment_array(tuned.model, Planes(image, "YX")) == 2
        return float((found == inside)[:100].mean())

    assert right(corrections=[corrections]) > right() + 0.01


def test_training_learns_what_the_strokes_say(scratch: Model) -> None:
    image, inside = blobs()
    config = TINY.replace(max_steps=100, learning_rate=3e-3, validate_every=25, patience=0)
    events, result = run(scratch, image, strokes(inside), config)
    losses = [event.loss for event in events if isinstance(event, TrainingStep)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert result.score is not None
    assert result.score > 0.7


def test_classes_that_the_base_does_not_know_begin_with_a_fitted_head(scratch: Model) -> None:
    image, inside = blobs()
    config = TINY.replace(max_steps=60, learning_rate=3e-3, patience=0)
    base = run(scratch, image, strokes(inside), config)[1].model
    events, _ = run(base, image, strokes(inside), TINY.replace(max_steps=1),
                    classes=classes_from_names(["sky", "star"]))
    (step,) = (event for event in events if isinstance(event, TrainingStep))
    # A random head begins around log 2, wherever it points.
    assert step.loss < 0.5 * np.log(2)
    events, _ = run(base, image, strokes(inside), TINY.replace(max_steps=1, fit_head=False),
                    classes=classes_from_names(["sky", "star"]))
    assert next(event.loss for event in events if isinstance(event, TrainingStep)) > step.loss


def test_the_same_seed_gives_the_same_weights_bit_for_bit(scratch: Model) -> None:
    image, inside = blobs()
    config = TINY.replace(dropout=0.3)
    first = run(scratch, image, strokes(inside), config)[1].model.weights_hash
    torch.rand(7)  # whatever else draws random numbers must not matter
    assert run(scratch, image, strokes(inside), config)[1].model.weights_hash == first
    assert run(scratch, image, strokes(inside), config.replace(seed=1))[1].model.weights_hash != first


def test_border_weights_make_the_gap_between_two_cells_background(scratch: Model) -> None:
    """The gap is as bright as the cells: there is so little of it that a network may well overlook it."""
    image, labels = np.zeros((160, 160), np.float32), np.ones((160, 160), np.uint8)
    for column in (20, 80, 140):
        for row in range(5, 155):
            labels[row, column - 14 : column + 14] = 2
            labels[row, column - 1 : column + 2] = 1
        image[5:155, column - 14 : column + 14] = 1
    config = TINY.replace(max_steps=40, learning_rate=1e-3, held_out_fraction=0, batch_size=1)
    gap = (image > 0) & (labels == 1)
    share = {}
    for weight in (0.0, 50.0):
        model = run(scratch, image, labels, config.replace(border_weight=weight))[1].model
        share[weight] = segment_array(model, Planes(image, "YX"), "probabilities", device=CPU)[0][gap].mean()
    assert share[50.0] > share[0.0] + 0.1


def test_image_values_under_unlabelled_far_pixels_never_move_a_weight(scratch: Model) -> None:
    """The unlabelled half lies outside every patch's context, so its content cannot matter."""
    image, inside = blobs(512)
    labels = np.zeros(image.shape, np.uint8)
    labels[:60] = strokes(inside)[:60]
    other = image.copy()
    other[420:] = other[420:, ::-1]
    config = TINY.replace(held_out_fraction=0.0)
    first, second = (run(scratch, pixels, labels, config)[1].model.weights_hash for pixels in (image, other))
    assert first == second


def test_the_base_is_never_changed(scratch: Model) -> None:
    before = scratch.weights_hash
    image, inside = blobs()
    run(scratch, image, strokes(inside))
    assert scratch.weights_hash == before


def test_events_come_in_order_and_the_best_score_never_falls(scratch: Model) -> None:
    image, inside = blobs()
    events, result = run(scratch, image, strokes(inside))
    assert isinstance(events[0], TrainingStarted)
    assert [event.step for event in events if isinstance(event, TrainingStep)] == [1, 2, 3, 4]
    scores = [event for event in events if isinstance(event, ValidationScored)]
    assert [event.step for event in scores] == [2, 4]
    assert scores[-1].best_score == max(event.score for event in scores) == result.score


def test_too_few_strokes_are_said_and_no_score_is_invented(scratch: Model) -> None:
    image, _ = blobs()
    labels = np.zeros(image.shape, np.uint8)
    labels[10:12, 10:40], labels[100:102, 10:40] = 1, 2
    events, result = run(scratch, image, labels)
    assert isinstance(events[0], TrainingStarted)
    assert events[0].no_score_reason
    assert events[0].n_training_pixels == int((labels > 0).sum())
    assert result.score is None
    assert not any(isinstance(event, ValidationScored) for event in events)


def test_an_untrained_base_has_no_score_and_a_tuned_one_has(scratch: Model) -> None:
    image, inside = blobs()
    first = run(scratch, image, strokes(inside))[1]
    second = run(first.model, image, strokes(inside))[1]
    assert first.base_score is None
    assert second.base_score == pytest.approx(first.score)


def test_a_worse_model_is_reported_as_not_improved(scratch: Model) -> None:
    image, inside = blobs()
    good = run(scratch, image, strokes(inside),
               TINY.replace(max_steps=60, learning_rate=3e-3, validate_every=20))[1].model
    destructive = TINY.replace(max_steps=3, learning_rate=3e-3, optimiser="sgd", momentum=0.99, ema_decay=0.0,
                               gradient_clip=0.0, warmup_steps=0, validate_every=3, loss="dice")
    wrong = np.where(strokes(inside) > 0, 3 - strokes(inside), 0).astype(np.uint8)
    spoilt = run(good, image, wrong, destructive.replace(max_steps=40))[1].model
    result = run(spoilt, image, wrong, TINY.replace(max_steps=1, learning_rate=1e-5))[1]
    assert result.base_score is not None
    assert result.improved == (result.score is not None and result.score >= result.base_score)
    # And the comparison has both outcomes: relearning the truth from a model taught the opposite improves.
    assert run(spoilt, image, strokes(inside), TINY.replace(max_steps=40, learning_rate=3e-3))[1].improved


@pytest.fixture
def tuned(scratch: Model) -> Model:
    """A trained base, which therefore can be scored."""
    image, inside = blobs()
    return run(scratch, image, strokes(inside), TINY.replace(max_steps=1))[1].model


def test_stopping_ends_after_the_step_at_hand_with_a_model(scratch: Model) -> None:
    image, inside = blobs()
    stop = StopToken()
    generator = train(scratch, [Planes(image, "YX")], [strokes(inside)], TINY.replace(max_steps=1000), classes=TWO,
                      device=CPU, stop=stop)
    next(generator)
    next(generator)
    stop.stop()
    with pytest.raises(StopIteration) as end:
        next(generator)
    result = end.value.value
    assert (result.ended, result.stopped, result.n_steps) == ("stopped", True, 1)
    assert result.score is None
    assert "stopped before its first score" in result.no_score_reason
    assert result.model.card.n_steps == 1


@pytest.mark.parametrize("n_scored", [0, 1, 2, 4])
def test_stopping_is_noticed_between_held_out_tiles(
    tuned: Model, monkeypatch: pytest.MonkeyPatch, n_scored: int
) -> None:
    """The base is scored first, on held-out strokes and on others, then the model at each step: whichever is at hand is
    given up.
    """
    image, inside = blobs(400)
    stop, tiles, scoring = StopToken(), [], []
    score, class_logits = held_out.HeldOut.score, held_out.class_logits

    def counted_score(self: Any, *arguments: Any) -> Any:
        assert self.n_tiles > 1
        tiles.append(0)
        scoring.append(1)
        try:
            return score(self, *arguments)
        finally:
            scoring.clear()

    def stopped_in_the_midst(logits: torch.Tensor) -> torch.Tensor:
        if scoring:
            tiles[-1] += 1
            if len(tiles) == n_scored + 1:
                stop.stop()
        return class_logits(logits)

    monkeypatch.setattr(held_out.HeldOut, "score", counted_score)
    monkeypatch.setattr(held_out, "class_logits", stopped_in_the_midst)
    config = TINY.replace(max_steps=1000, validate_every=1, patience=0)
    events, result = run(tuned, image, strokes(inside), config, stop=stop)
    assert tiles[n_scored] == 1
    assert sum(tiles[n_scored + 1 :]) == 0
    assert (result.ended, result.n_steps) == ("stopped", max(1, n_scored - 1))
    assert sum(isinstance(event, ValidationScored) for event in events) == max(0, n_scored - 2)
    assert (result.score is None) == (n_scored <= 2)
    assert (result.base_score is None) == (n_scored == 0)


def test_that_the_base_is_being_scored_is_said_first(tuned: Model, scratch: Model) -> None:
    image, inside = blobs()
    events, result = run(tuned, image, strokes(inside))
    assert [type(event) for event in events[:2]] == [BaseScoring, TrainingStarted]
    assert isinstance(events[0], BaseScoring)
    assert events[0].n_tiles >= 1
    assert result.base_score is not None
    assert isinstance(run(scratch, image, strokes(inside))[0][0], TrainingStarted)


def test_what_is_prepared_is_said_where_there_is_something_to_do(tuned: Model) -> None:
    image, inside = blobs()
    sized = Model(tuned.network, tuned.card.replace(diameter_px=20.0))

    def prepared(base: Model, config: TrainingConfig = TINY, **options: Any) -> list[str]:
        events, _ = run(base, image, strokes(inside), config.replace(max_steps=1), **options)
        return [event.what for event in events if isinstance(event, Preparing)]

    assert prepared(tuned) == []
    assert prepared(sized) == ["sizes"]
    assert prepared(sized, TINY.replace(diameter_px=20.0)) == []
    assert prepared(sized, classes=classes_from_names(["sky", "star"])) == ["sizes", "head"]


def test_a_teacher_is_asked_about_what_is_learnt_from_too(scratch: Model) -> None:
    image, inside = blobs(320)
    base = Model(scratch.network, scratch.card.replace(n_steps=1))

    def n_scored(base_worth_strokes: float) -> int:
        config = TINY.replace(max_steps=1, base_worth_strokes=base_worth_strokes)
        events, _ = run(base, image, strokes(inside), config)
        return next(event.n_tiles for event in events if isinstance(event, BaseScoring))

    assert n_scored(100.0) > n_scored(0.0) > 0


def test_all_steps_end_the_run(scratch: Model) -> None:
    image, inside = blobs()
    result = run(scratch, image, strokes(inside))[1]
    assert (result.ended, result.stopped, result.n_steps) == ("steps", False, TINY.max_steps)


def test_the_time_limit_ends_the_run(scratch: Model) -> None:
    image, inside = blobs()
    result = run(scratch, image, strokes(inside), TINY.replace(max_steps=100_000, max_minutes=0.01))[1]
    assert 0 < result.n_steps < 100_000
    assert result.ended == "time"


def test_preparation_uses_up_the_time_but_leaves_one_step(tuned: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    score = held_out.HeldOut.score

    def slow_score(self: Any, *arguments: Any) -> Any:
        clock[0] += 59 if clock[0] else 61
        return score(self, *arguments)

    monkeypatch.setattr(held_out.HeldOut, "score", slow_score)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    image, inside = blobs()
    result = run(tuned, image, strokes(inside), TINY.replace(max_minutes=1.0))[1]
    assert (result.n_steps, result.ended) == (1, "time")
    assert result.score is not None


def test_preparation_does_not_count_as_time_per_step(tuned: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    step, score = Learner.step, held_out.HeldOut.score

    def taking(seconds: float, work: Any) -> Any:
        def slow(*arguments: Any) -> Any:
            clock[0] += seconds
            return work(*arguments)

        return slow

    monkeypatch.setattr(held_out.HeldOut, "score", taking(30, score))
    monkeypatch.setattr(Learner, "step", taking(2, step))
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    image, inside = blobs()
    events, _ = run(tuned, image, strokes(inside), TINY.replace(max_minutes=10, validate_every=50))
    steps = [event for event in events if isinstance(event, TrainingStep)]
    # Twice: the base on held-out strokes and on those that are learnt from.
    assert [(event.seconds_elapsed, event.seconds_left) for event in steps] == [(62, 6), (64, 4), (66, 2), (68, 0)]


def test_no_better_score_for_long_ends_the_run(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image, inside = blobs()
    monkeypatch.setattr(held_out.HeldOut, "score", lambda *_: held_out.HeldOutScore(0.5, 1.0))
    result = run(scratch, image, strokes(inside), TINY.replace(max_steps=50, validate_every=1, patience=3))[1]
    assert (result.n_steps, result.ended) == (4, "no_progress")


def test_several_images_train_one_model(scratch: Model) -> None:
    images = [blobs(seed=seed)[0] for seed in (0, 1)]
    labels = [strokes(blobs(seed=seed)[1]) for seed in (0, 1)]
    result = run(scratch, images, labels)[1]
    assert sum(result.model.card.labelled_pixels.values()) == sum(int((part > 0).sum()) for part in labels)


def test_images_of_different_channel_counts_are_refused(scratch: Model) -> None:
    image, inside = blobs()
    generator = train(scratch, [Planes(image, "YX", "grey"), Planes(np.stack([image] * 3), "CYX", "colour")],
                      [strokes(inside)] * 2, TINY, classes=TWO, device=CPU)
    with pytest.raises(AnnotationError, match=r"grey: 1.*colour: 3"):
        next(generator)


def test_a_model_of_another_channel_count_is_refused(scratch: Model) -> None:
    image, inside = blobs()
    generator = train(scratch, [Planes(np.stack([image] * 3), "CYX")], [strokes(inside)], TINY, device=CPU)
    with pytest.raises(ModelError, match="needs 1"):
        next(generator)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_splits_the_batch_and_goes_on(scratch: Model, monkeypatch: pytest.MonkeyPatch,
                                                    error: Exception) -> None:
    image, inside = blobs()
    sizes = []
    gradients = Learner._gradients

    def short_of_memory(self: Any, images: torch.Tensor, *truth: Any) -> float:
        sizes.append(len(images) // self._n_chunks)
        if sizes[-1] > 1:
            raise error
        return gradients(self, images, *truth)

    monkeypatch.setattr(Learner, "_gradients", short_of_memory)
    result = run(scratch, image, strokes(inside), TINY.replace(batch_size=4))[1]
    assert result.n_steps == TINY.max_steps
    assert sizes[:3] == [4, 2, 1]


def test_not_even_one_patch_in_memory_ends_with_a_remedy(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> float:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Learner, "_gradients", never)
    image, inside = blobs()
    with pytest.raises(OutOfMemory, match="smaller patch size"):
        run(scratch, image, strokes(inside))


def test_other_runtime_errors_are_not_mistaken_for_memory(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Learner, "_gradients", broken)
    image, inside = blobs()
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(scratch, image, strokes(inside))


def test_a_loss_that_is_no_number_ends_with_a_remedy(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "_gradients", lambda *_: float("nan"))
    image, inside = blobs()
    with pytest.raises(TrainingDiverged, match="Lower the learning rate"):
        run(scratch, image, strokes(inside))


HALF = Device(kind="cpu", name="CPU", memory_bytes=None, half=torch.float16, channels_last=False)


def learner_and_batch(device: Device) -> tuple[Learner, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 64, 64, generator=generator)
    learner = Learner(scratch_model(TWO, 1, TINY), TINY, device)
    return learner, images, torch.randint(0, 3, (2, 64, 64), generator=generator)


def test_the_gradients_of_float16_are_those_of_float32() -> None:
    gradients = []
    for device in (CPU, HALF):
        learner, images, labels = learner_and_batch(device)
        learner.step(images, labels)
        gradients.append(torch.cat([p.grad.ravel() for p in learner.network.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.05)


def test_a_scale_too_large_for_float16_skips_the_step_and_is_halved() -> None:
    learner, images, labels = learner_and_batch(HALF)
    learner._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before, rate = [p.clone() for p in learner.network.parameters()], learner.learning_rate
    assert np.isfinite(learner.step(images, labels))
    assert all(torch.equal(p, q) for p, q in zip(learner.network.parameters(), before, strict=True))
    assert (learner._scaler.get_scale(), learner.learning_rate) == (2.0**59, rate)
    learner._scaler = torch.amp.GradScaler("cpu")
    learner.step(images, labels)
    assert not all(torch.equal(p, q) for p, q in zip(learner.network.parameters(), before, strict=True))
    assert learner.learning_rate > rate


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_a_gpu_learns_in_every_precision(scratch: Model, half: torch.dtype | None) -> None:
    device = Device("cuda", "GPU", None, half, channels_last=half is not None)
    image, inside = blobs()
    config = TINY.replace(max_steps=100, learning_rate=3e-3, validate_every=25, patience=0)
    result = run(scratch, image, strokes(inside), config, device=device)[1]
    assert result.score is not None
    assert result.score > 0.7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_with_little_memory_goes_on_with_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = []
    step = Learner.step

    def watched(self: Any, *batch: torch.Tensor) -> float:
        loss = step(self, *batch)
        chunks.append(self._n_chunks)
        return loss

    monkeypatch.setattr(Learner, "step", watched)
    config = TINY.replace(max_steps=2, batch_size=32, patch_px=512, held_out_fraction=0.0,
                          network=NetworkConfig(base_filters=32))
    image, inside = blobs(600)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(6 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        result = run(scratch_model(TWO, 1, config), image, strokes(inside), config, device=choose_device("cuda"))[1]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.n_steps == 2
    assert chunks[-1] > 1


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "cross_entropy_dice", "focal", "tversky"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_loss_trains_with_both_outputs(loss: str, activation: str) -> None:
    image, inside = blobs()
    config = TINY.replace(loss=loss, network=TINY.network.replace(activation=activation), max_steps=2)
    result = run(scratch_model(TWO, 1, config), image, strokes(inside), config)[1]
    assert result.n_steps == 2


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_optimiser_trains_with_and_without_batch_norm(optimiser: str, batch_norm: bool) -> None:
    image, inside = blobs()
    config = TINY.replace(optimiser=optimiser, network=TINY.network.replace(batch_norm=batch_norm), max_steps=2)
    start = scratch_model(TWO, 1, config)
    assert run(start, image, strokes(inside), config)[1].model.weights_hash != start.weights_hash


def test_fine_tuning_keeps_the_batch_norm_statistics_of_the_base(scratch: Model) -> None:
    image, inside = blobs()
    tuned = run(scratch, image, strokes(inside))[1].model
    again = run(tuned, image, strokes(inside))[1].model
    before, after = tuned.network.state_dict(), again.network.state_dict()
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    for name in means:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(scratch.network.state_dict()[name], before[name]) for name in means)


def test_the_card_says_where_the_model_comes_from(scratch: Model) -> None:
    image, inside = blobs()
    result = run(scratch, image, strokes(inside), name="my cells")[1]
    card = result.model.card
    assert (card.name, card.base_name, card.base_hash) == ("my cells", "scratch", scratch.weights_hash)
    assert card.labelled_pixels == {"background": int((strokes(inside) == 1).sum()),
                                    "cell": int((strokes(inside) == 2).sum())}
    assert card.training == TINY
    assert card.score == result.score
    assert {"napari-cellbrush", "torch"} <= card.versions.keys()


def test_three_classes_on_a_two_class_base_give_no_base_score(scratch: Model) -> None:
    image, inside = blobs()
    tuned = run(scratch, image, strokes(inside))[1].model
    labels = strokes(inside)
    labels[:, 100:][labels[:, 100:] == 1] = 3
    result = run(tuned, image, labels, classes=DEFAULT_CLASSES)[1]
    assert result.base_score is None
    assert result.model.n_classes == 3


def test_nothing_of_a_finished_run_stays_in_memory(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    learners: list[weakref.ref[Any]] = []
    original = Learner.__init__

    def remember(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        learners.append(weakref.ref(self))

    monkeypatch.setattr(Learner, "__init__", remember)
    image, inside = blobs()
    result = run(scratch, image, strokes(inside))[1]
    gc.collect()
    assert result.model is not None
    assert [reference() for reference in learners] == [None]


@pytest.mark.parametrize(("diameter", "scale"), [(60.0, 1.2 * 20 / 60), (8.0, 1.2 * 20 / 8)])
def test_a_base_that_knows_one_size_learns_at_that_size_and_remembers(scratch: Model, diameter: float, scale: float
                                                                      ) -> None:
    base = Model(scratch.network, scratch.card.replace(diameter_px=20.0))
    image, inside = blobs()
    events, result = run(base, image, strokes(inside), TINY.replace(diameter_px=diameter))
    started = next(event for event in events if isinstance(event, TrainingStarted))
    assert (started.diameters_px, started.scales) == ((diameter,), (pytest.approx(scale),))
    assert started.n_training_pixels + started.n_held_out_pixels <= np.count_nonzero(strokes(inside))
    assert (result.model.card.diameter_px, result.model.card.image_diameter_px) == (20, diameter)
    again = run(result.model, image, strokes(inside))[0]
    assert next(event for event in again if isinstance(event, TrainingStarted)).diameters_px == (diameter,)


def test_each_image_is_learnt_and_segmented_at_its_own_scale(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discs of 18 px, and the same image enlarged: at one size for the network both say the same."""
    image, inside = blobs(240)
    images = [image, zoom(image, 3, order=1)]
    labels = [strokes(inside), strokes(zoom(inside, 3, order=0))]
    read: list[tuple[int, float, tuple[int, int]]] = []

    def note(reader: type) -> None:
        original = reader.__init__  # type: ignore[misc]

        def noted(self: Any, images: Any, annotation: Annotation, *rest: Any) -> None:
            read.extend((plane.image, images[plane.image].scale, plane.labels.shape) for plane in annotation.planes)
            original(self, images, annotation, *rest)

        monkeypatch.setattr(reader, "__init__", noted)

    note(Patches)
    note(held_out.HeldOut)
    monkeypatch.setattr(diameter, "measured_diameter",
                        lambda model, planes, *_: Measurement(18 * planes.shape_yx[0] / 240, evidence=0.5))
    base = Model(scratch.network, scratch.card.replace(diameter_px=18.0))
    events, result = run(base, images, labels)
    started = next(event for event in events if isinstance(event, TrainingStarted))
    assert started.diameters_px == (18, 54)
    assert started.scales == (1, pytest.approx(1.2 / 3))
    learnt_and_scored = [(0, 1, (240, 240)), (1, pytest.approx(1.2 / 3), (288, 288))]
    assert read == learnt_and_scored * 2
    card = result.model.card
    assert card.image_diameter_px == card.measured_as_px == 36
    assert [next(segment_planes(result.model, Planes(each, "YX"), device=CPU)).scale for each in images] \
        == list(started.scales)


def test_a_model_knows_how_large_it_finds_its_own_images(scratch: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not how large an earlier one found others; and a model is not lost because it cannot be told."""
    answers: list[float | Exception] = [0.75, OSError("gone"), ImageError("gone"), RuntimeError("gone")]

    def seen(*_: object) -> float:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(training, "measured_in_relation", seen)
    earlier = scratch.card.replace(diameter_px=20.0, measured_as_px=7.0, tuned_on={"elsewhere": 9.0})
    image, inside = blobs()
    for measured_as in (30.0, None, None, None):
        events, result = run(Model(scratch.network, earlier), image, strokes(inside), TINY.replace(diameter_px=40))
        card = result.model.card
        assert (card.image_diameter_px, card.measured_as_px) == (40, measured_as)
        assert card.tuned_on == {Planes(image, "YX").fingerprint(): 40.0}
        assert [isinstance(event, TrainingNote) and "gone" in event.text for event in events[-1:]] == [not measured_as]


def test_without_time_for_all_steps_the_rate_falls_all_the_same(scratch: Model,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(ticks)))
    image, inside = blobs()
    config = TINY.replace(max_steps=1000, max_minutes=0.5, validate_every=1000, warmup_steps=2)
    events, _ = run(scratch, image, strokes(inside), config)
    rates = [event.learning_rate for event in events if isinstance(event, TrainingStep)]
    assert 5 < len(rates) < 1000
    assert rates[-1] < 0.1 * max(rates)
