from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest


@pytest.fixture
def ready(viewer, workspace, image, person):
    """A channel stack that is not one unit a pixel, an annotation being painted, the Segment tab in front."""
    viewer.add_image(np.stack([image] * 5), name="cells", scale=(1, 0.5, 0.5))
    workspace.session.set_axes(workspace.session.image.key, "ZYX")
    person.click(workspace.annotate.new)
    workspace.show_tab("segment")
    viewer.reset_view()
    QTest.qWait(50)
    return workspace


def test_a_line_across_an_object_becomes_the_diameter(viewer, ready, person):
    strokes = viewer.layers["cells annotation"]
    names, centre = [layer.name for layer in viewer.layers], viewer.scene.camera.center
    person.click(ready.segment.measure)
    assert viewer.layers.selection.active.name == "length"
    person.drag([(10, 10), (15, 15), (22, 19)])
    person.wait(lambda: not ready.segment.measure.isChecked())
    assert ready.session.inference_config.diameter_px == pytest.approx(30, abs=1)
    assert ready.segment.config.value().diameter_px == ready.session.inference_config.diameter_px
    assert [layer.name for layer in viewer.layers] == names
    assert viewer.layers.selection.active.name == "cells annotation"
    assert strokes.mode == "paint"
    assert not strokes.data.any()
    assert viewer.scene.camera.center == centre
    person.drag([(10, 10), (10, 20)])
    assert strokes.data.any()


@pytest.mark.parametrize("end", ["escape", "button", "layer"])
def test_it_ends_without_a_length_too(viewer, ready, person, end):
    names = [layer.name for layer in viewer.layers]
    person.click(ready.segment.measure)
    person.drag([(10, 10)])
    assert ready.segment.measure.isChecked()
    if end == "escape":
        person.key(Qt.Key.Key_Escape)
    elif end == "button":
        person.click(ready.segment.measure)
    else:
        viewer.layers.remove("length")
    assert not ready.segment.measure.isChecked()
    assert ready.session.inference_config.diameter_px == 0
    assert [layer.name for layer in viewer.layers] == names
    assert viewer.layers.selection.active.name == "cells annotation"
