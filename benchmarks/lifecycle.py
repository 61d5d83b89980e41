"""Seconds per stage of one pass over the flights of 2013, beside what people write, and bare computations.

Ours: the real flows, one after the other in one process, against a real Prefect
server in a fresh home: ingest (160 batches), materialize (for the first release,
then to the end of the year), train (three candidates on the first half of the
year), score (its second half, week by week), monitor (each of its whole weeks).

Peer: the same libraries glued in one script, as their own documentation shows
(``benchmarks/_glue.py``): a year at a time, without windows, retries or a record of what was done.

Bound: the same results in one process without a flow, a lake, validation, feature
store or registry. ingest: one DuckDB ``COPY`` per source; materialize: each feature
file once over the whole year, then a bare ``sqlite3`` insert of the values that are
served; train: one join, then the same fits; score: one join and one ``predict``;
monitor: for each week SciPy's distances on 4,000 rows, or all if fewer, of each side.

That all landed the same rows, released a model of the same log-loss, made as
many predictions of the same mean and watched as many weeks is checked. Imports and the server's start are
shown, but neither counts: they are paid once, however much work follows.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks.result import Result
from headrace import services
from headrace.pipeline import WEEK, load
from headrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from headrace.pipeline import Candidate, Columns
    from headrace.training import Model

RELEASE, END = datetime(2013, 7, 1, tzinfo=UTC), datetime(2014, 1, 6, tzinfo=UTC)
WATCHED = END - WEEK  # the year's last whole week ends here
STAGES = ("ingest", "materialize", "train", "score", "monitor")
KEYS = {
    "planes": "tailnum",
    "origin_weather": "origin, known_hour",
    "origin_delays": "origin, known_hour",
    "carrier_delays": "carrier, known_hour",
}
LIBRARIES = {
    "ours": "flows.lifecycle great_expectations.expectations validations.flights duckdb_engine deltalake "
    "feast.infra.online_stores.sqlite features.flights mlflow.store.tracking.sqlalchemy_store mlflow.pyfunc "
    "alembic.command dask.distributed xgboost.dask torch._dynamo safetensors.torch sklearn.pipeline skops.io "
    "evidently.presets",
    "bare": "duckdb sqlite3 pyarrow.parquet dask.distributed xgboost.dask torch._dynamo safetensors.torch "
    "sklearn.pipeline scipy.stats scipy.spatial.distance",
    "glued": "great_expectations.expectations validations.flights feast.infra.online_stores.sqlite "
    "feast.infra.offline_stores.dask features.flights mlflow.store.tracking.sqlalchemy_store mlflow.xgboost "
    "mlflow.pytorch mlflow.sklearn alembic.command dask.distributed xgboost.dask torch._dynamo "
    "safetensors.torch sklearn.pipeline evidently.presets",
}
"""What the stages import, there or on their way: torch takes seconds over its first optimizer."""
HELD = {"weather": "WHERE NOT coalesce(wind_speed > 250, false)"}
"""What the gate holds of the year: one row."""
LIMIT = 900
"""Seconds a side may take."""


def run() -> Result:
    """Pass over the year, ours and bare, each in a fresh process and home."""
    foreign = ("HEADRACE_", "PREFECT_API", "PREFECT_HOME")  # would point it at someone's real state
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with TemporaryDirectory() as folder, patch.dict(os.environ, clean, clear=True):
        with socket.create_server((services.HOST, 0)) as probe:
            port = probe.getsockname()[1]
        settings = Settings(home=Path(folder, "ours"), prefect_api_url=f"http://{services.HOST}:{port}/api")
        began = time.perf_counter()
        with services.running([services.prefect_server(settings)], settings):
            started = time.perf_counter() - began
            ours = _measured("ours", settings)
        glued, bare = (_measured(side, Settings(home=Path(folder, side))) for side in ("glued", "bare"))
    rows = []
    for stage in STAGES:
        (seconds, what), (theirs, likewise), (least, same) = ours[stage], glued[stage], bare[stage]
        assert what == likewise == same, f"{stage}: ours {what}, glued {likewise}, bare {same}: other work"
        rows.append((stage, seconds, theirs, least, theirs / seconds, seconds / least, what))
    total, peer, bound = (sum(side[stage][0] for stage in STAGES) for side in (ours, glued, bare))
    return Result(
        name="lifecycle",
        about="seconds per stage of one pass over the year; rows in brackets do not count",
        ours_s=total,
        peer_s=peer,
        bound_s=bound,
        columns=("stage", "ours", "glued", "bare", "times faster", "times the bare", "all did"),
        rows=(
            *rows,
            ("all five", total, peer, bound, peer / total, total / bound, ""),
            ("(imports)", *(side["imports"][0] for side in (ours, glued, bare)), "", "", ""),
            ("(start the Prefect server)", started, "", "", "", "", ""),
        ),
    )


def child(side: str) -> None:
    """Go through the stages of ``side`` in this process; write down what each took and did."""
    found, began = {}, time.perf_counter()
    for library in LIBRARIES[side].split():
        import_module(library)
    found["imports"] = (time.perf_counter() - began, "")
    began = time.perf_counter()
    for stage, did in {"ours": _ours, "bare": _bare, "glued": _glued}[side]():
        found[stage] = (time.perf_counter() - began, did)
        began = time.perf_counter()
    (Settings().home / "stages.json").write_text(json.dumps(found))


def _ours() -> Iterator[tuple[str, str]]:
    """Name each stage as it ends, and what it did."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.ingest import ingest
    from flows.materialize import materialize
    from flows.monitor import monitor
    from flows.score import score
    from flows.train import train
    from headrace import registry, tracking
    from headrace.project import Project

    project = Project.here()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # as `python -m flows` does
        yield "ingest", f"{sum(ingest('flights', END).values()):,} rows"
        for at in (RELEASE, END):
            materialize("flights", at)
        yield "materialize", ""
        verdict = train("flights", RELEASE, cause="first release")
        released = registry.version(project.mlflow, "flights", int(verdict.challenger))
        scores = tracking.scores(project.mlflow, released.run_id)
        yield "train", f"log-loss {scores['log_loss']:.6f}"
        score("flights", END)
        made = project.lake.connect({"predictions": "predictions/flights"})
        yield "score", _made(made.sql("FROM predictions"))
        yield "monitor", f"{len(monitor('flights', WATCHED))} weeks"


def _glued() -> Iterator[tuple[str, str]]:
    """Name each stage as it ends, and what it did."""
    from benchmarks._glue import glued

    return glued(RELEASE, END, WATCHED, HELD)


def _bare() -> Iterator[tuple[str, str]]:
    """Name each stage as it ends, and what it did."""
    from benchmarks.data import open_files
    from headrace.lake import duckdb_connection, windows
    from headrace.sources import Files

    spec, home = load("flights"), Settings().home
    order = f"ORDER BY event_timestamp, {', '.join(spec.keys)}"

    rows, lake, con = 0, duckdb_connection(), duckdb_connection()
    open_files(con, "flights", "airports", "planes", "weather")
    for source in spec.sources:
        assert isinstance(source.origin, Files)
        known = f"SELECT *, {source.time} AS available_at FROM ({source.origin.select})"
        con.execute(f"COPY ({known} {HELD.get(source.name, '')}) TO '{home}/{source.name}.parquet'")
        landed = lake.read_parquet(f"{home}/{source.name}.parquet")
        landed.create_view(source.name)
        rows += len(landed)
    yield "ingest", f"{rows:,} rows"

    wanted = spec.spine
    with sqlite3.connect(home / "online.db") as online:  # one transaction
        online.execute("CREATE TABLE online (key BLOB, name TEXT, value BLOB, PRIMARY KEY (key, name))")
        for table in spec.feature_tables:
            keys, file = KEYS[table.name], home / f"features_{table.name}.parquet"
            span = {"start": spec.start, "end": END}
            lake.execute(f"COPY ({table.sql.read_text()}) TO '{file}'", span)
            served = f"FROM '{file}' WHERE known_hour >= {RELEASE.timestamp()} // 3600 - 1"
            values = lake.execute(f"""
                FROM (
                    SELECT concat_ws(' ', '{table.name}', {keys})::BLOB AS key,
                           COLUMNS(* EXCLUDE (event_timestamp, available_at, {keys}))::VARCHAR::BLOB
                    {served if "known_hour" in keys else f"FROM '{file}'"}
                ) UNPIVOT INCLUDE NULLS (value FOR name IN (COLUMNS(* EXCLUDE key)))
            """)
            online.executemany("INSERT INTO online VALUES (?, ?, ?)", values.fetchall())
            features = f"SELECT * EXCLUDE (event_timestamp, available_at) FROM '{file}'"
            wanted = f"FROM ({wanted}) LEFT JOIN ({features}) USING ({keys})"
    yield "materialize", ""

    model, learnt, told = _trained(lake, wanted)
    yield "train", told

    due = f"FROM ({wanted}) WHERE event_timestamp >= $at {order}"
    scored = lake.execute(due, {"at": RELEASE}).to_arrow_table()
    made = lake.from_arrow(scored.append_column("probability", [model.predict(scored)]))
    made.write_parquet(f"{home}/predictions.parquet")
    yield "score", _made(made)

    reference = lake.from_arrow(learnt.append_column("probability", [model.predict(learnt)]))
    weeks = windows(RELEASE, WATCHED, WEEK)
    for week in weeks:
        _distances(reference, made.filter(week.predicate("event_timestamp")), spec.columns)
    yield "monitor", f"{len(weeks)} weeks"


def _trained(lake: DuckDBPyConnection, wanted: str) -> tuple[Model, pa.Table, str]:
    """Train on what was known at the release; return the model, what it learnt from, and how good it is."""
    import pyarrow.compute as pc

    from headrace import training
    from headrace.cluster import cluster

    spec = load("flights")
    order = f"ORDER BY event_timestamp, {', '.join(spec.keys)}"
    labelled = f"FROM ({wanted}) JOIN ({spec.label}) USING ({', '.join(spec.keys)})"
    learnt = lake.execute(f"{labelled} WHERE available_at < $at {order}", {"at": RELEASE}).to_arrow_table()
    held = RELEASE - spec.holdout
    before, chosen = pc.less(learnt["available_at"], held), held - spec.holdout
    early = pc.less(learnt["event_timestamp"], chosen)
    known = pc.and_(early, pc.less(learnt["available_at"], chosen))
    seen, choice = learnt.filter(known), learnt.filter(pc.and_(before, pc.invert(early)))
    last = pc.greater_equal(learnt["event_timestamp"], held)
    whole, held_out = learnt.filter(before), learnt.filter(last)

    def fitted(candidate: Candidate, rows: pa.Table) -> Model:
        return training.fit(candidate, rows, spec.columns, spec.problem, client)

    def loss(model: Model, rows: pa.Table) -> float:
        return float(spec.problem.losses(spec.problem.encode(rows["label"]), model.predict(rows)).mean())

    with cluster() as client:
        tried = [loss(fitted(candidate, seen), choice) for candidate in spec.candidates]
        model = fitted(spec.candidates[tried.index(min(tried))], whole)
    return model, learnt.filter(pc.or_(before, last)), f"log-loss {loss(model, held_out):.6f}"


def _distances(learnt: DuckDBPyRelation, week: DuckDBPyRelation, columns: Columns) -> dict[str, float]:
    """Return how far each column lies from what was learnt from, on 4,000 rows of each side at most."""
    import pandas as pd
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    numbers, words = [*columns.numeric, "probability"], list(columns.categorical)
    few = "FROM side USING SAMPLE reservoir(4000 ROWS) REPEATABLE (0)"
    before, now = (side.select(*words, *numbers).query("side", few).df() for side in (learnt, week))
    found = {
        name: wasserstein_distance(before[name].dropna(), now[name].dropna()) / before[name].std()
        for name in numbers
    }
    for name in words:
        shares = pd.concat([side[name].value_counts(normalize=True) for side in (before, now)], axis=1)
        found[name] = jensenshannon(*shares.fillna(0).to_numpy().T)
    return found


def _made(predictions: DuckDBPyRelation) -> str:
    count, mean = predictions.aggregate("count(*), avg(probability)").fetchone() or (0, 0)
    return f"{count:,} predictions, mean {mean:.6f}"


def _measured(side: str, settings: Settings) -> dict[str, tuple[float, str]]:
    """Run ``side`` in a process of its own, with ``settings``."""
    settings.home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.lifecycle import child; child('{side}')"],
        # Dask and MLflow leave files in TMPDIR; there they go with the home.
        env=services.environment(settings)
        | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "TMPDIR": str(settings.home)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    found: dict[str, tuple[float, str]] = json.loads((settings.home / "stages.json").read_text())
    return found
