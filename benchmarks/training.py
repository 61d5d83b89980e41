"""Training, from Delta to a model: ours, bare XGBoost, XGBoost's own way on Dask, and Optuna's plain loop.

Rows: the flights of 2013 with their weather, 24 inputs (5 of them categories), was it 15 minutes late?
Larger sizes are copies whose numbers are moved a little. All read the same rows, from Parquet, and each
run is a process of its own; imports and the start of Dask's workers do not count. Medians of three, but for
the largest sizes.

- one worker: ours through in-process Dask; bare, `pyarrow`, codes by hand, `QuantileDMatrix`, `train`.
  That both models have the same bytes is checked.
- two workers, 2 million rows: ours, on one worker and on two; the peer is XGBoost's documented way on the
  same two: `dask.dataframe.read_parquet`, `DaskQuantileDMatrix`, `xgboost.dask.train`.
- the network: one rank, and two (DistributedDataParallel, gloo).
- a study of 50 trials: ours; Optuna's `study.optimize` with two threads, on rows that it has read once.
- scale: 1x, 6x, 60x the flights, with peak memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.data import open_files
from benchmarks.result import Result, peak_mb

REPEATS, LIMIT = 3, 1500
ONE, SEVERAL, MANY = 1, 6, 60
"""How many times the flights of 2013."""
TREES = {"rounds": 200, "max_depth": 6, "eta": 0.05}
FEW_TREES = {"rounds": 20, "max_depth": 6, "eta": 0.3}
NETWORK = {"epochs": 2, "batch": 4096}
TRIALS = 50
PLAIN = "flights.parquet"
CATEGORIES = ("carrier", "origin", "dest", "engine", "manufacturer")
NUMBERS = (
    *("hour", "minute", "weekday", "month", "distance", "seats", "year", "temp", "dewp", "humid", "wind_dir"),
    *("wind_speed", "wind_gust", "precip", "pressure", "visib", "flight", "at", "span"),
)


def run() -> Result:
    """Measure each side, in turns."""
    with TemporaryDirectory() as folder:
        for copies in (ONE, SEVERAL, MANY):
            _child("write", folder, copies)
        sides: dict[str, list[dict[str, Any]]] = {}
        for side, copies, times in (
            ("ours", ONE, REPEATS),
            ("bare", ONE, REPEATS),
            ("ours", SEVERAL, REPEATS),
            ("ours_two", SEVERAL, REPEATS),
            ("dask", SEVERAL, REPEATS),
            ("network", ONE, REPEATS),
            ("network_two", ONE, REPEATS),
            ("study", ONE, 1),
            ("loop", ONE, 1),
            ("ours", MANY, 1),
        ):
            sides[f"{side} {copies}"] = [_child(side, folder, copies) for _ in range(times)]
    took = {name: median(one["seconds"] for one in found) for name, found in sides.items()}
    peak = {name: max(one["peak_mb"] for one in found) for name, found in sides.items()}
    count = {name: found[0]["rows"] for name, found in sides.items()}
    digests = {name: {one["digest"] for one in found} for name, found in sides.items()}
    for name, found in digests.items():
        assert len(found) == 1, f"{name} is another model each time: {found}"
    assert digests["ours 1"] == digests["bare 1"], "not the same bytes as bare XGBoost"

    def row(what: str, name: str, beside: str = "") -> tuple[object, ...]:
        ratio = took[beside] / took[name] if beside else ""
        return what, count[name], took[name], ratio, 1e6 * took[name] / count[name], round(peak[name])

    rows = (
        row("200 trees, ours", "ours 1"),
        row("  bare XGBoost, the same bytes", "bare 1", "ours 1"),
        row("20 trees, ours, one worker", "ours 6"),
        row("  two workers", "ours_two 6", "ours 6"),
        row("  XGBoost's own way on the same two", "dask 6", "ours_two 6"),
        row("network, one rank", "network 1"),
        row("  two ranks", "network_two 1", "network 1"),
        row(f"study of {TRIALS} trials, ours", "study 1"),
        row("  Optuna's plain loop, two threads", "loop 1", "study 1"),
        row("20 trees, 60x", "ours 60"),
    )
    return Result(
        name="training",
        about="from Delta to a model; 24 inputs",
        ours_s=took["ours 1"],
        peer_s=took["dask 6"] / took["ours_two 6"] * took["ours 1"],
        bound_s=took["bare 1"],
        columns=("work", "rows", "seconds", "times as fast", "µs per row", "peak MB"),
        rows=rows,
        more={
            "two_workers_ratio": round(took["ours 6"] / took["ours_two 6"], 2),
            "study_ratio": round(took["loop 1"] / took["study 1"], 2),
            "peak_mb_largest": round(peak["ours 60"]),
        },
    )


def child(side: str, folder: str, copies: int) -> None:
    """Do one side's work; print what it took as JSON."""
    print(json.dumps(globals()[f"_{side}"](Path(folder), copies) | {"peak_mb": peak_mb()}))


def _child(side: str, folder: str, copies: int) -> dict[str, Any]:
    call = f"child({side!r}, {folder!r}, {copies})"
    code = f"from benchmarks.training import child\nif __name__ == '__main__': {call}"
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{side} {copies}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write(folder: Path, copies: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from headrace.lake import Lake, duckdb_connection

    os.environ["HEADRACE_HOME"] = str(folder / "home")
    con = duckdb_connection(memory="2GB")
    open_files(con, "flights", "weather", "planes")
    moved = ", ".join(
        f"({name} * (1 + 0.02 * (hash({name}, copy, id, {n}) % 1000) / 1000.0))::FLOAT AS {name}"
        for n, name in enumerate(("seats", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust",
                                  "pressure"))
    )  # fmt: skip
    con.execute(
        """
        CREATE TABLE once AS
        SELECT row_number() OVER (ORDER BY flights.time_hour, minute, carrier, flight) AS id,
            carrier, flights.origin, dest, engine, manufacturer, flights.hour, minute,
            dayofweek(flights.time_hour) AS weekday, flights.month, distance, seats, planes.year, temp, dewp,
            humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib, flight,
            epoch(flights.time_hour)::DOUBLE AS at, (flights.hour * 60 + minute)::DOUBLE AS span,
            (arr_delay >= 15)::INTEGER AS label
        FROM flights LEFT JOIN planes USING (tailnum)
        LEFT JOIN weather ON weather.origin = flights.origin
            AND weather.time_hour = flights.time_hour - INTERVAL 2 HOUR
        WHERE arr_delay IS NOT NULL
        """
    )

    query = (
        f"SELECT * REPLACE ({moved}), TIMESTAMPTZ '2013-01-01' + to_seconds(copy * 1000000 + id) "
        "AS event_timestamp FROM once, (SELECT $copy AS copy)"
    )

    def rows() -> Any:
        import pyarrow as pa

        first = con.execute(query, {"copy": 0}).to_arrow_table().drop_columns(["copy"])
        schema = first.schema

        def batches() -> Any:
            for copy in range(copies):
                made = con.execute(query, {"copy": copy}).to_arrow_table().drop_columns(["copy"])
                yield from made.cast(schema).to_batches(max_chunksize=100_000)

        return pa.RecordBatchReader.from_batches(schema, batches())

    Lake(str(folder)).table(f"training/flights{copies}").replace(rows)
    if copies == 1:  # Delta's writer keeps no order, and models of other orders have other bytes
        made = con.execute(query, {"copy": 0}).to_arrow_table().drop_columns(["copy"])
        pq.write_table(made.sort_by("event_timestamp"), folder / PLAIN)
    return {}


def _rows(folder: Path, copies: int) -> Any:
    from headrace.lake import Lake
    from headrace.training.rows import InLake

    lake = Lake(str(folder))
    return InLake(lake, lake.at(f"training/flights{copies}", 1), (*CATEGORIES, *NUMBERS, "label"))


def _fitted(
    trainer: str, params: dict[str, Any], folder: Path, copies: int, workers: int = 1
) -> dict[str, Any]:
    import xgboost  # noqa: F401

    from headrace import training
    from headrace.cluster import cluster
    from headrace.pipeline import Candidate, Columns
    from headrace.problem import Binary
    from headrace.training.model import digest

    candidate, columns = Candidate("benchmark", trainer, params), Columns(CATEGORIES, NUMBERS)
    with cluster(workers=workers) as client:
        client.run(__import__, trainer)
        began = time.perf_counter()
        rows = _rows(folder, copies)
        model = training.fit(candidate, rows, columns, Binary(), client)
        took = time.perf_counter() - began
    if trainer == "xgboost":
        return {"seconds": took, "rows": rows.count, "digest": _digest(model.native.booster)}
    with TemporaryDirectory() as place:
        model.save(Path(place))
        return {"seconds": took, "rows": rows.count, "digest": digest(Path(place))}


def _digest(booster: Any) -> str:
    from hashlib import sha256

    return sha256(booster.save_raw()).hexdigest()


def _ours(folder: Path, copies: int) -> dict[str, Any]:
    return _fitted("xgboost", TREES if copies == ONE else FEW_TREES, folder, copies)


def _ours_two(folder: Path, copies: int) -> dict[str, Any]:
    return _fitted("xgboost", FEW_TREES, folder, copies, workers=2)


def _network(folder: Path, copies: int) -> dict[str, Any]:
    return _fitted("torch", NETWORK, folder, copies)


def _network_two(folder: Path, copies: int) -> dict[str, Any]:
    return _fitted("torch", NETWORK, folder, copies, workers=2)


def _files(folder: Path, copies: int) -> list[str]:
    from deltalake import DeltaTable

    return sorted(DeltaTable(str(folder / f"training/flights{copies}")).file_uris())


def _bare(folder: Path, copies: int) -> dict[str, Any]:
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xgboost

    began = time.perf_counter()
    table = pq.read_table(folder / PLAIN, columns=[*CATEGORIES, *NUMBERS, "label"])
    matrix = np.empty((table.num_rows, len(CATEGORIES) + len(NUMBERS)), np.float32)
    for place, name in enumerate(CATEGORIES):
        known = sorted(pc.unique(table[name]).drop_null().to_pylist())
        codes = pc.index_in(table[name], value_set=__import__("pyarrow").array(known))
        matrix[:, place] = pc.fill_null(codes.cast("float32"), np.nan).to_numpy()
    for place, name in enumerate(NUMBERS, len(CATEGORIES)):
        matrix[:, place] = pc.fill_null(table[name].cast("float32", safe=False), np.nan).to_numpy()
    data = xgboost.QuantileDMatrix(
        matrix,
        table["label"].to_numpy(),
        feature_names=[*CATEGORIES, *NUMBERS],
        feature_types=["c"] * len(CATEGORIES) + ["q"] * len(NUMBERS),
        enable_categorical=True,
    )
    own = {name: value for name, value in TREES.items() if name != "rounds"}
    asked = {"objective": "binary:logistic", "tree_method": "hist", "device": "cpu", "seed": 0, **own}
    booster = xgboost.train(asked, data, TREES["rounds"])
    took = time.perf_counter() - began
    return {"seconds": took, "rows": table.num_rows, "digest": _digest(booster)}


def _dask(folder: Path, copies: int) -> dict[str, Any]:
    import xgboost  # noqa: F401
    from dask import dataframe
    from xgboost import dask as xgb

    from headrace.cluster import cluster

    with cluster(workers=2) as client:
        client.run(__import__, "xgboost")
        began = time.perf_counter()
        with client.as_current():
            frame = dataframe.read_parquet(_files(folder, copies), columns=[*CATEGORIES, *NUMBERS, "label"])
            frame = frame.categorize(columns=list(CATEGORIES))
            inputs = frame[[*CATEGORIES, *NUMBERS]]
            data = xgb.DaskQuantileDMatrix(client, inputs, frame["label"], enable_categorical=True)
            own = {name: value for name, value in FEW_TREES.items() if name != "rounds"}
            asked = {"objective": "binary:logistic", "tree_method": "hist", **own}
            xgb.train(client, asked, data, FEW_TREES["rounds"])
            took = time.perf_counter() - began
            rows = len(frame)
    return {"seconds": took, "rows": rows, "digest": ""}


SPACE = ("max_depth", "eta", "subsample")


def _study(folder: Path, copies: int) -> dict[str, Any]:
    from datetime import UTC, datetime

    import optuna  # noqa: F401
    import xgboost  # noqa: F401
    from mlflow import MlflowClient  # noqa: F401

    from headrace import release as releases
    from headrace.cluster import cluster
    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Candidate, Columns, Float, Int, Pipeline
    from headrace.tracking import MLflow
    from headrace.training import dataset

    search: Any = {"max_depth": Int(3, 8), "eta": Float(0.02, 0.3, log=True), "subsample": Float(0.5, 1)}
    candidate = Candidate("trees", "xgboost", {"rounds": 50}, search=search)
    columns, start = Columns(CATEGORIES, NUMBERS), datetime(2013, 1, 1, tzinfo=UTC)
    spec = Pipeline("flights", "", "", start, (), (), "", (), "", "", columns, (candidate,))
    lake, home = Lake(str(folder)), folder / "study"
    home.mkdir(exist_ok=True)
    train, others = _parts(folder, copies)
    halves: Any = {("train",): train, ("selection",): others}
    dataset.learnt = lambda spec, data, lake, spans: halves[spans]  # type: ignore[assignment]
    data = lake.table(f"training/flights{copies}").snapshot()
    study = releases.Study(spec, candidate, data)
    ledger, mlflow = Ledger(f"sqlite:///{home}/ledger.db"), MLflow(f"sqlite:///{home}/mlflow.db", home)
    with cluster() as client:
        began = time.perf_counter()
        as_of = datetime(2014, 1, 1, tzinfo=UTC)
        tried = list(releases.tune(study, TRIALS, ledger, lake, mlflow, client, as_of, "a benchmark"))
        took = time.perf_counter() - began
    return {"seconds": took, "rows": train.count, "digest": str(min(t.loss for t in tried if t.loss))}


def _parts(folder: Path, copies: int) -> tuple[Any, Any]:
    rows = _rows(folder, copies)
    return rows.share(0, 2), rows.share(1, 2)


def _loop(folder: Path, copies: int) -> dict[str, Any]:
    import numpy as np
    import optuna
    import xgboost

    from headrace.pipeline import Columns
    from headrace.problem import Binary
    from headrace.training.encoding import Encoder

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began = time.perf_counter()
    train, others = _parts(folder, copies)
    encoder = Encoder.fit(train, Columns(CATEGORIES, NUMBERS))
    learnt, held = encoder.learnt(train, Binary()), encoder.learnt(others, Binary())
    told = {"feature_types": ["c"] * len(CATEGORIES) + ["q"] * len(NUMBERS), "enable_categorical": True}
    data = xgboost.QuantileDMatrix(learnt.matrix, learnt.targets, **told)
    watched = xgboost.QuantileDMatrix(held.matrix, held.targets, ref=data, **told)

    def objective(trial: optuna.Trial) -> float:
        asked = {
            "max_depth": trial.suggest_int("max_depth", 3, 8),
            "eta": trial.suggest_float("eta", 0.02, 0.3, log=True),
            "subsample": trial.suggest_float("subsample", 0.5, 1),
        }
        fixed = {"objective": "binary:logistic", "tree_method": "hist", "nthread": 1}
        seen: dict[str, Any] = {}
        xgboost.train(fixed | asked, data, 50, evals=[(watched, "w")], evals_result=seen, verbose_eval=False)
        return float(np.min(seen["w"]["logloss"]))

    storage = f"sqlite:///{folder}/loop.db"
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, TRIALS, n_jobs=2)
    took = time.perf_counter() - began
    return {"seconds": took, "rows": train.count, "digest": ""}
