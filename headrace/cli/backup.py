"""``headrace backup`` and ``headrace restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from headrace.cli.listing import AsJson, tell
from headrace.cli.place import typed
from headrace.settings import Settings

console = Console()


def backup(
    folder: Annotated[str, typer.Argument(help="Where to; it must not be there yet.")],
    as_json: AsJson = False,
) -> None:
    """Copy all state (lake, ledger, models, features, Prefect's) as of one point, while flows go on."""
    from headrace.backup import backup as made
    from headrace.project import Project

    with console.status("Copying…"):
        noted = made(Project.here(), Path(typed(folder)))
    if as_json:
        tell(noted)
        return
    versions = sum(map(len, noted["models"].values()))
    console.print(
        f"{folder}: {noted['entries']:,} entries of the ledger, {len(noted['tables'])} tables, {versions} "
        f"versions of models, as of {noted['at']}. `headrace restore {folder}` brings it into an empty home.",
        markup=False,
        highlight=False,
    )


def restore(
    folder: Annotated[str, typer.Argument(help="What `headrace backup` made.")], as_json: AsJson = False
) -> None:
    """Bring a backup to where the settings point, and compare it with what was noted; 1 if any differs."""
    from headrace.backup import restore as brought

    with console.status("Copying, then reading all of it…"):
        compared = [*brought(Path(typed(folder)), Settings())]
    wrong = any(one.wrong for one in compared)
    if as_json:
        tell(compared)
        raise typer.Exit(wrong)
    table = Table(Column("what", overflow="fold"), "is what was noted")
    for one in compared:
        table.add_row(escape(one.what), f"[red]no[/]: {escape(one.wrong)}" if one.wrong else "yes")
    console.print(table)
    if wrong:
        raise typer.Exit(1)
    console.print("IDENTICAL. `headrace deploy` puts the deployments on another Prefect server.")
