"""What the next_leg pipeline is made of, and what it predicts, must be like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from validations._departures import INSTANT, KEY, REAL, SHARE, TEXT, WHOLE, features, shape

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite


def flights_predictions() -> ExpectationSuite:
    """What the pipeline `flights` predicts of each departure, once."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    schema = {
        **{"carrier": TEXT, "flight": WHOLE, "origin": TEXT, "sched_dep": INSTANT},
        **{"probability": REAL, "predicted_at": INSTANT, "model_version": WHOLE},
    }
    return gx.ExpectationSuite(
        "flights_predictions",
        [
            *shape(schema, key=KEY, known=("probability", "predicted_at", "model_version")),
            gxe.ExpectColumnValuesToBeBetween(column="probability", min_value=0, max_value=1),
        ],
    )


def leg_before() -> ExpectationSuite:
    """What was predicted of an aircraft's last leg, as known at an hour."""
    return features("leg_before", ("tailnum", "known_hour"), {"leg_late": SHARE, "leg_hours": (-2, 24)})


def predictions() -> ExpectationSuite:
    """Beside what any must be, not all the same."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    return gx.ExpectationSuite(
        "next_leg_predictions",
        [
            # a model that says the same of every flight is broken
            gxe.ExpectColumnStdevToBeBetween(column="probability", min_value=0, strict_min=True),
        ],
    )
