"""What a table holds: its columns, how each is to be read, and what is in it; read out of core by DuckDB."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headrace.declaration import ITS_OWN
from headrace.scaffold.errors import BadColumn, BadTime
from headrace.sources.rows import INSTANT, carried, family
from headrace.sql import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    import duckdb

GIVEN, LOOKED = "given", "looked"
"""The table as it comes, and as it will land."""
NUMBER = r"[+-]?\d+(\.\d+)?"
WRITTEN = {
    # how a number may be written, beside the usual way ─▶ how it is read
    rf"[+-]?\d{{1,3}}(,\d{{3}})+(\.\d+)?|{NUMBER}": "replace({}, ',', '')::DOUBLE",
    r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?": "replace(replace({}, '.', ''), ',', '.')::DOUBLE",
}
FORMATS = tuple(
    f"{day}{at}"
    for day in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y%m%d", "%b %d %Y", "%d %b %Y")
    for at in ("", " %H:%M", " %H:%M:%S", "T%H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
)
"""Ways of writing a time that are not ISO's, and that a text is tried by."""


@dataclass(frozen=True)
class Column:
    """A column of the table, under the ``name`` it will have; ``sql`` makes it of the column as it comes.

    ``type`` is DuckDB's, ``filled`` counts its values, ``distinct`` the different ones. ``low`` and ``high``
    are their ends, where they have an order; ``values`` those of texts, if they are few, the most frequent
    first. ``written`` is how its times are written, if not the usual way, and ``rival`` how else they may be.
    """

    name: str
    given: str
    sql: str
    type: str
    filled: int
    distinct: int
    low: Any = None
    high: Any = None
    values: tuple[str, ...] = ()
    written: str = ""
    rival: str = ""

    @property
    def note(self) -> str:
        """What there is to say of how it is read."""
        if self.rival:
            return f"read as `{self.written}`, though `{self.rival}` would do: see `--time-format`"
        if self.written == "numbers":
            return "read as numbers"
        return f"read as `{self.written}`" if self.written else ""

    @property
    def kind(self) -> str:
        """What it holds: ``number``, ``text``, ``time``, ``truth`` (true or false) or ``other``."""
        if self.type == "BOOLEAN":
            return "truth"
        if self.type == "VARCHAR":
            return "text"
        found = family(self.type)
        return found if found in ("number", "time") else "other"

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers alone."""
        return (
            self.kind == "number" and re.fullmatch(r"U?\w*INT\w*|DECIMAL\(\d+, ?0\)", self.type) is not None
        )


FEW = 50
"""Values of a text that are told one by one."""


def columns(
    con: duckdb.DuckDBPyConnection, formats: Mapping[str, str], zone: str, *, typed: bool = False
) -> list[Column]:
    """Make the table ``looked`` of ``given``, with names and types that everything downstream takes.

    What is in the columns :func:`held` says.

    Args:
        con: Where both are.
        formats: How the times of columns are written, by column as it comes.
        zone: Of which time zone times without an offset are.
        typed: Whether a database has named and typed them, so that nothing is to be read otherwise.
    """
    described = con.sql(f"DESCRIBE {GIVEN}").fetchall()
    kinds = dict(zip((name for name, *_ in described), con.table(GIVEN).types, strict=True))
    taken: set[str] = set()
    found = []
    for given, type_ in kinds.items():
        name = named(given, taken)
        if typed and name != given:
            raise BadColumn(given, name)
        taken.add(name.lower())
        read = _read(con, given, str(type_), formats.get(given, ""), zone, typed=typed)
        sql = read.sql or f"{quoted(given)}::{carried(type_)}"
        found.append(Column(name, given, sql, "", 0, 0, written=read.written, rival=read.rival))
    select = ", ".join(f"{one.sql} AS {quoted(one.name)}" for one in found)
    con.execute(f"CREATE OR REPLACE TABLE {LOOKED} AS SELECT {select} FROM {GIVEN}")
    types = {name: str(kind) for name, kind, *_ in con.sql(f"DESCRIBE {LOOKED}").fetchall()}
    return [replace(one, type=types[one.name]) for one in found]


def dealt(
    con: duckdb.DuckDBPyConnection, columns: list[Column], target: Column, start: datetime, days: int
) -> Column:
    """Add to ``looked`` a column of times (UTC) for rows that have none, and return it.

    Rows are dealt into ``days`` from ``start`` on by what they hold, so that the same row always has the same
    time; those without a truth come last.
    """
    text = ", ".join(quoted(one.given) for one in columns if one is not target and one.kind != "other")
    number = f"('0x' || substr(md5(concat_ws('|', {text})), 1, 12))::BIGINT"
    last = f"if({quoted(target.given)} IS NULL, {(days - 1) * 86_400}, 0)"
    sql = f"TIMESTAMPTZ '{start:%Y-%m-%d}' + INTERVAL 1 SECOND * greatest({number} % {days * 86_400}, {last})"
    name = named("dealt_at", {one.name.lower() for one in columns})
    each = ", ".join(f"{one.sql} AS {quoted(one.name)}" for one in columns)
    con.execute(f"CREATE OR REPLACE TABLE {LOOKED} AS SELECT {each}, {sql} AS {name} FROM {GIVEN}")
    return Column(name, "", sql, INSTANT, 0, 0)


def named(given: str, taken: set[str]) -> str:
    """Return a name for a column that neither SQL, Delta nor a model's file stumbles over.

    >>> [named(one, set()) for one in ("Unit Price (€)", "größe", "2nd", "label", "%")]
    ['Unit_Price', 'größe', 'c2nd', 'label_given', 'column']
    """
    plain = re.sub(r"\W+", "_", given).strip("_") or "column"
    if plain[0].isdigit():
        plain = f"c{plain}"
    if plain.lower() in {*ITS_OWN, "event_timestamp"}:
        plain = f"{plain}_given"
    name, number = plain, 2
    while name.lower() in taken:
        name, number = f"{plain}_{number}", number + 1
    return name


@dataclass(frozen=True)
class _Reading:
    """How a column is read, as SQL, if not as it is; how its values are written, and how else they may be."""

    sql: str = ""
    written: str = ""
    rival: str = ""


def _read(
    con: duckdb.DuckDBPyConnection, given: str, type_: str, how: str, zone: str, *, typed: bool
) -> _Reading:
    column = quoted(given)
    if how:
        text = f"{column}::VARCHAR"
        tried = f"count({column}) = count(try_strptime({text}, {literal(how)}))"
        [(reads,)] = con.sql(f"SELECT {tried} FROM {GIVEN}").fetchall()
        if not reads:
            raise BadTime(given, f"not all are written as `{how}`, as strftime has it")
        return _Reading(_instant(f"strptime({text}, {literal(how)})", zone), how)
    if type_ == "VARCHAR" and not typed:
        return _read_text(con, column, zone)
    if type_ == "DATE" or re.fullmatch(r"TIMESTAMP(_\w+)?", type_):
        return _Reading(_instant(column, zone, cast=True))
    return _Reading(column if type_ == INSTANT else "")


def _read_text(con: duckdb.DuckDBPyConnection, column: str, zone: str) -> _Reading:
    """Return how a text is to be read: as times, if each is one, as numbers, or as it is."""
    known = f"FROM {GIVEN} WHERE {column} IS NOT NULL"
    some = f"(SELECT {column} {known} LIMIT 100)"
    (likely,) = con.sql(f"SELECT {_each_reads(column, FORMATS)} FROM {some}").fetchall()
    forms = [form for form, fits in zip(FORMATS, likely, strict=True) if fits]
    matched = f"coalesce(bool_and(regexp_full_match(trim({column}), {{}})), false)"
    numbers = [matched.format(literal(form)) for form in WRITTEN]
    iso = f"count(*) > 0 AND count(TRY_CAST({column} AS TIMESTAMP)) = count(*)"
    asked = f"SELECT {iso}, [{', '.join(numbers)}], [{_each_reads(column, forms)}] {known}"
    [(is_iso, are_numbers, are_times)] = con.sql(asked).fetchall()
    if is_iso:
        return _Reading(_instant(column, zone, cast=True))
    if fit := [form for form, fits in zip(forms, are_times, strict=True) if fits]:
        sql = _instant(f"strptime({column}, {literal(fit[0])})", zone)
        return _Reading(sql, fit[0], fit[1] if len(fit) > 1 else "")
    if fit := [how for how, fits in zip(WRITTEN.values(), are_numbers, strict=True) if fits]:
        return _Reading(fit[0].format(f"trim({column})"), "numbers")
    return _Reading()


def _each_reads(column: str, forms: Iterable[str]) -> str:
    each = (f"count(*) > 0 AND count(try_strptime({column}, {literal(form)})) = count(*)" for form in forms)
    return ", ".join(each)


def _instant(sql: str, zone: str, *, cast: bool = False) -> str:
    """Return how a time without an offset becomes an instant; sources are read in UTC."""
    if cast and zone == "UTC":
        return f"{sql}::TIMESTAMPTZ"
    sql = f"{sql}::TIMESTAMP" if cast else sql
    return f"timezone({literal(zone)}, {sql})"


def held(con: duckdb.DuckDBPyConnection, column: Column) -> Column:
    """Return a column with what is in it."""
    of = quoted(column.name)
    if column.kind == "other":
        [(filled,)] = con.sql(f"SELECT count({of}) FROM {LOOKED}").fetchall()
        return replace(column, filled=filled, distinct=filled)
    finite = f"isfinite({of})" if column.kind == "time" or column.type in ("DOUBLE", "FLOAT") else "true"
    ordered = column.kind in ("number", "time")
    ends = f"min({of}) FILTER ({finite}), max({of}) FILTER ({finite})" if ordered else "NULL, NULL"
    [(filled, distinct, low, high)] = con.sql(
        f"SELECT count({of}), count(DISTINCT {of}), {ends} FROM {LOOKED}"
    ).fetchall()
    values: tuple[str, ...] = ()
    if column.kind == "text" and distinct <= FEW:
        each = f"SELECT {of} FROM {LOOKED} WHERE {of} IS NOT NULL GROUP BY ALL ORDER BY count(*) DESC, {of}"
        values = tuple(value for (value,) in con.sql(each).fetchall())
    return replace(column, filled=filled, distinct=distinct, low=low, high=high, values=values)
