"""Take the pictures of README and tutorial from the real window, at the states that the text speaks of.

    python docs/pictures.py

Needs a display, or Xvfb for a virtual one. Writes ``docs/images``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from napari_cellbrush.demo import Demo, has_display, virtual_screen

IMAGES = Path(__file__).parent / "images"


def main() -> int:
    """Take them here, or in a virtual screen."""
    if has_display(os.environ):
        take()
        return 0
    with virtual_screen() as environment:
        return subprocess.run([sys.executable, __file__], env=environment, check=False).returncode


def take() -> None:
    """Go through the demo and stop for pictures."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CELLBRUSH_HOME"] = folder
        os.environ["NAPARI_CONFIG"] = str(Path(folder) / "settings.yaml")
        os.environ["HOME"] = "/home/you"  # where the export tab offers to save
        (Path(folder) / "models").mkdir()
        import napari

        viewer = napari.Viewer(title="napari-cellbrush")
        demo = Demo(viewer, Path(folder), print, None)
        bench, session = demo._bench, demo._session
        demo._open()
        demo._wait_until(lambda: bool(session.device_text), 180)
        picture(demo, "workspace")
        demo._paint()
        picture(demo, "strokes")
        bench.live.switch(True)
        demo._wait_until(lambda: bench.live.answered and not bench.live._inbox.is_behind, 300)
        settled = time.monotonic() + 2
        demo._wait_until(lambda: time.monotonic() > settled, 300)
        picture(demo, "live")
        bench.live.switch(False)
        demo._wait_until(lambda: not session.live.busy, 120)
        viewer.layers.remove("colon live")
        demo._workspace.show_tab("finetune")
        session.set_options(segment_after_training=False)
        bench.fine_tuning.start()
        during(demo, session.training, 0.6, "fine-tune")
        demo._workspace.show_tab("segment")
        session.set_options(output="classes", scope="layer")
        session.inference_config = session.inference_config.replace(tile_size_px=252)
        bench.segmenting.start("layer")
        during(demo, session.segmentation, 0.4, "segment")
        session.inference_config = session.inference_config.replace(tile_size_px=0)
        demo._segment()
        demo._workspace.show_tab("correct")
        objects = next(mask for mask in session.masks if mask.output == "objects")
        bench.proofreading.start(objects.key)
        found = np.unique(bench.book.layer(objects.key).data[200:330, 200:330])
        for number in found[1:-1][:8]:
            bench.proofreading.select(int(number))
            bench.proofreading.accept()
        bench.proofreading.select(int(found[-1]))
        camera = viewer.camera.center, viewer.camera.zoom
        viewer.camera.center, viewer.camera.zoom = (265, 265), 2.5 * viewer.camera.zoom
        picture(demo, "correct")
        bench.proofreading.stop()
        viewer.camera.center, viewer.camera.zoom = camera
        demo._workspace.show_tab("export")
        picture(demo, "export")
        demo._workspace.show_tab("finetune")
        picture(demo, "demo")
        viewer.close()


def during(demo: Demo, run: object, fraction: float, name: str) -> None:
    """A picture in the middle of a run, then wait for its end."""
    demo._wait_until(lambda: (run.fraction or 0) >= fraction or not run.busy, 900)
    picture(demo, name)
    demo._wait_until(lambda: not run.busy, 900)


def picture(demo: Demo, name: str) -> None:
    """The whole window."""
    from imageio.v3 import imwrite

    for _ in range(5):
        demo._process_events()
    imwrite(IMAGES / f"{name}.png", demo._viewer.screenshot(canvas_only=False, flash=False)[..., :3])


if __name__ == "__main__":
    raise SystemExit(main())
