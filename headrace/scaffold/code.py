"""Values, spans of time and names as Python and SQL have them, in lines that are not too long."""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from headrace.sql import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

UNITS = {"week": timedelta(weeks=1), "day": timedelta(days=1), "hour": timedelta(hours=1)}


def identifier(*names: str) -> str:
    """Return names as SQL identifiers, quoted where they must be.

    >>> identifier("price", "Unit", "select")
    'price, "Unit", "select"'
    """
    return ", ".join(name if _plain(name) else quoted(name) for name in names)


def _plain(name: str) -> bool:
    return re.fullmatch(r"[a-z_][a-z0-9_]*", name) is not None and name not in _words()


@cache
def _words() -> frozenset[str]:
    import duckdb

    words = duckdb.sql("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'")
    return frozenset(word for (word,) in words.fetchall())


def constant(value: Any) -> str:
    """Return a text, a number or a boolean as an SQL literal."""
    return literal(value) if isinstance(value, str) else str(value).lower()


def python(value: Any) -> str:
    """Return a value as Python code, texts in double quotes where that needs no escape."""
    if isinstance(value, str) and not {'"', "\\"} & {*value} and value.isprintable():
        return f'"{value}"'
    return repr(value)


def block(text: str) -> str:
    """Return a text as it is written between two times three double quotes."""
    return re.sub(r'"(?="|$)', r'\\"', text.replace("\\", "\\\\"))


def sequence(values: Iterable[Any], ends: str, indent: int = 0) -> str:
    """Return a tuple (``ends`` is ``()``) or a list (``[]``) as Python code, whose line is indented so far.

    >>> sequence(["a", 1], "()"), sequence(["a"], "()"), sequence([], "[]")
    ('("a", 1)', '("a",)', '[]')
    """
    items = [python(value) for value in values]
    return _within(items, ends, indent, comma=ends == "()" and len(items) == 1)


def mapping(values: Mapping[str, Any], indent: int = 0) -> str:
    """Return a dictionary as Python code."""
    return _within([f"{python(name)}: {python(value)}" for name, value in values.items()], "{}", indent)


def _within(items: list[str], ends: str, indent: int, *, comma: bool = False) -> str:
    one = f"{ends[0]}{', '.join(items)}{',' * comma}{ends[1]}"
    if len(one) + indent < 80:
        return one
    inner = textwrap.indent("\n".join(wrapped(items, 100 - indent)), " " * (indent + 4))
    return f"{ends[0]}\n{inner}\n{' ' * indent}{ends[1]}"


def wrapped(items: Iterable[str], width: int = 90) -> list[str]:
    """Return lines of items, each with a comma after it."""
    lines, line = [], ""
    for item in items:
        part = f"{item},"
        if line and len(line) + 1 + len(part) > width:
            lines.append(line)
            line = part
        else:
            line = f"{line} {part}" if line else part
    return [*lines, line]


def broken(sql: str, width: int = 100) -> str:
    """Return a line of SQL as several, none within quotes.

    >>> print(broken('greatest("a b", 1) AS name', 20))
    greatest("a b", 1)
        AS name
    """
    lines, line = [], ""
    for word in re.findall(r"""(?:"(?:[^"]|"")*"|'(?:[^']|'')*'|[^\s"'])+""", sql):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def phrase(span: timedelta) -> str:
    """Return how people say a span of time.

    >>> phrase(timedelta(days=14)), phrase(timedelta(days=1)), phrase(timedelta(minutes=90))
    ('2 weeks', 'one day', '1.5 hours')
    """
    for name, unit in UNITS.items():
        if span and not span % unit:
            count = span // unit
            return f"{count} {name}s" if count > 1 else f"one {name}"
    return f"{span / UNITS['hour']:g} hours"


def timespan(span: timedelta) -> str:
    """Return a span of time as Python code.

    >>> timespan(timedelta(days=14)), timespan(timedelta(minutes=90))
    ('timedelta(weeks=2)', 'timedelta(seconds=5400)')
    """
    for name, unit in UNITS.items():
        if not span % unit:
            return f"timedelta({name}s={span // unit})"
    return f"timedelta(seconds={span.total_seconds():g})"


def interval(span: timedelta) -> str:
    """Return a span of time as an SQL interval."""
    for name, unit in UNITS.items():
        if span and not span % unit:
            return f"INTERVAL {span // unit} {name.upper()}"
    return f"INTERVAL {int(span.total_seconds())} SECOND"


def instant(at: datetime) -> str:
    """Return an instant (UTC) as Python code; it is a whole hour."""
    parts = [at.year, at.month, at.day, *([at.hour] if at.hour else [])]
    return f"datetime({', '.join(map(str, parts))}, tzinfo=UTC)"
