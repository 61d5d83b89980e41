"""What is decided about a table: the question, its windows, what identifies a row, what is learnt from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from headrace.instants import plain, shown
from headrace.lake import edge
from headrace.scaffold import doubts, look
from headrace.scaffold.errors import (
    BadEntity,
    BadName,
    BadTarget,
    BadTime,
    NoSuchColumn,
    NothingLeft,
    NoTime,
    TooLittle,
)
from headrace.scaffold.look import LOOKED, Column
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from headrace.scaffold.doubts import LeftOut

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(weeks=1)
LEAST_WINDOWS, LEAST_ROWS, LEAST_GROUPS = 12, 400, 7
DEALT = 36
"""Days into which rows are dealt that have no time."""
ENOUGH, SAYS, MOST_WINDOWS = 200, 50, 300
"""Rows of a window by which it is judged, and at least; windows that are not too many to live through."""
HELD = 0.15
"""The share of rows that the gate judges by, about."""
CLASSES = 50
"""Texts beyond which a target is no class."""


@dataclass(frozen=True)
class Asked:
    """What a person says: the table at ``data``, and the ``target`` column.

    With a ``database``, an SQLAlchemy URL of that ``dialect``, ``data`` is a query.

    ``time`` says when a question is asked, ``known_after`` how long after it the truth is known; of an
    ``entity`` history is kept. ``not_known`` are columns filled in afterwards, ``keep`` those to be taken
    whatever is doubted, ``formats`` how times are written, by column, and ``zone`` that of times without an
    offset. ``number`` says if a target of numbers tells how much, or names classes; None: as it looks.
    """

    name: str
    data: str
    target: str
    time: str = ""
    known_after: timedelta | None = None
    entity: str = ""
    not_known: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    zone: str = "UTC"
    number: bool | None = None
    database: str = ""
    dialect: str = ""


@dataclass(frozen=True)
class Plan:
    """A pipeline to be written.

    ``keys`` identify a row; where nothing does, rows of the same are ``numbered``, and the last key is that
    number. ``ages`` are times that become the days since, ``classes`` what the target may be, empty for a
    number. ``strong`` are inputs that tell much by themselves, with the share of loss that each saves.
    ``timeless`` and ``nameless`` rows are left out for want of a time or an entity, and ``doubled`` ones are
    copies. ``first`` and ``end`` (UTC) are when a first model is released, and until when it is lived with.
    """

    asked: Asked
    columns: tuple[Column, ...]
    target: Column
    time: Column
    entity: Column | None
    keys: tuple[str, ...]
    numbered: bool
    doubled: int
    classes: tuple[Any, ...]
    loss: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    ages: Mapping[str, str]
    clock: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    strong: Mapping[str, float]
    rows: int
    timeless: int
    nameless: int
    known: int
    known_after: timedelta
    window: timedelta
    holdout: timedelta
    lookback: timedelta
    start: datetime
    first: datetime
    end: datetime

    @property
    def name(self) -> str:
        """What the pipeline is called."""
        return self.asked.name

    @property
    def kind(self) -> str:
        """What is asked: ``binary``, ``classes`` or ``number``."""
        return {0: "number", 2: "binary"}.get(len(self.classes), "classes")

    @property
    def dealt(self) -> bool:
        """Whether its rows have no time, and are dealt into days."""
        return not self.time.given

    @property
    def least(self) -> int:
        """Rows of a window below which it is not judged: half of what windows have, if that says anything."""
        half = int(self.rows / max((self.end - self.start) / self.window, 1) / 2)
        return half if half >= SAYS else ENOUGH

    @property
    def group(self) -> timedelta:
        """Rows of which span are taken to stand and fall together."""
        return min(DAY, self.window)

    def column(self, name: str) -> Column:
        """Return one of its columns."""
        return next(one for one in self.columns if one.name == name)


def checked(name: str, taken: Sequence[str]) -> None:
    """Refuse what no module, table and service can be called.

    Raises:
        BadName: It is so.
    """
    import keyword

    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
        raise BadName(name, "a name is small letters, digits and `_`, and begins with a letter")
    if keyword.iskeyword(name) or name in {"sql", "select", "from", "order", "group", "table", "window"}:
        raise BadName(name, "it is a word of Python or SQL")
    if name in taken:
        raise BadName(name, "there is one of that name")


def plan(con: duckdb.DuckDBPyConnection, asked: Asked) -> Plan:
    """Look at the view ``given``, and decide.

    Raises:
        NoSuchColumn: What was named is not there.
        NoTime, BadTime, BadTarget, BadEntity, TooLittle, NothingLeft: No pipeline can be made of it.
    """
    known = [name for name, *_ in con.sql(f"DESCRIBE {look.GIVEN}").fetchall()]
    given: dict[str, Sequence[str]] = {
        **{"--target": (asked.target,), "--time": (asked.time,), "--entity": (asked.entity,)},
        **{"--not-known": asked.not_known, "--keep": asked.keep, "--time-format": (*asked.formats,)},
    }
    for option, names in given.items():
        for name in filter(None, names):
            if name not in known:
                raise NoSuchColumn(option, name, known)
    columns = look.columns(con, asked.formats, asked.zone, typed=bool(asked.database))
    named = next((one for one in columns if one.given == asked.time), None)
    if not (when := _time(con, columns, named, asked.target)):
        if asked.database:
            raise BadTime(
                "…", "the query returns no column of times; one must say when the question is asked"
            )
        truth = next(one for one in columns if one.given == asked.target)
        start = edge(datetime.now(UTC), DAY) - (DEALT + 1) * DAY
        when = look.dealt(con, columns, truth, start, DEALT)
        columns.append(when)
    whose = next((one for one in columns if asked.entity and one.given == asked.entity), None)
    rows, timeless, nameless, doubled = _cleaned(con, columns, when, whose)
    columns = [look.held(con, one) for one in columns]
    by = {column.given: column for column in columns}
    target, time = by[asked.target], by[when.given]
    entity = by[asked.entity] if asked.entity else None
    classes = _classes(con, target, asked.number)
    counted, low, high = _spans(con, target, time)
    window, start, first, end = _windows(low, high, rows)
    known_after = min(DAY, window) if asked.known_after is None else asked.known_after
    if not when.given:  # of rows without a time, all that is known is known at once
        window, start, first, end = DAY, edge(low, DAY), edge(high, DAY), edge(high, DAY) + DAY
        known_after = timedelta(0)
    holdout = _holdout(con, target, time, window, first, known_after)
    if entity:
        _tells_apart(entity, target, rows)
    names_rows = doubts.names_rows([c for c in columns if c is not target], rows)
    keys, numbered = _keys(con, names_rows, entity, time)
    apart = {target.name, time.name, *((names_rows.name,) if names_rows else ())}
    later = [by[name] for name in asked.not_known]
    left = [doubts.LeftOut(one.name, "it is only known afterwards, as you say") for one in later]
    if names_rows:
        left.append(doubts.LeftOut(names_rows.name, "it names single rows, and is the key"))
    may = [one for one in columns if one.name not in apart and one not in later]
    found, strong = doubts.doubts(con, may, target, time, "classes" if classes else "number", rows, entity)
    kept = {by[name].name for name in asked.keep}
    left += [one for one in found if one.column not in kept]
    out = {one.column for one in left}
    inputs = [one for one in may if one.name not in out]
    texts = tuple(one.name for one in inputs if one.kind == "text")
    numbers = tuple(one.name for one in inputs if one.kind in ("number", "truth"))
    taken = {one.name.lower() for one in columns}
    ages = {_free(f"days_since_{one.name}", taken): one.name for one in inputs if one.kind == "time"}
    if not (texts or numbers or ages or entity or when.given):  # what was before is learnt from, too
        raise NothingLeft([f"`{one.column}`: {one.why}" for one in left])
    clock = _clock(con, time, low, high) if time.given else []
    return Plan(
        asked=asked,
        columns=tuple(one for one in columns if one.type != "BLOB"),
        target=target,
        time=time,
        entity=entity,
        keys=keys,
        numbered=numbered,
        doubled=doubled,
        classes=classes,
        loss="" if classes else _loss(con, target),
        texts=texts,
        numbers=numbers,
        ages=ages,
        clock=tuple(part for part in clock if part not in taken),
        left_out=tuple(left),
        strong={one: saved for one, saved in strong.items() if one not in out},
        rows=rows,
        timeless=timeless,
        nameless=nameless,
        known=counted,
        known_after=known_after,
        window=window,
        holdout=holdout,
        lookback=_lookback(con, entity, window, rows, low, high),
        start=start,
        first=first,
        end=end,
    )


def times(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of ``given`` that may say when: typed so, or texts of which each is one."""
    return [one.given for one in look.columns(con, {}, "UTC") if one.kind == "time" and _filled(con, one)]


def _filled(con: duckdb.DuckDBPyConnection, column: Column) -> bool:
    return bool(con.sql(f"SELECT count({quoted(column.name)}) FROM {LOOKED}").fetchall()[0][0])


def _time(
    con: duckdb.DuckDBPyConnection, columns: Sequence[Column], named: Column | None, target: str
) -> Column | None:
    """Return the column of times, if there is one."""
    found = [one for one in columns if one.kind == "time" and one.given != target and _filled(con, one)]
    if named is None:
        if len(found) > 1:
            raise NoTime([one.given for one in found])
        if not found:
            return None
        named = found[0]
    if named.kind != "time":
        raise BadTime(
            named.given,
            f"it holds {named.type}; a text is given its form, as strftime has it: "
            f"`--time-format '{named.given}=%d.%m.%Y %H:%M'`",
        )
    if named.rival:
        either = f"`{named.written}` or `{named.rival}`"
        raise BadTime(named.given, f"they may be written as {either}: say which with `--time-format`")
    if not _filled(con, named):
        raise BadTime(named.given, "it is empty")
    return named


def _cleaned(
    con: duckdb.DuckDBPyConnection, columns: Sequence[Column], time: Column, entity: Column | None
) -> tuple[int, int, int, int]:
    """Leave out what has no time or no entity, and copies; return how many are left, and were such."""
    at = quoted(time.name)
    counts = [con.sql(f"SELECT count(*) FROM {LOOKED}").fetchall()[0][0]]
    for unfit in (
        f"{at} IS NULL OR NOT isfinite({at})",
        f"{quoted(entity.name)} IS NULL" if entity else "false",
    ):
        con.execute(f"DELETE FROM {LOOKED} WHERE {unfit}")
        counts.append(con.sql(f"SELECT count(*) FROM {LOOKED}").fetchall()[0][0])
    names = quoted(*(one.name for one in columns))
    con.execute(f"CREATE OR REPLACE TABLE {LOOKED} AS SELECT DISTINCT {names} FROM {LOOKED}")
    whole, timed, named = counts
    [(rows,)] = con.sql(f"SELECT count(*) FROM {LOOKED}").fetchall()
    return rows, whole - timed, timed - named, named - rows


def _classes(con: duckdb.DuckDBPyConnection, target: Column, number: bool | None) -> tuple[Any, ...]:
    """Return what the target may be, the rarer of two first; nothing if it is a number.

    Raises:
        BadTarget: It is neither.
    """
    name = target.given
    if not target.filled:
        raise BadTarget(name, "it is empty")
    if target.distinct == 1:
        raise BadTarget(name, "it is the same in every row")
    if target.kind == "truth":
        return (True, False)
    if target.kind == "text":
        if target.distinct > CLASSES:
            raise BadTarget(name, f"it is text of {target.distinct:,} kinds, and {CLASSES} may be told apart")
        if len({value.strip().lower() for value in target.values}) < target.distinct:
            raise BadTarget(
                name, "some of its values differ in spaces or capitals alone: make them one first"
            )
        return target.values[::-1] if target.distinct == 2 else tuple(sorted(target.values))
    if target.kind != "number":
        raise BadTarget(name, f"it holds {target.type}, and a target is a number, a text or true or false")
    if target.distinct == 2 and not number:
        return (_plain(target.high), _plain(target.low))
    if number is False:
        if not target.whole or target.distinct > CLASSES:
            raise BadTarget(name, f"classes are texts or whole numbers, of at most {CLASSES} kinds")
        of = quoted(target.name)
        found = con.sql(f"SELECT DISTINCT {of} FROM {LOOKED} WHERE {of} IS NOT NULL ORDER BY 1").fetchall()
        return tuple(int(value) for (value,) in found)
    return ()


def _plain(value: Any) -> Any:
    return int(value) if float(value).is_integer() else float(value)


def _loss(con: duckdb.DuckDBPyConnection, target: Column) -> str:
    """Return by what an error is counted: squared, unless a few huge values would decide all."""
    [(tails,)] = con.sql(f"SELECT kurtosis({quoted(target.name)}::DOUBLE) FROM {LOOKED}").fetchall()
    return "absolute" if tails is not None and tails > 20 else "squared"


def _spans(con: duckdb.DuckDBPyConnection, target: Column, time: Column) -> tuple[int, datetime, datetime]:
    """Return how many rows have a truth, and when the first and the last rows are (UTC)."""
    at = quoted(time.name)
    [(known, low, high)] = con.sql(
        f"SELECT count({quoted(target.name)}), min({at}), max({at}) FROM {LOOKED}"
    ).fetchall()
    if known < LEAST_ROWS:
        raise TooLittle(
            f"{known:,} rows have a truth, and {LEAST_ROWS} are needed to learn, to choose and to judge."
        )
    return known, plain(low.astimezone(UTC)), plain(high.astimezone(UTC))


def _windows(low: datetime, high: datetime, rows: int) -> tuple[timedelta, datetime, datetime, datetime]:
    """Return how long a window is, where the first begins, when to release, and until when to live.

    Raises:
        TooLittle: The span is too short for windows of an hour.
    """
    whole = [every for every in (4 * WEEK, WEEK, DAY, HOUR) if high - low >= LEAST_WINDOWS * every]
    if not whole:
        raise TooLittle(
            f"All rows are from {shown(low)} to {shown(high)} UTC: less than {LEAST_WINDOWS} hours."
        )
    weekly = rows * (WEEK / (high - low))
    window = WEEK if whole[0] > WEEK and weekly >= ENOUGH and high - low <= MOST_WINDOWS * WEEK else whole[0]
    start, end = edge(low, window), edge(high + timedelta(microseconds=1), window)
    lived = max(2, min(4, (end - start) // window // 10))
    return window, start, end - lived * window, end


def _holdout(
    con: duckdb.DuckDBPyConnection,
    target: Column,
    time: Column,
    window: timedelta,
    first: datetime,
    known_after: timedelta,
) -> timedelta:
    """Return how much before ``first`` is held out: enough rows and days whose truth is known by then.

    Raises:
        TooLittle: That would leave too little to learn from.
    """
    at, group = quoted(time.name), "hour" if window < DAY else "day"
    found = con.execute(
        f"SELECT ceil(epoch($first - {at}) / {window.total_seconds()})::BIGINT AS back, count(*), "
        f"count(DISTINCT date_trunc('{group}', {at})) FROM {LOOKED} WHERE {quoted(target.name)} IS NOT NULL "
        f"AND {at} < $first AND {at} + INTERVAL ({known_after.total_seconds()}) SECOND < $first "
        "GROUP BY ALL ORDER BY back",
        {"first": first},
    ).fetchall()
    whole = sum(count for _, count, _ in found)
    rows = groups = 0
    for back, count, days in found:
        rows, groups = rows + count, groups + days
        if rows >= max(HELD * whole, 120) and groups >= LEAST_GROUPS:
            if whole - 2 * rows < 120:
                break
            return back * window
    raise TooLittle(
        f"By {shown(first)} UTC the truth of {whole:,} rows is known: too few to learn from some, to choose "
        f"by others, and to judge by those of {LEAST_GROUPS} {group}s more."
    )


def _tells_apart(entity: Column, target: Column, rows: int) -> None:
    if entity is target:
        raise BadEntity(entity.given, "it is what is predicted")
    if entity.kind != "text" and not entity.whole:
        raise BadEntity(
            entity.given, f"it holds {entity.type}, and an entity is named by text or whole numbers"
        )
    if entity.distinct < 2 or entity.distinct * 2 > rows:
        raise BadEntity(
            entity.given, f"{entity.distinct:,} of them in {rows:,} rows have no history to speak of"
        )


def _keys(
    con: duckdb.DuckDBPyConnection, names_rows: Column | None, entity: Column | None, time: Column
) -> tuple[tuple[str, ...], bool]:
    """Return what identifies a row, and whether rows that this does not tell apart must be numbered."""
    if names_rows:
        return (names_rows.name, *((entity.name,) if entity and entity is not names_rows else ())), False
    names = (*((entity.name,) if entity else ()), time.name)
    [(rows, apart)] = con.sql(f"SELECT count(*), count(DISTINCT ({quoted(*names)})) FROM {LOOKED}").fetchall()
    return (*names, *(["nth"] if apart < rows else [])), apart < rows


def _clock(con: duckdb.DuckDBPyConnection, time: Column, low: datetime, high: datetime) -> list[str]:
    """Return which parts of the time of day, week and year are worth knowing."""
    at = quoted(time.name)
    [(hours, weekdays)] = con.sql(
        f"SELECT count(DISTINCT hour({at})), count(DISTINCT isodow({at})) FROM {LOOKED}"
    ).fetchall()
    parts = {"hour": hours > 1, "weekday": weekdays > 1, "month": high - low > timedelta(days=400)}
    return [name for name, told in parts.items() if told]


def _lookback(
    con: duckdb.DuckDBPyConnection,
    entity: Column | None,
    window: timedelta,
    rows: int,
    low: datetime,
    high: datetime,
) -> timedelta:
    """Return how far back history reaches: some five rows of an entity, from four to thirteen windows."""
    each = rows / entity.distinct / max((high - low) / window, 1) if entity else rows
    return max(4, min(13, round(5 / each))) * window


def _free(name: str, taken: set[str]) -> str:
    while name.lower() in taken:
        name += "_"
    return name
