"""Library functions dressed as tasks: names a person recognises, retries, timeouts, artifacts.

Tasks pass snapshots and file names, never frames. They are not cached: every
one is idempotent by itself, so running it again is the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import NAMESPACE_URL, uuid5

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from headrace import gate, ingest, registry, tracking
from headrace.errors import BatchRejected, HeadraceError, NoChampion, NothingScored, NotTakenUp, StaleFeatures
from headrace.feature_store import store as feature_store
from headrace.feature_store import tables
from headrace.lake import DatasetRef, Lake, Window, windows
from headrace.ledger import CLAIMED, DONE, Entry, Ledger
from headrace.serving import log
from headrace.settings import Settings
from headrace.training import dataset

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

    from headrace.gate import Verdict
    from headrace.ingest import Batch
    from headrace.pipeline import Candidate, FeatureTable, Pipeline, Source
    from headrace.registry import Release
    from headrace.tracking import Logged
    from headrace.validation import Validation

F = TypeVar("F", bound=Callable[..., Any])
LEASE = timedelta(hours=6)
FEATURES = Path(__file__).parent.parent / "features"


def instant(as_of: datetime | None) -> datetime:
    """Return ``as_of`` in UTC (naive means UTC), or the instant this run was scheduled for, or the present.

    The one place that reads a clock for ``as_of``: a run that starts late or is
    retried believes in the instant it was meant for.
    """
    at: datetime = as_of or flow_run.scheduled_start_time or datetime.now(UTC)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def run_name() -> str:
    """Name a run by its pipeline and instant, such as ``score flights 2013-04-08``."""
    given = flow_run.parameters
    return f"{flow_run.flow_name} {given['pipeline']} {instant(given.get('as_of')):%Y-%m-%d}"


def step(name: str, *, minutes: float = 10) -> Callable[[F], Any]:
    """Dress a function as a task: two retries, unless what went wrong would go wrong again."""
    return task(
        task_run_name=name,
        retries=2,
        retry_delay_seconds=[2, 10],
        retry_condition_fn=_worth_retrying,
        timeout_seconds=minutes * 60,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    return not isinstance(state.result(raise_on_failure=False), HeadraceError)


# ── ingest ─────────────────────────────────────────────────────────────────────


@step("read {source.name}")
def stage(spec: Pipeline, source: Source, at: datetime) -> list[Batch]:
    """Stage the source's windows that are due."""
    settings = Settings()
    return ingest.stage(source, spec.start, at, Lake(settings.lake), settings.home / "staging")


@step("validate {batch}")
def validate(batch: Batch, suite: str) -> Validation:
    """Validate a staged batch; a rejected one leaves its expectations as an artifact."""
    try:
        return ingest.check(batch, suite)
    except BatchRejected as rejected:
        create_table_artifact(
            key=f"rejected-{batch.source}",
            table=rejected.validation.table(),
            description=f"## Batch {batch} was rejected; nothing of it was landed\n\n{rejected}",
        )
        raise


@step("land {batch}")
def land(batch: Batch) -> int:
    """Land a batch, once."""
    return ingest.land(batch, Lake(Settings().lake))


def batches(spec: Pipeline, at: datetime) -> dict[str, int]:
    """Count, per source, the batches landed by ``at``."""
    lake = Lake(Settings().lake)
    return {
        source.name: len(
            lake.table(source.table).held(str(window) for window in windows(spec.start, at, source.window))
        )
        for source in spec.sources
    }


# ── features ───────────────────────────────────────────────────────────────────


@step("find stale windows")
def stale(spec: Pipeline, at: datetime) -> dict[FeatureTable, list[Window]]:
    """Return, per feature table, the closed windows that are new or have new raw rows."""
    lake = Lake(Settings().lake)
    return {
        table: tables.stale(table, spec.raw, _times(spec), windows(spec.start, at, table.window), lake)
        for table in spec.feature_tables
    }


@step("build {table.name}")
def build_features(spec: Pipeline, table: FeatureTable, due: list[Window]) -> int:
    """Build the table's windows; return the rows written."""
    lake = Lake(Settings().lake)
    return sum(tables.build(table, spec.raw, _times(spec), window, lake) for window in due)


def _times(spec: Pipeline) -> dict[str, str]:
    return {source.name: source.time for source in spec.sources}


@step("apply the Feast repository")
def apply_features(spec: Pipeline, due: Iterable[Window]) -> None:
    """Tell Feast what ``features/<pipeline>.py`` declares, and which windows are about to change."""
    store = open_store()
    feature_store.apply(store, f"features.{spec.name}")
    if due := list(due):
        feature_store.forget(store, spec.feature_service, min(due).start)


@step("bring {spec.feature_service} online")
def bring_online(spec: Pipeline, at: datetime) -> None:
    """Materialise into the online store what became known since the last time."""
    feature_store.materialize(open_store(), spec.feature_service, at)


def open_store() -> Any:
    """Open the project's Feast repository."""
    return feature_store.open_store(FEATURES, Settings())


# ── train ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Fitted:
    """A candidate as MLflow keeps it, with its scores on the holdout."""

    candidate: str
    logged: Logged
    scores: Mapping[str, float]
    seconds: float


def claim(spec: Pipeline, kind: str, key: str) -> Entry | None:
    """Claim a piece of work for this flow run, or return the entry that says it is done."""
    return Ledger(Settings().ledger).claim(
        spec.name, kind, key, holder=_holder(), now=datetime.now(UTC), lease=LEASE
    )


def finish(spec: Pipeline, kind: str, key: str, **detail: Any) -> None:
    """Record the work's result; the first record stands."""
    Ledger(Settings().ledger).finish(spec.name, kind, key, holder=_holder(), now=datetime.now(UTC), **detail)


def give_up(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook for a run that failed or crashed: let go of its claims."""
    ledger = Ledger(Settings().ledger)
    ledger.give_up(flow_run.parameters["pipeline"], f"flow run {flow_run.id}", datetime.now(UTC))


def _holder() -> str:
    return f"flow run {flow_run.id}"


@step("build the training set")
def training_set(spec: Pipeline, at: datetime) -> DatasetRef:
    """Join features to labelled predictions, point in time, and pin the result."""
    store = open_store()
    return dataset.build(
        spec,
        Lake(Settings().lake),
        at,
        lambda spine: feature_store.historical(store, spec.feature_service, spine),
    )


@step("fit {candidate.name}", minutes=60)
def fit(spec: Pipeline, candidate: Candidate, data: DatasetRef, at: datetime, cause: str) -> Fitted:
    """Fit one candidate on the cluster, score it on the holdout and log both to MLflow."""
    from headrace import training
    from headrace.cluster import cluster
    from headrace.evaluation import evaluate

    settings, start = Settings(), time.perf_counter()
    lake = Lake(settings.lake)
    rows, held_out = (dataset.read(spec, data, lake, holdout=side) for side in (False, True))
    with cluster(settings.dask_address, settings.dask_workers) as client:
        model = training.fit(candidate, rows, rows["label"].to_numpy(), spec.columns, client)
    scores = evaluate(held_out["label"].to_numpy(), model.predict(held_out))
    metrics = {k: float(v) for k, v in asdict(scores).items()}
    tracking.prepare(settings.mlflow, settings.home)
    logged = tracking.log_candidate(
        spec,
        candidate,
        model,
        metrics,
        training=data,
        sources=[lake.table(source.table).snapshot() for source in spec.sources],
        lake=lake,
        home=settings.home,
        cause=cause,
        as_of=at,
    )
    return Fitted(candidate.name, logged, metrics, time.perf_counter() - start)


@step("register the best candidate")
def register(spec: Pipeline, fitted: list[Fitted], data: DatasetRef) -> int:
    """Register the best candidate as the challenger; return its version."""
    prepare_mlflow()
    held_out = dataset.read(spec, data, Lake(Settings().lake), holdout=True)
    probabilities = {f.candidate: tracking.load_model(f.logged.model_uri).predict(held_out) for f in fitted}
    chosen = gate.best(spec.gate, held_out["label"].to_numpy(), probabilities)
    best = next(f for f in fitted if f.candidate == chosen)
    version = registry.register(spec.name, best.logged)
    registry.set_alias(spec.name, registry.CHALLENGER, version)
    page = Settings().mlflow_page
    create_table_artifact(
        key=f"candidates-{spec.name}",
        table=[
            {
                "candidate": f.candidate,
                "AUC": f"{f.scores['auc']:.4f}",
                "log-loss": f"{f.scores['log_loss']:.4f}",
                "Brier": f"{f.scores['brier']:.4f}",
                "seconds": f"{f.seconds:.1f}",
                "challenger": "✓" if f is best else "",
                "run": f"[{f.logged.run_id[:8]}]({page}{f.logged.page})",
            }
            for f in sorted(fitted, key=lambda f: f.scores["log_loss"])
        ],
        description=f"## Candidates, scored on {best.scores['rows']:,.0f} held-out rows",
    )
    return version


@step("judge")
def judge(spec: Pipeline, version: int, data: DatasetRef, at: datetime) -> Verdict:
    """Compare the challenger with the champion on the holdout, row by row."""
    prepare_mlflow()
    champion = registry.champion(spec.name)
    if champion is None:
        return gate.judge(spec.gate, str(version), None, None)
    if champion.version == version:  # promoted by a run that was killed before it could say so
        return gate.Verdict(True, champion.reason, str(version))
    if champion.as_of > at:
        reason = f"The champion was trained as of {champion.as_of:%Y-%m-%d}, later than the challenger."
        return gate.Verdict(False, reason, str(version), str(champion.version))
    held_out = dataset.read(spec, data, Lake(Settings().lake), holdout=True)
    ours, theirs = (
        tracking.load_model(f"models:/{spec.name}/{v}").predict(held_out) for v in (version, champion.version)
    )
    gain = gate.paired_gain(held_out["label"].to_numpy(), theirs, ours)
    return gate.judge(spec.gate, str(version), str(champion.version), gain)


@step("release")
def release(spec: Pipeline, version: int, verdict: Verdict, at: datetime) -> None:
    """Carry out the verdict: intent in the ledger, then the alias, then done."""
    prepare_mlflow()
    if not verdict.promoted:
        registry.reject(spec.name, version, verdict.reason, at)
    elif not claim(spec, "promotion", str(version)):
        registry.promote(spec.name, version, verdict.reason, at)
        finish(spec, "promotion", str(version), as_of=at, reason=verdict.reason)
    page = Settings().mlflow_page
    create_markdown_artifact(
        key=f"verdict-{spec.name}",
        markdown=f"## Version {version} is {'promoted' if verdict.promoted else 'rejected'}\n\n"
        f"{verdict.reason}\n\n"
        f"- Challenger: [version {verdict.challenger}]({page}/#/models/{spec.name}/versions/{version})\n"
        f"- Champion before: {f'version {verdict.champion}' if verdict.champion else 'none'}\n"
        f"- As of: {at:%Y-%m-%d %H:%M} UTC\n",
    )


# ── score ──────────────────────────────────────────────────────────


def prepare_mlflow() -> None:
    """Point this process at MLflow."""
    settings = Settings()
    tracking.prepare(settings.mlflow, settings.home)


@step("find the champion")
def champion(spec: Pipeline) -> Release:
    """Return the release that serves.

    Raises:
        NoChampion: Nothing was released yet.
    """
    prepare_mlflow()
    release = registry.champion(spec.name)
    if release is None:
        raise NoChampion(spec.name)
    return release


@step("find unscored windows")
def unscored(spec: Pipeline, at: datetime) -> list[Window]:
    """Return the closed windows since the first release in which predictions are missing.

    Raises:
        NoChampion: The ledger knows of no release.
        StaleFeatures: Their features are not built from all raw rows there are.
    """
    lake = Lake(Settings().lake)
    promotions = Ledger(Settings().ledger).entries(spec.name, "promotion")
    released = [datetime.fromisoformat(entry.detail["as_of"]) for entry in promotions if entry.detail]
    if not released:  # none, or cut short before the ledger had it: training again settles it
        raise NoChampion(spec.name)
    due = log.pending(spec, lake, min(released), at)
    for table in spec.feature_tables:
        if late := tables.stale(table, spec.raw, _times(spec), due, lake):
            raise StaleFeatures(spec.name, table.name, str(late[0]))
    return due


@step("score {window}")
def score(spec: Pipeline, release: Release, window: Window) -> int:
    """Predict for one window, from the online store, with the champion."""
    lake, store = Lake(Settings().lake), open_store()
    # Online already, unless this window lies before the first that was brought online.
    feature_store.materialize(store, spec.feature_service, window.end, window.start)
    return log.score(
        spec,
        lake,
        window,
        lambda spine: feature_store.online(store, spec.feature_service, spine),
        tracking.load_model(release.model_uri),
        release.version,
    )


def logger() -> Any:
    """Return the run's logger."""
    return get_run_logger()


# ── monitor ────────────────────────────────────────────────────────────────────


@step("compare with the champion's training data")
def watch(spec: Pipeline, at: datetime) -> dict[str, Any]:
    """Measure drift and performance of the last closed window; keep the report in MLflow."""
    from headrace.evaluation import Scores
    from headrace.monitoring.drift import drift
    from headrace.monitoring.performance import performance

    prepare_mlflow()
    settings = Settings()
    lake, window = Lake(settings.lake), windows(at - 2 * spec.window, at, spec.window)[-1]
    predictions = log.read(spec, lake, window)
    if not predictions.num_rows:
        raise NothingScored(spec.name, str(window))
    # the one that made these predictions; by now another may serve
    serving = registry.version(spec.name, predictions["model_version"][0].as_py())
    seen = dataset.read(spec, serving.training, lake)
    reference = seen.append_column("probability", [tracking.load_model(serving.model_uri).predict(seen)])
    name = f"{spec.name}-{window.end:%Y-%m-%d}"
    report = settings.home / "reports" / f"{name}.html"
    found = drift(reference, predictions, spec.columns, spec.drift, report, every=spec.window)
    known = log.outcomes(spec, lake, window, at)
    promised = Scores(**{k: serving.metrics[k] for k in Scores.__dataclass_fields__})
    fared = performance(known["label"].to_numpy(), known["probability"].to_numpy(), promised, spec.drift)
    metrics = {
        "drift_share": found.share,
        "auc": fared.scores.auc,
        "log_loss": fared.scores.log_loss,
        "skill": fared.skill,
        "champion_version": serving.version,
    }
    metrics = {k: float(v) for k, v in metrics.items() if v is not None}
    page = settings.mlflow_page
    if found.report:
        page += tracking.log_watch(spec.name, name, metrics, report, home=settings.home, as_of=window.end)
    create_markdown_artifact(
        key=f"monitor-{spec.name}",
        markdown=f"## {'Drift' if found.drifted else 'No drift'} in {window}\n\n{found.reason}\n\n"
        f"{fared.reason} AUC {fared.scores.auc or 0:.3f}, log-loss {fared.scores.log_loss:.3f}.\n\n"
        f"Champion: [version {serving.version}]({settings.mlflow_page}/#/models/{spec.name}/versions/"
        f"{serving.version}) ({serving.candidate}), as of {serving.as_of:%Y-%m-%d}. "
        f"[Evidently report]({page}) (served by `make up`).",
    )
    create_table_artifact(key=f"drift-{spec.name}", table=found.table(), description=f"## Drift in {window}")
    return {
        "window": str(window),
        "drifted": found.drifted,
        "cause": f"drift/{window.end:%Y-%m-%d}",
        "reason": found.reason,
        "performance": fared.reason,
        "champion": serving.version,
        "report": found.report,
        **metrics,
    }


@step("announce drift")
def announce_drift(spec: Pipeline, at: datetime, finding: Mapping[str, Any]) -> None:
    """Emit ``headrace.drift``; the ledger, not the event, makes sure that one window retrains once."""
    emit_event(
        "headrace.drift",
        resource={
            "prefect.resource.id": f"headrace.pipeline.{spec.name}",
            "prefect.resource.name": spec.name,
        },
        payload={"as_of": at.isoformat(), "cause": finding["cause"], "reason": finding["reason"]},
        id=uuid5(NAMESPACE_URL, f"headrace/{spec.name}/{finding['cause']}"),
    )


@step("wait for the retraining", minutes=30)
def await_retraining(spec: Pipeline, cause: str) -> dict[str, Any]:
    """Return the verdict of the retraining that ``cause`` started, once the ledger has it.

    Raises:
        NotTakenUp: After three minutes no run is at work on it.
    """
    ledger, began = Ledger(Settings().ledger), time.monotonic()
    while True:
        entries = ledger.entries(spec.name, "training", cause)
        if done := next((e for e in entries if e.state == DONE), None):
            return done.detail
        at_work = bool(entries) and entries[-1].state == CLAIMED
        if not at_work and time.monotonic() - began > 180:
            raise NotTakenUp(spec.name, cause)
        time.sleep(0.25)


@step("compare the releases")
def compare_releases(spec: Pipeline, span: Window, at: datetime) -> list[dict[str, Any]]:
    """Set every release beside the first one, on the predictions of ``span`` neither was trained on."""
    from headrace.evaluation import evaluate

    prepare_mlflow()
    lake = Lake(Settings().lake)
    compared: list[dict[str, Any]] = []
    releases = registry.versions(spec.name)
    for release in releases:
        trained_to = release.as_of - spec.holdout
        if trained_to >= span.end:
            continue
        unseen = Window(max(span.start, trained_to), span.end)
        rows = log.outcomes(spec, lake, unseen, at)
        if not rows.num_rows:
            continue
        auc, first_auc = (
            evaluate(rows["label"].to_numpy(), tracking.load_model(r.model_uri).predict(rows)).auc
            for r in (release, releases[0])
        )
        compared.append(
            {
                "version": release.version,
                "candidate": release.candidate,
                "verdict": release.verdict,
                "trained_to": trained_to,
                "unseen": str(unseen),
                "rows": rows.num_rows,
                "auc": auc,
                "auc_of_first": first_auc,
            }
        )
    return compared
