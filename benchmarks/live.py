"""How smooth the window stays, and how soon the mask follows, while somebody paints and the model learns.

    python benchmarks/live.py [--size PX] [--strokes N] [--steps N]

Opens a real window (in Xvfb where there is no display), paints made-up nuclei with real mouse events, and prints two
tables. A timer ticks every 10 ms in the window's thread; a gap is the time between two ticks. "Live off" is the same
painting without live, which shows what napari and the machine themselves cost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICK_MS = 10
#: A person lifts the brush between strokes.
REST_S = 0.6
STROKE_MOVES = 30
PATIENCE_S = 300


def main() -> int:
    """Measure here, or in a virtual screen."""
    from napari_cellbrush.demo import has_display, virtual_screen

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--strokes", type=int, default=24)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    if has_display(os.environ):
        measure(arguments)
        return 0
    with virtual_screen() as environment:
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def measure(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CELLBRUSH_HOME"] = folder
        os.environ["NAPARI_CONFIG"] = str(Path(folder) / "settings.yaml")
        headless = headless_steps(arguments.steps)
        import napari

        viewer = napari.Viewer(title="live")
        painter = Painter(viewer, arguments.size)
        off = painter.paint(arguments.strokes, live=False)
        on = painter.paint(arguments.strokes, live=True)
        inside = painter.steps(arguments.steps)
        painter.close()
        print_tables(arguments, off, on, headless, inside)


class Measured:
    """What one round of painting gave."""

    def __init__(self) -> None:
        self.gaps_ms: list[float] = []
        self.n_lost = 0
        #: Seconds from the release of the button to the first part of the new mask, and to all that is seen.
        self.first_s: list[float] = []
        self.all_s: list[float] = []
        self.fits_ms: list[float] = []
        self.views_ms: list[float] = []


class Painter:
    """A window, and a person in front of it."""

    def __init__(self, viewer: Any, size: int) -> None:
        from qtpy.QtCore import Qt, QTimer

        from napari_cellbrush.napari_ui import menu_actions
        from napari_cellbrush.napari_ui.sample_data import synthetic_nuclei

        self.viewer = viewer
        viewer.add_image(synthetic_nuclei(n=90 * size**2 // 512**2, size=size), name="nuclei")
        self.workspace = menu_actions.open_workspace(viewer)
        self.bench = self.workspace.annotate.bench
        self.session = self.bench.session
        self.wait(lambda: self.session.models and self.session.device_text)
        self.session.inference_config = self.session.inference_config.replace(diameter_px=24)
        self.session.training_config = self.session.training_config.replace(diameter_px=24)
        self.random = np.random.default_rng(0)
        self.gaps_ms: list[float] = []
        self._last = time.perf_counter()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._on_tick)
        self._timer.start(TICK_MS)

    def _on_tick(self) -> None:
        now = time.perf_counter()
        self.gaps_ms.append(1000 * (now - self._last))
        self._last = now

    # ----------------------------------------------------------------------------------------------- painting

    def paint(self, n_strokes: int, *, live: bool) -> Measured:
        """Paint strokes of two classes in turns; with live on, wait for the mask after each."""
        self.bench.annotating.new_annotation(self.session.image.key)
        layer = self.viewer.layers["nuclei annotation"]
        if live:
            layer.data[...] = 0
            layer.refresh()
            self.bench.live.switch(True)
            self.wait(lambda: self.bench.live._fitted is not None)
            self.bench.live._job.received.connect(self._on_event)
        measured = self.measured = Measured()
        self.gaps_ms.clear()
        for number in range(n_strokes):
            layer.selected_label = 1 + number % 2
            path = self._path(1 + number % 2)
            self._drag(path)
            self._released = time.perf_counter()
            self._n_new, self._seconds = 0, 0.0
            painted = [layer.data[round(row), round(column)] for row, column in path]
            measured.n_lost += sum(value != 1 + number % 2 for value in painted)
            if live and number:
                generation = self.bench.live._generation
                self.wait(lambda g=generation: self.bench.live.answered == g and self._n_new >= self._n_seen())
                measured.all_s.append(time.perf_counter() - self._released)
                measured.views_ms.append(1000 * self._seconds)
            self.rest(REST_S)
        measured.gaps_ms = list(self.gaps_ms)
        return measured

    def _path(self, value: int) -> list[tuple[float, float]]:
        """Through the middle of a nucleus, or across the background."""
        image = self.viewer.layers["nuclei"].data
        bright = image > np.percentile(image, 70) if value == 2 else image < np.percentile(image, 40)
        inside = np.argwhere(bright[40:-40, 40:-40]) + 40
        row, column = inside[self.random.integers(len(inside))]
        length = 6 if value == 2 else 25
        return [(row, column - length / 2 + length * i / STROKE_MOVES) for i in range(STROKE_MOVES)]

    def _drag(self, points: list[tuple[float, float]]) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        canvas = self.viewer.window._qt_viewer.canvas
        pixels = [self._pixel(canvas, point) for point in points]
        QTest.mouseMove(canvas.native, pixels[0])
        QTest.qWait(10)
        QTest.mousePress(canvas.native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, pixels[0])
        for pixel in pixels[1:]:
            QTest.mouseMove(canvas.native, pixel)
            QTest.qWait(15)
        QTest.mouseRelease(canvas.native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, pixels[-1])

    @staticmethod
    def _pixel(canvas: Any, point: tuple[float, float]) -> Any:
        from qtpy.QtCore import QPoint

        x, y = canvas.view.scene.transform.map((point[1], point[0]))[:2]
        return QPoint(round(x), round(y))

    def _on_event(self, event: Any) -> None:
        from napari_cellbrush.events import HeadFitted, LiveTile

        if isinstance(event, HeadFitted) and event.ready:
            self.measured.fits_ms.append(1000 * event.seconds)
            self._n_new, self._seconds = 0, event.seconds
        elif isinstance(event, LiveTile):
            if not self._n_new:
                self.measured.first_s.append(time.perf_counter() - self._released)
            self._n_new += 1
            self._seconds += event.seconds if self._n_new <= self._n_seen() else 0

    def _n_seen(self) -> int:
        view, source = self.bench.live._view, self.bench.live._known.source
        return len(source.tiles((view.rows, view.columns)))

    # -------------------------------------------------------------------------------------------------- steps

    def steps(self, n: int) -> list[float]:
        """Seconds of steps of the learning beside, while nobody paints."""
        seconds: list[float] = []
        with timed_steps(seconds):
            self.wait(lambda: len(seconds) >= n + 1)
        return seconds[1:]

    def wait(self, condition: Callable[[], object]) -> None:
        from qtpy.QtTest import QTest

        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit("waited too long")
            QTest.qWait(5)

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > until)

    def close(self) -> None:
        self._timer.stop()
        self.bench.close()
        self.viewer.close()


class timed_steps:  # noqa: N801  (reads as a function)
    """While it is entered, every step of learning notes its seconds, the way to its batch left out."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        from napari_cellbrush.engine.learner import Learner

        self._step = Learner.step
        step, seconds = self._step, self._seconds

        def timed(learner: Any, *batch: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = step(learner, *batch, **named)
            seconds.append(time.perf_counter() - began)
            return result

        Learner.step = timed  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from napari_cellbrush.engine.learner import Learner

        Learner.step = self._step  # type: ignore[method-assign]


def headless_steps(n: int) -> list[float]:
    """Seconds of the same steps without a window."""
    from napari_cellbrush.config import DEFAULT_CLASSES, TrainingConfig
    from napari_cellbrush.engine.continuous import StrokeInbox, learn_continuously
    from napari_cellbrush.engine.model_file import find_model, read_model
    from napari_cellbrush.engine.planes import Planes
    from napari_cellbrush.napari_ui.runs import load_torch
    from napari_cellbrush.napari_ui.sample_data import synthetic_nuclei

    load_torch()
    labels: NDArray[np.uint8] = np.zeros((512, 512), np.uint8)
    for position in range(12):
        labels[30 + 35 * position : 33 + 35 * position, 40:90] = 1 + position % 2
    inbox, seconds = StrokeInbox(), []
    inbox.put([labels])
    run = learn_continuously(read_model(find_model("cells")), [Planes(synthetic_nuclei(), "YX")], inbox,
                             TrainingConfig(diameter_px=24), classes=DEFAULT_CLASSES)
    with timed_steps(seconds):
        while len(seconds) < n + 1:
            next(run)
    run.close()
    return seconds[1:]


def print_tables(arguments: argparse.Namespace, off: Measured, on: Measured, headless: list[float],
                 inside: list[float]) -> None:
    import torch

    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s) of torch in the window's thread, image "
          f"{arguments.size} × {arguments.size}, {arguments.strokes} strokes\n")
    print("| gaps of the window's clock, ms | p50 | p99 | max | points of strokes lost |\n|---|---|---|---|---|")
    for name, part in (("live off", off), ("live on, learning", on)):
        p50, p99 = np.percentile(part.gaps_ms, [50, 99])
        print(f"| {name} | {p50:.0f} | {p99:.0f} | {max(part.gaps_ms):.0f} | {part.n_lost} |")
    print("\n| what | median | p90 | max |\n|---|---|---|---|")
    for name, values, unit in (("stroke to first part of the mask", on.first_s, "s"),
                               ("stroke to all that is seen", on.all_s, "s"), ("fit", on.fits_ms, "ms"),
                               ("fit and answer of the view", on.views_ms, "ms"),
                               ("step of learning, no window", headless, "s"),
                               ("step of learning, in the window", inside, "s")):
        if values:
            median, p90 = np.percentile(values, [50, 90])
            print(f"| {name} | {median:.2f} {unit} | {p90:.2f} | {max(values):.2f} |")
    print(f"\nStep in the window against no window: {np.median(inside) / np.median(headless):.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
