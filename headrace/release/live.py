"""Evidence from live traffic: champion and shadow on the same requests, looked at whenever one likes.

A test at 5 % that is repeated each morning until it is passed is passed by many who are no better. What is
here holds at all times at once: whoever looks every day, and stops when it pleases, is wrong no more often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace import gate, registry, spine
from headrace.gate import Verdict
from headrace.lake import AVAILABLE
from headrace.release import promotion
from headrace.release.certificate import certified
from headrace.release.errors import NoChampion, NothingShadowed
from headrace.sources.feedback import served_by, shadow_of
from headrace.sql import quoted

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from feast import FeatureStore
    from numpy.typing import ArrayLike, NDArray

    from headrace.gate import Decision
    from headrace.lake import Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline
    from headrace.tracking import MLflow

    Floats = NDArray[np.float64]

BETS = (0.1, 0.2, 0.4, 0.8)
"""How much is staked on a gain, in units of its size in the groups of before; an equal share on each."""


@dataclass(frozen=True)
class Evidence:
    """What a shadow or canary saved over the champion, per row of loss, on ``rows`` requests in ``groups``.

    ``lower`` and ``upper`` are each wrong, at any time ever, with the gate's risk. ``chance`` is that of
    seeing so much, at any time so far, of one that saves no more than the gate's least gain.
    """

    version: int
    champion: int
    rows: int
    groups: int
    mean: float
    lower: float
    upper: float
    chance: float

    @property
    def within(self) -> str:
        """Between what the gain lies, in words."""
        low = f"above {self.lower:+.4f}" if np.isfinite(self.lower) else "above what is not known yet"
        high = f"below {self.upper:+.4f}" if np.isfinite(self.upper) else "below what is not known yet"
        return f"{low} and {high}"


def evidence(spec: Pipeline, version: int, lake: Lake, mlflow: MLflow, as_of: datetime) -> Evidence:
    """Compare a shadow or canary with the champion on requests whose truth is known ``as_of`` (UTC).

    One of the two answered, and the other one predicted the same inputs beside it. Requests count from the
    first that both predicted. Of spans of time those count that ended a window before ``as_of``, that one
    with few truths yet does not speak for its day.

    Raises:
        NoChampion: Nobody answers.
        NothingShadowed: No request that both predicted has a truth.
    """
    champion, problem = registry.champion(mlflow, spec.name), spec.problem
    if champion is None:
        raise NoChampion(spec.name)
    tables = {"served": served_by(spec.name), "shadows": shadow_of(spec.name)}
    nothing = NothingShadowed(spec.name, version, champion.version)
    if not all(lake.table(name).exists() for name in tables.values()):
        raise nothing
    theirs = ", ".join(f"shadows.{quoted(name)} AS {quoted(f'shadow {name}')}" for name in problem.columns)
    both = lake.connect(tables).execute(
        f"SELECT served.*, {theirs} FROM served JOIN shadows USING (prediction_id) "
        "WHERE [served.model_version, shadows.model_version] IN ($beside, $before) "
        f"AND served.{AVAILABLE} < $at",
        {"beside": [champion.version, version], "before": [version, champion.version], "at": as_of},
    )
    known = spine.with_truth(spec, lake, both.to_arrow_table(), as_of)
    if not isinstance(spec.gate.group, str) and known.num_rows:
        span = (as_of - spec.window).timestamp() // spec.gate.group.total_seconds()
        known = known.filter(gate.groups(spec.gate, known) < span)
    if not known.num_rows:
        raise nothing
    order = [("event_timestamp", "ascending"), ("prediction_id", "ascending")]
    known = known.sort_by(order)
    said = known.select([f"shadow {name}" for name in problem.columns]).rename_columns([*problem.columns])
    truth = problem.encode(known["label"])
    saved = problem.losses(truth, problem.predicted(known)) - problem.losses(truth, problem.predicted(said))
    saved *= np.where(known["model_version"].to_numpy() == champion.version, 1, -1)
    _, first, place = np.unique(gate.groups(spec.gate, known), return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[place]  # in the order in which they came
    sums, counts = np.bincount(place, saved), np.bincount(place).astype(np.float64)
    lower, upper = interval(sums, counts, spec.gate.risk)
    grown = max(growth(sums, counts, spec.gate.min_gain))
    return Evidence(
        version,
        champion.version,
        known.num_rows,
        counts.size,
        float(saved.mean()),
        lower,
        upper,
        min(1.0, 1 / grown),
    )


def judge(spec: Pipeline, found: Evidence) -> Verdict:
    """Decide by live traffic whether a shadow replaces the champion: it does, it never will, or not yet.

    Guards are the holdout's: what they look at is not known of requests alone.
    """
    rule, unit = spec.gate, spec.problem.loss_unit
    of = f"{found.rows:,} live requests in {found.groups:,} groups, beside version {found.champion}"
    told = (
        f"Version {found.version} saves {found.mean:+.4f} {unit} per row on {of}; whenever one looks, what "
        f"it saves in truth is {found.within}, each end at a risk of {rule.risk:.0%}."
    )
    decision: Decision = "not enough evidence"
    if found.chance <= rule.risk:
        decision = "promoted"
    elif found.upper <= rule.min_gain:
        decision = "rejected"
    return Verdict(decision, told, str(found.version), str(found.champion))


def contenders(spec: Pipeline, mlflow: MLflow) -> list[int]:
    """Return the versions that live traffic is to judge: a canary always, shadows if the gate is ``live``."""
    named = registry.aliases(mlflow, spec.name)
    shadows = registry.shadows(named) if spec.gate.live else []
    canaries = (number for number, names in named.items() if registry.CANARY in names)
    return [*dict.fromkeys([*shadows, *canaries])]


def settle(
    spec: Pipeline,
    version: int,
    store: FeatureStore,
    lake: Lake,
    mlflow: MLflow,
    ledger: Ledger,
    holder: str,
    as_of: datetime,
    *,
    key: Path | None = None,
) -> Verdict | None:
    """Judge a shadow, or a canary, and carry out what is proven: it is promoted, or let go.

    None if it serves already. One that is proven better stays what it is unless the gate is ``live``. If
    another run changed the champion meanwhile, it stays, and is judged against the new one the next time.
    One that the gate promoted before, and which was replaced since, has its receipt already.

    Raises:
        NoChampion, NothingShadowed: As of :func:`evidence`.
        AlreadyClaimed: Somebody else changes the champion at this moment.
        ParityBroken: As of :func:`headrace.release.certificate.certified`.
    """
    champion = registry.champion(mlflow, spec.name)
    if champion and champion.version == version:  # promoted by a run that was killed before it let go
        registry.let_go(mlflow, spec.name, version)
        return None
    verdict = judge(spec, evidence(spec, version, lake, mlflow, as_of))
    if verdict.decision == "not enough evidence" or (verdict.promoted and not spec.gate.live):
        return verdict
    verdict = certified(spec, verdict, store, lake, mlflow, as_of)
    past = [one.key for one in promotion.changes(spec, ledger) if one.kind == promotion.PROMOTION]
    if str(version) not in past:
        at = registry.version(mlflow, spec.name, version).as_of
        if not promotion.carry_out(spec, version, verdict, at, mlflow, ledger, holder, key):
            return verdict
    elif verdict.promoted:
        promotion.move(spec, version, verdict.reason, mlflow, ledger, holder)
    registry.let_go(mlflow, spec.name, version, "" if verdict.promoted else verdict.reason)
    return verdict


def growth(sums: ArrayLike, counts: ArrayLike, least: float) -> list[float]:
    """Return, after each group, how much a stake of 1 on a mean above ``least`` has grown to.

    If the mean per row is no greater, and what a group strays from it by might as well have come with the
    other sign, the stake ever grows 20-fold at most once in 20 times, however long one goes on. The first
    group tells the size that stakes are measured by, and is not bet on.

    Args:
        sums: What was saved in each group, in the order of time, shape ``(g,)``.
        counts: How many rows each has, shape ``(g,)``.
        least: The mean per row that is bet against.

    Source:
        de la Peña (1999), "A general class of exponential inequalities for martingales and ratios", Annals of
        Probability 27(1), for symmetric differences; Howard et al. (2021), "Time-uniform, nonparametric,
        nonasymptotic confidence sequences", Annals of Statistics 49(2), for the mixture.
    """
    over = np.asarray(sums, np.float64) - least * np.asarray(counts, np.float64)
    if over.size < 2:
        return [1.0] * over.size
    before = np.sqrt(np.cumsum(over**2)[:-1] / np.arange(1, over.size))
    unit = np.divide(over[1:], before, out=np.zeros(over.size - 1), where=before > 0)
    logs = np.array([np.cumsum(bet * unit - (bet * unit) ** 2 / 2) for bet in BETS])
    return [1.0, *(float(one) for one in np.exp(logs).mean(axis=0))]


def interval(sums: ArrayLike, counts: ArrayLike, risk: float) -> tuple[float, float]:
    """Return between what the mean per row lies, each end wrong at any time ever with ``risk``.

    Infinite where so few groups tell nothing. Arguments as of :func:`growth`.
    """
    gained, rows = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    return _end(gained, rows, risk), -_end(-gained, rows, risk)


def _end(sums: Floats, counts: Floats, risk: float) -> float:
    """Return the greatest mean that is bet against with success."""

    def beaten(mean: float) -> bool:
        return max(growth(sums, counts, mean)) >= 1 / risk

    high = float(sums.sum() / counts.sum())
    width = float(np.abs(sums / counts - high).max()) or abs(high) or 1.0
    low = next((high - width * 2.0**n for n in range(8) if beaten(high - width * 2.0**n)), -np.inf)
    if low == -np.inf:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if beaten(middle) else (low, middle)
    return low
