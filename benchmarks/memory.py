"""Does memory stay flat? Training again and again, an image larger than memory, and a window used for a long time.

    python benchmarks/memory.py cycles [--n 20]
    python benchmarks/memory.py zarr [--side 20000]
    python benchmarks/memory.py soak [--minutes 10]

``soak`` needs a display, or Xvfb for a virtual one. Networks are small: what counts is what is kept, not how fast.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MEGABYTE = 2**20


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cycles", "zarr", "soak"))
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CELLBRUSH_HOME"] = folder
        os.environ["NAPARI_CONFIG"] = str(Path(folder) / "settings.yaml")
        if arguments.what == "cycles":
            cycles(arguments.n)
        elif arguments.what == "zarr":
            zarr(arguments.side, Path(folder))
        else:
            soak(arguments.minutes)
    return 0


def resident_mb() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss / MEGABYTE)


def tiny_settings() -> Any:
    from napari_cellbrush.config import NetworkConfig, TrainingConfig

    return TrainingConfig(max_steps=5, batch_size=2, patch_px=64, held_out_fraction=0, warmup_steps=1,
                          network=NetworkConfig(depth=3, base_filters=8))


def tiny_model() -> Any:
    from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
    from napari_cellbrush.engine.model import ModelCard, new_model

    card = ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=1, any_channels=True, n_steps=1,
                     network=NetworkConfig(depth=3, base_filters=8))
    return new_model(card, 0)


def painted(side: int) -> tuple[Any, Any]:
    image = np.random.default_rng(0).random((side, side)).astype(np.float32)
    strokes = np.zeros((side, side), np.uint8)
    strokes[50:90, 50:90], strokes[200:240, 200:240], strokes[300:330, 50:80] = 1, 2, 3
    return image, strokes


def cycles(n: int) -> None:
    """Train and segment, again and again."""
    from napari_cellbrush import api

    image, strokes = painted(768)
    sizes = []
    for number in range(n):
        model = api.fine_tune(tiny_model(), image, strokes, tiny_settings(), device="cpu")
        api.segment(image, model, "objects", device="cpu")
        del model
        sizes.append(resident_mb())
        print(f"cycle {number + 1:3}: {sizes[-1]:7.1f} MB", flush=True)
    settled = sizes[2:]
    print(f"from the third on: {min(settled):.1f} to {max(settled):.1f} MB, "
          f"{100 * (settled[-1] / settled[0] - 1):+.1f} %")


def zarr(side: int, folder: Path) -> None:
    """Segment an image that is read chunk by chunk; the answer, one byte a pixel, is in memory."""
    import zarr as store

    from napari_cellbrush import api

    chunk = 1000
    array = store.create_array(str(folder / "huge.zarr"), shape=(side, side), chunks=(chunk, chunk), dtype="uint8")
    tile = np.random.default_rng(0).integers(0, 255, (chunk, chunk), np.uint8) // 32 * 32
    for row in range(0, side, chunk):
        for column in range(0, side, chunk):
            array[row : row + chunk, column : column + chunk] = tile
    print(f"before: {resident_mb():.0f} MB", flush=True)
    began = time.perf_counter()
    mask = api.segment(store.open(str(folder / "huge.zarr"), mode="r"), tiny_model(), "classes", device="cpu")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    done = (mask > 0).mean()
    print(f"{side} × {side} in {time.perf_counter() - began:.0f} s, {100 * done:.0f} % answered, peak {peak:.0f} MB, "
          f"of which the answer {mask.nbytes / MEGABYTE:.0f} MB")


def soak(minutes: float) -> None:
    """Do in a window, at random, what a person does; count what is left after each round."""
    from napari_cellbrush.demo import has_display, virtual_screen

    if not has_display(os.environ):
        import subprocess

        with virtual_screen() as environment:
            subprocess.run([sys.executable, __file__, "soak", "--minutes", str(minutes)], env=environment, check=True)
        return
    import napari
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication

    from napari_cellbrush.engine.model_file import add_to_library
    from napari_cellbrush.napari_ui.workbench import workbench_for

    add_to_library(tiny_model(), "tiny")
    viewer = napari.Viewer(show=True)
    bench = workbench_for(viewer)
    person = Person(viewer, bench)
    end, number = time.monotonic() + 60 * minutes, 0
    first: tuple[int, int, float] | None = None
    while time.monotonic() < end:
        number += 1
        person.work()
        while viewer.layers:
            viewer.layers.pop()
            QTest.qWait(50)
        QTest.qWait(300)
        left = len(QApplication.allWidgets()), threading.active_count(), resident_mb()
        # The first rounds load what is loaded once.
        first = left if number == 3 else first
        print(f"round {number:3}: {left[0]:5} widgets, {left[1]:2} threads, {left[2]:7.1f} MB, "
              f"{person.n_actions:5} actions", flush=True)
    viewer.close()
    if first is not None:
        print(f"since round 3: {left[0] - first[0]:+} widgets, {left[1] - first[1]:+} threads, "
              f"{left[2] - first[2]:+.1f} MB in {number - 3} rounds")


class Person:
    """Somebody who paints, trains, segments, undoes, looks around and changes her mind."""

    def __init__(self, viewer: Any, bench: Any) -> None:
        self.viewer, self.bench, self.session = viewer, bench, bench.session
        self.random = np.random.default_rng(0)
        self.n_actions = 0
        self.image, _ = painted(400)
        self.session.training_config = tiny_settings()

    def work(self) -> None:
        """One round: an image, thirty actions."""
        from napari_cellbrush.napari_ui.menu_actions import open_workspace

        self.viewer.add_image(self.image, name="cells")
        open_workspace(self.viewer)
        self.wait(lambda: self.session.models is not None and self.session.device_text)
        self.session.choose_base("tiny")
        self.session.choose_model("tiny")
        self.bench.annotating.new_annotation(self.session.image.key)
        for value, row in ((1, 50), (2, 150)):
            self.annotation.paint((row, 100), value)
        actions = [self.paint, self.paint, self.paint, self.undo, self.redo, self.train, self.segment, self.move,
                   self.rename, self.change_tab, self.save]
        for number in self.random.integers(0, len(actions), 30):
            actions[number]()
            self.n_actions += 1
            self.wait(lambda: True)
        for run in (self.bench.fine_tuning, self.bench.segmenting):
            run.stop()
        self.wait(lambda: not self.session.training.busy and not self.session.segmentation.busy)

    @property
    def annotation(self) -> Any:
        return self.bench.annotating.layer_of(self.session.image.key)

    def wait(self, condition: Any) -> None:
        from qtpy.QtTest import QTest

        QTest.qWait(20)
        while not condition():
            QTest.qWait(20)

    def paint(self) -> None:
        row, column = (int(n) for n in self.random.integers(10, 390, 2))
        self.annotation.paint((row, column), int(self.random.integers(0, 4)))

    def undo(self) -> None:
        self.annotation.undo()

    def redo(self) -> None:
        self.annotation.redo()

    def train(self) -> None:
        self.bench.fine_tuning.start("soak")

    def segment(self) -> None:
        self.session.set_options(output=str(self.random.choice(["classes", "objects", "probabilities"])), scope="layer")
        self.bench.segmenting.start()

    def move(self) -> None:
        self.viewer.scene.camera.zoom *= float(self.random.uniform(0.7, 1.4))

    def rename(self) -> None:
        self.annotation.name = f"strokes {self.n_actions}"

    def change_tab(self) -> None:
        from napari_cellbrush.napari_ui.menu_actions import open_workspace

        tabs: Any = ["annotate", "finetune", "segment", "export"]
        open_workspace(self.viewer, tabs[int(self.random.integers(0, 4))])

    def save(self) -> None:
        self.bench.autosaving.save()


if __name__ == "__main__":
    sys.exit(main())
