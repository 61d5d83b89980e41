"""Rows from a database."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.addresses import database, public
from headrace.errors import ServerUnreachable
from headrace.sources.errors import MissingColumns, SourceUnreadable
from headrace.sources.rows import INSTANT, Part, explained, must_be_instant, pour
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import duckdb
    import pyarrow as pa
    import sqlalchemy as sa

    from headrace.lake import Window

CHUNK = 10_000
"""Rows of a query that are in memory at once."""


@dataclass(frozen=True)
class Query:
    """A query that a database answers.

    ``url`` is SQLAlchemy's; environment variables in it (``$FLIGHTS_DB``) are
    filled in when it is read, so that secrets stay out of code. Times without an
    offset are UTC. A PostgreSQL ``numeric`` without a scale becomes a double, and
    a type that has no like in DuckDB becomes text; cast in ``sql`` for another.
    """

    url: str = field(repr=False)
    sql: str

    def read(self, con: duckdb.DuckDBPyConnection, name: str, time: str, span: Window) -> list[Part]:
        """Fill ``con`` (in UTC) with a table, maybe empty, of the rows whose ``time`` is in ``span`` or null.

        The database filters; at most some ten thousand rows are in memory at once.

        Raises:
            ServerUnreachable: Nothing answers at the URL, or it refuses the login.
            SourceUnreadable: The database refuses the query, or ``time`` holds no instants.
            MissingColumns: The query returns no column ``time``.
        """
        with self._connected(name) as (db, shown), explained(name, [shown]):
            types = _types(db, self.sql)
            if time not in types:
                raise MissingColumns(name, [time], list(types))
            must_be_instant(name, time, types[time])
            pour(con, name, _rows(db, name, self.sql, types, time, span), types, time, span)
        return [Part("part0", (), tuple(types))]

    def earlier(self, name: str, time: str, before: datetime) -> int:
        """Count the rows whose ``time`` is earlier than ``before`` (UTC), as the database counts.

        Raises:
            ServerUnreachable, SourceUnreadable: As ``read`` does.
        """
        with self._connected(name) as (db, _):
            column = db.dialect.identifier_preparer.quote(time)
            condition, bound = f"{column} < :before", {"before": _bound(db, before)}
            if db.dialect.name == "sqlite":
                condition = f"julianday({column}) < julianday(:before)"
            counted = _wrapped(self.sql, condition, "count(*)")
            return int(db.execute(counted, bound).scalar_one())

    @contextmanager
    def _connected(self, name: str) -> Iterator[tuple[sa.Connection, str]]:
        """Open the database, for the source ``name``; its address comes along, as it may be shown."""
        import sqlalchemy as sa

        if unset := [v for v in re.findall(r"\$\{?(\w+)", self.url) if v not in os.environ]:
            raise SourceUnreadable(name, ["its database"], f"environment variable `{unset[0]}` is not set")
        try:
            url = database(os.path.expandvars(self.url))
            engine = sa.create_engine(url, poolclass=sa.NullPool)
        except (ValueError, ImportError, sa.exc.NoSuchModuleError) as error:
            raise SourceUnreadable(name, ["its database"], str(error)) from None
        shown = public(os.path.expandvars(self.url))
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
            raise SourceUnreadable(name, [shown], "no such file")  # SQLite would make an empty one
        try:
            db = engine.connect()
        except sa.exc.DBAPIError as error:
            raise ServerUnreachable(f"The database of `{name}`", shown, _first_line(error)) from None
        try:
            with db:
                if db.dialect.name == "postgresql":
                    db.exec_driver_sql("SET TIME ZONE 'UTC'")
                yield db, shown
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise ServerUnreachable(f"The database of `{name}`", shown, _first_line(error)) from None
            raise SourceUnreadable(name, [shown], _first_line(error)) from None


def look(con: duckdb.DuckDBPyConnection, name: str, query: Query) -> str:
    """Make the table ``name`` of a query's rows, typed as a source has them; return the kind of database.

    Raises:
        ServerUnreachable: Nothing answers at the URL, or it refuses the login.
        SourceUnreadable: The database refuses the query.
    """
    import pyarrow as pa

    with query._connected(name) as (db, shown), explained(name, [shown]):
        types = _types(db, query.sql)
        streamed = db.execution_options(stream_results=True, yield_per=CHUNK)
        made = False
        for rows in streamed.execute(_wrapped(query.sql, "1 = 1")).partitions(CHUNK):
            columns = zip(types.items(), zip(*rows, strict=True), strict=True)
            arrays = {column: _array(name, column, kind, values) for (column, kind), values in columns}
            con.register("headrace_chunk", pa.table(arrays))
            as_found = dict(zip(arrays, map(str, con.table("headrace_chunk").types), strict=True))
            kinds = {column: kind or as_found[column] for column, kind in types.items()}
            casts = ", ".join(
                f"{quoted(column)}::{kind} AS {quoted(column)}" for column, kind in kinds.items()
            )
            begin = f"INSERT INTO {quoted(name)}" if made else f"CREATE OR REPLACE TABLE {quoted(name)} AS"
            con.execute(f"{begin} SELECT {casts} FROM headrace_chunk")
            con.unregister("headrace_chunk")
            made = True
        if not made:
            raise SourceUnreadable(name, [shown], "it returns no row")
        dialect: str = db.dialect.name
    return dialect


POSTGRES = {  # https://www.postgresql.org/docs/current/catalog-pg-type.html
    16: "BOOLEAN",
    17: "BLOB",
    20: "BIGINT",
    21: "SMALLINT",
    23: "INTEGER",
    700: "FLOAT",
    701: "DOUBLE",
    1082: "DATE",
    1083: "TIME",
    1114: "TIMESTAMP",
    1184: INSTANT,
    1186: "INTERVAL",
}
NUMERIC = 1700
SQLITE = {  # what a declared type contains, as https://www.sqlite.org/datatype3.html has it
    "BOOL": "BOOLEAN",
    "INT": "BIGINT",
    "CHAR|CLOB|TEXT|JSON|UUID": "VARCHAR",
    "BLOB": "BLOB",
    "REAL|FLOA|DOUB": "DOUBLE",
    "TIMESTAMP|DATETIME": INSTANT,
    "DATE": "DATE",
}


def _types(db: sa.Connection, sql: str) -> dict[str, str]:
    """Return the DuckDB types of a query's columns, "" where the database does not tell."""
    if db.dialect.name == "sqlite":
        db.exec_driver_sql(f"CREATE TEMP VIEW headrace_rows AS {sql}")
        info = db.exec_driver_sql("PRAGMA table_info(headrace_rows)")
        return {name: _of_sqlite(declared.upper()) for _, name, declared, *_ in info}
    described = db.execute(_wrapped(sql, "1 = 0")).cursor.description
    if db.dialect.name != "postgresql":
        return {column[0]: "" for column in described}
    return {name: _of_postgres(oid, *scaled) for name, oid, _, _, *scaled, _ in described}


def _of_postgres(oid: Any, precision: int | None = None, scale: int | None = None) -> str:
    if oid == NUMERIC:
        exact = precision is not None and scale is not None and 0 <= scale <= precision <= 38
        return f"DECIMAL({precision}, {scale})" if exact else "DOUBLE"
    return POSTGRES.get(oid, "VARCHAR")


def _of_sqlite(declared: str) -> str:
    if exact := re.search(r"(?:NUMERIC|DECIMAL)\s*(\(\d+\s*,\s*\d+\))", declared):
        return f"DECIMAL{exact[1]}"
    return next((kind for words, kind in SQLITE.items() if re.search(words, declared)), "")


def _wrapped(sql: str, condition: str, what: str = "*") -> sa.TextClause:
    """Return ``what`` of the rows of a query, taken word for word, that meet the condition."""
    import sqlalchemy as sa

    verbatim = sql.strip().rstrip(";").replace(":", r"\:")
    return sa.text(f"SELECT {what} FROM ({verbatim}\n) q WHERE {condition}")


def _rows(
    db: sa.Connection, source: str, sql: str, types: Mapping[str, str], time: str, span: Window
) -> Iterator[pa.Table]:
    """Yield the rows of ``span``, and a little more from SQLite, in chunks; the first is empty."""
    import pyarrow as pa

    column = db.dialect.identifier_preparer.quote(time)
    condition = f"({column} >= :start AND {column} < :end) OR {column} IS NULL"
    if db.dialect.name == "sqlite":  # has no times: only its own functions see that two texts mean one
        condition = f"date({column}) BETWEEN date(:start) AND date(:end) OR date({column}) IS NULL"
    bound = {"start": _bound(db, span.start), "end": _bound(db, span.end)}
    yield pa.table({name: pa.nulls(0) for name in types})
    streamed = db.execution_options(stream_results=True, yield_per=CHUNK)
    for rows in streamed.execute(_wrapped(sql, condition), bound).partitions(CHUNK):
        columns = zip(types.items(), zip(*rows, strict=True), strict=True)
        yield pa.table({name: _array(source, name, kind, values) for (name, kind), values in columns})


def _bound(db: sa.Connection, at: datetime) -> Any:
    """Return an instant as the database compares its times with it."""
    if db.dialect.name == "sqlite":
        return at.isoformat()
    return at if db.dialect.name == "postgresql" else at.astimezone(UTC).replace(tzinfo=None)


def _array(source: str, column: str, kind: str, values: Sequence[Any]) -> pa.Array:
    """Turn a chunk of a column into Arrow; DuckDB casts it to ``kind``."""
    import pyarrow as pa

    try:
        if kind == "DOUBLE":
            return pa.array([value if value is None else float(value) for value in values], pa.float64())
        if kind == "VARCHAR":
            return pa.array([value if value is None else _as_text(value) for value in values], pa.string())
        return pa.array(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise SourceUnreadable(source, [f"column `{column}`"], str(error)) from None


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)


def _first_line(error: sa.exc.DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]
