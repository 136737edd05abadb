"""Images seen at another scale, and answers brought back to the image's own pixels.

A network knows objects of one size. An image of larger or smaller ones is read through :class:`Resampled`, whose
pixels are computed window by window and depend on their absolute position alone: no tile changes a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from napari_cellbrush.engine.planes import Normalisation, Planes


@dataclass(frozen=True)
class Resampled:
    """A lazily read image at ``scale`` times its size: pixel j of it lies at (j + ½) / scale − ½ of the image.

    Reduced images are low-pass filtered (triangle as wide as two new pixels), enlarged ones are interpolated
    linearly.

    Parameters
    ----------
    planes
        The image.
    scale
        Network pixels per image pixel along each axis.
    """

    planes: Planes
    scale: float

    @property
    def name(self) -> str:
        """Of the image, for messages."""
        return self.planes.name

    @property
    def n_channels(self) -> int:
        """Of the image."""
        return self.planes.n_channels

    @property
    def shape_yx(self) -> tuple[int, int]:
        """In network pixels; at least 1."""
        height, width = (max(1, round(size * self.scale)) for size in self.planes.shape_yx)
        return height, width

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Stack axes, then Y and X in network pixels."""
        return self.planes.stack_shape + self.shape_yx

    def normalisation(self) -> Normalisation:
        """Of the image itself, so that the scale changes no grey value."""
        return self.planes.normalisation()

    def read_mirrored(self, index: tuple[int, ...], top: int, left: int, height: int,
                      width: int) -> NDArray[np.float32]:
        """A window CYX float32 in network pixels, which may stick out of the image; that is mirrored there."""
        if self.scale == 1:
            return self.planes.read_mirrored(index, top, left, height, width)
        (first_row, rows), (first_column, columns) = self._taps(top, height), self._taps(left, width)
        window = self.planes.read_mirrored(index, first_row, first_column, rows.shape[1], columns.shape[1])
        return np.stack([_both_ways(rows, columns, channel) for channel in window])

    def _taps(self, start: int, size: int) -> tuple[int, sparse.csr_array]:
        """The first image pixel that is needed, and weights: new pixels × image pixels from there."""
        reach = max(1.0, 1 / self.scale)
        centres = (np.arange(start, start + size) + 0.5) / self.scale - 0.5
        firsts = np.floor(centres - reach).astype(np.int64) + 1
        positions = firsts[:, None] + np.arange(math.ceil(2 * reach))
        weights = np.maximum(0, 1 - np.abs(positions - centres[:, None]) / reach)
        weights /= weights.sum(axis=1, keepdims=True)
        return _matrix(positions, weights)

    def image_window(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """The image's pixels that :meth:`to_image` answers for the network pixels ``rows`` and ``columns``.

        Windows that tile the network's pixels give windows that tile the image's.
        """
        return (self._image_span(rows, self.planes.shape_yx[0], self.shape_yx[0]),
                self._image_span(columns, self.planes.shape_yx[1], self.shape_yx[1]))

    def network_window(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Network pixels whose :meth:`image_window` covers these image pixels."""
        spans = zip((rows, columns), self.planes.shape_yx, self.shape_yx, strict=True)
        first, second = (self._network_span(span, n_image, n_network) for span, n_image, n_network in spans)
        return first, second

    def to_image(self, answers: NDArray[np.float32], rows: slice, columns: slice) -> NDArray[np.float32]:
        """Answers KYX for network pixels from ``rows.start`` and ``columns.start`` on, at the image's pixels.

        One row and column more than ``rows`` and ``columns`` have is used, where the network's image goes on.
        """
        if self.scale == 1:
            return answers[:, : rows.stop - rows.start, : columns.stop - columns.start]
        across = [self._back(span, n_image, n_network, n_given) for span, n_image, n_network, n_given in zip(
            (rows, columns), self.planes.shape_yx, self.shape_yx, answers.shape[1:], strict=True)]
        return np.stack([_both_ways(across[0], across[1], answer) for answer in answers])

    def network_points(self, rows: NDArray[np.integer],
                       columns: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where image pixels lie, in network pixels; :meth:`to_image` answers them from there."""
        first, second = (self._positions(n_image, n_network)[at] for at, n_image, n_network in zip(
            (rows, columns), self.planes.shape_yx, self.shape_yx, strict=True))
        return first, second

    def _positions(self, n_image: int, n_network: int) -> NDArray[np.float64]:
        """Of every image pixel, in network pixels."""
        inside = np.clip((np.arange(n_image) + 0.5) * self.scale - 0.5, 0, n_network - 1)
        return np.asarray(inside, np.float64)

    def _image_span(self, span: slice, n_image: int, n_network: int) -> slice:
        first, stop = np.searchsorted(self._positions(n_image, n_network), [span.start, span.stop])
        return slice(int(first), n_image if span.stop >= n_network else int(stop))

    def _network_span(self, span: slice, n_image: int, n_network: int) -> slice:
        if span.stop <= span.start:
            return slice(0, 0)
        floors = np.floor(self._positions(n_image, n_network)[[span.start, span.stop - 1]]).astype(int)
        return slice(int(floors[0]), n_network if span.stop >= n_image else int(floors[1]) + 1)

    def _back(self, span: slice, n_image: int, n_network: int, n_given: int) -> sparse.csr_array:
        wanted = self._image_span(span, n_image, n_network)
        positions = self._positions(n_image, n_network)[wanted]
        first = np.floor(positions).astype(np.int64)
        share = positions - first
        taps = np.minimum(np.stack([first, first + 1], axis=1), n_network - 1) - span.start
        return _matrix_of(taps, np.stack([1 - share, share], axis=1), n_given)


def _matrix(positions: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[int, sparse.csr_array]:
    first = int(positions.min())
    return first, _matrix_of(positions - first, weights, int(positions.max()) - first + 1)


def _matrix_of(columns: NDArray[np.int64], weights: NDArray[np.float64], n_columns: int) -> sparse.csr_array:
    """One row per new pixel. A sparse product adds up in the order of the taps, whatever else is in the window."""
    n_rows, n_taps = columns.shape
    ends = np.arange(0, n_rows * n_taps + 1, n_taps)
    return sparse.csr_array((weights.astype(np.float32).ravel(), columns.ravel(), ends), shape=(n_rows, n_columns))


def _both_ways(rows: sparse.csr_array, columns: sparse.csr_array, plane: NDArray[np.float32]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = np.ascontiguousarray((columns @ np.ascontiguousarray((rows @ plane).T)).T)
    return answer
