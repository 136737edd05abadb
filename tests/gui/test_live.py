"""Live with real mouse strokes on a real window."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cellbrush.napari_ui.workbench import workbench_for


@pytest.fixture
def live(viewer, workspace, image, person):
    """An image with Live on, drawn and waiting for strokes."""
    viewer.add_image(image, name="cells")
    viewer.reset_view()
    QTest.qWait(50)
    person.click(workspace.annotate.live.button)
    bench = workspace.annotate.bench
    person.wait(lambda: "two classes" in bench.session.live.notice.text)
    return bench.live


def paint(viewer, person, live, value, points):
    """One stroke of a class, and the generation it gives."""
    before = live._watch.strokes.generation
    layer = viewer.layers.selection.active
    layer.selected_label = value
    person.drag(points)
    person.wait(lambda: live._watch.strokes.generation > before)


def paint_two_classes(viewer, person, live):
    paint(viewer, person, live, 1, [(38, 10), (40, 80), (40, 140)])
    paint(viewer, person, live, 2, [(16, 25), (24, 25)])
    paint(viewer, person, live, 2, [(60, 70), (60, 80)])


def mask(viewer):
    return viewer.layers["cells live"].data


def is_answered(live):
    """Whether the mask shows the newest strokes (the image is one tile)."""
    return live.answered == live._watch.strokes.generation


def agreement(viewer, image):
    truth = np.where(image > 0.5, 2, 1)
    return (mask(viewer) == truth).mean()


def test_a_mask_follows_the_strokes_and_forgets_what_is_taken_back(viewer, live, person, image):
    assert not mask(viewer).any()
    paint_two_classes(viewer, person, live)
    person.wait(lambda: is_answered(live))
    assert agreement(viewer, image) > 0.9
    good = mask(viewer).copy()
    # A large stroke that is wrong, and undo.
    paint(viewer, person, live, 1, [(20, 75), (20, 80)])
    paint(viewer, person, live, 1, [(60, 120), (60, 130)])
    person.wait(lambda: is_answered(live))
    assert not np.array_equal(mask(viewer), good)
    for _ in range(2):
        person.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    person.wait(lambda: is_answered(live))
    np.testing.assert_array_equal(mask(viewer), good)
    # Without any stroke there is no mask.
    for _ in range(3):
        person.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    person.wait(lambda: not mask(viewer).any())
    assert workbench_for(viewer).session.live.busy
