"""The gate before a raw table: what passes lands in one commit, the rest is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.ingest.batch import ASIDE, UNDATED, Batch
from headrace.lake import AVAILABLE, Lake, duckdb_connection
from headrace.sources.rows import text
from headrace.validation import declared, load_suite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import duckdb

    from headrace.pipeline import Source
    from headrace.validation import Validation


@dataclass(frozen=True)
class Settled:
    """What became of a batch: each row ``landed`` or is held in ``entry``; columns ``aside`` are kept so."""

    batch: Batch
    landed: int
    entry: quarantine.Entry | None
    aside: tuple[str, ...]
    validation: Validation


def settle(batch: Batch, source: Source, lake: Lake, as_of: datetime) -> Settled:
    """Validate a batch; land what passes, hold the rest. Done twice, or by two at once, it is done once.

    Raises:
        LotChanged: Another run is settling a batch of this name with other rows.
    """
    with duckdb_connection() as con:
        shape = shape_of(con, source, batch, lake)
        sifted = quarantine.sift(
            batch.lot,
            source.suite,
            lake,
            as_of,
            columns=shape.shown,
            reasons=shape.reasons,
            barred=landed_already(source, batch, lake),
        )
        if sifted.passed:
            land(con, sifted.passing, shape, source, batch, lake, as_of)
    return Settled(batch, sifted.passed, sifted.entry, shape.aside, sifted.validation)


@dataclass(frozen=True)
class Shape:
    """A batch's columns: those the suite is ``shown`` and that land, those kept ``aside``, what is wrong."""

    shown: tuple[str, ...]
    aside: tuple[str, ...]
    reasons: tuple[str, ...]


def shape_of(con: duckdb.DuckDBPyConnection, source: Source, batch: Batch, lake: Lake) -> Shape:
    """Compare a batch's columns with those declared, or landed before, and say what is wrong with them."""
    lot = con.read_parquet(str(batch.lot.file))
    found = dict(zip(lot.columns, map(str, lot.types), strict=True))
    landed = lake.table(source.table).columns(con)
    before = {column: kind for column, kind in landed.items() if column not in (AVAILABLE, ASIDE)}
    known = declared(load_suite(source.suite)) or tuple(before) or tuple(found)
    new = tuple(column for column in found if column not in known)
    reasons = [f"`{column}` must be in every file, but this batch's lack it" for column in batch.lacking]
    reasons += [
        f"`{column}` must be there, as in batches before, but is not"
        for column in before
        if column not in {*found, *batch.lacking}
    ]
    reasons += [
        f"`{column}` must be {before[column]}, as in batches before, but is {kind}"
        for column, kind in found.items()
        if before.get(column, kind) != kind
    ]
    if new and source.new_columns == "reject":
        reasons.append(f"the columns must be declared, but {', '.join(f'`{c}`' for c in new)} is not")
    if batch.lot.window == UNDATED:
        reasons.append(f"`{source.time}` must not be null: without it a row belongs to no window")
    aside = () if source.new_columns == "land" else new
    return Shape(tuple(column for column in found if column not in aside), aside, tuple(reasons))


def landed_already(source: Source, batch: Batch, lake: Lake) -> list[tuple[int, str]]:
    """Return the positions of a batch's rows whose keys landed before, each with the rule it breaks."""
    if not (source.keys and batch.lot.late):
        return []
    keys = ", ".join(f'"{key}"' for key in source.keys)
    with lake.connect({"landed": source.table}) as con:
        rows = f"read_parquet({text(batch.lot.file)}, file_row_number = true)"
        found = con.sql(
            f"SELECT lot.file_row_number FROM {rows} lot SEMI JOIN landed USING ({keys}) ORDER BY ALL"
        )
        rule = f"{', '.join(f'`{key}`' for key in source.keys)} must not have landed before"
        return [(row, rule) for (row,) in found.fetchall()]


def land(
    con: duckdb.DuckDBPyConnection,
    rows: str,
    shape: Shape,
    source: Source,
    batch: Batch,
    lake: Lake,
    as_of: datetime,
    also: Mapping[str, int] | None = None,
) -> bool:
    """Land ``rows`` (a query) of a batch under its key; say whether this call is the one that did."""
    names = ", ".join(f'"{column}"' for column in shape.shown)
    since = f'"{source.time}"'
    if batch.lot.late:
        since = f"greatest({since}, TIMESTAMPTZ '{as_of.isoformat()}')"
    others = ", ".join(f"'{column}': \"{column}\"" for column in shape.aside)
    aside = f"to_json({{{others}}})::VARCHAR" if others else "NULL::VARCHAR"
    landing = con.sql(f"SELECT {names}, {since} AS {AVAILABLE}, {aside} AS {ASIDE} FROM ({rows})")
    return lake.table(source.table).append(landing.to_arrow_reader(), batch.key, also=also)
