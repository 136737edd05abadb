"""Closing the window in mid-run, in a process of its own: only its end can be watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, sys, time
from pathlib import Path
import napari
from qtpy.QtCore import QTimer
from napari_cellbrush.demo import Demo

viewer = napari.Viewer()
demo = Demo(viewer, Path(sys.argv[1]), lambda text: None, None)
session, bench = demo._session, demo._bench
demo._open()
demo._paint()
demo._wait_until(lambda: session.find_model("cells") is not None, 120)
if sys.argv[2] == "training":
    run, start = session.training, bench.fine_tuning.start
else:
    session.set_options(output="objects")
    session.inference_config = session.inference_config.replace(tile_size_px=220)
    run, start = session.segmentation, lambda: bench.segmenting.start("layer")
start()
demo._wait_until(lambda: run.fraction or not run.busy, 120)
print("busy" if run.busy else run.notice.text)
QTimer.singleShot(0, viewer.close)
closed = time.monotonic()
napari.run()
atexit.register(lambda: print(time.monotonic() - closed))
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("work", ["training", "segmenting"])
def test_closing_the_window_in_mid_run_ends_the_process_soon_and_silently(tmp_path: Path, work: str) -> None:
    script = tmp_path / "close.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"NAPARI_CONFIG": str(tmp_path / "settings.yaml")}
    ended = subprocess.run([sys.executable, str(script), str(tmp_path), work], env=environment, capture_output=True,
                           text=True, check=False, timeout=280)
    busy, seconds = ended.stdout.split()
    assert ended.returncode == 0, ended.stderr
    assert busy == "busy"
    assert float(seconds) < 3
    for trouble in ("Destroyed while", "has been deleted", "Traceback", "Segmentation"):
        assert trouble not in ended.stderr
