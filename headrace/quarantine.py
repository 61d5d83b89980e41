"""Quarantine: rows and batches that may not pass wait here, with their reasons, until a person decides.

Each entry is a Delta table of its own, ``quarantine/<id>``, since what is wrong
with a batch may be its very columns; ``quarantine/entries`` lists them, each
once. A decision, to release or to drop, is an entry of the ledger. What is held
is held before the rest of its lot lands, so that a kill in between loses nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from headrace.addresses import public
from headrace.errors import HeadraceError, did_you_mean
from headrace.lake import DatasetRef, Window, duckdb_connection, fingerprint
from headrace.ledger import DONE
from headrace.sql import literal
from headrace.validation import load_suite, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.ledger import Record as Decision
    from headrace.pipeline import Pipeline
    from headrace.validation import ExpectationSuite, Validation


class BatchRejected(HeadraceError):
    """Batches may not pass; all of each waits in quarantine, and what else there was has landed."""

    def __init__(self, rejected: Sequence[Entry]) -> None:
        self.rejected = tuple(rejected)
        shown = []
        for entry in rejected[:3]:
            broken = "\n".join(f"  - {reason}" for reason in entry.reasons)
            shown.append(f"`{entry.id}` was rejected, all {entry.of:,} rows, by `{entry.suite}`:\n{broken}")
        if more := len(rejected) - len(shown):
            shown.append(f"So {'was 1' if more == 1 else f'were {more}'} more.")
        first = rejected[0]
        again = (
            "Mend the source and run the same ingest again, or widen the suite in `validations/`, then "
            f"`headrace quarantine release {first.id}`"
            if first.table.startswith("raw/")
            else "Mend what computes it, or widen the suite in `validations/`, and run the same again"
        )
        super().__init__(
            "\n".join(shown) + f"\nIt waits in quarantine: `headrace quarantine show {first.id}`. {again}."
        )


class LotChanged(HeadraceError):
    """Two runs put different rows before the gate under one name."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(
            f"Another run has other rows of `{id}` in quarantine: source or suite changed in between. "
            "Nothing of this run's batch was landed. Run again."
        )


class NothingLanded(HeadraceError):
    """A lake is asked what it holds, and nothing was ever landed there."""

    def __init__(self, lake: str) -> None:
        self.lake = public(lake)
        super().__init__(
            f"Nothing was ever landed in {self.lake}, so that nothing can be said of it. Run `ingest`; or, "
            "if that was done, `HEADRACE_HOME` or `HEADRACE_LAKE` is not what it was then."
        )


class NotInQuarantine(HeadraceError):
    """Nothing of that name is held."""

    def __init__(self, id: str, known: Sequence[str]) -> None:
        self.id, self.known = id, tuple(known)
        hint = did_you_mean(id, known, cutoff=0.4)
        super().__init__(f"Nothing is in quarantine as `{id}`.{hint} `headrace quarantine list` shows all.")


class AlreadyDecided(HeadraceError):
    """A quarantine entry was released or dropped before."""

    def __init__(self, id: str, decision: str, at: datetime) -> None:
        self.id, self.decision, self.at = id, decision, at
        super().__init__(
            f"`{id}` was {decision} on {at:%Y-%m-%d %H:%M} UTC, and stays so. "
            f"`headrace quarantine show {id}` shows what was held."
        )


class Superseded(HeadraceError):
    """What is to be released was brought anew by its source."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(
            f"The source of `{id}` brought that window anew, so what is held of it cannot land any more. "
            "`headrace quarantine list` shows what waits."
        )


ENTRIES = "quarantine/entries"
KIND = "quarantine"
LEASE = timedelta(hours=2)


@dataclass(frozen=True)
class Lot:
    """What is put before the gate: the rows of one window of one table, as a Parquet file.

    ``id`` is what its entry will be called, should it get one. It is ``late`` if
    its window landed before: then it is what came since. Columns that its files
    are ``lacking`` are named. The same rows ``computed`` again need no entry again.
    """

    id: str
    pipeline: str
    table: str
    window: Window
    file: Path
    rows: int
    late: bool = False
    lacking: tuple[str, ...] = ()
    computed: bool = False


@dataclass(frozen=True)
class Entry:
    """What is held of a lot ``of`` so many rows, and why.

    ``held`` is the snapshot of the rows, each with the rules it broke in
    ``broken_rules``; all rows of the lot if ``whole``. The lot may have been
    ``late``, or ``lacking`` columns.
    """

    id: str
    pipeline: str
    table: str
    window: Window
    whole: bool
    of: int
    suite: str
    reasons: tuple[str, ...]
    as_of: datetime
    held: DatasetRef
    late: bool = False
    lacking: tuple[str, ...] = ()

    @property
    def release_key(self) -> str:
        """The key under which its rows land if they are released, with their number."""
        return f"release of {self.id}"

    @property
    def number(self) -> int:
        """The last part of its id: entries of a window are numbered."""
        return int(self.id.rpartition("/")[2])


@dataclass(frozen=True)
class Sifted:
    """What the gate made of a lot: ``passing`` is a query for the ``passed`` rows that may land."""

    validation: Validation
    passing: str
    passed: int
    entry: Entry | None


def sift(
    lot: Lot,
    suite: str | ExpectationSuite,
    lake: Lake,
    as_of: datetime,
    *,
    columns: Sequence[str] | None = None,
    reasons: Sequence[str] = (),
    barred: Sequence[tuple[int, str]] = (),
) -> Sifted:
    """Validate a lot and hold what may not pass; once, however often it is called.

    Rows that break a row rule within its tolerance are held and the rest
    passes. Beyond a tolerance, or when another rule fails, all of it is held.

    Args:
        lot: What to validate; readable as long as ``passing`` is used.
        suite: The suite, or its name.
        lake: Where the quarantine is.
        as_of: The instant (UTC) at which this happens.
        columns: What the suite is shown of the lot; everything if left out.
        reasons: Why the lot is held as a whole whatever the suite says.
        barred: Rows to hold besides: position in the file, and the rule broken.

    Raises:
        LotChanged: Under this id another run holds other rows.
    """
    broken = lot.file.with_suffix(".broken.parquet")
    expected = load_suite(suite) if isinstance(suite, str) else suite
    named = suite if isinstance(suite, str) else expected.name
    validation = validate([lot.file], expected, broken, columns)
    assert validation.rows == lot.rows, f"{lot.id}: {lot.rows} rows in, {validation.rows} validated"
    given = f"read_parquet({literal(lot.file)}, file_row_number = true)"
    whole = [*validation.failures, *reasons]
    if not (whole or barred or broken.exists()):
        return Sifted(validation, f"FROM read_parquet({literal(lot.file)})", lot.rows, None)
    con = duckdb_connection()
    con.execute(f"CREATE VIEW lot AS FROM {given}")
    con.execute("CREATE TABLE breaches (row BIGINT, rule VARCHAR)")
    if broken.exists():
        con.execute(f"INSERT INTO breaches SELECT row, unnest(rules) FROM {literal(broken)}")
    if barred:
        con.executemany("INSERT INTO breaches VALUES (?, ?)", barred)
    con.execute("CREATE VIEW broken AS SELECT row, list(rule) AS broken_rules FROM breaches GROUP BY row")
    marked = """
        SELECT lot.* EXCLUDE file_row_number, broken_rules
        FROM lot {} JOIN broken ON broken.row = lot.file_row_number
    """
    if whole:
        entry = _hold(lake, lot, True, named, whole, as_of, con.sql(marked.format("LEFT")))
        passing, passed = f"FROM read_parquet({literal(lot.file)}) LIMIT 0", 0
    else:
        told = con.sql("SELECT rule, count(*) FROM breaches GROUP BY rule ORDER BY rule").fetchall()
        why = [f"{rule}, but {rows:,} of {lot.rows:,} rows break this" for rule, rows in told]
        entry = _hold(lake, lot, False, named, why, as_of, con.sql(marked.format("")))
        con.execute(f"COPY (SELECT row FROM broken) TO {literal(broken)}")
        passing = (
            f"SELECT * EXCLUDE file_row_number FROM {given} lot "
            f"ANTI JOIN {literal(broken)} broken ON broken.row = lot.file_row_number"
        )
        ((passed,),) = con.sql(f"SELECT count(*) FROM ({passing})").fetchall()
    held = entry.held.rows
    assert passed + held == lot.rows, f"{lot.id}: {lot.rows} rows in, {passed} passed, {held} held"
    return Sifted(validation, passing, passed, entry)


def guard(
    rows: pa.Table, suite: str | ExpectationSuite, lake: Lake, pipeline: str, table: str, window: Window
) -> pa.Table:
    """Return those of ``rows`` that may be written to a computed table; the others are held.

    Raises:
        BatchRejected: None may; all are held.
    """
    import pyarrow.parquet as pq

    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(rows, file)
        number = len(entries(lake, table, window)) + 1
        id = f"{table}/{window.label}/{number}"
        lot = Lot(id, pipeline, table, window, file, rows.num_rows, computed=True)
        sifted = sift(lot, suite, lake, window.end)
        if sifted.entry and sifted.entry.whole:
            raise BatchRejected([sifted.entry])
        return (
            duckdb_connection().sql(sifted.passing).to_arrow_table().cast(rows.schema)
            if sifted.entry
            else rows
        )


def _hold(
    lake: Lake,
    lot: Lot,
    whole: bool,
    suite: str,
    reasons: Sequence[str],
    as_of: datetime,
    rows: duckdb.DuckDBPyRelation,
) -> Entry:
    import pyarrow as pa

    count, digest = fingerprint(rows)
    past = entries(lake, lot.table, lot.window)
    alike = (e for e in past if e.held.fingerprint == digest and e.whole == whole)
    if same := next((e for e in alike if lot.computed or e.id == lot.id), None):
        return same  # this very step was killed after it, or ran before
    table = lake.table(f"quarantine/{lot.id}")
    held = DatasetRef(table.name, table.replace(rows.to_arrow_reader), count, digest)
    entry = Entry(
        lot.id,
        lot.pipeline,
        lot.table,
        lot.window,
        whole,
        lot.rows,
        suite,
        tuple(reasons),
        as_of,
        held,
        lot.late,
        lot.lacking,
    )
    line = {
        **{"id": lot.id, "pipeline": lot.pipeline, "table": lot.table},
        **{"start": lot.window.start, "end": lot.window.end, "whole": whole, "late": lot.late},
        **{"of": lot.rows, "suite": suite, "reasons": list(reasons), "as_of": as_of},
        **{"lacking": list(lot.lacking), "rows": held.rows},
        **{"version": held.version, "fingerprint": held.fingerprint},
    }
    listed = lake.table(ENTRIES).append(pa.Table.from_pylist([line], _schema()), key=lot.id)
    if not listed and find(lake, lot.id).held.fingerprint != held.fingerprint:
        raise LotChanged(lot.id)
    return entry


def entries(lake: Lake, table: str | None = None, window: Window | None = None) -> list[Entry]:
    """Return what was ever held, oldest first, of one table or window if given."""
    if not lake.table(ENTRIES).exists():
        return []
    found = lake.connect({"entries": ENTRIES}).sql("FROM entries ORDER BY as_of, id").to_arrow_table()
    listed = [
        Entry(
            **{name: line[name] for name in ("id", "pipeline", "table", "whole", "of", "suite", "as_of")},
            window=Window(line["start"], line["end"]),
            reasons=tuple(line["reasons"]),
            held=DatasetRef(f"quarantine/{line['id']}", line["version"], line["rows"], line["fingerprint"]),
            late=line["late"],
            lacking=tuple(line["lacking"]),
        )
        for line in found.to_pylist()
    ]
    return [e for e in listed if table in (None, e.table) and window in (None, e.window)]


def find(lake: Lake, id: str) -> Entry:
    """Return the entry of that id.

    Raises:
        NotInQuarantine: There is none.
    """
    known = {entry.id: entry for entry in entries(lake)}
    if id not in known:
        raise NotInQuarantine(id, list(known))
    return known[id]


@contextmanager
def deciding(entry: Entry, lake: Lake, ledger: Ledger, holder: str) -> Iterator[Callable[..., object]]:
    """Claim the decision on an entry; the block calls what it is given with it once it is carried out.

    Raises:
        AlreadyDecided: There is one. If its release was killed once the rows had landed, that is said now.
        AlreadyClaimed: Someone else is deciding.
    """
    made = ledger.claim(entry.pipeline, KIND, entry.id, holder=holder, lease=LEASE)
    if made:
        raise AlreadyDecided(entry.id, made.detail["decision"], made.at)

    def decide(decision: str, **detail: object) -> None:
        told = {"decision": decision, **detail}
        stands = ledger.finish(entry.pipeline, KIND, entry.id, holder=holder, **told)
        if (stands.holder, stands.detail) != (holder, told):
            raise AlreadyDecided(entry.id, stands.detail["decision"], stands.at)

    try:
        landed = lake.table(entry.table).held([entry.release_key])
        if landed:
            decide("released", rows=landed[entry.release_key])
            raise AlreadyDecided(entry.id, "released", ledger.now())
        yield decide
    except BaseException:
        ledger.give_up(entry.pipeline, holder)
        raise


def drop(entry: Entry, lake: Lake, ledger: Ledger, *, reason: str, holder: str) -> None:
    """Decide that an entry's rows shall never land. They are kept, and its source never brings them again.

    Raises:
        AlreadyDecided: It was released or dropped before.
        Superseded: Its source brought the window anew.
    """
    with deciding(entry, lake, ledger, holder) as decide:
        if superseded(entry, lake):
            raise Superseded(entry.id)
        decide("dropped", rows=entry.held.rows, reason=reason)


def decisions(ledger: Ledger, held: Iterable[Entry]) -> dict[str, Decision]:
    """Return, by the ids of entries, what was decided on them, whichever pipelines hold them."""
    pipelines = {entry.pipeline for entry in held}
    made = (found for pipeline in pipelines for found in ledger.entries(pipeline, KIND))
    return {found.key: found for found in made if found.state == DONE}


def waiting(lake: Lake, ledger: Ledger, spec: Pipeline) -> list[Entry]:
    """Return the entries, of a pipeline or of a source that it shares, that nobody decided on yet."""
    held = [e for e in entries(lake) if e.pipeline == spec.name or e.table in spec.raw.values()]
    decided = decisions(ledger, held)
    return [entry for entry in held if entry.id not in decided and not superseded(entry, lake)]


def superseded(entry: Entry, lake: Lake) -> bool:
    """Say whether the source brought the window anew since it was held as a whole."""
    if entry.late or not entry.whole:  # its rows are brought no more
        return False
    raw = lake.table(entry.table)
    if raw.holds(entry.release_key):  # it landed by hand, though the run that did it may not have said so
        return False
    later = any(e.whole and e.number > entry.number for e in entries(lake, entry.table, entry.window))
    return later or raw.holds(str(entry.window))


def _schema() -> pa.Schema:
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    texts = dict.fromkeys(("id", "pipeline", "table", "suite", "fingerprint"), pa.string())
    numbers = dict.fromkeys(("of", "rows", "version"), pa.int64())
    instants = dict.fromkeys(("start", "end", "as_of"), instant)
    others = {"whole": pa.bool_(), "late": pa.bool_()}
    others |= dict.fromkeys(("reasons", "lacking"), pa.list_(pa.string()))
    return pa.schema({**texts, **numbers, **instants, **others})
