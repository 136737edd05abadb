"""A table of objects, one a row: sorted by a click on a column, and a click on a row says which object is meant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QAbstractTableModel, QModelIndex, QSortFilterProxyModel, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QAbstractItemView, QTableView, QWidget

_HEIGHT_PX, _COLUMN_PX = 220, 80
_NOWHERE = QModelIndex()


class _Columns(QAbstractTableModel):
    """Columns of one length; values are made into text only where they are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: dict[str, NDArray[Any]] = {}

    def replace(self, columns: dict[str, NDArray[Any]]) -> None:
        self.beginResetModel()
        self.columns = columns
        self.endResetModel()

    def rowCount(self, parent: QModelIndex = _NOWHERE) -> int:
        return len(next(iter(self.columns.values()), ()))

    def columnCount(self, parent: QModelIndex = _NOWHERE) -> int:
        return len(self.columns)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return list(self.columns)[section]
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if role not in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.UserRole):
            return None
        value = list(self.columns.values())[index.column()][index.row()]
        plain = value.item() if isinstance(value, np.generic) else value
        # Numbers are sorted as numbers, and shown as short as can be.
        return plain if role == Qt.ItemDataRole.UserRole else _in_words(plain)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "✓" if value else ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


class ObjectTable(QTableView):
    """Shows columns of which the first holds ids."""

    #: The id in the row that the person clicked, or went to by the arrow keys.
    chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._columns = _Columns()
        self._sorted = QSortFilterProxyModel(self)
        self._sorted.setSourceModel(self._columns)
        self._sorted.setSortRole(Qt.ItemDataRole.UserRole)
        self.setModel(self._sorted)
        self.setSortingEnabled(True)
        self.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setFixedHeight(_HEIGHT_PX)
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        if rows is not None and columns is not None:
            rows.hide()
            columns.setDefaultSectionSize(_COLUMN_PX)
            columns.setStretchLastSection(True)
        self._showing = False
        selection = self.selectionModel()
        if selection is not None:
            selection.currentRowChanged.connect(self._on_row)

    def setValue(self, columns: dict[str, NDArray[Any]], chosen: int) -> None:
        """Show other columns and mark the row of an id; says nothing about it."""
        self._showing = True
        try:
            if not _same(columns, self._columns.columns):
                self._columns.replace(columns)
            rows = np.flatnonzero(next(iter(columns.values()), np.zeros(0)) == chosen)
            if len(rows):
                index = self._sorted.mapFromSource(self._columns.index(int(rows[0]), 0))
                self.setCurrentIndex(index)
                self.scrollTo(index)
            else:
                self.clearSelection()
        finally:
            self._showing = False

    def ids(self) -> list[int]:
        """The ids as they are shown, from the top."""
        return [int(self._sorted.index(row, 0).data(Qt.ItemDataRole.UserRole))
                for row in range(self._sorted.rowCount())]

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Letters are the tools' keys, wherever the focus is; arrows go from row to row."""
        if event is not None and event.text().strip():
            event.ignore()
        else:
            super().keyPressEvent(event)

    def _on_row(self, current: QModelIndex, _: QModelIndex) -> None:
        if not self._showing and current.isValid():
            self.chosen.emit(int(self._sorted.index(current.row(), 0).data(Qt.ItemDataRole.UserRole)))


def _same(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> bool:
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)
