"""``headrace trace``: where a prediction came from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from headrace.cli.listing import AsJson, tell
from headrace.legible import legible_lines

if TYPE_CHECKING:
    from headrace.release.trace import Step


def trace(
    id: Annotated[str, typer.Argument(help="A prediction's id, as its answer or the log gave it.")],
    as_json: AsJson = False,
) -> None:
    """Show what a prediction came from: model, verdict, data, features, raw rows, batches."""
    from headrace.project import Project
    from headrace.release.trace import trace as traced

    project = Project.here()
    found = traced(id, project.pipeline, project.lake, project.ledger, project.settings.home)
    if as_json:
        tell(found)
        return
    wide = None if sys.stdout.isatty() else 10_000  # what a program reads is not cut
    Console(width=wide).print(_drawn(found, Tree("")))


def _drawn(step: Step, tree: Tree) -> Tree:
    """Draw a step, its facts, and what it came from below it."""
    tree.label = Text(legible_lines(step.what), "bold")
    for name, told in step.facts.items():
        tree.add(Text.assemble((f"{name}  ", "dim"), legible_lines(told)))
    for one in step.of:
        _drawn(one, tree.add(""))
    return tree
