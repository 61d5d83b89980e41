"""How fast features get into the online store: 200 thousand entities with five features each.

Ours: ``feast materialize`` with our compute engine on the lake. Peer: the same
with Feast's local engine and default offline store, on the very Parquet file of
the lake's table. Bound: the store's own bulk insert of the very bytes, into
tables or hashes that nobody compares anything with. Each runs in a process of
its own, and what it read of the stores must be equal.

At last ten million entities go into SQLite, by ours alone.
"""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.result import Result, peak_mb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from feast import FeatureStore

REPEATS = 3
ENTITIES, MANY = 200_000, 10_000_000
SAMPLE = 2_000
START, END = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 3, tzinfo=UTC)
FEATURES = {"share": "Float64", "delay": "Float64", "flights": "Int64", "carrier": "String", "late": "Bool"}
TABLE = "headrace_entity"


def run() -> Result:
    """Time ours, the peer and the bound, interleaved so that a noisy moment hits all."""
    with tempfile.TemporaryDirectory() as scratch, _redis(Path(scratch)) as redis:
        home = Path(scratch)
        _apart("generate", home / "few", ENTITIES)
        measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for kind in ("sqlite", "redis") if redis else ("sqlite",):
            for _ in range(REPEATS):
                for side in ("ours", "peer", "bound"):
                    found = _apart(side, home / "few", kind, redis)
                    measured.setdefault((kind, side), []).append(found)
                    assert found.get("sample") in {None, measured[kind, "ours"][0]["sample"]}
        shutil.rmtree(home / "few")
        _apart("generate", home / "many", MANY)
        many = _apart("ours", home / "many", "sqlite", redis)
    took = {job: median(one["seconds"] for one in runs) for job, runs in measured.items()}
    rows: list[tuple[object, ...]] = [
        (
            f"{kind}, {side}",
            ENTITIES,
            seconds,
            ENTITIES / seconds,
            round(median(one["peak_mb"] for one in measured[kind, side])),
            took[kind, "peer"] / seconds,
            seconds / took[kind, "bound"],
        )
        for (kind, side), seconds in took.items()
    ]
    if not redis:
        rows.append(("redis: not measured, `redis-server` is not installed", *[None] * 6))
    speed = MANY / many["seconds"]
    rows.append(("sqlite, ours", MANY, many["seconds"], speed, round(many["peak_mb"]), None, None))
    return Result(
        name="materialize",
        about=f"{len(FEATURES)} features per entity; seconds, median of {REPEATS}",
        ours_s=took["sqlite", "ours"],
        peer_s=took["sqlite", "peer"],
        bound_s=took["sqlite", "bound"],
        columns=(
            "store and side",
            "entities",
            "seconds",
            "entities/s",
            "peak MB",
            "times faster than peer",
            "times the bound",
        ),
        rows=tuple(rows),
    )


def _apart(*job: object) -> dict[str, Any]:
    """Do one job in a fresh process; what it prints last is its result."""
    command = [sys.executable, "-m", "benchmarks.materialize", *map(str, job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _redis(home: Path) -> Iterator[str]:
    """Yield the ``host:port`` of a Redis that lives as long as the block, or nothing if there is none."""
    binary = shutil.which("redis-server")
    if not binary:
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [binary, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert any("Ready to accept connections" in line for line in server.stdout)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def _generate(home: Path, entities: int) -> dict[str, Any]:
    """Write one row per entity, in no order, to the lake's table ``entity``."""
    from headrace.lake import Lake, duckdb_connection

    rows = duckdb_connection().execute(f"""
        SELECT i AS id, (hash(i) % 1000) / 1000 AS share, (hash(i) % 100000) / 7 AS delay,
               (hash(i) % 1000000)::BIGINT AS flights, 'carrier ' || i % 97 AS carrier, i % 3 = 0 AS late,
               TIMESTAMPTZ '{START.isoformat()}' + to_seconds(i % 86400) AS event_timestamp,
               event_timestamp + INTERVAL 1 MINUTE AS created
        FROM range({entities}) AS numbers(i) ORDER BY hash(i)
    """)
    Lake(str(home / "lake")).table("entity").append(rows.to_arrow_reader(500_000), "all")
    return {}


def _store(side: str, home: Path, kind: str, redis: str) -> FeatureStore:
    """Declare the same view twice: on the lake with our engine, or as Feast comes."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType, types
    from feast.data_format import DeltaFormat, ParquetFormat

    from headrace.lake import Lake

    place = home / side
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    database = {"ours": 0, "peer": 1}[side]
    online = {
        "sqlite": {"type": "sqlite", "path": str(place / "online.db")},
        "redis": {"type": "redis", "connection_string": f"{redis},db={database}"},
    }[kind]
    ours = {
        "offline_store": {
            "type": "headrace.feature_store.feast.offline.DeltaOfflineStore",
            "lake": str(home / "lake"),
        },
        "batch_engine": {"type": "headrace.feature_store.feast.engine.DaskComputeEngine"},
    }
    peer = {"offline_store": {"type": "dask"}, "batch_engine": {"type": "local"}}
    store = FeatureStore(
        config=RepoConfig(
            project="headrace",
            provider="local",
            registry=str(place / "registry.db"),
            online_store=online,
            entity_key_serialization_version=3,
            **(ours if side == "ours" else peer),
        )
    )
    (file,) = Lake(str(home / "lake")).table("entity").open().file_uris()[:1]
    source = FileSource(
        path="entity" if side == "ours" else file,
        file_format=DeltaFormat() if side == "ours" else ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    schema = [
        Field(name=name, dtype=getattr(types, dtype)) for name, dtype in {"id": "Int64", **FEATURES}.items()
    ]
    store.apply([entity, FeatureView(name="entity", entities=[entity], schema=schema, source=source)])
    return store


def _materialize(side: str, home: Path, kind: str, redis: str) -> dict[str, Any]:
    import hashlib

    if kind == "redis":
        _client(redis, {"ours": 0, "peer": 1}[side]).flushdb()
    store = _store(side, home, kind, redis)
    began = time.perf_counter()
    store.materialize(START, END)
    seconds = time.perf_counter() - began
    peak = peak_mb()
    asked = [{"id": number} for number in range(SAMPLE)]
    read = store.get_online_features([f"entity:{name}" for name in FEATURES], asked).to_dict()
    assert None not in read["delay"]
    sample = hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
    return {"seconds": seconds, "peak_mb": peak, "sample": sample}


def _bound(home: Path, kind: str, redis: str) -> dict[str, Any]:
    """Insert what ours has written again, as plainly as the store's client can."""
    took = _bound_redis(redis) if kind == "redis" else _bound_sqlite(home)
    return {"seconds": took, "peak_mb": peak_mb()}


def _bound_sqlite(home: Path) -> float:
    written = sqlite3.connect(home / "ours/online.db")
    (declared,) = written.execute("SELECT sql FROM sqlite_master WHERE name = ?", [TABLE]).fetchone()
    index = f"CREATE INDEX {TABLE}_ek ON {TABLE} (entity_key)"
    rows = written.execute(f"SELECT * FROM {TABLE}").fetchall()
    file = home / "bound.db"
    file.unlink(missing_ok=True)
    bound = sqlite3.connect(file)
    bound.execute(declared)
    bound.execute(index)
    began = time.perf_counter()
    with bound:
        bound.executemany(f"INSERT INTO {TABLE} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return time.perf_counter() - began


def _bound_redis(redis: str) -> float:
    written, bound = _client(redis, 0), _client(redis, 2)
    bound.flushdb()
    keys = list(written.scan_iter(count=10_000))
    with written.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)
        hashes = pipe.execute()
    began = time.perf_counter()
    pairs = zip(keys, hashes, strict=True)
    while some := list(islice(pairs, 10_000)):
        with bound.pipeline(transaction=False) as pipe:
            for key, fields in some:
                pipe.hset(key, mapping=fields)
            pipe.execute()
    return time.perf_counter() - began


def _client(redis: str, database: int) -> Any:
    from redis import Redis

    host, port = redis.split(":")
    return Redis(host, int(port), db=database)


if __name__ == "__main__":
    job, where, *rest = sys.argv[1:]
    if job == "generate":
        result = _generate(Path(where), int(rest[0]))
    elif job == "bound":
        result = _bound(Path(where), *rest)
    else:
        result = _materialize(job, Path(where), *rest)
    print(json.dumps(result))
