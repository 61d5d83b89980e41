"""The features of the flights pipeline: what is known about an airport, a carrier and an aircraft.

Hourly views carry the hour in their key. A reader names the hour at which it
must know (``known_hour``), so the online store answers for any hour, past ones
included, with exactly what the point-in-time join gives; and an hour that was
never materialised is missing instead of silently older.
"""

from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import DeltaFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String, UnixTimestamp

from headrace.sql import reads

OWNER = "flight-operations"
TAGS = {"pipeline": "flights"}
SQL = Path(__file__).parent / "sql"

origin = Entity(
    name="origin", join_keys=["origin"], value_type=ValueType.STRING,
    description="Airport of departure: EWR, JFK or LGA", owner=OWNER, tags=TAGS,
)  # fmt: skip
carrier = Entity(
    name="carrier", join_keys=["carrier"], value_type=ValueType.STRING,
    description="Two-letter code of the airline", owner=OWNER, tags=TAGS,
)  # fmt: skip
tailnum = Entity(
    name="tailnum", join_keys=["tailnum"], value_type=ValueType.STRING,
    description="Registration of the aircraft", owner=OWNER, tags=TAGS,
)  # fmt: skip
known_hour = Entity(
    name="known_hour", join_keys=["known_hour"], value_type=ValueType.INT64,
    description="The hour at which the features must be known, in hours since 1970 UTC",
    owner=OWNER, tags=TAGS,
)  # fmt: skip


def table(
    name: str, about: str, keys: list[Entity], ttl: timedelta, features: dict[str, tuple]
) -> FeatureView:
    """Declare the lake's table ``features/<name>``; a feature is ``(type, description)``."""
    types = {ValueType.STRING: String, ValueType.INT64: Int64}
    fields = [Field(name=key.name, dtype=types[key.value_type], description=key.description) for key in keys]
    fields += [Field(name=name, dtype=dtype, description=text) for name, (dtype, text) in features.items()]
    # Feast's own lineage begins at the feature table: these say what lies before it.
    raw = ", ".join(f"raw/{read}" for read in sorted(reads((SQL / f"{name}.sql").read_text())))
    lineage = TAGS | {"raw tables": raw, "sql": f"features/sql/{name}.sql"}
    source = FileSource(
        name=name, path=f"features/{name}", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="available_at", description=f"Made of {raw} by features/sql/{name}.sql",
        owner=OWNER, tags=lineage,
    )  # fmt: skip
    return FeatureView(
        name=name,
        entities=keys,
        ttl=ttl,
        schema=fields,
        source=source,
        description=about,
        owner=OWNER,
        tags=lineage,
    )


HOUR, FOR_EVER = timedelta(hours=1), timedelta(0)

origin_weather = table(
    "origin_weather",
    "Last weather observation at the airport before the hour, at most six hours old.",
    [origin, known_hour], HOUR,
    {
        "temp": (Float64, "Temperature, °F"),
        "dewp": (Float64, "Dew point, °F"),
        "humid": (Float64, "Relative humidity, %"),
        "wind_dir": (Float64, "Wind direction, degrees"),
        "wind_speed": (Float64, "Wind speed, mph"),
        "wind_gust": (Float64, "Wind gust speed, mph"),
        "precip": (Float64, "Precipitation in the hour, inches"),
        "pressure": (Float64, "Sea-level pressure, millibars"),
        "visib": (Float64, "Visibility, miles"),
    },
)  # fmt: skip
origin_delays = table(
    "origin_delays",
    "How flights from the airport fared that landed in the three hours before the hour.",
    [origin, known_hour], HOUR,
    {
        "origin_dep_delay_3h": (Float64, "Mean departure delay, minutes"),
        "origin_arr_delay_3h": (Float64, "Mean arrival delay, minutes"),
        "origin_late_share_3h": (Float64, "Share that arrived 15 or more minutes late"),
        "origin_landed_3h": (Int64, "Flights that landed"),
    },
)  # fmt: skip
carrier_delays = table(
    "carrier_delays",
    "How the carrier's flights fared that landed in the 24 hours before the hour.",
    [carrier, known_hour], HOUR,
    {
        "carrier_arr_delay_24h": (Float64, "Mean arrival delay, minutes"),
        "carrier_late_share_24h": (Float64, "Share that arrived 15 or more minutes late"),
    },
)  # fmt: skip
planes = table(
    "planes",
    "The aircraft, as the registry knew it when it was extracted.",
    [tailnum], FOR_EVER,
    {
        "plane_age": (Float64, "Years since the aircraft was built"),
        "plane_seats": (Float64, "Seats"),
    },
)  # fmt: skip

request = RequestSource(
    name="flight_request",
    schema=[Field(name="sched_dep", dtype=UnixTimestamp, description="Scheduled departure, UTC")],
    description="What whoever asks for a prediction knows", owner=OWNER, tags=TAGS,
)  # fmt: skip


CLOCK = {
    "hour": "Hour of scheduled departure, 0 to 23",
    "minute": "Minute of scheduled departure, 0 to 59",
    "weekday": "Weekday of scheduled departure, from 1 (Monday) to 7",
}


@on_demand_feature_view(
    sources=[request], mode="pandas", owner=OWNER,
    tags=TAGS | CLOCK,
    description="When the flight leaves, on New York's clock: hour, minute, weekday from 1 (Monday) to 7.",
    # with descriptions, Feast 0.67 refuses to find them in what the function returns: tags hold them
    schema=[Field(name=name, dtype=Int64) for name in CLOCK],
)  # fmt: skip
def schedule(rows: pd.DataFrame) -> pd.DataFrame:
    """Read New York's clock at ``sched_dep``."""
    import numpy as np
    import pandas as pd

    # Of an array, not of a series, which is made anew for each column: requests have a single row.
    local = pd.to_datetime(rows["sched_dep"].array, utc=True).tz_convert("America/New_York")
    clock = np.column_stack([local.hour, local.minute, local.dayofweek + 1])
    return pd.DataFrame(clock, columns=["hour", "minute", "weekday"]).astype("int64")


flight_delay = FeatureService(
    name="flight_delay",
    features=[schedule, planes, origin_weather, origin_delays, carrier_delays],
    description="What is known two hours before scheduled departure, to tell if a flight will arrive late.",
    owner=OWNER, tags=TAGS | {"registered model": "flights"},
)  # fmt: skip
