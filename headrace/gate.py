"""The gate: does the challenger beat the champion, or does it only look so?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Gate:
    """How sure one must be before the champion is replaced.

    ``min_gain`` is the least saving of log-loss worth a change, in nats per
    row; ``z`` is how many standard errors the measured saving must stand above
    it (1.645: one-sided 95 %).
    """

    min_gain: float = 0.0
    z: float = 1.645


@dataclass(frozen=True)
class Gain:
    """A mean saving of log-loss and its standard error, in nats per row."""

    mean: float
    stderr: float
    rows: int


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and why."""

    promoted: bool
    reason: str
    challenger: str
    champion: str | None = None
    gain: Gain | None = None

    def __str__(self) -> str:
        return f"version {self.challenger} {'released' if self.promoted else 'not released'}. {self.reason}"

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> Verdict:
        """Read a verdict back from the ledger, which keeps it as JSON."""
        known = {name: detail[name] for name in ("promoted", "reason", "challenger", "champion")}
        return cls(**known, gain=Gain(**detail["gain"]) if detail["gain"] else None)


def paired_gain(labels: ArrayLike, champion: ArrayLike, challenger: ArrayLike) -> Gain:
    """Measure how much log-loss ``challenger`` saves over ``champion`` on the same rows.

    Both score the same rows, so rows that are hard for both cancel out in the
    difference; only the spread of the savings enters the standard error.

    Args:
        labels: True classes, shape ``(n,)``, each 0 or 1.
        champion: Probability of class 1, shape ``(n,)``, inside (0, 1).
        challenger: As ``champion``: same rows, same order.

    Raises:
        ValueError: Shapes differ, ``n < 2``, or a value is out of its range.

    Source:
        Student (1908), "The Probable Error of a Mean", Biometrika 6(1).

    >>> round(paired_gain([1, 0, 1], [0.5, 0.5, 0.5], [0.8, 0.2, 0.8]).mean, 2)
    0.47
    """
    y, old, new = (np.asarray(a, dtype=np.float64) for a in (labels, champion, challenger))
    if not (y.shape == old.shape == new.shape and y.ndim == 1 and y.size >= 2):
        raise ValueError(f"Need three equal shapes (n,), n >= 2; got {y.shape}, {old.shape}, {new.shape}.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("Labels must be 0 or 1.")
    if not all(((p > 0) & (p < 1)).all() for p in (old, new)):
        raise ValueError("Probabilities must be inside (0, 1).")
    savings = np.log(np.where(y == 1, new / old, (1 - new) / (1 - old)))
    return Gain(float(savings.mean()), float(savings.std(ddof=1) / math.sqrt(y.size)), int(y.size))


def judge(gate: Gate, challenger: str, champion: str | None, gain: Gain | None) -> Verdict:
    """Decide whether ``challenger`` replaces ``champion``, given the measured ``gain``.

    Without a champion the challenger is promoted: any model beats none.
    """
    if champion is None or gain is None:
        return Verdict(True, "There was no champion; the best candidate becomes the first.", challenger)
    floor = gain.mean - gate.z * gain.stderr
    promoted = floor > gate.min_gain
    reason = (
        f"The challenger saves {gain.mean:+.4f} ± {gain.stderr:.4f} nats per row on {gain.rows:,} held-out "
        f"rows; its lower bound {floor:+.4f} is {'above' if promoted else 'not above'} {gate.min_gain:+.4f}."
    )
    return Verdict(promoted, reason, challenger, champion, gain)


def best(gate: Gate, labels: ArrayLike, probabilities: Mapping[str, ArrayLike]) -> str:
    """Return the candidate to put forward: the first, unless a later one passes the gate against it.

    A lucky week does not decide between candidates that are as good as each
    other; the order in which they were declared does.

    Args:
        gate: The rule by which one candidate displaces another.
        labels: True classes, shape ``(n,)``, each 0 or 1.
        probabilities: For each candidate, in order of preference, its
            probability of class 1, shape ``(n,)``, for the same rows.
    """
    names = iter(probabilities)
    chosen = next(names)
    for name in names:
        gain = paired_gain(labels, probabilities[chosen], probabilities[name])
        if judge(gate, name, chosen, gain).promoted:
            chosen = name
    return chosen
