"""What ``cellbrush segment`` writes beside a mask of objects: measurements, regions, polygons, a picture."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_cellbrush.cli_progress import answer, memory_in_words, tell
from napari_cellbrush.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_cellbrush.config import InferenceConfig, OutputKind
    from napari_cellbrush.engine.axes import PixelSize
    from napari_cellbrush.engine.measure import Columns
    from napari_cellbrush.engine.planes import Planes
    from napari_cellbrush.events import InferenceStarted
    from napari_cellbrush.export.found_objects import FoundObjects, ObjectFormat
    from napari_cellbrush.export.tables import Row

#: What each option writes, behind the image's name.
ENDINGS: dict[ObjectFormat, str] = {"table": "_objects.csv", "geojson": "_objects.geojson", "overlay": "_overlay.png",
                                    "rois": "_rois.zip"}
SUMMARY_FILE = "summary.csv"
_HELP: dict[ObjectFormat, str] = {
    "table": "Write DIR/<image>_objects.csv: sizes, shapes and the intensities of every channel.",
    "geojson": "Write DIR/<image>_objects.geojson: polygons for QuPath.",
    "overlay": "Write DIR/<image>_overlay.png: a picture of the objects on their image; of single planes.",
    "rois": "Write DIR/<image>_rois.zip: regions for Fiji's ROI Manager.",
}


def add_object_options(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = command.add_argument_group("with --output objects")
    for kind, text in _HELP.items():
        group.add_argument(f"--{kind}", action="store_true", help=text)
    group.add_argument("--summary", action="store_true", help=f"Write DIR/{SUMMARY_FILE}: a row for each image, and "
                       "for each frame of a time lapse, with the number of objects and medians of what is measured.")
    group.add_argument("--link", action="store_true", help="Join the objects of neighbouring planes into objects of "
                       "the stack, which are measured as bodies. Default: plane by plane.")


def check_object_options(arguments: argparse.Namespace) -> None:
    """Raise a ConfigError where options are given that only objects have."""
    given = [f"--{name}" for name in (*ENDINGS, "summary", "link") if getattr(arguments, name)]
    if given and arguments.output != "objects":
        raise ConfigError(f"{' and '.join(given)} need{'s' if len(given) == 1 else ''} --output objects, got --output "
                          f"{arguments.output}", "Add --output objects")


def object_files(arguments: argparse.Namespace, stem: str) -> dict[ObjectFormat, Path]:
    """The files to write beside the mask."""
    return {kind: arguments.out / f"{stem}{ending}" for kind, ending in ENDINGS.items() if getattr(arguments, kind)}


def check_planes(planes: Planes, pixel_size: PixelSize, arguments: argparse.Namespace) -> None:
    """Raise an ImageError where an image has planes that cannot be linked, or more than a picture can show."""
    if arguments.link and "Z" not in planes.stack_axes:
        raise ImageError(f"--link joins objects through depth (Z), and the image has the axes {planes.axes}",
                         "Leave --link out, or name the axes with --axes if they are wrong")
    if arguments.overlay and planes.stack_axes:
        raise ImageError(f"--overlay shows one plane, and the image has the axes {planes.axes}",
                         "Leave --overlay out, or save one plane as an image of its own")
    is_measured = arguments.table or arguments.summary
    if arguments.link and is_measured and pixel_size.z is None and pixel_size.unit != "pixel":
        tell(f"{planes.name} does not say how far its planes are apart: volumes and depths will be nan.")


def write_beside(found: FoundObjects, files: Mapping[ObjectFormat, Path], overwrite: bool) -> Columns | None:
    """Write the files, and answer with the name of each; the table, if one was made."""
    from napari_cellbrush.export.found_objects import save_objects

    if "rois" in files and not found.ids.any():
        tell(f"No object was found: {files['rois'].name} holds no region, and Fiji will say so.")
    table = None
    for kind, path in files.items():
        with memory_in_words(f"write {path}"):
            table = save_objects(path, found, kind, overwrite=overwrite) or table
        answer(str(path))
    return table


def summary_of(name: str, found: FoundObjects, columns: Columns | None) -> list[Row]:
    """The rows of one image in the summary of all; ``columns`` is its table, if that was made already."""
    from napari_cellbrush.engine.measure import summarise
    from napari_cellbrush.export.found_objects import measured

    with memory_in_words(f"measure {name}"):
        n_frames = found.ids.shape[found.axes.index("T")] if "T" in found.axes else None
        return [{"image": name, "unit_of_length": found.pixel_size.unit, **row}
                for row in summarise(columns or measured(found), n_frames)]


@contextmanager
def written_in_the_end(path: Path, overwrite: bool) -> Iterator[list[Row]]:
    """Rows to add to, which become a table whatever ends the work, unless there are none; its name is answered."""
    from napari_cellbrush.export.tables import save_rows

    rows: list[Row] = []
    try:
        yield rows
    finally:
        if rows:
            answer(str(save_rows(path, rows, overwrite=overwrite)))


def found_in_words(mask: NDArray[Any], output: OutputKind, config: InferenceConfig, started: InferenceStarted | None
                   ) -> str:
    """How many objects there are, and how large the model took them to be."""
    found = "probabilities" if output == "probabilities" else "classes; to count cells, give --output objects"
    if output == "objects":
        n = int(mask.max(initial=0))
        found = {0: "no object; if there are any, lower --objects.least-certainty", 1: "1 object"}.get(
            n, f"{n:,} objects")
    if started is None or started.diameter_px is None:
        return found
    how = "as told" if config.diameter_px else "say it with --diameter-px if that is wrong"
    return f"{found}; size of objects: {started.diameter_px:.0f} px ({how})"
