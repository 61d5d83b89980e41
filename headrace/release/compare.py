"""Releases side by side, on rows that none of them was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import registry, tracking
from headrace.lake import Window
from headrace.serving import log

if TYPE_CHECKING:
    from datetime import datetime

    from headrace.lake import Lake
    from headrace.pipeline import Pipeline
    from headrace.tracking import MLflow


@dataclass(frozen=True)
class Compared:
    """A version beside the first one, on the ``rows`` of ``unseen``.

    ``score`` is the title of what ``value`` and ``value_of_first`` are; they are None where there is none.
    """

    version: int
    candidate: str
    verdict: str
    trained_to: datetime
    unseen: str
    rows: int
    score: str
    value: float | None
    value_of_first: float | None


def compare(spec: Pipeline, lake: Lake, mlflow: MLflow, span: Window, as_of: datetime) -> list[Compared]:
    """Set every version beside the first one, on the predictions of ``span`` that neither was trained on."""
    problem, found = spec.problem, list[Compared]()
    name, title = next(iter(problem.shown.items()))
    releases = registry.versions(mlflow, spec.name)
    for release in releases:
        trained_to = release.as_of - spec.holdout
        if trained_to >= span.end:
            continue
        unseen = Window(max(span.start, trained_to), span.end)
        rows = log.outcomes(spec, lake, unseen, as_of)
        if not rows.num_rows:
            continue
        targets = problem.encode(rows["label"])
        value, of_first = (
            problem.scores(targets, tracking.load_model(mlflow, r.model_uri).predict(rows)).get(name)
            for r in (release, releases[0])
        )
        about = (release.version, release.candidate, release.verdict, trained_to, str(unseen))
        found.append(Compared(*about, rows.num_rows, title, value, of_first))
    return found
