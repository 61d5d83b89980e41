"""Feast's stored bytes, computed a column at a time instead of a protobuf message at a time.

What is written is what Feast itself would write: the wire format of its
``Value`` message (protobuf.dev/programming-guides/encoding), its entity keys of
serialization version 3, and the text it sets beside a value in SQL stores. A
column whose types are not known here goes through Feast's own conversion.
"""

from __future__ import annotations

import struct
from itertools import chain
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import NULL_TIMESTAMP_INT_VALUE, python_values_to_proto_values
from feast.value_type import ValueType

from headrace.feature_store.errors import BadFeature, BadKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Key = tuple[str, ValueType, pa.Array]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Protobuf's wire types."""

INTEGERS = (ValueType.INT32, ValueType.INT64)
FLOATS = (ValueType.FLOAT, ValueType.DOUBLE)
ARROW = {
    ValueType.BYTES: pa.binary(),
    ValueType.STRING: pa.string(),
    ValueType.INT32: pa.int32(),
    ValueType.INT64: pa.int64(),
    ValueType.DOUBLE: pa.float64(),
    ValueType.FLOAT: pa.float32(),
    ValueType.BOOL: pa.bool_(),
    ValueType.UNIX_TIMESTAMP: pa.timestamp("us"),
}
"""What a column is cast to before it is encoded."""

KINDS = {form: kind for kind, form in ARROW.items()}
UNFIT = (pa.ArrowException, ValueError, TypeError, AssertionError)
"""What pyarrow and Feast say of a value that is none of its type."""

ITEMS = {
    kind: ValueType[kind.name.removesuffix("_LIST")]
    for kind in ValueType
    if kind.name.endswith("_LIST") and kind.name.removesuffix("_LIST") in {known.name for known in ARROW}
}
"""The types of lists that are known here, and of what they hold."""


def stored(name: str, kind: ValueType, column: pa.Array) -> pa.Array:
    """Return each of a feature's values as :func:`values` does, once it is sure to come back as it is.

    Raises:
        BadFeature: A value is none of its type, or Feast has none like it.
    """
    try:
        if lost := _lost(_with_instants(column, kind), kind):
            raise ValueError(lost)
        return values(column, kind)
    except UNFIT as error:
        raise BadFeature(name, kind.name, str(error)) from None


def values(column: pa.Array, kind: ValueType) -> pa.Array:
    """Return each of ``column`` as the bytes of Feast's ``Value``; a null is an empty message, as there.

    NaN is a null too, as in Feast.

    Raises:
        ArrowInvalid: A number does not fit into ``kind``.
    """
    if column.null_count == len(column) and kind is not ValueType.UNIX_TIMESTAMP:
        return pa.array([b""] * len(column), pa.binary())
    column = _with_instants(column, kind)
    if kind in ITEMS and _is_list_of(column, ITEMS[kind]):
        payload = _items(column, ITEMS[kind])
        return pc.fill_null(_delimited(_tag(kind.value, BYTES), payload), b"")
    if kind is ValueType.VALUE_LIST and (inner := _lists(column)):
        each = _delimited(_tag(1, BYTES), values(column.flatten(), inner))  # Feast's own makes null of `[]`
        return pc.fill_null(_delimited(_tag(kind.value, BYTES), _regrouped(each, column)), b"")
    if not _is_known(column.type, kind):
        return pa.array([message.SerializeToString() for message in messages(column, kind)], pa.binary())
    known = column.cast(ARROW[kind], safe=kind is not ValueType.UNIX_TIMESTAMP)  # kept are whole seconds
    if kind in (ValueType.STRING, ValueType.BYTES):
        return pc.fill_null(_delimited(_tag(kind.value, BYTES), known.cast(pa.binary())), b"")
    given, matrix, lengths = _scalars(known, kind)
    tag = np.full((len(known), 1), kind.value << 3 | _wire(kind), np.uint8)
    return _joined(np.hstack([tag, matrix]), np.where(given, lengths + 1, 0))


def texts(column: pa.Array, kind: ValueType) -> pa.Array:
    """Return what Feast's SQL stores keep beside each value, for filters: Python's ``str`` of it, or null."""
    if column.null_count == len(column) or kind not in (
        ValueType.STRING,
        ValueType.BOOL,
        *INTEGERS,
        *FLOATS,
    ):
        return pa.nulls(len(column), pa.string())
    if not _is_known(column.type, kind):
        return pa.array([extract_text_and_num(v, False)[0] for v in messages(column, kind)], pa.string())
    known = column.cast(ARROW[kind])
    if kind is ValueType.BOOL:
        return pc.if_else(known, "True", "False")
    if kind in FLOATS:
        # Python's own, a value at a time: asking DuckDB costs more than it saves up to thousands of rows.
        return pa.array([None if x is None or isnan(x) else str(x) for x in known.to_pylist()], pa.string())
    return known.cast(pa.string())


def messages(column: pa.Array | pa.ChunkedArray, kind: ValueType) -> list[Value]:
    """Return each of ``column`` as Feast's own conversion makes a ``Value`` of it: slowly, of any type.

    It is given Python's values: numpy has integers beside nulls as floats, and maps as lists.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if kind is ValueType.VALUE_LIST and _lists(column):
        return [Value.FromString(each) for each in values(column, kind).to_pylist()]
    return python_values_to_proto_values(column.to_pylist(maps_as_pydicts="strict"), kind)


def entity_keys(keys: Sequence[Key], rows: int) -> pa.Array:
    """Return the bytes by which online stores find each row: Feast's entity keys, serialization version 3.

    Args:
        keys: Name, type and values, none of them null, of each join key.
        rows: How many rows there are, also without any keys.

    Raises:
        BadKey: A value is none of its type, or an instant within a second, which would be cut.
    """
    keys = sorted(((name, kind, _with_instants(c, kind)) for name, kind, c in keys), key=lambda key: key[0])
    if not all(kind in KEYED and _is_known(column.type, kind) for _, kind, column in keys):
        return _entity_keys_as_feast_does(keys)
    columns = [(_key_of(name, kind, column), kind) for name, kind, column in keys]
    names = (name.encode() for name, _, _ in keys)
    head = struct.pack("<I", len(keys)) + b"".join(
        struct.pack("<II", ValueType.STRING.value, len(name)) + name for name in names
    )
    parts = chain.from_iterable(_key_parts(column, kind) for column, kind in columns)
    first = pa.array([head], pa.binary()).take(pa.array(np.zeros(rows, np.int32)))
    return pc.binary_join_element_wise(first, *parts, b"")


def timestamps(times: pa.Array) -> pa.Array:
    """Return each of ``times`` (microseconds, UTC) as the bytes of protobuf's ``Timestamp``."""
    micros = times.cast(pa.int64()).to_numpy()
    seconds, rest = np.divmod(micros, 1_000_000)
    return pc.binary_join_element_wise(
        _optional_varint(1, seconds), _optional_varint(2, rest * 1_000), pa.scalar(b"", pa.binary())
    )


def _key_of(name: str, kind: ValueType, column: pa.Array) -> pa.Array:
    try:
        found = column.cast(ARROW[kind])
    except pa.ArrowInvalid as error:
        raise BadKey(name, kind.name, str(error)) from None
    if kind is ValueType.UNIX_TIMESTAMP and not found.equals(pc.floor_temporal(found, unit="second")):
        raise BadKey(name, kind.name, "its times are kept to the second, and some have more")
    return found


KEYED = (ValueType.STRING, ValueType.BYTES, ValueType.UNIX_TIMESTAMP, *INTEGERS)
"""Types that Feast takes for keys."""


def _is_known(found: pa.DataType, kind: ValueType) -> bool:
    if kind is ValueType.DOUBLE:
        return pa.types.is_float64(found) or pa.types.is_float32(found)
    tests = {
        ValueType.BYTES: (pa.types.is_binary, pa.types.is_large_binary),
        ValueType.STRING: (pa.types.is_string, pa.types.is_large_string),
        ValueType.INT32: (pa.types.is_integer,),
        ValueType.INT64: (pa.types.is_integer,),
        ValueType.FLOAT: (pa.types.is_float32, pa.types.is_float64),
        ValueType.BOOL: (pa.types.is_boolean,),
        ValueType.UNIX_TIMESTAMP: (pa.types.is_timestamp,),
    }
    return any(test(found) for test in tests.get(kind, ()))


def _lost(column: pa.Array, kind: ValueType) -> str:
    """Say what Feast's types have no place for in ``column``; nothing if it comes back as it is."""
    item, found = column, column.type
    while pa.types.is_list(found) or pa.types.is_large_list(found):
        item, found = item.flatten(), found.value_type
        if item.null_count and not pa.types.is_floating(found) and not pa.types.is_list(found):
            return "a list holds a null, for which Feast has no place"  # of floats, it is NaN
    if kind in (ValueType.MAP, ValueType.MAP_LIST) and found != pa.map_(pa.string(), pa.string()):
        return f"it is {column.type}, and Feast gives back maps of text to text"
    form = ARROW.get(kind) or (pa.list_(ARROW[ITEMS[kind]]) if kind in ITEMS else None)
    if form and not _is_known(column.type, kind):
        if kind is ValueType.UNIX_TIMESTAMP:
            return f"it is {column.type}, which names no instant"
        column.cast(form)  # as the join does, and as Feast's own conversion does not: it cuts 1.5 to 1
    return ""


def _lists(column: pa.Array) -> ValueType | None:
    """Return the type of the lists that ``column`` has lists of, if they are known here."""
    items = column.flatten().type
    kind = KINDS.get(items.value_type) if pa.types.is_list(items) else None
    return ValueType[f"{kind.name}_LIST"] if kind and _is_list_of(column.flatten(), kind) else None


def _is_list_of(column: pa.Array, kind: ValueType) -> bool:
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return listed and _is_known(column.type.value_type, kind) and not column.flatten().null_count


def _with_instants(column: pa.Array, kind: ValueType) -> pa.Array:
    """Return dates as the instants at which they begin, in UTC; other values as they are."""
    if kind is ValueType.UNIX_TIMESTAMP and pa.types.is_date(column.type):
        return column.cast(ARROW[kind])
    if kind is ValueType.UNIX_TIMESTAMP_LIST and pa.types.is_date(column.type.value_type):
        return column.cast(pa.list_(ARROW[ValueType.UNIX_TIMESTAMP]))
    return column


def _entity_keys_as_feast_does(keys: Sequence[Key]) -> pa.Array:
    names = [name for name, _, _ in keys]
    columns = []
    for name, kind, column in keys:
        try:
            columns.append(messages(column, kind))
        except UNFIT as error:
            raise BadKey(name, kind.name, str(error)) from None
    found = [
        serialize_entity_key(EntityKey(join_keys=names, entity_values=row))
        for row in zip(*columns, strict=True)
    ]
    return pa.array(found, pa.binary())


def _key_parts(column: pa.Array, kind: ValueType) -> tuple[pa.Array, ...]:
    if kind in (ValueType.STRING, ValueType.BYTES):
        raw = column.cast(pa.binary())
        sizes = pc.binary_length(raw).to_numpy().astype("<u4")
        return _key_head(kind, sizes), raw
    numbers = column.to_numpy() if kind in INTEGERS else _seconds(column)
    raw = _bytes_of(numbers.astype("<i4" if kind is ValueType.INT32 else "<i8"))
    sizes = np.full(len(column), raw.shape[1], "<u4")
    return _key_head(kind, sizes), _joined(raw, sizes)


def _key_head(kind: ValueType, sizes: NDArray) -> pa.Array:
    head = np.stack([np.full(len(sizes), kind.value, "<u4"), sizes], axis=1)
    return _joined(_bytes_of(head), np.full(len(sizes), 8))


def _seconds(column: pa.Array) -> NDArray[np.int64]:
    """Floor to seconds since 1970; a null is what Feast takes for one."""
    micros = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(_given(column), micros // 1_000_000, NULL_TIMESTAMP_INT_VALUE)


def _given(column: pa.Array) -> NDArray[np.bool_]:
    return pc.is_valid(column).to_numpy(zero_copy_only=False)


def _wire(kind: ValueType) -> int:
    return {ValueType.DOUBLE: FIXED64, ValueType.FLOAT: FIXED32}.get(kind, VARINT)


def _scalars(column: pa.Array, kind: ValueType) -> tuple[NDArray[np.bool_], NDArray, NDArray]:
    """Return which values there are, their bytes left-aligned in rows, and how many bytes each takes."""
    given = _given(column)
    if kind is ValueType.UNIX_TIMESTAMP:
        return np.full(len(column), True), *_varints(_seconds(column))
    numbers = column.fill_null(False if kind is ValueType.BOOL else 0).to_numpy(zero_copy_only=False)
    if kind not in FLOATS:
        return given, *_varints(numbers)
    raw = _bytes_of(numbers.astype("<f8" if kind is ValueType.DOUBLE else "<f4"))
    return given & ~np.isnan(numbers), raw, np.full(len(column), raw.shape[1])


def _varints(numbers: NDArray) -> tuple[NDArray[np.uint8], NDArray]:
    """Return base-128 varints, left-aligned in rows, and their lengths; negatives take ten bytes."""
    rest = numbers.astype(np.int64).view(np.uint64)
    width = max(-(-int(rest.max(initial=0)).bit_length() // 7), 1)
    groups = rest[:, None] >> np.arange(0, 7 * width, 7, dtype=np.uint64)
    lengths = np.maximum((groups > 0).sum(axis=1), 1)
    more = np.arange(width) < (lengths - 1)[:, None]
    return ((groups & np.uint64(127)).astype(np.uint8) | more.astype(np.uint8) << 7), lengths


def _items(column: pa.Array, kind: ValueType) -> pa.Array:
    """Return the bytes of Feast's list messages, whose one field, number 1, repeats; null stays null."""
    items = column.flatten().cast(ARROW[kind], safe=kind is not ValueType.UNIX_TIMESTAMP)
    if kind in (ValueType.STRING, ValueType.BYTES):
        payload = _regrouped(_delimited(_tag(1, BYTES), items.cast(pa.binary())), column)
    else:
        if kind is ValueType.UNIX_TIMESTAMP:  # here Feast cuts towards zero
            micros = items.cast(pa.int64()).to_numpy()
            raw, lengths = _varints(np.sign(micros) * (np.abs(micros) // 1_000_000))
        elif kind in FLOATS:
            raw = _bytes_of(items.to_numpy().astype("<f8" if kind is ValueType.DOUBLE else "<f4"))
            lengths = np.full(len(items), raw.shape[1])
        else:
            raw, lengths = _varints(items.to_numpy(zero_copy_only=False))
        packed = _regrouped(_joined(raw, lengths), column)
        full = pc.greater(pc.binary_length(packed), 0)
        payload = pc.if_else(full, _delimited(_tag(1, BYTES), packed), packed)
    return payload


def _regrouped(items: pa.Array, lists: pa.Array) -> pa.Array:
    """Run together the items of each of ``lists``, null for null; ``items`` has no offset and no nulls."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    bounds = np.concatenate([[0], ends])
    _, offsets, data = items.buffers()
    ends = np.frombuffer(offsets, np.int32)[: len(items) + 1] if offsets else np.zeros(1, np.int32)
    offsets = pa.py_buffer(ends[bounds].astype(np.int32))
    runs = pa.Array.from_buffers(pa.binary(), len(lists), [None, offsets, data])
    return pc.if_else(pc.is_valid(lists), runs, pa.scalar(None, pa.binary()))


def _optional_varint(field: int, numbers: NDArray) -> pa.Array:
    """Return one field of each message; zero is left out, as proto3 does."""
    raw, lengths = _varints(numbers)
    tag = np.full((len(raw), 1), field << 3 | VARINT, np.uint8)
    return _joined(np.hstack([tag, raw]), np.where(numbers == 0, 0, lengths + 1))


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(number: int) -> bytes:
    raw, lengths = _varints(np.array([number]))
    return raw[0, : lengths[0]].tobytes()


def _delimited(tag: bytes, payload: pa.Array) -> pa.Array:
    """Put before each of ``payload`` the field's tag and its length; null stays null."""
    sizes = pc.binary_length(payload).dictionary_encode()
    heads = pa.array([tag + _varint(size) for size in sizes.dictionary.to_pylist()], pa.binary())
    return pc.binary_join_element_wise(heads.take(sizes.indices), payload, pa.scalar(b"", pa.binary()))


def _bytes_of(numbers: NDArray) -> NDArray[np.uint8]:
    """Return each row's numbers as a row of bytes, in the order in which they lie in memory."""
    width = numbers.itemsize * numbers[:1].size if len(numbers) else numbers.itemsize
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), width)


def _joined(matrix: NDArray[np.uint8], lengths: NDArray) -> pa.Array:
    """Return the first ``lengths[i]`` bytes of each row ``i`` as one Arrow value."""
    offsets = np.zeros(len(matrix) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    data = np.ascontiguousarray(matrix[np.arange(matrix.shape[1]) < np.asarray(lengths)[:, None]])
    return pa.Array.from_buffers(pa.binary(), len(matrix), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
