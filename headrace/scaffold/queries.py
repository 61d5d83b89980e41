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


def rows(plan: Plan) -> str:
    """Return what makes rows of the table: all that is known when the question is asked."""
    later = {one.column for one in plan.left_out if one.serious}
    later |= {one.name for one in plan.columns if one.given in plan.asked.not_known}
    chosen = [one for one in plan.columns if one is not plan.target and one.name not in later]
    return _select(plan, sorted(chosen, key=lambda one: one is not plan.time))


def truth(plan: Plan) -> str:
    """Return what makes truths of the table, with the instant at which each is known."""
    chosen = [one for one in plan.columns if one.name in plan.keys]
    if plan.dealt and plan.time not in chosen:
        chosen.insert(0, plan.time)
    known = f"{_at(plan)} + {interval(plan.known_after)} AS {KNOWN_AT}"
    return _select(plan, [*chosen, plan.target], [known], [f"{identifier(plan.target.given)} IS NOT NULL"])


def _select(
    plan: Plan, chosen: list[Column], more: list[str] | None = None, only: list[str] | None = None
) -> str:
    lines = [_made(plan, one) for one in chosen]
    if plan.numbered:
        others = [one for one in plan.columns if one is not plan.target and one.name not in plan.keys]
        order = identifier(*(one.given for one in others if one.kind != "other")) or "1"
        keys = [one for one in plan.columns if one.name in plan.keys]
        by = ", ".join(_at(plan) if one is plan.time else one.sql for one in keys)
        lines.append(f"row_number() OVER (PARTITION BY {by} ORDER BY {order}) AS nth")
    lines += more or []
    where = [f"isfinite({_at(plan)})"] if plan.timeless else []
    if plan.nameless and plan.entity:
        where.append(f"{identifier(plan.entity.given)} IS NOT NULL")
    where += only or []
    listed = textwrap.indent(",\n".join(map(broken, lines)), " " * 8)
    kept = f" WHERE {' AND '.join(where)}" if where else ""
    return f"    SELECT{' DISTINCT' * bool(plan.doubled)}\n{listed}\n    FROM given{kept}"


def _at(plan: Plan) -> str:
    """Return the time as the query may name it: no column of the table is called as what is dealt."""
    return plan.time.name if plan.dealt else plan.time.sql


def _made(plan: Plan, column: Column) -> str:
    """Return how a column is made of the table's, with its type, which a later text file may leave open."""
    sql, name = column.sql, identifier(column.name)
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
