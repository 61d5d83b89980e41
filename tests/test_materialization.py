import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any
from zlib import crc32

import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from feast import (
    BatchFeatureView,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    types,
)
from feast.data_format import DeltaFormat, ParquetFormat
from feast.errors import FeatureViewNotFoundException
from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from headrace.feature_store import freshness, parity
from headrace.feature_store import store as features
from headrace.feature_store.errors import (
    BadFeature,
    BadKey,
    EvictingStore,
    NoFeastType,
    NotAFeature,
    NotAKey,
    NotATime,
    NotInSource,
)
from headrace.feature_store.feast import embedded, encoding, engine, latest, writers
from headrace.feature_store.plan import online
from headrace.lake import Lake, duckdb_connection

KINDS = ("sqlite", "redis", "postgres")
START = datetime(2013, 1, 1, tzinfo=UTC)
HOURS = 24
END = START + timedelta(hours=HOURS)
STAMP = pa.timestamp("us", "UTC")
FEAST, OURS = "local", "headrace.feature_store.feast.engine.DaskComputeEngine"

ROWS = f"""
    SELECT i % 7 AS airport, 'carrier ' || i % 5 AS known_as, i AS number, i / 7 AS share, 'é' || i AS name,
           (i / 3)::FLOAT AS ratio, i::INT - 20 AS small, i % 2 = 0 AS late, i::VARCHAR::BLOB AS raw,
           TIMESTAMPTZ '1970-01-01 00:00:01.5' - to_seconds(i) AS seen, [i / 3, 1.5] AS pair,
           [i, -i] AS steps, [name, ''] AS names, [late] AS flags, [seen] AS times, []::BIGINT[] AS none,
           '{{"i": ' || i || '}}' AS json,
           TIMESTAMPTZ '{START}' + to_hours((i * 5 % {HOURS})::INT) AS event_timestamp,
           event_timestamp + to_minutes((i % 3)::INT) AS created
    FROM range(120) AS counted(i)
"""
TYPES: dict[str, Any] = {
    "airport": types.Int64, "carrier": types.String, "number": types.Int64, "share": types.Float64,
    "name": types.String, "ratio": types.Float32, "small": types.Int32, "late": types.Bool,
    "raw": types.Bytes, "seen": types.UnixTimestamp, "pair": types.Array(types.Float64),
    "steps": types.Array(types.Int64), "names": types.Array(types.String), "flags": types.Array(types.Bool),
    "times": types.Array(types.UnixTimestamp), "none": types.Array(types.Int64), "json": types.Json,
}  # fmt: skip
NULLABLE = ("share", "name", "ratio", "small", "late", "raw", "pair", "names", "json")
FEATURES = [f"flights:{name}" for name in TYPES if name not in {"airport", "carrier"}]
ASKED = [{"airport": i % 7, "carrier": f"carrier {i % 5}"} for i in range(35)] + [
    {"airport": 8, "carrier": "nobody"}
]


@dataclass(frozen=True)
class Place:
    """An online store of one kind, and what its owner can see and do without Feast."""

    kind: str
    online: dict[str, Any]

    def cells(self) -> list[tuple]:
        if self.kind == "redis":
            client = self._redis()
            keys = (key for key in client.keys("*") if not key.startswith(b"headrace:"))
            return sorted((key, *sorted(client.hgetall(key).items())) for key in keys)
        columns = "entity_key, feature_name, value, value_text, event_ts, created_ts"
        with contextlib.closing(self._connect()) as con:
            rows = [
                row for table in self._tables(con) for row in con.execute(f"SELECT {columns} FROM {table}")
            ]
        return sorted(rows)

    def clear(self) -> None:
        if self.kind == "redis":
            self._redis().flushdb()
            return
        with contextlib.closing(self._connect()) as con:
            for table in self._tables(con):
                con.execute(f"DELETE FROM {table}")
            con.commit()

    def _redis(self) -> Any:
        from redis import Redis

        address, database = self.online["connection_string"].split(",db=")
        return Redis.from_url(f"redis://{address}/{database}")

    def _connect(self) -> Any:
        if self.kind == "sqlite":
            return sqlite3.connect(self.online["path"])
        at = {key: self.online[key] for key in ("host", "port", "user")} | {"dbname": self.online["database"]}
        return psycopg.connect(**at, options=f"-c search_path={self.online['db_schema']}")

    def _tables(self, con: Any) -> list[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        if self.kind == "postgres":
            query = f"SELECT tablename FROM pg_tables WHERE schemaname = '{self.online['db_schema']}'"
        return [f'"{name}"' for (name,) in con.execute(query) if name != "headrace_notes"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A lake with one table of many types, unordered, and its rows as Parquet."""
    home = tmp_path_factory.mktemp("materialization")
    nulls = ", ".join(f"if(number % 11 = {i}, NULL, {name}) AS {name}" for i, name in enumerate(NULLABLE))
    rows = duckdb_connection().sql(f"SELECT * REPLACE ({nulls}) FROM ({ROWS}) ORDER BY hash(number)")
    rows.write_parquet(str(home / "flights.parquet"))
    Lake(str(home)).table("flights").append(rows.to_arrow_table(), "all")
    return home


@pytest.fixture
def places(request, home, tmp_path):
    """Two empty stores of the parameter's kind: for ours, and for Feast's own."""
    if request.param == "home":
        online = [at_home(tmp_path).online]
    elif request.param == "sqlite":
        online = [{"type": "sqlite", "path": str(tmp_path / f"{i}.db")} for i in range(2)]
    elif request.param == "redis":
        address = request.getfixturevalue("redis")
        online = [{"type": "redis", "connection_string": f"{address},db={i}"} for i in (8, 9)]
    else:
        url = make_url(request.getfixturevalue("postgres"))
        at = {"type": "postgres", "host": url.host, "port": url.port, "user": url.username, "password": ""}
        at |= {"database": url.database, "sslmode": "disable"}
        online = [at | {"db_schema": f"place_{i}"} for i in range(2)]
    found = [Place(request.param, config) for config in online]
    yield found
    if request.param in ("redis", "postgres"):
        for place in found:
            place.clear()


every_store = pytest.mark.parametrize("places", KINDS, indirect=True)


def store_at(
    home: Path,
    place: Place,
    engine: str | dict[str, Any] = OURS,
    offline: str = "",
    registry: Any = "",
    project: str = "test",
    **options: Any,
) -> FeatureStore:
    name = crc32(f"{place.online} {engine} {project}".encode())  # the same in every process
    registry = registry or {
        "path": str(home / f"registry-{name}.db"),
        "serve_features_while_materializing": True,
    }
    ours = {"type": "headrace.feature_store.feast.offline.DeltaOfflineStore", "lake": str(home)}
    return FeatureStore(
        config=RepoConfig(
            project=project, provider="local", registry=registry, online_store=place.online,
            offline_store={"type": offline} if offline else ours,
            batch_engine={"type": engine} if isinstance(engine, str) else engine,
            entity_key_serialization_version=3, **options,
        )
    )  # fmt: skip


airport = Entity(name="airport_entity", join_keys=["airport"], value_type=ValueType.INT64)
carrier = Entity(name="carrier_entity", join_keys=["carrier"], value_type=ValueType.STRING)


def view_of(path: str = "flights", form: Any = DeltaFormat, kind: type = FeatureView, **options: Any) -> Any:
    source = FileSource(
        name="flights", path=path, file_format=form(), timestamp_field="event_timestamp",
        created_timestamp_column="created", field_mapping={"known_as": "carrier"},
    )  # fmt: skip
    schema = [Field(name=name, dtype=dtype) for name, dtype in TYPES.items()]
    wanted = {"name": "flights", "entities": [airport, carrier], "schema": schema, "source": source}
    return kind(**wanted | {"online": True} | options)


def opened(home: Path, place: Place, view: Any = None, **options: Any) -> FeatureStore:
    store = store_at(home, place, **options)
    store.apply([airport, carrier, view or view_of()])
    return store


def bring(store: FeatureStore, start: datetime, end: datetime, name: str = "flights") -> None:
    """Run the engine itself: no registry in between, so that windows may come in any order."""
    view = store.get_feature_view(name)
    task = MaterializationTask("test", view, start, end)
    (job,) = store._get_provider().batch_engine.materialize(store.registry, task)
    if error := job.error():
        raise error


def answers(store: FeatureStore) -> dict[str, list]:
    return store.get_online_features(FEATURES, ASKED).to_dict()


@every_store
def test_every_store_holds_the_very_bytes_that_feast_itself_writes(home, places):
    ours, feast = (opened(home, at, engine=by) for at, by in zip(places, (OURS, FEAST), strict=True))
    for store in (ours, feast):
        store.materialize(START, END)

    assert places[0].cells() == places[1].cells()
    assert len(places[0].cells()) == 35 * (1 if places[0].kind == "redis" else len(FEATURES))
    assert answers(ours) == answers(feast)
    assert answers(ours)["number"].count(None) == 1


@every_store
def test_parts_written_by_several_worker_processes_are_the_whole(home, places, monkeypatch):
    monkeypatch.setattr(engine, "PART", 10)
    monkeypatch.setenv("HEADRACE_DASK_WORKERS", "2")
    ours, feast = (opened(home, at, engine=by) for at, by in zip(places, (OURS, FEAST), strict=True))
    for store in (ours, feast):
        store.materialize(START, END)
    assert places[0].cells() == places[1].cells()


def test_the_time_of_day_in_sqlite_is_feasts_in_other_time_zones_too(home, tmp_path, monkeypatch):
    places = [Place("sqlite", {"type": "sqlite", "path": str(tmp_path / f"{i}.db")}) for i in range(2)]
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        for place, by in zip(places, (OURS, FEAST), strict=True):
            opened(home, place, engine=by).materialize(START, END)
        assert places[0].cells() == places[1].cells()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_rows_of_the_hour_that_a_clock_change_leaves_out_give_way_in_sqlite_too(tmp_path, monkeypatch):
    """In New York no clock showed 02:30 on 2013-03-10; as Feast reckons, it came after 03:10 there."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        store = served(tmp_path, Place("sqlite", {"type": "sqlite", "path": str(tmp_path / "online.db")}))
        changed = (datetime(2013, 3, 10, tzinfo=UTC) - START) / timedelta(hours=1)
        hours = [changed + hour for hour in (1.75, 2.25, 2.75, 3.25, 3.5)]
        rows = [(1, hour, hour, number) for number, hour in enumerate(hours)]
        for upto, hour in enumerate(hours, 1):
            put(tmp_path, rows[:upto])
            features.materialize(store, "late", START + timedelta(hours=hour + 0.1))
            assert wrong(store, hour + 0.1) == ()
    finally:
        monkeypatch.undo()
        time.tzset()


hours = st.integers(0, HOURS)
windows = st.lists(st.tuples(hours, hours).map(sorted).filter(lambda w: w[0] < w[1]), min_size=1, max_size=5)


@every_store
def test_an_older_value_never_replaces_a_newer_one(home, places):
    store = opened(home, places[0])

    @settings(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
    @given(windows, st.randoms())
    def in_any_order_and_repeated(spans, random):
        places[0].clear()
        spans = [(START + timedelta(hours=a), START + timedelta(hours=b, microseconds=-1)) for a, b in spans]
        for span in spans:
            bring(store, *span)
        once = answers(store)
        for span in random.sample(spans, len(spans)) * 2:
            bring(store, *span)
        assert answers(store) == once
        assert once["number"] == by_definition(home, spans)

    in_any_order_and_repeated()


def by_definition(home: Path, spans: list) -> list:
    inside = " OR ".join(f"event_timestamp BETWEEN '{a.isoformat()}' AND '{b.isoformat()}'" for a, b in spans)
    found = duckdb_connection().sql(f"""
        SELECT airport, known_as, arg_max(number, (event_timestamp, created))
        FROM '{home}/flights.parquet' WHERE {inside} GROUP BY ALL
    """)
    latest = {(airport, carrier): number for airport, carrier, number in found.fetchall()}
    return [latest.get((row["airport"], row["carrier"])) for row in ASKED]


@pytest.mark.parametrize("places", ["sqlite", "postgres"], indirect=True)
def test_of_equally_late_rows_the_one_created_last_stays(home, places, tmp_path):
    """Corrected upward in the lake, then brought again from a copy that is older."""
    lake, rows = Lake(str(tmp_path)), pa.parquet.read_table(home / "flights.parquet")
    stamp = rows.schema.get_field_index("created")
    later = rows.set_column(stamp, "created", pa.compute.add(rows["created"], timedelta(minutes=30)))
    number = rows.schema.get_field_index("number")
    later = later.set_column(number, "number", pa.compute.add(later["number"], 1_000))
    lake.table("flights").append(later, "corrected")
    newer, older = opened(tmp_path, places[0]), opened(home, places[0])
    bring(newer, START, END)
    corrected = places[0].cells()
    bring(older, START, END)
    assert places[0].cells() == corrected
    places[0].clear()
    bring(older, START, END)
    bring(newer, START, END)
    assert places[0].cells() == corrected


def race(home: Path, place: Place, spans: list) -> None:
    store = store_at(home, place)
    for span in spans:
        bring(store, *span)


@every_store
def test_two_processes_at_once_leave_the_newest(home, places):
    opened(home, places[0])
    cuts = [START + timedelta(hours=hour) for hour in range(0, HOURS + 1, 4)]
    spans = [(a, b - timedelta(microseconds=1)) for a, b in pairwise(cuts)]
    spawned = multiprocessing.get_context("spawn")
    racers = [
        spawned.Process(target=race, args=(home, places[0], list(order) * 3))
        for order in (spans, reversed(spans))
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]
    whole = [(START, END - timedelta(microseconds=1))]
    assert answers(store_at(home, places[0]))["number"] == by_definition(home, whole)


def slowly(home: Path, place: Place) -> None:
    """Materialise a row at a time, in a process that is about to be killed."""
    latest.CELLS = 1
    chunks = latest.Latest.chunks

    def with_pauses(self: Any) -> Any:
        for chunk in chunks(self):
            yield chunk
            time.sleep(0.1)

    latest.Latest.chunks = with_pauses  # type: ignore[method-assign]
    bring(store_at(home, place), START, END)


@every_store
def test_killed_in_the_middle_and_run_again_is_as_if_never_killed(home, places):
    opened(home, places[0])
    victim = multiprocessing.get_context("spawn").Process(target=slowly, args=(home, places[0]))
    victim.start()
    while victim.is_alive() and len(places[0].cells()) < 5:
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    half = len(places[0].cells())

    bring(store_at(home, places[0]), START, END)

    whole = places[0].cells()
    places[0].clear()
    bring(store_at(home, places[0]), START, END)
    assert places[0].cells() == whole
    assert 0 < half < len(whole)


late = FeatureView(
    name="late",
    entities=[airport],
    ttl=timedelta(0),
    schema=[Field(name="airport", dtype=types.Int64), Field(name="number", dtype=types.Int64)],
    source=FileSource(
        name="late", path="late", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
)  # fmt: skip
EACH_AIRPORT = [1, 2, 3]


def served(home: Path, place: Place, **options: Any) -> FeatureStore:
    """Open a store of one view, ``late``, and a service of that name; the table may come later."""
    store = store_at(home, place, **options)
    store.apply([airport, late, FeatureService(name="late", features=[late])])
    return store


def put(home: Path, rows: Sequence[tuple[int, float, float | None, int]]) -> None:
    """Make rows of airport, hour, hour of creation and number all there is of the table."""
    hours = [[row[i] for row in rows] for i in (1, 2)]
    at = [[None if h is None else START + timedelta(hours=h) for h in column] for column in hours]
    stamps = [pa.array(times, pa.timestamp("us", "UTC")) for times in at]
    numbers = [pa.array([row[i] for row in rows], pa.int64()) for i in (0, 3)]
    names = ["airport", "event_timestamp", "created", "number"]
    Lake(str(home)).table("late").replace(pa.table([numbers[0], *stamps, numbers[1]], names=names))


def wrong(store: FeatureStore, hour: float) -> tuple:
    """Return in what the online store differs from the join at that hour."""
    asked = [{"airport": i, "event_timestamp": START + timedelta(hours=hour)} for i in EACH_AIRPORT]
    return parity.compare(store, "late", pa.Table.from_pylist(asked)).mismatches


some_hours = st.integers(0, 4)
some_rows = st.lists(
    st.tuples(st.sampled_from(EACH_AIRPORT), some_hours.map(lambda h: h + 0.5), some_hours, some_hours),
    max_size=8,
)


@every_store
def test_online_is_what_the_join_finds_at_the_end_however_late_rows_came_and_were_rebuilt(tmp_path, places):
    """Each step ends an hour later: rows that became known since are there, or the whole table is another."""
    steps = st.lists(st.tuples(some_rows, st.booleans()), min_size=2, max_size=4)

    @settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None)
    @given(steps, st.booleans())
    def as_the_join_finds_it(steps, begin_later):
        places[0].clear()
        home = Path(tempfile.mkdtemp(dir=tmp_path))
        store, rows = served(home, places[0]), []
        start = START + timedelta(hours=1) if begin_later else None
        for hour, (more, rebuilt) in enumerate(steps, 2):
            # what is appended is known after the end of the step before
            rows = more if rebuilt else rows + [(k, t, hour - 1 + c / 6, n) for k, t, c, n in more if c]
            put(home, rows)
            if rebuilt:
                features.forget(store, "late", START)
            features.materialize(store, "late", START + timedelta(hours=hour), start)
            start = None
            if not (begin_later and hour == 2):
                assert wrong(store, hour) == ()

    as_the_join_finds_it()


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("known_from", "numbers"),
    [({}, [1, None, 4]), ({"known_from": "event"}, [2, 3, 4])],
    ids=["created", "event"],
)
def test_rows_created_after_the_end_or_at_no_known_time_wait_unless_the_store_says_as_feast(
    tmp_path, places, known_from, numbers
):
    rows = [(1, 1, 1, 1), (1, 2, 9, 2), (3, 2, 2, 4), (3, 1, 3, 5), (3, 7, 7, 6)]
    engines, found = ({"type": OURS} | known_from, FEAST), []
    for place, by in zip(places, engines, strict=True):
        store = served(tmp_path, place, engine=by)
        # Feast's own engine cannot write a row without a time of creation.
        put(tmp_path, rows if by == FEAST else [*rows, (2, 1, None, 3)])
        store.materialize(START, START + timedelta(hours=4))
        asked = [{"airport": i} for i in EACH_AIRPORT]
        found.append(store.get_online_features(["late:number"], asked).to_dict()["number"])
    assert found == [numbers, [2, None, 4]]


REBUILT = [(1, 0.5, 0.5, 10), (2, 2.5, 2.5, 20)]
"""The table's rows once rebuilt: 1 has gone back in time, and 3 is gone."""


def die_at(where: str, home: Path, place: Place) -> None:
    """Bring rebuilt rows online, and be killed after a row, before keys are removed, or at the end."""
    store, first = store_at(home, place), latest.Latest.chunks

    def killed(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_after_one(self: Any) -> Any:
        yield next(first(self))
        killed()

    patches = {
        "write": (latest.Latest, "chunks", killed_after_one),
        "sweep": (engine, "_sweep", killed),
        "note": (store.registry, "apply_materialization", killed),
    }
    latest.CELLS = 1
    setattr(*patches[where])
    features.materialize(store, "late", START + timedelta(hours=5))


@pytest.mark.parametrize(
    ("places", "where"),
    [(kind, "write") for kind in KINDS] + [("redis", "sweep"), ("sqlite", "sweep"), ("postgres", "note")],
    indirect=["places"],
)
def test_killed_while_it_replaces_what_was_rebuilt_a_run_ends_it(tmp_path, places, where):
    store = served(tmp_path, places[0])
    put(tmp_path, [(i, 1.5, 1.5, i) for i in EACH_AIRPORT])
    features.materialize(store, "late", START + timedelta(hours=4))
    put(tmp_path, REBUILT)
    features.forget(store, "late", START)
    victim = multiprocessing.get_context("spawn").Process(target=die_at, args=(where, tmp_path, places[0]))
    victim.start()
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL

    def number() -> list:
        return store.get_online_features(["late:number"], [{"airport": i} for i in EACH_AIRPORT]).to_dict()[
            "number"
        ]

    assert (number() == [10, 20, None]) == (where == "note")
    for _ in range(2):
        features.materialize(store_at(tmp_path, places[0]), "late", START + timedelta(hours=4))
        assert number() == [10, 20, None]
        assert wrong(store, 4) == ()


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("column", "error", "said"),
    [
        ("number", NotInSource, "`late` reads `number` of `late`, which has only"),
        ("created", NotATime, "`created` of `late` is VARCHAR, not a TIMESTAMP"),
        ("event_timestamp", NotATime, "`event_timestamp` of `late` is VARCHAR, not a TIMESTAMP"),
    ],
)
def test_rows_that_cannot_be_brought_are_refused_by_name(tmp_path, places, column, error, said):
    store, stamps = served(tmp_path, places[0]), pa.array([START], STAMP)
    table = pa.table({"airport": [1], "number": [1], "event_timestamp": stamps, "created": stamps})
    spoilt = table.drop_columns([column])
    if error is NotATime:
        spoilt = spoilt.append_column(column, [["yesterday"]])
    Lake(str(tmp_path)).table("late").replace(spoilt)
    with pytest.raises(error, match=said):
        features.materialize(store, "late", END)


@every_store
def test_what_others_brought_of_a_later_time_outlives_a_rebuild(tmp_path, places):
    """And keys of another project that ends alike, or of another view, are none of its business."""
    store, rows = served(tmp_path, places[0]), [(1, 1.5, 1.5, 1), (2, 8.5, 8.5, 2), (3, 1.5, 1.5, 3)]
    put(tmp_path, rows)
    features.materialize(store, "late", START + timedelta(hours=4))
    features.forget(store, "late", START)
    bring(store, START, START + timedelta(hours=9), "late")  # as another run that knows of nothing
    other = served(tmp_path, places[0], project="contest")
    features.materialize(other, "late", START + timedelta(hours=9))
    put(tmp_path, rows[:1])
    features.materialize(store, "late", START + timedelta(hours=4))
    for shop, numbers in ((store, [1, 2, None]), (other, [1, 2, 3])):
        asked = [{"airport": i} for i in EACH_AIRPORT]
        assert shop.get_online_features(["late:number"], asked).to_dict()["number"] == numbers


def at_home(home: Path, **options: Any) -> Place:
    """A store of our own kind, at a place where Feast's might be."""
    kind = "headrace.feature_store.feast.embedded.HomeSqliteOnlineStore"
    return Place("sqlite", {"type": kind, "path": str(home / "home.db")} | options)


@pytest.mark.parametrize("order", permutations(range(3)))
@pytest.mark.parametrize("together", [True, False])
def test_a_push_that_comes_late_never_replaces_a_newer_row(tmp_path, order, together):
    """Feast's own SQLite store keeps what was pushed last (feast-dev/feast#5163, #6656)."""
    store = served(tmp_path, at_home(tmp_path))
    frame = pd.DataFrame(
        {"airport": 1, "number": range(3), "created": END,
         "event_timestamp": [START + timedelta(hours=h) for h in range(3)]}
    ).iloc[list(order)]  # fmt: skip
    for rows in [frame] if together else [frame[i : i + 1] for i in range(3)] * 2:
        store.write_to_online_store("late", rows)
    assert store.get_online_features(["late:number"], [{"airport": 1}]).to_dict()["number"] == [2]
    corrected = frame[frame.number == 2].assign(number=7)
    store.write_to_online_store("late", corrected.assign(created=END - timedelta(hours=1)))
    assert store.get_online_features(["late:number"], [{"airport": 1}]).to_dict()["number"] == [2]
    store.write_to_online_store("late", corrected)
    assert store.get_online_features(["late:number"], [{"airport": 1}]).to_dict()["number"] == [7]


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
def test_what_is_pushed_is_held_in_the_very_bytes_of_feasts_own_store(home, places, tmp_path):
    rows = pd.read_parquet(home / "flights.parquet").rename(columns={"known_as": "carrier"})
    newest = rows.sort_values("event_timestamp").groupby(["airport", "carrier"]).tail(1)
    ours = at_home(tmp_path)
    for place in (ours, places[0]):
        opened(home, place).write_to_online_store("flights", newest)
    assert ours.cells() == places[0].cells() != []


@pytest.mark.parametrize(
    ("ttl", "expires", "served_now"),
    [
        (timedelta(hours=1), True, [1, None, None]),
        (timedelta(hours=1), False, [1, 2, None]),
        (timedelta(0), True, [1, 2, None]),
        (timedelta.max, True, [1, 2, None]),
    ],
)
def test_what_is_older_than_its_ttl_is_not_served_to_anybody(tmp_path, ttl, expires, served_now):
    """Feast's own SQLite store serves it for ever (feast-dev/feast#6821, #1802)."""
    view = FeatureView(name="late", entities=[airport], ttl=ttl, schema=late.schema, source=late.batch_source)
    store = store_at(tmp_path, at_home(tmp_path, expires=expires))
    store.apply([airport, view])
    now, ages = datetime.now(UTC), [timedelta(minutes=30), timedelta(minutes=61)]
    frame = pd.DataFrame(
        {"airport": [1, 2], "number": [1, 2], "created": now, "event_timestamp": [now - age for age in ages]}
    )
    store.write_to_online_store("late", frame)
    asked = [{"airport": i} for i in EACH_AIRPORT]
    assert store.get_online_features(["late:number"], asked).to_dict()["number"] == served_now


@pytest.mark.parametrize("places", [*KINDS, "home"], indirect=True)
def test_a_prediction_reads_nothing_older_than_the_ttl_as_it_was_trained(tmp_path, places):
    """At the instant of each prediction, whenever it is made."""
    view = FeatureView(
        name="late", entities=[airport], ttl=timedelta(hours=2), schema=late.schema, source=late.batch_source
    )
    store = store_at(tmp_path, places[0])
    store.apply([airport, view, FeatureService(name="late", features=[view])])
    put(tmp_path, [(1, 1, 1, 1), (2, 2, 2, 2)])
    features.materialize(store, "late", START + timedelta(hours=3))
    hours = [3, 3 + 1 / 3600, 4, 4 + 1 / 3600]
    asked = [
        {"airport": i, "event_timestamp": START + timedelta(hours=hour)}
        for i in EACH_AIRPORT
        for hour in hours
    ]
    spine = pa.Table.from_pylist(asked)
    found = online(store, "late", spine)
    assert found["number"].to_pylist() == [1, None, None, None, 2, 2, 2, None, *[None] * 4]
    assert found == features.historical(store, "late", spine)
    assert parity.compare(store, "late", spine).mismatches == ()
    whatever = online(store, "late", spine.select(["airport"]))
    assert whatever["number"].to_pylist() == [1] * 4 + [2] * 4 + [None] * 4


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["file", "sql"])
def test_a_view_stays_registered_while_it_is_noted_that_its_rows_are_rebuilt(tmp_path, places, kind):
    registry = {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.sqlite"}
    given = {"registry": registry} if kind == "sql" else {}
    store, asked = served(tmp_path, places[0], **given), [{"airport": 1}]
    put(tmp_path, [(1, 1.5, 1.5, 1)])
    features.materialize(store, "late", START + timedelta(hours=4))
    put(tmp_path, REBUILT)
    removed = [name for name in dir(store.registry) if name.startswith("delete_")]
    with pytest.MonkeyPatch.context() as patch:
        for name in removed:
            patch.delattr(type(store.registry), name)
        features.forget(store, "late", START + timedelta(hours=4))  # nothing so late was brought
        features.materialize(store, "late", START + timedelta(hours=4))
        assert store.get_online_features(["late:number"], asked).to_dict()["number"] == [1]
        features.forget(store, "late", START)
    assert len(features.views_of(store_at(tmp_path, places[0], **given), "late")) == 1
    features.apply(store, __name__)  # as every run of a flow does: what is noted stays
    features.materialize(store, "late", START + timedelta(hours=4))
    assert store.get_online_features(["late:number"], asked).to_dict()["number"] == [10]
    store.registry.delete_feature_view("late", store.project)
    with pytest.raises(FeatureViewNotFoundException, match="late"):
        features.materialize(store, "late", START + timedelta(hours=5))


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
def test_a_view_without_entities_is_brought_too(home, places):
    source = FileSource(
        name="flights", path="flights", file_format=DeltaFormat(), timestamp_field="event_timestamp"
    )
    view = FeatureView(name="flights", schema=[Field(name="number", dtype=types.Int64)], source=source)
    store = opened(home, places[0], view)
    store.materialize(START, END)
    (found,) = store.get_online_features(["flights:number"], [{"nobody": 0}]).to_dict()["number"]
    rows = pa.parquet.read_table(home / "flights.parquet").to_pylist()
    newest = max(row["event_timestamp"] for row in rows)
    assert found in {row["number"] for row in rows if row["event_timestamp"] == newest}


def held(kind: pa.DataType, *values: Any) -> pa.Array:
    return pa.array([*values, None], kind)


A_DAY = date(1969, 7, 20)
INFERRED = {
    "small": (types.Int32, held(pa.int8(), -128)),
    "short": (types.Int32, held(pa.int16(), -(2**15))),
    "int": (types.Int32, held(pa.int32(), -(2**31))),
    "long": (types.Int64, held(pa.int64(), 2**63 - 1)),
    "float": (types.Float32, held(pa.float32(), 0.1)),
    "double": (types.Float64, held(pa.float64(), 1e300)),
    "flag": (types.Bool, held(pa.bool_(), False)),
    "text": (types.String, held(pa.string(), "é")),
    "raw": (types.Bytes, held(pa.binary(), b"\xff")),
    "day": (types.UnixTimestamp, held(pa.date32(), A_DAY)),
    "instant": (types.UnixTimestamp, held(STAMP, START)),
    "clock": (types.UnixTimestamp, held(pa.timestamp("us"), START.replace(tzinfo=None))),
    "map": (types.Map, held(pa.map_(pa.string(), pa.string()), [("a", "b")])),
    "shorts": (types.Array(types.Int32), held(pa.list_(pa.int16()), [1, 2])),
    "ints": (types.Array(types.Int32), held(pa.list_(pa.int32()), [1, 2])),
    "longs": (types.Array(types.Int64), held(pa.list_(pa.int64()), [2**53 + 1])),
    "floats": (types.Array(types.Float32), held(pa.list_(pa.float32()), [0.1])),
    "doubles": (types.Array(types.Float64), held(pa.list_(pa.float64()), [])),
    "flags": (types.Array(types.Bool), held(pa.list_(pa.bool_()), [True, False])),
    "texts": (types.Array(types.String), held(pa.list_(pa.string()), ["", "é"])),
    "raws": (types.Array(types.Bytes), held(pa.list_(pa.binary()), [b"\xff"])),
    "instants": (types.Array(types.UnixTimestamp), held(pa.list_(STAMP), [START])),
    "days": (types.Array(types.UnixTimestamp), held(pa.list_(pa.date32()), [A_DAY])),
    "maps": (types.Array(types.Map), held(pa.list_(pa.map_(pa.string(), pa.string())), [[("a", "b")]])),
}  # fmt: skip
DECLARED = {
    "price": (types.Decimal, held(pa.decimal128(38, 2), Decimal("1e35"))),
    "prices": (types.Array(types.Decimal), held(pa.list_(pa.decimal128(5, 2)), [Decimal("0.10")])),
    "pair": (types.Struct({"x": types.Int64, "y": types.String}),
             held(pa.struct({"x": pa.int64(), "y": pa.string()}), {"x": 2**62, "y": None}, {"x": None})),
    "rows": (types.Array(types.Array(types.Int64)), held(pa.list_(pa.list_(pa.int64())), [[1], [2, 3]])),
    "sparse": (types.Array(types.Array(types.String)),
               held(pa.list_(pa.list_(pa.string())), [["a"], []], [[]], [None, ["b", "é"]])),
    "set": (types.Set(types.Int64), held(pa.list_(pa.int64()), [3])),
    "raw set": (types.Set(types.Bytes), held(pa.list_(pa.binary()), [b"\xff"])),
    "zoned": (types.ZonedTimestamp, held(STAMP, START)),
    "json": (types.Json, held(pa.string(), '{"b":  1}')),
    "uuid": (types.Uuid, held(pa.string(), "6f1c1f0e-7b43-4f0a-9a5c-0d6f0a1b2c3d")),
}  # fmt: skip
REFUSED = [
    pa.decimal128(10, 2), pa.list_(pa.decimal128(10, 2)), pa.struct({"x": pa.int64()}),
    pa.list_(pa.struct({"x": pa.int64()})), pa.list_(pa.list_(pa.int64())), pa.map_(pa.string(), pa.int64()),
    pa.map_(pa.int64(), pa.string()),
]  # fmt: skip


def typed(home: Path, place: Place, column: pa.Array, dtype: Any = None, **columns: pa.Array) -> FeatureStore:
    """Open a store of a view of ``airport`` and ``v``, a row for each value of ``column``, and a service."""
    keys = pa.array(range(len(column)), pa.int64())
    stamps = dict.fromkeys(["event_timestamp", "created"], pa.array([START] * len(column), STAMP))
    Lake(str(home)).table("typed").replace(pa.table({"airport": keys, "v": column} | stamps | columns))
    source = FileSource(
        name="typed", path="typed", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )  # fmt: skip
    schema = [Field(name="v", dtype=dtype)] if dtype else None
    untyped = Entity(name="airport_entity", join_keys=["airport"]) if dtype else airport
    view = FeatureView(name="typed", entities=[untyped], schema=schema, source=source, ttl=timedelta(0))
    store = store_at(home, place)
    store.apply([untyped, view, FeatureService(name="typed", features=[view])])
    return store


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", [*INFERRED, *DECLARED])
def test_what_a_delta_table_can_hold_is_served_as_the_join_gives_it(tmp_path, places, name):
    kind, column = (INFERRED | DECLARED)[name]
    store = typed(tmp_path, places[0], column, DECLARED.get(name, [None])[0])
    assert [field.dtype for field in store.get_feature_view("typed").features] == [kind]
    features.materialize(store, "typed", END)
    asked = pa.table({"airport": range(len(column)), "event_timestamp": [END] * len(column)})
    joined = features.historical(store, "typed", asked)
    assert joined["v"].to_pylist() == column.cast(joined["v"].type).to_pylist()
    assert online(store, "typed", asked) == joined
    assert parity.compare(store, "typed", asked).mismatches == ()


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_a_type_that_feast_cannot_infer_is_refused_by_name_where_it_is_used(tmp_path, places, kind):
    odd = pa.nulls(1, kind)
    with pytest.raises(NoFeastType, match=r"`v` of `typed` is .*Declare fields and keys"):
        typed(tmp_path, places[0], odd)
    store = typed(tmp_path, places[0], held(pa.int64()), types.Int64, odd=odd)
    assert [column.dtype for column in store.get_feature_view("typed").entity_columns] == [types.Int64]


UNFIT = {
    "overflow": (types.Int32, held(pa.int64(), 2**40)),
    "fraction": (types.Int64, held(pa.float64(), 1.5)),
    "text": (types.Int64, held(pa.string(), "x")),
    "time": (types.UnixTimestamp, held(pa.string(), "2013-01-01")),
    "number": (types.UnixTimestamp, held(pa.int64(), 5)),
    "fractions": (types.Array(types.Int64), held(pa.list_(pa.float64()), [1.5])),
    "list": (types.Int64, held(pa.list_(pa.int64()), [1])),
    "no list": (types.Array(types.Int64), held(pa.int64(), 1)),
    "null in a list": (types.Array(types.Int64), held(pa.list_(pa.int64()), [1, None])),
    "null in lists": (
        types.Array(types.Array(types.String)),
        held(pa.list_(pa.list_(pa.string())), [["a", None]]),
    ),
    "map of numbers": (types.Map, held(pa.map_(pa.string(), pa.int64()), [("a", 1)])),
    "map of lists": (types.Map, held(pa.map_(pa.string(), pa.list_(pa.int64())), [("a", [1])])),
    "numbers as keys": (types.Map, held(pa.map_(pa.int64(), pa.string()), [(1, "x")])),
    "maps of numbers": (
        types.Array(types.Map),
        held(pa.list_(pa.map_(pa.string(), pa.int64())), [[("a", 1)]]),
    ),
}


@pytest.mark.parametrize("places", KINDS, indirect=True)
@pytest.mark.parametrize("name", UNFIT)
def test_a_value_that_is_none_of_its_features_type_is_refused_by_name(tmp_path, places, name):
    kind, column = UNFIT[name]
    store = typed(tmp_path, places[0], column, kind)
    with pytest.raises(
        BadFeature, match=r"A value of the feature `v` is none of its .*Declare a type in `features/`"
    ):
        features.materialize(store, "typed", END)


def test_joined_values_that_are_none_of_their_type_are_refused_by_name_too(tmp_path):
    place = Place("sqlite", {"type": "sqlite", "path": str(tmp_path / "online.db")})
    store = typed(tmp_path, place, held(pa.float64(), 1.5), types.Int64)
    with pytest.raises(BadFeature, match="`v` is none of its declared type int64"):
        features.historical(store, "typed", pa.table({"airport": [0], "event_timestamp": [END]}))


def test_a_type_of_which_feast_gives_no_column_is_refused_when_it_is_applied(tmp_path):
    place = Place("sqlite", {"type": "sqlite", "path": str(tmp_path / "online.db")})
    column = held(pa.map_(pa.int64(), pa.string()), [(1, "x")])
    with pytest.raises(NotAFeature, match="The feature `v` of `typed` is ScalarMap"):
        typed(tmp_path, place, column, types.ScalarMap)


HARD = ["é", "a\\b", "\\x41", "Ω≈ç", "ключ", "鍵", "🔑", "", " ", "'", '"', "%s", "a\nb", "z" * 300]
KEYED = {
    "text": (types.String, pa.array(HARD)),
    "bytes": (types.Bytes, pa.array([b"\x00", b"\xff\xfe", b"\\x41", "é".encode(), b"a"], pa.binary())),
    "large": (types.Int64, pa.array([-(2**63), 2**63 - 1, -1, 0, 255, 256, 65536], pa.int64())),
    "small": (types.Int32, pa.array([-(2**31), 2**31 - 1, -1, 0], pa.int32())),
    "instants": (
        types.UnixTimestamp,
        pa.array([datetime(1969, 12, 31, tzinfo=UTC), END], pa.timestamp("us", "UTC")),
    ),
    "order": (types.UnixTimestamp, pa.array([date(1969, 12, 31), date(2024, 2, 29)])),
}


@every_store
@pytest.mark.parametrize("names", [*zip(KEYED), ("text", "large"), ("bytes", "small", "text")])
def test_any_key_that_feast_takes_is_brought_and_found(tmp_path, places, names):
    every = product(*(KEYED[name][1].to_pylist() for name in names))
    rows = [dict(zip(names, keys, strict=True)) | {"value": number} for number, keys in enumerate(every)]
    kinds = [(name, KEYED[name][1].type) for name in names]
    table = pa.Table.from_pylist(rows, pa.schema([*kinds, ("value", pa.int64())]))
    for name in ("event_timestamp", "created"):
        table = table.append_column(name, pa.array([START] * len(rows), pa.timestamp("us", "UTC")))
    Lake(str(tmp_path)).table("hard").append(table, "all")
    entities = [
        Entity(name=f"{name}_entity", join_keys=[name], value_type=KEYED[name][0].to_value_type())
        for name in names
    ]
    source = FileSource(
        name="hard", path="hard", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )  # fmt: skip
    schema = [Field(name=name, dtype=KEYED[name][0]) for name in names]
    schema.append(Field(name="value", dtype=types.Int64))
    view = FeatureView(name="hard", entities=entities, schema=schema, source=source, ttl=None)
    store = store_at(tmp_path, places[0])
    store.apply([*entities, view, FeatureService(name="hard", features=[view])])
    features.materialize(store, "hard", END)
    asked = table.select([*names, "event_timestamp"])
    for read in (features.historical, online):
        assert read(store, "hard", asked)["value"].to_pylist() == [row["value"] for row in rows]
    assert parity.compare(store, "hard", asked).mismatches == ()
    (fresh,) = freshness.measure(store, "hard", END)
    assert fresh.online == START


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", [types.Bool, types.Float64, types.Uuid, types.Decimal], ids=str)
def test_a_key_that_online_stores_cannot_have_is_refused_when_it_is_declared(tmp_path, places, kind):
    keys = Entity(name="k", join_keys=["k"], value_type=kind.to_value_type())
    schema = [Field(name="k", dtype=kind), Field(name="number", dtype=types.Int64)]
    declared = partial(FeatureView, name="late", entities=[keys], schema=schema, source=late.batch_source)
    store = store_at(tmp_path, places[0])
    with pytest.raises(NotAKey, match=rf"The key `k` of `late` is {kind}; .* Nothing was registered"):
        store.apply([keys, declared()])
    assert store_at(tmp_path, places[0]).list_feature_views() == []
    store.apply([keys, declared(online=False)])


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (types.Int32, pa.array([1, 2**31])),
        (types.Int64, pa.array([Decimal(2**63)], pa.decimal128(38, 0))),
        (types.Bytes, pa.array(["text"])),
        (types.UnixTimestamp, pa.array([START + timedelta(milliseconds=1)], STAMP)),
    ],
)
def test_a_value_that_its_keys_type_cannot_hold_is_refused_by_name(tmp_path, places, kind, held):
    keys = Entity(name="airport", value_type=kind.to_value_type())
    schema = [Field(name="airport", dtype=kind), Field(name="number", dtype=types.Int64)]
    view = FeatureView(name="late", entities=[keys], schema=schema, source=late.batch_source)
    store = store_at(tmp_path, places[0])
    store.apply([keys, view])
    stamps = pa.array([START] * len(held), STAMP)
    rows = {"airport": held, "number": range(len(held)), "event_timestamp": stamps, "created": stamps}
    Lake(str(tmp_path)).table("late").replace(pa.table(rows))
    with pytest.raises(
        BadKey, match=f"A value of the key `airport` cannot be kept online as {kind.to_value_type().name}: "
    ):
        bring(store, START, END, "late")
    assert places[0].cells() == []


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
def test_other_sources_come_through_feasts_own_offline_store(home, places):
    parquet = view_of(str(home / "flights.parquet"), ParquetFormat)
    options = {"offline": "dask"}
    ours, feast = (
        opened(home, at, parquet, engine=by, **options) for at, by in zip(places, (OURS, FEAST), strict=True)
    )
    for store in (ours, feast):
        store.materialize(START, END)
    assert places[0].cells() == places[1].cells() != []


def doubled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(twice=rows["share"] * 2)


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
@pytest.mark.parametrize("latest_only", [False, True])
@pytest.mark.parametrize("mode", ["pandas", "python"])
@pytest.mark.parametrize("entities", [[airport, carrier], []])
@pytest.mark.parametrize("source", ["delta", "parquet", "feast"])
def test_a_view_with_a_python_function_is_given_every_column_of_its_source(
    home, places, source, entities, mode, latest_only
):
    """For such views Feast asks the offline store for no named column, which means all there are."""
    fields = [Field(name=key.join_key, dtype=TYPES[key.join_key]) for key in entities]
    fields.append(Field(name="twice", dtype=types.Float64))
    transformed = partial(BatchFeatureView, mode=mode, udf=doubled, udf_string="doubled")
    where = ("flights", DeltaFormat) if source == "delta" else (str(home / "flights.parquet"), ParquetFormat)
    view = view_of(*where, transformed, entities=entities, schema=fields)
    store = store_at(
        home, places[0], offline="dask" if source == "feast" else "",
        materialization={"pull_latest_features": latest_only},
    )  # fmt: skip
    store.apply([airport, carrier, view])
    bring(store, START, END)
    asked = ASKED if entities else [{"nobody": 0}]
    found = store.get_online_features(["flights:twice"], asked).to_dict()["twice"]
    keys = "airport, known_as" if entities else "0"
    latest = duckdb_connection().sql(f"""
        SELECT {keys}, list(share * 2) FROM (FROM '{home}/flights.parquet'
        QUALIFY rank() OVER (PARTITION BY {keys} ORDER BY event_timestamp DESC) = 1) GROUP BY ALL
    """)
    newest = {tuple(key): values for *key, values in latest.fetchall()}
    wrong = [
        key
        for key, value in zip(asked, found, strict=True)
        if value not in newest.get(tuple(key.values()), [None])
    ]
    assert wrong == []


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
def test_a_view_that_is_not_online_is_left_alone(home, places):
    store = opened(home, places[0], view_of(online=False))
    bring(store, START, END)
    assert places[0].cells() == []


@pytest.mark.parametrize("places", ["redis"], indirect=True)
def test_keys_in_redis_expire_as_configured(home, places):
    place = Place("redis", places[0].online | {"key_ttl_seconds": 1000})
    opened(home, place).materialize(START, END)
    assert {900 < place._redis().ttl(key) <= 1000 for key, *_ in place.cells()} == {True}


@pytest.mark.parametrize("places", ["redis"], indirect=True)
def test_redis_tells_apart_times_before_1970_and_within_a_second(places):
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig

    epoch, second = datetime(1970, 1, 1, tzinfo=UTC), timedelta(seconds=1)
    moments = [epoch + second * at for at in (-(10**10), -128, -0.8, -0.3, 0, 0.25, 0.5, 127, 10**10)]
    first, then = zip(*product(moments, moments), strict=True)
    keys = pa.array([f"{i}".encode() for i in range(len(first))])
    place = writers.Redis(RedisOnlineStoreConfig(**places[0].online), "", "view")
    for times in (first, then):
        stamps = pa.array(times, pa.timestamp("us", "UTC"))
        place.write([latest.Chunk(keys, (), stamps, pa.nulls(len(keys), stamps.type))])
    newest = encoding.timestamps(pa.array(map(max, zip(first, then, strict=True)), pa.timestamp("us", "UTC")))
    client = places[0]._redis()
    assert [client.hget(key, "_ts:view") for key in keys.to_pylist()] == newest.to_pylist()


def test_feasts_own_command_line_materialises_with_it(home, tmp_path):
    (tmp_path / "features").mkdir()
    shutil.copytree(home / "flights", tmp_path / "flights")
    (tmp_path / "features/feature_store.yaml").write_text(f"""
project: test
provider: local
registry: {tmp_path}/registry.db
online_store: {{type: sqlite, path: {tmp_path}/online.db}}
offline_store: {{type: headrace.feature_store.feast.offline.DeltaOfflineStore, lake: {tmp_path}}}
batch_engine: {{type: {OURS}}}
entity_key_serialization_version: 3
""")
    (tmp_path / "features/flights.py").write_text(
        "from tests.test_materialization import airport, carrier, view_of\nview = view_of()\n"
    )
    feast, env = Path(sys.executable).with_name("feast"), os.environ | {"PYTHONPATH": str(Path.cwd())}
    for command in (["apply"], ["materialize", "2013-01-01T00:00:00", "2013-01-02T00:00:00"]):
        done = subprocess.run(
            [feast, *command], cwd=tmp_path / "features", env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    place = Place("sqlite", {"type": "sqlite", "path": str(tmp_path / "online.db")})
    assert len(place.cells()) == 35 * len(FEATURES)


SCALARS: dict[ValueType, tuple[pa.DataType, st.SearchStrategy]] = {
    ValueType.STRING: (pa.string(), st.text(st.characters(exclude_categories=["Cs"]))),
    ValueType.BYTES: (pa.binary(), st.binary(min_size=1)),
    ValueType.INT32: (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    ValueType.INT64: (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    ValueType.DOUBLE: (pa.float64(), st.floats()),
    ValueType.FLOAT: (pa.float32(), st.floats(width=32)),
    ValueType.BOOL: (pa.bool_(), st.booleans()),
    ValueType.UNIX_TIMESTAMP: (
        pa.timestamp("us", "UTC"),
        st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    ),
}


@pytest.mark.parametrize("kind", SCALARS)
@settings(max_examples=60)
@given(data=st.data())
def test_encoded_columns_are_what_protobuf_makes_of_them(kind, data):
    form, some = SCALARS[kind]
    # an integer column with nulls becomes floats in Feast, and large ones are wrong: ours are exact
    exact = kind in encoding.INTEGERS
    scalars = pa.array(data.draw(st.lists(some if exact else st.none() | some, min_size=1)), form)
    listed = ValueType[f"{kind.name}_LIST"]
    lists = pa.array(data.draw(st.lists(st.none() | st.lists(some), min_size=1)), pa.list_(form))
    for column, typed in ((scalars, kind), (lists, listed)):
        messages = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), typed)
        assert encoding.values(column, typed).to_pylist() == [m.SerializeToString() for m in messages]
        assert encoding.texts(column, typed).to_pylist() == [
            extract_text_and_num(m, False)[0] for m in messages
        ]


def test_nanoseconds_are_cut_as_what_is_less_than_a_second_is():
    for column in (pa.array([1_700_000_000_123_456_789]), pa.array([[1_700_000_000_123_456_789]])):
        scalar = not pa.types.is_list(column.type)
        stamps = column.cast(pa.timestamp("ns") if scalar else pa.list_(pa.timestamp("ns")))
        kind = ValueType.UNIX_TIMESTAMP if scalar else ValueType.UNIX_TIMESTAMP_LIST
        (whole,) = python_values_to_proto_values([1_700_000_000 if scalar else [1_700_000_000]], kind)
        assert encoding.values(stamps, kind).to_pylist() == [whole.SerializeToString()]


def test_very_wide_rows_come_in_few_chunks_and_little_memory():
    """What a chunk costs for each of its columns must not be paid row by row."""
    wide, rows = 2_500, 250
    stamps = pa.array([START] * rows, pa.timestamp("us", "UTC"))
    table = pa.table({"id": range(rows), "t": stamps} | {f"f{i}": range(i, i + rows) for i in range(wide)})
    columns = [latest.Column(f"f{i}", ValueType.INT64) for i in range(wide)]
    found = latest.Latest(
        table, (latest.Column("id", ValueType.INT64),), tuple(columns), "t", None, START, END
    )  # fmt: skip
    chunks = list(found.chunks())
    assert [len(chunk.keys) for chunk in chunks] == [100, 100, 50]
    assert sum(pa.compute.sum(chunk.features[-1][2]).as_py() for chunk in chunks) == sum(range(2_499, 2_749))


def test_threads_read_and_write_the_registry_file_at_once(tmp_path):
    from feast.repo_config import RegistryConfig

    place = embedded.HomeRegistryStore(RegistryConfig(path=str(tmp_path / "registry.db")), tmp_path)
    place.update_registry_proto(registry := Registry(registry_schema_version="1"))

    def write_and_read(_: int) -> str:
        mine = Registry()
        mine.CopyFrom(registry)
        place.update_registry_proto(mine)
        return place.get_registry_proto().registry_schema_version

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write_and_read, range(100))) == {"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["registry.db"]


def test_large_integers_beside_nulls_stay_exact():
    """Feast takes a column with nulls through floating point, which loses them."""
    column = pa.array([2**62 + 1, None])
    number, nothing = encoding.values(column, ValueType.INT64).to_pylist()
    assert python_values_to_proto_values([2**62 + 1], ValueType.INT64)[0].SerializeToString() == number
    assert nothing == b""


# Stores that lose what was brought to them


def service_at(home: Path, place: Place, **options: Any) -> FeatureStore:
    store = opened(home, place, **options)
    store.apply([FeatureService(name="all", features=[store.get_feature_view("flights")])])
    return store


@every_store
def test_a_store_that_was_emptied_is_filled_again_and_one_that_was_not_is_left_alone(home, places, caplog):
    (place, _), half = places, START + timedelta(hours=HOURS // 2)
    store = service_at(home, place, registry={"path": str(home / f"emptied-{place.kind}.db")})
    features.materialize(store, "all", half, START)
    features.materialize(store, "all", END)
    whole = place.cells()
    assert "lost" not in caplog.text
    features.materialize(store, "all", half, START)  # what lies behind is asked for, and is there
    assert "lost" not in caplog.text

    place.clear()
    features.materialize(store, "all", END)

    assert place.cells() == whole
    assert "The online store has lost rows of view `flights`, or all" in caplog.text
    caplog.clear()
    features.materialize(store, "all", END)
    assert "lost" not in caplog.text


@every_store
def test_what_a_store_lost_is_not_hidden_by_a_part_that_others_bring(home, places):
    """As `feast materialize-incremental` does, which knows the registry alone."""
    (place, _), half = places, START + timedelta(hours=HOURS // 2)
    store = service_at(home, place, registry={"path": str(home / f"hidden-{place.kind}.db")})
    features.materialize(store, "all", half, START)
    place.clear()
    store.materialize(half, END)
    features.materialize(store, "all", END)
    whole = place.cells()
    place.clear()
    bring(store, START, END)
    assert whole == place.cells()


def test_a_file_or_database_that_is_another_is_noticed(home, tmp_path):
    place = Place("sqlite", {"type": "sqlite", "path": str(tmp_path / "online.db")})
    store = service_at(home, place, registry={"path": str(tmp_path / "registry.db")})
    features.materialize(store, "all", END, START)
    whole = place.cells()
    Path(place.online["path"]).unlink()
    store = service_at(home, place, registry={"path": str(tmp_path / "registry.db")})
    features.materialize(store, "all", END)
    assert place.cells() == whole


@pytest.mark.parametrize("places", ["redis"], indirect=True)
def test_a_key_that_is_deleted_from_redis_is_noticed_and_brought_again(home, places, caplog):
    (place, _), path = places, home / "deleted.db"
    store = service_at(home, place, registry={"path": str(path)})
    features.materialize(store, "all", END, START)
    whole, client = place.cells(), place._redis()
    client.delete(next(key for key in client.keys("*") if not key.startswith(b"headrace:")))
    assert len(place.cells()) == len(whole) - 1
    spine = pa.Table.from_pylist([{**key, "event_timestamp": END} for key in ASKED[:35]])
    causes = {m.cause for m in parity.compare(store, "all", spine).mismatches}
    assert parity.Cause.MISSING in causes
    assert parity.Cause.STALE not in causes

    features.materialize(store, "all", END)

    assert place.cells() == whole
    client.set("another's", "key")
    features.materialize(store, "all", END)
    client.delete("another's")
    client.set("another's, for a moment", "key", px=1)
    time.sleep(0.05)
    client.get("another's, for a moment")
    caplog.clear()
    features.materialize(store, "all", END)
    assert "lost" not in caplog.text


@pytest.mark.parametrize("places", ["redis"], indirect=True)
def test_a_redis_that_may_drop_keys_is_refused(home, places):
    (place, _), path = places, home / "evicting.db"
    store = service_at(home, place, registry={"path": str(path)})
    client = place._redis()
    try:
        client.config_set("maxmemory-policy", "allkeys-lru")
        features.materialize(store, "all", START + timedelta(hours=1), START)  # no limit, nothing to drop
        client.config_set("maxmemory", 2**30)
        with pytest.raises(EvictingStore, match="maxmemory-policy allkeys-lru"):
            features.materialize(store, "all", END)
        client.config_set("maxmemory-policy", "volatile-lru")
        features.materialize(store, "all", END)  # its keys do not expire
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
