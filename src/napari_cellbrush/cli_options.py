"""Settings as command-line options: one option a field, made from its type, help, unit and default.

Only what is really given on the command line ends up in the result, so that it can be laid over a settings file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from napari_cellbrush.config import Settings


def add_settings(
    parser: argparse.ArgumentParser, settings: type[Settings], title: str, *, prefix: str = "",
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Add an option for every field of ``settings``; those of nested settings are called ``--group.name``.

    Parameters
    ----------
    parser
        Where to add them, as a group of their own.
    settings
        The class whose fields become options.
    title
        Heading of the group.
    prefix
        Names of the enclosing settings, each followed by a dot.
    aliases
        Further option of a field, by the field's name.
    """
    group = parser.add_argument_group(title)
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            add_settings(parser, kind, field.title or name, prefix=f"{prefix}{name}.")
            continue
        options = [f"--{prefix}{name.replace('_', '-')}"]
        if aliases and name in aliases:
            options.insert(0, aliases[name])
        group.add_argument(*options, dest=prefix + name, default=argparse.SUPPRESS, help=_help(field),
                           **_reading(field))


def given_settings(arguments: argparse.Namespace, settings: type[Settings], prefix: str = "") -> dict[str, Any]:
    """The values that were given on the command line, nested like ``settings``."""
    given: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            nested = given_settings(arguments, field.annotation, f"{prefix}{name}.")
            given |= {name: nested} if nested else {}
        elif prefix + name in vars(arguments):
            given[name] = vars(arguments)[prefix + name]
    return given


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with the values of ``above``, group by group."""
    merged = dict(below)
    for name, value in above.items():
        merged[name] = laid_over(merged.get(name, {}), value) if isinstance(value, Mapping) else value
    return merged


def _reading(field: FieldInfo) -> dict[str, Any]:
    kind: Any = field.annotation
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return {"type": kind, "metavar": "N" if kind is int else "F"}


def _help(field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unit = f" {extra['unit']}" if extra.get("unit") else ""
    # argparse takes a percent sign for the start of a placeholder.
    return f"{field.description or field.title} Default: {field.default}{unit}.".replace("%", "%%")
