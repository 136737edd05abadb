from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from qtpy.QtWidgets import QMessageBox

from napari_cellbrush.export.mask_tiff import read_provenance
from napari_cellbrush.napari_ui import exporting
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


def test_ids_axes_and_pixel_size_arrive_in_the_file(viewer, dock, person, tmp_path):
    """Different sizes along all axes, so that a swap shows."""
    mask = np.zeros((2, 4, 5), np.int32)
    mask[1, 2, 3], mask[0, 0, 0] = 65535, 255
    viewer.add_labels(mask, name="mask", scale=(0.3, 0.1, 0.2), units=("um", "um", "um"), axis_labels=("z", "y", "x"))
    assert dock.axes.text() == "ZYX"
    assert dock.size_line.text() == "0.3 × 0.1 × 0.2 µm (depth × row × column)"
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


def test_the_default_file_lies_beside_the_image(viewer, dock, tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", np.zeros((8, 8), np.uint8))
    layer = viewer.open(str(tmp_path / "slide.tif"), plugin="napari")[0]
    viewer.add_labels(np.zeros((8, 8), np.uint8), name="slide objects",
                      metadata={"cellbrush": {"axes": "YX", "output": "objects", "image": layer.name}})
    assert dock.path.text() == str(tmp_path / "slide_objects.tif")


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


def test_what_a_model_made_says_so_in_the_file(viewer, workspace, person, image, tmp_path):
    viewer.add_image(image, name="cells", scale=(0.1, 0.2), units=("um", "um"))
    workspace.session.set_options(scope="layer", output="objects")
    workspace.annotate.bench.segmenting.start()
    person.wait(lambda: workspace.session.segmentation.notice.kind == "success")
    workspace.show_tab("export")
    assert workspace.export.layer.currentText() == "cells objects"
    assert workspace.export.size_line.text() == "0.1 × 0.2 µm (row × column)"
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


def test_with_nothing_to_export_the_button_is_grey_and_says_why(dock):
    assert not dock.run.button.isEnabled()
    assert "nothing to export" in dock.run.reason.text()
