"""How many minutes late will this flight arrive?

Of flights that arrive; early ones have a negative delay. A few arrive a day late, and a squared error
would be of little else: what is predicted is the median, which misses by the fewest minutes. One stormy day
outweighs a quiet week all the same, so that it takes more days to tell a gain from chance.
"""

from __future__ import annotations

from datetime import timedelta

from headrace.pipeline import Candidate, Pipeline
from headrace.problem import Regression
from pipelines import _departures as departures

PIPELINE = Pipeline(
    name="arrival_delay",
    about="How many minutes late will a flight leaving New York arrive?",
    owner="flight-operations",
    start=departures.START,
    sources=departures.SOURCES,
    feature_tables=departures.FEATURES,
    feature_service="arrival_delay",
    keys=departures.DEPARTURE,
    problem=Regression("absolute", unit="minutes"),
    spine=departures.SPINE,
    label="""
        SELECT carrier, flight, origin, sched_dep, arr_delay AS label, available_at
        FROM flights WHERE arr_delay IS NOT NULL
    """,
    columns=departures.COLUMNS,
    candidates=(
        Candidate(
            "xgboost",
            "xgboost",
            {"max_depth": 6, "rounds": 200, "eta": 0.1, "min_child_weight": 50, "colsample_bytree": 0.5},
        ),
        Candidate("torch", "torch", {"hidden": (64, 32), "epochs": 4, "lr": 2e-3, "batch": 1024}),
        Candidate("baseline", "sklearn"),
    ),
    holdout=timedelta(weeks=3),
    policy=departures.POLICY,
    suite="arrival_delay.predictions",
)
