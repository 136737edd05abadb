"""Files that somebody damaged or made up: read, or refused with a sentence, and nothing else happens."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from accidents import times, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_cellbrush.config import DEFAULT_CLASSES, load_config
from napari_cellbrush.engine.image_file import open_image, open_labels
from napari_cellbrush.engine.model_file import read_model, save_model
from napari_cellbrush.engine.session_folder import Painted, SavedSession, SessionCard, SessionWriter, identify
from napari_cellbrush.engine.session_folders import export_session, import_session
from napari_cellbrush.errors import CellbrushError
from napari_cellbrush.export.mask_tiff import read_provenance, save_mask

#: Bytes that reading a file of less than 100 kB may take at the most: a compressed image may claim a gigabyte, because
#: empty images shrink to nothing.
MOST_BYTES = 2**30 + 2**28
PIXELS = np.random.default_rng(0).integers(0, 4, (2, 30, 40), np.uint8)


def tiff(**options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, PIXELS, **options)
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, "png")
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, PIXELS)
    return stream.getvalue()


def model(folder: Path) -> bytes:
    return save_model(tiny_model(), folder / "good.safetensors").read_bytes()


def session(folder: Path) -> bytes:
    card = SessionCard(image=identify(PIXELS, "ZYX", "cells"), classes=DEFAULT_CLASSES)
    saved = SavedSession(folder / "session", SessionWriter(folder / "session").save(card, {"strokes": Painted(PIXELS)}))
    return export_session(saved, folder / "good.cellbrush.zip").read_bytes()


def mask(folder: Path) -> bytes:
    return save_mask(folder / "good.tif", PIXELS, axes="ZYX", provenance={"output": "classes"}).read_bytes()


def read_image(path: Path, axes: str | None = None) -> None:
    opened = open_image(path, axes)
    planes = opened.planes
    for index in planes.indices()[:3]:
        planes.read(index, slice(0, min(64, planes.shape_yx[0])), slice(0, min(64, planes.shape_yx[1])))


def read_labels(path: Path) -> None:
    labels = open_labels(path, "ZYX")
    np.asarray(labels[(slice(1),) * (len(labels.shape) - 2) + (slice(64),) * min(1, len(labels.shape))])


#: What a good file holds, how it is called, who reads it.
FILES: dict[str, tuple[Callable[[Path], bytes], str, Callable[[Path], Any]]] = {
    "plain tiff": (lambda _: tiff(), "a.tif", partial(read_image, axes="ZYX")),
    "imagej tiff": (lambda _: tiff(imagej=True, metadata={"axes": "ZYX"}), "a.tif", read_image),
    "deflated tiff": (lambda _: tiff(compression="zlib", tile=(16, 16)), "a.tif", partial(read_image, axes="ZYX")),
    "ome tiff": (lambda _: tiff(ome=True, metadata={"axes": "ZYX"}), "a.ome.tif", read_image),
    "labels": (lambda _: tiff(compression="zlib"), "a.tif", read_labels),
    "png": (lambda _: png(), "a.png", read_image),
    "npy": (lambda _: npy(), "a.npy", read_labels),
    "model": (model, "a.safetensors", read_model),
    "session": (session, "a.cellbrush.zip", import_session),
    "mask": (mask, "a.tif", read_provenance),
    "settings": (lambda _: b'{"max_steps": 3, "network": {"depth": 3}}', "a.json", load_config),
}

damages = st.lists(st.one_of(
    st.tuples(st.just("change"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.floats(0, 0.3))), min_size=1, max_size=4)


def damaged(content: bytes, damage: list[tuple[str, float, Any]]) -> bytes:
    data = bytearray(content)
    for kind, where, what in damage:
        # Headers decide about everything else, and lie at the beginning or the end: most damages belong there.
        place = int(min(where**3, 1) * max(0, len(data) - 1))
        if kind == "change":
            data[place : place + len(what)] = what
        elif kind == "insert":
            data[place:place] = what
        else:
            del data[place : place + int(what * len(data))]
    return bytes(data)


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_read_or_refused_with_a_sentence(kind: str, tmp_path: Path, cellbrush_home: Path) -> None:
    make, name, read = FILES[kind]
    good = make(tmp_path)
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / name).write_bytes(good)
    read(folder / name)
    outside = outside_of(tmp_path, folder, cellbrush_home)

    @settings(max_examples=times("FILES", 25), deadline=None, database=None,
              suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(damage=damages)
    def attempt(damage: list[tuple[str, float, Any]]) -> None:
        (folder / name).write_bytes(damaged(good, damage))
        tracemalloc.start()
        try:
            read(folder / name)
        except CellbrushError as error:
            said = str(error)
            assert said.endswith(".")
            assert len(said) < 2000
        finally:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert most < MOST_BYTES

    attempt()
    assert outside_of(tmp_path, folder, cellbrush_home) == outside


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
@pytest.mark.parametrize("read", [read_image, read_labels])
def test_pages_that_lead_back_to_an_earlier_one_are_not_followed_for_ever(
    read: Callable[[Path], Any], options: dict[str, Any], tmp_path: Path,
) -> None:
    """Found by a fuzzer: tifffile takes such a file for endlessly many pages."""
    path = tmp_path / "circle.tif"
    tifffile.imwrite(path, PIXELS, photometric="minisblack", metadata=None, **options)
    with tifffile.TiffFile(path) as tiff:
        first, last, layout = tiff.pages[0].offset, tiff.pages[-1], tiff.tiff
        place = last.offset + layout.tagnosize + len(last.tags) * layout.tagsize
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack(layout.offsetformat, first))
    with pytest.raises(CellbrushError, match=r"circle\.tif"):
        read(path)


def test_a_file_cut_off_in_its_list_of_pages_is_not_followed_for_ever(tmp_path: Path) -> None:
    """Found by a fuzzer: tifffile takes the last bytes of such a file for the place of the next page."""
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, PIXELS[0], metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0].offset
    path.write_bytes(path.read_bytes()[: first + 100] + struct.pack("<I", first))
    with pytest.raises(CellbrushError, match=r"cut\.tif"):
        read_image(path)


def outside_of(folder: Path, *allowed: Path) -> dict[str, int]:
    """All files beside those that reading may make."""
    return {str(path): path.stat().st_size for path in folder.rglob("*")
            if path.is_file() and not any(one in path.parents for one in allowed)}


@pytest.mark.parametrize("member", ["../evil", "/evil", "chunks/../../../evil", "..\\evil", "models/../../evil.py"])
def test_a_session_file_writes_into_its_own_folder_alone(member: str, tmp_path: Path, cellbrush_home: Path) -> None:
    session(tmp_path)
    file = tmp_path / "good.cellbrush.zip"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(member, "import os; os.abort()")
    before = outside_of(tmp_path, cellbrush_home)
    imported = import_session(file)
    assert outside_of(tmp_path, cellbrush_home) == before
    assert not [path for path in cellbrush_home.rglob("*") if "evil" in path.name]
    assert cellbrush_home in imported.path.parents


def test_a_zarr_that_claims_a_trillion_pixels_takes_no_memory(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "huge.zarr"), shape=(10**6, 10**6), chunks=(512, 512), dtype="uint16")
    tracemalloc.start()
    read_image(tmp_path / "huge.zarr")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50_000_000


@pytest.mark.parametrize("metadata", [
    '{"zarr_format": 3, "node_type": "array", "shape": [1000000, 1000000]}', "{", "[]", '{"zarr_format": 99}',
    '{"zarr_format": 3, "node_type": "group", "attributes": {"multiscales": [{"datasets": [{"path": "../.."}]}]}}',
    '{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": [7]}}}'])
def test_a_made_up_zarr_is_refused_with_a_sentence(metadata: str, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(metadata)
    with pytest.raises(CellbrushError) as caught:
        read_image(tmp_path / "a.zarr")
    assert caught.value.remedy
