"""Online store ▶ champion ▶ prediction log."""

from __future__ import annotations

from datetime import datetime

from flows.steps.common import open_store, prepare_mlflow, step
from headrace import registry, tracking
from headrace.errors import NoChampion, StaleFeatures
from headrace.feature_store import store as feature_store
from headrace.feature_store import tables
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
        if late := tables.stale(table, spec.raw, due, lake):
            window, cause = next(iter(late.items()))
            raise StaleFeatures(spec.name, table.name, str(window), cause)
    return due


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
