"""The features of the outcome pipeline: those of all departures, under a service of its own."""

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
    name="outcome",
    features=[schedule, planes, origin_weather, origin_delays, carrier_delays],
    description="What is known two hours before scheduled departure, to tell what will become of a flight.",
    owner=OWNER,
    tags={"pipeline": "outcome", "registered model": "outcome"},
)
