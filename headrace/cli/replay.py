"""``headrace replay``: yesterday's requests, answered by any version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from headrace.cli.listing import AsJson, tell
from headrace.instants import read, shown

console = Console()


def replay(
    model: Annotated[str, typer.Argument(help="Such as flights@3.")],
    since: Annotated[str, typer.Option(help="From when on, UTC; a day ago if left out.")] = "",
    until: Annotated[str, typer.Option(help="Until when, UTC; now if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Put what was asked of `headrace serve` to another version, and compare the answers."""
    from headrace.cli.models import found
    from headrace.lake import Window
    from headrace.project import Project
    from headrace.release.replay import replay as replayed

    project, now = Project.here(), datetime.now(UTC)
    release = found(project, model)
    spec = project.pipeline(release.pipeline)
    window = Window(read(since) if since else now - timedelta(days=1), read(until) if until else now)
    one = replayed(spec, release.version, window, project.lake, project.mlflow, now)
    if as_json:
        tell(one)
        return
    table = Table("", f"{spec.name}@{release.version}, from {shown(window.start)} to {shown(window.end)} UTC")
    table.add_row("requests", f"{one.rows:,}, answered by version {', '.join(map(str, one.versions))}")
    for name, apart in one.apart.items():
        told = (
            f"median {apart[0]:.4g}, at most {apart[1]:.4g}"
            if isinstance(apart, tuple)
            else f"another one in {apart:.1%}"
        )
        table.add_row(f"{name}, apart", told)
    if one.gain is None:
        table.add_row("truth", "not known yet of any")
    else:
        gain, unit = one.gain, spec.problem.loss_unit
        of = f"{gain.rows:,} rows in {gain.groups:,} groups"
        table.add_row("would have saved", f"{gain.mean:+.4f} ± {gain.stderr:.4f} {unit} per row, {of}")
    console.print(table)
