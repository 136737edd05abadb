"""The floors of the house: each module imports only what lies below it. See docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import napari_cellbrush

PACKAGE = Path(napari_cellbrush.__file__).parent
NAME = PACKAGE.name
MODULES = sorted(PACKAGE.rglob("*.py"))
WINDOWS = {"qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "napari", "magicgui", "superqt", "pyqtgraph", "vispy"}
SERIALISERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {"requests", "urllib", "http", "socket", "httpx", "aiohttp", "ftplib", "pooch", "huggingface_hub"}

#: Lowest floor first; a module belongs to the first entry that its name starts with.
FLOORS = (
    ("errors", "events", "config"),
    ("engine",),
    ("export",),
    ("session", "api"),
    ("napari_ui",),
    ("cli", "demo"),
)


def dotted(path: Path) -> str:
    """Name of a module below the package, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports."""
    package = [NAME, *path.relative_to(PACKAGE).parts[:-1]]
    return named_in(path.read_text(encoding="utf-8"), package)


def named_in(source: str, package: list[str]) -> Iterator[str]:
    """Every module an import statement names, those inside functions and behind TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def floor(module: str) -> int | None:
    for number, names in enumerate(FLOORS):
        for name in names:
            if module == name or module.startswith((name + ".", name + "_")):
                return number
    return None


def ids(path: Path) -> str:
    return dotted(path) or NAME


def below(*folders: str) -> list[Path]:
    return [path for path in MODULES if dotted(path).split(".")[0] in folders]


@pytest.mark.parametrize("path", below("engine", "export", "session", "config", "errors", "events", "api"), ids=ids)
def test_no_window_below_the_docks(path: Path) -> None:
    assert not tops(path) & WINDOWS


@pytest.mark.parametrize("path", [p for p in MODULES if dotted(p).startswith("cli")], ids=ids)
def test_the_command_line_knows_no_window_either(path: Path) -> None:
    assert not tops(path) & WINDOWS


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_nothing_is_pickled_and_nobody_phones_home(path: Path) -> None:
    assert not tops(path) & (SERIALISERS | NETWORK)
    source = path.read_text(encoding="utf-8")
    assert "torch.load(" not in source
    assert "torch.save(" not in source
    assert "allow_pickle=True" not in source


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_every_floor_imports_only_what_lies_below(path: Path) -> None:
    module = dotted(path)
    if module == "":
        return  # the package itself only names what is loaded lazily
    here = floor(module)
    assert here is not None, f"{module} belongs to no floor"
    for name in imports(path):
        if name.split(".")[0] == NAME:
            there = floor(name.removeprefix(NAME).removeprefix("."))
            assert there is None or there <= here, f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize("path", [p for p in MODULES if not dotted(p).startswith(("cli", "demo"))], ids=ids)
def test_only_the_command_line_writes_to_the_terminal(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.stdout.write", "sys.stderr.write")


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_no_error_is_swallowed_blindly_and_no_input_is_checked_by_assert(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"bare except, line {node.lineno}"
        assert not isinstance(node, ast.Assert), f"assert, line {node.lineno}"


def test_the_fence_sees_imports_inside_functions_and_relative_ones() -> None:
    source = """
def f():
    from qtpy import QtCore
    import importlib
    importlib.import_module("napari.layers")
from ..napari_ui import dock
from . import unet
"""
    found = set(named_in(source, [NAME, "engine"]))
    assert {"qtpy", "qtpy.QtCore", "napari.layers", f"{NAME}.napari_ui.dock", f"{NAME}.engine.unet"} <= found
