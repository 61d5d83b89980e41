"""What was asked, put to another version: what it would have answered, and who was nearer to the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace import gate, registry, spine, tracking
from headrace.lake import AVAILABLE
from headrace.release.errors import NothingServed
from headrace.sources.feedback import served_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pyarrow as pa

    from headrace.gate import Gain
    from headrace.lake import Lake, Window
    from headrace.pipeline import Pipeline
    from headrace.tracking import MLflow
    from headrace.training.model import Model


@dataclass(frozen=True)
class Replayed:
    """How a version answers what other ``versions`` answered.

    ``apart`` is, for each column of numbers, the median and the greatest difference; for a column of classes
    the share of rows with another one. ``gain`` is what the version would have saved over what was answered,
    on the rows whose truth is known; None if there are none.
    """

    rows: int
    versions: Sequence[int]
    apart: dict[str, tuple[float, float] | float]
    gain: Gain | None


def replay(
    spec: Pipeline, version: int, window: Window, lake: Lake, mlflow: MLflow, as_of: datetime
) -> Replayed:
    """Put what was asked within ``window`` to ``version``, of the very inputs that were logged.

    Truth is what was known by ``as_of`` (UTC).

    Raises:
        NothingServed: Nothing was asked then, as far as the lake has it.
        MissingInputs: The version takes columns that were not logged.
    """
    table = lake.table(served_by(spec.name))
    if not table.exists():
        raise NothingServed(spec.name, str(window))
    with lake.connect({}) as con:
        rows = table.relation(con, span=window).filter(window.predicate(AVAILABLE))
        answered = rows.order("requested_at, prediction_id").to_arrow_table()
    if not answered.num_rows:
        raise NothingServed(spec.name, str(window))
    problem, model = spec.problem, tracking.load_model(mlflow, registry.uri(spec.name, version))
    again = problem.named(model.predict(answered))
    apart: dict[str, tuple[float, float] | float] = {}
    for name, column in again.items():
        before = answered[name].combine_chunks()
        if np.issubdtype(column.to_numpy(zero_copy_only=False).dtype, np.floating):
            differences = np.abs(column.to_numpy() - before.to_numpy())
            apart[name] = float(np.median(differences)), float(differences.max())
        else:
            pairs = zip(column.to_pylist(), before.to_pylist(), strict=True)
            apart[name] = float(np.mean([one != other for one, other in pairs]))
    versions = sorted(set(answered["model_version"].to_pylist()))
    return Replayed(answered.num_rows, versions, apart, _gain(spec, answered, model, lake, as_of))


def _gain(spec: Pipeline, answered: pa.Table, model: Model, lake: Lake, as_of: datetime) -> Gain | None:
    known = spine.with_truth(spec, lake, answered, as_of)
    if not known.num_rows:
        return None
    problem, truth = spec.problem, spec.problem.encode(known["label"])
    before = problem.losses(truth, problem.predicted(known))
    after = problem.losses(truth, model.predict(known))
    return gate.paired_gain(before, after, gate.groups(spec.gate, known))
