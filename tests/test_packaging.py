"""What leaves the repository: wheel, sdist, their metadata, and the pinned versions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "napari_cellbrush"
QT_BINDINGS = {"pyqt5", "pyqt6", "pyside2", "pyside6", "pyside6-essentials"}


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, text=True,
                          capture_output=True, check=False, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """An sdist, and a wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def hard_dependencies(metadata) -> list[Requirement]:
    all_of_them = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    return [r for r in all_of_them if r.marker is None or "extra" not in str(r.marker)]


def test_no_qt_binding_comes_with_the_hard_dependencies(hard_dependencies):
    assert not {canonicalize_name(r.name) for r in hard_dependencies} & QT_BINDINGS
    assert not [r for r in hard_dependencies if r.name == "napari" and r.extras]


def test_the_all_extra_brings_a_qt_binding(metadata):
    extra = [Requirement(line) for line in metadata.get_all("Requires-Dist") if "extra == 'all'" in line]
    assert "pyqt6" in {e for r in extra if r.name == "napari" for e in r.extras}


def test_dependencies_have_lower_bounds_and_no_upper_ones(hard_dependencies):
    assert {s.operator for r in hard_dependencies for s in r.specifier} == {">="}
    assert not [r.name for r in hard_dependencies if not r.specifier]


def test_napari_and_indexes_recognise_the_plugin(metadata):
    assert "Framework :: napari" in metadata.get_all("Classifier")
    assert metadata["License-Expression"] == "BSD-3-Clause"


def test_the_wheel_holds_manifest_weights_strokes_and_type_marker_and_nothing_of_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    weights = {f"napari_cellbrush/weights/{path.name}" for path in (PACKAGE / "weights").glob("*.safetensors")}
    assert weights
    needed = weights | {"napari_cellbrush/napari.yaml", "napari_cellbrush/py.typed",
                        "napari_cellbrush/demo_strokes.json"}
    assert needed <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"napari_cellbrush"}


def test_there_is_one_manifest_and_the_one_on_top_links_to_it(dist, wheel):
    manifest = (PACKAGE / "napari.yaml").read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        assert [n for n in archive.namelist() if n.endswith("napari.yaml")] == ["napari_cellbrush/napari.yaml"]
        assert archive.read("napari_cellbrush/napari.yaml") == manifest
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        found = {m.name.partition("/")[2]: m for m in archive if m.name.endswith("napari.yaml")}
        assert set(found) == {"napari.yaml", "src/napari_cellbrush/napari.yaml"}
        if sys.platform != "win32":  # a checkout there may have no links
            assert (ROOT / "napari.yaml").is_symlink()
            assert found["napari.yaml"].issym()
            assert found["napari.yaml"].linkname == "src/napari_cellbrush/napari.yaml"


def test_the_installed_wheel_validates_and_all_its_commands_import(wheel, tmp_path):
    """In a fresh environment that sees the packages of this one, but not the editable install."""
    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", fresh)
    python = fresh / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # A plain path: the .pth files in there, that of the editable install among them, are not read.
    site_packages = Path(pytest.__file__).parents[1]
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (purelib / "packages.pth").write_text(str(site_packages))
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    where = run(python, "-c", "import napari_cellbrush; print(napari_cellbrush.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(fresh)
    run(python, "-m", "npe2", "validate", "napari-cellbrush", "--imports", cwd=tmp_path,
        NAPARI_CONFIG=str(tmp_path / "settings.yaml"))


def test_importing_the_package_imports_neither_torch_nor_qt_nor_napari():
    heavy = ("torch", "napari", "qtpy", "PyQt6", "PySide6", "numpy")
    loaded = run(sys.executable, "-c", f"import sys, napari_cellbrush; print([m for m in {heavy} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_every_direct_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    versions = {canonicalize_name(name): Version(version) for name, version in pinned.items()}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != "napari-cellbrush":
            assert requirement.specifier.contains(versions[name]), requirement
    assert versions["torch"] == Version("2.13.0"), "a local version such as +cpu would not resolve everywhere"


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_links_to_files_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"#]+)", text)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__" and f"`{path.stem}`" not in page]
    assert not missing
