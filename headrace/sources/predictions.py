"""Rows that another pipeline predicts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from headrace.lake import AVAILABLE
from headrace.sources.call import Call
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from headrace.lake import Lake, Window

OUT_OF_SAMPLE = 0
"""The version of predictions that were made, of what was before the first release, by no release."""


def log_of(pipeline: str) -> str:
    """Return the name of the table that a pipeline's predictions are in."""
    return f"predictions/{pipeline}"


def history_of(pipeline: str) -> str:
    """Return the name of the table of what would have been predicted before there was a release."""
    return f"out_of_sample/{pipeline}"


def told(predictors: Iterable[tuple[str, Iterable[int]]]) -> str:
    """Say which versions of which pipelines predicted.

    >>> told([("flights", (0, 1, 2))])
    'flights out of sample, 1, 2'
    """
    return "; ".join(
        f"{name} {', '.join(str(version) if version else 'out of sample' for version in versions)}"
        for name, versions in predictors
    )


@dataclass(frozen=True)
class Predictions:
    """What ``pipeline`` predicts, with some ``columns`` of its prediction log.

    Beside them come ``model_version`` and ``predicted_at`` (UTC), which is the ``time`` to declare: the
    instant at which the prediction could be had, no earlier than what the model had learnt by. Before the
    pipeline's first release they are made out of sample, of ``model_version`` 0: each by the released
    candidate, fitted on nothing but what was known before. A window is complete once it is predicted.
    """

    pipeline: str
    columns: tuple[str, ...]

    def of(self, lake: Lake) -> Call:
        """Return where they are read from."""
        return Call(partial(_within, self, lake))


def _within(origin: Predictions, lake: Lake, span: Window) -> list[pa.Table]:
    """Return the predictions that could be had from some instant of ``span`` on."""
    found = []
    for name in (history_of(origin.pipeline), log_of(origin.pipeline)):
        if not lake.table(name).exists():
            continue
        con = lake.connect({"made": name})
        since = AVAILABLE if AVAILABLE in con.view("made").columns else "event_timestamp"  # of earlier logs
        at = f"greatest(event_timestamp, {since})"
        found.append(
            con.sql(
                f"SELECT {quoted(*origin.columns)}, {at} AS predicted_at, model_version FROM made "
                f"WHERE {span.predicate(at)}"
            ).to_arrow_table()
        )
    return found
