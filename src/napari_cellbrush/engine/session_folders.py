"""All sessions of a person: found again by their image, kept for as long as they may be wanted, moved as one file.

``sessions/<image>/<session>/``: every annotation has a folder of its own, so what was saved earlier is never written
over by what is painted later, and two windows never write into the same one. A session moves as a zip file with the
same names inside; importing one reads just the names that its card calls for, and writes nothing else.
"""

from __future__ import annotations

import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.home import home_folder
from napari_cellbrush.engine.session_folder import (
    CARD_NAME,
    CHUNKS_NAME,
    MAX_CARD_BYTES,
    ImageIdentity,
    SavedSession,
    chunk_shapes,
    damaged,
    largest_chunk,
    packed_chunk,
    parse_card,
    read_card,
    unpack_chunk,
    write_file,
)
from napari_cellbrush.errors import CellbrushError, SessionFileError

SUFFIX = ".cellbrush.zip"
#: The newest sessions of each image stay for ever, discarded or not.
KEPT_PER_IMAGE = 3
#: Older ones stay for this long after they were last saved.
KEPT_DAYS = 90
MODEL_NAME = "model.safetensors"
#: Bytes; nearly twice the largest network of this program.
_MAX_MODEL_BYTES = 2**32


def sessions_folder() -> Path:
    """Where sessions are saved. The folder may not exist yet."""
    return home_folder() / "sessions"


def new_session(image: ImageIdentity) -> Path:
    """A folder for a new session of an image; made by its first save."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return sessions_folder() / image.key / name


def list_sessions(image: ImageIdentity | None = None) -> tuple[list[SavedSession], list[SessionFileError]]:
    """Every readable session, of one image or of all, newest first; and one error for each that is damaged."""
    found, errors = [], []
    pattern = f"{image.key if image else '*'}/*/{CARD_NAME}"
    for file in sessions_folder().glob(pattern):
        try:
            found.append(SavedSession(file.parent, read_card(file.parent)))
        except SessionFileError as error:
            errors.append(error)
    found.sort(key=lambda session: session.card.saved_at, reverse=True)
    if image is not None:
        # The same file first, then copies of it.
        found.sort(key=lambda session: session.card.image.path != image.path)
    return found, errors


def find_session(name: str) -> SavedSession:
    """The session whose folder has this name, or one that begins so.

    Raises
    ------
    SessionFileError
        If there is none, or more than one.
    """
    sessions = list_sessions()[0]
    exact = [session for session in sessions if session.path.name == name]
    found = exact or [session for session in sessions if name and session.path.name.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} sessions begin with" if found else "There is no session called"
        raise SessionFileError(f"{what} '{name}'", "List them: cellbrush sessions")
    return found[0]


def discard(session: SavedSession) -> None:
    """Do not offer a session again; its files stay as long as those of others.

    Raises
    ------
    SessionFileError
        If its folder cannot be written.
    """
    try:
        (session.path / "discarded").touch()
    except OSError as error:
        raise SessionFileError(f"Cannot write into {session.path}: {error.strerror}", "Check who may write there") \
            from error


def remove_session(session: SavedSession) -> None:
    """Delete a session for good.

    Raises
    ------
    SessionFileError
        If it cannot be deleted.
    """
    try:
        # Without its card it is no session, even if only a part can be deleted.
        (session.path / CARD_NAME).unlink()
        shutil.rmtree(session.path)
    except OSError as error:
        raise SessionFileError(f"Cannot remove {session.path}: {error.strerror}", "Close whoever uses it") from error


def tidy(image: ImageIdentity) -> list[Path]:
    """Delete the sessions of an image that are older than :data:`KEPT_DAYS`, but never its newest few; which."""
    sessions = sorted(list_sessions(image)[0], key=lambda session: session.card.saved_at, reverse=True)
    before = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
    old = [session for session in sessions[KEPT_PER_IMAGE:] if session.card.saved_at < before]
    for session in old:
        with suppress(SessionFileError):
            remove_session(session)
    return [session.path for session in old]


# ------------------------------------------------------------------------------------------------------- moving


def export_session(session: SavedSession, path: Path) -> Path:
    """Write a session into one file, to be taken to another computer or given to somebody else.

    Parameters
    ----------
    session
        What to write; the model it used goes with it, unless that is part of the program.
    path
        A new file, called something.cellbrush.zip.

    Raises
    ------
    SessionFileError
        If a part of the session is missing or damaged, or the file exists or cannot be written.
    """
    path = path if path.name.endswith(SUFFIX) else path.with_name(path.name + SUFFIX)
    with written_whole(path, error=SessionFileError) as hidden, zipfile.ZipFile(hidden, "w") as archive:
        for name, (shape, dtype) in chunk_shapes(session.card).items():
            content = packed_chunk(session.path / CHUNKS_NAME / name, shape, dtype)
            unpack_chunk(content, name, shape, dtype)
            archive.writestr(f"{CHUNKS_NAME}/{name}", content)
        model = _own_model(session.card.model)
        if model is not None:
            archive.write(model, MODEL_NAME)
        archive.writestr(CARD_NAME, session.card.model_dump_json())
    return path


def _own_model(name: str) -> Path | None:
    """The file of a model of the person's library."""
    from napari_cellbrush.engine.model_file import list_models  # loads torch

    return next((entry.path for entry in list_models() if entry.name == name and not entry.bundled), None)


def import_session(path: Path) -> SavedSession:
    """Take a session out of a file that :func:`export_session` wrote.

    Names inside the file never become paths: only what the card calls for is read, and it is checked before it is
    written. The image's path is forgotten, because it is one of another computer. A model that comes along goes into
    the library.

    Raises
    ------
    SessionFileError
        If the file is missing, damaged or no session, or cannot be stored; nothing is left behind.
    ModelFileError
        If the model in it is no usable one; nothing is left behind.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        card = parse_card(_member(archive, CARD_NAME, MAX_CARD_BYTES), path.name)
        card = card.replace(image={**card.image.model_dump(), "path": ""})
        folder = new_session(card.image)
        try:
            for name, (shape, dtype) in chunk_shapes(card).items():
                content = _member(archive, f"{CHUNKS_NAME}/{name}", largest_chunk(shape, dtype))
                unpack_chunk(content, name, shape, dtype)
                write_file(folder / CHUNKS_NAME / name, content)
            if MODEL_NAME in archive.namelist():
                write_file(folder / MODEL_NAME, _member(archive, MODEL_NAME, _MAX_MODEL_BYTES))
                card = card.replace(model=_into_library(folder / MODEL_NAME))
            write_file(folder / CARD_NAME, card.model_dump_json().encode())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return SavedSession(folder, card)


def _into_library(model: Path) -> str:
    """The name of a model in the library; it is copied there unless it is there already."""
    from napari_cellbrush.engine.model_file import import_model, list_models, read_model  # loads torch

    given = read_model(model)
    for entry in list_models():
        if entry.card == given.card and read_model(entry.path).weights_hash == given.weights_hash:
            return entry.name
    name = import_model(model).stem
    model.unlink()
    return name


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged zip file makes its reader raise into a sentence."""
    try:
        yield
    except CellbrushError:
        raise
    except FileNotFoundError as error:
        raise SessionFileError(f"The file {path} does not exist", "Check the name and the folder") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise SessionFileError(f"{path.name} is no usable session file: {reason}",
                               f"Give a {SUFFIX} file that napari-cellbrush exported") from error


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of one entry, never more than ``most`` bytes of it, whatever its header claims."""
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise damaged(Path(archive.filename or "").name, f"'{name}' is missing") from error
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        # Nothing in here is deflated, so that no entry can unpack to more bytes than the file has.
        raise damaged(Path(archive.filename or "").name, f"'{name}' claims {info.file_size:,} bytes")
    with archive.open(info) as file:
        return file.read(most)
