"""``headrace verify``: is what models are, and were made of, still what was written?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from headrace.legible import legible_lines

console = Console()


def verify(pipeline: Annotated[str, typer.Argument(help="Such as flights.")]) -> None:
    """Compare each version's files, and the rows it was made from, with what was noted; 1 if any differ."""
    from headrace import integrity
    from headrace.project import Project

    project = Project.here()
    spec = project.pipeline(pipeline)
    table = Table("version", Column("what", no_wrap=True), "as written")
    damaged = set[str]()
    with console.status("Reading all of it…"):
        for checked in integrity.check(spec.name, project.lake, project.mlflow):
            table.add_row(str(checked.version), checked.what, "[red]no[/]" if checked.wrong else "yes")
            damaged |= {checked.wrong} - {""}
    if not table.row_count:
        console.print(f"No version of `{spec.name}` is registered yet.", markup=False)
        return
    console.print(table)
    for wrong in sorted(damaged):
        console.print(legible_lines(wrong), style="red", markup=False, highlight=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(1)
