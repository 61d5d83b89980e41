"""What will become of this flight: on time, late, very late, or cancelled?

Late is 15 minutes or more, very late an hour or more; diverted flights have no label. That a flight was
cancelled is known a day after its departure, that it landed within hours: so that neither is
missing among what is known, each truth counts from a day after departure.
"""

from __future__ import annotations

from headrace.pipeline import Candidate, Pipeline
from headrace.problem import MultiClass
from pipelines import _departures as departures

PIPELINE = Pipeline(
    name="outcome",
    about="Will a flight leaving New York be on time, late, very late or cancelled?",
    owner="flight-operations",
    start=departures.START,
    sources=departures.SOURCES,
    feature_tables=departures.FEATURES,
    feature_service="outcome",
    keys=departures.DEPARTURE,
    problem=MultiClass(("on time", "late", "very late", "cancelled")),
    spine=departures.SPINE,
    label="""
        SELECT carrier, flight, origin, sched_dep,
               CASE WHEN dep_time IS NULL THEN 'cancelled'
                    WHEN arr_delay >= 60 THEN 'very late'
                    WHEN arr_delay >= 15 THEN 'late'
                    ELSE 'on time' END AS label,
               greatest(available_at, sched_dep + INTERVAL 1 DAY) AS available_at
        FROM flights WHERE arr_delay IS NOT NULL OR dep_time IS NULL
    """,
    columns=departures.COLUMNS,
    candidates=(
        Candidate(
            "xgboost",
            "xgboost",
            {
                "max_depth": 5,
                "rounds": 100,
                "eta": 0.08,
                "min_child_weight": 20,
                "reg_lambda": 20,
                "max_cat_to_onehot": 200,
                "subsample": 0.8,
                "colsample_bytree": 0.5,
            },
        ),
        Candidate("torch", "torch", {"hidden": (64, 32), "epochs": 4, "lr": 2e-3, "batch": 1024}),
        Candidate("baseline", "sklearn", {"C": 1.0}),
    ),
    policy=departures.POLICY,
    suite="outcome.predictions",
)
