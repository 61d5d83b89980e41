"""Gradient-boosted trees: XGBoost on Dask, one partition per worker, which reads its own rows.

One worker runs ``xgboost.train`` itself: there is nobody to agree with. On several the
model is the same in every run, because each worker always gets the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

from headrace.cluster import all_alive, crew, gpus, on_each
from headrace.training.encoding import Encoder, Learnt
from headrace.training.rows import WEIGHT, InMemory
from headrace.training.trainers import hopeless

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray
    from xgboost import Booster

    from headrace.cluster import Worker
    from headrace.pipeline import Columns
    from headrace.problem import Problem
    from headrace.training.rows import Rows

PACKAGES = ("xgboost",)
PLAIN = True
FILE = "model.ubj"
PATIENCE = 300
"""Seconds workers wait for each other."""
WHOLE = 2**30
"""Up to how many bytes a matrix of floats is made at once: whatever the machine, so that models repeat."""
NOT_OF_THE_BOOSTER = ("rounds", "early_stopping_rounds", "external_memory")

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
    """Trees, the encoder they were grown through; ``settled`` and ``history`` as trainers have them."""

    encoder: Encoder
    booster: Booster
    settled: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def single(self) -> Booster:
        """The trees, to predict a few rows in one thread: threads would only wait for each other."""
        copied = self.booster.copy()
        copied.set_param({"nthread": 1})
        return copied


@dataclass(frozen=True)
class Job:
    """What to boost: the same on every worker."""

    options: Mapping[str, Any]
    rounds: int
    patience: int | None
    encoder: Encoder
    problem: Problem
    external: bool
    give_up: Mapping[int, float]

    @property
    def told(self) -> dict[str, Any]:
        """What XGBoost is told of any matrix."""
        return {
            "feature_names": [name.translate(UNNAMEABLE) for name in self.encoder.names],
            "feature_types": feature_types(self.encoder),
        }

    @property
    def binned(self) -> dict[str, Any]:
        """What it is told of one that it cuts into bins."""
        return {"enable_categorical": True, "max_bin": self.options.get("max_bin")}


def fit(
    params: Mapping[str, Any],
    seed: int,
    rows: Rows,
    *,
    columns: Columns,
    problem: Problem,
    client: Client | None,
    selection: Rows | None,
    give_up: Mapping[int, float],
) -> Boosted:
    """Boost ``params["rounds"]`` (100) trees; all but ``external_memory`` are XGBoost's own parameters.

    With ``early_stopping_rounds`` it stops when the selection has lost nothing for so many rounds, and
    keeps the best. With ``external_memory`` the matrix lies on disk: slower, for more rows than fit.
    """
    workers = crew(client)
    encoder = Encoder.fit(rows, columns)
    options = booster_params(params, seed, "cuda" if gpus(workers) else "cpu", problem)
    if not gpus(workers):
        options["device"] = "cpu"  # whatever was asked for: XGBoost would say nothing, and do the same
    patience = params.get("early_stopping_rounds") if selection else None
    external = bool(params.get("external_memory"))
    job = Job(options, params.get("rounds", 100), patience, encoder, problem, external, give_up)
    if client is None or len(workers) == 1:
        options.setdefault("nthread", workers[0].threads)
        booster, history = on_each(client, workers, _alone, [(job, rows, selection)])[0]
    else:
        booster, history = _together(job, rows, selection, workers, client)
    booster.set_param({"device": "cpu"})  # where it will predict, whatever it was trained on
    settled = {}
    if patience:
        settled = {"rounds": booster.best_iteration + 1}
        booster = booster[: booster.best_iteration + 1]
        booster.set_attr(best_iteration=None, best_score=None)  # the same bytes as if it had been told so
    return Boosted(encoder, booster, settled, history)


def _together(
    job: Job, rows: Rows, selection: Rows | None, workers: Sequence[Worker], client: Client
) -> tuple[Booster, dict[str, list[float]]]:
    """Train on all workers, each on a part of the rows, always the same, which it reads by itself."""
    from dask import array as da
    from xgboost import collective
    from xgboost import dask as xgb

    def pinned(whole: Rows, kind: Any, **more: Any) -> Any:
        given: dict[str, list[Any]] = {"matrix": [], "targets": [], "weights": []}
        weighed = WEIGHT in next(whole.parts()).column_names
        for place, worker in enumerate(workers):
            share, there = whole.share(place, len(workers)), [worker.address]
            [sent] = client.scatter([share], workers=there, hash=False)
            learnt = client.submit(_learnt, job, sent, workers=there, pure=False)
            for name, pieces in given.items():
                if name != "weights" or weighed:
                    width = (len(job.encoder.names),) if name == "matrix" else ()
                    piece = client.submit(getattr, learnt, name, workers=there, pure=False)
                    pieces.append(da.from_delayed(piece, (share.count, *width), "float32"))
        matrix, targets, weights = (da.concatenate(pieces) if pieces else None for pieces in given.values())
        data = kind(client, matrix, targets, weight=weights, enable_categorical=True, **job.told, **more)
        # That a partition stays where it was made is Dask's habit, not its promise, and the model needs it.
        parts = {part.key: part for kept in data.worker_map.values() for part in kept}
        order = zip(workers, data.partition_order, strict=True)
        data.worker_map = {worker.address: [parts[key]] for worker, key in order}
        return data

    network = collective.Config(
        timeout=PATIENCE,
        tracker_timeout=PATIENCE,
        # Left alone, a tracker inside this process would listen to the whole network.
        tracker_host_ip="127.0.0.1" if workers[0].address.startswith("inproc") else None,
    )
    # xgboost.dask sometimes asks for the default client instead, and would hang if another run in this
    # process has made one since. What makes a client current changes a setting of the whole process, and of
    # two that overlap the one that ends last would leave it changed.
    with CURRENT, client.as_current(), all_alive(client, workers):
        data = pinned(rows, xgb.DaskQuantileDMatrix, max_bin=job.options.get("max_bin"))
        watched = [(data, "train"), (pinned(selection, xgb.DaskDMatrix), "selection")] if selection else []
        trained = xgb.train(
            client,
            job.options,
            data,
            job.rounds,
            evals=watched,
            early_stopping_rounds=job.patience,
            callbacks=_callbacks(job),
            coll_cfg=network,
            verbose_eval=False,
        )
    return trained["booster"], _flat(trained["history"])


def _callbacks(job: Job) -> list[Any]:
    """Return what lets training end where it is hopeless: at the same round on each worker."""
    from xgboost.callback import TrainingCallback

    class GiveUp(TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return epoch + 1 in job.give_up and hopeless(_flat(evals_log), job.give_up)

    return [GiveUp()] if job.give_up else []


def _learnt(job: Job, rows: Rows) -> Learnt:
    learnt = job.encoder.learnt(rows, job.problem)
    weights = None if learnt.weights is None else learnt.weights.astype("float32")
    return Learnt(learnt.matrix, learnt.targets.astype("float32"), weights)


def _alone(job: Job, rows: Rows, selection: Rows | None) -> tuple[Booster, dict[str, list[float]]]:
    """Train where this runs: with one worker there is nobody to agree with."""
    import xgboost

    with TemporaryDirectory(prefix="headrace-xgboost-") as scratch:
        data = _matrix(job, rows, scratch)
        watched = [(data, "train")] if selection else []
        if selection:
            watched.append((_matrix(job, selection, scratch, data), "selection"))
        history: dict[str, dict[str, list[float]]] = {}
        booster = xgboost.train(
            job.options,
            data,
            job.rounds,
            evals=watched,
            early_stopping_rounds=job.patience,
            evals_result=history,
            callbacks=_callbacks(job),
            verbose_eval=False,
        )
        del data, watched  # before the folder that they read
    return booster, _flat(history)


def _matrix(job: Job, rows: Rows, scratch: str, ref: Any = None) -> Any:
    """Return ``rows`` in bins: made of them at once, or, if they are many, part by part."""
    import xgboost

    told = {**job.binned, "ref": ref}
    whole = rows.count * len(job.encoder.names) * 4 <= WHOLE
    if whole and not job.external:
        learnt = job.encoder.learnt(rows, job.problem)
        if ref is not None:  # not in bins: there it takes longer to predict in each round
            return xgboost.DMatrix(
                learnt.matrix, learnt.targets, weight=learnt.weights, enable_categorical=True, **job.told
            )
        return xgboost.QuantileDMatrix(
            learnt.matrix, learnt.targets, weight=learnt.weights, **job.told, **told
        )

    class Parts(xgboost.DataIter):
        """The rows as XGBoost asks for them, more than once."""

        def __init__(self) -> None:
            self.left = rows.parts()
            super().__init__(cache_prefix=f"{scratch}/{id(self)}" if job.external else None)

        def reset(self) -> None:
            self.left = rows.parts()

        def next(self, input_data: Callable[..., Any]) -> bool:
            part = next(self.left, None)
            if part is None:
                return False
            learnt = job.encoder.learnt(InMemory(part), job.problem)
            input_data(data=learnt.matrix, label=learnt.targets, weight=learnt.weights, **job.told)
            return True

    kind = xgboost.ExtMemQuantileDMatrix if job.external else xgboost.QuantileDMatrix
    return kind(Parts(), **told)


def _flat(history: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    return {f"{span}/{name}": list(of) for span, named in history.items() for name, of in named.items()}


def booster_params(params: Mapping[str, Any], seed: int, device: str, problem: Problem) -> dict[str, Any]:
    """Return ``params`` as XGBoost takes them: some are arguments of its functions."""
    own = {name: value for name, value in params.items() if name not in NOT_OF_THE_BOOSTER}
    asked: dict[str, Any] = {"objective": OBJECTIVES[problem.objective]}
    if problem.objective == "classes":
        asked["num_class"] = problem.width
    if problem.objective == "quantile":
        asked["quantile_alpha"] = list(problem.levels)
    return {**asked, "tree_method": "hist", "device": device, "seed": seed, **own}


def feature_types(encoder: Encoder) -> list[str]:
    """Return XGBoost's type of each column of the matrix: ``c`` for codes, ``q`` for quantities."""
    return ["c"] * len(encoder.categories) + ["q"] * len(encoder.numeric)


def predict(native: Boosted, rows: pa.Table | Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
    """Return what the trees say of ``rows``."""
    booster = native.single if isinstance(rows, Mapping) else native.booster
    predicted: NDArray[np.float32] = booster.inplace_predict(native.encoder.encode(rows))
    return predicted


def contributions(native: Boosted, rows: pa.Table) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Return the inputs, and what each adds to a prediction before its link (SHAP), as the last axis."""
    import xgboost

    encoder = native.encoder
    told = {"feature_names": native.booster.feature_names, "feature_types": feature_types(encoder)}
    data = xgboost.DMatrix(encoder.encode(rows), enable_categorical=True, **told)
    found: NDArray[np.float32] = native.booster.predict(data, pred_contribs=True)
    return encoder.names, found[..., :-1]


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
