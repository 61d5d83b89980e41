"""``headrace keys``: who may ask the service."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from headrace.cli.listing import AsJson, tell
from headrace.legible import legible

console = Console()
app = typer.Typer(
    help="Who may ask `headrace serve`; without any key, everybody on this machine.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="Whose key it is.")]


@app.command()
def add(
    name: Name,
    pipeline: Annotated[
        list[str] | None, typer.Option(help="For this pipeline; for all if left out.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="To predict, or for feedback; both if left out.")
    ] = None,
) -> None:
    """Make a key, in place of one of that name, and show it: once, for only its digest is kept."""
    from headrace.cli.serve import keys_of
    from headrace.project import Project
    from headrace.serving.keys import EVERY, SCOPES, Keys

    project = Project.here()
    names = tuple(project.pipeline(one).name for one in pipeline or ()) or (EVERY,)
    scopes = tuple(scope or SCOPES)
    if strange := [one for one in scopes if one not in SCOPES]:
        raise typer.BadParameter(f"{strange[0]} is none of {', '.join(SCOPES)}")
    made = Keys(keys_of(project.settings)).add(name, names, scopes)
    console.print(f"Key of {legible(name)}, shown this once:", markup=False)
    console.print(made, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show whose keys there are."""
    from headrace.cli.serve import keys_of
    from headrace.serving.keys import Keys
    from headrace.settings import Settings

    known = Keys(keys_of(Settings())).all()
    if as_json:
        tell([{"name": key.name, "pipelines": key.pipelines, "scopes": key.scopes} for key in known])
        return
    table = Table("name", "pipelines", "may")
    for key in known:
        table.add_row(legible(key.name), ", ".join(key.pipelines), ", ".join(key.scopes))
    console.print(table if table.row_count else "There are no keys: everybody on this machine may ask.")


@app.command()
def remove(name: Name) -> None:
    """Forget a key: it stops working at once."""
    from headrace.cli.serve import keys_of
    from headrace.serving.keys import Keys
    from headrace.settings import Settings

    gone = Keys(keys_of(Settings())).remove(name)
    console.print(
        f"The key of {legible(name)} is gone." if gone else f"There is no key of {legible(name)}.",
        markup=False,
    )
    raise typer.Exit(0 if gone else 1)
