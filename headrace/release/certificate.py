"""The certificate of a release: requests are answered from what the model was trained on, as batches are.

Before a version goes live, some predictions are made twice: as a batch, of what the point-in-time join gives,
and as requests, read from the online store by the plan that serves.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from headrace import registry, spine, tracking
from headrace.feature_store import parity
from headrace.feature_store.errors import ParityBroken
from headrace.feature_store.parity import Cause
from headrace.feature_store.plan import Plan
from headrace.gate import Bound
from headrace.serving.predictor import Predictor

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa
    from feast import FeatureStore

    from headrace.gate import Verdict
    from headrace.lake import Lake
    from headrace.pipeline import Pipeline
    from headrace.tracking import MLflow

NAME = "predictions served otherwise than in a batch"
"""What the bound is called that a certificate adds to a verdict."""


def certified(
    spec: Pipeline, verdict: Verdict, store: FeatureStore, lake: Lake, mlflow: MLflow, as_of: datetime
) -> Verdict:
    """Return a promotion with its certificate, or rejected if its predictions differ; others as they are.

    So is that of who serves already: it was promoted by a run that was killed before it could say so.

    Raises:
        ParityBroken: The online store serves other features than the join gives: whoever serves, it is to be
            filled again. Nothing is decided.
        NothingToCompare: There is not one prediction to make.
    """
    version = int(verdict.challenger)
    champion = registry.champion(mlflow, spec.name)
    if not verdict.promoted or (champion and champion.version == version):
        return verdict
    bound = certificate(spec, version, store, lake, mlflow, as_of)
    certain = replace(verdict, bounds=(*verdict.bounds, bound))
    return (
        certain if bound.held else replace(certain, decision="rejected", reason=f"{verdict.reason} {bound}")
    )


def certificate(
    spec: Pipeline, version: int, store: FeatureStore, lake: Lake, mlflow: MLflow, as_of: datetime
) -> Bound:
    """Say of how many predictions, of a sample, a request is told another thing than a batch: of none.

    Features and predictions are the same if they are so bit by bit.

    Raises:
        ParityBroken, NothingToCompare: As of :func:`certified`.
    """
    window, gone_on = parity.filled_for(store, spec, lake, as_of)
    asked = spine.rows(spec, lake, window, parity.SAMPLE)
    found = parity.compare(store, spec.feature_service, asked)
    if wrong := tuple(one for one in found.mismatches if not (gone_on and one.cause is Cause.NEWER)):
        raise ParityBroken(spec, window, replace(found, mismatches=wrong))
    differ = _differ(spec, version, store, lake, mlflow, asked)
    about = f"of {found.rows:,} from {window.label} on, of {found.values:,} values of features, as joined"
    return Bound(NAME, differ, 0, about)


def _differ(
    spec: Pipeline, version: int, store: FeatureStore, lake: Lake, mlflow: MLflow, asked: pa.Table
) -> int:
    """Return how many of the predictions that are ``asked`` a request is told otherwise than a batch is."""
    import pyarrow as pa

    model = tracking.load_model(mlflow, registry.uri(spec.name, version))
    serving = replace(spec.serving, missing="predict", defaults={})  # what is done about gaps is declared
    as_learnt = replace(spec, serving=serving)
    predictor = Predictor(as_learnt, version, model, partial(Plan, store), lake)
    with closing(predictor.plan):
        rows = predictor.requests(asked)
        made = predictor.predict(predictor.fields.read(rows, asked["event_timestamp"][0].as_py(), len(rows)))
    inputs = {
        name: pa.array(made.inputs[name], predictor.types[name])
        if name in predictor.plan.outputs
        else asked[name]
        for name in spec.columns.names
    }
    batch = spec.problem.named(model.predict(pa.table(inputs)))
    unlike = np.zeros(asked.num_rows, bool)
    for name, column in batch.items():
        pairs = zip(column.to_pylist(), made.predictions[name], strict=True)
        unlike |= np.array([repr(one) != repr(other) for one, other in pairs])
    return int(unlike.sum())
