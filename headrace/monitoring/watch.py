"""What a window's predictions show, by the versions that made them.

prediction log ─▶ one part per version ─▶ drift, estimated and realised performance, segments,
                                           against what that version learnt from and was proven on
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from headrace import registry, spine, tracking
from headrace.lake import MONDAY, Window
from headrace.monitoring import contributions, estimates, metrics, segments
from headrace.monitoring import drift as drifts
from headrace.monitoring.performance import Performance, performance
from headrace.monitoring.reference import Reference
from headrace.monitoring.shift import SPANS
from headrace.monitoring.sketch import sketch
from headrace.serving import log
from headrace.training import dataset
from headrace.training.errors import DamagedModel, UnknownTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from headrace.lake import Lake
    from headrace.monitoring.contributions import GoneBy
    from headrace.monitoring.drift import Drift
    from headrace.monitoring.estimates import Estimate, Forecast
    from headrace.monitoring.segments import Segment
    from headrace.pipeline import Pipeline
    from headrace.registry import Release
    from headrace.tracking import MLflow

REFERENCE, PROVEN, GONE_BY = "reference.parquet", "proven.parquet", "contributions.json"
MOST = 20_000
"""Rows beyond which some stand for all where performance is estimated."""
BACK = 13
"""Windows before one that its version predicted and that tell what is to be expected, too."""
SHOWN = 5
"""Segments that are named."""
MATURE = 0.9
"""The share of a window's truth that must be known for that: what is known early may be unlike the rest."""


@dataclass(frozen=True)
class Fared:
    """How a version did in a window by the truth that is known, and how segments did, once most of it is.

    ``promised`` are its scores on what it was proven on.
    """

    performance: Performance
    promised: Mapping[str, float]
    segments: tuple[Segment, ...] = ()

    @property
    def hurt(self) -> tuple[Segment, ...]:
        """The segments that are proven to cost more than before, beyond what was expected of them."""
        return tuple(one for one in self.segments if one.p <= segments.CHANCE)

    @property
    def told(self) -> str:
        """What is said of it."""
        where = "; ".join(f"{one.name} ({one.rows:,} rows, p {one.p:.3f})" for one in self.hurt[:SHOWN])
        return self.performance.reason + (f" Worse than expected where {where}." if where else "")


@dataclass(frozen=True)
class Finding:
    """What the ``rows`` that one version predicted in a window show.

    ``name`` is that of the finding, by pipeline, window and version; ``incomplete`` the share of rows that
    lacked features; ``gone_by`` what its model goes by, if that is known; ``report`` the file of
    Evidently's page, empty if there is none.
    """

    name: str
    release: Release
    rows: int
    incomplete: float
    drift: Drift
    gone_by: tuple[GoneBy, ...]
    estimates: tuple[Estimate, ...]
    fared: Fared
    report: str

    @property
    def performance(self) -> Performance:
        """How its predictions did by the truth that is known."""
        return self.fared.performance


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
        reference, held_out = _learnt_from(spec, lake, mlflow, release)
        current = sketch(made, spec.watched, limits=reference.whole.limits)
        earlier = metrics.distances(spec, lake, version, window.start, max(SPANS) - 1)
        by = _gone_by(mlflow, release, held_out, made)
        ignored = contributions.ignored({one.column: one.before for one in by})
        found = drifts.drift(reference, current, spec.watched, spec.drift, earlier, ignored)
        page = reports / f"{name}.html"
        drawn = (draw or found.drifted) and drifts.draw(
            reference, current, found, spec.watched, spec.drift, page
        )
        proven = _proven(spec, lake, held_out, version, window, as_of)
        ways = (False, True) if spec.problem.labels else (False,)
        ahead = [estimates.forecast(spec, proven, some(made), adapt=adapt) for adapt in ways]
        scores = tuple(score for one in ahead if one for score in one.scores)
        mature = _of(known, version).num_rows >= MATURE * made.num_rows
        fared = _fared(spec, mlflow, release, known, proven, ahead[0] if mature else None)
        report = str(page) if drawn else ""
        findings.append(
            Finding(name, release, made.num_rows, _incomplete(made), found, by, scores, fared, report)
        )
    return findings


def fared(
    spec: Pipeline, lake: Lake, mlflow: MLflow, window: Window, as_of: datetime
) -> Iterator[tuple[str, Release, Fared]]:
    """Yield, as :func:`judge` calls it, each version and how it did by the truth known ``as_of`` (UTC)."""
    known = log.outcomes(spec, lake, window, as_of)
    for name, version, made in _by_version(spec, log.read(spec, lake, window), window):
        release = registry.version(mlflow, spec.name, version)
        proven, ahead = known.slice(0, 0), None
        if _of(known, version).num_rows >= MATURE * made.num_rows:
            _, held_out = _learnt_from(spec, lake, mlflow, release)
            proven = _proven(spec, lake, held_out, version, window, as_of)
            ahead = estimates.forecast(spec, proven, some(made))
        yield name, release, _fared(spec, mlflow, release, known, proven, ahead)


def _fared(
    spec: Pipeline,
    mlflow: MLflow,
    release: Release,
    known: pa.Table,
    proven: pa.Table,
    ahead: Forecast | None,
) -> Fared:
    came, problem = _of(known, release.version), spec.problem
    truth, predicted = problem.encode(came["label"]), problem.predicted(came)
    promised = tracking.scores(mlflow, release.run_id)
    did = performance(problem, truth, predicted, promised, spec.drift)
    if not ahead or came.num_rows < spec.drift.min_rows:
        return Fared(did, promised)
    return Fared(did, promised, tuple(segments.of_window(spec, proven, some(came), ahead)))


def _proven(
    spec: Pipeline, lake: Lake, held_out: pa.Table, version: int, window: Window, as_of: datetime
) -> pa.Table:
    """Return rows that a version predicted without having learnt from them, and whose truth is known.

    They are those it was proven on, and of the windows before ``window`` those of which most of the truth
    is known ``as_of`` (UTC).
    """
    earlier = Window(window.start - BACK * spec.window, window.start)
    made = _of(log.read(spec, lake, earlier), version)
    if not made.num_rows:
        return held_out
    return proven_on(spec, held_out, made, spine.with_truth(spec, lake, made, as_of))


def proven_on(spec: Pipeline, held_out: pa.Table, made: pa.Table, known: pa.Table) -> pa.Table:
    """Return rows that a version had not learnt from, with what it predicted and the truth.

    They are what it was proven on, ``held_out``, and of the windows in which it ``made`` predictions those
    rows whose truth is ``known``, where that is of most.
    """
    of_made, of_known = (_nth(spec, rows) for rows in (made, known))
    counts = (np.bincount(of, minlength=BACK + 1) for of in (of_known, of_made))
    share = next(counts) / np.maximum(next(counts), 1)
    return some(segments.together(held_out, known.filter(share[of_known] >= MATURE)))


def _nth(spec: Pipeline, rows: pa.Table) -> np.ndarray:
    """Return in which window of its pipeline each row is, counted so that there are few."""
    import pyarrow as pa

    times = rows["event_timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    since = times - int(MONDAY.timestamp() * 1e6)
    return since // (spec.window // timedelta(microseconds=1)) % (BACK + 1)


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


def _learnt_from(spec: Pipeline, lake: Lake, mlflow: MLflow, release: Release) -> tuple[Reference, pa.Table]:
    """Return the summary of what a version was trained and proven on, and the rows it was proven on.

    Both are made once, and kept with it.

    Raises:
        DamagedTable: They cannot be made, for the rows are no longer those that the version learnt from.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    summary, rows = (tracking.kept(mlflow, release.run_id, name) for name in (REFERENCE, PROVEN))
    reference = Reference.load(summary) if summary else None
    if reference and not reference.fits(spec.watched, spec.window):
        reference = None
    held_out = pq.read_table(io.BytesIO(rows)) if rows else None
    if held_out and not {*spec.columns.names} <= {*held_out.column_names}:
        held_out = None
    if reference and held_out:
        return reference, held_out
    lake.check(release.training)
    # Of a version of an earlier release the summary is there: what it was proven on is enough.
    seen = dataset.read(spec, release.training, lake, [spine.HOLDOUT] if reference else [])
    predicted = tracking.load_model(mlflow, release.model_uri).predict(seen)
    for name, values in spec.problem.named(predicted).items():
        seen = seen.append_column(name, values)
    if not reference:
        reference = Reference.of(seen, spec.watched, spec.window)
        tracking.keep(mlflow, release.run_id, REFERENCE, reference.dump())
    held_out = some(seen.filter(pc.equal(seen["span"], spine.HOLDOUT)))
    pq.write_table(held_out, file := io.BytesIO(), compression="zstd")
    tracking.keep(mlflow, release.run_id, PROVEN, file.getvalue())
    return reference, held_out


def _gone_by(mlflow: MLflow, release: Release, proven: pa.Table, now: pa.Table) -> tuple[GoneBy, ...]:
    """Return what a version goes by, now and where it was proven; that is found once, and kept with it."""
    try:
        model = tracking.load_model(mlflow, release.model_uri)
    except (DamagedModel, UnknownTrainer):  # what it predicted is there, and is judged all the same
        return ()
    if kept := tracking.kept(mlflow, release.run_id, GONE_BY):
        before = json.loads(kept)
    else:
        before = contributions.shares(model, proven)
        tracking.keep(mlflow, release.run_id, GONE_BY, json.dumps(before).encode())
    return tuple(contributions.gone_by(contributions.shares(model, now), before))


def _incomplete(rows: pa.Table) -> float:
    import pyarrow.compute as pc

    if "missing" not in rows.column_names:  # of an earlier release
        return 0.0
    lacking = pc.fill_null(pc.list_value_length(rows["missing"]), 0)
    return float(pc.mean(pc.greater(lacking, 0)).as_py())


def some(rows: pa.Table) -> pa.Table:
    """Return ``rows``, or ``MOST`` of them in their order, always the same ones."""
    if rows.num_rows <= MOST:
        return rows
    return rows.take(np.sort(np.random.default_rng(0).permutation(rows.num_rows)[:MOST]))
