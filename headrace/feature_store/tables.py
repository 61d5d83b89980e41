"""Feature tables: one SQL file each, built a window at a time, idempotently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import BadFeatureRows
from headrace.lake import Lake, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from headrace.lake import DatasetRef
    from headrace.pipeline import FeatureTable


def build(
    table: FeatureTable,
    raw: Mapping[str, str | DatasetRef],
    times: Mapping[str, str],
    window: Window,
    lake: Lake,
) -> int:
    """Compute ``table``'s rows of ``window`` from raw rows and put them in place of those there.

    Building a window again, or after a crash, ends in the same rows. Windows
    are independent: any number may be built at once.

    Args:
        table: What to build; its query is described there.
        raw: Raw tables or snapshots by view name; all the query reads.
        times: For each view of ``raw``, its column (UTC) that says when a row became known.
        window: Event time to build; the query sees rows of ``[start - lookback, end)`` only.
        lake: Where ``raw`` is read and the feature table written.

    Returns:
        The number of rows written.

    Raises:
        NotBuilt: A raw table does not exist.
        BadFeatureRows: The query leaves a time column out, or returns rows outside ``window``.
    """
    con = lake.connect({f"whole_{view}": wanted for view, wanted in raw.items()})
    seen = Window(window.start - table.lookback, window.end)
    for view in raw:
        cut = seen.predicate(times[view])
        con.execute(f'CREATE VIEW "{view}" AS SELECT * FROM "whole_{view}" WHERE {cut}')
    query = con.execute(table.sql.read_text(), {"start": window.start, "end": window.end})
    rows = query.to_arrow_table()
    _check(table, rows, window)
    lake.table(table.table).overwrite(rows, window, "event_timestamp")
    return int(rows.num_rows)


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
