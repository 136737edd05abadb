from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, NetworkConfig
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.image_file import open_image
from napari_cellbrush.engine.model import ModelCard, new_model
from napari_cellbrush.errors import ExportError
from napari_cellbrush.export import mask_tiff
from napari_cellbrush.export.mask_tiff import read_provenance, save_mask
from napari_cellbrush.export.provenance import mask_provenance

#: No two numbers alike, so that any swap fails.
SIZE = PixelSize(y=0.1, x=0.2, z=0.3, unit="µm")


def counted(shape: tuple[int, ...], largest: int, dtype: Any = np.int64) -> NDArray[Any]:
    mask = np.arange(np.prod(shape)).reshape(shape) % 7
    mask.flat[-1] = largest
    return mask.astype(dtype)


# ------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("given_type", [np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize(("largest", "dtype"), [
    (1, np.uint8), (255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32), (70_000, np.uint32),
    (2**32 - 1, np.uint32)])
def test_ids_come_back_exactly_in_the_smallest_type(
    tmp_path: Path, largest: int, dtype: type, given_type: type, compress: bool
) -> None:
    mask = counted((5, 9), largest, given_type)
    path = save_mask(tmp_path / "m.tif", mask, compress=compress)
    back = tifffile.imread(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, mask)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30), axes=st.sampled_from(["YX", "ZYX", "TYX"]))
def test_any_ids_come_back_exactly(tmp_path: Path, ids: list[int], axes: str) -> None:
    mask = np.array(ids, np.uint64).reshape((-1, 1, 1)[: len(axes)])
    path = save_mask(tmp_path / "m.tif", mask, axes=axes, overwrite=True)
    np.testing.assert_array_equal(tifffile.imread(path).ravel(), mask.ravel())


def test_probabilities_come_back_bit_by_bit(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((3, 6, 8), np.float32)
    path = save_mask(tmp_path / "m.tif", mask)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].axes == "CYX"
        assert tiff.imagej_metadata is not None
        assert tiff.imagej_metadata["channels"] == 3
        assert (tiff.imagej_metadata["min"], tiff.imagej_metadata["max"]) == (0.0, 1.0)
    np.testing.assert_array_equal(tifffile.imread(path), mask)


@pytest.mark.parametrize(("mask", "sentence"), [
    (np.array([[0, -1]]), "negative value -1"),
    (np.array([[0, 2**32]]), "4294967296"),
    (np.array([[0.5, 0.1]]), "float64 would lose digits"),
    (np.array([[1j]]), "complex128 cannot be saved"),
    (np.array([["a"]]), "cannot be saved"),
    (np.zeros((0, 4), np.uint8), "empty"),
])
def test_what_cannot_be_kept_exactly_is_refused(tmp_path: Path, mask: NDArray[Any], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        save_mask(tmp_path / "m.tif", mask)
    assert not list(tmp_path.iterdir())


def test_true_and_false_become_one_and_zero(tmp_path: Path) -> None:
    back = tifffile.imread(save_mask(tmp_path / "m.tif", np.array([[True, False]])))
    assert (back.dtype, back.tolist()) == (np.uint8, [[1, 0]])


# ------------------------------------------------------------------------------------------------- axes, sizes


@pytest.mark.parametrize(("axes", "shape", "frames", "slices"), [
    ("YX", (4, 6), None, None), ("ZYX", (5, 4, 6), None, 5), ("TYX", (3, 4, 6), 3, None), ("TZYX", (3, 5, 4, 6), 3, 5),
    ("ZTYX", (5, 3, 4, 6), 3, 5), ("XYT", (6, 4, 3), 3, None)])
def test_time_is_frames_and_depth_is_slices_in_whichever_order_they_come(
    tmp_path: Path, axes: str, shape: tuple[int, ...], frames: int | None, slices: int | None
) -> None:
    mask = counted(shape, 200, np.uint8)
    path = save_mask(tmp_path / "m.tif", mask, axes=axes, pixel_size=SIZE)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.imagej_metadata is not None
        assert tiff.imagej_metadata.get("frames") == frames
        assert tiff.imagej_metadata.get("slices") == slices
        order = "".join(letter for letter in "CTZYX" if letter in axes)
        assert tiff.series[0].axes == order
        np.testing.assert_array_equal(tiff.asarray(), mask.transpose([axes.index(letter) for letter in order]))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("axes", ["CYX", "CZYX", "CTYX", "CTZYX"])
def test_the_class_axis_goes_where_its_format_wants_it(
    tmp_path: Path, axes: str, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big:
        monkeypatch.setattr(mask_tiff, "IMAGEJ_LIMIT", 10)
    sizes = {"C": 2, "T": 3, "Z": 4, "Y": 5, "X": 6}
    mask = np.random.default_rng(0).random([sizes[letter] for letter in axes]).astype(np.float32)
    save_mask(tmp_path / "m.tif", mask, axes=axes)
    planes = open_image(tmp_path / "m.tif").planes
    assert planes.n_channels == 2
    assert planes.stack_axes == axes[1:-2]
    for index in planes.indices():
        np.testing.assert_array_equal(planes.read(index, slice(0, 5), slice(0, 6)), mask[(slice(None), *index)])


def test_fiji_measures_in_micrometres_along_the_right_axes(tmp_path: Path) -> None:
    path = save_mask(tmp_path / "m.tif", counted((5, 4, 6), 300), axes="ZYX", pixel_size=SIZE)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_imagej
        metadata, page = tiff.imagej_metadata, tiff.pages.first
        assert metadata is not None
        assert metadata["spacing"] == pytest.approx(0.3)
        assert metadata["unit"] == "um"
        assert (metadata["min"], metadata["max"]) == (0.0, 300.0)
        x_per_um, y_per_um = page.resolution
        assert (1 / x_per_um, 1 / y_per_um) == (pytest.approx(0.2), pytest.approx(0.1))


@pytest.mark.parametrize("options", [{}, {"compress": True}])
def test_the_reader_of_images_reads_back_what_was_written(tmp_path: Path, options: dict[str, bool]) -> None:
    path = save_mask(tmp_path / "m.tif", counted((5, 4, 6), 300), axes="ZYX", pixel_size=SIZE, **options)
    opened = open_image(path)
    assert opened.planes.axes == "ZYX"
    size = opened.pixel_size
    assert (size.y, size.x, size.z, size.unit) == (pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3), "µm")


def test_ome_holds_sizes_units_and_axes_by_name(tmp_path: Path) -> None:
    path = save_mask(tmp_path / "cells.tif", counted((3, 4, 6), 70_000), axes="TYX", pixel_size=SIZE)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert not tiff.is_bigtiff
        assert tiff.ome_metadata is not None
        image = next(e for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Image"))
        pixels = next(e for e in image if e.tag.endswith("}Pixels"))
    assert image.get("Name") == "cells"
    assert {name: pixels.get(name) for name in ("SizeT", "SizeZ", "SizeY", "SizeX")} == {
        "SizeT": "3", "SizeZ": "1", "SizeY": "4", "SizeX": "6"}
    assert [(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit")) for a in "XYZ"] == [
        ("0.2", "µm"), ("0.1", "µm"), ("0.3", "µm")]


def test_without_a_known_size_the_unit_is_pixels(tmp_path: Path) -> None:
    for name, options in (("a.tif", {}), ("b.tif", {"compress": True})):
        path = save_mask(tmp_path / name, counted((4, 6), 3), **options)
        assert open_image(path).pixel_size == PixelSize(1.0, 1.0)


@pytest.mark.parametrize("axes", [None, "YX", "ZYXT", "QYX", "ZZX", "SYX", "ZTC"])
def test_axes_are_asked_for_and_checked_never_guessed(tmp_path: Path, axes: str | None) -> None:
    with pytest.raises(ExportError, match="axes"):
        save_mask(tmp_path / "m.tif", counted((3, 4, 6), 3), axes=axes)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_thin_masks_keep_their_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert tifffile.imread(save_mask(tmp_path / "m.tif", np.ones(shape, np.uint8))).shape == shape


def test_three_rows_of_bytes_are_no_colours(tmp_path: Path) -> None:
    path = save_mask(tmp_path / "m.tif", counted((4, 5, 3), 9), axes="ZYX")
    assert open_image(path).planes.axes == "ZYX"


# ------------------------------------------------------------------------------------------------ kind of file


def test_above_the_limit_of_imagej_it_is_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = counted((5, 20, 30), 9)
    monkeypatch.setattr(mask_tiff, "IMAGEJ_LIMIT", mask.astype(np.uint8).nbytes - 1)
    path = save_mask(tmp_path / "m.tif", mask, axes="ZYX", pixel_size=SIZE)
    with tifffile.TiffFile(path) as tiff:
        assert (tiff.is_bigtiff, tiff.is_ome, tiff.is_imagej) == (True, True, False)
    np.testing.assert_array_equal(tifffile.imread(path), mask)


def test_the_limit_is_below_what_classic_tiff_can_address() -> None:
    assert 4e9 < mask_tiff.IMAGEJ_LIMIT < 2**32


def test_a_name_that_asks_for_ome_gets_ome(tmp_path: Path) -> None:
    path = save_mask(tmp_path / "m.ome.tif", counted((4, 6), 3))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome


def test_compressing_makes_it_smaller(tmp_path: Path) -> None:
    mask = np.zeros((300, 300), np.uint8)
    plain, small = save_mask(tmp_path / "a.tif", mask), save_mask(tmp_path / "b.tif", mask, compress=True)
    assert small.stat().st_size < plain.stat().st_size / 10


# -------------------------------------------------------------------------------------------------- provenance


@pytest.mark.parametrize("options", [{}, {"compress": True}])
def test_the_origin_is_in_the_description_and_can_be_read(tmp_path: Path, options: dict[str, bool]) -> None:
    note = {"model": 'näme "<&>" = \n\\ 细胞', "settings": {"tile": 0}, "n": [1, 2.5, None]}
    path = save_mask(tmp_path / "m.tif", counted((4, 6), 3), provenance=note, **options)
    assert read_provenance(path) == note
    with tifffile.TiffFile(path) as tiff:
        assert "settings" in tiff.pages.first.description


def test_a_mask_says_which_model_settings_and_versions_made_it(tmp_path: Path) -> None:
    import torch

    import napari_cellbrush

    model = new_model(ModelCard(name="m", classes=DEFAULT_CLASSES, in_channels=1, base_name="cells", base_hash="ab",
                                network=NetworkConfig(depth=3, base_filters=8)), 0)
    config = InferenceConfig(tile_size_px=200)
    note = mask_provenance(model, output="objects", config=config, image_name="a.tif")
    found = read_provenance(save_mask(tmp_path / "m.tif", counted((4, 6), 3), provenance=note))
    assert found == json.loads(json.dumps(note))
    assert found["model_weights_sha256"] == model.weights_hash
    assert (found["model"], found["base"], found["base_weights_sha256"]) == ("m", "cells", "ab")
    assert found["settings"] == config.model_dump()
    assert found["versions"]["napari-cellbrush"] == napari_cellbrush.__version__
    assert torch.__version__.startswith(found["versions"]["torch"].split("+")[0])
    assert (found["image"], found["output"]) == ("a.tif", "objects")
    assert found["date"][:2] == "20"


def test_other_files_have_no_origin_to_tell(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6), np.uint8))
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((4, 6), np.uint8), imagej=True, metadata={"Info": "{no json"})
    tifffile.imwrite(tmp_path / "c.ome.tif", np.zeros((4, 6), np.uint8))
    for name in ("a.tif", "b.tif", "c.ome.tif"):
        assert read_provenance(tmp_path / name) == {}
    (tmp_path / "d.tif").write_bytes(b"no tiff")
    for name in ("d.tif", "gone.tif"):
        with pytest.raises(ExportError, match="Cannot read"):
            read_provenance(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ writing


def test_an_existing_file_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = save_mask(tmp_path / "m.tif", counted((4, 6), 3))
    before = path.read_bytes()
    with pytest.raises(ExportError, match="exists already"):
        save_mask(path, counted((4, 6), 9))
    assert path.read_bytes() == before
    save_mask(path, counted((4, 6), 9), overwrite=True)
    assert tifffile.imread(path).max() == 9


@pytest.mark.parametrize("options", [{}, {"compress": True}])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, small_disk: Callable[[int], AbstractContextManager[None]], options: dict[str, bool], overwrite: bool
) -> None:
    path = tmp_path / "m.tif"
    if overwrite:
        path.write_bytes(b"old")
    mask = np.random.default_rng(0).integers(0, 60_000, (200, 300))
    with small_disk(4096), pytest.raises(ExportError, match="disk is full"):
        save_mask(path, mask, overwrite=overwrite, **options)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir() if p.is_file()] == (
        [("m.tif", b"old")] if overwrite else [])


def test_no_space_left_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", fail)
    with pytest.raises(ExportError, match="disk is full"):
        save_mask(tmp_path / "m.tif", counted((4, 6), 3))
    assert not list(tmp_path.iterdir())


def test_a_missing_or_forbidden_folder_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="does not exist"):
        save_mask(tmp_path / "nowhere" / "m.tif", counted((4, 6), 3))
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="does not exist"):
        save_mask(tmp_path / "file" / "m.tif", counted((4, 6), 3))

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ExportError, match="cannot be written"):
        save_mask(tmp_path / "m.tif", counted((4, 6), 3))
