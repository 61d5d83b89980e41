"""The point-in-time join: one DuckDB query for all views, on numbered keys.

Feast's definition: a view's row answers a row of the spine if its keys are equal
(null equals nothing), it is not later than the spine's instant, and at most the
view's ttl older, both ends included; a ttl of zero is for ever. The latest row
wins; of equally late ones the one created last (never known is before all), and
of these the one whose features, in the order given, are the greatest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.feature_store.feast.sources import instant, without_uuids
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

ALL_TIME = datetime.max - datetime.min
"""A ttl as long as that is for ever."""
FEW = 100_000
"""Up to so many rows of a spine, dropping what no row asks for costs less than sorting it."""


@dataclass(frozen=True)
class Rows:
    """What one view joins: ``relation``, its columns by the view's names.

    ``keys`` are pairs of a spine column and the view's; ``created`` is None if
    nothing says when rows were created.
    """

    relation: duckdb.DuckDBPyRelation
    keys: tuple[tuple[str, str], ...]
    time: str
    created: str | None
    ttl: timedelta
    features: tuple[str, ...]


def reach(spine: pa.Table, time: str) -> tuple[datetime | None, datetime | None]:
    """Return the spine's first and last instant (UTC); None if it has none."""
    from pyarrow import compute

    if not spine.num_rows:
        return None, None
    ends = compute.min_max(spine[time].cast(pa.timestamp("us", "UTC"), safe=False)).as_py()
    return ends["min"], ends["max"]


def earliest(first: datetime | None, ttl: timedelta) -> datetime | None:
    """Return when rows that answer at ``first`` or later begin; None is unbounded."""
    if not first or not ttl or ttl >= first.replace(tzinfo=None) - datetime.min:
        return None
    return first - ttl


def join(
    con: duckdb.DuckDBPyConnection, spine: pa.Table, time: str, views: Sequence[Rows], *, known_only: bool
) -> list[pa.ChunkedArray]:
    """Return the features of each view, one column each, in the order of the spine's rows.

    With ``known_only``, rows do not exist before they were created, and those
    that do not say when never do; a view without such times is not affected.

    Args:
        con: Where the views' relations live; its time zone is UTC.
        spine: Any rows with the keys and ``time``, of a timestamp type; naive is UTC.
        time: The column of the spine that says at which instant features are asked for.
        views: What to join.
    """
    keys = {column: f"k{i}" for i, column in enumerate(dict(pair for v in views for pair in v.keys))}
    columns = [*(spine[column] for column in keys), spine[time], pa.array(np.arange(spine.num_rows))]
    given = con.from_arrow(pa.table(columns, names=[*keys.values(), "asked_at", "number"]))
    without_uuids(given).create_view("given")
    # A table of DuckDB's own: it can be spilled, and its size is known. An Arrow table counts as
    # one row, and a join of one row is planned as a nested loop: minutes instead of a second.
    con.execute("CREATE TEMP TABLE spine AS SELECT * REPLACE (asked_at::TIMESTAMPTZ AS asked_at) FROM given")
    first, last = reach(spine, time)
    features: list[pa.ChunkedArray] = []
    for i, view in enumerate(views):  # one by one: what one has found need not be sorted for the next
        view.relation.create_view(f"rows{i}")
        answers = _answers(con, i, view, keys, first, last, known_only=known_only, few=spine.num_rows <= FEW)
        on = [f"spine.{keys[ours]} = answers.k{n}" for n, (ours, _) in enumerate(view.keys)]
        on.append("spine.asked_at >= answers.since")
        found = [f"if(spine.asked_at <= answers.upto, answers.f{n}, NULL)" for n in range(len(view.features))]
        joined = con.sql(f"""
            SELECT {", ".join(found)}
            FROM spine ASOF LEFT JOIN ({answers}) AS answers ON {" AND ".join(on)} ORDER BY number
        """).to_arrow_table()
        assert joined.num_rows == spine.num_rows, "a point-in-time join must not change the rows"
        features += joined.itercolumns()
    return features


def _answers(
    con: duckdb.DuckDBPyConnection,
    i: int,
    view: Rows,
    keys: dict[str, str],
    first: datetime | None,
    last: datetime | None,
    *,
    known_only: bool,
    few: bool,
) -> str:
    """Select the view's rows that can answer, each with the instants between which it does."""
    time = f"{quoted(view.time)}::TIMESTAMPTZ"
    created = f"{quoted(view.created)}::TIMESTAMPTZ" if view.created else None
    since = f"greatest({time}, {created})" if known_only and created else time
    upto = f"{time} + to_microseconds({microseconds(view.ttl)})" if view.ttl else "TIMESTAMPTZ 'infinity'"
    where = [f"{time} <= {instant(last)}"]
    if begin := earliest(first, view.ttl):
        where.append(f"{time} >= {instant(begin)}")
    if known_only and created:
        where.append(f"{created} <= {instant(last)}")
    columns = [f"{quoted(theirs)} AS k{n}" for n, (_, theirs) in enumerate(view.keys)]
    columns += [f"{quoted(feature)} AS f{n}" for n, feature in enumerate(view.features)]
    asked = ""
    if few and view.keys:
        wanted = ", ".join(f"{keys[ours]} AS w{n}" for n, (ours, _) in enumerate(view.keys))
        equal = " AND ".join(
            f"rows{i}.{quoted(theirs)} = asked.w{n}" for n, (_, theirs) in enumerate(view.keys)
        )
        asked = f"SEMI JOIN (SELECT DISTINCT {wanted} FROM spine) AS asked ON {equal}"
    rows = f"""
        SELECT {", ".join(columns)}, {time} AS happened, {created or "NULL"} AS created,
               {since} AS since, {upto} AS upto
        FROM rows{i} {asked} WHERE {" AND ".join(where)}
    """
    by_key, kept = [f"k{n}" for n in range(len(view.keys))], []
    tied = f"SELECT 1 FROM ({rows}) GROUP BY {', '.join([*by_key, 'since'])} HAVING count(*) > 1 LIMIT 1"
    if con.execute(tied).fetchone():  # to look is cheaper than to sort
        features = [f"f{n}" for n in range(len(view.features))]
        best = ", ".join(f"{value} DESC NULLS LAST" for value in ["happened", "created", *features])
        kept.append(f"row_number() OVER (PARTITION BY {', '.join([*by_key, 'since'])} ORDER BY {best}) = 1")
    if known_only and created:
        # What became known later but happened earlier never wins. Without such rows, one inequality decides.
        over = f"PARTITION BY {', '.join(by_key) or 'NULL'} ORDER BY since"
        kept.append(f"happened >= max(happened) OVER ({over})")
    return f"SELECT * FROM ({rows})" + (f" QUALIFY {' AND '.join(kept)}" if kept else "")


def microseconds(ttl: timedelta) -> int:
    """Return ``ttl`` in microseconds, at most all time there is."""
    ttl = min(ttl, ALL_TIME)
    return (ttl.days * 86_400 + ttl.seconds) * 1_000_000 + ttl.microseconds
