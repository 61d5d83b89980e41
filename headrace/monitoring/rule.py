"""The rule that says when a window has drifted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DriftRule:
    """When to call a window drifted, and when to retrain because of that.

    One week of weather never looks like a quarter of it. So a column drifts
    when it lies farther from the reference than any of the reference's own
    windows did, and a window drifts when enough columns do.

    ``share`` is the share of columns, the prediction among them, that must
    drift; ``least_score`` is the drift score below which a column never does,
    however steady it was; windows of fewer than ``min_rows`` rows are not
    judged. A retraining is called for when ``windows`` of the last ``of`` windows have drifted: with two of
    three, less than once a year if nothing changes; with one of one, some four times.
    Performance is worse when its skill falls by more than ``skill_drop``.
    """

    share: float = 0.2
    least_score: float = 0.1
    min_rows: int = 200
    windows: int = 2
    of: int = 3
    skill_drop: float = 0.1
