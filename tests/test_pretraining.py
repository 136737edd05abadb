"""The recipe of the bundled weights: run on next to nothing, as someone would run it on real images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_cellbrush.engine.model_file import read_model

RECIPE = Path(__file__).parents[1] / "pretraining"
#: Set: shape of an image.
SETS = {"dsb2018_fluo": (90, 80), "dsb2018_histology": (70, 90, 3), "dsb2018_brightfield": (80, 80),
        "bbbc039_nuclei_dev": (80, 80), "usiigaci_phase": (21, 60, 70), "axondeepseg_sem": (80, 80),
        "baby_yeast_5z": (5, 70, 70), "fib25_em_3d": (11, 60, 60)}


def run(script: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, RECIPE / script, *map(str, arguments)], capture_output=True, text=True,
                          check=False, timeout=170)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sets, with one image for training each and one that must not be read."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name, shape in SETS.items():
        plane = shape[1:] if len(shape) == 3 and shape[-1] > 5 else shape[:2]
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
        mask = np.zeros(plane, np.uint16)
        mask[10:30, 10:30], mask[10:30, 30:50] = (1, 2)
        stack = shape[:1] if name in ("usiigaci_phase", "fib25_em_3d") else ()
        colour = "rgb" if shape[-1] == 3 else "minisblack"
        tifffile.imwrite(folder / name / "images" / "001.tif", random.integers(0, 255, shape, np.uint8),
                         photometric=colour)
        tifffile.imwrite(folder / name / "masks" / "001.tif", np.broadcast_to(mask, (*stack, *plane)).copy(),
                         photometric="minisblack")
        (folder / name / "images" / "002.tif").write_bytes(b"held out for the benchmark")
    (folder / "splits.json").write_text(json.dumps({name: {"train": ["001"], "bench": ["002"]} for name in SETS}))
    run("pack.py", "--data", folder, "--out", folder / "packed.npz")
    return folder / "packed.npz"


def test_every_set_is_packed_at_the_networks_scale(packed: Path) -> None:
    arrays: dict[str, NDArray[np.generic]] = dict(np.load(packed, allow_pickle=False))
    assert {key.split("/")[0] for key in arrays} == SETS.keys()
    # Of a stack every tenth plane.
    assert len([key for key in arrays if key.startswith("usiigaci") and key.endswith("image")]) == 3
    assert len([key for key in arrays if key.startswith("fib25") and key.endswith("image")]) == 2
    assert arrays["baby_yeast_5z/0000-000/image"].shape == (5, 70, 70)
    # Objects of 400 pixels are as large as a disc of 22.6, which is smaller than the network's 24.
    np.testing.assert_allclose(arrays["dsb2018_fluo/0000-000/diameter"], 2 * np.sqrt(400 / np.pi), rtol=1e-6)


@pytest.mark.slow
def test_the_recipe_trains_goes_on_where_it_ended_and_says_so(packed: Path, tmp_path: Path) -> None:
    tiny = ("--data", packed, "--base-filters", 8)
    run("pretrain.py", *tiny, "--out", tmp_path / "a", "--steps", 2)
    run("pretrain.py", *tiny, "--out", tmp_path / "b", "--steps", 2, "--start", tmp_path / "a" / "cells.safetensors")
    first, second = (read_model(tmp_path / folder / "cells.safetensors") for folder in "ab")
    assert (first.card.n_steps, second.card.n_steps) == (2, 4)
    assert first.weights_hash != second.weights_hash
