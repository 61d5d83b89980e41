"""Pipelines that feed on each other: how far the predictions of one have come that are a source of another.

spans before the first release ─▶ a model of what was known before each ─▶ out-of-sample predictions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import registry, spine, training
from headrace.lake import Window, edge
from headrace.ledger import DONE
from headrace.serving import log
from headrace.sources import Predictions
from headrace.sources.predictions import OUT_OF_SAMPLE, history_of
from headrace.training import dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    import pyarrow as pa
    from dask.distributed import Client

    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Candidate, Pipeline, Source
    from headrace.tracking import MLflow


KIND = "out of sample"
"""Of the ledger's records: a span is predicted."""


def feeds(spec: Pipeline) -> list[tuple[Source, Predictions]]:
    """Return the sources of a pipeline that another one predicts."""
    found = ((source, source.origin) for source in spec.sources)
    return [(source, origin) for source, origin in found if isinstance(origin, Predictions)]


def downstream(name: str, among: Iterable[Pipeline]) -> list[Pipeline]:
    """Return the pipelines that feed on the predictions of the one of that name."""
    return [spec for spec in among if any(origin.pipeline == name for _, origin in feeds(spec))]


def complete(
    spec: Pipeline, lake: Lake, ledger: Ledger, released: datetime | None, as_of: datetime
) -> datetime:
    """Return up to when (UTC) by ``as_of`` the predictions of ``spec`` are all made.

    ``released`` is when its first model was; before that nothing is. What was before it is made by
    ``predict_history``.
    """
    if released is None:
        return spec.start
    if spans := missing(spec, ledger, released):
        return min(as_of, spans[0].start)
    return min(as_of, max(_begins(spec, released), log.reached(spec, lake, released, as_of)))


def missing(spec: Pipeline, ledger: Ledger, released: datetime) -> list[Window]:
    """Return, in order, the spans before the first release without out-of-sample predictions."""
    made = {record.key for record in ledger.entries(spec.name, KIND) if record.state == DONE}
    return [span for span in _spans(spec, _begins(spec, released)) if str(span) not in made]


def predictor(spec: Pipeline, mlflow: MLflow) -> Candidate:
    """Return the candidate that the champion is of, or the first, if that one is not declared any more."""
    champion = registry.champion(mlflow, spec.name)
    named = {candidate.name: candidate for candidate in spec.candidates}
    return named.get(champion.candidate if champion else "", spec.candidates[0])


def predict_history(
    spec: Pipeline,
    candidate: Candidate,
    span: Window,
    lake: Lake,
    ledger: Ledger,
    historical: Callable[[pa.Table], pa.Table],
    client: Client,
    holder: str,
) -> int:
    """Predict ``span``, of which all must be known, by a model of what was known before it; return how many.

    None is made where too little was known to learn from. Done twice, or killed, it is done once.
    ``historical`` joins features to a spine, point in time.
    """
    made = _predicted(spec, candidate, span, lake, historical, client)
    if made:
        lake.table(history_of(spec.name)).overwrite(made, span, "event_timestamp")
    rows = made.num_rows if made else 0
    ledger.finish(spec.name, KIND, str(span), holder=holder, rows=rows, candidate=candidate.name)
    return rows


def _predicted(
    spec: Pipeline,
    candidate: Candidate,
    span: Window,
    lake: Lake,
    historical: Callable[[pa.Table], pa.Table],
    client: Client,
) -> pa.Table | None:
    asked = spine.rows(spec, lake, span)
    if span.start == spec.start or not asked.num_rows:
        return None
    learnt = spine.labelled(spec, lake, Window(spec.start, span.start), span.start)
    spine.check_labels(spec, learnt["label"])
    if learnt.num_rows < dataset.LEAST_ROWS or len(learnt["label"].unique()) < 2:
        return None
    rows, problem = historical(learnt), spec.problem
    model = training.fit(candidate, rows, spec.columns, problem, client)
    return log.predicted(spec, historical(asked), model, OUT_OF_SAMPLE, span.start)


def _begins(spec: Pipeline, released: datetime) -> datetime:
    """Return where the first window begins that a release predicts."""
    began = edge(released, spec.window)
    return began if began == released else began + spec.window


def _spans(spec: Pipeline, until: datetime) -> Iterator[Window]:
    """Cut what was before a release into spans as long as the holdout by which models are judged."""
    start = spec.start
    while start < until:
        end = min(start + spec.holdout, until)
        yield Window(start, end)
        start = end
