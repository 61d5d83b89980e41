"""How a pump was loaded in a window; the window's start is part of the key."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Float64, Int64, String

pump = Entity(name="pump", join_keys=["pump"], value_type=ValueType.STRING)
since = Entity(name="since", join_keys=["since"], value_type=ValueType.INT64)
pump_load = FeatureView(
    name="pump_load",
    entities=[pump, since],
    ttl=timedelta(hours=1),
    schema=[
        Field(name="pump", dtype=String),
        Field(name="since", dtype=Int64),
        Field(name="mean_load", dtype=Float64),
    ],
    source=FileSource(
        name="pump_load",
        path="features/pump_load",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    ),
)
service = FeatureService(name="pump_failure", features=[pump_load])
