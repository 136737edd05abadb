from __future__ import annotations

import threading

import numpy as np
import pytest
from napari.layers import Shapes
from napari.utils.colormaps import CyclicLabelColormap
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cellbrush.engine import inference
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.events import InferenceStarted, TileSegmented
from napari_cellbrush.napari_ui import runs

SHIFT, CTRL = Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.ControlModifier


def disc(row, column, radius=9, shape=(120, 150)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


#: Two that touch, one alone, one with a hole, and one at the border.
CELLS = (disc(30, 30), disc(30, 47), disc(30, 100), disc(80, 40, 12) & ~disc(80, 40, 3), disc(119, 110))
PLACES = ((30, 30), (30, 47), (30, 100), (80, 32), (112, 110))


def answers(*masks):
    """What a model says that sees these cells, each parted from the others by a boundary."""
    cell = np.zeros(masks[0].shape, np.float32)
    for mask in masks:
        cell[mask] = 1
    probabilities = np.stack([1 - cell, cell, 0 * cell])
    for first in masks:
        for second in masks:
            if first is not second:
                probabilities[1:, np.logical_and(np.roll(first, 1, 1) | np.roll(first, -1, 1), second)] = [[0.2], [0.8]]
    return probabilities


@pytest.fixture
def seen(monkeypatch):
    """What the model sees; change it to make the next run see something else."""
    seen = {"probabilities": answers(*CELLS)}

    def segment_planes(model, planes, *, indices, region=None, **_):
        yield InferenceStarted("CPU", "float32", 1, 100)
        rows, columns = region or (slice(0, planes.shape_yx[0]), slice(0, planes.shape_yx[1]))
        for index in indices:
            window = seen["probabilities"][:, rows, columns]
            yield TileSegmented(1, 1, index, rows, columns, window, window.argmax(0).astype(np.uint8) + 1, 1, 0)
        return True

    monkeypatch.setattr(inference, "segment_planes", segment_planes)
    return seen


@pytest.fixture
def found(viewer, workspace, image, person, seen):
    """Objects of the image, and the Correct tab in front."""
    viewer.add_image(image, name="cells", scale=(0.5, 0.5))
    config = workspace.session.inference_config
    objects = config.objects.replace(smoothing_px=0, max_hole_px=0)
    workspace.session.inference_config = config.replace(objects=objects)
    workspace.session.set_options(scope="layer", output="objects")
    segment(workspace, person)
    workspace.show_tab("correct")
    viewer.reset_view()
    QTest.qWait(50)
    return workspace


@pytest.fixture
def correcting(found, person, viewer):
    """The same, with the tools on."""
    person.click(found.correct.toggle)
    QTest.qWait(20)
    return found


def segment(workspace, person):
    workspace.show_tab("segment")
    person.click(workspace.segment.run.button)
    person.wait(lambda: not workspace.session.segmentation.busy)
    assert workspace.session.segmentation.notice.kind == "success", workspace.session.segmentation.notice.text
    workspace.show_tab("correct")


def at(row, column):
    """World point of a pixel: the image has half a unit a pixel."""
    return row / 2, column / 2


def click(person, row, column):
    person.drag([at(row, column)])


def accepted(workspace):
    return workspace.session.accepted_in(workspace.session.correction.layer)


# ------------------------------------------------------------------------------------------------------- on and off


def test_tools_are_on_only_while_somebody_corrects(viewer, found, person):
    layer = viewer.layers["cells objects"]
    names = [la.name for la in viewer.layers]
    keys, mouse = dict(layer.keymap), list(layer.mouse_drag_callbacks)
    person.click(found.correct.toggle)
    assert found.correct.toggle.text() == "Stop correcting"
    assert viewer.layers.selection.active.name == "cells objects"
    assert layer.keymap.keys() > keys.keys()
    assert found.correct.progress_words.text().startswith(f"0 of {len(CELLS)} accepted")
    person.click(found.correct.toggle)
    assert [la.name for la in viewer.layers] == names
    assert layer.keymap.keys() == keys.keys()
    assert not found.correct.next.isVisible()
    assert layer.mouse_drag_callbacks == mouse


def test_without_an_image_the_dock_says_what_to_do(viewer, workspace, image):
    workspace.show_tab("correct")
    assert not workspace.correct.toggle.isVisible()
    assert not workspace.correct.search.button.isEnabled()
    assert "Open an image" in workspace.correct.search.reason.text()
    assert not workspace.correct.new_layer.isEnabled()
    viewer.add_image(image)
    assert workspace.correct.new_layer.isEnabled()


@pytest.mark.usefixtures("seen")
def test_one_button_finds_the_objects_that_are_to_be_corrected(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    dock = workspace.correct
    workspace.show_tab("correct")
    person.wait(dock.search.button.isEnabled)
    person.click(dock.search.button)
    person.wait(lambda: viewer.layers["cells objects"].data.any())
    person.wait(lambda: not workspace.session.segmentation.busy)
    assert workspace.session.options.output == "classes"
    assert viewer.layers["cells objects"].data.max() == len(CELLS)
    person.click(dock.toggle)
    assert not dock.search.isVisible()
    assert dock.progress_words.text().startswith(f"0 of {len(CELLS)} accepted")


def test_where_no_object_is_certain_enough_the_dock_says_what_to_do(viewer, workspace, image, person, seen):
    seen["probabilities"] = 0.4 * answers(CELLS[2]) + np.array([0.3, 0.3, 0])[:, None, None]
    viewer.add_image(image, name="cells")
    dock = workspace.correct
    workspace.show_tab("correct")
    person.wait(dock.search.button.isEnabled)
    person.click(dock.search.button)
    person.wait(lambda: "Least certainty" in workspace.session.segmentation.notice.text)
    assert dock.search.isVisible()
    config = workspace.session.inference_config
    workspace.session.inference_config = config.replace(objects=config.objects.replace(least_certainty=0.6))
    person.click(dock.search.button)
    person.wait(lambda: viewer.layers["cells objects"].data.any())


@pytest.mark.usefixtures("tiny")
def test_the_dock_alone_finds_objects_and_offers_it_again_after_a_failure(viewer, image, person, monkeypatch, seen):
    _, widget = viewer.window.add_plugin_dock_widget("napari-cellbrush", "Correct")
    dock = getattr(widget, "__wrapped__", widget)
    viewer.add_image(image, name="cells")
    person.wait(dock.search.button.isEnabled)
    with monkeypatch.context() as broken:
        broken.setattr(inference, "segment_planes", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        person.click(dock.search.button)
        person.wait(lambda: dock.session.segmentation.notice.kind == "error")
    assert dock.search.isVisible()
    assert dock.search.notice.isVisible()
    person.click(dock.search.button)
    person.wait(lambda: viewer.layers["cells objects"].data.any())


def test_removing_the_layer_ends_the_correcting(viewer, correcting):
    viewer.layers.remove("cells objects")
    assert correcting.correct.toggle.text() == "Correct"
    assert [la.name for la in viewer.layers] == ["cells", "cells classes"]


# ----------------------------------------------------------------------------------------------------------- tools


def test_two_clicks_merge_and_one_undo_parts_again(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    before = layer.data.copy()
    person.key(Qt.Key.Key_M)
    for place in PLACES[:2]:
        click(person, *place)
    first, second = (before[place] for place in PLACES[:2])
    assert first != second
    np.testing.assert_array_equal(layer.data == first, (before == first) | (before == second))
    assert accepted(correcting).ids == {first}
    person.key(Qt.Key.Key_Z, CTRL)
    np.testing.assert_array_equal(layer.data, before)
    assert not accepted(correcting)
    person.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert layer.data[PLACES[1]] == first
    assert accepted(correcting).ids == {first}


def test_after_a_merge_nothing_is_at_hand_and_nothing_outlined(viewer, correcting, person):
    person.key(Qt.Key.Key_M)
    click(person, *PLACES[0])
    assert outlined(viewer)
    click(person, *PLACES[1])
    assert not outlined(viewer)
    assert correcting.session.correction.current == 0


def outlined(viewer):
    return any(layer.visible and len(layer.data) for layer in viewer.layers if isinstance(layer, Shapes))


def test_a_line_splits_and_the_camera_stays(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    before, centre = layer.data.copy(), viewer.scene.camera.center
    person.key(Qt.Key.Key_S)
    person.drag([at(10 + 4 * step, 100) for step in range(11)])
    number = before[30, 100]
    parts = set(np.unique(layer.data[before == number]))
    assert len(parts) == 2
    assert number in parts
    assert max(parts) > before.max()
    assert layer.data[30, 94] != layer.data[30, 106]
    np.testing.assert_array_equal(layer.data > 0, before > 0)
    assert accepted(correcting).ids == parts
    assert viewer.scene.camera.center == centre
    person.key(Qt.Key.Key_Z, CTRL)
    np.testing.assert_array_equal(layer.data, before)


def test_a_line_that_parts_nothing_changes_nothing_and_says_why(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    before = layer.data.copy()
    person.key(Qt.Key.Key_S)
    person.drag([at(10, 100), at(20, 100), at(30, 100)])
    assert "does not part" in correcting.correct.notice.text()
    person.drag([at(60, 100), at(60, 120)])
    assert "crosses no object" in correcting.correct.notice.text()
    np.testing.assert_array_equal(layer.data, before)


def test_delete_and_fill_by_key(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    click(person, *PLACES[3])
    number = layer.data[PLACES[3]]
    assert layer.data[80, 40] == 0
    person.key(Qt.Key.Key_H)
    assert layer.data[80, 40] == number
    person.key(Qt.Key.Key_H)
    assert "no holes" in correcting.correct.notice.text()
    person.key(Qt.Key.Key_D)
    assert not (layer.data == number).any()
    assert number not in accepted(correcting).ids
    np.testing.assert_array_equal(accepted(correcting).empty_at((), (120, 150)), disc(80, 40, 12))
    for _ in range(2):
        person.key(Qt.Key.Key_Z, CTRL)
    assert layer.data[80, 40] == 0
    assert layer.data[PLACES[3]] == number
    assert not accepted(correcting)


def test_a_click_selects_a_drag_moves_the_camera(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    click(person, *PLACES[2])
    assert correcting.session.correction.current == layer.data[PLACES[2]] == layer.selected_label
    click(person, 60, 100)
    assert correcting.session.correction.current == 0
    centre = viewer.scene.camera.center
    person.drag([at(*PLACES[2]), at(40, 90), at(50, 80)])
    assert viewer.scene.camera.center != centre
    assert correcting.session.correction.current == 0


def test_next_goes_through_what_is_not_accepted(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    visited = []
    for _ in CELLS:
        person.key(Qt.Key.Key_N)
        visited.append(correcting.session.correction.current)
        person.key(Qt.Key.Key_A)
    assert visited == sorted({layer.data[place] for place in PLACES})
    assert accepted(correcting).ids == set(visited)
    assert correcting.correct.notice.text().startswith("Object ")
    person.key(Qt.Key.Key_N)
    assert "All objects of this plane are accepted" in correcting.correct.notice.text()
    assert correcting.correct.progress_words.text().startswith(f"{len(CELLS)} of {len(CELLS)} accepted")
    person.key(Qt.Key.Key_A)
    assert len(accepted(correcting).ids) == len(CELLS) - 1
    person.key(Qt.Key.Key_Z, CTRL)
    assert len(accepted(correcting).ids) == len(CELLS)


def test_accept_view_takes_only_what_is_seen_as_a_whole(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    corners = layer.corner_pixels.copy()
    viewer.scene.camera.zoom *= 2
    viewer.scene.camera.center = (0, 15, 15)
    person.wait(lambda: not np.array_equal(layer.corner_pixels, corners))
    QTest.qWait(50)
    person.key(Qt.Key.Key_A, SHIFT)
    assert layer.data[PLACES[0]] in accepted(correcting).ids
    assert layer.data[PLACES[4]] not in accepted(correcting).ids
    top, left = layer.corner_pixels[0]
    bottom, right = layer.corner_pixels[1]
    for number in accepted(correcting).ids:
        rows, columns = np.nonzero(layer.data == number)
        assert top <= rows.min() <= rows.max() <= bottom
        assert left <= columns.min() <= columns.max() <= right
    seen = np.unique(layer.data[top : bottom + 1, left : right + 1])
    n_cut = len(set(seen.tolist()) - {0} - accepted(correcting).ids)
    assert n_cut > 0
    assert f" {n_cut} that the view cuts" in correcting.correct.notice.text()


def test_an_object_that_was_not_found_is_painted_and_accepted(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    before = layer.data.copy()
    person.key(Qt.Key.Key_C)
    person.drag([at(70, column) for column in range(100, 120, 2)])
    number = layer.data[70, 110]
    assert number == before.max() + 1
    assert accepted(correcting).ids == {number}
    person.key(Qt.Key.Key_C)
    person.drag([at(90, column) for column in range(100, 120, 2)])
    assert layer.data[90, 110] == number + 1
    person.key(Qt.Key.Key_Escape)
    assert layer.mode == "pan_zoom"
    click(person, 90, 110)
    assert correcting.session.correction.current == number + 1
    assert correcting.session.correction.n_objects == len(CELLS) + 2
    for _ in range(2):
        person.key(Qt.Key.Key_Z, CTRL)
    np.testing.assert_array_equal(layer.data, before)
    assert not accepted(correcting)


def test_a_new_object_takes_nothing_from_those_beside_it(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    before = layer.data.copy()
    person.key(Qt.Key.Key_C)
    layer.brush_size = 10
    person.drag([at(30, column) for column in range(60, 110, 2)])
    number = layer.data[30, 75]
    assert number == before.max() + 1
    np.testing.assert_array_equal(layer.data[before > 0], before[before > 0])
    assert accepted(correcting).ids == {number}
    # Space, held to move the picture, comes back to the same object.
    layer.mode = "pan_zoom"
    layer.mode = "paint"
    assert layer.preserve_labels
    assert correcting.correct.new_object.isChecked()
    # napari's brush on an object at hand may take from others, as always.
    person.key(Qt.Key.Key_Escape)
    assert not layer.preserve_labels
    layer.mode = "paint"
    assert not layer.preserve_labels


def test_the_lit_button_is_the_one_that_has_the_mouse(viewer, correcting, person):
    dock, layer = correcting.correct, viewer.layers["cells objects"]

    def lit():
        buttons = {**dock.tools, "new": dock.new_object}
        return [name for name, button in buttons.items() if button.isChecked()]

    assert lit() == ["select"]
    person.key(Qt.Key.Key_M)
    assert lit() == ["merge"]
    layer.mode = "erase"
    assert lit() == []
    assert "Esc" in dock.notice.text()
    person.key(Qt.Key.Key_Escape)
    assert lit() == ["select"]
    for _ in range(2):
        person.click(dock.new_object)
        assert lit() == ["new"]
    person.click(dock.tools["split"])
    assert lit() == ["split"]


def test_the_view_stays_where_it_is_if_it_shows_the_next_object_well(viewer, correcting, person):
    camera = viewer.scene.camera
    before = tuple(camera.center), camera.zoom
    person.key(Qt.Key.Key_N)
    assert correcting.session.correction.current
    assert (tuple(camera.center), camera.zoom) == before
    # Out of sight, or too small to be seen.
    camera.center = (0, -500, -500)
    person.key(Qt.Key.Key_N)
    assert np.abs(camera.center[-2:]).max() < 100
    camera.zoom /= 50
    person.key(Qt.Key.Key_N)
    assert camera.zoom > before[1] / 20


def test_a_step_back_is_said_and_offered_only_where_there_is_one(viewer, correcting, person):
    dock = correcting.correct
    assert not dock.undo.isEnabled()
    click(person, *PLACES[2])
    person.key(Qt.Key.Key_A)
    assert dock.undo.isEnabled()
    assert not dock.redo.isEnabled()
    person.key(Qt.Key.Key_Z, CTRL)
    assert dock.notice.text() == "One step back."
    assert (dock.undo.isEnabled(), dock.redo.isEnabled()) == (False, True)
    person.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert dock.notice.text() == "One step forward again."
    person.key(Qt.Key.Key_Z, CTRL)
    person.key(Qt.Key.Key_Z, CTRL)
    assert dock.notice.text() == "There is nothing to undo."
    # With napari's own brush, on what is accepted already.
    layer = viewer.layers["cells objects"]
    number = int(layer.data[PLACES[2]])
    correcting.session.set_accepted(str(layer.unique_id), correcting.session.image.key, Accepted(frozenset({number})))
    assert not dock.undo.isEnabled()
    layer.paint((30, 100), number)
    layer.paint((50, 100), number)
    assert (dock.undo.isEnabled(), dock.redo.isEnabled()) == (True, False)


@pytest.mark.parametrize("n_alike", [2, 10_000])
def test_the_halves_of_an_object_have_different_colours_if_there_are_any(viewer, correcting, monkeypatch, n_alike):
    layer, proofreading = viewer.layers["cells objects"], correcting.annotate.bench.proofreading
    number, first = int(layer.data[PLACES[2]]), int(layer.data.max()) + 1
    monkeypatch.setattr(CyclicLabelColormap, "map", lambda self, of: np.full(4, 0 if of - first >= n_alike else 1))
    proofreading.go_to(number)
    proofreading._split([(10.0, 100.0), (50.0, 100.0)])
    halves = set(np.unique(layer.data[disc(30, 100)]).tolist()) - {0}
    assert halves == {number, first + n_alike if n_alike < 10 else first}


def test_after_a_choice_in_a_list_keys_are_the_pictures(viewer, correcting, person):
    dock = correcting.correct
    window = dock.window()
    dock.layer.setFocus()
    assert window.focusWidget() is dock.layer
    # The arrow keys walk through a closed list.
    QTest.keyClick(dock.layer, Qt.Key.Key_Down)
    dock.layer.activated.emit(0)
    assert window.focusWidget() is dock.layer
    dock.layer.showPopup()
    dock.layer.hidePopup()
    dock.layer.activated.emit(0)
    assert window.focusWidget() is not dock.layer


def test_the_tools_leave_planes_alone_that_are_not_seen(viewer, workspace, image, person, seen):
    viewer.add_image(np.stack([image] * 3), name="stack")
    workspace.session.set_axes(workspace.session.image.key, "ZYX")
    workspace.session.set_options(scope="layer", output="objects")
    segment(workspace, person)
    person.click(workspace.correct.toggle)
    layer, proofreading = viewer.layers["stack objects"], workspace.annotate.bench.proofreading
    before = layer.data.copy()
    proofreading.go_on()
    viewer.dims.ndisplay = 3
    for act in (proofreading.delete, lambda: proofreading.use("split"), lambda: proofreading.use("select")):
        assert "does not show planes" in workspace.correct.notice.text()
        act()
    np.testing.assert_array_equal(layer.data, before)
    assert "does not show planes" in workspace.correct.notice.text()
    viewer.dims.ndisplay = 2
    assert "Click an object" in workspace.correct.notice.text()
    proofreading.go_on()
    proofreading.delete()
    assert (layer.data != before).any()


def test_the_objects_offered_are_those_of_the_image_that_is_worked_on(viewer, found, person, image):
    dock, session = found.correct, found.session
    viewer.add_image(image, name="other")
    assert session.image.name == "other"
    assert dock.layer.currentText() == "cells objects"
    segment(found, person)
    assert dock.layer.currentText() == "other objects"
    session.choose_image(str(viewer.layers["cells"].unique_id))
    assert dock.layer.currentText() == "cells objects"
    choose(dock.layer, str(viewer.layers["other objects"].unique_id))
    assert dock.layer.currentText() == "other objects"
    assert session.image.name == "other"


def test_an_accepted_object_that_is_rubbed_out_is_gone(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    click(person, *PLACES[2])
    person.key(Qt.Key.Key_A)
    layer.brush_size = 60
    layer.mode = "erase"
    click(person, *PLACES[2])
    assert correcting.session.correction.n_objects == len(CELLS) - 1
    assert correcting.session.correction.n_accepted == 0
    assert correcting.session.correction.current == 0


def test_what_naparis_eraser_takes_is_remembered_as_empty(viewer, found, person):
    """Without the tools on, too: nothing that a person did is lost to the next run."""
    layer = viewer.layers["cells objects"]
    viewer.layers.selection.active = layer
    number, before = layer.data[PLACES[2]], layer.data.copy()
    layer.brush_size = 4
    layer.mode = "erase"
    person.drag([at(30, column) for column in range(86, 116, 2)])
    gone = (before > 0) & (layer.data == 0)
    assert gone.any()
    kept = found.session.accepted_in(str(layer.unique_id))
    np.testing.assert_array_equal(kept.empty_at((), layer.data.shape), gone)
    assert kept.ids == {number}
    after = layer.data.copy()
    segment(found, person)
    assert len([la for la in viewer.layers if "objects" in la.name]) == 1
    np.testing.assert_array_equal(viewer.layers["cells objects"].data == number, after == number)
    assert not viewer.layers["cells objects"].data[gone].any()


# ------------------------------------------------------------------------------------------------- later predictions


def test_accepted_objects_stay_whatever_is_predicted_later(viewer, correcting, person, seen, tiny_model):
    from napari_cellbrush.engine.model_file import add_to_library

    layer = viewer.layers["cells objects"]
    click(person, *PLACES[2])
    person.key(Qt.Key.Key_A)
    click(person, *PLACES[4])
    person.key(Qt.Key.Key_D)
    kept = layer.data == layer.data[PLACES[2]]
    number = layer.data[PLACES[2]]
    # The same model elsewhere, another model, another part: what is new lies around.
    seen["probabilities"] = answers(disc(33, 104, 12), disc(70, 100), disc(119, 110))
    add_to_library(tiny_model("other", seed=1), "other")
    correcting.annotate.bench.look_around()
    person.wait(lambda: correcting.session.find_model("other"))
    for model, scope in (("tiny", "layer"), ("other", "layer"), ("tiny", "view"), ("other", "view")):
        correcting.session.choose_model(model)
        correcting.session.set_options(scope=scope)
        segment(correcting, person)
        (name,) = [la.name for la in viewer.layers if la.name.startswith("cells objects") and la.visible]
        ids = viewer.layers[name].data
        np.testing.assert_array_equal(ids == number, kept, err_msg=f"{model} {scope}")
        assert ids[70, 100] not in (0, number)
        assert not ids[112, 110]
        assert len(np.unique(ids)) == 3
        key = str(viewer.layers[name].unique_id)
        assert correcting.session.accepted_in(key).ids == {number}
        assert correcting.session.correction.layer == key


def test_keys_and_mouse_go_to_what_the_tab_in_front_is_for(viewer, correcting, person):
    objects = viewer.layers["cells objects"]
    click(person, *PLACES[2])
    person.key(Qt.Key.Key_A)
    kept = objects.data.copy()
    bench = correcting.annotate.bench
    strokes = bench.annotating.new_annotation(correcting.session.image.key)
    viewer.layers.selection.active = objects
    correcting.show_tab("annotate")
    assert viewer.layers.selection.active.name == "cells annotation"
    person.key(Qt.Key.Key_1)
    person.drag([at(*PLACES[2]), at(PLACES[2][0], PLACES[2][1] + 10)])
    assert (strokes.data == 1).any()
    np.testing.assert_array_equal(objects.data, kept)
    correcting.show_tab("correct")
    assert viewer.layers.selection.active.name == "cells objects"
    # Whatever else is chosen, by hand in the list of layers, stays chosen.
    viewer.layers.selection.active = viewer.layers["cells"]
    correcting.show_tab("segment")
    correcting.show_tab("annotate")
    assert viewer.layers.selection.active.name == "cells"


def test_a_run_that_makes_a_new_layer_leaves_the_brush_to_who_paints(viewer, correcting, person, seen):
    click(person, *PLACES[2])
    person.key(Qt.Key.Key_A)
    bench = correcting.annotate.bench
    strokes = bench.annotating.new_annotation(correcting.session.image.key)
    correcting.show_tab("annotate")
    correcting.session.set_options(keep_earlier=True)
    bench.segmenting.start()
    person.wait(lambda: not correcting.session.segmentation.busy)
    new = viewer.layers["cells objects [1]"]
    person.wait(lambda: correcting.session.correction.layer == str(new.unique_id))
    assert viewer.layers.selection.active.name == "cells annotation"
    assert strokes.mode == "paint"
    # Who was correcting goes on correcting.
    correcting.show_tab("correct")
    assert viewer.layers.selection.active.name == new.name
    bench.segmenting.start()
    person.wait(lambda: not correcting.session.segmentation.busy)
    newest = viewer.layers["cells objects [2]"]
    person.wait(lambda: viewer.layers.selection.active.name == newest.name)


def test_what_is_accepted_during_a_run_stays_too(viewer, correcting, person, seen, monkeypatch):
    layer = viewer.layers["cells objects"]
    click(person, *PLACES[2])
    number, kept = layer.data[PLACES[2]], layer.data == layer.data[PLACES[2]]
    seen["probabilities"] = answers(disc(70, 100))
    show = correcting.annotate.bench.segmenting._show_objects

    def accept_first(sheet, event):
        correcting.annotate.bench.proofreading.accept()
        show(sheet, event)

    monkeypatch.setattr(correcting.annotate.bench.segmenting, "_show_objects", accept_first)
    segment(correcting, person)
    np.testing.assert_array_equal(viewer.layers["cells objects"].data == number, kept)
    assert viewer.layers["cells objects"].data[70, 100]


def test_both_objects_to_merge_are_clicked_whichever_was_at_hand(viewer, correcting, person):
    layer = viewer.layers["cells objects"]
    before = layer.data.copy()
    click(person, *PLACES[3])
    assert correcting.session.correction.current
    person.key(Qt.Key.Key_M)
    click(person, *PLACES[0])
    np.testing.assert_array_equal(layer.data, before)
    click(person, *PLACES[1])
    assert layer.data[PLACES[1]] == layer.data[PLACES[0]] == before[PLACES[0]]
    assert layer.data[PLACES[3]] == before[PLACES[3]]


def test_undo_does_not_reach_behind_a_new_prediction(viewer, correcting, person, seen):
    layer = viewer.layers["cells objects"]
    person.key(Qt.Key.Key_M)
    for place in PLACES[:2]:
        click(person, *place)
    segment(correcting, person)
    after = layer.data.copy()
    person.key(Qt.Key.Key_Z, CTRL)
    np.testing.assert_array_equal(layer.data, after)


# --------------------------------------------------------------------------------------------------------- teaching


def test_accepted_objects_teach_and_strokes_win(viewer, correcting, person, monkeypatch):
    tasks = []

    def spy(task, stop):
        tasks.append(task)
        yield from ()

    monkeypatch.setattr(runs, "fine_tune", spy)
    assert "annotation" in correcting.session.why_not_train()
    layer = viewer.layers["cells objects"]
    click(person, *PLACES[2])
    person.key(Qt.Key.Key_A)
    click(person, *PLACES[0])
    person.key(Qt.Key.Key_D)
    kept = layer.data == layer.data[PLACES[2]]
    assert not correcting.session.why_not_train()
    strokes = correcting.annotate.bench.annotating.new_annotation(correcting.session.image.key)
    strokes.data[28:32, 90:110] = 1
    strokes.refresh()
    correcting.annotate.bench.fine_tuning.start()
    person.wait(lambda: tasks and not correcting.session.training.busy)
    (taught,) = tasks[0].taught()
    assert (taught[28:32, 90:110] == 1).all()
    elsewhere = strokes.data == 0
    assert set(np.unique(taught[kept & elsewhere])) == {2, 3}
    assert taught[30, 113] == 1
    assert not taught[PLACES[3]]
    assert (taught[disc(30, 30, 8) & (layer.data == 0)] == 1).all()


def test_objects_painted_from_scratch_are_an_annotation(viewer, workspace, image, person, seen):
    viewer.add_image(image, name="cells", scale=(0.5, 0.5))
    workspace.show_tab("correct")
    person.click(workspace.correct.new_layer)
    QTest.qWait(20)
    for row in (30, 70):
        person.drag([at(row, column) for column in range(40, 60, 2)])
        person.key(Qt.Key.Key_C)
    layer = viewer.layers["cells objects"]
    assert sorted(np.unique(layer.data)) == [0, 1, 2]
    assert not workspace.session.why_not_train()
    (checked,) = workspace.annotate.bench.proofreading.checked(workspace.session.image.key)
    assert checked.accepted == Accepted(frozenset({1, 2}))
    # What a model finds later comes around them, in the same layer.
    painted = layer.data.copy()
    workspace.session.set_options(scope="layer", output="objects")
    seen["probabilities"] = answers(*CELLS[2:])
    segment(workspace, person)
    (found,) = [la for la in viewer.layers if "objects" in la.name]
    np.testing.assert_array_equal(found.data[painted > 0], painted[painted > 0])
    assert found.data[PLACES[2]]


# ------------------------------------------------------------------------------------------------ stacks and strangers


def test_masks_from_elsewhere_teach_about_the_image_of_their_name_or_that_is_said(viewer, workspace, image, person):
    for name in ("012", "000"):
        viewer.add_image(image if name == "012" else image + 1, name=name)
    viewer.add_image(image[:50], name="smaller")
    ids = np.zeros(image.shape, np.int32)
    ids[10:20, 10:20], ids[40:60, 50:70] = 1, 2
    for name in ("012 masks", "000 masks", "of some image"):
        viewer.add_labels(ids.copy(), name=name)
    session, dock = workspace.session, workspace.correct
    key_of = {entry.name: entry.key for entry in session.images}
    masks = {mask.name: mask.key for mask in session.masks}
    session.choose_image(key_of["000"])
    workspace.show_tab("correct")
    for name, of in (("012 masks", "012"), ("000 masks", "000"), ("of some image", "000")):
        choose(dock.layer, masks[name])
        assert [dock.image.itemText(row) for row in range(dock.image.count())].count("smaller") == 0
        assert dock.image.currentText() == of
        person.click(dock.toggle)
        person.click(dock.accept_all)
        person.click(dock.toggle)
    assert [len(session.accepted_of(key_of[name])) for name in ("012", "000")] == [1, 2]
    assert dock.image.isEnabled()
    choose(dock.image, key_of["012"])
    assert [len(session.accepted_of(key_of[name])) for name in ("012", "000")] == [2, 1]
    assert "4 objects on '012'" in session.taught_in_words()
    # It stays so, whatever image is worked on.
    session.choose_image(key_of["000"])
    choose(dock.layer, masks["of some image"])
    assert dock.image.currentText() == "012"
    person.click(dock.toggle)
    assert "2 of 2 accepted" in dock.progress_words.text()


def choose(box, key):
    box.setCurrentIndex(box.findData(key))
    box.chosen.emit(key)


@pytest.mark.parametrize(("axes", "order"), [("ZYX", (0, 1, 2)), ("TYX", (0, 2, 1)), ("CYXZ", (3, 0, 2, 1))])
def test_planes_of_stacks_are_corrected_one_by_one(viewer, workspace, person, seen, axes, order):
    sizes = {"Z": 5, "T": 5, "Y": 120, "X": 150, "C": 2}
    data = np.random.default_rng(0).random([sizes[letter] for letter in axes]).astype(np.float32)
    viewer.add_image(data, name="stack")
    workspace.session.set_axes(workspace.session.image.key, axes)
    workspace.session.set_options(scope="layer", output="objects")
    segment(workspace, person)
    person.click(workspace.correct.toggle)
    assert workspace.correct.accept_all.text() == "All planes"
    layer = viewer.layers["stack objects"]
    stack_axis = next(i for i, letter in enumerate(axes) if letter in "TZ")
    viewer.dims.order = order
    viewer.dims.set_current_step(stack_axis, 1)
    viewer.reset_view()
    QTest.qWait(50)
    ids = np.moveaxis(layer.data, [workspace_axes(layer).index(letter) for letter in
                                   (axes[stack_axis], "Y", "X")], [0, 1, 2]).reshape(5, 120, 150)
    others = ids[[0, 2, 3, 4]].copy()
    number = ids[1, 30, 100]
    person.drag([tuple({"Y": 30.0, "X": 100.0}[axes[i]] for i in order[-2:])])
    assert workspace.session.correction.current == number
    person.key(Qt.Key.Key_D)
    assert not (ids[1] == number).any()
    np.testing.assert_array_equal(ids[[0, 2, 3, 4]], others)
    assert all(run[0] == 1 for run in accepted(workspace).emptied)
    person.key(Qt.Key.Key_Z, CTRL)
    assert (ids[1] == number).any()


@pytest.mark.parametrize(("axes", "shape"), [("ZYX", (3, 120, 150)), ("YXZ", (120, 150, 5)), ("TZYX", (2, 3, 120, 150)),
                                             ("TYX", (3, 120, 150))])
def test_objects_of_planes_are_joined_through_depth_in_a_layer_of_their_own(viewer, workspace, person, seen, axes,
                                                                             shape):
    viewer.add_image(np.random.default_rng(0).random(shape).astype(np.float32), name="stack")
    session, dock = workspace.session, workspace.correct
    session.set_axes(session.image.key, axes)
    session.set_options(scope="layer", output="objects")
    segment(workspace, person)
    joinable = "plane by plane; Correct joins them" in session.segmentation.notice.text
    assert joinable == dock.join.isVisible() == ("Z" in axes)
    if not joinable:
        return
    before = viewer.layers["stack objects"].data.copy()
    n_planes = np.prod([n for n, letter in zip(shape, axes, strict=True) if letter in "TZ"])
    person.click(dock.toggle)
    person.click(dock.join)
    assert not session.correction.layer
    assert not dock.toggle.isEnabled()
    person.wait(dock.join.isEnabled)
    joined, depth = viewer.layers["stack objects joined"], axes.index("Z")
    n_bodies = len(CELLS) * n_planes // shape[depth]
    assert dock.notice.text().startswith(f"{len(CELLS) * n_planes} objects of planes are {n_bodies} bodies now, in a")
    assert joined.visible
    assert not viewer.layers["stack objects"].visible
    assert set(np.unique(joined.data)) == set(range(n_bodies + 1))
    np.testing.assert_array_equal(joined.data > 0, before > 0)
    np.testing.assert_array_equal(joined.data.take(0, depth), joined.data.take(-1, depth))
    np.testing.assert_array_equal(viewer.layers["stack objects"].data, before)
    # Corrections are of planes; files are of bodies.
    assert [dock.layer.itemText(row) for row in range(dock.layer.count())] == ["stack objects"]
    workspace.show_tab("export")
    assert workspace.export.layer.currentText() == "stack objects joined"
    workspace.show_tab("correct")

    # Joined anew, there is one layer of bodies; one that somebody has painted on stays, out of sight.
    person.click(dock.join)
    person.wait(dock.join.isEnabled)
    assert len(bodies(viewer)) == 1
    assert viewer.layers["stack objects joined"].unique_id != joined.unique_id
    viewer.layers["stack objects joined"].paint((0,) * len(axes), 7)
    person.click(dock.join)
    person.wait(dock.join.isEnabled)
    assert sorted(layer.visible for layer in bodies(viewer)) == [False, True]

    # A new segmentation is shown alone.
    segment(workspace, person)
    assert [layer.name for layer in viewer.layers if layer.visible and "objects" in layer.name] == ["stack objects"]


def test_bodies_on_one_plane_alone_are_counted(viewer, workspace, person, image):
    viewer.add_image(np.stack([image] * 3), name="stack")
    workspace.session.set_axes(workspace.session.image.key, "ZYX")
    ids = np.zeros((3, 120, 150), np.uint16)
    ids[:, disc(30, 30)], ids[1, disc(80, 100)] = [[1], [2], [3]], 9
    viewer.add_labels(ids, name="stack masks")
    workspace.show_tab("correct")
    person.click(workspace.correct.join)
    person.wait(workspace.correct.join.isEnabled)
    assert "4 objects of planes are 2 bodies now (1 of them on one plane alone)" in workspace.correct.notice.text()
    # However few they are, they are objects for who makes strokes of them.
    joined = viewer.layers["stack masks joined"]
    assert workspace.annotate.bench.annotating.likely_kind(str(joined.unique_id)) == "objects"


def test_what_is_found_anew_while_objects_are_joined_is_not_hidden_by_earlier_bodies(viewer, workspace, person, image,
                                                                                      monkeypatch):
    go_on = threading.Event()

    def join(ids, stack_axes, stop):
        yield
        go_on.wait(20)
        return runs.Joined(ids, 1, 1, 0)

    monkeypatch.setattr(runs, "join", join)
    viewer.add_image(np.stack([image] * 3), name="stack")
    workspace.session.set_axes(workspace.session.image.key, "ZYX")
    bench = workspace.annotate.bench
    layer = bench.segmenting.results.objects_layer(workspace.session.image)
    workspace.show_tab("correct")
    person.click(workspace.correct.join)
    bench.segmenting.write_objects(layer, np.ones((3, 120, 150), np.uint16), Accepted())
    go_on.set()
    person.wait(workspace.correct.join.isEnabled)
    assert "Nothing was joined: objects were found anew" in workspace.correct.notice.text()
    assert "stack objects joined" not in viewer.layers
    assert layer.visible


def bodies(viewer):
    return [layer for layer in viewer.layers if layer.name.startswith("stack objects joined")]


def workspace_axes(layer):
    return layer.metadata["cellbrush"]["axes"]


def test_objects_from_elsewhere_are_corrected_and_teach(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    ids = np.zeros(image.shape, np.int32)
    ids[disc(30, 30)], ids[disc(30, 100) | disc(80, 40, 5)] = 7, 90_000
    viewer.add_labels(ids, name="from elsewhere")
    workspace.show_tab("correct")
    person.click(workspace.correct.toggle)
    viewer.reset_view()
    QTest.qWait(50)
    person.click(workspace.correct.accept_all)
    assert accepted(workspace).ids == {7, 90_000}
    (checked,) = workspace.annotate.bench.proofreading.checked(workspace.session.image.key)
    np.testing.assert_array_equal(checked.ids, ids)


@pytest.mark.parametrize(("data", "sentence"), [
    (np.full((120, 150), -3, np.int16), "holds the id -3"),
])
def test_labels_that_are_no_objects_are_refused_in_words(viewer, workspace, image, person, data, sentence):
    viewer.add_image(image, name="cells")
    viewer.add_labels(data, name="strange")
    workspace.show_tab("correct")
    person.click(workspace.correct.toggle)
    assert sentence in workspace.correct.notice.text()
    assert workspace.correct.toggle.text() == "Correct"


# ------------------------------------------------------------------------------------------------------------ table


def test_a_click_on_a_row_goes_to_the_object_and_a_click_on_an_object_to_its_row(viewer, correcting, person):
    layer, table = viewer.layers["cells objects"], correcting.correct.table
    correcting.correct.fold.expand(animate=False)
    person.wait(lambda: len(table.ids()) == len(CELLS))
    table.sortByColumn(1, Qt.SortOrder.AscendingOrder)
    sizes = [np.count_nonzero(layer.data == number) for number in table.ids()]
    assert sizes == sorted(sizes)
    place = table.visualRect(table.model().index(0, 0)).center()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
    number = table.ids()[0]
    assert correcting.session.correction.current == number
    rows, columns = np.nonzero(layer.data == number)
    np.testing.assert_allclose(viewer.scene.camera.center[1:], (rows.mean() / 2, columns.mean() / 2), atol=1)
    QTest.qWait(50)
    click(person, *PLACES[4])
    person.wait(lambda: table.ids()[table.currentIndex().row()] == layer.data[PLACES[4]])
    centre = viewer.scene.camera.center
    table.setFocus()
    QTest.keyClick(table, Qt.Key.Key_D)
    person.wait(lambda: len(table.ids()) == len(CELLS) - 1)
    assert viewer.scene.camera.center == centre


def test_the_table_shows_what_was_measured(viewer, correcting, person):
    layer, table = viewer.layers["cells objects"], correcting.correct.table
    ids = np.unique(layer.data)[1:]
    layer.features = {"index": ids, "area [µm²]": ids * 1.5}
    correcting.correct.fold.expand(animate=False)
    person.wait(lambda: table.model().columnCount() == 4)
    assert table.model().headerData(3, Qt.Orientation.Horizontal) == "area [µm²]"
    assert table.model().index(0, 3).data() == "1.5"
