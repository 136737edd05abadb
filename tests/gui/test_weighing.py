from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtTest import QTest

from napari_cellbrush.engine import training
from napari_cellbrush.engine.accepted import Accepted
from napari_cellbrush.engine.annotation import taught_by_objects
from napari_cellbrush.engine.border_weights import annotation_weights
from napari_cellbrush.events import TrainingStarted


@pytest.fixture
def ready(viewer, workspace):
    viewer.add_image(np.random.default_rng(0).random((5, 60, 80)).astype(np.float32), name="stack", scale=(2, 0.5, 0.5))
    workspace.session.training_config = workspace.session.training_config.replace(border_weight=8.0)
    workspace.show_tab("finetune")
    return workspace


def show(workspace, person, viewer):
    person.click(workspace.finetune.weights)
    weighing = workspace.annotate.bench.weighing
    person.wait(lambda: weighing._job is None)
    QTest.qWait(20)
    return viewer.layers["stack pixel weights"]


def test_the_layer_shows_what_training_makes_of_strokes_and_accepted_objects(viewer, ready, person):
    bench, session = ready.annotate.bench, ready.session
    strokes = bench.annotating.new_annotation(session.image.key)
    strokes.data[1, 10:20, 10:20], strokes.data[1, 10:20, 20:24], strokes.data[1, 10:20, 24:34] = 2, 1, 2
    ids = np.zeros((5, 60, 80), np.uint16)
    ids[3, 20:30, 20:30], ids[3, 20:30, 32:42] = 1, 2
    objects = viewer.add_labels(ids, name="ids")
    session.set_accepted(str(objects.unique_id), session.image.key, Accepted(frozenset({1, 2})))
    layer = show(ready, person, viewer)
    labels = taught_by_objects(strokes.data, ids, Accepted(frozenset({1, 2})), session.classes)
    expected = np.stack([annotation_weights(plane, session.classes, w0=8.0) for plane in labels])
    np.testing.assert_array_equal(layer.data, expected)
    assert layer.data[1, 15, 21] > 4
    assert layer.data[3].any()
    assert tuple(layer.scale) == (2, 0.5, 0.5)
    # It is no image to work on, and is brought up to date rather than made again.
    assert [image.name for image in session.images] == ["stack"]
    strokes.data[1, 10:20, 20:24] = 0
    assert show(ready, person, viewer).data[1, 15, 21] == 0
    assert sum("weights" in la.name for la in viewer.layers) == 1


def test_the_reach_of_borders_is_that_of_the_last_training_of_this_image(viewer, ready, person, monkeypatch):
    """In pixels of the network: an image that was reduced has a longer one."""
    bench, session = ready.annotate.bench, ready.session
    viewer.add_image(np.zeros((60, 80), np.float32), name="other")
    strokes = {image.name: bench.annotating.new_annotation(image.key) for image in session.images}
    for layer in strokes.values():
        layer.data[..., 10:20, 10:20], layer.data[..., 10:20, 20:24] = 2, 1
        layer.data[..., 10:20, 24:34] = 2
        layer.refresh()
    person.wait(lambda: len(session.taught_images()) == 2)

    def train(base, *_, **__):
        yield TrainingStarted("CPU", "float32", 1, 100, 0, "none", None, (40.0, 80.0), (0.5, 0.25))
        return training.TrainingResult(base, True, None, None, "none", "steps", 1, 1.0)

    monkeypatch.setattr(training, "train", train)
    bench.fine_tuning.start("two sizes")
    person.wait(lambda: not session.training.busy)
    assert [bench.fine_tuning.scale_of(image.key) for image in session.images] == [0.5, 0.25]
    # The first one is no longer taught; the second keeps its own.
    strokes["stack"].data[:] = 0
    strokes["stack"].refresh()
    person.wait(lambda: len(session.taught_images()) == 1)
    other = next(image for image in session.images if image.name == "other")
    session.choose_image(other.key)
    person.click(ready.finetune.weights)
    person.wait(lambda: bench.weighing._job is None)
    QTest.qWait(20)
    expected = annotation_weights(strokes["other"].data, session.classes, w0=8.0,
                                  sigma_px=session.training_config.border_sigma_px
                                  / bench.fine_tuning.scale_of(other.key))
    np.testing.assert_array_equal(viewer.layers["other pixel weights"].data, expected)


def test_where_nothing_weighs_anything_it_is_said(viewer, ready, person):
    person.click(ready.finetune.weights)
    assert "Nothing is painted" in ready.session.training.notice.text
    assert "stack pixel weights" not in viewer.layers


def test_a_border_weight_of_zero_is_said_and_the_papers_shown(viewer, ready, person):
    ready.session.training_config = ready.session.training_config.replace(border_weight=0.0)
    strokes = ready.annotate.bench.annotating.new_annotation(ready.session.image.key)
    strokes.data[0, 10:20, 10:20], strokes.data[0, 10:20, 20:22], strokes.data[0, 10:20, 22:34] = 2, 1, 2
    strokes.refresh()
    person.wait(lambda: any(ready.session.painted))
    layer = show(ready, person, viewer)
    assert "the paper's 10" in ready.session.training.notice.text
    assert layer.data.max() > 5
