"""``headrace report``: Evidently's page of any window that was predicted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from headrace.cli.instant import utc
from headrace.cli.listing import AsJson, tell
from headrace.legible import legible
from headrace.monitoring.errors import NothingPredicted

console = Console()


def report(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")],
    at: Annotated[
        str, typer.Option(help="An instant in the window, UTC; the last window judged if left out.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Draw Evidently's page of a window: how its rows lie beside those that its model learnt from."""
    from headrace.instants import read
    from headrace.lake import Window, edge
    from headrace.monitoring.watch import judge
    from headrace.project import Project
    from headrace.serving.log import table_of

    project = Project.here()
    spec, lake = project.pipeline(pipeline), project.lake
    last = project.ledger.last(spec.name, "judgement")
    if at:
        start = edge(utc(at), spec.window)
    elif last:
        start = read(last.detail["end"]) - spec.window
    else:
        raise NothingPredicted(spec.name, "any window that `monitor` has judged")
    window = Window(start, start + spec.window)
    findings = []
    if lake.table(table_of(spec)).exists():
        now, reports = datetime.now(UTC), project.settings.home / "reports"
        findings = judge(spec, lake, project.mlflow, window, now, reports, draw=True)
    if not findings:
        raise NothingPredicted(spec.name, str(window))
    if as_json:
        parts = ("rows", "drift", "report")
        tell([{"version": f.release.version, **{part: getattr(f, part) for part in parts}} for f in findings])
        return
    for found in findings:
        console.print(
            f"{window}, version {found.release.version}, {found.rows:,} predictions.", highlight=False
        )
        console.print(legible(found.drift.reason), highlight=False, markup=False)
        if found.report:
            console.print(f"Written to {found.report}", highlight=False, markup=False, soft_wrap=True)
