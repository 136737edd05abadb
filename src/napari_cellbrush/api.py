"""The engine for scripts: arrays or files in, arrays and models out.

The docks and the command line run the same functions with the same defaults, so the arrays are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.config import (
    DEFAULT_CLASSES,
    ClassDefinition,
    DeviceName,
    InferenceConfig,
    LabelKind,
    OutputKind,
    TrainingConfig,
    classes_from_names,
)
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.image_file import open_image, open_labels
from napari_cellbrush.engine.inference import segment_into_array
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.model_file import find_model, read_model, save_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.training import scratch_model, train
from napari_cellbrush.errors import AnnotationError, ConfigError, ImageError
from napari_cellbrush.events import InferenceEvent, StopToken, TrainingEvent, run_to_end
from napari_cellbrush.export.mask_tiff import save_mask

__all__ = ["fine_tune", "load_model", "save_mask", "save_model", "segment"]

Classes = Sequence[str] | Sequence[ClassDefinition]
#: The name under which training starts from random weights.
SCRATCH = "scratch"


def load_model(name_or_path: str | Path) -> Model:
    """Read a model.

    Parameters
    ----------
    name_or_path
        A name of the library (``cellbrush models``), or a .safetensors file.

    Raises
    ------
    ModelFileError
        If there is no such model, or its file is damaged, hostile or from a newer version.
    """
    return read_model(find_model(name_or_path))


def fine_tune(
    model: Model | str | Path,
    images: Any,
    labels: Any,
    config: TrainingConfig | None = None,
    *,
    axes: str | None = None,
    classes: Classes | None = None,
    label_kind: LabelKind = "classes",
    ignore_value: int | None = None,
    device: DeviceName = "auto",
    name: str = "",
    on_event: Callable[[TrainingEvent], object] | None = None,
    stop: StopToken | None = None,
    state_file: str | Path | None = None,
    corrections: Any = None,
) -> Model:
    """Fine-tune a copy of a model on labelled pixels.

    Parameters
    ----------
    model
        The base: a model, a name of the library, a file, or "scratch" for random weights.
    images
        A list of images, or one: arrays (numpy, dask, zarr …) or files.
    labels
        As many, each of its image's shape without channels: stack axes + YX whole numbers.
    config
        All settings.
    axes
        A letter of T, C, Z, Y, X, S per axis of the images. Needed for arrays with more than two axes, and for files
        that do not name them.
    classes
        Names or definitions of the classes, background first; those of the base if not given.
    label_kind
        "classes": 0 unlabelled, k + 1 for class number k. "objects": instance masks, 0 background, ids ≥ 1; they
        become background, cell and boundary.
    ignore_value
        In instance masks: the value of unlabelled pixels.
    device
        Where to compute.
    name
        For the new model's card.
    on_event, stop
        Told about every step; ends the run early, with the best so far.
    state_file
        Where to keep the state of the run. If it exists, from an interrupted call with the same arguments, the run
        goes on from it; removed unless the run was stopped.
    corrections
        As many as images, boolean, each of its labels' shape: pixels that were painted where an answer was seen to be
        wrong. They count less than others, which tell how frequent things are.

    Returns
    -------
    Model
        The tuned model. Its card holds ``base_score`` and ``score``, measured on the same held-out strokes: where
        the base scores higher, prefer the base.

    Raises
    ------
    CellbrushError
        If settings, images, labels or model do not fit together; the message says what to do.
    """
    config = config or TrainingConfig()
    state = Path(state_file) if state_file is not None else None
    planes, several = [as_planes(image, axes) for image in _several(images)], _several(labels)
    if not planes or len(planes) != len(several):
        raise AnnotationError(f"Got {len(planes)} image(s) and {len(several)} set(s) of labels",
                              "Give one set of labels per image, in the same order")
    given = [as_class_labels(one, label_kind, ignore_value, image.stack_axes + "YX")
             for one, image in zip(several, planes, strict=True)]
    meant = meant_classes(classes, label_kind)
    if model == SCRATCH:
        model = scratch_model(meant or DEFAULT_CLASSES, planes[0].n_channels, config)
    base = model if isinstance(model, Model) else load_model(model)
    run = train(base, planes, given, config, classes=meant, device=choose_device(device), stop=stop, name=name,
                state_file=state, corrections=None if corrections is None else _several(corrections))
    result = run_to_end(run, on_event)
    if state is not None and not result.stopped:
        state.unlink(missing_ok=True)
    return result.model


def segment(
    image: Any,
    model: Model | str | Path,
    output: OutputKind = "classes",
    *,
    axes: str | None = None,
    config: InferenceConfig | None = None,
    device: DeviceName = "auto",
    on_event: Callable[[InferenceEvent], object] | None = None,
    stop: StopToken | None = None,
) -> NDArray[Any]:
    """Segment an image of any size.

    Parameters
    ----------
    image
        An array (numpy, dask, zarr …; read tile by tile) or a file.
    model
        A model, a name of the library, or a file.
    output
        What to answer.
    axes
        A letter of T, C, Z, Y, X, S per axis of the image. Needed for arrays with more than two axes, and for files
        that do not name them.
    config, device
        How, and where to compute.
    on_event, stop
        Told about every tile; ends the run early, leaving zeros.

    Returns
    -------
    NDArray
        "classes": stack axes + YX uint8, 1…K. "objects": stack axes + YX uint16 or uint32, 0 background, ids ≥ 1.
        "probabilities": class axis + stack axes + YX float32 in [0, 1].

    Raises
    ------
    CellbrushError
        If image and model do not fit together, or the memory does not suffice; the message says what to do.
    """
    loaded = model if isinstance(model, Model) else load_model(model)
    run = segment_into_array(loaded, as_planes(image, axes), output, config=config, device=choose_device(device),
                             stop=stop)
    return run_to_end(run, on_event)


def as_planes(image: Any, axes: str | None = None) -> Planes:
    """Planes of an array or file; warns of what a person should know about how a file was read.

    Raises
    ------
    ImageError
        If the axes are needed and missing, or do not fit.
    """
    if isinstance(image, Planes):
        return image
    if isinstance(image, (str, Path)):
        opened = open_image(image, axes)
        for note in opened.notes:
            warnings.warn(f"{note}.", stacklevel=3)
        return opened.planes
    array = image if hasattr(image, "shape") else np.asarray(image)
    if axes is None and len(array.shape) != 2:
        raise ImageError(f"An array of shape {tuple(array.shape)} does not say what its axes are",
                         "Name them, for example axes='ZYX' for a stack, axes='CYX' for channels, axes='YXS' for RGB")
    return Planes(array, axes or "YX")


def as_class_labels(
    labels: Any, kind: LabelKind = "classes", ignore_value: int | None = None, axes: str | None = None
) -> Any:
    """Labels as training takes them: 0 unlabelled, k + 1 for class number k; of a file, in the order of ``axes``.

    Raises
    ------
    ImageError, AnnotationError
        If a file cannot be read, or an instance mask holds values that are no ids.
    """
    array = open_labels(labels, axes) if isinstance(labels, (str, Path)) else labels
    if kind == "classes":
        return array
    ids = np.asarray(array)
    if ids.ndim < 2:
        return ids  # no image has such labels, which training says in words
    classes = np.zeros(ids.shape, np.uint8)
    for index in np.ndindex(ids.shape[:-2]):
        classes[index] = objects_to_classes(ids[index], ignore_value=ignore_value)
    return classes


def meant_classes(classes: Classes | None, kind: LabelKind = "classes") -> tuple[ClassDefinition, ...] | None:
    """The classes that labels mean; None for those of the base.

    Raises
    ------
    ConfigError
        If names are wrong, or the classes cannot be made from instance masks.
    """
    if classes is None:
        return DEFAULT_CLASSES if kind == "objects" else None
    if any(isinstance(definition, str) for definition in classes):
        classes = classes_from_names([str(name) for name in classes])
    definitions = tuple(definition for definition in classes if isinstance(definition, ClassDefinition))
    if kind == "objects" and [d.role for d in definitions] != ["background", "object", "boundary"]:
        raise ConfigError(f"Instance masks become background, cell and boundary, got the classes "
                          f"{', '.join(d.name for d in definitions)}", "Leave the classes out")
    return definitions


def _several(one_or_more: Any) -> list[Any]:
    return list(one_or_more) if isinstance(one_or_more, (list, tuple)) else [one_or_more]
