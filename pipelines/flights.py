"""Will this flight arrive 15 minutes late?

A prediction is made two hours before scheduled departure, from nothing known
later. A flight is late if it arrives 15 or more minutes after its scheduled
arrival (the on-time standard of the US Department of Transportation); cancelled
and diverted flights have no label.
"""

from __future__ import annotations

from headrace.pipeline import Candidate, Float, Int, Pipeline
from headrace.problem import Binary
from pipelines import _departures as departures

PIPELINE = Pipeline(
    name="flights",
    about="Will a flight leaving New York arrive 15 or more minutes late?",
    owner="flight-operations",
    start=departures.START,
    sources=departures.SOURCES,
    feature_tables=departures.FEATURES,
    feature_service="flight_delay",
    keys=departures.DEPARTURE,
    problem=Binary(),
    spine=departures.SPINE,
    label="""
        SELECT carrier, flight, origin, sched_dep, (arr_delay >= 15)::INTEGER AS label,
               available_at
        FROM flights WHERE arr_delay IS NOT NULL
    """,
    columns=departures.COLUMNS,
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
            search={
                "max_depth": Int(3, 9),
                "rounds": Int(50, 400, log=True),
                "eta": Float(0.02, 0.3, log=True),
                "min_child_weight": Float(1, 200, log=True),
                "reg_lambda": Float(0.1, 100, log=True),
                "subsample": Float(0.5, 1),
                "colsample_bytree": Float(0.3, 1),
            },
        ),
        Candidate("torch", "torch", {"hidden": (64, 32), "epochs": 4, "lr": 2e-3, "batch": 1024}),
        Candidate("baseline", "sklearn", {"C": 1.0}),
    ),
    policy=departures.POLICY,
    suite="flights.predictions",
)
