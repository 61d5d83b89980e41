"""``headrace reproduce``: make a release again, and compare it byte for byte."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from headrace.cli.models import found
from headrace.legible import legible_lines

if TYPE_CHECKING:
    from headrace.project import Project
    from headrace.recipe import Recipe
    from headrace.registry import Release

console = Console()


def reproduce(
    model: Annotated[str, typer.Argument(help="Such as flights@champion or flights@3.")],
    here: Annotated[
        bool, typer.Option("--here", help="By the code that lies here, whatever made it.")
    ] = False,
) -> None:
    """Make a release again from its data, code and seed: IDENTICAL, or what differs and why; then 1."""
    from headrace import tracking
    from headrace.project import Project
    from headrace.release.errors import NotReproducible
    from headrace.release.reproduce import checked_out

    project = Project.here()
    release = found(project, model)
    recipe = tracking.recipe(project.mlflow, release.run_id)
    if not recipe:
        raise NotReproducible("how it was made was not noted, or the note is damaged")
    if here:
        raise typer.Exit(_made_again(project, release, recipe))
    with checked_out(recipe, project.folder) as place:
        if place == project.folder:
            raise typer.Exit(_made_again(project, release, recipe))
        told = f"By the code of then, commit {recipe.code.commit[:12]}" + (
            " and what was changed since" if recipe.code.changes else ""
        )
        console.print(told + ", in a worktree beside this one.", highlight=False)
        command = [sys.executable, "-m", "headrace.cli", "reproduce", f"{release.pipeline}@{release.version}"]
        env = _environment(project, place)
        raise typer.Exit(subprocess.run([*command, "--here"], cwd=place, env=env, check=False).returncode)


def _made_again(project: Project, release: Release, recipe: Recipe) -> int:
    from headrace.cluster import cluster
    from headrace.feature_store import store as features
    from headrace.release.reproduce import environment
    from headrace.release.reproduce import reproduce as compared

    spec, table, wrong = project.pipeline(release.pipeline), Table("what", "made again"), list[str]()
    with tempfile.TemporaryDirectory(prefix="headrace-feast-") as scratch:
        store = features.open_store(project.folder / "features", project.settings, Path(scratch))
        features.apply(store, f"features.{spec.name}")

        def historical(pins):  # type: ignore[no-untyped-def]
            return lambda rows: features.historical(store, spec.feature_service, rows, pins)

        with cluster(workers=max(len(recipe.workers), 1)) as client, console.status("Making it again…"):
            for one in compared(
                spec, release, recipe, project.lake, project.mlflow, historical, client, project.folder
            ):
                table.add_row(one.what, "[red]differs[/]" if one.off else "identical")
                wrong += [f"{one.what}: {one.off}"] if one.off else []
    console.print(table)
    for told in environment(recipe, project.folder):
        console.print(f"Since it was made: {told}.", style="yellow", highlight=False, markup=False)
    name = f"{release.pipeline} version {release.version}"
    if not wrong:
        console.print(
            f"[bold green]IDENTICAL[/]: {name}, {recipe.candidate['name']} as of {recipe.as_of}.",
            highlight=False,
        )
        return 0
    for line in wrong:
        console.print(legible_lines(line), style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold red]NOT IDENTICAL[/]: {name}.", highlight=False)
    return 1


def _environment(project: Project, place: Path) -> dict[str, str]:
    """Return the environment in which the code at ``place`` finds this project's home and lake."""
    from headrace.services import environment

    lake = project.settings.lake
    return environment(project.settings) | {
        "HEADRACE_LAKE": lake if "://" in lake else str(Path(lake).absolute()),
        "PYTHONPATH": str(place),
    }
