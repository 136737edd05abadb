"""The image that is chosen is the one that is seen and painted on."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtTest import QTest


@pytest.fixture
def several(viewer, workspace, image):
    """Three images in one place, each with strokes; the last one on top, and nothing chosen but by itself."""
    for name in ("a", "b", "c"):
        viewer.add_image(image, name=name)
        key = str(viewer.layers[name].unique_id)
        workspace.session.choose_image(key)
        workspace.annotate.bench.annotating.new_annotation(key)
    viewer.reset_view()
    QTest.qWait(50)
    return workspace


def choose(box, name):
    """As a person does: by its name, in the list."""
    box.setCurrentIndex(box.findText(name))
    box.activated.emit(box.currentIndex())
    QTest.qWait(10)


def seen(viewer):
    return {layer.name for layer in viewer.layers if layer.visible}


def test_the_chosen_image_and_its_strokes_are_seen_and_no_other(viewer, several):
    assert seen(viewer) == {"c", "c annotation"}
    choose(several.annotate.image, "a")
    assert seen(viewer) == {"a", "a annotation"}
    choose(several.segment.image, "b")
    assert seen(viewer) == {"b", "b annotation"}


def test_what_the_person_hid_stays_hidden(viewer, several):
    choose(several.annotate.image, "a")
    viewer.layers["a annotation"].visible = False
    choose(several.annotate.image, "b")
    viewer.layers.selection.active = viewer.layers["b"]
    choose(several.annotate.image, "a")
    assert seen(viewer) == {"a"}
    assert viewer.layers.selection.active == viewer.layers["a"]


def test_the_brush_goes_along(viewer, several, person):
    choose(several.annotate.image, "a")
    assert viewer.layers.selection.active == viewer.layers["a annotation"]
    person.drag([(20, 20), (20, 30), (20, 40)])
    assert viewer.layers["a annotation"].data.any()
    assert not viewer.layers["c annotation"].data.any()


def test_an_image_of_another_size_fills_the_view_and_one_of_the_same_size_leaves_it(viewer, several, image):
    viewer.add_image(np.tile(image, (4, 4)), name="large", scale=(2, 2))
    camera = viewer.scene.camera
    choose(several.annotate.image, "large")
    extent = np.array(image.shape) * 8
    np.testing.assert_allclose(camera.center[-2:], extent / 2, rtol=0.02)
    assert 0.5 < camera.zoom * extent.max() / min(viewer.canvas.size) < 1
    choose(several.annotate.image, "a")
    np.testing.assert_allclose(camera.center[-2:], extent / 16, rtol=0.05)
    camera.zoom, camera.center = 7, (30, 40)
    choose(several.annotate.image, "b")
    assert camera.zoom == 7
    assert camera.center[-2:] == (30, 40)


def test_a_new_annotation_shows_its_image(viewer, workspace, image, person):
    viewer.add_image(image, name="first")
    viewer.add_image(image, name="second")
    workspace.session.choose_image(str(viewer.layers["first"].unique_id))
    person.click(workspace.annotate.new)
    assert seen(viewer) == {"first", "first annotation"}


def test_an_image_that_is_opened_on_top_is_worked_on(viewer, several, image):
    viewer.add_image(image, name="opened")
    assert several.session.image.name == "opened"
    viewer.canvas.grid.enabled = True
    viewer.add_image(image, name="in the grid")
    viewer.canvas.grid.enabled = False
    several.session.training.begin("Learning…")
    viewer.add_image(image, name="during a training")
    several.session.training.end("Done.")
    viewer.add_image(image, name="beside", translate=(0, 2 * image.shape[1]))
    viewer.add_image(image, name="channel", blending="additive")
    assert several.session.image.name == "opened"


def test_the_brush_comes_back_to_strokes_from_an_image_without_any(viewer, several, image):
    choose(several.annotate.image, "a")
    viewer.add_image(image, name="bare")
    viewer.layers.selection.active = viewer.layers["a annotation"]
    several.session.choose_image(str(viewer.layers["a"].unique_id))
    choose(several.annotate.image, "bare")
    assert viewer.layers.selection.active == viewer.layers["bare"]
    choose(several.annotate.image, "b")
    assert viewer.layers.selection.active == viewer.layers["b annotation"]


def test_from_the_end_of_a_long_stack_a_shorter_one_is_seen(viewer, workspace, image):
    for name, n_planes in (("short", 3), ("long", 9)):
        viewer.add_image(np.stack([image] * n_planes), name=name)
        workspace.session.set_axes(str(viewer.layers[name].unique_id), "ZYX")
    viewer.dims.set_current_step(0, 8)
    choose(workspace.annotate.image, "short")
    assert viewer.dims.current_step[0] == 2


def test_channels_images_side_by_side_and_grids_stay_as_they_are(viewer, workspace, image):
    viewer.add_image(np.stack([image, image]), channel_axis=0, name=["red", "green"])
    viewer.add_image(image, name="beside", translate=(0, 200))
    viewer.add_labels(np.zeros(image.shape, np.uint8), name="their own")
    before = seen(viewer)
    for name in ("red", "green", "beside"):
        choose(workspace.annotate.image, name)
        assert seen(viewer) == before
    viewer.add_image(image, name="on top")
    viewer.canvas.grid.enabled = True
    choose(workspace.annotate.image, "beside")
    assert seen(viewer) == before | {"on top"}


@pytest.mark.usefixtures("specks")
def test_masks_of_several_images_do_not_lie_on_top_of_each_other(viewer, several, person):
    several.session.set_options(scope="all", output="objects")
    person.click(several.segment.run.button)
    person.wait(lambda: not several.session.segmentation.busy)
    assert seen(viewer) == {"c", "c annotation", "c objects"}
    choose(several.annotate.image, "b")
    assert seen(viewer) == {"b", "b annotation", "b objects"}
    assert viewer.layers["a objects"].data.any()

    several.annotate.bench.proofreading.start(str(viewer.layers["a objects"].unique_id))
    marks = {"accepted", "object at hand"}
    assert {"a", "a objects"} | marks <= seen(viewer) <= {"a", "a objects", "a annotation"} | marks
    assert viewer.layers.selection.active == viewer.layers["a objects"]
    choose(several.annotate.image, "b")
    assert seen(viewer) == {"b", "b annotation", "b objects"}


def test_removing_a_class_does_not_bring_other_images_into_sight(viewer, several):
    choose(several.annotate.image, "a")
    several.annotate.bench.annotating.remove_class(2)
    assert seen(viewer) == {"a", "a annotation"}
    assert viewer.layers.selection.active == viewer.layers["a annotation"]
    choose(several.annotate.image, "b")
    assert seen(viewer) == {"b", "b annotation"}


def test_without_the_image_that_was_seen_another_one_is(viewer, several):
    choose(several.annotate.image, "a")
    viewer.layers.remove("a")
    assert several.session.image.name in seen(viewer)


def test_who_corrects_objects_works_on_their_image(viewer, several, image, person):
    """Also where they are from elsewhere, and belong to another image than was guessed; and coming back to the tab."""
    choose(several.annotate.image, "c")
    viewer.add_labels((image > 0.5).astype(np.int32), name="b masks")
    several.show_tab("correct")
    several.annotate.bench.proofreading.start(str(viewer.layers["b masks"].unique_id))
    QTest.qWait(10)
    assert several.session.image.name == "b"
    assert {"b", "b masks"} <= seen(viewer)
    assert not {"a", "c"} & seen(viewer)

    choose(several.correct.image, "a")
    assert several.session.image.name == "a"
    assert {"a", "b masks", "accepted"} <= seen(viewer)
    assert not {"b", "c"} & seen(viewer)

    several.show_tab("segment")
    choose(several.segment.image, "c")
    assert seen(viewer) == {"c", "c annotation"}
    several.show_tab("correct")
    QTest.qWait(10)
    assert {"a", "b masks", "accepted"} <= seen(viewer)
    assert "c" not in seen(viewer)
    assert viewer.layers.selection.active == viewer.layers["b masks"]
