"""What fine-tuning gave so far: score against strokes painted, and the way back to any of the models."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_cellbrush.napari_ui.controls import ChoiceBox, NoticeLabel, side_by_side
from napari_cellbrush.napari_ui.score_curve import ScoreCurve
from napari_cellbrush.session import Checkpoint, Run


class HistoryPanel(QWidget):
    """Shows checkpoints, and asks to compare one or to use it."""

    compareRequested = Signal(str)
    useRequested = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._names: list[str] = []
        self._in_use = ""
        self._can_compute = False
        self.curve = ScoreCurve()
        self.choice = ChoiceBox()
        self.choice.setToolTip("Models of this session, the newest first, each with its score on the strokes that its "
                               "own training held out, and the range in which other strokes would score: where ranges "
                               "overlap, neither model is better for sure")
        self.compare = QPushButton("Compare")
        self.compare.setToolTip("Show as a layer where the view looks different with this model")
        self.use = QPushButton("Use this one")
        self.use.setToolTip("Segment with this model; the others stay in the library")
        self.notice = NoticeLabel()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.curve)
        layout.addWidget(self.choice)
        layout.addLayout(side_by_side(self.compare, self.use))
        layout.addWidget(self.notice)
        self.curve.chosen.connect(self._choose)
        self.choice.chosen.connect(lambda _: self._refresh_buttons())
        self.compare.clicked.connect(lambda: self.compareRequested.emit(self.choice.value() or ""))
        self.use.clicked.connect(lambda: self.useRequested.emit(self.choice.value() or ""))

    def setValue(self, timeline: Sequence[Checkpoint], in_use: str, comparison: Run, can_compute: bool) -> None:
        """Show what there is."""
        names = [checkpoint.name for checkpoint in timeline]
        # A new one is what the person wants to see; else what she chose stays chosen.
        chosen = self.choice.value() if names == self._names else (names[-1] if names else None)
        self._names, self._in_use = names, in_use
        self._can_compute = can_compute and not comparison.busy
        self.choice.set_choices([(c.name, in_words(c), "") for c in reversed(timeline)], chosen)
        self.curve.setValue(timeline)
        self.notice.setValue(comparison.notice)
        self._refresh_buttons()

    def _choose(self, name: str) -> None:
        self.choice.setValue(name)
        self._refresh_buttons()

    def _refresh_buttons(self) -> None:
        other = self.choice.value() not in (None, self._in_use)
        self.compare.setEnabled(other and self._can_compute)
        self.use.setEnabled(other)


def in_words(checkpoint: Checkpoint) -> str:
    """A checkpoint in one line."""
    strokes = "one stroke" if checkpoint.n_strokes == 1 else f"{checkpoint.n_strokes} strokes"
    if checkpoint.score is None:
        return f"{checkpoint.name}: no score, {strokes}"
    interval = " ({:.2f} to {:.2f})".format(*checkpoint.interval) if checkpoint.interval else ""
    return f"{checkpoint.name}: {checkpoint.score:.2f}{interval}, {strokes}"
