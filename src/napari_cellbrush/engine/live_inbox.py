"""What somebody tells the live loop while it runs: what is painted, and what is looked at.

Plain values, without torch, so that a window can write letters before the engine is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """What somebody looks at: a plane, and a part of it in image pixels."""

    index: Index
    rows: slice
    columns: slice


@dataclass(frozen=True, eq=False)
class Strokes:
    """What is painted.

    Attributes
    ----------
    generation
        Grows with every change. Answers carry it, so that those to older strokes can be told.
    planes
        YX uint8 of every plane with strokes, 0 unlabelled, k + 1 for class number k. An array is never written again:
        where strokes change, another takes its place.
    """

    generation: int
    planes: Mapping[Index, NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class HeldOutStrokes:
    """Which strokes a classifier may learn from and which it is measured on; arrays as in :class:`Strokes`."""

    generation: int
    train: Mapping[Index, NDArray[np.uint8]]
    held_out: Mapping[Index, NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class TunedAnswer:
    """A model that learnt from the strokes, and its score on those held out."""

    #: An :class:`.model.Model`.
    model: Any
    score: float
    #: Of the strokes that it was measured on.
    generation: int


@dataclass(frozen=True, eq=False)
class Letters:
    """Everything that holds now."""

    view: View | None = None
    strokes: Strokes = field(default_factory=lambda: Strokes(0, {}))
    split: HeldOutStrokes | None = None
    tuned: TunedAnswer | None = None


class LiveInbox:
    """Where letters to the loop are dropped, from any thread; a later letter of a kind replaces an earlier one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._news = False
        self._letters = Letters()
        #: Whether what is looked at still waits for an answer.
        self.is_behind = False

    def show(self, view: View) -> None:
        """Somebody looks at another place."""
        self.is_behind = True
        self._drop(view=view)

    def paint(self, strokes: Strokes) -> None:
        """Something else is painted."""
        self.is_behind = True
        self._drop(strokes=strokes)

    def hold_out(self, split: HeldOutStrokes | None) -> None:
        """Other strokes are held out, or none."""
        self._drop(split=split)

    def offer(self, tuned: TunedAnswer | None) -> None:
        """There is a better tuned model or another score of it; None: there is none any more."""
        self._drop(tuned=tuned)

    def read(self) -> Letters:
        """What holds now."""
        with self._changed:
            self._news = False
            return self._letters

    def wait(self, seconds: float) -> None:
        """Until something is dropped that was not read yet, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, seconds)

    def _drop(self, **letter: Any) -> None:
        with self._changed:
            self._letters, self._news = replace(self._letters, **letter), True
            self._changed.notify_all()
