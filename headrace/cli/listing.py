"""Lists: a table for a person, tab-separated lines for a pipe, JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.legible import legible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, RenderableType

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs; times are UTC.")]


def show(
    console: Console,
    lines: Sequence[Mapping[str, Any]],
    drawn: Callable[[], RenderableType],
    *,
    as_json: bool = False,
    nothing: str = "",
    hint: str = "",
) -> None:
    """Show ``lines``, of the same names each, ``drawn`` where a person looks on; or say ``nothing``.

    ``hint``, in Rich's markup, says to a person what else there is to see.
    """
    if as_json:
        tell(lines)
    elif not lines:
        console.print(nothing, highlight=False)
    elif console.is_terminal:
        console.print(drawn())
        if hint:
            console.print(hint, highlight=False)
    else:
        print("\t".join(lines[0]))
        for line in lines:
            print("\t".join(_cell(value) for value in line.values()))


def tell(found: object) -> None:
    """Print what was found, as JSON."""
    print(json.dumps(found, default=_structure, indent=2))


def _structure(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return _plain(value)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(_cell, value))
    return "" if value is None else legible(_plain(value), 10_000)
