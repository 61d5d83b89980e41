"""The training set: what could have been known at each prediction, beside what then happened."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.errors import (
    BadLabels,
    BrokenDeclaration,
    MissingInputs,
    NotEnoughData,
    StaleFeatures,
    UnfitInputs,
)
from headrace.feature_store import tables
from headrace.feature_store.query import among
from headrace.lake import DatasetRef, Lake, Window, edge, quoted, running, windows
from headrace.training.encoding import unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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


def labelled_spine(
    spec: Pipeline, lake: Lake, window: Window, as_of: datetime, pins: Mapping[str, int] | None = None
) -> pa.Table:
    """Return the predictions made within ``window`` whose outcome was known by ``as_of`` (UTC).

    One row each: the spine's columns and ``label``, ordered by ``event_timestamp`` and keys.
    Raw tables that ``pins`` names are read at those versions.
    """
    pinned = pins or {}
    con = lake.connect(
        {view: lake.at(name, pinned[name]) if name in pinned else name for view, name in spec.raw.items()}
    )
    keys = quoted(*spec.keys)
    with running(f"The join of spine and label of pipeline `{spec.name}`", f"pipelines/{spec.name}.py"):
        return con.execute(
            f"""
            SELECT spine.*, label.label
            FROM ({spec.spine}) spine JOIN ({spec.label}) label USING ({keys})
            WHERE {window.predicate("event_timestamp")} AND label.available_at < $as_of
            ORDER BY event_timestamp, {keys}
            """,
            {"as_of": as_of},
        ).to_arrow_table()


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
    set's own ``pins`` name both. Predictions made in the last ``spec.holdout``
    before ``as_of`` are the holdout (column ``holdout``).

    Raises:
        InvalidQuery: The spine and the label cannot be joined.
        NotEnoughData: Fewer than 100 labelled rows to train on, or held out.
        BrokenDeclaration: Neither the spine nor a feature has the column by which the gate groups rows.
        MissingInputs: Neither the spine nor a feature has a column that the model takes.
        UnfitInputs: A column that the model takes is of a type that no model takes.
        BadLabels: A label is not 0 or 1.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    span = Window(spec.start, as_of)
    pins = {**pins, **{name: lake.table(name).open().version() for name in spec.raw.values()}}
    rows = historical(labelled_spine(spec, lake, span, as_of, pins))
    held_out = pc.greater_equal(rows["event_timestamp"], pa.scalar(as_of - spec.holdout))
    for part, count in (
        ("held out", pc.sum(held_out).as_py() or 0),
        ("to train on", pc.sum(pc.invert(held_out)).as_py() or 0),
    ):
        if count < LEAST_ROWS:
            raise NotEnoughData(spec.name, part, count, LEAST_ROWS, as_of)
    group = [spec.gate.group] if isinstance(spec.gate.group, str) else []
    wanted = list(dict.fromkeys([*spec.keys, "event_timestamp", *spec.columns.names, *group, "label"]))
    if group and group[0] not in rows.column_names:
        reason = f"`gate.group` names `{group[0]}`, which neither the spine nor a feature is called"
        raise BrokenDeclaration(f"pipelines/{spec.name}.py", [reason])
    if missing := [name for name in wanted if name not in rows.column_names]:
        raise MissingInputs(missing, rows.column_names)
    if wrong := unfit(rows.schema, spec.columns):
        raise UnfitInputs(spec.name, wrong)
    must_be_binary(spec, rows["label"])
    place = rows.schema.get_field_index("label")
    rows = rows.set_column(place, "label", rows["label"].cast(pa.int32()))
    table = lake.table(f"training/{spec.name}")
    version = table.replace(rows.select(wanted).append_column("holdout", held_out))
    return replace(table.snapshot(version), pins=tuple(sorted(pins.items())))


def nulls(spec: Pipeline, ref: DatasetRef, lake: Lake) -> dict[str, float]:
    """Return the share of rows in which an input is null, of the inputs that ever are; most first."""
    con = lake.connect({"training": ref})
    names = spec.columns.names
    ((rows, *known),) = con.sql(
        f"SELECT count(*), {', '.join(f'count({quoted(name)})' for name in names)} FROM training"
    ).fetchall()
    shares = {name: 1 - count / rows for name, count in zip(names, known, strict=True) if count < rows}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def must_be_binary(spec: Pipeline, labels: pa.ChunkedArray) -> None:
    """Refuse labels other than 0 and 1, or false and true, of whatever type.

    Raises:
        BadLabels: One is null, or something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = labels.type
    number = (pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)) or pa.types.is_decimal(kind)
    if number:
        good = pc.is_in(labels.cast(pa.float64(), safe=False), pa.array([0.0, 1.0]))
        others = labels.filter(pc.invert(good))
    else:
        others = labels
    if len(others):
        raise BadLabels(spec.name, len(others), len(labels), others[0].as_py())


def read(spec: Pipeline, ref: DatasetRef, lake: Lake, *, holdout: bool | None = None) -> pa.Table:
    """Return a training set in a fixed order: the rows held out, or those to train on, or all."""
    con = lake.connect({"training": ref})
    return con.execute(
        f"""
        SELECT * FROM training WHERE $side IS NULL OR holdout = $side
        ORDER BY event_timestamp, {quoted(*spec.keys)}
        """,
        {"side": holdout},
    ).to_arrow_table()
