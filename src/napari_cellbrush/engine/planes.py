"""Images as CYX planes, read lazily, and the statistics by which they are normalised.

Whatever holds the pixels (numpy, dask, zarr, a memory-mapped file), only the windows asked for are read. Training
and inference normalise through the same function, so they can never differ.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_cellbrush.engine.axes import check_axes
from napari_cellbrush.errors import ImageError

#: Percentiles that become -1 and 1; robust against dead pixels below and debris above.
PERCENTILES = (1.0, 99.8)
#: Normalised values beyond these say nothing more than "very dark" and "very bright".
LIMITS = (-2.0, 4.0)
#: Pixels per channel that the statistics are measured on, at most.
SAMPLE_PIXELS = 2048**2
#: The same for all channels together, so that many of them still fit the memory.
SAMPLE_VALUES = 4 * SAMPLE_PIXELS
#: Side of the windows of which a large image's sample is made.
SAMPLE_WINDOW = 256
#: Side of the window that tells images apart.
_MIDDLE = 64
#: Side of the windows in which a plane is looked through.
CHECK_WINDOW = 1024


@dataclass(frozen=True)
class Normalisation:
    """Per channel, the values that become -1 and 1."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """CYX float32 in, CYX float32 in [-2, 4] out; a channel without contrast becomes 0."""
        low, high = (np.array(v, np.float32)[:, None, None] for v in (self.low, self.high))
        contrast = high > low
        scale = np.where(contrast, 2 / np.where(contrast, high - low, 1), 0).astype(np.float32)
        scaled = (image - low) * scale
        scaled -= contrast
        return np.clip(scaled, *LIMITS, out=scaled)


class Planes:
    """A lazily read image as a stack of CYX planes.

    Parameters
    ----------
    data
        Anything with shape, dtype and basic slicing.
    axes
        One letter of TCZYXS per axis of ``data``.
    name
        For messages.
    alpha
        Whether the last sample (S or C) says how opaque a pixel is drawn, which says nothing about the cell and is
        never read. If not given, four colour samples (S) are taken for RGBA.

    Raises
    ------
    ImageError
        If axes and shape do not fit, the image is empty, or its type holds no plain numbers.
    """

    def __init__(self, data: Any, axes: str, name: str = "image", *, alpha: bool | None = None) -> None:
        self.data = data
        self.name = name
        self.axes = check_axes(axes, data.shape)
        if 0 in data.shape:
            raise ImageError(f"The image '{name}' of shape {tuple(data.shape)} is empty", "Choose another image")
        if np.dtype(data.dtype).kind not in "buif":
            raise ImageError(f"The image '{name}' holds values of type {data.dtype}", "Convert it to whole numbers "
                             "or floats")
        sizes = dict(zip(self.axes, data.shape, strict=True))
        self.stack_axes = "".join(letter for letter in self.axes if letter in "TZ")
        self.stack_shape: tuple[int, ...] = tuple(int(sizes[letter]) for letter in self.stack_axes)
        self.shape_yx: tuple[int, int] = (int(sizes["Y"]), int(sizes["X"]))
        n_samples = int(sizes.get("C", sizes.get("S", 1)))
        is_rgba = sizes.get("S") == 4 if alpha is None else alpha and n_samples > 1
        self.n_channels = n_samples - 1 if is_rgba else n_samples
        self._lock = threading.Lock()
        self._normalisation: Normalisation | None = None

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """The shape of labels of this image: stack axes, then Y and X."""
        return self.stack_shape + self.shape_yx

    def indices(self) -> list[tuple[int, ...]]:
        """Indices of all planes along the stack axes; ``[()]`` for a single plane."""
        return list(itertools.product(*(range(n) for n in self.stack_shape)))

    def read(self, index: tuple[int, ...], rows: slice, columns: slice) -> NDArray[np.float32]:
        """A window of one plane, CYX float32; rows and columns lie inside the image.

        Raises
        ------
        ImageError
            If the window holds NaN or infinite values, or values beyond the range of float32.
        """
        place: dict[str, Any] = dict(zip(self.stack_axes, index, strict=True))
        place |= {"Y": rows, "X": columns, "C": slice(self.n_channels), "S": slice(self.n_channels)}
        try:
            raw = np.asarray(self.data[tuple(place[letter] for letter in self.axes)])
        except OSError as error:
            raise ImageError(f"The image '{self.name}' cannot be read at plane {index}, row {rows.start}, column "
                             f"{columns.start}: {error}", "Check that its file is whole and can be reached") from error
        left = [letter for letter in self.axes if letter not in self.stack_axes]
        if "C" in left or "S" in left:
            order = [left.index("C" if "C" in left else "S"), left.index("Y"), left.index("X")]
            raw = raw.transpose(order)
        else:
            raw = raw.transpose([left.index("Y"), left.index("X")])[None]
        with np.errstate(over="ignore"):
            window = np.ascontiguousarray(raw, dtype=np.float32)
        if raw.dtype.kind == "f" and not np.isfinite(window).all():
            raise ImageError(f"The image '{self.name}' holds NaN or infinite values (plane {index}, near row "
                             f"{rows.start}, column {columns.start})", "Replace them with numbers, for example by 0")
        return window

    def check(self, index: tuple[int, ...]) -> None:
        """Read a whole plane once, window by window, to find now what could not be read later.

        Raises
        ------
        ImageError
            As :meth:`read` does.
        """
        for top in range(0, self.shape_yx[0], CHECK_WINDOW):
            for left in range(0, self.shape_yx[1], CHECK_WINDOW):
                self.read(index, *(slice(start, min(start + CHECK_WINDOW, length))
                                   for start, length in zip((top, left), self.shape_yx, strict=True)))

    def read_mirrored(self, index: tuple[int, ...], top: int, left: int, height: int,
                      width: int) -> NDArray[np.float32]:
        """A window that may stick out of the image, which is mirrored at its borders (Ronneberger 2015, figure 2).

        The border pixel itself is not repeated; one row or column alone is.
        """
        if top >= 0 and left >= 0 and top + height <= self.shape_yx[0] and left + width <= self.shape_yx[1]:
            return self.read(index, slice(top, top + height), slice(left, left + width))
        rows, columns = mirrored(top, height, self.shape_yx[0]), mirrored(left, width, self.shape_yx[1])
        first_row, first_column = int(rows.min()), int(columns.min())
        window = self.read(index, slice(first_row, int(rows.max()) + 1), slice(first_column, int(columns.max()) + 1))
        return window[:, (rows - first_row)[:, None], columns - first_column]

    def normalisation(self) -> Normalisation:
        """Measured once, then kept; safe to call from several threads."""
        with self._lock:
            if self._normalisation is None:
                self._normalisation = measure_normalisation(self)
            return self._normalisation

    def fingerprint(self) -> str:
        """What tells this image from others, whatever it is called: its size, and the pixels in its middle."""
        size = [n for n in (*self.spatial_shape, self.n_channels) if n > 1]
        middle = (slice(max(0, n // 2 - _MIDDLE // 2), n // 2 + _MIDDLE // 2 + 1) for n in self.shape_yx)
        pixels = self.read(tuple(n // 2 for n in self.stack_shape), *middle)
        return hashlib.blake2b(f"{size}".encode() + pixels.tobytes(), digest_size=8).hexdigest()


def mirrored(start: int, size: int, length: int) -> NDArray[np.intp]:
    """Positions start … start + size − 1 folded into 0 … length − 1 by mirrors at the first and last pixel."""
    positions = np.arange(start, start + size)
    if length == 1:
        return np.zeros_like(positions)
    folded = np.abs(positions) % (2 * (length - 1))
    inside: NDArray[np.intp] = np.minimum(folded, 2 * (length - 1) - folded)
    return inside


def measure_normalisation(planes: Planes) -> Normalisation:
    """Percentiles 1 and 99.8 of each channel, on the whole image or on windows spread evenly over it.

    Raises
    ------
    ImageError
        If no channel has any contrast, or the image holds NaN or infinite values.
    """
    sample = _sample(planes)
    low, high = np.percentile(sample, PERCENTILES, axis=1)
    flat = low == high
    if flat.any():
        # Nearly all pixels are equal (few bright spots on black): take the extremes, of the whole image if need be.
        lowest, highest = sample.min(axis=1), sample.max(axis=1)
        if (lowest == highest).all():
            lowest, highest = _extremes(planes)
        low, high = np.where(flat, lowest, low), np.where(flat, highest, high)
    if (low == high).all():
        raise ImageError(f"The image '{planes.name}' is constant: every pixel is {low[0]:g}",
                         "Choose an image that shows something, or check its channel and axes")
    return Normalisation(tuple(float(v) for v in low), tuple(float(v) for v in high))


def _n_windows(planes: Planes) -> tuple[int, int, int]:
    """How many windows tile the image: planes, down, across."""
    height, width = planes.shape_yx
    return math.prod(planes.stack_shape), -(-height // SAMPLE_WINDOW), -(-width // SAMPLE_WINDOW)


def _window(planes: Planes, number: int) -> NDArray[np.float32]:
    """One of those windows, C and pixels. Numbered rather than listed: a long stack has millions."""
    plane, row, column = np.unravel_index(number, _n_windows(planes))
    index = tuple(int(i) for i in np.unravel_index(plane, planes.stack_shape)) if planes.stack_shape else ()
    top, left = int(row) * SAMPLE_WINDOW, int(column) * SAMPLE_WINDOW
    rows = slice(top, min(top + SAMPLE_WINDOW, planes.shape_yx[0]))
    columns = slice(left, min(left + SAMPLE_WINDOW, planes.shape_yx[1]))
    return planes.read(index, rows, columns).reshape(planes.n_channels, -1)


def _extremes(planes: Planes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value of each channel, over every pixel."""
    windows = (_window(planes, number) for number in range(math.prod(_n_windows(planes))))
    ends = [(window.min(axis=1), window.max(axis=1)) for window in windows]
    return np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)


def _sample(planes: Planes) -> NDArray[np.float32]:
    """Pixels of the whole of a small image, or of windows that cover a large one evenly; C and pixels."""
    n_windows = math.prod(_n_windows(planes))
    n_pixels = math.prod(planes.spatial_shape)
    share = min(SAMPLE_PIXELS, SAMPLE_VALUES // planes.n_channels) / n_pixels
    if share >= 1:
        picks = list(range(n_windows))
    else:
        # The golden ratio spreads picks without falling into step with rows of windows.
        n_picks = max(1, round(n_windows * share))
        picks = sorted({int(n_windows * ((k * 0.6180339887498949) % 1)) for k in range(n_picks)})
    return np.concatenate([_window(planes, number) for number in picks], axis=1)
