"""A suite for made-up readings of a meter: one rule with a tolerance, one without, one for the table."""

import great_expectations as gx
from great_expectations import expectations as gxe

TOLERANCE = 0.25


def meter() -> gx.ExpectationSuite:
    return gx.ExpectationSuite(
        "meter",
        [
            gxe.ExpectTableColumnsToMatchSet(column_set=["meter", "read_at", "value"]),
            gxe.ExpectColumnValuesToNotBeNull(column="meter"),
            gxe.ExpectColumnValuesToBeBetween(
                column="value", min_value=0, max_value=100, mostly=1 - TOLERANCE
            ),
            gxe.ExpectColumnMaxToBeBetween(column="value", max_value=1000),
        ],
    )


def lenient() -> gx.ExpectationSuite:
    return gx.ExpectationSuite("lenient", [gxe.ExpectTableRowCountToBeBetween(min_value=0)])


def odd() -> gx.ExpectationSuite:
    return gx.ExpectationSuite(
        "odd", [gxe.ExpectColumnValuesToBeInSet(column="row", value_set=["a"], mostly=0)]
    )
