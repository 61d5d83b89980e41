"""The spine: the predictions to make, and their truth. The one place that joins the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError
from headrace.instants import plain
from headrace.lake import MONDAY, Window, query_of
from headrace.sql import among, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from headrace.lake import Lake
    from headrace.pipeline import Pipeline


class BadLabels(HeadraceError):
    """The truth is something else than the problem allows."""

    def __init__(self, pipeline: str, expected: str, bad: int, rows: int, first: object) -> None:
        self.pipeline, self.expected = pipeline, expected
        self.bad, self.rows, self.first = bad, rows, first
        told = "null" if first is None else repr(first)
        super().__init__(
            f"`label` of pipeline `{pipeline}` must be {expected}, but {bad:,} of {rows:,} rows hold others "
            f"(first: {told}). Nothing was written. Correct the query `label` in `pipelines/{pipeline}.py`, "
            "or its `problem`; rows without a truth the query should leave out (`WHERE … IS NOT NULL`)."
        )


TRAIN, GAP, SELECTION, HOLDOUT = "train", "gap", "selection", "holdout"
"""What a row of a training set is for."""
LEARNT = (TRAIN, GAP, SELECTION)
"""What the chosen candidate learns from."""


def rows(spec: Pipeline, lake: Lake, window: Window, count: int | None = None) -> pa.Table:
    """Return the predictions to make in ``window``: ``count`` of them, always the same ones, or all."""
    order = quoted("event_timestamp", *spec.keys)
    chosen = f"SELECT * FROM ({spec.spine}) WHERE {window.predicate('event_timestamp')}"
    limit = "" if count is None else f"LIMIT {count}"
    con = lake.connect(spec.raw)
    with query_of(f"The spine of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"):
        return con.sql(f"{chosen} ORDER BY hash({order}), {order} {limit}").to_arrow_table()


def last(spec: Pipeline, lake: Lake, before: datetime) -> datetime | None:
    """Return the instant (UTC) of the last prediction to make ``before`` another; None if there is none."""
    con = lake.connect(among(spec.spine, spec.raw))
    with query_of(f"The spine of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"):
        select = f"SELECT max(event_timestamp) FROM ({spec.spine}) WHERE event_timestamp < $before"
        [(found,)] = con.execute(select, {"before": before}).fetchall()
    return found and plain(found)


def labelled(
    spec: Pipeline,
    lake: Lake,
    window: Window,
    as_of: datetime,
    pins: Mapping[str, int] | None = None,
    *,
    cuts: tuple[datetime, datetime] | None = None,
) -> pa.Table:
    """Return the predictions made within ``window`` whose outcome was known by ``as_of`` (UTC).

    One row each: the spine's columns and ``label``, ordered by ``event_timestamp`` and keys.
    Raw tables that ``pins`` names are read at those versions. ``cuts`` are where the selection
    span begins and where it ends, with the holdout: they add the column ``span``, in which what
    was not known yet when its next span began is of the gap, or, before the holdout, left out.
    """
    con = _connected(spec, lake, pins or {})
    with query_of(f"The join of spine and label of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"):
        return con.execute(
            f"{_labelled(spec, window, cuts)} ORDER BY event_timestamp, {quoted(*spec.keys)}",
            {"as_of": as_of},
        ).to_arrow_table()


def _connected(spec: Pipeline, lake: Lake, pins: Mapping[str, int]) -> duckdb.DuckDBPyConnection:
    return lake.connect(
        {view: lake.at(name, pins[name]) if name in pins else name for view, name in spec.raw.items()}
    )


def _labelled(spec: Pipeline, window: Window, cuts: tuple[datetime, datetime] | None) -> str:
    """Return the query of :func:`labelled`, but for its order."""
    span, kept = "", ""
    if cuts:
        chosen, held_out = (f"TIMESTAMPTZ '{cut.isoformat()}'" for cut in cuts)
        span = f""", CASE WHEN event_timestamp >= {held_out} THEN '{HOLDOUT}'
                          WHEN event_timestamp >= {chosen} THEN '{SELECTION}'
                          WHEN label.available_at >= {chosen} THEN '{GAP}' ELSE '{TRAIN}' END AS span"""
        kept = f"AND (event_timestamp >= {held_out} OR label.available_at < {held_out})"
    return f"""
        SELECT spine.*, label.label{span}
        FROM ({spec.spine}) spine JOIN ({spec.label}) label USING ({quoted(*spec.keys)})
        WHERE {window.predicate("event_timestamp")} AND label.available_at < $as_of {kept}
        """


def counted(
    spec: Pipeline, lake: Lake, as_of: datetime, pins: Mapping[str, int], cuts: tuple[datetime, datetime]
) -> tuple[dict[tuple[datetime, str], int], tuple[Any, Any]]:
    """Return how many rows :func:`labelled` has of each window, by its start (UTC), and span; and two labels.

    They are the least and the greatest of those to train on.
    """
    con = _connected(spec, lake, pins)
    seconds, rows = int(spec.window.total_seconds()), _labelled(spec, Window(spec.start, as_of), cuts)
    place = f"(epoch(event_timestamp) - {int(MONDAY.timestamp())}) // {seconds}"
    with query_of(f"The join of spine and label of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"):
        found = con.execute(
            f"SELECT {place}::BIGINT, span, count(*), min(min(label) FILTER (span = '{TRAIN}')) OVER (), "
            f"max(max(label) FILTER (span = '{TRAIN}')) OVER () FROM ({rows}) GROUP BY ALL",
            {"as_of": as_of},
        ).fetchall()
    counts = {(MONDAY + n * spec.window, span): count for n, span, count, *_ in found}
    return counts, next(((least, most) for *_, least, most in found), (None, None))


def with_truth(spec: Pipeline, lake: Lake, predictions: pa.Table, as_of: datetime) -> pa.Table:
    """Return those of ``predictions`` whose truth was known by ``as_of`` (UTC), with their ``label``.

    Raises:
        BadLabels: A label is not what the problem asks for.
    """
    con = lake.connect(among(spec.label, spec.raw))
    con.register("predictions", predictions)
    with query_of(
        f"The join of predictions and label of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"
    ):
        known = con.execute(
            f"SELECT predictions.*, label FROM predictions JOIN ({spec.label}) label "
            f"USING ({quoted(*spec.keys)}) WHERE label.available_at < $as_of",
            {"as_of": as_of},
        ).to_arrow_table()
    check_labels(spec, known["label"])
    return known


def outcomes(spec: Pipeline, lake: Lake, rows: pa.Table, as_of: datetime) -> pa.Table:
    """Return ``rows`` with their ``label``, and when it was ``available_at``; null if not by ``as_of`` (UTC).

    Raises:
        BadLabels: A label is not what the problem asks for.
    """
    con = lake.connect(among(spec.label, spec.raw))
    con.register("asked", rows)
    keys = quoted(*spec.keys)
    with query_of(f"The query `label` of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"):
        found = con.execute(
            f"SELECT asked.*, label, available_at FROM asked LEFT JOIN ("
            f"SELECT {keys}, label, available_at FROM ({spec.label}) WHERE available_at < $as_of"
            f") known USING ({keys}) ORDER BY event_timestamp, {keys}",
            {"as_of": as_of},
        ).to_arrow_table()
    check_labels(spec, found.filter(found["available_at"].is_valid())["label"])
    return found


def check_labels(spec: Pipeline, labels: pa.ChunkedArray) -> None:
    """Refuse labels that the problem does not ask for, of whatever type.

    Raises:
        BadLabels: One is null, or something else.
    """
    others = spec.problem.unfit(labels)
    if len(others):
        raise BadLabels(spec.name, spec.problem.expected, len(others), len(labels), others[0].as_py())
