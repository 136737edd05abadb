"""A form for any group of settings, built from its fields.

Titles, help, units, bounds and choices come from :mod:`napari_cellbrush.config`; nothing here knows a single
setting by name.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from qtpy.QtCore import QEvent, QLocale, QObject, QSignalBlocker, Qt, Signal
from qtpy.QtGui import QIcon, QValidator
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QGroupBox,
    QLabel,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_cellbrush.config import Settings

SettingsT = TypeVar("SettingsT", bound=Settings)
Path = tuple[str, ...]

#: Enough digits after the point that Qt's rounding never changes a value that a person can type.
EXACT_DECIMALS = 25
#: The largest whole number of a QSpinBox.
LARGEST_INT = 2**31 - 1


@dataclass(frozen=True)
class _Bounds:
    """The range of a number, and whether its ends belong to it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    @classmethod
    def of(cls, field: FieldInfo) -> _Bounds:
        found: dict[str, Any] = {}
        for item in field.metadata:
            if isinstance(item, Ge):
                found["low"] = item.ge
            elif isinstance(item, Gt):
                found.update(low=item.gt, low_open=True)
            elif isinstance(item, Le):
                found["high"] = item.le
            elif isinstance(item, Lt):
                found.update(high=item.lt, high_open=True)
        return cls(**found)

    def contains(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low = f"{'more than' if self.low_open else 'from'} {_short(self.low)}" if math.isfinite(self.low) else ""
        high = f"{'less than' if self.high_open else 'to'} {_short(self.high)}" if math.isfinite(self.high) else ""
        return " ".join(part for part in (low, high) if part)


def _short(value: float) -> str:
    """The shortest text that reads back as the same number: 0.0005 is "0.0005", 1e-05 is "1e-05", 1.0 is "1"."""
    text = repr(float(value))
    return text.removesuffix(".0")


class NumberBox(QDoubleSpinBox):
    """A spin box for real numbers of any size: shows them exactly, takes 5e-4 as well as 0.0005 and 0,0005.

    A step is a tenth of the value's decade, and never smaller than a tenth of the decade of ``usual``; towards an
    end that is itself not allowed, it goes half the way.
    """

    def __init__(self, bounds: _Bounds, usual: float, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._bounds = bounds
        self._smallest_step = _decade(usual or (bounds.high if math.isfinite(bounds.high) else 1.0)) / 10
        self.setLocale(QLocale.c())
        self.setDecimals(EXACT_DECIMALS)
        self.setRange(max(bounds.low, -1e300), min(bounds.high, 1e300))

    def textFromValue(self, value: float) -> str:
        """The number without its unit."""
        return _short(value)

    def valueFromText(self, text: str | None) -> float:
        """The number of a text that :meth:`validate` accepts; the present value for any other."""
        value = self._parse(text or "")
        return self.value() if value is None else value

    def validate(self, text: str | None, position: int) -> tuple[QValidator.State, str, int]:
        """Acceptable is a number within the bounds; intermediate is all that can still become one."""
        bare = (text or "").removesuffix(self.suffix()).strip()
        value = self._parse(bare)
        if value is not None and self._bounds.contains(value):
            state = QValidator.State.Acceptable
        elif all(letter in "0123456789.,eE+-" + self.specialValueText() for letter in bare):
            state = QValidator.State.Intermediate
        else:
            state = QValidator.State.Invalid
        return state, text or "", position

    def fixup(self, text: str | None) -> str:
        """Text that is left unfinished goes back to the last value."""
        return self.textFromValue(self.value()) + self.suffix()

    def stepBy(self, steps: int) -> None:
        """Go up or down; see the class."""
        value = self.value()
        step = max(_decade(value) / 10, self._smallest_step)
        target = round(value / step + steps) * step
        bounds = self._bounds
        if target <= bounds.low:
            target = (value + bounds.low) / 2 if bounds.low_open else bounds.low
        elif target >= bounds.high:
            target = (value + bounds.high) / 2 if bounds.high_open else bounds.high
        self.setValue(float(f"{target:.6g}"))
        self.selectAll()

    def _parse(self, text: str) -> float | None:
        if text and text == self.specialValueText():
            return self.minimum()
        try:
            value = float(text.removesuffix(self.suffix()).strip().replace(",", "."))
        except ValueError:
            return None
        return value if math.isfinite(value) else None


def _decade(value: float) -> float:
    """The power of ten at or below a number's size; 0 for 0."""
    return float(10.0 ** math.floor(math.log10(abs(value)))) if value else 0.0


class _WheelGuard(QObject):
    """Lets the wheel scroll the dock; a value under the pointer changes only when it has the focus."""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        if event is None or event.type() != QEvent.Type.Wheel:
            return False
        if not isinstance(watched, QWidget) or watched.hasFocus():
            return False
        # An ignored event goes on to the parent: the scroll area.
        event.ignore()
        return True


@dataclass(frozen=True)
class _Editor:
    """A widget for one value, whatever its kind."""

    widget: QWidget
    value: Callable[[], Any]
    set_value: Callable[[Any], None]
    #: Qt signal, emitted whenever the value changed.
    changed: Any


def _edit_bool(field: FieldInfo) -> _Editor:
    box = QCheckBox()
    return _Editor(box, box.isChecked, box.setChecked, box.toggled)


def _edit_choice(field: FieldInfo) -> _Editor:
    box = QComboBox()
    for choice in get_args(field.annotation):
        box.addItem(str(choice).replace("_", " "), choice)
    # Long choices must not widen the dock.
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)

    def choose(value: Any) -> None:
        box.setCurrentIndex(box.findData(value))

    return _Editor(box, box.currentData, choose, box.currentIndexChanged)


def _edit_int(field: FieldInfo) -> _Editor:
    bounds = _Bounds.of(field)
    box = QSpinBox()
    box.setKeyboardTracking(False)
    box.setRange(int(max(bounds.low + bounds.low_open, -LARGEST_INT)),
                 int(min(bounds.high - bounds.high_open, LARGEST_INT)))
    box.setStepType(QSpinBox.StepType.AdaptiveDecimalStepType)
    return _Editor(box, _finished(box), box.setValue, box.valueChanged)


def _edit_float(field: FieldInfo) -> _Editor:
    box = NumberBox(_Bounds.of(field), float(field.default))
    box.setKeyboardTracking(False)
    return _Editor(box, _finished(box), box.setValue, box.valueChanged)


def _finished(box: QSpinBox | QDoubleSpinBox) -> Callable[[], Any]:
    """Read a spin box with what is being typed in it, even while it has the focus."""

    def read() -> Any:
        box.interpretText()
        return box.value()

    return read


def _make_editor(field: FieldInfo) -> _Editor:
    kind = field.annotation
    if get_origin(kind) is Literal:
        return _edit_choice(field)
    makers: dict[Any, Callable[[FieldInfo], _Editor]] = {bool: _edit_bool, int: _edit_int, float: _edit_float}
    if kind not in makers:
        raise TypeError(f"No editor for settings of type {kind}; add one to config_form")
    editor = makers[kind](field)
    unit = _extra(field, "unit")
    if isinstance(editor.widget, QSpinBox | QDoubleSpinBox) and unit:
        editor.widget.setSuffix(unit if unit == "°" else f" {unit}")
    if isinstance(editor.widget, QSpinBox | QDoubleSpinBox):
        editor.widget.setSpecialValueText(_extra(field, "zero"))
    return editor


def _extra(field: FieldInfo, name: str) -> Any:
    extra = field.json_schema_extra
    return extra.get(name, "") if isinstance(extra, dict) else ""


def _tool_tip(field: FieldInfo) -> str:
    """Help, range and default; as rich text, because Qt breaks only that into lines."""
    bounds = str(_Bounds.of(field))
    default = _short(field.default) if isinstance(field.default, float) else str(field.default).replace("_", " ")
    parts = [field.description or "", f"Range: {bounds}." if bounds else "", f"Default: {default}."]
    return "".join(f"<p>{html.escape(part)}</p>" for part in parts if part)


def _nested(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _has(settings_class: type[Settings], advanced: bool) -> bool:
    """Whether a group, or one inside it, holds any advanced settings, or any others."""
    fields = settings_class.model_fields.values()
    return any(_has(inner, advanced) if (inner := _nested(field)) is not None
               else bool(_extra(field, "advanced")) == advanced for field in fields)


def _leaves(settings: Settings, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in settings:
        if isinstance(value, Settings):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


class Fold(QCollapsible):
    """A collapsible that looks like a heading; its arrow is text, so that it has the theme's colour."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self.setExpandedIcon(QIcon())
        self.setCollapsedIcon(QIcon())
        self.toggleButton().setStyleSheet("text-align: left; background: transparent; border: none; padding: 4px 0;")
        self.toggled.connect(self._show_arrow)
        self._show_arrow(False)

    def _show_arrow(self, expanded: bool) -> None:
        self.setText(f"{'▾' if expanded else '▸'} {self._title}")


class ConfigForm(QWidget, Generic[SettingsT]):
    """Editors for every field of a :class:`~napari_cellbrush.config.Settings` class.

    Fields marked as advanced are folded away, group by group. Every editor's ``objectName`` is
    the dotted name of its setting, such as ``augmentation.flips``.

    Parameters
    ----------
    settings_class
        The settings to edit; the form starts with its defaults.
    parent
        Qt parent.
    """

    #: The new settings, after an edit by the person or by :meth:`setValue`.
    valueChanged = Signal(object)

    def __init__(self, settings_class: type[SettingsT], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._settings_class = settings_class
        self._editors: dict[Path, _Editor] = {}
        self._wheel_guard = _WheelGuard(self)
        self._build()
        self.setValue(settings_class())
        for editor in self._editors.values():
            editor.changed.connect(self._on_edited)

    def value(self) -> SettingsT:
        """The settings as they stand.

        Raises
        ------
        ConfigError
            If the settings contradict each other (no single editor can leave its bounds).
        """
        values: dict[str, Any] = {}
        for path, editor in self._editors.items():
            group = values
            for name in path[:-1]:
                group = group.setdefault(name, {})
            group[path[-1]] = editor.value()
        return self._settings_class.read(values)

    def setValue(self, settings: SettingsT) -> None:
        """Show other settings; emits :attr:`valueChanged` once if they differ."""
        changed = False
        for path, value in _leaves(settings):
            editor = self._editors[path]
            if editor.value() != value:
                blocker = QSignalBlocker(editor.widget)
                editor.set_value(value)
                blocker.unblock()
                changed = True
        if changed:
            self._on_edited()

    def put_below(self, name: str, widget: QWidget) -> None:
        """Put something of the dock's own into a row below a setting, named with dots."""
        editor = self._editors[tuple(name.split("."))].widget
        for layout in self.findChildren(QFormLayout):
            row, _ = layout.getWidgetPosition(editor)
            if row >= 0:
                layout.insertRow(row + 1, "", widget)

    def reset(self) -> None:
        """Go back to the defaults."""
        self.setValue(self._settings_class())

    def _build(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        if _has(self._settings_class, advanced=False):
            layout.addWidget(self._build_group(self._settings_class, (), advanced=False))
        if _has(self._settings_class, advanced=True):
            self.advanced = Fold("Advanced settings")
            self.advanced.addWidget(self._build_group(self._settings_class, (), advanced=True))
            button = QPushButton("Reset to defaults")
            button.clicked.connect(self.reset)
            self.advanced.addWidget(button)
            layout.addWidget(self.advanced)

    def _build_group(self, settings_class: type[Settings], path: Path, *, advanced: bool) -> QWidget:
        group = QWidget()
        layout = QFormLayout(group)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._fill(layout, settings_class, path, advanced)
        return group

    def _fill(self, layout: QFormLayout, settings_class: type[Settings], path: Path, advanced: bool) -> None:
        for name, field in settings_class.model_fields.items():
            inner = _nested(field)
            if inner is None:
                if bool(_extra(field, "advanced")) == advanced:
                    self._add_row(layout, field, (*path, name))
            elif not advanced:
                # The few that everybody sees need no frame of their own.
                self._fill(layout, inner, (*path, name), advanced)
            elif _has(inner, advanced):
                layout.addRow(self._build_titled(field.title or name, inner, (*path, name)))

    def _build_titled(self, title: str, settings_class: type[Settings], path: Path) -> QGroupBox:
        box = QGroupBox(title)
        layout = QVBoxLayout(box)
        layout.addWidget(self._build_group(settings_class, path, advanced=True))
        return box

    def _add_row(self, layout: QFormLayout, field: FieldInfo, path: Path) -> None:
        editor = _make_editor(field)
        widget = editor.widget
        widget.setObjectName(".".join(path))
        widget.setToolTip(_tool_tip(field))
        widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        widget.setMinimumWidth(60)
        widget.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        widget.installEventFilter(self._wheel_guard)
        label = QLabel(field.title or path[-1])
        label.setBuddy(widget)
        label.setToolTip(widget.toolTip())
        layout.addRow(label, widget)
        self._editors[path] = editor

    def _on_edited(self, *_: object) -> None:
        self.valueChanged.emit(self.value())
