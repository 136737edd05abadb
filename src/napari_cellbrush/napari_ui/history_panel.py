"""What fine-tuning gave so far: score against what was labelled, and the way back to any of the models."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QPaintEvent
from qtpy.QtWidgets import QPushButton, QStyle, QStyleOptionComboBox, QStylePainter, QVBoxLayout, QWidget

from napari_cellbrush.napari_ui.controls import ChoiceBox, NoticeLabel, side_by_side, wrapped_label
from napari_cellbrush.napari_ui.score_curve import ScoreCurve
from napari_cellbrush.session import Checkpoint, Run


class ModelBox(ChoiceBox):
    """A list of models. What is too long for the dock lacks its middle: ends hold numbers and scores."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        entries = self.view()
        if entries is not None:
            entries.setTextElideMode(Qt.TextElideMode.ElideMiddle)

    def shown_text(self) -> str:
        """As much of the chosen entry as there is room for."""
        option, style = QStyleOptionComboBox(), self.style()
        self.initStyleOption(option)
        if style is None:
            return self.currentText()
        room = style.subControlRect(QStyle.ComplexControl.CC_ComboBox, option,
                                    QStyle.SubControl.SC_ComboBoxEditField, self)
        return self.fontMetrics().elidedText(self.currentText(), Qt.TextElideMode.ElideMiddle, room.width())

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Draw it with that text: by itself it would be cut off at its end."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        option.currentText = self.shown_text()
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)


class HistoryPanel(QWidget):
    """Shows checkpoints, and asks to compare one or to use it."""

    compareRequested = Signal(str)
    useRequested = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._names: list[str] = []
        self._details: dict[str, str] = {}
        self._in_use = ""
        self._can_compute = False
        self.curve = ScoreCurve()
        self.choice = ModelBox()
        self.choice.setToolTip("Models of this session, the newest first, each with its score on the strokes that its "
                               "own training held out")
        self.details = wrapped_label()
        self.details.setToolTip("In brackets, the range in which other strokes would score: where ranges overlap, "
                                "neither model is better for sure. A piece is a stroke, or a part of an accepted "
                                "object: its inside, its boundary, what lies around it")
        self.compare = QPushButton("Compare")
        self.compare.setToolTip("Show as a layer where the view looks different with this model")
        self.use = QPushButton("Use this one")
        self.use.setToolTip("Segment with this model; the others stay in the library")
        self.notice = NoticeLabel()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.curve)
        layout.addWidget(self.choice)
        layout.addWidget(self.details)
        layout.addLayout(side_by_side(self.compare, self.use))
        layout.addWidget(self.notice)
        self.curve.chosen.connect(self._choose)
        self.choice.chosen.connect(lambda _: self._refresh_chosen())
        self.compare.clicked.connect(lambda: self.compareRequested.emit(self.choice.value() or ""))
        self.use.clicked.connect(lambda: self.useRequested.emit(self.choice.value() or ""))

    def setValue(self, timeline: Sequence[Checkpoint], in_use: str, comparison: Run, can_compute: bool) -> None:
        """Show what there is."""
        names = [checkpoint.name for checkpoint in timeline]
        # A new one is what the person wants to see; else what she chose stays chosen.
        chosen = self.choice.value() if names == self._names else (names[-1] if names else None)
        self._names, self._in_use = names, in_use
        self._can_compute = can_compute and not comparison.busy
        self._details = {checkpoint.name: details_in_words(checkpoint) for checkpoint in timeline}
        self.choice.set_choices([(c.name, in_words(c), f"{c.name}: {self._details[c.name]}")
                                 for c in reversed(timeline)], chosen)
        self.curve.setValue(timeline)
        self.notice.setValue(comparison.notice)
        self._refresh_chosen()

    def _choose(self, name: str) -> None:
        self.choice.setValue(name)
        self._refresh_chosen()

    def _refresh_chosen(self) -> None:
        self.details.setText(self._details.get(self.choice.value() or "", ""))
        other = self.choice.value() not in (None, self._in_use)
        self.compare.setEnabled(other and self._can_compute)
        self.use.setEnabled(other)


def in_words(checkpoint: Checkpoint) -> str:
    """A checkpoint in a few words."""
    return checkpoint.name if checkpoint.score is None else f"{checkpoint.name}: {checkpoint.score:.2f}"


def details_in_words(checkpoint: Checkpoint) -> str:
    """How good a checkpoint is, and how much was labelled for it."""
    pieces = "one labelled piece" if checkpoint.n_strokes == 1 else f"{checkpoint.n_strokes:,} labelled pieces"
    if checkpoint.score is None:
        return f"No score, {pieces}."
    interval = " ({:.2f} to {:.2f})".format(*checkpoint.interval) if checkpoint.interval else ""
    return f"Score {checkpoint.score:.2f}{interval}, {pieces}."
