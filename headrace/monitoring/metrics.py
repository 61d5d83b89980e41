"""Metrics: what was measured of a pipeline's windows, and of segments of them, in a table of the lake."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from typing import TYPE_CHECKING, Literal

from headrace import quarantine
from headrace.lake import AVAILABLE
from headrace.monitoring import contributions
from headrace.sources.feedback import served_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    import pyarrow as pa

    from headrace.lake import Lake, Window
    from headrace.monitoring.watch import Fared, Finding
    from headrace.pipeline import Pipeline

Kind = Literal["realised", "estimated", "promised", "segment", "drift", "contribution", "data"]

MANY = 64
"""Files of a table above which it is compacted."""


@dataclass(frozen=True)
class Metric:
    """One number; ``low`` and ``high`` are its interval, or ``high`` what it is held against.

    ``of`` names the segment or column it is of, if not all rows; ``method`` how it was estimated.
    """

    kind: Kind
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    of: str = ""
    method: str = ""
    rows: int | None = None


def table_of(spec: Pipeline) -> str:
    """Return the name of a pipeline's table of metrics."""
    return f"metrics/{spec.name}"


def note(
    spec: Pipeline,
    lake: Lake,
    window: Window,
    look: str,
    as_of: datetime,
    found: Iterable[tuple[int | None, Metric]],
) -> None:
    """Add what was found of a window, by version if of one, at one ``look`` at it; once, however often asked.

    What was found at earlier looks stays.
    """
    import pyarrow as pa

    told = [(version, one) for version, one in found if isfinite(one.value)]
    if not told:
        return
    time = pa.timestamp("us", "UTC")
    columns = {
        "window_start": pa.array([window.start] * len(told), time),
        "window_end": pa.array([window.end] * len(told), time),
        "as_of": pa.array([as_of] * len(told), time),
        "model_version": pa.array([version for version, _ in told], pa.int64()),
        "kind": pa.array([one.kind for _, one in told], pa.string()),
        "metric": pa.array([one.name for _, one in told], pa.string()),
        "of": pa.array([one.of for _, one in told], pa.string()),
        "method": pa.array([one.method for _, one in told], pa.string()),
        "value": pa.array([one.value for _, one in told], pa.float64()),
        "low": pa.array([one.low for _, one in told], pa.float64()),
        "high": pa.array([one.high for _, one in told], pa.float64()),
        "rows": pa.array([one.rows for _, one in told], pa.int64()),
    }
    table = lake.table(table_of(spec))
    table.append(pa.table(columns), f"{window} {look}")
    table.compact(MANY)


def noted(spec: Pipeline, lake: Lake) -> int:
    """Return what changes whenever something is measured: how often the table was written to, or -1."""
    table = lake.table(table_of(spec))
    return table.open().version() if table.exists() else -1


def latest(spec: Pipeline, lake: Lake, since: datetime | None = None) -> pa.Table | None:
    """Return what is known by now of the windows that end after ``since`` (UTC): each number's last look.

    None if nothing was ever noted.
    """
    if not lake.table(table_of(spec)).exists():
        return None
    after = "WHERE window_end > $since" if since else ""
    return (
        lake.connect({"metrics": table_of(spec)})
        .execute(
            f"FROM metrics {after} QUALIFY row_number() OVER (PARTITION BY window_start, model_version, "
            "kind, metric, method, of ORDER BY as_of DESC) = 1 "
            "ORDER BY window_start, model_version, kind, metric, of",
            {"since": since} if since else {},
        )
        .to_arrow_table()
    )


def distances(
    spec: Pipeline, lake: Lake, version: int, before: datetime, count: int
) -> list[dict[tuple[str, str], float]]:
    """Return how far each column lay in up to ``count`` windows ``before`` (UTC), oldest first.

    Of windows that ``version`` predicted: its values (``score``), and its share without one (``missing``).
    """
    known = latest(spec, lake, before - count * spec.window)
    found: dict[datetime, dict[tuple[str, str], float]] = {}
    for one in known.to_pylist() if known else ():
        if one["kind"] == "drift" and one["model_version"] == version and one["window_end"] <= before:
            found.setdefault(one["window_end"], {})[one["of"], one["metric"]] = one["value"]
    return [found[end] for end in sorted(found)]


def gauges(spec: Pipeline, lake: Lake) -> tuple[datetime | None, list[tuple[tuple[str, ...], float]]]:
    """Return when the last window ended that was judged (UTC), and its numbers, each with its labels.

    Labels are the version, or nothing, and ``kind``, ``metric``, ``of`` and ``method``.
    """
    if not lake.table(table_of(spec)).exists():
        return None, []
    [(end,)] = lake.connect({"metrics": table_of(spec)}).sql("SELECT max(window_end) FROM metrics").fetchall()
    last = latest(spec, lake, end - timedelta(microseconds=1))
    rows = last.to_pylist() if last else []
    return end, [
        (
            (str(one["model_version"] or ""), *(one[name] for name in ("kind", "metric", "of", "method"))),
            one["value"],
        )
        for one in rows
    ]


def of_window(spec: Pipeline, lake: Lake, window: Window, ages: Mapping[str, timedelta]) -> Iterator[Metric]:
    """Yield how much there was of everything in a window, and how old features were, by view."""
    for source in spec.sources:
        if (table := lake.table(source.table)).exists():
            yield Metric("data", "rows", table.count(window, AVAILABLE), of=source.name)
        held = sum(entry.held.rows for entry in quarantine.entries(lake, source.table, window))
        yield Metric("data", "held", held, of=source.name)
    if (served := lake.table(served_by(spec.name))).exists():
        yield Metric("data", "requests", served.count(window))
    for view, age in ages.items():
        yield Metric("data", "age_h", age / timedelta(hours=1), of=view)


def of_finding(finding: Finding) -> Iterator[Metric]:
    """Yield what a window's finding holds, of one version."""
    yield Metric("data", "predictions", finding.rows)
    yield Metric("data", "incomplete", finding.incomplete, rows=finding.rows)
    for column in finding.drift.columns:
        yield Metric("drift", "score", column.score, high=column.threshold, of=column.column)
        yield Metric(
            "drift", "missing", column.missing_change, high=column.missing_threshold, of=column.column
        )
    for part in finding.gone_by:
        yield Metric("contribution", "share", part.now, high=part.before, of=part.column)
    if finding.gone_by:
        yield Metric("contribution", "ndcg", contributions.ndcg([*finding.gone_by]))
    for one in finding.estimates:
        yield Metric("estimated", one.metric, one.value, one.low, one.high, method=one.method)
    for name, value in finding.fared.promised.items():
        if name != "rows":
            yield Metric("promised", name, value)
    yield from of_truth(finding.fared)


def of_truth(fared: Fared) -> Iterator[Metric]:
    """Yield what the truth says of one version's predictions."""
    rows = int(fared.performance.scores.get("rows", 0))
    yield Metric("data", "outcomes", rows)
    for name, value in fared.performance.scores.items():
        if name != "rows":
            yield Metric("realised", name, value, rows=rows)
    for one in fared.segments:
        yield Metric("segment", "loss", one.loss, of=one.name, rows=one.rows)
        yield Metric("segment", "change", one.change, high=one.p, of=one.name, rows=one.rows)
