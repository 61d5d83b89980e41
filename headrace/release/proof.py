"""What the holdout says of a model beside its scores: for whom it is good, and what it goes by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from headrace.problem.figures import bars, picture
from headrace.training.trainers import trainer

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.pipeline import Columns, Pipeline
    from headrace.problem import Problem
    from headrace.training import Model

    Floats = NDArray[np.float64]

LARGEST, SAMPLE, SHOWN = 8, 2_000, 20
"""Segments of a column; rows that are looked at for what a model goes by; inputs that are drawn."""
OTHERS = "all others"


def artifacts(
    spec: Pipeline,
    name: str,
    model: Model,
    rows: pa.Table,
    targets: Floats,
    predicted: Floats,
    as_of: datetime,
) -> dict[str, bytes]:
    """Return, by file name, what to keep with the run of a model that was scored on ``rows``.

    ``segments.json`` is a table as MLflow logs them.
    """
    title = f"{spec.name}: {name} on the {len(targets):,} rows held out before {as_of:%Y-%m-%d}"
    unit, gone_by = gone_by_of(model, spec.columns, spec.problem, rows, targets)
    leading = dict(sorted(gone_by.items(), key=lambda one: -one[1])[:SHOWN])
    found = segments(spec, rows, targets, predicted)
    told = {"columns": list(found[0]), "data": [list(row.values()) for row in found]} if found else {}
    return {
        "holdout.png": picture(spec.problem, targets, predicted, title),
        "inputs.png": bars(leading, unit, f"What {name} goes by"),
        "segments.json": json.dumps(told, default=str).encode(),
    }


def segments(spec: Pipeline, rows: pa.Table, targets: Floats, predicted: Floats) -> list[dict[str, Any]]:
    """Return rows, mean loss and the first score of each large segment, by categorical column."""
    import pyarrow.compute as pc

    problem, lost = spec.problem, spec.problem.losses(targets, predicted)
    score, title = next(iter(problem.shown.items()))
    found = []
    for column in spec.columns.categorical:
        values = pc.fill_null(rows[column].cast("string"), "null")
        counts = pc.value_counts(values).to_pylist()
        counts.sort(key=lambda one: (-one["counts"], one["values"]))
        named = np.array(values.to_pylist(), dtype=object)
        parts = {one["values"]: named == one["values"] for one in counts[:LARGEST]}
        parts[OTHERS] = ~np.isin(named, list(parts))
        for value, chosen in parts.items():
            if not chosen.any():
                continue
            of_score = problem.scores(targets[chosen], predicted[chosen]).get(score)
            about = {"column": column, "segment": value, "rows": int(chosen.sum())}
            loss = {f"loss ({problem.loss_unit})": round(float(lost[chosen].mean()), 5)}
            found.append({**about, **loss, title: None if of_score is None else round(of_score, 5)})
    return found


def gone_by_of(
    model: Model, columns: Columns, problem: Problem, rows: pa.Table, targets: Floats
) -> tuple[str, dict[str, float]]:
    """Return in what unit, and how much, a model goes by each input, on a sample of ``rows``.

    Where its trainer knows (``contributions``) that is the mean of what an input adds to, or takes from, a
    prediction before its link: SHAP values. Else it is what is lost when the input is shuffled.
    """
    sample = np.sort(np.random.default_rng(0).permutation(len(targets))[:SAMPLE])
    rows, targets = rows.take(sample), targets[sample]
    if contributions := getattr(trainer(model.trainer), "contributions", None):
        names, found = contributions(model.native, rows)
        means = np.abs(found).mean(axis=tuple(range(found.ndim - 1)))
        return "mean |SHAP value|, before the link", dict(zip(names, map(float, means), strict=True))
    base, lost = problem.losses(targets, model.predict(rows)).mean(), {}
    for name in columns.names:
        shuffled = rows[name].take(np.random.default_rng(0).permutation(len(targets)))
        without = rows.set_column(rows.schema.get_field_index(name), name, shuffled)
        lost[name] = float(problem.losses(targets, model.predict(without)).mean() - base)
    return f"{problem.loss_unit} lost if shuffled", lost
