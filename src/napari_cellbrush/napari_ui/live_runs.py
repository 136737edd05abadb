"""What the live loop's jobs do; see :mod:`.runs`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from napari_cellbrush.config import ClassDefinition, DeviceName, LiveConfig, TrainingConfig
from napari_cellbrush.engine.live_inbox import LiveInbox
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.errors import ModelFileError
from napari_cellbrush.events import (
    ContinuousEvent,
    Improved,
    LiveEvent,
    NothingToLearn,
    PauseToken,
    StopToken,
    StrokesTaken,
)
from napari_cellbrush.napari_ui.runs import LibraryFound, load_torch, read_base, read_library

if TYPE_CHECKING:
    from napari_cellbrush.engine.continuous import StrokeInbox
    from napari_cellbrush.engine.features import FeatureSource
    from napari_cellbrush.engine.model import Model


@dataclass(eq=False)
class KnownFeatures:
    """The features of one image, kept from run to run; belongs to the jobs."""

    source: FeatureSource | None = None


@dataclass(frozen=True, eq=False)
class LiveTask:
    """Everything that following the strokes on one image needs."""

    #: Whose features are used.
    base: str
    planes: Planes
    classes: tuple[ClassDefinition, ...]
    config: LiveConfig
    #: Of random weights, if the base is none.
    training_config: TrainingConfig
    #: Object diameter in image pixels; 0 to measure it.
    diameter_px: float
    device_name: DeviceName
    inbox: LiveInbox
    pause: PauseToken
    known: KnownFeatures = field(default_factory=KnownFeatures)


def follow_strokes(task: LiveTask, stop: StopToken) -> Generator[LiveEvent, None, None]:
    """Answer what the view shows with what the strokes say, until stopped."""
    load_torch()
    from napari_cellbrush.engine.live import follow

    source = task.known.source or _features(task, stop)
    if stop.stopped:
        return  # before anybody knew how large the objects are
    task.known.source = source
    yield from follow(source, len(task.classes), task.inbox, stop, task.pause)


def _features(task: LiveTask, stop: StopToken) -> FeatureSource:
    from napari_cellbrush.engine.device import choose_device
    from napari_cellbrush.engine.diameter import object_diameter
    from napari_cellbrush.engine.features import FeatureSource

    device = choose_device(task.device_name)
    base = read_base(task.base, task.classes, task.planes.n_channels, task.training_config)
    diameter = object_diameter(base, task.planes, task.diameter_px, device, stop, classes=task.classes)
    return FeatureSource(base, task.planes, base.card.scale_for(diameter), device,
                         task.config.feature_memory_mb * 2**20)


class KeptModel:
    """The best model of one time with Live on, in the library, as one file that is replaced; belongs to the jobs."""

    def __init__(self, name: str) -> None:
        self.wanted_name = name
        self._path: Path | None = None

    @property
    def name(self) -> str:
        """What the library calls it now."""
        return self._path.stem if self._path else ""

    def following(self, learning: Generator[ContinuousEvent, None, Model | None]
                  ) -> Generator[ContinuousEvent, None, Model | None]:
        """Learn, and keep what is better; what was learnt from strokes that are gone, goes too."""
        while True:
            try:
                event = next(learning)
            except StopIteration as end:
                return cast("Model | None", end.value)
            is_void = isinstance(event, NothingToLearn) or (isinstance(event, StrokesTaken) and event.restarted)
            if is_void or isinstance(event, Improved):
                # A full disk keeps nobody from learning; the end says it, if it is still full.
                with suppress(ModelFileError):
                    self.replace(event.model if isinstance(event, Improved) else None)
            yield event

    def replace(self, model: Model | None) -> None:
        """Put a model in the place of the last one, or none."""
        from napari_cellbrush.engine.model_file import add_to_library

        if model is not None:
            self._path = add_to_library(model, self.wanted_name, instead_of=self._path)
        elif self._path is not None:
            with suppress(OSError):  # in use; then the next one replaces it
                self._path.unlink(missing_ok=True)
                self._path = None


@dataclass(frozen=True, eq=False)
class LearnTask:
    """Everything that learning beside the person who paints needs."""

    base: str
    images: tuple[Planes, ...]
    classes: tuple[ClassDefinition, ...]
    config: TrainingConfig
    device_name: DeviceName
    inbox: StrokeInbox
    pause: PauseToken
    kept: KeptModel


def learn_strokes(task: LearnTask, stop: StopToken) -> Generator[ContinuousEvent, None, LiveModel | None]:
    """Fine-tune on whatever lies in the inbox until stopped.

    The best model lies in the library all the time: a window may be closed, or a computer fail, at any moment.
    """
    load_torch()
    from napari_cellbrush.engine.continuous import learn_continuously
    from napari_cellbrush.engine.device import choose_device

    base = read_base(task.base, task.classes, task.images[0].n_channels, task.config)
    kept = task.kept
    kept.replace(None)  # of other images, classes or settings
    model = yield from kept.following(learn_continuously(
        base, task.images, task.inbox, task.config, classes=task.classes, device=choose_device(task.device_name),
        stop=stop, pause=task.pause, name=kept.wanted_name))
    try:
        kept.replace(model)
    except ModelFileError:
        if not kept.name:
            raise
        # The last one that could be written is hardly worse.
    return None if model is None else LiveModel(kept.name, read_library(), model.card.score)


@dataclass(frozen=True, eq=False)
class LiveModel:
    """What learning left behind."""

    name: str
    #: With the model in it.
    library: LibraryFound
    score: float | None
