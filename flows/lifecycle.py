"""Live through a span of time, window by window.

first release ─▶ for each window: cycle ─▶ (drift ─▶ retraining)

Retraining is not called from here: the monitor's event starts it, through the
deployment's trigger, on a worker. This flow only waits for its verdict, because
time that is replayed must not run ahead of it.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import steps
from flows.cycle import cycle
from flows.train import train
from headrace import tracking
from headrace.instants import shown
from headrace.lake import Window, windows
from headrace.legible import markdown
from headrace.pipeline import EmptySpan
from headrace.project import Project
from headrace.release.errors import NotReleased


@flow(name="lifecycle", flow_run_name="lifecycle {pipeline}", description=__doc__)
def lifecycle(pipeline: str, start: datetime, end: datetime) -> dict[str, Any]:
    """Release a first champion as of ``start`` (UTC), then live until ``end``; return what happened.

    Every part is idempotent: started again after a kill, it goes on where it stopped.
    """
    project, say = Project.here(), steps.logger().info
    spec = project.pipeline(pipeline)
    start, end = steps.instant(start, spec), steps.instant(end, spec)
    if start >= end:
        raise EmptySpan(start, end)
    seconds: defaultdict[str, float] = defaultdict(float)
    landed: Counter[str] = Counter()

    first = cycle(pipeline, start)
    _add(first, landed, seconds)
    say("%s: landed %s", shown(start), _counted(first["landed"]))
    with _timed(seconds, "train"):
        verdict = train(pipeline, start, cause="first release")
    say("%s: %s", shown(start), verdict)
    if not steps.released(project, spec):
        raise NotReleased(spec.name, verdict.reason)

    weeks = []
    for window in windows(start, end, spec.window):
        if window.start < start:
            continue
        lived = cycle(pipeline, window.end)
        _add(lived, landed, seconds)
        finding = steps.judgement(project, spec, window) or {
            "drifted": False,
            "retrain": False,
            "reason": "It waits for a source.",
        }
        numbers = {"landed": sum(lived["landed"].values()), "scored": sum(lived["scored"].values())}
        week = {"as_of": window.end, **numbers, **finding}
        say(_line(week))
        if finding["retrain"]:
            with _timed(seconds, "wait for retraining"):
                retraining = steps.await_retraining(project, spec, finding["cause"])
            week["retraining"] = retraining
            say("    └─ %s", retraining["reason"])
        weeks.append(week)

    champion = steps.champion(project, spec)
    summary = {
        "pipeline": pipeline,
        "from": start,
        "to": end,
        "batches": steps.batches(project, spec, end),
        "rows landed": dict(landed),
        "weeks": weeks,
        "releases": steps.compare_releases(project, spec, _compared(start, end), end),
        "champion": {
            "version": champion.version,
            "candidate": champion.candidate,
            "scores": tracking.scores(project.mlflow, champion.run_id),
        },
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
    }
    create_table_artifact(
        key=steps.slug("lifecycle", pipeline),
        table=[{k: markdown(v) for k, v in week.items()} for week in weeks],
        description=f"## `{pipeline}` from {shown(start)} to {shown(end)}",
    )
    return summary


def _compared(start: datetime, end: datetime) -> Window:
    """Return the last calendar month (UTC) lived through from end to end, or all if there was none."""
    after = end.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    first = (after - timedelta(days=1)).replace(day=1)
    return Window(first, after) if first >= start else Window(start, end)


def _add(lived: dict[str, Any], landed: Counter[str], seconds: dict[str, float]) -> None:
    landed.update(lived["landed"])
    for part, spent in lived["seconds"].items():
        seconds[part] += spent


def _counted(landed: dict[str, int]) -> str:
    return ", ".join(f"{rows:,} {name}" for name, rows in landed.items()) or "nothing new"


def _line(week: dict[str, Any]) -> str:
    if "champion" not in week:  # nothing was predicted, so nothing was found
        return f"{shown(week['as_of'])}: landed {week['landed']:>6,}. {week['reason']}"
    skill = week.get("score") or "truth not known yet"
    if week.get("worse"):
        skill += f" (skill {week['skill']:.3f}, {week['skill_promised']:.3f} was promised: worse)"
    return (
        f"{shown(week['as_of'])}: landed {week['landed']:>6,}, scored {week['scored']:>5,}, "
        f"version {week['champion']} {skill}, "
        f"drift in {week['drift_share']:>4.0%} of columns{'  ▶ retraining' if week['retrain'] else ''}"
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - began
