"""What was drawn from a tank the day before; the day is part of the key."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Float64, Int64, String

tank = Entity(name="tank", join_keys=["tank"], value_type=ValueType.STRING)
day = Entity(name="day", join_keys=["day"], value_type=ValueType.INT64)
tank_use = FeatureView(
    name="tank_use",
    entities=[tank, day],
    ttl=timedelta(days=3),
    schema=[
        Field(name="tank", dtype=String),
        Field(name="day", dtype=Int64),
        Field(name="mean_drawn", dtype=Float64),
    ],
    source=FileSource(
        name="tank_use",
        path="features/tank_use",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    ),
)
