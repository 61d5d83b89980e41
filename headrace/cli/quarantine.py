"""``headrace quarantine``: what may not pass, why, and what becomes of it."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from headrace.cli.instant import utc
from headrace.cli.listing import AsJson, tell
from headrace.cli.listing import show as show_list
from headrace.legible import legible
from headrace.quarantine import NothingLanded

if TYPE_CHECKING:
    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.quarantine import Entry

app = typer.Typer(help="Look at what may not pass, and decide on it.", no_args_is_help=True)
console = Console()
WAITS = "waits"
Id = Annotated[str, typer.Argument(help="Such as flights/2013-03-04/1; `list` shows them.")]


@app.command("list")
def listed(
    everything: Annotated[bool, typer.Option("--all", help="Also what was decided on.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what waits for a decision."""
    from headrace.quarantine import entries

    lake, ledger = _state()
    held = [(entry, _decision(entry, lake, ledger)) for entry in entries(lake)]
    held = [(entry, what) for entry, what in held if everything or what == WAITS]
    if not held and not lake.has_landed():
        raise NothingLanded(lake.root)
    lines = [
        {
            **{"entry": entry.id, "rows": entry.held.rows, "of": entry.of, "as_of": entry.as_of},
            **{"reasons": list(entry.reasons), "decision": what},
        }
        for entry, what in held
    ]

    def drawn() -> Table:
        entry_id = Column("entry", no_wrap=True)  # it is typed again: never cut
        table = Table(entry_id, "rows held", "of", "held as of (UTC)", "reasons", "decision")
        for entry, what in held:
            more = f"\n… and {len(entry.reasons) - 2} more" if len(entry.reasons) > 2 else ""
            reasons = escape("\n".join(map(legible, entry.reasons[:2]))) + more
            counts = f"{entry.held.rows:,}", f"{entry.of:,}"
            table.add_row(entry.id, *counts, f"{entry.as_of:%Y-%m-%d %H:%M}", reasons, escape(what))
        return table

    hint = "[bold]headrace quarantine show[/] ENTRY shows its rows."
    show_list(console, lines, drawn, as_json=as_json, nothing="Nothing waits in quarantine.", hint=hint)


@app.command()
def show(
    id: Id,
    rows: Annotated[int, typer.Option(help="How many rows to show.")] = 6,
    to: Annotated[str, typer.Option(help="Write all held rows to this .csv or .parquet file.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show why an entry is held, and its rows, those that broke a rule first."""
    from headrace.quarantine import find

    lake, ledger = _state()
    entry = find(lake, id)
    if as_json:
        tell(_told(entry, lake, ledger, rows))
        return
    console.print(f"[bold]{entry.id}[/]: {entry.held.rows:,} of {entry.of:,} rows held by `{entry.suite}`,")
    console.print(f"as of {entry.as_of:%Y-%m-%d %H:%M} UTC, because:", highlight=False)
    for reason in entry.reasons:
        console.print(f"  - {legible(reason, 1_000)}", markup=False, highlight=False)
    if (what := _decision(entry, lake, ledger)) != WAITS:
        console.print(f"It was {what}.", markup=False, highlight=False)
    if to:
        _export(lake, entry, Path(to))
        console.print(f"All {entry.held.rows:,} rows are in {to}.")
        return
    names, held = _rows(entry, lake, rows)
    rules = sorted({rule for *_, broken in held for rule in broken or []})
    # A row of the data is a column of this table: there are more columns than a terminal is wide.
    table = Table("", *(f"row {n}" for n in range(1, len(held) + 1)))
    breaks = (", ".join(str(rules.index(rule) + 1) for rule in broken or []) for *_, broken in held)
    table.add_row("breaks rule", *breaks, style="red", end_section=True)
    for place, name in enumerate(names):
        table.add_row(_cell(name), *(_cell(values[place]) for values in held))
    console.print(table)
    for number, rule in enumerate(rules, 1):
        console.print(f"  {number}: {legible(rule, 1_000)}", markup=False, highlight=False)


def _rows(entry: Entry, lake: Lake, most: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the names of an entry's columns, and rows, each with the rules that it broke at its end."""
    found = lake.connect({"held": entry.held}).sql(
        f"FROM held ORDER BY len(coalesce(broken_rules, [])) DESC LIMIT {most}"
    )
    return found.columns[:-1], found.fetchall()


def _told(entry: Entry, lake: Lake, ledger: Ledger, most: int) -> dict[str, Any]:
    names, held = _rows(entry, lake, most)
    return {
        **{"entry": entry.id, "suite": entry.suite, "as_of": entry.as_of, "reasons": entry.reasons},
        **{"held": entry.held.rows, "of": entry.of, "state": _decision(entry, lake, ledger)},
        "rows": [
            {**dict(zip(names, values, strict=True)), "broken_rules": broken} for *values, broken in held
        ],
    }


@app.command()
def release(
    id: Id,
    rows: Annotated[str, typer.Option(help="A .csv or .parquet file with the rows, mended.")] = "",
    as_of: Annotated[str, typer.Option(help="From when late rows count, UTC; the present if left out.")] = "",
) -> None:
    """Validate an entry again, as its suite is now, and land it, once."""
    from headrace import ingest
    from headrace.project import Project
    from headrace.quarantine import find
    from headrace.sources.errors import SourceUnreadable

    project = Project.here()
    lake, ledger = project.lake, project.ledger
    entry = find(lake, id)
    if rows and not Path(rows).exists():
        raise SourceUnreadable(id, [rows], "there is no such file")
    at = utc(as_of) if as_of else datetime.now(UTC)
    with ingest.workspace(project.settings.home) as folder:
        landed = ingest.release(
            project.pipeline(entry.pipeline),
            entry,
            lake,
            ledger,
            folder=folder,
            as_of=at,
            holder=_person(ledger, entry),
            rows=Path(rows) if rows else None,
        )
    instead = f", in place of {entry.held.rows:,}" if landed != entry.held.rows else ""
    console.print(f"{landed:,} rows of {id} landed in `{entry.table}`{instead}.")


@app.command()
def drop(
    id: Id,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Decide that an entry's rows shall never land; they are kept, and not brought again."""
    from headrace import quarantine

    lake, ledger = _state()
    entry = quarantine.find(lake, id)
    if not yes:
        typer.confirm(f"Shall the {entry.held.rows:,} rows of {id} never land?", abort=True)
    quarantine.drop(entry, lake, ledger, reason=reason, holder=_person(ledger, entry))
    console.print(f"{entry.held.rows:,} rows of {id} will not land.")


def _state() -> tuple[Lake, Ledger]:
    from headrace.project import Project

    project = Project.here()
    return project.lake, project.ledger


def _decision(entry: Entry, lake: Lake, ledger: Ledger) -> str:
    from headrace.quarantine import decisions, superseded

    if made := decisions(ledger, [entry]).get(entry.id):
        told = [f"{made.detail['decision']} {made.at:%Y-%m-%d %H:%M} UTC by {made.holder}"]
        return legible(": ".join([*told, *filter(None, [made.detail.get("reason")])]), 1_000)
    return "superseded: its source brought the window anew" if superseded(entry, lake) else WAITS


def _person(ledger: Ledger, entry: Entry) -> str:
    """Say who decides: the ledger keeps it. What a command that died here had claimed is let go at once."""
    from headrace.quarantine import KIND

    place = f"@{socket.gethostname()}, process "
    for made in ledger.entries(entry.pipeline, KIND, entry.id):
        _, here, process = made.holder.partition(place)
        if here and not _runs(int(process)):
            ledger.give_up(entry.pipeline, made.holder)
    return f"{getpass.getuser()}{place}{os.getpid()}"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _export(lake: Lake, entry: Entry, to: Path) -> None:
    from headrace.sources.errors import SourceUnreadable

    rows = lake.connect({"held": entry.held}).sql("SELECT * EXCLUDE (broken_rules) FROM held")
    match to.suffix:
        case ".csv":
            rows.write_csv(str(to))
        case ".parquet":
            rows.write_parquet(str(to))
        case other:
            raise SourceUnreadable(
                entry.id, [str(to)], f"rows are written as .csv or .parquet, not `{other}`"
            )


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "" if value is None else escape(legible(value))
