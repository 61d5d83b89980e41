"""Estimates of performance: how often the truth lies within their interval, and how far off they are.

The flights of 2013 as in ``benchmarks.gate``, and its four questions:

- shuffled: a model fitted on January to March; of the days of April to December some are taken at random as
  those it was proven on, and seven others as the week to come, so that nothing has changed between the two.
  An interval of 95 % holds the truth of at least as many weeks;
- the year: models fitted on twelve weeks before each of four dates and proven on the week that follows, then
  eight weeks in their order, each estimated from the proven week and the weeks before it, as `monitor` does.
  Seasons turn and people fly otherwise: the intervals take for granted that what is predicted comes true
  as often as before.

In weeks to come of shuffled days no segment is worse than before but by chance: `segments_named` is the share
of them in which ``headrace.monitoring.segments`` names any.

`error` is the mean distance of estimate and truth in the year, `as promised` that of saying each week what
the proven week's score was. Ours is the time of a week's estimate; there is no peer and no bound.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gate import MORE, PARAMS, QUESTIONS, ROUNDS, _between, _rows
from benchmarks.result import Result
from headrace.monitoring import segments
from headrace.monitoring.estimates import RISK, forecast
from headrace.pipeline import Columns, load
from headrace.problem import Binary, MultiClass, Regression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    import pyarrow as pa

    from headrace.problem import Problem

WEEK = timedelta(weeks=1)
START, MIDDLE, END = (datetime(*at, tzinfo=UTC) for at in ((2013, 1, 1), (2013, 4, 1), (2014, 1, 1)))
DATES = [MIDDLE + 9 * number * WEEK for number in range(4)]
WEEKS, DAYS, DRAWS = 8, (7, 28), 60
PROBLEMS: dict[str, Problem] = {
    "late or not": Binary(),
    "minutes, absolute": Regression("absolute", unit="minutes"),
    "minutes, squared": Regression("squared", unit="minutes"),
    "outcome of four": MultiClass((0, 1, 2, 3)),
}
CATEGORIES = ("carrier", "origin", "dest")


def run() -> Result:
    """Estimate, wait for the truth, and count."""
    rows, took, named = _rows(), list[float](), list[bool]()
    held: dict[tuple[str, str, str, str], list[bool]] = defaultdict(list)
    off: dict[tuple[str, str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for question, problem in PROBLEMS.items():
        spec = replace(load("flights"), problem=problem, columns=_columns())
        for kind, proven, now in (*_shuffled(rows, question, problem), *_year(rows, question, problem)):
            truth, promised = (_scores(problem, part) for part in (now, proven))
            for adapt in (False, True) if problem.labels else (False,):
                began = time.perf_counter()
                found = forecast(spec, proven, now, adapt=adapt)
                took.append(time.perf_counter() - began)
                if found and not adapt and kind != "year":
                    parts = segments.of_window(spec, proven, now, found)
                    named.append(any(part.p <= segments.CHANCE for part in parts))
                for one in found.scores if found else ():
                    key, came = (question, one.metric, one.method), truth[one.metric]
                    held[*key, kind].append(one.low <= came <= one.high)
                    if kind == "year":
                        errors = abs(one.value - came), abs(promised[one.metric] - came)
                        off[key].append((*errors, one.high - one.low))
    shares = {
        kind: np.mean([np.mean(of) for (*_, at), of in held.items() if at == kind]) for kind in _kinds()
    }
    return Result(
        name="estimates",
        about=f"shares of weeks whose truth lies within an interval of {1 - RISK:.0%}",
        ours_s=median(took),
        peer_s=None,
        bound_s=None,
        columns=("question", "score", "method", *_kinds(), "error", "as promised", "width"),
        rows=tuple(
            (*key, *(_share(held[*key, kind]) for kind in _kinds()), *_means(of)) for key, of in off.items()
        ),
        more={f"held_{kind.split()[0]}": round(float(share), 4) for kind, share in shares.items()}
        | {"segments_named": round(float(np.mean(named)), 4), "segment_weeks": len(named)},
    )


def _kinds() -> list[str]:
    return [*(f"{days} shuffled days" for days in DAYS), "year"]


def _share(of: list[bool]) -> str:
    return f"{np.mean(of):.0%} of {len(of)}" if of else "none"


def _means(of: list[tuple[float, float, float]]) -> tuple[str, ...]:
    error, promised, _ = np.mean(of, axis=0)
    return f"{error:.4g}", f"{promised:.4g}", f"{np.median([wide for *_, wide in of]):.4g}"


def _columns() -> Columns:
    return Columns(CATEGORIES, tuple(name for name in MORE if name not in CATEGORIES))


def _shuffled(
    rows: pd.DataFrame, question: str, problem: Problem
) -> Iterator[tuple[str, pa.Table, pa.Table]]:
    predict = _fitted(_between(rows, START, MIDDLE), question, problem)
    later = _between(rows, MIDDLE, END)
    table, rng = predict(later), np.random.default_rng(0)
    _, day = np.unique(later["event_timestamp"].dt.floor("D"), return_inverse=True)
    for days in DAYS:
        for _ in range(DRAWS):
            drawn = rng.permutation(day.max() + 1)
            parts = drawn[:days], drawn[days : days + 7]
            proven, now = (table.take(np.flatnonzero(np.isin(day, part))) for part in parts)
            yield f"{days} shuffled days", proven, now


def _year(rows: pd.DataFrame, question: str, problem: Problem) -> Iterator[tuple[str, pa.Table, pa.Table]]:
    for date in DATES:
        predict = _fitted(_between(rows, date - 12 * WEEK, date), question, problem)
        for week in range(1, WEEKS + 1):
            begins = date + week * WEEK
            if begins + WEEK <= END:
                now = predict(_between(rows, begins, begins + WEEK))
                yield "year", predict(_between(rows, date, begins)), now


def _fitted(learnt: pd.DataFrame, question: str, problem: Problem) -> Callable[[pd.DataFrame], pa.Table]:
    import pyarrow as pa
    import xgboost as xgb

    def matrix(frame: pd.DataFrame) -> Any:
        return xgb.DMatrix(frame[list(MORE)], frame[question], enable_categorical=True)

    booster = xgb.train({**PARAMS, **QUESTIONS[question], "nthread": 2}, matrix(learnt), ROUNDS)

    def predict(frame: pd.DataFrame) -> pa.Table:
        table = pa.Table.from_pandas(
            frame[[*MORE, "event_timestamp"]].astype(dict.fromkeys(CATEGORIES, str)), preserve_index=False
        )
        table = table.append_column("label", pa.array(frame[question]))
        for name, values in problem.named(problem.checked(booster.predict(matrix(frame)))).items():
            table = table.append_column(name, values)
        return table

    return predict


def _scores(problem: Problem, rows: pa.Table) -> dict[str, float]:
    return problem.scores(problem.encode(rows["label"]), problem.predicted(rows))
