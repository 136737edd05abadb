"""Image files → lazy planes with the axes and pixel size that the file itself names.

What a file holds is told by its first bytes, not by its suffix. Nothing is read that is not needed: uncompressed
TIFF and npy are memory-mapped, other TIFF is decoded page by page, zarr chunk by chunk. What a header claims is
checked against the size of the file before any of it is believed.
"""

from __future__ import annotations

import math
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.errors import CellbrushError, ImageError

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY_START = b"\x93NUMPY"
_PICTURES = ("PNG", "JPEG", "BMP")
#: Bytes; a compressed page up to this size is decoded whole, a larger one chunk by chunk (which needs zarr).
_LARGEST_PAGE = 2**28
#: Bytes of decoded pages kept, so that the tiles of a page decode it once.
_PAGE_CACHE = 2**29
#: No compression in use shrinks a real image more than this (deflate ends at 1,032).
_LARGEST_RATIO = 5000
#: µm; a larger "pixel size" of a file that is no microscope's is its print resolution (72 dpi: 353 µm).
_LARGEST_UNNAMED_PIXEL = 20.0
_MICROMETRES = {
    "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3, "mm": 1e3, "millimeter": 1e3,
    "millimetre": 1e3, "cm": 1e4, "centimeter": 1e4, "inch": 25400.0, "m": 1e6, "meter": 1e6, "å": 1e-4,
    "angstrom": 1e-4,
}


@dataclass(frozen=True)
class ImageFile:
    """An opened image."""

    planes: Planes
    pixel_size: PixelSize
    path: Path
    #: What a person should know about how the file was read, each a sentence without a full stop.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What a file holds."""

    data: Any
    #: None where there is no telling.
    axes: str | None
    pixel_size: PixelSize
    #: Whether the file itself says what its axes are.
    names_axes: bool = False
    #: Whether the last colour sample is no colour; None where the file does not say.
    alpha: bool | None = None
    n_images: int = 1


def open_image(path: Path | str, axes: str | None = None) -> ImageFile:
    """Open an image lazily.

    Parameters
    ----------
    path
        TIFF (ImageJ, OME, tifffile or plain), a zarr or OME-Zarr folder, npy, PNG, JPEG or BMP.
    axes
        A letter of T, C, Z, Y, X, S per axis, for files that do not name them or name them wrongly. Pages of a TIFF
        that says nothing about them are taken for a stack (Z). Of a file with several images the first is read.

    Raises
    ------
    ImageError
        If the file cannot be read, does not say what its axes are, or holds no usable image. The message names it.
    """
    path = Path(path)
    source = _open(path)
    letters = axes or source.axes
    if letters is None:
        raise ImageError(f"{path.name} has the shape {tuple(source.data.shape)} and does not say what its axes are",
                         "Name them (command line: --axes), for example ZYX for a stack, TYX for a time lapse, CYX "
                         "for channels")
    try:
        planes = Planes(source.data, letters, name=path.name, alpha=source.alpha)
    except ImageError as error:
        raise named(path, error) from error
    return ImageFile(planes, source.pixel_size, path, tuple(_notes(path.name, source, planes)))


def _notes(name: str, source: _Source, planes: Planes) -> Iterator[str]:
    if source.n_images > 1:
        yield (f"{name} holds {source.n_images} images (series), only the first, of shape {tuple(source.data.shape)}, "
               "is read; to use another, save it as a file of its own")
    own, taken = (source.axes or "").replace("S", "C"), planes.axes.replace("S", "C")
    if source.names_axes and own != taken:
        yield f"{name} is read with the axes {planes.axes}, as you say, although it names its own {source.axes}"


def open_labels(path: Path | str, axes: str | None = None) -> Any:
    """Open labels or masks lazily.

    Parameters
    ----------
    path
        A file of any kind that :func:`open_image` takes; of a palette PNG the indices are read.
    axes
        The order to bring the axes into (those of the image, without channels), where the file names its own.

    Returns
    -------
    array-like
        Stack axes + YX, with the file's type.

    Raises
    ------
    ImageError
        If the file cannot be read, or holds colours.
    """
    path = Path(path)
    source = _open(path, keep_palette=True)
    own = source.axes or ""
    if own.endswith("S"):
        raise ImageError(f"{path.name} holds colours, labels are whole numbers, one per pixel",
                         "Export the labels as 8 or 16 bit TIFF without colours")
    if axes and own and own != axes and sorted(own) == sorted(axes):
        return np.asarray(source.data).transpose([own.index(letter) for letter in axes])
    return source.data


def named(path: Path, error: CellbrushError) -> CellbrushError:
    """The same error, with the file's name in front where it is not named yet."""
    if path.name in error.problem:
        return error
    return type(error)(f"{path.name}: {error.problem}", error.remedy)


def _open(path: Path, keep_palette: bool = False) -> _Source:
    if path.is_dir():
        return _open_zarr(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError as error:
        raise ImageError(f"The file {path} does not exist", "Check the name and the folder") from error
    except OSError as error:
        raise ImageError(f"The file {path} cannot be read: {error.strerror}", "Check who may read it") from error
    if start.startswith(_TIFF_STARTS):
        return _open_tiff(path)
    if start.startswith(_NPY_START):
        return _open_npy(path)
    return _open_picture(path, keep_palette)


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a sentence that names the file.

    Decoders raise nearly anything (ValueError, IndexError, struct.error, zlib.error, MemoryError …), so everything
    is caught here, and here alone.
    """
    try:
        yield
    except CellbrushError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(".")
        if "imagecodecs" in reason:
            raise ImageError(f"{path.name} is compressed in a way that needs the package imagecodecs",
                             "Install it (pip install imagecodecs), or save the file uncompressed") from error
        raise ImageError(f"{path.name} cannot be read as {kind}: {reason}",
                         "Is it complete? Open it in Fiji and save it again as TIFF") from error


# ------------------------------------------------------------------------------------------------------ TIFF


def _open_tiff(path: Path) -> _Source:
    with _reading(path, "TIFF"):
        tiff = tifffile.TiffFile(path)
        try:
            _check_chain(path, tiff)
            series = tiff.series[0]
            _check_claim(path, series)
            axes = _tiff_axes(series.axes)
            source = _Source(_tiff_data(path, tiff, series), axes, _tiff_pixel_size(tiff, series),
                             names_axes=axes is not None and "I" not in series.axes, alpha=_tiff_alpha(series),
                             n_images=len(tiff.series))
        except BaseException:
            tiff.close()
            raise
        if isinstance(source.data, np.memmap):
            tiff.close()
        return source


def _check_chain(path: Path, tiff: tifffile.TiffFile) -> None:
    """Refuse pages that lead back to an earlier one: tifffile would follow them for ever."""
    layout, file, seen = tiff.tiff, tiff.filehandle, set[int]()
    file.seek(layout.offsetsize)  # the first page's place stands behind the header, which is as long
    here = file.read(layout.offsetsize)
    while (offset := _number(here, layout.offsetformat)) > 0:
        if offset in seen:
            raise ImageError(f"{path.name} cannot be read as TIFF: its {len(seen):,} pages lead back to an earlier one",
                             "It is damaged: get it again")
        seen.add(offset)
        file.seek(offset)
        n_tags = _number(file.read(layout.tagnosize), layout.tagnoformat)
        # Where the file ends too soon, tifffile takes its last bytes for the place of the next page.
        here = file.read(n_tags * layout.tagsize + layout.offsetsize)[-layout.offsetsize :]


def _number(read: bytes, format: str) -> int:
    """0 where nothing is to be read: what is there of a truncated file may still be an image."""
    return int(struct.unpack(format, read)[0]) if len(read) == struct.calcsize(format) else 0


def _check_claim(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Refuse a header that claims more pixels than the file can hold."""
    page = series.keyframe
    size = path.stat().st_size
    # A damaged file may give several numbers of bits, although all samples have the same type.
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8 * series.dtype.itemsize
    claimed = math.prod(series.shape) * bits // 8
    believable = size if page.compression == 1 else max(2**30, _LARGEST_RATIO * size)
    if claimed > believable and not series.is_multifile:
        raise ImageError(f"{path.name} claims {math.prod(series.shape):,} values ({claimed:,} bytes), "
                         f"but the file has {size:,} bytes", "It is truncated or damaged: get it again")


def _check_pieces(path: Path, page: tifffile.TiffPage | tifffile.TiffFrame) -> None:
    """Refuse strips or tiles that claim more bytes than the file has: to read them takes the memory they claim."""
    size, longest = path.stat().st_size, max(page.databytecounts, default=0)
    if longest > size:
        raise ImageError(f"{path.name} claims a strip or tile of {longest:,} bytes, but the file has {size:,} bytes",
                         "It is truncated or damaged: get it again")


def _tiff_data(path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Any:
    if series.dataoffset is not None and not series.is_multifile and series.transform is None:
        dtype = series.dtype.newbyteorder(tiff.byteorder)
        return np.memmap(path, dtype, "r", series.dataoffset, tuple(series.shape))
    n_pieces, n_there = math.prod(series.keyframe.chunked), len(series.keyframe.dataoffsets)
    if n_there < n_pieces:
        raise ImageError(f"{path.name} announces {n_pieces:,} strips or tiles a page, but says where {n_there:,} are",
                         "It is truncated or damaged: get it again")
    if not series.is_multifile:
        _check_pieces(path, series.keyframe)
    if series.keyframe.nbytes <= _LARGEST_PAGE and _pages_fill(series):
        return _TiffPages(path, tiff, series)
    zarr = _zarr(path, f"{path.name} is compressed and large, reading it piece by piece")
    return _Guarded(path, "TIFF", zarr.open(tiff.aszarr(series=0, level=0), mode="r"))


def _pages_fill(series: tifffile.TiffPageSeries) -> bool:
    """Whether the last axes of the series are those of a page, and the pages make up the others."""
    page = series.keyframe.shape
    split = len(series.shape) - len(page)
    return series.shape[split:] == page and math.prod(series.shape[:split]) == len(series.pages)


class _TiffPages:
    """Compressed pages as one lazy array; a page is decoded whole, the last few are kept."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
        self.shape = tuple(int(n) for n in series.shape)
        self.dtype = series.dtype
        self._path = path
        self._pages = series.pages
        self._page_shape = series.keyframe.shape
        self._lock = threading.Lock()
        self._page: Callable[[int], NDArray[Any]] = lru_cache(max(1, _PAGE_CACHE // series.keyframe.nbytes))(
            self._decoded)
        weakref.finalize(self, tiff.close)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        n_stack = self.ndim - len(self._page_shape)
        key = _full_key(key, self.ndim)
        numbers = np.arange(len(self._pages)).reshape(self.shape[:n_stack])[key[:n_stack]]
        # An empty selection still has a shape, which any page tells.
        windows = [self._page(int(number))[key[n_stack:]] for number in np.ravel(numbers)]
        window_shape = np.shape(windows[0] if windows else self._page(0)[key[n_stack:]])
        return np.array(windows, self.dtype).reshape(np.shape(numbers) + window_shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)

    def _decoded(self, number: int) -> NDArray[Any]:
        with _reading(self._path, "TIFF"), self._lock:
            page = self._pages[number]
            if page is None:
                # A page that an OME file announces and does not hold is black, as the OME model says.
                return np.zeros(self._page_shape, self.dtype)
            _check_pieces(Path(page.parent.filehandle.path), page)
            return page.asarray()


def _full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    parts = key if isinstance(key, tuple) else (key,)
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts = (*parts[:at], *[slice(None)] * (ndim - len(parts) + 1), *parts[at + 1 :])
    return (*parts, *[slice(None)] * (ndim - len(parts)))


def _tiff_axes(axes: str) -> str | None:
    if "S" in axes and not axes.endswith("S"):
        axes = axes.replace("S", "C")  # colours plane by plane are channels
    if "Z" not in axes:
        axes = axes.replace("I", "Z")  # pages of a file that says nothing about them
    return axes if set(axes) <= set("TCZYXS") else None


def _tiff_alpha(series: tifffile.TiffPageSeries) -> bool:
    return "S" in series.axes and series.keyframe.extrasamples[-1:] in ((1,), (2,))


def _tiff_pixel_size(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> PixelSize:
    if tiff.is_ome:
        return _ome_pixel_size(tiff.ome_metadata or "")
    per_unit_x, per_unit_y = series.keyframe.resolution
    y, x = (1 / float(n) if n else math.nan for n in (per_unit_y, per_unit_x))
    if tiff.is_imagej:
        metadata = tiff.imagej_metadata or {}
        return _pixel_size(y, x, metadata.get("spacing"), str(metadata.get("unit", "")))
    size = _pixel_size(y, x, None, {2: "inch", 3: "cm"}.get(int(series.keyframe.resolutionunit), ""))
    return size if size.unit == "µm" and max(size.y, size.x) <= _LARGEST_UNNAMED_PIXEL else PixelSize(1.0, 1.0)


def _ome_pixel_size(xml: str) -> PixelSize:
    for element in ElementTree.fromstring(xml).iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            sizes = {letter: _micrometres(element.get(f"PhysicalSize{letter}"),
                                          element.get(f"PhysicalSize{letter}Unit", "µm")) for letter in "XYZ"}
            return _pixel_size(sizes["Y"], sizes["X"], sizes["Z"], "µm")
    return PixelSize(1.0, 1.0)


def _pixel_size(y: Any, x: Any, z: Any, unit: str) -> PixelSize:
    """Micrometres where the unit is a known length and the numbers make sense, else pixels."""
    values = [_micrometres(value, unit) for value in (y, x, z)]
    if values[0] is not None and values[1] is not None:
        return PixelSize(values[0], values[1], values[2], "µm")
    return PixelSize(1.0, 1.0)


def _micrometres(value: Any, unit: str) -> float | None:
    factor = _MICROMETRES.get(unit.strip().lower())
    try:
        micrometres = float(value) * factor if factor else math.nan
    except (TypeError, ValueError):
        return None
    return micrometres if 0 < micrometres < math.inf else None


# ------------------------------------------------------------------------------------------------ other kinds


def _open_npy(path: Path) -> _Source:
    with _reading(path, "npy"):
        data = np.load(path, mmap_mode="r", allow_pickle=False)
        return _Source(data, "YX" if data.ndim == 2 else None, PixelSize(1.0, 1.0))


def _open_picture(path: Path, keep_palette: bool) -> _Source:
    from PIL import Image, UnidentifiedImageError

    with _reading(path, "an image"):
        try:
            picture = Image.open(path, formats=_PICTURES)
        except UnidentifiedImageError as error:
            raise ImageError(f"{path.name} is no image of a known kind",
                             "Give TIFF, OME-Zarr, npy, PNG or JPEG") from error
        with picture:
            plain = {"LA": "L", "P": "P" if keep_palette else "RGB"}.get(picture.mode, picture.mode)
            colours = plain not in {"1", "L", "P", "F"} and not plain.startswith("I")
            plain = "RGB" if colours else plain  # the alpha of RGBA is dropped
            data = np.asarray(picture if plain == picture.mode else picture.convert(plain))
        return _Source(data, "YXS" if colours else "YX", PixelSize(1.0, 1.0), names_axes=True)


def _open_zarr(path: Path) -> _Source:
    zarr = _zarr(path, f"{path.name} is a folder, reading it as zarr")
    with _reading(path, "zarr"):
        node = zarr.open(str(path), mode="r")
        if hasattr(node, "shape"):
            return _Source(_Guarded(path, "zarr", node), "YX" if node.ndim == 2 else None, PixelSize(1.0, 1.0))
        attributes = dict(node.attrs)
        multiscales = attributes.get("ome", attributes).get("multiscales")
        if not multiscales:
            raise ImageError(f"{path.name} holds no image", "Give a zarr array, or an OME-Zarr image")
        largest = multiscales[0]["datasets"][0]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscales[0].get("axes", "tczyx")]
        letters = "".join(str(axis["name"]).upper() for axis in axes)
        data = _Guarded(path, "zarr", node[largest["path"]])
        return _Source(data, letters, _zarr_pixel_size(largest, axes), names_axes=True)


def _zarr_pixel_size(dataset: dict[str, Any], axes: list[dict[str, Any]]) -> PixelSize:
    scales = [t["scale"] for t in dataset.get("coordinateTransformations", []) if t.get("type") == "scale"]
    if not scales:
        return PixelSize(1.0, 1.0)
    sizes = {str(axis["name"]).upper(): _micrometres(value, str(axis.get("unit", "")))
             for axis, value in zip(axes, scales[0], strict=True)}
    return _pixel_size(sizes.get("Y"), sizes.get("X"), sizes.get("Z"), "µm")


class _Guarded:
    """A lazy array whose read errors name its file."""

    def __init__(self, path: Path, kind: str, data: Any) -> None:
        self.shape = tuple(int(n) for n in data.shape)
        self.dtype = np.dtype(data.dtype)
        self._path, self._kind, self._data = path, kind, data

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        with _reading(self._path, self._kind):
            return np.asarray(self._data[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)


def _zarr(path: Path, why: str) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImageError(f"{why} needs the package zarr", "Install it: pip install zarr") from error
    return zarr
