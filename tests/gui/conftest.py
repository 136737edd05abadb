"""A person in front of the window, a model that takes no time, and a watch over threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig, TrainingConfig
from napari_cellbrush.engine import inference
from napari_cellbrush.engine.model import Model, ModelCard, new_model
from napari_cellbrush.engine.model_file import add_to_library
from napari_cellbrush.events import InferenceStarted, StopToken
from napari_cellbrush.napari_ui.workbench import Workbench, workbench_for
from napari_cellbrush.napari_ui.workspace import Workspace

#: Seconds that a busy machine may take for what usually takes less than one.
PATIENCE_S = 60
#: Three steps, and nothing held out: whether random weights get better in three steps is luck.
TINY_TRAINING = TrainingConfig(max_steps=3, batch_size=1, patch_px=64, held_out_fraction=0, warmup_steps=1,
                               network=NetworkConfig(depth=3, base_filters=8))


class Person:
    """Does with mouse and keyboard what a person does."""

    def __init__(self, viewer: Any) -> None:
        self.viewer = getattr(viewer, "__wrapped__", viewer)
        # Only its canvas can be hit by a mouse.
        self._canvas = self.viewer.window._qt_viewer.canvas

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """A stroke through world points (row, column)."""
        self.press(points[0])
        for point in points[1:]:
            self.move(point)
        self.release(points[-1])

    def press(self, point: tuple[float, float]) -> None:
        QTest.mouseMove(self._canvas.native, self._pixel(point))
        QTest.qWait(10)
        QTest.mousePress(self._canvas.native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
                         self._pixel(point))
        QTest.qWait(10)

    def move(self, point: tuple[float, float]) -> None:
        QTest.mouseMove(self._canvas.native, self._pixel(point))
        QTest.qWait(10)

    def release(self, point: tuple[float, float]) -> None:
        QTest.mouseRelease(self._canvas.native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
                           self._pixel(point))
        QTest.qWait(10)

    def key(self, key: Qt.Key, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
        self._canvas.native.setFocus()
        QTest.keyClick(self._canvas.native, key, modifier)
        QTest.qWait(10)

    def click(self, button: Any) -> None:
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        QTest.qWait(10)

    @staticmethod
    def wait(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            QTest.qWait(10)

    def _pixel(self, point: tuple[float, float]) -> QPoint:
        x, y = self._canvas.view.scene.transform.map((point[1], point[0]))[:2]
        return QPoint(round(x), round(y))


def tiny_model(name: str = "tiny", classes: Any = DEFAULT_CLASSES, seed: int = 0) -> Model:
    """A small model with random weights that says it was trained, for any number of channels."""
    card = ModelCard(name=name, classes=classes, in_channels=1, any_channels=True, n_steps=1,
                     network=NetworkConfig(depth=3, base_filters=8))
    return new_model(card, seed)


@pytest.fixture(name="tiny_model")
def tiny_model_maker() -> Callable[..., Model]:
    return tiny_model


@pytest.fixture
def tiny(cellbrush_home: Any) -> str:
    """The name of a model in the library."""
    return add_to_library(tiny_model(), "tiny").stem


@pytest.fixture
def specks(workspace: Any) -> None:
    """Settings with which a model of random weights finds objects."""
    config = workspace.session.inference_config
    objects = config.objects.replace(min_object_px=1, smoothing_px=0, least_certainty=0)
    workspace.session.inference_config = config.replace(objects=objects)


@pytest.fixture
def image() -> np.ndarray:
    """Bright discs on dark noise, 120 × 150 float32."""
    rows, columns = np.mgrid[:120, :150]
    discs = ((rows % 40 - 20) ** 2 + (columns % 50 - 25) ** 2 < 12**2).astype(np.float32)
    return discs + np.random.default_rng(0).normal(0, 0.1, discs.shape).astype(np.float32)


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    """What a plugin gets: a proxy that lets only the main thread change layers."""
    return make_napari_viewer_proxy(show=True, ensure_main_thread=True)


@pytest.fixture
def person(viewer: Any) -> Person:
    return Person(viewer)


@pytest.fixture
def bench(viewer: Any) -> Workbench:
    bench = workbench_for(viewer)
    bench.session.training_config = TINY_TRAINING
    return bench


@pytest.fixture
def workspace(viewer: Any, bench: Workbench, tiny: str, person: Person) -> Workspace:
    """The open workspace, with the tiny model found and chosen."""
    _, widget = viewer.window.add_plugin_dock_widget("napari-cellbrush", "Workspace")
    workspace: Workspace = getattr(widget, "__wrapped__", widget)
    person.wait(lambda: bench.session.models is not None and bench.session.device_text)
    bench.session.choose_base(tiny)
    bench.session.choose_model(tiny)
    return workspace


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Every test ends with all threads of the plugin over, within the time a closing window has."""
    yield
    deadline = time.monotonic() + 3
    while [t.name for t in threading.enumerate() if t.name.startswith("cellbrush")]:
        assert time.monotonic() < deadline, [t.name for t in threading.enumerate()]
        time.sleep(0.01)


@pytest.fixture
def stop_before_the_first_tile(workspace: Workspace, person: Person, monkeypatch: pytest.MonkeyPatch
                               ) -> Callable[[], None]:
    """Presses Segment, waits for a run that answers no tile, and presses Stop."""
    def waiting(*_: Any, stop: StopToken, **__: Any) -> Iterator[InferenceStarted]:
        yield InferenceStarted("CPU", "float32", 10, 100)
        while not stop.stopped:
            time.sleep(0.01)

    def stop_it() -> None:
        run = workspace.segment.run
        with monkeypatch.context() as patch:
            patch.setattr(inference, "segment_planes", waiting)
            person.click(run.button)
            person.wait(lambda: "Segmenting" in run.notice.text())
            person.click(run.button)
            person.wait(lambda: not workspace.session.segmentation.busy)
        assert run.notice.text() == "Stopped before the first tile; nothing has changed."

    return stop_it
