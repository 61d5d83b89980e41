"""What was known before, as a feature table's SQL and Feast's declarations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.scaffold.code import constant, identifier, phrase, python, timespan, wrapped
from headrace.scaffold.look import named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.scaffold.plan import Plan

KNOWN_AT = "known_at"
MEANS, SHARES = 5, 5
"""Numbers whose past means are features, and classes whose past shares are."""


class Feature(NamedTuple):
    """A feature: the SQL that makes it of rows, its type to Feast, and what it is."""

    name: str
    sql: str
    type: str
    about: str


def of_rows(plan: Plan) -> list[Feature]:
    """Return what is known of earlier rows."""
    of = f"Rows of this {plan.entity.name}" if plan.entity else "Rows"
    found = [("rows_before", "count(*)::BIGINT", "Int64", f"{of} within {phrase(plan.lookback)}")]
    numbers = [name for name in plan.numbers if plan.column(name).kind == "number"]
    for name in numbers[:MEANS]:
        mean = f"avg({identifier(name)}::DOUBLE)"
        found.append((f"{name}_before", mean, "Float64", f"Mean {name} of these"))
    return _named(plan, found, set())


def of_truth(plan: Plan) -> list[Feature]:
    """Return what is known of what came true."""
    target = plan.target.name
    of = identifier(target)
    if plan.kind == "number":
        last = f"arg_max({of}::DOUBLE, {KNOWN_AT})"
        found = [
            (f"{target}_before", f"avg({of}::DOUBLE)", "Float64", f"Mean {target} that was known"),
            (f"{target}_last", last, "Float64", f"The last {target} that was known"),
        ]
    else:
        classes = plan.classes[:1] if plan.kind == "binary" else plan.classes[:SHARES]
        found = [
            (
                f"{target}_{value}_before",
                f"avg(({of} = {constant(value)})::INTEGER)",
                "Float64",
                f"Share of {value} in the {target} that was known",
            )
            for value in classes
        ]
    return _named(plan, found, {one.name.lower() for one in of_rows(plan)})


def _named(plan: Plan, found: Sequence[tuple[str, str, str, str]], taken: set[str]) -> list[Feature]:
    taken = taken | {one.name.lower() for one in plan.columns} | {*plan.clock}
    features = []
    for name, *rest in found:
        features.append(Feature(named(name, taken), *rest))
        taken.add(features[-1].name.lower())
    return features


def history(plan: Plan) -> str:
    """Return the SQL of the feature table."""
    name, entity = plan.name, identifier(plan.entity.name) if plan.entity else ""
    asked, told = of_rows(plan), of_truth(plan)

    def aggregate(table: str, features: Sequence[Feature]) -> str:
        lines = [entity] * bool(entity) + [f"{one.sql} AS {identifier(one.name)}" for one in features]
        group = f" WHERE {entity} IS NOT NULL GROUP BY {entity}" * bool(entity)
        return "    SELECT " + ",\n           ".join(lines) + f"\n    FROM {table}{group}"

    chosen = [entity] * bool(entity) + [identifier(one.name) for one in (*asked, *told)]
    listed = "\n       ".join(wrapped(chosen))
    whose = f"each {plan.entity.name}" if plan.entity else "all rows"
    return f"""\
-- What was known of {whose} when a window began, by rows and truths of {phrase(plan.lookback)} before it:
-- found at the end of one window, for all that is asked in the next.
WITH asked AS (
{aggregate(name, asked)}
), told AS (
{aggregate(f"{name}_truth", told)}
)
SELECT {listed}
       epoch($end)::BIGINT AS {name}_window,
       $end - INTERVAL 1 SECOND AS event_timestamp, $end - INTERVAL 1 SECOND AS available_at
FROM asked {f"FULL JOIN told USING ({entity})" if entity else "CROSS JOIN told"}
"""


def views(plan: Plan) -> str:
    """Return Feast's declarations."""
    name, of = plan.name, plan.entity
    entities, fields, keys = "", [], ["window"]
    types = {"Float64", "Int64"}
    if of:
        kind, value = ("String", "STRING") if of.kind == "text" else ("Int64", "INT64")
        types.add(kind)
        keys.insert(0, "entity")
        fields.append(f"Field(name={python(of.name)}, dtype={kind})")
        entities = (
            f"entity = Entity(name={python(f'{name}_{of.name}')}, join_keys=[{python(of.name)}], "
            f"value_type=ValueType.{value}, description={python(of.given)})\n"
        )
    fields.append(f'Field(name="{name}_window", dtype=Int64)')
    for one in (*of_rows(plan), *of_truth(plan)):
        told = f"description={python(one.about)}"
        fields.append(f"Field(name={python(one.name)}, dtype={one.type}, {told})")
    schema = ",\n        ".join(fields)
    return f'''\
"""What was known before of {of.name if of else "all rows"}, for the pipeline {name}.

The window is part of the key: a question asked in it is answered by what was known when it began.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import {", ".join(sorted(types))}

{entities}window = Entity(
    name="{name}_window",
    join_keys=["{name}_window"],
    value_type=ValueType.INT64,
    description="When the window began in which the question is asked, in seconds since 1970 UTC",
)
history = FeatureView(
    name="{name}_history",
    entities=[{", ".join(keys)}],
    ttl={timespan(2 * plan.window)},
    schema=[
        {schema},
    ],
    source=FileSource(
        name="{name}_history",
        path="features/{name}_history",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    ),
    description="What was known when the window began",
    owner="{name}",
)
service = FeatureService(name="{name}", features=[history], owner="{name}")
'''
