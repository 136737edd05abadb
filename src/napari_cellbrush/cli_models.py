"""The command ``cellbrush models``: the library of models, as text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from napari_cellbrush.cli_progress import FAILED, OK, answer, printable, tell
from napari_cellbrush.errors import ModelFileError
from napari_cellbrush.events import span_in_words

if TYPE_CHECKING:
    from napari_cellbrush.engine.model import ModelCard
    from napari_cellbrush.engine.model_file import ModelEntry


def list_models(_arguments: argparse.Namespace) -> int:
    """Print a table of all models."""
    from napari_cellbrush.engine.model_file import library_folder, scan_models

    entries, errors = scan_models()
    rows = [("NAME", "CLASSES", "CHANNELS", "SCORE", "MADE", "FROM"), *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    tell(f"Your models are in {library_folder()}")
    for error in errors:
        tell(f"cellbrush: {error}")
    return FAILED if errors else OK


def _row(entry: ModelEntry) -> tuple[str, ...]:
    card = entry.card
    cells = (entry.name, ", ".join(c.name for c in card.classes), "any" if card.any_channels else str(card.in_channels),
             "–" if card.score is None else f"{card.score:.3f}",
             card.created[:10] or ("built in" if entry.bundled else "–"), "package" if entry.bundled else "you")
    return tuple(printable(cell).replace("\n", " ")[:60] for cell in cells)


def show_model(arguments: argparse.Namespace) -> int:
    """Print a model's card as text."""
    from napari_cellbrush.engine.model_file import find_model, read_card

    path = find_model(arguments.name)
    card = read_card(path)
    shape = card.network
    lines = {
        "Name": card.name,
        "File": str(path),
        "Classes": ", ".join(f"{k + 1} {c.name} ({c.role})" for k, c in enumerate(card.classes)),
        "Channels": "any" if card.any_channels else str(card.in_channels),
        "Network": f"depth {shape.depth}, {shape.base_filters} base filters, {shape.activation}"
                   f"{', batch norm' if shape.batch_norm else ''}",
        "Object diameter": _diameter_in_words(card),
        "Base": f"{card.base_name} {card.base_hash[:12]}".strip(),
        "Made": card.created,
        "Versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "Labelled pixels": ", ".join(f"{name} {n:,}" for name, n in card.labelled_pixels.items()),
        "Score of the base": "" if card.base_score is None else f"{card.base_score:.3f}",
        "Score": "" if card.score is None else f"{card.score:.3f}",
        "Settings": repr(card.training) if card.training else "",
        "Description": card.description,
    }
    for title, text in lines.items():
        if text:
            answer(f"{title + ':':19}{printable(text)}")
    return OK


def _diameter_in_words(card: ModelCard) -> str:
    if not card.image_diameter_px:
        return ""
    others = "in proportion, where it looks otherwise" if card.measured_as_px else "the same"
    own = span_in_words(card.tuned_on.values() or [card.image_diameter_px])
    return f"{own} in the images it was tuned on; in others {others}"


def import_model(arguments: argparse.Namespace) -> int:
    """Copy a file into the library and print its name there."""
    from napari_cellbrush.engine import model_file

    answer(printable(model_file.import_model(arguments.file).stem))
    return OK


def export_model(arguments: argparse.Namespace) -> int:
    """Copy a model to a file and print that."""
    from napari_cellbrush.engine import model_file

    if arguments.file.is_dir():
        raise ModelFileError(f"{arguments.file} is a folder, a file is needed",
                             f"Give it a name, for example {arguments.file / arguments.name}{model_file.SUFFIX}")
    answer(str(model_file.export_model(arguments.name, arguments.file)))
    return OK


def remove_model(arguments: argparse.Namespace) -> int:
    """Delete one of the user's models."""
    from napari_cellbrush.engine import model_file

    answer(f"Removed {printable(str(model_file.remove_model(arguments.name)))}")
    return OK
