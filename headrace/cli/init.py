"""``headrace init`` and ``headrace upgrade``: a project of one's own, and what is newer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headrace.cli.listing import AsJson, tell
from headrace.cli.place import HERE

console = Console()


def init(
    folder: Annotated[str, typer.Argument(help="Where; its name is the project's.")],
    example: Annotated[
        bool, typer.Option("--example/--bare", help="With New York's flights, to learn from, or without.")
    ] = True,
) -> None:
    """Make a project: flows, features, suites, pipelines, deployments, tests, and how CI runs them."""
    from headrace.scaffold.init import init as made

    files = made(HERE / folder, example=example)
    console.print(f"{len(files)} files in [bold]{folder}[/]. Next:", highlight=False)
    console.print(f"  cd {folder}", "  make setup", sep="\n", markup=False, highlight=False)
    table = "headrace new churn --data orders.csv --target left"
    console.print(f"  {table}     # a pipeline of a table of yours", markup=False, highlight=False)
    if example:
        demo = "headrace demo"
        console.print(f"  {demo:{len(table)}}     # or four months of flights", markup=False, highlight=False)


def upgrade(
    write: Annotated[bool, typer.Option("--write", help="Write what is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this version of headrace has for the project's flows and deployments; with --write, take it.

    What you have not touched is replaced. Where both of you changed a file, yours stays, and headrace's comes
    beside it, as `.new`.
    """
    from rich.syntax import Syntax

    from headrace.scaffold.init import apply
    from headrace.scaffold.init import upgrade as compared

    changes = compared(Path.cwd())
    if as_json:
        tell([{"file": one.file, "kind": one.kind, "difference": one.difference} for one in changes])
        if write:
            apply(Path.cwd(), changes)
        return
    if not changes:
        console.print("Nothing is newer than what is here.")
        return
    for change in changes:
        told = {"both": "changed here and there: headrace's is put beside it, as .new"}.get(
            change.kind, change.kind
        )
        console.print(f"[bold]{change.file}[/]: {told}", highlight=False)
        console.print(Syntax(change.difference, "diff", background_color="default"))
    if write:
        apply(Path.cwd(), changes)
        console.print(f"Written: {len(changes)} files. `make test` says if all is sound.")
    else:
        console.print("Nothing is written yet: `headrace upgrade --write` does.")
