"""Training set ▶ candidates ▶ challenger ▶ gate ▶ champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime
from threading import Timer
from typing import cast
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import FlowPauseTimeout, NotPausedError
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.futures import PrefectFuture
from prefect.input import RunInput
from prefect.runtime import flow_run as this_run

from flows.steps.common import announce, holder, logger, progress, slug, step
from flows.steps.scoring import announce_champion
from headrace import registry, tracking
from headrace import release as releases
from headrace.feature_store import store as feature_store
from headrace.gate import Verdict
from headrace.instants import shown
from headrace.lake import DatasetRef
from headrace.legible import markdown
from headrace.pipeline import Candidate, Pipeline
from headrace.project import Project
from headrace.release import Trial, models
from headrace.release.card import card
from headrace.release.errors import NothingToTune
from headrace.release.page import page as verdict_page
from headrace.training import dataset

POLL, SLACK = 2, 600
"""Seconds between two looks whether a person has answered; and after which a pause ends by itself."""
SILENCE = "nobody said anything"
"""What a run is told in place of a person."""
MUCH = 0.5
"""The share of nulls in a column from which a person is warned."""


@step("find what is known")
def known_to(project: Project, spec: Pipeline, at: datetime) -> datetime:
    """Return up to when (UTC), by ``at``, all has landed and is built that a model is to learn from.

    Raises:
        StaleFeatures: Features were built otherwise than they would be today.
    """
    until = dataset.known_to(spec, progress(project, spec, at), project.lake)
    if until < at:
        logger().info("Training on what is known up to %s UTC", shown(until))
    return until


@step("build the training set")
def training_set(project: Project, spec: Pipeline, at: datetime) -> DatasetRef:
    """Join features to labelled predictions, point in time, and pin the result; once of the same."""
    store, lake = project.store, project.lake
    pins = feature_store.pins(store, spec.feature_service)
    data = dataset.made(
        spec,
        lake,
        project.ledger,
        at,
        lambda spine: feature_store.historical(store, spec.feature_service, spine, pins),
        pins,
        feature_store.identity(store, spec.feature_service),
        holder(),
    )
    if missing := dataset.nulls(spec, data, lake):
        told = ", ".join(f"{name} {share:.1%}" for name, share in missing.items())
        say = logger().warning if max(missing.values()) >= MUCH else logger().info
        say("Null in the %s rows of the training set: %s", f"{data.rows:,}", told)
    return data


@step("pin its sources")
def sources(project: Project, data: DatasetRef) -> list[DatasetRef]:
    """Take the fingerprints of the tables that the training set was made from, as they were then."""
    return [project.lake.table(name).snapshot(version) for name, version in data.pins]


def studies(spec: Pipeline, data: DatasetRef) -> list[releases.Study]:
    """Return a study for each candidate that says what to look for.

    Raises:
        NothingToTune: None does.
    """
    found = [releases.Study(spec, candidate, data) for candidate in spec.candidates if candidate.search]
    if not found:
        raise NothingToTune(spec.name)
    return found


@step("tune {study.candidate.name}", minutes=24 * 60)
def tune(project: Project, study: releases.Study, trials: int, at: datetime) -> releases.Tried:
    """Let a study have so many trials, those of before included; keep and show what was best."""
    from headrace.cluster import cluster

    settings, ledger, spec = project.settings, project.ledger, study.spec
    shown_at, found = max(trials // 20, 1), list[releases.Tried]()
    bar = cast(UUID, create_progress_artifact(0.0, key=slug("tuned", spec.name), description="Trials"))
    with cluster(settings.dask_address, settings.dask_workers) as client:
        rooms = (ledger, project.lake, project.mlflow, client)
        for tried in releases.tune(study, trials, *rooms, at, holder()):
            found.append(tried)
            update_progress_artifact(bar, 100 * (tried.number + 1) / trials)
            if not (tried.number + 1) % shown_at or tried.failed:
                lead = min((t for t in found if t.loss is not None), key=lambda t: t.loss or 0, default=None)
                best = f"best {lead.loss:.5f} by trial {lead.number}" if lead else "none has ended yet"
                given_up = sum(t.state == "given up" for t in found)
                told = f", {tried.failed}" if tried.failed else ""
                logger().info(
                    "%s: trial %d of %d, %s, %d given up%s",
                    *(study.candidate.name, tried.number + 1, trials, best, given_up, told),
                )
    best_of = releases.best(study, ledger)
    _show_study(project, study, at)
    key = f"{study.name}/{trials}"
    space = releases.space_of(study.candidate)
    detail = {"space": space, "params": best_of.params, "loss": best_of.loss, "trial": best_of.number}
    ledger.finish(spec.name, "study", key, holder=holder(), as_of=at, trials=trials, **detail)
    return best_of


def _show_study(project: Project, study: releases.Study, at: datetime) -> None:
    """Note the best in the study's run, with Optuna's plots, and show the trials in the UI."""
    spec, mlflow = study.spec, project.mlflow
    best, *others = releases.finished(study, project.ledger)
    run = tracking.end_study(mlflow, spec.name, study.name, best.params, best.loss or 0.0)
    page = project.settings.mlflow_page + tracking.run_page(mlflow, run)
    drawn = releases.plots(study, project.ledger)
    for name, data in drawn.items():
        tracking.keep(mlflow, run, name, data)
    links = ", ".join(f"[{name.removesuffix('.html')}]({page}/artifacts/{name})" for name in drawn)
    create_table_artifact(
        key=slug("study", spec.name, study.candidate.name),
        table=[
            {
                "trial": tried.number,
                f"loss ({spec.problem.loss_unit})": f"{tried.loss:.5f}",
                **{name: f"{v:.5g}" if isinstance(v, float) else v for name, v in tried.params.items()},
                "seconds": f"{tried.seconds:.1f}",
            }
            for tried in (best, *others[:19])
        ],
        description=f"## {study.candidate.name}: the best of {1 + len(others):,} trials that ended, "
        f"as of {shown(at)}\n\n"
        f"[The study in MLflow]({page}), with each trial below it. Optuna's plots: {links}.",
    )


@step("fit {candidate.name}", minutes=60)
def fit(
    project: Project,
    spec: Pipeline,
    candidate: Candidate,
    data: DatasetRef,
    sources: list[DatasetRef],
    at: datetime,
    cause: str,
) -> Trial:
    """Fit one candidate on the cluster, score it on rows that it has not learnt from, and log both to MLflow.

    Of several, that is the selection span; a single one is scored on the holdout at once.
    """
    return _try_out(project, spec, candidate, data, sources, at, cause, final=not spec.selects)


@step("fit the chosen {chosen.candidate} again", minutes=60)
def fit_again(
    project: Project,
    spec: Pipeline,
    chosen: Trial,
    data: DatasetRef,
    sources: list[DatasetRef],
    at: datetime,
    cause: str,
) -> Trial:
    """Fit the chosen candidate on all rows before the holdout, and score it on that: nobody did before."""
    candidate = releases.settled(spec, chosen)
    return _try_out(project, spec, candidate, data, sources, at, cause, final=True)


def _try_out(
    project: Project,
    spec: Pipeline,
    candidate: Candidate,
    data: DatasetRef,
    sources: Sequence[DatasetRef],
    at: datetime,
    cause: str,
    *,
    final: bool,
) -> Trial:
    from headrace.cluster import cluster

    settings = project.settings
    with cluster(settings.dask_address, settings.dask_workers) as client:
        trial = releases.try_out(
            spec,
            candidate,
            data,
            final=final,
            sources=sources,
            lake=project.lake,
            mlflow=project.mlflow,
            cause=cause,
            as_of=at,
            client=client,
            folder=project.folder,
            page=this_run.ui_url or "",
        )
    if trial.without_gpu:
        logger().warning("%s: %s", candidate.name, trial.without_gpu)
    return trial


def outcome(spec: Pipeline, fits: Sequence[PrefectFuture[Trial]]) -> tuple[list[Trial], dict[str, str]]:
    """Wait for all ``fits``; return the candidates that were fitted, and by name why others were not.

    Raises:
        Exception: None was fitted; this is what the first one met.
    """
    ended = {
        candidate.name: fit.result(raise_on_failure=False)
        for candidate, fit in zip(spec.candidates, fits, strict=True)
    }
    errors = {name: end for name, end in ended.items() if isinstance(end, BaseException)}
    fitted = [end for end in ended.values() if isinstance(end, Trial)]
    if not fitted:
        raise next(iter(errors.values()))
    failed = {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}
    for name, reason in failed.items():
        logger().error("Candidate %s failed, and is left out: %s", name, reason)
    return fitted, failed


@step("choose the best candidate")
def choose(project: Project, spec: Pipeline, fitted: list[Trial], failed: Mapping[str, str]) -> Trial:
    """Return the best of the candidates, and show all of them."""
    best, page, problem = releases.choose(spec, fitted), project.settings.mlflow_page, spec.problem
    last = "holdout" if best.final else "selection span"
    create_table_artifact(
        key=slug("candidates", spec.name),
        table=[
            {
                "candidate": trial.candidate,
                **{
                    title: f"{trial.scores[name]:.4f}" if name in trial.scores else "-"
                    for name, title in problem.shown.items()
                },
                f"loss ({problem.loss_unit})": f"{trial.losses.mean():.4f}",
                "seconds": f"{trial.seconds:.1f}",
                "chosen": "✓" if trial is best else "",
                "run": f"[{trial.logged.run_id[:8]}]({page}{trial.logged.page})",
            }
            for trial in sorted(fitted, key=lambda trial: trial.losses.mean())
        ],
        description=f"## Candidates, scored on the {best.losses.size:,} rows of the {last}"
        + "".join(
            f"\n\nLeft out, for it failed: **{name}**. {markdown(reason)}" for name, reason in failed.items()
        ),
    )
    if len(fitted) > 1:
        logger().info("%s is chosen: %s", best.candidate, problem.told(best.scores))
    return best


@step("register the challenger")
def register(project: Project, spec: Pipeline, trial: Trial) -> int:
    """Register what was tried on the holdout as the challenger; return its version."""
    version = registry.register(project.mlflow, spec.name, trial.logged)
    registry.set_alias(project.mlflow, spec.name, registry.CHALLENGER, version)
    return version


@step("judge")
def judge(
    project: Project, spec: Pipeline, version: int, trial: Trial, data: DatasetRef, at: datetime
) -> Verdict:
    """Compare the challenger on the holdout, row by row, with the champion or, at first, with a guess.

    One that is to be promoted is certified to be served as it was trained.

    Raises:
        ParityBroken: The online store serves other features than the point-in-time join gives.
    """
    verdict = releases.judge(spec, version, trial, data, project.lake, project.mlflow, at)
    return releases.certified(spec, verdict, project.store, project.lake, project.mlflow, at)


@step("release")
def release(project: Project, spec: Pipeline, version: int, verdict: Verdict, at: datetime) -> bool:
    """Carry out the verdict; False if another training was quicker, so that it must be judged again."""
    key = project.settings.signing_key
    done = releases.carry_out(spec, version, verdict, at, project.mlflow, project.ledger, holder(), key)
    if not done:
        return False
    _show(project, spec, version, verdict, at)
    if verdict.promoted:
        about = models.about(project.mlflow, registry.version(project.mlflow, spec.name, version))
        told = card(spec, about, project.mlflow, project.ledger)
        tracking.keep(project.mlflow, about.release.run_id, "card.md", told.encode())
        create_markdown_artifact(key=slug("card", spec.name), markdown=told)
        announce_champion(project, spec)
        _tell_downstream(project, spec, version, at)
    return True


class Approval(RunInput):
    """What a person is asked for before a model serves."""

    approve: bool = False
    name: str = ""
    reason: str = ""


def approved(project: Project, spec: Pipeline, version: int, verdict: Verdict, at: datetime) -> Verdict:
    """Return a promotion as a person wants it, where the gate asks for one; until then the run is paused."""
    asked = releases.asks(spec, verdict, project.mlflow)
    if asked is None:
        return verdict
    _show(project, spec, version, verdict, at)
    what = f"Version {version} of {spec.name} may serve, says the gate. Shall it?"
    wanted = Approval.with_initial_data(description=f"**{what}**\n\n{markdown(verdict.reason)}")
    logger().info("%s Resume this run in the UI to say so, within %s", what, asked)
    run, seconds = UUID(this_run.id), asked.total_seconds()

    def give_up_waiting() -> None:
        # Resumed, and not left to Prefect's own timeout, with which the run would fail. If somebody was
        # quicker, or the server is gone, the pause ends by itself.
        with suppress(NotPausedError, FlowPauseTimeout, RuntimeError, HTTPError):
            resume_flow_run(run, run_input={"reason": SILENCE})

    timer = Timer(seconds, copy_context().run, [give_up_waiting])  # which server it is goes with it
    timer.daemon = True
    timer.start()
    try:
        said = pause_flow_run(wait_for_input=wanted, timeout=int(seconds) + SLACK, poll_interval=POLL)
    except FlowPauseTimeout:
        return releases.answered(verdict, asked, None)
    finally:
        timer.cancel()
    approve = None if said.reason == SILENCE else said.approve
    return releases.answered(verdict, asked, approve, said.name, said.reason)


def _show(project: Project, spec: Pipeline, version: int, verdict: Verdict, at: datetime) -> None:
    page = project.settings.mlflow_page
    challenger = registry.version(project.mlflow, spec.name, version)
    run = page + tracking.run_page(project.mlflow, challenger.run_id)
    create_markdown_artifact(
        key=slug("verdict", spec.name),
        markdown=f"## Version {version} of {spec.name}\n\n"
        f"{verdict_page(verdict, spec.gate, spec.problem.loss_unit)}\n"
        f"- Challenger: [version {verdict.challenger}]({page}/#/models/{spec.name}/versions/{version}), "
        f"[drawn on the holdout]({run}/artifacts/holdout.png), "
        f"[by segment]({run}/artifacts/segments.json), [what it goes by]({run}/artifacts/inputs.png)\n"
        f"- Champion before: {f'version {verdict.champion}' if verdict.champion else 'none'}\n"
        f"- As of: {shown(at)} UTC\n",
    )


def _tell_downstream(project: Project, spec: Pipeline, version: int, at: datetime) -> None:
    """Emit ``headrace.upstream`` for each pipeline that feeds on the predictions of this one."""
    for fed in releases.downstream(spec.name, project.sound_pipelines()):
        cause = f"upstream/{spec.name}/{version}"
        upstream = {
            "prefect.resource.id": f"headrace.pipeline.{spec.name}",
            "prefect.resource.role": "upstream",
        }
        told = {"upstream": spec.name, "version": version, "as_of": at.isoformat(), "cause": cause}
        announce("headrace.upstream", fed, cause, [upstream], **told)
        logger().info("%s feeds on this pipeline, and is told of its new champion", fed.name)
