"""The learning curve: the loss of every step, and the score on the strokes that were held out."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

# pyqtgraph takes the Qt binding that is already loaded: qtpy goes first.
from qtpy.QtCore import Qt, QTimer  # isort: skip
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QWidget

import pyqtgraph as pg  # isort: skip

from napari_cellbrush.napari_ui.plot import LOSS_COLOR, SCORE_COLOR, Plot

#: Milliseconds between two redraws.
REDRAW_MS = 100
#: Share of the smoothed loss that each step keeps.
SMOOTHING = 0.9
HEIGHT_PX = 170


class _Series:
    """Points that grow one at a time."""

    def __init__(self) -> None:
        self.x = array("d")
        self.y = array("d")

    def add(self, x: float, y: float) -> None:
        self.x.append(x)
        self.y.append(y)

    def draw(self, item: pg.PlotDataItem) -> None:
        item.setData(np.array(self.x), np.array(self.y))


class _SmoothedSeries(_Series):
    """Points that grow one at a time, each averaged with those before it."""

    def __init__(self) -> None:
        super().__init__()
        self._sum = 0.0
        self._weight = 0.0

    def add(self, x: float, y: float) -> None:
        # The weight of the unknown past is divided out, so that the first points are not pulled to zero.
        if math.isfinite(y):
            self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * y
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
            super().add(x, self._sum / self._weight)


class LearningCurve(Plot):
    """Loss on the left axis (thin: each step, bold: smoothed), score from 0 to 1 on the right one.

    The base model's score is a dashed line: points above it say that the strokes helped.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("step", HEIGHT_PX, {"left": ("loss", LOSS_COLOR), "right": ("score", SCORE_COLOR)}, parent)
        self._timer = QTimer(self)
        self._timer.setInterval(REDRAW_MS)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._redraw)
        self._build()
        self._recolour()
        self.clear()

    def start(self, n_steps: int, base_score: float | None) -> None:
        """Begin a new run.

        Parameters
        ----------
        n_steps
            Steps of the whole run; the length of the horizontal axis.
        base_score
            Score of the model that training starts from, in [0, 1]; None where none is measured.
        """
        self.clear()
        self._plot.setXRange(0, max(n_steps, 1), padding=0.02)
        if base_score is not None:
            self._base_line.setValue(base_score)
            self._base_line.show()
            self._base_line.label.setFormat(f"base {base_score:.2f}")  # ignored while hidden
            self._show_score_axis(True)

    @property
    def is_line(self) -> bool:
        """Whether there is more to see than one point."""
        return len(self._loss.x) > 1

    def add_loss(self, step: int, loss: float) -> None:
        """Add the loss of a step."""
        self._loss.add(step, loss)
        self._smoothed.add(step, loss)
        self._redraw_soon()

    def add_score(self, step: int, score: float) -> None:
        """Add a score on the held-out strokes, in [0, 1]."""
        self._score.add(step, score)
        self._show_score_axis(True)
        self._redraw_soon()

    def clear(self) -> None:
        """Forget all points."""
        self._loss, self._smoothed, self._score = _Series(), _SmoothedSeries(), _Series()
        self._base_line.hide()
        self._show_score_axis(False)
        self._redraw()

    def _build(self) -> None:
        self._plot.getAxis("left").enableAutoSIPrefix(False)
        self._plot.setLimits(yMin=0)
        self._build_score_axis()
        self._loss_item = self._plot.plot(pen=_pen(LOSS_COLOR, 1, 90), antialias=True, connect="finite")
        self._smoothed_item = self._plot.plot(pen=_pen(LOSS_COLOR, 2.5), antialias=True, connect="finite")
        for item in (self._loss_item, self._smoothed_item):
            item.setDownsampling(auto=True, method="mean")

    def _build_score_axis(self) -> None:
        """A second view over the first, with its own vertical axis."""
        self._score_view = pg.ViewBox(enableMenu=False, enableMouse=False)
        self._plot.scene().addItem(self._score_view)
        axis = self._plot.getAxis("right")
        axis.linkToView(self._score_view)
        self._score_view.setXLink(self._plot)
        self._score_view.setYRange(0, 1, padding=0.05)
        self._plot.vb.sigResized.connect(self._match_views)
        self._score_item = pg.PlotDataItem(pen=_pen(SCORE_COLOR, 2), antialias=True, symbol="o", symbolSize=5,
                                           symbolPen=None, symbolBrush=SCORE_COLOR)
        dashed = pg.mkPen(SCORE_COLOR, width=1.5, style=Qt.PenStyle.DashLine)
        self._base_line = pg.InfiniteLine(angle=0, pen=dashed, label="",
                                          labelOpts={"position": 0.98, "anchors": [(1, 0), (1, 1)]})
        self._score_view.addItem(self._score_item)
        self._score_view.addItem(self._base_line)

    def _match_views(self) -> None:
        self._score_view.setGeometry(self._plot.vb.sceneBoundingRect())
        self._score_view.linkedViewChanged(self._plot.vb, self._score_view.XAxis)

    def _show_score_axis(self, visible: bool) -> None:
        self._plot.showAxis("right", visible)

    def _recolour(self) -> None:
        super()._recolour()
        if hasattr(self, "_base_line"):
            self._base_line.label.setColor(self._text_colour())

    def _redraw_soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _redraw(self) -> None:
        self._loss.draw(self._loss_item)
        self._smoothed.draw(self._smoothed_item)
        self._score.draw(self._score_item)


def _pen(color: str, width: float, alpha: int = 255) -> Any:
    shade = QColor(color)
    shade.setAlpha(alpha)
    return pg.mkPen(shade, width=width)
