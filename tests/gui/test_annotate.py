from __future__ import annotations

import threading

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QMessageBox

from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine import annotation
from napari_cellbrush.engine.annotation import objects_to_classes
from napari_cellbrush.napari_ui import layers
from napari_cellbrush.napari_ui.annotate_dock import AnnotateDock, TakeOverDialog

#: Seconds that the held thread waits at most.
PATIENCE_S = 30


@pytest.fixture
def dock(viewer) -> AnnotateDock:
    _, widget = viewer.window.add_plugin_dock_widget("napari-cellbrush", "Annotate")
    return getattr(widget, "__wrapped__", widget)


def take_over(dock, person, kind: str = "classes") -> None:
    person.click(dock.take_over)
    dialog = dock.findChild(TakeOverDialog)
    getattr(dialog, kind).setChecked(True)
    dialog.accept()
    dialog.deleteLater()
    person.wait(lambda: not dock.session.taking_over.busy)


def names(box) -> list[str]:
    return [box.itemText(i) for i in range(box.count())]


def painted_column(dock) -> list[str]:
    return [dock.table.item(row, 4).text() for row in range(dock.table.rowCount())]


# ----------------------------------------------------------------------------------------- image and axes


def test_the_list_of_images_follows_the_viewer_whatever_happens_to_its_layers(viewer, dock, image):
    assert names(dock.image) == []
    first = viewer.add_image(image, name="first")
    second = viewer.add_image(image, name="second")
    viewer.add_labels(np.zeros((4, 4), np.uint8), name="labels")
    viewer.add_points(np.zeros((1, 2)))
    assert names(dock.image) == ["second", "first"]
    assert dock.image.currentText() == "second"
    dock.session.choose_image(str(first.unique_id))
    assert dock.image.currentText() == "first"
    first.name = "renamed"
    assert names(dock.image) == ["second", "renamed"]
    assert dock.image.currentText() == "renamed"
    viewer.layers.move(0, 4)
    assert names(dock.image) == ["renamed", "second"]
    viewer.layers.remove(first)
    assert names(dock.image) == ["second"]
    assert dock.image.currentText() == "second"
    viewer.layers.remove(second)
    assert names(dock.image) == []
    assert not dock.new.isEnabled()


def test_two_images_of_one_name_are_told_apart(viewer, dock, image):
    viewer.add_image(image, name="same")
    viewer.add_image(image[:50], name="same")
    assert sorted(names(dock.image)) == ["same", "same [1]"]
    dock.image.setCurrentIndex(0)
    dock.image.activated.emit(0)
    assert dock.session.image.shape == (50, 150)


def test_axes_are_shown_in_words_and_can_be_corrected(viewer, dock):
    viewer.add_image(np.zeros((4, 30, 40), np.float32), name="stack")
    assert (dock.axes.text(), dock.axes_words.text()) == ("ZYX", "depth, row, column")
    dock.axes.setText("tyx")
    dock.axes.editingFinished.emit()
    assert (dock.axes.text(), dock.axes_words.text()) == ("TYX", "time, row, column")


def test_axes_that_do_not_fit_are_refused_in_words(viewer, dock):
    viewer.add_image(np.zeros((30, 40), np.float32))
    dock.axes.setText("ZYX")
    dock.axes.editingFinished.emit()
    assert "name 3 axes, the image has 2" in dock.notice.text()
    assert dock.axes.text() == "YX"


def test_strokes_survive_another_meaning_of_an_axis_and_stop_counting_where_they_no_longer_fit(viewer, dock, person):
    viewer.add_image(np.random.default_rng(0).random((3, 60, 60)).astype(np.float32), name="stack")
    person.click(dock.new)
    person.drag([(30, 20), (30, 40)])
    n_painted = np.count_nonzero(viewer.layers["stack annotation"].data)
    person.wait(lambda: dock.session.painted[0] == n_painted)
    key, painted = dock.session.image.key, dock.session.painted
    dock.session.set_axes(key, "TYX")
    assert dock.bench.annotating.snapshot(key).any()
    QTest.qWait(300)
    assert dock.session.painted == painted
    dock.session.set_axes(key, "CYX")
    assert dock.session.painted == (0, 0, 0)
    assert "New annotation" in dock.notice.text()
    assert viewer.layers["stack annotation"].data.any()
    person.click(dock.new)
    assert viewer.layers["stack annotation [1]"].data.shape == (60, 60)


# ------------------------------------------------------------------------------------------- annotation


def test_a_new_annotation_is_an_empty_layer_ready_to_be_painted(viewer, dock, image, person):
    viewer.add_image(image, name="cells", scale=(0.5, 0.25), translate=(3, 4), units=("um", "um"))
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    assert layer.data.dtype == np.uint8
    assert not layer.data.any()
    assert tuple(layer.scale) == (0.5, 0.25)
    assert tuple(layer.translate) == (3, 4)
    assert viewer.layers.selection.active.name == "cells annotation"
    assert (str(layer.mode), layer.selected_label) == ("paint", 1)


def test_digits_choose_a_class_and_strokes_paint_and_count_it(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    for digit, row in ((Qt.Key.Key_2, 30), (Qt.Key.Key_3, 60), (Qt.Key.Key_1, 90)):
        person.key(Qt.Key.Key_Z)  # pan: the digit must bring the brush back
        person.key(digit)
        person.drag([(row, column) for column in range(20, 60, 5)])
    assert set(np.unique(layer.data[[30, 60, 90], 40])) == {1, 2, 3}
    assert [layer.data[row, 40] for row in (30, 60, 90)] == [2, 3, 1]
    expected = np.bincount(layer.data.ravel(), minlength=4)[1:]
    person.wait(lambda: dock.session.painted == tuple(expected))
    assert painted_column(dock) == [f"{n:,}" for n in expected]


def test_digits_without_a_class_do_nothing(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    for digit in (Qt.Key.Key_4, Qt.Key.Key_5, Qt.Key.Key_6, Qt.Key.Key_7):
        person.key(digit)
        assert (str(layer.mode), layer.selected_label) == ("paint", 1)


def test_the_keys_that_dock_and_status_bar_name_do_what_they_say(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    said = viewer.help
    assert said == dock.keys.text()
    assert said.replace("\xa0", " ") == ("1–3 class, [ ] brush size, E erase, F fill, Ctrl+Z undo, L live, "
                                             "N next place, Space (held) no mask, move")
    for key, mode in ((Qt.Key.Key_E, "erase"), (Qt.Key.Key_F, "fill"), (Qt.Key.Key_2, "paint")):
        person.key(key)
        assert str(layer.mode) == mode
        assert viewer.help == said
    person.key(Qt.Key.Key_BracketRight)
    assert (layer.brush_size, dock.brush.value()) == (5, 5)
    person.key(Qt.Key.Key_BracketLeft)
    person.key(Qt.Key.Key_BracketLeft)
    assert (layer.brush_size, dock.brush.value()) == (3, 3)
    person.click(dock.add)
    assert viewer.help.startswith("1–4")
    assert dock.keys.text() == viewer.help


def test_undo_takes_pixels_off_the_count(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    person.drag([(40, 40), (40, 60), (40, 80)])
    person.wait(lambda: dock.session.painted[0] > 0)
    person.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    person.wait(lambda: dock.session.painted == (0, 0, 0))


def test_every_plane_of_a_stack_is_counted(viewer, dock, person):
    viewer.add_image(np.random.default_rng(0).random((3, 60, 60)).astype(np.float32), name="stack")
    person.click(dock.new)
    layer = viewer.layers["stack annotation"]
    for plane in (0, 2):
        viewer.dims.set_current_step(0, plane)
        QTest.qWait(20)
        person.drag([(30, 20), (30, 40)])
    assert layer.data[0].any()
    assert not layer.data[1].any()
    person.wait(lambda: dock.session.painted[0] == np.count_nonzero(layer.data))


def test_a_value_without_a_class_cannot_be_painted(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    layer.selected_label = 2
    layer.selected_label = 7  # napari's key for a new label does this
    assert layer.selected_label == 2


def test_brush_size_is_one_for_dock_and_layer(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    dock.brush.setValue(23)
    assert layer.brush_size == 23
    layer.brush_size = 7
    assert (dock.brush.value(), dock.brush_box.value()) == (7, 7)


# ---------------------------------------------------------------------------------------------- classes


def test_clicking_a_class_chooses_it_on_the_annotation_layer(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    viewer.layers.selection.active = viewer.layers["cells"]
    where = dock.table.visualItemRect(dock.table.item(2, 2)).center()
    QTest.mouseClick(dock.table.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, where)
    layer = viewer.layers["cells annotation"]
    assert layer.selected_label == 3
    assert viewer.layers.selection.active.name == "cells annotation"


def test_choosing_a_label_in_napari_marks_its_class_in_the_table(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    viewer.layers["cells annotation"].selected_label = 3
    assert {index.row() for index in dock.table.selectedIndexes()} == {2}
    assert "boundary" in dock.notice.text()


def test_renaming_and_recolouring_reach_the_layer(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    layer = viewer.layers["cells annotation"]
    dock.table.item(1, 2).setText("nucleus")
    dock.table.recoloured.emit(1, "#ff0000")
    np.testing.assert_allclose(layer.colormap.map(np.array([2]))[0], [1, 0, 0, 1])
    assert list(layer.features["class"]) == ["unlabelled", "background", "nucleus", "boundary"]
    assert dock.session.classes[1].role == "object"


def test_up_to_six_classes_are_shown_without_scrolling_and_say_what_they_count_as(viewer, dock, person):
    bar = dock.table.verticalScrollBar()
    for n_classes in range(3, 8):
        assert (bar.maximum() > 0) == (n_classes > 6), n_classes
        person.click(dock.add)
    assert "boundary keeps touching ones apart" in dock.table.horizontalHeaderItem(3).toolTip()


def test_a_name_that_is_taken_is_refused_and_the_old_one_shown_again(viewer, dock):
    dock.table.item(1, 2).setText("background")
    assert "same name" in dock.notice.text()
    assert dock.table.item(1, 2).text() == "cell"


def test_an_added_class_gets_a_key_and_a_colour(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    person.click(dock.add)
    person.key(Qt.Key.Key_4)
    person.drag([(40, 40), (40, 60)])
    layer = viewer.layers["cells annotation"]
    assert layer.data[40, 50] == 4
    assert layer.colormap.map(np.array([4]))[0][3] == 1
    person.wait(lambda: dock.session.painted[3] > 0)


def test_removing_a_class_asks_renumbers_the_strokes_and_leaves_nothing_to_undo(viewer, dock, image, person,
                                                                               monkeypatch):
    viewer.add_image(image, name="cells", scale=(2, 2))
    person.click(dock.new)
    for digit, row in ((Qt.Key.Key_2, 60), (Qt.Key.Key_3, 120)):
        person.key(digit)
        person.drag([(row, 60), (row, 120)])
    person.wait(lambda: dock.session.painted[2] > 0)
    before = viewer.layers["cells annotation"].data.copy()
    dock.session.choose_class(1)
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.No)
    person.click(dock.remove)
    assert len(dock.session.classes) == 3
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    person.click(dock.remove)
    layer = viewer.layers["cells annotation"]
    expected = np.where(before == 3, 2, 0)
    np.testing.assert_array_equal(layer.data, expected)
    assert tuple(layer.scale) == (2, 2)
    assert [la.name for la in viewer.layers] == ["cells", "cells annotation"]
    layer.undo()
    np.testing.assert_array_equal(layer.data, expected)
    person.wait(lambda: dock.session.painted == (0, int((expected == 2).sum())))


# ------------------------------------------------------------------------------------------ from labels


def test_classes_of_another_layer_are_taken_over_as_a_copy(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    values = np.random.default_rng(0).integers(0, 4, image.shape).astype(np.int32)
    given = viewer.add_labels(values.copy(), name="given")
    person.click(dock.take_over)
    dialog = dock.findChild(TakeOverDialog)
    assert names(dialog.source) == ["given"]
    dialog.accept()
    person.wait(lambda: not dock.session.taking_over.busy)
    layer = viewer.layers["cells annotation"]
    np.testing.assert_array_equal(layer.data, values)
    assert layer.data.dtype == np.uint8
    assert not given.visible
    person.key(Qt.Key.Key_1)
    person.drag([(40, 40), (40, 60)])
    np.testing.assert_array_equal(given.data, values)


def test_objects_of_another_layer_become_background_cell_and_boundary(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    objects = np.zeros(image.shape, np.int32)
    objects[20:50, 20:50], objects[20:50, 50:80] = 700, 90000
    viewer.add_labels(objects, name="masks")
    take_over(dock, person, "objects")
    np.testing.assert_array_equal(viewer.layers["cells annotation"].data, objects_to_classes(objects))


def test_labels_that_cover_the_image_do_not_hide_it_and_strokes_stand_out(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    covering = viewer.add_labels(np.ones(image.shape, int), name="covering")
    take_over(dock, person)
    assert viewer.layers["cells annotation"].opacity == layers.COVERING_OPACITY
    dock.session.add_class()
    dock.bench.annotating.remove_class(3)
    assert viewer.layers["cells annotation"].opacity == layers.COVERING_OPACITY
    viewer.layers.remove(covering)
    viewer.add_labels(np.pad(np.ones((20, 20), int), ((0, 100), (0, 130))), name="a few strokes")
    take_over(dock, person)
    assert viewer.layers["cells annotation [1]"].opacity == layers.ANNOTATION_OPACITY


def test_the_dialog_takes_more_values_than_classes_for_objects(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    made = {"metadata": {"cellbrush": {"axes": "YX", "output": "objects"}}}
    for name, highest, look in (("two found", 2, made), ("33", 33, {}), ("classes", 3, {})):
        labels = np.zeros(image.shape, int)
        labels[50:60, 60:70] = highest
        viewer.add_labels(labels, name=name, **look)
    person.click(dock.take_over)
    dialog = dock.findChild(TakeOverDialog)
    assert dialog.classes.isChecked()
    for name, kind in (("33", "objects"), ("two found", "objects"), ("classes", "classes")):
        number = dialog.source.findText(name)
        dialog.source.setCurrentIndex(number)
        dialog.source.activated.emit(number)
        assert (dialog.classes.isChecked(), dialog.objects.isChecked()) == (kind == "classes", kind == "objects")
    dialog.close()


def test_a_mask_that_napari_opened_as_an_image_is_told_how_to_be_used(viewer, dock, image):
    viewer.add_image(image, name="cells")
    viewer.add_image(image.astype(int), name="mask")
    assert not dock.take_over.isEnabled()
    assert "Convert to Labels" in dock.take_over.toolTip()


@pytest.mark.parametrize(("values", "words"), [
    (np.full((120, 150), 9, np.uint8), "the value 9, but there are 3 classes"),
    (np.zeros((20, 20), np.uint8), "have the shape (20, 20)"),
])
def test_labels_that_do_not_fit_are_refused_in_words_and_nothing_is_added(viewer, dock, image, person, values, words):
    viewer.add_image(image, name="cells")
    viewer.add_labels(values, name="given")
    take_over(dock, person)
    assert words in dock.notice.text()
    assert [layer.name for layer in viewer.layers] == ["cells", "given"]


@pytest.fixture
def slow_planes(monkeypatch) -> threading.Event:
    """Holds the thread before each plane until it is set."""
    go_on, whole_numbers = threading.Event(), annotation.whole_numbers

    def wait(values, what):
        go_on.wait(PATIENCE_S)
        return whole_numbers(values, what)

    monkeypatch.setattr(annotation, "whole_numbers", wait)
    yield go_on
    go_on.set()


@pytest.fixture
def taking_over(viewer, dock, image, person, slow_planes):
    """A stack of labels on its way into the annotation."""
    viewer.add_image(np.stack([image] * 3), name="cells")
    viewer.add_labels(np.ones((3, *image.shape), np.uint8), name="given")
    dock.bench.annotating.take_over(dock.session.masks[0].key, dock.session.image.key, "classes")
    assert dock.session.taking_over.busy
    return dock.session.taking_over


def test_the_window_stays_alive_while_labels_are_taken_over_and_can_stop_it(viewer, dock, person, taking_over,
                                                                            slow_planes):
    QTest.qWait(50)
    assert taking_over.busy
    assert dock.take_over.text() == "Stop"
    person.click(dock.take_over)
    assert not dock.take_over.isEnabled()
    slow_planes.set()
    person.wait(lambda: not taking_over.busy)
    assert [layer.name for layer in viewer.layers] == ["cells", "given"]
    assert "nothing has changed" in dock.notice.text()
    assert dock.take_over.text() == "From labels…"
    assert dock.take_over.isEnabled()


@pytest.mark.parametrize("change", ["axes", "classes", "image"])
def test_labels_are_not_taken_over_onto_what_changed_meanwhile(viewer, dock, person, taking_over, slow_planes, change):
    if change == "axes":
        dock.session.set_axes(dock.session.image.key, "TYX")
    elif change == "classes":
        dock.session.add_class()
    else:
        viewer.layers.remove("cells")
    slow_planes.set()
    person.wait(lambda: not taking_over.busy)
    assert "changed meanwhile" in taking_over.notice.text
    assert "cells annotation" not in viewer.layers


def test_the_dialog_says_which_strokes_a_copy_replaces(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    viewer.add_labels(np.ones(image.shape, np.uint8), name="given")
    person.click(dock.new)
    person.click(dock.take_over)
    dialog = dock.findChild(TakeOverDialog)
    assert any("'cells annotation', whose strokes no longer count" in label.text()
               for label in dialog.findChildren(type(dock.axes_words)))
    dialog.accept()
    person.wait(lambda: not dock.session.taking_over.busy)
    assert not viewer.layers["cells annotation"].visible
    assert viewer.layers["cells annotation [1]"].data.all()


# ------------------------------------------------------------------------------------------------- memory


def no_memory(*_args, **_kwargs):
    raise MemoryError("Unable to allocate 9 GiB")


def test_too_little_memory_for_taking_over_is_said_and_nothing_is_added(viewer, dock, image, person, monkeypatch):
    viewer.add_image(image, name="cells")
    viewer.add_labels(np.ones(image.shape, np.uint8), name="given")
    monkeypatch.setattr(annotation, "whole_numbers", no_memory)
    take_over(dock, person)
    assert "memory ran out while taking over labels: Unable to allocate 9 GiB. Close" in dock.notice.text()
    assert [layer.name for layer in viewer.layers] == ["cells", "given"]


def test_too_little_memory_for_removing_a_class_changes_nothing(viewer, dock, image, person, monkeypatch):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    person.drag([(40, 40), (40, 60)])
    before = viewer.layers["cells annotation"].data.copy()
    person.wait(lambda: dock.session.painted[0])
    dock.session.choose_class(1)
    monkeypatch.setattr(layers, "without_class", no_memory)
    person.click(dock.remove)
    assert "memory ran out while removing a class" in dock.notice.text()
    assert len(dock.session.classes) == 3
    np.testing.assert_array_equal(viewer.layers["cells annotation"].data, before)


# ---------------------------------------------------------------------------------------------- the dock


def test_the_dock_says_what_unlabelled_means_and_what_to_do_next(viewer, dock, image, person):
    texts = [label.text() for label in dock.findChildren(type(dock.axes_words))]
    assert any("unlabelled" in text and "background" in text for text in texts)
    assert "Open an image" in dock.notice.text()
    viewer.add_image(image, name="cells")
    assert "New annotation" in dock.notice.text()
    person.click(dock.new)
    assert "Painting 'background'" in dock.notice.text()


def test_a_removed_annotation_layer_can_be_made_again(viewer, dock, image, person):
    viewer.add_image(image, name="cells")
    person.click(dock.new)
    person.drag([(40, 40), (40, 60)])
    viewer.layers.remove("cells annotation")
    assert dock.session.painted == (0, 0, 0)
    assert "New annotation" in dock.notice.text()
    person.click(dock.new)
    assert not viewer.layers["cells annotation"].data.any()


def test_defaults_are_background_cell_and_boundary(dock):
    assert dock.session.classes == DEFAULT_CLASSES
    assert [dock.table.item(row, 0).text() for row in range(3)] == ["1", "2", "3"]
    assert dock.table.rect().contains(QPoint(5, 5))
