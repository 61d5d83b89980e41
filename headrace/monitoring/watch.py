"""What a window's predictions show, by the versions that made them.

prediction log ─▶ one part per version ─▶ drift + performance, against what that version learnt from
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import registry, tracking
from headrace.evaluation import Scores
from headrace.monitoring.drift import Drift, drift
from headrace.monitoring.performance import Performance, performance
from headrace.serving import log
from headrace.training import dataset

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from headrace.lake import Lake, Window
    from headrace.pipeline import Pipeline
    from headrace.registry import Release


@dataclass(frozen=True)
class Finding:
    """What the ``rows`` that one version predicted in a window show."""

    release: Release
    rows: int
    drift: Drift
    performance: Performance


def judge(spec: Pipeline, lake: Lake, window: Window, as_of: datetime, reports: Path) -> list[Finding]:
    """Judge a window, each version on the rows that it predicted; the one with the most comes first.

    There may be two: rows that came late are predicted by whoever serves by then. By now another
    version may serve than any of them.

    Args:
        spec: The pipeline.
        lake: Where its predictions, and what its versions learnt from, are.
        window: What to judge.
        as_of: The instant (UTC) up to which a truth counts.
        reports: A folder for Evidently's reports, one per version.

    Returns:
        A finding per version; none if nothing was predicted.

    Raises:
        VersionGone: What a version learnt from can no longer be read.
    """
    import pyarrow.compute as pc

    predictions, known = log.read(spec, lake, window), log.outcomes(spec, lake, window, as_of)
    counts = Counter(predictions["model_version"].to_pylist())
    findings: list[Finding] = []
    for version, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        name = f"{spec.name}-{window.end:%Y-%m-%dT%H%M%SZ}" + (f"-v{version}" if findings else "")
        release = registry.version(spec.name, version)
        made, came = (rows.filter(pc.equal(rows["model_version"], version)) for rows in (predictions, known))
        report = reports / f"{name}.html"
        found = drift(_learnt(spec, lake, release), made, spec.columns, spec.drift, report, every=spec.window)
        labels, probabilities = (came[column].to_numpy() for column in ("label", "probability"))
        fared = performance(labels, probabilities, Scores.of(release.metrics), spec.drift)
        findings.append(Finding(release, count, found, fared))
    return findings


def _learnt(spec: Pipeline, lake: Lake, release: Release) -> pa.Table:
    """Return what a version was trained and proven on, with its own ``probability`` of each row."""
    seen = dataset.read(spec, release.training, lake)
    return seen.append_column("probability", [tracking.load_model(release.model_uri).predict(seen)])
