"""How good the bundled weights are on images they never saw, and how good a model tuned on few strokes is.

    python benchmarks/accuracy.py zero-shot [--model NAME|FILE] [--sets NAME...] [--diameter measured|true]
    python benchmarks/accuracy.py strokes [--strokes N...] [--seeds N] [--minutes F] [--sets NAME...]

Reads ``$CELLBRUSH_DATA`` (default ``../shared/data``): images, instance masks and ``splits.json``, whose ``bench``
images alone are measured. Zero-shot prints average precision TP / (TP + FP + FN), as Cellpose and StarDist report
it, over all objects of a set; the object diameter is measured by the model, or given as a person would, who knows the
median of the image. Strokes prints the mean intersection over union of the classes on images that were
not painted, beside a random forest on the same strokes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from annotator import paint
from numpy.typing import NDArray
from random_forest import RandomForest

from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, TrainingConfig, classes_from_names
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.diameter import median_diameter
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.metrics import ObjectScores, average_precision, class_iou
from napari_cellbrush.engine.model import Model, knows_all
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.training import train

DATA = Path(os.environ.get("CELLBRUSH_DATA", "../shared/data"))
#: Instance sets and the axes of their images.
SETS = {"dsb2018_fluo": "YX", "bbbc039_nuclei_dev": "YX", "dsb2018_brightfield": "YX", "dsb2018_histology": "YXS",
        "usiigaci_phase": "YX", "baby_yeast_5z": "CYX"}
THRESHOLDS = (0.5, 0.75)
#: Set: axes, images that are painted, images that are measured, and how truth becomes classes 1…K.
STROKE_SETS = {
    "isbi2012": ("YX", ["000", "001"], ["010", "013", "016", "019"], "classes"),
    "axondeepseg_sem": ("YX", ["005"], ["007", "008", "009"], "classes"),
    "usiigaci_phase": ("YX", ["000"], ["028", "034"], "objects"),
    "dsb2018_histology": ("YXS", ["001"], ["000", "005", "010", "015"], "objects"),
    "bbbc039_nuclei_dev": ("YX", ["001"], ["000", "005", "010", "015"], "objects"),
    "baby_yeast_5z": ("CYX", ["001"], ["000", "003", "006", "009"], "objects"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["zero-shot", "strokes"])
    parser.add_argument("--model", default="cells")
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--diameter", choices=["measured", "true"], default="measured")
    parser.add_argument("--strokes", nargs="*", type=int, default=[5, 20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=TrainingConfig().max_minutes)
    parser.add_argument("--steps", type=int, default=TrainingConfig().max_steps)
    arguments = parser.parse_args()
    model = read_model(find_model(arguments.model))
    print(f"Model {model.card.name}, {model.card.n_steps} steps, {choose_device().description}\n", flush=True)
    if arguments.task == "zero-shot":
        print("| set | images | objects | AP50 | AP75 | s per Mpx |\n|---|---|---|---|---|---|")
        for name in arguments.sets or SETS:
            print(zero_shot(model, name, arguments.diameter == "true"), flush=True)
        return
    print("| set | strokes per class | labelled | untuned | random forest | cellbrush | s |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.sets or STROKE_SETS:
        for n_strokes in arguments.strokes:
            print(from_strokes(model, name, n_strokes, arguments), flush=True)


def zero_shot(model: Model, name: str, true_diameter: bool) -> str:
    scores: ObjectScores | None = None
    n_images = n_objects = n_pixels = 0
    began = time.perf_counter()
    for stem in json.loads((DATA / "splits.json").read_text())[name]["bench"]:
        image, truth = read(name, "images", stem), read(name, "masks", stem)
        if image.ndim != len(SETS[name]):
            continue  # a time-lapse, which belongs to tracking
        config = InferenceConfig(diameter_px=median_diameter(truth) if true_diameter else 0)
        objects = segment_array(model, Planes(image, SETS[name], stem), "objects", config=config)
        found = average_precision(objects, truth, THRESHOLDS)
        scores = found if scores is None else scores + found
        n_images, n_objects, n_pixels = n_images + 1, n_objects + len(np.unique(truth)) - 1, n_pixels + truth.size
    seconds = (time.perf_counter() - began) / n_pixels * 1e6
    precision = scores.average_precision
    return f"| {name} | {n_images} | {n_objects} | {precision[0]:.3f} | {precision[1]:.3f} | {seconds:.2f} |"


def from_strokes(model: Model, name: str, n_strokes: int, arguments: argparse.Namespace) -> str:
    rows = [_one_seed(model, name, n_strokes, seed, arguments) for seed in range(arguments.seeds)]
    labelled, untuned, forest, tuned, seconds = (np.array(column, float) for column in zip(*rows, strict=True))
    return (f"| {name} | {n_strokes} | {100 * labelled.mean():.2f} % | {untuned.mean():.3f} | {_spread(forest)} | "
            f"{_spread(tuned)} | {seconds.mean():.0f} |")


def _one_seed(model: Model, name: str, n_strokes: int, seed: int,
              arguments: argparse.Namespace) -> tuple[float, float, float, float, float]:
    axes, painted, measured, kind = STROKE_SETS[name]
    random = np.random.default_rng(seed)
    images = [Planes(read(name, "images", stem), axes, stem) for stem in painted]
    truths = [as_classes(read(name, "masks", stem), kind) for stem in painted]
    share = max(1, n_strokes // len(painted))
    labels = [paint(truth, share, random) for truth in truths]
    classes = DEFAULT_CLASSES if kind == "objects" else DEFAULT_CLASSES[: int(truths[0].max())]
    if name == "isbi2012":
        classes = classes_from_names(["membrane", "cell"])
    if name == "axondeepseg_sem":
        classes = classes_from_names(["background", "myelin", "axon"])
    began = time.perf_counter()
    config = TrainingConfig(seed=seed, max_minutes=arguments.minutes, max_steps=arguments.steps)
    tuned = run(train(model, images, labels, config, classes=classes)).model
    seconds = time.perf_counter() - began
    forest = RandomForest(seed=seed).fit([_cyx(image) for image in images], labels)
    scores = []
    for stem in measured:
        image, truth = Planes(read(name, "images", stem), axes, stem), as_classes(read(name, "masks", stem), kind)
        answers = [segment_array(model, image) if knows_all(model, classes) else None, forest.predict(_cyx(image)),
                   segment_array(tuned, image)]
        scores.append([np.nan if a is None else class_iou(a, truth, len(classes)).mean for a in answers])
    untuned, by_forest, by_tuned = np.mean(scores, axis=0)
    fraction = sum(int((part > 0).sum()) for part in labels) / sum(part.size for part in labels)
    return fraction, untuned, by_forest, by_tuned, seconds


def read(name: str, folder: str, stem: str) -> NDArray[Any]:
    return tifffile.imread(DATA / name / folder / f"{stem}.tif")


def as_classes(mask: NDArray[Any], kind: str) -> NDArray[np.uint8]:
    return objects_to_classes(mask) if kind == "objects" else (mask + 1).astype(np.uint8)


def _cyx(image: Planes) -> NDArray[np.float32]:
    return image.read((), slice(0, image.shape_yx[0]), slice(0, image.shape_yx[1]))


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def run(generator: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


if __name__ == "__main__":
    main()
