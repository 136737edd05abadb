"""What somebody tells the live loop while it runs: what is painted, and what is looked at.

Plain values, without torch, so that a window can write letters before the engine is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

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


class LiveInbox:
    """Where letters to the loop are dropped, from any thread; a later letter of a kind replaces an earlier one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._news = False
        self._view: View | None = None
        self._strokes = Strokes(0, {})

    def show(self, view: View) -> None:
        """Somebody looks at another place."""
        with self._changed:
            self._view, self._news = view, True
            self._changed.notify_all()

    def paint(self, strokes: Strokes) -> None:
        """Something else is painted."""
        with self._changed:
            self._strokes, self._news = strokes, True
            self._changed.notify_all()

    def read(self) -> tuple[View | None, Strokes]:
        """What holds now."""
        with self._changed:
            self._news = False
            return self._view, self._strokes

    def wait(self, seconds: float) -> None:
        """Until something is dropped that was not read yet, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, seconds)
