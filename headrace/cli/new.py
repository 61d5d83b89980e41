"""``headrace new``: a pipeline of a table, from its file to a model that answers and is watched."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time as clock
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.prompt import Prompt
from rich.table import Table

from headrace.cli.place import typed
from headrace.instants import shown
from headrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from headrace.scaffold import Plan

console = Console()
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def new(
    name: Annotated[str, typer.Argument(help="What the pipeline is to be called, such as churn.")],
    data: Annotated[
        str,
        typer.Option(help="Its table: a file, a glob or a URI of CSV, JSON lines or Parquet; or SELECT …"),
    ],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    database: Annotated[
        str, typer.Option(help="Of a SELECT: an SQLAlchemy URL, as '$SHOP_DATABASE' to keep it out of code.")
    ] = "",
    time: Annotated[str, typer.Option(help="The column that says when the question is asked.")] = "",
    known_after: Annotated[
        str, typer.Option(help="How long after that the truth is known: 36h, 2d, 4w; a day if left out.")
    ] = "",
    entity: Annotated[
        str, typer.Option(help="The column of what has a history: a customer, a shop, a machine.")
    ] = "",
    not_known: Annotated[
        list[str] | None, typer.Option(help="A column that is filled in afterwards; may be given again.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A column to learn from whatever is doubted; may be given again.")
    ] = None,
    time_format: Annotated[
        list[str] | None, typer.Option(help="How a column's times are written: 'day=%d.%m.%Y'.")
    ] = None,
    zone: Annotated[str, typer.Option(help="The time zone of times without an offset.")] = "UTC",
    classes: Annotated[
        bool | None,
        typer.Option(
            "--classes/--number", help="Whether a target of numbers names classes, or says how much."
        ),
    ] = None,
    run: Annotated[bool, typer.Option(help="Whether to live with it at once.")] = True,
) -> None:
    """Write a pipeline for a table, then train a model, release it if it is good, and watch it.

    Columns that know the answer, come later or say nothing are left out, and named with the reason. What it
    writes is yours to edit.
    """
    import duckdb

    from headrace.pipeline import declared, load
    from headrace.project import Project
    from headrace.scaffold import Asked, plan, write
    from headrace.scaffold.plan import checked

    began = clock.perf_counter()
    checked(name, declared())
    formats = dict(_pair(one) for one in time_format or ())
    after = duration(known_after) if known_after else None
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(str(Path(scratch, "looked.db"))) as con:
        con.execute("SET TimeZone = 'UTC'")
        data = data if database else typed(data)
        dialect = _look(con, data, zone, database)
        if sys.stdin.isatty():
            time, after, entity, not_known = _ask(con, target, time, after, entity, not_known)
        asked = Asked(
            *(name, data, target, time, after, entity),
            not_known=tuple(not_known or ()),
            keep=tuple(keep or ()),
            formats=formats,
            zone=zone,
            number=None if classes is None else not classes,
            database=database,
            dialect=dialect,
        )
        with console.status("Looking at it…"):
            made = plan(con, asked)
        folder = Project.here().folder
        files = write(con, made, folder)
    _tell(made)
    console.print("Written, and yours to edit:")
    for file in files:
        console.print(f"  {file}", highlight=False)
    load(name)
    if run:
        _live(made)
        console.print(f"From the file to this in {clock.perf_counter() - began:.0f} s.", highlight=False)
    console.print(
        f"`headrace status {name}` tells how it does; `make up` serves it, with Prefect's and MLflow's UI.",
        markup=False,
        highlight=False,
    )


def duration(text: str) -> timedelta:
    """Return a span of time as people write it.

    >>> duration("36h"), duration("2 days")
    (datetime.timedelta(days=1, seconds=43200), datetime.timedelta(days=2))
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])[a-z]*\s*", text)
    if not found:
        raise typer.BadParameter(f"`{text}` is no span of time: write 30m, 36h, 2d or 4w")
    return timedelta(**{UNITS[found[2]]: float(found[1])})


def _pair(text: str) -> tuple[str, str]:
    column, equals, how = text.partition("=")
    if not equals or "%" not in how:
        raise typer.BadParameter(f"`{text}`: write COLUMN=FORMAT, such as 'day=%d.%m.%Y'")
    return column, how


def _look(con: duckdb.DuckDBPyConnection, data: str, zone: str, database: str = "") -> str:
    """Make the table or view ``given`` of all rows; return which kind of database has them, if one has."""
    from headrace.scaffold.errors import NoDatabase, Unreadable
    from headrace.scaffold.look import GIVEN
    from headrace.sources import Query
    from headrace.sources.errors import SourceUnreadable
    from headrace.sources.files import look
    from headrace.sources.query import look as look_in_database

    zones = {one for (one,) in con.sql("SELECT name FROM pg_timezone_names()").fetchall()}
    if zone not in zones:
        raise typer.BadParameter(f"`--zone {zone}` is no time zone: they are named as Europe/Berlin is")
    asks = re.match(r"\s*(select|with)\s", data, re.IGNORECASE) is not None
    if asks != bool(database):
        raise NoDatabase(
            "A query was given, but no database" if asks else "A database was given, but no query"
        )
    try:
        if database:
            return look_in_database(con, GIVEN, Query(database, data))
        look(con, GIVEN, data)
    except SourceUnreadable as error:
        raise Unreadable("The query" if database else data, error.reason) from None
    return ""


def _ask(
    con: duckdb.DuckDBPyConnection,
    target: str,
    time: str,
    after: timedelta | None,
    entity: str,
    not_known: list[str] | None,
) -> tuple[str, timedelta | None, str, list[str]]:
    """Ask a person what no option said, at most four things; Enter takes what is proposed."""
    from headrace.scaffold.plan import times

    names = [name for name, *_ in con.sql("DESCRIBE given").fetchall()]
    console.print(f"Columns: {', '.join(names)}", markup=False, highlight=False)
    if not time and len(found := [one for one in times(con) if one != target]) > 1:
        time = Prompt.ask("When is the question asked?", choices=found, default=found[0], console=console)
    if after is None:
        after = duration(
            Prompt.ask(f"How long after that is {escape(target)} known?", default="1d", console=console)
        )
    if not entity:
        told = "Whose history counts (a customer, a shop, a machine)? Enter: nobody's"
        entity = Prompt.ask(told, choices=["", *names], show_choices=False, default="", console=console)
    if not_known is None:
        told = "Which columns are filled in after the question is asked? Enter: none beside the target"
        said = Prompt.ask(told, default="", console=console)
        not_known = [one.strip() for one in said.split(",") if one.strip()]
    return time, after, entity, not_known


def _tell(plan: Plan) -> None:
    """Say what was found and decided, and what was left out."""
    table = Table("", f"{plan.name}, of {plan.rows:,} rows", show_lines=False)
    for what, told in _decided(plan):
        table.add_row(what, escape(told))
    console.print(table)
    if plan.left_out:
        out = Table("left out", "why")
        for one in sorted(plan.left_out, key=lambda one: not one.serious):
            out.add_row(escape(one.column), escape(one.why), style="red" if one.serious else None)
        console.print(out)


def _decided(plan: Plan) -> Iterator[tuple[str, str]]:
    from headrace.scaffold.code import phrase

    asked = {"number": "how much", "binary": "whether", "classes": "which"}[plan.kind]
    of = (
        f", {plan.classes[0]} or not"
        if plan.kind == "binary"
        else f", one of {len(plan.classes)}" * bool(plan.classes)
    )
    yield "asked", f"{asked}: {plan.target.given}{of}; the truth of {plan.known:,} rows is known"
    if plan.dealt:
        yield (
            "when",
            "no column says: rows are dealt into days, to hold some out; see the pipeline's first lines",
        )
    else:
        yield "when", f"at {plan.time.given}; the truth comes {phrase(plan.known_after)} later"
    yield "a row is", " and ".join(plan.keys)
    if plan.entity:
        told = f"{plan.entity.given}, {plan.entity.distinct:,} of them, {phrase(plan.lookback)} back"
        yield "history of", told
    inputs = [*plan.texts, *plan.numbers, *plan.ages, *plan.clock]
    yield "learnt from", f"{len(inputs)} columns: {', '.join(inputs[:12])}{' …' * (len(inputs) > 12)}"
    yield "windows", f"{phrase(plan.window)} each; {phrase(plan.holdout)} held out"
    if plan.doubled:
        yield "copies", f"{plan.doubled:,} rows are exact copies; one of each is kept"
    if plan.timeless:
        yield "no time", f"{plan.timeless:,} rows are left out for want of one"
    if plan.nameless and plan.entity:
        yield f"no {plan.entity.given}", f"{plan.nameless:,} rows are left out for want of one"
    for name, saved in plan.strong.items():
        given = plan.column(name).given
        asked = f"is it known at {plan.time.given or 'once'}? If not: --not-known {given!r}"
        yield given, f"alone it saves {saved:.0%} of what is lost without it: {asked}"
    for one in plan.columns:
        if one.note:
            yield one.given, one.note


def _live(plan: Plan) -> None:
    """Land, train and release as of then; then live until the rows end, and say how it does."""
    from headrace import services
    from headrace.cli.live import answer
    from headrace.cli.status import status
    from headrace.project import Project
    from headrace.registry import champion

    settings = Settings()
    with services.running(services.prefect(settings), settings):
        for flow, at in (("cycle", plan.first), ("train", plan.first), ("cycle", plan.end)):
            console.print(f"[bold]{flow}[/] as of {shown(at)} UTC", highlight=False)
            command = [sys.executable, "-m", "flows", flow, plan.name, "--as-of", f"{at:%Y-%m-%dT%H:%M:%SZ}"]
            done = subprocess.run(command, env=services.environment(settings), check=False)
            if done.returncode:
                raise typer.Exit(done.returncode)
            if flow == "train" and not champion(Project.here().mlflow, plan.name):
                console.print(
                    "No model was released: none is proven better than a guess from the past alone. More "
                    f"rows, an `--entity`, or features in features/sql/{plan.name}_history.sql may help.",
                    markup=False,
                    highlight=False,
                )
                raise typer.Exit(1)
    status(plan.name, as_json=False)
    answer(settings, plan.name)
