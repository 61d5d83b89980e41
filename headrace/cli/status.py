"""``headrace status``: how a pipeline is, in one look."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from headrace.cli.listing import AsJson  # noqa: TC001  # typer reads it
from headrace.instants import shown
from headrace.legible import legible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from headrace.status import Status

BARS = "▁▂▃▄▅▆▇█"
LONG, WHY = 1_000, 300
"""Characters of a line, and of a reason."""


def status(
    pipeline: Annotated[str, typer.Argument(help="Such as flights; all of them if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show which model serves, how well it does, what has changed, and what was decided and why."""
    from headrace import status as statuses
    from headrace.project import Project

    project, console = Project.here(), Console()
    specs = [project.pipeline(pipeline)] if pipeline else project.pipelines()
    found = [statuses.of(spec, project.lake, project.mlflow, project.ledger) for spec in specs]
    if as_json:
        print(json.dumps([one.to_json() for one in found], default=str, indent=2))
    elif pipeline:
        console.print(_whole(found[0]))
    else:
        console.print(_each(found))
        console.print("[bold]headrace status[/] PIPELINE says more of one.", highlight=False)


def _each(found: Iterable[Status]) -> Table:
    table = Table("pipeline", "serves", "last window", "score", "expected", "came true", "pending")
    for one in found:
        last = one.windows[-1] if one.windows else None
        table.add_row(
            one.pipeline,
            f"version {one.champion.version}, of {shown(one.champion.as_of)}" if one.champion else "nothing",
            shown(last.end) if last else "",
            one.title if last else "",
            _number(last.expected) if last else "",
            _number(last.realised) if last else "",
            str(len(one.pending) or ""),
        )
    return table


def _whole(one: Status) -> RenderableType:
    from headrace.status import HEAD, row

    serves = [Text(legible(one.serves, LONG)), *(Text(legible(each, LONG)) for each in one.beside)]
    if one.champion:
        champion = one.champion
        known = f"of what was known on {shown(champion.as_of)} UTC"
        serves.insert(0, Text(f"version {champion.version}, {champion.candidate}, {known}", "bold"))
    windows = Table(
        *(Column(name, no_wrap=name != HEAD[-1]) for name in HEAD), box=None, padding=(0, 1, 0, 0)
    )
    for window in one.windows:
        windows.add_row(*(legible(cell, LONG) for cell in row(window)))
    came = [window.realised for window in one.windows]
    line = Text(f"{one.title} {_line(came)} {'more' if one.rising else 'less'} is better")
    decided = Text()
    for each in one.decided:
        told = f"{shown(each.at.replace(microsecond=0))} UTC, as of {each.as_of}: "
        decided.append(told, "dim").append(f"{legible(each.what, LONG)}\n", "bold")
        decided.append(f"{legible(each.why, WHY)}\n" if each.why else "")
    return Group(
        Panel(Group(*serves), title=f"{one.pipeline}: which model serves?", title_align="left"),
        Panel(
            Group(line, windows) if one.windows else Text("No window was judged yet; `monitor` does that."),
            title="How well does it do?",
            title_align="left",
        ),
        Panel(_lines(one.changed), title="What has changed?", title_align="left"),
        Panel(_lines(one.pending), title="What is pending?", title_align="left"),
        Panel(
            decided if one.decided else Text("Nothing yet."),
            title="What was decided, and why?",
            title_align="left",
        ),
    )


def _lines(said: Iterable[str]) -> Text:
    return Text("\n".join(legible(one, LONG) for one in said) or "Nothing.")


def _line(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, spread = min(known), max(known) - min(known)
    return "".join(
        " " if value is None else BARS[round((value - low) / spread * 7) if spread else 3] for value in values
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
