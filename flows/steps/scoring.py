"""Online store ▶ champion ▶ prediction log."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from functools import partial

from flows.steps.common import announce, holder, logger, progress, step
from headrace import registry, tracking
from headrace import release as releases
from headrace.feature_store.errors import ParityBroken
from headrace.feature_store.plan import Plan
from headrace.lake import Window
from headrace.pipeline import Pipeline
from headrace.project import Project
from headrace.registry import Release
from headrace.release import live, promotion
from headrace.release.errors import NoChampion, NothingShadowed
from headrace.serving import log
from headrace.serving.predictor import Predictor


def settle_champion(project: Project, spec: Pipeline) -> None:
    """Finish a change of champion that was cut short; say so if somebody has moved the alias by hand."""
    for done in releases.reconcile(spec, project.mlflow, project.ledger, holder()):
        logger().warning("Finished what was cut short: %s", done)
    if stray := releases.strayed(spec, project.mlflow, project.ledger):
        logger().warning("%s", stray)
        key = f"strayed/{stray.named}/{stray.expected}"
        announce("headrace.champion.strayed", spec, key, reason=str(stray))


def announce_champion(project: Project, spec: Pipeline) -> None:
    """Emit ``headrace.champion``: another version serves."""
    last = promotion.changes(spec, project.ledger)[-1]
    announce("headrace.champion", spec, f"champion/{last.key}", reason=promotion.told(last))


def judge_live(project: Project, spec: Pipeline, at: datetime) -> None:
    """Return a canary that is proven to be worse; if the gate says ``live``, promote what is proven better.

    And let go of shadows that are not.
    """
    for version in live.contenders(spec, project.mlflow):
        _judge_live(project, spec, version, at)


@step("judge version {version} by live traffic")
def _judge_live(project: Project, spec: Pipeline, version: int, at: datetime) -> None:
    rooms = (project.store, project.lake, project.mlflow, project.ledger, holder())
    try:
        key = project.settings.signing_key
        verdict = live.settle(spec, version, *rooms, at, key=key)
    except NothingShadowed as error:
        logger().info("%s", error)
    except ParityBroken as error:  # what is to be judged of the champion goes on
        logger().error("Version %s is not promoted: %s", version, error)
    else:
        logger().info("By live traffic: %s", verdict or f"version {version} serves already")
        now = registry.champion(project.mlflow, spec.name)
        if verdict and verdict.promoted and now and now.version == version:
            announce_champion(project, spec)


@step("find the champion")
def champion(project: Project, spec: Pipeline) -> Release:
    """Return the release that serves.

    Raises:
        NoChampion: Nothing was released yet.
    """
    release = registry.champion(project.mlflow, spec.name)
    if release is None:
        raise NoChampion(spec.name)
    return release


def released(project: Project, spec: Pipeline) -> datetime | None:
    """Return when (``as_of``, UTC) the pipeline's first model was released; None if none was."""
    return releases.first(spec, project.ledger)


@step("find unscored windows")
def unscored(project: Project, spec: Pipeline, at: datetime) -> list[Window]:
    """Return the windows since the first release in which predictions are missing, and can be made.

    Raises:
        NoChampion: The ledger knows of no release.
        StaleFeatures: Their features are not built from all raw rows there are.
    """
    since = released(project, spec)
    if since is None:  # none, or cut short before the ledger had it: training again settles it
        raise NoChampion(spec.name)
    return log.due(spec, project.lake, since, progress(project, spec, at))


@step("score {window}")
def score(project: Project, spec: Pipeline, release: Release, window: Window) -> int:
    """Predict for one window, from the online store, with the champion."""
    model = tracking.load_model(project.mlflow, release.model_uri)
    predictor = Predictor(spec, release.version, model, partial(Plan, project.store), project.lake)
    with closing(predictor.plan):
        return log.score(spec, project.lake, window, partial(predictor.batch, since=release.as_of))
