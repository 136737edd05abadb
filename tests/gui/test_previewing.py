from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cellbrush import api
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.model_file import add_to_library
from napari_cellbrush.napari_ui import layers, runs


@pytest.fixture
def found(viewer, workspace, image, person, tiny_model):
    """Objects that a model finds, of all sizes, and the Segment tab in front."""
    add_to_library(tiny_model("speckles", seed=3), "speckles")
    workspace.annotate.bench.look_around()
    person.wait(lambda: workspace.session.find_model("speckles"))
    workspace.session.choose_model("speckles")
    viewer.add_image(image, name="cells", scale=(0.5, 0.5))
    workspace.session.set_options(scope="layer", output="objects")
    workspace.show_tab("segment")
    viewer.reset_view()
    QTest.qWait(50)
    change(workspace, min_object_px=1, smoothing_px=0.5)
    person.click(workspace.segment.run.button)
    person.wait(lambda: not workspace.session.segmentation.busy)
    assert workspace.session.segmentation.notice.kind == "success"
    return workspace


def change(workspace, **settings):
    """As the person does it: through the form."""
    form = workspace.segment.config
    config = form.value()
    form.setValue(config.replace(objects=config.objects.replace(**settings)))


def settled(workspace, person):
    previewing = workspace.annotate.bench.previewing
    person.wait(lambda: not previewing._timer.isActive() and previewing._job is None)


@pytest.mark.parametrize("settings", [{"min_object_px": 40}, {"smoothing_px": 2.0}, {"clear_border": True},
                                      {"least_dip": 0.1, "smoothing_px": 1.0}])
def test_other_settings_give_what_a_segmentation_with_them_gives(viewer, found, person, image, settings):
    layer = viewer.layers["cells objects"]
    before = layer.data.copy()
    change(found, **settings)
    person.wait(lambda: "With these settings" in found.session.segmentation.notice.text)
    settled(found, person)
    expected = api.segment(image, "speckles", "objects", config=found.session.inference_config)
    np.testing.assert_array_equal(layer.data, expected)
    assert not np.array_equal(layer.data, before)
    made = layers.note_of(layer)["provenance"]["settings"]
    assert made["objects"] == found.session.inference_config.objects.model_dump()


def test_a_run_of_another_model_that_is_stopped_before_its_first_tile_leaves_objects_and_answers(
        viewer, found, person, image, stop_before_the_first_tile):
    layer, session = viewer.layers["cells objects"], found.session
    before, key, accepted = layer.data.copy(), str(layer.unique_id), Accepted(frozenset([2]))
    session.set_accepted(key, session.image.key, accepted)
    seen = [other.name for other in viewer.layers if other.visible]
    session.choose_model("tiny")
    # Into layers of its own, then into the same.
    for keep in (True, False):
        found.segment.keep.setChecked(keep)
        stop_before_the_first_tile()
        assert session.accepted_in(key) == accepted
        assert [other.name for other in viewer.layers if other.visible] == seen
        np.testing.assert_array_equal(layer.data, before)
    session.set_accepted(key, session.image.key, Accepted())
    change(found, min_object_px=40)
    person.wait(lambda: "With these settings" in session.segmentation.notice.text)
    settled(found, person)
    expected = api.segment(image, "speckles", "objects", config=session.inference_config)
    np.testing.assert_array_equal(layer.data, expected)


def test_the_view_comes_first_and_equals_the_whole(viewer, found, person, monkeypatch):
    shown = []
    preview = runs.preview

    def spy(task, stop):
        for event in preview(task, stop):
            shown.append(event)
            yield event

    monkeypatch.setattr(runs, "preview", spy)
    layer = viewer.layers["cells objects"]
    corners = layer.corner_pixels.copy()
    viewer.scene.camera.zoom *= 3
    person.wait(lambda: not np.array_equal(layer.corner_pixels, corners))
    QTest.qWait(50)
    change(found, min_object_px=40)
    settled(found, person)
    person.wait(lambda: len(shown) == 2)
    view, whole = shown
    rows = view.region[0]
    assert rows.stop - rows.start < layer.data.shape[0]
    part = whole.ids[view.region]
    np.testing.assert_array_equal(view.ids > 0, part > 0)
    assert part.any()
    pairs = set(zip(view.ids[part > 0].tolist(), part[part > 0].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_changes_in_a_row_are_made_once(viewer, found, person, monkeypatch):
    tasks = []

    def spy(task, stop):
        tasks.append(task)
        yield from ()

    monkeypatch.setattr(runs, "preview", spy)
    for size in range(2, 30):
        change(found, min_object_px=size)
    settled(found, person)
    assert [task.config.min_object_px for task in tasks] == [29]


def test_accepted_objects_stay_and_other_settings_change_nothing(viewer, found, person):
    layer = viewer.layers["cells objects"]
    proofreading = found.annotate.bench.proofreading
    person.click(found.correct.toggle)
    proofreading.start(str(layer.unique_id))
    proofreading.go_on()
    number = found.session.correction.current
    person.key(Qt.Key.Key_A)
    kept = layer.data == number
    change(found, min_object_px=100_000)
    person.wait(lambda: "With these settings" in found.session.segmentation.notice.text)
    settled(found, person)
    np.testing.assert_array_equal(layer.data == number, kept)
    assert kept.any()
    assert not layer.data[~kept].any()
    form = found.segment.config
    form.setValue(form.value().replace(tile_size_px=256))
    assert not found.annotate.bench.previewing._timer.isActive()


def test_without_answers_nothing_happens(viewer, workspace, image, person):
    viewer.add_image(image)
    change(workspace, min_object_px=50)
    settled(workspace, person)
    assert [layer.name for layer in viewer.layers] == ["image"]
    assert workspace.session.segmentation.notice.text == ""
