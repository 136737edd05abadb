"""Pack training images and their truth into one small file, so that training needs nothing else.

    python pretraining/pack.py --data FOLDER --out pretraining.npz

Reads ``FOLDER/splits.json`` and takes ``train`` images alone. Images are normalised as the plugin does it and
kept as bytes. Images of large objects are reduced until their median object is as large as the program shows it to
the network; smaller ones are enlarged only while training, because enlarged ones would not fit the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.measure import label
from skimage.transform import resize

from napari_cellbrush.engine.annotation import median_diameter
from napari_cellbrush.engine.model import SEEN_AS
from napari_cellbrush.engine.planes import Planes

#: Bytes keep the normalised range [-1, 1.55] in steps of 0.01; augmentation noise is coarser.
STEPS_PER_UNIT = 100
#: Median diameter of the objects, in pixels, that the model is said to know.
DIAMETER_PX = 24.0
#: The same as the program shows it to the network.
SEEN_PX = SEEN_AS * DIAMETER_PX


@dataclass(frozen=True)
class ImageSet:
    """How one set of the data folder becomes planes."""

    axes: str
    #: Take every n-th image of redundant time-lapses.
    every: int = 1
    #: "objects": instance ids; "axons": classes 0 background, 1 myelin, 2 axon.
    truth: str = "objects"
    #: No true background: id 0 means "unlabelled".
    dense: bool = False


SETS = {
    "dsb2018_fluo": ImageSet("YX"),
    "dsb2018_histology": ImageSet("YXS"),
    "dsb2018_brightfield": ImageSet("YX"),
    "bbbc039_nuclei_dev": ImageSet("YX", every=2),
    "usiigaci_phase": ImageSet("YX"),
    "axondeepseg_sem": ImageSet("YX", truth="axons"),
    "baby_yeast_5z": ImageSet("CYX"),
    "fib25_em_3d": ImageSet("ZYX", dense=True),
}
#: Take every n-th plane of a volume.
PLANE_STEP = 10


def main() -> None:
    """Write the packed file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    splits = json.loads((arguments.data / "splits.json").read_text())
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, image_set in SETS.items():
        for number, stem in enumerate(splits[name]["train"][:: image_set.every]):
            for plane, (image, truth, diameter) in enumerate(read(arguments.data / name, stem, image_set)):
                key = f"{name}/{number:04d}-{plane:03d}"
                arrays |= {f"{key}/image": image, f"{key}/truth": truth, f"{key}/diameter": np.float32(diameter)}
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {len(arrays) // 3} planes, {arguments.out.stat().st_size / 2**20:.1f} MiB")


def read(folder: Path, stem: str, image_set: ImageSet) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint16], float]]:
    """Planes CYX of bytes, their truth YX and the median diameter of their objects in pixels.

    Truth is 0 where nobody knows, 1 for background, and 2 + object number; for axons 1 … 3 are classes.
    """
    pixels = tifffile.imread(folder / "images" / f"{stem}.tif")
    masks = tifffile.imread(folder / "masks" / f"{stem}.tif")
    axes = image_set.axes if pixels.ndim == len(image_set.axes) else "T" + image_set.axes
    planes = Planes(pixels, axes, stem)
    step = PLANE_STEP if planes.stack_shape else 1
    for index in planes.indices()[::step]:
        rows, columns = (slice(0, size) for size in planes.shape_yx)
        image = planes.normalisation().apply(planes.read(index, rows, columns))
        mask = masks[index] if index else masks
        objects = label(mask == 2) if image_set.truth == "axons" else mask
        diameter = median_diameter(objects) or DIAMETER_PX
        if image_set.truth == "axons":
            # Myelin is what keeps axons apart.
            truth = np.array([1, 3, 2], np.uint16)[mask]
        else:
            numbers = np.unique(mask, return_inverse=True)[1].reshape(mask.shape) + int(mask.min() > 0)
            truth = (numbers + 1).astype(np.uint16)
            if image_set.dense:
                truth[mask == 0] = 0
        yield *reduced(image, truth, min(1.0, SEEN_PX / diameter)), min(diameter, SEEN_PX)


def reduced(image: NDArray[np.float32], truth: NDArray[np.uint16],
            scale: float) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Both made smaller, the image without aliasing and as bytes."""
    if scale < 1:
        shape = tuple(max(1, round(size * scale)) for size in truth.shape)
        image = resize(image, (len(image), *shape), order=1, anti_aliasing=True).astype(np.float32)
        truth = resize(truth, shape, order=0, anti_aliasing=False, preserve_range=True).astype(np.uint16)
    return to_bytes(image), truth


def to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Normalised values as bytes."""
    return np.clip(np.rint((image + 1) * STEPS_PER_UNIT), 0, 255).astype(np.uint8)


def from_bytes(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalised values of bytes."""
    return image.astype(np.float32) / STEPS_PER_UNIT - 1


if __name__ == "__main__":
    main()
