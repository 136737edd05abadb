"""A small plot in the colours of the window's theme, to look at rather than to move about in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# pyqtgraph takes the Qt binding that is already loaded: qtpy goes first.
from qtpy.QtCore import QEvent  # isort: skip
from qtpy.QtGui import QColor, QPalette
from qtpy.QtWidgets import QVBoxLayout, QWidget

import pyqtgraph as pg  # isort: skip

LOSS_COLOR = "#4c9be8"
SCORE_COLOR = "#e8873a"


class _Counts(pg.AxisItem):  # type: ignore[misc]  # pyqtgraph has no types
    """An axis of what is counted: there is no half a step, and none before the first."""

    def tickSpacing(self, minVal: float, maxVal: float, size: float) -> Any:
        """Distances between numbers, largest first."""
        return [(spacing, offset) for spacing, offset in super().tickSpacing(minVal, maxVal, size)
                if spacing >= 1] or [(1, 0)]

    def tickStrings(self, values: Sequence[float], scale: float, spacing: float) -> list[str]:
        """What stands at them."""
        texts: list[str] = super().tickStrings(values, scale, spacing)
        return [text if value >= 0 else "" for text, value in zip(texts, values, strict=True)]


class Plot(QWidget):
    """One plot without menus, buttons or dragging.

    Parameters
    ----------
    bottom
        Title of the horizontal axis, which counts something.
    height_px
        The widget's height.
    titles
        Title and colour of each vertical axis, by its side, ``left`` or ``right``.
    """

    def __init__(self, bottom: str, height_px: int, titles: dict[str, tuple[str, str]],
                 parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._titles = titles
        view = pg.PlotWidget(background=None, axisItems={"bottom": _Counts("bottom")})
        view.setFrameShape(view.Shape.NoFrame)
        self._plot = view.getPlotItem()
        self._plot.setMenuEnabled(False)
        self._plot.hideButtons()
        self._plot.setMouseEnabled(x=False, y=False)
        self._plot.setLabel("bottom", bottom)
        self._plot.getAxis("bottom").setHeight(38)
        # Half of the topmost number stands above the axis, and a part of the title below it.
        self._plot.setContentsMargins(0, 6, 0, 6)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(view)
        self.setFixedHeight(height_px)
        self._recolour()

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        kinds = (QEvent.Type.PaletteChange, QEvent.Type.StyleChange)
        if event is not None and event.type() in kinds and hasattr(self, "_plot"):
            self._recolour()

    def _text_colour(self) -> QColor:
        return self.palette().color(QPalette.ColorRole.WindowText)

    def _recolour(self) -> None:
        for name in ("bottom", *self._titles):
            axis = self._plot.getAxis(name)
            axis.setPen(self._text_colour())
            axis.setTextPen(self._text_colour())
        for name, (title, color) in self._titles.items():
            self._plot.getAxis(name).setLabel(title, color=color)
