"""The command line: the engine without a window.

Exit codes: 0 all went well; 1 a file or step failed (the other files went on); 2 the command itself is wrong;
3 a mask came out differently; 130 stopped with Ctrl-C. Results go to the output stream, progress and problems to the
error stream.
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from napari_cellbrush import __version__
from napari_cellbrush.cli_models import export_model, import_model, list_models, remove_model, show_model
from napari_cellbrush.cli_objects import (
    SUMMARY_FILE,
    add_object_options,
    check_object_options,
    check_planes,
    found_in_words,
    object_files,
    summary_of,
    write_beside,
    written_in_the_end,
)
from napari_cellbrush.cli_options import add_settings, given_settings, laid_over
from napari_cellbrush.cli_progress import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    answer,
    inference_bar,
    memory_in_words,
    stop_on_interrupt,
    tell,
    training_bar,
)
from napari_cellbrush.cli_reproduce import add_reproduce_options, reproduce
from napari_cellbrush.cli_sessions import add_session_actions, list_all
from napari_cellbrush.config import (
    DEFAULT_CLASSES,
    DeviceName,
    InferenceConfig,
    OutputKind,
    TrainingConfig,
    load_config,
)
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.errors import (
    AnnotationError,
    CellbrushError,
    ConfigError,
    ExportError,
    ModelFileError,
)

if TYPE_CHECKING:
    from napari_cellbrush.config import ClassDefinition
    from napari_cellbrush.engine.image_file import ImageFile
    from napari_cellbrush.engine.model import Model
    from napari_cellbrush.engine.planes import Planes
    from napari_cellbrush.engine.training import TrainingResult
    from napari_cellbrush.events import InferenceEvent
    from napari_cellbrush.export.found_objects import FoundObjects


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        The words after "cellbrush"; those of the process if not given.

    Returns
    -------
    int
        The exit code.
    """
    # tifffile reports damaged files through logging as well; the person gets one sentence instead.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or OK)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        tell(f"cellbrush: {error}")
        return USAGE
    except CellbrushError as error:
        tell(f"cellbrush: {error}")
        return FAILED
    except KeyboardInterrupt:
        tell("cellbrush: ended, nothing was saved")
        return INTERRUPTED
    except Exception as error:  # a person gets a sentence, whatever happened
        logging.getLogger(__name__).debug("Unexpected", exc_info=True)
        tell(f"cellbrush: Something unexpected went wrong ({type(error).__name__}: {error}). Files that were written "
             "are whole. Try again, and report it if it comes back.")
        return FAILED


# ----------------------------------------------------------------------------------------------------- options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cellbrush", description="Strokes in, segmentation out: the engine of "
                                     "napari-cellbrush without a window.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"napari-cellbrush {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_train, _add_segment, _add_reproduce, _add_evaluate, _add_models,
                _add_sessions, _add_demo):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _add_train(commands: Any) -> None:
    command = _command(commands, "train", _train, "Fine-tune a model on labelled images.")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="TIFF, zarr, npy, PNG or JPEG.")
    command.add_argument("--labels", nargs="+", required=True, metavar="LABELS",
                         help="As many label images, in the same order.")
    command.add_argument("--out", required=True, type=Path, metavar="MODEL.safetensors",
                         help="The model to write; an existing file is never replaced.")
    command.add_argument("--anew", action="store_true", help="Start anew, even if this training was interrupted: "
                         "else the same command goes on with it.")
    command.add_argument("--label-kind", choices=("classes", "objects"), default="classes",
                         help="classes: 0 unlabelled, k is class k. objects: instance masks, 0 background, ids from 1, "
                         "which become background, cell and boundary. Default: classes.")
    command.add_argument("--ignore-value", type=int, metavar="V", help="Value of unlabelled pixels in instance masks.")
    command.add_argument("--base", metavar="NAME|FILE|scratch",
                         help="Where to start: a model of the library, a file, or random weights. Default: cells.")
    command.add_argument("--classes", metavar="NAMES", help="Names of the classes, background first, with commas "
                         "between. Default: those of the base.")
    _add_place(command)
    command.add_argument("--config", type=Path, metavar="FILE", help="Settings as JSON or TOML; options win.")
    add_settings(command, TrainingConfig, "training")


def _add_segment(commands: Any) -> None:
    command = _command(commands, "segment", _segment, "Segment images; writes DIR/<image>_<output>.tif.")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="TIFF, zarr, npy, PNG or JPEG.")
    command.add_argument("--model", required=True, metavar="NAME|FILE", help="A model of the library, or a file.")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="Where to write; made if missing.")
    command.add_argument("--output", choices=get_args(OutputKind), default="classes",
                         help="classes: 1 the first class, 2 the second … objects: 0 background, 1, 2, 3 … one number "
                         "per cell. probabilities: 0 to 1, the classes as the first axis, C. "
                         "Default: classes.")
    command.add_argument("--overwrite", action="store_true", help="Replace files that exist.")
    command.add_argument("--compress", action="store_true", help="Write deflated OME-TIFF.")
    command.add_argument("--pixel-size", metavar="UM", help="Size of a pixel in µm, where the files do not say it or "
                         "say it wrong: one number, or row x column, or depth x row x column.")
    _add_place(command)
    add_object_options(command)
    add_settings(command, InferenceConfig, "segmentation", aliases={"tile_size_px": "--tile"})


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=get_args(DeviceName), default="auto", help="Where to compute.")
    command.add_argument("--axes", metavar="YX", help="What the axes of the images are; wins over what the files say: "
                         "T time, C channel, Z depth, Y row, X column, S colour.")


def _add_evaluate(commands: Any) -> None:
    command = _command(commands, "evaluate", _evaluate, "Compare masks with the truth; prints JSON. Objects of a stack "
                       "are matched plane by plane.")
    command.add_argument("--prediction", nargs="+", required=True, metavar="FILE")
    command.add_argument("--truth", nargs="+", required=True, metavar="FILE",
                         help="As many, in the same order. Of class maps, 0 is unlabelled and not counted.")
    command.add_argument("--kind", required=True, choices=("classes", "objects"))


def _add_models(commands: Any) -> None:
    command = _command(commands, "models", list_models, "The library of models.")
    actions = command.add_subparsers(metavar="ACTION")
    _command(actions, "list", list_models, "List all models (the default).")
    info = _command(actions, "info", show_model, "Say everything about a model.")
    take = _command(actions, "import", import_model, "Copy a file into the library.")
    give = _command(actions, "export", export_model, "Copy a model to a file.")
    remove = _command(actions, "remove", remove_model, "Delete one of your models.")
    for action in (info, give, remove):
        action.add_argument("name", metavar="NAME")
    for action in (take, give):
        action.add_argument("file", type=Path, metavar="FILE")


def _add_reproduce(commands: Any) -> None:
    add_reproduce_options(_command(commands, "reproduce", reproduce, "Compute a mask once more, from the note in its "
                                   "file, and compare. Exit code 0: identical; 3: different; 1: cannot be told."))


def _add_sessions(commands: Any) -> None:
    command = _command(commands, "sessions", list_all, "Strokes that were saved by themselves.")
    add_session_actions(command.add_subparsers(metavar="ACTION"))


def _add_demo(commands: Any) -> None:
    command = _command(commands, "demo", _demo, "The whole path on a real image, in napari.")
    command.add_argument("--headless", action="store_const", const=True, help="In a virtual screen, closed at the end.")
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="Default: demo.")


# ------------------------------------------------------------------------------------------------------- train


@dataclass
class _Failures:
    """Files that could not be used, each told in one sentence."""

    n: int = 0
    interrupted: bool = False

    def add(self, file: str, error: CellbrushError) -> None:
        from napari_cellbrush.engine.image_file import named

        self.n += 1
        tell(f"cellbrush: {named(Path(file), error)}")

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.interrupted else FAILED if self.n else OK


def _train(arguments: argparse.Namespace) -> int:
    from napari_cellbrush.api import SCRATCH, load_model, meant_classes
    from napari_cellbrush.engine.device import choose_device
    from napari_cellbrush.engine.model_file import DEFAULT_BASE
    from napari_cellbrush.engine.training import scratch_model, train
    from napari_cellbrush.events import run_to_end

    state = _state_file(arguments)
    _check_out(arguments.out, continues=state.exists())
    config = _training_config(arguments)
    names = [name.strip() for name in arguments.classes.split(",")] if arguments.classes else None
    base = None if arguments.base == SCRATCH else load_model(arguments.base or DEFAULT_BASE)
    classes = meant_classes(names, arguments.label_kind) or (base.card.classes if base else DEFAULT_CLASSES)
    failures = _Failures()
    pairs = _open_pairs(arguments, classes, base, failures)
    if not pairs:
        return FAILED
    images, labels = [image for image, _ in pairs], [label for _, label in pairs]
    base = base or scratch_model(classes, images[0].n_channels, config)
    with stop_on_interrupt() as stop, training_bar() as show:
        run = train(base, images, labels, config, classes=classes, device=choose_device(arguments.device), stop=stop,
                    name=arguments.out.stem, state_file=state)
        result = run_to_end(run, show)
    failures.interrupted = result.stopped
    _report(result, config, _save(result.model, arguments.out, failures))
    if result.stopped and state.exists():
        tell("To go on with the training: the same command again.")
    if not result.stopped:
        state.unlink(missing_ok=True)
    return failures.exit_code


def _state_file(arguments: argparse.Namespace) -> Path:
    """Where a training that is interrupted can be continued from, beside the model that it is to become."""
    file: Path = arguments.out.with_suffix(".unfinished")
    if arguments.anew:
        file.unlink(missing_ok=True)
    return file


def _check_out(out: Path, continues: bool) -> None:
    """Fail now rather than after the training. One that was stopped has left its best so far, and gets a new name."""
    from napari_cellbrush.engine.atomic import check_writable, free_path
    from napari_cellbrush.engine.model_file import SUFFIX

    if out.is_dir():
        raise ModelFileError(f"--out names the folder {out}, a {SUFFIX} file is needed",
                             f"Give it a name, for example {out / 'mine'}{SUFFIX}")
    if out.suffix != SUFFIX:
        raise ConfigError(f"--out names a {SUFFIX} file, got {out.name}", f"Call it {out.stem}{SUFFIX}")
    check_writable(free_path(out) if continues else out, error=ModelFileError)


def _training_config(arguments: argparse.Namespace) -> TrainingConfig:
    """Defaults, under the settings file, under the options."""
    below = load_config(arguments.config).model_dump() if arguments.config else {}
    return TrainingConfig.read(laid_over(below, given_settings(arguments, TrainingConfig)))


def _open_pairs(
    arguments: argparse.Namespace, classes: Sequence[ClassDefinition], base: Model | None, failures: _Failures
) -> list[tuple[Planes, Any]]:
    pairs: list[tuple[Planes, Any]] = []
    for image, label in _paired(arguments.images, arguments.labels, "image(s)", "set(s) of labels"):
        try:
            planes, labels = _open_pair(image, label, arguments, len(classes))
            _check_channels(planes, base, pairs[0][0] if pairs else None)
            pairs.append((planes, labels))
        except CellbrushError as error:
            failures.add(image, error)
    return pairs


def _open_pair(image: str, label: str, arguments: argparse.Namespace, n_classes: int) -> tuple[Planes, Any]:
    """An image and its labels, looked at closely enough that one bad file does not end the whole training."""
    from napari_cellbrush.api import as_class_labels
    from napari_cellbrush.engine.annotation import labelled_planes

    planes = _opened(image, arguments).planes
    labels = as_class_labels(label, arguments.label_kind, arguments.ignore_value, planes.stack_axes + "YX")
    for plane in labelled_planes(0, planes, labels, n_classes):
        planes.check(plane.index)
    planes.normalisation()
    return planes, labels


def _opened(image: str, arguments: argparse.Namespace) -> ImageFile:
    from napari_cellbrush.engine.image_file import open_image

    opened = open_image(image, arguments.axes)
    for note in opened.notes:
        tell(f"{note}.")
    return opened


def _check_channels(planes: Planes, base: Model | None, first: Planes | None) -> None:
    """The base decides how many channels images have, or else the first image."""
    if base and not base.card.any_channels:
        base.for_channels(planes.n_channels)
    if first and planes.n_channels != first.n_channels:
        raise AnnotationError(f"The image has {planes.n_channels} channel(s), '{first.name}' has {first.n_channels}, "
                              "and one model needs the same number in all", "Train on images of one kind at a time")


def _save(model: Model, out: Path, failures: _Failures) -> Path:
    """Save a model under its name; if that fails after all, in the library: a training is never lost to a full disk."""
    from napari_cellbrush.engine.atomic import free_path
    from napari_cellbrush.engine.model_file import add_to_library, save_model

    try:
        # Whoever took the name meanwhile keeps it.
        return save_model(model, free_path(out))
    except ModelFileError as error:
        failures.add(str(out), error)
        path = add_to_library(model, out.stem)
        tell(f"The model was saved in your library instead, as '{path.stem}'.")
        return path


def _report(result: TrainingResult, config: TrainingConfig, path: Path) -> None:
    tell(_ended_in_words(result, config))
    if result.score is None and result.stopped:
        tell(result.no_score_reason)
    if not result.improved:
        tell("On the held-out strokes the base scores higher than the tuned model: prefer the base.")
    tell(f"To use it: cellbrush segment IMAGE --model {path} --out DIR\n"
         f"To put it into your library: cellbrush models import {path}")
    answer(json.dumps({
        "model": str(path), "improved": result.improved, "base_score": result.base_score, "score": result.score,
        "no_score_reason": result.no_score_reason, "ended": result.ended, "n_steps": result.n_steps,
        "seconds": round(result.seconds, 3)}))


def _ended_in_words(result: TrainingResult, config: TrainingConfig) -> str:
    steps = "one step" if result.n_steps == 1 else f"{result.n_steps} steps"
    why = {"steps": "all there were to do (--max-steps)",
           "time": f"at the time limit of {config.max_minutes:g} min (--max-minutes)",
           "stopped": "because you stopped it",
           "no_progress": f"with no better score in the last {config.patience} (--patience)"}[result.ended]
    return f"Ended after {steps} and {result.seconds:.0f} s, {why}."


def _paired(first: list[str], second: list[str], first_kind: str, second_kind: str) -> list[tuple[str, str]]:
    one, other = _expanded(first), _expanded(second)
    if len(one) != len(other):
        raise ConfigError(f"Got {len(one)} {first_kind} and {len(other)} {second_kind}",
                          "Give as many of both, in the same order")
    return list(zip(one, other, strict=True))


#: What images in a folder end with, and what makes a folder an image itself.
_IMAGE_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".npy")
_MARKS_OF_ZARR = (".zarray", ".zgroup", "zarr.json")


def _expanded(files: list[str]) -> list[str]:
    """File names: the images of folders, and patterns such as *.tif filled in for shells that do not (Windows)."""
    return [name for file in files for name in _meant_by(file) or [file]]


def _meant_by(file: str) -> list[str]:
    path = Path(file)
    if path.is_dir() and not any((path / name).exists() for name in _MARKS_OF_ZARR):
        return [str(image) for image in sorted(path.iterdir()) if image.suffix.lower() in _IMAGE_ENDINGS]
    is_pattern = any(sign in file for sign in "*?") and not path.exists()
    return sorted(glob.glob(file)) if is_pattern else []  # noqa: PTH207 (Path.glob takes no absolute pattern)


# ----------------------------------------------------------------------------------------------------- segment


def _segment(arguments: argparse.Namespace) -> int:
    from napari_cellbrush.api import load_model

    check_object_options(arguments)
    size = PixelSize.read(arguments.pixel_size) if arguments.pixel_size is not None else None
    config = InferenceConfig.read(given_settings(arguments, InferenceConfig))
    model = load_model(arguments.model)
    _make_folder(arguments.out)
    failures = _Failures()
    written: set[Path] = set()
    if arguments.summary:
        _check_target(arguments.out / SUMMARY_FILE, written, arguments.overwrite)
    with written_in_the_end(arguments.out / SUMMARY_FILE, arguments.overwrite) as rows:
        for image in _expanded(arguments.images):
            mask = arguments.out / f"{_stem(image)}_{arguments.output}.tif"
            beside = object_files(arguments, _stem(image))
            try:
                for target in (mask, *beside.values()):
                    _check_target(target, written, arguments.overwrite)
                found = _segment_one(image, mask, model, config, size, arguments)
                failures.interrupted = found is None
                if found is None:
                    break
                written |= {mask, *beside.values()}
                answer(str(mask))
                columns = write_beside(found, beside, arguments.overwrite)
                if arguments.summary:
                    rows += summary_of(_stem(image), found, columns)
            except CellbrushError as error:
                failures.add(image, error)
    return failures.exit_code


def _check_target(target: Path, written: set[Path], overwrite: bool) -> None:
    """Fail now rather than after the segmentation."""
    from napari_cellbrush.engine.atomic import check_writable

    if target in written:
        raise ExportError(f"The file {target} was just written, from another image of the same name",
                          "Rename the image, or choose another folder for its mask")
    if target.exists() and not overwrite:
        raise ExportError(f"The file {target} exists already", "Choose another folder, or give --overwrite")
    if not target.exists():
        check_writable(target)


def _segment_one(image: str, target: Path, model: Model, config: InferenceConfig, said_size: PixelSize | None,
                 arguments: argparse.Namespace) -> FoundObjects | None:
    """Write one mask; None if it was stopped, and then nothing is written."""
    import numpy as np

    from napari_cellbrush import api
    from napari_cellbrush.engine.linking import link_through_depth
    from napari_cellbrush.events import InferenceStarted, TileSegmented
    from napari_cellbrush.export.found_objects import FoundObjects
    from napari_cellbrush.export.mask_tiff import save_mask
    from napari_cellbrush.export.provenance import mask_provenance

    opened = _opened(image, arguments)
    planes, axes = opened.planes, opened.planes.stack_axes + "YX"
    size = said_size.over(opened.pixel_size, axes) if said_size else opened.pixel_size
    check_planes(planes, size, arguments)
    with stop_on_interrupt() as stop, memory_in_words(f"segment {image}"):
        started: InferenceStarted | None = None
        class_map = np.zeros(planes.spatial_shape, np.uint8)
        with inference_bar(opened.path.name) as show:

            def hear(event: InferenceEvent) -> None:
                nonlocal started
                show(event)
                if isinstance(event, InferenceStarted):
                    started = event
                if arguments.output == "objects" and isinstance(event, TileSegmented):
                    place: tuple[int | slice, ...] = (*event.plane, event.rows, event.columns)
                    class_map[place] = event.classes

            mask = api.segment(planes, model, arguments.output, config=config, device=arguments.device, on_event=hear,
                               stop=stop)
        if stop.stopped:
            return None
        if arguments.link:
            mask = link_through_depth(mask, planes.stack_axes)
        tell(f"{opened.path.name}: {found_in_words(mask, arguments.output, config, started)}")
    provenance = mask_provenance(model, output=arguments.output, config=config, image_name=opened.path.name,
                                 image_axes=planes.axes, started=started)
    save_mask(target, mask, axes="C" + axes if arguments.output == "probabilities" else axes,
              pixel_size=size, provenance={**provenance, "linked_through_depth": arguments.link},
              overwrite=arguments.overwrite, compress=arguments.compress)
    return FoundObjects(mask, axes, size, planes, class_map, model.card.classes,
                        planewise=not arguments.link)


def _stem(file: str) -> str:
    name = Path(file).name
    for suffix in (".ome.tif", ".ome.tiff", ".ome.zarr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(file).stem


def _make_folder(folder: Path) -> None:
    _check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"The folder {folder} cannot be made: {error.strerror}", "Choose another folder") from error


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"--out names the file {folder}, a folder is needed", "Name another one; it is made if "
                          "missing")


# ---------------------------------------------------------------------------------------------------- evaluate


def _evaluate(arguments: argparse.Namespace) -> int:
    from napari_cellbrush.cli_evaluate import compare, mean_scores, total_counts

    failures = _Failures()
    files = []
    for prediction, truth in _paired(arguments.prediction, arguments.truth, "prediction(s)", "truth(s)"):
        try:
            files.append(compare(prediction, truth, arguments.kind))
        except CellbrushError as error:
            failures.add(prediction, error)
    answer(json.dumps({"kind": arguments.kind, "files": files, "mean": mean_scores(files), **total_counts(files)},
                      indent=2))
    return failures.exit_code


# -------------------------------------------------------------------------------------------------------- demo


def _demo(arguments: argparse.Namespace) -> int:
    from napari_cellbrush.demo import run_demo

    _check_folder(arguments.out)
    return run_demo(arguments.headless, arguments.out)
