"""What the offline store hands out: rows computed when asked for, and where they may be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feast.infra.offline_stores.offline_store import RetrievalJob

from headrace.feature_store.errors import NoInstant
from headrace.feature_store.feast import sources

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import pyarrow as pa
    from feast import OnDemandFeatureView, RepoConfig
    from feast.infra.offline_stores.offline_store import RetrievalMetadata
    from feast.saved_dataset import SavedDatasetStorage


class DuckDBJob(RetrievalJob):
    """Arrow all the way, unless an on-demand view wants pandas. Asked twice, it computes twice."""

    def __init__(
        self,
        config: RepoConfig,
        compute: Callable[[], pa.Table],
        full_feature_names: bool = False,
        on_demand: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._config, self._compute, self._metadata = config, compute, metadata
        self._full, self._on_demand = full_feature_names, on_demand or []

    full_feature_names = property(lambda self: self._full)
    on_demand_feature_views = property(lambda self: self._on_demand)
    metadata = property(lambda self: self._metadata)

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Keep the rows as a Delta table or as Parquet, as ``storage`` says; relative paths lie in the lake.

        Raises:
            SavedDatasetLocationAlreadyExists: Something is there, and ``allow_overwrite`` is not given.
            NoInstant: Rows have no ``event_timestamp``, by which Feast reads saved datasets.
        """
        rows, source = self.to_arrow(), storage.to_data_source()
        if "event_timestamp" in rows.column_names and (lost := rows["event_timestamp"].null_count):
            raise NoInstant(sources.table(self._config, source).name, lost, rows.num_rows)
        sources.write(self._config, source, rows, overwrite=allow_overwrite)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._compute().to_pandas()
        return frame
