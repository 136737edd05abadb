"""Small controls that all docks share: a choice, a sentence, a run with its big button."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStyle,
    QVBoxLayout,
    QWidget,
)

from napari_cellbrush.session import Notice, Phase, Run, duration_in_words

BIG_BUTTON_PX = 40
ICON_PX = 18
PROGRESS_STEPS = 1000
_ICONS = {
    "warning": QStyle.StandardPixmap.SP_MessageBoxWarning,
    "error": QStyle.StandardPixmap.SP_MessageBoxCritical,
    "success": QStyle.StandardPixmap.SP_DialogApplyButton,
}


class ChoiceBox(QComboBox):
    """A list of names, each standing for a key."""

    #: The key that the person chose; not emitted when the program chooses.
    chosen = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        # Long names must not widen the dock.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(10)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._from_popup = False
        self.activated.connect(self._on_activated)

    def showPopup(self) -> None:
        """Open the list."""
        self._from_popup = True
        super().showPopup()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Walk through the closed list, or open it."""
        self._from_popup = False
        super().keyPressEvent(event)

    def _on_activated(self, _: int) -> None:
        # Who chose with the mouse has the picture's keys again: here, the next one would choose what begins with its
        # letter.
        if self._from_popup and not isinstance(self.window(), QDialog):
            self.clearFocus()
        self.chosen.emit(self.value())

    def value(self) -> str | None:
        """The key of the shown name."""
        value: str | None = self.currentData()
        return value

    def setValue(self, key: str | None) -> None:
        """Show the name of a key; nothing if there is no such key."""
        blocker = QSignalBlocker(self)
        self.setCurrentIndex(self.findData(key))
        blocker.unblock()

    def set_choices(self, choices: Sequence[tuple[str, str, str]], key: str | None, nothing: str = "") -> None:
        """Offer keys with names and tool tips, and show one of them; ``nothing`` is shown where there is none."""
        blocker = QSignalBlocker(self)
        self.clear()
        for value, name, tip in choices:
            self.addItem(name, value)
            self.setItemData(self.count() - 1, tip or name, Qt.ItemDataRole.ToolTipRole)
        self.setPlaceholderText(nothing)
        self.setEnabled(bool(choices))
        self.setCurrentIndex(self.findData(key))
        blocker.unblock()


class NoticeLabel(QWidget):
    """A sentence with the sign of what it is; takes no space while there is none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._icon = QLabel()
        self._text = wrapped_label()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 2, 0, 2)
        layout.addWidget(self._icon, 0, Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self._text, 1)
        self.setValue(Notice())

    def text(self) -> str:
        """The sentence."""
        return self._text.text()

    def setValue(self, notice: Notice) -> None:
        """Show a sentence."""
        self._text.setText(notice.text)
        style = self.style()
        if notice.kind in _ICONS and style is not None:
            self._icon.setPixmap(style.standardIcon(_ICONS[notice.kind]).pixmap(ICON_PX, ICON_PX))
        self._icon.setVisible(notice.kind in _ICONS)
        self.setVisible(bool(notice.text))


class RunPanel(QWidget):
    """A big button that starts a run and then stops it, with its progress and its last sentence."""

    startRequested = Signal()
    stopRequested = Signal()

    def __init__(self, start_text: str, stop_text: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._start_text = start_text
        self._stop_text = stop_text
        self._phase = Phase.IDLE
        self.button = QPushButton(start_text)
        self.button.setMinimumHeight(BIG_BUTTON_PX)
        font = self.button.font()
        font.setBold(True)
        font.setPointSizeF(font.pointSizeF() * 1.15)
        self.button.setFont(font)
        self.reason = wrapped_label()
        self.progress = QProgressBar()
        self.count = QLabel()
        self.notice = NoticeLabel()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, 0)
        for widget in (self.button, self.reason, self.progress, self.count, self.notice):
            layout.addWidget(widget)
        self.progress.setTextVisible(False)
        self.button.clicked.connect(self._on_clicked)

    def setValue(self, run: Run, why_not: str) -> None:
        """Show how a run stands and, if it cannot start, the reason in words."""
        self._phase = run.phase
        self.button.setText(self._stop_text if run.busy else self._start_text)
        self.button.setEnabled(run.phase is Phase.RUNNING or (not run.busy and not why_not))
        self.button.setToolTip("" if run.busy else why_not)
        self.progress.setVisible(run.busy)
        self.progress.setRange(0, 0 if run.fraction is None else PROGRESS_STEPS)
        self.progress.setValue(round((run.fraction or 0) * PROGRESS_STEPS))
        left = f", about {duration_in_words(run.seconds_left)} left" if run.seconds_left is not None else ""
        self.count.setText(f"{run.count}{left}".capitalize())
        self.count.setVisible(run.busy and bool(self.count.text()))
        self.reason.setText("" if run.busy else why_not)
        self.reason.setVisible(bool(self.reason.text()))
        self.notice.setValue(run.notice)

    def _on_clicked(self) -> None:
        if self._phase is Phase.IDLE:
            self.startRequested.emit()
        else:
            self.stopRequested.emit()


def side_by_side(*widgets: QWidget) -> QHBoxLayout:
    """Widgets in a row, all of one width."""
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget, 1)
    return row


def wrapped_label(text: str = "") -> QLabel:
    """A label of several lines, from which text can be copied."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    # A wrapped label otherwise asks for the width of a long word and for too few lines.
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)
    return label
