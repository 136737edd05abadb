"""Score against strokes painted, so that a person sees when more painting stops paying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# pyqtgraph takes the Qt binding that is already loaded: qtpy goes first.
from qtpy.QtCore import QEvent, Signal  # isort: skip
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import QVBoxLayout, QWidget

import pyqtgraph as pg  # isort: skip

from napari_cellbrush.napari_ui.curve import SCORE_COLOR
from napari_cellbrush.session import Checkpoint

HEIGHT_PX = 120


class ScoreCurve(QWidget):
    """One point for each scored model, with its interval; a click chooses it. Hidden below two points."""

    #: The name of a checkpoint.
    chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._names: list[str] = []
        view = pg.PlotWidget(background=None)
        view.setFrameShape(view.Shape.NoFrame)
        self._plot = view.getPlotItem()
        self._plot.setMenuEnabled(False)
        self._plot.hideButtons()
        self._plot.setMouseEnabled(x=False, y=False)
        self._plot.setLabel("bottom", "strokes painted")
        self._plot.setLabel("left", "score", color=SCORE_COLOR)
        self._plot.getAxis("bottom").setHeight(38)
        self._plot.setYRange(0, 1, padding=0.05)
        self._plot.setContentsMargins(0, 6, 0, 6)
        self._intervals = pg.ErrorBarItem(beam=0.0, pen=pg.mkPen(SCORE_COLOR, width=1))
        self._points = pg.PlotDataItem(pen=pg.mkPen(SCORE_COLOR, width=2), antialias=True, symbol="o", symbolSize=8,
                                       symbolPen=None, symbolBrush=SCORE_COLOR)
        self._points.sigPointsClicked.connect(self._on_clicked)
        self._plot.addItem(self._intervals)
        self._plot.addItem(self._points)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(view)
        self.setFixedHeight(HEIGHT_PX)
        self._recolour()

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

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        kinds = (QEvent.Type.PaletteChange, QEvent.Type.StyleChange)
        if event is not None and event.type() in kinds and hasattr(self, "_plot"):
            self._recolour()

    def _recolour(self) -> None:
        text = self.palette().color(QPalette.ColorRole.WindowText)
        for name in ("bottom", "left"):
            self._plot.getAxis(name).setPen(text)
            self._plot.getAxis(name).setTextPen(text)
        self._plot.getAxis("left").setLabel("score", color=SCORE_COLOR)

    def _on_clicked(self, _: Any, points: Any, *__: Any) -> None:
        if len(points):
            self.chosen.emit(self._names[points[0].index()])
