"""What the predictions of the outcome pipeline must be like."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite


def predictions() -> ExpectationSuite:
    """Beside what any must be, not all the same."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    # a model that says the same of every flight is broken
    same = gxe.ExpectColumnStdevToBeBetween(column="probability_on time", min_value=0, strict_min=True)
    return gx.ExpectationSuite("outcome_predictions", [same])
