"""How long one training step takes and how much of it is spent preparing patches.

    python benchmarks/training.py [--steps N] [--threads N]

Prints a table; runs of the settings are interleaved, so that a busy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from napari_cellbrush.config import DEFAULT_CLASSES, TrainingConfig
from napari_cellbrush.engine.annotation import collect_annotation
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.learner import Learner
from napari_cellbrush.engine.patches import Patches
from napari_cellbrush.engine.planes import Planes
from napari_cellbrush.engine.teacher import teacher_for
from napari_cellbrush.engine.training import scratch_model

SETTINGS = {
    "one-click default": TrainingConfig(),
    "large patch": TrainingConfig(patch_px=256, batch_size=1),
    "one patch as large as the paper's, SGD": TrainingConfig(patch_px=400, batch_size=1, optimiser="sgd"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = {name: Run(config) for name, config in SETTINGS.items()}
    for run in runs.values():
        run.step()  # warm up: kernels are chosen in the first step
    for run in runs.values():
        run.clear()
    for _ in range(arguments.steps):
        for run in runs.values():
            run.step()
    print(f"{choose_device().description}, {arguments.threads} thread(s), {arguments.steps} steps each\n")
    print("| setting | patch px | batch | step s (median) | spread (p10 to p90) | patches' share |")
    print("|---|---|---|---|---|---|")
    for name, run in runs.items():
        print(run.row(name))


class Run:
    """One setting on one synthetic image."""

    def __init__(self, config: TrainingConfig) -> None:
        random = np.random.default_rng(0)
        image = Planes(random.normal(size=(1024, 1024)).astype(np.float32), "YX")
        labels = np.zeros((1024, 1024), np.uint8)
        for value in (1, 2, 3):
            for row, column in random.integers(50, 950, (20, 2)):
                labels[row : row + 3, column : column + 50] = value
        device = choose_device()
        scratch = scratch_model(DEFAULT_CLASSES, 1, config)
        # As a base that learnt something, which then teaches too.
        base = replace(scratch, card=scratch.card.replace(n_steps=1))
        teacher = teacher_for(base, 1, DEFAULT_CLASSES, config, device)
        annotation = collect_annotation([image], [labels], DEFAULT_CLASSES)
        if teacher:
            teacher.trust(1.0, annotation.strokes_per_class)
        self.config = config
        self.learner = Learner(base, config, device, teacher)
        self.patches = Patches([image], annotation, base.card.classes, config, self.learner.network.geometry, device)
        self.clear()

    def clear(self) -> None:
        self.preparing: list[float] = []
        self.total: list[float] = []

    def step(self) -> None:
        began = time.perf_counter()
        batch = self.patches.next_batch()
        prepared = time.perf_counter()
        self.learner.step(*batch)
        self.preparing.append(prepared - began)
        self.total.append(time.perf_counter() - began)

    def row(self, name: str) -> str:
        low, median, high = np.percentile(self.total, [10, 50, 90])
        share = np.sum(self.preparing) / np.sum(self.total)
        size = self.learner.network.geometry.input_size_at_least(self.config.patch_px)
        return (f"| {name} | {size} | {self.config.batch_size} | {median:.3f} | {low:.3f} to {high:.3f} "
                f"| {100 * share:.0f} % |")


if __name__ == "__main__":
    main()
