"""Annotate: which image, what its axes mean, which classes there are, and the layer to paint them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QDialog,
    QDialogButtonBox,
    QHBoxLayout,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QRadioButton,
    QSlider,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_cellbrush.config import LabelKind
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui.autosaving_bar import RecoveryBar
from napari_cellbrush.napari_ui.class_table import ClassTable
from napari_cellbrush.napari_ui.controls import BIG_BUTTON_PX, ChoiceBox, NoticeLabel, side_by_side, wrapped_label
from napari_cellbrush.napari_ui.dock import SPACING_PX, Dock
from napari_cellbrush.napari_ui.guiding_panel import GuidingPanel
from napari_cellbrush.napari_ui.layers import keys_in_words
from napari_cellbrush.napari_ui.live_panel import LivePanel
from napari_cellbrush.session import MaskEntry, Notice, Phase, axes_in_words

LARGEST_BRUSH_PX = 100
_HOW_IT_WORKS = ("What you leave unpainted (0) is unlabelled, not background. So paint some background too: it is "
                 "a class of its own.\n\nWhat a class counts as matters where cells are numbered (Segment, Result: "
                 "Objects). Each piece of an object class becomes one cell; a boundary keeps touching cells apart."
                 "\n\nYou can also teach with whole cells, each with a number of its own: Correct, Paint objects.")

_FROM_LABELS = ("Start from a copy of a labels layer: painted classes, or objects (instance masks). A mask that was "
                "opened as an image becomes one by a right click on it in the list of layers: Convert to Labels")


class AnnotateDock(Dock):
    """Shows images, axes, classes and brush; makes annotation layers."""

    def _build(self) -> None:
        self.image = ChoiceBox()
        self.axes = QLineEdit()
        self.axes.setToolTip("One letter per axis: T time, C channel, Z depth, Y row, X column, S colour")
        self.axes_words = wrapped_label()
        form = self.form()
        self.row(form, "Image", self.image)
        self.row(form, "Axes", self.axes)
        self.row(form, "", self.axes_words)
        self.recovery = RecoveryBar()
        self.column.addWidget(self.recovery)
        self.new = QPushButton("New annotation")
        self.take_over = QPushButton("From labels…")
        self.take_over.setToolTip(_FROM_LABELS)
        self.column.addLayout(side_by_side(self.new, self.take_over))
        for button in (self.new, self.take_over):
            button.setMinimumHeight(BIG_BUTTON_PX)
        self.live = LivePanel()
        self.column.addWidget(self.live)
        self.heading("Classes")
        self.table = ClassTable()
        self.column.addWidget(self.table)
        self.add = QPushButton("Add class")
        self.remove = QPushButton("Remove class")
        self.column.addLayout(side_by_side(self.add, self.remove))
        self._build_brush()
        self.heading("Where to paint next")
        self.guide = GuidingPanel()
        self.column.addWidget(self.guide)
        self.notice = NoticeLabel()
        self.column.addWidget(self.notice)
        self.saved = NoticeLabel()
        self.column.addWidget(self.saved)
        self.column.addWidget(wrapped_label(_HOW_IT_WORKS))

    def _build_brush(self) -> None:
        self.brush = QSlider(Qt.Orientation.Horizontal)
        self.brush.setRange(1, LARGEST_BRUSH_PX)
        self.brush_box = QSpinBox()
        self.brush_box.setRange(1, LARGEST_BRUSH_PX)
        self.brush_box.setSuffix(" px")
        for widget in (self.brush, self.brush_box):
            widget.setToolTip("Diameter of the brush in pixels of the image; the keys [ and ] change it too")
        row = QHBoxLayout()
        row.setSpacing(SPACING_PX)
        row.addWidget(self.brush, 1)
        row.addWidget(self.brush_box)
        form = self.form()
        self.row(form, "Brush", row)
        self.keys = wrapped_label()
        self.row(form, "Keys", self.keys)

    def _connect(self) -> None:
        session = self.session
        self.image.chosen.connect(self.bench.showing.choose)
        self.axes.editingFinished.connect(self._on_axes_edited)
        self.new.clicked.connect(self._on_new)
        self.take_over.clicked.connect(self._on_take_over)
        self.live.switched.connect(self.bench.live.switch)
        self.live.configured.connect(self.bench.live.configure)
        self.table.chosen.connect(self.bench.annotating.paint_with)
        self.table.renamed.connect(lambda row, name: self._change(row, name=name))
        self.table.recoloured.connect(lambda row, color: self._change(row, color=color))
        self.table.roleChanged.connect(lambda row, role: self._change(row, role=role))
        self.add.clicked.connect(lambda: self._try(session.add_class))
        self.remove.clicked.connect(self._on_remove)
        self.brush.valueChanged.connect(session.set_brush)
        self.brush_box.valueChanged.connect(session.set_brush)
        for signal in (session.images_changed, session.image_chosen, session.annotations_changed):
            self.listen(signal, self._refresh)
        for signal in (session.classes_changed, session.class_chosen):
            self.listen(signal, self._refresh_classes)
        self.listen(session.painted_changed, self._refresh_table)
        self.listen(session.brush_changed, self._refresh_brush)
        self.listen(session.taking_over.changed, self._refresh_taking_over)
        self.listen(session.keeping.changed, self._refresh_keeping)
        self.recovery.restoreRequested.connect(self.bench.autosaving.restore)
        self.recovery.discardRequested.connect(self.bench.autosaving.discard)
        self.listen(session.live.changed, self._refresh_live)
        self.guide.nextRequested.connect(self.bench.guiding.next_place)
        self.guide.stopRequested.connect(self.bench.guiding.stop)
        self.guide.uncertaintyToggled.connect(self.bench.guiding.show_uncertainty)
        self.guide.slipChosen.connect(self.bench.guiding.go_to_slip)
        for signal in (session.guiding.changed, session.models_changed, session.training.changed,
                       session.segmentation.changed):
            self.listen(signal, self._refresh_guide)

    # ---------------------------------------------------------------------------------------------- showing

    def _refresh(self) -> None:
        session, image = self.session, self.session.image
        self.image.set_choices([(i.key, i.name, f"{i.name}, {_size(i.shape)}") for i in session.images],
                               image.key if image else None, "Open an image first")
        self.axes.setEnabled(image is not None)
        self.axes.setText(image.axes if image else "")
        self.axes_words.setText(axes_in_words(image.axes) if image else "")
        self.axes_words.setVisible(image is not None)
        self.new.setEnabled(image is not None)
        self._refresh_taking_over()
        self._refresh_classes()
        self._refresh_brush()
        self._refresh_keeping()
        self._refresh_live()
        self._refresh_guide()

    def _refresh_guide(self) -> None:
        session, guiding = self.session, self.bench.guiding
        self.guide.setValue(session.guiding, session.advice, session.classes, guiding.why_not(),
                            guiding.shows_uncertainty)

    def _refresh_keeping(self) -> None:
        session, keeping = self.session, self.session.keeping
        self.recovery.setValue(keeping.first_found(session.image), session.image, keeping.restoring)
        painting = session.image is not None and session.annotation_of(session.image.key) is not None
        self.saved.setValue(keeping.notice if keeping.notice.text else Notice(
            f"Strokes saved at {keeping.saved}." if keeping.saved and painting else ""))

    def _refresh_live(self) -> None:
        self.live.setValue(self.session.live, self.session.live_config)
        self.live.button.setEnabled(self.session.live.busy or self.session.image is not None)

    def _refresh_table(self) -> None:
        session = self.session
        self.table.setValue(session.classes, session.painted, session.current_class)

    def _refresh_classes(self) -> None:
        session = self.session
        self._refresh_table()
        self.keys.setText(keys_in_words(len(session.classes)))
        self.remove.setEnabled(len(session.classes) > 2)
        run = session.taking_over
        self.notice.setValue(run.notice if run.busy else Notice(self._next_step()))

    def _refresh_taking_over(self) -> None:
        run = self.session.taking_over
        self.take_over.setText("Stop" if run.busy else "From labels…")
        self.take_over.setEnabled(run.phase is Phase.RUNNING or (
            not run.busy and self.session.image is not None and bool(self._sources())))
        self.notice.setValue(run.notice if run.notice.text else Notice(self._next_step()))

    def _refresh_brush(self) -> None:
        for widget in (self.brush, self.brush_box):
            blocker = QSignalBlocker(widget)
            widget.setValue(self.session.brush_px)
            blocker.unblock()

    def _next_step(self) -> str:
        session = self.session
        if session.image is None:
            return "Open an image: drag a file into the window, or File, Open Sample, Cellbrush."
        layer = self.bench.annotating.layer_of(session.image.key)
        if layer is None:
            return f"Press New annotation to paint on '{session.image.name}'."
        return f"Painting '{session.classes[session.current_class].name}' on '{layer.name}'."

    # ----------------------------------------------------------------------------------------------- acting

    def _try(self, action: Any, *arguments: Any, **named: Any) -> None:
        try:
            action(*arguments, **named)
        except CellbrushError as error:
            self._refresh()
            self.notice.setValue(Notice(str(error), "warning"))

    def _change(self, position: int, **changes: Any) -> None:
        self._try(self.session.change_class, position, **changes)

    def _on_axes_edited(self) -> None:
        image = self.session.image
        if image is not None and self.axes.text().strip().upper() != image.axes:
            self._try(self.session.set_axes, image.key, self.axes.text())

    def _on_new(self) -> None:
        if self.session.image is not None:
            self._try(self.bench.annotating.new_annotation, self.session.image.key)

    def _on_take_over(self) -> None:
        if self.session.taking_over.busy:
            self.bench.annotating.stop()
            return
        image = self.session.image
        replaced = self.bench.annotating.layer_of(image.key) if image is not None else None
        dialog = TakeOverDialog(self._sources(), replaced.name if replaced is not None else "",
                                self.bench.annotating.likely_kind, self)
        dialog.chosen.connect(self._on_source_chosen)
        dialog.open()

    def _on_source_chosen(self, key: str, kind: LabelKind) -> None:
        if self.session.image is not None:
            self.bench.annotating.take_over(key, self.session.image.key, kind)

    def _on_remove(self) -> None:
        position = self.session.current_class
        name, painted = self.session.classes[position].name, self.session.painted[position]
        if painted and QMessageBox.question(
                self, "Remove class", f"Remove '{name}' and its {painted:,} painted pixels? This cannot be undone.",
                ) != QMessageBox.StandardButton.Yes:
            return
        self._try(self.bench.annotating.remove_class, position)

    def _sources(self) -> list[MaskEntry]:
        in_use = set(self.session.annotations.values())
        return [mask for mask in self.session.masks if mask.labels and mask.key not in in_use]


class TakeOverDialog(QDialog):
    """Asks which labels layer to start from, and what its values mean: at first what ``likely_kind`` says of it."""

    #: The layer's key, and "classes" or "objects".
    chosen = Signal(str, str)

    def __init__(self, sources: list[MaskEntry], replaced: str, likely_kind: Callable[[str], LabelKind],
                 parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._likely_kind = likely_kind
        self.setWindowTitle("Annotation from labels")
        self.source = ChoiceBox()
        self.source.set_choices([(mask.key, mask.name, "") for mask in sources], sources[0].key)
        self.classes = QRadioButton("Its values are classes (0 unlabelled, 1 first class, …)")
        self.objects = QRadioButton("Its values are objects (0 background, each id one object)")
        self._preselect()
        self.source.chosen.connect(lambda _: self._preselect())
        self._kinds = QButtonGroup(self)
        for button in (self.classes, self.objects):
            self._kinds.addButton(button)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        note = "The layer itself is not changed: you paint on a copy."
        if replaced:
            note += f" The copy takes the place of '{replaced}', whose strokes no longer count."
        for widget in (self.source, self.classes, self.objects, wrapped_label(note), buttons):
            layout.addWidget(widget)

    def _preselect(self) -> None:
        kind = self._likely_kind(self.source.value() or "")
        (self.objects if kind == "objects" else self.classes).setChecked(True)

    def accept(self) -> None:
        """Say what was chosen."""
        super().accept()
        self.chosen.emit(self.source.value() or "", "objects" if self.objects.isChecked() else "classes")


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(n) for n in shape)
