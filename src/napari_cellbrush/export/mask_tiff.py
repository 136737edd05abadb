"""Masks as TIFF: exact ids, the right size in Fiji, and a note of what made them.

Two kinds of file. Where ImageJ can hold the mask (8 or 16 bit whole numbers or float32, below 4 GB) it is an
ImageJ hyperstack, which Fiji opens with axes, pixel size and display range set. Everything else (more than 65,535
ids, more than 4 GB, compressed, several channels of a stack) is OME-TIFF. Values are never cast to a type that
cannot hold them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.errors import ExportError

#: The order of axes in every file written here: that of the arrays, classes first. ImageJ wants channels behind the
#: axes of a stack, so it gets only what has one or the other.
FILE_AXES = "CTZYX"
#: Bytes; classic TIFF addresses 4 GiB, of which tifffile keeps 32 MiB for the rest of the file.
IMAGEJ_LIMIT = 2**32 - 2**25


def save_mask(
    path: Path | str,
    mask: ArrayLike,
    *,
    axes: str | None = None,
    pixel_size: PixelSize | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compress: bool = False,
) -> Path:
    """Write a mask; the file appears whole or not at all.

    Parameters
    ----------
    path
        The file to write; with the ending ``.ome.tif`` it is OME-TIFF in every case.
    mask
        Whole numbers ≥ 0 (classes or objects), bool, or float32 (probabilities).
    axes
        A letter of T, C, Z, Y, X per axis, in the order of ``mask``. Needed from three axes on, because a time
        lapse and a stack look alike; probabilities of one plane are CYX (class axis first) without asking.
    pixel_size
        Size of a pixel, written so that Fiji measures in its unit.
    provenance
        What made the mask, as plain values; see :func:`read_provenance`.
    overwrite
        Replace an existing file.
    compress
        Deflate; the file is then OME-TIFF, because ImageJ hyperstacks are not compressed.

    Returns
    -------
    Path
        The file. ImageJ TIFF in uint8, uint16 or float32 where it fits, else OME-TIFF (uint32 above 65,535 ids;
        BigTIFF above 4 GB); axes in the order CTZYX.

    Raises
    ------
    ExportError
        If a value would change, the axes do not fit, the file exists, or it cannot be written.
    """
    path = Path(path)
    values = _exact(np.asarray(mask))
    values, axes = _in_file_order(values, axes)
    size = pixel_size or PixelSize(1.0, 1.0)
    note = json.dumps(dict(provenance or {}), default=str)
    as_imagej = values.dtype != np.uint32 and values.nbytes <= IMAGEJ_LIMIT and not (
        "C" in axes and {"T", "Z"} & set(axes))
    named_ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    with written_whole(path, overwrite=overwrite) as hidden:
        if as_imagej and not compress and not named_ome:
            _write_imagej(hidden, values, axes, size, note)
        else:
            _write_ome(hidden, values, axes, size, note, compress, path.stem)
    return path


def read_provenance(path: Path | str) -> dict[str, Any]:
    """What :func:`save_mask` wrote about the origin of a mask; empty where there is no such note.

    Raises
    ------
    ExportError
        If the file is no TIFF.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            text = _ome_note(tiff.ome_metadata) if tiff.is_ome else (tiff.imagej_metadata or {}).get("Info", "")
    except Exception as error:  # a decoder raises nearly anything on a damaged file
        raise ExportError(f"Cannot read {path} as TIFF: {error}", "Give a mask that napari-cellbrush saved") from error
    try:
        note = json.loads(text or "{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _exact(mask: NDArray[Any]) -> NDArray[Any]:
    """The same values in the smallest type a file can have, never other values."""
    if mask.size == 0:
        raise ExportError(f"The mask of shape {mask.shape} is empty", "Segment first")
    if mask.dtype == bool:
        return mask.astype(np.uint8)
    if mask.dtype.kind == "f":
        if mask.dtype.itemsize > 4:
            raise ExportError(f"A mask of type {mask.dtype} would lose digits as float32", "Convert it to float32")
        return mask.astype(np.float32, copy=False)
    if mask.dtype.kind not in "iu":
        raise ExportError(f"A mask of type {mask.dtype} cannot be saved", "Give whole numbers, bool or float32")
    lowest, highest = int(mask.min()), int(mask.max())
    if lowest < 0:
        raise ExportError(f"The mask holds the negative value {lowest}", "Ids are 0 (background) and above")
    for dtype in (np.uint8, np.uint16, np.uint32):
        if highest <= np.iinfo(dtype).max:
            return mask.astype(dtype, copy=False)
    raise ExportError(f"The mask holds the id {highest}, files hold up to {np.iinfo(np.uint32).max}", "Renumber it")


def _in_file_order(values: NDArray[Any], axes: str | None) -> tuple[NDArray[Any], str]:
    if axes is None:
        axes = {2: "YX", 3: "CYX" if values.dtype.kind == "f" else ""}.get(values.ndim, "")
        if not axes:
            raise ExportError(f"Cannot tell what the axes of a mask of shape {values.shape} are",
                              "Name them, for example axes='ZYX' for a stack or axes='TYX' for a time lapse")
    axes = axes.upper()
    fits = len(axes) == values.ndim == len(set(axes)) and {"Y", "X"} <= set(axes) <= set(FILE_AXES)
    if not fits:
        raise ExportError(f"The axes '{axes}' do not fit a mask of shape {values.shape}",
                          f"Give one letter of {FILE_AXES} per axis, Y and X among them")
    ordered = "".join(letter for letter in FILE_AXES if letter in axes)
    return values.transpose([axes.index(letter) for letter in ordered]), ordered


def _write_imagej(path: Path, values: NDArray[Any], axes: str, size: PixelSize, note: str) -> None:
    metadata: dict[str, Any] = {
        "axes": axes,
        # Fiji shows a mask without a display range as black: ids are small against the range of their type.
        "min": 0.0,
        "max": float(max(1, np.nanmax(values))) if values.dtype.kind == "u" else 1.0,
        # ImageJ writes a lower-case "um" for the micrometre and knows the Greek letter only in an escape.
        "unit": "um" if size.unit == "µm" else "pixel",
        "Info": note,
        "cellbrush": note,
    }
    if "Z" in axes and size.z is not None:
        metadata["spacing"] = size.z
    tifffile.imwrite(path, values, imagej=True, photometric="minisblack", metadata=metadata,
                     resolution=(1 / size.x, 1 / size.y), resolutionunit=1)


def _write_ome(
    path: Path, values: NDArray[Any], axes: str, size: PixelSize, note: str, compress: bool, name: str
) -> None:
    metadata: dict[str, Any] = {"axes": axes, "Name": name, "Description": note}
    sizes = {"X": size.x, "Y": size.y, **({"Z": size.z} if size.z is not None else {})}
    for letter, value in sizes.items():
        metadata[f"PhysicalSize{letter}"] = value
        metadata[f"PhysicalSize{letter}Unit"] = size.unit
    tifffile.imwrite(path, values, ome=True, bigtiff=values.nbytes > IMAGEJ_LIMIT, photometric="minisblack",
                     compression="zlib" if compress else None, metadata=metadata)


def _ome_note(xml: str | None) -> str:
    """The text of Image/Description."""
    for element in ElementTree.fromstring(xml or "<OME/>").iter():
        if element.tag.rpartition("}")[2] == "Description":
            return element.text or ""
    return ""
