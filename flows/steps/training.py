"""Training set ▶ candidates ▶ challenger ▶ gate ▶ champion."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture

from flows.steps.common import claim, finish, logger, open_store, prepare_mlflow, progress, slug, step
from headrace import gate, registry, tracking
from headrace.evaluation import evaluate, log_losses
from headrace.feature_store import store as feature_store
from headrace.gate import Verdict
from headrace.instants import shown
from headrace.lake import DatasetRef, Lake
from headrace.ledger import Ledger
from headrace.legible import markdown
from headrace.pipeline import Candidate, Pipeline
from headrace.settings import Settings
from headrace.tracking import Logged
from headrace.training import dataset

MUCH = 0.5
"""The share of nulls in a column from which a person is warned."""


@dataclass(frozen=True)
class Fitted:
    """A candidate as MLflow keeps it, with its scores on the holdout."""

    candidate: str
    logged: Logged
    scores: Mapping[str, float]
    seconds: float


@step("find what is known")
def known_to(spec: Pipeline, at: datetime) -> datetime:
    """Return up to when (UTC), by ``at``, all has landed and is built that a model is to learn from.

    Raises:
        StaleFeatures: Features were built otherwise than they would be today.
    """
    until = dataset.known_to(spec, progress(spec, at), Lake(Settings().lake))
    if until < at:
        logger().info("Training on what is known up to %s UTC", shown(until))
    return until


@step("build the training set")
def training_set(spec: Pipeline, at: datetime) -> DatasetRef:
    """Join features to labelled predictions, point in time, and pin the result."""
    store, lake = open_store(), Lake(Settings().lake)
    pins = feature_store.pins(store, spec.feature_service)
    data = dataset.build(
        spec,
        lake,
        at,
        lambda spine: feature_store.historical(store, spec.feature_service, spine, pins),
        pins,
    )
    if missing := dataset.nulls(spec, data, lake):
        told = ", ".join(f"{name} {share:.1%}" for name, share in missing.items())
        say = logger().warning if max(missing.values()) >= MUCH else logger().info
        say("Null in the %s rows of the training set: %s", f"{data.rows:,}", told)
    return data


@step("pin its sources")
def sources(data: DatasetRef) -> list[DatasetRef]:
    """Take the fingerprints of the tables that the training set was made from, as they were then."""
    lake = Lake(Settings().lake)
    return [lake.table(name).snapshot(version) for name, version in data.pins]


@step("fit {candidate.name}", minutes=60)
def fit(
    spec: Pipeline,
    candidate: Candidate,
    data: DatasetRef,
    sources: list[DatasetRef],
    at: datetime,
    cause: str,
) -> Fitted:
    """Fit one candidate on the cluster, score it on the holdout and log both to MLflow."""
    from headrace import training
    from headrace.cluster import cluster

    settings, start = Settings(), time.perf_counter()
    lake = Lake(settings.lake)
    rows, held_out = (dataset.read(spec, data, lake, holdout=side) for side in (False, True))
    with cluster(settings.dask_address, settings.dask_workers) as client:
        model = training.fit(candidate, rows, rows["label"].to_numpy(), spec.columns, client)
    scores = evaluate(held_out["label"].to_numpy(), model.predict(held_out))
    metrics = scores.metrics()
    tracking.prepare(settings.mlflow, settings.home)
    logged = tracking.log_candidate(
        spec,
        candidate,
        model,
        metrics,
        training=data,
        sources=sources,
        lake=lake,
        home=settings.home,
        cause=cause,
        as_of=at,
    )
    return Fitted(candidate.name, logged, metrics, time.perf_counter() - start)


def outcome(spec: Pipeline, fits: Sequence[PrefectFuture[Fitted]]) -> tuple[list[Fitted], dict[str, str]]:
    """Wait for all ``fits``; return the candidates that were fitted, and by name why others were not.

    Raises:
        Exception: None was fitted; this is what the first one met.
    """
    ended = {
        candidate.name: fit.result(raise_on_failure=False)
        for candidate, fit in zip(spec.candidates, fits, strict=True)
    }
    errors = {name: end for name, end in ended.items() if isinstance(end, BaseException)}
    fitted = [end for end in ended.values() if isinstance(end, Fitted)]
    if not fitted:
        raise next(iter(errors.values()))
    failed = {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}
    for name, reason in failed.items():
        logger().error("Candidate %s failed, and is left out: %s", name, reason)
    return fitted, failed


@step("register the best candidate")
def register(spec: Pipeline, fitted: list[Fitted], failed: Mapping[str, str], data: DatasetRef) -> int:
    """Register the best candidate as the challenger, and show all of them; return its version."""
    prepare_mlflow()
    held_out = dataset.read(spec, data, Lake(Settings().lake), holdout=True)
    probabilities = {f.candidate: tracking.load_model(f.logged.model_uri).predict(held_out) for f in fitted}
    labels, groups = held_out["label"].to_numpy(), gate.groups(spec.gate, held_out)
    losses = {name: log_losses(labels, found) for name, found in probabilities.items()}
    chosen = gate.best(spec.gate, losses, groups)
    best = next(f for f in fitted if f.candidate == chosen)
    version = registry.register(spec.name, best.logged)
    registry.set_alias(spec.name, registry.CHALLENGER, version)
    page = Settings().mlflow_page
    create_table_artifact(
        key=slug("candidates", spec.name),
        table=[
            {
                "candidate": f.candidate,
                "AUC": f"{f.scores['auc']:.4f}" if "auc" in f.scores else "-",
                "log-loss": f"{f.scores['log_loss']:.4f}",
                "Brier": f"{f.scores['brier']:.4f}",
                "seconds": f"{f.seconds:.1f}",
                "challenger": "✓" if f is best else "",
                "run": f"[{f.logged.run_id[:8]}]({page}{f.logged.page})",
            }
            for f in sorted(fitted, key=lambda f: f.scores["log_loss"])
        ],
        description=f"## Candidates, scored on {best.scores['rows']:,.0f} held-out rows"
        + "".join(
            f"\n\nLeft out, for it failed: **{name}**. {markdown(reason)}" for name, reason in failed.items()
        ),
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
        return gate.Verdict("promoted", champion.reason, str(version))
    if champion.as_of > at:
        reason = f"The champion was trained as of {shown(champion.as_of)}, later than the challenger."
        return gate.Verdict("rejected", reason, str(version), str(champion.version))
    held_out = dataset.read(spec, data, Lake(Settings().lake), holdout=True)
    labels = held_out["label"].to_numpy()
    ours, theirs = (
        log_losses(labels, tracking.load_model(f"models:/{spec.name}/{v}").predict(held_out))
        for v in (version, champion.version)
    )
    gain = gate.paired_gain(theirs, ours, gate.groups(spec.gate, held_out))
    return gate.judge(spec.gate, str(version), str(champion.version), gain, "nats")


@step("release")
def release(spec: Pipeline, version: int, verdict: Verdict, at: datetime) -> bool:
    """Carry out the verdict: intent in the ledger, then the alias, then done.

    Of runs that judged against one champion, one takes its place; False tells the others to judge again.
    """
    prepare_mlflow()
    if not verdict.promoted:
        registry.reject(spec.name, version, verdict.reason, at, verdict.decision)
    elif not claim(spec, "promotion", str(version)):
        before, serving = verdict.champion or "none", _serving(spec)
        last = Ledger(Settings().ledger).last(spec.name, "promotion")
        # With the last promotion: a champion that was brought back by hand is succeeded once more.
        succession = f"{before} after {last.key if last else 'none'}"
        if serving != str(version) and (serving != before or claim(spec, "succession", succession)):
            return False
        registry.promote(spec.name, version, verdict.reason, at)
        # First: killed between the two, the next succession is called after this promotion.
        finish(spec, "promotion", str(version), as_of=at, reason=verdict.reason)
        finish(spec, "succession", succession, version=version)
    page = Settings().mlflow_page
    create_markdown_artifact(
        key=slug("verdict", spec.name),
        markdown=f"## Version {version}: {verdict.decision}\n\n"
        f"{verdict.reason}\n\n"
        f"- Challenger: [version {verdict.challenger}]({page}/#/models/{spec.name}/versions/{version})\n"
        f"- Champion before: {f'version {verdict.champion}' if verdict.champion else 'none'}\n"
        f"- As of: {shown(at)} UTC\n",
    )
    return True


def _serving(spec: Pipeline) -> str:
    champion = registry.champion(spec.name)
    return str(champion.version) if champion else "none"
