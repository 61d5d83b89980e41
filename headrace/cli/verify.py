"""``headrace verify``: is what models are, and were made of, still what was written?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from headrace.cli.listing import AsJson, tell
from headrace.legible import legible_lines

console = Console()


def verify(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")], as_json: AsJson = False
) -> None:
    """Compare each version's files, and the rows it was made from, with what was noted; 1 if any differ."""
    from headrace import integrity
    from headrace.project import Project

    project = Project.here()
    spec = project.pipeline(pipeline)
    with console.status("Reading all of it…"):
        compared = [*integrity.check(spec.name, project.lake, project.mlflow)]
    damaged = {checked.wrong for checked in compared} - {""}
    if as_json:
        tell(compared)
        raise typer.Exit(bool(damaged))
    table = Table("version", Column("what", no_wrap=True), "as written")
    for checked in compared:
        table.add_row(str(checked.version), checked.what, "[red]no[/]" if checked.wrong else "yes")
    if not table.row_count:
        console.print(f"No version of `{spec.name}` is registered yet.", markup=False)
        return
    console.print(table)
    for wrong in sorted(damaged):
        console.print(legible_lines(wrong), style="red", markup=False, highlight=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(1)
