"""Segment: runs a model over the view, a slice, a layer or all of them."""

from __future__ import annotations

from qtpy.QtWidgets import QCheckBox, QPushButton

from napari_cellbrush.config import InferenceConfig
from napari_cellbrush.napari_ui.config_form import ConfigForm
from napari_cellbrush.napari_ui.controls import ChoiceBox, RunPanel, wrapped_label
from napari_cellbrush.napari_ui.dock import Dock, model_choices

SCOPES = (
    ("view", "Current view", "Only what the camera shows, on the plane that is shown: quick to try a model"),
    ("slice", "Current slice", "The whole plane that is shown"),
    ("layer", "Whole layer", "All planes of the image"),
    ("all", "All image layers", "All planes of all images, one after the other"),
)
OUTPUTS = (
    ("classes", "Classes", "Each pixel's most probable class"),
    ("objects", "Objects", "Each cell with a number of its own, to be counted and measured"),
    ("probabilities", "Probabilities", "How sure the model is, one layer per class"),
)


class SegmentDock(Dock):
    """Shows the segmentation of a session and starts it."""

    def _build(self) -> None:
        self.image = ChoiceBox()
        self.model = ChoiceBox()
        self.scope = ChoiceBox()
        self.scope.set_choices(SCOPES, self.session.options.scope)
        self.output = ChoiceBox()
        self.output.set_choices(OUTPUTS, self.session.options.output)
        form = self.form()
        self.row(form, "Image", self.image)
        self.row(form, "Model", self.model)
        self.row(form, "Scope", self.scope)
        self.row(form, "Result", self.output)
        self.keep = QCheckBox("Keep earlier results")
        self.keep.setToolTip("Make new layers instead of writing into those of the last run")
        self.row(form, "", self.keep)
        self.run = RunPanel("Segment", "Stop")
        self.column.addWidget(self.run)
        self.heading("Settings")
        self.device_line = wrapped_label()
        self.column.addWidget(self.device_line)
        self.config = ConfigForm(InferenceConfig)
        self.measure = QPushButton("Measure by a line…")
        self.measure.setCheckable(True)
        self.measure.setToolTip("Drag a line across one object in the picture: its length becomes the diameter")
        self.config.put_below("diameter_px", self.measure)
        self.column.addWidget(self.config)

    def _connect(self) -> None:
        session, segmenting = self.session, self.bench.segmenting
        self.image.chosen.connect(self.bench.showing.choose)
        self.model.chosen.connect(session.choose_model)
        self.scope.chosen.connect(lambda scope: session.set_options(scope=scope))
        self.output.chosen.connect(lambda output: session.set_options(output=output))
        self.keep.toggled.connect(lambda on: session.set_options(keep_earlier=on))
        self.run.startRequested.connect(segmenting.start)
        self.run.stopRequested.connect(segmenting.stop)
        self.config.valueChanged.connect(self._on_config_edited)
        self.measure.clicked.connect(self._on_measure)
        self.bench.measuring.active_changed.connect(self._on_measuring)
        self.bench.measuring.measured.connect(self._on_measured)
        for signal in (session.segmentation.changed, session.training.changed):
            self.listen(signal, self._refresh_run)
        for signal in (session.images_changed, session.image_chosen, session.models_changed, session.options_changed,
                       session.device_changed):
            self.listen(signal, self._refresh)
        self.bench.look_around_soon()

    def _refresh(self) -> None:
        session, options = self.session, self.session.options
        image = session.image
        self.image.set_choices([(i.key, i.name, "") for i in session.images], image.key if image else None,
                               "Open an image first")
        self.model.set_choices(model_choices(session), session.model,
                               "Looking for models…" if session.models is None else "None yet: fine-tune one")
        self.scope.setValue(options.scope)
        self.output.setValue(options.output)
        self.keep.setChecked(options.keep_earlier)
        self.config.setValue(session.inference_config)
        self.device_line.setText(session.device_text or "Looking for a GPU…")
        self._refresh_run()

    def _refresh_run(self) -> None:
        self.run.setValue(self.session.segmentation, self.session.why_not_segment())
        for widget in (self.image, self.model, self.scope, self.output, self.keep, self.config):
            widget.setEnabled(not self.session.segmentation.busy)

    def _on_config_edited(self, config: InferenceConfig) -> None:
        before, self.session.inference_config = self.session.inference_config, config
        if config.objects != before.objects:
            self.bench.previewing.soon()

    def _on_measure(self, on: bool) -> None:
        if on:
            self.bench.measuring.start()
        else:
            self.bench.measuring.stop()
        self.measure.setChecked(self.bench.measuring.active)

    def _on_measuring(self, active: bool) -> None:
        self.measure.setChecked(active)
        self.measure.setText("Drag a line… (Esc)" if active else "Measure by a line…")

    def _on_measured(self, length_px: float) -> None:
        longest = max(item.le for item in InferenceConfig.model_fields["diameter_px"].metadata if hasattr(item, "le"))
        self.config.setValue(self.config.value().replace(diameter_px=min(round(length_px, 1), longest)))
