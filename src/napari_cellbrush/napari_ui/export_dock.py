"""Export: saves a layer as a file that other programs open."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QFileDialog, QFormLayout, QHBoxLayout, QLabel, QLineEdit, QMessageBox, QPushButton, QWidget

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui.controls import ChoiceBox, RunPanel, wrapped_label
from napari_cellbrush.napari_ui.dock import SPACING_PX, Dock
from napari_cellbrush.napari_ui.exporting import with_ending
from napari_cellbrush.napari_ui.runs import ExportFormat
from napari_cellbrush.session import ImageEntry, MaskEntry, axes_in_words

#: Name, what it is good for, and the file dialog's filter.
FORMATS: dict[ExportFormat, tuple[str, str, str]] = {
    "tiff": ("TIFF mask", "Opens in Fiji with the right size and axes.", "TIFF (*.tif *.tiff)"),
    "compact": ("TIFF mask, compressed", "OME-TIFF, much smaller; opens in Fiji through Bio-Formats.",
                "TIFF (*.tif *.tiff)"),
    "table": ("Measurements (CSV)", "Size, shape, intensities. Afterwards, point at an object to see its own.",
              "CSV (*.csv)"),
    "rois": ("ImageJ regions (ZIP)", "One region per object. In Fiji: ROI Manager › More › Open.", "ZIP (*.zip)"),
    "geojson": ("QuPath objects (GeoJSON)", "One polygon per object. In QuPath: File › Import objects.",
                "GeoJSON (*.geojson *.json)"),
    "overlay": ("Overlay picture (PNG)", "Objects in colours on their image; of a stack, the plane shown.",
                "PNG (*.png)"),
}
#: Which formats are in pixels, whatever these measure.
_IN_PIXELS = ("rois", "geojson", "overlay")


class ExportDock(Dock):
    """Shows what can be saved and where, and saves it."""

    def _build(self) -> None:
        self._mask: MaskEntry | None = None
        self._chosen = False
        self._edited_path = False
        self._is_writing_size = False
        self.layer = ChoiceBox()
        self.format = ChoiceBox()
        self.format_words = wrapped_label()
        self.path = QLineEdit()
        self.browse = QPushButton("…")
        self.browse.setToolTip("Choose the file")
        self.browse.setMaximumWidth(36)
        path_row = QHBoxLayout()
        path_row.setSpacing(SPACING_PX)
        path_row.addWidget(self.path, 1)
        path_row.addWidget(self.browse)
        self.axes = QLineEdit()
        self.axes.setToolTip("One letter per axis: T time, Z depth, Y row, X column, C channel or class")
        self.axes_words = wrapped_label()
        self.size_line = QLineEdit()
        self.size_line.setPlaceholderText("not known: lengths are in pixels")
        self.size_line.setToolTip("In µm: one number, or row × column, or depth × row × column. Empty: as it was read")
        self.size_words = wrapped_label()
        self.image_line = wrapped_label()
        self._rows = form = self.form()
        self.row(form, "Layer", self.layer)
        self.row(form, "Format", self.format)
        self.row(form, "", self.format_words)
        self.row(form, "File", path_row)
        self.row(form, "Axes", self.axes)
        self.row(form, "", self.axes_words)
        self.row(form, "Pixel size", self.size_line)
        self.row(form, "", self.size_words)
        self.row(form, "Image", self.image_line)
        self.run = RunPanel("Export", "Exporting…")
        self.column.addWidget(self.run)

    def _connect(self) -> None:
        session = self.session
        self.layer.chosen.connect(self._on_layer_chosen)
        self.format.chosen.connect(self._on_format_chosen)
        self.path.textEdited.connect(self._on_path_edited)
        self.browse.clicked.connect(self._on_browse)
        self.axes.textEdited.connect(lambda _: self._refresh_size())
        self.size_line.textEdited.connect(self._on_size_edited)
        self.size_line.editingFinished.connect(self._take_size)
        self.run.startRequested.connect(self._on_export)
        self.listen(session.images_changed, self._refresh)
        self.listen(session.image_chosen, self._refresh)
        self.listen(session.annotations_changed, self._refresh)
        self.listen(session.pixel_sizes_changed, self._refresh_size)
        self.listen(session.export.changed, self._refresh_run)

    def choose(self, key: str) -> None:
        """Show another layer."""
        self._on_layer_chosen(key)

    # ---------------------------------------------------------------------------------------------- showing

    def _refresh(self) -> None:
        masks = {mask.key: mask for mask in self.session.masks}
        before = self._mask
        present = masks.get(before.key) if before else None
        kept = present if present and self._is_meant(present) else None
        self._mask = kept or min(masks.values(), key=self._preference, default=None)
        self.layer.set_choices([(mask.key, mask.name, "") for mask in masks.values()],
                               self._mask.key if self._mask else None, "Segment first")
        if self._mask is None or before is None or self._mask.key != before.key:
            self._show_mask()
        self._refresh_formats()
        self._show_format()

    def _is_meant(self, mask: MaskEntry) -> bool:
        """Whether somebody chose a layer or, as long as its image is worked on, has written something about it."""
        has_written = self._edited_path or self._is_writing_size
        return self._chosen or (has_written and self.bench.exporting.is_at_work(mask))

    def _preference(self, mask: MaskEntry) -> tuple[bool, bool, bool, int]:
        """What people most likely want to save comes first: results of the image that is worked on, and seen."""
        exporting = self.bench.exporting
        kinds = ("bodies", "objects", "classes", "probability", "", "weights")
        return (not exporting.is_at_work(mask), mask.output not in kinds[:4], not exporting.is_seen(mask),
                kinds.index(mask.output))

    def showEvent(self, event: QShowEvent | None) -> None:
        """Layers are shown and hidden without a word."""
        super().showEvent(event)
        if event is None or not event.spontaneous():
            self._refresh()

    def _show_mask(self) -> None:
        self._edited_path = self._is_writing_size = False
        self.axes.setText(self.bench.exporting.axes(self._mask) if self._mask else "")

    def _refresh_formats(self) -> None:
        offered = self.bench.exporting.formats(self._mask) if self._mask else ("tiff", "compact")
        before = self._format()
        self.format.set_choices([(key, name, words) for key, (name, words, _) in FORMATS.items() if key in offered],
                                before if before in offered else "tiff")

    def _show_format(self) -> None:
        """Show what goes with the format."""
        chosen = self._format()
        self.format_words.setText(FORMATS[chosen][1])
        widest = self._rows.labelForField(self.size_line)
        first = self._rows.labelForField(self.layer)
        if widest is not None and first is not None:
            # Fields must not move when the row with the longest name is hidden.
            first.setMinimumWidth(widest.sizeHint().width())
        _show_row(self._rows, self.size_line, chosen not in _IN_PIXELS)
        _show_row(self._rows, self.image_line, chosen in ("table", "overlay"))
        self._suggest_path()
        self._refresh_size()
        self._refresh_image()

    def _format(self) -> ExportFormat:
        return next((key for key in FORMATS if key == self.format.value()), "tiff")

    def _suggest_path(self) -> None:
        if self._edited_path:
            self.path.setText(str(self._fitting(Path(self.path.text()))) if self.path.text().strip() else "")
        else:
            exporting, chosen = self.bench.exporting, self._format()
            self.path.setText(str(exporting.default_path(self._mask, chosen)) if self._mask else "")
        self.path.setToolTip(self.path.text())

    def _fitting(self, path: Path) -> Path:
        """The file with an ending that fits the format."""
        return path if f"*{path.suffix.lower()}" in FORMATS[self._format()][2].strip(")").split("(")[1].split() else (
            with_ending(path, self._format()))

    def _refresh_image(self) -> None:
        image = self.bench.exporting.image(self._mask) if self._mask else None
        none = "not known: sizes and shapes alone" if self._format() == "table" else "not known: black behind objects"
        self.image_line.setText(none if image is None else _image_in_words(image))

    def _refresh_size(self) -> None:
        size, words = None, ""
        if self._mask is not None:
            try:
                size = self.bench.exporting.pixel_size(self._mask, self.axes.text())
                words = axes_in_words(self.axes.text().strip().upper())
            except CellbrushError as error:
                words = str(error)
        self._show_words(self.axes_words, words)
        if not self._is_writing_size:
            self.size_line.setText(size_in_numbers(size) if size else "")
            self._show_words(self.size_words, meaning_of(size) if size else "")
        self.size_words.setVisible(bool(self.size_words.text()) and self._format() not in _IN_PIXELS)
        self._refresh_run()

    def _show_words(self, label: QLabel, words: str) -> None:
        label.setText(words)
        label.setVisible(bool(words))

    def _refresh_run(self) -> None:
        self.run.setValue(self.session.export, "" if self._mask else "There is nothing to export: segment an image.")
        self.run.button.setEnabled(self._mask is not None and not self.session.export.busy)

    # ----------------------------------------------------------------------------------------------- acting

    def _on_layer_chosen(self, key: str) -> None:
        found = next((mask for mask in self.session.masks if mask.key == key), None)
        self._chosen = found is not None
        if found is not None and found != self._mask:
            self._mask = found
            self.layer.setValue(key)
            self._show_mask()
            self._refresh_formats()
            self._show_format()
            self._forget_notice()

    def _on_format_chosen(self, _: str) -> None:
        self._show_format()
        self._forget_notice()

    def _forget_notice(self) -> None:
        # What was said of another file is not said of this one.
        if not self.session.export.busy:
            self.session.export.say("")

    def _on_path_edited(self, _: str) -> None:
        self._edited_path = True

    def _on_size_edited(self, _: str) -> None:
        # What is half written is nothing yet, and nobody may write over it.
        self._is_writing_size = self._mask is not None

    def _take_size(self) -> str:
        """Take what was written as the pixel size; what is wrong with it, if anything."""
        text = self.size_line.text().strip()
        if self._mask is not None and self._is_writing_size:
            try:
                self.bench.exporting.say_pixel_size(self._mask, PixelSize.read(text) if text else None)
            except CellbrushError as error:
                self._show_words(self.size_words, str(error))
                return str(error)
            self._is_writing_size = False
            self._refresh_size()
        return ""

    def _on_browse(self) -> None:
        # The dialog would ask about overwriting, and the button again: one of them is enough.
        path, _ = QFileDialog.getSaveFileName(self, "Export", self.path.text(), FORMATS[self._format()][2],
                                              options=QFileDialog.Option.DontConfirmOverwrite)
        if path:
            self._edited_path = True
            self.path.setText(path)

    def _on_export(self) -> None:
        mask, text = self._mask, self.path.text().strip()
        problem = self._take_size() if self._format() not in _IN_PIXELS else ""
        if mask is None or not text or problem:
            self.session.export.say(problem or "Say where to save the file.", "warning")
            return
        path = self._fitting(Path(text).expanduser())
        overwrite = path.exists()
        if overwrite and not self._may_overwrite(path):
            # What an earlier export wrote would read as if this one had.
            self.session.export.say("Nothing was written.")
            return
        self.bench.exporting.start(mask, path, self.axes.text(), overwrite=overwrite, format=self._format())

    def _may_overwrite(self, path: Path) -> bool:
        words = f"'{path.name}' exists already in the folder {path.absolute().parent}. Replace it?"
        answer = QMessageBox.question(self, "Export", words)
        return answer == QMessageBox.StandardButton.Yes


def _show_row(form: QFormLayout, field: QWidget, shown: bool) -> None:
    field.setVisible(shown)
    title = form.labelForField(field)
    if title is not None:
        title.setVisible(shown)


def _image_in_words(image: ImageEntry) -> str:
    letter = next((letter for letter in "CS" if letter in image.axes), "")
    n = image.shape[image.axes.index(letter)] if letter else 1
    return f"{image.name}, RGB" if letter == "S" else f"{image.name}, {n} channels" if n > 1 else image.name


def size_in_numbers(size: PixelSize) -> str:
    """For example "0.2 × 0.1"; empty where nobody knows."""
    numbers = [f"{value:.6g}" for value in (size.z, size.y, size.x) if value is not None]
    return " × ".join(numbers) if size.is_known else ""


def meaning_of(size: PixelSize) -> str:
    """What the numbers of a size mean, for example "µm (row × column)"; empty where nobody knows."""
    names = "depth × row × column" if size.z is not None else "row × column"
    return f"{'µm' if size.unit == 'µm' else 'in the unit of the layer'} ({names})" if size.is_known else ""
