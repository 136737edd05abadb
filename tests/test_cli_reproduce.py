"""``cellbrush reproduce``: the note in a mask is enough to make it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from napari_cellbrush.cli import main
from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
from napari_cellbrush.engine.model import ModelCard, new_model
from napari_cellbrush.engine.model_file import add_to_library, save_model
from napari_cellbrush.export.mask_tiff import read_provenance, save_mask

CARD = ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=1, network=NetworkConfig(depth=3, base_filters=8))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a stack, and a model in the library."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:70, :90]
    discs = 120 * ((rows % 35 - 17) ** 2 + (columns % 30 - 15) ** 2 < 121) + random.integers(0, 40, (2, 70, 90))
    tifffile.imwrite("stack.tif", discs.astype(np.uint8), imagej=True, metadata={"axes": "ZYX"})
    add_to_library(new_model(CARD, seed=0), "tiny")
    return tmp_path


def made(output: str = "classes", *more: str) -> Path:
    # Random weights see no objects.
    model = "cells" if output == "objects" else "tiny"
    assert main(["segment", "stack.tif", "--model", model, "--out", "masks", "--output", output, "--device", "cpu",
                 *more]) == 0
    return Path("masks") / f"stack_{output}.tif"


@pytest.mark.parametrize(("output", "more"), [
    ("classes", ()), ("probabilities", ()), ("objects", ()), ("objects", ("--link", "--diameter-px", "22")),
    ("classes", ("--axes", "TYX", "--compress")),
])
def test_what_was_just_made_is_identical(output: str, more: tuple[str, ...], folder: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    mask = made(output, *more)
    assert len(np.unique(tifffile.imread(mask))) > 2
    capsys.readouterr()
    assert main(["reproduce", str(mask), "--image", "stack.tif", "--device", "cpu"]) == 0
    assert "identical: all 12,600 pixels" in capsys.readouterr().out


def changed(mask: Path, pixels: Any = None, **note: Any) -> Path:
    """A copy of a mask with other pixels or another note."""
    values, kept = tifffile.imread(mask), read_provenance(mask)
    if pixels is not None:
        values[pixels] = values[pixels] % 3 + 1
    return save_mask("changed.tif", values, axes="ZYX", provenance={**kept, **note})


def test_changed_pixels_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = changed(made(), np.s_[1, 10:12, 5:10])
    assert main(["reproduce", str(mask), "--image", "stack.tif", "--device", "cpu"]) == 3
    assert "different: 10 of 12,600 pixels" in capsys.readouterr().out


def test_a_part_that_was_never_segmented_is_not_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    values = tifffile.imread("masks/stack_classes.tif")
    values[0] = 0
    save_mask("part.tif", values, axes="ZYX", provenance=read_provenance("masks/stack_classes.tif"))
    assert main(["reproduce", "part.tif", "--image", "stack.tif", "--device", "cpu"]) == 0
    assert "(6,300 were never segmented)" in capsys.readouterr().out


def test_the_model_is_found_by_its_weights_under_any_name(folder: Path, cellbrush_home: Path) -> None:
    mask = made()
    (cellbrush_home / "models" / "tiny.safetensors").rename(cellbrush_home / "models" / "renamed.safetensors")
    assert main(["reproduce", str(mask), "--image", "stack.tif", "--device", "cpu"]) == 0


def test_a_missing_model_is_named_and_can_be_given(folder: Path, cellbrush_home: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    mask = made()
    (cellbrush_home / "models" / "tiny.safetensors").rename(folder / "kept.safetensors")
    assert main(["reproduce", str(mask), "--image", "stack.tif"]) == 1
    assert "made by the model 'tiny'" in capsys.readouterr().err
    assert main(["reproduce", str(mask), "--image", "stack.tif", "--model", "kept.safetensors", "--device", "cpu"]) == 0
    save_model(new_model(CARD, seed=1), folder / "other.safetensors")
    capsys.readouterr()
    assert main(["reproduce", str(mask), "--image", "stack.tif", "--model", "other.safetensors"]) == 1
    assert "other weights" in capsys.readouterr().err


def test_other_versions_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = changed(made(), versions={"napari-cellbrush": "0.0.1", "torch": "1.0"})
    assert main(["reproduce", str(mask), "--image", "stack.tif", "--device", "cpu"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "Made with napari-cellbrush 0.0.1, computed now with" in told
    assert "Made with torch 1.0" in told


def test_settings_of_another_version_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = changed(made(), settings={"from_the_future": 1}, versions={"napari-cellbrush": "9.0"})
    assert main(["reproduce", str(mask), "--image", "stack.tif"]) == 1
    assert "Install the version that made it: napari-cellbrush 9.0" in capsys.readouterr().err


def test_another_image_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = made()
    tifffile.imwrite("other.tif", np.zeros((50, 60), np.uint8))
    assert main(["reproduce", str(mask), "--image", "other.tif", "--axes", "YX"]) == 1
    assert "has the shape" in capsys.readouterr().err


def test_a_mask_made_by_live_is_said_to_be_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_mask("live.tif", np.ones((2, 70, 90), np.uint8), axes="ZYX", provenance={"made_by": "live", "base": "tiny"})
    assert main(["reproduce", "live.tif", "--image", "stack.tif"]) == 1
    assert "live.tif was made by Live" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("note", [{}, {"output": ["classes"]}, {"output": 7, "settings": "x"},
                                  {"output": "classes", "model_weights_sha256": None, "versions": [1]}])
def test_a_file_that_says_nothing_of_its_origin_is_refused(note: dict[str, Any], folder: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite("plain.tif", np.zeros((2, 70, 90), np.uint8), imagej=True, metadata={"Info": json.dumps(note)})
    assert main(["reproduce", "plain.tif", "--image", "stack.tif"]) == 1
    assert "unexpected" not in capsys.readouterr().err
