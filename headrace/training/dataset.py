"""The training set: what could have been known at each prediction, beside what then happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace import spine
from headrace.errors import BrokenDeclaration
from headrace.feature_store import tables
from headrace.feature_store.errors import StaleFeatures
from headrace.lake import AVAILABLE, DatasetRef, Lake, Window, edge, windows
from headrace.sources import Predictions
from headrace.spine import HOLDOUT, SELECTION, TRAIN
from headrace.sql import among, literal, quoted
from headrace.training.encoding import unfit
from headrace.training.errors import MissingInputs, NotEnoughData, NothingToLearn, UnfitInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa

    from headrace.pipeline import Pipeline

LEAST_ROWS = 100


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

    With a single candidate there is nothing to choose: the selection is empty.
    """
    held_out = as_of - spec.holdout
    return held_out - spec.holdout if len(spec.candidates) > 1 else held_out, held_out


def build(
    spec: Pipeline,
    lake: Lake,
    as_of: datetime,
    historical: Callable[[pa.Table], pa.Table],
    pins: Mapping[str, int],
) -> DatasetRef:
    """Write the training set as of ``as_of`` (UTC) and pin it.

    ``historical`` joins features to a spine, point in time, from the feature
    tables at the versions ``pins``; raw tables are read as they are now, and the
    set's own ``pins`` name both. Column ``span`` tells what a row is for. Predictions made in the
    last ``spec.holdout`` before ``as_of`` are the holdout, by which the gate judges. Those of as long
    before it are the selection, by which the best of several candidates is chosen. What comes before is
    to train on if its truth was known when the selection began; else it is of the gap, which
    only the chosen candidate learns from. No row is of any use before its truth was known.

    Raises:
        InvalidQuery: The spine and the label cannot be joined.
        NotEnoughData: Fewer than 100 labelled rows to train on, to choose by, or held out.
        NothingToLearn: All labels to train on are the same.
        BrokenDeclaration: Neither the spine nor a feature has a column that the gate groups rows by, or
            that a seasonal guess goes by.
        MissingInputs: Neither the spine nor a feature has a column that the model takes.
        UnfitInputs: A column that the model takes is of a type that no model takes.
        BadLabels: A label is not what the problem asks for.
    """
    import pyarrow.compute as pc

    whole, (chosen, held_out) = Window(spec.start, as_of), cuts(spec, as_of)
    pins = {**pins, **{name: lake.table(name).open().version() for name in spec.raw.values()}}
    rows = historical(spine.labelled(spec, lake, whole, as_of, pins, cuts=(chosen, held_out)))
    counts = Counter(rows["span"].to_pylist())
    needed = {HOLDOUT: "held out", SELECTION: "to choose a candidate by", TRAIN: "to train on"}
    for part, told in needed.items():
        if counts[part] < LEAST_ROWS and (part != SELECTION or chosen < held_out):
            raise NotEnoughData(spec.name, told, counts[part], LEAST_ROWS, as_of)
    others = _others(spec)
    wanted = list(
        dict.fromkeys([*spec.keys, "event_timestamp", *spec.columns.names, *others, "label", "span"])
    )
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
    rows = rows.set_column(place, "label", rows["label"].cast(spec.problem.label_type))
    learnt = rows["label"].filter(pc.equal(rows["span"], TRAIN))
    if len(pc.unique(learnt)) == 1:
        raise NothingToLearn(spec.name, len(learnt), learnt[0].as_py(), as_of)
    table = lake.table(f"training/{spec.name}")
    version = table.replace(rows.select(wanted))
    snapshot = table.snapshot(version)
    return replace(snapshot, pins=tuple(sorted(pins.items())), fed_on=_fed_on(spec, lake, pins, as_of))


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


def _others(spec: Pipeline) -> dict[str, str]:
    """Return the columns that a training set needs beside a model's inputs, and which field names each."""
    named = {spec.gate.group: "gate.group"} if isinstance(spec.gate.group, str) else {}
    return named | dict.fromkeys(spec.problem.naive.by if spec.problem.naive else (), "problem.naive.by")
