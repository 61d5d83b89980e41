"""The point-in-time join of a spine larger than memory: window by window, anywhere.

    spine ─▶ windows ─▶ join, each on its own ─▶ a Delta table, each in its place

A window reads its own rows of the spine, and of the feature tables only files
that can hold rows of ``[first - ttl, last]``. What it was made from is noted
beside it in the table, so that a second run does only what is missing or was
made from something else.
"""

from __future__ import annotations

import json
from concurrent.futures import as_completed
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from headrace.feature_store.errors import NoInstant
from headrace.feature_store.store import historical, pins, views_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    import duckdb
    from feast import FeatureStore, Field, RepoConfig

    from headrace.lake import Lake, Window


@dataclass(frozen=True)
class Spine:
    """A query for rows to join features to, over tables of the lake at fixed versions.

    ``tables`` are ``{view name: (table, version)}``; see :func:`spine`.
    """

    query: str
    tables: Mapping[str, tuple[str, int]]


def spine(lake: Lake, query: str, tables: Mapping[str, str]) -> Spine:
    """Fix ``query`` to the newest version of each of ``{view name: table}`` that it reads.

    The query returns the join keys, what the service asks of a request, and
    ``event_timestamp`` (UTC). A table that is a spine already is ``FROM spine``.

    Raises:
        NotBuilt: A table does not exist.
    """
    return Spine(query, {view: (name, lake.table(name).open().version()) for view, name in tables.items()})


def historical_windows(
    store: FeatureStore,
    service: str,
    rows: Spine,
    lake: Lake,
    target: str,
    due: Sequence[Window],
    pool: Executor,
    versions: Mapping[str, int] | None = None,
) -> list[Window]:
    """Join ``rows`` of the windows ``due`` to ``service`` as :func:`store.historical`, into ``target``.

    Windows are independent and replace what ``target`` held of them, so any
    number of workers may be at it, and a run that was killed is run again.

    Args:
        store: Where ``service`` was applied; each worker opens its own.
        service: Name of the feature service.
        rows: What to join features to.
        lake: Where ``rows`` are read and ``target`` is written.
        target: Name of the table, such as ``training/flights``.
        due: Windows that do not overlap; rows outside them are left. A worker's thread needs memory for
            the rows of one, beside the store's ``memory_limit``.
        pool: Where windows are joined, such as ``client.get_executor()`` of ``cluster()``.
        versions: Feature tables to pin, as ``store.pins`` returns them, or what is newest now.

    Returns:
        The windows joined by this call, in order: those that ``target`` did not
        hold yet, or held as made from other rows, service or versions.

    Raises:
        NotBuilt: A table does not exist.
        VersionGone: A feature table cannot be read at its pinned version.
        NoInstant: Rows are in no window, for they have no ``event_timestamp``.
    """
    fixed = pins(store, service) | dict(versions or {})
    made_from = _digest(store, service, rows, fixed)
    held = lake.table(target).held([str(window) for window in due])
    missing = [window for window in due if held.get(str(window)) != made_from]
    if missing:
        _all_have_an_instant(rows, lake, target)
    tasks = [
        pool.submit(_join, store.config, service, rows, lake, target, window, fixed, made_from)
        for window in missing
    ]
    try:
        for task in as_completed(tasks):
            task.result()
    finally:
        for task in tasks:  # one failed: those not begun are for the next run
            task.cancel()
    return missing


def _join(
    config: RepoConfig,
    service: str,
    rows: Spine,
    lake: Lake,
    target: str,
    window: Window,
    versions: Mapping[str, int],
    made_from: int,
) -> None:
    from feast import FeatureStore

    con = _connect(rows, lake)
    here = f"FROM ({rows.query}) WHERE {window.predicate('event_timestamp')}"
    given = con.sql(here).to_arrow_table()
    con.close()
    found = historical(FeatureStore(config=config), service, given, versions)
    lake.table(target).overwrite(found, window, "event_timestamp", {str(window): made_from})


def _connect(rows: Spine, lake: Lake) -> duckdb.DuckDBPyConnection:
    """Open DuckDB with the views that the spine's query reads."""
    return lake.connect({view: lake.at(name, version) for view, (name, version) in rows.tables.items()})


def _all_have_an_instant(rows: Spine, lake: Lake, target: str) -> None:
    counts = f"SELECT count(*), count(event_timestamp) FROM ({rows.query})"
    ((total, timed),) = _connect(rows, lake).execute(counts).fetchall()
    if timed < total:
        raise NoInstant(target, total - timed, total)


def _digest(store: FeatureStore, service: str, rows: Spine, versions: Mapping[str, int]) -> int:
    """Return what a joined window is made from as one number that Delta can note beside it.

    Not of Feast's own serialised declarations: they differ each time they are applied.
    """
    from headrace.feature_store.feast import sources

    asked = [
        (view.name_to_use(), sorted(view.join_key_map.items()), _typed(view.features))
        for view in store.get_feature_service(service).feature_view_projections
    ]
    declared: list[tuple[Any, ...]] = []
    for view in views_of(store, service):
        source = getattr(view, "batch_source", None)
        transformation = getattr(view, "feature_transformation", None)
        keys = _typed(getattr(view, "entity_columns", []))
        declared.append(
            (view.name, str(getattr(view, "ttl", "")), keys, getattr(transformation, "udf_string", ""))
        )
        if source is not None:
            times = (source.timestamp_field, source.created_timestamp_column)
            # A Delta table's rows are known by its version.
            files = [] if sources.is_delta(source) else sources.stamps(store.config, source)
            declared.append((source.path, files, *times, sorted(source.field_mapping.items())))
    what = [service, rows.query, sorted(rows.tables.items()), sorted(versions.items()), asked, declared]
    return int(sha256(json.dumps(what).encode()).hexdigest()[:15], 16)


def _typed(fields: Sequence[Field]) -> list[tuple[str, str]]:
    return [(field.name, str(field.dtype)) for field in fields]
