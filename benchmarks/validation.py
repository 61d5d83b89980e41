"""The data gate: one suite on the same rows by GX on pandas, by ours, as one bare query; then at scale.

Rows: what the flights pipeline lands of 2013, five times over for the comparison
(1.7 million rows), each copy 53 weeks later than the last. The suite has
expectations of all kinds; that all sides count the same offences is checked.

- peer: GX's pandas engine, on a frame that is read before the clock starts;
- ours: ``headrace.validation.validate`` on the Parquet file;
- bound: one hand-written DuckDB query over the file that computes the same counts.

Each runs once before the clock starts; medians of three, in turns, each in a
process of its own.

Scale: the whole way from Parquet files through staging, the gate and Delta, a
window of 53 weeks at a time, at 1, 10 and 100 times the rows of 2013, each in a
process of its own, with its peak memory. Once; imports and the start of Dask
are not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.result import Result, peak_mb
from headrace.lake import duckdb_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from great_expectations import ExpectationSuite

YEAR = timedelta(weeks=53)
"""Whole weeks, and no flight of one copy on a day of the next."""
COPIES, SCALES = 5, (1, 10, 100)
REPEATS = 3
LIMIT = 1800
"""Seconds that a child may take."""
SIDES = {"pandas": "GX on pandas", "ours": "ours", "bare": "bare SQL"}


def run() -> Result:
    """Compare on five years, then ingest one, ten and a hundred."""
    with TemporaryDirectory() as folder:
        year, several = Path(folder, "year.parquet"), Path(folder, "several.parquet")
        _child("write", str(year), str(several))  # a child's peak memory begins with its parent's
        turns = [{side: _child(side, str(several)) for side in SIDES} for _ in range(REPEATS)]
        scales = [_child("scale", str(year), str(times)) for times in SCALES]
    offences = [found["offences"] for turn in turns for found in turn.values()]
    assert all(counts == offences[0] for counts in offences), f"not the same offences: {offences}"
    rows = turns[0]["ours"]["rows"]
    seconds = {side: statistics.median(turn[side]["seconds"] for turn in turns) for side in SIDES}
    peak = {side: max(turn[side]["peak_mb"] for turn in turns) for side in SIDES}
    compared = [
        (name, rows, seconds[side], seconds[side] / seconds["ours"], 1e6 * seconds[side] / rows,
         round(peak[side]))
        for side, name in SIDES.items()
    ]  # fmt: skip
    scaled = [
        (f"ingest {times}x", s["rows"], s["seconds"], "", 1e6 * s["seconds"] / s["rows"], round(s["peak_mb"]))
        for times, s in zip(SCALES, scales, strict=True)
    ]
    return Result(
        name="validation",
        about=f"{len(suite().expectations)} expectations on {rows:,} rows; then ingestion at scale",
        ours_s=seconds["ours"],
        peer_s=seconds["pandas"],
        bound_s=seconds["bare"],
        columns=("work", "rows", "seconds", "times ours", "µs per row", "peak MB"),
        rows=(*compared, *scaled),
    )


def suite() -> ExpectationSuite:
    """Return the flights suite without types, which pandas names otherwise, and with more kinds of rules."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    from headrace.validation import load_suite

    rules = [e for e in load_suite("flights.flights").expectations if "type" not in e.expectation_type]
    return gx.ExpectationSuite(
        "benchmark",
        [
            *rules,
            gxe.ExpectColumnMeanToBeBetween(column="distance", min_value=900, max_value=1200),
            gxe.ExpectColumnStdevToBeBetween(column="distance", min_value=500, max_value=900),
            gxe.ExpectColumnMaxToBeBetween(column="dep_delay", max_value=2000),
            gxe.ExpectColumnDistinctValuesToBeInSet(column="origin", value_set=["EWR", "JFK", "LGA"]),
            gxe.ExpectColumnUniqueValueCountToBeBetween(column="dest", min_value=50, max_value=150),
            gxe.ExpectColumnValueLengthsToEqual(column="origin", value=3),
            # some rows break these, so that there is something to count
            gxe.ExpectColumnValuesToNotBeNull(column="tailnum", mostly=0.99),
            gxe.ExpectColumnValuesToBeBetween(column="dep_delay", max_value=300, mostly=0.99),
            gxe.ExpectColumnValuesToNotMatchRegex(column="tailnum", regex="^D", mostly=0.99),
        ],
    )


BARE = """
    SELECT count(*), [
        count_if(carrier IS NULL), count_if(flight IS NULL), count_if(origin IS NULL),
        count_if(sched_dep IS NULL), count_if(dest IS NULL), count_if(distance IS NULL),
        count_if(landed_at IS NULL), count_if(tailnum IS NULL),
        (SELECT coalesce(sum(times), 0) FROM (
            SELECT count(*) AS times FROM read_parquet($file)
            GROUP BY carrier, flight, origin, sched_dep HAVING times > 1)),
        count_if(origin NOT IN ('EWR', 'JFK', 'LGA')),
        count_if(NOT regexp_matches(carrier, '^[A-Z0-9]{2}$')),
        count_if(NOT (distance > 0 AND distance <= 5000)),
        count_if(NOT dep_delay BETWEEN -120 AND 2880), count_if(NOT arr_delay BETWEEN -240 AND 2880),
        count_if(NOT (air_time > 0 AND air_time <= 1440)), count_if(dep_delay > 300),
        count_if(arrived_at <= departed_at), count_if(landed_at <= sched_dep),
        count_if(length(origin) != 3), count_if(regexp_matches(tailnum, '^D'))
    ], avg(distance), stddev_samp(distance), max(dep_delay), list(DISTINCT origin), count(DISTINCT dest)
    FROM read_parquet($file)
"""
"""As one would write it by hand: the same counts, and what the rules for whole columns need."""


def child(side: str, *arguments: str) -> None:
    """Measure one side in this process, and print what it found."""
    sides: dict[str, Callable[..., dict[str, Any]]]
    sides = {"write": _write, "pandas": _pandas, "ours": _ours, "bare": _bare, "scale": _scale}
    print(json.dumps(sides[side](*arguments) | {"peak_mb": peak_mb()}))


def _pandas(file: str) -> dict[str, Any]:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    frame = duckdb_connection().read_parquet(file).df()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("rows")
    batches = asset.add_batch_definition_whole_dataframe("all")
    rules = suite()
    batches.get_batch({"dataframe": frame.head(1000)}).validate(rules, result_format="BASIC")
    batch = batches.get_batch({"dataframe": frame})
    seconds, answer = _timed(lambda: batch.validate(rules, result_format="BASIC"))
    return {"seconds": seconds, "rows": len(frame), "offences": _offences(answer.to_json_dict())}


def _ours(file: str) -> dict[str, Any]:
    from headrace.validation import validate

    rules = suite()
    validate([Path(file)], rules)
    seconds, found = _timed(lambda: validate([Path(file)], rules))
    return {"seconds": seconds, "rows": found.rows, "offences": _offences(found.result)}


def _bare(file: str) -> dict[str, Any]:
    con = duckdb_connection()
    con.execute(BARE, {"file": file}).fetchall()
    seconds, found = _timed(lambda: con.execute(BARE, {"file": file}).fetchall()[0])
    return {"seconds": seconds, "rows": found[0], "offences": sorted(count for count in found[1] if count)}


def _offences(result: dict[str, Any]) -> list[int]:
    """Return the counts of rows that broke a rule, for each rule that any row broke."""
    counts = [one["result"].get("unexpected_count") for one in result["results"]]
    return sorted(count for count in counts if count)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def _scale(year: str, times: str) -> dict[str, Any]:
    import headrace.validation.run  # noqa: F401  # Great Expectations takes seconds to import
    from headrace import ingest
    from headrace.cluster import cluster, spread
    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import load
    from headrace.sources import Files

    copies = int(times)
    with TemporaryDirectory(dir=Path(year).parent) as folder, cluster() as client:
        for first in range(0, copies, 10):
            _write_copies(
                Path(year), Path(folder, f"{first:02}.parquet"), range(first, min(first + 10, copies))
            )
        spec, lake, ledger = load("flights"), Lake(f"{folder}/lake"), Ledger(f"sqlite:///{folder}/ledger.db")
        flights = next(source for source in spec.sources if source.name == "flights")
        source = replace(flights, origin=Files({"flights": f"{folder}/*.parquet"}), window=YEAR)
        at = datetime(2014, 1, 13, tzinfo=UTC) + YEAR * (copies + 1)
        began = time.perf_counter()
        with ingest.workspace(Path(folder)) as staged:
            batches = ingest.stage(spec, source, at, lake, ledger, staged).batches
            work = [(batch, source, lake, at) for batch in batches]
            landed = sum(done.landed for _, done in spread(client, ingest.settle, work))
        seconds = time.perf_counter() - began
        ((brought,),) = duckdb_connection().sql(f"SELECT {copies} * count(*) FROM '{year}'").fetchall()
        assert lake.table(source.table).count() == landed == brought, f"{landed} of {brought} rows landed"
    return {"seconds": seconds, "rows": landed}


def _write(year: str, several: str) -> dict[str, Any]:
    _write_year(Path(year))
    _write_copies(Path(year), Path(several), range(COPIES))
    return {}


def _write_year(file: Path) -> None:
    from benchmarks.data import open_files
    from pipelines import _nycflights13 as nyc

    con = duckdb_connection()
    open_files(con, "flights", "airports")
    con.execute(f"COPY ({nyc.FLIGHTS}) TO '{file}'")


def _write_copies(year: Path, file: Path, copies: range) -> None:
    """Write the year's flights once for each of ``copies``, each ``YEAR`` after the one before."""
    instants = ("sched_dep", "departed_at", "arrived_at", "landed_at")
    shifted = [
        "SELECT * REPLACE ({}) FROM '{}'".format(
            ", ".join(f"{c} + INTERVAL {YEAR.days * copy} DAY AS {c}" for c in instants), year
        )
        for copy in copies
    ]
    duckdb_connection(memory="1GB").execute(f"COPY ({' UNION ALL '.join(shifted)}) TO '{file}'")


def _child(side: str, *arguments: str) -> dict[str, Any]:
    code = f"from benchmarks.validation import child; child({side!r}, *{arguments!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
