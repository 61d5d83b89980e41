"""What every origin does with rows: keep those of a span, find types that hold them, say what is wrong."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.sources.errors import MissingColumns, SourceUnreadable
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import duckdb
    import pyarrow as pa
    from duckdb.sqltypes import DuckDBPyType

    from headrace.lake import Window

INSTANT = "TIMESTAMP WITH TIME ZONE"


@dataclass(frozen=True)
class Part:
    """Rows that came with one schema, as the table ``relation``.

    ``lacking`` names the columns that the input has not, though most or other
    files have: they are null. ``found`` names the columns that it has.
    """

    relation: str
    lacking: tuple[str, ...]
    found: tuple[str, ...]


CARRIED = {
    **{"utinyint": "SMALLINT", "usmallint": "INTEGER", "uinteger": "BIGINT", "ubigint": "DECIMAL(20, 0)"},
    **dict.fromkeys(("hugeint", "uhugeint", "bignum"), "DECIMAL(38, 0)"),
    **dict.fromkeys(("timestamp_s", "timestamp_ms", "timestamp_ns"), "TIMESTAMP"),
    **dict.fromkeys(
        ("time", "time_ns", "time with time zone", "interval", "uuid", "enum", "bit", "union"), "VARCHAR"
    ),
}
"""Delta knows neither these types nor anything below a microsecond."""


def carried(kind: DuckDBPyType) -> str:
    """Return the type in which the lake keeps values of ``kind``."""
    inner = [(quoted(name), carried(child)) for name, child in _inner(kind)]
    match kind.id:
        case "list" | "array":
            return f"{inner[0][1]}[]"
        case "map":
            return f"MAP({inner[0][1]}, {inner[1][1]})"
        case "struct":
            return f"STRUCT({', '.join(' '.join(field) for field in inner)})"
    return "VARCHAR" if str(kind) == "JSON" else CARRIED.get(kind.id, str(kind))


def _inner(kind: DuckDBPyType) -> list[tuple[str, Any]]:
    if kind.id not in ("list", "array", "map", "struct"):
        return []
    return kind.children[:1] if kind.id == "array" else kind.children  # the other is its length


def family(kind: str) -> str:
    """Return what types share that hold each other's values: numbers, times, or the type itself."""
    if re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)", kind):
        return "number"
    return "time" if re.fullmatch(r"DATE|TIMESTAMP(_\w+| WITH TIME ZONE)?", kind) else kind


def widest(con: duckdb.DuckDBPyConnection, kinds: Iterable[str]) -> str:
    """Return the type that holds the values of all, all of one family; text where there is none."""
    each = sorted(set(kinds)) or ["VARCHAR"]
    union = con.sql(" UNION ALL ".join(f"SELECT NULL::{kind} AS one" for kind in each))
    return str(union.types[0])


def pour(
    con: duckdb.DuckDBPyConnection,
    source: str,
    batches: Iterable[pa.Table],
    declared: Mapping[str, str],
    time: str,
    span: Window,
) -> tuple[str, ...]:
    """Make ``part0`` of the batches' rows in ``span`` and return its columns.

    A column that is not ``declared`` has the type of its values. Until some come
    it is text; it widens from whole numbers to fractions.
    """
    import pyarrow as pa

    held: dict[str, str] = {}
    for batch in batches:
        con.register("headrace_batch", batch)
        nulls = {field.name for field in batch.schema if pa.types.is_null(field.type)}
        raw = {c: "" if c in nulls else kind for c, kind in described(con, "headrace_batch").items()}
        types = {c: declared.get(c) or re.sub(r"^ENUM\(.*", "VARCHAR", kind) for c, kind in raw.items()}
        if time not in types:
            raise MissingColumns(source, [time], list(types))
        must_be_instant(source, time, raw[time])
        if not held:
            held = types | {time: INSTANT}
            columns = ", ".join(f"{quoted(c)} {kind or 'VARCHAR'}" for c, kind in held.items())
            con.execute(f"CREATE OR REPLACE TABLE part0 ({columns})")
        if odd := sorted(types.keys() ^ held.keys()):
            raise SourceUnreadable(source, [", ".join(held)], f"a later batch differs in {', '.join(odd)}")
        for column in types.keys() - {time}:
            wanted = {kind for kind in (types[column], held[column]) if kind}
            if len({family(kind) for kind in wanted}) > 1:
                raise SourceUnreadable(
                    source, [f"column `{column}`"], f"it holds {' and '.join(sorted(wanted))}"
                )
            if wanted and (kind := widest(con, wanted)) != held[column]:
                con.execute(f"ALTER TABLE part0 ALTER {quoted(column)} TYPE {kind}")
                held[column] = kind
        casts = [
            f"{'NULL' if c in nulls else quoted(c)}::{kind or 'VARCHAR'} AS {quoted(c)}"
            for c, kind in held.items()
        ]
        rows = f"(SELECT {', '.join(casts)} FROM headrace_batch)"
        con.execute(f"INSERT INTO part0 FROM {rows} WHERE {within(span, quoted(time))}")
        con.unregister("headrace_batch")
    return tuple(held)


def must_be_instant(source: str, time: str, kind: str) -> None:
    """Refuse a type that cannot be read as an instant."""
    if kind not in ("", "VARCHAR") and family(kind) != "time":
        reason = f"it is {kind}, and says when a row became known: it must be a timestamp, a date or ISO text"
        raise SourceUnreadable(source, [f"column `{time}`"], reason)


def within(span: Window, column: str) -> str:
    """Return the SQL condition for rows that are read: in ``span``, or without a time (infinity is none)."""
    return f"({span.predicate(column)}) OR NOT coalesce(isfinite({column}), false)"


def create_view(con: duckdb.DuckDBPyConnection, name: str, query: str) -> None:
    """Let ``name`` stand for ``query`` on this connection."""
    con.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS {query}")


def described(con: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Return the columns of a relation with their types."""
    rows = con.sql(f"FROM {relation}")
    return dict(zip(rows.columns, map(str, rows.types), strict=True))


@contextmanager
def explained(source: str, places: Sequence[str]) -> Iterator[None]:
    """Turn what DuckDB says about input that it cannot read into the source's error."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        from_store = type(error) is duckdb.Error  # what the library of an object store raised
        input_is_bad = isinstance(error, duckdb.ProgrammingError | duckdb.DataError | duckdb.IOException)
        if not (from_store or input_is_bad):
            raise
        told = str(error)
        named = re.search(r"^\s*file = (.+)$", told, re.MULTILINE)
        reason = re.split(r"\n\n|\n *(?:Possible|Candidate|If this|Try)", told)[0]
        failed = from_store or isinstance(error, duckdb.IOException)
        raise SourceUnreadable(source, [named[1]] if named else places, reason, failed) from None
