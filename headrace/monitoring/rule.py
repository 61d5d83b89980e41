"""The rules that say when a window has drifted, and when a retraining is called for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class DriftRule:
    """When to call a window drifted, or the champion worse.

    One week of weather never looks like a quarter of it. So a column drifts
    when it lies farther from the reference than any of the reference's own
    windows did, and a window drifts when enough columns do.

    ``share`` is the share of columns, the prediction among them, that must
    drift; ``least_score`` is the drift score below which a column never does,
    however steady it was; windows of fewer than ``min_rows`` rows are not
    judged. Of columns that are named as having moved over the last weeks, at most a share of ``risk`` is so
    by chance.
    Performance is worse when its skill falls by more than ``skill_drop``.
    """

    share: float = 0.2
    least_score: float = 0.1
    min_rows: int = 200
    risk: float = 0.1
    skill_drop: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What calls for a retraining. Within ``per``, it is called for at most ``limit`` times, if there is one.

    ``headrace backtest`` says what each would have cost.
    """

    limit: int | None = None
    per: timedelta = timedelta(weeks=4)


@dataclass(frozen=True)
class Never(Policy):
    """Nothing does: people train when they see fit."""


@dataclass(frozen=True)
class Periodic(Policy):
    """The age of what was last learnt from, by whatever training: once it is ``every`` or more."""

    every: timedelta = timedelta(weeks=4)


@dataclass(frozen=True)
class OnShift(Policy):
    """Columns that have moved, over one, two or four windows, by more than chance explains.

    One column is enough, and what is small is seen once it lasts. Rarer while no retraining helps. If nothing
    changes, that is less than once a year.
    """


@dataclass(frozen=True)
class OnDrift(Policy):
    """Drift of whole windows, in ``windows`` of the last ``of``, and rarer while no retraining helps.

    With two of three that is less than once a year if nothing changes; with one of one, some four times.
    """

    windows: int = 2
    of: int = 3


@dataclass(frozen=True)
class OnEstimate(Policy):
    """Performance that is expected to be worse than promised, in ``windows`` of the last ``of`` windows.

    It is before the truth is known (PAPE, or DLE of numbers), and where the whole interval lies on the worse
    side of what was promised. Rarer while no retraining helps.
    """

    windows: int = 2
    of: int = 3


KINDS = (OnShift, OnDrift, OnEstimate, Periodic, Never)
"""The policies that there are."""
