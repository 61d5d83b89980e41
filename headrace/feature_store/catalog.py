"""The catalog: what feature views there are, where each comes from and what is made of it.

raw tables ─▶ SQL ─▶ feature table ─▶ view ─▶ service ─▶ model
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from headrace import registry
from headrace.feature_store import freshness
from headrace.feature_store.errors import UnknownFeature
from headrace.feature_store.store import inputs
from headrace.sources import Predictions
from headrace.sql import reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from feast import FeatureService, FeatureStore

    from headrace.feature_store.freshness import Freshness
    from headrace.lake import Lake
    from headrace.pipeline import Pipeline
    from headrace.registry import Release
    from headrace.tracking import MLflow


@dataclass(frozen=True)
class Feature:
    """One feature, as its view declares it."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class View:
    """A feature view and its way from the raw tables to the services.

    ``keys`` are what it must be given. A view whose features are computed when
    asked for has no ``table``, no ``sql`` and no ``freshness``. ``reads`` names raw tables, ``fed_by``,
    of these, those of predictions, by the pipeline that makes them, ``pipelines`` those whose service has it.
    """

    name: str
    description: str
    owner: str
    tags: Mapping[str, str]
    keys: tuple[str, ...]
    ttl: timedelta | None
    features: tuple[Feature, ...]
    services: tuple[str, ...]
    pipelines: tuple[str, ...]
    table: str
    sql: Path | None
    reads: tuple[str, ...]
    fed_by: Mapping[str, str]
    freshness: Freshness | None


def views(store: FeatureStore, specs: Sequence[Pipeline], as_of: datetime) -> list[View]:
    """Return every registered view, by name; their freshness is that at ``as_of`` (UTC)."""
    built = {table.table: (spec, table) for spec in specs for table in spec.feature_tables}
    services = store.list_feature_services()
    found = []
    view: Any
    for view in sorted(store.list_all_feature_views(), key=lambda view: view.name):
        source = getattr(view, "batch_source", None)
        spec, table = built.get(source.path if source else "", (None, None))
        named = set(reads(table.sql.read_text())) if table else set()
        raw = tuple(sorted(name for view, name in spec.raw.items() if view.lower() in named)) if spec else ()
        fed_by = {
            source.origin.pipeline: source.table
            for source in (spec.sources if spec else ())
            if isinstance(source.origin, Predictions) and source.name.lower() in named
        }
        using = [service.name for service in services if view.name in _used(service)]
        found.append(
            View(
                name=view.name,
                description=view.description,
                owner=view.owner,
                tags=view.tags,
                keys=tuple(sorted(inputs(store, view.name))),
                ttl=getattr(view, "ttl", None),
                features=tuple(
                    # Feast knows no descriptions of features computed when asked for: tags hold them.
                    Feature(field.name, str(field.dtype), field.description or view.tags.get(field.name, ""))
                    for field in view.features
                ),
                services=tuple(using),
                pipelines=tuple(sorted(s.name for s in specs if s.feature_service in using)),
                table=source.path if source else "",
                sql=table.sql if table else None,
                reads=raw,
                fed_by=fed_by,
                freshness=freshness.of(store, view, as_of) if source else None,
            )
        )
    return found


def find(name: str, among: Sequence[View]) -> tuple[View, tuple[Feature, ...]]:
    """Return the view of that name, or the one with a feature of that name, and the features meant.

    A feature may also be named as Feast does, ``view:feature``.

    Raises:
        UnknownFeature: There is none.
    """
    known: dict[str, tuple[View, tuple[Feature, ...]]] = {}
    for view in among:
        for feature in view.features:
            known[feature.name] = known[f"{view.name}:{feature.name}"] = (view, (feature,))
    known |= {view.name: (view, view.features) for view in among}
    if name not in known:
        raise UnknownFeature(name, list(known))
    return known[name]


def models(
    pipeline: str, features: Sequence[Feature], lake: Lake, mlflow: MLflow
) -> list[tuple[Release, tuple[str, ...]]]:
    """Return the registered versions that were trained on some of ``features``, and on which.

    What a version was trained on is read from its own training set, not from today's declaration.
    """
    found = []
    for release in registry.versions(mlflow, pipeline):
        trained = lake.table(release.training.table).open(release.training.version)
        columns = {field.name for field in trained.schema().fields}
        if used := tuple(feature.name for feature in features if feature.name in columns):
            found.append((release, used))
    return found


def predictors(view: View, lake: Lake) -> dict[str, list[int]]:
    """Return, by pipeline, the versions whose predictions the view is made of; 0 is out of sample."""
    found = {}
    for pipeline, table in view.fed_by.items():
        if not lake.table(table).exists():
            continue
        versions = lake.connect({"fed": table}).sql("SELECT DISTINCT model_version FROM fed ORDER BY ALL")
        found[pipeline] = [version for (version,) in versions.fetchall()]
    return found


def last_build(table: str, lake: Lake) -> datetime | None:
    """Return when (UTC, wall-clock) the feature table was last written; None if never, or not known."""
    if not lake.table(table).exists():
        return None
    commits = lake.table(table).open().history(1)  # none where the path has a `#`
    return datetime.fromtimestamp(commits[0]["timestamp"] / 1000, UTC) if commits else None


def _used(service: FeatureService) -> set[str]:
    return {view.name for view in service.feature_view_projections}
