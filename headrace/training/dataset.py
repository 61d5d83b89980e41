"""The training set: what could have been known at each prediction, beside what then happened."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from headrace import spine
from headrace.errors import BrokenDeclaration
from headrace.feature_store import tables
from headrace.feature_store.errors import StaleFeatures
from headrace.lake import (
    AVAILABLE,
    DamagedTable,
    DatasetRef,
    Lake,
    NotBuilt,
    VersionGone,
    Window,
    duckdb_connection,
    edge,
    windows,
)
from headrace.ledger import DONE
from headrace.sources import Predictions
from headrace.spine import GAP, HOLDOUT, SELECTION, TRAIN
from headrace.sql import among, literal, quoted
from headrace.training.encoding import unfit
from headrace.training.errors import BadWeights, MissingInputs, NotEnoughData, NothingToLearn, UnfitInputs
from headrace.training.rows import WEIGHT, InLake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa

    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline

    Historical = Callable[[pa.Table], pa.Table]

LEAST_ROWS = 100
PART = 500_000
"""About how many rows are joined to their features at once."""
KIND = "training set"
"""What the ledger calls one."""


def known_to(spec: Pipeline, complete: Mapping[str, datetime], lake: Lake) -> datetime:
    """Return up to when (UTC) all is known that is learnt from: predictions, their truth, and features built.

    ``complete`` says it of each source, by name. Of a window that has not ended, nothing is known.

    Raises:
        StaleFeatures: Features were built otherwise than they would be today.
    """
    sources = {source.name: source for source in spec.sources}
    read = {**among(spec.spine, sources), **among(spec.label, sources)}
    rows = (edge(complete[name], source.window) for name, source in read.items())
    until = min([*rows, *(tables.complete(table, complete) for table in spec.feature_tables)])
    for table in spec.feature_tables:
        late = tables.stale(table, spec.raw, windows(spec.start, until, table.window), lake)
        for window, cause in late.items():
            if cause != tables.Cause.NEW:
                raise StaleFeatures(spec.name, table.name, str(window), cause)
            until = min(until, window.start)
    return until


def cuts(spec: Pipeline, as_of: datetime) -> tuple[datetime, datetime]:
    """Return where the selection and the holdout begin, of what was known by ``as_of`` (UTC).

    With nothing to choose, and nothing that has to see when to stop, the selection is empty.
    """
    held_out = as_of - spec.holdout
    return held_out - spec.holdout if spec.selects else held_out, held_out


def made(
    spec: Pipeline,
    lake: Lake,
    ledger: Ledger,
    as_of: datetime,
    historical: Historical,
    pins: Mapping[str, int],
    joined_by: str,
    holder: str,
) -> DatasetRef:
    """Return the training set: the one that was made of the very same before, or else :func:`build` it.

    ``joined_by`` is a text that is another one where ``historical`` is. What is damaged, or gone, is made
    again.
    """
    pins = _pinned(spec, lake, pins)
    key = identity(spec, as_of, pins, joined_by)
    for record in ledger.entries(spec.name, KIND, key):
        if record.state == DONE:
            ref = DatasetRef.of(record.detail)
            try:
                lake.check(ref)
            except (DamagedTable, VersionGone, NotBuilt):
                break
            return ref
    ref = build(spec, lake, as_of, historical, pins)
    ledger.finish(spec.name, KIND, key, holder=holder, **asdict(ref))
    return ref


def identity(spec: Pipeline, as_of: datetime, pins: Mapping[str, int], joined_by: str) -> str:
    """Return a digest of all that a training set follows from."""
    asked = (spec.spine, spec.label, spec.keys, spec.columns.names, sorted(_others(spec)), str(spec.start))
    at = [str(cut) for cut in (*cuts(spec, as_of), as_of)]
    what = [asked, at, str(spec.problem.label_type), repr(spec.weights), sorted(pins.items()), joined_by]
    return sha256(json.dumps(what).encode()).hexdigest()[:24]


def build(
    spec: Pipeline,
    lake: Lake,
    as_of: datetime,
    historical: Historical,
    pins: Mapping[str, int],
    into: Lake | None = None,
) -> DatasetRef:
    """Write the training set as of ``as_of`` (UTC) and pin it.

    ``historical`` joins features to a spine, point in time, from the feature
    tables at the versions ``pins``; raw tables are read at those that are named there, or as they are now;
    the set's own ``pins`` name both. It is written into the same lake, or ``into`` another. Windows are
    joined and written one after the other, in the order of ``event_timestamp`` and keys: few rows are in
    memory at once. Column ``span`` tells what a row is for. Predictions made in the last ``spec.holdout``
    before ``as_of`` are the holdout, by which the gate judges. Those of as long before it are the
    selection, by which the best of several candidates is chosen. What comes before is to train on if its
    truth was known when the selection began; else it is of the gap, which only the chosen candidate
    learns from. No row is of any use before its truth was known.

    Raises:
        InvalidQuery: The spine and the label cannot be joined.
        NotEnoughData: Fewer than 100 labelled rows to train on, to choose by, or held out.
        NothingToLearn: All labels to train on are the same.
        BrokenDeclaration: Neither the spine nor a feature has a column that is named beside the inputs:
            the gate groups rows by it, a seasonal guess goes by it, or rows count by it.
        MissingInputs: Neither the spine nor a feature has a column that the model takes.
        UnfitInputs: A column that the model takes is of a type that no model takes.
        BadLabels: A label is not what the problem asks for.
        BadWeights: A weight is null, not finite, or below zero.
    """
    import pyarrow as pa

    pins = _pinned(spec, lake, pins)
    counts, (least, most) = spine.counted(spec, lake, as_of, pins, cuts(spec, as_of))
    of_span: Counter[str] = Counter()
    for (_, span), count in counts.items():
        of_span[span] += count
    needed = {HOLDOUT: "held out", SELECTION: "to choose a candidate by", TRAIN: "to train on"}
    for part, told in needed.items():
        if of_span[part] < LEAST_ROWS and (part != SELECTION or spec.selects):
            raise NotEnoughData(spec.name, told, of_span[part], LEAST_ROWS, as_of)
    earliest, *later = _together(spec, as_of, counts)
    (first,) = _parts(spec, lake, as_of, historical, pins, [earliest])
    if least == most:
        raise NothingToLearn(spec.name, of_span[TRAIN], first["label"][0].as_py(), as_of)
    failed: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first.to_batches()
        try:
            for part in _parts(spec, lake, as_of, historical, pins, later):
                yield from part.cast(first.schema).to_batches()
        except Exception as error:  # by way of Arrow it would come out as another
            failed.append(error)
            raise

    table = (into or lake).table(f"training/{spec.name}")
    try:
        version = table.replace(lambda: pa.RecordBatchReader.from_batches(first.schema, batches()))
    except Exception:
        if failed:
            raise failed[0] from None
        raise
    snapshot = table.snapshot(version)
    return replace(snapshot, pins=tuple(sorted(pins.items())), fed_on=_fed_on(spec, lake, pins, as_of))


def _pinned(spec: Pipeline, lake: Lake, pins: Mapping[str, int]) -> dict[str, int]:
    return {name: lake.table(name).open().version() for name in spec.raw.values() if name not in pins} | dict(
        pins
    )


def _together(
    spec: Pipeline, as_of: datetime, counts: Mapping[tuple[datetime, str], int]
) -> Iterator[Window]:
    """Cut what is known by ``as_of`` (UTC), at window ends, into spans of about ``PART`` rows."""
    start, room = spec.start, PART
    of_window: Counter[datetime] = Counter()
    for (begins, _), count in counts.items():
        of_window[begins] += count
    for begins, count in sorted(of_window.items()):
        if room < count and start < begins:
            yield Window(start, begins)
            start, room = begins, PART
        room -= count
    yield Window(start, as_of)


def _parts(
    spec: Pipeline,
    lake: Lake,
    as_of: datetime,
    historical: Historical,
    pins: Mapping[str, int],
    spans: Sequence[Window],
) -> Iterator[pa.Table]:
    """Yield the rows of each span, checked, and as the training set has them."""
    others = _others(spec)
    wanted = list(
        dict.fromkeys([*spec.keys, "event_timestamp", *spec.columns.names, *others, "label", "span"])
    )
    for span in spans:
        rows = historical(spine.labelled(spec, lake, span, as_of, pins, cuts=cuts(spec, as_of)))
        if strangers := [
            f"`{place}` names `{name}`, which neither the spine nor a feature is called"
            for name, place in others.items()
            if name not in rows.column_names
        ]:
            raise BrokenDeclaration(f"pipelines/{spec.name}.py", strangers)
        if missing := [name for name in wanted if name not in rows.column_names]:
            raise MissingInputs(missing, rows.column_names)
        if wrong := unfit(rows.schema, spec.columns):
            raise UnfitInputs(spec.name, wrong)
        spine.check_labels(spec, rows["label"])
        place = rows.schema.get_field_index("label")
        rows = rows.set_column(place, "label", rows["label"].cast(spec.problem.label_type)).select(wanted)
        yield _weighed(spec, rows, as_of) if spec.weights else rows


def _weighed(spec: Pipeline, rows: pa.Table, as_of: datetime) -> pa.Table:
    """Give each row its weight, and leave out those to train on that are not of the kept share."""
    import pyarrow as pa

    weights, con = spec.weights, duckdb_connection()
    assert weights
    factors = [f"{quoted(weights.column)}::DOUBLE"] if weights.column else ["1.0"]
    if weights.half_life:
        age = "epoch($as_of) - epoch(event_timestamp)"
        factors.append(f"pow(0.5, ({age}) / {weights.half_life.total_seconds()})")
    # By what a row is, so that the same rows are kept every time, and on every machine.
    row = f"row({quoted('event_timestamp', *spec.keys)})::VARCHAR"
    drawn = f"md5_number_lower({row}) / {2**64}.0"
    shares = {label: share for label, share in weights.keep.items() if share < 1}
    asked = {f"label{n}": label for n, label in enumerate(shares)}
    cases = " ".join(f"WHEN label = ${name} THEN {shares[label]}" for name, label in asked.items())
    share = f"CASE WHEN span NOT IN ('{TRAIN}', '{GAP}') THEN 1.0 {cases} ELSE 1.0 END"
    con.register("given", rows)
    weighed = con.execute(
        f"SELECT *, {' * '.join(factors)} / {share} AS {WEIGHT} FROM given WHERE {drawn} < {share}",
        asked | ({"as_of": as_of} if weights.half_life else {}),
    ).to_arrow_table()
    con.register("weighed", weighed)
    ((bad, first),) = con.sql(
        f"SELECT count(*), any_value({WEIGHT}) FROM weighed "
        f"WHERE {WEIGHT} IS NULL OR NOT isfinite({WEIGHT}) OR {WEIGHT} < 0"
    ).fetchall()
    if bad:
        raise BadWeights(spec.name, weights.column, bad, rows.num_rows, first)
    return weighed.cast(pa.schema([*rows.schema, pa.field(WEIGHT, pa.float64())]))


def _fed_on(
    spec: Pipeline, lake: Lake, pins: Mapping[str, int], as_of: datetime
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the versions, by pipeline, of the models whose predictions were known by ``as_of`` (UTC)."""
    found = []
    for source in spec.sources:
        if isinstance(source.origin, Predictions):
            con = lake.connect({"fed": lake.at(source.table, pins[source.table])})
            known = con.execute(
                f"SELECT DISTINCT model_version FROM fed WHERE {AVAILABLE} < $as_of ORDER BY ALL",
                {"as_of": as_of},
            ).fetchall()
            found.append((source.origin.pipeline, tuple(version for (version,) in known)))
    return tuple(found)


def nulls(spec: Pipeline, ref: DatasetRef, lake: Lake) -> dict[str, float]:
    """Return the share of rows in which an input is null, of the inputs that ever are; most first."""
    con = lake.connect({"training": ref})
    names = spec.columns.names
    ((rows, *known),) = con.sql(
        f"SELECT count(*), {', '.join(f'count({quoted(name)})' for name in names)} FROM training"
    ).fetchall()
    shares = {name: 1 - count / rows for name, count in zip(names, known, strict=True) if count < rows}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def read(spec: Pipeline, ref: DatasetRef, lake: Lake, spans: Sequence[str] = ()) -> pa.Table:
    """Return a training set in a fixed order: the rows of the ``spans`` named, or all."""
    con = lake.connect({"training": ref})
    within = f"WHERE span IN ({', '.join(map(literal, spans))})" if spans else ""
    return con.execute(
        f"FROM training {within} ORDER BY event_timestamp, {quoted(*spec.keys)}"
    ).to_arrow_table()


def learnt(spec: Pipeline, ref: DatasetRef, lake: Lake, spans: Sequence[str]) -> InLake:
    """Return the rows of ``spans``, to learn from or to see when to stop."""
    columns = (*spec.columns.names, "label", *([WEIGHT] if spec.weights else []))
    return InLake(lake, ref, columns, tuple(spans), ("event_timestamp", *spec.keys))


def _others(spec: Pipeline) -> dict[str, str]:
    """Return the columns that a training set needs beside a model's inputs, and which field names each."""
    named = {spec.weights.column: "weights.column"} if spec.weights and spec.weights.column else {}
    named |= {spec.gate.group: "gate.group"} if isinstance(spec.gate.group, str) else {}
    named |= dict.fromkeys(spec.gate.guards.segments if spec.gate.guards else (), "gate.guards.segments")
    return named | dict.fromkeys(spec.problem.naive.by if spec.problem.naive else (), "problem.naive.by")
