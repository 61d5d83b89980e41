"""Will this aircraft leave late, as far as is told by what was predicted of the leg before?

It is asked six hours before scheduled departure, when the aircraft is often still away on its leg before.
How late that one will be the pipeline `flights` has predicted: its predictions are a source here, as
they could be had at the time. Before its first release they are made out of sample.
"""

from __future__ import annotations

from datetime import timedelta

from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source
from headrace.problem import Binary
from headrace.sources import Predictions
from pipelines import _departures as departures

PIPELINE = Pipeline(
    name="next_leg",
    about="Will an aircraft leave New York 15 or more minutes late, after the leg before?",
    owner="flight-operations",
    start=departures.START,
    sources=(
        *departures.SOURCES,
        Source(
            "flights_predictions",
            Predictions("flights", (*departures.DEPARTURE, "probability")),
            time="predicted_at",
            suite="next_leg.flights_predictions",
            keys=departures.DEPARTURE,
        ),
    ),
    feature_tables=(
        *departures.FEATURES,
        FeatureTable(
            "leg_before",
            departures.SQL / "leg_before.sql",
            lookback=timedelta(days=3),
            suite="next_leg.leg_before",
        ),
    ),
    feature_service="next_leg",
    keys=departures.DEPARTURE,
    problem=Binary(),
    spine=departures.spine(hours=6),
    label="""
        SELECT carrier, flight, origin, sched_dep, (dep_delay >= 15)::INTEGER AS label, available_at
        FROM flights WHERE dep_delay IS NOT NULL
    """,
    columns=Columns(departures.COLUMNS.categorical, (*departures.COLUMNS.numeric, "leg_late", "leg_hours")),
    candidates=(
        Candidate(
            "xgboost",
            "xgboost",
            {
                "max_depth": 5,
                "rounds": 150,
                "eta": 0.06,
                "min_child_weight": 50,
                "reg_lambda": 20,
                "max_cat_to_onehot": 200,
                "subsample": 0.8,
                "colsample_bytree": 0.5,
            },
        ),
        Candidate("baseline", "sklearn", {"C": 1.0}),
    ),
    holdout=timedelta(weeks=3),  # of one week, a single stormy day decides
    policy=departures.POLICY,
    suite="next_leg.predictions",
)
