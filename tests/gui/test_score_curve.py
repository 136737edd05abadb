from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_cellbrush.napari_ui.history_panel import HistoryPanel
from napari_cellbrush.napari_ui.score_curve import ScoreCurve
from napari_cellbrush.session import Checkpoint, Run

TIMELINE = [Checkpoint("first", 4, 0.5, None), Checkpoint("no score", 5, None, None),
            Checkpoint("second", 9, 0.7, (0.55, 0.8))]


@pytest.fixture
def curve(qtbot):
    curve = ScoreCurve()
    qtbot.addWidget(curve)
    curve.resize(300, curve.height())
    return curve


@pytest.fixture
def panel(qtbot):
    panel = HistoryPanel()
    qtbot.addWidget(panel)
    panel.resize(260, 300)
    return panel


def test_scored_models_are_points_over_what_was_labelled_for_them(curve):
    curve.setValue(TIMELINE[:2])
    assert curve.isHidden()  # one point is no curve
    curve.setValue(TIMELINE)
    assert not curve.isHidden()
    x, y = curve._points.getData()
    np.testing.assert_array_equal(x, [4, 9])
    np.testing.assert_array_equal(y, [0.5, 0.7])
    np.testing.assert_allclose(curve._intervals.opts["top"], [0, 0.1])
    np.testing.assert_allclose(curve._intervals.opts["bottom"], [0, 0.15])


def ticks(axis) -> list[str]:
    values = axis.tickValues(*axis.range, axis.size().width())
    return [text for spacing, at in values for text in axis.tickStrings(at, axis.scale, spacing)]


@pytest.mark.parametrize("counts", [(60, 60), (60, 60, 60, 61), (0, 1), (3, 900, 900), (7,) * 40])
def test_the_axis_has_whole_numbers_and_no_model_hides_another(curve, counts):
    curve.setValue([Checkpoint(str(i), n, 0.7, None) for i, n in enumerate(counts)])
    curve.show()
    axis = curve._plot.getAxis("bottom")
    left, right = axis.range
    shown = [text for text in ticks(axis) if text]
    assert len(shown) > 1
    assert all(text.isdecimal() for text in shown)
    assert right - left >= 2
    x, _ = curve._points.getData()
    assert left < x.min()
    assert x.max() < right
    assert len(set(x)) == len(counts)
    assert max(abs(x - counts)) <= 0.25 * (right - left)


def test_the_chosen_model_is_read_in_a_narrow_dock(panel):
    names = [f"a section of a mouse brain, second staining model-{n}" for n in (2, 3)]
    panel.setValue([Checkpoint(name, 16, 0.731, (0.37, 1.0)) for name in names], "", Run(), True)
    panel.show()
    shown = panel.choice.shown_text()
    assert shown.startswith("a se")
    assert "…" in shown
    assert shown.endswith("-3: 0.73")
    assert panel.choice.fontMetrics().horizontalAdvance(shown) < 260
    assert panel.choice.itemData(0, Qt.ItemDataRole.ToolTipRole) == (
        f"{names[1]}: Score 0.73 (0.37 to 1.00), 16 labelled pieces.")
    assert panel.details.text() == "Score 0.73 (0.37 to 1.00), 16 labelled pieces."


def test_a_click_on_a_point_chooses_its_model(qtbot, curve):
    curve.setValue(TIMELINE)
    with qtbot.waitSignal(curve.chosen) as chosen:
        curve._points.sigPointsClicked.emit(curve._points, [curve._points.scatter.points()[1]], None)
    assert chosen.args == ["second"]
