"""Rows from a function of your own."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.addresses import scrubbed
from headrace.lake import interruptible
from headrace.sources.errors import SourceUnreadable
from headrace.sources.rows import Part, explained, pour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import duckdb
    import pyarrow as pa

    from headrace.lake import Window


@dataclass(frozen=True)
class Call:
    """A function, given the span that is wanted, that returns Arrow tables or record batches of it."""

    function: Callable[[Window], Iterable[pa.RecordBatch | pa.Table] | pa.Table]

    def read(self, con: duckdb.DuckDBPyConnection, name: str, time: str, span: Window) -> list[Part]:
        """Fill ``con`` (in UTC) with one table of the rows whose ``time`` is in ``span`` or null.

        Rows of other times are dropped: they are asked for in their own span. No
        table, no part, where the function returns no batch.

        Raises:
            SourceUnreadable: The function fails or returns something else, or ``time`` holds no instants.
            MissingColumns: A batch has no column ``time``, or not those of the first batch.
        """
        called = getattr(self.function, "__qualname__", repr(self.function))
        with explained(name, [called]):
            columns = pour(con, name, _batches(name, called, self.function, span), {}, time, span)
        return [Part("part0", (), columns)] if columns else []


def _batches(source: str, called: str, function: Callable[[Window], Any], span: Window) -> Iterator[pa.Table]:
    """Yield what a function returns, as tables."""
    import pyarrow as pa

    try:
        with interruptible():
            returned = function(span)
            if isinstance(returned, pa.RecordBatchReader):
                yield returned.schema.empty_table()
            for batch in [returned] if isinstance(returned, pa.Table | pa.RecordBatch) else returned:
                if not isinstance(batch, pa.Table | pa.RecordBatch):
                    raise TypeError(f"expected Arrow tables or record batches, got {type(batch).__name__}")
                yield batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
    except Exception as error:  # noqa: BLE001 - somebody else's function may raise anything
        reason = f"{type(error).__name__}: {error}"
        failed = SourceUnreadable(source, [f"`{called}`"], reason, transient=True)
        failed.add_note(scrubbed("".join(traceback.format_exception(error))))  # where in it; for the log
        raise failed from None
