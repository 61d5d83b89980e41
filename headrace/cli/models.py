"""``headrace models``: which there are, what made them, and how they differ; without a UI."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from headrace.cli.listing import AsJson, tell
from headrace.instants import shown
from headrace.legible import legible, legible_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.pipeline import Pipeline
    from headrace.project import Project
    from headrace.registry import Release
    from headrace.release.models import About

console = Console()
app = typer.Typer(help="What has been trained, of what, and how good it is.", no_args_is_help=True)
Which = Annotated[str, typer.Argument(help="Such as flights@champion or flights@3.")]


def found(project: Project, model: str) -> Release:
    """Return the version that ``flights@3``, or ``flights`` for its champion, names."""
    from headrace.release.models import find

    name, _, which = model.partition("@")
    return find(project.mlflow, project.pipeline(name).name, which or "champion")


@app.command("list")
def list_(
    pipeline: Annotated[str, typer.Argument(help="Such as flights; all of them if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show every version, with what became of it."""
    from headrace.project import Project
    from headrace.release.models import search

    project = Project.here()
    specs = [project.pipeline(pipeline)] if pipeline else project.pipelines()
    _show(project, search(project.mlflow, specs), as_json)


@app.command("search")
def search_(
    pipeline: Annotated[str, typer.Argument(help="Such as flights; all of them if left out.")] = "",
    data: Annotated[str, typer.Option(help="Made of this table: raw/flights, or raw/flights@v12.")] = "",
    feature: Annotated[str, typer.Option(help="Takes this column.")] = "",
    metric: Annotated[str, typer.Option(help="Scored so: 'auc > 0.7'.")] = "",
    tag: Annotated[str, typer.Option(help="Has this tag: headrace.trainer=xgboost.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the versions of which all that is asked for holds."""
    from headrace.project import Project
    from headrace.release.models import search

    project = Project.here()
    specs = [project.pipeline(pipeline)] if pipeline else project.pipelines()
    asked = {"data": data, "feature": feature, "metric": metric, "tag": tag}
    _show(project, search(project.mlflow, specs, **asked), as_json)


def _show(project: Project, versions: Sequence[About], as_json: bool) -> None:
    if as_json:
        tell([_told(one) for one in versions])
        return
    if not versions:
        console.print("No version is like that.", markup=False)
        return
    table = Table(
        Column("model", no_wrap=True), "candidate", "as of (UTC)", "verdict", "scores", "training set"
    )
    for one in versions:
        problem, release = project.pipeline(one.release.pipeline).problem, one.release
        alias = "".join(f" [bold]{alias}[/]" for alias in one.aliases)
        table.add_row(
            one.name + alias,
            release.candidate,
            shown(release.as_of),
            release.verdict or "none yet",
            problem.told(one.scores, 2),
            f"{release.training.table}@v{release.training.version}, {release.training.rows:,} rows",
        )
    console.print(table)


def _told(one: About) -> dict[str, object]:
    return {"name": one.name, "features": one.features, **{f.name: getattr(one, f.name) for f in fields(one)}}


@app.command()
def show(model: Which, as_json: AsJson = False) -> None:
    """Show all that is known of one version: verdict, scores, parameters, data, features, code."""
    from headrace import tracking
    from headrace.project import Project
    from headrace.release.models import about

    project = Project.here()
    one = about(project.mlflow, found(project, model))
    if as_json:
        tell(_told(one))
        return
    release, recipe = one.release, one.recipe
    page = project.settings.mlflow_page
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def say(what: str, told: str) -> None:
        if told:
            table.add_row(what, legible_lines(told))

    say("model", ", ".join([one.name, *one.aliases]))
    say("candidate", f"{release.candidate} ({release.trainer}), as of {shown(release.as_of)} UTC")
    say("verdict", f"{release.verdict or 'none yet'}. {release.reason}".rstrip())
    say("scores", ", ".join(f"{name} {value:.4g}" for name, value in sorted(one.scores.items())))
    say("parameters", ", ".join(f"{name} {value}" for name, value in sorted(one.params.items())))
    say("made of", "\n".join(f"{ref.table}@v{ref.version}, {ref.rows:,} rows" for ref in one.data))
    say("features", ", ".join(one.features))
    say("fed on", one.tags.get("headrace.fed_on", ""))
    say("because of", one.tags.get("headrace.cause", ""))
    if recipe:
        changed = " and changes" if recipe.code.changes else ""
        say("code", f"{recipe.code.commit[:12]}{changed}" if recipe.code.commit else "in no repository")
        gpus = sum(bool(worker["gpu"]) for worker in recipe.workers)
        say("fitted on", f"{len(recipe.workers)} workers, {gpus} GPUs, Python {recipe.environment.python}")
    say("MLflow", page + tracking.run_page(project.mlflow, release.run_id))
    say("Prefect", one.tags.get("headrace.flow_run", ""))
    console.print(table)


@app.command()
def card(
    model: Which,
    out: Annotated[Path | None, typer.Option(help="Write it to this file, rather than here.")] = None,
) -> None:
    """Write a version's model card, in Markdown: what it is for and of, how good for whom, why it serves."""
    from headrace.project import Project
    from headrace.release.card import card as carded
    from headrace.release.models import about

    project = Project.here()
    one = about(project.mlflow, found(project, model))
    told = carded(project.pipeline(one.release.pipeline), one, project.mlflow, project.ledger)
    if out:
        out.write_text(told)
        console.print(f"The card of {one.name} is in {out}.", markup=False)
    else:
        typer.echo(told, nl=False)


@app.command()
def export(
    model: Which,
    folder: Annotated[str, typer.Argument(help="Where to; it must not be there yet.")],
    as_json: AsJson = False,
) -> None:
    """Write a version as open files: an MLflow model, its training set, its card, what was decided."""
    from headrace.cli.place import typed
    from headrace.project import Project
    from headrace.release.export import export as exported
    from headrace.release.models import about

    project = Project.here()
    one = about(project.mlflow, found(project, model))
    spec = project.pipeline(one.release.pipeline)
    written = exported(spec, one, project.lake, project.mlflow, project.ledger, Path(typed(folder)))
    if as_json:
        tell({"folder": Path(typed(folder)), "files": written})
        return
    for file, told in written.items():
        console.print(f"{folder}/{file}: {told}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def compare(
    model: Which,
    other: Annotated[str, typer.Argument(help="The one to set beside it.")],
    as_json: AsJson = False,
) -> None:
    """Set two versions side by side: what is not the same."""
    from headrace.project import Project
    from headrace.release.models import about, differences

    project = Project.here()
    ours, theirs = (about(project.mlflow, found(project, name)) for name in (model, other))
    apart = differences(ours, theirs)
    if as_json:
        tell(apart)
        return
    table = Table("", "", ours.name, theirs.name)
    for kind, facts in apart.items():
        for place, (name, (one, another)) in enumerate(facts.items()):
            table.add_row("" if place else kind, legible(name), legible(one), legible(another))
    if table.row_count:
        console.print(table)
    else:
        console.print(
            f"{ours.name} and {theirs.name} are of the same data, code and parameters.", markup=False
        )


Why = Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it.", prompt=True)]


@app.command()
def promote(model: Annotated[str, typer.Argument(help="Such as flights@3.")], reason: Why) -> None:
    """Make a version champion by hand, past the gate; everybody who serves takes it up within seconds."""
    from headrace import release as releases
    from headrace.project import Project

    project = Project.here()
    version, spec = found(project, model).version, project.pipeline(model.partition("@")[0])
    _finish(project, spec)
    releases.move(spec, version, reason, project.mlflow, project.ledger, _who())
    console.print(f"{spec.name}@{version} is champion.", markup=False)


@app.command()
def rollback(pipeline: Annotated[str, typer.Argument(help="Such as flights.")], reason: Why) -> None:
    """Bring back the champion of before; everybody who serves takes it up within seconds."""
    from headrace import release as releases
    from headrace.project import Project

    project = Project.here()
    spec = project.pipeline(pipeline)
    _finish(project, spec)
    version = releases.rollback(spec, reason, project.mlflow, project.ledger, _who())
    console.print(f"{spec.name}@{version} is champion again.", markup=False)


@app.command()
def shadow(
    model: Annotated[str, typer.Argument(help="Such as flights@3.")],
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
) -> None:
    """Let a version predict, beside the champion, what is asked of `headrace serve`; it answers nobody."""
    from headrace import registry
    from headrace.project import Project

    project = Project.here()
    release = found(project, model)
    registry.set_shadow(project.mlflow, release.pipeline, release.version, on=not off)
    told = "is a shadow no longer" if off else f"is a shadow; what it says goes to shadow/{release.pipeline}"
    console.print(f"{release.pipeline}@{release.version} {told}.", markup=False)


@app.command()
def canary(
    model: Annotated[str, typer.Argument(help="Such as flights@3.")],
    share: Annotated[float, typer.Option(help="Of the keys that are asked for, from 0 to 1.")] = 0.05,
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
) -> None:
    """Let a version answer for a share of the keys, once it is certified; it is returned if it does harm."""
    from datetime import UTC, datetime

    from headrace import registry
    from headrace import release as releases
    from headrace.project import Project

    project = Project.here()
    release = found(project, model)
    name = f"{release.pipeline}@{release.version}"
    if off:
        registry.end_canary(project.mlflow, release.pipeline, release.version)
        console.print(f"{name} answers no longer.", markup=False)
        return
    if not 0 < share < 1:
        raise typer.BadParameter(f"{share} is no share: more than 0, and less than 1.", param_hint="--share")
    spec = project.pipeline(release.pipeline)
    champion = registry.champion(project.mlflow, spec.name)
    if champion is None or champion.version == release.version:
        raise typer.BadParameter(f"{name} cannot stand in for a champion: there is none, or it is that.")
    asked = (project.store, project.lake, project.mlflow, datetime.now(UTC))
    bound = releases.certificate(spec, release.version, *asked)
    if not bound.held:
        raise typer.BadParameter(str(bound))
    registry.set_canary(project.mlflow, spec.name, release.version, share)
    told = f"{name} answers for {share:.1%} of the keys, in place of version {champion.version}. "
    console.print(f"{told}Certified: no prediction differs, {bound.about}.", markup=False)


@app.command()
def evidence(
    model: Annotated[str, typer.Argument(help="A shadow or canary, such as flights@3.")],
    as_json: AsJson = False,
) -> None:
    """Show what live traffic has proven of a version so far; looking often costs nothing."""
    from datetime import UTC, datetime

    from headrace.project import Project
    from headrace.release import live

    project = Project.here()
    release = found(project, model)
    spec = project.pipeline(release.pipeline)
    one = live.evidence(spec, release.version, project.lake, project.mlflow, datetime.now(UTC))
    verdict, unit = live.judge(spec, one), spec.problem.loss_unit
    if as_json:
        tell({"evidence": one, "verdict": verdict})
        return
    table = Table("", f"{spec.name}@{one.version} beside the champion, {spec.name}@{one.champion}")
    table.add_row("requests", f"{one.rows:,} whose truth is known, in {one.groups:,} groups")
    table.add_row("saved", f"{one.mean:+.4f} {unit} per row")
    table.add_row("in truth", one.within)
    table.add_row("verdict", verdict.decision)
    console.print(table)


@app.command()
def verify(model: Which, as_json: AsJson = False) -> None:
    """Check what a version was released by: its receipt, its model, and every table that it was made of."""
    from headrace import release as releases
    from headrace.project import Project

    project = Project.here()
    release = found(project, model)
    spec = project.pipeline(release.pipeline)
    rooms, key = (project.mlflow, project.ledger, project.lake), project.settings.verifying_key
    as_written = releases.verify(spec, release.version, *rooms, key)
    if as_json:
        tell({"model": f"{spec.name}@{release.version}", "as it was written": [*as_written]})
        return
    for checked in as_written:
        console.print(f"  as it was written: {checked}", markup=False, highlight=False)
    console.print(f"{spec.name}@{release.version} is what the gate promoted.", markup=False)


@app.command()
def settle(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Let the version stay that the alias names.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring back the one that it should name.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it.")] = "accepted by hand",
) -> None:
    """Show every change of champion, finish what was cut short, and end what was done by hand in MLflow."""
    from headrace import release as releases
    from headrace.project import Project
    from headrace.release.promotion import told

    if accept and restore:
        raise typer.BadParameter("give --accept or --restore, not both")
    project = Project.here()
    spec = project.pipeline(pipeline)
    _finish(project, spec)
    for change in releases.changes(spec, project.ledger):
        console.print(legible_lines(told(change)), markup=False, highlight=False)
    stray = releases.strayed(spec, project.mlflow, project.ledger)
    if stray is None:
        console.print("The champion is the last that was made it.")
    elif accept or restore:
        now = releases.settle(spec, project.mlflow, project.ledger, _who(), accept=accept, reason=reason)
        console.print(f"{spec.name}@{now} is champion.", markup=False)
    else:
        console.print(legible_lines(stray), style="red", markup=False)
        console.print("Give --accept or --restore.")
        raise typer.Exit(1)


def _finish(project: Project, spec: Pipeline) -> None:
    """Finish what was cut short, and say so."""
    from headrace import release as releases

    for done in releases.reconcile(spec, project.mlflow, project.ledger, _who()):
        console.print(f"Finished what was cut short: {done}.", markup=False)


def _who() -> str:
    """Return who types, as far as the machine knows."""
    import getpass
    import socket
    from uuid import uuid4

    return f"{getpass.getuser()}@{socket.gethostname()} {uuid4().hex[:8]}"
