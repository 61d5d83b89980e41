"""What rows and truths must be like, learnt from those there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.scaffold.code import mapping, python, sequence
from headrace.scaffold.features import KNOWN_AT
from headrace.scaffold.look import FEW, LOOKED
from headrace.scaffold.queries import known_at_once, known_later, rows, truth
from headrace.sources.rows import INSTANT
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import duckdb

    from headrace.scaffold.look import Column
    from headrace.scaffold.plan import Plan

INDENT = "\n        "


def suites(con: duckdb.DuckDBPyConnection, plan: Plan) -> str:
    """Return the module of both suites."""
    if plan.asked.database:
        of_rows = _typed(plan, known_at_once(plan))
        of_truth = _typed(plan, known_later(plan), **{KNOWN_AT: INSTANT})
    else:
        of_rows, of_truth = _types(con, rows(plan)), _types(con, truth(plan))
    gaps = _gaps(con, plan)
    rules = [
        rule
        for one in plan.columns
        if one.name in of_rows and one.name not in plan.keys and one is not plan.time
        for rule in _rules(plan, one, gaps[one.name])
    ]
    target, classes = python(plan.target.name), sequence(plan.classes, "[]", 8)
    known = f"gxe.ExpectColumnValuesToBeInSet(column={target}, value_set={classes})," * bool(plan.classes)
    unique = (
        "gxe.ExpectCompoundColumnsToBeUnique(column_list=list(KEYS)),"
        if len(plan.keys) > 1
        else "gxe.ExpectColumnValuesToBeUnique(column=KEYS[0]),"
    )
    return f'''\
"""What rows and truths of {plan.name} must be like.

Bounds are wide: they stop what cannot be, not what is rare. They were learnt from the rows there were when
this was written. A row that breaks a rule with `mostly` waits in quarantine; a `warning` is only told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

KEYS = {sequence(plan.keys, "()")}
ROWS = {mapping(of_rows)}
TRUTH = {mapping(of_truth)}


def rows() -> ExpectationSuite:
    """What is known when the question is asked."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    expectations = [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(ROWS)),
        *(gxe.ExpectColumnTypeToBe(column=column, type_=kind) for column, kind in ROWS.items()),
        *(gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=0.98) for column in KEYS),
        {unique}
        {INDENT.join(rules)}
    ]
    return gx.ExpectationSuite("rows", expectations)


def truth() -> ExpectationSuite:
    """What came true."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    expectations = [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(TRUTH)),
        *(gxe.ExpectColumnTypeToBe(column=column, type_=kind) for column, kind in TRUTH.items()),
        *(gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=0.98) for column in KEYS),
        {unique}
        {known}
    ]
    return gx.ExpectationSuite("truth", expectations)
'''


def _rules(plan: Plan, one: Column, gaps: float) -> Iterator[str]:
    """Yield what a column must be like: filled about as it was, within reach of what it held."""
    column = f"column={python(one.name)}"
    if gaps < 0.5:
        least = max(0.0, round(1 - 2 * gaps - 0.05, 2))
        yield f"gxe.ExpectColumnProportionOfNonNullValuesToBeBetween({column}, min_value={least}),"
    if one.kind == "number" and one.low is not None:
        low, high = float(one.low), float(one.high)
        reach = high - low or abs(high) or 1.0
        ends = f"min_value={0.0 if low >= 0 else low - reach:.6g}, max_value={high + reach:.6g}"
        yield f"gxe.ExpectColumnValuesToBeBetween({column}, {ends}, mostly=0.98),"
    if 0 < len(one.values) <= FEW and one.name in plan.texts:
        values = sequence(one.values, "[]", 12)
        more = f'value_set={values}, mostly=0.95, severity="warning"'
        yield f"gxe.ExpectColumnValuesToBeInSet(\n            {column}, {more}\n        ),"


def _types(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    return {column: kind for column, kind, *_ in con.sql(f"DESCRIBE {query}").fetchall()}


def _typed(plan: Plan, columns: Sequence[Column], **more: str) -> dict[str, str]:
    """Return the types that a database has given, beside that of a number among rows."""
    numbers = {"nth": "BIGINT"} if plan.numbered else {}
    return {one.name: one.type for one in columns} | numbers | more


def _gaps(con: duckdb.DuckDBPyConnection, plan: Plan) -> Mapping[str, float]:
    """Return the largest share of rows without a value that a window had, by column."""
    names = [one.name for one in plan.columns]
    each = ", ".join(f"avg(({quoted(name)} IS NULL)::INTEGER)" for name in names)
    window = f"floor(epoch({quoted(plan.time.name)}) / {plan.window.total_seconds()})"
    found = con.sql(f"SELECT {each} FROM {LOOKED} GROUP BY {window}").fetchall()
    return dict(zip(names, map(max, zip(*found, strict=True)), strict=True))
