from __future__ import annotations

import math

import numpy as np
import pytest
from qtpy.QtGui import QColor, QPalette

from napari_cellbrush.napari_ui import curve as curve_module
from napari_cellbrush.napari_ui.curve import LearningCurve


@pytest.fixture
def curve(qtbot):
    curve = LearningCurve()
    qtbot.addWidget(curve)
    curve.resize(400, curve.height())
    curve.show()
    qtbot.waitExposed(curve)
    return curve


def colours(curve: LearningCurve) -> set[str]:
    image = curve.grab().toImage()
    return {image.pixelColor(x, y).name() for x in range(image.width()) for y in range(image.height())}


def test_losses_are_drawn_raw_and_smoothed(qtbot, curve):
    curve.start(100, None)
    losses = [1.0, 3.0, 2.0]
    for step, loss in enumerate(losses, start=1):
        curve.add_loss(step, loss)
    qtbot.waitUntil(lambda: curve._loss_item.yData is not None and len(curve._loss_item.yData) == 3)
    np.testing.assert_array_equal(curve._loss_item.yData, losses)
    weights = [[0.9 ** (n - k) for k in range(n + 1)] for n in range(3)]
    expected = [np.average(losses[: n + 1], weights=weights[n]) for n in range(3)]
    np.testing.assert_allclose(curve._smoothed_item.yData, expected)


def test_the_score_appears_in_its_colour_and_the_base_as_a_line(qtbot, curve):
    curve.start(10, None)
    assert curve_module.SCORE_COLOR not in colours(curve)
    curve.start(10, 0.5)
    assert curve_module.SCORE_COLOR in colours(curve)
    assert curve._base_line.value() == 0.5
    assert "0.50" in curve._base_line.label.toPlainText()


def test_redraws_are_at_most_ten_a_second(qtbot, curve, monkeypatch):
    redraws = []
    curve.start(1000, None)
    monkeypatch.setattr(curve._loss, "draw", lambda item: redraws.append(1))
    for step in range(500):
        curve.add_loss(step, 1.0)
    assert not redraws
    qtbot.wait(250)
    assert len(redraws) == 1


def test_a_new_run_forgets_the_old_one(qtbot, curve):
    curve.start(10, 0.5)
    curve.add_loss(1, 1.0)
    curve.add_score(1, 0.7)
    curve.start(20, None)
    qtbot.wait(150)
    assert len(curve._loss.x) == len(curve._score.x) == 0
    assert not curve._base_line.isVisible()
    assert curve._plot.viewRange()[0][1] == pytest.approx(20, rel=0.05)


def test_a_loss_that_is_no_number_does_not_spoil_the_curve(qtbot, curve):
    curve.start(10, None)
    for step, loss in enumerate([1.0, math.nan, math.inf, 1.0]):
        curve.add_loss(step, loss)
    qtbot.wait(150)
    np.testing.assert_allclose(curve._smoothed_item.yData, [1.0, 1.0])


def test_the_axes_take_the_text_colour_of_the_theme(qtbot, curve):
    palette = QPalette()
    palette.setColor(QPalette.ColorRole.WindowText, QColor("#12d456"))
    curve.setPalette(palette)
    assert "#12d456" in colours(curve)
