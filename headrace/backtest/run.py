"""Each policy lives through a history; what each costs, beside who knew it all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace import gate
from headrace.backtest import peers
from headrace.backtest.errors import TooFewWindows
from headrace.backtest.policies import Contestant, Lived, declaration, every
from headrace.instants import stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from headrace.backtest.history import History
    from headrace.backtest.policies import Calls
    from headrace.gate import Gain
    from headrace.lake import Window
    from headrace.pipeline import Costs

    Floats = NDArray[np.float64]

SET_BY, SOME = 3, 2
"""One in so many windows, the first ones, set policies, and none of these judges them; how many it takes."""
THRESHOLDS = 16
"""How many are tried of each of CARA's."""
ORACLE = "oracle"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a policy came to: its windows, what each cost, and what it would have cost without the gate.

    ``vain`` are retrainings that led to no other champion, or to one that saved less than that cost.
    ``line`` declares the policy in a pipeline, and is empty if nothing does.
    """

    name: str
    line: str
    lived: Sequence[Lived]
    losses: Floats
    costs: Floats
    vain: int
    ungated: float | None = None

    @property
    def cost(self) -> float:
        """What all windows cost, with what retrainings did."""
        return float(self.costs.sum())

    @property
    def retrainings(self) -> int:
        """How often it called for one."""
        return sum(one.called for one in self.lived)

    @property
    def promoted(self) -> int:
        """How many of them led to another champion."""
        return sum(one.promoted for one in self.lived)


@dataclass(frozen=True, eq=False)
class Backtest:
    """What policies came to in the windows from ``first`` on, the cheapest first, and the oracle.

    ``elsewhere`` names the cheapest of those that can be declared if a retraining cost so many times as much.
    """

    history: History
    first: int
    costs: Costs
    outcomes: Sequence[Outcome]
    oracle: Outcome
    elsewhere: dict[float, str]

    @property
    def best(self) -> Outcome:
        """The cheapest of the policies that a pipeline can declare."""
        return next(one for one in self.outcomes if one.line)

    @property
    def own(self) -> Outcome:
        """The policy that the pipeline declares."""
        line = declaration(self.history.spec.policy)
        return next(one for one in self.outcomes if one.line == line)

    def regret(self, outcome: Outcome) -> float:
        """Return by what share a policy cost more than the oracle."""
        return outcome.cost / self.oracle.cost - 1 if self.oracle.cost else 0.0

    def saved(self, outcome: Outcome) -> Gain:
        """Return what a policy saved in a window over the one that is declared, as the gate measures it."""
        return gate.paired_gain(self.own.costs, outcome.costs, np.arange(outcome.costs.size))

    def sure(self, outcome: Outcome) -> bool:
        """Say whether a policy saves over the declared one more than chance would, by the gate's risk."""
        return gate.lower_bound(self.saved(outcome), self.history.spec.gate.risk) > 0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; times are UTC."""
        windows = self.history.windows[self.first :]
        return {
            "pipeline": self.history.spec.name,
            "from": stamp(windows[0].start),
            "to": stamp(windows[-1].end),
            "set by windows from": stamp(self.history.windows[0].start),
            "windows": len(windows),
            "rows": int(self.history.counts[self.first :].sum()),
            "costs": vars(self.costs),
            "best": self.best.name,
            "line": self.best.line,
            "if a retraining cost so many times as much": {str(k): v for k, v in self.elsewhere.items()},
            "policies": [
                {
                    "policy": one.name,
                    "cost": round(one.cost, 4),
                    "regret": round(self.regret(one), 6),
                    "loss per row": float(one.losses.sum() / self.history.counts[self.first :].sum()),
                    "retrainings": [stamp(self.history.windows[n.window].end) for n in one.lived if n.called],
                    "promoted": one.promoted,
                    "in vain": one.vain,
                    "cost without the gate": one.ungated,
                    "line": one.line,
                }
                for one in (*self.outcomes, self.oracle)
            ],
        }


def first_judged(pipeline: str, windows: Sequence[Window], since: datetime | None = None) -> int:
    """Return which of ``windows`` is the first to judge policies: that of ``since`` (UTC), or after a third.

    Raises:
        TooFewWindows: There are not two at least to set policies by, and as many to judge them.
    """
    first = sum(one.start < since for one in windows) if since else len(windows) // SET_BY
    if not SOME <= first <= len(windows) - SOME:
        raise TooFewWindows(pipeline, first, len(windows) - first, SOME)
    return first


def backtest(history: History, costs: Costs, first: int) -> Backtest:
    """Let every policy live through ``history`` from window ``first`` on; by those before, some are set.

    All of them begin with the vintage of what was known when that window began.
    """
    found = [outcome(history, one, first, costs) for one in _contestants(history, first, costs)]
    others = {times: replace(costs, retraining=costs.retraining * times) for times in (0.25, 4.0)}
    elsewhere = {
        times: min((one for one in found if one.line), key=lambda one: _cost(history, one, other)).name
        for times, other in others.items()
    }
    cheapest = sorted(found, key=lambda one: one.cost)
    return Backtest(history, first, costs, cheapest, oracle(history, first, costs), elsewhere)


def _cost(history: History, one: Outcome, costs: Costs) -> float:
    return float(_paid(history, one.lived, costs).sum())


def _contestants(history: History, first: int, costs: Costs) -> Iterable[Contestant]:
    yield from every(history)
    yield peers.preset(history)
    yield peers.adwin(history)
    cara = peers.Cara(history)
    stale = [
        cara.staleness(Lived(window, serving)) for window in range(first) for serving in range(window + 1)
    ]
    above = np.quantile(stale, np.linspace(0, 1, THRESHOLDS))
    sums = np.linspace(0, float(np.max(stale)) * first, THRESHOLDS)
    yield Contestant("CARA-T", _set(history, first, costs, [cara.threshold(float(most)) for most in above]))
    yield Contestant("CARA-CT", _set(history, first, costs, [cara.cumulative(float(most)) for most in sums]))
    each = [cara.periodic(windows) for windows in range(1, first + 1)]
    yield Contestant("CARA-P", _set(history, first, costs, each))
    yield peers.upf(history, first, costs)


def _set(history: History, first: int, costs: Costs, ways: Sequence[Calls]) -> Calls:
    """Return the one of several ways to decide that would have cost least before window ``first``."""
    return min(ways, key=lambda calls: float(_paid(history, live(history, calls, 0, first), costs).sum()))


def live(
    history: History, calls: Calls, first: int, end: int | None = None, *, gated: bool = True
) -> list[Lived]:
    """Live through windows from ``first`` to before ``end`` by a policy.

    It begins with the vintage of what was known when they began. The last one calls for nothing: nobody
    would see what came of it. Without the gate every retraining leads to another champion.
    """
    lived, serving, end = list[Lived](), first, len(history.windows) if end is None else end
    for window in range(first, end):
        now = Lived(window, serving)
        if window + 1 < end and calls(lived, now):
            promoted = not gated or history.promoted(serving, window + 1)
            now = replace(now, called=True, promoted=promoted)
            serving = window + 1 if promoted else serving
        lived.append(now)
    return lived


def outcome(history: History, one: Contestant, first: int, costs: Costs) -> Outcome:
    """Return what a policy comes to from window ``first`` on."""
    lived = live(history, one.calls, first)
    free = _paid(history, live(history, one.calls, first, gated=False), costs).sum()
    return _outcome(history, one.name, one.line, lived, costs, float(free))


def oracle(history: History, first: int, costs: Costs) -> Outcome:
    """Return what whoever knew all that was to come would have done: no policy, gated or not, costs less."""
    count, price = len(history.windows), costs.loss * history.sums
    # What it costs from a window on, if such a vintage serves in it.
    ahead = np.full((count + 1, count + 1), np.inf)
    ahead[count] = 0.0
    for window in range(count - 1, first - 1, -1):
        renewed = costs.retraining + ahead[window + 1, window + 1] if window + 1 < count else np.inf
        for serving in range(first, window + 1):
            ahead[window, serving] = price[serving, window] + min(ahead[window + 1, serving], renewed)
    lived, serving = list[Lived](), first
    for window in range(first, count):
        now = Lived(window, serving)
        renewed = costs.retraining + ahead[window + 1, min(window + 1, count - 1)]
        if window + 1 < count and renewed < ahead[window + 1, serving]:
            now, serving = replace(now, called=True, promoted=True), window + 1
        lived.append(now)
    return _outcome(history, ORACLE, "", lived, costs, None)


def _outcome(
    history: History, name: str, line: str, lived: Sequence[Lived], costs: Costs, ungated: float | None
) -> Outcome:
    losses = np.array([history.sums[one.serving, one.window] for one in lived])
    paid = _paid(history, lived, costs)
    return Outcome(name, line, lived, losses, paid, _vain(history, lived, costs), ungated)


def _paid(history: History, lived: Sequence[Lived], costs: Costs) -> Floats:
    """Return what each window cost: what was lost in it, and the retraining that it called for."""
    return np.array(
        [costs.loss * history.sums[one.serving, one.window] + costs.retraining * one.called for one in lived]
    )


def _vain(history: History, lived: Sequence[Lived], costs: Costs) -> int:
    """Return how many led to no other champion, or to one that until the next saved less than that cost."""
    promoted = [place for place, one in enumerate(lived) if one.promoted]
    vain = sum(one.called for one in lived) - len(promoted)
    for place, upto in pairwise([*promoted, len(lived) - 1]):
        before, after = lived[place].serving, lived[place + 1 : upto + 1]
        saved = sum(history.sums[before, n.window] - history.sums[n.serving, n.window] for n in after)
        vain += bool(costs.loss * saved <= costs.retraining)
    return vain
