"""Bulk writes into Feast's online stores, in Feast's own layout; an older value never replaces a newer one.

Each store itself compares the times, so the order, the repetition and the
concurrency of writers do not matter. A row as late as the one that is there
replaces it, unless the store knows that it was created earlier: a correction
arrives, and a repetition changes nothing.

Only when a view is brought again, for its table was rebuilt, does what is there
give way to older rows: all of it up to the instant to which it is brought. What
no row took the place of is then swept away.
"""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, compress, islice, repeat
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.online_stores.helpers import (
    _mmh3,
    compute_table_id,
    compute_versioned_name,
    extract_text_and_num,
)
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id

from headrace.addresses import public
from headrace.feature_store.errors import EvictingStore
from headrace.feature_store.feast.encoding import stored, texts, timestamps
from headrace.instants import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import FeatureView, RepoConfig
    from feast.infra.online_stores.online_store import OnlineStore
    from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStoreConfig
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.protos.feast.types.Value_pb2 import Value

    from headrace.feature_store.feast.latest import Chunk

PATIENCE = 60
"""Seconds to wait for another process that is writing to the same SQLite file."""

ARGUMENTS = 4_000
"""Values that Redis gets in one call, which holds up everybody else for about a millisecond."""

BATCH = 10_000
"""Keys read or removed at once."""

QUARTER = 900
"""Seconds."""

COLUMNS = ("entity_key", "feature_name", "value", "value_text", "event_ts", "created_ts")

UPSERT = """
    ON CONFLICT (entity_key, feature_name) DO UPDATE SET
        value = excluded.value, value_text = excluded.value_text,
        event_ts = excluded.event_ts, created_ts = excluded.created_ts
    WHERE kept.event_ts <= {upto} OR excluded.event_ts > kept.event_ts OR (
        excluded.event_ts = kept.event_ts
        AND coalesce(excluded.created_ts, kept.created_ts, excluded.event_ts)
            >= coalesce(kept.created_ts, excluded.created_ts, excluded.event_ts)
    )
"""

COMPARE = """
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
"""

SET_IF_NOT_OLDER = (
    COMPARE
    + """
local time, upto, ttl, width = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local cells, size = {time}, 2 * width + 2
for column = 1, width do cells[2 * column + 1] = ARGV[4 + column] end
for row, key in ipairs(KEYS) do
    local first = 4 + width + (row - 1) * (width + 1) + 1
    local there = redis.call('HGET', key, time)
    local kept = there and older(ARGV[first], there) and (upto == '' or older(upto, there))
    if not kept then
        for column = 0, width do cells[2 * column + 2] = ARGV[first + column] end
        for from = 1, size, 4000 do
            redis.call('HSET', key, unpack(cells, from, math.min(from + 3999, size)))
        end
        if ttl > 0 then redis.call('EXPIRE', key, ttl) end
    end
end
"""
)

REMOVE_IF_NOT_LATER = (
    COMPARE
    + """
for _, key in ipairs(KEYS) do
    local there = redis.call('HGET', key, ARGV[2])
    if there and not older(ARGV[1], there) then
        for field = 2, #ARGV do redis.call('HDEL', key, ARGV[field]) end
    end
end
"""
)


class Writer(Protocol):
    """Where rows go; it travels to Dask workers, and opens its connection there."""

    def write(self, chunks: Iterable[Chunk], upto: datetime | None = None) -> None:
        """Bring the rows into the store; each chunk is there, or not at all, for SQL stores.

        Rows that are there of ``upto`` (UTC) or before give way whatever their times.
        """

    def held(self) -> Iterator[list[bytes]]:
        """Return the entity keys of the rows that are there, in batches."""

    def remove(self, keys: list[bytes], features: Sequence[str], upto: datetime) -> None:
        """Remove the rows of ``keys``, with all ``features``, unless they are later than ``upto`` (UTC)."""

    def note(self, until: datetime) -> None:
        """Note, in the store itself, up to when (UTC) the view was brought; the latest instant stays."""

    def noted(self) -> datetime | None:
        """Return up to when (UTC) the view was brought, by the store's own note; None if it has lost rows.

        Raises:
            EvictingStore: The store may drop rows to make room.
        """


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


# The note of a view has whether there were rows of it: then there still are some.
NOTES = "CREATE TABLE IF NOT EXISTS headrace_notes (place TEXT PRIMARY KEY, until TEXT, filled BOOLEAN)"
NOTE = """
    INSERT INTO headrace_notes AS kept (place, until, filled)
    SELECT {mark}, {mark}, EXISTS (SELECT 1 FROM {table})
    ON CONFLICT (place) DO UPDATE SET filled = excluded.filled,
        until = CASE WHEN excluded.until > kept.until THEN excluded.until ELSE kept.until END
"""
NOTED = """
    SELECT until FROM headrace_notes
    WHERE place = {mark} AND (NOT filled OR EXISTS (SELECT 1 FROM {table}))
"""


@dataclass(frozen=True)
class Sqlite:
    """Feast's SQLite file, one process at a time.

    Its layout keeps whole seconds: that of two rows within one the later one
    stays is sure only if no window ends between them.
    """

    path: str
    table: str

    def write(self, chunks: Iterable[Chunk], upto: datetime | None = None) -> None:
        """Write each chunk in one transaction; readers are served between them."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con:
            for chunk in chunks:
                columns = [chunk.keys, _local_seconds(chunk.times), _local_seconds(chunk.created)]
                for name, kind, column in chunk.features:
                    columns += [stored(name, kind, column), texts(column, kind)]
                rows = zip(*(column.to_pylist() for column in columns), strict=True)
                with con:
                    con.executemany(self._upsert([name for name, _, _ in chunk.features], upto), rows)

    def put(self, rows: Iterable[tuple[bytes, Mapping[str, Value], datetime, datetime | None]]) -> None:
        """Write, in one transaction, rows of keys, features, event time and time of creation (naive: UTC)."""
        keys, features, *times = zip(*rows, strict=True)
        at, created = (
            _local_seconds(pa.array(column, pa.timestamp("us", "UTC"), from_pandas=True)) for column in times
        )
        order = pc.sort_indices(pa.array(times[0], pa.timestamp("us", "UTC")))  # of one second the last stays
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con, con:
            for i in order.to_pylist():
                cells = [
                    (v.SerializeToString(), extract_text_and_num(v, False)[0]) for v in features[i].values()
                ]
                row = [keys[i], at[i].as_py(), created[i].as_py(), *chain.from_iterable(cells)]
                con.execute(self._upsert(list(features[i]), None), row)

    def held(self) -> Iterator[list[bytes]]:
        """Return the entity keys that are there, in batches."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con:
            found = con.execute(f"SELECT DISTINCT entity_key FROM {_quote_id(self.table)}")
            while rows := found.fetchmany(BATCH):
                yield [key for (key,) in rows]

    def remove(self, keys: list[bytes], features: Sequence[str], upto: datetime) -> None:
        """Remove the rows of ``keys``, unless they are later than ``upto``."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con, con:
            statement = (
                f"DELETE FROM {_quote_id(self.table)} WHERE entity_key = ? AND event_ts <= {_local(upto)}"
            )
            con.executemany(statement, zip(keys))

    def note(self, until: datetime) -> None:
        """Note, in a table of ours beside Feast's, up to when the view was brought."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con, con:
            con.execute(NOTES)
            statement = NOTE.format(mark="?", table=_quote_id(self.table))
            con.execute(statement, [self.table, until.isoformat()])

    def noted(self) -> datetime | None:
        """Return up to when the view was brought; None without a note, or if no row is left."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as con:
            statement = NOTED.format(mark="?", table=_quote_id(self.table))
            try:
                found = con.execute(statement, [self.table]).fetchone()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return None
            return read(found[0]) if found else None

    def _upsert(self, features: Sequence[str], upto: datetime | None) -> str:
        """Return one statement for all of an entity's rows: a third less work than one for each."""
        cells = [
            f"(?1, {_literal(name)}, ?{2 * i + 4}, ?{2 * i + 5}, ?2, ?3)" for i, name in enumerate(features)
        ]
        into = f"{_quote_id(self.table)} AS kept ({', '.join(COLUMNS)})"
        return f"INSERT INTO {into} VALUES {', '.join(cells)} {UPSERT.format(upto=_local(upto))}"


@dataclass(frozen=True)
class Postgres:
    """Feast's table in PostgreSQL."""

    config: PostgreSQLOnlineStoreConfig
    table: str

    def write(self, chunks: Iterable[Chunk], upto: datetime | None = None) -> None:
        """Copy each chunk into a temporary table, and merge it from there in one transaction."""
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import sql

        columns, types = ", ".join(COLUMNS), ("bytea", "text", "bytea", "text", "timestamp", "timestamp")
        declared = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, types, strict=True))
        # Sorted, so that two writers lock the rows that both have in the same order.
        merge = sql.SQL(f"""
            INSERT INTO {{}} AS kept ({columns})
            SELECT {columns} FROM incoming ORDER BY entity_key, feature_name {UPSERT.format(upto="%s")}
        """).format(sql.Identifier(self.table))
        with closing(_get_conn(self.config)) as con, con.cursor() as cursor:
            cursor.execute(f"CREATE TEMPORARY TABLE incoming ({declared}) ON COMMIT DELETE ROWS")
            con.commit()
            for chunk in chunks:
                with cursor.copy(f"COPY incoming ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                    copy.set_types(types)
                    for row in _cells(chunk):
                        copy.write_row(row)
                cursor.execute(merge, [_clock(upto)])
                con.commit()

    def held(self) -> Iterator[list[bytes]]:
        """Return the entity keys that are there, in batches."""
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import sql

        every = sql.SQL("SELECT DISTINCT entity_key FROM {}").format(sql.Identifier(self.table))
        with closing(_get_conn(self.config)) as con, con.cursor("keys") as cursor:
            cursor.execute(every)
            while rows := cursor.fetchmany(BATCH):
                yield [key for (key,) in rows]

    def remove(self, keys: list[bytes], features: Sequence[str], upto: datetime) -> None:
        """Remove the rows of ``keys``, unless they are later than ``upto``."""
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import sql

        statement = "DELETE FROM {} WHERE entity_key = ANY(%s) AND event_ts <= %s"
        with closing(_get_conn(self.config)) as con:
            con.execute(sql.SQL(statement).format(sql.Identifier(self.table)), [keys, _clock(upto)])
            con.commit()

    def note(self, until: datetime) -> None:
        """Note, in a table of ours beside Feast's, up to when the view was brought."""
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import errors, sql

        statement = sql.SQL(NOTE).format(mark=sql.Placeholder(), table=sql.Identifier(self.table))
        with closing(_get_conn(self.config)) as con:
            with suppress(errors.UniqueViolation):  # another process makes the table at this moment
                con.execute(NOTES)
            con.commit()
            con.execute(statement, [self.table, until.isoformat()])
            con.commit()

    def noted(self) -> datetime | None:
        """Return up to when the view was brought; None without a note, or if no row is left."""
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import errors, sql

        statement = sql.SQL(NOTED).format(mark=sql.Placeholder(), table=sql.Identifier(self.table))
        with closing(_get_conn(self.config)) as con:
            try:
                found = con.execute(statement, [self.table]).fetchone()
            except errors.UndefinedTable:
                return None
            return read(found[0]) if found else None


@dataclass(frozen=True)
class Redis:
    """Feast's hashes in Redis, without a time of creation: of equally late rows the last written stays."""

    config: RedisOnlineStoreConfig
    project: str
    view: str

    def write(self, chunks: Iterable[Chunk], upto: datetime | None = None) -> None:
        """Send chunk by chunk, each while the next is prepared; a row is compared and set in one step."""
        with self._client() as client, ThreadPoolExecutor(1) as sender:
            script, sent = client.register_script(SET_IF_NOT_OLDER), None
            for chunk in chunks:
                pipe = client.pipeline(transaction=False)
                for keys, args in self._calls(chunk, upto):
                    script(keys=keys, args=args, client=pipe)
                if sent:
                    sent.result()
                sent = sender.submit(pipe.execute)
            if sent:
                sent.result()

    def held(self) -> Iterator[list[bytes]]:
        """Return the entity keys that are there, in batches: among all of the project those with a time."""
        project = self.project.encode()
        with self._client() as client:
            every = client.scan_iter(b"*" + project, count=BATCH)
            while batch := list(islice(every, BATCH)):
                pipe = client.pipeline(transaction=False)
                for key in batch:
                    pipe.hexists(key, f"_ts:{self.view}")
                there = [key.removesuffix(project) for key in compress(batch, pipe.execute())]
                yield [key for key in there if _is_whole(key)]

    def remove(self, keys: list[bytes], features: Sequence[str], upto: datetime) -> None:
        """Remove the view's fields of ``keys``, unless they are later than ``upto``."""
        project = self.project.encode()
        args = [_timestamp(upto), f"_ts:{self.view}", *self._fields(features)]
        with self._client() as client:
            script, pipe = client.register_script(REMOVE_IF_NOT_LATER), client.pipeline(transaction=False)
            for key in keys:
                script(keys=[key + project], args=args, client=pipe)
            pipe.execute()

    def note(self, until: datetime) -> None:
        """Note, under a key of ours, up to when the view was brought, and how many keys the database has."""
        place, latest = f"headrace:{self.project}", until.isoformat()
        with self._client() as client:
            latest = max(latest, (client.hget(place, self.view) or b"").decode())
            client.hset(
                place, mapping={self.view: latest, "": ""}
            )  # a key of its own, before they are counted
            client.hset(place, "", json.dumps(_state(client)))

    def noted(self) -> datetime | None:
        """Return up to when the view was brought; None without a note, or if keys are gone since.

        Keys go when they are deleted, or evicted. Those that expire, as ``key_ttl_seconds`` bids
        them, count as there, if they do so while Redis runs.
        """
        with self._client() as client:
            memory = client.info("memory")
            policy, ttl = memory["maxmemory_policy"], self.config.key_ttl_seconds
            if memory["maxmemory"] and (policy.startswith("allkeys") or (ttl and policy != "noeviction")):
                raise EvictingStore(public(self.config.connection_string.partition(",")[0]), policy)
            until, state = client.hmget(f"headrace:{self.project}", [self.view, ""])
            if not (until and state):
                return None
            now, then = _state(client), json.loads(state)
            if now["run"] != then["run"]:
                then |= {"evicted": 0, "expired": 0}
            expired = now["expired"] - then["expired"]
            lost = now["evicted"] > then["evicted"] or now["keys"] + expired < then["keys"]
            return None if lost else read(until.decode())

    @contextmanager
    def _client(self) -> Iterator[Any]:
        from feast.infra.online_stores.redis import RedisOnlineStore

        with closing(RedisOnlineStore()._get_client(self.config)) as client:
            yield client

    def _fields(self, features: Iterable[str]) -> list[bytes]:
        return [_mmh3(f"{self.view}:{name}") for name in features]

    def _calls(self, chunk: Chunk, upto: datetime | None) -> Iterator[tuple[list[bytes], list[Any]]]:
        project = self.project.encode()
        names = self._fields(name for name, _, _ in chunk.features)
        head = [f"_ts:{self.view}", _timestamp(upto), self.config.key_ttl_seconds or 0, len(names), *names]
        columns = [timestamps(chunk.times), *(stored(*feature) for feature in chunk.features)]
        keys = [key + project for key in chunk.keys.to_pylist()]
        rows = list(zip(*(column.to_pylist() for column in columns), strict=True))
        step = max(ARGUMENTS // len(columns), 1)
        for at in range(0, len(keys), step):
            yield keys[at : at + step], [*head, *chain.from_iterable(rows[at : at + step])]


def _state(client: Any) -> dict[str, Any]:
    """Return what tells if keys have gone from a Redis database; its counters begin anew with each run."""
    stats, server = client.info("stats"), client.info("server")
    return {
        "keys": client.dbsize(),
        "evicted": stats["evicted_keys"],
        "expired": stats["expired_keys"],
        "run": server["run_id"],
    }


def _cells(chunk: Chunk) -> Iterator[tuple[Any, ...]]:
    """Return PostgreSQL's rows: one for each feature of each entity."""
    keys, times, created = chunk.keys.to_pylist(), _naive(chunk.times), _naive(chunk.created)
    columns = [
        zip(
            keys,
            repeat(name),
            stored(name, kind, column).to_pylist(),
            texts(column, kind).to_pylist(),
            times,
            created,
        )
        for name, kind, column in chunk.features
    ]
    return chain.from_iterable(zip(*columns, strict=True))


def _naive(times: pa.Array) -> list[datetime | None]:
    return times.cast(pa.timestamp("us")).to_pylist()


def _clock(at: datetime | None) -> datetime | None:
    return at and at.astimezone(UTC).replace(tzinfo=None)


def _timestamp(at: datetime | None) -> bytes:
    return b"" if at is None else timestamps(pa.array([at], pa.timestamp("us", "UTC")))[0].as_py()


def _is_whole(key: bytes) -> bool:
    """Say whether ``key`` is an entity key and no more; else another project's name ends as ours does."""
    at = 4
    for _ in range(2 * int.from_bytes(key[:4], "little")):  # a name and a value of each
        at += 8 + int.from_bytes(key[at + 4 : at + 8], "little")
    return at == len(key)


def _local(at: datetime | None) -> str:
    """Return ``at`` as SQLite holds it; NULL, which nothing is before, for None."""
    return "NULL" if at is None else str(_local_seconds(pa.array([at], pa.timestamp("us", "UTC")))[0])


def _local_seconds(times: pa.Array) -> pa.Array:
    """Return what Feast writes into SQLite, and reads: UTC's clock taken for the machine's."""
    micros = times.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    seconds = np.sign(micros) * (np.abs(micros) // 1_000_000)  # cut towards zero, as there
    # Clocks are changed on a quarter of an hour: between two of them the difference to UTC is one.
    quarters, which = np.unique(seconds // QUARTER, return_inverse=True)
    starts = [datetime(1970, 1, 1) + timedelta(seconds=int(quarter) * QUARTER) for quarter in quarters]
    first, second = (
        np.array([int(start.replace(fold=fold).timestamp()) for start in starts], np.int64) for fold in (0, 1)
    )
    local = seconds + (first - quarters * QUARTER)[which]
    # What a change left out of the clock would come after what follows: it all is the instant of the change.
    for quarter in np.flatnonzero(first > second):
        after = starts[quarter]
        while after.timestamp() > after.replace(fold=1).timestamp():
            after += timedelta(seconds=QUARTER)
        local[which == quarter] = int(after.timestamp())
    return pa.array(local, mask=pc.is_null(times).to_numpy(zero_copy_only=False))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
