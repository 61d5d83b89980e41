"""Performance: does the champion still predict as well as when it was proven?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.evaluation import Scores, evaluate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headrace.monitoring.rule import DriftRule


@dataclass(frozen=True)
class Performance:
    """The champion's scores in a window (``None`` before any outcome is known) beside those on its holdout.

    ``skill`` is the share of log-loss saved over one who knows the window's
    base rate and nothing else (see ``skill``).
    """

    scores: Scores | None
    expected: Scores
    skill: float
    expected_skill: float
    worse: bool
    reason: str


def performance(
    labels: ArrayLike, probabilities: ArrayLike, expected: Scores, rule: DriftRule
) -> Performance:
    """Compare predictions whose truth is known with what the champion's holdout promised.

    Skill is compared, not log-loss: in a stormy week more flights are late,
    and every model's log-loss is higher.

    Args:
        labels: True classes, shape ``(n,)``, each 0 or 1.
        probabilities: The champion's, shape ``(n,)``, inside (0, 1), in the same order.
        expected: The champion's scores on its holdout.
        rule: How far skill may fall, and how many rows it takes to judge.

    Raises:
        ValueError: Shapes differ, or a value is out of its range.
    """
    then = skill(expected)
    if not np.size(labels):
        return Performance(None, expected, float("nan"), then, False, "No outcome is known yet.")
    scores = evaluate(labels, probabilities)
    now = skill(scores)
    if scores.rows < rule.min_rows or np.isnan([now, then]).any():
        reason = f"Not enough to judge: {scores.positives:,} of {scores.rows:,} labels are 1."
        return Performance(scores, expected, now, then, False, reason)
    worse = now < then - rule.skill_drop
    reason = (
        f"Skill is {now:.3f} on {scores.rows:,} rows and was {then:.3f} on the holdout: "
        f"{'worse' if worse else 'not worse'} by more than {rule.skill_drop:.3f}."
    )
    return Performance(scores, expected, now, then, worse, reason)


def skill(scores: Scores) -> float:
    """Return the share of log-loss saved over always predicting the base rate of the same rows.

    1 is perfect, 0 is no better than the base rate; NaN where one class is missing.

    Source:
        McFadden (1974), "Conditional logit analysis of qualitative choice behavior".

    >>> round(skill(Scores(auc=None, log_loss=0.52, brier=0.17, rows=1000, positives=250)), 3)
    0.075
    """
    rate = scores.positives / scores.rows
    if rate in (0, 1):
        return float("nan")
    return float(1 + scores.log_loss / (rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))
