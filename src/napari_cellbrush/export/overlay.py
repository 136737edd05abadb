"""A picture of the objects on their image, as PNG: to show, not to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from napari_cellbrush.engine.atomic import written_whole
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.errors import ExportError

#: Well apart in hue, and none of them grey like the image.
COLORS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf", "#00ced1")
_RGB = np.array([list(bytes.fromhex(color[1:])) for color in COLORS])
#: Percentiles of the image that become black and white.
PERCENTILES = (1.0, 99.8)


def save_overlay(path: Path | str, ids: NDArray[Any], image: NDArray[Any] | None = None, *, opacity: float = 0.35,
                 overwrite: bool = False) -> Path:
    """Write objects in colours, with solid outlines, over their image; whole or not at all.

    Parameters
    ----------
    path
        The PNG file.
    ids
        YX whole numbers; 0 background.
    image
        YX of any number type, or YXS with three colours; black if not given. Shown between its percentiles 1 and 99.8.
    opacity
        Of the colours inside outlines, in [0, 1].
    overwrite
        Replace an existing file.

    Raises
    ------
    ExportError
        If shapes do not fit, or the file cannot be written.
    """
    path = Path(path)
    shape = ids.shape if image is None else image.shape
    if ids.ndim != 2 or shape[:2] != ids.shape or shape[2:] not in ((), (3,)) or not 0 <= opacity <= 1:
        raise ExportError(f"Got objects of shape {ids.shape}, an image of shape {shape} and an opacity of {opacity}, "
                          "need one plane YX, an image YX or YXS of its size, and an opacity from 0 to 1",
                          "Give one plane at a time")
    backdrop = 255 * _stretched(np.zeros(ids.shape) if image is None else image)
    share = np.where(find_boundaries(ids, mode="inner"), 1.0, np.where(ids > 0, opacity, 0.0))[..., None]
    # Neighbours in space are often neighbours in number, and neighbours in number have different colours.
    picture = share * _RGB[ids % len(COLORS)] + (1 - share) * backdrop.reshape(*ids.shape, -1)
    with written_whole(path, overwrite=overwrite) as hidden:
        Image.fromarray(np.round(picture).astype(np.uint8)).save(hidden, format="PNG")
    return path


def picture_of(planes: Planes, index: tuple[int, ...] = ()) -> NDArray[np.float32]:
    """A plane of an image as an overlay takes it: three channels are red, green and blue, others are averaged.

    Parameters
    ----------
    planes
        The image.
    index
        Along its stack axes.

    Raises
    ------
    ImageError
        If the plane cannot be read, or its channels are constant.
    """
    values = planes.read(index, *(slice(0, length) for length in planes.shape_yx))
    if "S" not in planes.axes:
        # Channels of a microscope are as bright as their lamps; colours belong together.
        values = planes.normalisation().apply(values)
    picture: NDArray[np.float32] = np.moveaxis(values, 0, -1) if len(values) == 3 else values.mean(axis=0)
    return picture


def _stretched(image: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.nanpercentile(image, PERCENTILES) if image.size else (0.0, 0.0)
    scaled = (np.nan_to_num(image.astype(np.float64)) - low) / (high - low if high > low else 1.0)
    return np.clip(scaled, 0, 1)
