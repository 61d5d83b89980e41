"""A Feast offline store: point-in-time joins by DuckDB over the lake's Delta tables.

The spine's own columns never pass through the join: features are computed for
numbered rows, sorted back and set beside the spine, so rows, order and types
of what came in are what goes out.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, FileSource, OnDemandFeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_requested_feature_views_to_features_dict

from headrace.feature_store.embedded import settings_beside
from headrace.lake import Lake, duckdb_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb
    from feast.data_source import DataSource
    from feast.infra.registry.base_registry import BaseRegistry

TIME = "event_timestamp"
MICROSECOND = timedelta(microseconds=1)


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """Configuration: ``lake`` is the root of the Delta tables that file sources name by relative paths."""

    type: Literal["headrace.feature_store.offline.DeltaOfflineStore"] = (
        "headrace.feature_store.offline.DeltaOfflineStore"
    )
    lake: str = ""


class DuckDBJob(RetrievalJob):
    """Rows computed when asked for: Arrow all the way, unless an on-demand view wants pandas."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        full_feature_names: bool = False,
        on_demand: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._compute, self._full, self._on_demand = compute, full_feature_names, on_demand or []
        self._metadata = metadata

    full_feature_names = property(lambda self: self._full)
    on_demand_feature_views = property(lambda self: self._on_demand)
    metadata = property(lambda self: self._metadata)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._compute().to_pandas()
        return frame


class DeltaOfflineStore(OfflineStore):
    """Feast's view of the lake; sources are ``FileSource(path=<table>, file_format=DeltaFormat())``."""

    supports_filter_by_created_timestamp = True

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Accept sources whose tables are not built yet: features are declared before they are computed."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Set beside each row of ``entity_df`` the features valid at its ``event_timestamp``.

        A view's row is valid if its keys are equal, it is not later than the
        entity row and at most the view's ``ttl`` older (0 is for ever); the
        latest wins, and of equally late ones the one created last. With
        ``filter_by_created_timestamp``, rows created later do not exist.

        Args:
            entity_df: Rows to join to, or a DuckDB query that returns them; naive times are UTC.

        Raises:
            NotBuilt: A view's table does not exist.
        """
        if entity_df is None:
            raise ValueError("Features are retrieved for given rows: pass entity_df, not a range of dates.")
        if isinstance(entity_df, str):
            spine = duckdb_connection().sql(entity_df).to_arrow_table()
        elif isinstance(entity_df, pd.DataFrame):
            spine = pa.Table.from_pandas(entity_df, preserve_index=False)
        else:
            spine = entity_df
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)

        def compute() -> pa.Table:
            con = duckdb_connection()
            con.register("spine", spine.append_column("__row", pa.array(range(spine.num_rows), pa.int64())))
            reach = pc.min_max(spine[TIME]).as_py()
            joins, columns = [], ["__row"]
            for number, (view, features) in enumerate(wanted.items()):
                called = view.projection.name_to_use()  # type: ignore[no-untyped-call]
                name, prefix = f"v{number}", f"{called}__" if full_feature_names else ""
                joins.append(_join(con, config, view, name, reach, known_only=filter_by_created_timestamp))
                fresh = f"spine.{TIME} <= {name}.__until"
                columns += [f'if({fresh}, {name}."{f}", NULL) AS "{prefix}{f}"' for f in features]
            query = f"SELECT {', '.join(columns)} FROM spine {' '.join(joins)} ORDER BY __row"
            found = con.sql(query).to_arrow_table()
            assert found.num_rows == spine.num_rows, "a point-in-time join must not change the rows"
            result = spine
            for column in found.column_names[1:]:
                result = result.append_column(column, found[column])
            return result

        keys = [name for name in spine.column_names if name != TIME]
        return DuckDBJob(compute, full_feature_names, on_demand, RetrievalMetadata(feature_refs, keys))

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return each key's latest row from ``start_date`` to ``end_date``, both included."""
        times = [timestamp_field, *filter(None, [created_timestamp_column])]
        latest = (
            f"QUALIFY row_number() OVER (PARTITION BY {_quoted(join_key_columns) or 'NULL'} "
            f"ORDER BY ({_quoted(times)}) DESC) = 1"
        )
        columns = [*join_key_columns, *feature_name_columns, *times]
        return DuckDBJob(
            lambda: _pull(
                config, data_source, columns, times[0], start=start_date, end=end_date, latest=latest
            )
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return all rows from ``start_date`` to ``end_date``, both included; None is unbounded."""
        times = [timestamp_field, *filter(None, [created_timestamp_column])]
        columns = [*join_key_columns, *feature_name_columns, *times]
        return DuckDBJob(
            lambda: _pull(config, data_source, columns, times[0], start=start_date, end=end_date)
        )


def _rows(con: duckdb.DuckDBPyConnection, config: RepoConfig, source: DataSource) -> duckdb.DuckDBPyRelation:
    assert isinstance(source, FileSource), "sources are FileSource(path=<table>, file_format=DeltaFormat())"
    lake = Lake(config.offline_store.lake or settings_beside(config.repo_path).lake)
    return lake.table(source.path).relation(con)


def _join(
    con: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    view: FeatureView,
    name: str,
    reach: dict[str, Any],
    *,
    known_only: bool,
) -> str:
    """Define view ``name``, whose rows say from when (``__from``) to when (``__until``) they are valid."""
    source, ttl = view.batch_source, view.ttl or timedelta(0)
    assert source is not None, f"view {view.name} has no source to join from"
    mapped = ", ".join(f'"{column}" AS "{field}"' for column, field in source.field_mapping.items())
    _rows(con, config, source).select(f"* RENAME ({mapped})" if mapped else "*").create_view(f"{name}_rows")
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    time = f'"{source.timestamp_field}"'
    column = source.created_timestamp_column
    created = f'coalesce("{column}", {time})' if column else time
    start = f"greatest({time}, {created})" if known_only else time
    until = f"{time} + to_microseconds({ttl // MICROSECOND})" if ttl else "TIMESTAMPTZ 'infinity'"
    # A row overtaken before it was known is never the latest: without it, one inequality decides.
    con.execute(f"""
        CREATE VIEW {name} AS
        SELECT *, {start} AS __from, {until} AS __until FROM {name}_rows
        WHERE {start} <= {_instant(reach["max"])} AND {until} >= {_instant(reach["min"])}
        QUALIFY ({time}, {created}) = max(({time}, {created})) OVER (
            PARTITION BY {_quoted(keys) or "NULL"} ORDER BY {start}
        )
    """)
    equal = [f'spine."{view.projection.join_key_map.get(key, key)}" = {name}."{key}"' for key in keys]
    return f"ASOF LEFT JOIN {name} ON {' AND '.join([*equal, f'spine.{TIME} >= {name}.__from'])}"


def _pull(
    config: RepoConfig,
    source: DataSource,
    columns: list[str],
    time: str,
    *,
    start: datetime | None,
    end: datetime | None,
    latest: str = "",
) -> pa.Table:
    con = duckdb_connection()
    _rows(con, config, source).create_view("rows")
    bounds = [f'"{time}" {sign} {_instant(at)}' for sign, at in ((">=", start), ("<=", end)) if at]
    where = f"WHERE {' AND '.join(bounds)}" if bounds else ""
    return con.sql(f'SELECT {_quoted(columns)} FROM "rows" {where} {latest}').to_arrow_table()


def _instant(at: datetime | None) -> str:
    return f"TIMESTAMPTZ '{at.isoformat()}'" if at else "NULL"


def _quoted(columns: list[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
