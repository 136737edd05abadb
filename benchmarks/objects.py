"""How good and how fast ways from probabilities to objects are.

    python benchmarks/objects.py accuracy [--model NAME|FILE] [--sets NAME...] [--images N]
    python benchmarks/objects.py speed [--size PX] [--rounds N]
    python benchmarks/objects.py memory [--size PX]
    python benchmarks/objects.py linking

Accuracy reads ``$CELLBRUSH_DATA`` as ``accuracy.py`` does, ``bench`` images alone, and prints average precision
TP / (TP + FP + FN) over all objects of a set, at intersections over union of 0.5 and 0.75. Every way gets the same
probabilities. Speed works on round cells in rows with noise, 3,025 of them for the default size; seconds are those
of the processor, because other programs run too. Memory is the most that the process ever held, on probabilities and
ids in files, of an image of 10,000 × 10,000 px unless told otherwise. Linking takes the planes of true bodies apart and
joins them again, with and without the ends that are smaller than what they belong to.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import islice, product
from typing import Any
from unittest.mock import patch

import numpy as np
import zarr
from accuracy import SETS, images_of, read
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine import linking
from napari_cellbrush.engine.border_weights import border_weights
from napari_cellbrush.engine.inference import most_probable, segment_array
from napari_cellbrush.engine.measure import measure_objects
from napari_cellbrush.engine.metrics import ObjectScores, average_precision
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.object_blocks import blockwise_objects_from_probabilities
from napari_cellbrush.engine.objects import as_bytes, objects_from_classes, objects_from_probabilities
from napari_cellbrush.engine.outlines import outlines

THRESHOLDS = (0.5, 0.75)
#: Sets and images of true bodies, ZYX.
STACKS = (("fib25_em_3d", "000"), ("gonuclear_3d", "000"), ("plantbio_chloroplast_em_3d", "000"),
          ("stardist_samples", "3d"))
Way = Callable[[NDArray[np.float32]], NDArray[Any]]
SMALLEST_PX = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["accuracy", "speed", "memory", "linking"])
    parser.add_argument("--model", default="cells")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--size", type=int, help="side of the image; 2048, and 10000 for memory")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.task == "speed":
        print_speed(arguments.size or 2048, arguments.rounds)
    elif arguments.task == "memory":
        print_memory(arguments.size or 10_000)
    elif arguments.task == "linking":
        print_linking()
    else:
        print_accuracy(arguments)


def components(probabilities: NDArray[np.float32]) -> NDArray[Any]:
    return objects_from_classes(most_probable(probabilities), DEFAULT_CLASSES, SMALLEST_PX)


def distance_watershed(probabilities: NDArray[np.float32]) -> NDArray[Any]:
    """As in scikit-image's gallery: peaks of the distance to the background, and a watershed from them."""
    foreground = probabilities[1] + probabilities[2] > 0.5
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(foreground), 1)
    seeds = np.zeros(foreground.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=5, labels=foreground.astype(int))
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    ids = watershed(-distance, seeds, mask=foreground)
    return np.where(np.bincount(ids.ravel())[ids] >= SMALLEST_PX, ids, 0)


def probability_watershed(probabilities: NDArray[np.float32]) -> NDArray[Any]:
    return objects_from_probabilities(probabilities, DEFAULT_CLASSES)


WAYS: dict[str, Way] = {"connected components and growth": components, "distance watershed": distance_watershed,
                        "probability watershed": probability_watershed}


def print_accuracy(arguments: argparse.Namespace) -> None:
    model = read_model(find_model(arguments.model))
    print("| set | images | " + " | ".join(f"{way}, AP50 / AP75" for way in WAYS) + " |")
    print("|" + "---|" * (len(WAYS) + 2))
    for name in arguments.sets:
        scores: dict[str, ObjectScores] = {}
        n_images = 0
        for _, planes, truth in islice(images_of(name, "bench"), arguments.images):
            n_images += 1
            probabilities = segment_array(model, planes, "probabilities")
            for way, run in WAYS.items():
                found = average_precision(run(probabilities), truth, THRESHOLDS)
                scores[way] = scores[way] + found if way in scores else found
        cells = [" / ".join(f"{value:.3f}" for value in scores[way].average_precision) for way in WAYS]
        print(f"| {name} | {n_images} | " + " | ".join(cells) + " |", flush=True)


def rows_of_cells(size: int) -> NDArray[np.float32]:
    """KYX: round cells at about 37 px from each other, most of them touching."""
    random = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(*[np.arange(20, size, 37)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    centres = np.clip(centres + random.integers(-5, 6, centres.shape), 0, size - 1)
    points = np.ones((size, size), bool)
    points[tuple(centres.T)] = False
    distance = ndimage.distance_transform_edt(points)
    inside, noise = distance < 19, 4 * ndimage.gaussian_filter(random.normal(size=(size, size)), 2)
    logits = np.stack([np.where(inside, 0, 2.5) + noise, np.where(inside, 4 * (1 - distance / 19), 0) + noise / 2,
                       np.where(inside, 3 * (distance / 19) ** 2, 0)])
    raised = np.exp(logits)
    return (raised / raised.sum(axis=0)).astype(np.float32)


def print_speed(size: int, rounds: int) -> None:
    probabilities = rows_of_cells(size)
    ids = probability_watershed(probabilities).astype(np.int32)
    image = probabilities[1]
    jobs: dict[str, Callable[[], object]] = {
        **{way: lambda run=run: run(probabilities) for way, run in WAYS.items()},
        "probability watershed, in blocks": lambda: blockwise_objects_from_probabilities(probabilities,
                                                                                         DEFAULT_CLASSES),
        "border weights": lambda: border_weights(ids),
        "table of measurements": lambda: measure_objects(ids, image=image),
        "outlines": lambda: outlines(ids),
    }
    print(f"{size} × {size} px, {ids.max()} objects\n\n| what | s of one core, median (lowest to highest) |\n|---|---|")
    for name, job in jobs.items():
        seconds = []
        for _ in range(rounds):
            began = time.process_time()
            job()
            seconds.append(time.process_time() - began)
        print(f"| {name} | {np.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) |", flush=True)


def print_memory(size: int) -> None:
    before = _most_held()
    pattern = as_bytes(rows_of_cells(1024))
    with tempfile.TemporaryDirectory() as folder:
        probabilities = zarr.create_array(f"{folder}/probabilities.zarr", shape=(3, size, size), chunks=(3, 1024, 1024),
                                          dtype=np.uint8)
        for top, left in product(range(0, size, 1024), repeat=2):
            probabilities[:, top : top + 1024, left : left + 1024] = pattern[:, : size - top, : size - left]
        ids = zarr.create_array(f"{folder}/ids.zarr", shape=(size, size), chunks=(1024, 1024), dtype=np.uint32)
        began = time.process_time()
        blockwise_objects_from_probabilities(probabilities, DEFAULT_CLASSES, out=ids)
        seconds = time.process_time() - began
        n_objects = max(int(ids[top : top + 1024].max()) for top in range(0, size, 1024))
    print(f"{size} × {size} px, {n_objects:,} objects: {seconds:.0f} s of one core; at most {_most_held():.2f} GB "
          f"held, of which {before:.2f} GB before anything was computed")


def print_linking() -> None:
    print("| stack | shape | true bodies | linked | AP50 / AP75 | without ends | AP50 / AP75 |\n|" + "---|" * 7)
    for name, stem in STACKS:
        truth = read(name, "masks", stem).squeeze()
        cells = [_linked_again(truth)]
        with patch.object(linking, "MIN_WITHIN", np.inf):
            cells.append(_linked_again(truth))
        shape = " × ".join(map(str, truth.shape))
        print(f"| {name} | {shape} | {np.count_nonzero(np.unique(truth))} | {' | '.join(cells)} |", flush=True)


def _linked_again(truth: NDArray[Any]) -> str:
    linked = linking.link_planes(truth)
    precision = average_precision(linked, truth, THRESHOLDS).average_precision
    return f"{linked.max()} | {' / '.join(f'{value:.3f}' for value in precision)}"


def _most_held() -> float:
    """GB of memory that this process held at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
