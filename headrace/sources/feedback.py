"""The truth, as whoever asked for predictions told it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from headrace.sources.call import Call
from headrace.sources.predictions import log_of
from headrace.sql import quoted

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.lake import Lake, Window


def served_by(pipeline: str) -> str:
    """Return the name of the table of what a pipeline's champions answered to requests."""
    return f"served/{pipeline}"


def shadow_of(pipeline: str) -> str:
    """Return the name of the table of what shadows would have answered."""
    return f"shadow/{pipeline}"


def feedback_of(pipeline: str) -> str:
    """Return the name of the table of the truth that was told of those answers."""
    return f"feedback/{pipeline}"


@dataclass(frozen=True)
class Feedback:
    """What was told of the predictions of ``pipeline``, with some ``columns`` of them, such as its keys.

    Be they answers to requests or made in batches.

    Beside them come ``prediction_id``, ``label`` and ``told_at`` (UTC), which is the ``time`` to declare.
    What is told may come half a minute later, or when a machine is up again: declare how ``late``.
    """

    pipeline: str
    columns: tuple[str, ...]

    def of(self, lake: Lake) -> Call:
        """Return where it is read from."""
        return Call(partial(_within, self, lake))


def _within(origin: Feedback, lake: Lake, span: Window) -> list[pa.Table]:
    """Return what was told within ``span``; of several truths of one answer the last."""
    told, logs = feedback_of(origin.pipeline), (served_by(origin.pipeline), log_of(origin.pipeline))
    made = {f"made{n}": name for n, name in enumerate(logs) if lake.table(name).exists()}
    if not (made and lake.table(told).exists()):
        return []
    con, columns = lake.connect({**made, "told": told}), quoted(*origin.columns)
    # What was asked may have columns that a batch has not; and batches of an earlier release have no ids.
    asked = {*origin.columns, "prediction_id"}
    known = [n for n, of in made.items() if of == logs[0] or asked <= {*con.view(n).columns}]
    if not known:
        return []
    every = " UNION ALL ".join(f"SELECT {columns}, prediction_id FROM {view}" for view in known)
    found = con.sql(
        f"SELECT {columns}, prediction_id, told.label, told.told_at "
        f"FROM told JOIN ({every}) USING (prediction_id) WHERE {span.predicate('told.told_at')} "
        "QUALIFY row_number() OVER (PARTITION BY prediction_id ORDER BY told.told_at DESC) = 1"
    )
    return [found.to_arrow_table()]
