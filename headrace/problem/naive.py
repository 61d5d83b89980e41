"""What one says who knows nothing but the past: the least that a model must beat to be released."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.problem.base import Problem

MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Seasonal:
    """What was true in the same ``span`` of time one ``season`` ago, such as the same hour of last week.

    Of ``event_timestamp``, counted in UTC; and, where columns are named, of rows with the same values ``by``
    them. Of several truths it is the best constant, of several seasons the last that had any.
    """

    season: timedelta = timedelta(weeks=1)
    span: timedelta = timedelta(hours=1)
    by: tuple[str, ...] = ()


def guess(problem: Problem, past: pa.Table, rows: pa.Table) -> NDArray[np.float64]:
    """Return what the ``past`` alone says of ``rows``: predictions, one per row.

    Args:
        problem: The kind of question.
        past: Rows with ``label``, ``event_timestamp`` and what a seasonal guess goes ``by``.
        rows: The rows to predict; as ``past``, without a ``label``.
    """
    targets = problem.encode(past["label"])
    overall = problem.constant(targets)
    predictions = np.tile(overall, (rows.num_rows, 1))
    if problem.naive is None or not rows.num_rows:
        return problem.checked(problem.shaped(predictions))
    seasonal = problem.naive
    before, now = ([*map(tuple, _slots(seasonal, table))] for table in (past, rows))
    season = _micros(past) // (seasonal.season // MICROSECOND)
    last: dict[tuple[Any, ...], tuple[int, list[int]]] = {}
    for place, (slot, number) in enumerate(zip(before, season.tolist(), strict=True)):
        found = last.get(slot)
        if found is None or number > found[0]:
            last[slot] = (number, [place])
        elif number == found[0]:
            found[1].append(place)
    known = {slot: problem.constant(targets[places]) for slot, (_, places) in last.items()}
    for place, slot in enumerate(now):
        if slot in known:
            predictions[place] = known[slot]
    return problem.checked(problem.shaped(predictions))


def _slots(seasonal: Seasonal, rows: pa.Table) -> zip[tuple[Any, ...]]:
    within = _micros(rows) % (seasonal.season // MICROSECOND) // (seasonal.span // MICROSECOND)
    return zip(within.tolist(), *(rows[name].to_pylist() for name in seasonal.by), strict=True)


def _micros(rows: pa.Table) -> NDArray[np.int64]:
    import pyarrow as pa

    times = rows["event_timestamp"].cast(pa.timestamp("us", "UTC"), safe=False)
    return times.cast(pa.int64()).to_numpy()
