"""``headrace vacuum``: free what no model, pin or reader needs any more."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from headrace.cli.listing import AsJson, tell

console = Console()


def vacuum(
    free: Annotated[bool, typer.Option("--free", help="Delete it; else it is only told.")] = False,
    older_than: Annotated[
        int, typer.Option(min=0, help="Days; what is younger somebody may be writing or reading.")
    ] = 7,
    as_json: AsJson = False,
) -> None:
    """Say which files of the lake nobody needs: no newest version, and none that a model was made of."""
    from headrace import vacuum as vacuums
    from headrace.project import Project

    project = Project.here()
    with console.status("Looking…"):
        keep = vacuums.needed(project.mlflow)
        found = [*vacuums.vacuum(project.lake, keep, timedelta(days=older_than), free=free)]
    if as_json:
        tell(found)
        return
    numbers = Column("files", justify="right"), Column("MB", justify="right")
    table = Table("table", *numbers, "kept")
    for one in found:
        kept = ", ".join([*(f"v{version}" for version in one.kept), "newest"])
        table.add_row(one.table, f"{one.files:,}", f"{one.size / 1e6:,.1f}", kept)
    files, size = sum(one.files for one in found), sum(one.size for one in found)
    if not table.row_count:
        console.print("The lake has no tables yet.")
        return
    console.print(table)
    told = f"{files:,} files, {size / 1e6:,.1f} MB"
    if free:
        console.print(f"Freed {told}.", highlight=False)
    else:
        console.print(
            f"{told} can be freed: add --free." if files else "Nothing can be freed.", highlight=False
        )
