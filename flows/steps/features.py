"""Raw tables ▶ feature tables ▶ online store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from flows.steps.common import open_store, step
from headrace.feature_store import store as feature_store
from headrace.feature_store import tables
from headrace.lake import Lake, Window, windows
from headrace.pipeline import FeatureTable, Pipeline
from headrace.settings import Settings


@step("find stale windows")
def stale(spec: Pipeline, at: datetime) -> dict[FeatureTable, list[Window]]:
    """Return, per feature table, the closed windows that are new or have new raw rows."""
    lake = Lake(Settings().lake)
    return {
        table: tables.stale(table, spec.raw, windows(spec.start, at, table.window), lake)
        for table in spec.feature_tables
    }


@step("build {table.name}")
def build_features(spec: Pipeline, table: FeatureTable, due: list[Window]) -> int:
    """Build the table's windows; return the rows written."""
    lake = Lake(Settings().lake)
    return sum(tables.build(table, spec.raw, window, lake, spec.name) for window in due)


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
