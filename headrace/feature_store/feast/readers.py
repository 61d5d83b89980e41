"""Reads from Feast's online stores that take many keys of many views in one go, and leave bytes as they are.

What Feast's client makes of a row, a message and objects for each value, costs more than finding
it. Here a store is asked once for all views, in its own layout, and answers with what it holds.
"""

from __future__ import annotations

import sqlite3
import struct
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id
from feast.value_type import ValueType

from headrace.errors import ServerUnreachable
from headrace.feature_store.errors import BadKey
from headrace.feature_store.feast.writers import Postgres, Redis, Sqlite, writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast import FeatureView, RepoConfig
    from feast.infra.online_stores.online_store import OnlineStore

    Row = tuple[int, dict[str, bytes]]
    """When a row was of, in microseconds since 1970 UTC, and its features as bytes of Feast's ``Value``."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MANY = 8_192
"""Keys that SQLite is given at once, which takes 32,766 values in a statement."""


class Reader(Protocol):
    """An open connection to an online store, for one thread at a time; ``waits`` if that is elsewhere."""

    waits: ClassVar[bool]

    def read(self, asked: Sequence[Sequence[bytes]]) -> list[dict[bytes, Row]]:
        """Return, for the entity keys asked of each view, the rows that are there."""

    def close(self) -> None:
        """Close the connection."""


def reader(
    config: RepoConfig, store: OnlineStore, views: Sequence[FeatureView], features: Sequence[Sequence[str]]
) -> Reader | None:
    """Return a reader of ``features`` of ``views``, or None if only Feast's own reads this store."""
    places = [writer(config, store, view) for view in views]
    if not places:
        return None
    if isinstance(store, SqliteOnlineStore) and all(isinstance(place, Sqlite) for place in places):
        return _Sqlite([place for place in places if isinstance(place, Sqlite)])
    if all(isinstance(place, Postgres) for place in places):
        return _Postgres([place for place in places if isinstance(place, Postgres)])
    if all(isinstance(place, Redis) for place in places):
        versioned = config.registry.enable_online_feature_view_versioning
        names = [compute_versioned_name(view, versioned) for view in views]
        return _Redis(config, names, features)
    return None


class _Sqlite:
    """One statement for all views; tables that are not there yet have no rows."""

    waits: ClassVar[bool] = False

    def __init__(self, places: Sequence[Sqlite]) -> None:
        self._path, self._tables = places[0].path, [place.table for place in places]
        self._con: sqlite3.Connection | None = None

    def read(self, asked: Sequence[Sequence[bytes]]) -> list[dict[bytes, Row]]:
        """Look all keys up; the file is opened when it is first read."""
        if sum(map(len, asked)) > MANY:
            return [self._many(place, keys, len(asked)) for place, keys in enumerate(asked)]
        wanted = [(place, *_padded(keys)) for place, keys in enumerate(asked) if keys]
        statement = " UNION ALL ".join(
            f"SELECT {place}, entity_key, feature_name, value, event_ts "
            f"FROM {_quote_id(self._tables[place])} WHERE entity_key IN ({marks})"
            for place, marks, _ in wanted
        )
        if not statement:
            return [{} for _ in asked]
        try:
            if self._con is None:
                self._con = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, check_same_thread=False)
            rows = self._con.execute(statement, [key for _, _, keys in wanted for key in keys]).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ServerUnreachable("Feast's online store", self._path, str(error)) from None
            if "no such table" not in str(error) and "unable to open" not in str(error):
                raise
            if len(wanted) == 1:
                return [{} for _ in asked]
            return [self._many(place, keys, len(asked)) for place, keys in enumerate(asked)]
        return _gathered(rows, len(asked), _of_local_clock)

    def _many(self, place: int, keys: Sequence[bytes], views: int) -> dict[bytes, Row]:
        """Look the keys of one view up, some at a time."""
        found: dict[bytes, Row] = {}
        for start in range(0, len(keys), MANY):
            asked: list[Sequence[bytes]] = [()] * views
            asked[place] = keys[start : start + MANY]
            found |= self.read(asked)[place]
        return found

    def close(self) -> None:
        """Close the file."""
        if self._con:
            self._con.close()


class _Postgres:
    """One statement for all views."""

    waits: ClassVar[bool] = True

    def __init__(self, places: Sequence[Postgres]) -> None:
        self._config, self._tables = places[0].config, [place.table for place in places]
        self._con: Any = None

    def read(self, asked: Sequence[Sequence[bytes]]) -> list[dict[bytes, Row]]:
        """Look all keys up; a connection that is lost is made again, once."""
        import psycopg
        from feast.infra.utils.postgres.connection_utils import _get_conn
        from psycopg import sql

        wanted = [place for place, keys in enumerate(asked) if keys]
        if not wanted:
            return [{} for _ in asked]
        statement = sql.SQL(" UNION ALL ").join(
            sql.SQL(
                "SELECT {}, entity_key, feature_name, value, event_ts FROM {} WHERE entity_key = ANY(%s)"
            ).format(sql.Literal(place), sql.Identifier(self._tables[place]))
            for place in wanted
        )
        for left in (1, 0):
            try:
                if self._con is None:
                    self._con = _get_conn(self._config)
                    self._con.autocommit = True
                rows = self._con.execute(
                    statement, [list(asked[place]) for place in wanted], prepare=True
                ).fetchall()
                break
            except psycopg.OperationalError:
                self._con = None
                if not left:
                    raise
        return _gathered(rows, len(asked), lambda at: (at.replace(tzinfo=UTC) - EPOCH).total_seconds())

    def close(self) -> None:
        """Close the connection."""
        if self._con:
            self._con.close()


class _Redis:
    """One round trip for all views."""

    waits: ClassVar[bool] = True

    def __init__(self, config: RepoConfig, views: Sequence[str], features: Sequence[Sequence[str]]) -> None:
        from feast.infra.online_stores.redis import RedisOnlineStore

        self._client = RedisOnlineStore()._get_client(config.online_store)
        self._project = config.project.encode()
        self._names = features
        self._fields = [
            [f"_ts:{view}".encode(), *(_mmh3(f"{view}:{name}") for name in names)]
            for view, names in zip(views, features, strict=True)
        ]

    def read(self, asked: Sequence[Sequence[bytes]]) -> list[dict[bytes, Row]]:
        """Look all keys up."""
        pipe = self._client.pipeline(transaction=False)
        for keys, fields in zip(asked, self._fields, strict=True):
            for key in keys:
                pipe.hmget(key + self._project, fields)
        answers = iter(pipe.execute())
        found: list[dict[bytes, Row]] = []
        for keys, names in zip(asked, self._names, strict=True):
            rows = {}
            for key, (at, *cells) in zip(keys, answers, strict=False):
                if at is not None:
                    there = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
                    rows[key] = (_instant(at), there)
            found.append(rows)
        return found

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _gathered(
    rows: Sequence[tuple[int, bytes, str, bytes, Any]], views: int, seconds: Callable[[Any], float]
) -> list[dict[bytes, Row]]:
    found: list[dict[bytes, Row]] = [{} for _ in range(views)]
    for place, key, name, value, at in rows:
        of = found[place]
        row = of.get(key)
        if row is None:
            row = of[key] = (round(seconds(at) * 1_000_000), {})
        row[1][name] = value
    return found


@lru_cache(maxsize=100_000)
def _of_local_clock(seconds: int) -> int:
    """Return what Feast's SQLite means by a time: it takes the machine's clock at it for UTC's."""
    naive = datetime.fromtimestamp(seconds)
    return int((naive.replace(tzinfo=UTC) - EPOCH).total_seconds())


def _padded(keys: Sequence[bytes]) -> tuple[str, list[bytes]]:
    """Repeat the last key up to a power of two, so that SQLite prepares few statements, and keeps them."""
    size = 1 << (len(keys) - 1).bit_length()
    return ",".join("?" * size), [*keys, *[keys[-1]] * (size - len(keys))]


def _instant(message: bytes) -> int:
    """Return a protobuf ``Timestamp`` in microseconds since 1970."""
    from google.protobuf.timestamp_pb2 import Timestamp

    return Timestamp.FromString(message).ToMicroseconds()


def entity_key(names: Sequence[str], kinds: Mapping[str, ValueType]) -> Callable[[Sequence[Any]], bytes]:
    """Return what makes an entity key, serialization version 3, of the values of ``names``, in their order.

    Raises:
        KeyError: Feast takes no key of such a type.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    head = struct.pack("<I", len(names))
    for i in order:
        head += struct.pack("<II", ValueType.STRING.value, len(names[i].encode())) + names[i].encode()
    makers = [(i, PARTS[kinds[names[i]]], names[i]) for i in order]

    def made(values: Sequence[Any]) -> bytes:
        return head + b"".join([make(values[i], name) for i, make, name in makers])

    return made


def _text(value: Any, _name: str) -> bytes:
    raw = value.encode()
    return struct.pack("<II", ValueType.STRING.value, len(raw)) + raw


def _raw(value: Any, _name: str) -> bytes:
    return struct.pack("<II", ValueType.BYTES.value, len(value)) + value


def _integer(value: Any, name: str) -> bytes:
    try:
        return struct.pack("<IIq", ValueType.INT64.value, 8, value)
    except struct.error as error:
        raise BadKey(name, "INT64", str(error)) from None


def _short(value: Any, name: str) -> bytes:
    try:
        return struct.pack("<IIi", ValueType.INT32.value, 4, value)
    except struct.error as error:
        raise BadKey(name, "INT32", str(error)) from None


def _second(value: Any, name: str) -> bytes:
    if not isinstance(value, datetime) and isinstance(value, date):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if value.microsecond:
        raise BadKey(name, "UNIX_TIMESTAMP", f"{value} is not a whole second, and times are kept to it")
    return struct.pack("<IIq", ValueType.UNIX_TIMESTAMP.value, 8, int(value.timestamp()))


PARTS: dict[ValueType, Callable[[Any, str], bytes]] = {
    ValueType.STRING: _text,
    ValueType.BYTES: _raw,
    ValueType.INT64: _integer,
    ValueType.INT32: _short,
    ValueType.UNIX_TIMESTAMP: _second,
}
"""How a value of each type goes into a key."""


def decoder(kind: ValueType) -> Callable[[bytes], Any] | None:
    """Return what reads stored values of a type; of another type it gives back the bytes. None for others."""
    return DECODERS.get(kind)


def _double(message: bytes) -> Any:
    return struct.unpack_from("<d", message, 1)[0] if message[:1] == b"\x29" else message


def _float(message: bytes) -> Any:
    return struct.unpack_from("<f", message, 1)[0] if message[:1] == b"\x35" else message


def _varint(message: bytes, at: int) -> int:
    number = shift = 0
    for byte in message[at:]:
        number |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return number - (1 << 64) if number >> 63 else number


def _long(message: bytes) -> Any:
    return _varint(message, 1) if message[:1] == b"\x20" else message


def _int(message: bytes) -> Any:
    return _varint(message, 1) if message[:1] == b"\x18" else message


def _bool(message: bytes) -> Any:
    return message[1:] != b"\x00" if message[:1] == b"\x38" else message


def _string(message: bytes) -> Any:
    if message[:1] != b"\x12":
        return message
    at = 2
    while message[at - 1] & 128:
        at += 1
    return message[at:].decode()


DECODERS: dict[ValueType, Callable[[bytes], Any]] = {
    ValueType.DOUBLE: _double,
    ValueType.FLOAT: _float,
    ValueType.INT64: _long,
    ValueType.INT32: _int,
    ValueType.BOOL: _bool,
    ValueType.STRING: _string,
}
