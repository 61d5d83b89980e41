"""Judgements: what the ledger has of windows that were watched, and which are to be watched next."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from headrace.instants import read
from headrace.lake import Window, windows
from headrace.serving import log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline

KIND, AGAIN = "judgement", "matured"
"""What was found when a window closed; and how its predictions fared by truth that came later."""
WATCHED, LEAST = 13, timedelta(days=90)
"""For how many windows, and at least how long, more truth of one is waited for."""


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


def maturing(spec: Pipeline, lake: Lake, ledger: Ledger, as_of: datetime) -> dict[Window, tuple[int, int]]:
    """Return the windows that were judged and of which more truth is known ``as_of`` (UTC) than then.

    Each with the outcomes that it was last judged by, and those that are known now.
    """
    since, known = as_of - max(WATCHED * spec.window, LEAST), dict[Window, int]()
    for entry in ledger.entries(spec.name, KIND):
        end = read(entry.detail["end"])
        if end > since and entry.detail.get("outcomes", 0) < entry.detail.get("predictions", 0):
            known[Window(end - spec.window, end)] = entry.detail["outcomes"]
    if not known:
        return {}
    for entry in ledger.entries(spec.name, AGAIN):
        end = read(entry.detail["end"])
        if (window := Window(end - spec.window, end)) in known:
            known[window] = max(known[window], entry.detail["outcomes"])
    now = log.known(spec, lake, Window(min(known).start, max(known).end), as_of)
    return {
        window: (before, now[window.start])
        for window, before in sorted(known.items())
        if now.get(window.start, 0) > before
    }


def of(spec: Pipeline, ledger: Ledger, window: Window) -> dict[str, Any] | None:
    """Return what was found in a window; None if it was not judged."""
    entries = ledger.entries(spec.name, KIND, str(window))
    return entries[0].detail if entries else None


def unanswered(spec: Pipeline, ledger: Ledger) -> dict[str, Any] | None:
    """Return the last judgement if it calls for a training and none has begun: its event may be lost."""
    last = ledger.last(spec.name, KIND)
    if not last or not calls(last.detail) or ledger.entries(spec.name, "training", last.detail["cause"]):
        return None
    return last.detail


def calls(judged: Mapping[str, Any]) -> bool:
    """Say whether what was found in a window calls for a retraining; before there was a policy, drift did."""
    return bool(judged.get("retrain", judged.get("drifted")))
