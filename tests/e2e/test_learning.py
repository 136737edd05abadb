"""The command line learns from strokes what a pixel classifier learns from the same strokes, or better."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_cellbrush.cli import main
from napari_cellbrush.engine.metrics import class_iou

#: Training for real takes longer than other tests, above all on a busy machine.
pytestmark = pytest.mark.timeout(900)

DATA = Path(os.environ.get("CELLBRUSH_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def forest() -> type:
    """The peer: a random forest on multi-scale filters, as in ilastik and Labkit."""
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        from random_forest import RandomForest
    finally:
        sys.path.pop(0)
    return RandomForest


def discs(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bright discs and bright thin lines on dark, noisy ground; only the discs are cells."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256]
    truth = np.ones((256, 256), np.uint8)
    for row, column in random.integers(20, 236, size=(12, 2)):
        truth[(rows - row) ** 2 + (columns - column) ** 2 < 14**2] = 2
    bright = truth == 2
    bright[random.integers(0, 256, 8)] = True
    image = 60 + 80 * bright + random.normal(0, 20, truth.shape)
    return np.clip(image, 0, 255).astype(np.uint8), truth


def strokes(truth: NDArray[np.uint8], n_each: int, seed: int) -> NDArray[np.uint8]:
    """Straight strokes of 3 × 25 px, each inside one class."""
    random = np.random.default_rng(seed)
    labels = np.zeros(truth.shape, np.uint8)
    for value in np.unique(truth):
        painted = 0
        for row, column in random.permutation(np.argwhere(truth == value)):
            window = np.s_[row : row + 3, column : column + 25]
            if truth[window].shape == (3, 25) and (truth[window] == value).all() and not labels[window].any():
                labels[window] = value
                painted += 1
            if painted == n_each:
                break
    return labels


def learn_and_segment(folder: Path, image: NDArray[np.uint8], labels: NDArray[np.uint8], other: NDArray[np.uint8],
                      *options: str) -> NDArray[np.uint8]:
    """Train with the command line on one image and return its class map of another."""
    for name, array in (("image", image), ("labels", labels), ("other", other)):
        tifffile.imwrite(folder / f"{name}.tif", array)
    assert main(["train", str(folder / "image.tif"), "--labels", str(folder / "labels.tif"), "--out",
                 str(folder / "model.safetensors"), "--seed", "0", *options]) == 0
    assert main(["segment", str(folder / "other.tif"), "--model", str(folder / "model.safetensors"), "--out",
                 str(folder / "out")]) == 0
    return tifffile.imread(folder / "out" / "other_classes.tif")


def test_the_command_line_learns_discs_from_ten_strokes_a_class(tmp_path: Path, forest: type) -> None:
    image, truth = discs(0)
    other, other_truth = discs(1)
    labels = strokes(truth, 10, seed=0)
    found = learn_and_segment(tmp_path, image, labels, other, "--base", "scratch", "--classes", "background,cell",
                              "--max-steps", "80", "--max-minutes", "10", "--learning-rate", "3e-3",
                              "--network.base-filters", "8", "--network.depth", "3", "--patch-px", "96")
    peer = forest(seed=0).fit([image[None]], [labels]).predict(other[None])
    ours, theirs = (class_iou(prediction, other_truth, 2).mean for prediction in (found, peer))
    print(json.dumps({"cellbrush": ours, "random_forest": theirs}))
    assert ours > 0.85
    assert ours > theirs - 0.05, f"{ours:.3f} against the random forest's {theirs:.3f}"


@pytest.mark.skipif(not (DATA / "bbbc039_nuclei_dev").exists(), reason=f"no real images in {DATA} (CELLBRUSH_DATA)")
def test_the_command_line_learns_real_nuclei_as_well_as_a_random_forest(tmp_path: Path, forest: type) -> None:
    def read(stem: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        folder = DATA / "bbbc039_nuclei_dev"
        mask = tifffile.imread(folder / "masks" / f"{stem}.tif")
        return tifffile.imread(folder / "images" / f"{stem}.tif"), np.where(mask > 0, 2, 1).astype(np.uint8)

    image, truth = read("001")
    other, other_truth = read("000")
    labels = strokes(truth, 8, seed=0)
    found = learn_and_segment(tmp_path, image, labels, other, "--classes", "background,cell", "--max-steps", "40",
                              "--max-minutes", "10")
    peer = forest(seed=0).fit([image[None]], [labels]).predict(other[None])
    ours, theirs = (class_iou(prediction, other_truth, 2).mean for prediction in (found, peer))
    print(json.dumps({"cellbrush": ours, "random_forest": theirs}))
    assert ours > theirs - 0.01, f"{ours:.3f} against the random forest's {theirs:.3f}"
