"""Contributions: what a version goes by, now and where it was proven. A column that it ignores may drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.training.trainers import trainer

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.training import Model

SAMPLE = 1_000
"""Rows, of either side, that are looked at."""


@dataclass(frozen=True)
class GoneBy:
    """The share of ``column`` in what a version goes by: its mean absolute SHAP value, beside all inputs'."""

    column: str
    now: float
    before: float


def gone_by(model: Model, proven: pa.Table, now: pa.Table) -> list[GoneBy]:
    """Return what a model goes by in the rows of now, most first; nothing if its trainer cannot tell.

    ``proven`` are rows that it was proven on, to compare with.
    """
    explains = getattr(trainer(model.trainer), "contributions", None)
    if not explains or not min(proven.num_rows, now.num_rows):
        return []
    shares: list[list[float]] = []
    for rows in (now, proven):
        some = np.sort(np.random.default_rng(0).permutation(rows.num_rows)[:SAMPLE])
        names, found = explains(model.native, rows.take(some))
        means = np.abs(found).mean(axis=tuple(range(found.ndim - 1)))
        shares.append((means / max(float(means.sum()), 1e-12)).tolist())
    each = [GoneBy(*one) for one in zip(names, *shares, strict=True)]
    return sorted(each, key=lambda one: -one.now)


def ndcg(found: list[GoneBy]) -> float:
    """Return how far the order of what a model goes by is what it was: 1 is the very same.

    Source:
        Järvelin and Kekäläinen (2002), "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4).

    >>> ndcg([GoneBy("x", 0.8, 0.7), GoneBy("y", 0.2, 0.3)])
    1.0
    >>> round(ndcg([GoneBy("y", 0.8, 0.3), GoneBy("x", 0.2, 0.7)]), 3)
    0.834
    """
    discount = 1 / np.log2(np.arange(len(found)) + 2)
    before = np.array([one.before for one in found], np.float64)
    return float(before @ discount) / max(float(np.sort(before)[::-1] @ discount), 1e-12)
