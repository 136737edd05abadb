"""Run a model over an image, tile by tile: a generator of events.

Peak memory is one tile's features plus whatever the receiver keeps. The result does not depend on the tiles: they
are aligned to the network's poolings, read true context beyond their borders, and share one normalisation.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_cellbrush.config import InferenceConfig, OutputKind
from napari_cellbrush.engine.device import Device, choose_device, free_memory, is_out_of_memory
from napari_cellbrush.engine.fused_unet import FusedUNet, fused_unet_works
from napari_cellbrush.engine.geometry import UNetGeometry
from napari_cellbrush.engine.model import Model, class_logits
from napari_cellbrush.engine.objects import objects_from_classes
from napari_cellbrush.engine.planes import Normalisation, Planes
from napari_cellbrush.engine.tiling import Tile, plan_tiles
from napari_cellbrush.engine.unet import UNet
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


class TilePredictor:
    """A model made ready to run on one device: batch norm folded, right precision and memory layout."""

    def __init__(self, model: Model, normalisation: Normalisation, device: Device, config: InferenceConfig) -> None:
        self._folded = model.network.folded()
        self._normalisation = normalisation
        self._device = device
        self._load(_precision(config, device))

    def _load(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._network = _network_on(self._device, self._folded, dtype)
        self.precision = str(dtype).removeprefix("torch.")

    @torch.inference_mode()
    def predict(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities KYX float32 of a raw window CYX of a valid size, without its margins."""
        image = torch.from_numpy(self._normalisation.apply(window))[None]
        logits = self._logits(image)
        if self._dtype == torch.float16 and not bool(logits.isfinite().all()):
            # Features beyond 65,504 do not fit: a model like that runs in full precision from here on.
            self._load(torch.float32)
            logits = self._logits(image)
        probabilities: NDArray[np.float32] = logits.float().softmax(dim=1)[0].contiguous().cpu().numpy()
        return probabilities

    def _logits(self, image: Tensor) -> Tensor:
        image = image.to(self._device.torch_device, self._dtype)
        if self._device.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with _exact_products(self._device, self._dtype):
            return class_logits(self._network(image))


def _precision(config: InferenceConfig, device: Device) -> torch.dtype:
    """What weights and features are kept in.

    On CUDA float16 is as fast as bfloat16 and rounds eight times finer, so that fewer pixels depend on their tile;
    its small range matters to gradients rather than to the features of a trained network. On a CPU bfloat16 gives
    every pixel the same bits in every tile only with the fused operators.
    """
    if config.precision == "float32" or device.half is None:
        return torch.float32
    if device.kind == "cuda":
        return torch.float16
    return device.half if device.half != torch.bfloat16 or fused_unet_works(device.half) else torch.float32


def _network_on(device: Device, folded: UNet, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    if device.kind == "cpu" and device.channels_last and fused_unet_works(dtype):
        return FusedUNet(folded, dtype)
    network = copy.deepcopy(folded).to(device.torch_device, dtype)
    if device.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    return network


def _exact_products(device: Device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """By default cuDNN rounds the factors of float32 products to 10 bits (TF32); float32 shall mean float32."""
    if device.kind == "cuda" and dtype == torch.float32:
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


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
    rows, columns = region or (slice(None), slice(None))
    # A view may reach beyond the image.
    region = slice(*rows.indices(planes.shape_yx[0])), slice(*columns.indices(planes.shape_yx[1]))
    predictor = TilePredictor(model, planes.normalisation(), device, config)
    tiles = plan_tiles(region, geometry, tile_size(config, model, device), centre)
    queue = deque((index, tile) for index in (planes.indices() if indices is None else indices) for tile in tiles)
    yield InferenceStarted(device.name, predictor.precision, len(queue), _side(tiles))

    began = time.perf_counter()
    n_done = 0
    with _ReadAhead(planes) as reader:
        while queue and not stop.stopped:
            (index, tile), following = queue[0], queue[1] if len(queue) > 1 else None
            try:
                probabilities = predictor.predict(reader.window(queue[0], following))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = _halved(_side([tile]), geometry, device, error)
                queue = deque((i, small) for i, large in queue
                              for small in plan_tiles((large.rows, large.columns), geometry, size, centre))
                yield TileSizeReduced(size, n_done + len(queue))
                continue
            queue.popleft()
            n_done += 1
            elapsed = time.perf_counter() - began
            yield _segmented(index, tile, geometry, probabilities, (n_done, n_done + len(queue)), elapsed)
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
    config = config or InferenceConfig()
    shape = planes.spatial_shape
    classes = np.zeros(shape, np.uint8)
    probabilities = np.zeros((model.n_classes, *shape), np.float32) if output == "probabilities" else None
    for event in segment_planes(model, planes, config=config, device=device, stop=stop):
        if isinstance(event, TileSegmented):
            place: tuple[int | slice, ...] = (*event.plane, event.rows, event.columns)
            classes[place] = event.classes
            if probabilities is not None:
                probabilities[(slice(None), *place)] = event.probabilities
        yield event
    if probabilities is not None:
        return probabilities
    return objects_from_classes(classes, model.card.classes, config.min_object_px) if output == "objects" else classes


def tile_size(config: InferenceConfig, model: Model, device: Device) -> int:
    """Side of the windows to read, in pixels: the user's, or the one that is fast and fits the free memory."""
    geometry = model.network.geometry
    if config.tile_size_px:
        return max(config.tile_size_px, _smallest(geometry))
    bytes_per_pixel = _LIVE_MAPS * model.network.base_filters * _precision(config, device).itemsize
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

    def __init__(self, planes: Planes) -> None:
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


def _segmented(index: tuple[int, ...], tile: Tile, geometry: UNetGeometry, probabilities: NDArray[np.float32],
               progress: tuple[int, int], elapsed: float) -> TileSegmented:
    n_done, n_tiles = progress
    # A tile at the region's border may answer a few pixels before or after the part that is asked for.
    top, left = tile.rows.start - tile.top - geometry.margin, tile.columns.start - tile.left - geometry.margin
    height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
    wanted = np.ascontiguousarray(probabilities[:, top : top + height, left : left + width])
    left_over = elapsed / n_done * (n_tiles - n_done)
    return TileSegmented(n_done, n_tiles, index, tile.rows, tile.columns, wanted, most_probable(wanted), elapsed,
                         left_over)


def most_probable(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class map YX uint8, 1…K, of probabilities KYX; the first of equal ones, as argmax has it, in half its time."""
    classes = np.ones(probabilities.shape[1:], np.uint8)
    best = probabilities[0]
    for position, candidate in enumerate(probabilities[1:], start=2):
        np.putmask(classes, candidate > best, np.uint8(position))
        best = np.maximum(best, candidate)
    return classes
