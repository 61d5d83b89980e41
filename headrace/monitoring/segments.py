"""Segments: for whom a version has become worse, although it may be as good as ever on the whole.

A window in which more flights are late costs every model more. So what is looked at is not what the rows of a
segment cost, but by how much more than they were expected to (see ``estimates``), beside how that was before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.gate import familywise
from headrace.monitoring.estimates import groups
from headrace.segments import segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.monitoring.estimates import Forecast
    from headrace.pipeline import Pipeline

    Floats = NDArray[np.float64]

CHANCE = 0.005
"""The share of windows in which a segment may be called worse by chance: of weeks, one in four years."""
SHUFFLES = 2_048
"""How often groups are dealt anew to before and now."""
THIN = 2
"""Groups, before and now, in fewer of which a segment tells nothing."""


@dataclass(frozen=True)
class Segment:
    """By how much more than expected a row costs where ``name`` holds, beside how much more it did before.

    ``change`` is that difference, in loss per row, on ``rows`` rows; ``p`` how likely chance alone makes any
    segment that was looked at seem as bad. ``loss`` is what a row costs there.
    """

    name: str
    rows: int
    loss: float
    change: float
    p: float


def of_window(spec: Pipeline, proven: pa.Table, came: pa.Table, ahead: Forecast) -> list[Segment]:
    """Return how segments did in ``came``, a window's rows whose truth is known, as :func:`worse` does.

    ``ahead`` is what was to be expected of them, learnt from ``proven``. Looked at are the columns that the
    gate declares, and all inputs.
    """
    problem, rows = spec.problem, together(proven, came)
    losses = problem.losses(problem.encode(rows["label"]), problem.predicted(rows))
    over = losses - np.concatenate([ahead.before, ahead.expect(came)])
    now = np.arange(rows.num_rows) >= proven.num_rows
    declared = spec.gate.guards.segments if spec.gate.guards else ()
    columns = [name for name in dict.fromkeys([*declared, *spec.columns.names]) if name in rows.column_names]
    return worse(columns, rows, losses, over, groups(spec, rows), now)


def together(one: pa.Table, other: pa.Table) -> pa.Table:
    """Return the rows of both, in their order, with the columns that both have."""
    import pyarrow as pa

    both = [name for name in one.column_names if name in other.column_names]
    first = one.select(both)
    return pa.concat_tables([first, other.select(both).cast(first.schema, safe=False)])


def worse(
    columns: Sequence[str],
    rows: pa.Table,
    losses: Floats,
    over: Floats,
    of: NDArray[Any],
    now: NDArray[np.bool_],
) -> list[Segment]:
    """Return the segments by how likely it is that chance alone makes any of them look as bad as it does.

    If nothing has changed, the groups of now could as well be some of before: how bad the worst segment
    looks when they are dealt anew is what each is held against.

    Args:
        columns: Each value of these, or quarter of their numbers, is a segment.
        rows: Those of before and those of now, n rows.
        losses: What each costs, shape ``(n,)``.
        over: By how much more that is than was expected, shape ``(n,)``.
        of: To what groups rows belong, which stand and fall together, shape ``(n,)``.
        now: Which rows are those of now, shape ``(n,)``.
    """
    _, place = np.unique(of, return_inverse=True)
    _, place = np.unique(place * 2 + now, return_inverse=True)  # a window may end within a group
    is_now = np.zeros(place.max() + 1, bool)
    is_now[place[now]] = True
    count, parts, sums, sizes = is_now.size, [], [], []
    for name, chosen in segments(rows, columns):
        size = np.bincount(place[chosen], minlength=count)
        if min((size[is_now] > 0).sum(), (size[~is_now] > 0).sum()) >= THIN:
            parts.append((name, chosen & now))
            sums.append(np.bincount(place[chosen], over[chosen], count))
            sizes.append(size)
    if not parts:
        return []
    changes, likely = chances(np.array(sums), np.array(sizes, np.float64), is_now)
    found = [
        Segment(name, int(part.sum()), float(losses[part].mean()), float(change), p)
        for (name, part), change, p in zip(parts, changes, likely, strict=True)
    ]
    return sorted(found, key=lambda one: (one.p, -one.change))


def chances(sums: Floats, sizes: Floats, is_now: NDArray[np.bool_]) -> tuple[Floats, list[float]]:
    """Return by how much the mean of each of ``m`` parts has changed, and how likely by chance that is.

    Args:
        sums: What is summed in each of ``g`` groups of rows, shape ``(m, g)``.
        sizes: Of how many rows, shape ``(m, g)``.
        is_now: Which groups are those of now, shape ``(g,)``.
    """
    dealt = np.zeros((SHUFFLES, is_now.size), bool)
    dealt[0] = is_now
    rng = np.random.default_rng(0)
    for one in dealt[1:]:
        one[rng.permutation(is_now.size)[: is_now.sum()]] = True
    changes = _changes(sums, sizes, dealt)
    scale = changes.std(axis=0)
    scaled = changes / np.where(scale > 0, scale, 1)
    return changes[0], familywise(scaled[0], scaled)


def _changes(sums: Floats, sizes: Floats, dealt: NDArray[np.bool_]) -> Floats:
    """Return the change of each part's mean, for each way in which groups are dealt; 0 without rows."""
    now = dealt.astype(np.float64)
    s, n = now @ sums.T, now @ sizes.T
    before, m = sums.sum(axis=1) - s, sizes.sum(axis=1) - n
    means = np.divide(s, n, out=np.zeros_like(s), where=n > 0)
    means_before = np.divide(before, m, out=np.zeros_like(s), where=m > 0)
    return np.where((n > 0) & (m > 0), means - means_before, 0.0)
