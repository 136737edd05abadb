"""The demo: its strokes fit its image, and the whole path runs and leaves what it promises."""

from __future__ import annotations

import itertools
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile

from napari_cellbrush import demo
from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine.model_file import read_card
from napari_cellbrush.export.mask_tiff import read_provenance

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="virtual screens (Xvfb) are for Linux")
CLASS_NAMES = [definition.name for definition in DEFAULT_CLASSES]


def centre_line(stroke: demo.Stroke) -> np.ndarray:
    parts = [np.linspace(a, b, 20) for a, b in itertools.pairwise(np.array(stroke.points))]
    return np.concatenate(parts).round().astype(int)


def test_each_class_has_enough_strokes_to_hold_some_out():
    strokes = demo.demo_strokes()
    assert {stroke.class_name for stroke in strokes} == set(CLASS_NAMES)
    for name in CLASS_NAMES:
        assert sum(stroke.class_name == name for stroke in strokes) >= 6


def test_strokes_lie_on_the_image_and_no_two_classes_cross():
    shape = demo.demo_image().shape[:2]
    painted = np.zeros(shape, int)
    rows, columns = np.indices(shape)
    for stroke in demo.demo_strokes():
        value = CLASS_NAMES.index(stroke.class_name) + 1
        for row, column in centre_line(stroke):
            dab = (rows - row) ** 2 + (columns - column) ** 2 <= (stroke.brush_px / 2) ** 2
            assert np.isin(painted[dab], [0, value]).all(), stroke
            painted[dab] = value


def test_strokes_follow_what_the_stain_shows():
    """Membranes are the darkest, cells are stained, background is pale."""
    grey = demo.demo_image().mean(axis=2)
    shades = {name: np.median([np.median(grey[tuple(centre_line(s).T)]) for s in demo.demo_strokes()
                               if s.class_name == name]) for name in CLASS_NAMES}
    assert shades["boundary"] + 20 < shades["cell"] < shades["background"] - 40


@pytest.mark.parametrize(("environment", "there"), [({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "w"}, True),
                                                    ({}, False), ({"DISPLAY": ""}, False)])
def test_a_display_is_looked_for_where_linux_names_it(monkeypatch, environment, there):
    monkeypatch.setattr(sys, "platform", "linux")
    assert demo.has_display(environment) is there


@only_linux
def test_without_xvfb_the_demo_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo.run_demo(True, tmp_path / "out") == 1
    assert "xvfb" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_with_a_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert demo.run_demo(False, tmp_path / "file") == 1
    assert "--out" in capsys.readouterr().err


@only_linux
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_runs_the_whole_path_and_leaves_mask_model_and_screenshot(capfd, tmp_path):
    for name in (demo.MASK, demo.MODEL, demo.SCREENSHOT):
        (tmp_path / name).write_text("of an earlier run")
    (tmp_path / "mine.txt").write_text("not of the demo")
    assert demo.run_demo(True, tmp_path, max_steps=2) == 0

    mask = tifffile.imread(tmp_path / demo.MASK)
    assert mask.shape == demo.demo_image().shape[:2]
    assert mask.dtype.kind == "u"
    card = read_card(tmp_path / demo.MODEL)
    assert [definition.name for definition in card.classes] == CLASS_NAMES
    assert min(card.labelled_pixels.values()) > 1000
    assert read_provenance(tmp_path / demo.MASK)["output"] == "objects"
    picture = iio.imread(tmp_path / demo.SCREENSHOT)
    assert picture.shape == (demo.WINDOW_PX[1], demo.WINDOW_PX[0], 3)
    # A blank canvas would be one colour: the tissue has thousands.
    middle = picture[200:700, 400:1000].reshape(-1, 3)
    assert len(np.unique(middle, axis=0)) > 5000
    assert (tmp_path / "mine.txt").read_text() == "not of the demo"

    told = capfd.readouterr().out
    for word in ("Painted pixels", "First mask", "Full mask", "Score", demo.MASK, demo.MODEL, demo.SCREENSHOT):
        assert word in told
