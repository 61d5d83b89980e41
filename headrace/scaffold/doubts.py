"""Which columns must not be learnt from, and why: those that know the answer, come later, or say nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.scaffold.look import LOOKED
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb
    from numpy.typing import NDArray

    from headrace.scaffold.look import Column

    Floats = NDArray[np.float64]

GIVES_AWAY = {"classes": 0.9, "number": 0.98}
"""The share of loss that one column alone may save: more than that, and it is the answer by another name."""
ALIKE, ADDS_UP = 0.995, 0.9999
"""The rank correlation at which a number is the target in another unit; what a sum explains of it."""
STRONG = 0.5
"""The share of loss that one column may save without being asked about."""
BY_ITS_GAPS = 0.5
"""The same of whether a column is filled at all."""
MOST_VALUES = 200
"""Different values of a text beyond which a model learns them by heart."""
SAMPLED, SAMPLE, BINS = "sampled", 50_000, 64
NAMES = re.compile(r"(^|_)(id|uuid|guid|key|no|nr|num|number|code|index|ref)$", re.IGNORECASE)
"""How columns are called that name things."""


@dataclass(frozen=True)
class LeftOut:
    """A column that is not learnt from, and why; ``serious`` if it would fool whoever looks at scores."""

    column: str
    why: str
    serious: bool = False


def doubts(
    con: duckdb.DuckDBPyConnection,
    candidates: Sequence[Column],
    target: Column,
    time: Column,
    kind: str,
    rows: int,
    entity: Column | None = None,
) -> tuple[list[LeftOut], dict[str, float]]:
    """Return what is to be left out of ``candidates``; and what else tells much by itself, and how much.

    Args:
        con: Where the table ``looked`` is.
        candidates: Columns that may be predicted from.
        target: What is predicted; ``kind`` is that of the question, ``classes`` or ``number``.
        time: When the question is asked.
        rows: How many there are.
        entity: Of what history is kept.
    """
    at, truth = quoted(time.name), quoted(target.name)
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE {SAMPLED} AS SELECT * FROM {LOOKED} WHERE {truth} IS NOT NULL "
        f"ORDER BY hash({at}, {truth}) LIMIT {SAMPLE}"
    )
    found: list[LeftOut] = []
    strong: dict[str, float] = {}
    for column in candidates:
        serious = ""
        if not (why := _says_nothing(column, rows)):
            why = serious = _comes_later(con, column, time) or _waits_for_truth(con, column, target)
            if not why:
                why, saved = _gives_away(con, column, target, time, kind)
                serious = why
                strong |= {column.name: saved} if saved >= STRONG and not why else {}
        if why:
            found.append(LeftOut(column.name, why, serious=bool(serious)))
        elif why := _names_things(con, column, time, column is entity):
            found.append(LeftOut(column.name, why))
    out = {one.column for one in found}
    left = [column for column in candidates if column.kind == "number" and column.name not in out]
    if kind == "number" and (sum_of := _adds_up(con, left, target)):
        told = " and ".join(sum_of)
        why = f"{told} together add up to `{target.name}`: the answer in parts"
        found += [LeftOut(name, why, serious=True) for name in sum_of]
    out = {one.column for one in found}
    return found, {name: saved for name, saved in strong.items() if name not in out}


def _adds_up(con: duckdb.DuckDBPyConnection, columns: Sequence[Column], target: Column) -> list[str]:
    """Return the numbers of which the target is a sum, each times something; none if it is no such sum.

    It is learnt on one half of rows and tried on the other: of many columns and few rows any sum can be made.
    """
    truth = quoted(target.name)
    each = ", ".join([f"{truth}::DOUBLE", *(f"{quoted(column.name)}::DOUBLE" for column in columns)])
    rows = con.sql(f"SELECT {each} FROM {SAMPLED} WHERE isfinite({truth}::DOUBLE) LIMIT 10000").fetchnumpy()
    y, *xs = (np.ma.filled(np.ma.asarray(of, np.float64), np.nan) for of in rows.values())
    known = {c.name: x for c, x in zip(columns, xs, strict=True) if np.isfinite(x).any()}
    if not known or not np.ptp(y):
        return []
    names, x = [*known], np.column_stack([*known.values()])
    middle = np.nanmean(np.where(np.isfinite(x), x, np.nan), axis=0)
    x = np.where(np.isfinite(x), x, middle) - middle
    x /= np.maximum(x.std(axis=0), 1e-12)
    y, half = y - y.mean(), len(y) // 2

    def explained(places: Sequence[int]) -> float:
        learnt, tried = x[:half, places], x[half:, places]
        rest = y[half:] - tried @ np.linalg.lstsq(learnt, y[:half], rcond=None)[0]
        return float(1 - (rest @ rest) / max(y[half:] @ y[half:], 1e-300))

    places = list(range(len(names)))
    if explained(places) < ADDS_UP:
        return []
    for place in sorted(places, key=lambda one: abs(x[:, one] @ y)):
        rest = [one for one in places if one != place]
        if rest and explained(rest) >= ADDS_UP:
            places = rest
    return [names[place] for place in places]


def _says_nothing(column: Column, rows: int) -> str:
    if column.kind == "other":
        kind = column.type.partition("(")[0].lower()
        return f"it is nested or binary ({kind}): take it apart in the source's query"
    if not column.filled:
        return "it is empty"
    if column.distinct == 1 and column.filled == rows:
        return "it is the same everywhere"
    return ""


def _comes_later(con: duckdb.DuckDBPyConnection, column: Column, time: Column) -> str:
    if column.kind != "time":
        return ""
    of, at = quoted(column.name), quoted(time.name)
    [(later,)] = con.sql(
        f"SELECT avg(({of} > {at})::INTEGER) FROM {LOOKED} WHERE {of} IS NOT NULL"
    ).fetchall()
    if later and later > 0.01:
        return (
            f"it is later than `{time.name}` in {later:.0%} of rows: filled in after the question was asked"
        )
    return ""


def _waits_for_truth(con: duckdb.DuckDBPyConnection, column: Column, target: Column) -> str:
    of, truth = quoted(column.name), quoted(target.name)
    [(open_, empty, known, filled)] = con.sql(
        f"SELECT count_if({truth} IS NULL), count_if({truth} IS NULL AND {of} IS NULL), "
        f"count({truth}), count_if({truth} IS NOT NULL AND {of} IS NOT NULL) FROM {LOOKED}"
    ).fetchall()
    if open_ >= 20 and empty >= 0.99 * open_ and filled >= 0.5 * known:
        return f"it is empty wherever `{target.name}` is not known yet: filled in afterwards"
    return ""


def _gives_away(
    con: duckdb.DuckDBPyConnection, column: Column, target: Column, time: Column, kind: str
) -> tuple[str, float]:
    """Say so if the column alone tells the target, learnt on the earlier half and tried on the later.

    Beside that, return the share of loss that it saves.
    """
    of, truth, at = quoted(column.name), quoted(target.name), quoted(time.name)
    as_number = f"epoch({at}) - epoch({of})" if column.kind == "time" else f"{of}::DOUBLE"
    value = f"{of}::VARCHAR" if column.kind == "text" else as_number
    rows = con.sql(f"SELECT {value} AS x, {truth} AS y FROM {SAMPLED} ORDER BY {at}").to_arrow_table()
    bins = _binned(rows["x"].to_numpy(), column.kind)
    truths = rows["y"].to_numpy()
    if (
        kind == "number"
        and column.kind == "number"
        and (alike := _alike(rows["x"].to_numpy(), truths)) >= ALIKE
    ):
        told = f"it rises and falls with `{target.name}` (rank correlation {alike:.3f})"
        return f"{told}: the answer in another unit", alike
    saved = saves(bins, truths, kind)
    if saved >= GIVES_AWAY[kind]:
        share = f"{saved:.0%} of what is lost without it"
        return f"alone it tells `{target.name}` ({share}): the answer by another name", saved
    if column.filled > 0 and (gaps := saves((bins == 0).astype(np.int64), truths, kind)) >= BY_ITS_GAPS:
        share = f"{gaps:.0%} of what is lost without it"
        return f"whether it is filled tells `{target.name}` ({share}): filled in afterwards", gaps
    return "", saved


def _alike(values: NDArray, truths: NDArray) -> float:
    """Return the rank correlation of a number and the target, without its sign; 0 if there is none."""
    from scipy.stats import spearmanr

    x, y = values.astype(np.float64), truths.astype(np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 0.5 * len(x) or np.ptp(x[both]) == 0 or np.ptp(y[both]) == 0:
        return 0.0
    return abs(float(spearmanr(x[both], y[both]).statistic))


def _binned(values: NDArray, kind: str) -> NDArray[np.int64]:
    """Return in which bin each value lies, with gaps in bin 0."""
    if kind == "text":
        names, places = np.unique(np.where(values == None, "", values).astype(str), return_inverse=True)  # noqa: E711
        return np.where(names[places] == "", 0, places + 1)
    numbers = values.astype(np.float64)
    known = np.isfinite(numbers)
    if not known.any():
        return np.zeros(len(numbers), np.int64)
    edges = np.unique(np.quantile(numbers[known], np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.where(known, np.searchsorted(edges, numbers, side="right") + 1, 0)


def saves(bins: NDArray[np.int64], truths: NDArray, kind: str) -> float:
    """Return the share of loss that knowing the bin saves on the later half, learnt from the earlier one.

    >>> truths = np.tile([0, 1], 500)
    >>> round(saves(truths + 1, truths, "classes"), 2), round(saves(np.ones(1000, int), truths, "classes"), 2)
    (1.0, 0.0)
    """
    half, count = len(bins) // 2, int(bins.max(initial=0)) + 1
    before, after = bins[:half], bins[half:]
    if kind == "number":
        known = truths.astype(np.float64)
        mean = known[:half].mean() if half else 0.0
        sums, sizes = np.bincount(before, known[:half], count), np.bincount(before, minlength=count)
        told = (sums + mean) / (sizes + 1)
        lost, least = ((known[half:] - told[after]) ** 2).sum(), ((known[half:] - mean) ** 2).sum()
        return float(1 - lost / least) if least else 0.0
    _, classes = np.unique(truths.astype(str), return_inverse=True)
    width = int(classes.max(initial=0)) + 1
    shares = (np.bincount(classes[:half], minlength=width) + 0.5) / (half + 0.5 * width)
    counts = np.bincount(before * width + classes[:half], minlength=count * width).reshape(count, width)
    told = (counts + shares) / (counts.sum(axis=1, keepdims=True) + 1)
    lost, least = -np.log(told[after, classes[half:]]).sum(), -np.log(shares[classes[half:]]).sum()
    return float(1 - lost / least) if least else 0.0


def _names_things(con: duckdb.DuckDBPyConnection, column: Column, time: Column, entity: bool) -> str:
    apart = column.distinct / column.filled
    if column.kind == "text":
        if apart >= 0.9:
            return f"it names single rows ({column.distinct:,} values in {column.filled:,} rows)"
        if column.distinct > MOST_VALUES:
            how = "its history is learnt from" if entity else "as `--entity`, its history would be"
            return f"it has {column.distinct:,} values, which would be learnt by heart; {how}"
        return ""
    if not column.whole or apart < 0.99:
        return ""
    if NAMES.search(column.name) or _counts_up(con, column, time):
        return f"it names single rows ({column.distinct:,} values in {column.filled:,} rows)"
    return ""


def _counts_up(con: duckdb.DuckDBPyConnection, column: Column, time: Column) -> bool:
    """Say whether a number grows from row to row with time, as one that is given out does."""
    of, at = quoted(column.name), quoted(time.name)
    [(together,)] = con.sql(
        f"SELECT corr(n, m) FROM (SELECT row_number() OVER (ORDER BY {of}) n, "
        f"row_number() OVER (ORDER BY {at}, {of}) m FROM {LOOKED} WHERE {of} IS NOT NULL)"
    ).fetchall()
    return together is not None and together > 0.999


def names_rows(columns: Sequence[Column], rows: int) -> Column | None:
    """Return a column that names each row, if there is one: by what it is called, or else the first."""
    unique = [c for c in columns if c.filled == c.distinct == rows and (c.kind == "text" or c.whole)]
    return next((c for c in unique if NAMES.search(c.name)), unique[0] if unique else None)
