"""The prediction log: every prediction with its inputs, the model that made it and, later, the truth."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from headrace import spine
from headrace.feature_store import tables
from headrace.feature_store.errors import StaleFeatures
from headrace.lake import AVAILABLE, Lake, Window, query_of, windows
from headrace.quarantine import entries, guard
from headrace.serving.ids import signed
from headrace.sources.predictions import log_of
from headrace.sql import among, quoted
from headrace.validation import of_predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from headrace.pipeline import Pipeline
    from headrace.training.model import Model


def pending(spec: Pipeline, lake: Lake, since: datetime, as_of: datetime) -> list[Window]:
    """Return the closed windows between ``since`` and ``as_of`` (UTC) in which predictions are missing."""
    due = [window for window in windows(since, as_of, spec.window) if window.start >= since]
    if not due:
        return []
    con, made = _opened(spec, lake)
    start, length = due[0].start, spec.window // timedelta(microseconds=1)
    nth = f"(epoch_us(event_timestamp) - epoch_us(TIMESTAMPTZ '{start.isoformat()}')) // {length}"
    if made:  # where as many rows of the same keys were predicted as there are, none is missing
        keys = quoted(*spec.keys)
        within = Window(start, due[-1].end).predicate("event_timestamp")
        select = f"SELECT {nth} AS nth, count(*), sum(hash({keys})::HUGEINT)"
        every = " UNION ALL ".join(f"SELECT event_timestamp, {keys} FROM {name}" for name in made)
        asked, known = (f"{select} FROM ({rows}) WHERE {within} GROUP BY nth" for rows in (spec.spine, every))
        unlike = con.sql(f"{asked} EXCEPT {known}").fetchall()
        differ = {number for number, *_ in unlike}
        due = [window for number, window in enumerate(due) if number in differ]
        if not due:
            return []
    missing = _unpredicted(spec, con, made, Window(due[0].start, due[-1].end))
    late = {start + number * spec.window for (number,) in missing.project(nth).distinct().fetchall()}
    return [window for window in due if window.start in late]


def due(spec: Pipeline, lake: Lake, since: datetime, complete: Mapping[str, datetime]) -> list[Window]:
    """Return the windows from ``since`` (UTC) in which predictions are missing, and can be made.

    That is once every source that they are made of is ``complete``.

    Raises:
        StaleFeatures: Their features are not built from all raw rows there are.
    """
    missing = pending(spec, lake, since, predictable(spec, complete))
    for table in spec.feature_tables:
        if late := tables.stale(table, spec.raw, missing, lake):
            window, cause = next(iter(late.items()))
            raise StaleFeatures(spec.name, table.name, str(window), cause)
    return missing


def predictable(spec: Pipeline, complete: Mapping[str, datetime]) -> datetime:
    """Return up to when (UTC) all is known that predictions are made of: the spine, and every feature.

    ``complete`` says it of each source, by name.
    """
    asked = min(among(spec.spine, complete).values())
    return min([asked, *(tables.complete(table, complete) for table in spec.feature_tables)])


def reached(spec: Pipeline, lake: Lake, since: datetime, as_of: datetime) -> datetime:
    """Return the end (UTC) of the last window in which predictions were made; ``since`` if none were."""
    made = lake.table(table_of(spec)).held(map(str, due := windows(since, as_of, spec.window)))
    return max((window.end for window in due if str(window) in made), default=since)


def score(
    spec: Pipeline,
    lake: Lake,
    window: Window,
    make: Callable[[pa.Table], pa.Table],
) -> int:
    """Make the predictions of ``window`` that are missing and log them; return how many.

    ``make`` predicts rows of a spine, as ``Predictor.batch`` or :func:`predicted` do. Predictions that were
    made before stay as they were made.

    Raises:
        BatchRejected: The predictions are not what the problem demands, or break the pipeline's suite.
            None is logged.
    """
    import pyarrow as pa

    order = quoted("event_timestamp", *spec.keys)
    missing = _unpredicted(spec, *_opened(spec, lake), window)
    predictions = make(missing.order(order).to_arrow_table())
    table = lake.table(table_of(spec))
    expected = of_predictions(spec.problem, spec.keys, spec.suite)
    predictions = guard(predictions, expected, lake, spec.name, table.name, window)
    made = int(predictions.num_rows)
    if table.exists():
        before = read(spec, lake, window)
        if AVAILABLE not in before.column_names:  # of an earlier release
            before = before.append_column(AVAILABLE, before["event_timestamp"])
        for name in {*predictions.column_names} - {*before.column_names}:  # as well
            before = before.append_column(name, pa.nulls(len(before), predictions[name].type))
        predictions = pa.concat_tables([before, predictions.select(before.column_names).cast(before.schema)])
    table.overwrite(predictions, window, "event_timestamp")
    return made


def predicted(spec: Pipeline, rows: pa.Table, model: Model, version: int, since: datetime) -> pa.Table:
    """Return the predictions of ``rows``, which have their features, as the log has them.

    That is with their keys, inputs and ids, and who made them.

    They are available from their instant on, or from ``since`` (UTC), if the model learnt what came later.
    """
    made = rows.select(list(dict.fromkeys([*spec.keys, "event_timestamp", *spec.columns.names])))
    for name, values in model.problem.named(model.predict(rows)).items():
        made = made.append_column(name, values)
    return signed(made, spec, version, since)


def _opened(spec: Pipeline, lake: Lake) -> tuple[duckdb.DuckDBPyConnection, list[str]]:
    """Open what the spine reads; name the views of what was predicted, and of what of it is held."""
    con = lake.connect(among(spec.spine, spec.raw))
    made = [lake.table(table_of(spec)).relation(con)] if lake.table(table_of(spec)).exists() else []
    for entry in entries(lake, table_of(spec)):
        if not entry.whole:
            made.append(lake.table(entry.held.table).relation(con, entry.held.version))
    for number, rows in enumerate(made):
        rows.create_view(f"made{number}")
    return con, [f"made{number}" for number in range(len(made))]


def _unpredicted(
    spec: Pipeline, con: duckdb.DuckDBPyConnection, made: Sequence[str], window: Window
) -> duckdb.DuckDBPyRelation:
    """Return the spine rows of ``window`` that have no prediction, not even one that is held."""
    without = "".join(f" ANTI JOIN {name} USING ({quoted(*spec.keys)})" for name in made)
    return con.sql(f"SELECT * FROM ({spec.spine}){without} WHERE {window.predicate('event_timestamp')}")


def read(spec: Pipeline, lake: Lake, window: Window) -> pa.Table:
    """Return the predictions made within ``window``, with their inputs."""
    con = lake.connect({"predictions": table_of(spec)})
    return con.execute(
        f"FROM predictions WHERE {window.predicate('event_timestamp')} "
        f"ORDER BY event_timestamp, {quoted(*spec.keys)}"
    ).to_arrow_table()


def outcomes(spec: Pipeline, lake: Lake, window: Window, as_of: datetime) -> pa.Table:
    """Return the window's predictions whose truth was known by ``as_of`` (UTC), with their ``label``.

    Raises:
        BadLabels: A label is not what the problem asks for.
    """
    return spine.with_truth(spec, lake, read(spec, lake, window), as_of)


def known(spec: Pipeline, lake: Lake, span: Window, as_of: datetime) -> dict[datetime, int]:
    """Return of how many predictions the truth is known ``as_of`` (UTC), by their window's start in ``span``.

    ``span`` begins where a window does.
    """
    con = lake.connect({**among(spec.label, spec.raw), "predictions": table_of(spec)})
    length = spec.window // timedelta(microseconds=1)
    nth = f"(epoch_us(event_timestamp) - epoch_us(TIMESTAMPTZ '{span.start.isoformat()}')) // {length}"
    with query_of(
        f"The join of predictions and label of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"
    ):
        found = con.execute(
            f"SELECT {nth} AS nth, count(*) FROM predictions JOIN ({spec.label}) label "
            f"USING ({quoted(*spec.keys)}) WHERE {span.predicate('event_timestamp')} "
            "AND label.available_at < $as_of GROUP BY nth",
            {"as_of": as_of},
        ).fetchall()
    return {span.start + number * spec.window: count for number, count in found}


def table_of(spec: Pipeline) -> str:
    """Return the name of the table that a pipeline's predictions are in."""
    return log_of(spec.name)
