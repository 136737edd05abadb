"""Full disks, folders that cannot be written, no network: for everything that is saved."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from accidents import tiny_model

import napari_cellbrush
from napari_cellbrush import cli
from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine.measure import measure_objects
from napari_cellbrush.engine.model_file import save_model
from napari_cellbrush.engine.session_folder import Painted, SavedSession, SessionCard, SessionWriter, identify
from napari_cellbrush.engine.session_folders import export_session, new_session
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.export.geojson import save_geojson
from napari_cellbrush.export.mask_tiff import save_mask
from napari_cellbrush.export.overlay import save_overlay
from napari_cellbrush.export.rois import save_rois
from napari_cellbrush.export.tables import save_table

IDS = np.zeros((200, 210), np.uint16)
for _number, (_row, _column) in enumerate(np.ndindex(9, 9), start=1):
    IDS[_row * 20 + 5 : _row * 20 + 15, _column * 20 + 5 : _column * 20 + 16] = _number
IMAGE = np.random.default_rng(0).random(IDS.shape).astype(np.float32)


def session() -> SavedSession:
    card = SessionCard(image=identify(IMAGE, "YX", "cells"), classes=DEFAULT_CLASSES)
    path = new_session(card.image)
    strokes = np.random.default_rng(0).integers(0, 4, IDS.shape, np.uint8)
    return SavedSession(path, SessionWriter(path).save(card, {"strokes": Painted(strokes)}))


def save_session(path: Path) -> Path:
    return export_session(session(), path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "mask.tif": lambda path: save_mask(path, IDS),
    "mask.ome.tif": lambda path: save_mask(path, np.arange(IDS.size).reshape(IDS.shape), compress=True),
    "objects.csv": lambda path: save_table(path, measure_objects(IDS)),
    "objects.geojson": lambda path: save_geojson(path, IDS),
    "rois.zip": lambda path: save_rois(path, IDS),
    "overlay.png": lambda path: save_overlay(path, IDS, IMAGE),
    "model.safetensors": lambda path: save_model(tiny_model(), path),
    "work.cellbrush.zip": save_session,
}


@pytest.fixture(autouse=True)
def saved_session() -> None:
    session()


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_nothing_and_gets_a_sentence(
        name: str, tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]],
        monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if name.endswith("cellbrush.zip"):
        kept = session()
        monkeypatch.setitem(WRITERS, name, lambda path: export_session(kept, path))
    with small_disk(1500), pytest.raises(CellbrushError) as caught:
        WRITERS[name](folder / name)
    assert caught.value.remedy
    assert list(folder.iterdir()) == []
    WRITERS[name](folder / name)
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_folder_that_cannot_be_written_gets_a_sentence(name: str, code: int, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).startswith(str(tmp_path / "out")) and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *more, **named)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CellbrushError) as caught:
        WRITERS[name](tmp_path / "out" / name)
    assert caught.value.remedy
    assert list((tmp_path / "out").iterdir()) == []


def test_the_whole_path_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("image.tif", IMAGE)
    strokes = np.zeros(IDS.shape, np.uint8)
    strokes[:20], strokes[60:80] = 1, 2
    tifffile.imwrite("strokes.tif", strokes)
    tiny = ["--network.depth", "3", "--network.base-filters", "8", "--patch-px", "64", "--batch-size", "1"]
    assert cli.main(["train", "image.tif", "--labels", "strokes.tif", "--out", "mine.safetensors", "--base", "scratch",
                     "--max-steps", "2", "--device", "cpu", *tiny]) == 0
    assert cli.main(["segment", "image.tif", "--model", "mine.safetensors", "--out", "masks", "--device", "cpu"]) == 0
    assert napari_cellbrush.segment(IMAGE[:64, :64], "cells", device="cpu").any()
    assert cli.main(["sessions"]) == 0
    assert asked == []
