"""A Feast compute engine that fills online stores in bulk: DuckDB reads, Arrow encodes, the store loads.

Named as ``batch_engine`` in ``feature_store.yaml``; ``feast materialize`` and
``FeatureStore.materialize`` then use it. Views that ask for more than their
latest rows go to Feast's local engine, and so do stores without a bulk writer.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.repo_config import FeastConfigBaseModel
from feast.value_type import ValueType

from headrace.cluster import cluster, crew
from headrace.feature_store.errors import NotAFeature, NotAKey
from headrace.feature_store.feast.brought import owed as owed_of
from headrace.feature_store.feast.brought import reached
from headrace.feature_store.feast.embedded import settings_beside
from headrace.feature_store.feast.encoding import KEYED
from headrace.feature_store.feast.latest import MEMORY, Column, KnownFrom, Latest
from headrace.feature_store.feast.offline import DeltaOfflineStore
from headrace.feature_store.feast.sources import Snapshot, is_delta, require, snapshot
from headrace.feature_store.feast.writers import BATCH, Sqlite, Writer, writer
from headrace.lake import duckdb_connection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import duckdb
    from feast import Entity
    from feast.base_feature_view import BaseFeatureView
    from feast.data_source import DataSource
    from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
    from feast.infra.common.retrieval_task import HistoricalRetrievalTask
    from feast.infra.offline_stores.offline_store import RetrievalJob
    from feast.infra.registry.base_registry import BaseRegistry

PART = 500_000
"""Rows below which starting another worker, and reading the source once more, takes longer than the rows."""


class DaskComputeEngineConfig(FeastConfigBaseModel):
    """Configuration: where Dask is; without it, what ``HEADRACE_DASK_ADDRESS`` and ``_WORKERS`` say.

    ``known_from`` says which rows ``materialize`` brings: those that happened and were created by
    its end (``created``), or, as Feast's own engines have it, all that happened by then (``event``).
    Pipelines predict from what they were trained on with ``created`` only.
    """

    type: Literal["headrace.feature_store.feast.engine.DaskComputeEngine"] = (
        "headrace.feature_store.feast.engine.DaskComputeEngine"
    )
    address: str = ""
    workers: int = 0
    known_from: KnownFrom = "created"


class DaskComputeEngine(ComputeEngine):
    """Materialisation whose speed is the online store's and whose memory does not grow with the rows."""

    def __init__(
        self,
        *,
        address: str = "",
        workers: int = 0,
        known_from: KnownFrom = "created",
        type: str = "",
        **stores: Any,
    ) -> None:
        super().__init__(**stores)
        settings = settings_beside(self.repo_config.repo_path)
        self._address, self._workers = address or settings.dask_address, workers or settings.dask_workers
        self._known_from: KnownFrom = known_from
        self._local = LocalComputeEngine(**stores)

    def update(
        self,
        project: str,
        views_to_delete: Sequence[BaseFeatureView],
        views_to_keep: Sequence[BaseFeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """Prepare nothing, for the engine keeps no state of its own; Feast calls it when views are applied.

        Raises:
            NotAKey: A view that goes online has a key of a type by which no row can be found there.
            NotAFeature: A view has a feature of a type that Feast gives no column of.
        """
        for view in views_to_keep:
            for key in view.entity_columns if isinstance(view, FeatureView) and view.online else []:
                if key.dtype.to_value_type() not in KEYED:
                    raise NotAKey(view.name, key.name, str(key.dtype))
            for feature in view.features:
                if feature.dtype.to_value_type() is ValueType.SCALAR_MAP:
                    raise NotAFeature(view.name, feature.name, str(feature.dtype))

    def teardown_infra(self, *args: Any, **kwargs: Any) -> None:
        """Remove nothing: the engine keeps no state of its own."""

    def get_historical_features(self, registry: BaseRegistry, task: HistoricalRetrievalTask) -> RetrievalJob:
        """Leave it to Feast's local engine; stores are asked through the offline store, not here."""
        return self._local.get_historical_features(registry, task)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        """Bring online, of each key, the latest row that became known in ``[start_time, end_time]``.

        With ``known_from: event``, and of sources that are not Delta tables or of another offline
        store, it is the latest row of that event time, whenever it was created, as Feast has it.

        It may be killed anywhere and run again: the store keeps what is newest.
        Where that much of the view is to be brought again, what is there gives way,
        and keys that are left without a row are removed.

        Raises:
            NotBuilt: The view's table does not exist.
            NotInSource: It lacks a column of the view.
            NotATime: Its column of the event time, or of the time of creation, is of another type.
        """
        view, source = task.feature_view, task.feature_view.batch_source
        place, owed = writer(self.repo_config, self.online_store, view), owed_of(view)
        again = bool(owed and task.start_time <= owed[0] and owed[1] <= task.end_time)
        # What was lost before is not made good by a part of it.
        whole = bool(place and view.online and (again or not reached(view) or place.noted()))
        if not (place and source and _is_plain(task)):
            done = self._local._materialize_one(registry, task, **kwargs)
            if place and whole and not done.error():
                place.note(task.end_time)
            return done
        if view.online:
            latest = self._latest(task, source)
            self._bring(latest, place, task.end_time if again else None)
            if again:
                _sweep(latest, place, task.end_time)
            if whole:
                place.note(task.end_time)
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job, MaterializationJobStatus.SUCCEEDED)

    def _latest(self, task: MaterializationTask, source: DataSource) -> Latest:
        view = task.feature_view
        keys, features = (
            tuple(
                Column(field.name, field.dtype.to_value_type())
                for field in fields
                if field.name != DUMMY_ENTITY_ID
            )
            for fields in (view.entity_columns, view.features)
        )
        time, created = source.timestamp_field, source.created_timestamp_column or None
        rows = self._snapshot(source) or self._rows(task, source, keys, features)
        if isinstance(rows, Snapshot):
            with closing(duckdb_connection()) as con:
                wanted = [column.name for column in (*keys, *features)]
                times = [*filter(None, [time, created])]
                require(rows.relation(con), wanted, times, view.name, rows.table.name)
        return Latest(rows, keys, features, time, created, task.start_time, task.end_time, self._known_from)

    def _snapshot(self, source: DataSource) -> Snapshot | None:
        """Return the source's Delta table at a version; None if it is none, or not read through headrace."""
        ours = isinstance(self.offline_store, DeltaOfflineStore)
        return snapshot(self.repo_config, source) if ours and is_delta(source) else None

    def _rows(
        self,
        task: MaterializationTask,
        source: DataSource,
        keys: tuple[Column, ...],
        features: tuple[Column, ...],
    ) -> pa.Table:
        """Return the latest rows as the offline store finds them, by the view's names of columns."""
        names = source.field_mapping or {}
        column = {name: column for column, name in names.items()}
        time, created = source.timestamp_field, source.created_timestamp_column
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=[column.get(key.name, key.name) for key in keys],
            feature_name_columns=[column.get(feature.name, feature.name) for feature in features],
            timestamp_field=column.get(time, time),
            created_timestamp_column=column.get(created, created) or None,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        rows = job.to_arrow()
        return rows.rename_columns([names.get(name, name) for name in rows.column_names])

    def _bring(self, latest: Latest, place: Writer, upto: datetime | None) -> None:
        """Write what there is: many rows of the lake in parts, each on any worker; else here."""
        single = isinstance(place, Sqlite) or not isinstance(latest.rows, Snapshot) or not latest.keys
        most = 1 if single else -(-latest.count() // PART)
        if most <= 1:
            place.write(latest.chunks(), upto)
            return
        with cluster(self._address, self._workers) as client:
            parts = min(most, 2 * sum(worker.threads for worker in crew(client)))
            each = [replace(latest, part=part, parts=parts) for part in range(parts)]
            client.gather(client.map(_write, each, place=place, upto=upto, pure=False))


def _write(part: Latest, place: Writer, upto: datetime | None) -> None:
    place.write(part.chunks(), upto)


def _sweep(latest: Latest, place: Writer, upto: datetime) -> None:
    """Remove from ``place`` the keys of which ``latest`` finds no row; those to remove are kept on disk."""
    with closing(duckdb_connection(memory=f"{MEMORY}MB")) as con:
        con.execute("CREATE TABLE held (key BLOB); CREATE TABLE found (key BLOB)")
        for keys in place.held():
            _add(con, "held", pa.array(keys, pa.binary()))
        for chunk in replace(latest, features=()).chunks():
            _add(con, "found", chunk.keys)
        gone = con.execute("SELECT key FROM held ANTI JOIN found USING (key)")
        while rows := gone.fetchmany(BATCH):
            place.remove([key for (key,) in rows], [feature.name for feature in latest.features], upto)


def _add(con: duckdb.DuckDBPyConnection, table: str, keys: pa.Array) -> None:
    con.from_arrow(pa.table({"key": keys})).insert_into(table)


def _is_plain(task: MaterializationTask) -> bool:
    """Say whether all that is wanted is the latest rows of one source, as they are, in the online store."""
    view = task.feature_view
    more = (view.stream_source, view.source_views, view.offline, view.enable_validation)
    transformed = getattr(view, "feature_transformation", None)
    vectors = any(field.vector_index for field in view.features)
    return type(view) is FeatureView and task.only_latest and not (any(more) or transformed or vectors)
