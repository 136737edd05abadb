"""The command ``cellbrush sessions``: work that was saved by itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_cellbrush.cli_progress import FAILED, OK, answer, printable, tell

if TYPE_CHECKING:
    from napari_cellbrush.engine.session_folder import SavedSession


def add_session_actions(actions: Any) -> None:
    """Declare what can be done with sessions."""
    for name, run, help in (
            ("list", list_all, "List all sessions, newest first (the default)."),
            ("export", export, "Write a session, and the model you made in it, into one file."),
            ("import", take_in, "Take a session in from such a file."),
            ("labels", labels, "Write the strokes or corrected objects of a session as TIFF."),
            ("remove", remove, "Delete a session for good.")):
        action: argparse.ArgumentParser = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        action.set_defaults(run=run)
        if name in ("export", "labels", "remove"):
            action.add_argument("name", metavar="NAME", help="As listed; the beginning of it is enough.")
        if name in ("export", "labels", "import"):
            action.add_argument("file", type=Path, metavar="FILE")


def list_all(_arguments: argparse.Namespace) -> int:
    """Print a table of all sessions."""
    from napari_cellbrush.engine.session_folders import list_sessions, sessions_folder

    sessions, errors = list_sessions()
    rows = [("NAME", "IMAGE", "HOLDS", "SAVED", "SQUARES", "MODEL", ""), *(_row(session) for session in sessions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    tell(f"They are in {sessions_folder()}")
    for error in errors:
        tell(f"cellbrush: {error}")
    return FAILED if errors else OK


def _row(session: SavedSession) -> tuple[str, ...]:
    card = session.card
    n_squares = sum(len(labels.chunks) for labels in card.labels.values())
    cells = (session.path.name, card.image.name, session.kind, f"{card.saved_at:%Y-%m-%d %H:%M}", str(n_squares),
             card.model, "discarded" if session.discarded else "")
    return tuple(printable(cell).replace("\n", " ")[:60] for cell in cells)


def export(arguments: argparse.Namespace) -> int:
    """Write a session into one file and print that."""
    from napari_cellbrush.engine.session_folders import export_session, find_session

    answer(str(export_session(find_session(arguments.name), arguments.file)))
    return OK


def take_in(arguments: argparse.Namespace) -> int:
    """Take a session in and print its name."""
    from napari_cellbrush.engine.session_folders import import_session

    session = import_session(arguments.file)
    answer(session.path.name)
    tell(printable(f"Open '{session.card.image.name}' in napari to go on with it."))
    return OK


def labels(arguments: argparse.Namespace) -> int:
    """Write the labels of a session as TIFF and print that."""
    from napari_cellbrush.engine.session_folder import read_labels
    from napari_cellbrush.engine.session_folders import find_session
    from napari_cellbrush.errors import SessionFileError
    from napari_cellbrush.export.mask_tiff import save_mask

    session = find_session(arguments.name)
    saved = session.card.labels.get(session.kind)
    if saved is None:
        raise SessionFileError(f"The session {session.path.name} holds no labels", "List them: cellbrush sessions")
    values = read_labels(session.path, session.card, session.kind, shape=saved.shape)
    stack = "".join(letter for letter in session.card.image.axes if letter in "TZ")
    axes = stack + "YX" if len(stack) + 2 == values.ndim else "TZYX"[-values.ndim :]
    answer(str(save_mask(arguments.file, values, axes=axes, compress=True)))
    return OK


def remove(arguments: argparse.Namespace) -> int:
    """Delete a session."""
    from napari_cellbrush.engine.session_folders import find_session, remove_session

    session = find_session(arguments.name)
    remove_session(session)
    answer(f"Removed {session.path.name}")
    return OK
