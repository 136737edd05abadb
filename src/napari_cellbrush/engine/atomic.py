"""Files that appear whole or not at all, and never replace another one unasked.

A file is written under a hidden name in the folder it belongs to, flushed to the disk, and only then given its
name. Whatever goes wrong before leaves neither a half-written file nor the hidden one behind.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from napari_cellbrush.errors import CellbrushError, ExportError

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR}


@contextmanager
def written_whole(
    path: Path, *, overwrite: bool = False, error: type[CellbrushError] = ExportError
) -> Iterator[Path]:
    """Hand out a hidden file to write into; when the block ends well, it gets the name ``path``.

    Parameters
    ----------
    path
        The name the finished file shall have.
    overwrite
        Whether a file of that name may be replaced (in one step, so that a reader sees the old or the new one).
    error
        What to raise: the class that fits the file's kind.

    Raises
    ------
    CellbrushError
        Of class ``error``, where the file exists already, the folder is missing or cannot be written, or the disk
        is full. Nothing is left behind.
    """
    if path.exists() and not overwrite:
        raise _exists(path, error)
    try:
        hidden = _create_hidden(path)
    except OSError as cause:
        raise _in_words(path, cause, error) from cause
    try:
        yield hidden
        _flush(hidden)
        _give_name(hidden, path, overwrite)
        _flush_folder(path.parent)
    except FileExistsError as cause:
        raise _exists(path, error) from cause
    except OSError as cause:
        raise _in_words(path, cause, error) from cause
    finally:
        with suppress(OSError):
            hidden.unlink()


def check_writable(path: Path, *, error: type[CellbrushError] = ExportError) -> None:
    """Find out before long work whether its result could be written.

    Raises
    ------
    CellbrushError
        Of class ``error``, where ``path`` exists already or its folder cannot be written.
    """
    if path.exists():
        raise _exists(path, error)
    try:
        _create_hidden(path).unlink()
    except OSError as cause:
        raise _in_words(path, cause, error) from cause


def free_path(path: Path) -> Path:
    """``path``, or the first of name-2, name-3 … that no file has yet."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def _create_hidden(path: Path) -> Path:
    # Not tempfile.mkstemp: its files are readable by their owner alone, and a lab shares its results.
    hidden = path.parent / f".cellbrush-{secrets.token_hex(6)}{path.suffix}"
    os.close(os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return hidden


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can (Windows cannot open folders)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _give_name(hidden: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        hidden.replace(path)
        return
    try:
        path.hardlink_to(hidden)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links (exFAT sticks, some network drives): claim the name first, so that
        # nobody else's file can be replaced.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        hidden.replace(path)


def _exists(path: Path, error: type[CellbrushError]) -> CellbrushError:
    return error(f"The file {path} exists already and was left as it is", "Choose another name")


def _in_words(path: Path, cause: OSError, error: type[CellbrushError]) -> CellbrushError:
    # numpy tells of a full disk without its number: "60000 requested and 1832 written".
    if cause.errno in _DISK_FULL or (cause.errno is None and " requested and " in str(cause)):
        return error(f"The disk is full, {path} was not written", "Free some space, or choose another disk")
    if cause.errno in _NOT_ALLOWED:
        return error(f"The folder {path.parent} cannot be written", "Choose a folder that belongs to you")
    if cause.errno in _NO_FOLDER:
        return error(f"The folder {path.parent} does not exist", "Create it, or choose another folder")
    return error(f"Cannot write {path}: {cause.strerror or cause}", "Choose another name or folder")
