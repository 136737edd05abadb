"""What every dock is: a scrolled column that shows the session of its viewer and calls it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from psygnal import SignalInstance
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QFrame, QLabel, QScrollArea, QVBoxLayout, QWidget

from napari_cellbrush.napari_ui.workbench import workbench_for

WIDTH_PX = 320
MARGIN_PX = 8
SPACING_PX = 8


class Dock(QWidget):
    """Base of the docks. Subclasses fill :attr:`column` in ``_build`` and show the session in ``_refresh``.

    Parameters
    ----------
    napari_viewer
        The viewer, or napari's proxy of it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.bench = workbench_for(napari_viewer)
        self.session = self.bench.session
        content = QWidget()
        self.column = QVBoxLayout(content)
        self.column.setContentsMargins(MARGIN_PX, MARGIN_PX, MARGIN_PX, MARGIN_PX)
        self.column.setSpacing(SPACING_PX)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(content)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area)
        self._build()
        self.column.addStretch(1)
        self.setMinimumWidth(WIDTH_PX)
        self._connect()
        self._refresh()

    def listen(self, signal: SignalInstance, slot: Callable[..., None]) -> None:
        """Call a method of this dock as long as the dock exists; its session lives longer."""
        dock, name = weakref.ref(self), slot.__name__

        def call(*arguments: Any) -> None:
            found = dock()
            if found is not None and isalive(found):  # type: ignore[no-untyped-call]
                getattr(found, name)(*arguments)

        signal.connect(call)
        # Called when the dock is gone already, so it must know nothing of it.
        self.destroyed.connect(partial(_disconnect, signal, call))

    def form(self) -> QFormLayout:
        """A new block of rows with labels."""
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setVerticalSpacing(6)
        self.column.addLayout(form)
        return form

    def heading(self, text: str) -> None:
        """A title above a block."""
        label = QLabel(text)
        font = label.font()
        font.setBold(True)
        label.setFont(font)
        label.setContentsMargins(0, 6, 0, 0)
        self.column.addWidget(label)

    def _build(self) -> None:
        raise NotImplementedError

    def _connect(self) -> None:
        raise NotImplementedError

    def _refresh(self) -> None:
        raise NotImplementedError


def _disconnect(signal: SignalInstance, call: Callable[..., None], _: Any = None) -> None:
    signal.disconnect(call)
