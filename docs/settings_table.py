"""mkdocs hook: writes the tables of settings from the settings themselves, so that they cannot go out of date.

A line ``<!-- settings: TrainingConfig -->`` of a page becomes the table of that class.
"""

from __future__ import annotations

import re
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from napari_cellbrush import config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return re.sub(r"<!-- settings: (\w+) -->", lambda found: table(getattr(config, found[1])), markdown)


def table(settings_class: type[config.Settings]) -> str:
    """A Markdown table of a settings class; nested groups become tables of their own in the page."""
    rows = ["| Name | Default | Range | What it does |", "|---|---|---|---|"]
    for name, field in settings_class.model_fields.items():
        if isinstance(field.default, config.Settings):
            continue
        what = f"**{field.title}.** {field.description}"
        rows.append(f"| `{name}` | {_value(field)} | {_range(field)} | {what} |")
    return "\n".join(rows)


def _value(field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unit = str(extra.get("unit", ""))
    value = {True: "yes", False: "no"}[field.default] if isinstance(field.default, bool) else str(field.default)
    return f"{value} {unit}".strip()


def _range(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ())
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    found = [f"{signs[type(m)][0]} {getattr(m, signs[type(m)][1])}" for m in field.metadata if type(m) in signs]
    return ", ".join(found)
