"""Reading the online store: a feature service is made ready once, and then asked as often as one likes.

Which views there are, their keys, types and ages is settled beforehand: what is left is to look the rows
up, all views at once, and to read their bytes. Batches and single requests are served alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from headrace.feature_store.errors import BadFeature, MissingKeys, NotComputed
from headrace.feature_store.store import (
    BATCH,
    address,
    arrow,
    beside,
    given_by,
    given_rows,
    lookup,
    on_demand,
    python,
    stored_as,
    ttl,
)
from headrace.outages import outages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from feast import FeatureStore, OnDemandFeatureView
    from feast.feature_view_projection import FeatureViewProjection

    from headrace.feature_store.feast.readers import Reader, Row


REMEMBERED = 20_000
"""Results that are remembered of an on-demand view."""


def online(store: FeatureStore, service: str, spine: pa.Table) -> pa.Table:
    """Return ``spine`` with the features of ``service`` as the online store holds them.

    As :func:`headrace.feature_store.store.historical`, same columns and types: once the features' windows
    were materialised, the values are the same too. What is older than its view's
    ttl at a row's ``event_timestamp`` (UTC) is null there; without that column,
    whatever is there is served. A key with a null in it has no features.
    """
    import pyarrow as pa

    wanted = store.get_feature_service(service)
    given = given_rows(store, spine, wanted)
    plan = Plan(store, service, {field.name: field.type for field in given.schema})
    instants = None
    if "event_timestamp" in given.column_names:
        micros = given["event_timestamp"].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
        instants = micros.to_pylist()
    parts = []
    for start in range(0, max(given.num_rows, 1), BATCH):
        rows = given.slice(start, BATCH).select(plan.inputs).to_pylist()
        if not plan.inputs:
            rows = [{}] * len(given.slice(start, BATCH))
        served = plan.read(rows, instants and instants[start : start + BATCH])
        parts.append(pa.table({name: _array(name, plan, values) for name, values in served.columns.items()}))
    plan.close()
    return beside(given, pa.concat_tables(parts), wanted)


def _array(name: str, plan: Plan, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, plan.outputs[name])
    except (pa.ArrowException, TypeError) as error:
        raise BadFeature(name, str(plan.outputs[name]), str(error)) from None


@dataclass(frozen=True)
class Served:
    """Features of some rows, a list for each, and, for each row, those that there was no row to serve of."""

    columns: dict[str, list[Any]]
    missing: list[tuple[str, ...]]


@dataclass(frozen=True)
class _Stored:
    """A view that keeps rows: which columns its keys are in, and, of each feature, its name as it is served,
    as it is stored, and what reads it. ``needed`` are the features that are missing without a row of it.
    """

    keys: tuple[str, ...]
    key: Callable[[Sequence[Any]], bytes]
    features: tuple[tuple[str, str, Callable[[bytes], Any]], ...]
    ttl: int
    needed: tuple[str, ...]


@dataclass(frozen=True)
class _Computed:
    """A view that computes its features when it is asked, of what is given and of what others keep."""

    view: OnDemandFeatureView
    given: tuple[str, ...]
    taken: tuple[tuple[str, pa.DataType], ...]
    features: tuple[str, ...]
    remembers: bool
    known: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)


class Plan:
    """A compiled feature service, with a connection of its own to the online store; for one thread."""

    def __init__(self, store: FeatureStore, service: str, types: Mapping[str, pa.DataType]) -> None:
        """Compile ``service``, to be given rows with columns of ``types``.

        Raises:
            MissingKeys: The service needs one that is not among them.
        """
        wanted = store.get_feature_service(service)
        views = wanted.feature_view_projections
        self.inputs = tuple(sorted({column for view in views for column in given_by(store, view).values()}))
        if missing := [name for name in self.inputs if name not in types]:
            raise MissingKeys(service, missing, list(types))
        self.outputs = {field.name: arrow(field.dtype) for view in views for field in view.features}
        self._types, self._address = types, address(store)
        kept = [(view, "", _names(view)) for view in views if not on_demand(store, view)]
        self._computed = []
        for view in views:
            if found := on_demand(store, view):
                sources = list(found.source_feature_view_projections.values())
                given = tuple(given_by(store, view).values())
                kinds = [types[name] for name in given]
                kinds += [arrow(field.dtype) for source in sources for field in source.features]
                kept += [(source, f"{source.name}__", _names(view)) for source in sources]
                self._computed.append(
                    _Computed(
                        found,
                        given,
                        tuple((f"{s.name}__{f.name}", arrow(f.dtype)) for s in sources for f in s.features),
                        _names(view),
                        all(map(_is_plain, kinds)),
                    )
                )
        self._views = [_stored(store, view, prefix, needed) for view, prefix, needed in kept]
        self._reader = _reader(store, [view for view, _, _ in kept])
        self.waits = self._reader.waits
        """Whether the online store is somewhere else, so that reading it takes a while, or for ever."""

    def read(self, rows: Sequence[Mapping[str, Any]], instants: Sequence[int | None] | None) -> Served:
        """Return the features of ``rows``, as old as they may be at ``instants`` (microseconds since 1970).

        Without an instant, whatever is there is served. What has a null among its keys has no features.

        Raises:
            ServerUnreachable: The online store is gone.
            BadKey: A key is no value of its type.
        """
        keyed = [_keys(view, rows) for view in self._views]
        with outages("Feast's online store", self._address):
            found = self._reader.read([list(dict.fromkeys(filter(None, keys))) for keys in keyed])
        columns: dict[str, list[Any]] = {}
        missing: list[tuple[str, ...]] = [()] * len(rows)
        at = instants or [None] * len(rows)
        for view, keys, there in zip(self._views, keyed, found, strict=True):
            lists: list[list[Any]] = [[] for _ in view.features]
            for place, key in enumerate(keys):
                row, now = there.get(key) if key else None, at[place]
                if row is None or (view.ttl and now is not None and now > row[0] + view.ttl):
                    missing[place] += view.needed
                    for of in lists:
                        of.append(None)
                    continue
                cells = row[1]
                for of, (_, name, read) in zip(lists, view.features, strict=True):
                    cell = cells.get(name)
                    of.append(read(cell) if cell else None)
            columns.update(zip((name for name, _, _ in view.features), lists, strict=True))
        for computed in self._computed:
            columns |= self._compute(computed, rows, columns)
            for name, _ in computed.taken:
                del columns[name]
        return Served({name: columns[name] for name in self.outputs}, missing)

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def _compute(
        self, computed: _Computed, rows: Sequence[Mapping[str, Any]], served: Mapping[str, list[Any]]
    ) -> dict[str, list[Any]]:
        """Compute features; what was computed of the same instants, texts and integers is remembered.

        A view that computes another thing each time could not be served as it was trained on.
        """
        asked = [tuple(row[name] for name in computed.given) for row in rows]
        if computed.taken:
            taken = zip(*(served[name] for name, _ in computed.taken), strict=True)
            asked = [given + more for given, more in zip(asked, taken, strict=True)]
        if not computed.remembers:
            return self._computed_of(computed, asked)
        known = computed.known
        if len(known) > REMEMBERED:
            known.clear()
        new = [one for one in dict.fromkeys(asked) if one not in known]
        if new:
            made = self._computed_of(computed, new)
            known.update(zip(new, zip(*made.values(), strict=True), strict=True))
        found = [known[one] for one in asked]
        return {name: [values[n] for values in found] for n, name in enumerate(computed.features)}

    def _computed_of(self, computed: _Computed, asked: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
        import pyarrow as pa

        kinds = {name: self._types[name] for name in computed.given} | dict(computed.taken)
        columns = zip(*asked, strict=True) if asked else [[] for _ in kinds]
        given = {
            name: pa.array(values, kind) for (name, kind), values in zip(kinds.items(), columns, strict=True)
        }
        try:
            made = _transformed(computed.view, pa.table(given))
            found = {name: pa.array(made[name], from_pandas=True) for name in computed.features}
            return {name: column.cast(self.outputs[name]).to_pylist() for name, column in found.items()}
        except Exception as error:  # it is somebody's own code
            raise NotComputed(computed.view.name, f"{type(error).__name__}: {error}") from error


def _is_plain(kind: pa.DataType) -> bool:
    """Say whether values of a type are equal only if they are the same: unlike 0.0 and -0.0."""
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_timestamp(kind))


def _transformed(view: OnDemandFeatureView, rows: pa.Table) -> Any:
    """Return what Feast's ``transform_arrow`` does, by name; of pandas and Python without the detours."""
    from feast.transformation.pandas_transformation import PandasTransformation
    from feast.transformation.python_transformation import PythonTransformation

    for name in rows.column_names:  # functions may use the features of other views without the view's name
        short = name.partition("__")[2]
        if short and short not in rows.column_names:
            rows = rows.append_column(short, rows[name])
    made, transformation = None, view.feature_transformation
    if isinstance(transformation, PandasTransformation):
        made = transformation.udf(frame(rows))
    elif isinstance(transformation, PythonTransformation) and not view.singleton:
        made = transformation.udf(rows.to_pydict())
    if made is None or any(field.name not in made for field in view.features):
        return view.transform_arrow(rows)
    return made


def frame(rows: pa.Table) -> Any:
    """Return what ``to_pandas`` does, but sooner for a few rows of plain columns."""
    import pandas as pd
    from pyarrow import types

    columns = {}
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        kind = column.type
        if types.is_timestamp(kind) and kind.tz == "UTC":
            columns[name] = pd.DatetimeIndex(column.to_numpy(), tz="UTC")
        elif types.is_integer(kind) or types.is_floating(kind) or types.is_string(kind):
            columns[name] = column.to_numpy()
        else:
            return rows.to_pandas()
    return pd.DataFrame(columns)


def _keys(view: _Stored, rows: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
    made = []
    for row in rows:
        values = [row[column] for column in view.keys]
        made.append(None if None in values else view.key(values))
    return made


def _names(view: FeatureViewProjection) -> tuple[str, ...]:
    return tuple(field.name for field in view.features)


def _stored(
    store: FeatureStore, view: FeatureViewProjection, prefix: str, needed: tuple[str, ...]
) -> _Stored:
    from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
    from feast.value_type import ValueType

    from headrace.feature_store.feast.readers import entity_key

    declared: Any = store.registry.get_any_feature_view(view.name, store.project, allow_cache=True)
    kinds = {column.name: column.dtype.to_value_type() for column in declared.entity_columns}
    given = given_by(store, view)
    make = entity_key(tuple(given), kinds)
    if not given:  # the only row of a view without entities
        alone = entity_key((DUMMY_ENTITY_ID,), {DUMMY_ENTITY_ID: ValueType.STRING})((DUMMY_ENTITY_VAL,))
        make = lambda _: alone  # noqa: E731
    features = ((f"{prefix}{field.name}", field.name, _read(field.dtype)) for field in view.features)
    return _Stored(tuple(given.values()), make, tuple(features), ttl(store, view), needed)


def _read(dtype: Any) -> Callable[[bytes], Any]:
    """Return what reads a feature's stored values: what is of another type, Feast's own reads."""
    from feast.protos.feast.types.Value_pb2 import Value

    from headrace.feature_store.feast.readers import DECODERS

    def slowly(cell: bytes) -> Any:
        return python(Value.FromString(cell))

    if (known := DECODERS.get(dtype.to_value_type())) is None:
        return slowly

    def quickly(cell: bytes) -> Any:
        value = known(cell)
        return slowly(cell) if value is cell else value

    return quickly


def _reader(store: FeatureStore, views: Sequence[FeatureViewProjection]) -> Reader:
    from headrace.feature_store.feast.readers import reader

    declared: list[Any] = [
        store.registry.get_any_feature_view(view.name, store.project, allow_cache=True) for view in views
    ]
    pinned = any(view.version_tag is not None for view in views)
    features = [[field.name for field in view.features] for view in views]
    online = store._get_provider().online_store
    fast = None if pinned else reader(store.config, online, declared, features)
    return fast or _Client(store, views)


@dataclass(frozen=True)
class _Client:
    """Feast's own client, for stores that nothing here reads."""

    store: FeatureStore
    views: Sequence[FeatureViewProjection]
    waits: ClassVar[bool] = True

    def read(self, asked: Sequence[Sequence[bytes]]) -> list[dict[bytes, Row]]:
        """Ask for each view in turn."""
        from feast.infra.key_encoding_utils import deserialize_entity_key

        found: list[dict[bytes, Row]] = []
        for view, keys in zip(self.views, asked, strict=True):
            rows: dict[bytes, Row] = {}
            found.append(rows)
            if not keys:
                continue
            columns: dict[str, list[Any]] = {}
            for key in keys:
                known = deserialize_entity_key(key, 3)
                for name, value in zip(known.join_keys, known.entity_values, strict=True):
                    columns.setdefault(name, []).append(python(value))
            refs = [f"{stored_as(view)}:{field.name}" for field in view.features]
            for name, served in lookup(self.store, refs, columns).items():
                for key, one in zip(keys, served, strict=True):
                    if one.at is not None:
                        row = rows.setdefault(key, (one.at, {}))
                        row[1][name] = one.value.SerializeToString()
        return found

    def close(self) -> None:
        """Feast closes it with the process."""
