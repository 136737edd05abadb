"""What jobs do: generators that join parts of the engine, run in a worker's thread.

Tasks hold copies of what a person may change meanwhile (strokes, earlier masks) and refer to image arrays; they
hold no layer. The engine is imported inside the functions, because torch takes seconds that a window does not have.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import (
    ClassDefinition,
    DeviceName,
    InferenceConfig,
    LabelKind,
    ObjectsConfig,
    OutputKind,
    TrainingConfig,
)
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.home import home_folder
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.errors import (
    AnnotationError,
    CellbrushError,
    ImageError,
    ModelError,
    ModelFileError,
    TrainingStateError,
)
from napari_cellbrush.events import InferenceEvent, InferenceStarted, StopToken, TileSegmented, TrainingEvent
from napari_cellbrush.session import SCRATCH

if TYPE_CHECKING:
    from napari_cellbrush.engine.device import Device
    from napari_cellbrush.engine.model import Model
    from napari_cellbrush.engine.model_file import ModelEntry
    from napari_cellbrush.engine.training import TrainingResult
    from napari_cellbrush.engine.training_state import Outline



# ------------------------------------------------------------------------------------------------- look around


@dataclass(frozen=True)
class LibraryFound:
    """The models there are, and a sentence for each file that is none."""

    models: tuple[ModelEntry, ...]
    default_base: str
    problems: tuple[str, ...]
    #: A fine-tuning that was stopped or killed, and can go on.
    unfinished: Outline | None = None


@dataclass(frozen=True)
class DeviceFound:
    """The device that runs will use, in words."""

    text: str
    note: str


def look_around(device_name: DeviceName, stop: StopToken) -> Generator[LibraryFound | DeviceFound, None, None]:
    """Read the library, then try the device; the first call in a process loads torch."""
    load_torch()
    from napari_cellbrush.engine.device import choose_device

    yield read_library()
    if stop.stopped:
        return
    try:
        device = choose_device(device_name)
    except CellbrushError as error:
        yield DeviceFound("No device", str(error))
        return
    yield DeviceFound(device.description, device.fallback_reason)


def read_library() -> LibraryFound:
    """The models there are now; reads their headers alone."""
    from napari_cellbrush.engine.model_file import DEFAULT_BASE, scan_models

    models, errors = scan_models()
    return LibraryFound(tuple(models), DEFAULT_BASE, tuple(str(error) for error in errors), read_unfinished())


def unfinished_file() -> Path:
    """Where a fine-tuning keeps its state while it runs; the newest one alone."""
    return home_folder() / "unfinished.training"


def read_unfinished() -> Outline | None:
    """The fine-tuning that can go on, if there is one; reads no tensor."""
    from napari_cellbrush.engine.training_state import read_outline

    try:
        return read_outline(unfinished_file()) if unfinished_file().exists() else None
    except TrainingStateError:
        return None


# --------------------------------------------------------------------------------------------------- take over


@dataclass(frozen=True, eq=False)
class TakeOverTask:
    """Labels that are to become strokes; they are read, never written."""

    name: str
    #: Any array-like of whole numbers.
    labels: Any
    #: One letter per axis of ``labels``; an axis C has length one.
    axes: str
    kind: LabelKind
    classes: tuple[ClassDefinition, ...]


@dataclass(frozen=True)
class PlaneTaken:
    """One plane of the labels is done."""

    plane: int
    n_planes: int


def take_over(task: TakeOverTask, stop: StopToken) -> Generator[PlaneTaken, None, NDArray[np.uint8] | None]:
    """Turn labels into strokes, stack axes + YX, plane by plane; None if it was stopped.

    Raises
    ------
    AnnotationError
        If a value is no class.
    """
    from napari_cellbrush.engine.annotation import in_classes, objects_to_classes, whole_numbers

    sizes = dict(zip(task.axes, task.labels.shape, strict=True))
    stack = [letter for letter in task.axes if letter in "TZ"]
    strokes = np.zeros([sizes[letter] for letter in (*stack, "Y", "X")], np.uint8)
    indices = list(np.ndindex(strokes.shape[:-2]))
    for number, index in enumerate(indices, start=1):
        if stop.stopped:
            return None
        place: dict[str, Any] = {"Y": slice(None), "X": slice(None), "C": 0, **dict(zip(stack, index, strict=True))}
        plane = np.asarray(task.labels[tuple(place[letter] for letter in task.axes)])
        plane = whole_numbers(plane if task.axes.index("Y") < task.axes.index("X") else plane.T,
                              f"the labels '{task.name}'")
        strokes[index] = in_classes(objects_to_classes(plane), task.classes) if task.kind == "objects" else _checked(
            plane, task)
        yield PlaneTaken(number, len(indices))
    return strokes


def _checked(plane: NDArray[Any], task: TakeOverTask) -> NDArray[Any]:
    low, high = int(plane.min(initial=0)), int(plane.max(initial=0))
    if low < 0 or high > len(task.classes):
        raise AnnotationError(f"The labels '{task.name}' hold the value {low if low < 0 else high}, but there are "
                              f"{len(task.classes)} classes", "Say that they are objects, or add classes first")
    return plane


# --------------------------------------------------------------------------------------------------- fine-tune


@dataclass(frozen=True, eq=False)
class CheckedObjects:
    """Objects of an image, of which a person has accepted some."""

    #: Stack axes + YX, a copy.
    ids: NDArray[Any]
    accepted: Accepted


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """Everything a training needs."""

    base: str
    images: tuple[Planes, ...]
    #: Stack axes + YX uint8 per image, copies.
    labels: tuple[NDArray[np.uint8], ...]
    classes: tuple[ClassDefinition, ...]
    config: TrainingConfig
    device_name: DeviceName
    #: For the new model; the library adds a number where it is taken.
    name: str
    #: Whether to go on with the unfinished one, if it learnt from the same; else that is given up.
    resumes: bool = False
    #: Per image, objects that teach where no stroke says otherwise.
    checked: tuple[tuple[CheckedObjects, ...], ...] = ()
    #: Per image, where something was painted before an answer was seen; None where nobody has seen one.
    unseen: tuple[NDArray[np.bool_] | None, ...] = ()

    def corrections(self) -> tuple[NDArray[np.bool_] | None, ...]:
        """Per image, which of the labels correct an answer."""
        return tuple(None if before is None else painted_in(strokes, before)
                     for strokes, before in zip(self.labels, self.unseen or (None,) * len(self.labels), strict=True))

    def taught(self) -> tuple[NDArray[np.uint8], ...]:
        """Strokes and what checked objects teach, per image, like :attr:`labels`."""
        checked = self.checked or ((),) * len(self.labels)
        return tuple(taught(strokes, objects, self.classes)
                     for strokes, objects in zip(self.labels, checked, strict=True))


def painted_in(strokes: NDArray[np.uint8], before: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Where there are strokes, but not ``before``; planes without them take no memory."""
    painted = np.zeros(strokes.shape, bool)
    for index in np.ndindex(strokes.shape[:-2]):
        if strokes[index].any():
            painted[index] = (strokes[index] > 0) & (True if before is None else ~before[index])
    return painted


def taught(strokes: NDArray[np.uint8], checked: tuple[CheckedObjects, ...],
           classes: tuple[ClassDefinition, ...]) -> NDArray[np.uint8]:
    """Strokes of an image, and what its checked objects teach where there are none."""
    from napari_cellbrush.engine.annotation import taught_by_objects

    for objects in checked:
        strokes = taught_by_objects(strokes, objects.ids, objects.accepted, classes)
    return strokes


@dataclass(frozen=True, eq=False)
class WeighTask:
    """Labels to be weighed; see :func:`napari_cellbrush.engine.border_weights.annotation_weights`."""

    #: Stack axes + YX.
    strokes: NDArray[np.uint8]
    checked: tuple[CheckedObjects, ...]
    classes: tuple[ClassDefinition, ...]
    w0: float
    #: In image pixels.
    sigma_px: float


def weigh(task: WeighTask, stop: StopToken) -> Generator[None, None, NDArray[np.float32]]:
    """What each pixel weighs in training, stack axes + YX; 0 where nothing is labelled."""
    from napari_cellbrush.engine.border_weights import annotation_weights

    labels = taught(task.strokes, task.checked, task.classes)
    weights = np.zeros(labels.shape, np.float32)
    for index in np.ndindex(labels.shape[:-2]):
        yield
        if stop.stopped:
            break
        if labels[index].any():
            weights[index] = annotation_weights(labels[index], task.classes, w0=task.w0, sigma_px=task.sigma_px)
    return weights


@dataclass(frozen=True, eq=False)
class Joined:
    """Objects of planes that were joined."""

    #: Stack axes + YX.
    ids: NDArray[Any]
    #: How many there were on the planes, are now, and lie on one plane alone.
    n_before: int
    n: int
    n_single: int


def join(ids: NDArray[Any], stack_axes: str, stop: StopToken) -> Generator[None, None, Joined]:
    """Join objects through depth; see :func:`napari_cellbrush.engine.linking.link_through_depth`."""
    from napari_cellbrush.engine.linking import link_through_depth

    yield
    joined = link_through_depth(ids, stack_axes)
    n = int(joined.max(initial=0))
    on_planes = [np.unique(joined[index]) for index in np.ndindex(joined.shape[:-2])]
    n_planes = np.bincount(np.concatenate(on_planes), minlength=n + 1)[1:]
    return Joined(joined, int(n_planes.sum()), n, int(np.count_nonzero(n_planes == 1)))


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a training gave."""

    #: In the library, or what it shall be called there if it could not be saved.
    name: str
    result: TrainingResult
    #: With the new model in it.
    library: LibraryFound
    save_problem: str = ""


def read_base(name: str, classes: tuple[ClassDefinition, ...], n_channels: int, config: TrainingConfig) -> Model:
    """The model that learning begins with: one of the library, or random weights of the shape in ``config``."""
    from napari_cellbrush.engine.model_file import find_model, read_model
    from napari_cellbrush.engine.training import scratch_model

    return scratch_model(classes, n_channels, config) if name == SCRATCH else read_model(find_model(name))


def fine_tune(task: TrainingTask, stop: StopToken) -> Generator[TrainingEvent, None, Tuned]:
    """Train on strokes and put the model into the library."""
    load_torch()
    from napari_cellbrush.engine.device import choose_device
    from napari_cellbrush.engine.model_file import add_to_library
    from napari_cellbrush.engine.training import train

    base = read_base(task.base, task.classes, task.images[0].n_channels, task.config)
    result = yield from train(base, task.images, task.taught(), task.config, classes=task.classes,
                              device=choose_device(task.device_name), stop=stop, name=task.name,
                              state_file=_state_file(task), corrections=task.corrections())
    try:
        path = add_to_library(result.model, task.name)
        if not result.stopped:
            unfinished_file().unlink(missing_ok=True)
        return Tuned(path.stem, result, read_library())
    except ModelFileError as error:
        # A full disk must not cost the training: the model stays in memory until it could be saved.
        return Tuned(task.name, result, read_library(), str(error))


def _state_file(task: TrainingTask) -> Path | None:
    """Where to keep the state; None where there is no room for it, which must not keep anybody from training."""
    file = unfinished_file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not task.resumes:
            file.unlink(missing_ok=True)
        return file
    return None


def save_again(tuned: Tuned, name: str, stop: StopToken) -> Generator[None, None, Tuned]:
    """Put a model into the library that could not be saved before."""
    from napari_cellbrush.engine.model_file import add_to_library

    yield
    return Tuned(add_to_library(tuned.result.model, name).stem, tuned.result, read_library())


# ----------------------------------------------------------------------------------------------------- segment


@dataclass(eq=False)
class Answers:
    """What a model said of an image, kept from run to run: objects reach beyond the part that is segmented anew.

    Belongs to the worker while a run is under way.
    """

    #: Hash of the model; empty while there are no answers.
    model_hash: str = ""
    #: K + stack axes + YX, in 255ths; 0 where nothing was segmented yet.
    probabilities: NDArray[np.uint8] | None = None
    #: What the K classes mean.
    classes: tuple[ClassDefinition, ...] = ()
    #: Network pixels per image pixel.
    scale: float = 1.0

    def of(self, model: Model, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], bool]:
        """The probabilities, to be written to, and whether the same model had written there before."""
        same = self.probabilities is not None and self.model_hash == model.weights_hash
        if self.probabilities is None or not same:
            self.model_hash, self.probabilities = model.weights_hash, np.zeros((model.n_classes, *shape), np.uint8)
            self.classes = model.card.classes
        return self.probabilities, same


@dataclass(frozen=True, eq=False)
class SegmentationTarget:
    """One image to segment, or a part of it."""

    planes: Planes
    #: The planes to segment, in this order.
    indices: tuple[tuple[int, ...], ...]
    region: tuple[slice, slice] | None = None
    centre: tuple[float, float] | None = None
    #: Where objects are wanted: earlier answers, and a copy of the objects made of them, stack axes + YX.
    answers: Answers | None = None
    earlier_objects: NDArray[Any] | None = None
    #: Which of those stay as they are.
    accepted: Accepted = field(default_factory=Accepted)
    #: Object diameter that an earlier run measured; 0 for none.
    diameter_px: float = 0.0


@dataclass(frozen=True, eq=False)
class SegmentationTask:
    """Everything a segmentation needs."""

    model: str
    targets: tuple[SegmentationTarget, ...]
    output: OutputKind
    config: InferenceConfig
    device_name: DeviceName


@dataclass(frozen=True)
class TargetStarted:
    """The next image begins."""

    target: int
    #: What makes the mask; see :func:`napari_cellbrush.export.provenance.mask_provenance`.
    provenance: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class TargetEvent:
    """Something happened on an image."""

    target: int
    event: InferenceEvent


@dataclass(frozen=True, eq=False)
class ObjectsNumbered:
    """The objects of an image: stack axes + YX, 0 background, ids from 1."""

    target: int
    ids: NDArray[Any]
    n_objects: int


@dataclass(frozen=True)
class TargetFailed:
    """One image of several could not be segmented; the others go on."""

    target: int
    error: CellbrushError


SegmentationEvent = TargetStarted | TargetEvent | ObjectsNumbered | TargetFailed


def segment(task: SegmentationTask, stop: StopToken) -> Generator[SegmentationEvent, None, None]:
    """Segment images one after the other, tile by tile."""
    load_torch()
    from napari_cellbrush.engine.device import choose_device
    from napari_cellbrush.engine.model_file import find_model, read_model

    model = read_model(find_model(task.model))
    device = choose_device(task.device_name)
    for number, target in enumerate(task.targets):
        try:
            yield from _segment_target(number, target, task, model, device, stop)
        except (ImageError, ModelError) as error:
            if len(task.targets) == 1:
                raise
            yield TargetFailed(number, error)
        if stop.stopped:
            return


def _segment_target(number: int, target: SegmentationTarget, task: SegmentationTask, model: Model, device: Device,
                    stop: StopToken) -> Generator[SegmentationEvent, None, None]:
    from napari_cellbrush.engine.inference import segment_planes
    from napari_cellbrush.engine.object_blocks import number_objects
    from napari_cellbrush.engine.objects import as_bytes
    from napari_cellbrush.engine.proofreading import around_accepted
    from napari_cellbrush.export.provenance import mask_provenance

    config = task.config if task.config.diameter_px else task.config.replace(diameter_px=target.diameter_px)
    answers, kept, same, scale = target.answers, None, False, 1.0
    for event in segment_planes(model, target.planes, config=config, device=device, indices=target.indices,
                                region=target.region, centre=target.centre, stop=stop):
        if isinstance(event, InferenceStarted):
            scale = event.scale
            yield TargetStarted(number, mask_provenance(model, output=task.output, config=config,
                                                        image_name=target.planes.name, image_axes=target.planes.axes,
                                                        started=event))
        elif answers is not None and isinstance(event, TileSegmented):
            if kept is None:
                # Not before: a run that ends without a tile leaves earlier answers as they are.
                kept, same = answers.of(model, target.planes.spatial_shape)
                answers.scale = scale
            place: tuple[int | slice, ...] = (slice(None), *event.plane, event.rows, event.columns)
            kept[place] = as_bytes(event.probabilities)
        yield TargetEvent(number, event)
    if kept is not None and not stop.stopped:
        objects = config.objects.at_scale(scale)
        ids: NDArray[Any] = number_objects(kept, model.card.classes, objects, indices=target.indices,
                             earlier=target.earlier_objects if same else None, stop=stop)
        if target.accepted and target.earlier_objects is not None:
            ids = around_accepted(ids, target.earlier_objects, target.accepted, objects.min_object_px)
        if not stop.stopped:
            seen = (ids[index][target.region or ...] for index in target.indices)
            yield ObjectsNumbered(number, ids, sum(map(_n_objects, seen)))


@dataclass(frozen=True, eq=False)
class PreviewTask:
    """Objects to be made anew of what a model said before."""

    answers: Answers
    config: ObjectsConfig
    #: The plane shown, and the part of it that the camera sees.
    index: tuple[int, ...]
    region: tuple[slice, slice] | None
    #: A copy of the objects as they are, if any of them is accepted.
    earlier_objects: NDArray[Any] | None
    accepted: Accepted


@dataclass(frozen=True, eq=False)
class ViewRenumbered:
    """The objects in view: YX over ``region``, ids 1…n with gaps."""

    region: tuple[slice, slice]
    ids: NDArray[np.uint32]


PreviewEvent = ViewRenumbered | ObjectsNumbered


def preview(task: PreviewTask, stop: StopToken) -> Generator[PreviewEvent, None, None]:
    """Make objects anew, first those in view, then all."""
    from napari_cellbrush.engine.object_blocks import number_objects, objects_in_window
    from napari_cellbrush.engine.proofreading import around_accepted

    probabilities, classes = task.answers.probabilities, task.answers.classes
    if probabilities is None:
        return
    config = task.config.at_scale(task.answers.scale)
    if task.region is not None:
        plane: tuple[int | slice, ...] = (slice(None), *task.index)
        yield ViewRenumbered(task.region, objects_in_window(probabilities[plane], task.region, classes, config))
    if stop.stopped:
        return
    ids: NDArray[Any] = number_objects(probabilities, classes, config, stop=stop)
    if task.earlier_objects is not None:
        ids = around_accepted(ids, task.earlier_objects, task.accepted, config.min_object_px)
    if not stop.stopped:
        yield ObjectsNumbered(0, ids, _n_objects(ids))


def _n_objects(ids: NDArray[Any]) -> int:
    return int(np.count_nonzero(np.bincount(ids.ravel())[1:]))


# ------------------------------------------------------------------------------------------------------ export


ExportFormat = Literal["tiff", "compact", "rois", "geojson", "table", "overlay"]


@dataclass(frozen=True, eq=False)
class ExportTask:
    """Everything an export needs; ``mask`` and ``class_map`` are copies."""

    path: Path
    format: ExportFormat
    mask: NDArray[Any]
    axes: str
    pixel_size: PixelSize
    provenance: dict[str, Any]
    overwrite: bool
    #: Where objects were found, and which class the model saw at each pixel.
    image: Planes | None = None
    class_map: NDArray[Any] | None = None
    classes: tuple[ClassDefinition, ...] = ()
    #: Which plane of a stack a picture shows.
    plane: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Exported:
    """A file that was written."""

    path: Path
    #: What it holds, in words.
    contents: str
    #: The table that was written, if it is one.
    columns: dict[str, NDArray[Any]] | None = None


def export(task: ExportTask, stop: StopToken) -> Generator[None, None, Exported]:
    """Write a layer and say what became of it."""
    yield
    return _export_mask(task) if task.format in ("tiff", "compact") else _export_objects(task)


def _export_mask(task: ExportTask) -> Exported:
    import tifffile

    from napari_cellbrush.export.mask_tiff import save_mask

    path = save_mask(task.path, task.mask, axes=task.axes, pixel_size=task.pixel_size, provenance=task.provenance,
                     overwrite=task.overwrite, compress=task.format == "compact")
    with tifffile.TiffFile(path) as tiff:
        kind = "ImageJ TIFF" if tiff.is_imagej else "OME-TIFF"
        dtype = str(tiff.series[0].dtype)
    highest = int(task.mask.max()) if task.mask.dtype.kind in "bui" else None
    values = "probabilities" if highest is None else f"ids 1–{highest:,}" if highest else "no object at all"
    return Exported(path, f"{values}, {dtype}, {kind}")


def _export_objects(task: ExportTask) -> Exported:
    from napari_cellbrush.export.found_objects import FoundObjects, ObjectFormat, save_objects

    kind = cast("ObjectFormat", task.format)
    objects = FoundObjects(task.mask, task.axes, task.pixel_size, task.image, task.class_map, task.classes)
    columns = save_objects(task.path, objects, kind, plane=task.plane, overwrite=task.overwrite)
    n = np.count_nonzero(np.unique(task.mask[task.plane]))
    what = "1 object" if n == 1 else f"{n:,} objects"
    return Exported(task.path, f"{what}, {len(columns)} columns" if columns else what, columns)


def load_torch() -> None:
    """Import torch in the thread of a job, and leave a core to the window."""
    import torch

    # With all cores painting stutters (measured); the number counts for the calling thread.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
