from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator

import numpy as np
import pytest

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.features import FeatureSource
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.live import follow
from napari_cellbrush.engine.live_inbox import HeldOutStrokes, LiveInbox, Strokes, TunedAnswer, View
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.events import HeadFitted, LiveEvent, LiveScored, LiveTile, PauseToken, StopToken

CPU = Device("cpu", "CPU", None, None, channels_last=True)


def discs(n_planes: int = 0, size: int = 600) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    plane = ((rows % 40 - 20) ** 2 + (columns % 50 - 25) ** 2 < 12**2).astype(np.float32)
    stack = np.broadcast_to(plane, (n_planes, size, size)) if n_planes else plane
    return stack + np.random.default_rng(0).normal(0, 0.1, stack.shape).astype(np.float32)


def strokes_on(image: np.ndarray) -> np.ndarray:
    labels = np.zeros(image.shape, np.uint8)
    labels[38:42, 5:100] = 1
    labels[18:22, 20:30] = 2
    return labels


def model(seed: int) -> Model:
    card = ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1, any_channels=True,
                     network=NetworkConfig(depth=3, base_filters=8))
    return new_model(card, seed)


class Loop:
    """The loop, driven until something happens."""

    def __init__(self, image: np.ndarray, axes: str = "YX", scale: float = 1.0, budget: int = 1 << 30) -> None:
        self.source = FeatureSource(model(0), Planes(image, axes), scale, CPU, budget)
        self.inbox, self.stop, self.pause = LiveInbox(), StopToken(), PauseToken()
        self.events: list[LiveEvent] = []
        self._run: Generator[LiveEvent, None, None] = follow(self.source, 3, self.inbox, self.stop, self.pause)

    def until(self, condition: Callable[[LiveEvent], bool]) -> LiveEvent:
        for event in self._run:
            self.events.append(event)
            if condition(event):
                return event
        raise AssertionError("ended")

    def tiles(self, n: int) -> list[LiveTile]:
        """The next tiles."""
        found: list[LiveTile] = []
        self.until(lambda event: isinstance(event, LiveTile) and found.append(event) is None and len(found) == n)
        return found


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_strokes_of_two_classes_give_a_mask_of_the_whole_image(scale: float) -> None:
    image = discs()
    loop = Loop(image, scale=scale)
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    loop.inbox.paint(Strokes(1, {(): strokes_on(image)}))
    fitted = loop.until(lambda event: isinstance(event, HeadFitted))
    assert fitted.ready
    mask = np.zeros(image.shape, np.uint8)
    for tile in loop.tiles(len(loop.source.tiles((slice(None), slice(None))))):
        mask[tile.rows, tile.columns] = tile.classes
    assert mask.all()
    assert np.mean(mask == np.where(image > 0.5, 2, 1)) > 0.9


def test_one_class_is_no_answer_and_taking_strokes_back_says_so() -> None:
    image = discs(size=100)
    labels = strokes_on(image)
    loop = Loop(image)
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    loop.inbox.paint(Strokes(1, {(): labels * (labels == 1)}))
    assert not loop.until(lambda event: isinstance(event, HeadFitted)).ready
    loop.inbox.paint(Strokes(2, {(): labels}))
    assert loop.until(lambda event: isinstance(event, HeadFitted)).ready
    loop.inbox.paint(Strokes(3, {}))
    event = loop.until(lambda event: event.generation == 3)
    assert isinstance(event, HeadFitted)
    assert not event.ready


def test_what_is_seen_comes_first_and_moving_the_view_changes_the_order() -> None:
    image = discs()
    loop = Loop(image)
    loop.inbox.paint(Strokes(1, {(): strokes_on(image)}))
    loop.inbox.show(View((), slice(520, 600), slice(520, 600)))
    first = loop.until(lambda event: isinstance(event, LiveTile))
    assert (first.rows.start, first.columns.start) == (512, 512)
    loop.inbox.show(View((), slice(0, 80), slice(520, 600)))
    second = loop.until(lambda event: isinstance(event, LiveTile))
    assert (second.rows.start, second.columns.start) == (0, 512)


def test_new_strokes_are_answered_before_the_rest_of_the_old_ones() -> None:
    image = discs()
    labels = strokes_on(image)
    loop = Loop(image)
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    loop.inbox.paint(Strokes(1, {(): labels}))
    loop.tiles(3)
    more = labels.copy()
    more[58:62, 70:80] = 2
    loop.inbox.paint(Strokes(2, {(): more}))
    tile = loop.until(lambda event: isinstance(event, LiveTile))
    assert tile.generation == 2
    assert (tile.rows.start, tile.columns.start) == (0, 0)


def test_the_same_strokes_give_the_same_mask_whatever_was_painted_before() -> None:
    image = discs(size=200)
    labels = strokes_on(image)
    wrong = labels.copy()
    wrong[100:140, 100:140] = 3
    masks = []
    for history in ([labels], [wrong, labels]):
        loop = Loop(image)
        loop.inbox.show(View((), slice(0, 200), slice(0, 200)))
        for generation, painted in enumerate(history, start=1):
            loop.inbox.paint(Strokes(generation, {(): painted}))
            masks.append(loop.until(lambda event: isinstance(event, LiveTile)).classes)
    np.testing.assert_array_equal(masks[0], masks[2])
    assert not np.array_equal(masks[0], masks[1])


def test_strokes_on_one_plane_answer_the_plane_that_is_looked_at() -> None:
    image = discs(n_planes=3, size=100)
    loop = Loop(image, "ZYX")
    loop.inbox.paint(Strokes(1, {(0,): strokes_on(image[0])}))
    loop.inbox.show(View((2,), slice(0, 100), slice(0, 100)))
    tile = loop.until(lambda event: isinstance(event, LiveTile))
    assert tile.plane == (2,)
    assert np.mean(tile.classes == np.where(image[2] > 0.5, 2, 1)) > 0.8


def test_features_are_ready_before_the_first_answer_is_asked_for() -> None:
    image = discs(size=100)
    labels = strokes_on(image)
    loop = Loop(image)
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    loop.inbox.paint(Strokes(1, {(): labels * (labels == 1)}))
    loop.until(lambda event: isinstance(event, HeadFitted))
    assert loop.source.has((), loop.source.tiles((slice(None), slice(None)))[0])


def test_completing_a_large_image_does_not_forget_what_is_looked_at() -> None:
    image = discs()
    one = Loop(image).source
    n_bytes = one.features((), one.tiles((slice(None), slice(None)))[0]).n_bytes
    loop = Loop(image, budget=int(1.5 * n_bytes))
    view = slice(0, 100), slice(0, 100)
    loop.inbox.show(View((), *view))
    loop.inbox.paint(Strokes(1, {(): strokes_on(image)}))
    loop.tiles(9)
    assert loop.source.has((), loop.source.tiles(view)[0])


def test_it_ends_when_it_is_stopped_and_has_nothing_to_do() -> None:
    loop = Loop(discs(size=100))
    loop.stop.stop()
    assert list(loop._run) == []


# ------------------------------------------------------------------------------------- beside a tuned model


@pytest.fixture
def split_loop() -> tuple[Loop, np.ndarray]:
    """A loop over an image of four tiles, answered once, with some strokes held out."""
    image = discs(size=400)
    labels = strokes_on(image)
    labels[98:102, 20:30], labels[76:80, 5:100] = 2, 1
    held_out = np.zeros_like(labels)
    held_out[70:110] = labels[70:110]
    loop = Loop(image)
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    loop.inbox.paint(Strokes(1, {(): labels}))
    loop.inbox.hold_out(HeldOutStrokes(1, {(): labels - held_out}, {(): held_out}))
    loop.tiles(4)
    return loop, labels


def scored(loop: Loop) -> LiveScored:
    event = loop.until(lambda event: isinstance(event, LiveScored))
    assert isinstance(event, LiveScored)
    return event


def test_a_tuned_model_with_the_better_score_answers_and_gives_what_segmentation_gives(
        split_loop: tuple[Loop, np.ndarray]) -> None:
    loop, _ = split_loop
    tuned = model(1)
    loop.inbox.offer(TunedAnswer(tuned, 1.01, 1))
    event = scored(loop)
    assert event.tuned_leads
    assert event.instant_score is not None
    assert event.instant_score > 0.3
    expected = segment_array(tuned, loop.source.image.planes, device=CPU)
    tiles = loop.tiles(4)
    assert (tiles[0].rows.start, tiles[0].columns.start) == (0, 0)
    for tile in tiles:
        assert tile.by_tuned
        np.testing.assert_array_equal(tile.classes, expected[tile.rows, tile.columns])


def test_a_tuned_model_with_the_worse_score_answers_nothing(split_loop: tuple[Loop, np.ndarray]) -> None:
    loop, labels = split_loop
    loop.inbox.offer(TunedAnswer(model(1), 0.01, 1))
    assert not scored(loop).tuned_leads
    loop.inbox.paint(Strokes(2, {(): np.where(labels == 0, 0, labels).astype(np.uint8)}))
    more = labels.copy()
    more[118:122, 5:60] = 1
    loop.inbox.paint(Strokes(3, {(): more}))
    assert not any(tile.by_tuned for tile in loop.tiles(4))


@pytest.mark.parametrize(("behind", "leads"), [(0.01, True), (0.1, False)])
def test_a_tuned_model_that_is_about_as_good_answers(split_loop: tuple[Loop, np.ndarray], behind: float,
                                                     leads: bool) -> None:
    loop, _ = split_loop
    loop.inbox.offer(TunedAnswer(model(1), 0.01, 1))
    instant = scored(loop).instant_score
    assert instant is not None
    loop.inbox.offer(TunedAnswer(model(1), instant - behind, 1))
    assert scored(loop).tuned_leads == leads


def test_a_new_stroke_is_answered_at_once_where_it_lies_though_the_tuned_model_leads(
        split_loop: tuple[Loop, np.ndarray]) -> None:
    loop, labels = split_loop
    loop.inbox.offer(TunedAnswer(model(1), 1.01, 1))
    loop.tiles(4)
    more = labels.copy()
    more[118:122, 5:60] = 1
    loop.inbox.paint(Strokes(2, {(): more}))
    tile = loop.until(lambda event: isinstance(event, LiveTile))
    assert not tile.by_tuned
    assert (tile.rows.start, tile.columns.start) == (0, 0)
    loop.inbox.offer(TunedAnswer(loop.inbox.read().tuned.model, 1.01, 2))
    tile = loop.until(lambda event: isinstance(event, LiveTile))
    assert tile.by_tuned
    assert (tile.rows.start, tile.columns.start) == (0, 0)


def test_a_tuned_model_that_is_taken_back_leaves_no_answer(split_loop: tuple[Loop, np.ndarray]) -> None:
    loop, _ = split_loop
    loop.inbox.offer(TunedAnswer(model(1), 1.01, 1))
    loop.tiles(4)
    loop.inbox.offer(None)
    assert not any(tile.by_tuned for tile in loop.tiles(4))


def test_it_says_whether_what_is_looked_at_waits_for_an_answer() -> None:
    """So that whatever is less urgent can wait meanwhile."""
    image = discs()
    loop = Loop(image)
    loop.inbox.paint(Strokes(1, {(): strokes_on(image)}))
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    assert loop.inbox.is_behind
    loop.until(lambda event: isinstance(event, HeadFitted))
    assert loop.inbox.is_behind
    n_seen = len(loop.source.tiles((slice(0, 100), slice(0, 100))))
    assert n_seen < len(loop.source.tiles((slice(None), slice(None))))
    loop.tiles(n_seen)
    loop.tiles(1)  # the rest of the plane follows
    assert not loop.inbox.is_behind
    loop.inbox.show(View((), slice(500, 600), slice(500, 600)))
    assert loop.inbox.is_behind


def test_nothing_is_computed_while_somebody_draws() -> None:
    loop = Loop(discs(size=100))
    loop.inbox.show(View((), slice(0, 100), slice(0, 100)))
    loop.inbox.paint(Strokes(1, {(): strokes_on(discs(size=100))}))
    loop.pause.hold()
    began = time.monotonic()
    threading.Timer(0.3, loop.pause.release).start()
    loop.until(lambda event: isinstance(event, HeadFitted))
    assert time.monotonic() - began >= 0.3
