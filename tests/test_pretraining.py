"""The recipe of the bundled weights: run on next to nothing, as someone would run it on real images."""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
from napari_cellbrush.engine.device import choose_device
from napari_cellbrush.engine.model import ModelCard, new_model
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


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_and_not_from_that_of_another_optimiser(packed: Path, tmp_path: Path) -> None:
    tiny = ("--data", packed, "--base-filters", 8, "--out", tmp_path)
    run("pretrain.py", *tiny, "--steps", 1)
    run("pretrain.py", *tiny, "--steps", 2, "--resume")
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (kept["step"], kept["optimiser"], len(kept["optimisers"])) == (2, "muon", 2)
    refused = subprocess.run([sys.executable, RECIPE / "pretrain.py", *map(str, tiny), "--steps", "3", "--resume",
                              "--optimiser", "adamw"], capture_output=True, text=True, check=False, timeout=170)
    assert refused.returncode == 1
    assert "another recipe" in refused.stderr


def test_a_card_names_what_was_measured_and_what_is_weak(recipe: ModuleType) -> None:
    text: str = importlib.import_module("ship").in_words({"dsb2018_fluo": 0.9, "usiigaci_phase": 0.1})
    assert "nuclei in fluorescence (DSB 2018) 0.90, fibroblasts in phase contrast 0.10" in text
    assert "Limits: paint before you trust it on fibroblasts in phase contrast." in text


def test_the_mean_of_models_lies_between_them(recipe: ModuleType) -> None:
    ship = importlib.import_module("ship")
    card = ModelCard(name="cells", classes=DEFAULT_CLASSES, in_channels=1,
                     network=NetworkConfig(depth=3, base_filters=8))
    models = [new_model(card.replace(n_steps=7 - seed), seed) for seed in range(3)]
    mean = ship.mean_of(models)
    assert mean.card == models[0].card
    *weights, between = (model.network.state_dict()["head.weight"] for model in (*models, mean))
    torch.testing.assert_close(between, sum(weights) / 3, rtol=0, atol=1e-3)
    assert not torch.equal(weights[0], between)


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """The script as a module."""
    sys.path.insert(0, str(RECIPE))
    try:
        yield importlib.import_module("pretrain")
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def muon(recipe: ModuleType) -> ModuleType:
    """The optimiser that the script uses."""
    return sys.modules[recipe.Muon.__module__]


@given(st.integers(0, 300), st.integers(1, 400), st.integers(1, 300))
def test_patches_stay_inside_the_image_where_it_is_large_enough(recipe: ModuleType, centre: int, side: int,
                                                               length: int) -> None:
    moved = recipe._moved_inside(min(centre, length - 1), side, length)
    reach = recipe._reach(moved, side)
    if side <= length:
        assert (reach.min() >= 0, reach.max() < length) == (True, True)
        assert centre >= length or centre in reach
    else:
        assert set(range(length)) <= set(reach)


def test_half_of_the_patches_look_as_through_other_optics(recipe: ModuleType, packed: Path) -> None:
    images = recipe.Images(packed, 0)
    images.random = np.random.default_rng(0)
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(70), indexing="ij")
    image = ((rows - 30) ** 2 + (columns - 30) ** 2 < 144).float()[None]
    seen = [images._as_through_other_optics(image) for _ in range(200)]
    others = [other for other in seen if not torch.equal(other, image)]
    assert len(others) == pytest.approx(100, abs=25)
    # Some are sharper than the image, some less; far from everything they are what it is.
    contrasts = torch.stack([other[0, 30, 41] - other[0, 30, 43] for other in others])
    assert (contrasts > 1.5).any()
    assert (contrasts < 0.8).any()
    torch.testing.assert_close(torch.stack([other[0, 0, 69] for other in others]), torch.zeros(len(others)),
                               rtol=0, atol=1e-3)


def test_patches_made_beside_are_those_of_their_steps(recipe: ModuleType, packed: Path) -> None:
    arguments = argparse.Namespace(steps=4, patches=2, seed=3)
    device = choose_device("cpu")
    made = list(recipe._batches(recipe.Images(packed, 3), 1, arguments, 4, device))
    alone = [recipe._batch(recipe.Images(packed, 3), step, arguments, 4, device) for step in (1, 2, 3)]
    assert len(made) == len(alone)
    for one, other in zip(itertools.chain(*made), itertools.chain(*alone), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_half_of_the_patches_lie_where_objects_touch(recipe: ModuleType, packed: Path) -> None:
    """Also of an image that is hardly larger than they are."""
    images = recipe.Images(packed, seed=0)
    images.random = np.random.default_rng(0)
    truth = np.ones((200, 200), np.uint16)
    truth[60:80, 60:70], truth[60:80, 71:80], truth[150:160, 150:160] = 2, 3, 4
    plane = recipe.Plane(np.full((1, 200, 200), 100, np.uint8), truth, recipe.DIAMETER_PX)
    middles = np.stack([images._window(plane, size=160, answered=96)[1][70:90, 70:90] for _ in range(100)])
    has_both = ((middles == 2).any(axis=(1, 2)) & (middles == 3).any(axis=(1, 2))).mean()
    assert 0.35 < has_both < 0.8
    assert (middles == 4).any()


def test_the_gap_between_touching_objects_weighs_most(recipe: ModuleType) -> None:
    truth = np.ones((60, 60), np.int64)
    truth[20:40, 10:30], truth[20:40, 31:50], truth[:5] = 2, 3, 0
    classes, weights = recipe._targets(truth, False)
    assert classes[0, 0] == weights[0, 0] == 0
    assert (classes[30, 30], classes[30, 20], classes[30, 29], classes[50, 50]) == (1, 2, 3, 1)
    assert weights[30, 30] > 3 * weights[50, 50]
    classes, weights = recipe._targets(np.array([[0, 1, 2, 3]]), True)
    assert classes.tolist() == [[0, 1, 2, 3]]
    assert weights[0].tolist() == [0, 1, 1, 1.5]


def test_the_shape_of_objects_is_their_rims_distance_and_their_centres_way(recipe: ModuleType) -> None:
    truth = np.ones((60, 60), np.int64)
    truth[20:41, 10:31], truth[20:41, 31:52], truth[50:], truth[:5] = 2, 7, 9, 0
    distance, rows, columns = recipe.shape_of(truth) * recipe.RADIUS_PX
    # Nobody knows of unknown pixels, and of objects that the patch cuts, where the centre is.
    assert np.isnan(distance[:5]).all()
    assert np.isnan(rows[:20]).all()
    assert np.isnan(rows[50:]).all()
    # Touching objects have a rim each.
    assert (distance[30, 30], distance[30, 31], distance[30, 5], distance[50, 30]) == (0, 0, 0, 0)
    # Of the cut one, where the border may be nearer than the rim.
    assert distance[53, 30] == 3
    assert np.isnan(distance[57:, 30]).all()
    assert distance[30, 20] == distance[30, 41] == 10
    for row, column, centre in ((20, 10, 20), (40, 30, 20), (25, 35, 41), (30, 51, 41)):
        assert (rows[row, column], columns[row, column]) == pytest.approx((30 - row, centre - column), abs=1e-4)


def test_objects_that_end_where_nobody_knows_have_no_centre(recipe: ModuleType) -> None:
    truth = np.ones((40, 40), np.int64)
    truth[10:21, 10:31], truth[:, 20:] = 2, 0
    distance, rows, columns = recipe.shape_of(truth) * recipe.RADIUS_PX
    assert np.isnan(rows).all()
    assert np.isnan(columns).all()
    assert (distance[15, 10], distance[15, 12]) == (0, 2)
    assert np.isnan(distance[15, 18])
    # One object everywhere shows no rim.
    assert np.isnan(recipe.shape_of(np.full((20, 20), 2))).all()


def test_what_is_exported_are_the_classes(recipe: ModuleType, tmp_path: Path) -> None:
    card = recipe.ModelCard(name="cells", classes=recipe.DEFAULT_CLASSES, in_channels=1, any_channels=True,
                            network=recipe.NetworkConfig(base_filters=8))
    start = recipe.build_network(card)
    longer = recipe.with_shape(start)
    assert len(longer.head.weight) == len(start.head.weight) + recipe.N_SHAPE
    recipe._export(longer, card, tmp_path / "cells.safetensors")
    found = read_model(tmp_path / "cells.safetensors").network
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor.half().float() if tensor.is_floating_point()
                                   else tensor)


def test_patches_without_objects_have_no_shape_to_learn(recipe: ModuleType) -> None:
    shape = torch.from_numpy(recipe.shape_of(np.zeros((20, 20), np.int64)))[None]
    said = torch.zeros_like(shape, requires_grad=True)
    error = recipe._shape_error(said, shape)
    error.backward()
    assert float(error.detach()) == 0
    assert not said.grad.any()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_directions_of_muon_are_all_but_orthogonal(muon: ModuleType, shape: tuple[int, int], half: bool) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = muon.orthogonalised(matrix)
    lengths = torch.linalg.svdvals(found)
    assert 0.6 < float(lengths.min()) <= float(lengths.max()) < 1.3
    # The same directions, whatever their lengths were.
    assert float(((left.T @ found @ right.T).diagonal()).min()) > 0.6


def test_muon_fits_a_convolution_and_goes_on_from_its_state(muon: ModuleType) -> None:
    random = torch.Generator().manual_seed(0)
    images, wanted = torch.randn(8, 3, 12, 12, generator=random), torch.randn(5, 3, 3, 3, generator=random)
    truth = torch.nn.functional.conv2d(images, wanted)

    def loss_after(n_steps: int, weight: torch.nn.Parameter, optimiser: torch.optim.Optimizer) -> float:
        for _ in range(n_steps):
            optimiser.zero_grad()
            loss = (torch.nn.functional.conv2d(images, weight) - truth).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return float(loss.detach())

    weight = torch.nn.Parameter(torch.zeros_like(wanted))
    optimiser = muon.Muon([weight], lr=0.1)
    first = loss_after(1, weight, optimiser)
    assert loss_after(80, weight, optimiser) < 0.1 * first
    again = torch.nn.Parameter(weight.detach().clone())
    other = muon.Muon([again], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert loss_after(3, weight, optimiser) == loss_after(3, again, other)
