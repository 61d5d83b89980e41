"""What a person lets go: held rows land after all, once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.errors import NotReleasable, StillRejected, Superseded
from headrace.ingest.batch import UNDATED, Batch
from headrace.ingest.landing import land, landed_already, shape_of
from headrace.lake import Lake, Window, duckdb_connection
from headrace.quarantine import Lot
from headrace.sources import Files
from headrace.sources.rows import text
from headrace.validation import load_suite, row_rules, validate

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline, Source

EVER = Window(UNDATED.start, datetime(9999, 1, 1, tzinfo=UTC))


def release(
    spec: Pipeline,
    entry: quarantine.Entry,
    lake: Lake,
    ledger: Ledger,
    *,
    folder: Path,
    as_of: datetime,
    holder: str,
    now: datetime,
    rows: Path | None = None,
) -> int:
    """Validate again what is held and land it, once; return the rows landed.

    Args:
        spec: The pipeline the entry belongs to.
        entry: What to release. Rows held of a batch must break no row rule any
            more; a batch held as a whole must pass its suite.
        lake: Where it is held and will land.
        ledger: Where the decision is claimed and written.
        folder: A place for a temporary file.
        as_of: The instant (UTC), from which rows that are late count.
        holder: Who asks.
        now: Wall-clock time (UTC).
        rows: A file of mended rows, to land instead of the held ones.

    Raises:
        AlreadyDecided: It was released or dropped before.
        StillRejected: It does not pass; it stays where it is.
        Superseded: Its source brought the window anew.
        NotReleasable: Its table is computed, not landed.
    """
    source = next((s for s in spec.sources if s.table == entry.table), None)
    if source is None:
        raise NotReleasable(entry.id, entry.table)
    late = entry.late or not entry.whole or entry.window == UNDATED
    key = entry.release_key if late else str(entry.window)
    with quarantine.deciding(entry, lake, ledger, holder, now) as decide, duckdb_connection() as con:
        if quarantine.superseded(entry, lake):
            raise Superseded(entry.id)
        file = folder / "released.parquet"
        _write_held(con, source, entry, lake, rows, file)
        ((count,),) = con.sql(f"SELECT count(*) FROM {text(file)}").fetchall()
        lot = Lot(entry.id, entry.pipeline, entry.table, entry.window, file, count, late)
        batch = Batch(lot, key)
        shape = shape_of(con, source, batch, lake)
        suite = load_suite(source.suite)
        # What else the suite says was true of the batch these rows come from, and need not be of them alone.
        asked = row_rules(suite) if late else suite
        barred = landed_already(source, batch, lake)
        validation = validate([file], asked, columns=shape.shown)
        wrong = [*shape.reasons, *validation.failures, *sorted({rule for _, rule in barred})]
        wrong += [outcome.sentence for outcome in validation.outcomes if outcome.success and outcome.breaches]
        if wrong:
            raise StillRejected(entry.id, wrong, source.suite)
        also = {entry.release_key: count}
        if not land(con, f"FROM {text(file)}", shape, source, batch, lake, as_of, also):
            raise Superseded(entry.id)
        decide("released", rows=count, mended=bool(rows))
    return int(count)


def _write_held(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    entry: quarantine.Entry,
    lake: Lake,
    mended: Path | None,
    file: Path,
) -> None:
    """Write what is held, or what a person mended it to, as a lot."""
    held = lake.table(entry.held.table).relation(con, entry.held.version)
    rows = con.sql(f"SELECT * EXCLUDE (broken_rules) FROM ({held.sql_query()})")
    if mended:
        (part, *_) = Files({"mended": mended}).read(con, source.name, source.time, EVER)
        raw = lake.table(source.table)
        like = raw.relation(con) if raw.exists() else rows  # a CSV file does not say what its numbers are
        kinds = dict(zip(like.columns, like.types, strict=True))
        typed = [
            f'"{c}"::{kinds[c]} AS "{c}"' if c in kinds else f'"{c}"'
            for c in con.table(part.relation).columns
        ]
        rows = con.sql(f"SELECT {', '.join(typed)} FROM {part.relation}")
    rows.write_parquet(str(file))
