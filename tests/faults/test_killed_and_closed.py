"""A window that is killed or closed while it computes and somebody paints."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from accidents import PROGRAMS, times, tiny_model

from napari_cellbrush.engine.model_file import add_to_library, scan_models
from napari_cellbrush.engine.session_folder import SavedSession, identify, read_labels
from napari_cellbrush.engine.session_folders import list_sessions

#: Seconds from closing a window to the end of its process: tells quick from hanging, on a machine shared with others.
LARGEST_EXIT_S = 60


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("busy_window", PROGRAMS / "busy_window.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def offered(image: Any) -> list[SavedSession]:
    """What would be offered to whoever opens this image."""
    found, errors = list_sessions(identify(image, "YX", "cells"))
    assert errors == []
    return found


def digest(session: SavedSession, shape: tuple[int, ...]) -> str:
    return hashlib.sha256(read_labels(session.path, session.card, "strokes", shape=shape).tobytes()).hexdigest()


@pytest.mark.parametrize("seed", range(times("KILLS", 1)))
def test_a_kill_at_any_moment_leaves_the_last_save_and_sound_models(seed: int, start: Any) -> None:
    add_to_library(tiny_model(), "tiny")
    image = program().image()
    process = start("busy_window.py", "killed", str(seed))
    told: list[tuple[str, str]] = []
    try:
        while not told or told[-1][0] != "saved":
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told.append(tuple(line.split()))
        time.sleep(float(np.random.default_rng(seed).uniform(0, 3)))
    finally:
        process.kill()
    told += [tuple(line.split()) for line in process.communicate()[0].splitlines() if len(line.split()) == 2]

    newest = offered(image)[0]
    last = max(i for i, (what, _) in enumerate(told) if what == "saved")
    allowed = {told[last][1]} | {state for what, state in told[last + 1 :] if what == "now"}
    sessions = [(session.card.saved, digest(session, image.shape)) for session in offered(image)]
    assert digest(newest, image.shape) in allowed, f"{sessions} after {told[-12:]}"
    models, errors = scan_models()
    assert errors == []
    assert "tiny" in [entry.name for entry in models]


@pytest.mark.parametrize("seed", range(times("CLOSES", 1)))
def test_a_window_closed_at_any_moment_ends_soon_quietly_and_with_all_strokes(seed: int, start: Any,
                                                                              record_property: Any) -> None:
    add_to_library(tiny_model(), "tiny")
    image = program().image()
    process = start("busy_window.py", "closed", str(seed))
    try:
        for line in process.stdout:
            if line.startswith("closing"):
                break
        closing, began = line.split()[1], time.monotonic()
        _, complaints = process.communicate(timeout=120)
        seconds = time.monotonic() - began
    finally:
        process.kill()
    record_property("exit_seconds", round(seconds, 2))
    assert process.returncode == 0, complaints
    assert seconds < LARGEST_EXIT_S
    assert not [noise for noise in ("Traceback", "Error", "deleted", "Destroyed", "QThread", "terminate")
                if noise in complaints], complaints
    assert closing in [digest(session, image.shape) for session in offered(image)]


def test_a_process_that_ends_without_closing_its_window_does_not_wait_for_the_end_of_a_run() -> None:
    found = ended("""
def endless(stop):
    for number in itertools.count():
        time.sleep(0.05)
        yield number

WorkThread(endless, "counting", exclusive=True).start()
time.sleep(0.2)
""")
    assert (found.returncode, found.stderr) == (0, "")


def test_a_program_that_was_quit_waits_for_no_step_but_for_every_file(tmp_path: Path) -> None:
    found = ended(f"""
from napari_cellbrush.napari_ui.worker import note_quit

def step(stop):
    time.sleep(1000)
    yield

def write(stop):
    time.sleep(2)
    pathlib.Path({str(tmp_path / "file")!r}).write_text("whole")
    yield

WorkThread(step, "learning", exclusive=True).start()
WorkThread(write, "writing", exclusive=False, to_the_end=True).start()
time.sleep(0.2)
note_quit()
print("the last words")
""")
    assert (found.returncode, found.stdout, found.stderr) == (0, "the last words\n", "")
    assert (tmp_path / "file").read_text() == "whole"


def test_without_having_been_quit_a_program_keeps_its_exit_code_and_waits() -> None:
    found = ended("""
def step(stop):
    time.sleep(2)
    print("done", flush=True)
    yield

WorkThread(step, "learning", exclusive=True).start()
time.sleep(0.2)
sys.exit(3)
""")
    assert (found.returncode, found.stdout, found.stderr) == (3, "done\n", "")


def ended(script: str) -> subprocess.CompletedProcess[str]:
    """What a program with threads left behind."""
    start = "import itertools, pathlib, sys, time\nfrom napari_cellbrush.napari_ui.worker import WorkThread\n"
    return subprocess.run([sys.executable, "-c", start + script], capture_output=True, text=True, timeout=60,
                          check=False)
