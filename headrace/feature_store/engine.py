"""A Feast compute engine that fills online stores in bulk: DuckDB reads, Arrow encodes, the store loads.

Named as ``batch_engine`` in ``feature_store.yaml``; ``feast materialize`` and
``FeatureStore.materialize`` then use it. Views that ask for more than their
latest rows go to Feast's local engine, and so do stores without a bulk writer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from feast import FeatureView, FileSource
from feast.data_format import DeltaFormat
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.common.materialization_job import MaterializationJobStatus
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.repo_config import FeastConfigBaseModel

from headrace.cluster import cluster, crew
from headrace.feature_store.embedded import settings_beside
from headrace.feature_store.latest import Column, Latest
from headrace.feature_store.offline import DeltaOfflineStore
from headrace.feature_store.writers import Sqlite, Writer, writer
from headrace.lake import Lake, Table

if TYPE_CHECKING:
    from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
    from feast.infra.common.retrieval_task import HistoricalRetrievalTask
    from feast.infra.offline_stores.offline_store import RetrievalJob
    from feast.infra.registry.base_registry import BaseRegistry

PART = 500_000
"""Rows below which starting another worker, and reading the source once more, takes longer than the rows."""


class DaskComputeEngineConfig(FeastConfigBaseModel):
    """Configuration: where Dask is; without it, what ``HEADRACE_DASK_ADDRESS`` and ``_WORKERS`` say."""

    type: Literal["headrace.feature_store.engine.DaskComputeEngine"] = (
        "headrace.feature_store.engine.DaskComputeEngine"
    )
    address: str = ""
    workers: int = 0


class DaskComputeEngine(ComputeEngine):
    """Materialisation whose speed is the online store's and whose memory does not grow with the rows."""

    def __init__(self, *, address: str = "", workers: int = 0, type: str = "", **stores: Any) -> None:
        super().__init__(**stores)
        settings = settings_beside(self.repo_config.repo_path)
        self._address, self._workers = address or settings.dask_address, workers or settings.dask_workers
        self._local = LocalComputeEngine(**stores)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Prepare nothing: the engine keeps no state of its own."""

    def teardown_infra(self, *args: Any, **kwargs: Any) -> None:
        """Remove nothing: the engine keeps no state of its own."""

    def get_historical_features(self, registry: BaseRegistry, task: HistoricalRetrievalTask) -> RetrievalJob:
        """Leave it to Feast's local engine; stores are asked through the offline store, not here."""
        return self._local.get_historical_features(registry, task)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        """Bring each key's latest row of ``[start_time, end_time]`` into the online store.

        It may be killed anywhere and run again: the store keeps what is newest.

        Raises:
            NotBuilt: The view's table does not exist.
        """
        view = task.feature_view
        place = writer(self.repo_config, self.online_store, view) if _is_plain(task) else None
        if not place:
            return self._local._materialize_one(registry, task, **kwargs)
        if view.online:
            self._bring(self._latest(task), place)
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        return LocalMaterializationJob(job, MaterializationJobStatus.SUCCEEDED)

    def _latest(self, task: MaterializationTask) -> Latest:
        view, source = task.feature_view, task.feature_view.batch_source
        assert source, f"view {view.name} has no source to read"
        column = {field: column for column, field in (source.field_mapping or {}).items()}
        keys, features = (
            tuple(
                Column(column.get(field.name, field.name), field.name, field.dtype.to_value_type())
                for field in fields
                if field.name != DUMMY_ENTITY_ID
            )
            for fields in (view.entity_columns, view.features)
        )
        time, created = (
            column.get(name, name) for name in (source.timestamp_field, source.created_timestamp_column)
        )
        span = (task.start_time, task.end_time)
        if (
            isinstance(self.offline_store, DeltaOfflineStore)
            and isinstance(source, FileSource)
            and isinstance(source.file_format, DeltaFormat)
        ):
            root = self.repo_config.offline_store.lake or settings_beside(self.repo_config.repo_path).lake
            table = Lake(root).table(source.path)
            return Latest(table, table.open().version(), keys, features, time, created or None, *span)
        names = ([key.source for key in keys], [feature.source for feature in features])
        job = self.offline_store.pull_latest_from_table_or_query(
            self.repo_config, source, *names, time, created or None, *span
        )
        return Latest(job.to_arrow(), None, keys, features, time, created or None, *span)

    def _bring(self, latest: Latest, place: Writer) -> None:
        """Write what there is: many rows of the lake in parts, each on any worker; else here."""
        single = isinstance(place, Sqlite) or not isinstance(latest.rows, Table) or not latest.keys
        most = 1 if single else -(-latest.count() // PART)
        if most <= 1:
            place.write(latest.chunks())
            return
        with cluster(self._address, self._workers) as client:
            parts = min(most, 2 * sum(worker.threads for worker in crew(client)))
            each = [replace(latest, part=part, parts=parts) for part in range(parts)]
            client.gather(client.map(_write, each, place=place, pure=False))


def _write(part: Latest, place: Writer) -> None:
    place.write(part.chunks())


def _is_plain(task: MaterializationTask) -> bool:
    """Say whether all that is wanted is the latest rows of one source, as they are, in the online store."""
    view = task.feature_view
    more = (view.stream_source, view.source_views, view.offline, view.enable_validation)
    transformed = getattr(view, "feature_transformation", None)
    vectors = any(field.vector_index for field in view.features)
    return type(view) is FeatureView and task.only_latest and not (any(more) or transformed or vectors)
