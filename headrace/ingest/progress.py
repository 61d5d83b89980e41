"""How far a source has come: up to which instant nothing more is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.addresses import revealed
from headrace.lake import windows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from headrace.lake import Lake, Window
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline, Source


def complete(spec: Pipeline, as_of: datetime, lake: Lake, ledger: Ledger) -> dict[str, datetime]:
    """Return, per source, up to when (UTC) it is complete: ``as_of``, or the start of its first open window.

    One that has ended by ``as_of`` is open until it lands, with rows or without, or, if it is held as a
    whole, until somebody decides what becomes of it. Whatever reads a source
    waits for its open windows: what is built or predicted without them would
    have to be built again, or stand for ever.
    """
    return {source.name: _complete(spec, source, as_of, lake, ledger) for source in spec.sources}


def close(source: Source, empty: Sequence[Window], lake: Lake) -> None:
    """Let windows that brought nothing count as landed: rows that still come for them come late.

    A source of which nothing has ever landed has no table, and its windows stay open.
    """
    import pyarrow as pa

    table = lake.table(source.table)
    if empty and table.exists():
        nothing = pa.schema(table.open().schema().to_arrow()).empty_table()
        for window in empty:
            table.append(nothing, str(window), number=0)


_REACHED: dict[tuple[object, ...], datetime] = {}
"""Up to where this process has found a source complete; what is, stays so."""


def _complete(spec: Pipeline, source: Source, as_of: datetime, lake: Lake, ledger: Ledger) -> datetime:
    table = lake.table(source.table)
    key = table.uri, table.since(), revealed(ledger.url), spec.start, source.window
    due = windows(_REACHED.get(key, spec.start), as_of, source.window)
    landed = table.held(str(window) for window in due)
    missing = [window for window in due if str(window) not in landed]
    if missing:
        held = quarantine.entries(lake, source.table)
        decided = quarantine.decisions(ledger, held)
        settled = {entry.window for entry in held if entry.id in decided or not entry.whole}
        missing = [window for window in missing if window not in settled]
    if due and key[1]:
        _REACHED[key] = missing[0].start if missing else due[-1].end
    return missing[0].start if missing else as_of
