"""The features of the arrival_delay pipeline: those of all departures, under a service of its own."""

from feast import FeatureService

from features.flights import (
    OWNER,
    carrier,
    carrier_delays,
    known_hour,
    origin,
    origin_delays,
    origin_weather,
    planes,
    schedule,
    tailnum,
)

__all__ = ["carrier", "known_hour", "origin", "service", "tailnum"]  # Feast needs the entities, too

service = FeatureService(
    name="arrival_delay",
    features=[schedule, planes, origin_weather, origin_delays, carrier_delays],
    description="What is known two hours before scheduled departure, to tell how late a flight will arrive.",
    owner=OWNER,
    tags={"pipeline": "arrival_delay", "registered model": "arrival_delay"},
)
