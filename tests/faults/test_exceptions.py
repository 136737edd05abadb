"""Whatever a step raises, a run ends in a sentence, and the next one works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accidents import tiny_model

from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, NetworkConfig, TrainingConfig
from napari_cellbrush.engine import model_file
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.predictor import TilePredictor
from napari_cellbrush.errors import CellbrushError, OutOfMemory, TrainingDiverged
from napari_cellbrush.napari_ui import runs
from napari_cellbrush.napari_ui.worker import WorkThread

IMAGE = np.random.default_rng(0).random((150, 160)).astype(np.float32)
STROKES = np.zeros(IMAGE.shape, np.uint8)
STROKES[10:30, 10:30], STROKES[60:90, 60:90], STROKES[110:140, 20:40] = 1, 2, 3
N_STEPS = 3
TRAINING = TrainingConfig(max_steps=N_STEPS, batch_size=1, patch_px=64, held_out_fraction=0, warmup_steps=1,
                          diameter_px=20, network=NetworkConfig(depth=3, base_filters=8))
#: Tiles small enough that there are several.
INFERENCE = InferenceConfig(tile_size_px=128, diameter_px=20)


class Raising:
    """Stands in for a method: does what it does, but for one call."""

    def __init__(self, method: Callable[..., Any], number: int = 0, error: BaseException | None = None) -> None:
        self.method, self.number, self.error, self.n_calls = method, number, error, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.n_calls += 1
        if self.n_calls == self.number and self.error is not None:
            raise self.error
        return self.method(*arguments, **named)


def training(stop: Any) -> Iterator[Any]:
    task = runs.TrainingTask("tiny", (Planes(IMAGE, "YX"),), (STROKES.copy(),), DEFAULT_CLASSES, TRAINING, "cpu",
                             "mine")
    return (yield from runs.fine_tune(task, stop))


def segmentation(stop: Any) -> Iterator[Any]:
    target = runs.SegmentationTarget(Planes(IMAGE[:100, :120], "YX"), ((),))
    return (yield from runs.segment(runs.SegmentationTask("tiny", (target,), "classes", INFERENCE, "cpu"), stop))


def outcome(work: Any, doing: str) -> Any:
    """Run it as the window does, but without one."""
    thread = WorkThread(work, doing, exclusive=True)
    thread.start()
    while not thread.join(0.01):
        thread.take()
    return thread.outcome


@pytest.fixture(autouse=True)
def library(cellbrush_home: Path) -> Path:
    return model_file.add_to_library(tiny_model(), "tiny")


ERRORS = {
    "device memory": (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
    "torch memory": (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
    "memory": (MemoryError("Unable to allocate 9 GiB"), OutOfMemory),
    "shape": (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), CellbrushError),
    "value": (ValueError("bad value"), CellbrushError),
    "interrupt": (KeyboardInterrupt(), CellbrushError),
    "system exit": (SystemExit(3), CellbrushError),
    "disk": (OSError(28, "No space left on device"), CellbrushError),
}


@pytest.mark.parametrize("step", [1, 2, N_STEPS], ids=["first", "middle", "last"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_training_that_fails_says_so_leaves_the_library_and_the_next_one_works(
        error: str, step: int, monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    before = library.read_bytes()
    raised, kind = ERRORS[error]
    with monkeypatch.context() as patch:
        raising = Raising(Learner.step, step, raised)
        patch.setattr(Learner, "step", lambda *a, **k: raising(*a, **k))
        ended = outcome(training, "fine-tuning")
    assert isinstance(ended.error, kind)
    assert ended.error.remedy
    assert raising.n_calls == step
    assert library.read_bytes() == before
    assert [path.name for path in library.parent.iterdir() if path.suffix == model_file.SUFFIX] == ["tiny.safetensors"]
    if step == N_STEPS:
        assert outcome(training, "fine-tuning").result.name == "mine"


@pytest.mark.parametrize("step", [1, 2, N_STEPS], ids=["first", "middle", "last"])
def test_weights_that_turn_into_nan_are_found_at_once(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, seen = Learner.step, []

    def corrupted(learner: Learner, *arguments: Any) -> float:
        seen.append(learner)
        if len(seen) == step:
            with torch.no_grad():
                for tensor in learner.network.parameters():
                    tensor.fill_(torch.nan)
        return kept(learner, *arguments)

    monkeypatch.setattr(Learner, "step", corrupted)
    ended = outcome(training, "fine-tuning")
    assert isinstance(ended.error, TrainingDiverged)
    assert [entry.name for entry in model_file.list_models() if not entry.bundled] == ["tiny"]


def n_tiles(monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        counting = Raising(TilePredictor.predict)
        patch.setattr(TilePredictor, "predict", lambda *a: counting(*a))
        assert outcome(segmentation, "segmenting").error is None
    return counting.n_calls


@pytest.mark.parametrize("error", ERRORS)
def test_a_segmentation_that_fails_says_so_or_goes_on_with_smaller_tiles(
        error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raised, kind = ERRORS[error]
    last = n_tiles(monkeypatch)
    assert last >= 3
    for tile in (1, last // 2, last):
        with monkeypatch.context() as patch:
            raising = Raising(TilePredictor.predict, tile, raised)
            patch.setattr(TilePredictor, "predict", lambda *a, r=raising: r(*a))
            ended = outcome(segmentation, "segmenting")
        if kind is OutOfMemory:
            # Once is not enough to give up: the tile comes again in smaller pieces.
            assert ended.error is None or isinstance(ended.error, OutOfMemory)
        else:
            assert isinstance(ended.error, CellbrushError)
            assert ended.error.remedy
    assert n_tiles(monkeypatch) == last


def test_memory_that_stays_short_ends_a_segmentation_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(TilePredictor, "predict", never)
    ended = outcome(partial(segmentation), "segmenting")
    assert isinstance(ended.error, OutOfMemory)
