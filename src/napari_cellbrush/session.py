"""What a person is working on: images, classes, annotations, models, runs.

One :class:`Session` belongs to one viewer. Docks show it and call it; the layers that it means are known to the
floor above by the same keys. It knows no Qt, no napari and no pixel, and every change is announced by a signal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from psygnal import Signal

from napari_cellbrush.config import (
    CLASS_COLORS,
    DEFAULT_CLASSES,
    ClassDefinition,
    ClassRole,
    DeviceName,
    InferenceConfig,
    LiveConfig,
    OutputKind,
    TrainingConfig,
)
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.axes import AXIS_NAMES, PixelSize, check_axes
from napari_cellbrush.errors import ConfigError, ImageError
from napari_cellbrush.events import TrainingEvent, TrainingStarted, span_in_words

if TYPE_CHECKING:
    from napari_cellbrush.engine.model_file import ModelEntry
    from napari_cellbrush.engine.session_folder import SavedSession
    from napari_cellbrush.engine.suggestions import Slip
    from napari_cellbrush.engine.training import Ended
    from napari_cellbrush.engine.training_state import Outline

Scope = Literal["view", "slice", "layer", "all"]
CorrectionTool = Literal["select", "merge", "split"]
NoticeKind = Literal["info", "success", "warning", "error"]

#: More images are not named one by one.
MOST_NAMED = 4
#: Outputs whose values are the numbers of objects.
OF_OBJECTS = ("objects", "bodies")
#: The base that is no model: random weights. No file can be called so, because names of files are not empty.
SCRATCH = ""


@dataclass(frozen=True)
class ImageEntry:
    """An image that can be worked on."""

    key: str
    name: str
    shape: tuple[int, ...]
    #: One letter of TCZYXS per axis of ``shape``; empty where nobody could tell.
    axes: str
    #: Whether the viewer takes the last axis for the values of a colour.
    rgb: bool = False


@dataclass(frozen=True)
class MaskEntry:
    """A layer with something to export, or labels to start from."""

    key: str
    name: str
    shape: tuple[int, ...]
    #: Whether it holds whole numbers (labels) rather than probabilities.
    labels: bool
    #: What was written into it: "objects", "classes", "probability" or "weights" by a run, "bodies" where objects were
    #: joined through depth; empty for all other layers.
    output: str = ""


@dataclass(frozen=True)
class Notice:
    """A sentence for the person."""

    text: str = ""
    kind: NoticeKind = "info"


@dataclass(frozen=True)
class Advice:
    """What a person might look at next, as of the last look."""

    #: Sentences.
    hints: tuple[str, ...] = ()
    #: Strokes that the model contradicts.
    slips: tuple[Slip, ...] = ()


class Phase(Enum):
    """Where a run stands."""

    IDLE = "idle"
    RUNNING = "running"
    STOPPING = "stopping"


class Run:
    """One kind of work: whether it is under way, how far it is, and how the last one ended."""

    changed = Signal()

    def __init__(self) -> None:
        self.phase = Phase.IDLE
        #: In [0, 1]; None while nobody knows.
        self.fraction: float | None = None
        self.seconds_left: float | None = None
        #: For example "tile 3 of 36".
        self.count = ""
        self.notice = Notice()

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self.phase is not Phase.IDLE

    def begin(self, text: str) -> None:
        """It starts; how long it takes is not known yet."""
        self.phase, self.fraction, self.seconds_left, self.count = Phase.RUNNING, None, None, ""
        self.say(text)

    def advance(self, fraction: float, seconds_left: float, count: str) -> None:
        """It got on."""
        self.fraction, self.seconds_left, self.count = fraction, seconds_left, count
        self.changed.emit()

    def stopping(self) -> None:
        """Somebody asked it to stop."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.STOPPING
            self.say("Stopping…")

    def end(self, text: str, kind: NoticeKind = "info") -> None:
        """It is over; the sentence stays until the next one."""
        self.phase = Phase.IDLE
        self.say(text, kind)

    def say(self, text: str, kind: NoticeKind = "info") -> None:
        """Show a sentence."""
        self.notice = Notice(text, kind)
        self.changed.emit()


class Keeping:
    """What is saved of the work by itself, and what was found from before."""

    changed = Signal()

    def __init__(self) -> None:
        #: Sessions of each image that can be taken up again, the likeliest first.
        self.found: dict[str, tuple[SavedSession, ...]] = {}
        #: Whether one of them is being read.
        self.restoring = False
        #: When strokes were saved last; empty if they never were.
        self.saved = ""
        #: A problem that the person should know of.
        self.notice = Notice()

    def set_found(self, image_key: str, sessions: Sequence[SavedSession]) -> None:
        """Tell what can be taken up again."""
        if self.found.get(image_key) != tuple(sessions):
            self.found[image_key] = tuple(sessions)
            self.changed.emit()

    def first_found(self, image: ImageEntry | None, kind: str = "") -> SavedSession | None:
        """The likeliest session of an image, of one kind or of any."""
        found = self.found.get(image.key, ()) if image else ()
        return next((saved for saved in found if kind in ("", saved.kind)), None)

    def set_restoring(self, restoring: bool) -> None:
        """Tell that a session is being read, or no longer."""
        self.restoring = restoring
        self.changed.emit()

    def tell(self, saved: str, notice: Notice) -> None:
        """Tell how the last save went."""
        if (saved, notice) != (self.saved, self.notice):
            self.saved, self.notice = saved, notice
            self.changed.emit()


@dataclass(frozen=True)
class Correction:
    """Which objects are being corrected, and how."""

    #: The objects layer's key; empty while none is corrected.
    layer: str = ""
    #: What a click or a line in the picture does, unless napari's own tools have the mouse.
    tool: CorrectionTool = "select"
    #: Whether they have it: to paint a new object, or because the person took the brush or the eraser.
    painting: Literal["", "new", "by hand"] = ""
    #: Id of the object at hand; 0 for none.
    current: int = 0
    #: Whether that one is accepted.
    current_accepted: bool = False
    #: Objects on the plane shown, and how many of them are accepted.
    n_objects: int = 0
    n_accepted: int = 0
    can_undo: bool = False
    can_redo: bool = False
    notice: Notice = Notice()


@dataclass(frozen=True)
class TunedModel:
    """What came out of the last fine-tuning."""

    name: str
    #: False where the base scored better on the held-out strokes.
    improved: bool
    base_score: float | None
    score: float | None
    no_score_reason: str
    ended: Ended
    n_steps: int
    #: The model that was chosen before; where "revert" goes back to.
    previous: str
    #: Where the score of other strokes would lie, 95 %; None where too few strokes are held out.
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model that fine-tuning or Live gave in this session; it stays in the library."""

    name: str
    #: Connected pieces of one class that there were when it was made: strokes, and what accepted objects teach.
    n_strokes: int
    score: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Options:
    """What a person ticked and chose in the docks."""

    scope: Scope = "view"
    output: OutputKind = "classes"
    #: Make new result layers instead of writing into those of the last run.
    keep_earlier: bool = False
    segment_after_training: bool = True
    device_name: DeviceName = "auto"


class Session:
    """The state of one viewer's work.

    Attributes
    ----------
    images, masks
        What there is to work on, topmost layer first.
    classes
        Class number k has label value k + 1.
    base
        Name of the model that fine-tuning starts from, or :data:`SCRATCH`.
    model
        Name of the model that segments; empty where there is none yet.
    models
        The library; None until somebody looked.
    device_text, device_note
        One line about the device; why no faster one is used, if there is anything to say.
    """

    images_changed = Signal()
    image_chosen = Signal()
    #: The key of an image whose axes mean something else now.
    axes_changed = Signal(str)
    pixel_sizes_changed = Signal()
    classes_changed = Signal()
    class_chosen = Signal()
    brush_changed = Signal()
    annotations_changed = Signal()
    painted_changed = Signal()
    #: The key of an objects layer in which other objects are accepted now.
    accepted_changed = Signal(str)
    correction_changed = Signal()
    models_changed = Signal()
    device_changed = Signal()
    options_changed = Signal()
    training_event = Signal(object)
    training_forgotten = Signal()

    def __init__(self) -> None:
        self.images: tuple[ImageEntry, ...] = ()
        self.masks: tuple[MaskEntry, ...] = ()
        self.image: ImageEntry | None = None
        self.classes: tuple[ClassDefinition, ...] = DEFAULT_CLASSES
        self.current_class = 0
        # Thin enough for the line between two cells.
        self.brush_px = 4
        self._axes: dict[str, str] = {}
        self._pixel_sizes: dict[str, PixelSize] = {}
        self._annotations: dict[str, str] = {}
        self._painted: dict[str, tuple[int, ...]] = {}
        self._accepted: dict[str, tuple[str, Accepted]] = {}
        #: Models that segmented an image before anything was painted on it, by its key.
        self._segmented_bare: dict[str, set[str]] = {}
        self.correction = Correction()

        self.models: tuple[ModelEntry, ...] | None = None
        self.base = SCRATCH
        self.model = ""
        self._preferred: tuple[str, str] | None = None
        self.tuned: TunedModel | None = None
        #: What fine-tuning gave in this session, the oldest first.
        self.timeline: tuple[Checkpoint, ...] = ()
        #: A fine-tuning that was stopped or killed, and can go on.
        self.unfinished: Outline | None = None
        self.device_text = ""
        self.device_note = ""

        self.options = Options()
        self.training_config = TrainingConfig()
        self.inference_config = InferenceConfig()
        self.live_config = LiveConfig()
        self.taking_over = Run()
        self.training = Run()
        self.segmentation = Run()
        self.export = Run()
        self.keeping = Keeping()
        self.live = Run()
        self.guiding = Run()
        self.comparison = Run()
        self.advice = Advice()
        self.training_events: list[TrainingEvent] = []

    # ------------------------------------------------------------------------------------------ images

    def set_layers(self, images: Iterable[ImageEntry], masks: Iterable[MaskEntry]) -> None:
        """Tell what layers there are now; the chosen image stays chosen while it exists."""
        entries = tuple(replace(image, axes=self._axes.get(image.key, image.axes)) for image in images)
        masks = tuple(masks)
        if (entries, masks) == (self.images, self.masks):
            return
        self.images, self.masks = entries, masks
        self._forget_lost_layers()
        chosen = self.image.key if self.image else ""
        found = [image for image in entries if image.key == chosen] or list(entries[:1])
        before, now = self.image, found[0] if found else None
        self.image = now
        # Who hears of it may choose another one, and says so.
        self.images_changed.emit()
        if before != now:
            self.image_chosen.emit()

    def choose_image(self, key: str) -> None:
        """Work on another image."""
        found = self.find_image(key)
        if found is not None and found != self.image:
            self.image = found
            self.image_chosen.emit()

    def find_image(self, key: str) -> ImageEntry | None:
        """The image with this key, if it still exists."""
        return next((image for image in self.images if image.key == key), None)

    def set_axes(self, key: str, axes: str) -> None:
        """Say what the axes of an image mean.

        Raises
        ------
        ImageError
            If the letters do not fit the image's shape, or its colours.
        """
        image = self.find_image(key)
        if image is not None:
            checked = check_axes(axes, image.shape)
            if image.rgb and checked[-1] not in "SC":
                raise ImageError(f"napari shows '{image.name}' in colour, its last axis as red, green and blue; got the"
                                 f" axes '{checked}'", "End them with S, or make planes the file's first axis")
            self._axes[key] = checked
            self.set_layers(self.images, self.masks)
            self.axes_changed.emit(key)

    def pixel_size_said(self, key: str) -> PixelSize | None:
        """How large somebody said that the pixels of an image are; None for as read."""
        return self._pixel_sizes.get(key)

    def say_pixel_size(self, key: str, size: PixelSize | None) -> None:
        """Say how large the pixels of an image are, or of a mask whose image nobody knows; None: as read."""
        if size == self._pixel_sizes.get(key):
            return
        if size is None:
            del self._pixel_sizes[key]
        else:
            self._pixel_sizes[key] = size
        self.pixel_sizes_changed.emit()

    def _forget_lost_layers(self) -> None:
        images, labels = {i.key for i in self.images}, {m.key for m in self.masks if m.labels}
        lost = {i for i, annotation in self._annotations.items() if i not in images or annotation not in labels}
        for image in lost:
            del self._annotations[image]
            self._painted.pop(image, None)
        if lost:
            self.annotations_changed.emit()
            self.painted_changed.emit()
        for key in self._accepted.keys() - labels:
            self.set_accepted(key, "", Accepted())

    # ------------------------------------------------------------------------------------- annotation

    @property
    def annotations(self) -> dict[str, str]:
        """The annotation layer's key for each image that has one."""
        return dict(self._annotations)

    def annotation_of(self, image_key: str) -> str | None:
        """The key of an image's annotation layer."""
        return self._annotations.get(image_key)

    def set_annotation(self, image_key: str, annotation_key: str) -> None:
        """Say which layer holds the strokes of an image."""
        self._annotations[image_key] = annotation_key
        self._painted[image_key] = (0,) * len(self.classes)
        self.annotations_changed.emit()
        self.painted_changed.emit()

    def forget_annotation(self, image_key: str) -> None:
        """An image's annotation layer no longer fits it."""
        if self._annotations.pop(image_key, None) is not None:
            self._painted.pop(image_key, None)
            self.annotations_changed.emit()
            self.painted_changed.emit()

    def set_painted(self, image_key: str, pixels_per_class: Sequence[int]) -> None:
        """Tell how many pixels of each class are painted on an image."""
        counts = tuple(pixels_per_class)
        if image_key in self._annotations and self._painted.get(image_key) != counts:
            self._painted[image_key] = counts
            self.painted_changed.emit()

    @property
    def painted(self) -> tuple[int, ...]:
        """Painted pixels of each class, over all images."""
        counts = list(self._painted.values())
        return tuple(sum(c[k] for c in counts if k < len(c)) for k in range(len(self.classes)))

    def painted_images(self) -> tuple[str, ...]:
        """Keys of the images with at least one painted pixel."""
        return tuple(image.key for image in self.images if any(self._painted.get(image.key, ())))

    def note_segmented(self, image_key: str) -> None:
        """Say that the chosen model has answered for an image."""
        if image_key not in self.painted_images():
            self._segmented_bare.setdefault(image_key, set()).add(self.model)

    def only_errors_hint(self) -> str:
        """What to do if strokes lie only on errors of the base, where that may be; else empty."""
        painted = self.painted_images()
        names = [image.name for image in self.images
                 if image.key in painted and self.base in self._segmented_bare.get(image.key, ())]
        if not names or self.training_config.only_errors_painted:
            return ""
        return (f"'{self.base}' segmented '{names[0]}' before you painted. If you painted only where it was wrong, "
                "tick 'Only errors painted', or it forgets what it knew.")

    # ------------------------------------------------------------------------------------ accepted objects

    def accepted_in(self, layer_key: str) -> Accepted:
        """What a person has accepted in an objects layer."""
        return self._accepted.get(layer_key, ("", Accepted()))[1]

    def accepted_of(self, image_key: str) -> dict[str, Accepted]:
        """What is accepted of an image, by the key of its objects layer."""
        return {key: accepted for key, (image, accepted) in self._accepted.items() if image == image_key}

    def set_accepted(self, layer_key: str, image_key: str, accepted: Accepted) -> None:
        """Tell what is accepted in an objects layer of an image."""
        if accepted == self.accepted_in(layer_key):
            return
        self._accepted.pop(layer_key, None)
        if accepted:
            self._accepted[layer_key] = image_key, accepted
        self.accepted_changed.emit(layer_key)

    def taught_images(self) -> tuple[str, ...]:
        """Keys of the images with at least one painted pixel or accepted object."""
        painted = self.painted_images()
        return tuple(image.key for image in self.images if image.key in painted or self.accepted_of(image.key))

    def taught_in_words(self) -> str:
        """What a training would learn from, image by image; empty if there is nothing."""
        painted, taught = self.painted_images(), []
        for image in self.images:
            n_objects = sum(len(accepted.ids) for accepted in self.accepted_of(image.key).values())
            objects = "one object" if n_objects == 1 else f"{n_objects:,} objects" if n_objects else ""
            what = " and ".join(filter(None, ("strokes" if image.key in painted else "", objects)))
            if what:
                taught.append(f"{what} on '{image.name}'")
        if len(taught) > MOST_NAMED:
            return f"Learns from {len(taught)} images."
        return f"Learns from {', '.join(taught)}." if taught else ""

    def set_correction(self, **changes: Any) -> None:
        """Change some of :class:`Correction`."""
        changed = replace(self.correction, **changes)
        if changed != self.correction:
            self.correction = changed
            self.correction_changed.emit()

    # ---------------------------------------------------------------------------------------- classes

    def choose_class(self, position: int) -> None:
        """Paint with another class."""
        position = min(max(position, 0), len(self.classes) - 1)
        if position != self.current_class:
            self.current_class = position
            self.class_chosen.emit()

    def set_brush(self, size_px: int) -> None:
        """Paint with another size of brush, in pixels of the image."""
        if size_px != self.brush_px:
            self.brush_px = size_px
            self.brush_changed.emit()

    def set_classes(self, classes: Iterable[ClassDefinition]) -> None:
        """Use other classes.

        Raises
        ------
        ConfigError
            If there are fewer than two or more than 255, or two with one name.
        """
        classes = tuple(classes)
        names = [definition.name.strip() for definition in classes]
        if len({name.casefold() for name in names}) != len(names):
            raise ConfigError("Two classes have the same name", "Give each class its own name")
        if not 2 <= len(classes) <= 255:
            raise ConfigError(f"There would be {len(classes)} classes, need 2 to 255",
                              "Keep background and at least one other class")
        if classes != self.classes:
            before, self.classes = self.current_class, classes
            # Whoever hears of it may ask for the chosen one.
            self.current_class = min(before, len(classes) - 1)
            self.classes_changed.emit()
            if self.current_class != before:
                self.class_chosen.emit()
            self.painted_changed.emit()

    def add_class(self) -> None:
        """Add a class with a free name and colour."""
        names = {definition.name.casefold() for definition in self.classes}
        number = next(n for n in range(len(self.classes), 1000) if f"class {n}" not in names)
        used = {definition.color for definition in self.classes}
        free = [color for color in CLASS_COLORS if color not in used] or [CLASS_COLORS[len(names) % len(CLASS_COLORS)]]
        self.set_classes((*self.classes, ClassDefinition(name=f"class {number}", color=free[0])))

    def change_class(self, position: int, *, name: str | None = None, color: str | None = None,
                     role: ClassRole | None = None) -> None:
        """Rename or recolour a class, or say what it counts as.

        Raises
        ------
        ConfigError
            If the name is empty, too long or taken.
        """
        changes = {"name": name.strip() if name is not None else None, "color": color, "role": role}
        changed = self.classes[position].replace(**{k: v for k, v in changes.items() if v is not None})
        self.set_classes((*self.classes[:position], changed, *self.classes[position + 1 :]))

    def remove_class(self, position: int) -> None:
        """Take a class out; those after it move one label value down (the floor above renumbers the strokes).

        Raises
        ------
        ConfigError
            If fewer than two would be left.
        """
        left = (*self.classes[:position], *self.classes[position + 1 :])
        if len(left) >= 2:
            self._painted = {image: counts[:position] + counts[position + 1 :]
                             for image, counts in self._painted.items()}
        self.set_classes(left)

    # ----------------------------------------------------------------------------------------- models

    def set_models(self, models: Sequence[ModelEntry], default_base: str = "") -> None:
        """Tell what is in the library; choices stay while they exist."""
        first = self.models is None
        self.models = tuple(models)
        names = [entry.name for entry in models]
        default = default_base if default_base in names else ""
        if first or (self.base != SCRATCH and self.base not in names):
            self.base = default or SCRATCH
        if self.model not in names:
            self.model = default or (names[0] if names else "")
        if self._preferred is not None:
            preferred, self._preferred = self._preferred, None
            self.prefer_models(*preferred)
        self.models_changed.emit()

    def choose_base(self, name: str) -> None:
        """Start fine-tuning from another model. Nothing painted yet: one's own model brings its classes along."""
        if name == self.base:
            return
        self.base = name
        entry = self.find_model(name)
        if entry is not None and not entry.bundled and not any(self.painted):
            self.set_classes(entry.card.classes)
        self.models_changed.emit()

    def choose_model(self, name: str) -> None:
        """Segment with another model."""
        if name != self.model:
            self.model = name
            self.models_changed.emit()

    def prefer_models(self, base: str, model: str) -> None:
        """Use models of an earlier session; before anybody looked, they are looked for first."""
        if self.models is None:
            self._preferred = (base, model)
            return
        names = {entry.name for entry in self.models}
        self.base = base if base in names | {SCRATCH} else self.base
        self.model = model if model in names else self.model
        self.models_changed.emit()

    def find_model(self, name: str) -> ModelEntry | None:
        """The library's model of this name."""
        return next((entry for entry in self.models or () if entry.name == name), None)

    def in_own_colours(self, classes: Sequence[ClassDefinition]) -> tuple[ClassDefinition, ...]:
        """A model's classes, in the session's colours where it has classes of the same name."""
        own = {definition.name: definition.color for definition in self.classes}
        return tuple(definition.replace(color=own.get(definition.name, definition.color)) for definition in classes)

    @property
    def previous_model(self) -> str:
        """What :meth:`revert` would go back to; empty if the tuned model is not in use or there was none before."""
        tuned = self.tuned
        if tuned is None or self.model != tuned.name or self.find_model(tuned.previous) is None:
            return ""
        return tuned.previous

    def revert(self) -> None:
        """Segment with the model chosen before the last fine-tuning; the tuned one stays in the library."""
        if self.previous_model:
            self.choose_model(self.previous_model)

    def set_device(self, text: str, note: str) -> None:
        """Tell which device will compute, and what a person should know about it."""
        self.device_text, self.device_note = text, note
        self.device_changed.emit()

    # ------------------------------------------------------------------------------------------- runs

    def set_settings(self, training: TrainingConfig, inference: InferenceConfig) -> None:
        """Use the settings of an earlier session."""
        self.training_config, self.inference_config = training, inference
        self.options_changed.emit()

    def set_options(self, **changes: Any) -> None:
        """Change some of :class:`Options`."""
        changed = replace(self.options, **changes)
        if changed != self.options:
            self.options = changed
            self.options_changed.emit()

    def set_unfinished(self, outline: Outline | None) -> None:
        """Tell which fine-tuning can go on."""
        if outline != self.unfinished:
            self.unfinished = outline
            self.training.changed.emit()

    def set_advice(self, advice: Advice) -> None:
        """Tell what was found."""
        self.advice = advice
        self.guiding.changed.emit()

    def add_training_event(self, event: TrainingEvent) -> None:
        """Remember an event of the present training, so that a dock opened later can show it too."""
        if isinstance(event, TrainingStarted):
            self.forget_training()
        self.training_events.append(event)
        self.training_event.emit(event)

    def forget_training(self) -> None:
        """A new training begins: clear the curve and the scores of the last one."""
        self.training_events.clear()
        self.tuned = None
        self.training_forgotten.emit()

    def finish_training(self, tuned: TunedModel) -> None:
        """A training gave a model: use it, unless the base is better."""
        self.tuned = tuned
        started = next((event for event in self.training_events if isinstance(event, TrainingStarted)), None)
        if tuned.improved:
            self.model = tuned.name
        self.add_checkpoint(Checkpoint(tuned.name, started.n_strokes if started else 0, tuned.score, tuned.interval))

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """A model was kept: it can be compared and used from now on."""
        self.timeline = (*self.timeline, checkpoint)
        self.models_changed.emit()

    def why_not_train(self) -> str:
        """Why fine-tuning cannot start, as a sentence; empty if it can."""
        painted = [c.name for c, n in zip(self.classes, self.painted, strict=True) if n]
        if not self.images:
            return "Open an image first."
        taught = any(accepted.ids for _, accepted in self._accepted.values())
        if not self._annotations and not taught:
            return "Make an annotation first (Annotate, New annotation)."
        if len(painted) < 2 and not taught:
            return f"Paint at least two classes (so far: {painted[0] if painted else 'none'})."
        if self.models is None:
            return self.device_note or "Looking for models…"
        return self._why_busy(self.segmentation, "the segmentation")

    def why_not_segment(self) -> str:
        """Why segmentation cannot start, as a sentence; empty if it can."""
        if self.image is None:
            return "Open an image first."
        if not self.image.axes:
            return f"Say what the axes of '{self.image.name}' mean (Annotate, Axes)."
        if self.models is None:
            return self.device_note or "Looking for models…"
        if not self.model:
            return "There is no model yet: paint and fine-tune one first."
        return self._why_busy(self.training, "fine-tuning")

    @staticmethod
    def _why_busy(run: Run, what: str) -> str:
        return f"Wait until {what} has ended." if run.busy else ""


def axes_in_words(axes: str) -> str:
    """For example "depth, row, column" for ZYX."""
    return ", ".join(AXIS_NAMES[letter] for letter in axes)


def objects_in_words(n: int, joinable: bool = False, by_image: Sequence[tuple[str, int]] = ()
                     ) -> tuple[str, NoticeKind]:
    """How many were found, and what to do if none was, or if they lie on planes above each other.

    Images that are several and few are told one by one.
    """
    if not n:
        return "No object. If there are any, lower Least certainty.", "warning"
    counted = "One object" if n == 1 else f"{n:,} objects"
    if 1 < len(by_image) <= MOST_NAMED:
        counted += " (" + ", ".join(f"{found:,} in '{name}'" for name, found in by_image) + ")"
    return f"{counted}, plane by plane; Correct joins them through depth." if joinable else f"{counted}.", "success"


def sizes_in_words(diameters_px: Collection[float], names: Sequence[str] = ()) -> str:
    """How large objects are taken to be, as a sentence that goes on after another; empty if nobody knows.

    Sizes that differ are told one by one where the images are named and few.
    """
    if not diameters_px:
        return ""
    across = f"{span_in_words(diameters_px)} across"
    if len({f"{px:.0f}" for px in diameters_px}) > 1 and 0 < len(names) <= MOST_NAMED:
        across = ", ".join(f"{px:.0f} px across in '{name}'" for name, px in zip(names, diameters_px, strict=False))
    return f" Objects are taken to be {across}."


def duration_in_words(seconds: float) -> str:
    """For example "45 s", "3 min" or "2 h 10 min"."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
