"""The command ``cellbrush reproduce``: computes a mask once more, from the note in its file, and compares."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from napari_cellbrush.cli_progress import (
    INTERRUPTED,
    OK,
    answer,
    inference_bar,
    memory_in_words,
    printable,
    stop_on_interrupt,
    tell,
)
from napari_cellbrush.config import MADE_BY_LIVE, DeviceName, InferenceConfig, OutputKind
from napari_cellbrush.errors import CellbrushError, ConfigError, ExportError, ImageError, ModelFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_cellbrush.engine.model import Model
    from napari_cellbrush.engine.planes import Planes

#: Exit code of a mask that came out differently.
DIFFERENT = 3


def add_reproduce_options(command: argparse.ArgumentParser) -> None:
    """Declare the options."""
    command.add_argument("mask", type=Path, metavar="MASK", help="A mask that napari-cellbrush saved.")
    command.add_argument("--image", required=True, type=Path, metavar="IMAGE", help="The image that it was made of.")
    command.add_argument("--model", metavar="NAME|FILE", help="The model that made it. Default: the one of your "
                         "library with the same weights.")
    command.add_argument("--device", choices=get_args(DeviceName), default="auto", help="Where to compute.")
    command.add_argument("--axes", metavar="YX", help="What the axes of the image are. Default: those that the mask "
                         "was made with.")


def reproduce(arguments: argparse.Namespace) -> int:
    """Compare a mask with what its model makes of its image today; the exit code tells too."""
    import numpy as np

    from napari_cellbrush.api import segment
    from napari_cellbrush.engine.image_file import open_image, open_labels
    from napari_cellbrush.engine.linking import link_through_depth
    from napari_cellbrush.export.mask_tiff import read_provenance

    made = read_provenance(arguments.mask)
    output, settings = _output(arguments.mask, made), _settings(made)
    model = _model(made, arguments.model)
    _tell_versions(made)
    _tell_corrections(made)
    planes = open_image(arguments.image, arguments.axes or made.get("image_axes") or None).planes
    axes = "C" * (output == "probabilities") + planes.stack_axes + "YX"
    given = open_labels(arguments.mask, axes)
    _check_shape(arguments, given, planes, model, output)
    with stop_on_interrupt() as stop, memory_in_words(f"segment {arguments.image}"):
        with inference_bar(arguments.image.name) as show:
            again = segment(planes, model, output, config=settings, device=arguments.device, on_event=show, stop=stop)
        if stop.stopped:
            return INTERRUPTED
        if made.get("linked_through_depth") is True:
            again = link_through_depth(again, planes.stack_axes)
        return _compare(np.asarray(given), again, output)


def _output(mask: Path, made: Mapping[str, Any]) -> OutputKind:
    output = made.get("output")
    for kind in get_args(OutputKind):
        if output == kind:
            return kind  # type: ignore[no-any-return]
    if made.get("made_by") == MADE_BY_LIVE:
        raise ExportError(f"{mask.name} was made by Live, whose answer changes with every stroke, so it cannot be "
                          "computed once more", "Segment with the model that Live saved, and export that")
    raise ExportError(f"{mask.name} does not say what made it", "Give a mask that napari-cellbrush saved")


def _settings(made: Mapping[str, Any]) -> InferenceConfig:
    values = made.get("settings")
    try:
        return InferenceConfig.read(values if isinstance(values, dict) else {})
    except ConfigError as error:
        version = _versions(made).get("napari-cellbrush", "an unknown version")
        raise ExportError(f"The mask was made with settings that this version does not have. {error.problem}",
                          printable(f"Install the version that made it: napari-cellbrush {version}")) from error


def _model(made: Mapping[str, Any], named: str | None) -> Model:
    """The model with the weights that the mask names, wherever it is."""
    from napari_cellbrush.api import load_model
    from napari_cellbrush.engine.model_file import list_models

    name, wanted = str(made.get("model", "")), str(made.get("model_weights_sha256", ""))
    if named is not None:
        model = load_model(named)
        if model.weights_hash != wanted:
            raise ModelFileError(f"The model '{named}' has other weights ({model.weights_hash[:12]}…) than '{name}' "
                                 f"({wanted[:12]}…), which made the mask", "Give the file of that one")
        return model
    # The likeliest first, because a hash needs all of the weights.
    for entry in sorted(list_models(), key=lambda entry: entry.name != name):
        try:
            model = load_model(entry.path)
        except CellbrushError:
            continue
        if model.weights_hash == wanted:
            return model
    raise ModelFileError(f"The mask was made by the model '{name}' ({wanted[:12]}…), which is not in your library",
                         "Give its file: --model FILE")


def _versions(made: Mapping[str, Any]) -> dict[str, str]:
    versions = made.get("versions")
    return {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}


def _tell_versions(made: Mapping[str, Any]) -> None:
    from napari_cellbrush.export.provenance import program_versions

    then, now = _versions(made), program_versions()
    for program in ("napari-cellbrush", "torch"):
        if then.get(program) != now[program]:
            tell(f"Made with {program} {then.get(program, 'of an unknown version')}, computed now with {now[program]}.")
    if made.get("image_axes"):
        tell(f"Made with the axes {made['image_axes']} on {made.get('device', '?')} ({made.get('precision', '?')}).")


def _tell_corrections(made: Mapping[str, Any]) -> None:
    n_objects, n_pixels = made.get("objects_accepted_by_hand", 0), made.get("pixels_emptied_by_hand", 0)
    if n_objects or n_pixels:
        tell(f"By hand, objects were accepted ({n_objects}) or deleted ({n_pixels} pixels): no model makes them again.")


def _check_shape(arguments: argparse.Namespace, given: Any, planes: Planes, model: Model, output: OutputKind) -> None:
    needed = (model.n_classes,) * (output == "probabilities") + planes.spatial_shape
    if tuple(given.shape) != needed:
        raise ImageError(f"{arguments.mask.name} has the shape {tuple(given.shape)}, a mask of {arguments.image.name} "
                         f"has {needed}", "Give the image that the mask was made of, and its axes (--axes)")


def _compare(given: NDArray[Any], again: NDArray[Any], output: OutputKind) -> int:
    import numpy as np

    different = given != again
    if output == "probabilities":
        different = different.any(axis=0)
    note = ""
    if output == "classes":
        # Every pixel has a class; 0 is where only a part of the image was segmented.
        missing = given == 0
        different &= ~missing
        n_missing = int(np.count_nonzero(missing))
        note = f" ({n_missing:,} were never segmented)" if n_missing else ""
    n_different, n_pixels = int(np.count_nonzero(different)), different.size
    if n_different == 0:
        answer(f"identical: all {n_pixels:,} pixels{note}")
        return OK
    largest = f", by {float(np.abs(given - again).max()):.2g} at most" if output == "probabilities" else ""
    answer(f"different: {n_different:,} of {n_pixels:,} pixels ({100 * n_different / n_pixels:.3g} %){largest}{note}")
    return DIFFERENT

