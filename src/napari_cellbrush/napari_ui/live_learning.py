"""Learning beside the person who paints: fine-tunes on the strokes of all images while Live is on.

It belongs to :mod:`.live`, which hears of split strokes, better models and their scores by three signals. Whatever is
asked for by the person (fine-tuning, segmenting, the next place to paint) goes before, and learning goes on afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from psygnal import Signal
from qtpy.QtCore import QObject

from napari_cellbrush.config import ClassDefinition
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.events import (
    ContinuousEvent,
    ContinuousScored,
    Improved,
    NothingToLearn,
    PauseToken,
    StrokesTaken,
)
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.live_runs import KeptModel, LearnTask, LiveModel, learn_strokes
from napari_cellbrush.napari_ui.worker import Job
from napari_cellbrush.session import Checkpoint, ImageEntry

if TYPE_CHECKING:
    from napari_cellbrush.engine.continuous import StrokeInbox
    from napari_cellbrush.napari_ui.workbench import Workbench

#: What a run of learning depends on: images with their axes, classes, model, settings, device.
_Basis = tuple[Any, ...]


class LiveLearning(QObject):
    """The learning of one viewer's live loop.

    Parameters
    ----------
    bench
        Session, layers and jobs.
    pause
        Held while something else is more urgent.
    """

    #: Strokes are split into learnt and held-out ones, or (None) no longer: the event.
    split = Signal(object)
    #: A better model, or (None) there is none any more: the event.
    improved = Signal(object)
    #: The best model was measured on new strokes: the event.
    scored = Signal(object)
    #: A sentence about what went wrong; the instant answer goes on.
    failed = Signal(str)

    def __init__(self, bench: Workbench, pause: PauseToken) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._pause = pause
        self._job: Job | None = None
        self._inbox: StrokeInbox | None = None
        self._basis: _Basis | None = None
        self._images: list[ImageEntry] = []
        #: Of all runs since Live was switched on.
        self._kept: KeptModel | None = None
        #: Painted when strokes were last taken in.
        self._n_strokes = 0
        #: Chosen in Segment when Live was switched on.
        self._model_before = ""
        #: What the best model learnt from.
        self._n_strokes_of_best = 0

    def follow(self) -> bool:
        """Learn from what is there now; begin anew, and without strokes, if it is something else than before.

        Returns
        -------
        bool
            Whether it began anew.
        """
        session = self._session
        images = [image for image in session.images if session.annotation_of(image.key) and image.axes]
        basis = (tuple((image.key, image.axes, session.annotation_of(image.key)) for image in images),
                 _meaning(session.classes), session.base, session.training_config, session.options.device_name)
        if not images or session.models is None or not session.live_config.learn:
            self.end()
            return False
        if basis == self._basis:
            return False
        self.end()
        self._basis, self._images = basis, images
        self._start()
        return True

    def take_strokes(self) -> int:
        """Learn from the strokes as they are now; what the events will call them, 0 if nobody learns."""
        return self._inbox.put([self._bench.annotating.snapshot(image.key) for image in self._images]
                               ) if self._inbox is not None else 0

    def position_of(self, image_key: str) -> int:
        """Which of the images it learns from this is; -1 if none."""
        return next((i for i, image in enumerate(self._images) if image.key == image_key), -1)

    def end(self) -> None:
        """Stop learning. Who learns next replaces the model that lies in the library."""
        job, self._job, self._inbox, self._basis, self._images = self._job, None, None, None, []
        if job is not None:
            job.close()
            job.deleteLater()
            self.split.emit(None)
            self.improved.emit(None)

    def end_and_save(self) -> None:
        """Stop learning; the best model goes to the library and is chosen, if it is better than its base."""
        job, self._job, self._kept = self._job, None, None
        self.end()
        if job is not None:
            job.received.disconnect(self._on_event)  # whoever learns next must not hear it
            job.stopped.connect(partial(self._on_saved, self._n_strokes_of_best))
            job.stop()

    def _start(self) -> None:
        from napari_cellbrush.engine.continuous import StrokeInbox

        session, book = self._session, self._bench.book
        self._inbox = StrokeInbox()
        if self._kept is None:
            self._kept, self._model_before = KeptModel(f"{self._images[0].name} live"[:60]), session.model
        planes = tuple(layers.planes_of(book.layer(image.key), image.axes) for image in self._images)
        task = LearnTask(session.base, planes, session.classes, session.training_config, session.options.device_name,
                         self._inbox, self._pause, self._kept)
        self._job = self._bench.job(partial(learn_strokes, task), "learning from the strokes", patient=True)
        self._job.received.connect(self._on_event)
        self._job.failed.connect(self._on_failed)
        self._job.start()

    def _on_event(self, event: ContinuousEvent) -> None:
        if isinstance(event, StrokesTaken):
            self._n_strokes = event.n_strokes
        if isinstance(event, StrokesTaken | NothingToLearn):
            if isinstance(event, NothingToLearn) or event.restarted:
                self.improved.emit(None)
            self.split.emit(event if isinstance(event, StrokesTaken) else None)
        elif isinstance(event, Improved):
            self._n_strokes_of_best = self._n_strokes
            self.improved.emit(event)
        elif isinstance(event, ContinuousScored):
            self.scored.emit(event)

    def _on_failed(self, error: CellbrushError) -> None:
        # The basis stays: the same would fail again.
        self._job, self._inbox = None, None
        self._bench.look_around_soon()  # what it learnt best until then lies in the library
        self.failed.emit(str(error))

    def _on_saved(self, n_strokes: int, saved: LiveModel | None) -> None:
        if saved is not None:
            self._bench.take_library(saved.library)
            chosen_meanwhile = self._session.model != self._model_before
            self._session.add_checkpoint(Checkpoint(saved.name, n_strokes, saved.score, None))
            chosen = f"'{self._session.model}', chosen meanwhile, stays chosen"
            if not chosen_meanwhile:
                self._session.choose_model(saved.name)
                chosen = "it is chosen in Segment"
            self._session.live.say(f"The model that learnt from your strokes is saved as '{saved.name}'; {chosen}.",
                                   "success")


def _meaning(classes: tuple[ClassDefinition, ...]) -> tuple[tuple[str, str], ...]:
    """What learning depends on: a colour changes nothing."""
    return tuple((definition.name, definition.role) for definition in classes)
