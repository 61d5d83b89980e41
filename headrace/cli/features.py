"""``headrace features``: what features there are, how old they are, and if they are served as trained on."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from headrace.cli.instant import utc
from headrace.cli.listing import AsJson, tell
from headrace.cli.listing import show as show_list
from headrace.feature_store.errors import NothingToCompare
from headrace.feature_store.parity import SAMPLE
from headrace.legible import legible

if TYPE_CHECKING:
    from headrace.feature_store.catalog import View
    from headrace.feature_store.freshness import Freshness
    from headrace.lake import Lake, Window
    from headrace.pipeline import Pipeline
    from headrace.project import Project

app = typer.Typer(
    help="Look at the features: where from, how old, and served as trained on?", no_args_is_help=True
)
console = Console()
AsOf = Annotated[str, typer.Option(help="The instant to believe in, UTC; the present if left out.")]


@app.command("list")
def listed(as_of: AsOf = "", as_json: AsJson = False) -> None:
    """List the feature views, with the age of what they serve."""
    found = _views(_project(), as_of)
    lines = [
        {
            **{"view": view.name, "keys": list(view.keys), "features": [f.name for f in view.features]},
            "ttl_s": view.ttl.total_seconds() if view.ttl else None,
            "newest_online": view.freshness.online if view.freshness else None,
            "overdue": bool(view.freshness and view.freshness.overdue),
            "services": list(view.services),
        }
        for view in found
    ]

    def drawn() -> Table:
        rest = ("view", "keys", "features", "ttl", "newest online (UTC)", "age", "service")
        table = Table(*(Column(name, overflow="fold", no_wrap=name in ("view", "features")) for name in rest))
        for view in found:
            table.add_row(
                view.name,
                ", ".join(view.keys),
                str(len(view.features)),
                _ttl(view.ttl),
                *_age(view.freshness),
                ", ".join(view.services),
            )
        return table

    show_list(
        console,
        lines,
        drawn,
        as_json=as_json,
        nothing="No feature views are registered yet: [bold]materialize[/] does it.",
        hint="[bold]headrace features show[/] NAME tells more of a view or a feature.",
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A view, a feature, or view:feature; `list` shows the views.")],
    as_of: AsOf = "",
    as_json: AsJson = False,
) -> None:
    """Show a view or a feature: what it is, where it comes from, and which models use it."""
    from headrace.feature_store import catalog
    from headrace.sources.predictions import told

    project = _project()
    view, features = catalog.find(name, _views(project, as_of))
    used = [
        found
        for name in view.pipelines
        for found in catalog.models(name, features, project.lake, project.mlflow)
    ]
    built = catalog.last_build(view.table, project.lake) if view.table else None
    lines = {
        "view": f"[bold]{view.name}[/]",
        "what": escape(view.description),
        "owner": view.owner,
        "keys": ", ".join(view.keys),
        "ttl": _ttl(view.ttl),
        "raw tables": ", ".join(view.reads),
        "predicted by": told(catalog.predictors(view, project.lake).items()),
        "SQL": str(_near(view.sql)) if view.sql else "",
        "feature table": view.table,
        "last build": f"{built:%Y-%m-%d %H:%M} UTC by the clock" if built else "",
        "newest row": _newest(view.freshness),
        "services": ", ".join(view.services),
        "models": ", ".join(f"{release.pipeline} {release.version}" for release, _ in used) or "none yet",
    }
    trained = {
        feature.name: [f"{release.pipeline} {release.version}" for release, on in used if feature.name in on]
        for feature in features
    }
    if as_json:
        known = {what: said for what, said in lines.items() if said} | {"view": view.name}
        tell(known | {"features": [{**asdict(one), "trained on by": trained[one.name]} for one in features]})
        return
    facts = Table.grid(padding=(0, 2))
    for what, said in lines.items():
        if said:
            facts.add_row(what, said)
    console.print(facts, highlight=False)
    table = Table(_whole("feature"), "type", "what", "trained on by")
    for feature in features:
        by = ", ".join(trained[feature.name])
        table.add_row(feature.name, feature.type, escape(feature.description), by)
    console.print(table)


@app.command()
def parity(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")],
    sample: Annotated[int, typer.Option(min=1, help="How many predictions to compare.")] = SAMPLE,
    everything: Annotated[bool, typer.Option("--all", help="Compare all predictions.")] = False,
    as_of: Annotated[
        str, typer.Option(help="Compare the last window closed by then, UTC; the last scored if left out.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compare what the online store serves with what the point-in-time join gives; 1 if they differ."""
    from headrace.feature_store.parity import measure

    project = _project()
    spec = project.pipeline(pipeline)
    window = _window(spec, project.lake, as_of)
    found = measure(project.store, spec, project.lake, window, None if everything else sample)
    if as_json:
        tell(found)
        raise typer.Exit(bool(found.mismatches))
    compared = f"{found.values:,} values in {found.rows:,} predictions of {window}"
    if not found.mismatches:
        console.print(f"The online store serves what the join gives: all {compared} are the same.")
        return
    example = Column("for example", overflow="fold")
    table = Table(_whole("view"), _whole("feature"), "is served", "predictions", example)
    for m in found.mismatches:
        table.add_row(m.view, m.feature, m.cause, f"{m.rows:,}", escape(legible(m.example, 1_000)))
    console.print(table)
    console.print(f"Compared were {compared}.", highlight=False)
    raise typer.Exit(1)


@app.command()
def refill(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")],
    as_of: AsOf = "",
) -> None:
    """Fill the online store again from the feature tables, in place of what is there; readers are served."""
    from headrace import ingest
    from headrace.feature_store import store as feature_store
    from headrace.feature_store import tables
    from headrace.serving import log

    project = _project()
    spec, store = project.pipeline(pipeline), project.store
    end = utc(as_of) if as_of else datetime.now(UTC)
    complete = ingest.complete(spec, end, project.lake, project.ledger)
    until = log.predictable(spec, complete)
    reached = tables.edges(spec.feature_tables, complete, until)
    feature_store.forget(store, spec.feature_service, spec.start)
    with redirect_stdout(StringIO()):  # Feast says what it does, for another terminal than this
        feature_store.materialize(store, spec.feature_service, until, spec.start, reached)
    console.print(f"`{spec.feature_service}` is filled again, as of {end:%Y-%m-%d %H:%M} UTC.")


def _project() -> Project:
    from headrace.project import Project

    return Project.here()


def _views(project: Project, as_of: str) -> list[View]:
    from headrace.feature_store.catalog import views

    at = utc(as_of) if as_of else datetime.now(UTC)
    return views(project.store, project.pipelines(), at)


def _window(spec: Pipeline, lake: Lake, as_of: str) -> Window:
    """Return the last window closed by ``as_of``; without it the last one scored, or else closed by now."""
    from headrace.lake import windows

    predictions = lake.table(f"predictions/{spec.name}")
    at = utc(as_of) if as_of else datetime.now(UTC)
    if not as_of and predictions.exists():
        con = lake.connect({"predictions": predictions.name})
        ((last,),) = con.sql("SELECT max(event_timestamp) FROM predictions").fetchall()
        at = last + spec.window if last else at
    if not (closed := windows(spec.start, at, spec.window)):
        raise NothingToCompare(spec.name, f"any window closed by {at:%Y-%m-%d %H:%M} UTC")
    return closed[-1]


def _whole(name: str) -> Column:
    """A column of names, which are typed again: never cut."""
    return Column(name, no_wrap=True)


def _ttl(ttl: timedelta | None) -> str:
    return "" if ttl is None else _span(ttl) if ttl else "for ever"


def _span(span: timedelta) -> str:
    """Return days, or hours and minutes where it is less than one."""
    minutes = span // timedelta(minutes=1)
    return f"{minutes / 1440:.1f} days" if span.days else f"{minutes // 60}:{minutes % 60:02} h"


def _age(fresh: Freshness | None) -> tuple[str, str]:
    if fresh is None:
        return "when asked", ""
    newest = f"{fresh.online:%Y-%m-%d %H:%M}" if fresh.online else "none"
    age = "" if fresh.age is None else _span(fresh.age)
    return newest, f"[red]{', '.join(filter(None, [age, 'overdue']))}[/]" if fresh.overdue else age


def _newest(fresh: Freshness | None) -> str:
    if fresh is None or fresh.newest is None:
        return ""
    online, age = _age(fresh)
    return f"{fresh.newest:%Y-%m-%d %H:%M} UTC; online {online}; age {age or 'unknown'}"


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
