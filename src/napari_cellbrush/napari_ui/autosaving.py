"""Saves what a person makes, beside the window, and finds it again when its image is opened.

The window only says where something was painted: from the events of the layer, without looking at a pixel. The
thread copies and writes those squares. It reads the array of the layer while the person may be painting on it, which
does no harm: whatever is painted meanwhile is said again, and saved the next time. Undo says nothing but "shown
anew", so then everything is compared with what was saved, in the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtWidgets import QApplication

from napari_cellbrush.config import AutosaveConfig, ClassDefinition, InferenceConfig, TrainingConfig, without_retired
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.session_folder import (
    ImageIdentity,
    LabelsName,
    Painted,
    SavedSession,
    SessionCard,
    SessionWriter,
    identify,
    read_card,
    read_labels,
)
from napari_cellbrush.engine.session_folders import discard, list_sessions, new_session, tidy
from napari_cellbrush.errors import AnnotationError, CellbrushError, ConfigError, SessionFileError
from napari_cellbrush.events import StopToken
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.session import ImageEntry, Notice, Session

if TYPE_CHECKING:
    from napari_cellbrush.napari_ui.workbench import Workbench

#: Strokes that are remembered one by one; with more of them everything is looked at.
MANY_BOXES = 20_000

_log = logging.getLogger(__name__)


def autosave_settings() -> AutosaveConfig:
    """What stands in napari's preferences; the defaults where this napari has no settings of plugins."""
    try:
        from napari.settings import get_plugin_settings

        values = get_plugin_settings("napari-cellbrush").autosave
        return AutosaveConfig(enabled=values.enabled, interval_s=values.interval_s)
    except (ImportError, KeyError, AttributeError, ValueError):
        return AutosaveConfig()


class Autosaving(QObject):
    """The sessions of one viewer: each annotation layer has one."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._bench = bench
        self._session = bench.session
        self._keeping = bench.session.keeping
        self._watches: dict[str, LayerWatch] = {}
        self._looked: set[str] = set()
        self._n_saving = 0
        #: Whether to save again afterwards: what changed since may not be in the save under way.
        self._is_due = False
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.save)
        self._session.annotations_changed.connect(self._watch_layers)
        self._session.accepted_changed.connect(self._watch_layers)
        bench.annotating.unseen_changed.connect(self._watch_layers)
        self._session.images_changed.connect(self._look_for_saved)
        self._session.image_chosen.connect(self._look_for_saved)
        application = QApplication.instance()
        if isinstance(application, QApplication):
            application.applicationStateChanged.connect(self._on_application_state)
        # An image may have been open before the plugin was.
        self._look_for_saved()

    @property
    def is_saving(self) -> bool:
        """Whether something is on its way to the disk."""
        return self._n_saving > 0

    def save(self) -> None:
        """Save what has changed, unless that is switched off; after the save under way, if there is one."""
        settings = autosave_settings()
        self._timer.setInterval(1000 * settings.interval_s)
        self._is_due = settings.enabled and self.is_saving
        if settings.enabled and not self.is_saving:
            self._save(list(self._watches.values()))

    def restore(self, saved: SavedSession, image_key: str) -> None:
        """Take up a session that was found for an image: strokes, classes and settings, or objects."""
        image = self._session.find_image(image_key)
        if image is None or self._keeping.restoring:
            return
        self._keeping.set_restoring(True)
        job = self._bench.job(partial(read_session, saved, image.shape, image.axes), "restoring strokes",
                              exclusive=False)
        job.finished.connect(
            lambda work: self._bench.after_drag(partial(self._finish_restoring, saved, image_key, work)))
        job.failed.connect(self._on_restoring_failed)
        job.start()

    def discard(self, saved: SavedSession, image_key: str) -> None:
        """Do not offer a session that was found for an image again; an older one is offered then."""
        try:
            discard(saved)
        except SessionFileError as error:
            self._keeping.tell(self._keeping.saved, Notice(str(error), "warning"))
        self._forget(image_key, lambda session: session == saved)

    def _forget(self, image_key: str, is_meant: Callable[[SavedSession], bool]) -> None:
        found = self._keeping.found.get(image_key, ())
        self._keeping.set_found(image_key, [session for session in found if not is_meant(session)])

    def close(self) -> None:
        """Save for the last time."""
        self._timer.stop()
        watches, self._watches = list(self._watches.values()), {}
        if autosave_settings().enabled:
            self._save(watches)
        for watch in watches:
            watch.close()

    # -------------------------------------------------------------------------------------------------- saving

    def _watch_layers(self, _: str = "") -> None:
        """One watch for each layer that a person painted or corrected; one that goes is saved for the last time."""
        present = self._layers_to_keep()
        gone = [self._watches.pop(key) for key in self._watches.keys() - present.keys()]
        if gone and autosave_settings().enabled:
            self._save(gone)
        for watch in gone:
            watch.close()
        for key, (kind, image) in present.items():
            layer = self._bench.book.layer(key)
            if key not in self._watches and layer is not None:
                self._watches[key] = LayerWatch(layer, self._keeper(image, kind), self._bench.book.viewer, image.key)
        for key, watch in self._watches.items():
            watch.accepted, watch.unseen = self._session.accepted_in(key), self._bench.annotating.unseen_in(key)
        if self._watches and not self._timer.isActive():
            self._timer.start(1000 * autosave_settings().interval_s)
        elif not self._watches:
            self._timer.stop()

    def _layers_to_keep(self) -> dict[str, tuple[LabelsName, ImageEntry]]:
        """What the layers hold that a person worked on, and of which image, by their keys."""
        found: dict[str, tuple[LabelsName, ImageEntry]] = {}
        for image in self._session.images:
            annotation = self._session.annotation_of(image.key)
            found |= {annotation: ("strokes", image)} if annotation else {}
            found |= dict.fromkeys(self._session.accepted_of(image.key), ("objects", image))
        return found

    def _keeper(self, image: ImageEntry, kind: LabelsName = "strokes") -> Keeper:
        layer = self._bench.book.layer(image.key)
        return Keeper(layers.full_resolution(layer), image.axes, image.name, str(layer.source.path or ""), kind)

    def _save(self, watches: Sequence[LayerWatch]) -> None:
        changed = []
        for watch in watches:
            work = Work.of(self._session, watch.accepted, watch.unseen, watch.image_key)
            painted = watch.take(work)
            if painted is not None:
                changed.append((watch, painted, work))
        if not changed:
            return
        self._n_saving += 1
        tasks = [(watch.keeper, painted, work) for watch, painted, work in changed]
        job = self._bench.job(partial(save_all, tasks), "saving strokes", exclusive=False, to_the_end=True)
        job.received.connect(lambda event: self._on_saved(changed[event.number][0], event))
        for ended in (job.finished, job.stopped, job.failed):
            ended.connect(self._on_saving_ended)
        job.start()

    def _on_saved(self, watch: LayerWatch, event: StrokesSaved | SavingFailed) -> None:
        if isinstance(event, StrokesSaved):
            self._keeping.tell(in_words(event.card.saved_at) if event.card else self._keeping.saved, Notice())
            return
        watch.change_everywhere()
        _log.warning("%s", event.error)
        self._keeping.tell(self._keeping.saved, Notice(f"The strokes are not saved by themselves. {event.error}",
                                                       "warning"))

    def _on_saving_ended(self, _: Any) -> None:
        self._n_saving -= 1
        if self._is_due and not self.is_saving:
            self.save()

    def _on_application_state(self, state: Qt.ApplicationState) -> None:
        if state != Qt.ApplicationState.ApplicationActive:
            self.save()

    # ----------------------------------------------------------------------------------------------- restoring

    def _look_for_saved(self) -> None:
        image = self._session.image
        if image is None or image.key in self._looked:
            return
        self._looked.add(image.key)
        job = self._bench.job(partial(find_saved, self._keeper(image)), "looking for saved strokes", exclusive=False)
        job.finished.connect(partial(self._on_found, image.key))
        job.start()

    def _on_found(self, image_key: str, found: Sequence[SavedSession]) -> None:
        own = {watch.keeper.path for watch in self._watches.values()}
        self._keeping.set_found(image_key, [session for session in found if session.path not in own])

    def _finish_restoring(self, saved: SavedSession, image_key: str, restored: Restored) -> None:
        self._keeping.set_restoring(False)
        try:
            if restored.axes:
                self._session.set_axes(image_key, restored.axes)
            if restored.kind == "objects":
                self._restore_objects(image_key, restored)
            else:
                self._check_classes(restored.card, image_key)
                restored.work.onto(self._session)
                self._bench.annotating.replace(image_key, restored.labels)
                self._bench.annotating.set_unseen(image_key, restored.unseen)
            if restored.work.pixel_size and not self._session.pixel_size_said(image_key):
                self._session.say_pixel_size(image_key, restored.work.pixel_size)
        except CellbrushError as error:
            self._on_restoring_failed(error)
            return
        # Older strokes are not offered after these; of objects, an image may have several layers.
        self._forget(image_key, lambda session: session == saved or session.kind == restored.kind == "strokes")
        self._keeping.tell(self._keeping.saved, Notice(" ".join(restored.problems), "warning"))

    def _restore_objects(self, image_key: str, restored: Restored) -> None:
        image = self._session.find_image(image_key)
        if image is None:
            raise AnnotationError("The image was removed", "Open it once more")
        # Tools would work on what is no longer seen.
        self._bench.proofreading.stop()
        layer = self._bench.segmenting.results.restored_objects(image, restored.labels)
        self._session.set_accepted(str(layer.unique_id), image_key, restored.work.accepted)

    def _check_classes(self, card: SessionCard, image_key: str) -> None:
        others = [key for key in self._session.painted_images() if key != image_key]
        if others and [c.name for c in card.classes] != [c.name for c in self._session.classes]:
            names = ", ".join(c.name for c in card.classes)
            raise ConfigError(f"The saved strokes have the classes {names}, other images are painted with other ones",
                              "Open this image in a window of its own")

    def _on_restoring_failed(self, error: CellbrushError) -> None:
        self._keeping.set_restoring(False)
        self._keeping.tell(self._keeping.saved, Notice(str(error), "warning"))


class LayerWatch:
    """Where one layer may differ from what was saved last, as far as its events tell.

    Parameters
    ----------
    layer
        Strokes, or objects that were corrected.
    keeper
        Who saves it.
    viewer
        Only asked which plane it shows.
    image_key
        Of the image that the labels lie on.
    """

    def __init__(self, layer: Labels, keeper: Keeper, viewer: Any, image_key: str = "") -> None:
        self.keeper = keeper
        self.image_key = image_key
        #: Of a layer of objects, and of one of strokes; kept here, because a layer that is removed forgets it.
        self.accepted = Accepted()
        self.unseen: NDArray[np.bool_] | None = None
        self._layer = layer
        self._dims = viewer.dims
        self._step = self._dims.current_step
        self._boxes: list[tuple[slice, ...]] | None = None
        self._work: Work | None = None
        layer.events.paint.connect(self._on_paint)
        layer.events.set_data.connect(self._on_shown)

    def take(self, work: Work) -> Painted | None:
        """What must be saved now; None if nothing has changed since the last time."""
        boxes, self._boxes = self._boxes, []
        before, self._work = self._work, work
        if boxes == [] and before == work and before.unseen is work.unseen:
            return None
        axes = layers.mask_axes(self._layer)
        ordered = None if boxes is None else tuple(layers.box_in_engine_order(box, axes) for box in boxes)
        return Painted(layers.in_engine_order(self._layer.data, axes), ordered)

    def change_everywhere(self) -> None:
        """Nobody knows any more what is saved."""
        self._boxes = None

    def close(self) -> None:
        """Stop listening."""
        self._layer.events.paint.disconnect(self._on_paint)
        self._layer.events.set_data.disconnect(self._on_shown)

    def _on_paint(self, event: Any) -> None:
        if self._boxes is not None:
            self._boxes += [layers.painted_box(atom) for atom in event.value]
            if len(self._boxes) > MANY_BOXES:
                self.change_everywhere()

    def _on_shown(self, event: Any = None) -> None:
        # Undo says nothing but this, and so does every move to another plane: the viewer's step tells them apart.
        if self._dims.current_step == self._step:
            self.change_everywhere()
        self._step = self._dims.current_step


# ------------------------------------------------------------------------------------------------ in the thread


@dataclass(frozen=True)
class Work:
    """What a session holds beside labels."""

    classes: tuple[ClassDefinition, ...]
    training: TrainingConfig
    inference: InferenceConfig
    base: str
    model: str
    brush_px: int
    accepted: Accepted
    #: What was painted before an answer was seen; None while nobody has.
    unseen: NDArray[np.bool_] | None = field(default=None, compare=False)
    #: What somebody said of the image; None for as read.
    pixel_size: PixelSize | None = None

    @classmethod
    def of(cls, session: Session, accepted: Accepted, unseen: NDArray[np.bool_] | None, image_key: str = "") -> Work:
        """As it is now."""
        return cls(session.classes, session.training_config, session.inference_config, session.base, session.model,
                   session.brush_px, accepted, unseen, session.pixel_size_said(image_key))

    @classmethod
    def from_card(cls, card: SessionCard) -> tuple[Work, tuple[str, ...]]:
        """As it was saved, and a sentence for everything that this version cannot read: strokes come first."""
        problems = []

        def read(name: str, kind: type[Any]) -> Any:
            try:
                return kind.read(without_retired(card.settings.get(name, {})))
            except ConfigError as error:
                problems.append(f"The saved settings for {name} are not used. {error.problem}.")
                return kind()

        training, inference = read("training", TrainingConfig), read("inference", InferenceConfig)
        accepted = Accepted(frozenset(card.accepted), frozenset(card.emptied))
        said, size = card.settings.get("export", {}).get("pixel_size_um"), None
        try:
            size = PixelSize.read(str(said)) if said else None
        except ConfigError as error:
            problems.append(f"The saved pixel size is not used. {error.problem}.")
        return cls(card.classes, training, inference, card.base, card.model, card.brush_px, accepted,
                   pixel_size=size), tuple(problems)

    def onto(self, session: Session) -> None:
        """Work with it. Models that are no longer there stay unchosen."""
        session.set_classes(self.classes)
        session.set_brush(self.brush_px)
        session.set_settings(self.training, self.inference)
        session.prefer_models(self.base, self.model)

    def card(self, image: ImageIdentity) -> SessionCard:
        """The card of a session without its labels."""
        settings = {"training": self.training.model_dump(), "inference": self.inference.model_dump()}
        if self.pixel_size:
            # Here versions that know nothing of it pass over it.
            settings["export"] = {"pixel_size_um": self.pixel_size.written()}
        return SessionCard(image=image, classes=self.classes, settings=settings, base=self.base, model=self.model,
                           brush_px=self.brush_px, accepted=tuple(sorted(self.accepted.ids)),
                           emptied=tuple(sorted(self.accepted.emptied)))


@dataclass(eq=False)
class Keeper:
    """Saves the labels of one layer; used by one thread at a time, knows no layer."""

    image: Any = field(repr=False)
    axes: str
    name: str
    source: str
    kind: LabelsName = "strokes"
    _identity: ImageIdentity | None = None
    _writer: SessionWriter | None = None
    _saved_unseen: NDArray[np.bool_] | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Any:
        """The session's folder; None before the first save."""
        return self._writer.path if self._writer else None

    def identity(self) -> ImageIdentity:
        """Which image it is."""
        if self._identity is None:
            self._identity = identify(self.image, self.axes, self.name, self.source)
        return self._identity

    def save(self, painted: Painted, work: Work) -> SessionCard | None:
        """Save; None where nothing was ever painted."""
        with self._turn:
            first = self._writer is None
            if self._writer is None:
                if not painted.values.any():
                    return None
                self._writer = SessionWriter(new_session(self.identity()))
            labels: dict[LabelsName, Painted] = {self.kind: painted}
            if work.unseen is not None:
                is_saved = work.unseen is self._saved_unseen
                labels["unseen"] = Painted(work.unseen.view(np.uint8), () if is_saved else None)
            card = self._writer.save(work.card(self.identity()), labels)
            self._saved_unseen = work.unseen
            if first:
                tidy(self.identity())
            return card


@dataclass(frozen=True)
class StrokesSaved:
    """One of several layers is saved."""

    number: int
    card: SessionCard | None = field(repr=False)


@dataclass(frozen=True)
class SavingFailed:
    """One of several layers could not be saved; the others are."""

    number: int
    error: CellbrushError


def save_all(tasks: Sequence[tuple[Keeper, Painted, Work]],
             stop: StopToken) -> Generator[StrokesSaved | SavingFailed, None, None]:
    """Save several layers, to the end even if the window closes."""
    for number, (keeper, painted, work) in enumerate(tasks):
        try:
            yield StrokesSaved(number, keeper.save(painted, work))
        except Exception as error:  # nothing may keep the others from being saved, whatever an image's reader raises
            known = error if isinstance(error, CellbrushError) else SessionFileError(
                f"Saving failed ({type(error).__name__}: {error})", "Save the layer yourself: File, Save Selected "
                "Layers")
            yield SavingFailed(number, known)


def find_saved(keeper: Keeper, stop: StopToken) -> Generator[None, None, list[SavedSession]]:
    """What was saved of an image earlier and not discarded, the likeliest first."""
    yield
    sessions, errors = list_sessions(keeper.identity())
    for error in errors:
        _log.warning("%s", error)
    return [session for session in sessions if session.card.labels and not session.discarded]


@dataclass(frozen=True, eq=False)
class Restored:
    """A session that was read."""

    card: SessionCard
    work: Work
    kind: LabelsName
    #: Stack axes + YX.
    labels: NDArray[Any]
    #: The same; what of it was painted before an answer was seen, if one was.
    unseen: NDArray[np.bool_] | None
    #: What the image's axes were said to mean; empty where that has not changed.
    axes: str
    problems: tuple[str, ...]


def read_session(session: SavedSession, image_shape: tuple[int, ...], image_axes: str,
                 stop: StopToken) -> Generator[None, None, Restored]:
    """Read all of a session."""
    yield
    card = read_card(session.path)
    axes = card.image.axes if len(card.image.axes) == len(image_shape) else image_axes
    sizes = dict(zip(axes, image_shape, strict=True))
    shape = tuple(sizes[letter] for letter in (*(a for a in axes if a in "TZ"), "Y", "X"))
    labels = read_labels(session.path, card, session.kind, shape=shape)
    highest = int(labels.max(initial=0))
    if session.kind == "strokes" and (labels.dtype != np.uint8 or highest > len(card.classes)):
        raise SessionFileError(f"The saved strokes hold the value {highest}, but there are {len(card.classes)} classes",
                               "Choose an older session: cellbrush sessions")
    work, problems = Work.from_card(card)
    unseen = None
    if "unseen" in card.labels:
        try:
            unseen = read_labels(session.path, card, "unseen", shape=shape).view(bool)
        except (SessionFileError, ValueError) as error:
            problems += (f"All strokes count the same, for what was painted before an answer is lost. {error}",)
    return Restored(card, work, session.kind, labels, unseen, axes if axes != image_axes else "", problems)


def in_words(when: datetime) -> str:
    """A moment as a person says it: "14:32" today, else with the day."""
    return f"{when:%H:%M}" if when.date() == datetime.now().astimezone().date() else f"{when:%d %B %Y, %H:%M}"
