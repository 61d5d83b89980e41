"""Online store ▶ champion ▶ prediction log."""

from __future__ import annotations

from datetime import datetime

from flows.steps.common import open_store, prepare_mlflow, progress, step
from headrace import registry, tracking
from headrace.errors import NoChampion, StaleFeatures
from headrace.feature_store import store as feature_store
from headrace.feature_store import tables
from headrace.instants import read
from headrace.lake import Lake, Window
from headrace.ledger import DONE, Ledger
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


def first_release(spec: Pipeline) -> datetime | None:
    """Return the ``as_of`` (UTC) of the first release that the ledger knows of; None if it knows of none."""
    promotions = Ledger(Settings().ledger).entries(spec.name, "promotion")
    return min((read(entry.detail["as_of"]) for entry in promotions if entry.state == DONE), default=None)


def released(spec: Pipeline) -> bool:
    """Say whether a model of the pipeline was ever released."""
    return first_release(spec) is not None


@step("find unscored windows")
def unscored(spec: Pipeline, at: datetime) -> list[Window]:
    """Return the windows since the first release in which predictions are missing, and can be made.

    A window can be predicted once every source that its predictions are made of is complete.

    Raises:
        NoChampion: The ledger knows of no release.
        StaleFeatures: Their features are not built from all raw rows there are.
    """
    lake = Lake(Settings().lake)
    since = first_release(spec)
    if since is None:  # none, or cut short before the ledger had it: training again settles it
        raise NoChampion(spec.name)
    due = log.pending(spec, lake, since, log.predictable(spec, progress(spec, at)))
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
