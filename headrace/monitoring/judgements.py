"""Judgements: what the ledger has of windows that were watched, and which are to be watched next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.instants import read
from headrace.lake import windows
from headrace.serving import log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from headrace.lake import Lake, Window
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline

KIND = "judgement"


def due(
    spec: Pipeline, lake: Lake, ledger: Ledger, since: datetime, complete: Mapping[str, datetime]
) -> list[Window]:
    """Return, in order, the windows from ``since`` (UTC) that are predicted, up to the first that is not.

    Those that were judged, and all before them, are left out. ``complete`` says of each source up to
    when it is.
    """
    if last := ledger.last(spec.name, KIND):
        since = max(since, read(last.detail["end"]))
    upto = log.predictable(spec, complete)
    missing = log.pending(spec, lake, since, upto)
    upto = min([upto, *(window.start for window in missing)])
    return [window for window in windows(since, upto, spec.window) if window.start >= since]


def of(spec: Pipeline, ledger: Ledger, window: Window) -> dict[str, Any] | None:
    """Return what was found in a window; None if it was not judged."""
    entries = ledger.entries(spec.name, KIND, str(window))
    return entries[0].detail if entries else None


def unanswered(spec: Pipeline, ledger: Ledger) -> dict[str, Any] | None:
    """Return the last judgement if it found drift and no training has begun for it: its event may be lost."""
    last = ledger.last(spec.name, KIND)
    if not last or not last.detail["drifted"] or ledger.entries(spec.name, "training", last.detail["cause"]):
        return None
    return last.detail
