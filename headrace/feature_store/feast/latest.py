"""Each key's latest row in a window, in chunks of bounded size, of a Delta table or of rows at hand."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from feast.value_type import ValueType

from headrace.feature_store.feast.brought import TICK
from headrace.feature_store.feast.encoding import entity_keys
from headrace.feature_store.feast.sources import instant
from headrace.lake import duckdb_connection
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from headrace.feature_store.feast.sources import Snapshot

KnownFrom = Literal["created", "event"]
"""From which of its times a row is known: the later of both, or that of its event."""

CELLS = 10_000
"""Feature values in a chunk: what is held in memory, and lost if killed."""

ROWS = 100
"""Rows in a chunk of many features: what each column costs, however short, is paid a chunk at a time."""

FEW = 50
"""Features that are sorted with their rows; of more, the rows are found first."""

MEMORY, MORE = 256, 0.5
"""Megabytes that DuckDB may hold before it goes to disk: enough for any number of rows; more per feature."""


@dataclass(frozen=True)
class Column:
    """A column, by the name that the view calls it, and Feast's type of it."""

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
    """Of every key the latest row of those that became known in ``[start, end]``, as the join finds it.

    A row is known once it happened and was created; one that does not say when
    it was created never is. Or, by ``known_from``, a row is known once it happened.
    Of equally late rows it is the one created last, and of these the one whose
    features, in the order given, are the greatest. A row without all of its keys
    can never be asked for and is left out.

    Args:
        rows: Where they are: a table at a version, so that all parts see the same
            rows, or the very rows that count, whenever they became known.
        time: Column of the event time; naive times are UTC.
        created: Column of the time of creation, if there is one. At a tick after
            ``end`` is in time: who wants what is known at an instant and happened
            before it can only say to Feast that it ends a tick earlier.
        known_from: Whether a row is known from its creation, or as soon as it happened.
        part: Which of ``parts`` about equal parts of the keys this is.
    """

    rows: Snapshot | pa.Table
    keys: tuple[Column, ...]
    features: tuple[Column, ...]
    time: str
    created: str | None
    start: datetime
    end: datetime
    known_from: KnownFrom = "created"
    part: int = 0
    parts: int = 1

    def count(self) -> int:
        """Count the rows that became known, of which the latest are some."""
        con = self._connect()
        (count,) = con.execute(f"SELECT count(*) FROM ({self._known()})").fetchone() or (0,)
        return int(count)

    def chunks(self) -> Iterator[Chunk]:
        """Read the rows, about in the order of their entity keys, so that a store's trees grow at one end."""
        con = self._connect()
        wanted = [*self.keys, *self.features]
        times = [quoted(self.time), quoted(self.created) if self.created else "NULL"]
        instants = [f"{time}::TIMESTAMPTZ" for time in times]
        columns = [*(quoted(column.name) for column in wanted), *instants]
        query = f"""
            SELECT {", ".join(f"{sql} AS c{i}" for i, sql in enumerate(columns))} FROM ({self._best(con)})
            ORDER BY {", ".join(_order(key) for key in sorted(self.keys, key=lambda k: k.name)) or "1"}
        """
        size = max(CELLS // max(len(self.features), 1), min(CELLS, ROWS))
        fields, split = (*self.keys, *self.features), len(self.keys)
        with closing(con):
            for batch in con.execute(query).to_arrow_reader(size):
                named = [(c.name, c.kind, batch.column(i)) for i, c in enumerate(fields)]
                *_, time, created = batch.columns
                given = named[:split] or [_nobody(batch.num_rows)]
                yield Chunk(entity_keys(given, batch.num_rows), tuple(named[split:]), time, created)

    @property
    def _since_created(self) -> str | None:
        """The column of the time of creation, if that decides."""
        return self.created if self.known_from == "created" else None

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import pyarrow as pa

        con = duckdb_connection(memory=f"{MEMORY + MORE * len(self.features):.0f}MB")
        con.execute("SET preserve_insertion_order = false")
        con.execute("SET threads = 1")  # to read is less work than to write; another thread takes memory
        if isinstance(self.rows, pa.Table):
            con.register("given", self.rows)
        else:
            since = None if self._since_created else self.start
            self.rows.relation(con, since, self.end).create_view("given")
        return con

    def _best(self, con: duckdb.DuckDBPyConnection) -> str:
        """Select each key's best row; found by keys and times where it is too wide to be sorted in memory."""
        times = [quoted(time) for time in (self.time, self.created) if time]
        keys = [quoted(key.name) for key in self.keys]
        over = f"PARTITION BY {', '.join(keys)}" if keys else ""
        latest = ", ".join(f"{time} DESC NULLS LAST" for time in times)
        greatest = ", ".join(f"{quoted(feature.name)} DESC NULLS LAST" for feature in self.features)
        if len(self.features) <= FEW:
            order = ", ".join(filter(None, [latest, greatest]))
            return f"FROM ({self._known()}) QUALIFY row_number() OVER ({over} ORDER BY {order}) = 1"
        con.execute(f"""
            CREATE TEMP TABLE latest AS SELECT {", ".join([*keys, *times])} FROM ({self._known()})
            QUALIFY rank() OVER ({over} ORDER BY {latest}) = 1
        """)
        same = " AND ".join(f"known.{name} IS NOT DISTINCT FROM latest.{name}" for name in [*keys, *times])
        best = f"SELECT known.* FROM ({self._known()}) AS known SEMI JOIN latest ON {same}"
        tied = con.execute(
            f"SELECT 1 FROM latest GROUP BY {', '.join(keys) or '()'} HAVING count(*) > 1 LIMIT 1"
        )
        if not self.features or not tied.fetchone():
            return best
        return f"{best} QUALIFY row_number() OVER ({over} ORDER BY {greatest}) = 1"

    def _known(self) -> str:
        """Select this part's rows that became known in time, so that whole row groups can be skipped."""
        import pyarrow as pa

        keys = [quoted(key.name) for key in self.keys]
        which = [f"{key} IS NOT NULL" for key in keys]
        if self.parts > 1:
            which.append(f"hash({', '.join(keys)}) % {self.parts} = {self.part}")
        if isinstance(self.rows, pa.Table):
            return f"FROM given WHERE {' AND '.join(which) or 'true'}"
        time, start = quoted(self.time), instant(self.start)
        which.append(f"{time} <= {instant(self.end)}")
        if not self._since_created:
            return f"FROM given WHERE {' AND '.join([*which, f'{time} >= {start}'])}"
        created = quoted(self._since_created)
        which.append(f"{created} <= {instant(self.end + TICK)}")
        either = (f"{created} >= {start}", f"{created} < {start} AND {time} >= {start}")
        return " UNION ALL ".join(f"FROM given WHERE {' AND '.join([*which, since])}" for since in either)


def _nobody(rows: int) -> tuple[str, ValueType, pa.Array]:
    """Return the key of a view without entities: Feast gives it one that is always empty."""
    import pyarrow as pa
    from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

    return DUMMY_ENTITY_ID, ValueType.STRING, pa.array([DUMMY_ENTITY_VAL] * rows, pa.string())


def _order(key: Column) -> str:
    """Return SQL that sorts about as the key's bytes do: lengths come first, integers little end first."""
    name = quoted(key.name)
    if key.kind in (ValueType.STRING, ValueType.BYTES):
        # A cast to BLOB would read a text's backslashes as escapes, and take nothing beyond ASCII.
        return f"strlen({name}::VARCHAR), {name}"
    number = f"epoch({name})" if key.kind is ValueType.UNIX_TIMESTAMP else name
    number = f"coalesce(TRY_CAST({number} AS BIGINT), 0)"
    return f"({number} & 255) * 65536 + (({number} >> 8) & 255) * 256 + (({number} >> 16) & 255)"
