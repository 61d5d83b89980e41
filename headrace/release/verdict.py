"""The verdict: is the challenger better than who serves or, if nobody does, than a guess from the past?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace import gate, registry, spine, tracking
from headrace.instants import shown
from headrace.problem import guess
from headrace.release import guards
from headrace.training import dataset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

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

    The first is compared with what one would say who knows the past alone (``problem.guess``), and guarded
    by nothing but its bounds: nobody relies on a guess.
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
    before = str(champion.version) if champion else None
    return compared(spec, held_out, name, trial.predictions, before, predicted, trial.costs)


def compared(
    spec: Pipeline,
    held_out: pa.Table,
    challenger: str,
    ours: NDArray[np.float64],
    champion: str | None,
    theirs: NDArray[np.float64],
    costs: Mapping[str, float] | None = None,
) -> Verdict:
    """Say what the gate makes of a challenger's predictions of ``held_out`` beside the champion's.

    Without a champion ``theirs`` are a guess from the past. ``costs`` are what it takes to serve the
    challenger, by name.
    """
    rule, problem, groups = spec.gate, spec.problem, gate.groups(spec.gate, held_out)
    truth = problem.encode(held_out["label"])
    gain = gate.paired_gain(problem.losses(truth, theirs), problem.losses(truth, ours), groups)
    bounds = guards.bounds(rule, problem, truth, theirs if champion else None, ours, costs or {})
    found = []
    if champion:
        found = guards.look(rule, problem, spec.columns, held_out, truth, theirs, ours, groups)
    return gate.judge(rule, challenger, champion, gain, problem.loss_unit, found, bounds)


def asks(spec: Pipeline, verdict: Verdict, mlflow: MLflow) -> timedelta | None:
    """Return how long a person is to be asked before a verdict is carried out; None if nobody is.

    Nobody is of who is champion already: that was promoted by a run that was killed before it could say so.
    """
    champion = registry.champion(mlflow, spec.name)
    serves = champion is not None and str(champion.version) == verdict.challenger
    return spec.gate.approval if verdict.promoted and not serves else None


def answered(
    verdict: Verdict, asked: timedelta, approve: bool | None, by: str = "", why: str = ""
) -> Verdict:
    """Return a promotion as it is after a person was asked: yes, no, or None if nobody said anything."""
    who, because = by.strip() or "somebody who gave no name", f": {why.strip()}" if why.strip() else ""
    if approve:
        return replace(verdict, approved_by=who, reason=f"{verdict.reason} Approved by {who}{because}.")
    within = str(asked).removesuffix(", 0:00:00")
    told = f"Nobody approved it within {within}" if approve is None else f"Not approved by {who}{because}"
    return replace(verdict, decision="rejected", reason=f"{verdict.reason} {told}.")
