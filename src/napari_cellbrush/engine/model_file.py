"""Models as files: one ``.safetensors`` each, with the card as JSON in its metadata.

The format: tensors named as in the network's state (float32, or float16 to save space); metadata ``format``
(a whole number as text) and ``cellbrush`` (the card as JSON). Nothing is ever unpickled, and nothing a header
claims is allocated before it was checked against the card and the size of the file.

Two folders make the library: the models inside the package, and the user's. A model's name there is the name of
its file.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from napari_cellbrush.engine.atomic import free_path, written_whole
from napari_cellbrush.engine.home import home_folder
from napari_cellbrush.engine.model import Model, ModelCard, build_network
from napari_cellbrush.engine.unet import UNet
from napari_cellbrush.errors import ModelError, ModelFileError

FORMAT = 1
SUFFIX = ".safetensors"
#: Where fine-tuning starts unless told otherwise.
DEFAULT_BASE = "cells"
#: Models that travel inside the package.
BUNDLED = Path(__file__).parents[1] / "weights"
#: Bytes; a card with 255 classes and a network of depth 5 need less than 100 kB.
MAX_HEADER_BYTES = 2**20

_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


@dataclass(frozen=True)
class ModelEntry:
    """A model of the library."""

    name: str
    path: Path
    card: ModelCard
    #: Whether it travels inside the package; such a model cannot be removed.
    bundled: bool


# ---------------------------------------------------------------------------------------------- one file


def save_model(model: Model, path: Path | str, *, half: bool = False, overwrite: bool = False) -> Path:
    """Write a model; the file appears whole or not at all.

    Parameters
    ----------
    model
        What to write.
    path
        A new file, called something.safetensors.
    half
        Store the convolutions as float16, which halves the file and rounds the weights.
    overwrite
        Whether a file of that name may be replaced, in one step.

    Raises
    ------
    ModelFileError
        If the file exists, has another suffix or cannot be written, or if the model is broken.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelFileError(f"A model file ends in {SUFFIX}, got {path.name}", f"Call it {path.stem}{SUFFIX}")
    tensors = {name: _stored(tensor, half) for name, tensor in model.network.state_dict().items()}
    _check_shapes(path.name, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, model.card)
    _check_values(path.name, tensors)
    metadata = {"format": str(FORMAT), "cellbrush": model.card.model_dump_json()}
    if len(metadata["cellbrush"].encode()) > MAX_HEADER_BYTES // 2:
        raise ModelFileError(f"The card of the model '{model.card.name}' is too long", "Shorten its description")
    with written_whole(path, overwrite=overwrite, error=ModelFileError) as hidden:
        try:
            save_file(tensors, hidden, metadata)
        except SafetensorError as error:
            raise ModelFileError(f"Cannot write {path}: {error}", "Is the disk full? Choose another place") from error
    return path


def read_model(path: Path | str) -> Model:
    """Read a model; weights come as float32 on the CPU.

    Raises
    ------
    ModelFileError
        If the file is missing, is no model, is damaged, or was made by a newer version.
    """
    path = Path(path)
    _check_header_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            card = _card(path.name, file.metadata())
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            _check_shapes(path.name, {name: tuple(s.get_shape()) for name, s in slices.items()}, card)
            _check_types(path.name, {name: s.get_dtype() for name, s in slices.items()})
            tensors = {name: _loaded(file.get_tensor(name)) for name in slices}
    except (SafetensorError, OSError) as error:
        raise _damaged(path.name, str(error)) from error
    _check_values(path.name, tensors)
    network = _empty_network(path.name, card)
    network.load_state_dict(tensors, assign=True)
    return Model(network.eval(), card)


def read_card(path: Path | str) -> ModelCard:
    """Read what a model file says about its weights, without reading them.

    Raises
    ------
    ModelFileError
        If the file is missing, is no model, is damaged, or was made by a newer version.
    """
    path = Path(path)
    _check_header_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            return _card(path.name, file.metadata())
    except (SafetensorError, OSError) as error:
        raise _damaged(path.name, str(error)) from error


def _stored(tensor: Tensor, half: bool) -> Tensor:
    # Only the convolutions: they are nearly all of the bytes, and a variance may not fit float16.
    return tensor.detach().cpu().to(torch.float16 if half and tensor.dim() == 4 else tensor.dtype).contiguous()


def _loaded(tensor: Tensor) -> Tensor:
    # A copy in every case: the library hands out views of the mapped file, which may change or vanish.
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()


def _check_header_size(path: Path) -> None:
    """The first eight bytes claim a length: believe it only as far as the file reaches."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"The model file {path} {what}", f"Give an existing {SUFFIX} file")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = path.stat().st_size
    except OSError as error:
        raise ModelFileError(f"Cannot read the model file {path}: {error.strerror}", "Check who may read it") from error
    length = int.from_bytes(start, "little")
    fits = len(start) == 8 and 2 <= length <= size - 8
    if not fits and start.startswith((b"PK", b"\x80")):
        raise ModelFileError(f"{path.name} looks like a pickled PyTorch model, which could run any program",
                             f"Give a {SUFFIX} file")
    if not fits:
        raise _damaged(path.name, f"a header of {length} bytes does not fit a file of {size} bytes")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path.name, f"its header has {length} bytes, the most is {MAX_HEADER_BYTES}")


def _card(file_name: str, metadata: Mapping[str, str] | None) -> ModelCard:
    metadata = metadata or {}
    if "cellbrush" not in metadata:
        raise ModelFileError(f"{file_name} holds tensors, but no model of napari-cellbrush",
                             "Give a file that napari-cellbrush saved")
    version = metadata.get("format", "")
    if version != str(FORMAT):
        newer = version.isdecimal() and len(version) < 9 and int(version) > FORMAT
        if newer:
            raise ModelFileError(f"{file_name} has the model format {version}, this version reads {FORMAT}",
                                 "Update napari-cellbrush")
        raise _damaged(file_name, f"its format number is {version[:20]!r}")
    try:
        return ModelCard.model_validate_json(metadata["cellbrush"])
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:80]
        if first["type"] == "extra_forbidden":
            raise ModelFileError(f"The card of {file_name} holds an unknown entry '{field}'",
                                 "Update napari-cellbrush, or save the model again") from error
        raise _damaged(file_name, f"its card is invalid, {field or 'as a whole'}: {first['msg'][:200]}") from error


def _empty_network(file_name: str, card: ModelCard) -> UNet:
    """The network a card describes, without memory behind its tensors."""
    try:
        with torch.device("meta"):
            return build_network(card)
    except ModelError as error:
        raise _damaged(file_name, error.problem) from error


def _check_shapes(file_name: str, found: Mapping[str, tuple[int, ...]], card: ModelCard) -> None:
    needed = {name: tuple(t.shape) for name, t in _empty_network(file_name, card).state_dict().items()}
    for name in sorted(needed.keys() | found.keys()):
        if name not in found:
            raise _damaged(file_name, f"the tensor '{name}' is missing")
        if name not in needed:
            raise _damaged(file_name, f"the tensor '{name[:80]}' does not belong to its network")
        if found[name] != needed[name]:
            raise _damaged(file_name, f"the tensor '{name}' has the shape {found[name]}, its card says {needed[name]}")


def _check_types(file_name: str, found: Mapping[str, Any]) -> None:
    for name, dtype in found.items():
        allowed = {"I64"} if name.endswith("num_batches_tracked") else {"F32", "F16"}
        if str(dtype) not in allowed:
            raise _damaged(file_name, f"the tensor '{name}' has the type {dtype}, need {' or '.join(sorted(allowed))}")


def _check_values(file_name: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise _damaged(file_name, f"the tensor '{name}' holds values that are no numbers")
        if name.endswith("running_var") and (tensor < 0).any():
            raise _damaged(file_name, f"the tensor '{name}' holds a negative variance")


def _damaged(file_name: str, why: str) -> ModelFileError:
    return ModelFileError(f"{file_name} is not a usable model file: {why.rstrip('.')}",
                          "Get the file again, or choose another model")


# --------------------------------------------------------------------------------------------- the library


def library_folder() -> Path:
    """The user's models. The folder may not exist yet."""
    return home_folder() / "models"


def list_models() -> list[ModelEntry]:
    """Every readable model of the library, bundled ones first. Reads headers alone."""
    return scan_models()[0]


def scan_models() -> tuple[list[ModelEntry], list[ModelFileError]]:
    """Every readable model of the library, and one error for each file that is none."""
    entries, errors = [], []
    for name, path in _paths().items():
        try:
            entries.append(ModelEntry(name, path, read_card(path), path.parent == BUNDLED))
        except ModelFileError as error:
            errors.append(error)
    return entries, errors


def find_model(name_or_path: str | Path) -> Path:
    """The file of a model, by its name in the library or by its path.

    Raises
    ------
    ModelFileError
        If there is no such model.
    """
    models = _paths()
    if str(name_or_path) in models:
        return models[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix == SUFFIX or path.is_file():
        return path
    if str(name_or_path) == DEFAULT_BASE:
        raise ModelFileError(f"The bundled model '{DEFAULT_BASE}' is not part of this installation",
                             "Start without a base (--base scratch, or choose scratch), or give a model file")
    names = ", ".join(models) or "(the library is empty)"
    raise ModelFileError(f"There is no model called '{name_or_path}'",
                         f"Give a {SUFFIX} file, or one of these names: {names}")


def add_to_library(model: Model, name: str, *, instead_of: Path | None = None) -> Path:
    """Save a model in the user's library; where the name is taken, as name-2, name-3 …

    ``instead_of`` is a model of the library that it replaces, and whose name it takes.

    Raises
    ------
    ModelFileError
        If it cannot be written.
    """
    path = instead_of or _free_library_path(name)
    return save_model(Model(model.network, model.card.replace(name=path.stem)), path, overwrite=instead_of is not None)


def import_model(path: Path | str) -> Path:
    """Copy a model file into the user's library under its card's name, after reading all of it.

    Raises
    ------
    ModelFileError
        If the file is no usable model, or cannot be copied.
    """
    model = read_model(path)
    return _copy(Path(path), _free_library_path(model.card.name))


def export_model(name_or_path: str | Path, path: Path | str) -> Path:
    """Copy a model of the library to a new file.

    Raises
    ------
    ModelFileError
        If there is no such model, the new file exists already, or it cannot be written.
    """
    source, target = find_model(name_or_path), Path(path)
    read_card(source)
    return _copy(source, target if target.suffix == SUFFIX else target.with_name(target.name + SUFFIX))


def remove_model(name: str) -> Path:
    """Delete a model from the user's library.

    Raises
    ------
    ModelFileError
        If there is no such model in the library, or if it is a bundled one.
    """
    path = _paths().get(name)
    if path is None:
        raise ModelFileError(f"There is no model called '{name}' in your library", "List them: cellbrush models")
    if path.parent == BUNDLED:
        raise ModelFileError(f"The model '{name}' is part of napari-cellbrush and stays", "Choose one of your own")
    try:
        path.unlink()
    except OSError as error:
        raise ModelFileError(f"Cannot remove {path}: {error.strerror}", "Close whoever uses it") from error
    return path


def file_name_for(name: str) -> str:
    """A file name without suffix that every system takes, as close to ``name`` as it can be."""
    plain = unicodedata.normalize("NFC", name)
    plain = re.sub(r"[^\w .()+-]", "_", plain)[:60].strip(" .")
    if not plain.strip("_") or plain.split(".")[0].lower() in _WINDOWS_DEVICES:
        return f"model_{plain}".rstrip("_")
    return plain


def _paths() -> dict[str, Path]:
    """Every file of the library by its unique name, bundled ones first."""
    paths: dict[str, Path] = {}
    for folder in (BUNDLED, library_folder()):
        for path in sorted(folder.glob(f"[!.]*{SUFFIX}"), key=lambda path: path.stem):
            paths[_unique(path.stem, paths)] = path
    return paths


def _unique(name: str, taken: Iterable[str]) -> str:
    # Compared without case: on Windows and macOS "Cells" and "cells" are one file.
    lower = {t.lower() for t in taken}
    candidate, number = name, 2
    while candidate.lower() in lower:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def _free_library_path(name: str) -> Path:
    folder = library_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(f"Cannot create the model library {folder}: {error.strerror}",
                             "Set CELLBRUSH_HOME to a folder of your own") from error
    return free_path(folder / (_unique(file_name_for(name), _paths()) + SUFFIX))


def _copy(source: Path, target: Path) -> Path:
    with written_whole(target, error=ModelFileError) as hidden:
        shutil.copyfile(source, hidden)
    return target
