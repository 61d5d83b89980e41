"""What the suites of all models of New York's departures are written with; no suite itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

TEXT, WHOLE, REAL, INSTANT = "VARCHAR", "BIGINT", "DOUBLE", "TIMESTAMP WITH TIME ZONE"
AIRPORTS = ["EWR", "JFK", "LGA"]
KEY = ("carrier", "flight", "origin", "sched_dep")
SHARE = (0, 1)
DAY = 24 * 60


def features(name: str, key: tuple[str, ...], bounds: Mapping[str, tuple[float, float]]) -> ExpectationSuite:
    """Expect one row for each key and instant, known no earlier than it speaks of, within ``bounds``."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    return gx.ExpectationSuite(
        name,
        [
            gxe.ExpectCompoundColumnsToBeUnique(column_list=[*key, "event_timestamp"]),
            *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in (*key, "available_at")),
            after("available_at", "event_timestamp", or_equal=True),
            *(
                gxe.ExpectColumnValuesToBeBetween(column=column, min_value=least, max_value=most)
                for column, (least, most) in bounds.items()
            ),
        ],
    )


def shape(
    schema: Mapping[str, str], key: tuple[str, ...], known: tuple[str, ...] = ()
) -> Iterator[Expectation]:
    """Expect rows, exactly these columns and types, a whole and unique key, and no nulls in ``known``."""
    from great_expectations import expectations as gxe

    yield gxe.ExpectTableRowCountToBeBetween(min_value=1)
    yield gxe.ExpectTableColumnsToMatchSet(column_set=list(schema))
    for column, kind in schema.items():
        yield gxe.ExpectColumnTypeToBe(column=column, type_=kind)
    for column in (*key, *known):
        yield gxe.ExpectColumnValuesToNotBeNull(column=column)
    if len(key) > 1:
        yield gxe.ExpectCompoundColumnsToBeUnique(column_list=list(key))
    else:
        yield gxe.ExpectColumnValuesToBeUnique(column=key[0])


def route() -> Iterator[Expectation]:
    """Expect who flies, from where, how far (miles) to be possible."""
    from great_expectations import expectations as gxe

    yield gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=AIRPORTS)
    yield gxe.ExpectColumnValuesToMatchRegex(column="carrier", regex="^[A-Z0-9]{2}$")
    yield gxe.ExpectColumnValuesToBeBetween(column="distance", min_value=0, strict_min=True, max_value=5000)


def after(later: str, earlier: str, *, or_equal: bool = False) -> Expectation:
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=later, column_B=earlier, or_equal=or_equal, ignore_row_if="either_value_is_missing"
    )
