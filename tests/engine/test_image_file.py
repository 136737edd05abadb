from __future__ import annotations

import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_cellbrush.engine import image_file
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.image_file import open_image, open_labels
from napari_cellbrush.errors import ImageError

RANDOM = np.random.default_rng(0)
STACK = RANDOM.integers(0, 60_000, (3, 5, 20, 30)).astype(np.uint16)
RGB = RANDOM.integers(0, 255, (20, 30, 3)).astype(np.uint8)


def whole(path: Path, axes: str | None = None) -> tuple[str, NDArray[Any]]:
    planes = open_image(path, axes).planes
    return planes.axes, np.asarray(planes.data)


# ------------------------------------------------------------------------------------------------------- TIFF


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16), "compression": "zlib"},
                                     {"byteorder": ">"}, {"compression": "zlib", "rowsperstrip": 7}])
@pytest.mark.parametrize("axes", ["TZYX", "TCYX", "ZCYX", "CZYX"])
def test_the_axes_a_file_names_are_taken(tmp_path: Path, options: dict[str, Any], axes: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": axes}, **options)
    found, data = whole(path)
    assert found == axes
    np.testing.assert_array_equal(data, STACK)


def test_imagej_and_ome_files_name_their_axes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "ij.tif", STACK, imagej=True, metadata={"axes": "TZYX"})
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": "CZYX"})
    assert whole(tmp_path / "ij.tif")[0] == "TZYX"
    assert whole(tmp_path / "a.ome.tif")[0] == "CZYX"
    np.testing.assert_array_equal(whole(tmp_path / "ij.tif")[1], STACK)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_are_samples_or_channels_never_a_stack(tmp_path: Path, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", RGB, photometric="rgb", compression=compression)
    tifffile.imwrite(tmp_path / "planar.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate",
                     compression=compression)
    for name, axes in (("rgb.tif", "YXS"), ("planar.tif", "CYX")):
        planes = open_image(tmp_path / name).planes
        assert (planes.axes, planes.n_channels, planes.stack_axes) == (axes, 3, "")
        np.testing.assert_array_equal(planes.read((), slice(2, 9), slice(0, 30)), RGB.transpose(2, 0, 1)[:, 2:9])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("n_samples", "photometric", "extra", "n_channels"), [
    (4, "rgb", "UNASSALPHA", 3), (4, "rgb", "ASSOCALPHA", 3), (4, "rgb", "UNSPECIFIED", 4),
    (2, "minisblack", None, 2), (4, "minisblack", None, 4), (2, "minisblack", "UNASSALPHA", 1), (3, "rgb", None, 3)])
def test_samples_are_channels_unless_the_file_says_alpha(
    tmp_path: Path, compression: str | None, planar: bool, n_samples: int, photometric: str, extra: str | None,
    n_channels: int
) -> None:
    samples = RANDOM.integers(0, 255, (n_samples, 20, 30)).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples if planar else np.moveaxis(samples, 0, -1), photometric=photometric,
                     planarconfig="separate" if planar else "contig", extrasamples=[extra] if extra else None,
                     compression=compression)
    planes = open_image(path).planes
    assert planes.n_channels == n_channels
    np.testing.assert_array_equal(planes.read((), slice(0, 20), slice(0, 30)), samples[:n_channels])


def test_a_file_of_several_images_says_that_the_first_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for height in (8, 10, 12):
            tiff.write(np.ones((height, 9), np.uint8), metadata=None)
    opened = open_image(path)
    assert opened.planes.shape_yx == (8, 9)
    assert [note.partition(",")[0] for note in opened.notes] == ["a.tif holds 3 images (series)"]
    assert "shape (8, 9), is read" in opened.notes[0]


def test_axes_that_contradict_the_file_are_noted_with_both(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "named.tif", STACK[0], metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "pages.tif", STACK[0], metadata=None)
    tifffile.imwrite(tmp_path / "rgb.tif", RGB, photometric="rgb")
    np.save(tmp_path / "a.npy", STACK[0])
    assert open_image(tmp_path / "named.tif", "CYX").notes == (
        "named.tif is read with the axes CYX, as you say, although it names its own ZYX",)
    for name, axes in (("named.tif", "zyx"), ("named.tif", None), ("pages.tif", "CYX"), ("a.npy", "TYX"),
                       ("rgb.tif", "YXC")):
        assert open_image(tmp_path / name, axes).notes == ()


def test_pages_without_a_word_are_a_stack(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, STACK[0], metadata=None)
    assert whole(path)[0] == "ZYX"


def test_an_axis_that_nobody_named_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "what.tif"
    tifffile.imwrite(path, STACK[0])
    with pytest.raises(ImageError, match=r"what\.tif.*\(5, 20, 30\).*--axes"):
        open_image(path)
    for axes in ("CYX", "ZYX", "tyx"):
        assert whole(path, axes)[0] == axes.upper()


def test_axes_that_do_not_fit_are_refused_with_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0])
    for axes in ("YX", "QYX", "YYX", "CSX"):
        with pytest.raises(ImageError, match=r"a\.tif: "):
            open_image(path, axes)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_window_reads_no_page_it_does_not_need(
    tmp_path: Path, compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "TZYX"}, compression=compression)
    decoded: list[int] = []
    decode = image_file._TiffPages._decoded
    monkeypatch.setattr(image_file._TiffPages, "_decoded", lambda self, n: decoded.append(n) or decode(self, n))
    planes = open_image(path).planes
    for rows in (slice(0, 5), slice(5, 20)):
        np.testing.assert_array_equal(planes.read((2, 1), rows, slice(3, 30))[0], STACK[2, 1, rows, 3:])
    assert decoded == ([] if compression is None else [2 * 5 + 1])
    assert isinstance(planes.data, np.memmap) == (compression is None)


@pytest.mark.parametrize("key", [(0, 1, 2, 3), (slice(None), 1), np.s_[..., 3], np.s_[0:2, ..., 4:5], 2, np.s_[1:1],
                                 np.s_[::2, ::-1, ::3, 5]])
def test_compressed_pages_are_indexed_like_an_array(tmp_path: Path, key: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "TZYX"}, compression="zlib")
    data = open_image(path).planes.data
    assert type(data).__name__ == "_TiffPages"
    np.testing.assert_array_equal(data[key], STACK[key])


def test_a_huge_compressed_page_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zarr")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], metadata={"axes": "CYX"}, compression="zlib", tile=(16, 16))
    monkeypatch.setattr(image_file, "_LARGEST_PAGE", 100)
    planes = open_image(path).planes
    assert type(planes.data).__name__ == "_Guarded"
    np.testing.assert_array_equal(planes.read((), slice(3, 19), slice(7, 30)), STACK[0, :, 3:19, 7:])


def test_without_zarr_a_huge_compressed_page_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0, 0], compression="zlib")
    monkeypatch.setattr(image_file, "_LARGEST_PAGE", 100)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImageError, match=r"a\.tif.*pip install zarr"):
        open_image(path)


# ------------------------------------------------------------------------------------------------- pixel sizes


@pytest.mark.parametrize(("unit", "factor"), [("um", 1), ("\\u00B5m", 1), ("micron", 1), ("nm", 1e-3), ("mm", 1e3),
                                              ("inch", 25400)])
def test_imagej_pixel_sizes_are_read_in_micrometres_with_y_and_x_apart(
    tmp_path: Path, unit: str, factor: float
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], imagej=True, resolution=(5, 10), metadata={"axes": "ZYX", "spacing": 0.3,
                                                                                "unit": unit})
    size = open_image(path).pixel_size
    assert (size.y, size.x, size.z) == pytest.approx((0.1 * factor, 0.2 * factor, 0.3 * factor))
    assert size.unit == "µm"


def test_ome_pixel_sizes_are_read_in_their_units(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[0], metadata={
        "axes": "ZYX", "PhysicalSizeX": 200.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.3})
    size = open_image(path).pixel_size
    assert (size.y, size.x, size.z) == pytest.approx((0.1, 0.2, 0.3))
    assert size.unit == "µm"


def test_resolution_tags_count_unless_they_are_for_printing(tmp_path: Path) -> None:
    plane = STACK[0, 0]
    tifffile.imwrite(tmp_path / "cm.tif", plane, resolution=(20_000, 40_000), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "dpi.tif", plane, resolution=(72, 72), resolutionunit="INCH")
    size = open_image(tmp_path / "cm.tif").pixel_size
    assert (size.y, size.x, size.unit) == (pytest.approx(0.25), pytest.approx(0.5), "µm")
    assert open_image(tmp_path / "dpi.tif").pixel_size == PixelSize(1.0, 1.0)


@pytest.mark.parametrize("metadata", [{"unit": "pixel"}, {"unit": "furlong"}, {}])
def test_an_unknown_unit_is_pixels(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0, 0], imagej=True, resolution=(5, 10), metadata=metadata)
    assert open_image(path).pixel_size == PixelSize(1.0, 1.0)


# ------------------------------------------------------------------------------------------------- other kinds


def test_npy_is_mapped_and_its_axes_are_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "plane.npy", STACK[0, 0])
    np.save(tmp_path / "stack.npy", STACK)
    assert isinstance(open_image(tmp_path / "plane.npy").planes.data, np.memmap)
    with pytest.raises(ImageError, match=r"stack\.npy.*--axes"):
        open_image(tmp_path / "stack.npy")
    assert whole(tmp_path / "stack.npy", "TCYX")[0] == "TCYX"


def test_a_pickled_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"evil\.npy cannot be read as npy"):
        open_image(tmp_path / "evil.npy")


@pytest.mark.parametrize(("mode", "axes"), [("L", "YX"), ("I;16", "YX"), ("RGB", "YXS"), ("RGBA", "YXS"), ("1", "YX"),
                                            ("P", "YXS"), ("LA", "YX")])
def test_pictures_of_every_mode_open(tmp_path: Path, mode: str, axes: str) -> None:
    path = tmp_path / "a.png"
    grey = Image.fromarray(RGB[..., 0])
    (Image.fromarray(STACK[0, 0]) if mode == "I;16" else grey.convert(mode)).save(path)
    planes = open_image(path).planes
    assert planes.axes == axes
    assert planes.n_channels == (3 if axes == "YXS" else 1)
    assert planes.shape_yx == (20, 30)
    if mode == "I;16":
        np.testing.assert_array_equal(planes.data, STACK[0, 0])


def test_a_suffix_does_not_matter(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, 0])
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    np.testing.assert_array_equal(whole(tmp_path / "a.png")[1], STACK[0, 0])


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_names_axes_and_sizes_and_is_read_by_chunks(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    group.create_array("0", shape=STACK.shape, chunks=(1, 1, 20, 30), dtype=STACK.dtype)[:] = STACK
    axes = [{"name": n, "type": "space", **({"unit": "micrometer"} if n in "zyx" else {})} for n in "czyx"]
    scales = [{"type": "scale", "scale": [1.0, 0.3, 0.1, 0.2]}]
    multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scales}]}]
    group.attrs.update({"multiscales": multiscales} if version == 2 else {"ome": {"multiscales": multiscales}})
    opened = open_image(tmp_path / "a.zarr")
    assert opened.planes.axes == "CZYX"
    assert opened.pixel_size == PixelSize(0.1, 0.2, 0.3, "µm")
    np.testing.assert_array_equal(opened.planes.read((2,), slice(3, 9), slice(0, 30)), STACK[:, 2, 3:9])


def test_a_plain_zarr_array_opens_with_its_axes_named(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.save_array(str(tmp_path / "a.zarr"), STACK)
    assert whole(tmp_path / "a.zarr", "TZYX")[0] == "TZYX"


def test_a_folder_without_zarr_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImageError, match="pip install zarr"):
        open_image(tmp_path)


# ------------------------------------------------------------------------------------------------------ labels


def test_the_indices_of_a_palette_picture_are_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    indices = RANDOM.integers(0, 4, (20, 30)).astype(np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(path)
    np.testing.assert_array_equal(open_labels(path), indices)


def test_labels_may_leave_their_axes_unnamed_but_hold_no_colours(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK)
    np.testing.assert_array_equal(open_labels(tmp_path / "a.tif"), STACK)
    tifffile.imwrite(tmp_path / "rgb.tif", RGB, photometric="rgb")
    with pytest.raises(ImageError, match=r"rgb\.tif holds colours"):
        open_labels(tmp_path / "rgb.tif")


def test_labels_follow_the_order_of_their_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata={"axes": "TZYX"})
    np.testing.assert_array_equal(open_labels(tmp_path / "a.tif", "ZTYX"), STACK.transpose(1, 0, 2, 3))
    np.testing.assert_array_equal(open_labels(tmp_path / "a.tif", "TZYX"), STACK)


# ------------------------------------------------------------------------------------------------------- damage


def claiming(path: Path, width: int, height: int, compression: int = 1) -> None:
    """A TIFF of a few bytes whose header claims width × height pixels."""
    tags = [(256, width), (257, height), (258, 8), (259, compression), (262, 1), (273, 8), (277, 1), (278, height),
            (279, 16)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 24) + b"\0" * 16 + struct.pack("<H", len(tags)) + entries + b"\0" * 4)


@pytest.mark.parametrize("compression", [1, 8])
def test_a_header_that_claims_a_trillion_pixels_is_refused(tmp_path: Path, compression: int) -> None:
    claiming(tmp_path / "bomb.tif", 10**6, 10**6, compression)
    with pytest.raises(ImageError, match=r"bomb\.tif claims 1,000,000,000,000 values.*truncated or damaged"):
        open_image(tmp_path / "bomb.tif")


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"compression": "zlib"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_tiff_gets_a_sentence_that_names_it(tmp_path: Path, options: dict[str, Any], share: float) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, RANDOM.integers(0, 255, (400, 500)).astype(np.uint8), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    def read() -> None:
        planes = open_image(path).planes
        planes.read((), slice(0, planes.shape_yx[0]), slice(0, planes.shape_yx[1]))

    with pytest.raises(ImageError, match=r"cut\.tif") as caught:
        read()
    assert caught.value.remedy


@pytest.mark.parametrize(("name", "content"), [
    ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40), ("a.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 40), ("a.tif", b"II*\0"),
    ("a.tif", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 50), ("a.npy", b"\x93NUMPY\1\0\xff\xff"), ("a.txt", b"hello"),
    ("empty.tif", b""), ("a.npy", b"\x93NUMPY\1\0v\0{'descr': '<u1', 'fortran_order': False, 'shape': (1000000, "
     b"1000000), }" + b" " * 51 + b"\n")])
def test_rubbish_gets_a_sentence_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name.replace(".", r"\.")) as caught:
        open_image(tmp_path / name)
    assert caught.value.remedy
    assert len(str(caught.value)) < 500


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.tif does not exist"):
        open_image(tmp_path / "gone.tif")


def test_an_unusable_type_or_an_empty_image_is_refused_with_the_file_named(tmp_path: Path) -> None:
    np.save(tmp_path / "complex.npy", np.ones((4, 5), np.complex64))
    np.save(tmp_path / "empty.npy", np.ones((0, 5)))
    for name in ("complex.npy", "empty.npy"):
        with pytest.raises(ImageError, match=name.replace(".", r"\.")):
            open_image(tmp_path / name)


def test_a_compression_without_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0, 0], compression="zlib")
    planes = open_image(path).planes

    def fail(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(ImageError, match=r"a\.tif.*pip install imagecodecs"):
        planes.read((), slice(0, 5), slice(0, 5))


@pytest.mark.parametrize("n_page", [0, 1])
def test_a_strip_that_claims_more_than_the_file_has_is_refused_before_it_takes_memory(
        tmp_path: Path, n_page: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 30, 40), np.uint8), compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[n_page].tags["StripByteCounts"].overwrite(3_000_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"claims a strip or tile of 3,000,000,000 bytes"):
            np.asarray(open_labels(path, "ZYX")[1])
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
