"""What a window's predictions show, by the versions that made them.

prediction log ─▶ one part per version ─▶ drift + performance, against what that version learnt from
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import registry, tracking
from headrace.monitoring import drift as drifts
from headrace.monitoring.performance import Performance, performance
from headrace.monitoring.reference import Reference
from headrace.monitoring.sketch import sketch
from headrace.serving import log
from headrace.training import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from headrace.lake import Lake, Window
    from headrace.monitoring.drift import Drift
    from headrace.pipeline import Pipeline
    from headrace.registry import Release
    from headrace.tracking import MLflow

REFERENCE = "reference.parquet"


@dataclass(frozen=True)
class Finding:
    """What the ``rows`` that one version predicted in a window show.

    ``name`` is that of the finding, by pipeline, window and version; ``report`` the file of
    Evidently's page, empty if there is none.
    """

    name: str
    release: Release
    rows: int
    drift: Drift
    performance: Performance
    report: str


def judge(
    spec: Pipeline,
    lake: Lake,
    mlflow: MLflow,
    window: Window,
    as_of: datetime,
    reports: Path,
    *,
    draw: bool = False,
) -> list[Finding]:
    """Judge a window, each version on the rows that it predicted; the one with the most comes first.

    There may be two: rows that came late are predicted by whoever serves by then. By now another
    version may serve than any of them.

    Args:
        spec: The pipeline.
        lake: Where its predictions, and what its versions learnt from, are.
        mlflow: Where its versions are.
        window: What to judge.
        as_of: The instant (UTC) up to which a truth counts.
        reports: A folder for Evidently's pages, one per version.
        draw: Whether to draw a page in any case, and not only of drift.

    Returns:
        A finding per version; none if nothing was predicted.

    Raises:
        VersionGone: What a version learnt from has no summary, and can no longer be read.
        DamagedTable: Nor are its rows those that it learnt from.
    """
    known = log.outcomes(spec, lake, window, as_of)
    findings: list[Finding] = []
    for name, version, made in _by_version(spec, log.read(spec, lake, window), window):
        release = registry.version(mlflow, spec.name, version)
        reference = _reference(spec, lake, mlflow, release)
        current = sketch(made, spec.watched, limits=reference.whole.limits)
        found = drifts.drift(reference, current, spec.watched, spec.drift)
        page = reports / f"{name}.html"
        drawn = (draw or found.drifted) and drifts.draw(
            reference, current, found, spec.watched, spec.drift, page
        )
        fared = _fared(spec, mlflow, release, known)
        findings.append(Finding(name, release, made.num_rows, found, fared, str(page) if drawn else ""))
    return findings


def fared(
    spec: Pipeline, lake: Lake, mlflow: MLflow, window: Window, as_of: datetime
) -> Iterator[tuple[str, Release, Performance]]:
    """Yield, as :func:`judge` calls it, each version and how it did by the truth known ``as_of`` (UTC)."""
    known = log.outcomes(spec, lake, window, as_of)
    for name, version, _ in _by_version(spec, log.read(spec, lake, window), window):
        release = registry.version(mlflow, spec.name, version)
        yield name, release, _fared(spec, mlflow, release, known)


def _fared(spec: Pipeline, mlflow: MLflow, release: Release, known: pa.Table) -> Performance:
    came, problem = _of(known, release.version), spec.problem
    proven = tracking.scores(mlflow, release.run_id)
    return performance(problem, problem.encode(came["label"]), problem.predicted(came), proven, spec.drift)


def _by_version(spec: Pipeline, predictions: pa.Table, window: Window) -> Iterator[tuple[str, int, pa.Table]]:
    """Yield the versions that predicted in a window, with what is found of each called, and its rows."""
    counts, name = (
        Counter(predictions["model_version"].to_pylist()),
        f"{spec.name}-{window.end:%Y-%m-%dT%H%M%SZ}",
    )
    for place, (version, _) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
        yield f"{name}-v{version}" if place else name, version, _of(predictions, version)


def _of(rows: pa.Table, version: int) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.equal(rows["model_version"], version))


def _reference(spec: Pipeline, lake: Lake, mlflow: MLflow, release: Release) -> Reference:
    """Return the summary of what a version was trained and proven on; made once, and kept with it.

    Raises:
        DamagedTable: It cannot be made, for the rows are no longer those that the version learnt from.
    """
    if data := tracking.kept(mlflow, release.run_id, REFERENCE):
        reference = Reference.load(data)
        if reference.fits(spec.watched, spec.window):
            return reference
    lake.check(release.training)
    seen = dataset.read(spec, release.training, lake)
    predicted = tracking.load_model(mlflow, release.model_uri).predict(seen)
    for name, values in spec.problem.named(predicted).items():
        seen = seen.append_column(name, values)
    reference = Reference.of(seen, spec.watched, spec.window)
    tracking.keep(mlflow, release.run_id, REFERENCE, reference.dump())
    return reference
