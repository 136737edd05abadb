from __future__ import annotations

import csv
import json
import signal
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import tifffile
from numpy.typing import NDArray
from PIL import Image

import napari_cellbrush
from napari_cellbrush import cli, config
from napari_cellbrush.cli import main
from napari_cellbrush.cli_options import given_settings
from napari_cellbrush.cli_progress import training_bar
from napari_cellbrush.config import DEFAULT_CLASSES, InferenceConfig, NetworkConfig, TrainingConfig
from napari_cellbrush.engine import held_out, inference, learner, model_file, planes, training
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.image_file import open_image
from napari_cellbrush.engine.metrics import average_precision, class_iou
from napari_cellbrush.engine.model import ModelCard, new_model
from napari_cellbrush.engine.model_file import add_to_library, read_card, read_model, save_model
from napari_cellbrush.events import Preparing
from napari_cellbrush.export.mask_tiff import read_provenance

TINY = NetworkConfig(depth=3, base_filters=8)
TINY_OPTIONS = ["--network.depth", "3", "--network.base-filters", "8", "--patch-px", "64", "--batch-size", "1",
                "--device", "cpu", "--max-minutes", "5"]


def image_and_objects(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:90, :110]
    objects = np.zeros((90, 110), np.uint16)
    for number, (row, column) in enumerate(random.integers(10, 80, (6, 2)), start=1):
        objects[(rows - row) ** 2 + (columns - column) ** 2 < 64] = number
    image = np.clip(np.where(objects > 0, 160, 60) + random.normal(0, 10, objects.shape), 0, 255).astype(np.uint8)
    return image, objects


IMAGE, OBJECTS = image_and_objects()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image, its masks, and a model."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    tifffile.imwrite(work / "image.tif", IMAGE, imagej=True, resolution=(5, 10), metadata={"unit": "um"})
    tifffile.imwrite(work / "objects.tif", OBJECTS)
    tifffile.imwrite(work / "classes.tif", objects_to_classes(OBJECTS))
    save_model(tiny_model(), work / "tiny.safetensors")
    return work


def tiny_model(n_channels: int = 1, **card: Any) -> Any:
    return new_model(ModelCard(name="tiny", classes=DEFAULT_CLASSES, in_channels=n_channels, network=TINY, **card),
                     seed=0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------ the whole path


@pytest.mark.parametrize(("what", "words"), [("sizes", "Measuring objects"), ("head", "Fitting a first answer")])
def test_the_bar_says_what_is_prepared(what: Any, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar() as show:
        show(Preparing(what))
    assert words in capsys.readouterr().err


def test_train_then_segment_then_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "image.tif", "--labels", "objects.tif", "--label-kind", "objects", "--out",
                 "mine.safetensors", "--base", "scratch", "--max-steps", "3", *TINY_OPTIONS]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["model"], report["n_steps"], report["ended"]) == ("mine.safetensors", 3, "steps")
    assert "Ended after 3 steps" in captured.err
    assert "cellbrush segment IMAGE --model mine.safetensors --out DIR" in captured.err
    assert "cellbrush models import mine.safetensors" in captured.err
    card = read_card("mine.safetensors")
    assert card.name == "mine"
    assert [c.name for c in card.classes] == ["background", "cell", "boundary"]
    assert card.training is not None
    assert card.training.network == TINY

    outputs = {"classes": np.uint8, "objects": np.uint8, "probabilities": np.float32}
    for output in outputs:
        assert main(["segment", "image.tif", "--model", "mine.safetensors", "--out", "out", "--output", output,
                     "--device", "cpu"]) == 0
        assert capsys.readouterr().out.split() == [str(Path("out") / f"image_{output}.tif")]
    for output, dtype in outputs.items():
        found = tifffile.imread(folder / "out" / f"image_{output}.tif")
        expected = napari_cellbrush.segment(IMAGE, "mine.safetensors", output, device="cpu")  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
        assert output == "objects" or found.dtype == dtype
    note = read_provenance(folder / "out" / "image_classes.tif")
    assert note["model_weights_sha256"] == read_model("mine.safetensors").weights_hash
    assert (note["model"], note["image"]) == ("mine", "image.tif")

    assert main(["evaluate", "--prediction", "out/image_objects.tif", "--truth", "objects.tif", "--kind",
                 "objects"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "objects"


def test_the_command_line_and_python_train_the_same_model(folder: Path) -> None:
    settings = TrainingConfig(max_steps=2, max_minutes=5, seed=7, batch_size=1, patch_px=64, network=TINY)
    expected = napari_cellbrush.fine_tune("tiny.safetensors", IMAGE, objects_to_classes(OBJECTS), settings,
                                          device="cpu")
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--base",
                 "tiny.safetensors", "--seed", "7", "--max-steps", "2", *TINY_OPTIONS]) == 0
    assert read_model("a.safetensors").weights_hash == expected.weights_hash


def test_the_pixel_size_of_the_image_is_on_its_mask(folder: Path) -> None:
    assert main(["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]) == 0
    with tifffile.TiffFile("out/image_classes.tif") as tiff:
        assert tiff.imagej_metadata is not None
        assert tiff.imagej_metadata["unit"] == "um"
        assert tiff.pages.first.resolution == (5, 10)


def test_stacks_and_colours_come_from_the_file_and_axes_override(folder: Path) -> None:
    stack = np.stack([IMAGE, IMAGE[::-1], IMAGE])
    tifffile.imwrite("t.tif", stack, imagej=True, metadata={"axes": "TYX"})
    np.save("c.npy", stack)
    save_model(tiny_model(3), folder / "rgb.safetensors")
    tifffile.imwrite("rgb.tif", np.moveaxis(stack, 0, -1), photometric="rgb")
    common = ["--out", "out", "--output", "probabilities", "--device", "cpu"]
    assert main(["segment", "t.tif", "--model", "tiny.safetensors", *common]) == 0
    assert main(["segment", "c.npy", "--model", "rgb.safetensors", "--axes", "CYX", *common]) == 0
    assert main(["segment", "rgb.tif", "--model", "rgb.safetensors", *common]) == 0
    with tifffile.TiffFile("out/t_probabilities.tif") as tiff:
        assert (tiff.series[0].axes, tiff.series[0].shape) == ("CTYX", (3, 3, 90, 110))
    np.testing.assert_array_equal(tifffile.imread("out/c_probabilities.tif"),
                                  tifffile.imread("out/rgb_probabilities.tif"))


@pytest.mark.parametrize("options", [[], ["--compress"]])
@pytest.mark.parametrize(("axes", "written"), [("YX", "CYX"), ("ZYX", "CZYX"), ("TYX", "CTYX"), ("TZYX", "CTZYX")])
def test_probabilities_have_the_class_axis_first_in_the_file_too(
    folder: Path, axes: str, written: str, options: list[str]
) -> None:
    shape = {"T": 2, "Z": 3, "Y": 90, "X": 110}
    stack = np.broadcast_to(IMAGE, [shape[letter] for letter in axes]).copy()
    stack[..., :20, :] = np.random.default_rng(0).integers(0, 255, stack[..., :20, :].shape)
    tifffile.imwrite("s.tif", stack, imagej=True, metadata={"axes": axes})
    assert main(["segment", "s.tif", "--model", "tiny.safetensors", "--out", "out", "--output", "probabilities",
                 "--device", "cpu", *options]) == 0
    with tifffile.TiffFile("out/s_probabilities.tif") as tiff:
        probabilities = tiff.asarray()
        assert tiff.series[0].axes == written
    np.testing.assert_array_equal(
        probabilities, napari_cellbrush.segment("s.tif", "tiny.safetensors", "probabilities", device="cpu"))


def test_what_is_odd_about_how_a_file_is_read_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tifffile.TiffWriter("several.tif") as tiff:
        for image in (IMAGE, IMAGE[:50], IMAGE[:40]):
            tiff.write(image, metadata=None)
    tifffile.imwrite("stack.tif", np.stack([IMAGE] * 3), imagej=True, metadata={"axes": "ZYX"})
    common = ["--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]
    assert main(["segment", "several.tif", *common]) == 0
    assert "several.tif holds 3 images (series), only the first" in capsys.readouterr().err
    assert main(["segment", "stack.tif", "--axes", "TYX", *common]) == 0
    assert "stack.tif is read with the axes TYX, as you say, although it names its own ZYX." in capsys.readouterr().err
    with pytest.warns(UserWarning, match="although it names its own ZYX"):
        napari_cellbrush.segment("stack.tif", "tiny.safetensors", axes="TYX", device="cpu")


def test_the_size_of_the_tiles_does_not_change_the_classes(folder: Path) -> None:
    for out, options in (("one", []), ("two", ["--tile", "92"])):
        assert main(["segment", "image.tif", "--model", "tiny.safetensors", "--out", out, "--precision", "float32",
                     "--device", "cpu", *options]) == 0
    np.testing.assert_array_equal(*(tifffile.imread(f"{out}/image_classes.tif") for out in ("one", "two")))


# ------------------------------------------------------------------------------------------------------ objects


@pytest.fixture
def finds_objects(folder: Path) -> list[str]:
    """Words of a command whose model, of random weights, finds objects."""
    for n_channels in (1, 3):
        card = ModelCard(name="busy", classes=DEFAULT_CLASSES, in_channels=n_channels, network=TINY)
        save_model(new_model(card, seed=4), folder / f"busy{n_channels}.safetensors")
    return ["--model", "busy1.safetensors", "--out", "out", "--output", "objects", "--device", "cpu"]


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_objects_leave_as_table_regions_polygons_and_picture(
    folder: Path, finds_objects: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "image.tif", *finds_objects, "--table", "--rois", "--geojson", "--overlay"]) == 0
    names = ["image_objects.tif", "image_objects.csv", "image_objects.geojson", "image_overlay.png", "image_rois.zip"]
    assert capsys.readouterr().out.split() == [str(Path("out") / name) for name in names]
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(names)
    ids = tifffile.imread("out/image_objects.tif")
    numbers = sorted(set(ids.ravel().tolist()) - {0})
    assert len(numbers) > 5
    rows = table("out/image_objects.csv")
    assert [int(row["id"]) for row in rows] == numbers
    for row, number in zip(rows, numbers, strict=True):
        assert float(row["area [µm²]"]) == pytest.approx(0.2 * 0.1 * (ids == number).sum())
        assert float(row["mean_intensity"]) == pytest.approx(IMAGE[ids == number].mean())
        assert row["class"] == "cell"
    assert [int(region.name) for region in roifile.roiread("out/image_rois.zip")] == numbers
    features = json.loads(Path("out/image_objects.geojson").read_text(encoding="utf-8"))["features"]
    assert [int(feature["properties"]["name"]) for feature in features] == numbers
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"cell"}
    with Image.open("out/image_overlay.png") as picture:
        assert picture.size == (110, 90)


def test_the_summary_has_a_row_for_each_image_and_frame(
    folder: Path, finds_objects: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("time.npy", np.stack([IMAGE[::-1], IMAGE, IMAGE]))
    assert main(["segment", "image.tif", *finds_objects, "--table", "--summary"]) == 0
    assert main(["segment", "time.npy", *finds_objects, "--axes", "TYX", "--summary"]) == 1
    assert "summary.csv exists already" in capsys.readouterr().err
    assert main(["segment", "image.tif", "time.npy", *finds_objects, "--axes", "TYX", "--summary", "--overwrite"]) == 1
    frames = tifffile.imread("out/time_objects.tif")
    assert [(row["image"], row["frame"], int(row["objects"])) for row in table("out/summary.csv")] == [
        ("time", str(number), len(np.unique(frame[frame > 0]))) for number, frame in enumerate(frames)]
    assert main(["segment", "image.tif", *finds_objects, "--table", "--summary", "--overwrite"]) == 0
    (row,), objects = table("out/summary.csv"), table("out/image_objects.csv")
    assert (row["image"], row["unit_of_length"], int(row["objects"])) == ("image", "µm", len(objects))
    assert float(row["median_area"]) == np.median([float(found["area [µm²]"]) for found in objects])


def test_the_pixel_size_may_be_said(folder: Path, finds_objects: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "image.tif", *finds_objects, "--table", "--pixel-size", "0.5 x 0.25"]) == 0
    assert open_image("out/image_objects.tif").pixel_size == PixelSize(0.5, 0.25, None, "µm")
    ids = tifffile.imread("out/image_objects.tif")
    first = table("out/image_objects.csv")[0]
    assert float(first["area [µm²]"]) == pytest.approx(0.125 * (ids == int(first["id"])).sum())
    np.save("stack.npy", np.stack([IMAGE, IMAGE]))
    assert main(["segment", "stack.npy", *finds_objects, "--axes", "ZYX", "--pixel-size", "2 x 0.5 x 0.25"]) == 0
    assert open_image("out/stack_objects.tif").pixel_size == PixelSize(0.5, 0.25, 2.0, "µm")
    assert main(["segment", "image.tif", *finds_objects, "--pixel-size", "small"]) == 2
    assert "The pixel size 'small' is not understood" in capsys.readouterr().err


def test_every_channel_is_measured_under_its_name(folder: Path, finds_objects: list[str]) -> None:
    colours = np.stack([IMAGE, IMAGE // 2, IMAGE // 3], axis=-1)
    tifffile.imwrite("rgb.tif", colours, photometric="rgb")
    np.save("channels.npy", np.moveaxis(colours, -1, 0))
    words = ["busy3.safetensors" if word == "busy1.safetensors" else word for word in finds_objects]
    assert main(["segment", "rgb.tif", *words, "--table", "--overlay"]) == 0
    assert main(["segment", "channels.npy", *words, "--axes", "CYX", "--table", "--overlay"]) == 0
    named, numbered = table("out/rgb_objects.csv"), table("out/channels_objects.csv")
    ids = tifffile.imread("out/rgb_objects.tif")
    assert len(named) == len(numbered) > 0
    for number, name in enumerate(("red", "green", "blue")):
        expected = [colours[ids == int(row["id"]), number].mean() for row in named]
        assert [float(row[f"mean_intensity_{name}"]) for row in named] == pytest.approx(expected)
        assert [float(row[f"mean_intensity_{number + 1}"]) for row in numbered] == pytest.approx(expected)


def test_stacks_are_measured_plane_by_plane_or_linked_as_bodies(
    folder: Path, finds_objects: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stack = np.stack([IMAGE, IMAGE, IMAGE[::-1]])
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 2.0}
    tifffile.imwrite("s.tif", stack, imagej=True, resolution=(2, 2), metadata=metadata)
    options = ["--table", "--rois", "--geojson"]
    assert main(["segment", "s.tif", *finds_objects, *options]) == 0
    ids, rows = tifffile.imread("out/s_objects.tif"), table("out/s_objects.csv")
    assert len(rows) == ids.max() == len(roifile.roiread("out/s_rois.zip"))
    for row in rows:
        assert float(row["area [µm²]"]) == pytest.approx(0.25 * (ids[int(row["plane"])] == int(row["id"])).sum())
        assert (ids == int(row["id"])).any(axis=(1, 2)).sum() == 1
    assert not read_provenance("out/s_objects.tif")["linked_through_depth"]

    assert main(["segment", "s.tif", *finds_objects, *options, "--link", "--overwrite"]) == 0
    joined, bodies = tifffile.imread("out/s_objects.tif"), table("out/s_objects.csv")
    assert read_provenance("out/s_objects.tif")["linked_through_depth"]
    assert len(bodies) == joined.max() < len(rows)
    np.testing.assert_array_equal(joined, napari_cellbrush.link_planes(ids))
    for body in bodies:
        assert float(body["volume [µm³]"]) == pytest.approx(0.25 * 2 * (joined == int(body["id"])).sum())
    assert len(roifile.roiread("out/s_rois.zip")) == len(rows)

    np.save("bare.npy", stack)
    tifffile.imwrite("flat.tif", stack, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "unit": "um"})
    capsys.readouterr()
    assert main(["segment", "flat.tif", *finds_objects, "--table", "--link"]) == 0
    assert "does not say how far its planes are apart" in capsys.readouterr().err
    assert {row["volume [µm³]"] for row in table("out/flat_objects.csv")} == {"nan"}
    assert main(["segment", "bare.npy", *finds_objects, "--axes", "ZYX", "--table", "--link"]) == 0
    assert [float(row["volume [pixel³]"]) for row in table("out/bare_objects.csv")] == np.bincount(
        joined.ravel())[1:].tolist()


@pytest.mark.parametrize(("options", "sentence"), [
    (["--table"], "--table needs --output objects, got --output classes. Add --output objects."),
    (["--rois", "--link", "--output", "probabilities"], "--rois and --link need --output objects, got --output prob")])
def test_what_only_objects_have_is_refused_without_them(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(("name", "option"), [("image_objects.csv", "--table"), ("image_rois.zip", "--rois"),
                                              ("image_objects.geojson", "--geojson"),
                                              ("image_overlay.png", "--overlay")])
def test_files_beside_a_mask_are_looked_at_before_segmenting(
    folder: Path, finds_objects: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, option: str
) -> None:
    Path("out").mkdir()
    (Path("out") / name).write_text("precious")
    monkeypatch.setattr(napari_cellbrush.api, "segment", lambda *_, **__: pytest.fail("was segmented"))
    assert main(["segment", "image.tif", *finds_objects, option]) == 1
    assert f"{name} exists already. Choose another folder, or give --overwrite." in capsys.readouterr().err
    assert [p.read_text() for p in Path("out").iterdir()] == ["precious"]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(["segment", "image.tif", *finds_objects, option, "--overwrite"]) == 0
    assert (Path("out") / name).read_bytes() != b"precious"


@pytest.mark.parametrize(("option", "axes", "sentence"), [
    ("--overlay", "ZYX", "--overlay shows one plane, and the image has the axes ZYX"),
    ("--link", "TYX", "--link joins objects through depth (Z), and the image has the axes TYX"),
    ("--link", "CYX", "axes CYX")])
def test_what_the_planes_of_an_image_do_not_allow_is_said_and_nothing_is_written(
    folder: Path, finds_objects: list[str], capsys: pytest.CaptureFixture[str], option: str, axes: str, sentence: str
) -> None:
    np.save("three.npy", np.stack([IMAGE] * 3))
    assert main(["segment", "three.npy", *finds_objects, "--axes", axes, option]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(Path("out").iterdir())


def test_an_image_without_objects_has_a_table_without_rows_and_a_file_without_regions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--output", "objects",
                 "--device", "cpu", "--table", "--rois", "--geojson", "--overlay"]) == 0
    assert "image_rois.zip holds no region" in capsys.readouterr().err
    assert table("out/image_objects.csv") == []
    assert zipfile.ZipFile("out/image_rois.zip").namelist() == []
    assert Path("out/image_overlay.png").exists()


# ---------------------------------------------------------------------------------------------------- bad files


def _write_bad_files(folder: Path) -> None:
    tifffile.imwrite(folder / "nan.tif", np.where(OBJECTS == 1, np.nan, 1.0).astype(np.float32))
    tifffile.imwrite(folder / "inf.tif", np.where(OBJECTS == 1, np.inf, 1.0).astype(np.float32))
    tifffile.imwrite(folder / "constant.tif", np.full((90, 110), 7, np.uint8))
    tifffile.imwrite(folder / "rgb.tif", np.stack([IMAGE] * 3, axis=-1), photometric="rgb")
    tifffile.imwrite(folder / "what.tif", np.stack([IMAGE] * 5))
    (folder / "cut.tif").write_bytes((folder / "image.tif").read_bytes()[:4000])
    (folder / "text.tif").write_text("no image")
    np.save(folder / "complex.npy", np.ones((9, 9), complex))
    tifffile.imwrite(folder / "small.tif", OBJECTS[:-1])
    tifffile.imwrite(folder / "empty.tif", np.zeros_like(OBJECTS))
    tifffile.imwrite(folder / "single.tif", np.ones_like(OBJECTS))
    tifffile.imwrite(folder / "many.tif", OBJECTS + 50)
    tifffile.imwrite(folder / "half.tif", OBJECTS + np.float32(0.5))
    (folder / "hostile.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    whole = (folder / "tiny.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "pickled.safetensors").write_bytes(b"PK\3\4" + b"\0" * 99)


@pytest.mark.parametrize(("bad", "sentence"), [
    ("nan.tif", "NaN"), ("inf.tif", "infinite"), ("constant.tif", "constant"), ("rgb.tif", "needs 1"),
    ("what.tif", "--axes"), ("cut.tif", "truncated"), ("text.tif", "no image of a known kind"),
    ("complex.npy", "complex"), ("gone.tif", "does not exist")])
def test_a_bad_image_gets_one_sentence_and_the_others_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], bad: str, sentence: str
) -> None:
    _write_bad_files(folder)
    assert main(["segment", bad, "image.tif", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellbrush: ")]
    assert len(problems) == 1
    assert bad in problems[0]
    assert sentence in problems[0]
    assert [p.name for p in Path("out").iterdir()] == ["image_classes.tif"]


@pytest.mark.parametrize(("image", "labels", "sentence"), [
    ("nan.tif", "classes.tif", "NaN"), ("constant.tif", "classes.tif", "constant"),
    ("cut.tif", "classes.tif", "truncated"),
    ("image.tif", "small.tif", "(89, 110)"), ("image.tif", "many.tif", "56"),
    ("image.tif", "half.tif", "whole numbers"), ("image.tif", "gone.tif", "gone.tif"),
    ("image.tif", "rgb.tif", "colours"), ("rgb.tif", "classes.tif", "needs 1")])
def test_a_bad_training_pair_is_left_out_and_told(
    folder: Path, capsys: pytest.CaptureFixture[str], image: str, labels: str, sentence: str
) -> None:
    _write_bad_files(folder)
    assert main(["train", image, "image.tif", "--labels", labels, "classes.tif", "--out", "a.safetensors", "--base",
                 "tiny.safetensors", "--max-steps", "1", *TINY_OPTIONS]) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellbrush: ")]
    assert len(problems) == 1
    assert image in problems[0]
    assert sentence in problems[0]
    assert sum(read_card("a.safetensors").labelled_pixels.values()) == OBJECTS.size


def test_an_image_of_another_kind_than_the_first_is_left_out_and_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_bad_files(folder)
    assert main(["train", "image.tif", "rgb.tif", "--labels", "classes.tif", "classes.tif", "--out", "a.safetensors",
                 "--base", "scratch", "--max-steps", "1", *TINY_OPTIONS]) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellbrush: ")]
    assert len(problems) == 1
    assert "rgb.tif: The image has 3 channel(s), 'image.tif' has 1" in problems[0]
    assert read_card("a.safetensors").in_channels == 1


def test_a_nan_far_from_all_that_is_sampled_leaves_its_image_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planes, "SAMPLE_PIXELS", 100)
    monkeypatch.setattr(planes, "SAMPLE_WINDOW", 10)
    late = IMAGE.astype(np.float32)
    late[85, 107] = np.nan
    tifffile.imwrite("late.tif", late)
    open_image("late.tif").planes.normalisation()  # which does not see it
    assert main(["train", "late.tif", "image.tif", "--labels", "classes.tif", "classes.tif", "--out", "a.safetensors",
                 "--base", "tiny.safetensors", "--max-steps", "1", *TINY_OPTIONS]) == 1
    assert "'late.tif' holds NaN" in capsys.readouterr().err
    assert sum(read_card("a.safetensors").labelled_pixels.values()) == OBJECTS.size


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["train", "image.tif", "--labels", "empty.tif"], "The annotation is empty"),
    (["train", "image.tif", "--labels", "single.tif"], "Only the class 'background' is painted"),
    (["train", "image.tif", "--labels", "small.tif"], "(89, 110)"),
    (["train", "image.tif", "--labels", "classes.tif", "--base", "nobody"], "no model called 'nobody'"),
    (["train", "image.tif", "--labels", "classes.tif", "--base", "hostile.safetensors"], "header of 1000000000000"),
    (["train", "rgb.tif", "--labels", "classes.tif"], "needs 1"),
    (["segment", "image.tif", "--model", "truncated.safetensors", "--out", "out"], "not a usable model"),
    (["segment", "image.tif", "--model", "pickled.safetensors", "--out", "out"], "pickled"),
    (["segment", "image.tif", "--model", "gone.safetensors", "--out", "out"], "does not exist"),
    (["segment", "image.tif", "--model", "tiny.safetensors", "--out", "image.tif"],
     "names the file image.tif, a folder is needed"),
    (["segment", "image.tif", "--model", "tiny.safetensors", "--out", "image.tif/out"], "cannot be made"),
    (["demo", "--out", "image.tif"], "names the file image.tif, a folder is needed"),
    (["models", "export", "tiny.safetensors", "."], "is a folder, a file is needed"),
    (["evaluate", "--prediction", "small.tif", "--truth", "objects.tif", "--kind", "objects"], "(89, 110)"),
    (["evaluate", "--prediction", "half.tif", "--truth", "objects.tif", "--kind", "objects"], "whole numbers"),
    (["evaluate", "--prediction", "text.tif", "--truth", "objects.tif", "--kind", "classes"], "text.tif"),
    (["models", "info", "nobody"], "no model called"),
    (["models", "remove", "nobody"], "no model called"),
    (["models", "import", "hostile.safetensors"], "hostile.safetensors"),
])
def test_bad_input_gives_exit_code_1_and_a_sentence_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    _write_bad_files(folder)
    if arguments[0] == "train":
        base = [] if "--base" in arguments else ["--base", "tiny.safetensors"]
        arguments = [*arguments, *base, "--out", "a.safetensors", *TINY_OPTIONS]
    before = files(folder)
    assert main(arguments) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellbrush: ")]
    assert len(problems) == 1
    assert sentence in problems[0]
    assert files(folder) == before


@pytest.mark.parametrize("arguments", [
    [], ["paint"], ["train", "image.tif"], ["train", "--labels", "classes.tif", "--out", "a.safetensors"],
    ["train", "image.tif", "--labels", "classes.tif", "classes.tif", "--out", "a.safetensors", "--base", "scratch"],
    ["train", "image.tif", "--labels", "classes.tif", "--out", "a.pt", "--base", "scratch"],
    ["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--learning-rate", "9"],
    ["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--learning-rate", "fast"],
    ["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--learning", "1e-3"],
    ["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--config", "gone.json"],
    ["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--base", "scratch", "--classes", "a"],
    ["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--tile", "-3"],
    ["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--output", "ids"],
    ["evaluate", "--prediction", "a", "b", "--truth", "a", "--kind", "classes"], ["models", "rename"]])
def test_a_wrong_command_gives_exit_code_2_and_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    before = files(folder)
    assert main(arguments) == 2
    assert "cellbrush" in capsys.readouterr().err
    assert files(folder) == before


# ------------------------------------------------------------------------------------------------- never losing


def test_nothing_is_overwritten_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = ["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]
    assert main(segment) == 0
    before = files(folder)
    assert main(segment) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "tiny.safetensors", "--base",
                 "scratch"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert files(folder) == before
    assert main([*segment, "--overwrite"]) == 0


def test_a_folder_where_a_model_shall_be_written_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "models").mkdir()
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "models", "--base", "scratch"]) == 1
    problem = capsys.readouterr().err
    assert "--out names the folder models, a .safetensors file is needed" in problem
    assert str(Path("models") / "mine.safetensors") in problem


def test_without_bundled_weights_it_says_how_to_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_file, "BUNDLED", folder / "nowhere")
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors"]) == 1
    assert "--base scratch" in capsys.readouterr().err


def test_two_images_of_the_same_name_do_not_replace_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b").mkdir()
    tifffile.imwrite("b/image.tif", IMAGE[::-1])
    assert main(["segment", "image.tif", "b/image.tif", "--model", "tiny.safetensors", "--out", "out", "--overwrite",
                 "--device", "cpu"]) == 1
    assert "same name" in capsys.readouterr().err
    np.testing.assert_array_equal(tifffile.imread("out/image_classes.tif"),
                                  napari_cellbrush.segment(IMAGE, "tiny.safetensors", device="cpu"))


def test_a_model_that_cannot_be_written_after_all_goes_to_the_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = training.train

    def train_while_the_folder_goes(*arguments: Any, **options: Any) -> Any:
        result = yield from original(*arguments, **options)
        (folder / "models").rmdir()
        return result

    (folder / "models").mkdir()
    monkeypatch.setattr(training, "train", train_while_the_folder_goes)
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "models/a.safetensors", "--base",
                 "tiny.safetensors", "--max-steps", "1", *TINY_OPTIONS]) == 1
    report = json.loads(capsys.readouterr().out)
    assert read_model(report["model"]).card.name == "a"
    assert main(["models", "info", "a"]) == 0


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C during the second step of a training and during the first tile of a segmentation."""
    step, predict = learner.Learner.step, inference.TilePredictor.predict
    steps: list[int] = []

    def interrupted_step(self: Any, *batch: Any) -> float:
        steps.append(0)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *batch)

    def interrupted_predict(self: Any, window: Any) -> Any:
        if not steps:
            signal.raise_signal(signal.SIGINT)
        return predict(self, window)

    monkeypatch.setattr(learner.Learner, "step", interrupted_step)
    monkeypatch.setattr(inference.TilePredictor, "predict", interrupted_predict)
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("options", "ended", "words"), [
    (["--max-steps", "9", "--max-minutes", "0.0001"], "time", "Ended after one step and 0 s, at the time limit"),
    (["--max-steps", "9", "--validate-every", "1", "--patience", "1"], "no_progress", "no better score in the last 1")])
def test_why_a_training_ended_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], ended: str,
    words: str
) -> None:
    monkeypatch.setattr(held_out.HeldOut, "score", lambda *_: held_out.HeldOutScore(0.5, 1.0))
    clock = iter(np.arange(0, 1, 0.01))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--base",
                 "tiny.safetensors", *TINY_OPTIONS, *options]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ended"] == ended
    assert words in " ".join(captured.err.split())


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_keeps_the_best_so_far(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--base",
                 "tiny.safetensors", "--max-steps", "50", *TINY_OPTIONS]) == 130
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["ended"], report["n_steps"]) == ("stopped", 2)
    assert "because you stopped it" in captured.err
    read_model("a.safetensors")


def test_the_same_command_goes_on_with_an_interrupted_training(
    folder: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    def train(out: str, *options: str) -> tuple[int, dict[str, Any], str]:
        code = main(["train", "image.tif", "--labels", "classes.tif", "--out", out, "--base", "tiny.safetensors",
                     "--max-steps", "4", *TINY_OPTIONS, *options])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), " ".join(captured.err.split())

    whole = train("whole.safetensors")[1]["model"]
    request.getfixturevalue("interrupting")
    code, report, said = train("a.safetensors")
    assert (code, report["n_steps"]) == (130, 2)
    assert "the same command again" in said
    assert Path("a.unfinished").exists()
    code, report, said = train("a.safetensors")
    assert (code, report["n_steps"], report["model"]) == (0, 4, "a-2.safetensors")
    assert "Going on after step 2" in said
    assert read_model("a-2.safetensors").weights_hash == read_model(whole).weights_hash
    assert not Path("a.unfinished").exists()


@pytest.mark.usefixtures("interrupting")
def test_an_interrupted_training_can_be_started_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "image.tif", "--labels", "classes.tif", "--base", "tiny.safetensors", "--max-steps", "3",
               *TINY_OPTIONS, "--out"]
    assert main([*command, "a.safetensors"]) == 130
    Path("a.safetensors").unlink()
    assert main([*command, "a.safetensors", "--anew"]) == 0
    assert "Going on" not in capsys.readouterr().err


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_in_a_segmentation_leaves_no_half_mask(folder: Path) -> None:
    assert main(["segment", "image.tif", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--tile", "92",
                 "--device", "cpu"]) == 130
    assert not list(Path("out").iterdir())


def test_it_works_outside_the_main_thread(folder: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(
        ["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"])))
    thread.start()
    thread.join()
    assert codes == [0]


# ------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(("command", "settings"), [("train", TrainingConfig), ("segment", InferenceConfig)])
def test_every_setting_has_an_option_that_reaches_it(command: str, settings: type[config.Settings]) -> None:
    fixed = {"train": ["a", "--labels", "b", "--out", "c"], "segment": ["a", "--model", "m", "--out", "c"]}[command]

    def check(group: type[config.Settings], path: tuple[str, ...]) -> None:
        for name, field in group.model_fields.items():
            kind: Any = field.annotation
            if isinstance(kind, type) and issubclass(kind, config.Settings):
                check(kind, (*path, name))
                continue
            option = "--" + ".".join((*path, name)).replace("_", "-")
            words = [option] if kind is bool else [option, getattr(kind, "__args__", ["3"])[-1]]
            given: Any = given_settings(cli._parser().parse_args([command, *fixed, *words]), settings)
            for part in path:
                assert list(given) == [part]
                given = given[part]
            assert list(given) == [name]
            assert isinstance(given[name], kind if isinstance(kind, type) else str)

    check(settings, ())


def test_options_win_over_the_settings_file_which_wins_over_defaults(folder: Path) -> None:
    Path("s.toml").write_text("max_steps = 1\nseed = 5\npatience = 3\n[augmentation]\nflips = false\nnoise = 0.5\n")
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--base",
                 "tiny.safetensors", "--config", "s.toml", "--seed", "6", "--augmentation.noise", "0.25",
                 *TINY_OPTIONS]) == 0
    used = read_card("a.safetensors").training
    assert used is not None
    assert (used.max_steps, used.seed, used.patience) == (1, 6, 3)
    assert (used.augmentation.flips, used.augmentation.noise) == (False, 0.25)
    assert used.augmentation.gain == TrainingConfig().augmentation.gain


def test_classes_are_named_by_the_user(folder: Path) -> None:
    assert main(["train", "image.tif", "--labels", "classes.tif", "--out", "a.safetensors", "--base", "scratch",
                 "--classes", "ground, nucleus ,edge", "--max-steps", "1", *TINY_OPTIONS]) == 0
    assert [c.name for c in read_card("a.safetensors").classes] == ["ground", "nucleus", "edge"]


def test_the_ignored_value_is_unlabelled(folder: Path) -> None:
    tifffile.imwrite("ignored.tif", np.where(np.arange(90)[:, None] < 30, 77, OBJECTS).astype(np.uint16))
    assert main(["train", "image.tif", "--labels", "ignored.tif", "--label-kind", "objects", "--ignore-value", "77",
                 "--out", "a.safetensors", "--base", "tiny.safetensors", "--max-steps", "1", *TINY_OPTIONS]) == 0
    assert sum(read_card("a.safetensors").labelled_pixels.values()) == 60 * 110


def test_patterns_are_filled_in_where_the_shell_did_not(folder: Path) -> None:
    for name in ("p1.tif", "p2.tif"):
        tifffile.imwrite(name, IMAGE)
    assert main(["segment", "p?.tif", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]) == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["p1_classes.tif", "p2_classes.tif"]


def test_a_folder_stands_for_its_images(folder: Path) -> None:
    Path("images").mkdir()
    Path("images/notes.txt").write_text("not an image")
    for name in ("b.tif", "a.PNG.tif"):
        tifffile.imwrite(Path("images") / name, IMAGE)
    assert main(["segment", "images", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]) == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.PNG_classes.tif", "b_classes.tif"]


def test_segmenting_tells_how_many_objects_there_are(finds_objects: list[str], capsys: pytest.CaptureFixture[str]
                                                     ) -> None:
    assert main(["segment", "image.tif", *finds_objects]) == 0
    assert f"image.tif: {tifffile.imread('out/image_objects.tif').max()} objects\n" in capsys.readouterr().err
    assert main(["segment", "image.tif", *finds_objects, "--overwrite", "--objects.min-object-px", "9999"]) == 0
    assert "image.tif: no object; if there are any, lower --objects.least-certainty" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["segment", "--help"], ["evaluate", "--help"],
                                       ["models", "--help"], ["demo", "--help"], ["--version"]])
def test_every_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "cellbrush" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- evaluate


def test_classes_are_compared_over_labelled_pixels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 4, (2, 30, 40)).astype(np.uint8)
    prediction = np.maximum(prediction, 1)
    tifffile.imwrite("t.tif", truth)
    tifffile.imwrite("p.tif", prediction)
    assert main(["evaluate", "--prediction", "p.tif", "t.tif", "--truth", "t.tif", "t.tif", "--kind", "classes"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = class_iou(prediction, truth, 3)
    assert list(found["files"][0]["iou"].values()) == pytest.approx(expected.per_class)
    assert found["files"][0]["mean_iou"] == pytest.approx(expected.mean)
    assert found["mean"]["mean_iou"] == pytest.approx((expected.mean + 1) / 2)
    assert found["mean"]["iou"]["2"] == pytest.approx((expected.per_class[1] + 1) / 2)


def test_a_class_that_is_nowhere_has_no_score(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite("t.tif", np.array([[1, 3]], np.uint8))
    assert main(["evaluate", "--prediction", "t.tif", "--truth", "t.tif", "--kind", "classes"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["iou"] == {"1": 1.0, "2": None, "3": 1.0}
    assert found["mean"]["iou"]["2"] is None


def test_objects_are_matched_plane_by_plane(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.stack([OBJECTS, OBJECTS])  # one id through the depth
    prediction = np.stack([OBJECTS, np.where(OBJECTS > 0, OBJECTS + 100, 0)])
    prediction[1][OBJECTS == 2] = 0
    tifffile.imwrite("t.tif", truth.astype(np.uint16), imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite("p.tif", prediction.astype(np.uint16), imagej=True, metadata={"axes": "ZYX"})
    assert main(["evaluate", "--prediction", "p.tif", "--truth", "t.tif", "--kind", "objects"]) == 0
    n = len(np.unique(OBJECTS)) - 1
    report = json.loads(capsys.readouterr().out)
    scores = report["mean"]
    assert report["counts"] == report["files"][0]["counts"] == {"found": 2 * n - 1, "missed": 1, "extra": 0}
    assert scores["ap_0.5"] == scores["ap_0.75"] == scores["ap_0.5_0.95"] == pytest.approx((2 * n - 1) / (2 * n))


def test_objects_found_missed_and_extra_are_counted_over_all_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = np.where(OBJECTS == 1, 0, OBJECTS)
    prediction[:4, :4] = 99
    tifffile.imwrite("p.tif", prediction)
    assert main(["evaluate", "--prediction", "p.tif", "objects.tif", "p.tif", "--truth", *["objects.tif"] * 3, "--kind",
                 "objects"]) == 0
    report = json.loads(capsys.readouterr().out)
    n = len(np.unique(OBJECTS)) - 1
    assert [file["counts"] for file in report["files"]] == [
        {"found": n - 1, "missed": 1, "extra": 1}, {"found": n, "missed": 0, "extra": 0},
        {"found": n - 1, "missed": 1, "extra": 1}]
    assert report["counts"] == {"found": 3 * n - 2, "missed": 2, "extra": 2}
    assert "counts" not in report["mean"]


def test_objects_of_a_plane_are_scored_as_by_the_metric(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction = np.roll(OBJECTS, 3, axis=1)
    tifffile.imwrite("p.tif", prediction)
    assert main(["evaluate", "--prediction", "p.tif", "--truth", "objects.tif", "--kind", "objects"]) == 0
    expected = average_precision(prediction, OBJECTS).average_precision
    found = json.loads(capsys.readouterr().out)["files"][0]
    assert found["ap_0.5"] == pytest.approx(expected[0])
    assert found["ap_0.75"] == pytest.approx(expected[5])
    assert found["ap_0.5_0.95"] == pytest.approx(expected.mean())


# ------------------------------------------------------------------------------------------------------- models


def test_models_are_listed_shown_shared_and_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "import", "tiny.safetensors"]) == 0
    assert main(["models", "import", "tiny.safetensors"]) == 0
    assert capsys.readouterr().out.split() == ["tiny", "tiny-2"]
    assert main(["models", "list"]) == main(["models"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("tiny ") == 2
    assert listed.count("tiny-2") == 2
    assert main(["models", "info", "tiny"]) == 0
    assert "1 background (background), 2 cell (object)" in capsys.readouterr().out
    add_to_library(tiny_model(image_diameter_px=55.0, tuned_on={"one": 40.2, "two": 70.0}), "two-sizes")
    assert main(["models", "info", "two-sizes"]) == 0
    assert "40 to 70 px in the images it was tuned on; in others the same" in capsys.readouterr().out
    assert main(["models", "remove", "two-sizes"]) == 0
    assert main(["models", "export", "tiny-2", "shared.safetensors"]) == 0
    assert (folder / "shared.safetensors").read_bytes() == (folder / "tiny.safetensors").read_bytes()
    assert main(["models", "export", "tiny-2", "shared.safetensors"]) == 1
    assert main(["models", "remove", "tiny-2"]) == 0
    assert main(["models", "info", "tiny-2"]) == 1


def test_the_list_has_no_empty_cells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_to_library(tiny_model(), "plain")
    assert main(["models"]) == 0
    rows = {line.split()[0]: line.split("  ") for line in capsys.readouterr().out.splitlines()}
    assert [cell.strip() for cell in rows["cells"] if cell][-3:] == ["–", "built in", "package"]
    assert [cell.strip() for cell in rows["plain"] if cell.strip()][-3:] == ["–", "–", "you"]


def test_a_broken_model_in_the_library_is_reported_beside_the_good_ones(
    folder: Path, cellbrush_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_to_library(tiny_model(), "good")
    (cellbrush_home / "models" / "bad.safetensors").write_bytes(b"?")
    assert main(["models", "list"]) == 1
    captured = capsys.readouterr()
    assert "good" in captured.out
    assert "bad.safetensors" in captured.err


def test_names_from_files_cannot_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = tiny_model()
    card = evil.card.replace(name="\x1b[31mred", description="\x1b]0;title\x07[bold]plain")
    save_model(type(evil)(evil.network, card), folder / "evil.safetensors")
    assert main(["models", "info", "evil.safetensors"]) == 0
    assert main(["models", "import", "evil.safetensors"]) == 0
    assert main(["models"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "[bold]plain" in captured.out


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from napari_cellbrush import demo

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demo, "run_demo", lambda headless, out: calls.append((headless, out)) or 7)
    assert main(["demo", "--headless", "--out", str(tmp_path)]) == 7
    assert main(["demo"]) == 7
    assert calls == [(True, tmp_path), (None, Path("demo"))]


def test_nothing_is_left_in_the_working_folder(folder: Path) -> None:
    before = set(folder.iterdir())
    assert main(["segment", "image.tif", "--model", "tiny.safetensors", "--out", "out", "--device", "cpu"]) == 0
    assert set(folder.iterdir()) - before == {folder / "out"}
