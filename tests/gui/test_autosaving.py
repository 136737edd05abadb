"""Strokes are saved beside the window and found again when their image is opened."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtCore import Qt

from napari_cellbrush.config import AutosaveConfig
from napari_cellbrush.engine import session_folder
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.axes import PixelSize
from napari_cellbrush.engine.session_folder import SessionWriter, read_card, read_labels
from napari_cellbrush.engine.session_folders import list_sessions
from napari_cellbrush.errors import SessionFileError
from napari_cellbrush.napari_ui import autosaving
from napari_cellbrush.napari_ui.workbench import workbench_for
from napari_cellbrush.session import Session


@pytest.fixture
def painted(viewer, workspace, image, person):
    """An image with an annotation that a person is painting; nothing is saved unless a test says so."""
    viewer.add_image(image, name="cells")
    bench = workspace.annotate.bench
    layer = bench.annotating.new_annotation(workspace.session.image.key)
    bench.autosaving._timer.stop()
    person.wait(lambda: workspace.session.image.key in bench.session.keeping.found)
    stroke(layer, 20, 1)
    return SimpleNamespace(bench=bench, session=bench.session, layer=layer, dock=workspace.annotate, person=person)


def stroke(layer, row, value):
    layer.selected_label = value
    layer.paint((row, 30), value)


def save(bench, person):
    bench.autosaving.save()
    person.wait(lambda: not bench.autosaving.is_saving)


def on_disk(number=0):
    session = list_sessions()[0][number]
    return read_labels(session.path, session.card, "strokes", shape=session.card.labels["strokes"].shape)


def take_up(painted, image_key):
    keeping = painted.session.keeping
    painted.bench.autosaving.restore(keeping.found[image_key][0], image_key)


def reopen(viewer, bench, image, person, name="cells"):
    """Close the image and open it once more, as the next start of the program would."""
    viewer.layers.clear()
    viewer.add_image(image, name=name)
    person.wait(lambda: bench.session.image is not None and bench.session.image.key in bench.session.keeping.found)


def test_what_is_painted_undone_and_redone_is_what_is_saved(painted, person):
    layer = painted.layer
    save(painted.bench, person)
    assert np.array_equal(on_disk(), layer.data)
    stroke(layer, 60, 2)
    save(painted.bench, person)
    assert np.array_equal(on_disk(), layer.data)
    layer.undo()
    assert not (layer.data == 2).any()
    save(painted.bench, person)
    assert np.array_equal(on_disk(), layer.data)
    layer.redo()
    save(painted.bench, person)
    assert (on_disk() == 2).any()
    layer.data[90:100, 90:100] = 3
    layer.refresh()
    save(painted.bench, person)
    assert np.array_equal(on_disk(), layer.data)


def test_a_stroke_of_the_mouse_is_saved_by_the_timer(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    bench = workspace.annotate.bench
    layer = bench.annotating.new_annotation(bench.session.image.key)
    bench.autosaving._timer.start(50)
    person.drag([(30, 30), (30, 60), (50, 60)])
    assert layer.data.any()
    person.wait(lambda: "Strokes saved at" in workspace.annotate.saved.text())
    assert np.array_equal(on_disk(), layer.data)


def test_strokes_are_offered_for_an_image_that_was_open_before_the_plugin(painted, viewer, image, person,
                                                                          make_napari_viewer_proxy):
    save(painted.bench, person)
    viewer.layers.clear()
    later = make_napari_viewer_proxy(show=False)
    later.add_image(image, name="cells")
    bench = workbench_for(later)
    person.wait(lambda: bench.session.keeping.found.get(bench.session.image.key))


def test_nothing_is_written_for_an_annotation_without_a_stroke(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    bench = workspace.annotate.bench
    bench.annotating.new_annotation(bench.session.image.key)
    save(bench, person)
    assert list_sessions() == ([], [])


def test_only_what_changed_is_looked_at_after_a_stroke_and_moving_through_a_stack_changes_nothing(qapp):
    # Without a canvas: napari's refreshes the whole layer at strokes before its first frame.
    viewer = ViewerModel()
    layer = viewer.add_labels(np.zeros((4, 60, 50), np.uint8), metadata={"cellbrush": {"axes": "ZYX"}})
    watch = autosaving.LayerWatch(layer, autosaving.Keeper(layer.data, "ZYX", "stack", ""), viewer)
    work = autosaving.Work.of(Session(), Accepted(), None)
    assert watch.take(work).boxes is None
    layer.paint((2, 10, 12), 1)
    boxes = watch.take(work).boxes
    assert boxes
    assert all(box[0] == slice(2, 3) for box in boxes)
    for step in (0, 3, 1):
        viewer.dims.set_current_step(0, step)
    assert watch.take(work) is None
    layer.undo()
    assert watch.take(work).boxes is None


def test_settings_and_classes_are_saved_with_the_strokes(painted, person):
    save(painted.bench, person)
    painted.session.add_class()
    painted.session.training_config = painted.session.training_config.replace(seed=77)
    save(painted.bench, person)
    card = list_sessions()[0][0].card
    assert card.settings["training"]["seed"] == 77
    assert card.classes == painted.session.classes


def test_an_annotation_that_is_deleted_is_saved_for_the_last_time_and_offered_again(viewer, painted, image, person):
    strokes = painted.layer.data.copy()
    reopen(viewer, painted.bench, image, person)
    person.wait(lambda: list_sessions()[0])
    assert np.array_equal(on_disk(), strokes)


def test_saved_strokes_are_offered_and_restored(viewer, painted, image, person):
    painted.session.change_class(1, name="neuron")
    painted.session.set_brush(9)
    painted.session.training_config = painted.session.training_config.replace(seed=5)
    save(painted.bench, person)
    strokes = painted.layer.data.copy()
    reopen(viewer, painted.bench, image, person, name="renamed")
    painted.session.change_class(1, name="cell")
    painted.session.set_brush(3)
    painted.session.training_config = painted.session.training_config.replace(seed=0)
    dock = painted.dock
    assert dock.recovery.isVisibleTo(dock)
    assert "Strokes of" in dock.recovery.text.text()
    assert "on 'cells' found" in dock.recovery.text.text()
    person.click(dock.recovery.restore)
    person.wait(lambda: painted.session.annotations)
    layer = painted.bench.annotating.layer_of(painted.session.image.key)
    assert np.array_equal(layer.data, strokes)
    assert painted.session.classes[1].name == "neuron"
    assert painted.session.brush_px == 9
    assert painted.session.training_config.seed == 5
    assert not dock.recovery.isVisibleTo(dock)


def test_what_corrects_an_answer_is_known_after_a_restart(viewer, painted, image, person):
    save(painted.bench, person)
    annotating, key = painted.bench.annotating, painted.session.image.key
    before = painted.layer.data > 0
    annotating.note_answered(key)
    save(painted.bench, person)
    stroke(painted.layer, 90, 2)
    annotating.note_answered(key)  # the second answer makes no stroke an earlier one
    save(painted.bench, person)
    reopen(viewer, painted.bench, image, person)
    person.click(painted.dock.recovery.restore)
    person.wait(lambda: painted.session.annotations)
    restored = painted.session.image.key
    assert np.array_equal(annotating.unseen_in(painted.session.annotation_of(restored)), before)
    stroke(annotating.layer_of(restored), 60, 1)
    save(painted.bench, person)
    assert len(list_sessions()[0]) == 2
    for session in list_sessions()[0]:
        kept = read_labels(session.path, session.card, "unseen", shape=before.shape)
        assert np.array_equal(kept > 0, before)


def test_strokes_are_restored_where_only_what_was_painted_before_an_answer_is_damaged(viewer, painted, image, person):
    painted.bench.annotating.note_answered(painted.session.image.key)
    stroke(painted.layer, 90, 2)
    save(painted.bench, person)
    strokes = painted.layer.data.copy()
    session = list_sessions()[0][0]
    for name in session.card.labels["unseen"].chunks.values():
        (session.path / session_folder.CHUNKS_NAME / name).write_bytes(b"broken")
    reopen(viewer, painted.bench, image, person)
    take_up(painted, painted.session.image.key)
    person.wait(lambda: painted.session.annotations)
    layer = painted.bench.annotating.layer_of(painted.session.image.key)
    assert np.array_equal(layer.data, strokes)
    assert painted.bench.annotating.unseen_in(str(layer.unique_id)) is None
    assert "All strokes count the same" in painted.dock.saved.text()


def test_discarded_strokes_are_not_offered_again_but_stay_on_the_disk(viewer, painted, image, person):
    save(painted.bench, person)
    reopen(viewer, painted.bench, image, person)
    person.click(painted.dock.recovery.discard)
    assert not painted.dock.recovery.isVisibleTo(painted.dock)
    reopen(viewer, painted.bench, image, person)
    assert not painted.dock.recovery.isVisibleTo(painted.dock)
    assert len(list_sessions()[0]) == 1


def test_painting_anew_does_not_touch_what_was_saved_before(viewer, painted, image, person):
    save(painted.bench, person)
    before = on_disk()
    reopen(viewer, painted.bench, image, person)
    layer = painted.bench.annotating.new_annotation(painted.session.image.key)
    stroke(layer, 90, 3)
    save(painted.bench, person)
    saved = [on_disk(0), on_disk(1)]
    assert any(np.array_equal(one, before) for one in saved)
    assert any(np.array_equal(one, layer.data) for one in saved)


def test_restoring_over_strokes_hides_them_and_keeps_them(viewer, painted, image, person):
    save(painted.bench, person)
    reopen(viewer, painted.bench, image, person)
    mine = painted.bench.annotating.new_annotation(painted.session.image.key)
    stroke(mine, 90, 3)
    take_up(painted, painted.session.image.key)
    person.wait(lambda: painted.bench.annotating.layer_of(painted.session.image.key) is not mine)
    assert mine in viewer.layers
    assert not mine.visible
    person.wait(lambda: len(list_sessions()[0]) == 2)


def test_strokes_of_other_classes_are_not_mixed_with_those_of_another_image(viewer, painted, image, person):
    painted.session.change_class(1, name="neuron")
    save(painted.bench, person)
    reopen(viewer, painted.bench, image, person)
    painted.session.change_class(1, name="cell")
    viewer.add_image(image[:50], name="other")
    other = painted.bench.annotating.new_annotation(painted.session.images[0].key)
    stroke(other, 20, 2)
    person.wait(lambda: any(painted.session.painted))
    first = painted.session.images[1].key
    take_up(painted, first)
    person.wait(lambda: not painted.session.keeping.restoring)
    assert "window of its own" in painted.session.keeping.notice.text
    assert painted.session.annotation_of(first) is None
    assert painted.session.classes[1].name == "cell"


@pytest.mark.parametrize(("written", "said"), [("0.65", PixelSize(0.65, 0.65, None, "µm")),
                                               ("2 x 0.123456789 x 0.5", PixelSize(0.123456789, 0.5, None, "µm"))])
def test_a_pixel_size_that_was_said_is_known_after_a_restart(viewer, painted, image, person, written, said):
    save(painted.bench, person)
    # A moment after the last stroke.
    exporting = painted.bench.exporting
    exporting.say_pixel_size(painted.session.masks[0], PixelSize.read(written))
    save(painted.bench, person)
    reopen(viewer, painted.bench, image, person)
    take_up(painted, painted.session.image.key)
    person.wait(lambda: painted.session.annotations)
    assert exporting.pixel_size(painted.session.masks[0], "YX") == said


def test_a_pixel_size_that_was_said_since_counts_more_than_a_saved_one(viewer, painted, image, person):
    exporting = painted.bench.exporting
    exporting.say_pixel_size(painted.session.masks[0], PixelSize.read("0.65"))
    save(painted.bench, person)
    reopen(viewer, painted.bench, image, person)
    viewer.add_labels(np.ones(image.shape, int), name="cells objects")
    exporting.say_pixel_size(painted.session.masks[0], PixelSize.read("0.3"))
    take_up(painted, painted.session.image.key)
    person.wait(lambda: painted.session.annotations)
    assert [exporting.pixel_size(mask, "YX").y for mask in painted.session.masks] == [0.3, 0.3]


@pytest.fixture
def restore_with(viewer, painted, image, person):
    """Save, let a function change the settings on the card, and restore that; the strokes that were saved."""
    def restore(change):
        save(painted.bench, person)
        session = list_sessions()[0][0]
        (session.path / session_folder.CARD_NAME).write_text(
            session.card.replace(settings=change(session.card.settings)).model_dump_json())
        strokes = on_disk()
        reopen(viewer, painted.bench, image, person)
        take_up(painted, painted.session.image.key)
        person.wait(lambda: painted.session.annotations)
        return strokes
    return restore


@pytest.mark.parametrize("saved", [None, -1, "wide", [0.5], {"y": 0.5}])
def test_a_saved_pixel_size_that_is_none_does_not_cost_the_strokes(painted, restore_with, saved):
    strokes = restore_with(lambda settings: {**settings, "export": {"pixel_size_um": saved}})
    assert np.array_equal(painted.bench.annotating.layer_of(painted.session.image.key).data, strokes)
    assert ("The saved pixel size is not used" in painted.session.keeping.notice.text) == (saved is not None)
    assert not painted.bench.exporting.pixel_size(painted.session.masks[0], "YX").is_known


def test_settings_that_this_version_does_not_know_do_not_cost_the_strokes(painted, restore_with):
    strokes = restore_with(lambda _: {"training": {"from the future": 1}})
    assert np.array_equal(painted.bench.annotating.layer_of(painted.session.image.key).data, strokes)
    assert "from the future" in painted.session.keeping.notice.text


def test_settings_that_an_earlier_version_had_do_not_cost_the_others(painted, restore_with):
    painted.session.training_config = painted.session.training_config.replace(seed=77)
    restore_with(lambda settings: {"training": {**settings["training"], "patch_size_px": 252}})
    assert painted.session.training_config.seed == 77


def test_a_damaged_session_is_said_in_words_and_nothing_changes(viewer, painted, image, person):
    save(painted.bench, person)
    session = list_sessions()[0][0]
    for chunk in (session.path / session_folder.CHUNKS_NAME).iterdir():
        chunk.write_bytes(b"broken")
    reopen(viewer, painted.bench, image, person)
    take_up(painted, painted.session.image.key)
    person.wait(lambda: not painted.session.keeping.restoring)
    assert "damaged" in painted.dock.saved.text()
    assert painted.session.annotations == {}


def test_switched_off_it_writes_nothing_and_says_so_nowhere(painted, person, monkeypatch):
    monkeypatch.setattr(autosaving, "autosave_settings", lambda: AutosaveConfig(enabled=False))
    painted.bench.autosaving.save()
    painted.bench.autosaving.close()
    person.wait(lambda: True)
    assert list_sessions() == ([], [])


def test_napari_preferences_switch_it_off(painted):
    from napari.settings import get_plugin_settings

    settings = get_plugin_settings("napari-cellbrush").autosave
    assert autosaving.autosave_settings() == AutosaveConfig()
    try:
        settings.enabled = False
        assert not autosaving.autosave_settings().enabled
    finally:
        settings.enabled = True


def test_leaving_the_window_saves_at_once(painted, person):
    painted.bench.autosaving._on_application_state(Qt.ApplicationState.ApplicationInactive)
    person.wait(lambda: list_sessions()[0])
    assert np.array_equal(on_disk(), painted.layer.data)


def test_what_is_painted_while_a_save_is_under_way_is_saved_after_it(painted, person, monkeypatch):
    """Leaving the window in that moment must not leave the stroke to the timer."""
    may_write = threading.Event()
    write = SessionWriter.save

    def wait(*arguments):
        may_write.wait(5)
        return write(*arguments)

    monkeypatch.setattr(SessionWriter, "save", wait)
    painted.bench.autosaving.save()
    stroke(painted.layer, 60, 2)
    painted.bench.autosaving.save()
    assert painted.bench.autosaving.is_saving
    may_write.set()
    person.wait(lambda: not painted.bench.autosaving.is_saving)
    assert np.array_equal(on_disk(), painted.layer.data)


def test_a_save_that_fails_is_told_and_tried_again(painted, person, monkeypatch):
    def full(*_):
        raise SessionFileError("The disk is full", "Free some space")

    with monkeypatch.context() as patch:
        patch.setattr(SessionWriter, "save", full)
        save(painted.bench, person)
    assert "The disk is full" in painted.dock.saved.text()
    save(painted.bench, person)
    assert np.array_equal(on_disk(), painted.layer.data)
    assert "saved at" in painted.dock.saved.text()


def test_an_unexpected_error_is_told_too(painted, person, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(SessionWriter, "save", fail)
    save(painted.bench, person)
    assert "ZeroDivisionError" in painted.dock.saved.text()


def test_the_window_only_names_places_and_the_thread_does_the_rest(painted, person, monkeypatch):
    """However large the layer: what the window does beside painting does not grow with it."""
    threads = []
    kept = SessionWriter.save

    def spy(self, *arguments):
        threads.append(threading.current_thread())
        return kept(self, *arguments)

    monkeypatch.setattr(SessionWriter, "save", spy)
    save(painted.bench, person)
    assert threads
    assert threading.main_thread() not in threads


def test_a_huge_layer_costs_the_window_less_than_fifty_milliseconds(make_napari_viewer, person, tmp_path):
    viewer = make_napari_viewer()
    viewer.add_image(np.zeros((8192, 8192), np.uint8), name="huge")
    bench = workbench_for(viewer)
    layer = bench.annotating.new_annotation(bench.session.image.key)
    layer.brush_size = 40
    layer.paint((4000, 4000), 1)
    save(bench, person)
    seconds = []
    for number in range(5):
        layer.paint((1000 * number + 500, 700), 2)
        began = time.process_time(), time.thread_time()
        bench.autosaving.save()
        seconds.append(time.thread_time() - began[1])
        person.wait(lambda: not bench.autosaving.is_saving)
    assert np.median(seconds) < 0.05
    assert np.array_equal(on_disk(), layer.data)


def test_corrected_objects_are_saved_and_restored_with_what_was_accepted(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    bench, session = workspace.annotate.bench, workspace.session
    key = session.image.key
    layer = bench.segmenting.results.objects_layer(session.image)
    layer.data[10:20, 10:20], layer.data[40:60, 40:60] = 300, 2
    layer.refresh()
    accepted = Accepted(frozenset({300}), frozenset({(50, 3, 9)}))
    bench.exporting.say_pixel_size(session.masks[0], PixelSize(0.5, 0.5, None, "µm"))
    session.set_accepted(str(layer.unique_id), key, accepted)
    ids = layer.data.copy()
    reopen(viewer, bench, image, person)
    person.wait(lambda: list_sessions()[0])
    assert list_sessions()[0][0].kind == "objects"
    reopen(viewer, bench, image, person)
    assert "Corrected objects of" in workspace.annotate.recovery.text.text()
    # Corrected anew before that was seen.
    newer = bench.segmenting.results.objects_layer(session.image)
    session.set_accepted(str(newer.unique_id), session.image.key, Accepted(frozenset({5})))
    workspace.show_tab("correct")
    bench.proofreading.start(str(newer.unique_id))
    person.click(workspace.correct.recovery.restore)
    person.wait(lambda: len(session.accepted_of(session.image.key)) == 2)
    assert session.accepted_of(session.image.key).pop(str(newer.unique_id)).ids == {5}
    ((key, restored),) = (item for item in session.accepted_of(session.image.key).items()
                          if item[0] != str(newer.unique_id))
    assert not workspace.correct.recovery.isVisible()
    assert not session.correction.layer
    assert [newer.visible, bench.book.layer(key).visible] == [False, True]
    assert restored == accepted
    assert bench.exporting.pixel_size(session.masks[0], "YX") == PixelSize(0.5, 0.5, None, "µm")
    back = bench.book.layer(key)
    assert back.dtype == ids.dtype
    assert np.array_equal(back.data, ids)


def test_closing_the_window_saves_the_last_strokes(tmp_path, cellbrush_home):
    script = tmp_path / "close.py"
    script.write_text(_CLOSE)
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    (session,) = list_sessions()[0]
    assert read_card(session.path).image.name == "cells"
    assert (on_disk()[10:12, 10:12] == 2).all()


_CLOSE = """
import napari, numpy as np
from qtpy.QtCore import QTimer
from napari_cellbrush.napari_ui.workbench import workbench_for
from napari_cellbrush.session import Session

viewer = napari.Viewer(show=True)
viewer.add_image(np.random.default_rng(0).random((60, 60)).astype(np.float32), name="cells")
bench = workbench_for(viewer)
layer = bench.annotating.new_annotation(bench.session.image.key)

def paint():
    layer.paint((11, 11), 2)
    viewer.close()

QTimer.singleShot(100, paint)
napari.run()
"""
