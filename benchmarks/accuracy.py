"""How good the bundled weights find objects in images they never saw, and how good they become with a few masks.

    python benchmarks/accuracy.py zero-shot [--model NAME|FILE] [--sets NAME...] [--diameter measured|true] [--mirrored]
    python benchmarks/accuracy.py masks [--masks N...] [--seeds N] [--border-weight W...] [--images N] [--sets NAME...]

Reads ``$CELLBRUSH_DATA`` (default ``../shared/data``): images, instance masks and ``splits.json``, whose ``bench``
images alone are measured. Prints average precision TP / (TP + FP + FN) over all objects of a set, as StarDist counts
it, at intersections over union of 0.5, 0.75 and in the mean of 0.5 to 0.95; the mean over images of that at 0.5, as
Cellpose counts it; and the SEG measure of the Cell Tracking Challenge. Zero-shot: the object diameter is measured by
the model, or given as a person would, who knows the median of the image. Masks: the model is first tuned on N fully
labelled training images, a choice per seed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_cellbrush.config import InferenceConfig, TrainingConfig
from napari_cellbrush.engine.annotation import median_diameter, objects_to_classes
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.metrics import ObjectScores, SegScore, average_precision, seg_score
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.training import train
from napari_cellbrush.events import run_to_end

DATA = Path(os.environ.get("CELLBRUSH_DATA", "../shared/data"))
#: Instance sets and the axes of their images.
SETS = {"dsb2018_fluo": "YX", "bbbc039_nuclei_dev": "YX", "dsb2018_brightfield": "YX", "dsb2018_histology": "YXS",
        "usiigaci_phase": "YX", "baby_yeast_5z": "CYX"}
#: Set: axes, images that are painted, images that are measured, and how truth becomes classes 1…K. The bundled model
#: saw none of either: on an image that it was trained on, it would know what to paint.
STROKE_SETS = {
    "isbi2012": ("YX", ["000", "001"], ["010", "013", "016", "019"], "classes"),
    "axondeepseg_sem": ("YX", ["007"], ["008", "009"], "classes"),
    "usiigaci_phase": ("YX", ["031"], ["028", "034"], "objects"),
    "dsb2018_histology": ("YXS", ["020"], ["000", "005", "010", "015"], "objects"),
    "bbbc039_nuclei_dev": ("YX", ["020"], ["000", "005", "010", "015"], "objects"),
    "baby_yeast_5z": ("CYX", ["012"], ["000", "003", "006", "009"], "objects"),
}
#: Headings of :attr:`Measured.figures`.
FIGURES = "AP50 | AP75 | AP50:95 | AP50, mean of images | SEG"
#: Of the table that :func:`row_of` writes.
HEADING = f"| set | images | objects | {FIGURES} | s per Mpx |\n|" + "---|" * 9


def main() -> None:
    arguments = _arguments()
    model = read_model(find_model(arguments.model))
    print(f"Model {model.card.name}, {model.card.n_steps} steps, {choose_device().description}\n", flush=True)
    if arguments.task == "zero-shot":
        print(HEADING)
        for name in arguments.sets or SETS:
            print(zero_shot(model, name, arguments), flush=True)
        return
    print(f"| set | masks | border weight | {FIGURES} | s of training |\n|" + "---|" * 9)
    for name in arguments.sets or SETS:
        for n_masks in arguments.masks:
            for border_weight in arguments.border_weight:
                print(from_masks(model, name, n_masks, border_weight, arguments), flush=True)


def zero_shot(model: Model, name: str, arguments: argparse.Namespace) -> str:
    return row_of(name, measured(model, name, arguments.images, arguments.diameter == "true", arguments.mirrored))


def row_of(name: str, found: Measured) -> str:
    """Of the table of what a model does without strokes."""
    figures = " | ".join(f"{figure:.3f}" for figure in found.figures)
    seconds = found.seconds / found.n_pixels * 1e6
    return f"| {name} | {len(found.of_images)} | {found.seg.n_objects} | {figures} | {seconds:.2f} |"


def from_masks(base: Model, name: str, n_masks: int, border_weight: float, arguments: argparse.Namespace) -> str:
    """The model tuned on whole masks of training images, other ones for each seed."""
    figures, seconds = [], []
    for seed in range(arguments.seeds):
        stems = np.random.default_rng(seed).permutation([stem for stem, *_ in images_of(name, "train")])[:n_masks]
        chosen = [(planes, truth) for stem, planes, truth in images_of(name, "train") if stem in stems]
        config = TrainingConfig(seed=seed, max_minutes=arguments.minutes, max_steps=arguments.steps,
                                border_weight=border_weight)
        began = time.perf_counter()
        tuned = run_to_end(train(base, [planes for planes, _ in chosen],
                                 [objects_to_classes(truth) for _, truth in chosen], config)).model
        seconds.append(time.perf_counter() - began)
        figures.append(measured(tuned, name, arguments.images).figures)
    cells = " | ".join(f"{mean:.3f} ± {spread:.3f}" for mean, spread in
                       zip(np.mean(figures, axis=0), np.std(figures, axis=0), strict=True))
    return f"| {name} | {n_masks} | {border_weight:g} | {cells} | {np.mean(seconds):.0f} |"


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores over all images of a set."""

    of_images: tuple[ObjectScores, ...]
    seg: SegScore
    n_pixels: int
    #: For segmenting and comparing.
    seconds: float

    @property
    def figures(self) -> tuple[float, ...]:
        """AP50, AP75 and AP50:95 of all objects, the mean over images of AP50, and SEG."""
        together = reduce(add, self.of_images)
        ap50, ap75 = (together.thresholds.index(threshold) for threshold in (0.5, 0.75))
        precision = together.average_precision
        by_image = np.mean([scores.average_precision[ap50] for scores in self.of_images])
        return (*map(float, (precision[ap50], precision[ap75], precision.mean(), by_image)), self.seg.mean)


def measured(model: Model, name: str, n_images: int, true_diameter: bool = False, mirrored: bool = False) -> Measured:
    """Segment the first ``n_images`` bench images of a set, 0 for all, and compare objects with the truth."""
    parts, began = [], time.perf_counter()
    for _, planes, truth in islice(images_of(name, "bench"), n_images or None):
        config = InferenceConfig(diameter_px=median_diameter(truth) if true_diameter else 0, mirrored=mirrored)
        objects = segment_array(model, planes, "objects", config=config)
        parts.append((average_precision(objects, truth), seg_score(objects, truth), truth.size))
    scores, segs, sizes = zip(*parts, strict=True)
    return Measured(scores, reduce(add, segs), sum(sizes), time.perf_counter() - began)


def images_of(name: str, split: str) -> Iterator[tuple[str, Planes, NDArray[Any]]]:
    """Stem, image and truth of each single image; time-lapses belong to tracking."""
    for stem in json.loads((DATA / "splits.json").read_text())[name][split]:
        image = read(name, "images", stem)
        if image.ndim == len(SETS[name]):
            yield stem, Planes(image, SETS[name], stem), read(name, "masks", stem)


def read(name: str, folder: str, stem: str) -> NDArray[Any]:
    return tifffile.imread(DATA / name / folder / f"{stem}.tif")


def as_classes(mask: NDArray[Any], kind: str) -> NDArray[np.uint8]:
    return objects_to_classes(mask, boundary_px=2) if kind == "objects" else (mask + 1).astype(np.uint8)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["zero-shot", "masks"])
    parser.add_argument("--model", default="cells")
    parser.add_argument("--sets", nargs="*", choices=list(SETS))
    parser.add_argument("--images", type=int, default=0, help="measure only the first N images of each set")
    parser.add_argument("--diameter", choices=["measured", "true"], default="measured")
    parser.add_argument("--mirrored", action="store_true", help="look at mirror images too")
    parser.add_argument("--masks", nargs="*", type=int, default=[1, 2, 5])
    parser.add_argument("--border-weight", nargs="*", type=float, default=[0, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=TrainingConfig().max_minutes)
    parser.add_argument("--steps", type=int, default=TrainingConfig().max_steps)
    return parser.parse_args()


if __name__ == "__main__":
    main()
