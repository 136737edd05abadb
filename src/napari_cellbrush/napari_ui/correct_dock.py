"""Correct: go through the objects that were found, put right what is wrong, accept what is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QButtonGroup, QHBoxLayout, QLabel, QPushButton

from napari_cellbrush.napari_ui.autosaving_bar import RecoveryBar
from napari_cellbrush.napari_ui.config_form import Fold
from napari_cellbrush.napari_ui.controls import (
    BIG_BUTTON_PX,
    ChoiceBox,
    NoticeLabel,
    RunPanel,
    side_by_side,
    wrapped_label,
)
from napari_cellbrush.napari_ui.dock import SPACING_PX, Dock
from napari_cellbrush.napari_ui.object_table import ObjectTable
from napari_cellbrush.session import CorrectionTool, MaskEntry

#: Milliseconds without a change before the table is made anew.
_TABLE_AFTER_MS = 200
_TOOLS: tuple[tuple[CorrectionTool, str, str], ...] = (
    ("select", "Select  (Esc)", "A click chooses the object that the buttons below are about"),
    ("merge", "Merge  (M)", "Click two objects that are one"),
    ("split", "Split  (S)", "Draw a line across an object that is two"))
_WHAT_IT_DOES = ("Accepted objects (green dots) stay as they are when you segment again, with whatever model. They "
                 "also teach: fine-tuning learns from them, their rims and the background around them, together with "
                 "your strokes. What you change by hand is accepted by itself.\n\nnapari's own brush (P), eraser (E) "
                 "and bucket (F) work on the object at hand.")


class CorrectDock(Dock):
    """Shows the correcting of a session's objects and its tools."""

    def _build(self) -> None:
        self.recovery = RecoveryBar()
        self.column.addWidget(self.recovery)
        self.layer = ChoiceBox()
        self.image = ChoiceBox()
        self.image.setToolTip("The image that these objects are of, and that accepted ones teach about")
        form = self.form()
        self.row(form, "Objects", self.layer)
        self.row(form, "Image", self.image)
        self.search = RunPanel("Find objects", "Stop")
        self.search.setToolTip("Segment the plane that is shown, with the model and the settings of the Segment tab")
        self.column.addWidget(self.search)
        self.toggle = QPushButton()
        self.toggle.setCheckable(True)
        self.toggle.setMinimumHeight(BIG_BUTTON_PX)
        self.new_layer = QPushButton("Paint objects")
        self.new_layer.setToolTip("Make an empty layer for the objects of the chosen image and paint them one by one")
        self.new_layer.setMinimumHeight(BIG_BUTTON_PX)
        self.column.addLayout(side_by_side(self.toggle, self.new_layer))
        self.join = QPushButton("Join through depth")
        self.join.setToolTip("Make a layer in which objects of neighbouring planes that cover each other are one, with "
                             "one number: to count cells, to measure volumes. Correct the planes first")
        self.column.addWidget(self.join)
        with self.part() as self.tool_box:
            self._build_progress()
            self._build_tools()
        self.notice = NoticeLabel()
        self.column.addWidget(self.notice)
        with self.part() as self.table_box:
            self._build_table()
        self.column.addWidget(wrapped_label(_WHAT_IT_DOES))

    def _build_progress(self) -> None:
        self.progress_words = QLabel()
        self.previous = QPushButton("Previous  (Shift+N)")
        self.next = QPushButton("Next  (N)")
        self.accept = QPushButton()
        self.accept.setToolTip("The object at hand is right as it is")
        self.accept_view = QPushButton("View  (Shift+A)")
        self.accept_view.setToolTip("Accept all objects that the view shows as a whole")
        self.accept_all = QPushButton("All")
        self.accept_all.setToolTip("Accept all objects of the layer, on all planes")
        for widget in (self.previous, self.next):
            widget.setToolTip("Objects that are not accepted yet")
        self.column.addWidget(self.progress_words)
        self.column.addLayout(side_by_side(self.previous, self.next))
        self.heading("Accept")
        self.column.addLayout(side_by_side(self.accept, self.accept_view, self.accept_all))

    def _build_tools(self) -> None:
        self.heading("Put right")
        row = QHBoxLayout()
        row.setSpacing(SPACING_PX)
        self._group = QButtonGroup(self)
        self.tools: dict[CorrectionTool, QPushButton] = {}
        for tool, text, tip in _TOOLS:
            button = QPushButton(text)
            button.setCheckable(True)
            button.setToolTip(tip)
            self._group.addButton(button)
            self.tools[tool] = button
            row.addWidget(button, 1)
        self.column.addLayout(row)
        self.delete = QPushButton("Delete  (D)")
        self.delete.setToolTip("There is no object here: later runs find none, and fine-tuning learns background")
        self.fill = QPushButton("Fill holes  (H)")
        self.new_object = QPushButton("New  (C)")
        self.new_object.setCheckable(True)
        self.new_object.setToolTip("Paint an object that was not found; those around it keep their pixels")
        self.undo = QPushButton("Undo  (Ctrl+Z)")
        self.redo = QPushButton("Redo  (Ctrl+Shift+Z)")
        self.column.addLayout(side_by_side(self.delete, self.fill, self.new_object))
        self.column.addLayout(side_by_side(self.undo, self.redo))

    def _build_table(self) -> None:
        self.table = ObjectTable()
        self.fold = Fold("Table")
        self.fold.setToolTip("A click on a row goes to the object; on a column's name, sorts by it")
        self.fold.addWidget(self.table)
        self.column.addWidget(self.fold)
        #: Counting pixels can wait until the hand rests.
        self._table_timer = QTimer(self)
        self._table_timer.setSingleShot(True)
        self._table_timer.setInterval(_TABLE_AFTER_MS)

    def _connect(self) -> None:
        session, proofreading = self.session, self.bench.proofreading
        self.recovery.restoreRequested.connect(self.bench.autosaving.restore)
        self.recovery.discardRequested.connect(self.bench.autosaving.discard)
        self.listen(session.keeping.changed, self._refresh_keeping)
        self.layer.chosen.connect(self._on_layer_chosen)
        self.image.chosen.connect(lambda key: proofreading.say_image(self.layer.value() or "", key))
        self.search.startRequested.connect(self._on_search)
        self.search.stopRequested.connect(self.bench.segmenting.stop)
        self.toggle.clicked.connect(self._on_toggled)
        for button, action in (
                (self.new_layer, proofreading.new_layer), (self.next, proofreading.go_on),
                (self.previous, partial(proofreading.go_on, -1)), (self.accept, proofreading.accept),
                (self.accept_view, proofreading.accept_view), (self.accept_all, proofreading.accept_all),
                (self.delete, proofreading.delete), (self.fill, proofreading.fill_holes),
                (self.new_object, proofreading.new_object), (self.undo, proofreading.undo),
                (self.redo, proofreading.redo)):
            button.clicked.connect(lambda _=False, action=action: action())
        for tool, button in self.tools.items():
            button.clicked.connect(lambda _=False, tool=tool: proofreading.use(tool))
        for button in (*self.tools.values(), self.new_object):
            # Qt checks what is clicked, or the other way round; what counts is who has the mouse.
            button.clicked.connect(lambda _=False: self._refresh_tools())
        self.join.clicked.connect(self._on_join)
        self.table.chosen.connect(proofreading.go_to)
        self.fold.toggled.connect(lambda _: self._table_timer.start())
        self._table_timer.timeout.connect(self._refresh_table)
        self.listen(session.correction_changed, self._refresh)
        self.listen(session.images_changed, self._refresh)
        self.listen(session.image_chosen, self._refresh)
        self.listen(session.annotations_changed, self._refresh)
        for signal in (session.segmentation.changed, session.training.changed, session.models_changed,
                       session.device_changed):
            self.listen(signal, self._refresh_search)
        self.bench.look_around_soon()

    # ---------------------------------------------------------------------------------------------- showing

    def _refresh(self) -> None:
        session, correction = self.session, self.session.correction
        choices = self.bench.proofreading.choices()
        self.layer.set_choices([(mask.key, mask.name, "") for mask in choices],
                               correction.layer or self._proposed(choices), "None yet")
        chosen = self._chosen()
        self._refresh_image(chosen)
        on = bool(correction.layer)
        self.join.setVisible(chosen is not None and self.bench.joining.has_depth(chosen))
        self.toggle.setText("Stop correcting" if on else "Correct")
        self.toggle.setChecked(on)
        self.toggle.setVisible(bool(choices))
        # What is joined is shown alone in the end, which must not be in the middle of a correction.
        joining = self.bench.joining.busy
        self.toggle.setEnabled(not joining)
        self.new_layer.setEnabled(session.image is not None and not joining)
        self.new_layer.setVisible(not on)
        for widget in (self.accept, self.delete, self.fill):
            widget.setEnabled(bool(correction.current))
        self.undo.setEnabled(correction.can_undo)
        self.redo.setEnabled(correction.can_redo)
        self.accept.setText("Take back  (A)" if correction.current_accepted else "Object  (A)")
        self.accept_all.setText("All planes" if self.bench.proofreading.has_planes() else "All")
        self._refresh_tools()
        at_hand = f" At hand: {correction.current}." if correction.current else ""
        self.progress_words.setText(f"{correction.n_accepted:,} of {correction.n_objects:,} accepted.{at_hand}")
        for part in (self.tool_box, self.table_box):
            part.setVisible(on)
        self._table_timer.start()
        self.notice.setValue(correction.notice)
        self._refresh_search()
        self._refresh_keeping()

    def _chosen(self) -> MaskEntry | None:
        return next((mask for mask in self.bench.proofreading.choices() if mask.key == self.layer.value()), None)

    def _proposed(self, choices: Sequence[MaskEntry]) -> str | None:
        """Key of the objects to correct: those that were shown, unless only others are of the image worked on."""
        exporting, at_work = self.bench.exporting, self.session.image
        shown = self._chosen()
        if shown is not None and exporting.is_at_work(shown):
            return shown.key
        proposed = next((mask for mask in choices if exporting.image(mask) == at_work), shown) or next(
            iter(choices), None)
        return proposed.key if proposed else None

    def _refresh_tools(self) -> None:
        """Which one has the mouse; none of them while one of napari's has it."""
        correction = self.session.correction
        self._group.setExclusive(False)
        for tool, button in self.tools.items():
            button.setChecked(tool == correction.tool and not correction.painting)
        self._group.setExclusive(True)
        self.new_object.setChecked(correction.painting == "new")

    def _refresh_image(self, mask: MaskEntry | None) -> None:
        """To be chosen for labels from elsewhere; those that a run made are of the image that it saw."""
        exporting = self.bench.exporting
        image = exporting.image(mask) if mask is not None else None
        fitting = exporting.fitting_images(mask) if mask is not None else []
        self.image.set_choices([(image.key, image.name, "") for image in fitting], image.key if image else None,
                               "None that fits" if mask is not None and not fitting else "")
        self.image.setEnabled(mask is not None and not mask.output and len(fitting) > 1)

    def _refresh_keeping(self) -> None:
        session, keeping = self.session, self.session.keeping
        self.recovery.setValue(keeping.first_found(session.image, "objects"), session.image, keeping.restoring)

    def _refresh_search(self) -> None:
        """Offered while nobody corrects, and to be stopped until the run has ended."""
        run = self.session.segmentation
        self.search.setVisible(run.busy or not self.session.correction.layer)
        self.search.setValue(run, self.session.why_not_segment())
        self.join.setEnabled(not run.busy and not self.bench.joining.busy)

    def _refresh_table(self) -> None:
        if self.fold.isExpanded():
            self.table.setValue(self.bench.proofreading.table(), self.session.correction.current)

    # ----------------------------------------------------------------------------------------------- acting

    def _on_search(self) -> None:
        self.bench.segmenting.start("slice", "objects")

    def _on_layer_chosen(self, key: str) -> None:
        if self.session.correction.layer:
            self.bench.proofreading.start(key)
            return
        mask = self._chosen()
        image = self.bench.exporting.image(mask) if mask is not None else None
        if image is not None:
            self.bench.showing.choose(image.key)
        self._refresh()

    def _on_join(self) -> None:
        mask = self._chosen()
        if mask is not None:
            self.bench.proofreading.stop()
            self.bench.joining.start(mask)

    def _on_toggled(self, on: bool) -> None:
        if on:
            self.bench.proofreading.start(self.layer.value() or "")
        else:
            self.bench.proofreading.stop()
        self._refresh()
