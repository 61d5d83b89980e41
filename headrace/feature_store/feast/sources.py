"""Feast's file sources in the lake: where they lie, at which version, and their rows in DuckDB.

A source is a Delta table (``file_format=DeltaFormat()``) or Parquet, a file or a
folder of files. Relative paths lie below the lake's root.

Whoever reads a view's rows reads them here, by the names that the view calls its
columns: ``view_rows(con, config, source)`` at once, or ``snapshot(config, source)``
and its ``relation(con)``, which reads the same rows in any process and at any time.
Absolute paths, pinned versions, field mappings and partition columns are seen to.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote
from uuid import uuid4

import pyarrow as pa
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists

from headrace.feature_store.errors import NotATime, NotInSource, NotOffered
from headrace.feature_store.feast.embedded import settings_beside
from headrace.instants import plain
from headrace.lake import Lake, Table
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb
    from deltalake import DeltaTable
    from feast import FeatureView, RepoConfig
    from feast.data_source import DataSource
    from pyarrow import dataset

MILLISECOND = timedelta(milliseconds=1)


def is_delta(source: DataSource) -> bool:
    """Say whether ``source`` is a Delta table; what is not is Parquet, as for Feast."""
    return isinstance(_file(source).file_format, DeltaFormat)


def table(config: RepoConfig, source: DataSource) -> Table:
    """Return where ``source`` lies: a table of the lake, or of elsewhere if its path is absolute."""
    path = _file(source).path
    if "://" in path or Path(path).is_absolute():
        return Table(path, path)
    return Lake(config.offline_store.lake or settings_beside(config.repo_path).lake).table(path)


def _file(source: DataSource | None) -> FileSource:
    if not isinstance(source, FileSource):
        what = f"`{source.name}` is a {type(source).__name__}" if source else "A view has no source"
        raise NotOffered(
            what, "Rows are read from `FileSource(path=<table>, file_format=DeltaFormat())`, or Parquet"
        )
    return source


def batch_source(view: FeatureView) -> FileSource:
    """Return where the rows of ``view`` are.

    Raises:
        NotOffered: It has no source, or one that is neither a Delta table nor Parquet.
    """
    return _file(view.batch_source)


def require(
    found: duckdb.DuckDBPyRelation, wanted: Sequence[str], times: Sequence[str], what: str, table: str
) -> None:
    """Refuse rows without a column of ``wanted``, or of which one of ``times`` is none.

    Names differ by case, which DuckDB's own do not.

    Raises:
        NotInSource: A column is missing.
        NotATime: A column is of no type of date or time.
    """
    if missing := [name for name in (*wanted, *times) if name not in found.columns]:
        raise NotInSource(what, table, missing, found.columns)
    kinds = dict(zip(found.columns, map(str, found.types), strict=True))
    for name in times:
        if not _is_time(kinds[name]):
            raise NotATime(table, name, kinds[name])


def opened(config: RepoConfig, source: DataSource) -> DeltaTable:
    """Open the Delta table at the version that ``config`` pins it to, or the newest.

    Raises:
        NotBuilt: The table does not exist.
        VersionGone: It has no such version any more, or yet.
    """
    wanted = table(config, source)
    return wanted.open(config.offline_store.versions.get(wanted.name))


@dataclass(frozen=True)
class Snapshot:
    """A view's Delta table at one version; it may be sent to another process.

    Args:
        table: Where it lies.
        version: The version read, whatever is written meanwhile.
        mapping: Pairs of a column of the table and what the view calls it, where these differ.
        time: What the view calls the event time.
    """

    table: Table
    version: int
    mapping: tuple[tuple[str, str], ...]
    time: str

    def relation(
        self,
        con: duckdb.DuckDBPyConnection,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> duckdb.DuckDBPyRelation:
        """Return the rows, lazily, by the view's names; ``since`` and ``until`` as for ``rows``.

        Raises:
            VersionGone: Files of the version were vacuumed.
        """
        mapping = dict(self.mapping)
        found = _delta_rows(con, self.table, self.table.open(self.version), mapping, self.time, since, until)
        return _named(found, mapping)


def without_uuids(found: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return the rows with UUIDs as text, as Delta tables hold them: else text would be read as UUIDs."""
    uuids = [name for name, kind in zip(found.columns, found.types, strict=True) if str(kind) == "UUID"]
    texts = ", ".join(f"{quoted(name)}::VARCHAR AS {quoted(name)}" for name in uuids)
    return found.project(f"* REPLACE ({texts})") if uuids else found


def _is_time(kind: object) -> bool:
    return str(kind).startswith(("TIMESTAMP", "DATE"))


def snapshot(config: RepoConfig, source: DataSource) -> Snapshot:
    """Fix the Delta table of ``source`` at the version that ``config`` pins it to, or the newest.

    Raises:
        NotBuilt: The table does not exist.
        VersionGone: It has no such version any more, or yet.
    """
    version = opened(config, source).version()
    mapping = tuple((source.field_mapping or {}).items())
    return Snapshot(table(config, source), version, mapping, source.timestamp_field)


def view_rows(
    con: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    source: DataSource,
    since: datetime | None = None,
    until: datetime | None = None,
) -> duckdb.DuckDBPyRelation:
    """Return what ``rows`` does, by the names that the view calls its columns (``field_mapping``)."""
    return _named(rows(con, config, source, since, until), source.field_mapping)


def rows(
    con: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    source: DataSource,
    since: datetime | None = None,
    until: datetime | None = None,
) -> duckdb.DuckDBPyRelation:
    """Return the source's rows, lazily; field mapping is not applied.

    Files whose statistics say that all their event times lie before ``since`` or
    after ``until`` (UTC; None is unbounded) are not opened; other rows may be left.

    Raises:
        NotBuilt: The table does not exist.
        VersionGone: It has no such version, or files of it were vacuumed.
    """
    place = table(config, source)
    if is_delta(source):
        delta = opened(config, source)
        return _delta_rows(con, place, delta, source.field_mapping, source.timestamp_field, since, until)
    if "://" in place.uri:
        from pyarrow import dataset

        return without_uuids(con.from_arrow(dataset.dataset(place.uri)))
    folder = Path(place.uri).is_dir()
    files = f"{place.uri}/**/*.parquet" if folder else place.uri
    return without_uuids(con.read_parquet(files, union_by_name=True, hive_partitioning=folder))


def stamps(config: RepoConfig, source: DataSource) -> list[tuple[str, int, int]]:
    """Return path, size (bytes) and last change (ns) of a Parquet source's files: it has no versions."""
    from pyarrow import fs

    system, place = fs.FileSystem.from_uri(table(config, source).uri)
    files = [system.get_file_info(place)]
    if files[0].type == fs.FileType.Directory:
        files = system.get_file_info(fs.FileSelector(place, recursive=True))
    return sorted((file.path, file.size, file.mtime_ns) for file in files if file.is_file)


def _named(found: duckdb.DuckDBPyRelation, mapping: Mapping[str, str]) -> duckdb.DuckDBPyRelation:
    """Return the rows with the columns renamed that ``mapping`` names."""
    if not set(mapping) & set(found.columns):
        return found
    return found.project(
        ", ".join(f"{quoted(name)} AS {quoted(mapping.get(name, name))}" for name in found.columns)
    )


def _delta_rows(
    con: duckdb.DuckDBPyConnection,
    place: Table,
    delta: DeltaTable,
    mapping: Mapping[str, str],
    time: str,
    since: datetime | None,
    until: datetime | None,
) -> duckdb.DuckDBPyRelation:
    """Return the rows of an open table; ``mapping`` leads to the view's name of the ``time``."""
    if not delta.table_uri.startswith("file://"):
        return con.from_arrow(delta.to_pyarrow_dataset())
    names, root = {new: old for old, new in mapping.items()}, unquote(delta.table_uri.removeprefix("file://"))
    files = [f"{root}/{unquote(path)}" for path in _paths(con, delta, names.get(time, time), since, until)]
    place.refuse_lost(files, delta.version())
    if delta.metadata().partition_columns:  # whose values are not in the files
        return con.from_arrow(delta.to_pyarrow_dataset())
    empty = con.from_arrow(pa.schema(delta.schema().to_arrow()).empty_table())
    if not files:
        return empty
    found = place.read(con, files)
    if set(found.columns) == set(empty.columns):
        return found
    # A column added since these files were written is in none of them.
    return con.sql("FROM empty UNION ALL BY NAME FROM found")


def _paths(
    con: duckdb.DuckDBPyConnection,
    delta: DeltaTable,
    time: str,
    since: datetime | None,
    until: datetime | None,
) -> list[str]:
    """Return the data files that can hold rows of that time, as Delta's log writes their paths."""
    actions = con.from_arrow(pa.table(delta.get_add_actions(flatten=True)))
    timed = {name for name, kind in zip(actions.columns, actions.types, strict=True) if _is_time(kind)}
    conditions = ["true"]
    if since and (most := f"max.{time}") in timed:
        # Statistics are cut to the millisecond, the greatest one too.
        conditions.append(f"coalesce({quoted(most)} >= {instant(since - MILLISECOND)}, true)")
    if until and (least := f"min.{time}") in timed:
        conditions.append(f"coalesce({quoted(least)} <= {instant(until)}, true)")
    return [path for (path,) in actions.filter(" AND ".join(conditions)).project("path").fetchall()]


def write(config: RepoConfig, source: DataSource, found: pa.Table, *, overwrite: bool) -> None:
    """Make ``found`` all there is at ``source``.

    Raises:
        SavedDatasetLocationAlreadyExists: Something is there, and ``overwrite`` is not asked for.
    """
    from pyarrow import fs, parquet

    target = table(config, source)
    if is_delta(source):
        if target.exists() and not overwrite:
            raise SavedDatasetLocationAlreadyExists(target.uri)
        target.replace(found)
        return
    system, place = fs.FileSystem.from_uri(target.uri)
    if system.get_file_info(place).type != fs.FileType.NotFound and not overwrite:
        raise SavedDatasetLocationAlreadyExists(target.uri)
    if place.endswith(".parquet"):
        system.create_dir(str(PurePosixPath(place).parent))
        parquet.write_table(found, place, filesystem=system)
    else:
        parquet.write_to_dataset(
            found, place, filesystem=system, existing_data_behavior="delete_matching",
            basename_template="part-{i}.parquet",
        )  # fmt: skip


def append(config: RepoConfig, source: DataSource, rows: pa.Table) -> None:
    """Add ``rows``, whose columns may come in any order, to what is there.

    A Parquet file is written anew as a whole, so that of two who append at once one is lost;
    a folder of Parquet, or a Delta table, gets another file.

    Raises:
        NotBuilt: The Delta table does not exist.
        ValueError: The columns are others than those there, or a value does not fit its column.
    """
    from pyarrow import dataset, fs, parquet

    place = table(config, source)
    if is_delta(source):
        from deltalake import write_deltalake

        delta = place.lasting()
        write_deltalake(delta, _fitted(rows, pa.schema(delta.schema().to_arrow()), place.name), mode="append")
        return
    system, path = fs.FileSystem.from_uri(place.uri)
    there = dataset.dataset(path, filesystem=system, format="parquet", partitioning="hive")
    rows = _fitted(rows, there.schema, place.name)
    if system.get_file_info(path).is_file:
        whole = f"{path}.{uuid4().hex}"
        parquet.write_table(pa.concat_tables([there.to_table(), rows]), whole, filesystem=system)
        system.move(whole, path)
    else:
        first = next(there.get_fragments())
        add_file(rows, place.uri, list(dataset.get_partition_keys(first.partition_expression)))


def add_file(rows: pa.Table | dataset.Dataset, uri: str, partition_by: list[str] | None) -> None:
    """Write ``rows`` as further Parquet files of the folder at ``uri``, partitioned as Hive does."""
    from pyarrow import dataset, fs

    system, place = fs.FileSystem.from_uri(uri)
    dataset.write_dataset(
        rows, place, filesystem=system, format="parquet", basename_template=f"{uuid4().hex}-{{i}}.parquet",
        partitioning=partition_by or None, partitioning_flavor="hive" if partition_by else None,
        existing_data_behavior="overwrite_or_ignore",
    )  # fmt: skip


def _fitted(rows: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    if set(rows.column_names) != set(schema.names):
        raise ValueError(f"`{name}` has the columns {schema.names}, not {rows.column_names}.")
    columns = []
    for field in schema:
        try:  # of times, what is finer than a microsecond is cut off
            columns.append(rows[field.name].cast(field.type, safe=not pa.types.is_timestamp(field.type)))
        except pa.ArrowInvalid as error:
            what = f"`{field.name}` of `{name}` is {field.type}"
            raise ValueError(f"{what}: {error}. Nothing was written.") from error
    return pa.table(columns, schema=schema)


def instant(at: datetime | None) -> str:
    """Return ``at`` as an SQL literal; naive is UTC, None is NULL."""
    if at is None:
        return "NULL::TIMESTAMPTZ"
    return f"TIMESTAMPTZ '{plain(at).isoformat()}'"
