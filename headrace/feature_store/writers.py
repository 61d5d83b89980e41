"""Bulk writes into Feast's online stores, in Feast's own layout; an older value never replaces a newer one.

Each store itself compares the times, so the order, the repetition and the
concurrency of writers do not matter. A row as late as the one that is there
replaces it, unless the store knows that it was created earlier: a correction
arrives, and a repetition changes nothing.
"""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.online_stores.helpers import _mmh3, compute_table_id, compute_versioned_name
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id

from headrace.feature_store.encoding import texts, timestamps, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import FeatureView, RepoConfig
    from feast.infra.online_stores.online_store import OnlineStore
    from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStoreConfig
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig

    from headrace.feature_store.latest import Chunk

PATIENCE = 60
"""Seconds to wait for another process that is writing to the same SQLite file."""

ARGUMENTS = 4_000
"""Values that Redis gets in one call, which holds up everybody else for about a millisecond."""

QUARTER = 900
"""Seconds."""

COLUMNS = ("entity_key", "feature_name", "value", "value_text", "event_ts", "created_ts")

UPSERT = """
    ON CONFLICT (entity_key, feature_name) DO UPDATE SET
        value = excluded.value, value_text = excluded.value_text,
        event_ts = excluded.event_ts, created_ts = excluded.created_ts
    WHERE excluded.event_ts > kept.event_ts OR (
        excluded.event_ts = kept.event_ts
        AND coalesce(excluded.created_ts, kept.created_ts, excluded.event_ts)
            >= coalesce(kept.created_ts, excluded.created_ts, excluded.event_ts)
    )
"""

SET_IF_NOT_OLDER = """
local function varint(bytes, at)
    local value, inverse, scale, byte = 0, 0, 1
    repeat
        byte = string.byte(bytes, at)
        -- a tenth byte says that the number is negative: then its inverse is small enough to be exact
        if scale == 2 ^ 63 then return -inverse - 1, at + 1 end
        value = value + byte % 128 * scale
        inverse = inverse + (127 - byte % 128) * scale
        scale, at = scale * 128, at + 1
    until byte < 128
    return value, at
end
local function instant(bytes)
    local fields, at, tag = {0, 0}, 1
    while at <= #bytes do
        tag, at = varint(bytes, at)
        fields[math.floor(tag / 8)], at = varint(bytes, at)
    end
    return fields[1], fields[2]
end
local function older(a, b)
    local a_seconds, a_nanos = instant(a)
    local b_seconds, b_nanos = instant(b)
    return a_seconds < b_seconds or (a_seconds == b_seconds and a_nanos < b_nanos)
end
local time, ttl, width = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local cells, size = {time}, 2 * width + 2
for column = 1, width do cells[2 * column + 1] = ARGV[3 + column] end
for row, key in ipairs(KEYS) do
    local first = 3 + width + (row - 1) * (width + 1) + 1
    local there = redis.call('HGET', key, time)
    if not (there and older(ARGV[first], there)) then
        for column = 0, width do cells[2 * column + 2] = ARGV[first + column] end
        for from = 1, size, 4000 do
            redis.call('HSET', key, unpack(cells, from, math.min(from + 3999, size)))
        end
        if ttl > 0 then redis.call('EXPIRE', key, ttl) end
    end
end
"""


class Writer(Protocol):
    """Where rows go; it travels to Dask workers, and opens its connection there."""

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Bring the rows into the store; each chunk is there, or not at all, for SQL stores."""


def writer(config: RepoConfig, store: OnlineStore, view: FeatureView) -> Writer | None:
    """Return the bulk writer for the view's place in ``store``, or None if Feast's own has to do it."""
    online, versioned = config.online_store, config.registry.enable_online_feature_view_versioning
    special = ("vector_enabled", "enable_openai_compatible_store")
    if config.entity_key_serialization_version != 3 or any(getattr(online, name, False) for name in special):
        return None
    kind, table = type(store).__name__, compute_table_id(config.project, view, versioned)
    if isinstance(store, SqliteOnlineStore):
        return Sqlite(store._get_db_path(config), table)
    if kind == "PostgreSQLOnlineStore":
        return Postgres(online, table)
    if kind == "RedisOnlineStore" and online.redis_type != "redis_cluster":
        return Redis(online, config.project, compute_versioned_name(view, versioned))
    return None


@dataclass(frozen=True)
class Sqlite:
    """Feast's SQLite file, one process at a time.

    Its layout keeps whole seconds: that of two rows within one the later one
    stays is sure only if no window ends between them.
    """

    path: str
    table: str

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Write each chunk in one transaction; readers are served between them."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con:
            for chunk in chunks:
                columns = [chunk.keys, _local_seconds(chunk.times), _local_seconds(chunk.created)]
                columns += [form(c, kind) for _, kind, c in chunk.features for form in (values, texts)]
                rows = zip(*(column.to_pylist() for column in columns), strict=True)
                with con:
                    con.executemany(self._upsert([name for name, _, _ in chunk.features]), rows)

    def _upsert(self, features: Sequence[str]) -> str:
        """Return one statement for all of an entity's rows: a third less work than one for each."""
        cells = [
            f"(?1, {_literal(name)}, ?{2 * i + 4}, ?{2 * i + 5}, ?2, ?3)" for i, name in enumerate(features)
        ]
        into = f"{_quote_id(self.table)} AS kept ({', '.join(COLUMNS)})"
        return f"INSERT INTO {into} VALUES {', '.join(cells)} {UPSERT}"


@dataclass(frozen=True)
class Postgres:
    """Feast's table in PostgreSQL."""

    config: PostgreSQLOnlineStoreConfig
    table: str

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Copy each chunk into a temporary table, and merge it from there in one transaction."""
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import sql

        columns, types = ", ".join(COLUMNS), ("bytea", "text", "bytea", "text", "timestamp", "timestamp")
        declared = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, types, strict=True))
        # Sorted, so that two writers lock the rows that both have in the same order.
        merge = sql.SQL(f"""
            INSERT INTO {{}} AS kept ({columns})
            SELECT {columns} FROM incoming ORDER BY entity_key, feature_name {UPSERT}
        """).format(sql.Identifier(self.table))
        with closing(_get_conn(self.config)) as con, con.cursor() as cursor:
            cursor.execute(f"CREATE TEMPORARY TABLE incoming ({declared}) ON COMMIT DELETE ROWS")
            con.commit()
            for chunk in chunks:
                with cursor.copy(f"COPY incoming ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                    copy.set_types(types)
                    for row in _cells(chunk):
                        copy.write_row(row)
                cursor.execute(merge)
                con.commit()


@dataclass(frozen=True)
class Redis:
    """Feast's hashes in Redis, without a time of creation: of equally late rows the last written stays."""

    config: RedisOnlineStoreConfig
    project: str
    view: str

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Send chunk by chunk, each while the next is prepared; a row is compared and set in one step."""
        from feast.infra.online_stores.redis import RedisOnlineStore

        with closing(RedisOnlineStore()._get_client(self.config)) as client, ThreadPoolExecutor(1) as sender:
            script, sent = client.register_script(SET_IF_NOT_OLDER), None
            for chunk in chunks:
                pipe = client.pipeline(transaction=False)
                for keys, args in self._calls(chunk):
                    script(keys=keys, args=args, client=pipe)
                if sent:
                    sent.result()
                sent = sender.submit(pipe.execute)
            if sent:
                sent.result()

    def _calls(self, chunk: Chunk) -> Iterator[tuple[list[bytes], list[Any]]]:
        project = self.project.encode()
        names = [_mmh3(f"{self.view}:{name}") for name, _, _ in chunk.features]
        head = [f"_ts:{self.view}", self.config.key_ttl_seconds or 0, len(names), *names]
        columns = [timestamps(chunk.times), *(values(c, kind) for _, kind, c in chunk.features)]
        keys = [key + project for key in chunk.keys.to_pylist()]
        rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
        step = max(ARGUMENTS // len(columns), 1)
        for at in range(0, len(keys), step):
            yield keys[at : at + step], [*head, *chain.from_iterable(rows[at : at + step])]


def _cells(chunk: Chunk) -> Iterator[tuple[Any, ...]]:
    """Return PostgreSQL's rows: one for each feature of each entity."""
    keys, times, created = chunk.keys.to_pylist(), _naive(chunk.times), _naive(chunk.created)
    columns = [
        zip(keys, repeat(name), *(form(column, kind).to_pylist() for form in (values, texts)), times, created)
        for name, kind, column in chunk.features
    ]
    return chain.from_iterable(zip(*columns, strict=True))


def _naive(times: pa.Array) -> list[datetime | None]:
    return times.cast(pa.timestamp("us")).to_pylist()


def _local_seconds(times: pa.Array) -> pa.Array:
    """Return what Feast writes into SQLite, and reads: UTC's clock taken for the machine's."""
    micros = times.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    seconds = np.sign(micros) * (np.abs(micros) // 1_000_000)  # cut towards zero, as there
    # Clocks are changed on a quarter of an hour: between two of them the difference to UTC is one.
    quarters, which = np.unique(seconds // QUARTER, return_inverse=True)
    starts = [datetime(1970, 1, 1) + timedelta(seconds=int(quarter) * QUARTER) for quarter in quarters]
    shifts = np.array([int(start.timestamp()) for start in starts], np.int64) - quarters * QUARTER
    return pa.array(seconds + shifts[which], mask=pc.is_null(times).to_numpy(zero_copy_only=False))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
