"""``cellbrush sessions``: what was saved by itself, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_cellbrush.cli import main
from napari_cellbrush.config import DEFAULT_CLASSES, NetworkConfig
from napari_cellbrush.engine.model import ModelCard, new_model
from napari_cellbrush.engine.model_file import add_to_library, list_models, read_model
from napari_cellbrush.engine.session_folder import Painted, SavedSession, SessionCard, SessionWriter, identify
from napari_cellbrush.engine.session_folders import discard, list_sessions, new_session

IMAGE = np.random.default_rng(0).random((3, 50, 60))
STROKES = np.zeros((3, 50, 60), np.uint8)
STROKES[1, 10:20, 30:40] = 2


def save(name: str = "cells", model: str = "") -> SavedSession:
    card = SessionCard(image=identify(IMAGE, "TYX", name), classes=DEFAULT_CLASSES, model=model)
    path = new_session(card.image)
    return SavedSession(path, SessionWriter(path).save(card, {"strokes": Painted(STROKES)}))


def test_sessions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    discard(save("\x1b[31mcells"))
    assert main(["sessions"]) == 0
    captured = capsys.readouterr()
    header, row = captured.out.splitlines()
    assert header.split() == ["NAME", "IMAGE", "HOLDS", "SAVED", "SQUARES", "MODEL"]
    assert "?[31mcells" in row
    assert row.endswith("discarded")


def test_a_session_moves_to_another_computer_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    network = NetworkConfig(depth=3, base_filters=8)
    model = new_model(ModelCard(name="mine", classes=DEFAULT_CLASSES, in_channels=1, network=network), seed=0)
    add_to_library(model, "mine")
    name = save(model="mine").path.name
    assert main(["sessions", "export", name[:17], str(tmp_path / "moved")]) == 0
    file = capsys.readouterr().out.strip()
    monkeypatch.setenv("CELLBRUSH_HOME", str(tmp_path / "elsewhere"))
    for n_sessions in (1, 2):
        assert main(["sessions", "import", file]) == 0
        assert len(list_sessions()[0]) == n_sessions
        own = [entry for entry in list_models() if not entry.bundled]
        assert [entry.name for entry in own] == ["mine"]
        assert read_model(own[0].path).weights_hash == model.weights_hash
    assert list_sessions(identify(IMAGE, "TYX", "cells"))[0][0].card.model == "mine"


def test_strokes_are_written_as_tiff_with_their_axes(tmp_path: Path) -> None:
    name = save().path.name
    assert main(["sessions", "labels", name, str(tmp_path / "strokes.tif")]) == 0
    with tifffile.TiffFile(tmp_path / "strokes.tif") as tiff:
        assert tiff.series[0].axes == "TYX"
        assert np.array_equal(tiff.asarray(), STROKES)


def test_a_session_is_removed_by_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    session = save()
    assert main(["sessions", "remove", "nobody"]) == 1
    assert "There is no session called 'nobody'" in capsys.readouterr().err
    assert main(["sessions", "remove", session.path.name]) == 0
    assert not session.path.exists()


def test_a_damaged_session_is_reported_beside_the_good_ones(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = save(), save()
    (bad.path / "session.json").write_text("{")
    assert main(["sessions"]) == 1
    captured = capsys.readouterr()
    assert good.path.name in captured.out
    assert bad.path.name in captured.err
