"""The features of the next_leg pipeline: those of all departures, and what is predicted of the leg before."""

from feast import FeatureService
from feast.types import Float64

from features.flights import (
    HOUR,
    OWNER,
    carrier,
    carrier_delays,
    known_hour,
    origin,
    origin_delays,
    origin_weather,
    planes,
    schedule,
    table,
    tailnum,
)

__all__ = ["carrier", "known_hour", "origin", "service", "tailnum"]  # Feast needs the entities, too

leg_before = table(
    "leg_before",
    "What the pipeline `flights` predicted, by the hour, of an aircraft's last leg in the day before.",
    [tailnum, known_hour], 12 * HOUR,  # at night nobody asks
    {
        "leg_late": (Float64, "Probability that it arrives 15 or more minutes late"),
        "leg_hours": (Float64, "Hours since it was scheduled to depart"),
    },
)  # fmt: skip

service = FeatureService(
    name="next_leg",
    features=[schedule, planes, origin_weather, origin_delays, carrier_delays, leg_before],
    description="What is known six hours before scheduled departure, to tell if an aircraft will leave late.",
    owner=OWNER,
    tags={"pipeline": "next_leg", "registered model": "next_leg"},
)
