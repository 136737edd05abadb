from __future__ import annotations

import numpy as np

from napari_cellbrush.napari_ui.score_curve import ScoreCurve
from napari_cellbrush.session import Checkpoint

TIMELINE = [Checkpoint("first", 4, 0.5, None), Checkpoint("no score", 5, None, None),
            Checkpoint("second", 9, 0.7, (0.55, 0.8))]


def test_scored_models_are_points_over_the_strokes_painted_for_them(qtbot):
    curve = ScoreCurve()
    qtbot.addWidget(curve)
    curve.setValue(TIMELINE[:2])
    assert curve.isHidden()  # one point is no curve
    curve.setValue(TIMELINE)
    assert not curve.isHidden()
    x, y = curve._points.getData()
    np.testing.assert_array_equal(x, [4, 9])
    np.testing.assert_array_equal(y, [0.5, 0.7])
    np.testing.assert_allclose(curve._intervals.opts["top"], [0, 0.1])
    np.testing.assert_allclose(curve._intervals.opts["bottom"], [0, 0.15])


def test_a_click_on_a_point_chooses_its_model(qtbot):
    curve = ScoreCurve()
    qtbot.addWidget(curve)
    curve.setValue(TIMELINE)
    with qtbot.waitSignal(curve.chosen) as chosen:
        curve._points.sigPointsClicked.emit(curve._points, [curve._points.scatter.points()[1]], None)
    assert chosen.args == ["second"]
