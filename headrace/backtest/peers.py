"""What others retrain by, as a history is lived by it: Evidently's preset, ADWIN, CARA, UPF."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from headrace.backtest.policies import Contestant, Lived, since

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.backtest.history import History
    from headrace.backtest.policies import Calls
    from headrace.pipeline import Columns, Costs

    Floats = NDArray[np.float64]

DELTA, CUTS = 0.002, 100
"""How often ADWIN may be wrong, and at how many places it looks for a change."""
SAMPLE, NARROW = 1_000, 10
"""Rows that CARA compares with as many others, and how fast likeness falls with distance."""
AHEAD, SURE, RIDGE = 13, 0.95, 1e-3
"""Windows that UPF looks ahead; the share of futures in which a decision costs no more than is told."""


def preset(history: History) -> Contestant:
    """Return: whenever Evidently's preset calls a window drifted."""
    return Contestant("Evidently's preset", lambda _, last: history.preset(last.serving, last.window))


def adwin(history: History) -> Contestant:
    """Return: whenever the losses of who serves have changed since the last call.

    ADWIN takes numbers from 0 to 1: what the dearest hundredth of the rows costs that a vintage was proven
    on counts as 1.
    """

    def calls(past: list[Lived], last: Lived) -> bool:
        of = [one for one in (*since(past), last) if one.serving == last.serving]
        proven, problem = history.vintages[last.serving].proven, history.spec.problem
        costs = problem.losses(problem.encode(proven["label"]), problem.predicted(proven))
        lost = np.concatenate([history.losses(one.serving, one.window, last.window) for one in of])
        return changed(np.clip(lost / max(float(np.quantile(costs, 0.99)), 1e-12), 0, 1))

    return Contestant("ADWIN", calls)


def changed(values: Floats) -> bool:
    """Say whether ``values``, from 0 to 1 and in order of time, are cut in two at any of ``CUTS`` places.

    Source:
        Bifet and Gavaldà (2007), "Learning from time-changing data with adaptive windowing", SDM: a window
        is cut where the means of its parts differ by more than chance allows.

    >>> rng = np.random.default_rng(0)
    >>> changed(rng.random(2_000)), changed(np.concatenate([rng.random(1_000), rng.random(1_000) / 2]))
    (False, True)
    """
    count = values.size
    places = np.unique(np.linspace(0, count, CUTS + 2).astype(int)[1:-1])
    places = places[(places > 0) & (places < count)]
    if not places.size:
        return False
    before = np.cumsum(values)[places - 1]
    apart = np.abs(before / places - (values.sum() - before) / (count - places))
    harmonic = 1 / (1 / places + 1 / (count - places))
    unlikely = np.log(2 * np.log(count) / DELTA)
    return bool(
        (apart > np.sqrt(2 / harmonic * values.var() * unlikely) + 2 / (3 * harmonic) * unlikely).any()
    )


@dataclass(frozen=True, eq=False)
class Cara:
    """What a vintage is expected to cost, by those rows with a truth that are most like what is asked.

    Source:
        Mahadevan and Mathioudakis (2024), "Cost-aware retraining for machine learning", Knowledge-Based
        Systems 293: retrain where that is above a threshold (T), where its sum since the last retraining is
        (CT), or every so many windows (P), whatever would have cost least before. Here rows are alike by
        Gower's distance, and it is sums of losses that are told, of all that was asked.
    """

    history: History

    def staleness(self, one: Lived) -> float:
        """Return what all that was asked in a window is expected to lose, by what was known at its end."""
        lost = self.history.losses(one.serving, one.window, one.window)
        if not lost.size:
            return 0.0
        chosen, weights = self.history.once(("alike", one.window), lambda: self._alike(one.window))
        return float(lost[chosen] @ weights) * self.history.asked(one.window).num_rows

    def _alike(self, window: int) -> tuple[NDArray[np.int64], Floats]:
        """Return which rows with a truth stand for what was asked, and how much each counts."""
        history, rng = self.history, np.random.default_rng(0)
        asked, known = history.asked(window), history.known(window, window, window)
        chosen, queries = (np.sort(rng.permutation(of.num_rows)[:SAMPLE]) for of in (known, asked))
        apart = _apart(asked.take(queries), known.take(chosen), history.spec.columns)
        alike = np.exp(-NARROW * apart)
        weights: Floats = (alike / alike.sum(axis=1, keepdims=True)).mean(axis=0)
        return chosen.astype(np.int64), weights

    def threshold(self, most: float) -> Calls:
        """Return the policy T."""
        return lambda _, last: self.staleness(last) > most

    def cumulative(self, most: float) -> Calls:
        """Return the policy CT."""
        return lambda past, last: sum(map(self.staleness, (*since(past), last))) > most

    @staticmethod
    def periodic(windows: int) -> Calls:
        """Return the policy P."""
        return lambda past, _: len(since(past)) + 1 >= windows


def _apart(rows: pa.Table, others: pa.Table, columns: Columns) -> Floats:
    """Return Gower's distance of each row from each other: 0 where all is equal, 1 where nothing is."""
    found = np.zeros((rows.num_rows, others.num_rows))
    for name in columns.numeric:
        one, other = (np.asarray(of[name].cast("float64"), np.float64) for of in (rows, others))
        each = np.concatenate([one, other])
        known = each[np.isfinite(each)]
        if spread := float(np.ptp(known)) if known.size else 0.0:
            found += np.nan_to_num(np.abs(one[:, None] - other) / spread, nan=1.0, posinf=1.0)
    for name in columns.categorical:
        one, other = (np.array(of[name].to_pylist(), dtype=object) for of in (rows, others))
        found += one[:, None] != other
    return found / len(columns.names)


def upf(history: History, first: int, costs: Costs) -> Contestant:
    """Return: where, of the futures that are forecast, those with a retraining now cost less.

    What a row will cost any vintage in any window is regressed on what it cost who served last, and on
    ages: of all vintages in windows before ``first``, and of who has served since. Decisions are compared by
    the cost that they stay below in ``SURE`` of the futures, with one more retraining later where that is
    cheaper.

    Source:
        Regol, Schwinn, Sprague, Coates and Markovich (2025), "When to retrain a machine learning model",
        ICML. Performance there is a bounded score, here the mean loss; forecasts are Gaussian.
    """
    before = {(i, j) for j in range(first) for i in range(j + 1)}

    def level(vintage: int, window: int, by: int) -> float:
        lost = history.losses(vintage, window, by)
        return float(lost.mean()) if lost.size else np.nan

    def calls(past: list[Lived], last: Lived) -> bool:
        now, serves = last.window, last.serving
        seen = before | {(one.serving, one.window) for one in (*past, last)}
        levels = {pair: level(*pair, max(now, first - 1)) for pair in sorted(seen)}
        rows = [
            (_about(j - i, j - t, levels[s, t], t - s), levels[i, j])
            for s, t in levels
            for i, j in levels
            if j > t and i in (s, t + 1)
        ]
        about, came = (np.array(one) for one in zip(*rows, strict=True))
        known = np.isfinite(about).all(axis=1) & np.isfinite(came)
        about, came = about[known], came[known]
        if not np.isfinite(levels[serves, now]) or len(came) <= about.shape[1]:
            return False
        inverse = np.linalg.inv(about.T @ about + RIDGE * np.eye(about.shape[1]))
        learnt = inverse @ about.T @ came
        noise = float(((came - about @ learnt) ** 2).sum() / (len(came) - about.shape[1]))
        price = costs.loss * float(history.counts[: now + 1].mean())

        def cost(vintage: int) -> float:
            """Return what it costs to let a vintage serve on, with one more retraining if that is cheaper."""
            found = []
            for more in range(1, AHEAD + 1):  # windows until the next retraining; the last is none
                ages = [
                    (now + n - (vintage if n <= more else now + more + 1), n) for n in range(1, AHEAD + 1)
                ]
                lines = np.array([_about(age, n, levels[serves, now], now - serves) for age, n in ages])
                whole = lines.sum(axis=0)
                spread = np.sqrt(noise * (AHEAD + whole @ inverse @ whole))
                futures = NormalDist(float(whole @ learnt), float(max(spread, 1e-12)))
                found.append(price * futures.inv_cdf(SURE) + costs.retraining * (more < AHEAD))
            return min(found)

        return cost(now + 1) + costs.retraining < cost(serves)

    return Contestant("UPF", calls)


def _about(age: int, ahead: int, level: float, age_of_level: int) -> tuple[float, ...]:
    """Return what a forecast is made from: all but the last mean loss in windows."""
    return 1.0, age, ahead, level, age_of_level
