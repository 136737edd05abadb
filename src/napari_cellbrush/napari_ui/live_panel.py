"""The switch of the live loop, with one sentence about how it stands."""

from __future__ import annotations

from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_cellbrush.config import LiveConfig
from napari_cellbrush.napari_ui.config_form import ConfigForm
from napari_cellbrush.napari_ui.controls import BIG_BUTTON_PX, NoticeLabel
from napari_cellbrush.session import Notice, Run

_TIP = ("While it is on, a mask follows your strokes: what you see is segmented after each of them (key L). "
        "Hold the space bar to see the image without masks.")


class LivePanel(QWidget):
    """Shows a run and switches it."""

    #: The person wants it on or off.
    switched = Signal(bool)
    #: The person changed the settings.
    configured = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.button = QPushButton("Live")
        self.button.setCheckable(True)
        self.button.setMinimumHeight(BIG_BUTTON_PX)
        self.button.setToolTip(_TIP)
        self.notice = NoticeLabel()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.button)
        layout.addWidget(self.notice)
        self.config = ConfigForm(LiveConfig)
        layout.addWidget(self.config)
        self.config.valueChanged.connect(self.configured)
        self.button.toggled.connect(self.switched)

    def setValue(self, run: Run, config: LiveConfig) -> None:
        """Show how it stands."""
        self.config.setValue(config)
        blocker = QSignalBlocker(self.button)
        self.button.setChecked(run.busy)
        blocker.unblock()
        self.button.setText("Live is on" if run.busy else "Live")
        self.notice.setValue(run.notice if run.notice.text else Notice())
