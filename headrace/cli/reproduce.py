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

from headrace.cli.listing import AsJson, tell
from headrace.cli.models import found as find
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
    as_json: AsJson = False,
) -> None:
    """Make a release again from its data, code and seed: IDENTICAL, or what differs and why; then 1."""
    from headrace import tracking
    from headrace.project import Project
    from headrace.release.errors import NotReproducible
    from headrace.release.reproduce import checked_out

    project = Project.here()
    release = find(project, model)
    recipe = tracking.recipe(project.mlflow, release.run_id)
    if not recipe:
        raise NotReproducible("how it was made was not noted, or the note is damaged")
    if here:
        raise typer.Exit(_made_again(project, release, recipe, as_json))
    with checked_out(recipe, project.folder) as place:
        if place == project.folder:
            raise typer.Exit(_made_again(project, release, recipe, as_json))
        told = f"By the code of then, commit {recipe.code.commit[:12]}" + (
            " and what was changed since" if recipe.code.changes else ""
        )
        if not as_json:
            console.print(told + ", in a worktree beside this one.", highlight=False)
        command = [sys.executable, "-m", "headrace.cli", "reproduce", f"{release.pipeline}@{release.version}"]
        env = _environment(project, place)
        command += ["--here", *["--json"] * as_json]
        raise typer.Exit(subprocess.run(command, cwd=place, env=env, check=False).returncode)


def _made_again(project: Project, release: Release, recipe: Recipe, as_json: bool) -> int:
    from headrace.cluster import cluster
    from headrace.feature_store import store as features
    from headrace.release.reproduce import environment
    from headrace.release.reproduce import reproduce as compared

    spec = project.pipeline(release.pipeline)
    with tempfile.TemporaryDirectory(prefix="headrace-feast-") as scratch:
        store = features.open_store(project.folder / "features", project.settings, Path(scratch))
        features.apply(store, f"features.{spec.name}")

        def historical(pins):  # type: ignore[no-untyped-def]
            return lambda rows: features.historical(store, spec.feature_service, rows, pins)

        with cluster(workers=max(len(recipe.workers), 1)) as client, console.status("Making it again…"):
            parts = (project.lake, project.mlflow, historical, client, project.folder)
            found = [*compared(spec, release, recipe, *parts)]
    wrong = [f"{one.what}: {one.off}" for one in found if one.off]
    since = [*environment(recipe, project.folder)]
    if as_json:
        tell({"identical": not wrong, "compared": found, "since it was made": since})
        return int(bool(wrong))
    table = Table("what", "made again")
    for one in found:
        table.add_row(one.what, "[red]differs[/]" if one.off else "identical")
    console.print(table)
    for told in since:
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
