"""Class maps → objects: who is one cell, and where it ends.

Knows arrays and class roles; knows nothing of models, layers or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from napari_cellbrush.config import ClassDefinition

ObjectIds = NDArray[np.uint16] | NDArray[np.uint32]


def objects_from_classes(
    class_map: NDArray[np.uint8], classes: Sequence[ClassDefinition], min_object_px: int = 0
) -> ObjectIds:
    """Number the objects of a class map.

    Each connected region (over edges, not corners) of a class with the role "object" is one object. It then grows
    into the pixels of "boundary" classes that it reaches first, because a boundary is the outer rim of the cells
    it separates. Planes of a stack are looked at one by one; their ids go on counting.

    Parameters
    ----------
    class_map
        YX, or any stack axes in front of YX; k + 1 for class number k, 0 for nothing.
    classes
        What the numbers mean.
    min_object_px
        Objects with fewer pixels, rim included, are left out.

    Returns
    -------
    NDArray
        Like ``class_map``; 0 background, ids 1…n without gaps; uint16, or uint32 for more than 65,535 objects.
    """
    ids = np.zeros(class_map.shape, np.uint32)
    n_objects = 0
    for index in np.ndindex(class_map.shape[:-2]):
        plane, n_plane = _plane_objects(class_map[index], classes, min_object_px)
        ids[index] = np.where(plane > 0, plane + n_objects, 0)
        n_objects += n_plane
    return ids if n_objects > np.iinfo(np.uint16).max else ids.astype(np.uint16)


def _plane_objects(
    class_map: NDArray[np.uint8], classes: Sequence[ClassDefinition], min_object_px: int
) -> tuple[NDArray[np.uint32], int]:
    objects = np.isin(class_map, _values(classes, "object"))
    boundary = np.isin(class_map, _values(classes, "boundary"))
    # Pixels of different classes never join: label() connects equal values only.
    ids: NDArray[Any] = label(np.where(objects, class_map, 0), background=0, connectivity=1)
    ids = _grown_into(ids.astype(np.int32), boundary)
    sizes = np.bincount(ids.ravel(), minlength=1)
    keep = sizes >= max(1, min_object_px)
    keep[0] = False
    new_ids = np.where(keep, np.cumsum(keep), 0).astype(np.uint32)
    return new_ids[ids], int(keep.sum())


def _grown_into(ids: NDArray[np.int32], boundary: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Give every boundary pixel to the object that reaches it in the fewest steps through boundary pixels."""
    if not boundary.any() or not ids.any():
        return ids
    # Only the objects' pixels beside a boundary can spread: the others would fill the queue in vain.
    seeds = np.where(ndimage.binary_dilation(boundary), ids, 0)
    grown = watershed(np.zeros(ids.shape, np.uint8), seeds, mask=boundary | (seeds > 0))
    return np.where(boundary, grown, ids).astype(np.int32, copy=False)


def _values(classes: Sequence[ClassDefinition], role: str) -> list[int]:
    return [position + 1 for position, definition in enumerate(classes) if definition.role == role]
