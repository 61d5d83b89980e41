"""What all models of New York's departures are made of, declared once: landed once, and built once.

A prediction is made two hours before scheduled departure, from nothing known later.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from headrace.monitoring.rule import OnDrift
from headrace.pipeline import Columns, FeatureTable, Source
from headrace.sources import Files
from pipelines import _nycflights13 as nyc

START = datetime(2013, 1, 1, tzinfo=UTC)
DEPARTURE = ("carrier", "flight", "origin", "sched_dep")
SQL = Path(__file__).parent.parent / "features" / "sql"

SOURCES = (
    Source(
        "schedules",
        Files(partial(nyc.files, "flights"), nyc.SCHEDULES),
        time="published_at",
        suite="flights.schedules",
        keys=DEPARTURE,
    ),
    Source(
        "flights",
        Files(partial(nyc.files, "flights", "airports"), nyc.FLIGHTS),
        time="landed_at",
        suite="flights.flights",
        keys=DEPARTURE,
    ),
    Source(
        "weather",
        Files(partial(nyc.files, "weather"), nyc.WEATHER),
        time="observed_at",
        suite="flights.weather",
        keys=("origin", "observed_at"),
    ),
    Source(
        "planes",
        Files(partial(nyc.files, "planes"), nyc.PLANES),
        time="registered_at",
        suite="flights.planes",
        keys=("tailnum",),
    ),
)

# Of one window alone, and so by chance some four times a year: trainings take seconds, and the gate judges.
POLICY = OnDrift(windows=1, of=1)

FEATURES = (
    FeatureTable(
        "origin_weather",
        SQL / "origin_weather.sql",
        lookback=timedelta(hours=6),
        suite="flights.origin_weather",
    ),
    FeatureTable(
        "origin_delays",
        SQL / "origin_delays.sql",
        lookback=timedelta(hours=3),
        suite="flights.origin_delays",
    ),
    FeatureTable(
        "carrier_delays",
        SQL / "carrier_delays.sql",
        lookback=timedelta(hours=24),
        suite="flights.carrier_delays",
    ),
    FeatureTable("planes", SQL / "planes.sql", lookback=timedelta(0), suite="flights.plane_features"),
)


def spine(hours: int) -> str:
    """Select the departures, each asked about some whole ``hours`` before it is scheduled."""
    return f"""
        SELECT carrier, flight, origin, sched_dep, tailnum, dest, distance, hour, minute, weekday,
               sched_dep - INTERVAL {hours} HOUR AS event_timestamp,
               epoch(event_timestamp)::BIGINT // 3600 AS known_hour
        FROM schedules
    """


SPINE = spine(hours=2)

COLUMNS = Columns(
    categorical=("carrier", "origin", "dest"),
    numeric=(
        *("hour", "minute", "weekday", "distance", "plane_age", "plane_seats"),
        *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
        *("origin_dep_delay_3h", "origin_arr_delay_3h", "origin_late_share_3h", "origin_landed_3h"),
        *("carrier_arr_delay_24h", "carrier_late_share_24h"),
    ),
)
