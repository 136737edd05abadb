"""What is known of every pixel before anybody paints: features, computed once and kept while there is room.

Two kinds lie side by side. The levels of a frozen U-Net's expanding path know shapes and surroundings; filters
(smoothing, edges, ridges, spread of the grey values) know what no network was trained to keep. Both come as a pyramid:
at stride s, cell c covers the network's pixels from s·c + 2 on, where the unpadded convolutions of a level put it.

Features live in network pixels, see :mod:`.resampling`. They come in tiles of one fixed grid, so that panning finds
again what was computed before, and no feature depends on its tile.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from napari_cellbrush.config import InferenceConfig
from napari_cellbrush.engine.device import Device
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.predictor import TilePredictor
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.tiling import Region, Tile, grid_tiles

#: Side of a tile in network pixels; less waits shorter for the first answer, more computes fewer margins.
TILE_PX = 256
#: A tile answers one row and column more than its own, for whoever interpolates between its pixels.
_SPARE_PX = 1
#: Standard deviations of the filters, in cells of each level. With levels a factor of two apart they cover scales from
#: one pixel to a dozen evenly.
_SIGMAS = (1.0, 1.6)
#: Filters at one scale, see :func:`_filters`.
_FILTERS = 5
#: What all features of a level count for together, against one filter (measured, see benchmarks/instant.py).
_LEVEL_TRUST = 2.0
#: Kernels end here, in standard deviations.
_TRUNCATE = 3.0
#: The largest number that half precision holds.
_LARGEST = 65504.0

#: Plane, and the first row and column of a tile.
Key = tuple[tuple[int, ...], int, int]


@dataclass(frozen=True, eq=False)
class FeatureTile:
    """Features of one tile.

    Attributes
    ----------
    place
        Which network pixels it is about.
    levels
        One YXF float16 array per stride 1, 2, 4, …; element (0, 0) at stride s is the cell that covers the network's
        pixels from ``place.rows.start`` − 2(s − 1) on.
    """

    place: Tile
    levels: tuple[NDArray[np.float16], ...]

    @property
    def n_bytes(self) -> int:
        """Memory it takes."""
        return sum(level.nbytes for level in self.levels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each level."""
        return tuple(level.shape[-1] for level in self.levels)

    def at(self, rows: NDArray[np.floating], columns: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features NF at points of the tile, interpolated linearly between cells, all levels in a row.

        Parameters
        ----------
        rows, columns
            N positions each, in network pixels of the image.
        """
        return np.concatenate([
            _interpolated(level, *(_cells(at - start, 1 << number) for at, start in (
                (rows, self.place.rows.start), (columns, self.place.columns.start))))
            for number, level in enumerate(self.levels)], axis=1)


def _cells(pixels: NDArray[np.floating], stride: int) -> NDArray[np.float64]:
    """Where pixels of a tile lie, in cells of a level."""
    return (np.asarray(pixels, np.float64) + 2 * (stride - 1) + 0.5) / stride - 0.5


def _interpolated(level: NDArray[np.float16], rows: NDArray[np.float64],
                  columns: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values NF between the cells of a YXF level."""
    first_row, first_column = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down, across = rows - first_row, columns - first_column
    found = np.zeros((len(rows), level.shape[-1]), np.float32)
    for step_down, share_down in ((0, 1 - down), (1, down)):
        for step_across, share_across in ((0, 1 - across), (1, across)):
            share = (share_down * share_across).astype(np.float32)
            if share.any():  # a pixel of the finest level lies on its cell
                found += share[:, None] * level[np.minimum(first_row + step_down, level.shape[0] - 1),
                                                np.minimum(first_column + step_across, level.shape[1] - 1)]
    return found


class FeatureSource:
    """Features of an image, tile by tile; safe to ask from several threads.

    Parameters
    ----------
    model
        Whose expanding path is used; it may be for any number of channels.
    planes
        The image.
    scale
        Network pixels per image pixel.
    device
        Where to compute. Features are kept in the computer's memory.
    budget_bytes
        For all tiles kept; those unused for longest go first, and are computed again when they are wanted.
    """

    def __init__(self, model: Model, planes: Planes, scale: float, device: Device, budget_bytes: int) -> None:
        model = model.for_channels(planes.n_channels)
        self.image = Resampled(planes, scale)
        self.geometry = model.network.geometry
        self.device = device
        self._base_filters = model.network.base_filters
        self._normalisation = planes.normalisation()
        self._predictor = TilePredictor(model, self._normalisation, device, InferenceConfig())
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, FeatureTile] = OrderedDict()

    @property
    def importance(self) -> NDArray[np.float32]:
        """F: how far each feature is trusted before anybody painted, see :func:`.instant.fit`.

        A level has as much to say as a few filters, however many features it has: hundreds of them, each with the
        weight of a filter, would explain any few strokes by chance.
        """
        n_filters = self.image.n_channels * _FILTERS * len(_SIGMAS)
        n_learnt = [self._base_filters << level for level in range(self.geometry.depth)]
        return np.concatenate([np.repeat([_LEVEL_TRUST / math.sqrt(n), 1.0], [n, n_filters])
                               for n in n_learnt]).astype(np.float32)

    def tiles(self, region: Region) -> list[Tile]:
        """The tiles of the grid that show any of a region's image pixels."""
        rows, columns = (slice(*part.indices(size)) for part, size in zip(
            region, self.image.planes.shape_yx, strict=True))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return []
        side = max(1, TILE_PX // self.geometry.stride) * self.geometry.stride
        return grid_tiles(self.image.network_window(rows, columns), self.image.shape_yx, self.geometry, side, _SPARE_PX)

    def has(self, index: tuple[int, ...], tile: Tile) -> bool:
        """Whether features need not be computed."""
        return key_of(index, tile) in self._kept

    def features(self, index: tuple[int, ...], tile: Tile, *, keep: bool = True) -> FeatureTile:
        """Features of a tile of one plane, kept ones if possible.

        Parameters
        ----------
        index, tile
            Which one.
        keep
            Make room for it, by forgetting others. If not, it is kept only if there is room.

        Raises
        ------
        ImageError
            If the image holds NaN or infinite values, or cannot be read.
        """
        key = key_of(index, tile)
        with self._lock:
            found = self._kept.pop(key, None)
            known = found is not None
            found = found or self._computed(index, tile)
            if keep or known or self.n_bytes + found.n_bytes <= self._budget:
                self._kept[key] = found
                self._forget_oldest()
            return found

    @property
    def n_bytes(self) -> int:
        """Memory that the kept tiles take."""
        return sum(tile.n_bytes for tile in tuple(self._kept.values()))

    def _forget_oldest(self) -> None:
        n_bytes = self.n_bytes
        while n_bytes > self._budget and len(self._kept) > 1:
            n_bytes -= self._kept.popitem(last=False)[1].n_bytes

    def _computed(self, index: tuple[int, ...], tile: Tile) -> FeatureTile:
        window = self.image.read_mirrored(index, tile.top, tile.left, tile.height, tile.width)
        decoded = self._predictor.decoded(window)
        filtered = _filtered(torch.from_numpy(self._normalisation.apply(window)), self.geometry, len(decoded))
        return FeatureTile(tile, tuple(_half(torch.cat([level.cpu().float(), filters], dim=-1))
                                       for level, filters in zip(decoded, filtered, strict=True)))


def key_of(index: tuple[int, ...], tile: Tile) -> Key:
    """What a tile of a plane is known by."""
    return index, tile.top, tile.left


def _half(level: Tensor) -> NDArray[np.float16]:
    kept: NDArray[np.float16] = level.clamp(-_LARGEST, _LARGEST).to(torch.float16).contiguous().numpy()
    return kept


# ----------------------------------------------------------------------------------------------------- filters


@torch.inference_mode()
def _filtered(image: Tensor, geometry: UNetGeometry, n_levels: int) -> list[Tensor]:
    """Filters of every channel of a normalised window CYX, on the cells of each level: YXF float32, finest first."""
    n_pixels = [geometry.output_size(size) for size in image.shape[1:]]
    return [_level_filters(image, geometry.margin, 1 << number, n_pixels) for number in range(n_levels)]


def _level_filters(image: Tensor, margin: int, stride: int, n_pixels: list[int]) -> Tensor:
    reach = _reach(_SIGMAS[-1])
    # The first cell begins 2(s − 1) pixels before the first answered one; filters look some cells further.
    first = margin - 2 * (stride - 1) - reach * stride
    n_cells = [(n + 4 * (stride - 1)) // stride + 2 * reach for n in n_pixels]
    height, width = (n * stride for n in n_cells)
    cells = functional.avg_pool2d(image[:, first : first + height, first : first + width][:, None], stride)
    maps = [part for sigma in _SIGMAS for part in _filters(cells, sigma, reach)]
    return torch.cat(maps, dim=1).flatten(0, 1).permute(1, 2, 0)


def _filters(cells: Tensor, sigma: float, reach: int) -> list[Tensor]:
    """Smoothed value, edge, both curvatures (Hessian's eigenvalues), spread; of C1YX without ``reach`` cells around."""
    smoothed, down, across, down2, across2, mixed = (
        _derivative(cells, sigma, reach, *orders) for orders in ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1)))
    edge = torch.hypot(down, across)
    mean, half_gap = (down2 + across2) / 2, torch.hypot((down2 - across2) / 2, mixed)
    variance = _derivative(cells * cells, sigma, reach, 0, 0) - smoothed * smoothed
    return [smoothed, edge, mean + half_gap, mean - half_gap, variance.clamp(min=0).sqrt()]


def _derivative(cells: Tensor, sigma: float, reach: int, down: int, across: int) -> Tensor:
    """A derivative of Gaussian-smoothed cells; all have the same reach, so that their results lie on each other."""
    rows = functional.conv2d(cells, _kernel(sigma, reach, down)[None, None, :, None])
    return functional.conv2d(rows, _kernel(sigma, reach, across)[None, None, None, :])


@cache
def _kernel(sigma: float, reach: int, order: int) -> Tensor:
    """A sampled derivative of a Gaussian, times σ^order, so that all scales answer alike strongly (Lindeberg 1998)."""
    x = np.arange(-reach, reach + 1) / sigma
    gauss = np.exp(-(x**2) / 2)
    gauss /= gauss.sum()
    # A convolution of torch is a correlation: odd kernels are not mirrored.
    values = (gauss, x * gauss, (x**2 - 1) * gauss)[order]
    if order == 2:
        values = values - values.mean()  # a constant image has no curvature
    return torch.from_numpy(values.astype(np.float32))


def _reach(sigma: float) -> int:
    return math.ceil(_TRUNCATE * sigma)
