"""Contributions: what a version goes by, now and where it was proven. A column that it ignores may drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.training.trainers import trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from headrace.training import Model

SAMPLE = 1_000
"""Rows that are looked at."""
NEXT_TO_NOTHING = 0.05
"""The part of an equal share below which a column is ignored."""


@dataclass(frozen=True)
class GoneBy:
    """The share of ``column`` in what a version goes by: its mean absolute SHAP value, beside all inputs'."""

    column: str
    now: float
    before: float


def shares(model: Model, rows: pa.Table) -> dict[str, float]:
    """Return the share of each input in what a model goes by; nothing if its trainer cannot tell."""
    explains = getattr(trainer(model.trainer), "contributions", None)
    if not explains or not rows.num_rows:
        return {}
    some = np.sort(np.random.default_rng(0).permutation(rows.num_rows)[:SAMPLE])
    names, found = explains(model.native, rows.take(some))
    means = np.abs(found).mean(axis=tuple(range(found.ndim - 1)))
    return dict(zip(names, (means / max(float(means.sum()), 1e-12)).tolist(), strict=True))


def ignored(shares: Mapping[str, float]) -> set[str]:
    """Return the columns that a version does not go by, of the shares in what it goes by.

    >>> ignored({"x": 0.6, "y": 0.397, "z": 0.003})
    {'z'}
    """
    return {name for name, share in shares.items() if share < NEXT_TO_NOTHING / len(shares)}


def gone_by(now: Mapping[str, float], before: Mapping[str, float]) -> list[GoneBy]:
    """Return shares of now beside those of the rows that a version was proven on, most first."""
    each = [GoneBy(name, share, before[name]) for name, share in now.items() if name in before]
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
