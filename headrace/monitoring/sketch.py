"""Sketches: a few thousand values per column that stand for any number of rows.

Drift per column looks at marginals alone. A column's evenly spaced quantiles,
or its categories in proportion to their counts, have the same marginal as all
its rows, so that comparing two sketches costs the same for a thousand rows as
for ten million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.cluster import batched
from headrace.lake import MONDAY, duckdb_connection
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    import duckdb
    import pandas as pd
    import pyarrow as pa

    from headrace.pipeline import Columns

SIZE = 4_000
"""Rows of a sketch: enough for scores within 0.01 of those of all rows."""
AT_ONCE = 8_000_000
"""Numbers that are read at once."""
FAR = 10
"""How many times their own spread readings may lie beyond all but a thousandth of the others."""


@dataclass(frozen=True)
class Odd:
    """Readings of a numeric column that are left out: some infinite, some ``far`` from all others."""

    infinite: int
    far: int
    farthest: float

    def __str__(self) -> str:
        told = [f"{self.far:,} far from all others, such as {self.farthest:g}"] if self.far else []
        return " and ".join([*told, f"{self.infinite:,} infinite"] if self.infinite else told)


@dataclass(frozen=True)
class Sketch:
    """Stands for ``rows`` rows: ``frame`` has one column for each that is watched.

    Values of one row of ``frame`` have nothing to do with each other; nulls
    have their share of each column. What is rarer than one row in as many as
    ``frame`` has may be missing.

    One reading that cannot be would outweigh all others. So in numeric columns what is
    not within ``limits`` counts as null; ``odd`` has the columns in which there was such.
    """

    rows: int
    frame: pd.DataFrame
    limits: Mapping[str, tuple[float, float]]
    odd: Mapping[str, Odd]


def sketch(
    rows: duckdb.DuckDBPyRelation | pa.Table,
    columns: Columns,
    size: int = SIZE,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Sketch:
    """Sketch the ``columns`` of ``rows``; the same rows give the same sketch.

    ``limits`` are those of the sketch that it is to be compared with; their own if left out.
    """
    found = _sketches(_relation(rows), columns, size, "0", limits)
    return found[0] if found else _drawn(0, {name: np.full(size, np.nan) for name in columns.names}, {}, {})


def sketch_windows(
    rows: duckdb.DuckDBPyRelation | pa.Table,
    columns: Columns,
    every: timedelta,
    time: str = "event_timestamp",
    size: int = SIZE,
) -> tuple[Sketch, list[Sketch]]:
    """Sketch ``rows`` as a whole, and each window of the Monday grid that has some, oldest first."""
    window = f"(epoch({time}) - {MONDAY.timestamp()})::BIGINT // {int(every.total_seconds())}"
    whole = sketch(rows, columns, size)
    return whole, _sketches(_relation(rows), columns, size, window, whole.limits)


def _relation(rows: duckdb.DuckDBPyRelation | pa.Table) -> duckdb.DuckDBPyRelation:
    import pyarrow as pa

    return duckdb_connection().from_arrow(rows) if isinstance(rows, pa.Table) else rows


def _sketches(
    rows: duckdb.DuckDBPyRelation,
    columns: Columns,
    size: int,
    slot: str,
    limits: Mapping[str, tuple[float, float]] | None,
) -> list[Sketch]:
    """Sketch the rows of each ``slot``, in its order. Columns are read some at a time: memory stays flat.

    What is read is told by its place, for a column may have any name. A sketch cannot tell a FLOAT from a
    DOUBLE. A number that a FLOAT does not hold is null to the model, and so it is here.
    """
    by_slot = rows.query("sketched", f"SELECT {slot}, count(*) FROM sketched GROUP BY 1")
    counts: dict[int, int] = dict(by_slot.fetchall())
    frames: dict[int, dict[str, np.ndarray]] = {place: {} for place in sorted(counts)}
    within = {place: dict(limits or {}) for place in frames}
    odd: dict[int, dict[str, Odd]] = {place: {} for place in frames}
    for name in columns.categorical:
        column = quoted(name)
        select = f"SELECT {slot}, {column}::VARCHAR, count(*) FROM sketched WHERE {column} IS NOT NULL"
        seen = rows.query("sketched", f"{select} GROUP BY 1, 2 ORDER BY 1, 2")
        found: dict[int, list[tuple[str, int]]] = {place: [] for place in frames}
        for place, value, count in seen.fetchall():
            found[place].append((value, count))
        for place, frame in frames.items():
            frame[name] = _categories(found[place], size, counts[place])
    for names in batched(columns.numeric, max(1, AT_ONCE // max(1, sum(counts.values())))):
        numbers = ", ".join(f"TRY_CAST({quoted(name)} AS FLOAT)" for name in names)
        order = "" if slot == "0" else "ORDER BY 1"
        table = rows.query("sketched", f"SELECT {slot}, {numbers} FROM sketched {order}").to_arrow_table()
        start = 0
        for place, frame in frames.items():
            part = table.slice(start, counts[place])
            start += counts[place]
            for nth, name in enumerate(names, start=1):
                frame[name] = _numbers(name, part.column(nth), size, within[place], odd[place])
    return [
        _drawn(counts[place], {name: frame[name] for name in columns.names}, within[place], odd[place])
        for place, frame in frames.items()
    ]


def _drawn(
    rows: int,
    frame: Mapping[str, np.ndarray],
    limits: Mapping[str, tuple[float, float]],
    odd: Mapping[str, Odd],
) -> Sketch:
    import pandas as pd

    # In order, Evidently's plots of a column's mean along its rows would show a trend that is none.
    drawn = pd.DataFrame(frame).sample(frac=1, random_state=0, ignore_index=True)
    return Sketch(rows, drawn, limits, odd)


def _numbers(
    name: str,
    values: pa.ChunkedArray,
    size: int,
    limits: dict[str, tuple[float, float]],
    odd: dict[str, Odd],
) -> np.ndarray:
    """Return values that stand for a column's; set its limits, if it has none, and what is odd about it."""
    known = np.sort(values.drop_null().to_numpy())
    known = known[: known.size - int(np.isnan(known).sum())]  # they go last, and are nulls, too
    finite = known[np.isfinite(known)]
    low, high = limits.setdefault(name, _limits(finite))
    likely = finite[np.searchsorted(finite, low) : np.searchsorted(finite, high, "right")]
    if likely.size < known.size:
        farthest = max(finite[[0, -1]], key=abs) if finite.size else np.nan
        odd[name] = Odd(known.size - finite.size, finite.size - likely.size, float(farthest))
    return _quantiles(likely, size, len(values))


def _limits(ordered: np.ndarray) -> tuple[float, float]:
    """Return between what a column's readings are likely to be; without a spread, anything is."""
    left = min(1 + ordered.size // 1000, (ordered.size - 1) // 2)
    low, high = (float(end) for end in ordered[[left, -1 - left]]) if ordered.size else (0.0, 0.0)
    spread = (high - low) * FAR or np.inf
    return low - spread, high + spread


def _quantiles(ordered: np.ndarray, size: int, rows: int) -> np.ndarray:
    """Return ``size`` values that stand for ``rows`` rows, of which all but the ``ordered`` are null."""
    count = round(size * ordered.size / max(rows, 1))
    picked = np.full(size, np.nan)
    # The middles of `count` equal slices: the ends would weigh extremes too much.
    picked[:count] = ordered[((np.arange(count) + 0.5) / max(count, 1) * ordered.size).astype(int)]
    return picked


def _categories(seen: Sequence[tuple[str, int]], size: int, rows: int) -> np.ndarray:
    """Return ``size`` values in which each comes as often as ``seen`` has it; the rest are null."""
    picked = np.full(size, None, dtype=object)
    if seen:
        names, counts = zip(*seen, strict=True)
        # Rounding the running total, not each count, makes them add up.
        ends = np.rint(np.cumsum(counts) / rows * size).astype(int)
        shares = np.repeat(np.array(names, dtype=object), np.diff(ends, prepend=0))
        picked[: shares.size] = shares
    return picked
