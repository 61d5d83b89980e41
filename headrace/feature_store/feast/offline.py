"""A Feast offline store: point-in-time joins by DuckDB over the lake's Delta tables.

The spine's own columns never pass through the join: features are computed for
numbered rows, sorted back and set beside the spine, so rows, order and types
of what came in are what goes out.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pandas as pd
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.errors import FeastEntityDFMissingColumnsError
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_requested_feature_views_to_features_dict, compute_non_entity_date_range
from pyarrow import types
from pydantic import Field

from headrace.feature_store.errors import ColumnTaken, KeysDiffer, NotOffered
from headrace.feature_store.feast import asof, inference, sources
from headrace.feature_store.feast.job import DuckDBJob
from headrace.lake import duckdb_connection
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import duckdb
    from feast.data_source import DataSource
    from feast.feature_logging import LoggingConfig, LoggingSource
    from feast.infra.registry.base_registry import BaseRegistry


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """Configuration: which lake, which of its versions, and how much memory a join may take."""

    type: Literal["headrace.feature_store.feast.offline.DeltaOfflineStore"] = (
        "headrace.feature_store.feast.offline.DeltaOfflineStore"
    )
    lake: str = Field("", description="Root URI of the tables that sources name by relative paths")
    versions: dict[str, int] = Field({}, description="Tables to read at a version; others at their newest")
    memory_limit: str = Field("4GB", description="What DuckDB may hold at once; the rest goes to disk")


class DeltaOfflineStore(OfflineStore):
    """Feast's view of the lake; sources are ``FileSource(path=<table>, file_format=DeltaFormat())``."""

    supports_filter_by_created_timestamp = True

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Accept sources whose tables are not built yet: features are declared before they are computed."""

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Return the columns of the source's table, and what Feast infers the types of fields from.

        Raises:
            NotBuilt: The table does not exist.
            NoFeastType: Feast asks for a type that it has no name for.
        """
        rows = sources.rows(_connection(config), config, data_source).limit(0).to_arrow_table()
        return inference.columns(sources.table(config, data_source).name, rows.schema)

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
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> DuckDBJob:
        """Set beside each row of ``entity_df`` the features valid at its ``event_timestamp``.

        ``asof`` says which those are. With ``filter_by_created_timestamp``, rows
        created later do not exist. Rows, order and the columns given stay as they are.

        Args:
            entity_df: Rows to join to, or a DuckDB query that returns them; naive times are UTC.
                Without ``event_timestamp``, its only column of a timestamp type is taken.
                None stands for each key and event time of which one of the views has a row
                from ``start_date`` to ``end_date``; a key that a view has not is null there.
            start_date: Both ends are included; naive is UTC. None is the longest ttl, or
                else 30 days, before ``end_date``.
            end_date: None is the present.

        Raises:
            NotBuilt: A view's table does not exist.
            NotInSource: It lacks a column of the view.
            NotATime: Its column of the event time, or of the time of creation, is of another type.
            KeysDiffer: A join key is text on one side and a number on the other.
            ColumnTaken: ``entity_df`` has a column of a feature's name.
            FeastEntityDFMissingColumnsError: It lacks a join key.
        """
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        if entity_df is None:
            between = compute_non_entity_date_range(list(wanted), start_date, end_date)
            spine, time = _every_row(config, list(wanted), *between), "event_timestamp"
        else:
            spine, time = _spine(config, entity_df)
        names = []
        for view, features in wanted.items():
            called = view.projection.name_alias or view.name
            names += [f"{called}__{name}" if full_feature_names else name for name in features]
        _check(spine, names, {ours for view in wanted for ours, _ in _keys(view)})
        first, last = asof.reach(spine, time)

        def compute() -> pa.Table:
            con = _connection(config)
            views = [_answering(con, config, spine, view, first, last, f) for view, f in wanted.items()]
            found = asof.join(con, spine, time, views, known_only=filter_by_created_timestamp)
            result = spine
            for name, column in zip(names, found, strict=True):
                result = result.append_column(name, column)
            return result

        keys = [name for name in spine.column_names if name != time]
        about = RetrievalMetadata(feature_refs, keys, first, last)
        return DuckDBJob(config, compute, full_feature_names, on_demand, about)

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
    ) -> DuckDBJob:
        """Return each key's latest row from ``start_date`` to ``end_date``, both included.

        No ``feature_name_columns`` stand for all columns of the source, as Feast means it.
        """
        times = [timestamp_field, *filter(None, [created_timestamp_column])]
        columns = join_key_columns, feature_name_columns, times
        return DuckDBJob(config, _pull(config, data_source, *columns, start_date, end_date, latest=True))

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
    ) -> DuckDBJob:
        """Return all rows from ``start_date`` to ``end_date``, both included; None is unbounded.

        No ``feature_name_columns`` stand for all columns of the source, as Feast means it.
        """
        times = [timestamp_field, *filter(None, [created_timestamp_column])]
        columns = join_key_columns, feature_name_columns, times
        return DuckDBJob(config, _pull(config, data_source, *columns, start_date, end_date))

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append ``table`` to the view's source; columns may have the source's names or the view's.

        Raises:
            NotBuilt: The Delta table does not exist.
            ValueError: The columns are others than the source's, or a value does not fit its column.
        """
        source = sources.batch_source(feature_view)
        theirs = {new: old for old, new in source.field_mapping.items()}
        rows = table.rename_columns([theirs.get(name, name) for name in table.column_names])
        sources.append(config, source, rows)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add a Parquet file of logs to the folder that ``logging_config`` names, partitioned as it says."""
        from feast.infra.offline_stores.file_source import FileLoggingDestination
        from pyarrow import dataset

        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            what = f"Logging to a {type(destination).__name__}"
            raise NotOffered(what, "Name a `FileLoggingDestination(path=<folder>)`")
        rows = dataset.dataset(data) if isinstance(data, Path) else data
        folder = sources.table(config, destination.to_data_source()).uri
        sources.add_file(rows, folder, destination.partition_by)

    @staticmethod
    def _monitoring(*_: Any, **__: Any) -> NoReturn:
        raise NotOffered(
            "Keeping metrics by Feast's own monitoring",
            "The `monitor` flow watches the features that a pipeline predicts from, window by window",
        )

    compute_monitoring_metrics = get_monitoring_max_timestamp = _monitoring
    ensure_monitoring_tables = save_monitoring_metrics = query_monitoring_metrics = _monitoring
    clear_monitoring_baseline = _monitoring


def _connection(config: RepoConfig) -> duckdb.DuckDBPyConnection:
    con = duckdb_connection(memory=config.offline_store.memory_limit)
    con.execute("SET enable_progress_bar = false")
    return con


def _spine(config: RepoConfig, entity_df: pd.DataFrame | pa.Table | str) -> tuple[pa.Table, str]:
    """Return the rows to join to, and the name of their time; times that are text or dates are parsed."""
    if isinstance(entity_df, str):
        spine = _connection(config).sql(entity_df).to_arrow_table()
    elif isinstance(entity_df, pd.DataFrame):
        spine = pa.Table.from_pandas(entity_df, preserve_index=False)
    else:
        spine = entity_df
    kinds = dict(spine.schema.empty_table().to_pandas().dtypes)
    time: str = infer_event_timestamp_from_entity_df(kinds)
    if not pa.types.is_timestamp(spine.schema.field(time).type):
        con, column = duckdb_connection(), quoted(time)
        parsed = con.from_arrow(spine.select([time])).project(f"{column}::TIMESTAMPTZ").to_arrow_table()[0]
        spine = spine.set_column(spine.schema.get_field_index(time), time, parsed)
    return spine, time


def _every_row(config: RepoConfig, views: list[FeatureView], start: datetime, end: datetime) -> pa.Table:
    """Return the keys and event times of all rows of ``views`` between two instants, both included."""
    con, selects = _connection(config), []
    for i, view in enumerate(views):
        source, keys = sources.batch_source(view), _keys(view)
        found = sources.view_rows(con, config, source, start, end)
        time, table = source.timestamp_field, sources.table(config, source).name
        sources.require(found, [theirs for _, theirs in keys], [time], view.name, table)
        found.create_view(f"rows{i}")
        columns = [f"{quoted(time)}::TIMESTAMPTZ AS event_timestamp"]
        columns += [f"{quoted(theirs)} AS {quoted(ours)}" for ours, theirs in keys]
        between = f"BETWEEN {sources.instant(start)} AND {sources.instant(end)}"
        given = [f"{quoted(theirs)} IS NOT NULL" for _, theirs in keys]
        which = " AND ".join([f"{quoted(time)}::TIMESTAMPTZ {between}", *given])
        selects.append(f"SELECT {', '.join(columns)} FROM rows{i} WHERE {which}")
    return con.sql(f"{' UNION BY NAME '.join(selects)} ORDER BY ALL").to_arrow_table()


def _check(spine: pa.Table, features: list[str], keys: set[str]) -> None:
    if missing := keys - set(spine.column_names):
        raise FeastEntityDFMissingColumnsError(keys, missing)
    if taken := [name for name in features if name in spine.column_names]:
        raise ColumnTaken(taken)


def _keys(view: FeatureView) -> tuple[tuple[str, str], ...]:
    """Return pairs of a spine column and the view's key that it is compared with."""
    renamed = view.projection.join_key_map
    names = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return tuple((renamed.get(name, name), name) for name in names)


def _answering(
    con: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    spine: pa.Table,
    view: FeatureView,
    first: datetime | None,
    last: datetime | None,
    features: list[str],
) -> asof.Rows:
    source, ttl = sources.batch_source(view), view.ttl or timedelta(0)
    found = sources.view_rows(con, config, source, asof.earliest(first, ttl), last)
    keys, time, created = _keys(view), source.timestamp_field, source.created_timestamp_column or None
    wanted, times = [*(theirs for _, theirs in keys), *features], [*filter(None, [time, created])]
    sources.require(found, wanted, times, view.name, sources.table(config, source).name)
    schema = found.limit(0).to_arrow_table().schema
    for ours, theirs in keys:
        given, held = spine.schema.field(ours).type, schema.field(theirs).type
        if len({_family(given), _family(held)} - {None}) > 1:
            raise KeysDiffer(view.name, theirs, str(held), ours, str(given))
    return asof.Rows(found, keys, time, created, ttl, tuple(features))


FAMILIES: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (types.is_string, types.is_large_string, types.is_string_view, lambda kind: kind == pa.uuid()),
    "number": (types.is_integer, types.is_floating, types.is_decimal),
    "bytes": (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
    "time": (types.is_timestamp, types.is_date),
    "boolean": (types.is_boolean,),
}
"""Types of keys that may be compared; DuckDB would compare others too, as one of the two."""


def _family(kind: pa.DataType) -> str | None:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return next((name for name, tests in FAMILIES.items() if any(test(kind) for test in tests)), None)


def _pull(
    config: RepoConfig,
    source: DataSource,
    keys: list[str],
    features: list[str],
    times: list[str],
    start: datetime | None,
    end: datetime | None,
    *,
    latest: bool = False,
) -> Callable[[], pa.Table]:
    def compute() -> pa.Table:
        con = _connection(config)
        found = sources.rows(con, config, source, start, end)
        sources.require(found, [*keys, *features], times, source.name, sources.table(config, source).name)
        found.create_view("found")
        wanted = features or [name for name in found.columns if name not in {*keys, *times}]
        at = f"{quoted(times[0])}::TIMESTAMPTZ"
        bounds = [f"{at} {sign} {sources.instant(day)}" for sign, day in ((">=", start), ("<=", end)) if day]
        query = f"SELECT {quoted(*keys, *wanted, *times)}"
        if not keys:  # by which Feast's own engine knows the only entity there is
            query += f", '{DUMMY_ENTITY_VAL}' AS {DUMMY_ENTITY_ID}"
        query += f" FROM found WHERE {' AND '.join(bounds) or 'true'}"
        if latest:
            best = ", ".join(f"{quoted(column)} DESC NULLS LAST" for column in [*times, *wanted])
            over = f"PARTITION BY {quoted(*keys)}" if keys else ""
            query += f" QUALIFY row_number() OVER ({over} ORDER BY {best}) = 1"
        elif not keys:  # and of its rows the last one stays
            query += f" ORDER BY {', '.join(f'{quoted(time)} NULLS FIRST' for time in times)}"
        return con.sql(query).to_arrow_table()

    return compute
