"""What was brought online of a view, as Feast's registry notes it: intervals, in the order they were brought.

An interval the wrong way round, from its end to its start, is ours: what was
brought between the two is to be brought again, in place of what is there. It is
settled by a later interval that covers it whole; what was noted before it counts
no more. Noted like any other interval, it is one write to any registry.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from headrace.instants import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast import FeatureStore, FeatureView

    Interval = tuple[datetime, datetime]

TICK = timedelta(microseconds=1)
"""Feast takes both ends of an interval as included: one goes on where another ends, or a tick later."""


def intervals(view: FeatureView) -> list[Interval]:
    """Return what was brought and still counts, from and to (UTC, both included), earliest first."""
    return sorted(_since_forgotten(view)[1])


def owed(view: FeatureView) -> Interval | None:
    """Return what has to be brought again, in place of what is there; None if nothing has."""
    forgotten, brought = _since_forgotten(view)
    return forgotten if forgotten and not _settled(forgotten, brought) else None


def reached(view: FeatureView) -> datetime | None:
    """Return up to when something was brought, also if it is to be brought again; None if nothing was."""
    ends = [end for _, end in [*intervals(view), *filter(None, [owed(view)])]]
    return max(ends, default=None)


def forget(store: FeatureStore, view: FeatureView) -> None:
    """Note that all that was brought of ``view`` has to be brought again; readers are served meanwhile."""
    spans = [*intervals(view), *filter(None, [owed(view)])]
    first, last = min(a for a, _ in spans), max(b for _, b in spans)
    store.registry.apply_materialization(view, store.project, last, first)


def missing(view: FeatureView, first: datetime) -> datetime:
    """Return the earliest instant, ``first`` or later, up to which not everything was brought."""
    for begin, end in intervals(view):
        if begin <= first + TICK:
            first = max(first, end)
    return first


def joined(noted: Sequence[Interval]) -> list[Interval]:
    """Return intervals that say the same as those ``noted``: one where one goes on where another ends."""
    forgotten, brought = _read(noted)
    if forgotten and not _settled(forgotten, brought):
        return list(noted)
    whole: list[Interval] = []
    for begin, end in sorted(brought):
        if whole and begin <= whole[-1][1] + TICK:
            whole[-1] = whole[-1][0], max(end, whole[-1][1])
        else:
            whole.append((begin, end))
    return whole


def _since_forgotten(view: FeatureView) -> tuple[Interval | None, list[Interval]]:
    return _read([(plain(begin), plain(end)) for begin, end in view.materialization_intervals])


def _settled(forgotten: Interval, brought: Sequence[Interval]) -> bool:
    return any(begin <= forgotten[0] and forgotten[1] <= end for begin, end in brought)


def _read(noted: Sequence[Interval]) -> tuple[Interval | None, list[Interval]]:
    forgotten, brought = None, list[tuple[datetime, datetime]]()
    for begin, end in noted:
        if begin > end:
            forgotten, brought = (end, begin), []
        else:
            brought.append((begin, end))
    return forgotten, brought
