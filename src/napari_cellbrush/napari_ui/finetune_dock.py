"""Fine-tune: one button that learns from the strokes, with its curve and its score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QCheckBox, QLabel, QLineEdit, QPushButton, QVBoxLayout

from napari_cellbrush.config import TrainingConfig
from napari_cellbrush.events import TrainingEvent, TrainingResumed, TrainingStarted, TrainingStep, ValidationScored
from napari_cellbrush.napari_ui.config_form import ConfigForm
from napari_cellbrush.napari_ui.controls import ChoiceBox, RunPanel, side_by_side, wrapped_label
from napari_cellbrush.napari_ui.dock import Dock, model_choices
from napari_cellbrush.session import SCRATCH

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.curve import LearningCurve
    from napari_cellbrush.napari_ui.history_panel import HistoryPanel

DEVICES = (("auto", "Automatic", "The GPU if there is one that works, else the CPU"), ("cpu", "CPU", ""),
           ("cuda", "GPU (CUDA)", ""), ("mps", "Apple GPU (MPS)", ""))
_SCORE_TIP = ("Mean intersection over union of the classes, from 0 to 1, on strokes that were kept away from training. "
              "Base and tuned model are measured on the same pixels. In brackets, where the score of other strokes "
              "would lie (95 %): the wider, the less this one says. More strokes make it narrower.")


class FineTuneDock(Dock):
    """Shows the training of a session and starts it."""

    def _build(self) -> None:
        self.base = ChoiceBox()
        self.base.setToolTip("Fine-tuning starts from this model every time, with all strokes. To continue from a "
                             "model of your own, choose it here.")
        self.name = QLineEdit()
        self.name.setToolTip("The new model is saved under this name; one with the same name is never overwritten")
        form = self.form()
        self.row(form, "Start from", self.base)
        self.row(form, "Save as", self.name)
        self.teachers = wrapped_label()
        self.column.addWidget(self.teachers)
        self.run = RunPanel("Fine-tune", "Stop and keep best")
        self.column.addWidget(self.run)
        self.resume = QPushButton()
        self.resume.setToolTip("Go on from the last step that was kept, to the same result as without interruption. If "
                               "strokes or settings have changed since, it starts anew.")
        self.column.addWidget(self.resume)
        self.curve: LearningCurve | None = None
        self._curve_place = QVBoxLayout()
        self.column.addLayout(self._curve_place)
        self.score = wrapped_label()
        self.score.setToolTip(_SCORE_TIP)
        self.no_score = wrapped_label()
        self.revert = QPushButton()
        self.save_again = QPushButton("Try to save again")
        self.discard = QPushButton("Discard")
        self.discard.setToolTip("Forget the model that could not be saved")
        for widget in (self.score, self.no_score, self.revert):
            self.column.addWidget(widget)
        self.column.addLayout(side_by_side(self.save_again, self.discard))
        self.history: HistoryPanel | None = None
        self._history_place = QVBoxLayout()
        self.column.addLayout(self._history_place)
        self._build_settings()

    def _build_history(self) -> None:
        """Below everything about one training; its plotting library is there by then."""
        from napari_cellbrush.napari_ui.history_panel import HistoryPanel

        self.history = HistoryPanel()
        heading = QLabel("<b>Models of this session</b>")
        for widget in (heading, self.history):
            self._history_place.addWidget(widget)
        self.history.compareRequested.connect(self.bench.comparing.start)
        self.history.useRequested.connect(self.session.choose_model)

    def _build_settings(self) -> None:
        self.heading("Settings")
        self.segment_after = QCheckBox("Segment the view afterwards")
        self.column.addWidget(self.segment_after)
        self.device = ChoiceBox()
        self.device.set_choices(DEVICES, self.session.options.device_name)
        self.device_line = wrapped_label()
        self.row(self.form(), "Device", self.device)
        self.column.addWidget(self.device_line)
        self.config = ConfigForm(TrainingConfig)
        self.column.addWidget(self.config)
        self.weights = QPushButton("Show pixel weights")
        self.weights.setToolTip("A layer of what each labelled pixel weighs in training: more in gaps between cells, "
                                "as the border weight in the advanced settings says")
        self.column.addWidget(self.weights)

    def _connect(self) -> None:
        session, tuning = self.session, self.bench.fine_tuning
        self.base.chosen.connect(session.choose_base)
        self.run.startRequested.connect(lambda: tuning.start(self.name.text().strip()))
        self.run.stopRequested.connect(tuning.stop)
        self.resume.clicked.connect(lambda: tuning.start(self.name.text().strip(), resumes=True))
        self.revert.clicked.connect(tuning.revert)
        self.save_again.clicked.connect(lambda: tuning.save_again(self.name.text().strip()))
        self.discard.clicked.connect(tuning.discard)
        self.segment_after.toggled.connect(lambda on: session.set_options(segment_after_training=on))
        self.device.chosen.connect(lambda name: session.set_options(device_name=name))
        self.config.valueChanged.connect(self._on_config_edited)
        self.weights.clicked.connect(self.bench.weighing.show)
        for signal in (session.training.changed, session.segmentation.changed, session.painted_changed,
                       session.annotations_changed):
            self.listen(signal, self._refresh_run)
        for signal in (session.models_changed, session.images_changed, session.options_changed,
                       session.device_changed):
            self.listen(signal, self._refresh)
        self.listen(session.accepted_changed, self._on_accepted_changed)
        for signal in (session.comparison.changed, session.models_changed, session.training.changed,
                       session.segmentation.changed):
            self.listen(signal, self._refresh_history)
        self.listen(session.training_event, self._show_event)
        self.listen(session.training_forgotten, self._refresh_curve)
        self.bench.look_around_soon()

    # ---------------------------------------------------------------------------------------------- showing

    def _refresh(self) -> None:
        session = self.session
        choices = [*model_choices(session), (SCRATCH, "Scratch (random weights)", "Needs many strokes and more time")]
        self.base.set_choices(choices if session.models is not None else [], session.base, "Looking for models…")
        self.segment_after.setChecked(session.options.segment_after_training)
        self.device.setValue(session.options.device_name)
        self.device_line.setText("\n".join(filter(None, (session.device_text or "Looking for a GPU…",
                                                         session.device_note))))
        self.config.setValue(session.training_config)
        self._refresh_run()
        self._refresh_curve()
        self._refresh_history()

    def _refresh_history(self) -> None:
        session = self.session
        if session.timeline and self.history is None:
            self._build_history()
        if self.history is not None:
            self.history.setValue(session.timeline, session.model, session.comparison,
                                  not session.why_not_segment() and not session.segmentation.busy)

    def _refresh_run(self) -> None:
        self.run.setValue(self.session.training, self.bench.fine_tuning.why_not())
        taught = "\n".join(filter(None, (self.session.taught_in_words(), self.session.only_errors_hint())))
        self.teachers.setText(taught)
        self.teachers.setVisible(bool(taught))
        unfinished = self.session.unfinished
        self.resume.setVisible(unfinished is not None and not self.session.training.busy)
        if unfinished is not None:
            self.resume.setText(f"Continue after step {unfinished.step} of {unfinished.n_steps}")
            self.resume.setEnabled(not self.bench.fine_tuning.why_not())
        self.name.setPlaceholderText(self.bench.fine_tuning.default_name())
        for widget in (self.base, self.name, self.config, self.device):
            widget.setEnabled(not self.session.training.busy)
        self.weights.setEnabled(self.session.image is not None and not self.session.training.busy)
        unsaved = self.bench.fine_tuning.unsaved is not None and not self.session.training.busy
        self.save_again.setVisible(unsaved)
        self.discard.setVisible(unsaved)
        self._refresh_outcome()

    def _refresh_outcome(self) -> None:
        tuned, previous = self.session.tuned, self.session.previous_model
        started = self._started()
        before, after = (tuned.base_score, tuned.score) if tuned else (started.base_score if started else None, None)
        named = [(word, value) for word, value in (("before", before), ("after", after)) if value is not None]
        scores = "  →  ".join(f"{word} {value:.2f}" for word, value in named)
        scores = scores.removeprefix("after ") if before is None else scores
        if tuned and tuned.interval:
            scores += " ({:.2f} to {:.2f})".format(*tuned.interval)
        self.score.setText(f"Held-out strokes: <b>{scores}</b>" if scores else "")
        self.score.setVisible(bool(scores))
        reason = tuned.no_score_reason if tuned else started.no_score_reason if started else ""
        self.no_score.setText(f"No score: {reason}" if reason else "")
        self.no_score.setVisible(bool(reason))
        self.revert.setText(f"Revert to '{previous}'")
        self.revert.setVisible(bool(previous) and not self.session.training.busy)

    def _started(self) -> TrainingStarted | None:
        events = self.session.training_events
        return events[0] if events and isinstance(events[0], TrainingStarted) else None

    def _refresh_curve(self) -> None:
        if self.curve is not None:
            self.curve.clear()
            self.curve.hide()
        for event in self.session.training_events:
            self._show_event(event)

    def _show_event(self, event: TrainingEvent) -> None:
        curve = self._learning_curve()
        if isinstance(event, TrainingStarted):
            curve.start(event.n_steps, event.base_score)
            self._refresh_outcome()
        elif isinstance(event, TrainingStep):
            curve.add_loss(event.step, event.loss)
        elif isinstance(event, TrainingResumed):
            for step, loss in enumerate(event.losses, start=1):
                curve.add_loss(step, loss)
            for at, score in event.scores:
                curve.add_score(at, score)
        elif isinstance(event, ValidationScored):
            curve.add_score(event.step, event.score)
        curve.setVisible(curve.is_line)

    def _learning_curve(self) -> LearningCurve:
        if self.curve is None:
            # Its plotting library takes half a second to load, for which opening the dock need not wait.
            from napari_cellbrush.napari_ui.curve import LearningCurve

            self.curve = LearningCurve()
            self._curve_place.addWidget(self.curve)
        return self.curve

    # ----------------------------------------------------------------------------------------------- acting

    def _on_accepted_changed(self, _: str) -> None:
        self._refresh_run()

    def _on_config_edited(self, config: TrainingConfig) -> None:
        self.session.training_config = config
        self._refresh_run()
