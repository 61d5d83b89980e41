"""What the predictions of the arrival_delay pipeline must be like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from validations._departures import DAY

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite


def predictions() -> ExpectationSuite:
    """Minutes for each departure, within what flights have ever been early or late."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    return gx.ExpectationSuite(
        "arrival_delay_predictions",
        [
            gxe.ExpectColumnValuesToBeBetween(column="prediction", min_value=-4 * 60, max_value=2 * DAY),
            # a model that says the same of every flight is broken
            gxe.ExpectColumnStdevToBeBetween(column="prediction", min_value=0, strict_min=True),
        ],
    )
