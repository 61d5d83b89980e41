"""How good are these probabilities? Ranking, calibration, and their cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Scores:
    """Scores of probabilities against the truth.

    ``auc`` is ``None`` where only one class occurs: there is nothing to rank.
    ``log_loss`` is in nats per row; it and ``brier`` are better when lower.
    """

    auc: float | None
    log_loss: float
    brier: float
    rows: int
    positives: int

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Scores:
        """Return what MLflow's ``metrics`` tell: all are floats there, and one may be missing."""
        whole = {name: int(metrics[name]) for name in ("rows", "positives")}
        return cls(auc=metrics.get("auc"), log_loss=metrics["log_loss"], brier=metrics["brier"], **whole)

    def metrics(self) -> dict[str, float]:
        """Return the scores as MLflow keeps them."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


def evaluate(labels: ArrayLike, probabilities: ArrayLike) -> Scores:
    """Score ``probabilities`` of class 1 against ``labels``.

    Args:
        labels: True classes, shape ``(n,)``, each 0 or 1.
        probabilities: Shape ``(n,)``, inside (0, 1), in the same order.

    Raises:
        ValueError: Shapes differ, there are no rows, or a value is out of its range.

    Source:
        Hanley and McNeil (1982), "The meaning and use of the area under a ROC curve", Radiology 143(1).

    >>> evaluate([0, 1, 1, 0], [0.2, 0.8, 0.4, 0.4])
    Scores(auc=0.875, log_loss=0.4683..., brier=0.15, rows=4, positives=2)
    """
    y, p = _checked(labels, probabilities)
    positives = int(y.sum())
    return Scores(
        auc=_auc(y == 1, p) if 0 < positives < y.size else None,
        log_loss=float(log_losses(y, p).mean()),
        brier=float(((p - y) ** 2).mean()),
        rows=y.size,
        positives=positives,
    )


def log_losses(labels: ArrayLike, probabilities: ArrayLike) -> NDArray[np.float64]:
    """Return the log-loss of each row, in nats, shape ``(n,)``; arguments and errors as of :func:`evaluate`.

    >>> log_losses([1, 0], [0.5, 0.2]).round(3)
    array([0.693, 0.223])
    """
    y, p = _checked(labels, probabilities)
    losses: NDArray[np.float64] = -np.log(np.where(y == 1, p, 1 - p))
    return losses


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 1 or not y.size:
        raise ValueError(f"Need two equal shapes (n,), n >= 1; got {y.shape} and {p.shape}.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("Labels must be 0 or 1.")
    if not ((p > 0) & (p < 1)).all():
        raise ValueError("Probabilities must be inside (0, 1).")
    return y, p


def _auc(positive: np.ndarray, p: np.ndarray) -> float:
    # Ties share the mean of their ranks, as half of them would be ordered right by chance.
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (p.size - n)))
