"""Parity: does the online store serve, value by value, what the point-in-time join gives?

A model learns from the join and predicts from the online store. Where the two
differ it predicts from what it was not trained on, and nothing fails.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from headrace import spine
from headrace.feature_store.errors import ChangesWithinWindow, NothingToCompare, ParityBroken
from headrace.feature_store.feast import brought
from headrace.feature_store.plan import online
from headrace.feature_store.store import (
    BATCH,
    NOBODY,
    Served,
    given_by,
    historical,
    lookup,
    on_demand,
    stored_as,
    stored_views,
    ttl,
)
from headrace.lake import Window, duckdb_connection, edge
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    from feast import FeatureStore
    from feast.feature_view_projection import FeatureViewProjection
    from feast.protos.feast.types.Value_pb2 import Value

    from headrace.lake import Lake
    from headrace.pipeline import Pipeline

SAMPLE = 200
"""Predictions looked at before a window is scored."""


class Cause(StrEnum):
    """How a feature is served wrongly; each reads on after the feature's name."""

    STALE = "from an older row"
    NEWER = "from a row not known then"
    MISSING = "not at all"
    TYPE = "as another type"
    VALUE = "with another value"


@dataclass(frozen=True)
class Mismatch:
    """In how many ``rows`` a feature is served wrongly for one cause, and one ``example``."""

    view: str
    feature: str
    cause: Cause
    rows: int
    example: str


@dataclass(frozen=True)
class Parity:
    """What a comparison of ``values`` in ``rows`` predictions found: nothing, if all were the same."""

    rows: int
    values: int
    mismatches: tuple[Mismatch, ...]


def measure(
    store: FeatureStore, spec: Pipeline, lake: Lake, window: Window, rows: int | None = SAMPLE
) -> Parity:
    """Compare what ``rows`` of the window's predictions, or all, are served with what they should be.

    Raises:
        NothingToCompare: There are no predictions to make.
    """
    asked = spine.rows(spec, lake, window, rows)
    if not asked.num_rows:
        raise NothingToCompare(spec.name, str(window))
    return compare(store, spec.feature_service, asked)


def filled_for(store: FeatureStore, spec: Pipeline, lake: Lake, as_of: datetime) -> tuple[Window, bool]:
    """Return the last window that the online store was filled for and that has predictions.

    And whether the store has gone on since: then it serves later rows to that window, as it should. Where no
    view is kept, windows up to ``as_of`` (UTC) count.

    Raises:
        NothingToCompare: None has any.
    """
    ends = [brought.reached(view) for view in stored_views(store, spec.feature_service)]
    until = edge(max((end + brought.TICK for end in ends if end), default=as_of), spec.window)
    last = spine.last(spec, lake, until)
    if last is None:
        raise NothingToCompare(spec.name, f"all windows before {until:%Y-%m-%dT%H:%MZ}")
    start = edge(last, spec.window)
    return Window(start, start + spec.window), start + spec.window < until


def check(
    store: FeatureStore, spec: Pipeline, lake: Lake, window: Window, rows: int | None = SAMPLE
) -> Parity:
    """Measure, and stop if anything differs.

    Raises:
        ParityBroken: Something differs.
        NothingToCompare: There are no predictions to make.
    """
    found = measure(store, spec, lake, window, rows)
    if found.mismatches:
        raise ParityBroken(spec, window, found)
    return found


def refuse_changing(store: FeatureStore, spec: Pipeline, lake: Lake, window: Window) -> None:
    """Refuse a view that, for a prediction of ``window``, has a row that became known later in it.

    The online store would serve that row, for it keeps each key's newest one. Views with an instant
    among their keys have a key for each: if there are no others, the predictions are not even read.

    Raises:
        ChangesWithinWindow: There is such a view.
    """
    from feast.types import UnixTimestamp

    from headrace.feature_store.feast import sources

    asked = None
    for projection in store.get_feature_service(spec.feature_service).feature_view_projections:
        view: Any = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        source = getattr(view, "batch_source", None)
        if source is None or any(column.dtype == UnixTimestamp for column in view.entity_columns):
            continue
        asked = spine.rows(spec, lake, window) if asked is None else asked
        con, keys = duckdb_connection(), given_by(store, projection)
        con.from_arrow(asked).create_view("asked")
        equal = [f"asked.{quoted(column)} = rows.{quoted(key)}" for key, column in keys.items()]
        time = f"rows.{quoted(source.timestamp_field)}"
        known = f"greatest({time}, rows.{quoted(source.created_timestamp_column or source.timestamp_field)})"
        sources.view_rows(con, store.config, source, window.start).create_view("rows")
        within = [f"{known} > asked.event_timestamp", f"{known} < '{window.end.isoformat()}'"]
        columns = dict.fromkeys([*keys.values(), "event_timestamp"])
        shown = ", ".join(f"asked.{quoted(column)}" for column in columns)
        found = con.sql(f"""
            SELECT {shown}, min({known}) AS later FROM asked JOIN rows ON {" AND ".join([*equal, *within])}
            GROUP BY ALL ORDER BY ALL
        """).to_arrow_table()
        if found.num_rows:
            first = found.slice(0, 1).to_pylist()[0]
            at, later = (f"{first.pop(name):%Y-%m-%dT%H:%M:%SZ}" for name in ("event_timestamp", "later"))
            example = ", ".join(f"{key} {value}" for key, value in first.items())
            example = f"{example} is predicted at {at}, and has another row at {later}"
            raise ChangesWithinWindow(
                spec.name, stored_as(projection), str(window), found.num_rows, asked.num_rows, example
            )


def compare(store: FeatureStore, service: str, asked: pa.Table) -> Parity:
    """Compare, for each row ``asked``, what is served now with what was known at its ``event_timestamp``.

    Values are the same if Feast stores them as the same bytes of the declared
    type: floats are compared bit by bit. Feast stores NaN as null, so the two are one.
    """
    joined = historical(store, service, asked)
    views = store.get_feature_service(service).feature_view_projections
    outputs = {field.name for view in views for field in view.features}
    given = joined.drop_columns([name for name in joined.column_names if name in outputs])
    found = [mismatch for view in views for mismatch in _compare(store, service, view, given, joined)]
    values = asked.num_rows * sum(len(view.features) for view in views)
    return Parity(asked.num_rows, values, tuple(sorted(found, key=lambda mismatch: -mismatch.rows)))


def _compare(
    store: FeatureStore, service: str, view: FeatureViewProjection, given: pa.Table, joined: pa.Table
) -> list[Mismatch]:
    from headrace.feature_store.feast.encoding import messages

    keys = given_by(store, view)
    served = _computed(store, service, view, given) or _serve(store, view, keys, joined)
    wrong: list[tuple[str, int, Value, Served]] = []
    for field in view.features:
        right = messages(joined[field.name], field.dtype.to_value_type())
        for row, (value, got) in enumerate(zip(right, served[field.name], strict=True)):
            if _bytes(value) != _bytes(got.value):
                wrong.append((field.name, row, value, got))
    if not wrong:
        return []
    times = _joined_times(store, view.name, keys, joined, sorted({row for _, row, *_ in wrong}))
    groups: dict[tuple[str, Cause], list[tuple[int, Value, Served]]] = defaultdict(list)
    for feature, row, value, got in wrong:
        groups[feature, _cause(value, got, times, row)].append((row, value, got))
    return [
        Mismatch(view.name, feature, cause, len(found), _example(joined, keys.values(), *found[0]))
        for (feature, cause), found in groups.items()
    ]


def _computed(
    store: FeatureStore, service: str, view: FeatureViewProjection, given: pa.Table
) -> dict[str, list[Served]] | None:
    """Return, per feature of an on-demand view, what is computed for each row from what it is served."""
    from headrace.feature_store.feast.encoding import messages

    if not on_demand(store, view):
        return None
    made = online(store, service, given)
    return {
        field.name: [Served(value, None) for value in messages(made[field.name], field.dtype.to_value_type())]
        for field in view.features
    }


def _serve(
    store: FeatureStore, view: FeatureViewProjection, keys: Mapping[str, str], joined: pa.Table
) -> dict[str, list[Served]]:
    """Return, per feature and in the order of the rows, what is served at each: each key is read once."""
    import pyarrow as pa
    from feast.protos.feast.types.Value_pb2 import Value

    refs = [f"{stored_as(view)}:{field.name}" for field in view.features]
    columns = [joined[column].to_pylist() for column in keys.values()]
    rows = list(zip(*columns, strict=True)) if keys else [()] * joined.num_rows
    distinct = [key for key in dict.fromkeys(rows) if None not in key]
    held: dict[tuple[str, tuple[object, ...]], Served] = {}
    for start in range(0, len(distinct), BATCH):
        batch = distinct[start : start + BATCH]
        asked = dict(zip(keys, map(list, zip(*batch, strict=True)), strict=True)) or NOBODY
        for name, found in lookup(store, refs, asked).items():
            held |= {(name, key): served for key, served in zip(batch, found, strict=True)}
    nothing, lives = Served(Value(), None), ttl(store, view)
    stamps = joined["event_timestamp"].cast(pa.timestamp("us", "UTC"), safe=False)
    instants = stamps.cast(pa.int64()).to_pylist()

    def served(name: str, key: tuple[object, ...], at: int | None) -> Served:
        found = held.get((name, key), nothing)
        expired = lives and at is not None and found.at is not None and at > found.at + lives
        return nothing if expired else found

    return {
        field.name: [served(field.name, key, at) for key, at in zip(rows, instants, strict=True)]
        for field in view.features
    }


def _joined_times(
    store: FeatureStore, name: str, keys: Mapping[str, str], joined: pa.Table, rows: Sequence[int]
) -> dict[int, int] | None:
    """Return the event time, in seconds since 1970, of the row that each of ``rows`` is joined to.

    Of one that is joined to none it is the earliest that its ttl would have
    allowed. None if the view keeps no rows but computes features when asked.
    """
    import pyarrow as pa

    from headrace.feature_store.feast import sources

    view: Any = store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    source = getattr(view, "batch_source", None)
    if source is None:
        return None
    con, columns = duckdb_connection(), [*dict.fromkeys([*keys.values(), "event_timestamp"])]
    sources.view_rows(con, store.config, source).create_view("rows")
    asked = joined.select(columns).append_column("n", pa.array(range(joined.num_rows)))
    sources.without_uuids(con.from_arrow(asked.take(rows))).create_view("asked")
    equal = [f"asked.{quoted(column)} = rows.{quoted(key)}" for key, column in keys.items()]
    time = f"rows.{quoted(source.timestamp_field)}"
    known = f"rows.{quoted(source.created_timestamp_column or source.timestamp_field)}"
    ttl = int(view.ttl.total_seconds()) if view.ttl else 0
    first = f"asked.event_timestamp - to_seconds({ttl})" if ttl else "TIMESTAMPTZ '1970-01-01'"
    valid = [f"{time} >= {first}", f"greatest({time}, {known}) <= asked.event_timestamp"]
    found = con.sql(f"""
        SELECT n, floor(epoch(coalesce(max({time}), any_value({first}))))::BIGINT
        FROM asked LEFT JOIN rows ON {" AND ".join([*equal, *valid])} GROUP BY n
    """)
    return dict(found.fetchall())


def _cause(right: Value, got: Served, joined: dict[int, int] | None, row: int) -> Cause:
    """Say why ``got`` is served where ``right`` should be, from the event times of the rows they are of."""
    kinds = _kind(right), _kind(got.value)
    if None not in kinds and kinds[0] != kinds[1]:
        return Cause.TYPE
    if got.at is None or joined is None:
        return Cause.VALUE if kinds[1] else Cause.MISSING
    if (at := got.at // 1_000_000) != joined[row]:
        return Cause.STALE if at < joined[row] else Cause.NEWER
    return Cause.VALUE if kinds[1] else Cause.MISSING


def _example(joined: pa.Table, keys: Iterable[str], row: int, right: Value, got: Served) -> str:
    asked = ", ".join(f"{key} {joined[key][row].as_py()}" for key in keys)
    at = joined["event_timestamp"][row].as_py()
    return f"for {asked} at {at:%Y-%m-%dT%H:%MZ}, {_told(got.value)} instead of {_told(right)}"


def _kind(value: Value) -> str | None:
    """Return which type ``value`` is of; None if it is null, as NaN and Feast's least timestamp are."""
    from feast.type_map import NULL_TIMESTAMP_INT_VALUE

    kind = value.WhichOneof("val")
    if kind in ("double_val", "float_val") and math.isnan(getattr(value, kind)):
        return None
    if kind == "unix_timestamp_val" and value.unix_timestamp_val == NULL_TIMESTAMP_INT_VALUE:
        return None
    return None if kind == "null_val" else kind


def _bytes(value: Value) -> bytes:
    return value.SerializeToString(deterministic=True) if _kind(value) else b""


def _told(value: Value) -> str:
    kind = _kind(value)
    return f"{getattr(value, kind)!r} ({kind.removesuffix('_val')})" if kind else "null"
