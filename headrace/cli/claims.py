"""``headrace claims``: which pieces of work are being worked on, and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from headrace.cli.listing import AsJson, show
from headrace.ledger import NotClaimed

if TYPE_CHECKING:
    from headrace.ledger import Ledger

app = typer.Typer(
    help="See what is being worked on, and free what its holder left behind.", no_args_is_help=True
)
console = Console()


@app.command("list")
def listed(as_json: AsJson = False) -> None:
    """List the claims that hold: work that one run does, and no other may."""
    lines = [
        {
            **{"pipeline": claim.pipeline, "kind": claim.kind, "key": claim.key, "holder": claim.holder},
            **{"since": claim.at, "until": claim.until},
        }
        for claim in _ledger().running()
    ]

    def drawn() -> Table:
        names = ("pipeline", "kind", "key", "holder", "since (UTC)", "until at the latest")
        table = Table(*(Column(name, overflow="fold") for name in names))
        for line in lines:
            *told, since, until = line.values()
            table.add_row(
                *map(escape, map(str, told)), f"{since:%Y-%m-%d %H:%M:%S}", f"{until:%Y-%m-%d %H:%M:%S}"
            )
        return table

    hint = "[bold]headrace claims free[/] PIPELINE KIND KEY frees one whose holder is dead."
    show(console, lines, drawn, as_json=as_json, nothing="Nothing is claimed.", hint=hint)


@app.command()
def free(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")],
    kind: Annotated[str, typer.Argument(help="Such as training.")],
    key: Annotated[str, typer.Argument(help="As `list` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Free a claim before its time, so that the next run takes the work over at once."""
    ledger = _ledger()
    wanted = (pipeline, kind, key)
    found = [claim for claim in ledger.running() if (claim.pipeline, claim.kind, claim.key) == wanted]
    if not found:
        raise NotClaimed(*wanted)
    for claim in found:
        console.print(
            f"{claim.holder} claimed it at {claim.at:%Y-%m-%d %H:%M:%S} UTC. If it is still at work, another "
            "run will do the same beside it, and what both write may be of either.",
            markup=False,
            highlight=False,
        )
        if not yes:
            typer.confirm("Are you sure that it is dead?", abort=True)
        ledger.free(claim)
    console.print("It is free.")


def _ledger() -> Ledger:
    from headrace.project import Project

    return Project.here().ledger
