from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_cellbrush.engine import guide
from napari_cellbrush.engine.model_file import add_to_library
from napari_cellbrush.events import TileSegmented
from napari_cellbrush.napari_ui.guiding import Guiding


@pytest.fixture
def unsure(monkeypatch):
    """A model that knows background everywhere but at rows 85 to 110, columns 110 to 140; counts its looks."""
    looks = []

    def segment_planes(model, planes, *, region, indices, **_):
        looks.append(indices)
        probabilities = np.full((model.n_classes, *planes.shape_yx), 0.02, np.float32)
        probabilities[0] = 0.96
        probabilities[:, 85:110, 110:140] = 1 / model.n_classes
        probabilities = probabilities[:, region[0], region[1]]
        yield TileSegmented(1, 1, indices[0], *region, probabilities, probabilities.argmax(0).astype(np.uint8), 0, 0)

    monkeypatch.setattr(guide, "segment_planes", segment_planes)
    return looks


@pytest.fixture
def painting(viewer, workspace, image, person):
    viewer.add_image(image, name="cells")
    workspace.annotate.bench.annotating.new_annotation(workspace.session.image.key)
    person.wait(lambda: workspace.session.annotations)
    return workspace


def looked(workspace, person):
    person.wait(lambda: not workspace.session.guiding.busy)
    return workspace.session.guiding.notice


def centre(viewer):
    return np.array(viewer.camera.center[-2:] if not hasattr(viewer, "scene") else viewer.scene.camera.center[-2:])


def test_the_key_n_moves_the_view_to_where_the_model_is_unsure(viewer, painting, person, unsure):
    person.key(Qt.Key.Key_N)
    assert "help most" in looked(painting, person).text
    assert centre(viewer) == pytest.approx((97, 125), abs=10)
    person.drag([(97, 118), (97, 132)])
    person.key(Qt.Key.Key_N)
    looked(painting, person)
    assert np.abs(centre(viewer) - (97, 125)).max() > 8  # there is a stroke now
    assert len(unsure) == 1  # the same model had said it all


def test_a_new_look_is_taken_with_another_model(viewer, painting, person, unsure, tiny_model):
    person.click(painting.annotate.guide.button)
    looked(painting, person)
    add_to_library(tiny_model("other", seed=1), "other")
    painting.annotate.bench.look_around()
    person.wait(lambda: painting.session.find_model("other"))
    painting.session.choose_model("other")
    person.click(painting.annotate.guide.button)
    looked(painting, person)
    assert len(unsure) == 2


def test_uncertainty_is_a_layer_on_demand(viewer, painting, person, unsure):
    n_images = len(painting.session.images)
    box = painting.annotate.guide.unsure
    person.click(box)
    looked(painting, person)
    person.wait(lambda: "cells uncertainty" in viewer.layers)
    data = viewer.layers["cells uncertainty"].data
    assert (data[85:110, 110:140] == 255).all()
    assert data[:80].max() < 50
    assert len(painting.session.images) == n_images  # it is no image to work on
    assert box.isChecked()
    viewer.layers.remove("cells uncertainty")
    assert not box.isChecked()
    person.click(box)
    looked(painting, person)
    person.click(box)
    assert "cells uncertainty" not in viewer.layers


def test_hints_and_probable_slips_are_shown_and_lead_to_the_stroke(viewer, painting, person, unsure, tiny_model):
    model = tiny_model("tuned")
    add_to_library(replace(model, card=model.card.replace(labelled_pixels={"cell": 5})), "tuned")
    painting.annotate.bench.look_around()
    person.wait(lambda: painting.session.find_model("tuned"))
    painting.session.choose_model("tuned")
    layer = painting.annotate.bench.annotating.layer_of(painting.session.image.key)
    layer.data[20:24, 20:40] = 2  # a cell, where the model is sure of background
    layer.data[50:54, 20:40] = 1
    person.click(painting.annotate.guide.button)
    looked(painting, person)
    panel = painting.annotate.guide
    assert "No 'boundary' painted yet" in panel.hints.text()
    assert [button.text() for button in panel.slips] == ["A slip? Painted 'cell', looks like 'background'"]
    person.click(panel.slips[0])
    assert centre(viewer) == pytest.approx((22, 30), abs=6)


def test_without_an_image_it_says_what_is_missing(workspace, person):
    workspace.annotate.bench.guiding.next_place()
    assert "Open an image" in workspace.session.guiding.notice.text
    assert not workspace.annotate.guide.button.isEnabled()
    assert "Open an image" in workspace.annotate.guide.button.toolTip()


def test_an_error_leaves_the_dock_as_it_was(viewer, painting, person, monkeypatch):
    def broken(*_, **__):
        raise MemoryError
        yield

    monkeypatch.setattr(guide, "segment_planes", broken)
    person.click(painting.annotate.guide.button)
    assert looked(painting, person).kind == "error"
    assert painting.annotate.guide.button.text() == "Next place"
    assert isinstance(painting.annotate.bench.guiding, Guiding)
