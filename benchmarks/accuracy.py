"""How good the bundled weights are on images they never saw.

    python benchmarks/accuracy.py zero-shot [--model NAME|FILE] [--sets NAME...]

Reads ``$CELLBRUSH_DATA`` (default ``../shared/data``): images, instance masks and ``splits.json``, whose ``bench``
images alone are measured. Prints average precision TP / (TP + FP + FN), as Cellpose and StarDist report it, over
all objects of a set.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import tifffile

from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.metrics import average_precision
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes

DATA = Path(os.environ.get("CELLBRUSH_DATA", "../shared/data"))
#: Instance sets and the axes of their images.
SETS = {"dsb2018_fluo": "YX", "bbbc039_nuclei_dev": "YX", "dsb2018_brightfield": "YX", "dsb2018_histology": "YXS",
        "usiigaci_phase": "YX", "baby_yeast_5z": "CYX"}
THRESHOLDS = (0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["zero-shot"])
    parser.add_argument("--model", default="cells")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    arguments = parser.parse_args()
    model = read_model(find_model(arguments.model))
    print(f"Model {model.card.name}, {model.card.n_steps} steps, {choose_device().description}\n")
    print("| set | images | objects | AP50 | AP75 | s per Mpx |")
    print("|---|---|---|---|---|---|")
    for name in arguments.sets:
        print(zero_shot(model, name))


def zero_shot(model: object, name: str) -> str:
    counts = np.zeros((len(THRESHOLDS), 3))
    n_images = n_objects = n_pixels = 0
    began = time.perf_counter()
    for stem in json.loads((DATA / "splits.json").read_text())[name]["bench"]:
        image = tifffile.imread(DATA / name / "images" / f"{stem}.tif")
        truth = tifffile.imread(DATA / name / "masks" / f"{stem}.tif")
        if image.ndim != len(SETS[name]):
            continue  # time-lapses are measured by the tracking benchmark
        objects = segment_array(model, Planes(image, SETS[name], stem), "objects")
        found = average_precision(objects, truth, THRESHOLDS)
        counts += np.stack([found.true_positives, found.false_positives, found.false_negatives], axis=1)
        n_images, n_objects, n_pixels = n_images + 1, n_objects + len(np.unique(truth)) - 1, n_pixels + truth.size
    seconds = (time.perf_counter() - began) / n_pixels * 1e6
    precision = counts[:, 0] / counts.sum(1)
    return f"| {name} | {n_images} | {n_objects} | {precision[0]:.3f} | {precision[1]:.3f} | {seconds:.2f} |"


if __name__ == "__main__":
    main()
