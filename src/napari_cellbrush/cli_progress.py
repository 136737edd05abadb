"""What a command tells: results on the output stream, bars and problems on the error stream, and its exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from napari_cellbrush.errors import OutOfMemory
from napari_cellbrush.events import (
    BaseScoring,
    InferenceEvent,
    InferenceStarted,
    Preparing,
    StopToken,
    TileSegmented,
    TileSizeReduced,
    TrainingEvent,
    TrainingNote,
    TrainingResumed,
    TrainingStarted,
    TrainingStep,
    ValidationScored,
)

#: Exit codes.
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_PREPARATIONS = {"sizes": "Measuring objects", "head": "Fitting a first answer"}


def tell(text: str) -> None:
    """A line for the person at the terminal, on the error stream."""
    _write(sys.stderr, printable(text))


def answer(text: str) -> None:
    """A line of the result, on the output stream."""
    _write(sys.stdout, text)


def _write(stream: TextIO, text: str) -> None:
    # Windows' pipes take few letters: show the others as question marks rather than end with an error.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def printable(text: str) -> str:
    """The text without control characters: names come from files, and could otherwise steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


@contextmanager
def stop_on_interrupt() -> Iterator[StopToken]:
    """Ctrl-C asks the run to end with the best so far; a second Ctrl-C ends at once."""
    stop = StopToken()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell("Stopping after this step. Press Ctrl-C again to end at once.")

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def memory_in_words(doing: str) -> Iterator[None]:
    """Say in words what there was too little memory for."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"There is too little memory to {doing}", "Segment a part of it") from error


@contextmanager
def training_bar() -> Iterator[Callable[[TrainingEvent], None]]:
    """A bar of steps with loss, score and time left."""
    with _bar() as bar:
        task = bar.add_task("Preparing", total=None)
        words: dict[str, str] = {}

        def show(event: TrainingEvent) -> None:
            if isinstance(event, Preparing):
                bar.update(task, description=_PREPARATIONS[event.what])
            elif isinstance(event, BaseScoring):
                bar.update(task, description="Scoring the base")
            elif isinstance(event, TrainingStarted):
                _announce(bar, task, event)
            elif isinstance(event, TrainingStep):
                words["loss"] = f"loss {event.loss:.3f}"
                bar.update(task, completed=event.step, description=" ".join(("Fine-tuning", *words.values())))
            elif isinstance(event, ValidationScored):
                words["score"] = f"score {event.score:.3f}"
            elif isinstance(event, TrainingResumed):
                bar.update(task, completed=event.step)
                bar.console.print(f"Going on after step {event.step}", markup=False, highlight=False)
            elif isinstance(event, TrainingNote):
                bar.console.print(event.text, markup=False, highlight=False)

        yield show


def _announce(bar: Progress, task: TaskID, event: TrainingStarted) -> None:
    bar.update(task, total=event.n_steps, description="Fine-tuning")
    bar.console.print(f"{event.device}, {event.precision}: learning from {event.n_training_pixels:,} labelled pixels",
                      markup=False, highlight=False)
    if event.no_score_reason:
        bar.console.print(event.no_score_reason, markup=False, highlight=False)
    if event.base_score is not None:
        bar.console.print(f"The base scores {event.base_score:.3f} on {event.n_held_out_pixels:,} held-out pixels",
                          markup=False, highlight=False)


@contextmanager
def inference_bar(name: str) -> Iterator[Callable[[InferenceEvent], None]]:
    """A bar of tiles with time left."""
    with _bar() as bar:
        task = bar.add_task(printable(name), total=None)

        def show(event: InferenceEvent) -> None:
            if isinstance(event, (InferenceStarted, TileSizeReduced)):
                bar.update(task, total=event.n_tiles)
            elif isinstance(event, TileSegmented):
                bar.update(task, completed=event.tile)

        yield show


def _bar() -> Progress:
    text = TextColumn("{task.description}", markup=False)
    return Progress(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))
