"""The task of the paper of 2015: membranes in serial sections of neuropil, from fully labelled sections.

    python benchmarks/paper.py [--base cells|scratch] [--minutes F] [--steps N] [--seeds N]

Trains on the first 16 of the 20 labelled sections of ISBI 2012 (Arganda-Carreras et al. 2015, Frontiers in
Neuroanatomy 9, 142; Cardona et al. 2010, PLoS Biology 8, e1000502) and measures the last 4: a block, because neighbours
look alike. Prints, as the challenge did, pixel error, 1 − F of the Rand index and the variation of information of
the cells between thinned membranes, each at the membrane threshold from 0.1 to 0.9 that is best for it. The paper's
figures are on the challenge's own test sections, of which nobody has the truth, so they stand beside these and do not
compare with them. The data are for testing segmentation software; no weights made of them are ever shipped.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from accuracy import read
from numpy.typing import NDArray
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.morphology import skeletonize

from napari_cellbrush.config import TrainingConfig, classes_from_names
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.inference import segment_array
from napari_cellbrush.engine.model_file import find_model, read_model
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.training import scratch_model, train
from napari_cellbrush.events import run_to_end

LEARNT, MEASURED = range(16), range(16, 20)
CLASSES = classes_from_names(["membrane", "cell"])
THRESHOLDS = np.arange(0.1, 0.91, 0.1)
#: More than half the thickness of a membrane.
MARGIN_PX = 20
FIGURES = ("pixel error", "Rand error", "variation of information")
#: Ronneberger, Fischer, Brox 2015, table 1.
PAPER = (0.0611, 0.0382, float("nan"))


def main() -> None:
    """Print one table."""
    arguments = _arguments()
    rows = np.array([one_seed(seed, arguments) for seed in range(arguments.seeds)])
    print(f"Base {arguments.base}, {arguments.seeds} seeds, {choose_device().description}, "
          f"{rows[:, -1].mean():.0f} s of training\n")
    print("| | " + " | ".join(FIGURES) + " |\n" + "|---" * 4 + "|")
    print("| cellbrush, sections 16 to 19 | " + " | ".join(
        f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(rows.mean(0)[:3], rows.std(0)[:3], strict=True)) + " |")
    print("| the paper, other sections | " + " | ".join("–" if value != value else f"{value:.4f}" for value in PAPER)
          + " |")


def one_seed(seed: int, arguments: argparse.Namespace) -> list[float]:
    """The three figures, and the seconds of training."""
    config = TrainingConfig(seed=seed, max_minutes=arguments.minutes, max_steps=arguments.steps, patience=0,
                            border_weight=arguments.border_weight)
    base = scratch_model(CLASSES, 1, config) if arguments.base == "scratch" else read_model(find_model(arguments.base))
    images = [Planes(read("isbi2012", "images", f"{number:03d}"), "YX") for number in LEARNT]
    labels = [read("isbi2012", "masks", f"{number:03d}").astype(np.uint8) + 1 for number in LEARNT]
    began = time.perf_counter()
    model = run_to_end(train(base, images, labels, config, classes=CLASSES)).model
    seconds = time.perf_counter() - began
    found = []
    for number in MEASURED:
        membrane = segment_array(model, Planes(read("isbi2012", "images", f"{number:03d}"), "YX"), "probabilities")[0]
        found.append([errors(membrane > threshold, read("isbi2012", "masks", f"{number:03d}") == 0)
                      for threshold in THRESHOLDS])
    return [*np.mean(found, axis=0).min(axis=0), seconds]


def errors(membrane: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Pixel error, 1 − F of the Rand index, and variation of information in bits, of membranes YX."""
    # Thinning shortens ends: without a margin, cells would leak into each other along the image's border.
    thin = skeletonize(np.pad(membrane, MARGIN_PX, mode="edge"))[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    cells = label(~thin, connectivity=1)
    true_cells = label(~truth, connectivity=1)
    # Membrane pixels of the truth belong to no cell and do not count, as in the challenge.
    rand, _, _ = adapted_rand_error(true_cells, cells)
    return (float(np.mean(membrane != truth)), float(rand),
            float(sum(variation_of_information(true_cells, cells, ignore_labels=[0]))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="cells", help="a model, or scratch for random weights as in the paper")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--border-weight", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
