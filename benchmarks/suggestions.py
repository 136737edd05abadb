"""Strokes needed for the same mask: painted where the program suggests, against painted at random places.

    python benchmarks/suggestions.py [--split bench|train] [--sets NAME...] [--seeds N] [--strokes N]

Reads ``$CELLBRUSH_DATA`` (default ``../shared/data``). A simulated annotator begins with one stroke of each class,
the same ones in both cases. Then it paints one stroke after the other: at random, of each class in turn, along the
middle of what it knows to be there; or at the place that is suggested, of whatever class is there. After every stroke
the instant classifier is fitted anew, and its mask is compared with the truth of the whole image, as the mean
intersection over union of the classes. Printed is the best that random places reach, averaged over seeds, after how
many strokes they first do, and after how many strokes suggestions reach the same.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from annotator import paint, stroke_at
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES, classes_from_names
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.diameter import object_diameter
from napari_cellbrush.engine.features import FeatureSource
from napari_cellbrush.engine.guide import instant_probabilities
from napari_cellbrush.engine.metrics import class_iou
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.suggestions import next_places

DATA = Path(os.environ.get("CELLBRUSH_DATA", "../shared/data"))
#: Axes of the images, kind of the truth, and names of the classes.
SETS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "bbbc039_nuclei_dev": ("YX", "objects", DEFAULT_CLASSES),
    "dsb2018_brightfield": ("YX", "objects", DEFAULT_CLASSES),
    "dsb2018_histology": ("YXS", "objects", DEFAULT_CLASSES),
    "usiigaci_phase": ("YX", "objects", DEFAULT_CLASSES),
    "dsb2018_fluo": ("YX", "objects", DEFAULT_CLASSES),
    "axondeepseg_sem": ("YX", "classes", classes_from_names(["background", "myelin", "axon"])),
}
#: Images are cut to this side at most: what a person looks at.
SIDE_PX = 384
#: Images of a set that are painted, one after the other; each must show all classes.
IMAGES = 3
#: What is painted next, given the strokes so far and the probabilities KYX of the mask.
Annotator = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.uint8]]


class Scene:
    """One image with its truth, and a classifier that is fitted to strokes in a moment."""

    def __init__(self, model: Model, name: str, stem: str) -> None:
        axes, kind, classes = SETS[name]
        image = _cut(tifffile.imread(DATA / name / "images" / f"{stem}.tif"), axes)
        mask = _cut(tifffile.imread(DATA / name / "masks" / f"{stem}.tif"), "YX")
        self.truth = objects_to_classes(mask, boundary_px=2) if kind == "objects" else (mask + 1).astype(np.uint8)
        self.n_classes = len(classes)
        planes, device = Planes(image, axes, stem), choose_device("cpu")
        scale = model.card.scale_for(object_diameter(model, planes, 0, device, classes=classes))
        self._source = FeatureSource(model, planes, scale, device, budget_bytes=2**30)
        self.has_all_classes = len(np.unique(self.truth[self.truth > 0])) == self.n_classes
        whole = (slice(0, planes.shape_yx[0]), slice(0, planes.shape_yx[1]))
        self._whole = whole

    def probabilities(self, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """KYX of the classifier that strokes give."""
        found = instant_probabilities(self._source, (), self._whole, labels, self.n_classes)
        if found is None:
            raise ValueError("a start has strokes of all classes")
        return found


def iou_after_each_stroke(scene: Scene, start: NDArray[np.uint8], annotator: Annotator, n: int) -> list[float]:
    """Mean intersection over union after the strokes of the start, and after each of n further ones."""
    labels, scores = start.copy(), []
    for _ in range(n + 1):
        probabilities = scene.probabilities(labels)
        scores.append(class_iou((probabilities.argmax(axis=0) + 1).astype(np.uint8), scene.truth,
                                scene.n_classes).mean)
        new = annotator(labels, probabilities)
        labels = np.where(new > 0, new, labels).astype(np.uint8)
    return scores


def at_random(scene: Scene, random: np.random.Generator) -> Annotator:
    """Strokes of each class in turn, wherever they fall."""
    present = np.unique(scene.truth[scene.truth > 0])
    turn = 0

    def annotate(labels: NDArray[np.uint8], _: NDArray[np.float32]) -> NDArray[np.uint8]:
        nonlocal turn
        value = present[turn % len(present)]
        turn += 1
        return paint(np.where(scene.truth == value, scene.truth, 0).astype(np.uint8), 1, random)

    return annotate


def as_suggested(scene: Scene) -> Annotator:
    """A stroke at the place that is suggested."""

    def annotate(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        place = next_places(labels, probabilities)[0]
        return stroke_at(scene.truth, round(place.row), round(place.column))

    return annotate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=["bench", "train"], default="bench")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strokes", type=int, default=24, help="after the first one of each class")
    arguments = parser.parse_args()
    model = read_model(find_model("cells"))
    print("| set | IoU at first | best at random | strokes for it at random | as suggested | share | IoU at the end, "
          "random | suggested |\n|---|---|---|---|---|---|---|---|")
    for name in arguments.sets:
        print(compare(model, name, arguments), flush=True)


def compare(model: Model, name: str, arguments: argparse.Namespace) -> str:
    stems = json.loads((DATA / "splits.json").read_text())[name][arguments.split]
    curves: list[tuple[list[float], list[float]]] = []
    scenes = list(islice((scene for stem in stems if (scene := Scene(model, name, stem)).has_all_classes), IMAGES))
    for seed in range(arguments.seeds):
        scene = scenes[seed % len(scenes)]
        random = np.random.default_rng(seed)
        start = paint(scene.truth, 1, random)
        curves.append((iou_after_each_stroke(scene, start, at_random(scene, random), arguments.strokes),
                       iou_after_each_stroke(scene, start, as_suggested(scene), arguments.strokes)))
    by_chance, by_advice = np.mean(curves, axis=0)
    n_first, best = len(SETS[name][2]), by_chance.max()
    chance_took, reached = int(by_chance.argmax()), np.flatnonzero(by_advice >= best)
    needed = f"{n_first + reached[0]}" if len(reached) else f"> {n_first + arguments.strokes}"
    share = f"{(n_first + reached[0]) / (n_first + chance_took):.2f}" if len(reached) else "> 1"
    return (f"| {name} | {by_chance[0]:.3f} | {best:.3f} | {n_first + chance_took} | {needed} | {share} | "
            f"{by_chance[-1]:.3f} | {by_advice[-1]:.3f} |")


def _cut(image: NDArray[Any], axes: str) -> NDArray[Any]:
    return image[tuple(slice(SIDE_PX) if axis in "YX" else slice(None) for axis in axes)]


if __name__ == "__main__":
    main()
