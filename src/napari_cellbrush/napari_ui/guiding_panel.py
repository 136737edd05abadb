"""Where to paint next, in the dock: a button, how unsure the model is, what is missing, which strokes look wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import QCheckBox, QPushButton, QVBoxLayout, QWidget

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.napari_ui.controls import NoticeLabel, wrapped_label
from napari_cellbrush.session import Advice, Notice, Run

if TYPE_CHECKING:
    from napari_cellbrush.engine.suggestions import Slip

_TIP = ("Moves the view to where the model is unsure, far from what you have painted (key N). With Live on, places "
        "where the live mask and the model disagree count more.")
#: Slips are listed one by one up to this many.
_MAX_SLIPS = 4


class GuidingPanel(QWidget):
    """Shows advice, and asks for more."""

    #: The person wants to see the next place, or the look to stop.
    nextRequested = Signal()
    stopRequested = Signal()
    uncertaintyToggled = Signal(bool)
    #: A stroke that she wants to look at.
    slipChosen = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._busy = False
        self.button = QPushButton("Next place")
        self.unsure = QCheckBox("Show where the model is unsure")
        self.notice = NoticeLabel()
        self.hints = wrapped_label()
        self.slips: list[QPushButton] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.button, self.unsure, self.notice, self.hints):
            layout.addWidget(widget)
        self._slips = QVBoxLayout()
        layout.addLayout(self._slips)
        self.button.clicked.connect(self._on_clicked)
        self.unsure.toggled.connect(self.uncertaintyToggled)

    def setValue(self, run: Run, advice: Advice, classes: Sequence[ClassDefinition], why_not: str,
                 shows_uncertainty: bool) -> None:
        """Show how it stands."""
        self._busy = run.busy
        self.button.setText("Stop" if run.busy else "Next place")
        self.button.setEnabled(run.busy or not why_not)
        self.button.setToolTip(why_not or _TIP)
        self.unsure.setEnabled(not run.busy and (shows_uncertainty or not why_not))
        blocker = QSignalBlocker(self.unsure)
        self.unsure.setChecked(shows_uncertainty)
        blocker.unblock()
        count = Notice(f"{run.notice.text} {run.count}".strip()) if run.busy else run.notice
        self.notice.setValue(count)
        self.hints.setText("\n".join(advice.hints))
        self.hints.setVisible(bool(advice.hints))
        self._show_slips(advice.slips, classes)

    def _show_slips(self, slips: Sequence[Slip], classes: Sequence[ClassDefinition]) -> None:
        for button in self.slips:
            self._slips.removeWidget(button)
            button.deleteLater()
        self.slips = []
        for slip in slips[:_MAX_SLIPS]:
            if max(slip.painted, slip.said) >= len(classes):
                continue
            button = QPushButton(f"A slip? Painted '{classes[slip.painted].name}', looks like "
                                 f"'{classes[slip.said].name}'")
            button.setToolTip(f"The model contradicts this stroke with {slip.confidence:.0%} probability. Show it.")
            button.clicked.connect(lambda _=False, slip=slip: self.slipChosen.emit(slip))
            self._slips.addWidget(button)
            self.slips.append(button)

    def _on_clicked(self) -> None:
        (self.stopRequested if self._busy else self.nextRequested).emit()
