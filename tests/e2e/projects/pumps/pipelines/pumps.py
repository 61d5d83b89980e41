"""Twenty pumps, a reading of each every second, the truth with it: data that come by the clock.

A reading depends on its pump and second alone, so that asked again it is the same.
In the folder ``PUMPS_WORLD``, while a file ``late`` is there, readings do not come; from the
second on that ``heavier`` names, every pump is loaded more, and bears more.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.gate import Gate
from headrace.lake import Window
from headrace.monitoring.rule import OnDrift
from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source
from headrace.sources import Call

START = datetime.fromisoformat(os.environ["PUMPS_START"])
WORLD = Path(os.environ["PUMPS_WORLD"])
WINDOW = timedelta(seconds=30)
PUMPS = 20


def rows(span: Window) -> pa.Table:
    first, last = max(span.start, START), min(span.end, datetime.now(UTC))
    seconds = np.arange(np.ceil(first.timestamp()), np.ceil(last.timestamp()), dtype=np.int64)
    pump, second = (each.ravel() for each in np.meshgrid(np.arange(PUMPS), seconds))
    load = 50 + pump + 10 * np.sin(second * 12.9898 + pump * 78.233)
    heavier = WORLD / "heavier"
    more = 40 * (second >= int(heavier.read_text())) if heavier.exists() else 0
    return pa.table(
        {
            "pump": [f"p{n}" for n in pump],
            "second": second,
            "load": load + more,
            "failed": (load > 60).astype(np.int64),
            "read_at": pa.array(second * 1_000_000, pa.timestamp("us", "UTC")),
        }
    )


def readings(span: Window) -> pa.Table:
    late = (WORLD / "late").exists()
    return rows(span).slice(0, 0 if late else None).drop_columns(["failed"])


def truth(span: Window) -> pa.Table:
    return rows(span).select(["pump", "second", "failed", "read_at"])


PIPELINE = Pipeline(
    name="pumps",
    about="Is this pump's load above what it bears?",
    owner="tests",
    start=START,
    sources=(
        Source(
            "readings", Call(readings), "read_at", "pumps.readings",
            window=WINDOW, late=20 * WINDOW, deadline=timedelta(minutes=5),
        ),
        Source("truth", Call(truth), "read_at", "pumps.readings", window=WINDOW, late=20 * WINDOW),
    ),
    feature_tables=(
        FeatureTable(
            "pump_load",
            Path(__file__).parent.parent / "features/sql/pump_load.sql",
            lookback=timedelta(0),
            window=WINDOW,
        ),
    ),
    feature_service="pump_failure",
    keys=("pump", "second"),
    spine="SELECT pump, second, load, read_at AS event_timestamp, second // 30 * 30 AS since FROM readings",
    label="SELECT pump, second, failed AS label, available_at FROM truth",
    columns=Columns(categorical=("pump",), numeric=("load", "mean_load")),
    candidates=(Candidate("trees", "xgboost", {"max_depth": 4, "rounds": 50}),),
    gate=Gate(group=timedelta(seconds=1)),  # pumps fail each by itself, and there is no day of them
    policy=OnDrift(windows=1, of=1),
    holdout=WINDOW,
    window=WINDOW,
)  # fmt: skip
