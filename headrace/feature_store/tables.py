"""Feature tables: one SQL file each, built a window at a time, idempotently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import BadFeatureRows
from headrace.lake import AVAILABLE, Lake, Window
from headrace.quarantine import guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from headrace.lake import DatasetRef
    from headrace.pipeline import FeatureTable


def build(
    table: FeatureTable,
    raw: Mapping[str, str | DatasetRef],
    window: Window,
    lake: Lake,
    pipeline: str = "",
) -> int:
    """Compute ``table``'s rows of ``window`` from raw rows and put them in place of those there.

    Building a window again, or after a crash, ends in the same rows. Windows
    are independent: any number may be built at once.

    Args:
        table: What to build; its query is described there.
        raw: Raw tables or snapshots by view name; all the query reads.
        window: Event time to build; the query sees what became known in ``[start - lookback, end)``.
        lake: Where ``raw`` is read and the feature table written.
        pipeline: Whose table it is: under that name the quarantine keeps what does not pass its suite.

    Returns:
        The number of rows written.

    Raises:
        NotBuilt: A raw table does not exist.
        BadFeatureRows: The query leaves a time column out, or returns rows outside ``window``.
        BatchRejected: The rows break the table's suite; the window stays as it was.
    """
    con = lake.connect({f"whole_{view}": wanted for view, wanted in raw.items()})
    seen = 0
    for view in raw:
        cut = _visible(table, window).predicate(AVAILABLE)
        con.execute(f'CREATE VIEW "{view}" AS SELECT * FROM "whole_{view}" WHERE {cut}')
        seen += con.view(view).count("*").fetchall()[0][0]
    query = con.execute(table.sql.read_text(), {"start": window.start, "end": window.end})
    rows = query.to_arrow_table()
    _check(table, rows, window)
    if table.suite:
        rows = guard(rows, table.suite, lake, pipeline, table.table, window)
    lake.table(table.table).overwrite(rows, window, "event_timestamp", number=seen)
    return int(rows.num_rows)


def stale(
    table: FeatureTable,
    raw: Mapping[str, str | DatasetRef],
    due: Sequence[Window],
    lake: Lake,
) -> list[Window]:
    """Return those windows of ``due`` that were built from other raw rows than there are now, or never.

    Raw tables only grow, so the number of rows a window's query can see, which
    ``build`` notes beside the window, says whether it would see others today.
    """
    con = lake.connect(raw)
    seen = [0] * len(due)
    for view in raw:
        visible = (_visible(table, window).predicate(AVAILABLE) for window in due)
        counts = ", ".join(f"count(*) FILTER (WHERE {predicate})" for predicate in visible)
        found = con.sql(f'SELECT {counts} FROM "{view}"').fetchall()[0] if due else ()
        seen = [total + more for total, more in zip(seen, found, strict=True)]
    built = lake.table(table.table).held([str(window) for window in due])
    return [window for window, rows in zip(due, seen, strict=True) if rows != built.get(str(window), 0)]


def _visible(table: FeatureTable, window: Window) -> Window:
    """Return when a raw row must have become known to be seen by the window's query."""
    return Window(window.start - table.lookback, window.end)


def _check(table: FeatureTable, rows: pa.Table, window: Window) -> None:
    """Refuse rows that would outlive a rebuild of their window."""
    import pyarrow.compute as pc

    missing = {"event_timestamp", "available_at"} - set(rows.column_names)
    if missing:
        raise BadFeatureRows(table.table, str(table.sql), f"returns no {' and no '.join(sorted(missing))}")
    times = pc.min_max(rows["event_timestamp"]).as_py()
    if rows.num_rows and not window.start <= times["min"] <= times["max"] < window.end:
        spread = f"{times['min']:%Y-%m-%dT%H:%MZ} to {times['max']:%Y-%m-%dT%H:%MZ}"
        raise BadFeatureRows(table.table, str(table.sql), f"returns rows of {spread} for the window {window}")
