"""The full state of a training as a file: stopped or killed at any moment, it goes on as if nothing had happened.

One safetensors file: the tensors of every part of the run, and in the metadata one JSON text with all that is no
tensor, with what the run learns from (as digests), and with how far it is. Nothing is pickled. Files are written
under another name and then renamed, so a kill in mid-write leaves the state before.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.errors import CellbrushError, TrainingStateError

FORMAT = 2
#: Seconds of training that a kill may cost. One state is five times as large as a model, 150 MB with the bundled base.
SAVE_EVERY_S = 20.0
#: Nobody writes one file for so many seconds.
_LEFTOVER_S = 3600.0
_KEY = "cellbrush-training"


@dataclass(frozen=True, eq=False)
class PartState:
    """What one part of a run needs to go on."""

    #: On the CPU, copies.
    tensors: dict[str, Tensor]
    #: What JSON can hold.
    values: dict[str, Any]


class Part(Protocol):
    """A part of a run that can be put back to where it was."""

    def state(self) -> PartState:
        """A copy that later steps do not change."""

    def restore(self, state: PartState) -> None:
        """Go on from there.

        Raises
        ------
        KeyError, ValueError, TypeError, RuntimeError
            If the state is not one of such a part.
        """


@dataclass(frozen=True)
class Outline:
    """What a person wants to know about an unfinished training."""

    #: What the model was to be called.
    name: str
    step: int
    n_steps: int
    #: Names of the images that were painted.
    images: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training after one of its steps."""

    outline: Outline
    #: Digests of what decides about every further step: strokes, images, settings …, by what they are called.
    origin: dict[str, str]
    parts: dict[str, PartState]

    def differs(self, origin: Mapping[str, str]) -> str:
        """What is not as it was when the run began, for example "the strokes"; empty if all is."""
        changed = [what for what in origin if origin[what] != self.origin.get(what)]
        return " and ".join(filter(None, (", ".join(changed[:-1]), *changed[-1:])))

    def restore(self, parts: Mapping[str, Part]) -> None:
        """Put every part back to where it was.

        Raises
        ------
        TrainingStateError
            If the state does not fit the parts, which then are in no defined state.
        """
        try:
            for name, part in parts.items():
                part.restore(self.parts[name])
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise TrainingStateError(f"The kept state of '{self.outline.name}' does not fit this training ({error})",
                                     "Start it anew") from error


def digest(chunks: Iterable[bytes | memoryview | str]) -> str:
    """A short name of bytes that no others have."""
    hashed = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        hashed.update(chunk.encode() if isinstance(chunk, str) else chunk)
    return hashed.hexdigest()


def cloned(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Copies on the CPU, in the plain layout of memory that a file has."""
    return {prefix + name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def copy_into(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], prefix: str = "") -> None:
    """Overwrite tensors with saved ones of the same names and shapes, keeping their device and layout.

    Raises
    ------
    KeyError, ValueError
        If one is missing or has another shape.
    """
    with torch.no_grad():
        for name, tensor in tensors.items():
            source = saved[prefix + name]
            if source.shape != tensor.shape or source.dtype != tensor.dtype:
                raise ValueError(f"'{name}' is {source.dtype} {tuple(source.shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(source)


def write_state(state: TrainingState, path: Path) -> None:
    """Write a state, in one step over an earlier one.

    Raises
    ------
    TrainingStateError
        If it cannot be written; an earlier one stays as it was.
    """
    tensors = {f"{part}/{name}": tensor for part, content in state.parts.items()
               for name, tensor in content.tensors.items()}
    text = json.dumps({"format": FORMAT, "outline": vars(state.outline), "origin": state.origin,
                       "parts": {part: content.values for part, content in state.parts.items()}})
    with written_whole(path, overwrite=True, error=TrainingStateError) as hidden:
        try:
            save_file(tensors, hidden, {_KEY: text})
        except SafetensorError as error:
            raise TrainingStateError(f"The state of the training was not written to {path}: {error}",
                                     "Is the disk full? Free some space") from error


def read_state(path: Path) -> TrainingState:
    """Read a state.

    Raises
    ------
    TrainingStateError
        If the file is missing, damaged, no such state, or from another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            outline, content = _described(path, file.metadata())
            parts = {str(part): PartState({}, dict(values)) for part, values in content["parts"].items()}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part, _, name = key.partition("/")
                # A copy: the library hands out views of the mapped file, which may change or vanish.
                parts[part].tensors[name] = file.get_tensor(key).clone()
            return TrainingState(outline, {str(k): str(v) for k, v in content["origin"].items()}, parts)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def read_outline(path: Path) -> Outline:
    """Read how far an unfinished training is, without its tensors.

    Raises
    ------
    TrainingStateError
        If the file is missing, damaged, no such state, or from another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _described(path, file.metadata())[0]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _described(path: Path, metadata: Mapping[str, str] | None) -> tuple[Outline, dict[str, Any]]:
    content = json.loads((metadata or {})[_KEY])
    if content["format"] != FORMAT:
        raise TrainingStateError(f"{path.name} was written by another version (format {content['format']!r})",
                                 "Start the training anew")
    found = content["outline"]
    outline = Outline(str(found["name"]), int(found["step"]), int(found["n_steps"]),
                      tuple(str(name) for name in found["images"]))
    return outline, content


def _damaged(path: Path, cause: Exception) -> TrainingStateError:
    what = "does not exist" if isinstance(cause, FileNotFoundError) else f"cannot be read ({cause})"
    return TrainingStateError(f"The kept state {path.name} {what}", "Start the training anew")


class StateKeeper:
    """Writes the newest state every :data:`SAVE_EVERY_S`, beside the training, which waits only while it is copied.

    Use it as a context: its end waits for the file at hand, unless the training is dropped (its window closes).

    Parameters
    ----------
    path
        The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last = time.monotonic()
        self._writer: threading.Thread | None = None
        self._problem: CellbrushError | None = None
        if path is not None:
            _remove_leftovers(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None and kind is not GeneratorExit:
            self._writer.join()

    def offer(self, take: Callable[[], TrainingState]) -> CellbrushError | None:
        """Keep a state, if it is time and the disk is done with the one before; ``take`` is called only then.

        Returns
        -------
        CellbrushError
            What went wrong with the write before; the training need not care.
        """
        is_writing = self._writer is not None and self._writer.is_alive()
        if self._path is None or is_writing or time.monotonic() - self._last < SAVE_EVERY_S:
            return None
        self._last = time.monotonic()
        problem, self._problem = self._problem, None
        # It holds nothing but copies, and nobody need wait for it: killed in mid-write, it leaves the state before.
        self._writer = threading.Thread(target=self._write, args=(take(), self._path), daemon=True,
                                        name="cellbrush: keeping the state")
        self._writer.start()
        return problem

    def keep(self, take: Callable[[], TrainingState]) -> CellbrushError | None:
        """Keep this state now, and wait until it is written; what went wrong, if anything."""
        if self._path is None:
            return None
        if self._writer is not None:
            self._writer.join()
        self._problem = None
        self._write(take(), self._path)
        return self._problem

    def _write(self, state: TrainingState, path: Path) -> None:
        try:
            write_state(state, path)
        except CellbrushError as error:
            self._problem = error
        except Exception as error:  # a training must not end because its state cannot be kept
            self._problem = TrainingStateError(
                f"The state of the training was not kept ({type(error).__name__}: {error})")


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed in mid-write left behind: each is as large as a state."""
    if path.suffix:
        for hidden in path.parent.glob(f".cellbrush-*{path.suffix}"):
            with suppress(OSError):
                if time.time() - hidden.stat().st_mtime > _LEFTOVER_S:
                    hidden.unlink()
