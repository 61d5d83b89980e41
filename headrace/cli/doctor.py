"""``headrace doctor``: what ails this installation, and the cure."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from headrace.cli.listing import AsJson  # noqa: TC001  # typer reads it

console = Console()
STYLES = {"well": "green", "beware": "yellow", "ill": "bold red"}


def doctor(as_json: AsJson = False) -> None:
    """Look at versions, disk, clocks, ports, servers and declarations; exit with 1 if anything is ill."""
    from headrace.doctor import examine
    from headrace.project import Project

    found = []
    table = Table("", Column("how it is", overflow="fold"), Column("cure", overflow="fold"))
    with console.status("Looking…"):
        for one in examine(Project.here()):
            found.append(one)
            style = STYLES[one.state]
            table.add_row(f"[{style}]{escape(one.what)}[/]", escape(one.told), escape(one.cure))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        console.print(table)
        ill = sum(one.state == "ill" for one in found)
        console.print("All is well." if not ill else f"{ill} of {len(found)} are ill.", highlight=False)
    if any(one.state == "ill" for one in found):
        raise typer.Exit(1)
