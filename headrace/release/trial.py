"""A trial: one candidate fitted on some spans of a training set, and scored once on another."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from headrace import cluster, gate, spine, tracking, training
from headrace.cluster import crew, peak_mb
from headrace.release import proof
from headrace.training import dataset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Any

    import numpy as np
    import pyarrow as pa
    from dask.distributed import Client
    from numpy.typing import NDArray

    from headrace.lake import DatasetRef, Lake
    from headrace.pipeline import Candidate, Pipeline
    from headrace.tracking import Logged, MLflow
    from headrace.training import Model

One = TypeVar("One", "Trial", "Fitted")
ONES = 21
"""Rows that are predicted one by one to see how long that takes."""


@dataclass(frozen=True)
class Trial:
    """A fitted candidate as MLflow keeps it, its scores, and what each row that it was scored on costs it.

    ``final`` ones were scored on the holdout, others on the selection. ``losses`` and ``groups`` have
    the shape ``(n,)``, ``predictions`` that of the problem's, in the order of ``dataset.read``. ``costs`` are
    the ``latency_ms`` of one row and the model's ``size_mb``. ``settled`` are parameters that the selection
    settled, such as the number of rounds; ``without_gpu`` says why it did without, if one was there
    or asked for.
    """

    candidate: str
    final: bool
    logged: Logged
    scores: Mapping[str, float]
    predictions: NDArray[np.float64] = field(repr=False)
    losses: NDArray[np.float64] = field(repr=False)
    groups: NDArray[Any] = field(repr=False)
    seconds: float
    costs: Mapping[str, float] = field(default_factory=dict)
    settled: Mapping[str, Any] = field(default_factory=dict)
    without_gpu: str = ""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A candidate's ``model``, and how it did on ``rows`` that it has not learnt from.

    Names as of :class:`Trial`; ``seconds`` are what the fit took.
    """

    candidate: str
    model: Model
    rows: pa.Table
    truth: NDArray[np.float64]
    predictions: NDArray[np.float64]
    losses: NDArray[np.float64]
    groups: NDArray[Any]
    seconds: float

    @property
    def settled(self) -> Mapping[str, Any]:
        """Parameters that the selection settled."""
        found: Mapping[str, Any] = getattr(self.model.native, "settled", {})
        return found


def fit(
    spec: Pipeline,
    candidate: Candidate,
    data: DatasetRef,
    lake: Lake,
    client: Client | None,
    *,
    final: bool,
) -> Fitted:
    """Fit ``candidate``, and predict rows that it has not learnt from; which, see :func:`try_out`."""
    start, (learn, score) = time.perf_counter(), _spans(final=final)
    selection = None if final or not spec.selects else dataset.learnt(spec, data, lake, (score,))
    rows = dataset.learnt(spec, data, lake, learn)
    model = training.fit(candidate, rows, spec.columns, spec.problem, client, selection)
    took, others = time.perf_counter() - start, dataset.read(spec, data, lake, (score,))
    truth, predicted = spec.problem.encode(others["label"]), model.predict(others)
    losses, groups = spec.problem.losses(truth, predicted), gate.groups(spec.gate, others)
    return Fitted(candidate.name, model, others, truth, predicted, losses, groups, took)


def _spans(*, final: bool) -> tuple[tuple[str, ...], str]:
    """Return the spans that a trial learns from, and the one that it is scored on."""
    return (spine.LEARNT, spine.HOLDOUT) if final else ((spine.TRAIN,), spine.SELECTION)


def try_out(
    spec: Pipeline,
    candidate: Candidate,
    data: DatasetRef,
    *,
    final: bool,
    sources: Sequence[DatasetRef],
    lake: Lake,
    mlflow: MLflow,
    cause: str,
    as_of: datetime,
    client: Client,
    folder: Path | None = None,
    page: str = "",
) -> Trial:
    """Fit ``candidate``, score it on rows that it has not learnt from, and log both.

    A ``final`` trial learns from all of ``data`` before the holdout, and is scored on that, for the gate to
    judge by; others learn from what is to train on, and are scored on the selection.
    ``sources``, ``cause``, ``as_of``, ``folder`` and ``page`` are those of ``tracking.log_candidate``.

    Raises:
        DamagedTable: What the gate is to judge by, ``data``, is not what was written.
        UnknownTrainer: There is no such trainer.
        BadOutputs: What it predicts is no prediction.
    """
    start = time.perf_counter()
    if final:
        lake.check(data)
    workers = crew(client)
    asked = str(candidate.params.get("device", "")).startswith("cuda")
    without_gpu = cluster.without_gpu(workers, asked=asked)
    one = fit(spec, candidate, data, lake, client, final=final)
    model, scores = one.model, spec.problem.scores(one.truth, one.predictions)
    spent = {"seconds/fit": one.seconds, "seconds/score": time.perf_counter() - start - one.seconds}
    costs = _costs(model, one.rows) if final else {}
    logged = tracking.log_candidate(
        mlflow,
        spec,
        candidate,
        model,
        {**scores, **spent, "memory/peak_mb": peak_mb(client)}
        | {f"cost/{name}": cost for name, cost in costs.items()},
        training=data,
        sources=sources,
        lake=lake,
        cause=cause,
        as_of=as_of,
        workers=workers,
        without_gpu=without_gpu,
        folder=folder,
        page=page,
        history=getattr(model.native, "history", {}),
        spans=_spans(final=final)[0],
        role="challenger" if final else "candidate",
    )
    if final:
        for name, data_of in proof.artifacts(
            spec, candidate.name, model, one.rows, one.truth, one.predictions, as_of
        ).items():
            tracking.keep(mlflow, logged.run_id, name, data_of)
    return Trial(
        candidate.name,
        final,
        logged,
        scores,
        one.predictions,
        one.losses,
        one.groups,
        time.perf_counter() - start,
        costs,
        one.settled,
        without_gpu,
    )


def _costs(model: Model, rows: pa.Table) -> dict[str, float]:
    """Return what it takes to serve a model: the median time of a row, and the size of its files."""
    took = []
    for place in range(min(ONES, rows.num_rows)):
        one = rows.slice(place, 1)
        began = time.perf_counter()
        model.predict(one)
        took.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch))
        size = sum(file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file())
    return {"latency_ms": 1_000 * median(took), "size_mb": size / 1e6}


def settled(spec: Pipeline, chosen: Trial | Fitted) -> Candidate:
    """Return the chosen candidate, with what the selection settled, to be fitted again."""
    candidate = next(c for c in spec.candidates if c.name == chosen.candidate)
    return replace(candidate, params={**candidate.params, **chosen.settled})


def choose(spec: Pipeline, trials: Sequence[One]) -> One:
    """Return the trial to put forward: the first, unless a later one passes the gate against it."""
    chosen = gate.best(spec.gate, {trial.candidate: trial.losses for trial in trials}, trials[0].groups)
    return next(trial for trial in trials if trial.candidate == chosen)
