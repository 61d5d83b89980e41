"""The types of a table's columns as Feast spells them, from which it infers the fields of a view."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa
from pyarrow import types

from headrace.feature_store.errors import NoFeastType

if TYPE_CHECKING:
    from collections.abc import Callable


def columns(table: str, schema: pa.Schema) -> list[tuple[str, str]]:
    """Return name and type of each column of ``table``, the type as Feast's ``FileSource`` reads it.

    A type of which Feast would make none that it can serve is refused, with :class:`NoFeastType`,
    as soon as Feast asks what it stands for: columns that no view takes may be of any type.
    """
    return [(field.name, _spelled(field.type) or _Untyped(table, field)) for field in schema]


SPELLED: tuple[tuple[Callable[[pa.DataType], bool], str | None], ...] = (
    (types.is_boolean, "bool"),
    (types.is_integer, None),
    (types.is_floating, None),
    (types.is_string, "string"),
    (types.is_binary, "binary"),
    (types.is_timestamp, "timestamp"),
    (types.is_date, "timestamp"),  # at midnight, UTC
)
"""Types that Feast knows, and how it spells them; None is as Arrow does."""


def _spelled(kind: pa.DataType) -> str:
    """Return how Feast spells ``kind``; empty if it has no such type, or infers one that loses values."""
    if types.is_list(kind):
        item = _spelled(kind.value_type)
        # Of lists in lists, Feast remembers no more than that.
        return f"list<item: {item}>" if item and not types.is_list(kind.value_type) else ""
    if kind == pa.map_(pa.string(), pa.string()):  # as which it reads back every map
        return str(kind)
    return next((name or str(kind) for test, name in SPELLED if test(kind)), "")


class _Untyped(str):
    """The type of a column of which Feast can infer nothing: it says so when Feast reads it."""

    __slots__ = ("error",)
    error: NoFeastType

    def __new__(cls, table: str, field: pa.Field) -> _Untyped:
        kind = super().__new__(cls, field.type)
        kind.error = NoFeastType(table, field.name, str(field.type))
        return kind

    def startswith(self, *_: object) -> NoReturn:
        raise self.error
