"""Drift of a window of many rows: sketches beside Evidently on all rows.

Made-up columns, nine tenths of them numbers (even, long-tailed, heavy-tailed) and the rest categories of
twenty values; in the window, a quarter as many rows, three columns have moved. The peer is Evidently's
report on pandas frames of all rows, by the same methods. Ours reads the same Parquet files. Each runs in a
process of its own, whose largest resident memory is told; imports are left out of the times. Above a million
rows of twenty columns the peer is not run: 1 M rows of 50 did not end in 280 s.

`off` is how far ours lies from the distances of all rows, at most. Ours and the peer are the seconds of
1 M rows of 20 columns.
"""

from __future__ import annotations

import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.result import Result
from headrace.lake import duckdb_connection
from headrace.monitoring.reference import CATEGORICAL, NUMERIC, distance
from headrace.monitoring.sketch import sketch
from headrace.pipeline import Columns

if TYPE_CHECKING:
    from collections.abc import Callable

    Took = tuple[float, float, dict[str, float]]
    """Seconds, MB at most, and scores by column."""

ROWS, WIDTHS = (100_000, 1_000_000, 10_000_000), (20, 50)
PEER = {(100_000, 20), (100_000, 50), (1_000_000, 20)}
EXACT = 1_000_000
"""Rows up to which distances of all rows are found, to compare with."""
MOVED = 3


def run() -> Result:
    """Make the rows, compare them, and set the times side by side."""
    table, ours_s, peer_s = [], 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            for rows in ROWS:
                files = _made(Path(folder), rows, width)
                ours = _apart(_ours, files, width)
                peer = _apart(_theirs, files, width) if (rows, width) in PEER else None
                exact = _exact(files, width) if rows <= EXACT else None
                off = max(abs(ours[2][name] - one) for name, one in exact.items()) if exact else None
                table.append(
                    (
                        f"{rows:,} x {width}",
                        f"{ours[0]:.2f} s",
                        f"{ours[1]:,.0f} MB",
                        f"{peer[0]:.1f} s" if peer else "not run",
                        f"{peer[1]:,.0f} MB" if peer else "",
                        f"{peer[0] / ours[0]:.0f}" if peer else "",
                        f"{off:.4f}" if off is not None else "",
                    )
                )
                if (rows, width) == (1_000_000, 20):
                    ours_s, peer_s = ours[0], peer[0] if peer else None
                for file in files:
                    file.unlink()
    return Result(
        name="drift",
        about="scores of all columns of a window, beside what was learnt from",
        ours_s=ours_s,
        peer_s=peer_s,
        bound_s=None,
        columns=("rows x columns", "ours", "memory", "Evidently", "its memory", "ratio", "off"),
        rows=tuple(table),
    )


def _columns(width: int) -> Columns:
    categories = width // 10
    return Columns(
        tuple(f"c{n}" for n in range(categories)), tuple(f"x{n}" for n in range(width - categories))
    )


def _made(folder: Path, rows: int, width: int) -> tuple[Path, Path]:
    """Write the rows that were learnt from, and those of the window; return both files."""
    con, columns, files = duckdb_connection(), _columns(width), []
    con.execute("SELECT setseed(0.5)")
    shapes = ("random()", "-ln(1 - random())", "exp(2 * (random() + random() + random() - 1.5))")
    for name, count, moved in (("before", rows, 0.0), ("now", rows // 4, 0.3)):
        numbers = [
            f"round({shapes[n % 3]} + {moved if n < MOVED else 0}, 4)::FLOAT AS {column}"
            for n, column in enumerate(columns.numeric)
        ]
        texts = [f"'k' || (random() * random() * 20)::INTEGER AS {column}" for column in columns.categorical]
        file = folder / f"{name}.parquet"
        con.execute(f"COPY (SELECT {', '.join([*texts, *numbers])} FROM range({count})) TO '{file}'")
        files.append(file)
    return files[0], files[1]


def _apart(work: Callable[[tuple[Path, Path], int], tuple[float, dict[str, float]]], *args: object) -> Took:
    """Do it in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, *args))


def _measured(work: Callable[..., tuple[float, dict[str, float]]], *args: object) -> Took:
    seconds, scores = work(*args)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, scores


def _ours(files: tuple[Path, Path], width: int) -> tuple[float, dict[str, float]]:
    import pandas as pd  # noqa: F401
    import scipy.stats  # noqa: F401

    columns = _columns(width)
    began = time.perf_counter()
    before = sketch(duckdb_connection().read_parquet(str(files[0])), columns)
    now = sketch(duckdb_connection().read_parquet(str(files[1])), columns, limits=before.limits)
    scores = {
        name: distance(before.frame[name], now.frame[name], categorical=name in columns.categorical)
        for name in columns.names
    }
    return time.perf_counter() - began, scores


def _theirs(files: tuple[Path, Path], width: int) -> tuple[float, dict[str, float]]:
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    columns = _columns(width)
    began = time.perf_counter()
    definition = DataDefinition(
        numerical_columns=[*columns.numeric], categorical_columns=[*columns.categorical]
    )
    before, now = (Dataset.from_pandas(pd.read_parquet(file), definition) for file in files)
    asked = [
        ValueDrift(column=name, method=CATEGORICAL if name in columns.categorical else NUMERIC)
        for name in columns.names
    ]
    found = Report(asked, include_tests=False).run(now, before).dict()["metrics"]
    seconds = time.perf_counter() - began
    return seconds, {one["config"]["column"]: float(one["value"]) for one in found}


def _exact(files: tuple[Path, Path], width: int) -> dict[str, float]:
    import pandas as pd

    columns, (before, now) = _columns(width), (pd.read_parquet(file) for file in files)
    return {
        name: distance(before[name], now[name], categorical=name in columns.categorical)
        for name in columns.names
    }
