"""The main job on a real image, done as a person does it: paint, fine-tune, segment, export, all in napari.

The image travels with scikit-image, the strokes (made by hand) with this package, so nothing is downloaded.
Imports neither napari nor torch before it is run.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_cellbrush.errors import CellbrushError, ExportError

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_cellbrush.session import Run, TunedModel

#: Names of the files that the demo leaves, and replaces when it is run again.
MASK, MODEL, SCREENSHOT = "mask.tif", "model.safetensors", "screenshot.png"
SCREEN = "1600x1000x24"
WINDOW_PX = (1500, 940)
IMAGE_NAME = "colon"
#: Enough for all steps on an ordinary machine; nobody waits longer on a slow one.
MAX_MINUTES = 1.5
#: After this long, something must have gone wrong.
PATIENCE_S = 1800
#: Seconds that a virtual screen may take to start, and a first look at the device (loading torch).
SCREEN_S, LOOK_S = 20.0, 180.0


class DemoError(CellbrushError):
    """The demo could not go on."""


@dataclass(frozen=True)
class Stroke:
    """What one pull of the brush paints."""

    class_name: str
    #: Diameter.
    brush_px: int
    #: Corners of its path: row and column.
    points: tuple[tuple[float, float], ...]


@dataclass
class Report:
    """What the demo did."""

    labelled_pixels: tuple[int, ...]
    class_names: tuple[str, ...]
    tuned: TunedModel
    seconds_tuning: float
    seconds_to_first_mask: float
    seconds_to_full_mask: float
    n_objects: int
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """The report for a person."""
        painted = ", ".join(f"{n:,} {name}" for n, name in zip(self.labelled_pixels, self.class_names, strict=True))
        return [
            f"Painted pixels     {sum(self.labelled_pixels):,} ({painted})",
            f"Fine-tuning        {self.seconds_tuning:.1f} s, {self.tuned.n_steps} steps",
            f"Score              {_score(self.tuned.base_score)} before, {_score(self.tuned.score)} after "
            "(mean IoU on held-out strokes)",
            f"First mask         {self.seconds_to_first_mask:.1f} s after the start of the segmentation",
            f"Full mask          {self.seconds_to_full_mask:.1f} s, {self.n_objects:,} objects",
            *(f"Wrote              {path}" for path in self.files),
        ]


def demo_strokes() -> tuple[Stroke, ...]:
    """The strokes that travel with the package, for :func:`demo_image`."""
    text = (resources.files("napari_cellbrush") / "demo_strokes.json").read_text(encoding="utf-8")
    return tuple(Stroke(s["class"], s["brush_px"], tuple((y, x) for y, x in s["points"]))
                 for s in json.loads(text)["strokes"])


def demo_image() -> Any:
    """Colon tissue, YXS uint8: a protein of gland cells in brown, nuclei in blue; part of scikit-image."""
    from skimage.data import immunohistochemistry

    return immunohistochemistry()


def run_demo(headless: bool | None, out: Path, *, max_steps: int | None = None) -> int:
    """Run the demo and print what it did.

    Parameters
    ----------
    headless
        Run in a virtual screen (on Linux) and close the window at the end. None: only if there is no display.
    out
        Folder for the mask, the model and the screenshot; earlier ones in it are replaced.
    max_steps
        Train for fewer steps than usual.

    Returns
    -------
    int
        Exit code: 0, or 1 after a sentence that says what went wrong.
    """
    if headless is None:
        headless = not has_display(os.environ)
    if headless and sys.platform == "linux":
        return _run_in_virtual_screen(out, max_steps)
    return _run_in_window(out, max_steps, stay_open=not headless)


def has_display(environment: Mapping[str, str]) -> bool:
    """Whether windows can be opened; only Linux can be without."""
    return sys.platform != "linux" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


@contextmanager
def virtual_screen() -> Iterator[dict[str, str]]:
    """Start Xvfb; yields the environment for programs that shall use it.

    Raises
    ------
    DemoError
        If Xvfb is missing or does not start.
    """
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", SCREEN, "-nolisten", "tcp"]
    try:
        screen = subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL)
    except OSError as error:
        os.close(read_end)
        raise DemoError("There is no display, and Xvfb for a virtual one is not installed",
                        "Install it, on Debian and Ubuntu with: apt-get install xvfb") from error
    finally:
        os.close(write_end)
    try:
        # Xvfb chooses a free number and says it when it is ready; on failure it closes the pipe.
        ready, _, _ = select.select([read_end], [], [], SCREEN_S)
        number = os.read(read_end, 16).decode().strip() if ready else ""
        if not number:
            raise DemoError("The virtual screen (Xvfb) did not start", "Try: Xvfb :99")
        unwanted = {"WAYLAND_DISPLAY", "QT_QPA_PLATFORM"}
        yield {**{k: v for k, v in os.environ.items() if k not in unwanted}, "DISPLAY": f":{number}"}
    finally:
        os.close(read_end)
        screen.terminate()
        screen.wait()


def _run_in_virtual_screen(out: Path, max_steps: int | None) -> int:
    # In a process of its own: Qt must be gone before its screen is.
    command = [sys.executable, "-m", "napari_cellbrush.demo", str(out), *([str(max_steps)] if max_steps else [])]
    try:
        with virtual_screen() as environment:
            return subprocess.run(command, env=environment, check=False).returncode
    except DemoError as error:
        _console(stderr=True)(str(error))
        return 1


def _run_in_window(out: Path, max_steps: int | None, *, stay_open: bool) -> int:
    try:
        _prepare_folder(out)
        _show(out, max_steps, stay_open, _console())
    except CellbrushError as error:
        _console(stderr=True)(str(error))
        return 1
    return 0


def _console(stderr: bool = False) -> Callable[[str], None]:
    from rich.console import Console

    return partial(Console(stderr=stderr, highlight=False).print, markup=False, soft_wrap=True)


def _show(out: Path, max_steps: int | None, stay_open: bool, say: Callable[[str], None]) -> None:
    # A library of its own: the demo's model shall not appear among the person's.
    os.environ["CELLBRUSH_HOME"] = str(out.resolve() / "library")
    if not stay_open:
        os.environ["NAPARI_CONFIG"] = str(out.resolve() / "library" / "settings.yaml")
    import napari

    viewer = napari.Viewer(title="napari-cellbrush demo")
    try:
        report = Demo(viewer, out, say, max_steps).run()
    except BaseException:
        viewer.close()
        raise
    for line in report.lines():
        say(line)
    if stay_open:
        say("The window stays open: paint more, fine-tune again. Close it to end.")
        napari.run()
    else:
        viewer.close()


def _prepare_folder(out: Path) -> None:
    try:
        (out / "library" / "models").mkdir(parents=True, exist_ok=True)
        for old in (out / MASK, out / MODEL, out / SCREENSHOT, *(out / "library" / "models").glob("*.safetensors")):
            old.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot write into {out}: {error.strerror}", "Choose another folder with --out") from error


class Demo:
    """One run in an open viewer, step by step."""

    def __init__(self, viewer: Any, out: Path, say: Callable[[str], None], max_steps: int | None) -> None:
        from napari_cellbrush.napari_ui.workbench import workbench_for

        self._viewer = viewer
        self._out = out
        self._say = say
        self._max_steps = max_steps
        self._bench = workbench_for(viewer)
        self._session = self._bench.session

    @cached_property
    def _window(self) -> Any:
        from qtpy.QtWidgets import QApplication

        return next(w for w in QApplication.topLevelWidgets() if w.isVisible() and w.inherits("QMainWindow"))

    def run(self) -> Report:
        """All steps, in the order in which a person takes them."""
        self._open()
        painted = self._paint()
        seconds_tuning = self._fine_tune()
        first, full = self._segment()
        n_objects = self._export()
        tuned = self._session.tuned
        if tuned is None:
            raise DemoError("Fine-tuning gave no model", "Run the demo again")
        names = tuple(definition.name for definition in self._session.classes)
        files = tuple(self._out / name for name in (MASK, MODEL, SCREENSHOT))
        return Report(painted, names, tuned, seconds_tuning, first, full, n_objects, files)

    def _open(self) -> None:
        from napari_cellbrush.napari_ui.menu_actions import open_workspace

        self._window.resize(*WINDOW_PX)
        self._workspace = open_workspace(self._viewer, "annotate")
        self._viewer.add_image(demo_image(), name=IMAGE_NAME, rgb=True)
        self._say("Opened a section of colon tissue.")

    def _paint(self) -> tuple[int, ...]:
        import numpy as np

        key = self._session.images[0].key
        layer = self._bench.annotating.new_annotation(key)
        values = {definition.name: value for value, definition in enumerate(self._session.classes, start=1)}
        strokes = demo_strokes()
        for stroke in strokes:
            paint(layer, stroke, values[stroke.class_name])
            self._process_events()
        self._wait_until(lambda: sum(self._session.painted) == np.count_nonzero(layer.data), LOOK_S)
        self._say(f"Painted {len(strokes)} strokes.")
        return self._session.painted

    def _fine_tune(self) -> float:
        session = self._session
        self._wait_until(lambda: not session.why_not_train() or bool(session.device_note), LOOK_S)
        config = session.training_config
        n_steps = self._max_steps or config.max_steps
        session.training_config = config.replace(max_minutes=MAX_MINUTES, max_steps=n_steps)
        session.set_options(segment_after_training=False)
        self._workspace.show_tab("finetune")
        self._say(f"Fine-tuning on {session.device_text or 'the processor'}.")
        seconds = self._timed(session.training, self._bench.fine_tuning.start)[1]
        self._say(session.training.notice.text)
        return seconds

    def _segment(self) -> tuple[float, float]:
        self._workspace.show_tab("segment")
        self._session.set_options(output="objects")
        seconds = self._timed(self._session.segmentation, lambda: self._bench.segmenting.start("layer"))
        self._say(self._session.segmentation.notice.text)
        return seconds

    def _export(self) -> int:
        from napari_cellbrush.engine.model_file import export_model

        mask = next(mask for mask in self._session.masks if mask.name == f"{IMAGE_NAME} objects")
        exporting = self._bench.exporting
        self._timed(self._session.export, lambda: exporting.start(
            mask, self._out / MASK, exporting.axes(mask), overwrite=True))
        if self._session.tuned is not None:
            export_model(self._session.tuned.name, self._out / MODEL)
        self._save_screenshot()
        return int(self._bench.book.layer(mask.key).data.max())

    def _save_screenshot(self) -> None:
        from imageio.v3 import imwrite

        self._workspace.show_tab("finetune")
        self._process_events()
        picture = self._viewer.screenshot(canvas_only=False, flash=False)
        imwrite(self._out / SCREENSHOT, picture[..., :3])

    def _timed(self, run: Run, start: Callable[[], None]) -> tuple[float, float]:
        """Start a run and wait for its end; seconds to its first progress and to its end."""
        first: list[float] = []
        began = time.perf_counter()
        start()

        def ended() -> bool:
            if not first and run.fraction:
                first.append(time.perf_counter() - began)
            return not run.busy

        self._wait_until(ended, PATIENCE_S)
        seconds = time.perf_counter() - began
        if run.notice.kind == "error":
            raise DemoError(run.notice.text.rstrip("."))
        return (first or [seconds])[0], seconds

    def _wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise DemoError(f"A step of the demo took longer than {seconds:.0f} s", "Run it again, or on a machine "
                                "with less to do")
            self._process_events()
            time.sleep(0.01)

    def _process_events(self) -> None:
        from qtpy.QtWidgets import QApplication

        QApplication.processEvents()
        if not self._window.isVisible():
            raise DemoError("The window was closed before the demo ended")


def paint(layer: Labels, stroke: Stroke, value: int) -> None:
    """Paint a stroke as the mouse does: brush dabs along its path, one step in the undo history."""
    import numpy as np

    layer.brush_size = stroke.brush_px
    corners = np.array(stroke.points)
    with layer.block_history():
        for start, end in itertools.pairwise(corners):
            n_dabs = int(np.ceil(np.abs(end - start).max())) + 1
            for coordinate in np.linspace(start, end, n_dabs):
                layer.paint(tuple(coordinate), value, refresh=False)
    layer.refresh()


def _score(score: float | None) -> str:
    return "not measured" if score is None else f"{score:.2f}"


if __name__ == "__main__":
    # In the process that has the virtual screen.
    sys.exit(_run_in_window(Path(sys.argv[1]), next(map(int, sys.argv[2:]), None), stay_open=False))
