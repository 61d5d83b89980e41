"""Alarms: how often there is one although nothing has changed, and how soon there is one of what has.

The flights of 2013, their planes and the hour's weather: 24 features and the prediction of a model that was
fitted on the first quarter. All days of the year are dealt at random: 13 weeks are what the champion learnt
from, and 52 are watched, so that no week is unlike another but by chance. Of such model-years

- false alarms a year are counted, of windows of a week and of a day: of ``OnShift``, which is the default, of
  ``OnDrift``, of one odd window alone, and of Evidently's own preset at its defaults;
- changes are planted: the share of years in which they are found within twelve weeks, and the week by which
  half of them are. By chance alone a rule "finds" what its false alarms come to.

And many more things are looked at: 300 columns, twelve copies of the 25, each of which sees half of the
watched days as all others do, and others in place of the rest: correlations are kept within a copy, and some
of them between copies; and 50 segments, the largest of carriers, origins, destinations and hours, by what
their days cost beyond what was predicted. ``segments_named`` is the share of weeks in which any is called
worse, and ``all_alarms_per_year`` what that and the calls for a retraining come to.

A window is a sum of days, and a column's distance from the reference is found from counts of each day
between 800 values; ``agreed`` is the share of windows of which ``headrace.monitoring``, given the same rows,
says the same. A rule that has called begins anew, as after a retraining that helped.

Ours is the time of a model-year's drift; there is no peer and no bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.result import Result
from headrace.lake import duckdb_connection
from headrace.monitoring import segments, shift
from headrace.monitoring.drift import drift
from headrace.monitoring.reference import Reference
from headrace.monitoring.rule import DriftRule
from headrace.monitoring.sketch import sketch
from headrace.pipeline import Columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

YEARS, REFERENCE, WATCHED = 500, 13, 52
"""Model-years; weeks learnt from, and weeks watched."""
CHOSEN_BY = 100
"""Years, the first ones, by which the constants of ``shift``, and the risk, were chosen."""
BINS, CHECKED = 400, 40
"""Quantiles that days are counted between; windows that are compared with what the library says of them."""
WITHIN = 12
"""Weeks in which what has changed is to be found."""
COPIES, SHARED, SEGMENTS = 12, 0.5, 50
"""Of all columns, where many more are looked at, and what share of days these have in common; segments."""
CATEGORIES = ("carrier", "origin", "dest")
NUMBERS = (
    *("hour", "minute", "weekday", "distance", "age", "seats"),
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
    *("origin_delay", "origin_late", "origin_count", "origin_arrival", "carrier_delay", "carrier_late"),
)
COLUMNS = Columns(CATEGORIES, (*NUMBERS, "probability"))
DEFAULT = "a column has moved"
RULES = {"two of three windows": (2, 3), "one window": (1, 1)}
CHANGES: dict[str, dict[str, str]] = {
    "one column, by one deviation": {"temp": "temp + 17.8"},
    "five columns, by half of one": {
        **{"temp": "temp + 8.9", "dewp": "dewp + 9.7", "humid": "humid + 9.7"},
        **{"seats": "seats + 35", "carrier_delay": "carrier_delay + 10"},
    },
    "a new category in a fifth of rows": {
        "dest": "CASE WHEN hash(minute, distance) % 5 = 0 THEN 'XXX' ELSE dest END"
    },
    "degrees in another unit": {"temp": "(temp - 32) / 1.8", "dewp": "(dewp - 32) / 1.8"},
    "a column that is empty": {"age": "NULL::DOUBLE"},
}


def run() -> Result:
    """Deal years, watch them, and count."""
    rows = _features()
    counts = _Counts.of(rows)
    agreed = _agreed(rows, counts)
    changed = {name: _Counts.of(_changed(rows, what), counts) for name, what in CHANGES.items()}
    false: dict[tuple[str, int], list[int]] = {}
    when: dict[tuple[str, str], list[float]] = {}
    took, wide = [], list[int]()
    for year in range(YEARS):
        days = np.random.default_rng(year).permutation(counts.days)
        learnt, others = days[: REFERENCE * 7], days[REFERENCE * 7 :]
        watched = np.random.default_rng(year).choice(others, WATCHED * 7)
        for every in (7, 1):
            began = time.perf_counter()
            for rule, fired in _fired(counts, counts, learnt, watched, every):
                false.setdefault((rule, every), []).append(int(fired.sum()))
            took += [time.perf_counter() - began] if every == 7 else []
        if year < YEARS // 5:
            wide.append(int(_wide(counts, learnt, watched, year).sum()))
        for name, other in changed.items() if year < YEARS // 5 else ():
            for rule, fired in _fired(counts, other, learnt, watched[: WITHIN * 7], 7):
                first = np.flatnonzero(fired)
                when.setdefault((rule, name), []).append(float(first[0] + 1) if first.size else np.inf)
    table: list[tuple[object, ...]] = []
    for rule in dict.fromkeys(rule for rule, _ in false):
        line: list[object] = [rule]
        for every in (7, 1):
            of = np.array(false[rule, every], np.float64)
            line.append(f"{of.mean():.2f} ± {of.std(ddof=1) / np.sqrt(len(of)):.2f}")
        for name in CHANGES:
            weeks = np.array(when[rule, name])
            half = np.quantile(weeks, 0.5, method="higher")
            line.append(
                f"{np.isfinite(weeks).mean():.0%}, week {half:.0f}"
                if np.isfinite(half)
                else f"{np.isfinite(weeks).mean():.0%}"
            )
        table.append(tuple(line))
    named, weekly = _named(rows), float(np.mean(false[DEFAULT, 7]))
    return Result(
        name="alarms",
        about=f"false alarms in {YEARS} years without a change; changes found within {WITHIN} weeks",
        ours_s=median(took),
        peer_s=None,
        bound_s=None,
        columns=("rule", "false a year, weekly", "false a year, daily", *CHANGES),
        rows=tuple(table),
        more={
            "false_alarms_per_year": round(weekly, 3),
            "false_alarms_per_year_daily": round(float(np.mean(false[DEFAULT, 1])), 3),
            "false_alarms_per_year_not_chosen_by": round(float(np.mean(false[DEFAULT, 7][CHOSEN_BY:])), 3),
            "false_alarms_per_year_daily_not_chosen_by": round(
                float(np.mean(false[DEFAULT, 1][CHOSEN_BY:])), 3
            ),
            "false_alarms_per_year_300_columns": round(float(np.mean(wide)), 3),
            "segments_named": round(named, 5),
            "all_alarms_per_year": round(weekly + WATCHED * named, 3),
            "agreed": round(agreed, 4),
        },
    )


@dataclass(frozen=True)
class _Counts:
    """Of each day and column: how many values lie up to each edge, or are of each category; and nulls.

    ``edges`` are the ends of bins, or names of categories.
    """

    rows: Floats
    edges: Mapping[str, Any]
    seen: Mapping[str, Floats]
    sums: Mapping[str, Floats]

    @property
    def days(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, rows: pd.DataFrame, like: _Counts | None = None) -> _Counts:
        day = rows["day"].to_numpy()
        days = int(day.max()) + 1
        edges: dict[str, Any] = {}
        seen: dict[str, Floats] = {}
        sums: dict[str, Floats] = {}
        for name in CATEGORIES:
            names = like.edges[name] if like else [*sorted(rows[name].unique()), "XXX"]
            place = rows[name].map({one: n for n, one in enumerate(names)}).to_numpy()
            seen[name] = _histogram(day, place, days, len(names))
            edges[name] = names
        for name in (*NUMBERS, "probability"):
            values = rows[name].to_numpy(np.float64)
            known = np.isfinite(values)
            ends = like.edges[name] if like else _edges(values[known])
            place = np.searchsorted(ends, values[known], side="left")
            seen[name] = _histogram(day[known], place, days, len(ends) + 1)
            powers = (np.bincount(day[known], values[known] ** power, days) for power in (1, 2))
            sums[name], edges[name] = np.stack([*powers], axis=1).astype(np.float64), ends
        return cls(np.bincount(day, minlength=days).astype(np.float64), edges, seen, sums)


def _edges(values: Floats) -> Floats:
    """Return the ends of bins: quantiles, and even steps for values that are rare and far apart."""
    low, high = np.quantile(values, (0.001, 0.999))
    steps = np.linspace(low, high, BINS)
    return np.unique(np.r_[np.quantile(values, np.linspace(0, 1, BINS)), steps])


def _histogram(day: NDArray[Any], place: NDArray[Any], days: int, bins: int) -> Floats:
    return np.bincount(day * bins + place, minlength=days * bins).reshape(days, bins).astype(np.float64)


def _distances(
    counts: _Counts, learnt: NDArray[Any], other: _Counts, windows: NDArray[Any]
) -> tuple[Floats, Floats]:
    """Return how far windows lie from what was learnt, and their change of nulls, shape ``(n, columns)``.

    ``windows`` has the days of each, shape ``(n, days)``.
    """
    far, gone = [], []
    for name in COLUMNS.names:
        reference, now = counts.seen[name][learnt].sum(axis=0), other.seen[name][windows].sum(axis=1)
        known, total = reference.sum(), now.sum(axis=1)
        missing = 1 - total / other.rows[windows].sum(axis=1)
        gone.append(np.abs(missing - (1 - known / counts.rows[learnt].sum())))
        p, q = reference / known, now / np.maximum(total, 1)[:, None]
        if name in CATEGORIES:
            m = (p + q) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                each = [np.where(one > 0, one * np.log(one / m), 0).sum(axis=1) for one in (p + 0 * q, q)]
            score = np.sqrt(np.maximum(each[0] + each[1], 0) / 2)
        else:
            steps = np.diff(counts.edges[name])
            score = np.abs(np.cumsum(q, axis=1) - np.cumsum(p))[:, : len(steps)] @ steps
            first, second = counts.sums[name][learnt].sum(axis=0) / known
            score /= max(np.sqrt(max(second - first**2, 0)), 0.001)
        far.append(np.where(total > 0, score, 0.0))
    return np.stack(far, axis=1), np.stack(gone, axis=1)


def _fired(
    counts: _Counts, other: _Counts, learnt: NDArray[Any], watched: NDArray[Any], every: int
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield, by rule, which windows call for retraining."""
    before, now = _strays(counts, other, learnt, watched.reshape(-1, every), every)
    yield DEFAULT, _moved(before, now, every)
    ours, theirs = _drifted(before, now)
    for name, (times, of) in RULES.items():
        yield name, _persists(ours, times, of)
    yield "Evidently's preset", theirs


def _strays(
    counts: _Counts, other: _Counts, learnt: NDArray[Any], windows: NDArray[Any], every: int
) -> tuple[Floats, Floats]:
    """Return how far windows of what was learnt lie from it, and those that are watched, each in all ways."""
    own = learnt.reshape(-1, every)
    pull = 1 - counts.rows[own].sum(axis=1) / counts.rows[learnt].sum()
    before = np.concatenate(_distances(counts, learnt, counts, own), axis=1) / pull[:, None]
    return before, np.concatenate(_distances(counts, learnt, other, windows), axis=1)


def _moved(before: Floats, now: Floats, every: int) -> NDArray[np.bool_]:
    """Return in which windows columns have moved since the last of these."""
    kinds = np.repeat([shift.LEAST["score"], shift.LEAST["missing"]], len(COLUMNS.names), axis=0).T
    least = np.tile(kinds, now.shape[1] // kinds.shape[1])
    fired, since, risk = np.zeros(len(now), bool), 0, DriftRule().risk * every / 7
    for place in range(len(now)):
        lately = now[max(since, place + 1 - max(shift.SPANS)) : place + 1]
        if shift.discovered(shift.chances(before, lately, least), risk).size:
            fired[place], since = True, place + 1
    return fired


def _drifted(before: Floats, now: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which windows have drifted, by our rule and by Evidently's preset."""
    rule, count = DriftRule(), len(COLUMNS.names)
    far = now >= np.maximum(rule.least_score, before.max(axis=0))
    ours = (far[:, :count] | far[:, count:]).mean(axis=1) >= rule.share
    return ours, (now[:, :count] >= 0.1).mean(axis=1) >= 0.5


def _wide(counts: _Counts, learnt: NDArray[Any], watched: NDArray[Any], year: int) -> NDArray[np.bool_]:
    """Return which weeks call for a retraining if there are ``COPIES`` times as many columns."""
    rng, parts = np.random.default_rng(year), []
    others = np.setdiff1d(np.arange(counts.days), learnt)
    for _ in range(COPIES):
        days = np.where(rng.random(watched.size) < SHARED, watched, rng.choice(others, watched.size))
        parts.append(_strays(counts, counts, rng.permutation(learnt), days.reshape(-1, 7), 7))
    before, now = (np.concatenate(of, axis=1) for of in zip(*parts, strict=True))
    return _moved(before, now, 7)


def _named(rows: pd.DataFrame) -> float:
    """Return the share of weeks in which nothing has changed and any of 50 segments is called worse."""
    p = rows["probability"].to_numpy().clip(1e-6, 1 - 1e-6)
    over = np.where(rows["label"] == 1, -np.log(p), -np.log(1 - p)) + p * np.log(p) + (1 - p) * np.log(1 - p)
    day, count = rows["day"].to_numpy(), int(rows["day"].max()) + 1
    parts = [
        (rows[name] == value).to_numpy() for name in (*CATEGORIES, "hour") for value in rows[name].unique()
    ]
    parts = sorted(parts, key=lambda part: -int(part.sum()))[:SEGMENTS]
    sums = np.array([np.bincount(day[part], over[part], count) for part in parts])
    sizes = np.array([np.bincount(day[part], minlength=count) for part in parts], np.float64)
    is_now, named = np.arange(REFERENCE * 7 + 7) >= REFERENCE * 7, list[bool]()
    for week in range(YEARS * 8):
        days = np.random.default_rng(week).permutation(count)[: is_now.size]
        _, likely = segments.chances(sums[:, days], sizes[:, days], is_now)
        named.append(min(likely) <= segments.CHANCE)
    return float(np.mean(named))


def _persists(drifted: NDArray[np.bool_], times: int, of: int) -> NDArray[np.bool_]:
    """Return where ``times`` of the last ``of`` windows have drifted, this one too; then begin anew."""
    fired, since = np.zeros(len(drifted), bool), 0
    for place, one in enumerate(drifted):
        last = drifted[max(since, place - of + 1) : place + 1]
        if one and last.sum() >= times:
            fired[place], since = True, place + 1
    return fired


def _agreed(rows: pd.DataFrame, counts: _Counts) -> float:
    """Return the share of windows of which the library says the same as counts do."""
    import pyarrow as pa

    same, rng, rule = list[bool](), np.random.default_rng(0), DriftRule()
    for _ in range(CHECKED // 10):
        days = rng.permutation(counts.days)
        learnt, windows = days[: REFERENCE * 7], days[REFERENCE * 7 :][:70].reshape(10, 7)
        strays, far = _strays(counts, counts, learnt, windows, 7)
        said, _ = _drifted(strays, far)
        before = pa.Table.from_pandas(_dealt(rows, learnt), preserve_index=False)
        reference = Reference.of(before, COLUMNS)
        for place, days_of in enumerate(windows):
            part = pa.Table.from_pandas(_dealt(rows, days_of), preserve_index=False)
            now = sketch(part, COLUMNS, limits=reference.whole.limits)
            found = drift(reference, now, COLUMNS, rule)
            same.append(found.drifted == bool(said[place]))
            same.append(bool(found.moved) == bool(_moved(strays, far[place : place + 1], 7)[0]))
    return float(np.mean(same))


def _dealt(rows: pd.DataFrame, days: NDArray[Any]) -> pd.DataFrame:
    """Return the rows of some days, as if each came after the other, from a Monday on."""
    place = {int(day): n for n, day in enumerate(days)}
    part = rows[rows["day"].isin(place)].copy()
    monday = datetime(2013, 1, 7, tzinfo=UTC)
    part["event_timestamp"] = [monday + timedelta(days=place[int(day)]) for day in part["day"]]
    return part


def _changed(rows: pd.DataFrame, what: Mapping[str, str]) -> pd.DataFrame:
    con = duckdb_connection()
    con.register("rows", rows)
    new = ", ".join(f"{sql} AS {name}" for name, sql in what.items())
    frame: pd.DataFrame = con.sql(f"SELECT * REPLACE ({new}) FROM rows").df()
    return frame.assign(probability=_model(rows)(frame))


def _features() -> pd.DataFrame:
    """Return the year's flights, what was known of them, what is predicted, and the day each is of."""
    from benchmarks.data import open_files

    con = duckdb_connection()
    open_files(con, "flights", "weather", "planes")
    frame: pd.DataFrame = con.sql("""
        WITH hourly AS (
            SELECT origin, carrier, epoch(time_hour) // 3600 AS nth, avg(dep_delay) AS delay,
                   avg(arr_delay) AS arrival, avg((arr_delay >= 15)::INTEGER) AS late, count(*) AS flights
            FROM flights GROUP BY ALL
        ), of_origin AS (
            SELECT origin, nth, avg(delay) OVER three AS origin_delay, avg(late) OVER three AS origin_late,
                   avg(arrival) OVER three AS origin_arrival, sum(flights) OVER three AS origin_count
            FROM (SELECT origin, nth, avg(delay) AS delay, avg(arrival) AS arrival, avg(late) AS late,
                         sum(flights) AS flights FROM hourly GROUP BY ALL)
            WINDOW three AS (PARTITION BY origin ORDER BY nth RANGE BETWEEN 5 PRECEDING AND 3 PRECEDING)
        ), of_carrier AS (
            SELECT carrier, nth, avg(arrival) OVER day AS carrier_delay, avg(late) OVER day AS carrier_late
            FROM (SELECT carrier, nth, avg(arrival) AS arrival, avg(late) AS late FROM hourly GROUP BY ALL)
            WINDOW day AS (PARTITION BY carrier ORDER BY nth RANGE BETWEEN 27 PRECEDING AND 3 PRECEDING)
        )
        SELECT f.carrier, f.origin, f.dest, f.hour, f.minute, f.distance, 2013 - p.year AS age, p.seats,
               isodow(make_date(f.year, f.month, f.day)) AS weekday,
               w.temp, w.dewp, w.humid, w.wind_dir, w.wind_speed, w.wind_gust, w.precip, w.pressure, w.visib,
               origin_delay, origin_arrival, origin_late, origin_count, carrier_delay, carrier_late,
               (f.arr_delay >= 15)::INTEGER AS label,
               dayofyear(make_date(f.year, f.month, f.day)) - 1 AS day
        FROM flights f LEFT JOIN planes p USING (tailnum)
             LEFT JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
             LEFT JOIN of_origin o ON o.origin = f.origin AND o.nth = epoch(f.time_hour) // 3600
             LEFT JOIN of_carrier c ON c.carrier = f.carrier AND c.nth = epoch(f.time_hour) // 3600
        WHERE f.arr_delay IS NOT NULL ORDER BY ALL
    """).df()
    return frame.assign(probability=_model(frame)(frame))


def _model(rows: pd.DataFrame) -> Any:
    """Return what predicts, fitted on the year's first quarter."""
    import xgboost as xgb

    kinds = {name: rows[name].astype("category").cat.categories for name in CATEGORIES}

    def matrix(frame: pd.DataFrame) -> Any:
        import pandas as pd

        coded = {name: pd.Categorical(frame[name], categories=kinds[name]) for name in CATEGORIES}
        inputs = frame[[*CATEGORIES, *NUMBERS]].assign(**coded)
        return xgb.DMatrix(inputs, frame["label"], enable_categorical=True)

    params = {"objective": "binary:logistic", "max_depth": 5, "eta": 0.1, "seed": 0, "nthread": 2}
    booster = xgb.train(params, matrix(rows[rows["day"] < 90]), 60)
    return lambda frame: booster.predict(matrix(frame)).astype(np.float64)
