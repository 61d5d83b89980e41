"""Six tanks, read every hour: made up, so that the same readings can be asked about in many ways."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.lake import Window
from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source
from headrace.problem import Problem
from headrace.sources import Call

START, HOUR = datetime(2024, 1, 1, tzinfo=UTC), timedelta(hours=1)
TANKS = 6


def rows(span: Window) -> pa.Table:
    """Return a reading of each tank in every hour of ``span``; it depends on tank and hour alone."""
    first, last = ((at - START) // HOUR for at in (max(span.start, START), span.end))
    hour, tank = (
        each.ravel() for each in np.meshgrid(np.arange(first, last), np.arange(TANKS), indexing="ij")
    )
    heat = 15 + 5 * np.sin(hour / 24 * 2 * np.pi) + np.sin(hour * 12.9898 + tank * 78.233)
    drawn = 4 + tank / 2 + heat / 3 + np.sin(hour * 39.425 + tank * 11.135)
    return pa.table(
        {
            "tank": [f"tank {n}" for n in tank],
            "hour": hour,
            "heat": heat,
            "drawn": drawn,
            "read_at": pa.array([START + int(n) * HOUR for n in hour], pa.timestamp("us", "UTC")),
        }
    )


def readings(span: Window) -> pa.Table:
    return rows(span).drop_columns(["drawn"])


def truth(span: Window) -> pa.Table:
    return rows(span).drop_columns(["heat"])


SOURCES = (
    Source("readings", Call(readings), "read_at", "tanks.rows", keys=("tank", "hour")),
    Source("truth", Call(truth), "read_at", "tanks.rows", keys=("tank", "hour")),
)
TABLES = (
    FeatureTable(
        "tank_use", Path(__file__).parent.parent / "features/sql/tank_use.sql", lookback=timedelta(days=1)
    ),
)


def declare(name: str, problem: Problem, label: str, known: str = "available_at", **more: Any) -> Pipeline:
    """Declare a pipeline that asks for ``label`` (SQL over ``drawn``), ``known`` at some time."""
    return Pipeline(
        name=name,
        about=f"A question of the kind {problem!r}",
        owner="tests",
        start=START,
        sources=SOURCES,
        feature_tables=TABLES,
        feature_service=name,
        keys=("tank", "hour"),
        problem=problem,
        spine="""
            SELECT tank, hour, heat, NULL::DOUBLE AS nothing, read_at AS event_timestamp, hour // 24 AS day
            FROM readings
        """,
        label=f"SELECT tank, hour, {label} AS label, {known} AS available_at FROM truth",
        columns=Columns(categorical=("tank",), numeric=("heat", "nothing", "mean_drawn")),
        candidates=(
            Candidate("trees", "xgboost", {"max_depth": 3, "rounds": 40, "eta": 0.2}),
            Candidate("plain", "sklearn"),
        ),
        **more,
    )
