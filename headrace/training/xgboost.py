"""Gradient-boosted trees: XGBoost on Dask, one partition per worker.

One worker runs ``xgboost.train`` itself: there is nobody to agree with. On several the
model is the same in every run, because each worker always gets the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

from headrace.cluster import crew, gpus
from headrace.training.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from xgboost import Booster

    from headrace.cluster import Worker
    from headrace.pipeline import Columns
    from headrace.problem import Problem

PACKAGES = ("xgboost",)
FILE = "model.ubj"
PATIENCE = 300
"""Seconds workers wait for each other."""

UNNAMEABLE = str.maketrans("[]<", "［］＜")  # noqa: RUF001  # their likes
"""What XGBoost takes in no name of a column."""

OBJECTIVES = {
    "binary": "binary:logistic",
    "classes": "multi:softprob",
    "squared": "reg:squarederror",
    "absolute": "reg:absoluteerror",
    "poisson": "count:poisson",
    "quantile": "reg:quantileerror",
}
CURRENT = Lock()
"""One training at a time in a process."""


@dataclass(frozen=True)
class Boosted:
    """Trees, and the encoder that they were grown through."""

    encoder: Encoder
    booster: Booster


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: pa.Table,
    targets: NDArray[np.float64],
    *,
    columns: Columns,
    problem: Problem,
    client: Client,
) -> Boosted:
    """Boost ``params["rounds"]`` (100) trees; every other parameter is XGBoost's own."""
    import numpy as np

    workers = crew(client)
    encoder = Encoder.fit(rows, columns)
    options = booster_params(params, seed, "cuda" if gpus(workers) else "cpu", problem)
    rounds, matrix, target = params.get("rounds", 100), encoder.encode(rows), targets.astype(np.float32)
    told = {
        "feature_names": [name.translate(UNNAMEABLE) for name in encoder.names],
        "feature_types": feature_types(encoder),
        "enable_categorical": True,
        "max_bin": options.get("max_bin"),
    }
    if len(workers) == 1:
        options.setdefault("nthread", workers[0].threads)
        sent = client.scatter([matrix, target], workers=[workers[0].address], hash=False)
        booster: Booster = client.submit(_alone, options, rounds, *sent, pure=False, **told).result()
    else:
        booster = _together(options, rounds, matrix, target, told, workers, client)
    booster.set_param({"device": "cpu"})  # where it will predict, whatever it was trained on
    return Boosted(encoder, booster)


def _together(
    options: dict[str, Any],
    rounds: int,
    matrix: NDArray[np.float32],
    labels: NDArray[np.float32],
    told: Mapping[str, Any],
    workers: Sequence[Worker],
    client: Client,
) -> Booster:
    """Train on all workers, each on a part of the rows, always the same."""
    import numpy as np
    from dask import array as da
    from xgboost import collective
    from xgboost import dask as xgb

    def pinned(whole: NDArray[np.float32]) -> da.Array:
        parts = np.array_split(whole, len(workers))
        futures = [
            client.scatter(part, workers=[worker.address], hash=False)
            for part, worker in zip(parts, workers, strict=True)
        ]
        return da.concatenate(
            [da.from_delayed(f, p.shape, p.dtype) for f, p in zip(futures, parts, strict=True)]
        )

    network = collective.Config(
        timeout=PATIENCE,
        tracker_timeout=PATIENCE,
        # Left alone, a tracker inside this process would listen to the whole network.
        tracker_host_ip="127.0.0.1" if workers[0].address.startswith("inproc") else None,
    )
    # xgboost.dask sometimes asks for the default client instead, and would hang if another run in this
    # process has made one since. What makes a client current changes a setting of the whole process, and of
    # two that overlap the one that ends last would leave it changed.
    with CURRENT, client.as_current():
        data = xgb.DaskQuantileDMatrix(client, pinned(matrix), pinned(labels), **told)
        # That a partition stays where it was sent is Dask's habit, not its promise, and the model needs it.
        parts = {part.key: part for kept in data.worker_map.values() for part in kept}
        order = zip(workers, data.partition_order, strict=True)
        data.worker_map = {worker.address: [parts[key]] for worker, key in order}
        trained = xgb.train(client, options, data, rounds, coll_cfg=network)
    booster: Booster = trained["booster"]
    return booster


def _alone(
    options: dict[str, Any],
    rounds: int,
    matrix: NDArray[np.float32],
    labels: NDArray[np.float32],
    **told: Any,
) -> Booster:
    """Train where this runs: with one worker there is nobody to agree with."""
    import xgboost

    data = xgboost.QuantileDMatrix(matrix, labels, **told)
    return xgboost.train(options, data, rounds)


def booster_params(params: Mapping[str, Any], seed: int, device: str, problem: Problem) -> dict[str, Any]:
    """Return ``params`` as XGBoost takes them: ``rounds`` is an argument of its own."""
    own = {name: value for name, value in params.items() if name != "rounds"}
    asked: dict[str, Any] = {"objective": OBJECTIVES[problem.objective]}
    if problem.objective == "classes":
        asked["num_class"] = problem.width
    if problem.objective == "quantile":
        asked["quantile_alpha"] = list(problem.levels)
    return {**asked, "tree_method": "hist", "device": device, "seed": seed, **own}


def feature_types(encoder: Encoder) -> list[str]:
    """Return XGBoost's type of each column of the matrix: ``c`` for codes, ``q`` for quantities."""
    return ["c"] * len(encoder.categories) + ["q"] * len(encoder.numeric)


def predict(native: Boosted, rows: pa.Table) -> NDArray[np.float32]:
    """Return what the trees say of ``rows``."""
    predicted: NDArray[np.float32] = native.booster.inplace_predict(native.encoder.encode(rows))
    return predicted


def save(native: Boosted, directory: Path) -> None:
    """Write the trees as UBJSON."""
    native.encoder.save(directory)
    native.booster.save_model(directory / FILE)


def load(directory: Path) -> Boosted:
    """Read what ``save`` wrote."""
    from xgboost import Booster

    return Boosted(Encoder.load(directory), Booster(model_file=directory / FILE))


def flavour(directory: str) -> tuple[str, dict[str, str]]:
    """Return under which name, and with what, MLflow finds the trees that lie in ``directory``."""
    return "xgboost", {
        "data": f"{directory}/{FILE}",
        "model_class": "xgboost.core.Booster",
        "model_format": "ubj",
        "xgb_version": version("xgboost"),
    }
