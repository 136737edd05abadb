from __future__ import annotations

import dataclasses
import threading
import time

import dask.array as da
import numpy as np
import pytest
from napari.layers import Layer
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cellbrush import api
from napari_cellbrush.config import DEFAULT_CLASSES
from napari_cellbrush.engine import diameter, inference
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.model import Model
from napari_cellbrush.engine.model_file import add_to_library
from napari_cellbrush.events import InferenceStarted, TileSegmented
from napari_cellbrush.napari_ui import layers, runs, segmenting


@pytest.fixture
def ready(viewer, workspace, image, person):
    """An image, and the Segment tab in front; small tiles, so that there are several."""
    viewer.add_image(image, name="cells", scale=(0.5, 0.5))
    workspace.session.inference_config = workspace.session.inference_config.replace(tile_size_px=128)
    workspace.session.set_options(scope="layer")
    workspace.show_tab("segment")
    viewer.reset_view()
    QTest.qWait(50)
    return workspace


def segment(workspace, person):
    run = workspace.session.segmentation
    before = run.notice
    person.click(workspace.segment.run.button)
    person.wait(lambda: not run.busy)
    assert run.notice is not before, "nothing was started"
    return run.notice


def zoom_in(viewer, person):
    """Four times closer, and drawn: only drawing tells a layer what is seen of it."""
    layer = viewer.layers["cells"]
    before = layer.corner_pixels.copy()
    viewer.scene.camera.zoom *= 4
    person.wait(lambda: not np.array_equal(layer.corner_pixels, before))
    QTest.qWait(50)


# ------------------------------------------------------------------------------------ the same as elsewhere


@pytest.mark.usefixtures("specks")
def test_classes_objects_and_probabilities_are_those_of_the_api(viewer, ready, person, image):
    config = ready.session.inference_config
    expected = {kind: api.segment(image, "tiny", kind, config=config) for kind in ("classes", "objects",
                                                                                  "probabilities")}
    assert expected["objects"].any()
    for kind in expected:
        ready.session.set_options(output=kind)
        assert segment(ready, person).kind == "success"
    np.testing.assert_array_equal(viewer.layers["cells classes"].data, expected["classes"])
    np.testing.assert_array_equal(viewer.layers["cells objects"].data, expected["objects"])
    for number, definition in enumerate(DEFAULT_CLASSES):
        layer = viewer.layers[f"cells {definition.name} probability"]
        np.testing.assert_array_equal(layer.data, expected["probabilities"][number])
    assert viewer.layers["cells classes"].data.dtype == np.uint8


@pytest.mark.usefixtures("specks")
def test_the_diameter_is_measured_once_said_noted_and_the_same_as_by_the_api(viewer, ready, person, image, tiny_model,
                                                                              monkeypatch):
    model = tiny_model("sized", seed=3)
    add_to_library(Model(model.network, model.card.replace(diameter_px=24.0)), "sized")
    ready.annotate.bench.look_around()
    person.wait(lambda: ready.session.find_model("sized"))
    ready.session.choose_model("sized")
    measured = []
    monkeypatch.setattr(diameter, "measured_diameter",
                        lambda *_: measured.append(1) or diameter.Measurement(12.0, evidence=0.5))
    ready.session.set_options(output="objects")
    for _ in range(2):
        notice = segment(ready, person)
        assert notice.kind == "success"
        assert "12 px across" in notice.text
    assert len(measured) == 1
    config = ready.session.inference_config.replace(diameter_px=12)
    note = layers.note_of(viewer.layers["cells objects"])["provenance"]
    assert note["settings"] == config.model_dump()
    np.testing.assert_array_equal(viewer.layers["cells objects"].data, api.segment(image, "sized", "objects",
                                                                                   config=config))


@pytest.mark.parametrize(("axes", "shape"), [("ZYX", (2, 70, 60)), ("CYX", (3, 70, 60)), ("TCYX", (2, 2, 70, 60)),
                                             ("YXS", (70, 60, 3))])
def test_stacks_channels_and_colours_give_labels_that_lie_on_the_image(viewer, workspace, person, axes, shape):
    data = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    layer = viewer.add_image(data, name="i", rgb="S" in axes)
    workspace.session.set_axes(workspace.session.image.key, axes)
    workspace.session.set_options(scope="layer")
    assert segment(workspace, person).kind == "success"
    expected = api.segment(data, "tiny", axes=axes)
    found = viewer.layers["i classes"]
    np.testing.assert_array_equal(found.data.reshape(expected.shape), expected)
    assert found.ndim <= layer.ndim


def test_a_lazy_stack_is_read_window_by_window(viewer, workspace, person):
    reads = []

    def block(block_info=None):
        location = block_info[None]["array-location"]
        reads.append(location)
        return np.random.default_rng(sum(a for a, _ in location)).random([b - a for a, b in location])

    lazy = da.map_blocks(block, chunks=((1,) * 50, (64, 64), (64, 64)), dtype=float, meta=np.empty((0, 0, 0)))
    viewer.add_image(lazy, name="lazy", contrast_limits=(0, 1), cache=False)
    workspace.session.set_options(scope="slice")
    viewer.dims.set_current_step(0, 30)
    segment(workspace, person)
    reads.clear()
    segment(workspace, person)  # statistics are measured on windows of all planes, few of them
    assert viewer.layers["lazy classes"].data[30].all()
    assert not viewer.layers["lazy classes"].data[:30].any()


# ---------------------------------------------------------------------------------------------- streaming


def test_streaming_leaves_selection_undo_and_strokes_alone_and_repaints_at_most_ten_times_a_second(
        viewer, ready, person, image, monkeypatch):
    """Many tiles, a stroke while they arrive, then undo: only the stroke goes."""
    ready.show_tab("annotate")
    person.click(ready.annotate.new)
    ready.show_tab("segment")
    strokes = viewer.layers["cells annotation"]
    refreshed: list[float] = []
    threads = set()
    cheap = []
    refresh = Layer.refresh

    def spy(layer, *args, **kwargs):
        threads.add(threading.current_thread())
        if layer.name == "cells classes" and "thumbnail" in kwargs:
            refreshed.append(time.monotonic())
            cheap.append(kwargs)
        return refresh(layer, *args, **kwargs)

    def slow_tiles(model, planes, **kwargs):
        yield InferenceStarted("CPU", "float32", 80, 100)
        for tile in range(80):
            rows = slice(15 * (tile // 10), 15 * (tile // 10 + 1))
            columns = slice(15 * (tile % 10), 15 * (tile % 10 + 1))
            classes = np.full((15, 15), 1 + tile % 3, np.uint8)
            time.sleep(0.02)
            yield TileSegmented(tile + 1, 80, (), rows, columns, np.zeros((3, 15, 15), np.float32), classes, 1, 1)
        return True

    monkeypatch.setattr(Layer, "refresh", spy)
    monkeypatch.setattr(inference, "segment_planes", slow_tiles)
    person.click(ready.segment.run.button)
    assert viewer.layers.selection.active.name == "cells annotation"
    assert "cells classes" in viewer.layers
    person.drag([(30, column) for column in range(10, 60, 2)])
    person.wait(lambda: not ready.session.segmentation.busy)
    result = viewer.layers["cells classes"]
    assert result.data.all()
    assert (strokes.data[60, 30:110] == 1).all()
    assert threads == {threading.main_thread()}
    assert len(refreshed) >= 4
    # On average, because a busy machine delays single looks at the queue; the first and last repaint come besides.
    assert (refreshed[-2] - refreshed[1]) / (len(refreshed) - 3) > 0.08
    assert len(refreshed) / (refreshed[-1] - refreshed[0]) < 12
    assert all(kwargs == {"extent": False, "thumbnail": False, "highlight": False} for kwargs in cheap)
    assert viewer.layers.selection.active.name == "cells annotation"
    before = result.data.copy()
    result.undo()
    np.testing.assert_array_equal(result.data, before)
    strokes.undo()
    assert not strokes.data.any()


def test_a_run_asked_for_in_mid_stroke_waits_for_its_end(viewer, ready, person):
    ready.show_tab("annotate")
    person.click(ready.annotate.new)
    layer = viewer.layers["cells annotation"]
    person.press((30, 10))
    person.move((30, 20))
    ready.annotate.bench.segmenting.start("layer")
    for column in range(22, 50, 2):
        person.move((30, column))
    assert [la.name for la in viewer.layers] == ["cells", "cells annotation"]
    person.release((30, 50))
    assert (layer.data[60, 25:95] == 1).all()
    person.wait(lambda: ready.session.segmentation.notice.kind == "success")
    layer.undo()
    assert not layer.data.any()


def test_tiles_start_from_the_centre_of_the_view(viewer, ready, person, monkeypatch):
    targets = []

    def spy(task, stop):
        targets.extend(task.targets)
        yield from ()

    monkeypatch.setattr(runs, "segment", spy)
    viewer.scene.camera.center = (0, 10, 60)
    zoom_in(viewer, person)
    person.click(ready.segment.run.button)
    person.wait(lambda: targets and not ready.session.segmentation.busy)
    row, column = targets[0].centre
    assert abs(row - 20) < 12
    assert abs(column - 120) < 20


# -------------------------------------------------------------------------------------------------- scope


def test_the_view_alone_is_segmented(viewer, ready, person):
    zoom_in(viewer, person)
    ready.session.set_options(scope="view")
    assert segment(ready, person).kind == "success"
    data = viewer.layers["cells classes"].data
    rows, columns = np.nonzero(data)
    corners = viewer.layers["cells"].corner_pixels
    assert (rows.min(), rows.max()) == (corners[0, 0], corners[1, 0])
    assert (columns.min(), columns.max()) == (corners[0, 1], corners[1, 1])
    assert data.all() != True  # noqa: E712 (a numpy bool)


def test_an_image_out_of_sight_is_said_to_be(viewer, ready, person):
    viewer.scene.camera.center = (0, 5000, 5000)
    QTest.qWait(100)
    ready.session.set_options(scope="view")
    person.click(ready.segment.run.button)
    assert "outside the view" in ready.segment.run.notice.text()
    assert "cells classes" not in viewer.layers


@pytest.mark.usefixtures("specks")
def test_slices_of_a_stack_add_up_and_objects_keep_different_ids(viewer, workspace, person):
    viewer.add_image(np.random.default_rng(0).random((3, 70, 60)).astype(np.float32), name="stack")
    workspace.session.set_options(scope="slice", output="objects")
    for plane in (2, 0):
        viewer.dims.set_current_step(0, plane)
        notice = segment(workspace, person)
        of_plane = np.count_nonzero(np.unique(viewer.layers["stack objects"].data[plane]))
        assert f" {of_plane} objects." in notice.text
    objects, classes = viewer.layers["stack objects"].data, viewer.layers["stack classes"].data
    assert classes[[0, 2]].all()
    assert not classes[1].any()
    first, last = (set(np.unique(objects[plane])) - {0} for plane in (0, 2))
    assert first
    assert last
    assert not first & last


@pytest.mark.usefixtures("specks")
def test_of_several_images_the_counts_are_told_one_by_one(viewer, ready, person, image):
    viewer.add_image(image[:80], name="second")
    ready.session.set_options(scope="all", output="objects")
    notice = segment(ready, person)
    counts = {name: np.count_nonzero(np.unique(viewer.layers[f"{name} objects"].data)) for name in ("cells", "second")}
    assert len(set(counts.values())) == 2
    assert f"{sum(counts.values())} objects (" in notice.text
    for name, n in counts.items():
        assert f"{n} in '{name}'" in notice.text


def test_a_run_that_is_stopped_says_that_objects_are_not_numbered(viewer, ready, person, monkeypatch):
    monkeypatch.setattr(inference, "segment_planes", endless)
    ready.session.set_options(output="objects")
    person.click(ready.segment.run.button)
    person.wait(lambda: "tile" in ready.session.segmentation.count)
    person.click(ready.segment.run.button)
    person.wait(lambda: not ready.session.segmentation.busy)
    assert ready.segment.run.notice.text().endswith("What is segmented already stays, as classes.")
    assert viewer.layers["cells classes"].visible


def test_all_images_are_segmented_and_a_bad_one_does_not_stop_the_others(viewer, ready, person, image):
    viewer.add_image(np.full((40, 40), np.nan, np.float32), name="broken", contrast_limits=(0, 1))
    viewer.add_image(image[:80], name="second")
    ready.session.set_options(scope="all")
    notice = segment(ready, person)
    assert notice.kind == "warning"
    assert "'broken'" in notice.text
    assert viewer.layers["cells classes"].data.all()
    assert viewer.layers["second classes"].data.all()


@pytest.mark.usefixtures("specks")
def test_of_several_images_all_sizes_are_said(viewer, ready, person, image, tiny_model, monkeypatch):
    model = tiny_model("sized", seed=3)
    add_to_library(Model(model.network, model.card.replace(diameter_px=24.0)), "sized")
    ready.annotate.bench.look_around()
    person.wait(lambda: ready.session.find_model("sized"))
    ready.session.choose_model("sized")
    monkeypatch.setattr(diameter, "measured_diameter", lambda model, planes, *_: diameter.Measurement(
        40.0 if planes.name == "second" else 12.0, evidence=0.5))
    viewer.add_image(image[:80], name="second")
    ready.session.set_options(scope="all", output="objects")
    assert "Objects are taken to be 12 to 40 px across." in segment(ready, person).text


# ------------------------------------------------------------------------------------------- result layers


def test_a_second_run_writes_into_the_same_layers_unless_they_are_to_be_kept(viewer, ready, person):
    for _ in range(2):
        segment(ready, person)
    assert [layer.name for layer in viewer.layers] == ["cells", "cells classes"]
    ready.segment.keep.setChecked(True)
    segment(ready, person)
    assert [layer.name for layer in viewer.layers] == ["cells", "cells classes", "cells classes [1]"]


def test_a_result_corrected_by_hand_is_never_overwritten(viewer, ready, person):
    segment(ready, person)
    corrected = viewer.layers["cells classes"]
    corrected.paint((10, 10), 1 + corrected.data[10, 10] % 3)
    before = corrected.data.copy()
    segment(ready, person)
    np.testing.assert_array_equal(corrected.data, before)
    assert "cells classes [1]" in viewer.layers


def test_a_glance_with_another_model_neither_wipes_a_whole_result_nor_mixes_with_it(viewer, ready, person, tiny_model):
    segment(ready, person)
    first = viewer.layers["cells classes"]
    before = first.data.copy()
    add_to_library(tiny_model("other", seed=1), "other")
    ready.annotate.bench.look_around()
    person.wait(lambda: ready.session.find_model("other"))
    ready.session.choose_model("other")
    zoom_in(viewer, person)
    ready.session.set_options(scope="view")
    segment(ready, person)
    np.testing.assert_array_equal(first.data, before)
    glance = viewer.layers["cells classes [1]"]
    assert glance.data.any()
    assert not glance.data.all()
    assert glance.metadata["cellbrush"]["provenance"]["model"] == "other"
    # A result of a part alone is wiped by the next model, so that layers do not pile up.
    ready.session.choose_model(first.metadata["cellbrush"]["provenance"]["model"])
    segment(ready, person)
    assert len(viewer.layers) == 3


def test_results_have_the_place_and_the_colours_of_the_image_and_the_classes(viewer, ready, person):
    segment(ready, person)
    layer = viewer.layers["cells classes"]
    assert tuple(layer.scale) == (0.5, 0.5)
    np.testing.assert_allclose(layer.colormap.map(np.array([2]))[0] * 255, [0xF2, 0xB1, 0x34, 255], atol=0.6)
    assert 0 < layer.colormap.map(np.array([1]))[0][3] < 0.5
    ready.session.change_class(1, color="#ff0000")
    np.testing.assert_allclose(layer.colormap.map(np.array([2]))[0], [1, 0, 0, 1])
    assert list(layer.features["class"])[1:] == ["background", "cell", "boundary"]
    assert list(viewer.layers).index(layer) == 1


def test_only_the_latest_kind_of_result_is_shown(viewer, ready, person):
    segment(ready, person)
    ready.session.set_options(output="objects")
    segment(ready, person)
    shown = {layer.name for layer in viewer.layers if layer.visible}
    assert shown == {"cells", "cells objects"}
    ready.session.set_options(output="probabilities")
    segment(ready, person)
    shown = {layer.name for layer in viewer.layers if layer.visible}
    assert shown == {"cells", "cells cell probability", "cells boundary probability"}


# -------------------------------------------------------------------------------------- stopping, failing


def endless(model, planes, **kwargs):
    """Tiles for ever, until somebody stops."""
    yield InferenceStarted("CPU", "float32", 1000, 100)
    tile = 0
    while not kwargs["stop"].stopped:
        tile += 1
        time.sleep(0.01)
        yield TileSegmented(tile, 1000, (), slice(0, 5), slice(0, 5), np.zeros((3, 5, 5), np.float32),
                            np.ones((5, 5), np.uint8), 1, 1)
    return False


def test_stop_ends_within_a_second_and_keeps_the_tiles(viewer, ready, person, monkeypatch):
    monkeypatch.setattr(inference, "segment_planes", endless)
    dock = ready.segment
    person.click(dock.run.button)
    assert dock.run.button.text() == "Stop"
    person.wait(lambda: "tile" in ready.session.segmentation.count)
    began = time.monotonic()
    person.click(dock.run.button)
    person.wait(lambda: not ready.session.segmentation.busy)
    assert time.monotonic() - began < 1
    assert dock.run.notice.text().startswith("Stopped at tile")
    assert viewer.layers["cells classes"].data[:5, :5].all()


def test_a_run_that_is_stopped_before_its_first_tile_changes_nothing(viewer, ready, person, stop_before_the_first_tile):
    segment(ready, person)
    earlier = viewer.layers["cells classes"]
    before, note = earlier.data.copy(), dict(earlier.metadata)
    # Into a layer of its own, then into the same.
    for keep in (True, False):
        ready.segment.keep.setChecked(keep)
        stop_before_the_first_tile()
        assert [layer.name for layer in viewer.layers] == ["cells", "cells classes"]
        assert earlier.visible
        np.testing.assert_array_equal(earlier.data, before)
        assert earlier.metadata == note
    segment(ready, person)
    assert [layer.name for layer in viewer.layers] == ["cells", "cells classes"]


@pytest.mark.usefixtures("specks")
def test_taking_layers_back_leaves_what_was_accepted_in_one_that_no_longer_fits(viewer, ready, person):
    ready.session.set_options(output="objects")
    segment(ready, person)
    image, key, accepted = ready.session.image, str(viewer.layers["cells objects"].unique_id), Accepted(frozenset([1]))
    ready.session.set_accepted(key, image.key, accepted)
    results = ready.segment.bench.segmenting.results
    smaller = dataclasses.replace(image, shape=(60, 150))
    results.take_back(results.sheet(smaller, "objects", DEFAULT_CLASSES, fresh=True))
    assert ready.session.accepted_in(key) == accepted


def test_an_image_that_cannot_be_segmented_leaves_no_empty_layer(viewer, ready, person, image):
    viewer.add_image(np.full((40, 40), np.nan, np.float32), name="broken", contrast_limits=(0, 1))
    ready.session.set_options(scope="all", output="objects")
    segment(ready, person)
    assert [layer.name for layer in viewer.layers if layer.name.startswith("broken")] == ["broken"]
    assert "cells objects" in viewer.layers


def test_any_error_at_any_tile_leaves_the_dock_idle_with_a_sentence(viewer, ready, person, monkeypatch, caplog):
    def failing(error, position):
        def segment_planes(model, planes, **kwargs):
            if position == 0:
                raise error
            yield InferenceStarted("CPU", "float32", 3, 100)
            for tile in (1, 2, 3):
                if tile == position:
                    raise error
                yield TileSegmented(tile, 3, (), slice(0, 5), slice(0, 5), np.zeros((3, 5, 5), np.float32),
                                    np.ones((5, 5), np.uint8), 1, 1)
            return True

        return segment_planes

    for error in (RuntimeError("CUDA out of memory"), ValueError("bad"), MemoryError(), KeyError("k")):
        for position in (0, 2, 3):
            caplog.clear()
            monkeypatch.setattr(inference, "segment_planes", failing(error, position))
            notice = segment(ready, person)
            assert notice.kind == "error", (error, position)
            assert "segmenting" in notice.text, (error, position)
            assert ready.segment.run.button.isEnabled()
            assert ready.segment.run.button.text() == "Segment"
            assert "Traceback" in caplog.text, (error, position)


@pytest.mark.usefixtures("specks")
@pytest.mark.parametrize("times", [1, 2])
def test_too_little_memory_for_the_result_leaves_no_layer_behind(viewer, ready, person, monkeypatch, times):
    ready.session.set_options(output="objects")
    if times == 2:
        assert segment(ready, person).kind == "success"
    before = list(viewer.layers)

    def no_memory(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(segmenting.Segmenting, "_with_earlier", no_memory)
    person.click(ready.segment.run.button)
    notice = ready.session.segmentation.notice
    assert "memory ran out while making room for the result" in notice.text
    assert notice.kind == "error"
    assert list(viewer.layers) == before


def test_a_model_for_another_number_of_channels_is_refused_in_words(viewer, ready, person, tiny_model):
    add_to_library(tiny_model("single").for_channels(2), "two channels")
    ready.annotate.bench.look_around()
    person.wait(lambda: ready.session.find_model("two channels"))
    ready.session.choose_model("two channels")
    notice = segment(ready, person)
    assert notice.kind == "error"
    assert "needs 2" in notice.text


def test_the_button_says_why_it_is_grey(viewer, workspace, person):
    workspace.show_tab("segment")
    assert workspace.segment.run.reason.text() == "Open an image first."
    viewer.add_image(np.random.default_rng(0).random((30, 30)).astype(np.float32))
    assert workspace.segment.run.button.isEnabled()
    workspace.session.training.begin("")
    assert workspace.segment.run.reason.text() == "Wait until fine-tuning has ended."
    workspace.session.training.end("")


def test_removing_the_result_layer_ends_the_run_in_words(viewer, ready, person, monkeypatch):
    monkeypatch.setattr(inference, "segment_planes", endless)
    person.click(ready.segment.run.button)
    person.wait(lambda: "tile" in ready.session.segmentation.count)
    viewer.layers.remove("cells classes")
    person.wait(lambda: not ready.session.segmentation.busy)
    assert "was removed" in ready.segment.run.notice.text()


def test_removing_the_image_during_a_run_is_harmless(viewer, ready, person):
    person.click(ready.segment.run.button)
    viewer.layers.remove("cells")
    person.wait(lambda: not ready.session.segmentation.busy)
    assert viewer.layers["cells classes"].data.all()


def test_after_training_the_view_is_segmented_at_once(viewer, ready, person, monkeypatch):
    key = ready.session.image.key
    layer = ready.annotate.bench.annotating.new_annotation(key)
    layer.data[10:20, 10:20], layer.data[40:50, 40:50] = 1, 2
    layer.refresh()
    person.wait(lambda: all(ready.session.painted[:2]))
    ready.show_tab("finetune")
    person.click(ready.finetune.run.button)
    person.wait(lambda: ready.session.segmentation.notice.kind == "success")
    assert "with 'cells model'" in ready.session.segmentation.notice.text
    assert viewer.layers["cells classes"].data.all()
    assert viewer.layers.selection.active.name == "cells annotation"


def test_enter_key_of_a_stroke_does_not_reach_the_button(viewer, ready, person):
    """Digits and letters painted with go to the canvas, not to whatever button was clicked last."""
    ready.show_tab("annotate")
    person.click(ready.annotate.new)
    person.key(Qt.Key.Key_Space)
    assert [layer.name for layer in viewer.layers] == ["cells", "cells annotation"]
