from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roifile
import tifffile
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QMessageBox

from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.image_file import open_image
from napari_cellbrush.engine.model_file import add_to_library
from napari_cellbrush.export.mask_tiff import read_provenance
from napari_cellbrush.napari_ui import exporting, layers, runs
from napari_cellbrush.napari_ui.export_dock import ExportDock


@pytest.fixture
def dock(viewer, bench) -> ExportDock:
    _, widget = viewer.window.add_plugin_dock_widget("napari-cellbrush", "Export")
    return getattr(widget, "__wrapped__", widget)


def export(dock, person, path):
    dock.path.setText(str(path))
    person.click(dock.run.button)
    person.wait(lambda: not dock.session.export.busy)
    return dock.session.export.notice


def type_into(field, text):
    field.selectAll()
    QTest.keyClick(field, Qt.Key.Key_Delete)
    QTest.keyClicks(field, text)


def test_ids_axes_and_pixel_size_arrive_in_the_file(viewer, dock, person, tmp_path):
    """Different sizes along all axes, so that a swap shows."""
    mask = np.zeros((2, 4, 5), np.int32)
    mask[1, 2, 3], mask[0, 0, 0] = 65535, 255
    viewer.add_labels(mask, name="mask", scale=(0.3, 0.1, 0.2), units=("um", "um", "um"), axis_labels=("z", "y", "x"))
    assert dock.axes.text() == "ZYX"
    assert dock.size_line.text() == "0.3 × 0.1 × 0.2"
    assert dock.size_words.text() == "µm (depth × row × column)"
    notice = export(dock, person, tmp_path / "mask.tif")
    assert notice.text == "Saved mask.tif: ids 1–65,535, uint16, ImageJ TIFF."
    with tifffile.TiffFile(tmp_path / "mask.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), mask)
        assert tiff.series[0].axes == "ZYX"
        assert tiff.imagej_metadata["spacing"] == pytest.approx(0.3)
        (x_pixels, x_units), (y_pixels, y_units) = (tiff.pages[0].tags[t].value for t in ("XResolution", "YResolution"))
        assert x_units / x_pixels == pytest.approx(0.2)
        assert y_units / y_pixels == pytest.approx(0.1)


@pytest.mark.parametrize(("highest", "dtype", "kind"), [(255, "uint8", "ImageJ"), (256, "uint16", "ImageJ"),
                                                        (65536, "uint32", "OME")])
def test_the_type_follows_the_largest_id_and_is_told(viewer, dock, person, tmp_path, highest, dtype, kind):
    viewer.add_labels(np.array([[0, 1], [2, highest]]), name="mask")
    notice = export(dock, person, tmp_path / "mask.tif")
    assert f"ids 1–{highest:,}, {dtype}, {kind}" in notice.text
    assert tifffile.imread(tmp_path / "mask.tif").max() == highest


def test_axes_can_be_corrected_and_wrong_ones_are_refused_in_words(viewer, dock, person, tmp_path):
    viewer.add_labels(np.ones((3, 4, 5), np.uint8), name="movie")
    dock.axes.setText("TYX")
    dock.axes.textEdited.emit("TYX")
    assert dock.axes_words.text() == "time, row, column"
    export(dock, person, tmp_path / "movie.tif")
    with tifffile.TiffFile(tmp_path / "movie.tif") as tiff:
        assert tiff.series[0].axes == "TYX"
    dock.axes.setText("TY")
    notice = export(dock, person, tmp_path / "other.tif")
    assert notice.kind == "error"
    assert not (tmp_path / "other.tif").exists()


def test_an_existing_file_is_only_replaced_after_asking(viewer, dock, person, tmp_path, monkeypatch):
    viewer.add_labels(np.ones((4, 5), np.uint8), name="mask")
    path = tmp_path / "mask.tif"
    path.write_text("precious")
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]
    monkeypatch.setattr(QMessageBox, "question", lambda *_: answers.pop(0))
    export(dock, person, path)
    assert path.read_text() == "precious"
    assert export(dock, person, path).kind == "success"
    np.testing.assert_array_equal(tifffile.imread(path), 1)


def test_who_does_not_replace_a_file_is_told_where_it_lies_and_that_nothing_was_written(viewer, dock, person, tmp_path,
                                                                                        monkeypatch):
    viewer.add_labels(np.ones((4, 5), np.uint8), name="mask")
    assert export(dock, person, tmp_path / "mask.tif").kind == "success"
    asked, no = [], QMessageBox.StandardButton.No
    monkeypatch.setattr(QMessageBox, "question", lambda *words: asked.append(words[-1]) or no)
    monkeypatch.chdir(tmp_path)
    notice = export(dock, person, "mask.tif")
    assert asked == [f"'mask.tif' exists already in the folder {tmp_path}. Replace it?"]
    assert (notice.text, notice.kind) == ("Nothing was written.", "info")


def test_the_default_file_lies_beside_the_image(viewer, dock, tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", np.zeros((8, 8), np.uint8))
    layer = viewer.open(str(tmp_path / "slide.tif"), plugin="napari")[0]
    viewer.add_labels(np.zeros((8, 8), np.uint8), name="slide objects",
                      metadata={"cellbrush": {"axes": "YX", "output": "objects", "image": str(layer.unique_id)}})
    assert dock.path.text() == str(tmp_path / "slide_objects.tif")


def test_the_pixel_size_comes_from_the_file_where_the_viewer_did_not_read_it(viewer, dock, person, tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", np.zeros((8, 9), np.uint8), imagej=True, resolution=(4, 2),
                     metadata={"unit": "um"})
    layer = viewer.open(str(tmp_path / "slide.tif"), plugin="napari")[0]
    note = {"axes": "YX", "output": "objects", "image": str(layer.unique_id)}
    viewer.add_labels(np.ones((8, 9), np.uint8), name="slide objects", metadata={"cellbrush": note})
    assert (dock.size_line.text(), dock.size_words.text()) == ("0.5 × 0.25", "µm (row × column)")
    export(dock, person, tmp_path / "mask.tif")
    assert open_image(tmp_path / "mask.tif").pixel_size == PixelSize(0.5, 0.25, None, "µm")
    # Of another size is another image.
    viewer.add_labels(np.ones((4, 9), np.uint8), name="part objects", metadata={"cellbrush": note})
    dock.layer.chosen.emit(str(viewer.layers["part objects"].unique_id))
    assert (dock.size_line.text(), dock.size_line.placeholderText()) == ("", "not known: lengths are in pixels")


def test_a_pixel_size_can_be_said_and_holds_for_all_layers_of_the_image(viewer, dock, person, tmp_path):
    layer = viewer.add_image(np.zeros((8, 9), np.uint8), name="cells")
    note = {"axes": "YX", "image": str(layer.unique_id)}
    for output in ("classes", "objects"):
        viewer.add_labels(np.ones((8, 9), np.uint8), name=output, metadata={"cellbrush": {**note, "output": output}})
    assert dock.size_line.text() == ""
    type_into(dock.size_line, "0.5")
    dock.session.images_changed.emit()
    assert dock.size_line.text() == "0.5"
    export(dock, person, tmp_path / "objects.tif")
    assert open_image(tmp_path / "objects.tif").pixel_size == PixelSize(0.5, 0.5, None, "µm")
    dock.layer.chosen.emit(str(viewer.layers["classes"].unique_id))
    assert dock.size_line.text() == "0.5 × 0.5"
    assert dock.size_words.text() == "µm (row × column)"
    type_into(dock.size_line, "wide")
    assert "is not understood" in export(dock, person, tmp_path / "classes.tif").text
    assert "is not understood" in dock.size_words.text()
    assert not (tmp_path / "classes.tif").exists()
    type_into(dock.size_line, "")
    export(dock, person, tmp_path / "classes.tif")
    assert not open_image(tmp_path / "classes.tif").pixel_size.is_known


def test_a_pixel_size_that_comes_back_with_a_session_is_shown(viewer, dock):
    key = str(viewer.add_labels(np.ones((8, 9), np.uint8), name="cells").unique_id)
    dock.session.say_pixel_size(key, PixelSize(0.3, 0.2, None, "µm"))
    assert dock.size_line.text() == "0.3 × 0.2"


def test_an_emptied_pixel_size_is_again_the_one_that_was_read(viewer, dock):
    viewer.add_labels(np.ones((8, 9), np.uint8), name="cells", scale=(0.2, 0.1), units=("um", "um"))
    for text, shown in (("0.5", "0.5 × 0.5"), ("", "0.2 × 0.1")):
        type_into(dock.size_line, text)
        QTest.keyClick(dock.size_line, Qt.Key.Key_Return)
        assert dock.size_line.text() == shown


def test_the_next_file_goes_where_the_last_one_went_and_starts_without_a_word(viewer, dock, person, tmp_path):
    first = viewer.add_labels(np.ones((8, 9), int), name="cells")
    export(dock, person, tmp_path / "cells.tif")
    assert dock.session.export.notice.text.startswith("Saved cells.tif")
    second = viewer.add_labels(np.ones((8, 9), int), name="cells")
    assert second.name == "cells [1]"
    for layer, name in ((first, "cells.tif"), (second, "cells-1.tif")):
        dock.layer.chosen.emit(str(layer.unique_id))
        assert dock.path.text() == str(tmp_path / name)
    assert not dock.session.export.notice.text


def test_a_path_that_somebody_wrote_stays_when_results_change(viewer, dock):
    labels = viewer.add_labels(np.zeros((8, 8), np.uint8), name="a")
    dock.path.setText("here.tif")
    dock.path.textEdited.emit("here.tif")
    labels.name = "b"
    assert dock.path.text() == "here.tif"


def test_objects_are_offered_first_and_an_explicit_choice_stays(viewer, dock):
    def add(name, output):
        viewer.add_labels(np.zeros((8, 8), np.uint8), name=name, metadata={"cellbrush": {"axes": "YX",
                                                                                         "output": output}})

    viewer.add_labels(np.zeros((8, 8), np.uint8), name="strokes")
    add("my classes", "classes")
    assert dock.layer.currentText() == "my classes"
    add("my objects", "objects")
    assert dock.layer.currentText() == "my objects"
    index = dock.layer.findText("strokes")
    dock.layer.setCurrentIndex(index)
    dock.layer.activated.emit(index)
    add("more objects", "objects")
    assert dock.layer.currentText() == "strokes"


def test_what_is_seen_of_the_image_that_is_worked_on_is_offered(viewer, workspace, person, image):
    for name in ("one", "two"):
        viewer.add_image(image, name=name)
    session, dock = workspace.session, workspace.export
    session.set_options(scope="all", output="objects")
    workspace.annotate.bench.segmenting.start()
    person.wait(lambda: session.segmentation.notice.kind in ("success", "warning"))
    workspace.show_tab("export")
    for name in ("one", "two"):
        session.choose_image(str(viewer.layers[name].unique_id))
        assert dock.layer.currentText() == f"{name} objects"
    workspace.show_tab("segment")
    viewer.layers["two objects"].visible, viewer.layers["two classes"].visible = False, True
    workspace.show_tab("export")
    assert dock.layer.currentText() == "two classes"
    # Who has written something about a layer means that one.
    dock.path.setText("mine.tif")
    dock.path.textEdited.emit("mine.tif")
    viewer.layers["two objects"].visible, viewer.layers["two classes"].visible = True, False
    workspace.show_tab("segment")
    workspace.show_tab("export")
    assert (dock.layer.currentText(), dock.path.text()) == ("two classes", "mine.tif")
    session.choose_image(str(viewer.layers["one"].unique_id))
    assert dock.layer.currentText() == "one objects"


def test_a_pixel_size_that_was_said_holds_when_the_image_is_closed(viewer, workspace, person, image):
    viewer.add_image(image, name="cells")
    workspace.session.set_options(scope="layer", output="objects")
    workspace.annotate.bench.segmenting.start()
    person.wait(lambda: workspace.session.segmentation.notice.kind in ("success", "warning"))
    exporting = workspace.annotate.bench.exporting
    mask = next(mask for mask in workspace.session.masks if mask.output == "objects")
    exporting.say_pixel_size(mask, PixelSize(0.3, 0.2, None, "µm"))
    viewer.layers.remove("cells")
    assert exporting.pixel_size(mask, "YX") == PixelSize(0.3, 0.2, None, "µm")
    viewer.add_image(image, name="cells")
    assert exporting.pixel_size(mask, "YX") == PixelSize(0.3, 0.2, None, "µm")


def test_an_unwritable_place_is_said_in_words(viewer, dock, person, tmp_path):
    viewer.add_labels(np.ones((4, 5), np.uint8), name="mask")
    notice = export(dock, person, tmp_path / "missing" / "folder" / "mask.tif")
    assert notice.kind == "error"
    assert "mask.tif" in notice.text or "missing" in notice.text
    assert dock.run.button.isEnabled()


def test_too_little_memory_for_the_copy_is_said_in_words(viewer, dock, person, tmp_path, monkeypatch):
    viewer.add_labels(np.ones((4, 4), np.uint8), name="mask")

    def no_memory(_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(exporting, "np", SimpleNamespace(array=no_memory))
    dock.path.setText(str(tmp_path / "mask.tif"))
    person.click(dock.run.button)
    assert "memory ran out while copying 'mask': Unable to allocate 9 GiB. Close" in dock.session.export.notice.text
    assert not list(tmp_path.glob("*.tif"))
    assert not dock.session.export.busy


def test_compressed_is_ome_and_has_the_same_values(viewer, dock, person, tmp_path):
    mask = np.random.default_rng(0).integers(0, 9, (30, 40))
    viewer.add_labels(mask, name="mask")
    dock.format.setValue("compact")
    notice = export(dock, person, tmp_path / "mask.ome.tif")
    assert "OME-TIFF" in notice.text
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mask.ome.tif"), mask)


@pytest.mark.usefixtures("specks")
def test_what_a_model_made_says_so_in_the_file(viewer, workspace, person, image, tmp_path):
    viewer.add_image(image, name="cells", scale=(0.1, 0.2), units=("um", "um"))
    workspace.session.set_options(scope="layer", output="objects")
    workspace.annotate.bench.segmenting.start()
    person.wait(lambda: workspace.session.segmentation.notice.kind == "success")
    workspace.show_tab("export")
    assert workspace.export.layer.currentText() == "cells objects"
    assert workspace.export.size_line.text() == "0.1 × 0.2"
    notice = export(workspace.export, person, tmp_path / "cells.tif")
    assert notice.kind == "success"
    found = tifffile.imread(tmp_path / "cells.tif")
    np.testing.assert_array_equal(found, viewer.layers["cells objects"].data)
    note = read_provenance(tmp_path / "cells.tif")
    assert note["model"] == "tiny"
    assert len(note["model_weights_sha256"]) == 64
    assert note["settings"] == workspace.session.inference_config.model_dump()


def test_channels_between_other_axes_leave_no_trace_in_the_file(viewer, workspace, person, tmp_path):
    data = np.random.default_rng(0).random((2, 3, 40, 50)).astype(np.float32)
    viewer.add_image(data, name="movie")
    workspace.session.set_axes(workspace.session.image.key, "TCYX")
    workspace.session.set_options(scope="layer")
    workspace.annotate.bench.segmenting.start()
    person.wait(lambda: workspace.session.segmentation.notice.kind == "success")
    workspace.show_tab("export")
    assert workspace.export.axes.text() == "TYX"
    export(workspace.export, person, tmp_path / "movie.tif")
    with tifffile.TiffFile(tmp_path / "movie.tif") as tiff:
        assert (tiff.series[0].axes, tiff.series[0].shape) == ("TYX", (2, 40, 50))


# ---------------------------------------------------------------------------------------- objects in other formats


@pytest.fixture
def objects(viewer, dock, image):
    """Objects of two channels, as a run leaves them."""
    viewer.add_image(np.stack([image, image + 1]), name="cells", scale=(1, 0.5, 0.5), units=("pixel", "um", "um"))
    dock.session.set_axes(dock.session.image.key, "CYX")
    rows, columns = np.mgrid[:120, :150]
    near = (rows % 40 - 20) ** 2 + (columns % 50 - 25) ** 2 < 12**2
    ids = np.where(near, rows // 40 * 3 + columns // 50 + 1, 0).astype(np.uint16)
    return viewer.add_labels(ids, name="cells objects", scale=(0.5, 0.5), units=("um", "um"), metadata={
        "cellbrush": {"axes": "YX", "output": "objects", "image": dock.session.image.key, "image_name": "cells"}})


def choose(dock, format):
    dock.format.setValue(format)
    dock.format.chosen.emit(format)


def test_measurements_of_every_channel_go_to_a_table_and_to_the_status_bar(viewer, dock, person, objects, tmp_path):
    choose(dock, "table")
    assert dock.image_line.text() == "cells, 2 channels"
    notice = export(dock, person, tmp_path / "cells.csv")
    assert (notice.text, notice.kind) == ("Saved cells.csv: 9 objects, 22 columns.", "success")
    with (tmp_path / "cells.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    pixels, ids = viewer.layers["cells"].data, objects.data
    assert [int(row["id"]) for row in rows] == list(range(1, 10))
    for row in rows:
        inside = ids == int(row["id"])
        assert float(row["area [µm²]"]) == pytest.approx(0.25 * inside.sum())
        assert float(row["mean_intensity_2"]) == pytest.approx(pixels[1][inside].mean())
    shown = objects.get_status((10, 12.5), world=True)["coordinates"]
    assert f"area [µm²]: {float(rows[0]['area [µm²]']):.3g}" in shown
    assert "mean_intensity_1" in shown


def test_measurements_leave_the_status_bar_when_they_are_no_longer_true(viewer, dock, person, objects, tmp_path):
    choose(dock, "table")
    export(dock, person, tmp_path / "a.csv")
    assert objects.features.shape == (9, 16)
    objects.selected_label = 1
    objects.paint((5, 5), 1)
    assert objects.features.shape[1] == 0
    export(dock, person, tmp_path / "b.csv")
    assert objects.features.shape == (9, 16)
    layers.note_on(objects, provenance={"date": "later"})
    dock.session.segmentation.changed.emit()
    assert objects.features.shape[1] == 0


def test_regions_polygons_and_a_picture_of_each_object(viewer, dock, person, objects, tmp_path):
    choose(dock, "rois")
    assert export(dock, person, tmp_path / "cells.zip").text == "Saved cells.zip: 9 objects."
    assert [roi.name for roi in roifile.roiread(tmp_path / "cells.zip")] == [str(n) for n in range(1, 10)]
    choose(dock, "geojson")
    assert export(dock, person, tmp_path / "cells.geojson").kind == "success"
    assert len(json.loads((tmp_path / "cells.geojson").read_text(encoding="utf-8"))["features"]) == 9
    choose(dock, "overlay")
    assert export(dock, person, tmp_path / "cells.png").kind == "success"
    with Image.open(tmp_path / "cells.png") as picture:
        assert picture.size == (150, 120)
        assert len(np.unique(np.asarray(picture))) > 100  # the image shows through


def test_the_name_of_the_file_follows_the_format(viewer, dock, objects):
    for format, name in (("tiff", "cells_objects.tif"), ("compact", "cells_objects.ome.tif"),
                         ("rois", "cells_objects_rois.zip"), ("geojson", "cells_objects.geojson"),
                         ("table", "cells_objects.csv"), ("overlay", "cells_objects_overlay.png")):
        choose(dock, format)
        assert dock.path.text() == str(Path.home() / name)
    dock.path.setText("mine.png")
    dock.path.textEdited.emit("mine.png")
    for format, name in (("table", "mine.csv"), ("rois", "mine_rois.zip"), ("tiff", "mine.tif"), ("tiff", "mine.tif")):
        choose(dock, format)
        assert dock.path.text() == name


def test_a_file_gets_the_ending_of_its_format(dock, person, objects, tmp_path):
    choose(dock, "geojson")
    assert export(dock, person, tmp_path / "v1.2").text.startswith("Saved v1.2.geojson")
    assert export(dock, person, tmp_path / "a.json").text.startswith("Saved a.json")


def test_only_what_may_hold_objects_is_offered_as_objects(viewer, dock, objects, image):
    def offered():
        return [dock.format.itemData(i) for i in range(dock.format.count())]

    everything = ["tiff", "compact", "table", "rois", "geojson", "overlay"]
    assert offered() == everything
    choose(dock, "rois")
    for name, output in (("classes", "classes"), ("mine", "")):
        layer = viewer.add_labels(np.ones((120, 150), np.uint8), name=name,
                                  metadata={"cellbrush": {"axes": "YX", "output": output}})
        dock.choose(str(layer.unique_id))
        assert offered() == (["tiff", "compact"] if output else everything)
        assert dock.format.value() == "tiff"
    dock.session.set_annotation(dock.session.image.key, str(layer.unique_id))
    assert offered() == ["tiff", "compact"]


def test_objects_know_their_image_by_whatever_name(viewer, dock, person, objects, tmp_path):
    viewer.layers["cells"].name = "other"
    choose(dock, "table")
    assert dock.image_line.text() == "other, 2 channels"
    assert export(dock, person, tmp_path / "a.csv").kind == "success"
    assert "mean_intensity_2" in objects.features


def test_an_image_that_is_opened_again_is_known_by_its_name(viewer, dock, objects):
    layer = viewer.layers.pop("cells")
    choose(dock, "table")
    assert dock.image_line.text() == "not known: sizes and shapes alone"
    viewer.add_image(layer.data, name="cells", scale=layer.scale)
    dock.session.set_axes(dock.session.image.key, "CYX")
    assert dock.image_line.text() == "cells, 2 channels"


def test_without_their_image_objects_are_measured_and_that_is_said(viewer, dock, person, objects, tmp_path):
    viewer.layers.remove("cells")
    choose(dock, "table")
    assert dock.image_line.text() == "not known: sizes and shapes alone"
    notice = export(dock, person, tmp_path / "a.csv")
    assert notice.text == "Saved a.csv: 9 objects, 14 columns, without intensities."
    choose(dock, "overlay")
    assert "black" in dock.image_line.text()
    assert export(dock, person, tmp_path / "a.png").kind == "success"


@pytest.mark.parametrize("format", ["table", "rois", "geojson", "overlay"])
def test_what_cannot_be_written_is_said_in_words_and_leaves_nothing(viewer, dock, person, objects, tmp_path, format):
    choose(dock, format)
    dock.axes.setText("YXZ")
    assert "The axes 'YXZ' name 3 axes" in export(dock, person, tmp_path / "a").text
    dock.axes.setText("YX")
    notice = export(dock, person, tmp_path / "missing" / "a")
    assert notice.kind == "error"
    assert "does not exist" in notice.text
    if format == "table":
        viewer.layers["cells"].data[0, 3, 4] = np.nan
        assert "NaN" in export(dock, person, tmp_path / "a").text
    assert not list(tmp_path.glob("*a*"))


def test_axes_with_channels_are_refused_for_objects(viewer, dock, person, tmp_path):
    viewer.add_labels(np.ones((3, 40, 50), np.uint8), name="mine")
    choose(dock, "table")
    dock.axes.setText("CYX")
    assert "name channels (C), and objects have none" in export(dock, person, tmp_path / "a.csv").text


def test_a_stack_is_measured_by_planes_unless_an_object_is_on_several(viewer, dock, person, tmp_path):
    ids = np.zeros((2, 40, 50), np.uint16)
    ids[0, 5:10, 5:10], ids[1, 5:10, 5:12] = 1, 2
    layer = viewer.add_labels(ids, name="mine", scale=(2, 1, 1))
    choose(dock, "table")
    export(dock, person, tmp_path / "a.csv")
    assert layer.features["area [unit²]"].tolist() == [25, 35]
    layer.data = np.minimum(ids, 1)
    export(dock, person, tmp_path / "b.csv")
    assert layer.features["volume [unit³]"].tolist() == [2 * 60]
    choose(dock, "overlay")
    viewer.dims.set_point(0, 2)
    export(dock, person, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.getpixel((11, 5)) != (0, 0, 0)


def test_objects_of_a_run_know_their_class(viewer, workspace, person, image, tmp_path, tiny_model):
    add_to_library(tiny_model("busy", seed=3), "busy")
    workspace.annotate.bench.take_library(runs.read_library())
    viewer.add_image(image, name="cells")
    workspace.session.choose_model("busy")
    workspace.session.set_options(scope="layer", output="objects")
    workspace.annotate.bench.segmenting.start()
    person.wait(lambda: workspace.session.segmentation.notice.kind == "success")
    workspace.show_tab("export")
    choose(workspace.export, "table")
    assert export(workspace.export, person, tmp_path / "cells.csv").kind == "success"
    features = viewer.layers["cells objects"].features
    assert len(features) == viewer.layers["cells objects"].data.max() > 0
    assert set(features["class"]) == {"cell"}
    assert "mean_intensity" in features


def test_with_nothing_to_export_the_button_is_grey_and_says_why(dock):
    assert not dock.run.button.isEnabled()
    assert "nothing to export" in dock.run.reason.text()
