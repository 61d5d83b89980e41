"""Performance: does the champion still predict as well as when it was proven?"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from headrace.monitoring.rule import DriftRule
    from headrace.problem import Problem


@dataclass(frozen=True)
class Performance:
    """The champion's scores in a window, empty before any outcome is known, beside its skill then and now.

    ``skill`` is the share of loss saved over who knows the window's best constant and nothing
    else (see ``Problem.scores``); NaN where there is nothing to save.
    """

    scores: Mapping[str, float]
    skill: float
    expected_skill: float
    worse: bool
    reason: str


def performance(
    problem: Problem,
    targets: ArrayLike,
    predictions: ArrayLike,
    expected: Mapping[str, float],
    rule: DriftRule,
) -> Performance:
    """Compare predictions whose truth is known with what the champion's holdout promised.

    Skill is compared, not loss: in a stormy week more flights are late, and every model's loss is higher.

    Args:
        problem: What is asked.
        targets: The truth, shape ``(n,)``.
        predictions: The champion's, in the same order.
        expected: The champion's scores on its holdout.
        rule: How far skill may fall, and how many rows it takes to judge.

    Raises:
        ValueError: Shapes differ, or a value is out of its range.
    """
    then = expected.get("skill", nan)
    if not np.size(targets):
        return Performance({}, nan, then, False, "No outcome is known yet.")
    scores = problem.scores(targets, predictions)
    now, rows = scores.get("skill", nan), int(scores["rows"])
    if rows < rule.min_rows or isnan(now) or isnan(then):
        reason = f"Not enough to judge: {rows:,} outcomes are known."
        if isnan(now):
            reason = f"Not enough to judge: all {rows:,} outcomes that are known are the same."
        elif isnan(then):
            reason = "Nothing to compare with: of the rows that it was proven on, its skill is not known."
        return Performance(scores, now, then, False, reason)
    worse = now < then - rule.skill_drop
    reason = (
        f"Skill is {now:.3f} on {rows:,} rows and was {then:.3f} on the holdout: "
        f"{'worse' if worse else 'not worse'} by more than {rule.skill_drop:.3f}."
    )
    return Performance(scores, now, then, worse, reason)
