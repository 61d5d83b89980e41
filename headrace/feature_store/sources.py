"""Feast's file sources in the lake: where they lie, at which version, and their rows in DuckDB.

A source is a Delta table (``file_format=DeltaFormat()``) or Parquet, a file or a
folder of files. Relative paths lie below the lake's root.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists

from headrace.errors import VersionGone
from headrace.feature_store.embedded import settings_beside
from headrace.lake import Lake, Table

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable
    from feast import RepoConfig
    from feast.data_source import DataSource

MILLISECOND = timedelta(milliseconds=1)


def is_delta(source: DataSource) -> bool:
    """Say whether ``source`` is a Delta table; what is not is Parquet, as for Feast."""
    assert isinstance(source, FileSource), "sources are FileSource(path=<table>, file_format=DeltaFormat())"
    return isinstance(source.file_format, DeltaFormat)


def table(config: RepoConfig, source: DataSource) -> Table:
    """Return where ``source`` lies: a table of the lake, or of elsewhere if its path is absolute."""
    assert isinstance(source, FileSource), "sources are FileSource(path=<table>, file_format=DeltaFormat())"
    if "://" in source.path or Path(source.path).is_absolute():
        return Table(source.path, source.path)
    lake = Lake(config.offline_store.lake or settings_beside(config.repo_path).lake)
    return lake.table(source.path)


def opened(config: RepoConfig, source: DataSource) -> DeltaTable:
    """Open the Delta table at the version that ``config`` pins it to, or the newest.

    Raises:
        NotBuilt: The table does not exist.
        VersionGone: It has no such version any more, or yet.
    """
    from deltalake.exceptions import DeltaError

    wanted = table(config, source)
    version = config.offline_store.versions.get(wanted.name)
    if version is None:
        return wanted.open()
    newest = wanted.open().version()
    try:
        return wanted.open(version)
    except DeltaError as error:
        raise VersionGone(wanted.name, version, newest) from error


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
    if not is_delta(source):
        place = table(config, source).uri
        if "://" in place:
            from pyarrow import dataset

            return con.from_arrow(dataset.dataset(place))
        files = f"{place}/**/*.parquet" if Path(place).is_dir() else place
        return con.read_parquet(files, union_by_name=True, hive_partitioning=Path(place).is_dir())
    delta = opened(config, source)
    uris = delta.file_uris()
    if not all(Path(uri).is_absolute() for uri in uris):
        return con.from_arrow(delta.to_pyarrow_dataset())
    schema = pa.schema(delta.schema().to_arrow())
    names = {new: old for old, new in source.field_mapping.items()}
    time = names.get(source.timestamp_field, source.timestamp_field)
    kept = _files_between(con, delta, time, since, until)
    uris = [uri for uri in uris if PurePosixPath(uri).name in kept]
    if not all(Path(uri).exists() for uri in uris):
        raise VersionGone(table(config, source).name, delta.version(), delta.version())
    empty = con.from_arrow(schema.empty_table())
    if not uris:
        return empty
    found = con.read_parquet(uris, union_by_name=True)
    if set(found.columns) == set(schema.names):
        return found
    # A column added since these files were written is in none of them.
    return con.sql("FROM empty UNION ALL BY NAME FROM found")


def _files_between(
    con: duckdb.DuckDBPyConnection,
    delta: DeltaTable,
    time: str,
    since: datetime | None,
    until: datetime | None,
) -> set[str]:
    """Return the names of the data files that can hold rows of that time."""
    actions = con.from_arrow(pa.table(delta.get_add_actions(flatten=True)))
    conditions = ["true"]
    if since and f"max.{time}" in actions.columns:
        # Statistics are cut to the millisecond, the greatest one too.
        conditions.append(f'coalesce("max.{time}" >= {instant(since - MILLISECOND)}, true)')
    if until and f"min.{time}" in actions.columns:
        conditions.append(f'coalesce("min.{time}" <= {instant(until)}, true)')
    found = actions.filter(" AND ".join(conditions)).project("path").fetchall()
    return {PurePosixPath(path).name for (path,) in found}


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


def instant(at: datetime | None) -> str:
    """Return ``at`` as an SQL literal; naive is UTC, None is NULL."""
    if at is None:
        return "NULL::TIMESTAMPTZ"
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ '{aware.astimezone(UTC).isoformat()}'"


def quoted(columns: list[str]) -> str:
    """Return ``columns`` as an SQL list of identifiers."""
    return ", ".join(identifier(column) for column in columns)


def identifier(column: str) -> str:
    """Return ``column`` as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'
