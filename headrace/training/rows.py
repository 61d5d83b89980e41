"""The rows that a model learns from: always in the same order, and read where they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from headrace.sql import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from headrace.lake import DatasetRef, Lake

PART = 250_000
"""How many rows are in memory at once."""
MEMORY = "1GB"
"""What sorting may take of it."""
WEIGHT = "row_weight"
"""The column, if there is one, that says how much each row counts."""


class Rows(ABC):
    """A model's inputs and ``label``, and ``row_weight`` if rows count differently; it travels to workers."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many they are."""

    @abstractmethod
    def parts(self) -> Iterator[pa.Table]:
        """Read them in order, in parts of ``PART`` rows that do not depend on how they are stored."""

    def whole(self) -> pa.Table:
        """Read all of them into memory."""
        import pyarrow as pa

        return pa.concat_tables(self.parts())

    def share(self, place: int, of: int) -> Rows:
        """Return one of as many equal shares, give or take a row, of rows that follow each other."""
        cuts = [self.count * n // of for n in (place, place + 1)]
        return self if of == 1 else _Slice(self, *cuts)


@dataclass(frozen=True)
class InMemory(Rows):
    """Rows that are at hand."""

    table: pa.Table

    @property
    def count(self) -> int:
        """How many they are."""
        return self.table.num_rows

    def parts(self) -> Iterator[pa.Table]:
        """Read them in order."""
        for start in range(0, max(self.count, 1), PART):
            yield self.table.slice(start, PART)


@dataclass(frozen=True)
class InLake(Rows):
    """Some ``columns`` of those rows of a snapshot that are of one of the ``spans``, or of all its rows.

    They come in the order of the columns ``order``: Delta keeps that of no file.
    """

    lake: Lake
    ref: DatasetRef
    columns: Sequence[str]
    spans: Sequence[str] = ()
    order: Sequence[str] = ("event_timestamp",)

    @cached_property
    def count(self) -> int:  # type: ignore[override]
        """How many they are."""
        con = self.lake.connect({"learnt": self.ref})
        ((found,),) = con.sql(f"SELECT count(*) FROM learnt {self._within}").fetchall()
        return int(found)

    @property
    def _within(self) -> str:
        return f"WHERE span IN ({', '.join(map(literal, self.spans))})" if self.spans else ""

    def parts(self) -> Iterator[pa.Table]:
        """Read them in order."""
        import pyarrow as pa

        con = self.lake.connect({"learnt": self.ref})
        con.execute(f"SET memory_limit = '{MEMORY}'")  # what it sorts beyond that is spilled
        query = f"SELECT {quoted(*self.columns)} FROM learnt {self._within} ORDER BY {quoted(*self.order)}"
        read = con.sql(query).to_arrow_reader(PART)
        part = read.schema.empty_table()
        for batch in read:
            part = pa.concat_tables([part, pa.Table.from_batches([batch])])
            while part.num_rows > PART:
                yield part.slice(0, PART)
                part = part.slice(PART)
        yield part


@dataclass(frozen=True)
class _Slice(Rows):
    """Those ``rows`` from ``start`` to before ``end``."""

    rows: Rows
    start: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.start

    def parts(self) -> Iterator[pa.Table]:
        at = 0
        for part in self.rows.parts():
            start, end = max(self.start - at, 0), min(self.end - at, part.num_rows)
            if start < end:
                yield part.slice(start, end - start)
            at += part.num_rows
            if at >= self.end:
                return
