"""``headrace backtest``: which policy should this pipeline retrain by?"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from headrace.cli.instant import utc
from headrace.instants import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.backtest import Backtest, History
    from headrace.lake import Window
    from headrace.pipeline import Pipeline
    from headrace.project import Project

console = Console()


def backtest(
    pipeline: Annotated[str, typer.Argument(help="Such as flights.")],
    start: Annotated[str, typer.Option("--from", help="The first release, UTC.")],
    end: Annotated[str, typer.Option("--to", help="Until when, UTC; all that is known if left out.")] = "",
    judge_from: Annotated[
        str, typer.Option(help="By windows before, UTC, policies are set; after a third if left out.")
    ] = "",
    every: Annotated[
        float,
        typer.Option(help="Days of a window, after which it may be retrained; the pipeline's if left out."),
    ] = 0,
    retraining: Annotated[
        float | None, typer.Option(help="What a retraining costs; as the pipeline says if left out.")
    ] = None,
    loss: Annotated[
        float | None, typer.Option(help="What a loss of 1 costs; as the pipeline says if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what each policy of retraining would have cost, and which line to paste.

    Models are trained of what was known at the time, in a folder of their own: nothing live is touched.
    """
    from headrace import ingest
    from headrace.backtest import backtest as lived
    from headrace.backtest import first_judged
    from headrace.backtest.page import picture
    from headrace.lake import windows
    from headrace.project import Project
    from headrace.training import dataset

    project = Project.here()
    spec = project.pipeline(pipeline)
    given = {"retraining": retraining, "loss": loss}
    costs = replace(spec.costs, **{name: value for name, value in given.items() if value is not None})
    known = ingest.complete(spec, datetime.now(UTC), project.lake, project.ledger)
    begins, length = utc(start), timedelta(days=every) or spec.window
    ends = utc(end) if end else dataset.known_to(spec, known, project.lake)
    due = [window for window in windows(begins, ends, length) if window.start >= begins]
    first = first_judged(spec.name, due, utc(judge_from) if judge_from else None)
    history = _rehearsed(project, spec, known, due)
    with console.status("Living by each policy…"):
        found = lived(history, costs, first)
    file = project.settings.home / "reports" / f"{spec.name}-backtest.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(found))
    if as_json:
        print(json.dumps(found.to_json() | {"picture": str(file)}, indent=2))
        return
    _show(found)
    console.print(f"Drawn in {file}", highlight=False, markup=False, soft_wrap=True)


def _rehearsed(
    project: Project, spec: Pipeline, known: Mapping[str, datetime], due: Sequence[Window]
) -> History:
    from headrace.backtest import History, rehearse

    shown_by = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rooms = (spec, project.lake, project.ledger, project.store, known, due)
    folder = project.settings.home / "backtest" / spec.name
    with Progress(*shown_by, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("windows")
        for step in rehearse(*rooms, folder, project.settings.dask_workers):
            if isinstance(step, History):
                return step
            progress.update(bar, description=step.told, completed=step.done, total=step.of)
    raise AssertionError("it ends with the history")


def _show(found: Backtest) -> None:
    from headrace.backtest.page import HEAD, row

    history, costs = found.history, found.costs
    windows = history.windows[found.first :]
    unit = history.spec.problem.loss_unit
    console.print(
        f"[bold]{history.spec.name}[/], {len(windows)} windows from {shown(windows[0].start)} to "
        f"{shown(windows[-1].end)} UTC, {history.counts[found.first :].sum():,} rows with a truth. "
        f"A retraining costs {costs.retraining:g}, a loss of 1 {unit} {costs.loss:g}. "
        f"The {found.first} windows before set what CARA and UPF go by.",
        highlight=False,
    )
    table = Table(*(Column(name, justify="left" if name == "policy" else "right") for name in HEAD))
    for one in (*found.outcomes, found.oracle):
        style = "bold" if one is found.best else "" if one.line else "dim"
        table.add_row(*row(found, one), style=style)
    console.print(table)
    best, gain = found.best, found.saved(found.best)
    if best is found.own:
        console.print("The policy that is declared is the cheapest of those that can be.", highlight=False)
    else:
        sure = found.sure(best)
        told = "more than chance would" if sure else "which chance may explain"
        count = best.costs.size
        console.print(
            f"Cheapest of those that can be declared: [bold]{best.name}[/]. It saves "
            f"{gain.mean * count:,.1f} ± {gain.stderr * count:,.1f} over what is declared, {told}. "
            "To run it:",
            highlight=False,
        )
        console.print(f"    {best.line},", markup=False, highlight=False)
    failed = {told for one in history.vintages for told in one.about["failed"].items()}
    for candidate, why in sorted(failed):
        console.print(f"Candidate {candidate} failed, and was left out: {why}", style="yellow", markup=False)
    for times, name in found.elsewhere.items():
        share = "a quarter" if times < 1 else f"{times:g} times as much"
        console.print(f"If a retraining cost {share}: {name}.", highlight=False)
