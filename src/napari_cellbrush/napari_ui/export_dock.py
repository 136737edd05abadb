"""Export: saves a layer as a file that Fiji opens."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLineEdit, QMessageBox, QPushButton

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.napari_ui.controls import ChoiceBox, RunPanel, wrapped_label
from napari_cellbrush.napari_ui.dock import SPACING_PX, Dock
from napari_cellbrush.session import MaskEntry, axes_in_words

FORMATS = (
    ("tiff", "TIFF (Fiji, ImageJ)", "Uncompressed; opens in Fiji with the right size and axes. OME-TIFF where ImageJ "
     "cannot hold the mask"),
    ("compact", "OME-TIFF, compressed", "Much smaller; opens in Fiji through Bio-Formats"),
)


class ExportDock(Dock):
    """Shows what can be saved and where, and saves it."""

    def _build(self) -> None:
        self._mask: MaskEntry | None = None
        self._chosen = False
        self._edited_path = False
        self.layer = ChoiceBox()
        self.format = ChoiceBox()
        self.format.set_choices(FORMATS, "tiff")
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
        self.size_line = wrapped_label()
        form = self.form()
        self.row(form, "Layer", self.layer)
        self.row(form, "Format", self.format)
        self.row(form, "File", path_row)
        self.row(form, "Axes", self.axes)
        self.row(form, "", self.axes_words)
        self.row(form, "Pixel size", self.size_line)
        self.run = RunPanel("Export", "Exporting…")
        self.column.addWidget(self.run)

    def _connect(self) -> None:
        session = self.session
        self.layer.chosen.connect(self._on_layer_chosen)
        self.format.chosen.connect(self._on_format_chosen)
        self.path.textEdited.connect(self._on_path_edited)
        self.browse.clicked.connect(self._on_browse)
        self.axes.textEdited.connect(lambda _: self._refresh_size())
        self.run.startRequested.connect(self._on_export)
        self.listen(session.images_changed, self._refresh)
        self.listen(session.export.changed, self._refresh_run)

    def choose(self, key: str) -> None:
        """Show another layer."""
        self._on_layer_chosen(key)

    # ---------------------------------------------------------------------------------------------- showing

    def _refresh(self) -> None:
        masks = {mask.key: mask for mask in self.session.masks}
        before = self._mask
        kept = masks.get(before.key) if before and self._chosen else None
        self._mask = kept or min(masks.values(), key=_preference, default=None)
        self.layer.set_choices([(mask.key, mask.name, "") for mask in masks.values()],
                               self._mask.key if self._mask else None, "Segment first")
        if self._mask is None or before is None or self._mask.key != before.key:
            self._show_mask()
        self._refresh_run()

    def _show_mask(self) -> None:
        self._edited_path = False
        exporting = self.bench.exporting
        self.axes.setText(exporting.axes(self._mask) if self._mask else "")
        self._suggest_path()
        self._refresh_size()

    def _suggest_path(self) -> None:
        if not self._edited_path:
            path = self.bench.exporting.default_path(self._mask) if self._mask else None
            compact = self.format.value() == "compact"
            self.path.setText(str(path.with_suffix(".ome.tif") if compact and path else path or ""))
            self.path.setToolTip(self.path.text())

    def _refresh_size(self) -> None:
        text, words = "", ""
        if self._mask is not None:
            try:
                text = size_in_words(self.bench.exporting.pixel_size(self._mask, self.axes.text()))
                words = axes_in_words(self.axes.text().strip().upper())
            except CellbrushError as error:
                words = str(error)
        self.size_line.setText(text)
        self.axes_words.setText(words)
        self.axes_words.setVisible(bool(words))
        self._refresh_run()

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

    def _on_format_chosen(self, _: str) -> None:
        self._suggest_path()

    def _on_path_edited(self, _: str) -> None:
        self._edited_path = True

    def _on_browse(self) -> None:
        # The dialog would ask about overwriting, and the button again: one of them is enough.
        path, _ = QFileDialog.getSaveFileName(self, "Export mask", self.path.text(), "TIFF (*.tif *.tiff)",
                                              options=QFileDialog.Option.DontConfirmOverwrite)
        if path:
            self._edited_path = True
            self.path.setText(path)

    def _on_export(self) -> None:
        mask, text = self._mask, self.path.text().strip()
        if mask is None or not text:
            self.session.export.say("Say where to save the file.", "warning")
            return
        path = Path(text).expanduser()
        if path.suffix.lower() not in (".tif", ".tiff"):
            path = path.with_name(path.name + ".tif")
        overwrite = path.exists()
        if overwrite and not self._may_overwrite(path):
            return
        self.bench.exporting.start(mask, path, self.axes.text(), overwrite=overwrite,
                                   compress=self.format.value() == "compact")

    def _may_overwrite(self, path: Path) -> bool:
        answer = QMessageBox.question(self, "Export mask", f"{path.name} exists already. Replace it?")
        return answer == QMessageBox.StandardButton.Yes


def _preference(mask: MaskEntry) -> int:
    """What people most likely want to save comes first."""
    return ("objects", "classes", "probability", "").index(mask.output)


def size_in_words(size: PixelSize) -> str:
    """For example "0.2 × 0.1 µm (row × column)"."""
    numbers = [f"{value:.4g}" for value in (size.z, size.y, size.x) if value is not None]
    names = "depth × row × column" if size.z is not None else "row × column"
    unit = "µm" if size.unit == "µm" else "in the layer's own unit"
    return f"{' × '.join(numbers)} {unit} ({names})" if set(numbers) != {"1"} or size.unit == "µm" else "not known"
