"""Run a model over an image, tile by tile: a generator of events.

Peak memory is one tile's features plus whatever the receiver keeps. The result does not depend on the tiles: they
are aligned to the network's poolings, read true context beyond their borders, and share one normalisation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from napari_cellbrush.config import InferenceConfig, OutputKind
from napari_cellbrush.engine.device import Device, choose_device, free_memory, is_out_of_memory
from napari_cellbrush.engine.diameter import object_diameter
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.object_blocks import number_objects
from napari_cellbrush.engine.objects import as_bytes
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.predictor import TilePredictor, most_probable, precision_of
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.tiling import Region, Tile, plan_tiles, relative_to
from napari_cellbrush.errors import OutOfMemory
from napari_cellbrush.events import (
    InferenceEvent,
    InferenceStarted,
    StopToken,
    TileSegmented,
    TileSizeReduced,
    run_to_end,
)

#: Output side of an automatic tile, in pixels. On a CPU larger tiles save margins, but their features leave the caches
#: and, from 32 MB a map, make the C library fetch fresh pages at every layer; measured best for all widths. A GPU wants
#: more work at once.
_AUTO_OUTPUT = {"cpu": 448, "cuda": 1344, "mps": 576}
#: Share of the free memory that one tile may take.
_MEMORY_SHARE = 0.25
#: Feature maps of the first level that are alive at once: skip, up-sampled, joined and convolved ones.
_LIVE_MAPS = 7
#: Halving stops at tiles that answer fewer strides than this: almost all their work would be margin.
_SMALLEST_STRIDES = 2


def segment_planes(
    model: Model,
    planes: Planes,
    *,
    config: InferenceConfig | None = None,
    device: Device | None = None,
    indices: Sequence[tuple[int, ...]] | None = None,
    region: tuple[slice, slice] | None = None,
    centre: tuple[float, float] | None = None,
    stop: StopToken | None = None,
) -> Generator[InferenceEvent, None, bool]:
    """Segment planes tile by tile, from ``centre`` outwards.

    Parameters
    ----------
    model
        Of the image's number of channels, or a base for any number.
    planes
        The image.
    config, device
        Settings, and where to compute; chosen if not given.
    indices, region
        The planes, and their rows and columns, to segment; all if not given.
    centre
        Row and column to begin with; the region's centre if not given.
    stop
        Looked at after every tile.

    Yields
    ------
    InferenceEvent
        First :class:`InferenceStarted`, then tiles.

    Returns
    -------
    bool
        True if everything was segmented, False if stopped before.

    Raises
    ------
    ModelError
        If the model does not fit the image.
    ImageError
        If the image holds NaN or infinite values, or has no contrast.
    OutOfMemory
        If not even the smallest tile fits.
    """
    config, device, stop = config or InferenceConfig(), device or choose_device(), stop or StopToken()
    model = model.for_channels(planes.n_channels)
    geometry = model.network.geometry
    diameter = object_diameter(model, planes, config.diameter_px, device, stop)
    source = Resampled(planes, model.card.scale_for(diameter))
    rows, columns = region or (slice(None), slice(None))
    # A view may reach beyond the image.
    region = slice(*rows.indices(planes.shape_yx[0])), slice(*columns.indices(planes.shape_yx[1]))
    plan = partial(plan_region, source, region, geometry, centre)
    predictor = TilePredictor(model, planes.normalisation(), device, config)
    tiles = plan(source.network_window(*region), tile_size(config, model, device))
    queue = deque((index, tile) for index in (planes.indices() if indices is None else indices) for tile in tiles)
    yield InferenceStarted(device.name, predictor.precision, len(queue), _side(tiles), diameter, source.scale)

    began = time.perf_counter()
    n_done = 0
    with _ReadAhead(source) as reader:
        while queue and not stop.stopped:
            (index, tile), following = queue[0], queue[1] if len(queue) > 1 else None
            try:
                probabilities = predictor.predict(reader.window(queue[0], following))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = _halved(_side([tile]), geometry, device, error)
                queue = deque((i, small) for i, large in queue for small in plan((large.rows, large.columns), size))
                yield TileSizeReduced(size, n_done + len(queue))
                continue
            queue.popleft()
            n_done += 1
            elapsed = time.perf_counter() - began
            progress = (n_done, n_done + len(queue))
            answered = answered_window(source, region, geometry, tile, probabilities)
            yield _segmented(index, answered, progress, elapsed)
    return not queue


def segment_array(
    model: Model,
    planes: Planes,
    output: OutputKind = "classes",
    *,
    config: InferenceConfig | None = None,
    device: Device | None = None,
    stop: StopToken | None = None,
) -> NDArray[np.generic]:
    """Segment a whole image into one array.

    Returns
    -------
    NDArray
        "classes": stack axes + YX uint8, 1…K. "probabilities": K + stack axes + YX float32. "objects": stack axes +
        YX uint16 or uint32, 0 background, ids from 1, different on every plane. Zero where a stop left no answer.
    """
    return run_to_end(segment_into_array(model, planes, output, config=config, device=device, stop=stop))


def segment_into_array(
    model: Model,
    planes: Planes,
    output: OutputKind = "classes",
    *,
    config: InferenceConfig | None = None,
    device: Device | None = None,
    stop: StopToken | None = None,
) -> Generator[InferenceEvent, None, NDArray[np.generic]]:
    """The same as :func:`segment_array`, for whoever wants to hear how far it is."""
    config, stop = config or InferenceConfig(), stop or StopToken()
    n_classes = 1 if output == "classes" else model.n_classes
    answers = np.zeros((n_classes, *planes.spatial_shape), np.float32 if output == "probabilities" else np.uint8)
    objects = config.objects
    for event in segment_planes(model, planes, config=config, device=device, stop=stop):
        if isinstance(event, InferenceStarted):
            objects = objects.at_scale(event.scale)
        elif isinstance(event, TileSegmented):
            place: tuple[int | slice, ...] = (slice(None), *event.plane, event.rows, event.columns)
            if output == "classes":
                answers[place] = event.classes
            else:
                answers[place] = as_bytes(event.probabilities) if output == "objects" else event.probabilities
        yield event
    if output == "objects":
        return number_objects(answers, model.card.classes, objects, stop=stop)
    return answers[0] if output == "classes" else answers


def tile_size(config: InferenceConfig, model: Model, device: Device) -> int:
    """Side of the windows to read, in pixels: the user's, or the one that is fast and fits the free memory."""
    geometry = model.network.geometry
    if config.tile_size_px:
        return max(config.tile_size_px, _smallest(geometry))
    bytes_per_pixel = _LIVE_MAPS * model.network.base_filters * precision_of(config, device).itemsize
    fitting = int((_MEMORY_SHARE * free_memory(device) / bytes_per_pixel) ** 0.5)
    return max(min(geometry.input_size_for(_AUTO_OUTPUT[device.kind]), fitting), _smallest(geometry))


def _smallest(geometry: UNetGeometry) -> int:
    return geometry.input_size_for(_SMALLEST_STRIDES * geometry.stride)


def _halved(size: int, geometry: UNetGeometry, device: Device, error: BaseException) -> int:
    if device.kind == "cuda":
        torch.cuda.empty_cache()
    if size <= _smallest(geometry):
        raise OutOfMemory(f"{device.name} has too little memory even for a tile of {size} px",
                          "Close other programs that use it, or choose the CPU") from error
    return max(size // 2, _smallest(geometry))


def _side(tiles: Sequence[Tile]) -> int:
    return max((max(tile.height, tile.width) for tile in tiles), default=0)


_Job = tuple[tuple[int, ...], Tile]


class _ReadAhead:
    """Reads the next window in a thread of its own while the device works on this one."""

    def __init__(self, planes: Resampled) -> None:
        self._planes = planes
        self._thread = ThreadPoolExecutor(1, "cellbrush-read")
        self._coming: tuple[_Job, Future[NDArray[np.float32]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def window(self, job: _Job, following: _Job | None) -> NDArray[np.float32]:
        """The window of ``job``, CYX float32; that of ``following`` is fetched meanwhile."""
        # After a change of tiles, what is coming may be a window that nobody wants any more.
        coming = self._coming[1] if self._coming and self._coming[0] == job else self._submit(job)
        self._coming = (following, self._submit(following)) if following else None
        return coming.result()

    def _submit(self, job: _Job) -> Future[NDArray[np.float32]]:
        index, tile = job
        return self._thread.submit(self._planes.read_mirrored, index, tile.top, tile.left, tile.height, tile.width)


def plan_region(source: Resampled, region: Region, geometry: UNetGeometry, centre: tuple[float, float] | None,
          window: Region, size: int) -> list[Tile]:
    """Tiles of network pixels; those that answer no image pixel of the region are left out."""
    middle = (centre[0] * source.scale, centre[1] * source.scale) if centre else None
    # To interpolate between its last pixel and the next tile's first one, a tile answers that one too.
    tiles = plan_tiles(window, geometry, size, middle, spare_px=int(source.scale != 1))
    return [tile for tile in tiles if all(part.start < part.stop for part in _wanted(source, region, tile))]


def _wanted(source: Resampled, region: Region, tile: Tile) -> Region:
    """Image pixels, inside the region, that a tile answers."""
    rows, columns = (slice(max(part.start, whole.start), min(part.stop, whole.stop)) for part, whole in zip(
        source.image_window(tile.rows, tile.columns), region, strict=True))
    return rows, columns


def answered_window(source: Resampled, region: Region, geometry: UNetGeometry, tile: Tile,
              probabilities: NDArray[np.float32]) -> tuple[Region, NDArray[np.float32]]:
    """The image's window that a tile answers, and its probabilities KYX."""
    # A tile at the region's border may answer a few pixels before or after the part that is asked for.
    top, left = tile.rows.start - tile.top - geometry.margin, tile.columns.start - tile.left - geometry.margin
    found = source.to_image(probabilities[:, top:, left:], tile.rows, tile.columns)
    wanted = _wanted(source, region, tile)
    inside = found[:, *relative_to(wanted, source.image_window(tile.rows, tile.columns))]
    return wanted, np.ascontiguousarray(inside)


def _segmented(index: tuple[int, ...], tile: tuple[Region, NDArray[np.float32]], progress: tuple[int, int],
               elapsed: float) -> TileSegmented:
    (rows, columns), probabilities = tile
    n_done, n_tiles = progress
    left_over = elapsed / n_done * (n_tiles - n_done)
    return TileSegmented(n_done, n_tiles, index, rows, columns, probabilities, most_probable(probabilities), elapsed,
                         left_over)
