"""Opening napari must stay fast: nothing heavy is imported before somebody uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import napari_cellbrush

MANIFEST = Path(napari_cellbrush.__file__).parent / "napari.yaml"
QT = ("qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "superqt", "pyqtgraph", "magicgui")


def target_modules() -> list[str]:
    commands = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["contributions"]["commands"]
    return sorted({command["python_name"].partition(":")[0] for command in commands})


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_the_package_alone_loads_nothing_heavy() -> None:
    assert not loaded_by("import napari_cellbrush") & {"torch", "numpy", "napari", "pydantic", "scipy", *QT}


@pytest.mark.parametrize("module", target_modules())
def test_a_target_of_the_manifest_loads_neither_torch_nor_qt(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", *QT}


def test_the_help_of_the_command_line_loads_no_torch_and_no_napari() -> None:
    program = "from napari_cellbrush.cli import main\nimport io, contextlib\n" \
              "with contextlib.redirect_stdout(io.StringIO()):\n    main(['train', '--help'])"
    assert not loaded_by(program) & {"torch", "napari", "scipy", *QT}


def test_the_session_loads_no_torch() -> None:
    assert not loaded_by("import napari_cellbrush.session") & {"torch", *QT}
