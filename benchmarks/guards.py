"""The guards' promise: a challenger that is worse for some is held back, and chance alone holds back few.

The flights of 2013 as in ``benchmarks.gate``; two questions (late or not; minutes late by absolute error),
twelve weeks three weeks apart, each judged after models that were fitted on weeks before it:

- exchanged: two equal models that change places by day, at random, so that nobody is worse anywhere, and
  with no margin: `held back` is how often chance breaks a guard, which is what the gate's risk is about;
- sound: fitted on twelve weeks, against models of the first eight of these: what guards cost;
- harmed: the same, but for one carrier, of three in turn, with 3 to 17 % of all flights. `mixed up` predicts
  of its flights, at random, what is true of others of that carrier; `far off` halves the chance that they are
  on time, or adds half an hour. Guarded with carriers declared, or by slices alone.

`by the gain` is the share that the gain alone promotes, `promoted` that with the default guards, `held back`
that in which a guard was broken. Standard errors are by week. Ours is the time of a look; there is no peer.
"""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gate import BASE, BETTER, EQUAL, MORE, PARAMS, QUESTIONS, ROUNDS, WEEK, WEEKS, _between, _rows
from benchmarks.result import Result
from headrace.gate import Gate, Guards, groups, judge, paired_gain
from headrace.pipeline import Columns
from headrace.problem import Binary, Regression
from headrace.release.guards import look

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from headrace.problem import Problem

    Floats = NDArray[np.float64]

PROBLEMS: dict[str, Problem] = {"late or not": Binary(), "minutes, absolute": Regression("absolute")}
CATEGORICAL = ("carrier", "origin", "dest")
COLUMNS = Columns(CATEGORICAL, tuple(name for name in MORE if name not in CATEGORICAL))
CARRIERS = ("EV", "US", "WN")
EXCHANGES = 4


def run() -> Result:
    """Fit the models of each week and question, let the gate judge with guards and without, and count."""
    rows = _rows()
    found: dict[str, list[list[tuple[bool, bool, bool]]]] = defaultdict(list)
    took: list[float] = []
    for week in WEEKS:
        of_week: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
        for question, problem in PROBLEMS.items():
            now = _between(rows, week, week + WEEK)
            table, truth = _table(now), now[question].to_numpy().astype(np.float64)
            of = groups(Gate(), table)
            for kind, gate, champion, challenger in _pairs(rows, question, problem, week, of):
                began = time.perf_counter()
                looked = look(gate, problem, COLUMNS, table, truth, champion, challenger, of)
                took.append(time.perf_counter() - began)
                gain = paired_gain(problem.losses(truth, champion), problem.losses(truth, challenger), of)
                broken = any(not one.held for one in looked)
                alone = judge(gate, "2", "1", gain).promoted
                of_week[kind].append((alone, alone and not broken, broken))
        for kind, judged in of_week.items():
            found[kind].append(judged)
    shares = {kind: [_share(weeks, place) for place in range(3)] for kind, weeks in found.items()}
    return Result(
        name="guards",
        about=f"shares at a risk of {Gate().risk}, ± their standard errors by week",
        ours_s=median(took),
        peer_s=None,
        bound_s=None,
        columns=("challengers", "judged", "by the gain", "promoted", "held back"),
        rows=tuple(
            (kind, str(sum(map(len, found[kind]))), *(f"{share:.1%} ± {error:.1%}" for share, error in told))
            for kind, told in shares.items()
        ),
        more={
            "held_back_by_chance": round(shares["exchanged"][2][0], 4),
            "held_back_by_chance_se": round(shares["exchanged"][2][1], 4),
            "harmed_held_back": round(shares["harmed, far off"][2][0], 4),
        },
    )


def _pairs(
    rows: pd.DataFrame, question: str, problem: Problem, week: Any, of: NDArray[Any]
) -> Iterator[tuple[str, Gate, Floats, Floats]]:
    now = _between(rows, week, week + WEEK)

    def models(seeds: Any, first: int, last: int) -> list[Floats]:
        learnt = _between(rows, week - first * WEEK, week - last * WEEK)
        return [_predicted(question, problem, learnt, now, seed) for seed in seeds]

    old, recent = models(EQUAL[:2], 12, 4), models(BETTER, 12, 0)
    rng, usual, tight = (
        np.random.default_rng(0),
        Gate(),
        Gate(guards=Guards(("carrier", "origin"), margin=0.0)),
    )
    declared = Gate(guards=Guards(("carrier",)))
    days = np.unique(of, return_inverse=True)[1]
    for _ in range(EXCHANGES):
        swapped = rng.random(days.max() + 1)[days] < 0.5
        yield (
            "exchanged",
            tight,
            np.where(swapped, recent[0], recent[1]),
            np.where(swapped, recent[1], recent[0]),
        )
    for champion, challenger in product(old, recent):
        yield "sound", usual, champion, challenger
    carriers = now["carrier"].to_numpy()
    for number, (champion, challenger) in enumerate(product(old, recent)):
        harmed, there = challenger.copy(), np.flatnonzero(carriers == CARRIERS[number % len(CARRIERS)])
        harmed[there] = challenger[rng.permutation(there)]
        yield "harmed, mixed up", declared, champion, harmed
        far = challenger.copy()
        far[there] = (1 + far[there]) / 2 if isinstance(problem, Binary) else far[there] + 30
        yield "harmed, far off", declared, champion, far
        yield "harmed, far off, slices alone", usual, champion, far


def _predicted(question: str, problem: Problem, learnt: pd.DataFrame, now: pd.DataFrame, seed: int) -> Floats:
    import xgboost as xgb

    def matrix(frame: pd.DataFrame) -> Any:
        return xgb.DMatrix(frame[list(BASE)], frame[question], enable_categorical=True)

    params = {**PARAMS, **QUESTIONS[question], "seed": seed, "nthread": 1}
    return problem.checked(xgb.train(params, matrix(learnt), ROUNDS).predict(matrix(now)))


def _table(now: pd.DataFrame) -> Any:
    import pyarrow as pa

    plain = now.assign(**{name: now[name].astype(str) for name in CATEGORICAL})
    return pa.Table.from_pandas(plain, preserve_index=False)


def _share(weeks: list[list[tuple[bool, bool, bool]]], place: int) -> tuple[float, float]:
    """Return the share of which something is so, and its standard error, by week."""
    means = np.array([np.mean([one[place] for one in week]) for week in weeks])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size))
