"""Score against what was labelled, so that a person sees when more of it stops paying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# pyqtgraph takes the Qt binding that is already loaded: qtpy goes first.
from qtpy.QtCore import Signal  # isort: skip
from qtpy.QtWidgets import QWidget

import pyqtgraph as pg  # isort: skip

from napari_cellbrush.napari_ui.plot import SCORE_COLOR, Plot
from napari_cellbrush.session import Checkpoint

HEIGHT_PX = 120
#: Share of the plot's width between models of equally many pieces, and the most that all of them take.
_BESIDE, _MOST_BESIDE = 0.05, 0.5


class ScoreCurve(Plot):
    """One point for each scored model, with its interval; a click chooses it. Hidden below two points."""

    #: The name of a checkpoint.
    chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("labelled pieces", HEIGHT_PX, {"left": ("score", SCORE_COLOR)}, parent)
        self._names: list[str] = []
        self._plot.setYRange(0, 1, padding=0.05)
        self._intervals = pg.ErrorBarItem(beam=0.0, pen=pg.mkPen(SCORE_COLOR, width=1))
        self._points = pg.PlotDataItem(pen=pg.mkPen(SCORE_COLOR, width=2), antialias=True, symbol="o", symbolSize=8,
                                       symbolPen=None, symbolBrush=SCORE_COLOR)
        self._points.sigPointsClicked.connect(self._on_clicked)
        self._plot.addItem(self._intervals)
        self._plot.addItem(self._points)

    def setValue(self, timeline: Sequence[Checkpoint]) -> None:
        """Show the scores of checkpoints."""
        scored = [checkpoint for checkpoint in timeline if checkpoint.score is not None]
        self._names = [checkpoint.name for checkpoint in scored]
        left, right = _range([checkpoint.n_strokes for checkpoint in scored])
        x = _side_by_side([checkpoint.n_strokes for checkpoint in scored], right - left)
        y = np.array([checkpoint.score for checkpoint in scored], float)
        ends = np.array([c.interval or (c.score, c.score) for c in scored], float).reshape(-1, 2)
        self._plot.setXRange(left, right, padding=0)
        self._points.setData(x, y)
        self._intervals.setData(x=x, y=y, top=np.maximum(ends[:, 1] - y, 0), bottom=np.maximum(y - ends[:, 0], 0))
        self.setVisible(len(scored) > 1)

    def _on_clicked(self, _: Any, points: Any, *__: Any) -> None:
        if len(points):
            self.chosen.emit(self._names[points[0].index()])


def _range(counts: Sequence[int]) -> tuple[float, float]:
    """What the axis shows: all points, and the numbers before and after them."""
    low, high = min(counts, default=0), max(counts, default=0)
    margin = max(1.5, 0.08 * (high - low))
    return low - margin, high + margin


def _side_by_side(counts: Sequence[int], width: float) -> NDArray[np.float64]:
    """Where models stand: those of equally many pieces beside each other, the first one left, so that all are seen."""
    x = np.array(counts, float)
    for count in set(counts):
        same = np.flatnonzero(np.array(counts) == count)
        step = width * min(_BESIDE, _MOST_BESIDE / len(same))
        x[same] += step * (np.arange(len(same)) - (len(same) - 1) / 2)
    return x
