"""Live through a span of time, window by window.

first release ─▶ for each window: ingest ─▶ materialize ─▶ score ─▶ monitor ─▶ (drift ─▶ retraining)

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
from flows.ingest import ingest
from flows.materialize import materialize
from flows.monitor import monitor
from flows.score import score
from flows.train import train
from headrace.lake import Window, windows
from headrace.pipeline import load


@flow(name="lifecycle", flow_run_name="lifecycle {pipeline}", description=__doc__)
def lifecycle(pipeline: str, start: datetime, end: datetime) -> dict[str, Any]:
    """Release a first champion as of ``start`` (UTC), then live until ``end``; return what happened.

    Every part is idempotent: started again after a kill, it goes on where it stopped.
    """
    spec, say = load(pipeline), steps.logger().info
    start, end = steps.instant(start), steps.instant(end)
    seconds: dict[str, float] = defaultdict(float)
    landed: Counter[str] = Counter()

    with _timed(seconds, "ingest"):
        landed.update(ingest(pipeline, start))
    say(
        "%s: landed %s",
        f"{start:%Y-%m-%d}",
        ", ".join(f"{n:,} {name}" for name, n in landed.items()) or "nothing new",
    )
    with _timed(seconds, "materialize"):
        materialize(pipeline, start)
    with _timed(seconds, "train"):
        verdict = train(pipeline, start, cause="first release")
    say("%s: %s", f"{start:%Y-%m-%d}", verdict)

    weeks = []
    for window in windows(start, end, spec.window):
        at = window.end
        with _timed(seconds, "ingest"):
            new = ingest(pipeline, at)
        with _timed(seconds, "materialize"):
            materialize(pipeline, at)
        with _timed(seconds, "score"):
            scored = score(pipeline, at)
        with _timed(seconds, "monitor"):
            finding = monitor(pipeline, at)
        landed.update(new)
        week = {"as_of": at, "landed": sum(new.values()), "scored": sum(scored.values()), **finding}
        say(_line(week))
        if finding["drifted"]:
            with _timed(seconds, "wait for retraining"):
                retraining = steps.await_retraining(spec, finding["cause"])
            week["retraining"] = retraining
            say("    └─ %s", retraining["reason"])
        weeks.append(week)

    champion = steps.champion(spec)
    summary = {
        "pipeline": pipeline,
        "from": start,
        "to": end,
        "batches": steps.batches(spec, end),
        "rows landed": dict(landed),
        "weeks": weeks,
        "releases": steps.compare_releases(spec, _compared(start, end), end),
        "champion": {
            "version": champion.version,
            "candidate": champion.candidate,
            "scores": dict(champion.metrics),
        },
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
    }
    create_table_artifact(
        key=steps.slug("lifecycle", pipeline),
        table=[{k: str(v) for k, v in week.items()} for week in weeks],
        description=f"## `{pipeline}` from {start:%Y-%m-%d} to {end:%Y-%m-%d}",
    )
    return summary


def _compared(start: datetime, end: datetime) -> Window:
    """Return the last calendar month (UTC) lived through from end to end, or all if there was none."""
    after = end.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    first = (after - timedelta(days=1)).replace(day=1)
    return Window(first, after) if first >= start else Window(start, end)


def _line(week: dict[str, Any]) -> str:
    skill = f"AUC {week['auc']:.3f}" if week.get("auc") else "truth not known yet"
    return (
        f"{week['as_of']:%Y-%m-%d}: landed {week['landed']:>6,}, scored {week['scored']:>5,}, "
        f"version {week['champion']} {skill}, "
        f"drift in {week['drift_share']:>4.0%} of columns{'  ▶ retraining' if week['drifted'] else ''}"
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - began
