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

from headrace.lake import MONDAY, duckdb_connection
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    import duckdb
    import pandas as pd
    import pyarrow as pa

    from headrace.pipeline import Columns

SIZE = 4_000
"""Rows of a sketch: enough for scores within 0.01 of those of all rows."""
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
    return _sketch(_read(rows, columns, "0"), columns, size, limits)


def sketch_windows(
    rows: duckdb.DuckDBPyRelation | pa.Table,
    columns: Columns,
    every: timedelta,
    time: str = "event_timestamp",
    size: int = SIZE,
) -> tuple[Sketch, list[Sketch]]:
    """Sketch ``rows`` as a whole, and each window of the Monday grid that has some, oldest first."""
    window = f"(epoch({time}) - {MONDAY.timestamp()})::BIGINT // {int(every.total_seconds())}"
    table = _read(rows, columns, window)
    _, starts = np.unique(table["slot"].to_numpy(), return_index=True)
    parts = (
        table.slice(start, end - start)
        for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True)
    )
    whole = _sketch(table, columns, size)
    return whole, [_sketch(part, columns, size, whole.limits) for part in parts]


def _read(rows: duckdb.DuckDBPyRelation | pa.Table, columns: Columns, slot: str) -> pa.Table:
    """Read each column once, ordered by ``slot``; a sketch cannot tell a FLOAT from a DOUBLE.

    A number that a FLOAT does not hold is null to the model, and so it is here.
    """
    import pyarrow as pa

    relation = duckdb_connection().from_arrow(rows) if isinstance(rows, pa.Table) else rows
    numbers = map(quoted, columns.numeric)
    wanted = [f"TRY_CAST({name} AS FLOAT) AS {name}" for name in numbers]
    wanted += [f"{quoted(name)}::VARCHAR AS {quoted(name)}" for name in columns.categorical]
    read = relation.project(", ".join([f"{slot} AS slot", *wanted]))
    return (read if slot == "0" else read.order("slot")).to_arrow_table()


def _sketch(
    table: pa.Table, columns: Columns, size: int, limits: Mapping[str, tuple[float, float]] | None = None
) -> Sketch:
    import pandas as pd

    frame: dict[str, np.ndarray] = {}
    for name in columns.categorical:
        frame[name] = _categories(table[name], size)
    within, odd = dict(limits or {}), {}
    for name in columns.numeric:
        known = np.sort(table[name].drop_null().to_numpy())
        known = known[: known.size - int(np.isnan(known).sum())]  # they go last, and are nulls, too
        finite = known[np.isfinite(known)]
        low, high = within.setdefault(name, _limits(finite))
        likely = finite[np.searchsorted(finite, low) : np.searchsorted(finite, high, "right")]
        frame[name] = _quantiles(likely, size, table.num_rows)
        if likely.size < known.size:
            farthest = max(finite[[0, -1]], key=abs) if finite.size else np.nan
            odd[name] = Odd(known.size - finite.size, finite.size - likely.size, float(farthest))
    # In order, Evidently's plots of a column's mean along its rows would show a trend that is none.
    drawn = pd.DataFrame(frame).sample(frac=1, random_state=0, ignore_index=True)
    return Sketch(table.num_rows, drawn, within, odd)


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


def _categories(values: pa.ChunkedArray, size: int) -> np.ndarray:
    counts = values.drop_null().value_counts()
    names, seen = np.array(counts.field(0).to_pylist(), dtype=object), counts.field(1).to_numpy()
    order = np.argsort(names)
    # Rounding the running total, not each count, makes them add up.
    ends = np.rint(np.cumsum(seen[order]) / max(len(values), 1) * size).astype(int)
    shares = np.repeat(names[order], np.diff(ends, prepend=0))
    picked = np.full(size, None, dtype=object)
    picked[: shares.size] = shares
    return picked
