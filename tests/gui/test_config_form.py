from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QComboBox, QDoubleSpinBox, QSpinBox, QWidget

from napari_cellbrush.config import InferenceConfig, TrainingConfig
from napari_cellbrush.napari_ui.config_form import ConfigForm


@pytest.fixture
def form(qtbot):
    form = ConfigForm(TrainingConfig)
    qtbot.addWidget(form)
    return form


def leaf_names(model: type[BaseModel], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= leaf_names(field.annotation, f"{prefix}{name}.")
        else:
            names.add(prefix + name)
    return names


def wheel(widget: QWidget) -> None:
    centre = QPointF(widget.rect().center())
    QApplication.sendEvent(widget, QWheelEvent(
        centre, QPointF(widget.mapToGlobal(centre.toPoint())), QPoint(0, -120), QPoint(0, -120),
        Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False))


def type_into(qtbot, box: QWidget, text: str) -> None:
    box.selectAll()
    qtbot.keyClicks(box, text)


@pytest.mark.parametrize("settings_class", [TrainingConfig, InferenceConfig])
def test_every_setting_has_an_editor_with_help_and_the_form_starts_with_the_defaults(qtbot, settings_class):
    form = ConfigForm(settings_class)
    qtbot.addWidget(form)
    for name in leaf_names(settings_class):
        assert form.findChild(QWidget, name).toolTip(), name
    assert form.value() == settings_class()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.floats(1e-5, 3e-3), minutes=st.floats(0, 1440, exclude_min=True, allow_subnormal=False),
       momentum=st.floats(0, 1, exclude_max=True, allow_subnormal=False), seed=st.integers(0, 2**31 - 1),
       loss=st.sampled_from(["cross_entropy", "dice", "focal"]), flips=st.booleans(), depth=st.integers(3, 5))
def test_settings_come_back_as_they_were_set(form, rate, minutes, momentum, seed, loss, flips, depth):
    # Beyond 25 decimals a number box rounds; nobody types that.
    minutes, momentum = max(minutes, 1e-6), momentum if momentum > 1e-6 else 0.0
    config = TrainingConfig().replace(
        learning_rate=rate, max_minutes=minutes, momentum=momentum, seed=seed, loss=loss,
        augmentation={"flips": flips}, network={"depth": depth})
    form.setValue(config)
    assert form.value() == config


@pytest.mark.parametrize("text", ["5e-4", "0.0005", "0,0005", "5E-04"])
def test_small_numbers_can_be_typed_and_are_shown_exactly(qtbot, form, text):
    box = form.findChild(QDoubleSpinBox, "learning_rate")
    form.setValue(TrainingConfig(learning_rate=1e-3))
    assert box.text() == "0.001"
    type_into(qtbot, box, text)
    assert form.value().learning_rate == 5e-4
    assert box.text() == "0.0005"


def test_what_is_being_typed_counts_before_the_editor_loses_the_focus(qtbot, form):
    type_into(qtbot, form.findChild(QDoubleSpinBox, "max_minutes"), "2.5 min")
    type_into(qtbot, form.findChild(QSpinBox, "max_steps"), "77")
    assert (form.value().max_minutes, form.value().max_steps) == (2.5, 77)


@pytest.mark.parametrize("text", ["0.5", "0", "1e-9", "-", "e", ""])
def test_numbers_out_of_bounds_or_unfinished_go_back_to_the_last_value(qtbot, form, text):
    box = form.findChild(QDoubleSpinBox, "learning_rate")
    type_into(qtbot, box, text)
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert form.value().learning_rate == TrainingConfig().learning_rate


def test_a_zero_with_a_meaning_is_shown_as_a_word_and_can_be_typed_over_and_back(qtbot):
    form = ConfigForm(InferenceConfig)
    qtbot.addWidget(form)
    for kind, name in ((QDoubleSpinBox, "diameter_px"), (QSpinBox, "tile_size_px")):
        box = form.findChild(kind, name)
        assert box.text() == "automatic"
        type_into(qtbot, box, "300")
        assert getattr(form.value(), name) == 300
        assert box.text() == "300 px"
        qtbot.keyClick(box, Qt.Key.Key_End)
        type_into(qtbot, box, "0")
        qtbot.keyClick(box, Qt.Key.Key_Return)
        assert getattr(form.value(), name) == 0
        assert box.text() == "automatic"
        qtbot.keyClick(box, Qt.Key.Key_End)
        qtbot.keyClick(box, Qt.Key.Key_Backspace)
        qtbot.keyClick(box, Qt.Key.Key_Return)
        assert getattr(form.value(), name) == 0


def test_letters_cannot_be_typed_into_a_number(qtbot, form):
    box = form.findChild(QDoubleSpinBox, "learning_rate")
    type_into(qtbot, box, "abc")
    assert form.value().learning_rate == TrainingConfig().learning_rate


@pytest.mark.parametrize(("name", "upwards"), [("momentum", True), ("momentum", False), ("max_minutes", False),
                                               ("learning_rate", True), ("learning_rate", False), ("dropout", True),
                                               ("dropout", False), ("weight_decay", False)])
def test_stepping_with_the_keys_moves_every_time_until_a_bound_and_never_leaves_the_bounds(
        qtbot, form, name, upwards):
    box = form.findChild(QDoubleSpinBox, name)
    # ConfigForm.value() raises for a value beyond the bounds.
    values = [getattr(form.value(), name)]
    for _ in range(40):
        qtbot.keyClick(box, Qt.Key.Key_Up if upwards else Qt.Key.Key_Down)
        values.append(getattr(form.value(), name))
    moves = [after - before for before, after in itertools.pairwise(values)]
    first_stop = next((i for i, move in enumerate(moves) if move == 0), len(moves))
    assert all(move > 0 if upwards else move < 0 for move in moves[:first_stop])
    assert not any(moves[first_stop:])


def test_bounds_of_whole_numbers_are_those_of_the_settings(form):
    box = form.findChild(QSpinBox, "batch_size")
    assert (box.minimum(), box.maximum()) == (1, 32)
    assert form.findChild(QSpinBox, "seed").maximum() == 2**31 - 1


@pytest.mark.parametrize("name", ["batch_size", "learning_rate", "loss"])
def test_the_wheel_changes_nothing_unless_the_editor_has_the_focus(qtbot, form, name):
    form.advanced.expand(animate=False)
    form.show()
    form.activateWindow()
    box = form.findChild(QWidget, name)
    other = form.findChild(QWidget, "seed")
    other.setFocus()
    qtbot.waitUntil(other.hasFocus)
    wheel(box)
    assert form.value() == TrainingConfig()
    box.setFocus()
    qtbot.waitUntil(box.hasFocus)
    wheel(box)
    assert form.value() != TrainingConfig()


def test_a_change_is_announced_once_and_setting_the_same_value_is_silent(qtbot, form):
    heard = []
    form.valueChanged.connect(heard.append)
    changed = TrainingConfig(seed=3, batch_size=8)
    form.setValue(changed)
    form.setValue(changed)
    assert heard == [changed]
    loss = form.findChild(QComboBox, "loss")
    loss.setCurrentIndex(loss.findText("dice"))
    assert heard[-1] == changed.replace(loss="dice")
    form.reset()
    assert heard[-1] == TrainingConfig()


def test_advanced_settings_are_folded_away_and_the_rest_is_not(qtbot, form):
    form.show()
    qtbot.waitExposed(form)
    assert form.findChild(QWidget, "max_minutes").isVisible()
    assert not form.findChild(QWidget, "learning_rate").visibleRegion().boundingRect().height()
    form.advanced.expand(animate=False)
    qtbot.waitUntil(lambda: form.findChild(QWidget, "learning_rate").visibleRegion().boundingRect().height() > 0)


def test_of_a_group_too_only_the_advanced_settings_are_folded_away(qtbot):
    form = ConfigForm(InferenceConfig)
    qtbot.addWidget(form)
    form.show()
    qtbot.waitExposed(form)
    assert form.findChild(QWidget, "objects.min_object_px").isVisible()
    hidden = form.findChild(QWidget, "objects.smoothing_px")
    assert not hidden.visibleRegion().boundingRect().height()
    form.advanced.expand(animate=False)
    qtbot.waitUntil(lambda: hidden.visibleRegion().boundingRect().height() > 0)
