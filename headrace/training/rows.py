"""The rows that a model learns from: always in the same order, and read where they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from headrace.sql import literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from headrace.lake import DatasetRef, Lake

PART = 250_000
"""How many rows are in memory at once."""
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

    They are in the order in which they were written; files follow each other by ``event_timestamp`` (UTC).
    """

    lake: Lake
    ref: DatasetRef
    columns: Sequence[str]
    spans: Sequence[str] = ()

    @cached_property
    def count(self) -> int:  # type: ignore[override]
        """How many they are."""
        within = f"WHERE span IN ({', '.join(map(literal, self.spans))})" if self.spans else ""
        con = self.lake.connect({"learnt": self.ref})
        ((found,),) = con.sql(f"SELECT count(*) FROM learnt {within}").fetchall()
        return int(found)

    def parts(self) -> Iterator[pa.Table]:
        """Read them in order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns, spans = list(self.columns), pa.array(self.spans, pa.string())
        part: pa.Table | None = None
        for rows in self.lake.table(self.ref.table).in_order(
            self.ref.version, "event_timestamp", [*columns, *(["span"] if self.spans else [])]
        ):
            wanted = rows.filter(pc.is_in(rows["span"], spans)) if self.spans else rows
            part = pa.concat_tables([part, wanted.select(columns)] if part else [wanted.select(columns)])
            while part.num_rows > PART:
                yield part.slice(0, PART)
                part = part.slice(PART)
        if part is not None:
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
