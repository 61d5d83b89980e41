"""Online store ▶ champion ▶ prediction log."""

from __future__ import annotations

from datetime import datetime

from flows.steps.common import open_store, prepare_mlflow, progress, step
from headrace import registry, tracking
from headrace import release as releases
from headrace.errors import NoChampion
from headrace.feature_store import store as feature_store
from headrace.lake import Lake, Window
from headrace.ledger import Ledger
from headrace.pipeline import Pipeline
from headrace.registry import Release
from headrace.serving import log
from headrace.settings import Settings


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


def released(spec: Pipeline) -> datetime | None:
    """Return when (``as_of``, UTC) the pipeline's first model was released; None if none was."""
    return releases.first(spec, Ledger(Settings().ledger))


@step("find unscored windows")
def unscored(spec: Pipeline, at: datetime) -> list[Window]:
    """Return the windows since the first release in which predictions are missing, and can be made.

    Raises:
        NoChampion: The ledger knows of no release.
        StaleFeatures: Their features are not built from all raw rows there are.
    """
    since = released(spec)
    if since is None:  # none, or cut short before the ledger had it: training again settles it
        raise NoChampion(spec.name)
    return log.due(spec, Lake(Settings().lake), since, progress(spec, at))


@step("score {window}")
def score(spec: Pipeline, release: Release, window: Window) -> int:
    """Predict for one window, from the online store, with the champion."""
    lake, store = Lake(Settings().lake), open_store()
    return log.score(
        spec,
        lake,
        window,
        lambda spine: feature_store.online(store, spec.feature_service, spine),
        tracking.load_model(release.model_uri),
        release.version,
    )
