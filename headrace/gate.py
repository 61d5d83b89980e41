"""The gate: does the challenger beat the champion, or does it only look so?

It sees what each row costs either model, and which rows belong together; what the
question is, and what a prediction looks like, it need not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Guards:
    """What a challenger must not be worse in, however much it gains over all rows.

    ``segments`` name columns, of the spine or features: for the rows of no value of these may it be
    significantly worse, nor for those of any of the ``slices``, of one or two inputs, in which it differs
    most from the champion. Worse is what costs more than ``margin``, a share of the champion's mean loss.
    ``scores`` are more of the problem's scores that must not be worse, each by how much. ``calibration`` is
    the calibration error that a challenger may have, or else no more than the champion's;
    ``latency_ms`` how long the prediction of one row may take it, ``size_mb`` how large its files may be.
    """

    segments: tuple[str, ...] = ()
    slices: int = 30
    margin: float = 0.05
    scores: Mapping[str, float] = field(default_factory=dict)
    calibration: float = 0.1
    latency_ms: float = 100.0
    size_mb: float = 1024.0


@dataclass(frozen=True)
class Gate:
    """How sure one must be before the champion is replaced.

    ``min_gain`` is the least saving of loss worth a change, per row. ``risk`` is the share of
    challengers no better than that which may be promoted all the same. Rows of one ``group`` are
    taken to stand and fall together: of the same span of ``event_timestamp`` (a day of UTC), or
    with the same value of the column named. Of fewer than ``least_groups``, counted as if all were
    of one size, there is not enough evidence. ``guards`` are what must not become worse; None guards nothing.
    With ``approval``, a person is asked before anything is promoted, and has so long to say yes. With
    ``live``, shadows are promoted, or let go, by what live traffic proves of them.
    """

    min_gain: float = 0.0
    risk: float = 0.05
    group: timedelta | str = DAY
    least_groups: int = 5
    guards: Guards | None = field(default_factory=Guards)
    approval: timedelta | None = None
    live: bool = False


@dataclass(frozen=True)
class Gain:
    """A mean saving of loss per row and its standard error, from ``rows`` in ``groups``.

    ``df`` are the standard error's degrees of freedom: one less than there are groups if all are
    of one size, and less the more one of them outweighs the others.
    """

    mean: float
    stderr: float
    rows: int
    groups: int
    df: float


@dataclass(frozen=True)
class Guarded:
    """How much better a challenger is in one thing that it must not be worse in by more than ``margin``.

    ``kind`` is ``segment``, ``slice`` or ``score``. ``gain`` and ``margin`` are loss per row, or a score.
    ``p`` is the chance that, of all that was looked at, anything would seem that bad if nothing were worse.
    """

    kind: str
    name: str
    gain: float
    stderr: float
    rows: int
    groups: int
    margin: float
    p: float
    held: bool

    def told(self, unit: str) -> str:
        """Say how much worse it is."""
        if self.kind == "score":
            return f"{self.name} by {-self.gain:.4f} ± {self.stderr:.4f} (p {self.p:.3f})"
        return f"where {self.name} by {-self.gain:.4f} ± {self.stderr:.4f} {unit} per row (p {self.p:.3f})"


@dataclass(frozen=True)
class Bound:
    """What a challenger has, and what it may have, of something that is not compared row by row.

    ``about`` says of what, where that matters.
    """

    name: str
    value: float
    limit: float
    about: str = ""

    @property
    def held(self) -> bool:
        """Whether it stays within."""
        return self.value <= self.limit

    def __str__(self) -> str:
        about = f" ({self.about})" if self.about else ""
        return f"Its {self.name} {self.value:.4g} is above {self.limit:.4g}{about}."


Decision = Literal["promoted", "rejected", "not enough evidence"]


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and why.

    ``guards`` are the segments and scores that were looked at and the worst slices, ``looked_at`` of all of
    these how many. ``approved_by`` is who said yes, if a person was asked.
    """

    decision: Decision
    reason: str
    challenger: str
    champion: str | None = None
    gain: Gain | None = None
    guards: tuple[Guarded, ...] = ()
    bounds: tuple[Bound, ...] = ()
    looked_at: int = 0
    approved_by: str = ""

    @property
    def promoted(self) -> bool:
        """Whether the challenger takes the champion's place."""
        return self.decision == "promoted"

    def __str__(self) -> str:
        return f"version {self.challenger} {'released' if self.promoted else 'not released'}. {self.reason}"

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> Verdict:
        """Read a verdict back from the ledger, which keeps it as JSON; older ones have no groups."""
        if "decision" not in detail:
            decision: Decision = "promoted" if detail["promoted"] else "rejected"
            return cls(decision, detail["reason"], detail["challenger"], detail["champion"])
        known = {name: detail[name] for name in ("decision", "reason", "challenger", "champion")}
        return cls(
            **known,
            gain=Gain(**detail["gain"]) if detail["gain"] else None,
            guards=tuple(Guarded(**one) for one in detail.get("guards", ())),
            bounds=tuple(Bound(**one) for one in detail.get("bounds", ())),
            looked_at=detail.get("looked_at", 0),
            approved_by=detail.get("approved_by", ""),
        )


def groups(gate: Gate, rows: pa.Table) -> NDArray[Any]:
    """Return to which group each of ``rows`` belongs, shape ``(n,)``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(gate.group, str):
        return pc.rank(rows[gate.group], tiebreaker="dense").to_numpy()
    micros = rows["event_timestamp"].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
    spans: NDArray[Any] = micros.to_numpy() // (gate.group // timedelta(microseconds=1))
    return spans


def paired_gain(champion: ArrayLike, challenger: ArrayLike, groups: ArrayLike) -> Gain:
    """Measure how much loss ``challenger`` saves over ``champion`` on the same rows.

    Both predict the same rows, so rows that are hard for both cancel out in the difference. Rows
    of one group do not: weather and crowds make a day's flights late together. So the standard
    error is that of groups, whatever goes on within them: of few groups, and of unequal ones, too.

    Args:
        champion: What each row costs the champion, shape ``(n,)``, finite.
        challenger: As ``champion``: same rows, same order.
        groups: What each row belongs to, shape ``(n,)``, of any type that can be sorted.

    Raises:
        ValueError: Shapes differ, there are no rows, or a loss is not finite.

    Source:
        Bell and McCaffrey (2002), "Bias reduction in standard errors for linear regression with
        multi-stage samples", Survey Methodology 28(2): their standard error (CR2) and degrees of
        freedom, the latter as if a group's rows were one.

    >>> gain = paired_gain([0.75, 0.75, 0.75, 0.75], [0.25, 0.25, 0.5, 0.5], ["mon", "mon", "tue", "tue"])
    >>> gain.mean, round(gain.stderr, 6), round(gain.df, 6)
    (0.375, 0.125, 1.0)
    """
    old, new, of = np.asarray(champion, np.float64), np.asarray(challenger, np.float64), np.asarray(groups)
    if not (old.shape == new.shape == of.shape and old.ndim == 1 and old.size):
        raise ValueError(f"Need three equal shapes (n,), n >= 1; got {old.shape}, {new.shape}, {of.shape}.")
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("Losses must be finite.")
    savings = old - new
    mean = float(savings.mean())
    _, place, sizes = np.unique(of, return_inverse=True, return_counts=True)
    if sizes.size == 1:
        return Gain(mean, math.inf, int(old.size), 1, 0.0)
    share = sizes / old.size
    strays = np.bincount(place, savings - mean) / np.sqrt(1 - share)
    stderr = math.sqrt(float(strays @ strays)) / old.size
    return Gain(mean, stderr, int(old.size), int(sizes.size), _degrees_of_freedom(share))


def _degrees_of_freedom(share: NDArray[np.float64]) -> float:
    """Return Satterthwaite's degrees of freedom of the variance of groups with these shares of the rows.

    If all rows of a group are as one, the groups' strays have a covariance matrix that is a
    diagonal and two vectors, so that its trace, and that of its square, need no matrix.
    """
    scale = 1 / np.sqrt(1 - share)
    own, p, q, s = scale**2 * share**2, scale * share, scale * share**2, float(share @ share)
    pp, qq, pq = float(p @ p), float(q @ q), float(p @ q)
    trace = float(own.sum()) - 2 * pq + s * pp
    rest = 2 * pq**2 + 2 * pp * qq - 4 * s * pp * pq + s**2 * pp**2
    square = float(own @ own) + 2 * float(own @ (s * p**2 - 2 * p * q)) + rest
    return trace**2 / square


def judge(
    gate: Gate,
    challenger: str,
    champion: str | None,
    gain: Gain,
    unit: str = "of loss",
    guards: Sequence[Guarded] = (),
    bounds: Sequence[Bound] = (),
) -> Verdict:
    """Decide whether ``challenger`` replaces ``champion``, given the measured ``gain``.

    It does if the gain's one-sided lower bound, by Student's t, lies above the gate's least gain, and no
    guard or bound is broken. Without a champion the gain is over a guess from the past alone: the first
    release must beat that. ``unit`` is the losses'.
    """
    shown = (*_shown(guards), *[one for one in guards if one.kind != "slice"])
    more: Any = {"guards": shown, "bounds": tuple(bounds), "looked_at": len(guards)}
    of = f"{gain.rows:,} held-out rows in {gain.groups:,} groups"
    if (count := round(gain.df + 1, 3)) < gate.least_groups:
        equal = "" if count == gain.groups else f", which are worth {count:.1f} of equal size"
        reason = (
            f"Not enough evidence: {of}{equal}; it takes {gate.least_groups} to tell a gain from chance. "
            "Hold out a longer span (`holdout`), or name smaller groups of rows that belong together "
            "(`Gate(group=…)`)."
        )
        return Verdict("not enough evidence", reason, challenger, champion, _told(gain), **more)
    floor = lower_bound(gain, gate.risk)
    better = floor > gate.min_gain
    over = " over a guess from the past alone" if champion is None else ""
    reason = (
        f"The challenger saves {gain.mean:+.4f} ± {gain.stderr:.4f} {unit} per row{over} on {of}; its lower "
        f"bound {floor:+.4f} is {'above' if better else 'not above'} {gate.min_gain:+.4f}."
    )
    broken = [one for one in guards if not one.held]
    if broken:
        worst = "; ".join(one.told(unit) for one in broken[:3])
        of = f"{len(broken)} of {len(guards)} things that it must not be worse in"
        reason += f" {'But it' if better else 'It'} is worse in {of}: {worst}."
    for bound in bounds:
        if not bound.held:
            reason += f" {bound}"
    promoted = better and not broken and all(bound.held for bound in bounds)
    return Verdict("promoted" if promoted else "rejected", reason, challenger, champion, gain, **more)


def _shown(guards: Sequence[Guarded], most: int = 10) -> list[Guarded]:
    """Return the slices that are kept with a verdict: the worst."""
    return sorted((one for one in guards if one.kind == "slice"), key=lambda one: one.p)[:most]


def familywise(seen: ArrayLike, chance: ArrayLike) -> list[float]:
    """Return for each of ``m`` things how likely chance alone makes any of them look as bad as it does.

    Args:
        seen: How bad each looks, shape ``(m,)``.
        chance: How bad each looked by chance, each time that it was tried, shape ``(times, m)``; one of
            the times is what was seen.

    Source:
        Romano and Wolf (2005), "Exact and approximate stepdown methods for multiple hypothesis testing",
        JASA 100(469).
    """
    bad, tried = np.asarray(seen, np.float64), np.asarray(chance, np.float64)
    order = np.argsort(-bad, kind="stable")
    highest = np.maximum.accumulate(tried[:, order[::-1]], axis=1)[:, ::-1]
    found = np.empty(bad.size)
    found[order] = np.maximum.accumulate((highest >= bad[order] - 1e-9).mean(axis=0))
    return [float(p) for p in found]


def lower_bound(gain: Gain, risk: float) -> float:
    """Return what the true gain lies above, but for a share ``risk`` of such measurements."""
    from scipy.stats import t

    return gain.mean - float(t.ppf(1 - risk, gain.df)) * gain.stderr if gain.df else -math.inf


def best(gate: Gate, losses: Mapping[str, ArrayLike], groups: ArrayLike) -> str:
    """Return the candidate to put forward: the first, unless a later one passes the gate against it.

    A lucky week does not decide between candidates that are as good as each
    other; the order in which they were declared does.

    Args:
        gate: The rule by which one candidate displaces another.
        losses: For each candidate, in order of preference, what each row costs it, shape ``(n,)``.
        groups: What each row belongs to, shape ``(n,)``.
    """
    names = iter(losses)
    chosen = next(names)
    for name in names:
        gain = paired_gain(losses[chosen], losses[name], groups)
        if judge(gate, name, chosen, gain).promoted:
            chosen = name
    return chosen


def _told(gain: Gain) -> Gain | None:
    """Return the gain if JSON can hold it: of a single group, the standard error is not known."""
    return gain if math.isfinite(gain.stderr) else None
