"""What the predictions of the outcome pipeline must be like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from validations.flights import KEY

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

OUTCOMES = ["on time", "late", "very late", "cancelled"]


def predictions() -> ExpectationSuite:
    """A probability of each outcome, and the likeliest, for each departure."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    shares = [f"probability_{outcome}" for outcome in OUTCOMES]
    return gx.ExpectationSuite(
        "outcome_predictions",
        [
            gxe.ExpectCompoundColumnsToBeUnique(column_list=list(KEY)),
            *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in (*shares, "prediction")),
            *(
                gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=1)
                for column in shares
            ),
            gxe.ExpectColumnValuesToBeInSet(column="prediction", value_set=OUTCOMES),
            # a model that says the same of every flight is broken
            gxe.ExpectColumnStdevToBeBetween(column=shares[0], min_value=0, strict_min=True),
        ],
    )
