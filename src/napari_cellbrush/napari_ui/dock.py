"""What every dock is: a scrolled column that shows the session of its viewer and calls it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psygnal import SignalInstance
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QFrame, QLabel, QLayout, QScrollArea, QVBoxLayout, QWidget

from napari_cellbrush.napari_ui.workbench import workbench_for
from napari_cellbrush.session import Session

if TYPE_CHECKING:
    from napari_cellbrush.engine.model_file import ModelEntry

#: Enough for every row beside a vertical scroll bar.
WIDTH_PX = 340
MARGIN_PX = 8
SPACING_PX = 8
LABEL_PX = 62


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
        # Not by Qt's "destroyed": what Python's collector has cleared by then, PyQt calls all the same, and crashes.
        weakref.finalize(self, signal.disconnect, call).atexit = False

    def form(self) -> QFormLayout:
        """A new block of rows with labels."""
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setVerticalSpacing(6)
        form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft)
        self.column.addLayout(form)
        return form

    def row(self, form: QFormLayout, label: str, field: QWidget | QLayout) -> None:
        """Add a row; fields of all blocks begin at the same place."""
        title = QLabel(label)
        title.setMinimumWidth(LABEL_PX)
        if isinstance(field, QWidget):
            title.setBuddy(field)
            title.setToolTip(field.toolTip())
            form.addRow(title, field)
        else:
            form.addRow(title, field)

    @contextmanager
    def part(self) -> Iterator[QWidget]:
        """What is added meanwhile goes into a widget of its own, to be shown and hidden as a whole."""
        widget, outside = QWidget(), self.column
        outside.addWidget(widget)
        self.column = QVBoxLayout(widget)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(SPACING_PX)
        yield widget
        self.column = outside

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


def model_choices(session: Session) -> list[tuple[str, str, str]]:
    """The library for a :class:`~napari_cellbrush.napari_ui.controls.ChoiceBox`."""
    return [(entry.name, f"{entry.name} (built in)" if entry.bundled else entry.name, _about(entry))
            for entry in session.models or ()]


def _about(entry: ModelEntry) -> str:
    card = entry.card
    lines = [entry.name, card.description, "Classes: " + ", ".join(definition.name for definition in card.classes),
             "Channels: any number" if card.any_channels else f"Channels: {card.in_channels}",
             f"Tuned from {card.base_name}, {card.created}" if card.base_name else ""]
    return "\n".join(filter(None, lines))
