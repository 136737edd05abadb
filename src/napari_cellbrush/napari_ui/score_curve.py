"""Score against strokes painted, so that a person sees when more painting stops paying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# pyqtgraph takes the Qt binding that is already loaded: qtpy goes first.
from qtpy.QtCore import Signal  # isort: skip
from qtpy.QtWidgets import QWidget

import pyqtgraph as pg  # isort: skip

from napari_cellbrush.napari_ui.plot import SCORE_COLOR, Plot
from napari_cellbrush.session import Checkpoint

HEIGHT_PX = 120


class ScoreCurve(Plot):
    """One point for each scored model, with its interval; a click chooses it. Hidden below two points."""

    #: The name of a checkpoint.
    chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("strokes painted", HEIGHT_PX, {"left": ("score", SCORE_COLOR)}, parent)
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
        x = np.array([checkpoint.n_strokes for checkpoint in scored], float)
        y = np.array([checkpoint.score for checkpoint in scored], float)
        ends = np.array([c.interval or (c.score, c.score) for c in scored], float).reshape(-1, 2)
        self._points.setData(x, y)
        self._intervals.setData(x=x, y=y, top=np.maximum(ends[:, 1] - y, 0), bottom=np.maximum(y - ends[:, 0], 0))
        self.setVisible(len(scored) > 1)

    def _on_clicked(self, _: Any, points: Any, *__: Any) -> None:
        if len(points):
            self.chosen.emit(self._names[points[0].index()])
