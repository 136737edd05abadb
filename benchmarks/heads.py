"""What the network should say so that touching objects come apart: one network, three ways from its answer to objects.

    python benchmarks/heads.py RUN_FOLDER/checkpoint.pt [--split bench|train] [--images N] [--sets NAME...]

``pretraining/pretrain.py`` writes the checkpoint; its network answers classes, the distance to the rim and the way to
the object's centre, learnt together. The ways:

- ``boundary``: the plugin's own, from P(cell) minus P(boundary);
- ``distance``: seeds where the distance rises, watershed on it (as in the distance heads of many nuclei models);
- ``centre``: each pixel of an object votes for a centre and belongs to the one it votes for (as in Panoptic-DeepLab,
  Cheng et al. 2020, and EmbedSeg, Lalit et al. 2022).

All see the same answers, with the true median diameter given. The parameters of each were chosen on training images.
Reads what ``accuracy.py`` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from accuracy import SETS, images_of
from numpy.typing import NDArray
from scipy import ndimage, spatial
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from napari_cellbrush.config import DEFAULT_CLASSES, ObjectsConfig
from napari_cellbrush.engine.annotation import median_diameter
from napari_cellbrush.engine.metrics import ObjectScores, average_precision
from napari_cellbrush.engine.model import ModelCard
from napari_cellbrush.engine.objects import objects_from_probabilities
from napari_cellbrush.engine.resampling import Resampled
from napari_cellbrush.engine.unet import UNet

sys.path.append(str(Path(__file__).resolve().parent.parent / "pretraining"))
from pack import DIAMETER_PX

N_CLASSES = len(DEFAULT_CLASSES)
RADIUS_PX = DIAMETER_PX / 2
#: Smoothing of the distance in network pixels, and how far a maximum rises above its surroundings, in radii.
DISTANCE_SIGMA_PX, DISTANCE_RISE = 1.0, 0.15
#: Smoothing of the votes in network pixels, distance of two centres in radii, and votes for the least centre, as a
#: share of the pixels of a disc of one radius.
VOTES_SIGMA_PX, CENTRES_APART, LEAST_VOTES = 2.0, 0.9, 0.1


def main() -> None:
    arguments = _arguments()
    network = _network(arguments.checkpoint)
    card = ModelCard(name="cells", classes=DEFAULT_CLASSES, in_channels=1, diameter_px=DIAMETER_PX)
    print("| set | images | " + " | ".join(f"{way} AP50 | AP75" for way in WAYS) + " |")
    print("|" + "---|" * (2 + 2 * len(WAYS)))
    for name in arguments.sets or SETS:
        of_images: list[list[ObjectScores]] = []
        chosen = list(images_of(name, arguments.split))
        for _, planes, truth in chosen[:: max(1, len(chosen) // (arguments.images or len(chosen)))]:
            scale = card.scale_for(median_diameter(truth))
            answer = answered(network, Resampled(planes, scale))
            of_images.append([average_precision(way(answer, scale), truth) for way in WAYS.values()])
        figures = []
        for of_way in zip(*of_images, strict=True):
            together = reduce(add, of_way)
            figures += [together.average_precision[together.thresholds.index(threshold)] for threshold in (0.5, 0.75)]
        print(f"| {name} | {len(of_images)} | {' | '.join(f'{figure:.3f}' for figure in figures)} |", flush=True)


def answered(network: UNet, source: Resampled) -> NDArray[np.float32]:
    """Probabilities of the classes, then the shape, CYX at the image's own pixels."""
    geometry, (height, width) = network.geometry, source.shape_yx
    sides = (geometry.input_size_for(side + 1) for side in (height, width))
    window = source.normalisation().apply(source.read_mirrored((), -geometry.margin, -geometry.margin, *sides))
    # As a base's first layer is spread over the channels of an image.
    grey = torch.from_numpy(window).mean(0)[None, None]
    with torch.inference_mode():
        classes, shape = network(grey)[0].split([N_CLASSES, len(network.head.weight) - N_CLASSES])
        answer = torch.cat([classes.softmax(0), shape]).numpy()
    return source.to_image(answer, slice(0, height), slice(0, width))


def by_boundary(answer: NDArray[np.float32], scale: float) -> NDArray[np.integer]:
    return objects_from_probabilities(answer[:N_CLASSES], DEFAULT_CLASSES, ObjectsConfig().at_scale(scale))


def by_distance(answer: NDArray[np.float32], scale: float) -> NDArray[np.integer]:
    inside = answer[0] < 0.5
    height = np.where(inside, ndimage.gaussian_filter(answer[N_CLASSES], DISTANCE_SIGMA_PX / scale), 0)
    seeds = label(h_maxima(height, DISTANCE_RISE))
    return _without_specks(watershed(-height, seeds, mask=inside))


def by_centre(answer: NDArray[np.float32], scale: float) -> NDArray[np.integer]:
    inside = answer[0] < 0.5
    positions = np.argwhere(inside)
    voted = positions + answer[N_CLASSES + 1 :, inside].T * (RADIUS_PX / scale)
    nearest = np.clip(np.rint(voted), 0, np.array(inside.shape) - 1).astype(np.int64)
    votes = np.zeros(inside.shape)
    np.add.at(votes, tuple(nearest.T), 1)
    sigma = VOTES_SIGMA_PX / scale
    # In units of what a disc of one radius gives if all its pixels vote for one place.
    votes = ndimage.gaussian_filter(votes, sigma) * 2 * np.pi * sigma**2 / (np.pi * (RADIUS_PX / scale) ** 2)
    centres = peak_local_max(votes, min_distance=max(1, round(CENTRES_APART * RADIUS_PX / scale)),
                             threshold_abs=LEAST_VOTES, exclude_border=False)
    ids = np.zeros(inside.shape, np.int32)
    if len(centres):
        ids[inside] = spatial.cKDTree(centres).query(voted)[1] + 1
    return _without_specks(ids)


def _without_specks(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    small = np.bincount(ids.ravel()) < ObjectsConfig().min_object_px
    return np.where(small[ids], 0, ids)


WAYS: dict[str, Callable[[NDArray[np.float32], float], NDArray[np.integer]]] = {
    "boundary": by_boundary, "distance": by_distance, "centre": by_centre}


def _network(checkpoint: Path) -> UNet:
    weights = torch.load(checkpoint, weights_only=True, map_location="cpu")["mean"]
    n_filters = weights["head.weight"].shape[1]
    network = UNet(1, len(weights["head.weight"]), base_filters=n_filters, batch_norm=True)
    network.load_state_dict(weights)
    return network.folded().requires_grad_(False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", choices=["bench", "train"], default="bench")
    parser.add_argument("--images", type=int, default=0, help="measure about N images of each set, evenly chosen")
    parser.add_argument("--sets", nargs="*", choices=list(SETS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
