"""Will this flight arrive 15 minutes late?

A prediction is made two hours before scheduled departure, from nothing known
later. A flight is late if it arrives 15 or more minutes after its scheduled
arrival (the on-time standard of the US Department of Transportation); cancelled
and diverted flights have no label.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source
from headrace.sources import Files
from pipelines import _nycflights13 as nyc

DEPARTURE = ("carrier", "flight", "origin", "sched_dep")
SQL = Path(__file__).parent.parent / "features" / "sql"

PIPELINE = Pipeline(
    name="flights",
    about="Will a flight leaving New York arrive 15 or more minutes late?",
    owner="flight-operations",
    start=datetime(2013, 1, 1, tzinfo=UTC),
    sources=(
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
    ),
    feature_tables=(
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
    ),
    feature_service="flight_delay",
    keys=DEPARTURE,
    spine="""
        SELECT carrier, flight, origin, sched_dep, tailnum, dest, distance, hour, minute, weekday,
               sched_dep - INTERVAL 2 HOUR AS event_timestamp,
               epoch(event_timestamp)::BIGINT // 3600 AS known_hour
        FROM schedules
    """,
    label="""
        SELECT carrier, flight, origin, sched_dep, (arr_delay >= 15)::INTEGER AS label,
               available_at
        FROM flights WHERE arr_delay IS NOT NULL
    """,
    columns=Columns(
        categorical=("carrier", "origin", "dest"),
        numeric=(
            *("hour", "minute", "weekday", "distance", "plane_age", "plane_seats"),
            *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
            *("origin_dep_delay_3h", "origin_arr_delay_3h", "origin_late_share_3h", "origin_landed_3h"),
            *("carrier_arr_delay_24h", "carrier_late_share_24h"),
        ),
    ),
    candidates=(
        Candidate(
            "xgboost",
            "xgboost",
            {
                "max_depth": 6,
                "rounds": 200,
                "eta": 0.05,
                # kept simple: winter has to speak for a summer it has not seen
                "min_child_weight": 50,
                "reg_lambda": 20,
                "max_cat_to_onehot": 200,
                "subsample": 0.8,
                "colsample_bytree": 0.5,
            },
        ),
        Candidate("torch", "torch", {"hidden": (64, 32), "epochs": 4, "lr": 2e-3, "batch": 1024}),
        Candidate("baseline", "sklearn", {"C": 1.0}),
    ),
    suite="flights.predictions",
)
