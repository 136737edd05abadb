"""The overlap-tile plan: which windows to read and which pixels each one answers.

Numbers only. Output windows start at multiples of the network's stride, counted from the image's origin even for a
region of it, so that every run pools the same pixels together and a pixel's result never depends on its tile
(Ronneberger, Fischer, Brox 2015, figure 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from napari_cellbrush.engine.geometry import UNetGeometry

#: Rows and columns, both with a start and a stop.
Region = tuple[slice, slice]


@dataclass(frozen=True)
class Tile:
    """One tile: the pixels it answers, inside the image, and the window it reads, which may stick out."""

    rows: slice
    columns: slice
    top: int
    left: int
    height: int
    width: int


def relative_to(part: Region, whole: Region) -> Region:
    """Where a part of an image lies in an array that holds ``whole`` of it."""
    rows, columns = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))
    return rows, columns


def plan_tiles(
    region: Region,
    geometry: UNetGeometry,
    tile_size: int,
    centre: tuple[float, float] | None = None,
    spare_px: int = 0,
) -> list[Tile]:
    """Tiles that answer each pixel of ``region`` exactly once.

    Parameters
    ----------
    region
        Rows and columns, inside the image.
    geometry
        Of the network.
    tile_size
        Largest side of the windows to read, in pixels; at least one stride of output is always answered.
    centre
        Row and column from which tiles are ordered outwards; the region's centre if not given.
    spare_px
        Pixels, at most 4, that each tile is to answer beyond its last row and column.
    """
    rows, columns = region
    if centre is None:
        centre = ((rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2)
    tiles = [_tile(row, column, geometry, spare_px)
             for row in _spans(rows, geometry, tile_size, spare_px)
             for column in _spans(columns, geometry, tile_size, spare_px)]
    return sorted(tiles, key=lambda tile: _distance(tile, centre))


def grid_tiles(region: Region, shape: tuple[int, int], geometry: UNetGeometry, side: int,
               spare_px: int = 0) -> list[Tile]:
    """The tiles of one fixed grid that ``region`` touches, whole: all regions of an image share them.

    Parameters
    ----------
    region
        Rows and columns, inside the image.
    shape
        Rows and columns of the image.
    geometry
        Of the network.
    side
        Of the tiles, in answered pixels; a multiple of the network's stride.
    spare_px
        Pixels, at most 4, that each tile is to answer beyond its last row and column.
    """
    down, across = ([(start, slice(start, min(start + side, size)))
                     for start in range(part.start // side * side, part.stop, side)]
                    for part, size in zip(region, shape, strict=True))
    return [_tile(row, column, geometry, spare_px) for row in down for column in across]


def nearest_first(tiles: list[Tile], view: tuple[slice, slice], centre: tuple[float, float]) -> list[Tile]:
    """Tiles that a view shows from its centre outwards, then the others, nearest first."""
    def seen(tile: Tile) -> bool:
        return all(part.start < shown.stop and shown.start < part.stop
                   for part, shown in zip((tile.rows, tile.columns), view, strict=True))

    return sorted(tiles, key=lambda tile: (not seen(tile), _distance(tile, centre)))


def output_step(geometry: UNetGeometry, tile_size: int) -> int:
    """Output pixels per tile side, a multiple of the stride, for windows of at most ``tile_size``."""
    blocks = (tile_size - 2 * geometry.margin) // geometry.stride
    return max(1, blocks) * geometry.stride


def _spans(region: slice, geometry: UNetGeometry, tile_size: int, spare_px: int) -> list[tuple[int, slice]]:
    """Aligned starts with the part of the region each answers; equally long rather than a full and a tiny one.

    A network answers 4 pixels more than a multiple of its stride. Those at the end are useful to the last tile alone.
    """
    if region.stop <= region.start:
        return []
    stride = geometry.stride
    first = region.start // stride * stride
    extent = max(1, region.stop + spare_px - first - 4)
    n_tiles = -(-extent // output_step(geometry, tile_size))
    step = -(-extent // (n_tiles * stride)) * stride
    starts = range(first, first + extent, step)
    return [(start, slice(max(start, region.start), region.stop if start == starts[-1] else start + step))
            for start in starts]


def _tile(row: tuple[int, slice], column: tuple[int, slice], geometry: UNetGeometry, spare_px: int) -> Tile:
    (top, rows), (left, columns) = row, column
    return Tile(rows, columns, top - geometry.margin, left - geometry.margin,
                geometry.input_size_for(rows.stop + spare_px - top),
                geometry.input_size_for(columns.stop + spare_px - left))


def _distance(tile: Tile, centre: tuple[float, float]) -> float:
    row, column = (tile.rows.start + tile.rows.stop) / 2, (tile.columns.start + tile.columns.stop) / 2
    return math.hypot(row - centre[0], column - centre[1])
