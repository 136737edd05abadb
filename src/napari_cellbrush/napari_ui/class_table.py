"""The table of classes: key, colour, name, what it counts as, painted pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from qtpy.QtCore import QModelIndex, QSignalBlocker, QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QComboBox,
    QHeaderView,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_cellbrush.config import ClassDefinition, ClassRole

KEY, COLOUR, NAME, ROLE, PAINTED = range(5)
ROW_PX = 26
SWATCH_PX = 16
#: Rows after which the table scrolls.
MOST_ROWS = 6
_HEADERS = {
    KEY: ("Key", "The digit that chooses the class while the annotation layer is active"),
    COLOUR: ("", "Double-click to change the colour"),
    NAME: ("Class", "Double-click to rename"),
    ROLE: ("Counts as", "What the class means when objects are numbered: background lies between them, each piece of "
           "object is one, boundary keeps touching ones apart. Double-click to change"),
    PAINTED: ("Painted", "Painted pixels, on all images"),
}
_ROLE_TIPS = {
    "background": "Everything between the objects",
    "object": "Connected regions of it are objects: cells, nuclei …",
    "boundary": "The rim where objects touch; it keeps them apart and is given to them at the end",
}


class _RoleDelegate(QStyledItemDelegate):
    """Edits a role by choosing from the three there are."""

    def createEditor(self, parent: QWidget | None, option: QStyleOptionViewItem, index: QModelIndex) -> QWidget:
        box = QComboBox(parent)
        for role in get_args(ClassRole):
            box.addItem(role)
            box.setItemData(box.count() - 1, _ROLE_TIPS[role], Qt.ItemDataRole.ToolTipRole)
        box.activated.connect(lambda _: self.commitData.emit(box))
        box.activated.connect(lambda _: self.closeEditor.emit(box))
        return box

    def setEditorData(self, editor: QWidget | None, index: QModelIndex) -> None:
        if isinstance(editor, QComboBox):
            editor.setCurrentText(str(index.data()))
            editor.showPopup()


class ClassTable(QTableWidget):
    """Shows classes and says what the person wants of them; changes nothing by itself."""

    #: Position of the class to paint with.
    chosen = Signal(int)
    renamed = Signal(int, str)
    recoloured = Signal(int, str)
    roleChanged = Signal(int, str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(_HEADERS), parent)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setShowGrid(False)
        self.setIconSize(QSize(SWATCH_PX, SWATCH_PX))
        self.setItemDelegateForColumn(ROLE, _RoleDelegate(self))
        self._build_headers()
        self.itemSelectionChanged.connect(self._on_selected)
        self.itemChanged.connect(self._on_edited)
        self.cellDoubleClicked.connect(self._on_double_clicked)

    def setValue(self, classes: Sequence[ClassDefinition], painted: Sequence[int], current: int) -> None:
        """Show classes, their painted pixels, and which one is painted with."""
        blocker = QSignalBlocker(self)
        if self.rowCount() != len(classes):
            self.setRowCount(len(classes))
            self._fit_height()
        for row, (definition, count) in enumerate(zip(classes, painted, strict=True)):
            self._set(row, KEY, str(row + 1) if row < 9 else "", editable=False)
            self._set(row, COLOUR, "", editable=False, color=definition.color)
            self._set(row, NAME, definition.name)
            self._set(row, ROLE, definition.role, tip=_ROLE_TIPS[definition.role])
            self._set(row, PAINTED, f"{count:,}" if count else "–", editable=False)
        self.selectRow(current)
        blocker.unblock()

    def _build_headers(self) -> None:
        self.setHorizontalHeaderLabels([title for title, _ in _HEADERS.values()])
        for column, (_, tip) in _HEADERS.items():
            item = self.horizontalHeaderItem(column)
            if item is not None:
                item.setToolTip(tip)
                if column == NAME:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        if rows is not None and columns is not None:
            rows.hide()
            rows.setDefaultSectionSize(ROW_PX)
            columns.setFixedHeight(ROW_PX)
            columns.setHighlightSections(False)
            columns.setSectionsClickable(False)
            columns.setMinimumSectionSize(28)
            columns.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            columns.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)

    def _fit_height(self) -> None:
        rows = sum(self.rowHeight(row) for row in range(min(self.rowCount(), MOST_ROWS)))
        self.setFixedHeight(ROW_PX + rows + 2 * self.frameWidth() + 2)

    def _set(self, row: int, column: int, text: str, *, editable: bool = True, color: str = "", tip: str = "") -> None:
        item = self.item(row, column)
        if item is None:
            item = QTableWidgetItem()
            self.setItem(row, column, item)
        flags = Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEnabled
        item.setFlags(flags | Qt.ItemFlag.ItemIsEditable if editable else flags)
        item.setText(text)
        item.setToolTip(tip or _HEADERS[column][1])
        if column in (KEY, PAINTED):
            item.setTextAlignment(Qt.AlignmentFlag.AlignCenter if column == KEY else
                                  Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if color:
            item.setIcon(swatch(color))

    def _on_selected(self) -> None:
        rows = {index.row() for index in self.selectedIndexes()}
        if len(rows) == 1:
            self.chosen.emit(rows.pop())

    def _on_edited(self, item: QTableWidgetItem) -> None:
        if item.column() == NAME:
            self.renamed.emit(item.row(), item.text())
        elif item.column() == ROLE:
            self.roleChanged.emit(item.row(), item.text())

    def _on_double_clicked(self, row: int, column: int) -> None:
        if column == COLOUR:
            dialog = QColorDialog(self)
            dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
            dialog.colorSelected.connect(lambda color: self.recoloured.emit(row, color.name()))
            dialog.open()


def swatch(color: str) -> QIcon:
    """A square of one colour."""
    pixmap = QPixmap(SWATCH_PX, SWATCH_PX)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(QColor(color))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.drawRoundedRect(pixmap.rect(), 3, 3)
    painter.end()
    icon = QIcon(pixmap)
    # Without this the row's selection would tint the colour.
    icon.addPixmap(pixmap, QIcon.Mode.Selected)
    return icon
