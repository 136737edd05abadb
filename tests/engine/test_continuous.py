from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from napari_cellbrush.config import NetworkConfig, TrainingConfig, classes_from_names
from napari_cellbrush.engine import diameter, held_out
from napari_cellbrush.engine.annotation import GAP_PX, GrowingHoldOut, Split, collect_annotation
from napari_cellbrush.engine.continuous import StrokeInbox, learn_continuously
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.held_out import HeldOutScore, score_interval
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.patches import Patches
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.teacher import Teacher
from napari_cellbrush.engine.training import scratch_model
from napari_cellbrush.events import (
    ContinuousEvent,
    ContinuousScored,
    ContinuousStep,
    Improved,
    NothingToLearn,
    PauseToken,
    Settled,
    StopToken,
    StrokesTaken,
    Waiting,
    run_to_end,
)

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
TWO = classes_from_names(["background", "cell"])
CONFIG = TrainingConfig(max_steps=4, batch_size=2, patch_px=64, validate_every=2, patience=2, learning_rate=3e-3,
                        network=NetworkConfig(depth=3, base_filters=8))
SIZE = 200


def truth() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside: NDArray[np.bool_] = (rows % 50 - 25) ** 2 + (columns % 50 - 25) ** 2 < 15**2
    return inside


def picture() -> NDArray[np.float32]:
    return (truth() + np.random.default_rng(0).normal(0, 0.2, (SIZE, SIZE))).astype(np.float32)


#: Where dabs of background and of cell may be painted, in turns.
PLACES = [(row, column, value) for row, column in np.ndindex(4, 4) for value in (1, 2)]


def painted(n: int, skip: int = 0) -> NDArray[np.uint8]:
    """The first strokes of :data:`PLACES`, less the very first ones."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for row, column, value in PLACES[skip:n]:
        top, left = (50 * row, 50 * column) if value == 1 else (50 * row + 22, 50 * column + 20)
        labels[top : top + 5, left : left + 9] = value
    return labels


def learnt(model: Model) -> Model:
    """As if it had learnt something."""
    return Model(model.network, model.card.replace(n_steps=1))


class Live:
    """A run that is driven event by event."""

    def __init__(self, config: TrainingConfig = CONFIG, base: Model | None = None, classes: Any = TWO) -> None:
        self.inbox, self.stop, self.pause = StrokeInbox(), StopToken(), PauseToken()
        self.base = base or scratch_model(TWO, 1, config)
        self.events: list[ContinuousEvent] = []
        self.run = learn_continuously(self.base, [Planes(picture(), "YX")], self.inbox, config, classes=classes,
                                      device=CPU, stop=self.stop, pause=self.pause, name="live")

    def following(self) -> Any:
        """The next event that tells something; None at the end."""
        return next((event for event in self.run if not isinstance(event, Waiting)), None)

    def until(self, kind: Any, n: int = 1, at_most: int = 200) -> Any:
        """Drive on until the n-th further event of a kind, and give it."""
        for _ in range(at_most):
            event = self.following()
            if event is None:
                break
            self.events.append(event)
            if isinstance(self.events[-1], Settled) and kind is not Settled:
                break
            if isinstance(self.events[-1], kind):
                n -= 1
                if n == 0:
                    return self.events[-1]
        raise AssertionError(f"no {kind} in {self.events}")

    def end(self) -> Model | None:
        self.stop.stop()
        model: Model | None = run_to_end(self.run, self.events.append)
        return model


def test_a_new_class_that_is_painted_later_gets_a_fitted_head_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[frozenset[int]] = []
    fit_head = Learner.fit_head

    def told(self: Learner, batches: Any, n_classes: int, known: frozenset[int]) -> None:
        fits.append(known)
        fit_head(self, batches, n_classes, known)

    monkeypatch.setattr(Learner, "fit_head", told)
    live = Live(base=learnt(scratch_model(TWO, 1, CONFIG)), classes=classes_from_names(["cell", "sky", "dust"]))
    live.inbox.put([painted(8)])
    live.until(ContinuousStep, 2)
    assert fits == [frozenset({0})]
    labels = painted(12)
    live.inbox.put([labels])
    assert live.until(ContinuousStep).step == 3
    labels = labels.copy()
    labels[190:, 20:60:8], labels[190:, 100:140:8] = 3, 3
    live.inbox.put([labels])
    assert live.until(ContinuousStep).step == 1
    assert len(fits) == 2
    live.end()


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let networks score what the test says: one after the other, the last one for ever."""
    def give(*values: float) -> None:
        left = list(values)
        monkeypatch.setattr(held_out.HeldOut, "score",
                            lambda *_: HeldOutScore(left.pop(0) if len(left) > 1 else left[0], 1.0))
    return give


# ------------------------------------------------------------------------------------------------------ strokes


def test_strokes_painted_meanwhile_are_learnt_from_after_the_step_at_hand() -> None:
    live = Live()
    assert live.inbox.put([painted(8)]) == 1
    assert live.until(StrokesTaken).generation == 1
    first = live.until(ContinuousStep, 3)
    live.inbox.put([painted(10)])
    live.inbox.put([painted(12)])  # only the newest count
    taken = live.until(StrokesTaken)
    assert (taken.generation, taken.restarted) == (3, False)
    assert taken.n_training_pixels + taken.n_held_out_pixels == np.count_nonzero(painted(12))
    following = live.until(ContinuousStep)
    assert (following.generation, following.step) == (3, first.step + 1)
    live.end()


def test_new_strokes_reach_training_within_a_second_though_a_score_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class_logits, tiles = held_out.class_logits, []

    def slow(logits: Any) -> Any:
        tiles.append(time.monotonic())
        time.sleep(0.4)
        return class_logits(logits)

    monkeypatch.setattr(held_out, "class_logits", slow)
    live = Live(CONFIG.replace(validate_every=1))
    live.inbox.put([painted(24)])
    live.until(ContinuousStep)
    put = threading.Timer(0.2, lambda: live.inbox.put([painted(26)]))
    put.start()
    began = time.monotonic()
    live.until(StrokesTaken)
    assert time.monotonic() - began < 0.2 + 1
    assert len(tiles) == 1  # it was given up after the tile at hand
    live.inbox.put([painted(28)])
    assert len({type(live.until((ContinuousScored, StrokesTaken), 1)) for _ in range(3)}) == 2  # but not for ever
    live.end()


def test_on_a_slow_device_steps_get_smaller_so_that_strokes_need_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, learn = [], Learner.step

    def slow(self: Any, images: Any, *truth: Any) -> float:
        sizes.append(len(images))
        time.sleep(0.2 * len(images))
        return learn(self, images, *truth)

    monkeypatch.setattr(Learner, "step", slow)
    live = Live(CONFIG.replace(batch_size=4, held_out_fraction=0))
    live.inbox.put([painted(8)])
    live.until(ContinuousStep, 4)
    assert sizes[:2] == [4, 4]  # the first step is always slow
    assert sizes[2:] in ([2, 2], [2, 1])
    live.end()


def test_no_step_begins_while_somebody_draws() -> None:
    live = Live()
    live.inbox.put([painted(8)])
    live.until(ContinuousStep)
    live.pause.hold()
    release = threading.Timer(0.5, live.pause.release)
    release.start()
    began = time.monotonic()
    live.until(ContinuousStep)
    assert time.monotonic() - began > 0.4
    live.end()


def test_a_stop_is_heard_while_there_is_nothing_to_do() -> None:
    for prepare in (lambda live: None, lambda live: live.pause.hold()):
        live = Live()
        prepare(live)
        threading.Timer(0.2, live.stop.stop).start()
        assert live.following() is None


def test_too_little_to_learn_from_is_said_and_waited_out() -> None:
    live = Live()
    live.inbox.put([painted(1)])
    assert "need at least two classes" in live.until(NothingToLearn).reason
    live.inbox.put([painted(8)])
    live.until(ContinuousStep)
    live.end()


def test_the_base_is_trusted_by_its_score_until_strokes_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(Teacher, "trust", lambda self, score, strokes: told.append((score, strokes)))
    live = Live(base=learnt(scratch_model(TWO, 1, CONFIG)))
    live.inbox.put([painted(12)])
    scored = live.until(ContinuousScored)
    assert told[-1][0] == scored.base_score > 0
    assert told[-1][1] > 1
    live.inbox.put([painted(4)])
    assert live.until(StrokesTaken).restarted
    assert told[-1] == (0.0, 1.0)
    live.end()


def test_strokes_taken_back_are_forgotten(scores: Callable[..., None]) -> None:
    """The weights start over from the base, and the better ones that had learnt from them are gone."""
    scores(0.5)
    live = Live()
    live.inbox.put([painted(12)])
    live.until(Improved)
    live.inbox.put([painted(12, skip=4)])
    assert live.until(StrokesTaken).restarted
    assert live.until(ContinuousStep).step == 1
    assert live.end() is None


# ----------------------------------------------------------------------------------------------- no pixel leaks


def splits_while_painting(order: NDArray[np.intp], step: int) -> Iterator[tuple[NDArray[np.uint8], Split]]:
    hold_out = GrowingHoldOut(0.25, seed=0)
    image, labels = Planes(picture(), "YX"), np.zeros((SIZE, SIZE), np.uint8)
    for n in range(step, len(order) + 1, step):
        for position in order[n - step : n]:
            one = painted(int(position) + 1, skip=int(position))
            labels = np.where(one > 0, one, labels).astype(np.uint8)
        if len(np.unique(labels)) == 3:
            annotation = collect_annotation([image], [labels], TWO)
            assert not hold_out.takes_back(annotation)
            yield labels, hold_out.split(annotation)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [1, 3])
def test_no_pixel_is_scored_that_was_ever_learnt_from_nor_one_beside_it(seed: int, step: int) -> None:
    learnt, n_scored = np.zeros((SIZE, SIZE), bool), 0
    for labels, split in splits_while_painting(np.random.default_rng(seed).permutation(len(PLACES)), step):
        for plane in split.train.planes:
            learnt |= plane.labels > 0
        if split.validation:
            n_scored += 1
            scored = split.validation.planes[0].labels
            assert not (ndimage.maximum_filter(learnt, 2 * GAP_PX + 1) & (scored > 0)).any()
            assert set(np.unique(scored)) == {0, 1, 2}
            assert ((scored == 0) | (scored == labels)).all()
    assert n_scored > 3


def test_one_stroke_at_a_time_leads_to_a_score_and_to_the_wanted_share() -> None:
    for labels, split in splits_while_painting(np.arange(len(PLACES)), 1):
        held = np.count_nonzero(labels) - split.train.n_pixels
        assert split.train.n_pixels >= 0.6 * np.count_nonzero(labels)
        if np.count_nonzero(labels) >= 8 * 45:
            assert split.validation
            assert 0.1 < held / np.count_nonzero(labels) < 0.4


def test_the_training_gets_the_training_strokes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt, scored = np.zeros((SIZE, SIZE), bool), []
    make_patches, make_held_out = Patches.__init__, held_out.HeldOut.__init__

    def patches(self: Any, images: Any, annotation: Any, *others: Any) -> None:
        for plane in annotation.planes:
            learnt[plane.labels > 0] = True
        make_patches(self, images, annotation, *others)

    def held(self: Any, images: Any, annotation: Any, *others: Any) -> None:
        scored.append(annotation.planes[0].labels > 0)
        make_held_out(self, images, annotation, *others)

    monkeypatch.setattr(Patches, "__init__", patches)
    monkeypatch.setattr(held_out.HeldOut, "__init__", held)
    live = Live()
    for n in (8, 12, 16, 24):
        live.inbox.put([painted(n)])
        live.until(ContinuousScored)
        assert not (learnt & scored[-1]).any()
    assert len(scored) > 3
    live.end()


# --------------------------------------------------------------------------------------------------- better ones


def test_only_a_better_score_gives_new_weights(scores: Callable[..., None]) -> None:
    scores(0.5, 0.4, 0.502, 0.6, 0.55)
    live = Live(CONFIG.replace(patience=5))
    live.inbox.put([painted(12)])
    live.until(ContinuousScored, 5)
    assert [event.score for event in live.events if isinstance(event, Improved)] == [0.5, 0.6]
    improved = next(event for event in live.events if isinstance(event, Improved))
    assert improved.model.card.score == 0.5
    assert improved.model.card.name == "live"
    model = live.end()
    assert model is not None
    assert model.card.score == 0.6


def test_new_weights_must_beat_the_base(scores: Callable[..., None]) -> None:
    base = scratch_model(TWO, 1, CONFIG)
    live = Live(CONFIG.replace(patience=9), Model(base.network, base.card.replace(n_steps=1)))
    scores(0.7, 0.8, 0.75, 0.9)  # present, base, present, present
    live.inbox.put([painted(12)])
    live.until(ContinuousScored, 3)
    live.until(Improved)
    improved = [event for event in live.events if isinstance(event, Improved)]
    assert [(event.score, event.base_score) for event in improved] == [(0.9, 0.8)]
    live.end()


def test_the_best_so_far_is_measured_again_on_new_held_out_strokes(scores: Callable[..., None]) -> None:
    live = Live(CONFIG.replace(patience=9))
    scores(0.9, 0.8)
    live.inbox.put([painted(12)])
    assert live.until(ContinuousScored).best_score == 0.9
    live.inbox.put([painted(24)])
    scores(0.6, 0.5, 0.55)  # present, the best so far, present: the new strokes are harder
    found = live.until(ContinuousScored)
    assert (found.score, found.best_score) == (0.6, 0.6)
    live.end()


def test_weights_that_know_more_strokes_take_over_where_held_out_ones_cannot_tell(scores: Callable[..., None]) -> None:
    scores(1.0)
    live = Live()
    live.inbox.put([painted(12)])
    assert live.until(Improved).generation == 1
    live.inbox.put([painted(14)])
    live.until(Settled)
    # Once for the new strokes, not at every score.
    assert [event.generation for event in live.events if isinstance(event, Improved)] == [1, 2]
    live.end()


def test_weights_do_not_know_strokes_before_a_step_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(CONFIG.replace(patience=9))
    calls: list[None] = []

    def score(*_: Any) -> HeldOutScore | None:
        calls.append(None)
        if len(calls) == 2:
            # Painted during a score, which is given up and made up for at once.
            live.inbox.put([painted(14)])
            return None
        return HeldOutScore(1.0, 1.0)

    monkeypatch.setattr(held_out.HeldOut, "score", score)
    live.inbox.put([painted(12)])
    live.until(Improved)
    assert live.until(ContinuousScored).generation == 2
    live.until(Improved)
    taken = next(i for i, event in enumerate(live.events) if isinstance(event, StrokesTaken) and event.generation == 2)
    kinds = [type(event) for event in live.events[taken + 1:]]
    assert kinds.index(ContinuousScored) < kinds.index(ContinuousStep) < kinds.index(Improved)
    live.end()


def test_images_of_two_sizes_keep_theirs(monkeypatch: pytest.MonkeyPatch, scores: Callable[..., None]) -> None:
    sizes = {"small": 20.0, "large": 60.0}
    monkeypatch.setattr(diameter, "measured_diameter",
                        lambda model, planes, *_: diameter.Measurement(sizes[planes.name], evidence=0.5))
    scratch = scratch_model(TWO, 1, CONFIG)
    live = Live(base=Model(scratch.network, scratch.card.replace(diameter_px=20.0)))
    images = [Planes(picture(), "YX", "small"), Planes(picture().T.copy(), "YX", "large")]
    live.run = learn_continuously(live.base, images, live.inbox, CONFIG, classes=TWO, device=CPU, stop=live.stop,
                                  pause=live.pause)
    live.inbox.put([painted(len(PLACES)), painted(len(PLACES)).T])
    scores(0.9)
    card = live.until(Improved).model.card
    assert card.tuned_on == {image.fingerprint(): sizes[image.name] for image in images}
    assert [card.scale_for(px) for px in card.tuned_on.values()] == [1, pytest.approx(1.2 / 3)]


def test_it_learns() -> None:
    live = Live(CONFIG.replace(validate_every=10, ema_decay=0.9, max_steps=100, learning_rate=1e-3, patience=20))
    live.inbox.put([painted(32)])
    improved = [live.until(Improved) for _ in range(2)]
    assert improved[1].score > improved[0].score
    live.until(ContinuousStep, 40)
    assert live.end().card.score > 0.7  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------- rest


def test_it_rests_once_nothing_improves_and_wakes_with_new_strokes(scores: Callable[..., None]) -> None:
    scores(0.5)
    live = Live()
    live.inbox.put([painted(12)])
    live.until(Settled)
    threading.Timer(0.3, lambda: live.inbox.put([painted(14)])).start()
    began = time.monotonic()
    assert isinstance(live.following(), StrokesTaken)
    assert time.monotonic() - began > 0.2
    live.until(ContinuousStep)
    live.end()


def test_weights_led_on_from_stroke_to_stroke_must_compete_with_a_fresh_start(scores: Callable[..., None]) -> None:
    scores(0.5)
    live = Live()
    live.inbox.put([painted(12)])
    live.until(ContinuousStep, 2)
    live.inbox.put([painted(14)])
    live.until(Settled)
    steps = [event.step for event in live.events if isinstance(event, ContinuousStep)]
    assert steps.count(1) == 2
    live.end()


def test_the_best_survives_a_fresh_start_that_is_worse(scores: Callable[..., None]) -> None:
    scores(0.9, 0.2, 0.9, 0.1)  # present; present, and again the best so far; present
    live = Live()
    live.inbox.put([painted(12)])
    live.until(Improved)
    live.inbox.put([painted(14)])
    live.until(Settled)
    assert live.end().card.score == 0.9  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------- intervals


def test_an_interval_needs_several_strokes_and_holds_the_score() -> None:
    random = np.random.default_rng(0)
    strokes = np.stack([np.array([[40 - wrong, wrong], [0, 0]]) if n % 2 else np.array([[0, 0], [wrong, 40 - wrong]])
                        for n, wrong in enumerate(random.integers(0, 20, 20))])
    assert score_interval(strokes[:3]) is None
    few, many = score_interval(strokes[:6]), score_interval(np.concatenate([strokes] * 8))
    assert few is not None
    assert many is not None
    assert few[1] - few[0] > 2 * (many[1] - many[0])


def test_the_interval_counts_strokes_and_not_pixels() -> None:
    strokes = np.array([[[n, 1], [1, n]] for n in (5, 9, 2, 7, 4, 8)])
    assert score_interval(100 * strokes) == score_interval(strokes)


def test_about_nineteen_of_twenty_intervals_hold_what_many_strokes_score() -> None:
    """Strokes of one class each, of which some are all right and some half wrong."""
    random = np.random.default_rng(1)

    def draw(n: int) -> NDArray[np.int64]:
        wrong = random.binomial(60, random.beta(1, 4, n))
        strokes = np.zeros((n, 2, 2), np.int64)
        of = np.arange(n) % 2
        strokes[np.arange(n), of, of], strokes[np.arange(n), of, 1 - of] = 60 - wrong, wrong
        return strokes

    everything = draw(20_000).sum(axis=0)
    both = np.diag(everything)
    true = float(np.mean(both / (everything.sum(0) + everything.sum(1) - both)))
    hits = [low <= true <= high for low, high in filter(None, (score_interval(draw(16)) for _ in range(200)))]
    assert 0.85 <= np.mean(hits) <= 1


def test_waiting_costs_no_computing_time() -> None:
    live = Live()
    threading.Timer(0.5, live.stop.stop).start()
    began = time.thread_time()
    assert live.following() is None
    assert time.thread_time() - began < 0.25
