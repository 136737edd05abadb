"""Fine-tuning in a window: collects strokes, runs the training beside the window, says what came out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer

from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.events import (
    BaseScoring,
    Preparing,
    TrainingEvent,
    TrainingNote,
    TrainingStarted,
    TrainingStep,
)
from napari_cellbrush.napari_ui import layers, runs
from napari_cellbrush.napari_ui.worker import Job
from napari_cellbrush.session import ImageEntry, Phase, TunedModel, sizes_in_words

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

_PREPARATIONS = {"sizes": "Measuring how large objects are…", "head": "Fitting a first answer to your classes…"}


class FineTuning(QObject):
    """The trainings of one viewer, one at a time."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._run = bench.session.training
        self._job: Job | None = None
        self._latest: TrainingStep | None = None
        self._previous = ""
        #: What the last training learns or learnt from, and network pixels per pixel by the key of the image.
        self._images: tuple[ImageEntry, ...] = ()
        self._scales: dict[str, float] = {}
        #: A model that is only in memory, because it could not be saved; kept until it is, or discarded.
        self.unsaved: runs.Tuned | None = None
        #: Whether the view is to be segmented as soon as the run under way has ended.
        self._segments_next = False
        bench.session.segmentation.changed.connect(self._on_segmentation_changed)

    def scale_of(self, image_key: str) -> float:
        """Network pixels per pixel of an image, as in the last training; 1 of others."""
        return self._scales.get(image_key, 1.0)

    def default_name(self) -> str:
        """What a new model is called if nobody says otherwise: after the first painted image."""
        painted = self._session.taught_images()
        image = self._session.find_image(painted[0]) if painted else self._session.image
        return f"{image.name} model"[:60] if image else "my model"

    def why_not(self) -> str:
        """Why fine-tuning cannot start, as a sentence; empty if it can."""
        if self.unsaved is not None:
            return f"Save '{self.unsaved.name}' first, or discard it."
        return self._session.why_not_train()

    def start(self, name: str = "", resumes: bool = False) -> None:
        """Train on the strokes of all images; ends at once, with a sentence, if that is not possible.

        Parameters
        ----------
        name
            For the new model; a default one, or that of the unfinished training, if empty.
        resumes
            Go on with the unfinished training, if it learnt from the same.
        """
        if self._run.busy or self.why_not():
            return
        unfinished = self._session.unfinished
        if resumes and unfinished is not None:
            name = name or unfinished.name
        try:
            task = self._task(name or self.default_name(), resumes)
        except CellbrushError as error:
            self._run.end(str(error), "error")
            return
        self._session.forget_training()
        self._previous, self._latest = self._session.model, None
        self._run.begin(f"Preparing to learn from {_images(len(task.images))}…")
        self._launch(self._bench.job(partial(runs.fine_tune, task), "fine-tuning"))

    def stop(self) -> None:
        """End the training with the best model so far."""
        if self._job is not None:
            self._run.stopping()
            self._job.stop()

    def revert(self) -> None:
        """Segment with the model that was chosen before the last training, and show what it says."""
        session, tuned = self._session, self._session.tuned
        if tuned is None or not session.previous_model:
            return
        session.revert()
        self._run.say(f"Segment uses '{session.model}' again. '{tuned.name}' stays in the library.")
        if session.segmentation.busy:
            # What the tuned model says is no longer wanted.
            self._segments_next = True
            self._bench.segmenting.stop()
        else:
            self._segment()

    def _on_segmentation_changed(self) -> None:
        if self._segments_next and not self._session.segmentation.busy:
            self._segments_next = False
            # Not in the middle of what the end of the last run is told to.
            QTimer.singleShot(0, self._segment)

    def save_again(self, name: str = "") -> None:
        """Try once more to save a model that is only in memory; under its name if nobody says otherwise."""
        if self.unsaved is not None and not self._run.busy:
            name = name or self.unsaved.name
            self._run.begin(f"Saving '{name}'…")
            work = partial(runs.save_again, self.unsaved, name)
            self._launch(self._bench.job(work, "saving the model", exclusive=False, to_the_end=True))

    def discard(self) -> None:
        """Forget a model that is only in memory."""
        if self.unsaved is not None and not self._run.busy:
            name, self.unsaved = self.unsaved.name, None
            self._run.end(f"'{name}' is discarded.")

    def _task(self, name: str, resumes: bool) -> runs.TrainingTask:
        session, bench = self._session, self._bench
        images = [image for key in session.taught_images() if (image := session.find_image(key)) is not None]
        self._images = tuple(images)
        return runs.TrainingTask(
            base=session.base,
            images=tuple(layers.planes_of(bench.book.layer(image.key), image.axes) for image in images),
            labels=tuple(bench.annotating.snapshot(image.key) for image in images),
            checked=tuple(bench.proofreading.checked(image.key) for image in images),
            classes=session.classes,
            config=session.training_config,
            device_name=session.options.device_name,
            name=name,
            resumes=resumes,
            unseen=tuple(bench.annotating.unseen_in(session.annotation_of(image.key) or "") for image in images),
        )

    def _launch(self, job: Job) -> None:
        self._job = job
        job.received.connect(self._on_event)
        job.drained.connect(self._on_drained)
        job.finished.connect(self._on_ended)
        job.stopped.connect(self._on_ended)
        job.failed.connect(self._on_failed)
        job.start()

    def _on_event(self, event: TrainingEvent | None) -> None:
        if event is None:
            return
        self._session.add_training_event(event)
        if self._run.phase is not Phase.RUNNING:
            pass
        elif isinstance(event, Preparing):
            self._run.say(_PREPARATIONS[event.what])
        elif isinstance(event, BaseScoring):
            self._run.say("Scoring the base on your strokes…")
        elif isinstance(event, TrainingStarted):
            self._scales = {image.key: scale for image, scale in zip(self._images, event.scales, strict=False)}
            later = f", {event.n_corrections:,} of them after an answer" if event.n_corrections else ""
            self._run.say(f"Learning from {event.n_training_pixels:,} painted pixels{later} ({event.precision})."
                          f"{sizes_in_words(event.diameters_px, [image.name for image in self._images])}")
        elif isinstance(event, TrainingNote):
            self._run.say(event.text, "warning")
        if isinstance(event, TrainingStep):
            self._latest = event

    def _on_drained(self) -> None:
        step, self._latest = self._latest, None
        if step is not None:
            # Whichever comes first, the last step or the end of the time, is what is left.
            fraction = step.seconds_elapsed / max(step.seconds_elapsed + step.seconds_left, 1e-9)
            self._run.advance(fraction, step.seconds_left, f"step {step.step} of {step.n_steps}")

    def _on_ended(self, tuned: runs.Tuned | None) -> None:
        self._job = None
        if tuned is None:
            self._run.end("Stopped before the first step; nothing has changed.")
            return
        self._bench.take_library(tuned.library)
        if tuned.save_problem:
            self.unsaved = tuned
            self._run.end(f"'{tuned.name}' is ready but could not be saved. {tuned.save_problem}", "error")
            return
        self.unsaved = None
        result = tuned.result
        outcome = TunedModel(tuned.name, result.improved, result.base_score, result.score, result.no_score_reason,
                             result.ended, result.n_steps, self._previous, result.interval)
        self._session.finish_training(outcome)
        self._run.end(outcome_in_words(outcome), "success" if outcome.improved else "warning")
        if outcome.improved:
            for learnt in self._images:
                self._bench.annotating.note_answered(learnt.key)
            self._segment()

    def _segment(self) -> None:
        """With the model that is chosen now, if the person wants that."""
        session, results = self._session, self._bench.segmenting.results
        if session.options.segment_after_training:
            # Whoever had all of the image segmented wants all of it anew, beside the earlier result.
            image, output = session.image, session.options.output
            had_whole = image is not None and results.holds_whole_of_another(image, session.model, output)
            self._bench.segmenting.start("layer" if had_whole else "view", beside=True)

    def _on_failed(self, error: CellbrushError) -> None:
        self._job = None
        self._session.set_unfinished(runs.read_unfinished())
        self._run.end(str(error), "error")


def outcome_in_words(tuned: TunedModel) -> str:
    """What came out of a training, for the person who started it."""
    saved = f"Saved as '{tuned.name}'."
    steps = "one step" if tuned.n_steps == 1 else f"{tuned.n_steps} steps"
    ended = {"steps": "Done", "stopped": f"Stopped after {steps}", "time": f"Ended by the time limit after {steps}",
             "no_progress": f"Ended after {steps}, because the score rose no longer"}[tuned.ended]
    if not tuned.improved:
        kept = f"'{tuned.previous}' stays chosen." if tuned.previous else "It is not chosen."
        return f"{ended}: worse than its base on the held-out strokes. {kept} {saved}"
    if tuned.score is None:
        return f"{ended}. {saved}"
    if tuned.base_score is None:
        return f"{ended}: {tuned.score:.2f} on the held-out strokes. {saved}"
    if f"{tuned.score:.2f}" != f"{tuned.base_score:.2f}":
        numbers = f"{tuned.score:.2f} instead of {tuned.base_score:.2f}"
        if tuned.interval and tuned.interval[0] <= tuned.base_score <= tuned.interval[1]:
            return f"{ended}: {numbers} on the held-out strokes, which may be chance. {saved}"
        return f"{ended}: better than before on the held-out strokes. {saved}"
    more = " With more time it may learn more." if tuned.ended == "time" else ""
    return f"{ended}: as good as before on the held-out strokes.{more} {saved}"


def _images(n: int) -> str:
    return "one image" if n == 1 else f"{n} images"
