"""Feature tables: one SQL file each, built a window at a time, idempotently."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError
from headrace.feature_store.errors import BadFeatureRows
from headrace.lake import AVAILABLE, Lake, Window, duckdb_connection, edge, query_of
from headrace.quarantine import guard
from headrace.sql import among, meaning, parameters, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from headrace.lake import DatasetRef
    from headrace.pipeline import FeatureTable


MUCH = 2**28
"""Bytes of rows that are held before they are written."""


class Cause(StrEnum):
    """Why a window is to be built."""

    NEW = "new window"
    RAW = "new raw rows"
    DEFINITION = "changed SQL, lookback or suite"


def build(
    table: FeatureTable,
    raw: Mapping[str, str | DatasetRef],
    due: Window | Sequence[Window],
    lake: Lake,
    pipeline: str = "",
) -> int:
    """Compute ``table``'s rows of a window from raw rows and put them in place of those there.

    Building a window again, or after a crash, ends in the same rows. Windows
    are independent: any number may be built at once. Those given together, which follow each other, are
    written in one commit, or in several where they hold much. One that cannot be built keeps none
    of the others from being.

    Args:
        table: What to build; its query is described there.
        raw: Raw tables or snapshots by view name: all that the query may read.
        due: Event time to build; a window's query sees what became known in ``[start - lookback, end)``.
        lake: Where ``raw`` is read and the feature table written.
        pipeline: Whose table it is: under that name the quarantine keeps what does not pass its suite.

    Columns that the query gained are null in windows not yet built again, and
    those that it lost become null.

    Returns:
        The number of rows written.

    Raises:
        NotBuilt: A raw table does not exist.
        ColumnsRetyped: A column has another type than the table keeps it in.
        InvalidQuery: The query cannot be run.
        BadFeatureRows: The query leaves a time column out, or returns rows outside the window.
        BatchRejected: The rows break the table's suite; the window stays as it was.
    """
    sql, built, written = table.sql.read_text(), list[_Built](), 0
    digest, failed = _digest(table, sql), list[HeadraceError]()

    def write() -> None:
        nonlocal written
        if built:
            written += _write(table, built, digest, lake)
        built.clear()

    with duckdb_connection() as con:
        for window in [due] if isinstance(due, Window) else due:
            if built and (built[-1].window.end != window.start or sum(b.rows.nbytes for b in built) > MUCH):
                write()
            try:
                built.append(_built(con, table, sql, raw, window, lake, pipeline))
            except HeadraceError as error:
                failed.append(error)
    write()
    if failed:
        raise failed[0]
    return written


@dataclass(frozen=True)
class _Built:
    """A window's rows, and how many raw rows its query saw."""

    window: Window
    rows: pa.Table
    seen: int


def _built(
    con: duckdb.DuckDBPyConnection,
    table: FeatureTable,
    sql: str,
    raw: Mapping[str, str | DatasetRef],
    window: Window,
    lake: Lake,
    pipeline: str,
) -> _Built:
    visible, seen = _visible(table, window), 0
    for view, wanted in among(sql, raw).items():
        name, version = (wanted, None) if isinstance(wanted, str) else (wanted.table, wanted.version)
        rows = lake.table(name).relation(con, version, visible).filter(visible.predicate(AVAILABLE))
        rows.create_view(view, replace=True)
        seen += rows.count("*").fetchall()[0][0]
    bounds = {"start": window.start, "end": window.end}
    with query_of(f"The query of `{table.table}`", str(table.sql)):
        asked = {name: bounds[name] for name in parameters(sql) if name in bounds}
        made = con.execute(sql, asked).to_arrow_table()
    _check(table, made, window)
    if table.suite:
        made = guard(made, table.suite, lake, pipeline, table.table, window)
    return _Built(window, made, seen)


def _write(table: FeatureTable, built: Sequence[_Built], digest: int, lake: Lake) -> int:
    """Put windows that follow each other in place of what is there; return how many rows."""
    import pyarrow as pa

    keys = {str(each.window): each.seen for each in built}
    keys |= {_definition_of(each.window): digest for each in built}
    span = Window(built[0].window.start, built[-1].window.end)
    rows = pa.concat_tables([each.rows for each in built])
    lake.table(table.table).overwrite(rows, span, "event_timestamp", keys)
    return int(rows.num_rows)


def complete(table: FeatureTable, sources: Mapping[str, datetime]) -> datetime:
    """Return up to when (UTC) every source that the table reads is complete, of ``sources`` by name."""
    return min(among(table.sql.read_text(), sources).values())


def edges(
    tables: Sequence[FeatureTable], sources: Mapping[str, datetime], until: datetime
) -> dict[str, datetime]:
    """Return, by table in the lake, the end of its last window by ``until`` (UTC) that is complete."""
    return {table.table: edge(min(until, complete(table, sources)), table.window) for table in tables}


def stale(
    table: FeatureTable,
    raw: Mapping[str, str | DatasetRef],
    due: Sequence[Window],
    lake: Lake,
) -> dict[Window, Cause]:
    """Return why those windows of ``due`` are stale that are: see :func:`look`."""
    return look(table, raw, due, lake).causes


@dataclass(frozen=True)
class Look:
    """What the windows of a table are like: why those are stale that are, and what some do not see.

    ``unseen`` has, by view, the windows whose query sees no row of it though there are some from before:
    all of them became known earlier than ``lookback`` reaches, and what is joined from them is null.
    """

    causes: dict[Window, Cause]
    unseen: dict[str, list[Window]]


def look(
    table: FeatureTable,
    raw: Mapping[str, str | DatasetRef],
    due: Sequence[Window],
    lake: Lake,
) -> Look:
    """Look at the windows of ``due``: are they built, and as they would be today?

    Raw tables only grow, so the number of rows a window's query can see, which
    ``build`` notes beside the window, says whether it would see others today.
    Noted there as well is a digest of how the table was defined. A change of
    comments, space or keywords' case in its SQL is none; another version of DuckDB may be one.
    """
    sql = table.sql.read_text()
    read = among(sql, raw)
    con = lake.connect(read)
    seen, unseen = [0] * len(due), {}
    for view in read:
        more, earlier = _counts(con, view, [_visible(table, window) for window in due])
        seen = [total + rows for total, rows in zip(seen, more, strict=True)]
        counts = zip(due, more, earlier, strict=True)
        unseen[view] = [window for window, rows, older in counts if older and not rows]
    held = lake.table(table.table).held([key for w in due for key in (str(w), _definition_of(w))])
    today = _digest(table, sql)
    causes: dict[Window, Cause] = {}
    for window, rows in zip(due, seen, strict=True):
        if str(window) not in held:
            if rows:
                causes[window] = Cause.NEW
        elif held.get(_definition_of(window)) != today:
            causes[window] = Cause.DEFINITION
        elif held[str(window)] != rows:
            causes[window] = Cause.RAW
    return Look(causes, unseen)


def _definition_of(window: Window) -> str:
    """Return the key under which a feature table holds the digest that its window was built with."""
    return f"definition of {window}"


def _digest(table: FeatureTable, sql: str) -> int:
    """Return a number, for Delta keeps no text beside a window, that any change of the definition changes."""
    parts = json.dumps([meaning(sql), table.lookback.total_seconds(), table.suite])
    return int.from_bytes(hashlib.sha256(parts.encode()).digest()[:8]) >> 1


def _counts(
    con: duckdb.DuckDBPyConnection, view: str, spans: Sequence[Window]
) -> tuple[list[int], list[int]]:
    """Count the rows of ``view`` that became known in each of ``spans``, and before each, in one pass."""
    cuts = sorted({instant for span in spans for instant in (span.start, span.end)})
    if not cuts:
        return [], []
    found = con.execute(
        # a bin ends with the last microsecond before the cut
        f"SELECT histogram(epoch_us({AVAILABLE}), list_transform(?::TIMESTAMPTZ[], cut -> epoch_us(cut) - 1))"
        f" FROM {quoted(view)}",
        [cuts],
    )
    ((bins,),) = found.fetchall()  # and one for what comes after the last; None if there are no rows
    before = dict(zip(cuts, accumulate((bins or dict.fromkeys(cuts, 0)).values()), strict=False))
    return [before[span.end] - before[span.start] for span in spans], [before[span.start] for span in spans]


def _visible(table: FeatureTable, window: Window) -> Window:
    """Return when a raw row must have become known to be seen by the window's query."""
    return Window(window.start - table.lookback, window.end)


def _check(table: FeatureTable, rows: pa.Table, window: Window) -> None:
    """Refuse rows that would outlive a rebuild of their window."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def refuse(reason: str) -> None:
        raise BadFeatureRows(table.table, str(table.sql), reason)

    missing = {"event_timestamp", "available_at"} - set(rows.column_names)
    if missing:
        refuse(f"returns no {' and no '.join(sorted(missing))}")
    for column in ("event_timestamp", "available_at"):
        kind = rows.schema.field(column).type
        if not pa.types.is_timestamp(kind) or not kind.tz:
            refuse(f"returns `{column}` as {kind}, which names no instant: cast it to TIMESTAMPTZ")
    times = rows["event_timestamp"]
    if times.null_count:
        refuse(f"returns {times.null_count:,} of {rows.num_rows:,} rows without an `event_timestamp`")
    ends = pc.min_max(times).as_py()
    if rows.num_rows and not window.start <= ends["min"] <= ends["max"] < window.end:
        spread = f"{ends['min']:%Y-%m-%dT%H:%MZ} to {ends['max']:%Y-%m-%dT%H:%MZ}"
        refuse(f"returns rows of {spread} for the window {window}")
