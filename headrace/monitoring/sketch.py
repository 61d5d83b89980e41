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

if TYPE_CHECKING:
    from datetime import timedelta

    import duckdb
    import pandas as pd
    import pyarrow as pa

    from headrace.pipeline import Columns

PREDICTION = "probability"
SIZE = 4_000
"""Rows of a sketch: enough for scores within 0.01 of those of all rows."""


@dataclass(frozen=True)
class Sketch:
    """Stands for ``rows`` rows: ``frame`` has one column per input and ``probability``.

    Values of one row of ``frame`` have nothing to do with each other; nulls
    have their share of each column. What is rarer than one row in as many as
    ``frame`` has, such as one absurd reading, may be missing.
    """

    rows: int
    frame: pd.DataFrame


def sketch(rows: duckdb.DuckDBPyRelation | pa.Table, columns: Columns, size: int = SIZE) -> Sketch:
    """Sketch the inputs and the ``probability`` of ``rows``; the same rows give the same sketch."""
    return _sketch(_read(rows, columns, "0"), columns, size)


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
    return _sketch(table, columns, size), [_sketch(part, columns, size) for part in parts]


def _read(rows: duckdb.DuckDBPyRelation | pa.Table, columns: Columns, slot: str) -> pa.Table:
    """Read each column once, ordered by ``slot``; a sketch cannot tell a FLOAT from a DOUBLE."""
    import pyarrow as pa

    relation = duckdb_connection().from_arrow(rows) if isinstance(rows, pa.Table) else rows
    wanted = [f'"{name}"::FLOAT AS "{name}"' for name in (*columns.numeric, PREDICTION)]
    wanted += [f'"{name}"::VARCHAR AS "{name}"' for name in columns.categorical]
    read = relation.project(", ".join([f"{slot} AS slot", *wanted]))
    return (read if slot == "0" else read.order("slot")).to_arrow_table()


def _sketch(table: pa.Table, columns: Columns, size: int) -> Sketch:
    import pandas as pd

    frame: dict[str, np.ndarray] = {}
    for name in columns.categorical:
        frame[name] = _categories(table[name], size)
    for name in (*columns.numeric, PREDICTION):
        frame[name] = _quantiles(table[name].to_numpy(), size)
    # In order, Evidently's plots of a column's mean along its rows would show a trend that is none.
    return Sketch(table.num_rows, pd.DataFrame(frame).sample(frac=1, random_state=0, ignore_index=True))


def _quantiles(values: np.ndarray, size: int) -> np.ndarray:
    ordered = np.sort(values)  # not-a-numbers, which is what nulls have become, go last
    known = values.size - int(np.isnan(ordered).sum())
    count = round(size * known / max(values.size, 1))
    picked = np.full(size, np.nan)
    # The middles of `count` equal slices: the ends would weigh extremes too much.
    picked[:count] = ordered[((np.arange(count) + 0.5) / max(count, 1) * known).astype(int)]
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
