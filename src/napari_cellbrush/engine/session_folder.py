"""A person's work on one image, saved so that no crash takes it away.

A session folder holds ``session.json`` and ``chunks/``. Labels are cut into squares of one plane; a square that holds
anything is a file, compressed and named by the SHA-256 of its values, and the card ``session.json`` says which square
belongs where. So only what changed is written, and nothing that the present card names is ever written over: new
squares first, then the card in one step, and only then the squares that no card names any more are removed. Whatever
ends the program in between leaves the last card readable, with all of its squares.

Nothing a card claims is allocated before it was checked, nothing is unpickled, and no name inside a file becomes a
path.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, JsonValue, ValidationError

from napari_cellbrush import __version__
from napari_cellbrush.config import ClassDefinition, Settings
from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.errors import SessionFileError

#: 2: it may say what was painted before an answer was seen.
FORMAT = 2
CARD_NAME = "session.json"
CHUNKS_NAME = "chunks"
#: Side of a square; its bytes are copied, hashed and compressed in a few milliseconds.
CHUNK_PX = 512
#: Bytes of a card; that of 1,000 fully painted planes of 2048² has 1.4 MB.
MAX_CARD_BYTES = 2**24
#: Pixels of one array of labels; 100,000 × 100,000 and some more.
MAX_PIXELS = 2**34
#: Speed matters more than the last per cent: strokes shrink a hundredfold in any case.
_COMPRESSION = 1

Box = tuple[slice, ...]
LabelType = Literal["uint8", "uint16", "uint32"]
#: "unseen" is where strokes were painted before an answer was seen, 1 there.
LabelsName = Literal["strokes", "objects", "unseen"]
_PLACE = re.compile(r"\d{1,10}(,\d{1,10}){1,7}")


class ImageIdentity(Settings):
    """Which image the work belongs to: its content counts, not where its file lies."""

    name: str = Field(max_length=1000)
    #: The file it was read from; empty where there is none.
    path: str = Field("", max_length=10_000)
    axes: str = Field("", max_length=8)
    shape: tuple[int, ...] = Field(min_length=2, max_length=8)
    dtype: str = Field(max_length=40)
    #: SHA-256 of some of its pixels.
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")

    @property
    def key(self) -> str:
        """The same for every copy of the image, under any name, on any machine."""
        text = json.dumps([self.shape, self.dtype, self.fingerprint])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class SavedLabels(Settings):
    """What a card says about one array of labels, stack axes + YX."""

    shape: tuple[int, ...] = Field(min_length=2, max_length=8)
    dtype: LabelType
    #: Hash by place, for example "0,3" for the fourth square of the first row; where there is none, all is 0.
    chunks: dict[str, str] = Field(default_factory=dict)


class SessionCard(Settings):
    """What ``session.json`` says."""

    format: int = Field(FORMAT, ge=1)
    #: When it was saved, UTC.
    saved: str = Field("", max_length=40)
    version: str = Field("", max_length=100)
    image: ImageIdentity
    classes: tuple[ClassDefinition, ...] = Field(min_length=2, max_length=255)
    #: Settings as plain values: a name that this version does not know must not cost the strokes.
    settings: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    base: str = Field("", max_length=1000)
    model: str = Field("", max_length=1000)
    brush_px: int = Field(4, ge=1, le=10_000)
    #: What the person has checked among objects: their ids, and pixels without one (plane, row, first, after last).
    accepted: tuple[int, ...] = ()
    emptied: tuple[tuple[int, ...], ...] = ()
    labels: dict[LabelsName, SavedLabels] = Field(default_factory=dict)

    @property
    def saved_at(self) -> datetime:
        """When it was saved; the beginning of time where it does not say."""
        with suppress(ValueError):
            return datetime.fromisoformat(self.saved).astimezone()
        return datetime.fromtimestamp(0, UTC)


class _Version(BaseModel):
    """The one entry of a card that every version can read."""

    format: int = Field(ge=1)


@dataclass(frozen=True, eq=False)
class Painted:
    """Labels as they are now, and where they may differ from what was saved last.

    ``values`` (stack axes + YX) are read while a person may be painting: a square that changes during the save is
    named again by the next one.
    """

    values: NDArray[Any]
    #: None for everywhere.
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True)
class SavedSession:
    """A session that was found."""

    path: Path
    card: SessionCard

    @property
    def kind(self) -> LabelsName:
        """What it holds: strokes, or objects that were corrected."""
        return "strokes" if "strokes" in self.card.labels else "objects"

    @property
    def discarded(self) -> bool:
        """Whether the person said not to offer it again."""
        return (self.path / "discarded").exists()


# --------------------------------------------------------------------------------------------------- the image


def identify(data: Any, axes: str, name: str, path: str = "") -> ImageIdentity:
    """Say which image an array is; reads at most 27 windows of 64 × 64 pixels.

    Parameters
    ----------
    data
        Anything with shape, dtype and basic slicing.
    axes, name, path
        For the person; they do not count when images are compared, because they can change.
    """
    shape = tuple(int(n) for n in data.shape)
    digest = hashlib.sha256()
    for window in _sampled(shape):
        digest.update(np.ascontiguousarray(data[window]).tobytes())
    return ImageIdentity(name=name[:1000], path=path[:10_000], axes=axes, shape=shape, dtype=str(np.dtype(data.dtype)),
                         fingerprint=digest.hexdigest())


def _sampled(shape: tuple[int, ...]) -> Iterator[Box]:
    """Nine windows along the two longest axes, at the beginning, middle and end of the others; few channels whole."""
    long = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))[-2:]
    starts = [sorted({max(0, min(shape[axis] * k // 4 - 32, shape[axis] - 64)) for k in (1, 2, 3)}) for axis in long]
    for share in (0.0, 0.5, 1.0):
        place = [slice(None) if n <= 4 else slice(int(share * (n - 1)), int(share * (n - 1)) + 1) for n in shape]
        for corner in product(*starts):
            for axis, start in zip(long, corner, strict=True):
                place[axis] = slice(start, start + 64)
            yield tuple(place)
        if all(n <= 4 for axis, n in enumerate(shape) if axis not in long):
            return


# ----------------------------------------------------------------------------------------------------- writing


@dataclass(eq=False)
class SessionWriter:
    """The one who writes a session folder, from one thread at a time.

    Attributes
    ----------
    path
        The folder; made by the first save.
    bytes_written
        By the last save.
    """

    path: Path
    bytes_written: int = 0
    _card: SessionCard | None = None

    def save(self, card: SessionCard, labels: Mapping[LabelsName, Painted]) -> SessionCard:
        """Write what changed; the card last, in one step.

        Parameters
        ----------
        card
            Everything but its labels.
        labels
            All of them: those that are not named are no longer part of the session.

        Returns
        -------
        SessionCard
            As it was written; the one of the last save where nothing has changed.

        Raises
        ------
        SessionFileError
            If the disk is full or the folder cannot be written. The last save is whole and counts.
        """
        self.bytes_written = 0
        before = self._card.labels if self._card else {}
        written = {name: self._write_labels(before.get(name), painted) for name, painted in labels.items()}
        card = card.replace(labels={name: saved.model_dump() for name, saved in written.items()}, saved="",
                            format=FORMAT, version=__version__)
        if self._card is not None and card == self._card.replace(saved=""):
            return self._card
        # Strokes that replace others are saved in the same second as those: the newest of both is offered.
        card = card.replace(saved=datetime.now(UTC).isoformat(timespec="microseconds"))
        self._write_card(card)
        self._remove(_hashes(before.values()) - _hashes(card.labels.values()))
        self._card = card
        return card

    def _write_labels(self, before: SavedLabels | None, painted: Painted) -> SavedLabels:
        values, dtype = painted.values, _stored_type(painted.values.dtype)
        same = before is not None and before.shape == values.shape and before.dtype == dtype
        chunks = dict(before.chunks) if before is not None and same else {}
        boxes = painted.boxes if same else None
        for place in _places(values.shape, boxes):
            # A copy: what is hashed must be what is written, whoever paints meanwhile.
            chunk = np.array(values[_box(place, values.shape)], order="C")
            key = ",".join(map(str, place))
            if chunk.any():
                chunks[key] = self._write_chunk(_exact(chunk, dtype))
            else:
                chunks.pop(key, None)
        return SavedLabels.read({"shape": values.shape, "dtype": dtype, "chunks": chunks})

    def _write_chunk(self, chunk: NDArray[Any]) -> str:
        raw = chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes()
        name = hashlib.sha256(raw).hexdigest()
        path = self.path / CHUNKS_NAME / name
        # A file of that name is whole, and holds these values.
        if not path.exists():
            self._write(path, zlib.compress(raw, _COMPRESSION))
        return name

    def _write_card(self, card: SessionCard) -> None:
        self._write(self.path / CARD_NAME, card.model_dump_json().encode(), overwrite=True)

    def _write(self, path: Path, content: bytes, *, overwrite: bool = False) -> None:
        write_file(path, content, overwrite=overwrite)
        self.bytes_written += len(content)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):
                (self.path / CHUNKS_NAME / name).unlink()


def _stored_type(dtype: np.dtype[Any]) -> str:
    """The type that labels of a type are saved in: few are signed, and none need 64 bits."""
    return str(dtype) if str(dtype) in get_args(LabelType) else "uint32"


def _exact(chunk: NDArray[Any], dtype: str) -> NDArray[Any]:
    stored = chunk.astype(dtype)
    if not np.array_equal(stored, chunk):
        raise SessionFileError(f"The labels hold values from {chunk.min()} to {chunk.max()}, sessions those of {dtype}",
                               "Renumber the objects")
    return stored


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write a file of a session, and its folder if need be; the file appears whole or not at all.

    Raises
    ------
    SessionFileError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SessionFileError(f"The folder {path.parent} cannot be made: {error.strerror}",
                               "Free some space, or set CELLBRUSH_HOME to a folder of your own") from error
    with written_whole(path, overwrite=overwrite, error=SessionFileError) as hidden:
        hidden.write_bytes(content)


def _places(shape: tuple[int, ...], boxes: tuple[Box, ...] | None) -> set[tuple[int, ...]]:
    """The squares that boxes touch; all of them where there are none."""
    sides = _sides(shape)
    if boxes is None:
        return set(product(*(range(-(-n // side)) for n, side in zip(shape, sides, strict=True))))
    found: set[tuple[int, ...]] = set()
    for box in boxes:
        limits = [part.indices(n)[:2] for part, n in zip(box, shape, strict=True)]
        found.update(product(*(range(start // side, -(-stop // side)) if start < stop else ()
                               for (start, stop), side in zip(limits, sides, strict=True))))
    return found


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*(1,) * (len(shape) - 2), CHUNK_PX, CHUNK_PX)


def _place(key: str) -> tuple[int, ...]:
    return tuple(int(k) for k in key.split(","))


def _box(place: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    return tuple(slice(k * side, min((k + 1) * side, n))
                 for k, side, n in zip(place, _sides(shape), shape, strict=True))


def _hashes(labels: Iterable[SavedLabels]) -> set[str]:
    return {name for saved in labels for name in saved.chunks.values()}


# ----------------------------------------------------------------------------------------------------- reading


def read_card(path: Path) -> SessionCard:
    """Read the card of a session folder.

    Raises
    ------
    SessionFileError
        If it is missing, damaged, claims more than it can hold, or was made by a newer version.
    """
    file = path / CARD_NAME
    try:
        size = file.stat().st_size
        content = file.read_bytes() if size <= MAX_CARD_BYTES else b""
    except OSError as error:
        raise SessionFileError(f"There is no saved session in {path}: {error.strerror}",
                               "Choose another one: cellbrush sessions") from error
    if size > MAX_CARD_BYTES:
        raise damaged(path.name, f"its card has {size:,} bytes, the most is {MAX_CARD_BYTES:,}")
    return parse_card(content, path.name)


def parse_card(content: bytes, name: str) -> SessionCard:
    """A card from its bytes, checked; ``name`` is for messages.

    Raises
    ------
    SessionFileError
        If it is damaged, claims more than it can hold, or was made by a newer version.
    """
    try:
        version = _Version.model_validate_json(content).format
        if version > FORMAT:
            raise SessionFileError(f"The session {name} has the format {version}, this version reads {FORMAT}",
                                   "Update napari-cellbrush")
        card = SessionCard.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "as a whole"
        raise damaged(name, f"its card is invalid, {where}: {first['msg'][:200]}") from error
    for saved in card.labels.values():
        _check_labels(name, saved)
    return card


def _check_labels(name: str, saved: SavedLabels) -> None:
    """Refuse a card that claims too much, or names squares that cannot be."""
    n_pixels = math.prod(saved.shape)
    if min(saved.shape) < 1 or n_pixels > MAX_PIXELS:
        raise damaged(name, f"it claims labels of the shape {saved.shape}, {n_pixels:,} pixels")
    grid = [-(-n // side) for n, side in zip(saved.shape, _sides(saved.shape), strict=True)]
    for key, value in saved.chunks.items():
        if not _PLACE.fullmatch(key) or not re.fullmatch("[0-9a-f]{64}", value):
            raise damaged(name, f"its card names the square {key[:40]!r}")
        place = _place(key)
        if len(place) != len(grid) or any(k >= n for k, n in zip(place, grid, strict=True)):
            raise damaged(name, f"its square {key} lies outside of the labels")


def read_labels(path: Path, card: SessionCard, name: LabelsName, *,
                shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an array of labels, stack axes + YX.

    Parameters
    ----------
    path
        The session folder.
    card
        Its card.
    name
        Which labels.
    shape
        What the image needs; nothing else is read.

    Raises
    ------
    SessionFileError
        If a square is missing or damaged, or if the labels do not fit.
    """
    saved = card.labels.get(name)
    if saved is None or saved.shape != shape:
        what = f"the shape {saved.shape}" if saved else "nothing"
        raise SessionFileError(f"The saved {name} have {what}, the image needs {shape}",
                               "Say what the axes of the image mean (Axes), as they were when the session was saved")
    labels = np.zeros(shape, saved.dtype)
    for key, chunk_name in saved.chunks.items():
        box = _box(_place(key), shape)
        content = packed_chunk(path / CHUNKS_NAME / chunk_name, labels[box].shape, saved.dtype)
        labels[box] = unpack_chunk(content, chunk_name, labels[box].shape, saved.dtype)
    return labels


def chunk_shapes(card: SessionCard) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every square that a card names, by its hash."""
    return {name: (tuple(part.stop - part.start for part in _box(_place(key), saved.shape)), saved.dtype)
            for saved in card.labels.values() for key, name in saved.chunks.items()}


def packed_chunk(path: Path, shape: tuple[int, ...], dtype: str) -> bytes:
    """The bytes of one square as they lie on the disk.

    Raises
    ------
    SessionFileError
        If it is missing, or larger than it can be.
    """
    try:
        size = path.stat().st_size
        if size <= largest_chunk(shape, dtype):
            return path.read_bytes()
    except OSError as error:
        raise damaged(path.parents[1].name, f"a part of its labels is missing ({error.strerror})") from error
    raise damaged(path.parents[1].name, f"a part of its labels has {size:,} bytes")


def largest_chunk(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that a compressed square can have at most."""
    raw = math.prod(shape) * np.dtype(dtype).itemsize
    return raw + raw // 1000 + 64


def unpack_chunk(content: bytes, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A square from its bytes; never takes more memory than its shape needs.

    Raises
    ------
    SessionFileError
        If it holds other values than those it is named by.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        raw = zlib.decompressobj().decompress(content, n_bytes + 1)
    except zlib.error as error:
        raise damaged("", f"a part of its labels cannot be unpacked ({error})") from error
    if len(raw) != n_bytes or hashlib.sha256(raw).hexdigest() != name:
        raise damaged("", "a part of its labels holds other values than were saved")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)


def damaged(name: str, why: str) -> SessionFileError:
    """What to say of a session that cannot be used."""
    return SessionFileError(f"The saved session {name} is damaged: {why}".replace("  ", " "),
                            "Choose an older one: cellbrush sessions")
