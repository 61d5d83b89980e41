"""Each key's latest row in a window, in chunks of bounded size, of a Delta table or of rows at hand."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast.value_type import ValueType

from headrace.feature_store.encoding import entity_keys
from headrace.lake import duckdb_connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from headrace.lake import Table

CELLS = 10_000
"""Feature values in a chunk: what is held in memory, and lost if killed."""

MEMORY = "256MB"
"""What DuckDB may hold before it goes to disk: enough for any number of rows."""


@dataclass(frozen=True)
class Column:
    """A column of the source, the name that Feast knows it by, and Feast's type of it."""

    source: str
    name: str
    kind: ValueType


@dataclass(frozen=True)
class Chunk:
    """Some rows: the bytes of their entity keys, their features, and their times (UTC)."""

    keys: pa.Array
    features: tuple[tuple[str, ValueType, pa.Array], ...]
    times: pa.Array
    created: pa.Array


@dataclass(frozen=True)
class Latest:
    """Of every key the row latest in ``[start, end]``; of equally late ones the one created last.

    A row without all of its keys can never be asked for and is left out.

    Args:
        rows: Where they are: a lake's table, or the rows themselves.
        version: The Delta version read, so that all parts see the same rows.
        time: Column of the event time; naive times are UTC.
        created: Column of the time of creation, if there is one.
        part: Which of ``parts`` about equal parts of the keys this is.
    """

    rows: Table | pa.Table
    version: int | None
    keys: tuple[Column, ...]
    features: tuple[Column, ...]
    time: str
    created: str | None
    start: datetime
    end: datetime
    part: int = 0
    parts: int = 1

    def count(self) -> int:
        """Count the rows of the window, of which the latest are some."""
        con = self._connect()
        (count,) = con.execute(f"SELECT count(*) FROM given WHERE {self._inside()}").fetchone() or (0,)
        return int(count)

    def chunks(self) -> Iterator[Chunk]:
        """Read the rows, about in the order of their entity keys, so that a store's trees grow at one end."""
        con, keys = self._connect(), [_quoted(key.source) for key in self.keys]
        times = [_quoted(self.time), *([_quoted(self.created)] if self.created else [])]
        over = f"PARTITION BY {', '.join(keys)}" if keys else ""
        newest = ", ".join(f"{time} DESC" for time in times)
        columns = [*keys, *(_quoted(feature.source) for feature in self.features)]
        instants = [f"({time})::TIMESTAMPTZ" for time in (times[0], times[-1] if self.created else "NULL")]
        query = f"""
            SELECT {", ".join(f"{sql} AS c{i}" for i, sql in enumerate([*columns, *instants]))}
            FROM given WHERE {self._inside()}
            QUALIFY row_number() OVER ({over} ORDER BY {newest}) = 1
            ORDER BY {", ".join(_order(key) for key in sorted(self.keys, key=lambda k: k.name)) or "1"}
        """
        size = max(CELLS // max(len(self.features), 1), 1)
        fields, split = (*self.keys, *self.features), len(self.keys)
        with closing(con):
            for batch in con.execute(query).to_arrow_reader(size):
                named = [(c.name, c.kind, batch.column(i)) for i, c in enumerate(fields)]
                *_, time, created = batch.columns
                given = named[:split] or [_nobody(batch.num_rows)]
                yield Chunk(entity_keys(given, batch.num_rows), tuple(named[split:]), time, created)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import pyarrow as pa

        con = duckdb_connection(memory=MEMORY)
        con.execute("SET preserve_insertion_order = false")
        if isinstance(self.rows, pa.Table):
            con.register("given", self.rows)
        else:
            self.rows.relation(con, self.version).create_view("given")
        return con

    def _inside(self) -> str:
        time, keys = _quoted(self.time), [_quoted(key.source) for key in self.keys]
        bounds = [
            f"{time} >= TIMESTAMPTZ '{self.start.isoformat()}'",
            f"{time} <= TIMESTAMPTZ '{self.end.isoformat()}'",
            *(f"{key} IS NOT NULL" for key in keys),
        ]
        if self.parts > 1:
            bounds.append(f"hash({', '.join(keys)}) % {self.parts} = {self.part}")
        return " AND ".join(bounds)


def _nobody(rows: int) -> tuple[str, ValueType, pa.Array]:
    """Return the key of a view without entities: Feast gives it one that is always empty."""
    import pyarrow as pa
    from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

    return DUMMY_ENTITY_ID, ValueType.STRING, pa.array([DUMMY_ENTITY_VAL] * rows, pa.string())


def _order(key: Column) -> str:
    """Return SQL that sorts about as the key's bytes do: lengths come first, integers little end first."""
    name = _quoted(key.source)
    if key.kind in (ValueType.STRING, ValueType.BYTES):
        return f"octet_length({name}::BLOB), {name}"
    number = f"epoch({name})::BIGINT" if key.kind is ValueType.UNIX_TIMESTAMP else f"{name}::BIGINT"
    return f"({number} & 255) * 65536 + (({number} >> 8) & 255) * 256 + (({number} >> 16) & 255)"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
