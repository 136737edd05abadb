"""Why objects are missed, and how many a perfect network would find.

    python benchmarks/errors.py [--model NAME|FILE] [--split train|bench] [--every N] [--sets NAME...]

Reads what ``accuracy.py`` reads; training images unless told otherwise, because whoever looks for what to improve must
not look at those that measure it. Prints, for each set, the average precision at 0.5 and 0.75 of the model's objects,
that of objects made in the same way from perfect class maps at the network's scale, and what became of the true objects
that the model misses at 0.5, in this order:

- ``specks`` have less than 0.15 of the median area of their image;
- ``unseen`` are covered by objects to less than 0.3;
- ``joined`` lie mostly in an object more than 1.6 times as large;
- ``parted`` are covered by two objects or more to a fifth each;
- ``outline``: all others, found by one object with another outline.

``invented`` are objects of the model that cover true ones to less than a fifth.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import numpy as np
from accuracy import SETS, images_of
from numpy.typing import NDArray
from scipy import sparse
from skimage.segmentation import relabel_sequential
from skimage.transform import resize

from napari_cellbrush.config import DEFAULT_CLASSES, ObjectsConfig
from napari_cellbrush.engine.annotation import median_diameter, objects_to_classes
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.metrics import ObjectScores, average_precision
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.objects import objects_from_probabilities

FATES = ("specks", "unseen", "joined", "parted", "outline", "invented")
THRESHOLDS = (0.5, 0.75)


def main() -> None:
    arguments = _arguments()
    model = read_model(find_model(arguments.model))
    columns = ("set", "images", "objects", "AP50 / AP75", "perfect classes", *FATES)
    print(f"| {' | '.join(columns)} |\n|" + "---|" * len(columns))
    for name in arguments.sets or SETS:
        print(row(model, name, arguments.split, arguments.every), flush=True)


def row(model: Model, name: str, split: str, every: int) -> str:
    fates, found_scores, perfect_scores, n_objects = Counter[str](), list[ObjectScores](), list[ObjectScores](), 0
    for _, planes, mask in islice(images_of(name, split), None, None, every):
        truth, _, _ = relabel_sequential(mask.astype(np.int64))
        if not truth.any():
            continue
        found = segment_array(model, planes, "objects")
        found_scores.append(average_precision(found, truth, THRESHOLDS))
        perfect_scores.append(average_precision(from_perfect_classes(model, truth), truth, THRESHOLDS))
        fates += fates_of(found.astype(np.int64), truth)
        n_objects += int(truth.max())
    precisions = [" / ".join(f"{value:.3f}" for value in reduce(add, scores).average_precision)
                  for scores in (found_scores, perfect_scores)]
    cells = (name, len(found_scores), n_objects, *precisions, *(fates[fate] for fate in FATES))
    return f"| {' | '.join(map(str, cells))} |"


def from_perfect_classes(model: Model, truth: NDArray[np.int64]) -> NDArray[Any]:
    """Objects YX of what the network was taught to answer for these."""
    scale = model.card.scale_for(median_diameter(truth))
    shape = [max(1, round(size * scale)) for size in truth.shape]
    seen = resize(truth, shape, order=0, anti_aliasing=False, preserve_range=True).astype(np.int64)
    classes = objects_to_classes(seen, boundary_px=2)
    sure = [(classes == value).astype(np.float32) for value in range(1, len(DEFAULT_CLASSES) + 1)]
    probabilities = np.stack([resize(one, truth.shape, order=1, anti_aliasing=False) for one in sure])
    config = ObjectsConfig().at_scale(scale)
    return objects_from_probabilities(probabilities.astype(np.float32), DEFAULT_CLASSES, config)


def fates_of(found: NDArray[np.int64], truth: NDArray[np.int64]) -> Counter[str]:
    """Of true objects that are missed at an intersection over union of 0.5, and of objects where there is nothing."""
    pixels = (np.ones(truth.size, np.int64), (found.ravel(), truth.ravel()))
    shared = sparse.coo_matrix(pixels, shape=(found.max() + 1, truth.max() + 1)).toarray()
    found_px, true_px = shared.sum(axis=1), shared.sum(axis=0)[1:]
    both = shared[1:, 1:]
    invented = Counter({"invented": int((both.sum(axis=1) < 0.2 * found_px[1:]).sum())})
    hit = (both > 0.5 * (found_px[1:, None] + true_px - both)).any(axis=0)
    return invented + Counter(_fate(both[:, number], found_px[1:], true_px, number) for number in np.flatnonzero(~hit))


def _fate(both: NDArray[np.int64], found_px: NDArray[np.int64], true_px: NDArray[np.int64], number: int) -> str:
    own_px = true_px[number]
    if own_px < 0.15 * np.median(true_px):
        return "specks"
    covered = both / own_px
    if covered.sum() < 0.3:
        return "unseen"
    if covered.max() > 0.5 and found_px[covered.argmax()] > 1.6 * own_px:
        return "joined"
    return "parted" if (covered > 0.2).sum() >= 2 else "outline"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cells")
    parser.add_argument("--split", choices=["train", "bench"], default="train")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every n-th image of each set")
    parser.add_argument("--sets", nargs="*", choices=list(SETS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
