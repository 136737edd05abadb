from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_cellbrush.config import NetworkConfig, TrainingConfig, classes_from_names
from napari_cellbrush.engine import diameter, held_out, training_state
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.training import TrainingResult, scratch_model, train
from napari_cellbrush.engine.training_state import read_outline, read_state
from napari_cellbrush.errors import TrainingStateError
from napari_cellbrush.events import (
    BaseScoring,
    StopToken,
    TrainingEvent,
    TrainingNote,
    TrainingResumed,
    TrainingStarted,
    TrainingStep,
    ValidationScored,
    run_to_end,
)

CPU = Device(kind="cpu", name="CPU", memory_bytes=None, half=None, channels_last=False)
TWO = classes_from_names(["background", "cell"])
CONFIG = TrainingConfig(max_steps=7, batch_size=2, patch_px=64, validate_every=2, dropout=0.3,
                        network=NetworkConfig(depth=3, base_filters=8))


def scene() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A noisy bright half, and dashes on both halves."""
    truth = np.zeros((160, 160), bool)
    truth[:, 80:] = True
    image = (truth + np.random.default_rng(0).normal(0, 0.3, truth.shape)).astype(np.float32)
    labels = np.zeros(truth.shape, np.uint8)
    labels[8::16] = np.where(truth, 2, 1)[8::16]
    labels[:, ::20] = 0
    return image, labels


def start(config: TrainingConfig = CONFIG, state_file: Path | None = None, stop: StopToken | None = None,
          labels: Any = None, base: Model | None = None, corrections: Any = None) -> Any:
    image, painted = scene()
    return train(base or scratch_model(TWO, 1, config), [Planes(image, "YX", "cells")],
                 [painted if labels is None else labels], config, classes=TWO, device=CPU, state_file=state_file,
                 stop=stop, name="mine", corrections=corrections)


def run(config: TrainingConfig = CONFIG, state_file: Path | None = None, stop_after: int = 0,
        **options: Any) -> tuple[list[TrainingEvent], TrainingResult]:
    """Events and result; stopped after so many steps of this run."""
    stop, events, n_steps = StopToken(), [], 0

    def hear(event: TrainingEvent) -> None:
        nonlocal n_steps
        events.append(event)
        n_steps += isinstance(event, TrainingStep)
        if n_steps == stop_after:
            stop.stop()

    return events, run_to_end(start(config, state_file, stop if stop_after else None, **options), hear)


def told(events: list[TrainingEvent]) -> list[Any]:
    """What can be compared between two runs: everything but the clock."""
    return [(e.step, e.loss, e.learning_rate) if isinstance(e, TrainingStep) else e for e in events
            if isinstance(e, TrainingStep | ValidationScored)]


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[TrainingEvent], TrainingResult]:
    return run()


# ------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("stop_after", [1, 2, 3, 6])
def test_stopped_and_continued_is_bit_for_bit_the_uninterrupted_run(
    tmp_path: Path, uninterrupted: tuple[list[TrainingEvent], TrainingResult], stop_after: int
) -> None:
    """After 2 and 6 steps a score was due, which stopping gave up."""
    events, whole = uninterrupted
    first, stopped = run(state_file=tmp_path / "state", stop_after=stop_after)
    assert (stopped.ended, stopped.n_steps) == ("stopped", stop_after)
    second, result = run(state_file=tmp_path / "state")
    assert result.model.weights_hash == whole.model.weights_hash
    assert (result.score, result.interval, result.n_steps) == (whole.score, whole.interval, whole.n_steps)
    assert told(first) + told(second) == told(events)


def test_nobody_goes_on_from_a_run_that_was_stopped_while_the_base_was_scored(tmp_path: Path) -> None:
    """It would go on without a score of the base, and without listening to it."""
    base, stop = scratch_model(TWO, 1, CONFIG), StopToken()
    base = Model(base.network, base.card.replace(n_steps=1))

    def hear(event: TrainingEvent) -> None:
        if isinstance(event, BaseScoring):
            stop.stop()

    stopped = run_to_end(start(CONFIG, tmp_path / "state", stop, base=base), hear)
    assert (stopped.ended, stopped.base_score) == ("stopped", None)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("changes", [{"optimiser": "sgd"}, {"optimiser": "adam"}, {"patience": 1},
                                     {"held_out_fraction": 0.0}, {"ema_decay": 0.0}])
def test_every_kind_of_run_can_be_continued_more_than_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = CONFIG.replace(max_steps=5, **changes)
    for _ in range(2):
        run(config, tmp_path / "state", stop_after=1)
    assert read_outline(tmp_path / "state").step == 2
    whole, result = run(config)[1], run(config, tmp_path / "state")[1]
    assert (result.model.weights_hash, result.n_steps) == (whole.model.weights_hash, whole.n_steps)


def test_a_run_beside_a_base_that_teaches_is_continued_to_the_same_weights(tmp_path: Path) -> None:
    base = scratch_model(TWO, 1, CONFIG)
    base = Model(base.network, base.card.replace(n_steps=1))
    run(state_file=tmp_path / "state", stop_after=3, base=base)
    assert read_state(tmp_path / "state").parts["course"].values["teacher_score"] > 0
    result = run(state_file=tmp_path / "state", base=base)[1]
    assert result.model.weights_hash == run(base=base)[1].model.weights_hash


def test_a_head_that_was_fitted_first_is_not_fitted_again(tmp_path: Path) -> None:
    base = scratch_model(classes_from_names(["sky", "star"]), 1, CONFIG)
    base = Model(base.network, base.card.replace(n_steps=1))
    run(state_file=tmp_path / "state", stop_after=3, base=base)
    result = run(state_file=tmp_path / "state", base=base)[1]
    assert result.model.weights_hash == run(base=base)[1].model.weights_hash


def test_a_run_on_images_of_two_sizes_is_continued_at_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = scene()
    images = [Planes(image, "YX", "small"), Planes(image[:, ::-1].copy(), "YX", "large")]
    sizes = {"small": 20.0, "large": 60.0}
    monkeypatch.setattr(diameter, "measured_diameter",
                        lambda model, planes, *_: diameter.Measurement(sizes[planes.name], evidence=0.5))
    scratch = scratch_model(TWO, 1, CONFIG)
    base = Model(scratch.network, scratch.card.replace(diameter_px=20.0))

    def go(state_file: Path | None, n_steps: int = 0) -> tuple[TrainingStarted, TrainingResult]:
        stop, started = StopToken(), []

        def hear(event: TrainingEvent) -> None:
            if isinstance(event, TrainingStarted):
                started.append(event)
            if isinstance(event, TrainingStep) and event.step == n_steps:
                stop.stop()

        result = run_to_end(train(base, images, [labels, labels[:, ::-1]], CONFIG, classes=TWO, device=CPU,
                                  state_file=state_file, stop=stop), hear)
        return started[0], result

    whole = go(None)[1]
    go(tmp_path / "state", n_steps=3)
    monkeypatch.setattr(diameter, "measured_diameter", lambda *_: None)  # it is not measured again
    started, continued = go(tmp_path / "state")
    assert started.diameters_px == (20, 60)
    assert continued.model.weights_hash == whole.model.weights_hash
    assert list(continued.model.card.tuned_on.values()) == [20, 60]


def test_a_continued_run_brings_its_curve_along(tmp_path: Path) -> None:
    first, _ = run(state_file=tmp_path / "state", stop_after=5)
    second, _ = run(state_file=tmp_path / "state")
    assert isinstance(second[0], TrainingStarted)
    resumed = second[1]
    assert isinstance(resumed, TrainingResumed)
    assert resumed.step == 5
    assert list(resumed.losses) == [e.loss for e in first if isinstance(e, TrainingStep)]
    assert list(resumed.scores) == [(e.step, e.score) for e in first if isinstance(e, ValidationScored)]


def test_the_best_so_far_survives_even_if_nothing_better_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(held_out.HeldOut, "score", lambda *_: held_out.HeldOutScore(next(scores), 1.0))
    _, stopped = run(state_file=tmp_path / "state", stop_after=5)
    _, result = run(state_file=tmp_path / "state")
    assert result.score == stopped.score == 0.9
    assert result.model.weights_hash == stopped.model.weights_hash


KILLED = """
import sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads({threads})
from pathlib import Path
import test_training_state as here
here.training_state.SAVE_EVERY_S = 0.0
for event in here.start(here.CONFIG, Path({state!r})):
    if isinstance(event, here.TrainingStep):
        print(event.step, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_killed_in_midst_and_continued_is_bit_for_bit_the_uninterrupted_run(
    tmp_path: Path, uninterrupted: tuple[list[TrainingEvent], TrainingResult]
) -> None:
    import torch

    script = textwrap.dedent(KILLED.format(path=[str(Path(__file__).parent), *sys.path], state=str(tmp_path / "state"),
                                           threads=torch.get_num_threads()))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "5":
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert 1 <= read_outline(tmp_path / "state").step <= 5
    events, result = run(state_file=tmp_path / "state")
    assert any(isinstance(event, TrainingResumed) for event in events)
    assert result.model.weights_hash == uninterrupted[1].model.weights_hash


# --------------------------------------------------------------------------------------------- starting anew


@pytest.mark.parametrize("what", ["fewer", "corrections"])
def test_other_strokes_start_anew_and_that_is_said(
    tmp_path: Path, uninterrupted: tuple[list[TrainingEvent], TrainingResult], what: str
) -> None:
    labels = scene()[1]
    fewer = labels.copy()
    fewer[8, 10] = 0
    other = {"labels": fewer} if what == "fewer" else {"corrections": [labels == 2]}
    run(state_file=tmp_path / "state", stop_after=2, **other)
    events, result = run(state_file=tmp_path / "state")
    assert [e.text for e in events if isinstance(e, TrainingNote)] == [
        "Not as they were when this training was interrupted: the strokes. It starts anew."]
    assert not any(isinstance(event, TrainingResumed) for event in events)
    assert result.model.weights_hash == uninterrupted[1].model.weights_hash


def test_other_settings_start_anew_but_more_time_does_not(tmp_path: Path) -> None:
    run(state_file=tmp_path / "state", stop_after=2)
    longer, _ = run(CONFIG.replace(max_minutes=5), tmp_path / "state", stop_after=1)
    assert any(isinstance(event, TrainingResumed) for event in longer)
    other, _ = run(CONFIG.replace(learning_rate=1e-3), tmp_path / "state", stop_after=1)
    assert "the settings" in next(e.text for e in other if isinstance(e, TrainingNote))


@pytest.mark.parametrize("spoil", [lambda data: b"", lambda data: data[:-100], lambda data: b"PK" + data[2:],
                                   lambda data: data.replace(b'"outline', b'"outlime')])
def test_a_damaged_state_is_said_and_costs_nothing_but_a_new_start(
    tmp_path: Path, spoil: Callable[[bytes], bytes], uninterrupted: tuple[list[TrainingEvent], TrainingResult]
) -> None:
    run(state_file=tmp_path / "state", stop_after=1)
    (tmp_path / "state").write_bytes(spoil((tmp_path / "state").read_bytes()))
    with pytest.raises(TrainingStateError, match="cannot be read"):
        read_state(tmp_path / "state")
    events, result = run(state_file=tmp_path / "state")
    assert "Start the training anew" in next(e.text for e in events if isinstance(e, TrainingNote))
    assert result.model.weights_hash == uninterrupted[1].model.weights_hash


# ------------------------------------------------------------------------------------------------- keeping it


def test_the_state_is_kept_while_it_learns_and_never_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_state, "SAVE_EVERY_S", 0.0)
    steps = []
    for event in start(state_file=tmp_path / "state"):
        if isinstance(event, TrainingStep) and (tmp_path / "state").exists():
            steps.append(read_outline(tmp_path / "state").step)
    assert steps == sorted(steps)
    assert len(set(steps)) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_is_said_and_the_training_goes_on(
    tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[list[TrainingEvent], TrainingResult]
) -> None:
    monkeypatch.setattr(training_state, "SAVE_EVERY_S", 0.0)
    with small_disk(20_000):
        events, result = run(state_file=tmp_path / "state")
    assert any("Is the disk full?" in event.text for event in events if isinstance(event, TrainingNote))
    assert result.model.weights_hash == uninterrupted[1].model.weights_hash
    assert not list(tmp_path.iterdir())


def test_what_a_kill_in_mid_write_left_behind_is_removed_by_the_next_training(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".cellbrush-1.state", ".cellbrush-2.state", ".cellbrush-3.tif"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    run(CONFIG.replace(max_steps=1), tmp_path / "a.state")
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


def test_a_training_that_is_dropped_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_state, "SAVE_EVERY_S", 0.0)
    written = threading.Event()
    monkeypatch.setattr(training_state, "write_state", lambda *_: written.wait(30))
    generator = start(state_file=tmp_path / "state")
    for _ in range(4):
        next(generator)
    began = time.monotonic()
    generator.close()
    assert time.monotonic() - began < 5
    written.set()


def test_what_is_unfinished_can_be_told_without_reading_tensors(tmp_path: Path) -> None:
    run(state_file=tmp_path / "state", stop_after=3)
    outline = read_outline(tmp_path / "state")
    assert (outline.name, outline.step, outline.n_steps, outline.images) == ("mine", 3, 7, ("cells",))
    with pytest.raises(TrainingStateError, match="does not exist"):
        read_outline(tmp_path / "none")
