"""How long people waited in a shop; the week is part of the key."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Array, Float64, Int64, String

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
week = Entity(name="week", join_keys=["week"], value_type=ValueType.INT64)
shop_pace = FeatureView(
    name="shop_pace",
    entities=[shop, week],
    ttl=timedelta(days=15),
    schema=[
        Field(name="shop", dtype=String),
        Field(name="week", dtype=Int64),
        Field(name="mean_wait", dtype=Float64),
        Field(name="last_waits", dtype=Array(Float64)),
    ],
    source=FileSource(
        name="shop_pace",
        path="features/shop_pace",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    ),
)
service = FeatureService(name="order_wait", features=[shop_pace])
