"""Pack training images and their class targets into one small file, so that training needs nothing else.

    python pretraining/pack.py --data FOLDER --out pretraining.npz

Reads ``FOLDER/splits.json`` and takes ``train`` images alone. Images are normalised as the plugin does it and
kept as bytes; targets are background / cell / boundary (1, 2, 3) with 0 where the truth is silent.
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

from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.planes import Planes

#: Bytes keep the normalised range [-1, 1.55] in steps of 0.01; augmentation noise is coarser.
STEPS_PER_UNIT = 100


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
    "usiigaci_phase": ImageSet("YX", every=3),
    "axondeepseg_sem": ImageSet("YX", truth="axons"),
    "baby_yeast_5z": ImageSet("CYX"),
    "fib25_em_3d": ImageSet("ZYX", every=1, dense=True),
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
    arrays: dict[str, NDArray[np.uint8]] = {}
    for name, image_set in SETS.items():
        for number, stem in enumerate(splits[name]["train"][:: image_set.every]):
            for plane, (image, target) in enumerate(read(arguments.data / name, stem, image_set)):
                arrays[f"{name}/{number:04d}-{plane:03d}/image"] = image
                arrays[f"{name}/{number:04d}-{plane:03d}/target"] = target
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {len(arrays) // 2} planes, {arguments.out.stat().st_size / 2**20:.1f} MiB")


def read(folder: Path, stem: str, image_set: ImageSet) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Planes CYX of bytes with their targets YX."""
    pixels = tifffile.imread(folder / "images" / f"{stem}.tif")
    masks = tifffile.imread(folder / "masks" / f"{stem}.tif")
    axes = image_set.axes if pixels.ndim == len(image_set.axes) else "T" + image_set.axes
    planes = Planes(pixels, axes, stem)
    step = PLANE_STEP if planes.stack_shape else 1
    for index in planes.indices()[::step]:
        rows, columns = (slice(0, size) for size in planes.shape_yx)
        image = planes.normalisation().apply(planes.read(index, rows, columns))
        yield to_bytes(image), targets(masks[index] if index else masks, image_set)


def to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Normalised values as bytes."""
    return np.clip(np.rint((image + 1) * STEPS_PER_UNIT), 0, 255).astype(np.uint8)


def from_bytes(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Normalised values of bytes."""
    return image.astype(np.float32) / STEPS_PER_UNIT - 1


def targets(mask: NDArray[np.integer], image_set: ImageSet) -> NDArray[np.uint8]:
    """Background 1, cell 2, boundary 3."""
    if image_set.truth == "axons":
        # Myelin is what keeps axons apart.
        return np.array([1, 3, 2], np.uint8)[mask]
    return objects_to_classes(mask, ignore_value=0 if image_set.dense else None)


if __name__ == "__main__":
    main()
