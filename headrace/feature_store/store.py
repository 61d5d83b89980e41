"""What flows do with Feast: declare, join, fill the online store, read it."""

from __future__ import annotations

import json
import logging
import warnings
from copy import copy
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.errors import BrokenDeclaration
from headrace.feature_store.errors import BadFeature, BadKey, MissingKeys, UnknownPins, UnknownService
from headrace.feature_store.feast import brought
from headrace.imports import lean
from headrace.outages import outages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from feast import FeatureService, FeatureStore, FeatureView, Field, OnDemandFeatureView
    from feast.base_feature_view import BaseFeatureView
    from feast.feature_view_projection import FeatureViewProjection
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import FeastType

    from headrace.settings import Settings

NOBODY = {"__dummy_id": [""]}
"""What Feast knows the only row of a view without entities by."""

BATCH = 10_000
"""Rows read at once: SQLite takes 32,766 keys in a query, and memory stays flat."""


def open_store(repo: Path, settings: Settings, scratch: Path | None = None) -> FeatureStore:
    """Open the Feast repository at ``repo``, its state and tables where ``settings`` say.

    What ``feature_store.yaml`` names absolutely, such as a SQL registry, is left as it is. With
    ``scratch``, a folder, what is applied goes there alone.
    """
    with lean():
        from feast import FeatureStore
        from feast.repo_config import load_repo_config

    config = load_repo_config(repo, repo / "feature_store.yaml")
    if scratch:
        config.registry_config = {"registry_type": "file", "path": str(scratch / "registry.db")}
        config.online_config = {"type": "sqlite", "path": str(scratch / "online.db")}
    for store in (config.registry_config, config.online_config):
        if "://" not in store.get("path", "://"):
            store["path"] = str(settings.home / store["path"])
    config.offline_config["lake"] = config.offline_config.get("lake") or settings.lake
    # It would say at every start that readers are served from a file registry during materialisation;
    # they are: the flag also lifts the refusal that a killed materialisation leaves behind.
    logging.getLogger("feast.repo_config").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "On demand feature view is an experimental feature")
    return FeatureStore(config=config)


def apply(store: FeatureStore, definitions: str) -> None:
    """Register what a module, such as ``features.flights``, declares; nothing is removed.

    Raises:
        BrokenDeclaration: The module cannot be imported; Feast refuses what it is given otherwise there.
    """
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    kinds = (Entity, FeatureView, OnDemandFeatureView, FeatureService)
    try:
        declared = vars(import_module(definitions)).values()
    except Exception as error:  # it is somebody's own code
        said = f"{type(error).__name__}: {error}"
        raise BrokenDeclaration(f"{definitions.replace('.', '/')}.py", [said]) from error
    store.apply([thing for thing in declared if isinstance(thing, kinds)])


def historical(
    store: FeatureStore, service: str, spine: pa.Table, pins: Mapping[str, int] | None = None
) -> pa.Table:
    """Return ``spine`` with the features of ``service`` that were known at each row's ``event_timestamp``.

    Args:
        store: Where ``service`` was applied.
        service: Name of the feature service.
        spine: One row per prediction: the join keys, what the service asks of a
            request, and ``event_timestamp`` (UTC). Columns that the service
            computes are replaced.
        pins: Versions of feature tables to read, as :func:`pins` returned them:
            the same spine then gives the same bytes, whatever was written since.
            A table not named is read at its newest.

    Returns:
        The same rows in the same order; features that were not known are null.

    Raises:
        MissingKeys: The spine lacks a join key, or what a request must hold.
        NotBuilt: A feature table does not exist.
        VersionGone: A table cannot be read at its pinned version.
        UnknownPins: ``pins`` name a table that the service does not read.
    """
    wanted = store.get_feature_service(service)
    given = given_rows(store, spine, wanted)
    reader = _pinned(store, service, pins) if pins else store
    rows = reader.get_historical_features(given, wanted, filter_by_created_timestamp=True).to_arrow()
    return beside(given, rows, wanted)


def pins(store: FeatureStore, service: str) -> dict[str, int]:
    """Return ``{table: version}`` of the feature tables that :func:`historical` would read now.

    Taken before the join and handed to it, they say what a training set was made from.

    Raises:
        NotBuilt: A feature table does not exist.
    """
    from headrace.feature_store.feast import sources

    read = {}
    for view in views_of(store, service):
        source = getattr(view, "batch_source", None)
        if source is not None and sources.is_delta(source):
            read[sources.table(store.config, source).name] = sources.opened(store.config, source).version()
    return dict(sorted(read.items()))


def identity(store: FeatureStore, service: str) -> str:
    """Return a text that is another one when ``service`` would join otherwise, at the same versions.

    Not of Feast's own serialised declarations: they differ each time they are applied.
    """
    from headrace.feature_store.feast import sources

    def typed(fields: Sequence[Field]) -> list[tuple[str, str]]:
        return [(field.name, str(field.dtype)) for field in fields]

    asked = [
        (view.name_to_use(), sorted(view.join_key_map.items()), typed(view.features))
        for view in store.get_feature_service(service).feature_view_projections
    ]
    declared: list[tuple[Any, ...]] = []
    for view in views_of(store, service):
        source = getattr(view, "batch_source", None)
        udf = getattr(getattr(view, "feature_transformation", None), "udf_string", "")
        declared.append(
            (view.name, str(getattr(view, "ttl", "")), typed(getattr(view, "entity_columns", [])), udf)
        )
        if source is not None:
            times = (source.timestamp_field, source.created_timestamp_column)
            # A Delta table's rows are known by its version.
            files = [] if sources.is_delta(source) else sources.stamps(store.config, source)
            declared.append((source.path, files, *times, sorted(source.field_mapping.items())))
    return json.dumps([service, asked, declared])


def views_of(store: FeatureStore, service: str) -> list[BaseFeatureView]:
    """Return the views that ``service`` reads, those that on-demand views read included.

    Raises:
        UnknownService: It is not registered.
        FeatureViewNotFoundException: One of them is not registered.
    """
    from feast.errors import FeatureServiceNotFoundException

    try:
        wanted = store.get_feature_service(service)
    except FeatureServiceNotFoundException:
        raise UnknownService(service, sorted(known.name for known in store.list_feature_services())) from None
    found: dict[str, BaseFeatureView] = {}
    used = [view.name for view in wanted.feature_view_projections]
    while used:
        view = store.registry.get_any_feature_view(used.pop(), store.project)
        found[view.name] = view
        used += getattr(view, "source_feature_view_projections", {})
    return [view for _, view in sorted(found.items())]


def stored_views(store: FeatureStore, service: str) -> list[FeatureView]:
    """Return those of :func:`views_of` that keep rows, rather than compute features when asked."""
    from feast import FeatureView

    return [view for view in views_of(store, service) if isinstance(view, FeatureView)]


def on_demand(store: FeatureStore, view: FeatureViewProjection) -> OnDemandFeatureView | None:
    """Return the view if its features are computed when they are asked for."""
    from feast import OnDemandFeatureView

    found = store.registry.get_any_feature_view(view.name, store.project, allow_cache=True)
    if isinstance(found, OnDemandFeatureView) and not found.write_to_online_store:
        return found
    return None


class Served(NamedTuple):
    """A value in the online store, and when its row was of, in microseconds since 1970; None without one."""

    value: Value
    at: int | None


def lookup(store: FeatureStore, refs: list[str], keys: Mapping[str, list[Any]]) -> dict[str, list[Served]]:
    """Return what the online store has of ``refs``, by the features' names, under ``keys``, however old.

    Raises:
        BadKey: An instant is asked for within a second.
        ServerUnreachable: The online store is gone.
    """
    online = store.config.online_store
    if getattr(online, "expires", False):
        store = copy(store)
        store.config = store.config.model_copy()
        store.config._online_store = online.model_copy(update={"expires": False})
    asked = {name: [_asked(name, key) for key in column] for name, column in keys.items()}
    with outages("Feast's online store", address(store)):
        answer = store.get_online_features(refs, asked).proto
    return {
        name: [
            Served(value, None if _is_absent(value, at, status) else at.ToMicroseconds())
            for value, at, status in zip(found.values, found.event_timestamps, found.statuses, strict=True)
        ]
        for name, found in zip(answer.metadata.feature_names.val, answer.results, strict=True)
    }


def _is_absent(value: Value, at: Any, status: int) -> bool:
    """Say whether there is no row: of a key that is gone, Feast's Redis says that it is null, as of 1970."""
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    return status == FieldStatus.NOT_FOUND or (not value.WhichOneof("val") and not at.ToMicroseconds())


def _asked(name: str, key: Any) -> Any:
    """Return a key as Feast takes it: a date as its midnight, UTC, which materialising makes of it."""
    if isinstance(key, datetime):
        if key.microsecond:
            raise BadKey(name, "UNIX_TIMESTAMP", f"{key} is not a whole second, and times are kept to it")
        return key
    return datetime(key.year, key.month, key.day, tzinfo=UTC) if isinstance(key, date) else key


def ttl(store: FeatureStore, view: FeatureViewProjection) -> int:
    """Return for how long a row of the view may be served, in microseconds; 0 is for ever."""
    from headrace.feature_store.feast.asof import microseconds

    found = store.registry.get_any_feature_view(view.name, store.project, allow_cache=True)
    return microseconds(getattr(found, "ttl", None) or timedelta(0))


def python(value: Value) -> Any:
    """Return ``value`` as Arrow takes it: what Feast stores as text stays text."""
    from feast.type_map import feast_value_type_to_python_type

    kind = value.WhichOneof("val") or ""
    if not kind.startswith(("json", "decimal", "uuid", "time_uuid")):
        return feast_value_type_to_python_type(value)
    text = getattr(value, kind)
    return text if isinstance(text, str) else list(text.val)


def materialize(
    store: FeatureStore,
    service: str,
    end: datetime,
    start: datetime | None = None,
    reached: Mapping[str, datetime] | None = None,
    *,
    serves: datetime | None = None,
) -> None:
    """Copy what became known by ``end`` (UTC), and happened before it, online, for every view of ``service``.

    The store then holds, of each key, the row that the point-in-time join finds
    at ``end``, or at what its table has ``reached`` by then: a view is not noted as
    brought beyond what is built. Each view goes on from the first instant that Feast's registry
    does not say was brought: of those after ``start``, or else after the first
    that was ever brought and one ttl before the instant that it ``serves`` first, or else ``end``,
    whichever is earlier. What :func:`forget` was told of is brought again in place of what is there, and up
    to where it was brought before: the store never goes back in time. Doing it again, or after a crash,
    changes nothing; readers are served meanwhile.

    Raises:
        NotBuilt: A feature table does not exist.
        FeatureViewNotFoundException: A view of the service is not registered.
        ServerUnreachable: The online store, or a registry that is a database, is gone, or full.
        EvictingStore: The online store may drop rows to make room.
    """
    with outages("Feast's online store", address(store)):
        _materialize(store, service, end, start, reached or {}, serves)


def _materialize(
    store: FeatureStore,
    service: str,
    end: datetime,
    start: datetime | None,
    reached: Mapping[str, datetime],
    serves: datetime | None,
) -> None:
    due: dict[tuple[datetime, datetime], list[str]] = {}
    for view in stored_views(store, service):
        if not view.online:
            continue
        if lost(store, view):
            told = "The online store has lost rows of view `%s`, or all; all of it is brought again"
            logging.getLogger(__name__).warning(told, view.name)
            brought.forget(store, view)
            view = store.registry.get_feature_view(view.name, store.project)  # noqa: PLW2901
        # Not `materialize_incremental`: it begins one ttl before the present, whatever the end.
        upto = min(end, reached.get(_table(store, view), end))
        last = upto - brought.TICK  # Feast takes the end as included
        first = min(serves or upto, upto) - view.ttl if view.ttl else datetime(1970, 1, 1, tzinfo=UTC)
        first = start or min([first, *(begin for begin, _ in brought.intervals(view))])
        if owed := brought.owed(view):
            span = min(first, owed[0]), max(last, owed[1])
        else:
            span = brought.missing(view, first), last
        if span[0] < span[1]:
            due.setdefault(span, []).append(view.name)
    for (begin, until), views in due.items():
        store.materialize(begin, until, views)


def address(store: FeatureStore) -> str:
    """Return where the online store is, as it may be shown."""
    online = store.config.online_store
    if hasattr(online, "connection_string"):  # Redis: its password may follow
        return str(online.connection_string).partition(",")[0]
    if hasattr(online, "host"):
        return f"{online.host}:{online.port}/{getattr(online, 'database', '')}"
    return str(getattr(online, "path", type(online).__name__))


def lost(store: FeatureStore, view: FeatureView) -> bool:
    """Say whether the online store holds less of a view than Feast's registry says was brought to it.

    It is asked for its own note, where headrace writes one.

    Raises:
        EvictingStore: It may drop rows to make room.
    """
    from headrace.feature_store.feast.writers import writer

    place, upto = writer(store.config, store._get_provider().online_store, view), brought.reached(view)
    noted = place.noted() if place else None
    return bool(place and upto and (noted is None or noted < upto))


def forget(store: FeatureStore, service: str, since: datetime, table: str = "") -> None:
    """Note that views with rows of ``since`` (UTC) or later online, of one ``table`` or all, go online again.

    Called before feature rows are rebuilt: whenever ``materialize`` comes next,
    also when the rebuilding run is killed between, it puts what the tables then
    hold in place of what is online, and removes the keys that they have no more.
    """
    for view in stored_views(store, service):
        concerned = not table or _table(store, view) == table
        if concerned and any(end > since for _, end in brought.intervals(view)):
            brought.forget(store, view)


def _table(store: FeatureStore, view: FeatureView) -> str:
    """Return the name of the lake's table that the view is of; empty if it is of something else."""
    from headrace.feature_store.feast import sources

    source = view.batch_source
    return sources.table(store.config, source).name if source and sources.is_delta(source) else ""


def _pinned(store: FeatureStore, service: str, versions: Mapping[str, int]) -> FeatureStore:
    """Return the same store, reading tables at ``versions``; registry and online store are shared."""
    known = pins(store, service)
    if unknown := sorted(versions.keys() - known):
        raise UnknownPins(service, unknown, list(known))
    before = store.config.offline_store
    offline = before.model_copy(update={"versions": before.versions | dict(versions)})
    reader = copy(store)
    reader.config = store.config.model_copy(update={"offline_config": offline})
    reader.config._offline_store = offline  # the property's cache, which the copy brought along
    return reader


def _outputs(service: FeatureService) -> dict[str, pa.DataType]:
    """Return the service's features and their Arrow types, in its order."""
    fields = [field for view in service.feature_view_projections for field in view.features]
    return {field.name: arrow(field.dtype) for field in fields}


def arrow(dtype: FeastType) -> pa.DataType:
    """Return the Arrow type; Feast knows none for bytes, images and documents."""
    import pyarrow as pa
    from feast.types import from_feast_to_pyarrow_type

    kind = dtype.to_value_type().name
    if "BYTES" not in kind:
        return from_feast_to_pyarrow_type(dtype)
    return pa.binary() if kind.endswith("BYTES") else pa.list_(pa.binary())


def stored_as(view: FeatureViewProjection) -> str:
    """Return the name, with a version if one is asked for, under which the online store has the view."""
    return view.name if view.version_tag is None else f"{view.name}@v{view.version_tag}"


def given_by(store: FeatureStore, view: FeatureViewProjection) -> dict[str, str]:
    """Return what the view must be given, as :func:`inputs`, and which column of a spine gives it."""
    return {name: view.join_key_map.get(name, name) for name in sorted(inputs(store, view.name))}


def inputs(store: FeatureStore, view: str) -> set[str]:
    """Return what the view must be given: join keys, or what an on-demand view asks of a request."""
    from feast.feature_view import DUMMY_ENTITY_ID

    found = store.registry.get_any_feature_view(view, store.project, allow_cache=True)
    names = {column.name for column in getattr(found, "entity_columns", [])} - {DUMMY_ENTITY_ID}
    for source in getattr(found, "source_feature_view_projections", []):
        names |= inputs(store, source)
    return names | set(getattr(found, "get_request_data_schema", dict)())


def given_rows(store: FeatureStore, spine: pa.Table, service: FeatureService) -> pa.Table:
    """Return the spine without what the service computes."""
    views = service.feature_view_projections
    needed = {column for view in views for column in given_by(store, view).values()}
    if missing := sorted(needed - set(spine.column_names)):
        raise MissingKeys(service.name, missing, spine.column_names)
    computed = _outputs(service)
    return spine.drop_columns([name for name in spine.column_names if name in computed])


def beside(spine: pa.Table, features: pa.Table, service: FeatureService) -> pa.Table:
    """Set the service's features, in its order and types, beside the rows they were found for."""
    import pyarrow as pa

    assert features.num_rows == spine.num_rows, "retrieval must not change the rows"
    for name, dtype in _outputs(service).items():
        try:
            spine = spine.append_column(name, features[name].cast(dtype))
        except pa.ArrowException as error:
            raise BadFeature(name, str(dtype), str(error)) from None
    return spine
