"""The gate before a raw table: what passes lands in one commit, the rest is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.ingest.batch import ASIDE, Batch
from headrace.lake import AVAILABLE, Lake, duckdb_connection
from headrace.legible import legible
from headrace.sources.rows import INSTANT
from headrace.sql import literal, quoted
from headrace.validation import listed_columns, load_suite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import duckdb

    from headrace.pipeline import Source
    from headrace.validation import Validation


MANY = 2_000_000
"""Rows that land in one commit, or some more."""


@dataclass(frozen=True)
class Settled:
    """What became of a batch: each row landed or is held in ``entry``; columns ``aside`` are kept so.

    ``landed`` counts what lies in the raw table under the batch's key: another
    run's rows, if that one was first.
    """

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
    (settled,) = settle_all([batch], source, lake, as_of)
    return settled


def settle_all(batches: Sequence[Batch], source: Source, lake: Lake, as_of: datetime) -> list[Settled]:
    """Settle batches as one after the other would be: each is validated by itself, those alike land together.

    One that cannot be settled keeps none of the others from being.
    """
    settled, failed = list[Settled](), list[Exception]()
    with duckdb_connection() as con:
        waiting: list[_Sifted] = []
        for batch in batches:
            try:
                sifted = _sift(con, batch, source, lake, as_of)
            except Exception as error:  # noqa: BLE001 - raised below
                failed.append(error)
                continue
            # What is landed alone may change the table's columns, by which those after it are judged.
            alike = sifted.may_wait and all(one.shape == sifted.shape for one in waiting)
            if waiting and (not alike or sum(one.gate.passed for one in waiting) > MANY):
                settled += _land_all(con, waiting, source, lake, as_of)
                waiting = []
            waiting.append(sifted)
            if not sifted.may_wait:
                settled += _land_all(con, waiting, source, lake, as_of)
                waiting = []
        settled += _land_all(con, waiting, source, lake, as_of)
    if failed:
        raise failed[0]
    return settled


@dataclass(frozen=True)
class _Sifted:
    """A batch that was validated; ``may_wait`` if its rows may land together with those of others."""

    batch: Batch
    shape: Shape
    gate: quarantine.Sifted
    may_wait: bool


def _sift(
    con: duckdb.DuckDBPyConnection, batch: Batch, source: Source, lake: Lake, as_of: datetime
) -> _Sifted:
    shape = shape_of(con, source, batch, lake)
    gate = quarantine.sift(
        batch.lot,
        source.suite,
        lake,
        as_of,
        columns=shape.shown,
        reasons=shape.reasons,
        barred=() if shape.reasons else landed_already(source, batch, lake),
    )
    known = {*lake.table(source.table).columns(con)}
    return _Sifted(batch, shape, gate, not batch.lot.late and {*shape.lands, AVAILABLE, ASIDE} <= known)


def _land_all(
    con: duckdb.DuckDBPyConnection, waiting: Sequence[_Sifted], source: Source, lake: Lake, as_of: datetime
) -> list[Settled]:
    """Land what passed of batches that are alike, in one commit unless another run was first with one."""
    table, passed = lake.table(source.table), [one for one in waiting if one.gate.passed]
    if len(passed) > 1:
        rows = [landing(con, one.gate.passing, one.shape, source, one.batch, as_of) for one in passed]
        together = con.sql(" UNION ALL ".join(f"({each.sql_query()})" for each in rows))
        if table.append_all(together.to_arrow_reader(), {one.batch.key: one.gate.passed for one in passed}):
            passed = []
    for one in passed:
        land(con, one.gate.passing, one.gate.passed, one.shape, source, one.batch, lake, as_of)
    held = table.held([one.batch.key for one in waiting if one.gate.passed])
    return [
        Settled(one.batch, held.get(one.batch.key, 0), one.gate.entry, one.shape.aside, one.gate.validation)
        for one in waiting
    ]


@dataclass(frozen=True)
class Shape:
    """A batch's columns: those the suite is ``shown``, that land, that are kept ``aside``; what is wrong."""

    shown: tuple[str, ...]
    lands: tuple[str, ...]
    aside: tuple[str, ...]
    reasons: tuple[str, ...]


def shape_of(con: duckdb.DuckDBPyConnection, source: Source, batch: Batch, lake: Lake) -> Shape:
    """Compare a batch's columns with those declared, or landed before, and say what is wrong with them."""
    lot, time = con.read_parquet(str(batch.lot.file)), source.time
    found = dict(zip(lot.columns, map(str, lot.types), strict=True))
    listed, lacking = listed_columns(load_suite(source.suite)), batch.lot.lacking
    landed = lake.table(source.table).columns(con)
    before = {column: kind for column, kind in landed.items() if column not in (AVAILABLE, ASIDE)}
    known = listed or tuple(before) or tuple(found)
    new = tuple(column for column in found if column not in known)
    reasons = [f"{named(column)} must be in every file, but this batch's lack it" for column in lacking]
    reasons += [
        f"{named(column)} must be there, as in batches before, but is not"
        for column in before
        if column not in {*found, *lacking} and column in known
    ]
    reasons += [
        f"{named(column)} must be {before[column]}, as in batches before, but is {kind}"
        for column, kind in found.items()
        if before.get(column, kind) != kind
    ]
    if new and source.new_columns == "reject":
        reasons.append(f"the columns must be declared, but {', '.join(map(named, new))} is not")
    if time in found and found[time] != INSTANT:
        reasons += [f"{named(time)} must be an instant, but is {found[time]}"] if time not in before else []
    elif time in found and lot.filter(f"NOT coalesce(isfinite({quoted(time)}), false)").limit(1).fetchone():
        reasons.append(f"{named(time)} must not be null or infinite: without it a row belongs to no window")
    shown = tuple(column for column in found if column in known)
    aside = () if source.new_columns == "land" else new
    return Shape(shown, (*shown, *new) if not aside else shown, aside, tuple(reasons))


def named(column: str) -> str:
    """Return a column's name as reasons have it: whoever named it may have meant harm."""
    return f"`{legible(column)}`"


def landed_already(source: Source, batch: Batch, lake: Lake) -> list[tuple[int, str]]:
    """Return the positions of a batch's rows whose keys landed before, each with the rule it breaks."""
    if not (source.keys and batch.lot.late and batch.raw is not None):
        return []
    keys = ", ".join(map(quoted, source.keys))
    # As it was when the batch was made: one that is settled again must not meet its own rows.
    with lake.connect({"landed": lake.at(source.table, batch.raw)}) as con:
        rows = f"read_parquet({literal(batch.lot.file)}, file_row_number = true)"
        found = con.sql(
            f"SELECT lot.file_row_number FROM {rows} lot SEMI JOIN landed USING ({keys}) ORDER BY ALL"
        )
        rule = f"{', '.join(map(named, source.keys))} must not have landed before"
        return [(row, rule) for (row,) in found.fetchall()]


def land(
    con: duckdb.DuckDBPyConnection,
    rows: str,
    count: int,
    shape: Shape,
    source: Source,
    batch: Batch,
    lake: Lake,
    as_of: datetime,
    also: Mapping[str, int] | None = None,
) -> bool:
    """Land ``count`` ``rows`` (a query) under the batch's key; say whether this call is the one that did."""
    landed = landing(con, rows, shape, source, batch, as_of).to_arrow_reader()
    return lake.table(source.table).append(landed, batch.key, count, also)


def landing(
    con: duckdb.DuckDBPyConnection, rows: str, shape: Shape, source: Source, batch: Batch, as_of: datetime
) -> duckdb.DuckDBPyRelation:
    """Return ``rows`` (a query) as they land: with the instant from which they count, and what is aside."""
    names = ", ".join(map(quoted, shape.lands))
    since = quoted(source.time)
    if batch.lot.late:
        since = f"greatest({since}, TIMESTAMPTZ '{as_of.isoformat()}')"
    others = ", ".join(f"{literal(column)}: {quoted(column)}" for column in shape.aside)
    aside = f"to_json({{{others}}})::VARCHAR" if others else "NULL::VARCHAR"
    return con.sql(f"SELECT {names}, {since} AS {AVAILABLE}, {aside} AS {ASIDE} FROM ({rows})")
