"""The verdict: is the challenger better than who serves or, if nobody does, than a guess from the past?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import gate, registry, spine, tracking
from headrace.instants import shown
from headrace.problem import guess
from headrace.training import dataset

if TYPE_CHECKING:
    from datetime import datetime

    from headrace.gate import Verdict
    from headrace.lake import DatasetRef, Lake
    from headrace.pipeline import Pipeline
    from headrace.release.trial import Trial
    from headrace.tracking import MLflow


def judge(
    spec: Pipeline,
    version: int,
    trial: Trial,
    data: DatasetRef,
    lake: Lake,
    mlflow: MLflow,
    as_of: datetime,
) -> Verdict:
    """Compare ``version``, by its ``trial`` on the holdout of ``data``, with the champion, row by row.

    The first is compared with what one would say who knows the past alone (``problem.guess``).
    """
    name, problem = str(version), spec.problem
    champion = registry.champion(mlflow, spec.name)
    if champion and champion.version == version:  # promoted by a run that was killed before it could say so
        return gate.Verdict("promoted", champion.reason, name)
    if champion and champion.as_of > as_of:
        reason = f"The champion was trained as of {shown(champion.as_of)}, later than the challenger."
        return gate.Verdict("rejected", reason, name, str(champion.version))
    held_out = dataset.read(spec, data, lake, [spine.HOLDOUT])
    if champion:
        predicted = tracking.load_model(mlflow, champion.model_uri).predict(held_out)
    else:
        predicted = guess(problem, dataset.read(spec, data, lake, spine.LEARNT), held_out)
    losses = problem.losses(problem.encode(held_out["label"]), predicted)
    gain = gate.paired_gain(losses, trial.losses, trial.groups)
    return gate.judge(spec.gate, name, str(champion.version) if champion else None, gain, problem.loss_unit)
