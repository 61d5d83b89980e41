"""The queries of a pipeline: what its sources make of the table, and what is asked."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from headrace.lake import MONDAY
from headrace.scaffold.code import broken, identifier, interval, wrapped
from headrace.scaffold.features import KNOWN_AT
from headrace.sql import quoted

if TYPE_CHECKING:
    from headrace.scaffold.look import Column
    from headrace.scaffold.plan import Plan


def known_at_once(plan: Plan) -> list[Column]:
    """Return the columns of a row, known when the question is asked; first the one that says when."""
    later = {one.column for one in plan.left_out if one.serious}
    later |= {one.name for one in plan.columns if one.given in plan.asked.not_known}
    chosen = [one for one in plan.columns if one is not plan.target and one.name not in later]
    return sorted(chosen, key=lambda one: one is not plan.time)


def known_later(plan: Plan) -> list[Column]:
    """Return the columns of a truth: the keys, and what came true."""
    keys = [one for one in plan.columns if one.name in plan.keys]
    own = [plan.time] if plan.dealt and plan.time not in keys else []
    return [*own, *keys, plan.target]


def rows(plan: Plan) -> str:
    """Return what makes rows of the table."""
    return _select(plan, known_at_once(plan))


def truth(plan: Plan) -> str:
    """Return what makes truths of the table, with the instant at which each is known."""
    known = f"{identifier(plan.target.given)} IS NOT NULL"
    return _select(plan, known_later(plan), [f"{_known_at(plan)} AS {KNOWN_AT}"], [known])


def _select(
    plan: Plan, chosen: list[Column], more: list[str] | None = None, only: list[str] | None = None
) -> str:
    lines = [_made(plan, one) for one in chosen]
    if plan.numbered:
        others = [one for one in plan.columns if one is not plan.target and one.name not in plan.keys]
        order = identifier(*(one.given for one in others if one.kind != "other")) or "1"
        keys = [one for one in plan.columns if one.name in plan.keys]
        by = ", ".join(_at(plan) if one is plan.time else _of(plan, one) for one in keys)
        lines.append(f"row_number() OVER (PARTITION BY {by} ORDER BY {order}) AS nth")
    lines += more or []
    where = [f"{_at(plan)} IS NOT NULL" if plan.asked.database else f"isfinite({_at(plan)})"] * bool(
        plan.timeless
    )
    if plan.nameless and plan.entity:
        where.append(f"{identifier(plan.entity.given)} IS NOT NULL")
    where += only or []
    listed = textwrap.indent(",\n".join(map(broken, lines)), " " * 8)
    kept = f" WHERE {' AND '.join(where)}" if where else ""
    given = "({GIVEN}) given" if plan.asked.database else "given"
    return f"    SELECT{' DISTINCT' * bool(plan.doubled)}\n{listed}\n    FROM {given}{kept}"


def _at(plan: Plan) -> str:
    """Return the time as the query may name it: no column of the table is called as what is dealt."""
    return plan.time.name if plan.dealt else _of(plan, plan.time)


def _of(plan: Plan, column: Column) -> str:
    """Return what a column is to the table's reader: a database has typed and named it."""
    return identifier(column.given) if plan.asked.database else column.sql


def _known_at(plan: Plan) -> str:
    after = plan.known_after
    if not plan.asked.database:
        return f"{_at(plan)} + {interval(after)}"
    seconds = int(after.total_seconds())
    if plan.asked.dialect == "sqlite":
        return f"datetime({_at(plan)}, '+{seconds} seconds')"
    return f"{_at(plan)} + INTERVAL '{seconds} seconds'"


def _made(plan: Plan, column: Column) -> str:
    """Return how a column is made of the table's, with its type, which a later text file may leave open."""
    sql, name = _of(plan, column), identifier(column.name)
    if sql.startswith(f"{quoted(column.given)}::"):
        sql = f"{identifier(column.given)}::{_type(plan, column)}"
    return sql if sql == name else f"{sql} AS {name}"


def _type(plan: Plan, column: Column) -> str:
    """Return the type in which a column lands: whole numbers may become fractions in a later file."""
    if column is plan.target:
        whole = plan.classes and all(type(one) is int for one in plan.classes)
        return "DOUBLE" if plan.kind == "number" else "BIGINT" if whole else column.type
    return "DOUBLE" if column.whole and column.name in plan.numbers else column.type


def spine(plan: Plan) -> str:
    """Return what is asked: keys, inputs that come with the question, and the window it is asked in."""
    at, seconds = identifier(plan.time.name), int(plan.window.total_seconds())
    origin = int(MONDAY.timestamp()) % seconds
    keys = [*plan.keys, *([plan.entity.name] if plan.entity else [])]
    lines = wrapped(identifier(name) for name in dict.fromkeys([*keys, *plan.texts, *plan.numbers]))
    for name, column in plan.ages.items():
        lines.append(f"(epoch({at}) - epoch({identifier(column)})) / 86400 AS {identifier(name)},")
    functions = {"hour": "hour", "weekday": "isodow", "month": "month"}
    lines += [f"{functions[part]}({at}) AS {part}," for part in plan.clock]
    lines.append(f"{at} AS event_timestamp,")
    begun = f"floor((epoch({at}) - {origin}) / {seconds}) * {seconds} + {origin}"
    lines.append(f"({begun})::BIGINT AS {plan.name}_window")
    listed = textwrap.indent("\n".join(lines), " " * 15).lstrip()
    return f"        SELECT {listed}\n        FROM {plan.name}"
