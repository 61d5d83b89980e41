"""What New York's flights must be like: one suite per source, per feature table, and for predictions.

Bounds are wide on purpose: they stop rows that cannot be true, not rows that
are rare. Columns and types are those that ``pipelines/_nycflights13.py`` selects;
a column that is not listed here is kept aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from validations._departures import (
    AIRPORTS,
    DAY,
    INSTANT,
    KEY,
    REAL,
    SHARE,
    TEXT,
    WHOLE,
    after,
    features,
    route,
    shape,
)

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite


def flights() -> ExpectationSuite:
    """Departures that are over, flown or not; delays and times aloft in minutes."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    schema = {
        **{"carrier": TEXT, "flight": WHOLE, "tailnum": TEXT, "origin": TEXT, "dest": TEXT},
        **{"distance": WHOLE, "sched_dep": INSTANT, "dep_time": WHOLE, "dep_delay": WHOLE},
        **{"arr_time": WHOLE, "arr_delay": WHOLE, "air_time": WHOLE},
        **{"departed_at": INSTANT, "arrived_at": INSTANT, "landed_at": INSTANT},
    }
    return gx.ExpectationSuite(
        "flights",
        [
            *shape(schema, key=KEY, known=("dest", "distance", "landed_at")),
            *route(),
            gxe.ExpectColumnValuesToBeBetween(column="dep_delay", min_value=-2 * 60, max_value=2 * DAY),
            gxe.ExpectColumnValuesToBeBetween(column="arr_delay", min_value=-4 * 60, max_value=2 * DAY),
            gxe.ExpectColumnValuesToBeBetween(column="air_time", min_value=0, strict_min=True, max_value=DAY),
            after("arrived_at", "departed_at"),
            after("landed_at", "sched_dep"),
        ],
    )


def schedules() -> ExpectationSuite:
    """Departures as published; ``hour`` and ``minute`` are local, ``weekday`` 1 is Monday."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    schema = {
        **{"carrier": TEXT, "flight": WHOLE, "tailnum": TEXT, "origin": TEXT, "dest": TEXT},
        **{"distance": WHOLE, "hour": WHOLE, "minute": WHOLE, "weekday": WHOLE},
        **{"sched_dep": INSTANT, "published_at": INSTANT},
    }
    known = ("dest", "distance", "hour", "minute", "weekday", "published_at")
    return gx.ExpectationSuite(
        "schedules",
        [
            *shape(schema, key=KEY, known=known),
            *route(),
            gxe.ExpectColumnValuesToBeBetween(column="hour", min_value=0, max_value=23),
            gxe.ExpectColumnValuesToBeBetween(column="minute", min_value=0, max_value=59),
            gxe.ExpectColumnValuesToBeBetween(column="weekday", min_value=1, max_value=7),
            after("sched_dep", "published_at"),
        ],
    )


def weather() -> ExpectationSuite:
    """Hourly observations: °F, %, degrees, mph, inches, hPa, miles."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    bounds = {
        **{"temp": (-60, 130), "dewp": (-80, 100), "humid": (0, 100.5), "wind_gust": (0, 250)},
        **{"precip": (0, 20), "pressure": (870, 1085), "visib": (0, 100)},
    }
    schema = {"origin": TEXT, "observed_at": INSTANT, "wind_dir": WHOLE, "wind_speed": REAL}
    return gx.ExpectationSuite(
        "weather",
        [
            *shape(schema | dict.fromkeys(bounds, REAL), key=("origin", "observed_at")),
            gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=AIRPORTS),
            gxe.ExpectColumnValuesToBeBetween(column="wind_dir", min_value=0, max_value=360),
            # Newark reported 1,048 mph on 12 February 2013: a slip now and then is the source's habit.
            gxe.ExpectColumnValuesToBeBetween(column="wind_speed", min_value=0, max_value=250, mostly=0.99),
            *(
                gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)
                for column, (low, high) in bounds.items()
            ),
        ],
    )


def planes() -> ExpectationSuite:
    """The aircraft registry; ``built`` is a year."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    schema = {
        **{"tailnum": TEXT, "built": WHOLE, "type": TEXT, "manufacturer": TEXT, "model": TEXT},
        **{"engines": WHOLE, "seats": WHOLE, "registered_at": INSTANT},
    }
    return gx.ExpectationSuite(
        "planes",
        [
            *shape(schema, key=("tailnum",), known=("registered_at",)),
            gxe.ExpectColumnValuesToBeBetween(column="built", min_value=1903, max_value=2100),
            gxe.ExpectColumnValuesToBeBetween(column="engines", min_value=1, max_value=8),
            gxe.ExpectColumnValuesToBeBetween(column="seats", min_value=1, max_value=900),
        ],
    )


def origin_weather() -> ExpectationSuite:
    """The weather at an airport as known at an hour."""
    return features("origin_weather", ("origin", "known_hour"), {"temp": (-60, 130)})


def origin_delays() -> ExpectationSuite:
    """How an airport's flights fared in three hours."""
    bounds = {"origin_late_share_3h": SHARE, "origin_landed_3h": (0, 1000)}
    return features("origin_delays", ("origin", "known_hour"), bounds)


def carrier_delays() -> ExpectationSuite:
    """How a carrier's flights fared in a day."""
    return features("carrier_delays", ("carrier", "known_hour"), {"carrier_late_share_24h": SHARE})


def plane_features() -> ExpectationSuite:
    """An aircraft's age and size."""
    return features("plane_features", ("tailnum",), {"plane_age": (0, 120)})


def predictions() -> ExpectationSuite:
    """Beside what any must be, not all the same."""
    import great_expectations as gx
    from great_expectations import expectations as gxe

    return gx.ExpectationSuite(
        "predictions",
        [
            # a model that says the same of every flight is broken
            gxe.ExpectColumnStdevToBeBetween(column="probability", min_value=0, strict_min=True),
        ],
    )
