"""Evidence from live traffic: looked at every day for a year, it promotes no more of those who are no better.

The flights of 2013 as in ``benchmarks.gate``, and its four questions: models fitted on January to March, the
days of April to December. A year of live traffic is drawn from these days, of one pair of models, with
replacement:

- no better: models that differ in nothing but their seed, and of each day it is drawn who is which, so that
  neither is better; promoted is who is so at any look, one a day;
- better: with wind, sight and rain, against models without, whose gain on these days is the true one: after
  how many days half, and four fifths, of such years have promoted it.

`live` is what ``headrace.release.live`` says; `each day` the gate's test, repeated each day from the fifth
on, until it is passed; `once` the same test, asked on a single day. Ours is the time of a look at a year.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import combinations, product
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gate import BASE, BETTER, MORE, QUESTIONS, _between, _losses, _rows, _times
from benchmarks.result import Result
from headrace.gate import Gate, groups
from headrace.release.live import growth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

START, MIDDLE, END = (datetime(*at, tzinfo=UTC) for at in ((2013, 1, 1), (2013, 4, 1), (2014, 1, 1)))
YEAR, YEARS, SEEDS = 365, 40, range(5)
LEAST = 5
"""Days before which the gate says nothing."""


def run() -> Result:
    """Fit, draw years, and count who is promoted when."""
    rows, risk = _rows(), Gate().risk
    learnt, later = _between(rows, START, MIDDLE), _between(rows, MIDDLE, END)
    _, place = np.unique(groups(Gate(), _times(later)), return_inverse=True)
    rng, took, table, nulls = np.random.default_rng(0), list[float](), list[tuple[object, ...]](), []
    critical = _critical(risk)
    for question in QUESTIONS:
        equal = [_losses(question, learnt, (later, later), BASE, seed)[0] for seed in SEEDS]
        better = [_losses(question, learnt, (later, later), MORE, seed)[0] for seed in BETTER]
        found = []
        for one, other in combinations(equal, 2):
            days = _days(one - other, place)
            for _ in range(YEARS):
                year = days[rng.integers(0, len(days), YEAR)] * _signs(rng)
                found.append(_promoted(year, critical, risk, took))
        nulls.append(np.isfinite(np.array(found)[:, :3]).mean(axis=0))
        when = []
        for old, new in product(equal[:2], better):
            days = _days(old - new, place)
            when += [
                _promoted(days[rng.integers(0, len(days), YEAR)], critical, risk, took) for _ in range(YEARS)
            ]
        waited, shares = np.array(when), [f"{share:.1%}" for share in nulls[-1]]
        table.append((question, *shares, _waited(waited[:, 0]), _fixed(waited[:, 3:])))
    means = np.mean(nulls, axis=0)
    return Result(
        name="live",
        about=f"promoted within a year of daily looks, at a risk of {risk}; days that a true gain takes",
        ours_s=median(took),
        peer_s=None,
        bound_s=None,
        columns=(
            "question",
            "no better: live",
            "no better: each day",
            "no better: once",
            "better: days, live (half, four fifths)",
            "better: days, once (half, four fifths)",
        ),
        rows=tuple(table),
        more={"promoted_live": round(means[0], 4), "promoted_each_day": round(means[1], 4)},
    )


def _days(saved: Floats, place: NDArray[np.int64]) -> Floats:
    """Return what each day saved, and how many rows it has, shape ``(days, 2)``."""
    return np.stack([np.bincount(place, saved), np.bincount(place)], axis=1).astype(np.float64)


def _promoted(year: Floats, critical: Floats, risk: float, took: list[float]) -> tuple[float, ...]:
    """Return on which day of a year each rule promotes, infinite if it does not: live, each day, once.

    And for each day whether the test is passed that is asked on that day alone.
    """
    sums, counts = year.T
    began = time.perf_counter()
    grown = np.array(growth(sums, counts, 0.0)) >= 1 / risk
    took.append(time.perf_counter() - began)
    days = np.arange(1, YEAR + 1)
    mean, square = np.cumsum(sums) / days, np.cumsum(sums**2) / days
    spread = np.sqrt(np.maximum(square - mean**2, 1e-300) / np.maximum(days - 1, 1))
    passed = (mean / spread > critical) & (days >= LEAST)
    return _first(grown), _first(passed), YEAR if passed[-1] else np.inf, *map(float, passed)


def _signs(rng: np.random.Generator) -> Floats:
    """Return signs for what a year's days saved; how many rows they have keeps its own."""
    return np.stack([rng.choice((1.0, -1.0), YEAR), np.ones(YEAR)], axis=1)


def _first(passed: NDArray[np.bool_]) -> float:
    return float(np.argmax(passed)) + 1 if passed.any() else np.inf


def _critical(risk: float) -> Floats:
    from scipy.stats import t

    return t.ppf(1 - risk, np.maximum(np.arange(YEAR), 1))


def _waited(when: Floats) -> str:
    half, most = np.quantile(when, (0.5, 0.8), method="higher")
    return " and ".join(f"{day:.0f}" if np.isfinite(day) else f"more than {YEAR}" for day in (half, most))


def _fixed(passed: Floats) -> str:
    """Return how many days it takes for half, and four fifths, of tests that are asked once to be passed."""
    power = passed.mean(axis=0)
    found = [np.flatnonzero(power >= share) for share in (0.5, 0.8)]
    return " and ".join(str(days[0] + 1) if days.size else f"more than {YEAR}" for days in found)
