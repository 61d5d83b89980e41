"""Estimates: how well a version predicts, before the truth is known.

rows of which the truth is known ─▶ how likely each label is where it was predicted so, or what a row costs
rows of a window                 ─▶ the scores that are to be expected of them, and between what they will lie
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headrace import gate
from headrace.training.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.pipeline import Pipeline
    from headrace.problem import Problem

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Outlook = Callable[[Floats], Floats]

Method = Literal["CBPE", "PAPE", "DLE"]

BLOCKS, FOLDS = 60, 5
"""Groups beyond these are taken together; parts that are left out in turn, and looked at by the others."""
LEAST = 200
"""Rows below which nothing is estimated; of weighed ones, as many as they are worth."""
RISK = 0.05
"""How often the truth may lie outside."""
TREES = {"max_iter": 60, "max_leaf_nodes": 8, "min_samples_leaf": 100, "early_stopping": False}
"""Small trees: a few thousand rows are to tell of a whole window, not of themselves."""
HEAVY, ALIKE = 0.99, 0.01
"""Beyond this share of them weights are cut; below this mean of them nothing that is known is like now."""


@dataclass(frozen=True)
class Estimate:
    """A score that is expected of a window, and between what it will lie in all but ``RISK`` of them."""

    metric: str
    value: float
    low: float
    high: float
    method: Method

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, eq=False)
class Forecast:
    """What is to be expected of a window's rows.

    ``scores`` are those of all its rows; ``expect`` returns what each of some rows is expected to cost,
    shape ``(n,)``. ``before`` is the same of the rows that it was learnt from, each by what was learnt
    without its group.
    """

    scores: tuple[Estimate, ...]
    expect: Callable[[pa.Table], Floats]
    before: Floats


def forecast(spec: Pipeline, proven: pa.Table, now: pa.Table, *, adapt: bool = False) -> Forecast | None:
    """Return what is to be expected of ``now``; None if too little is known.

    How likely each label is where which probabilities were predicted is learnt from ``proven`` (CBPE); with
    ``adapt`` above all from such of its rows as there are many of by now (PAPE). Of numbers, what a row
    costs is learnt from its inputs and prediction (DLE), with or without ``adapt``. Either takes for granted
    that what is predicted comes true as often as before where inputs are alike; if that changes, only the
    truth shows.

    The interval tells how far such estimates were off in groups of ``proven`` that they had not learnt from:
    what a group of rows has in common, and what is not known for there are so few groups, is in it.

    Args:
        spec: Its problem, inputs and groups are what counts.
        proven: Rows that a version predicted and had not learnt from, with inputs, prediction and ``label``.
        now: Rows that it predicted since, with inputs and prediction.
        adapt: Whether to weigh ``proven`` so that it looks as ``now`` does.

    Source:
        CBPE and DLE are NannyML's names; PAPE: Białek, Kivimäki, Kuberski and Perrakis (2024), "Estimating
        model performance under covariate shift without labels", arXiv 2401.08348. Calibration of
        several classes: Zadrozny and Elkan (2002), "Transforming classifier scores into accurate multiclass
        probability estimates", KDD. The interval is that of a mean of groups yet to come, by the jackknife.
    """
    problem = spec.problem
    _, blocks = np.unique(groups(spec, proven), return_inverse=True)
    blocks = blocks.astype(np.int64) % BLOCKS
    if min(proven.num_rows, now.num_rows) < LEAST or blocks.max() + 1 < spec.gate.least_groups:
        return None
    before, current = problem.predicted(proven), problem.predicted(now)
    encoder = Encoder.fit(proven, spec.columns)
    truth, weights = problem.encode(proven["label"]), np.ones(proven.num_rows)
    method: Method = "CBPE"

    def inputs(rows: pa.Table, predictions: Floats) -> Floats:
        return np.column_stack([encoder.encode(rows), predictions]).astype(np.float64)

    if problem.labels:
        true, learn = np.equal.outer(truth, np.arange(len(problem.labels))).astype(np.float64), _calibrated
        seen, ahead = problem.chances(before), problem.chances(current)
        if adapt:
            method, weights = "PAPE", _likeness(inputs(proven, before), inputs(now, current))
            if weights.mean() < ALIKE or weights.sum() ** 2 / (weights @ weights) < LEAST:
                return None
    else:
        true, learn, method = problem.losses(truth, before), _cost, "DLE"
        seen, ahead = inputs(proven, before), inputs(now, current)
    outlook, guessed = learn(seen, true, weights), np.empty_like(true)
    for fold in range(FOLDS):
        out = blocks % FOLDS == fold
        if out.any():
            guessed[out] = learn(seen[~out], true[~out], weights[~out])(seen[out])

    def expect(rows: pa.Table) -> Floats:
        predictions = problem.predicted(rows)
        of = problem.chances(predictions) if problem.labels else inputs(rows, predictions)
        return _costs(problem, outlook(of), predictions)

    half = _half_widths(problem, true, guessed, before, weights, blocks, now.num_rows)
    found = problem.expected_scores(outlook(ahead), current, np.ones(now.num_rows))
    scores = (
        Estimate(name, value, *_within(name, value, half[name]), method)
        for name, value in found.items()
        if np.isfinite(half.get(name, np.nan))
    )
    return Forecast(tuple(scores), expect, _costs(problem, guessed, before))


def groups(spec: Pipeline, rows: pa.Table) -> NDArray[Any]:
    """Return the gate's groups of ``rows``: days, where they lack the column that it groups by."""
    lacks = isinstance(spec.gate.group, str) and spec.gate.group not in rows.column_names
    return gate.groups(replace(spec.gate, group=gate.DAY) if lacks else spec.gate, rows)


def _costs(problem: Problem, outlook: Floats, predictions: Floats) -> Floats:
    """Return what rows are expected to cost, shape ``(n,)``."""
    if not problem.labels:
        return outlook
    each = (
        problem.losses(np.full(len(outlook), float(label)), predictions) for label in range(outlook.shape[1])
    )
    return np.sum([losses * outlook[:, label] for label, losses in enumerate(each)], axis=0)


def _half_widths(
    problem: Problem,
    true: Floats,
    guessed: Floats,
    predictions: Floats,
    weights: Floats,
    blocks: Ints,
    rows: int,
) -> dict[str, float]:
    """Return how far, by metric, the truth of ``rows`` rows may lie from an estimate on either side."""
    from scipy.stats import t

    def off(of: NDArray[np.bool_]) -> dict[str, float]:
        came, expected = (
            problem.expected_scores(outlook[of], predictions[of], weights[of]) for outlook in (true, guessed)
        )
        return {name: came.get(name, np.nan) - value for name, value in expected.items()}

    count = int(blocks.max()) + 1
    whole, without = off(blocks >= 0), [off(blocks != block) for block in range(count)]
    ahead = rows / (len(blocks) / count)  # groups, of the size that they had
    wide = float(t.ppf(1 - RISK / 2, count - 1)) * np.sqrt(1 / ahead + 1 / count)
    return {
        name: wide
        * float(
            np.std([count * whole[name] - (count - 1) * one.get(name, np.nan) for one in without], ddof=1)
        )
        for name in whole
    }


def _within(name: str, value: float, half: float) -> tuple[float, float]:
    """Return the interval's ends, inside what such a score can be."""
    least = -np.inf if name == "skill" else 0.0
    most = 1.0 if name in ("auc", "accuracy", "skill", "brier") else np.inf
    return max(value - half, least), min(value + half, most)


def _calibrated(seen: Floats, true: Floats, weights: Floats) -> Outlook:
    """Learn how likely each label is, shape ``(n, labels)``, from what was predicted of each."""
    from sklearn.isotonic import IsotonicRegression

    rising = [
        IsotonicRegression(out_of_bounds="clip").fit(column, hits, weights)
        for column, hits in zip(seen.T, true.T, strict=True)
    ]

    def outlook(ahead: Floats) -> Floats:
        each = np.stack([one.predict(column) for one, column in zip(rising, ahead.T, strict=True)], axis=1)
        sums = each.sum(axis=1, keepdims=True)
        return np.where(sums > 0, each / np.where(sums > 0, sums, 1), ahead)

    return outlook


def _cost(seen: Floats, true: Floats, weights: Floats) -> Outlook:
    """Learn what a row costs, shape ``(n,)``, from its inputs and prediction."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    varied = _varied(seen)
    if not varied.any():
        mean = np.average(true, weights=weights)
        return lambda ahead: np.full(len(ahead), mean)
    with threadpool_limits(1, "openmp"):  # threads that wait for a core cost more than small trees
        trees = HistGradientBoostingRegressor(**TREES, random_state=0).fit(seen[:, varied], true, weights)

    def outlook(ahead: Floats) -> Floats:
        with threadpool_limits(1, "openmp"):
            costs: Floats = trees.predict(ahead[:, varied])
        return costs

    return outlook


def _likeness(before: Floats, now: Floats) -> Floats:
    """Return by how much more often there is by now what each row of ``before`` is like.

    That is 1 on the mean, and less if there are rows by now which none of before is like.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    rows, is_new = np.vstack([before, now]), np.repeat([0, 1], [len(before), len(now)])
    varied = _varied(rows)
    if not varied.any():
        return np.ones(len(before))
    with threadpool_limits(1, "openmp"):
        trees = HistGradientBoostingClassifier(**TREES, random_state=0).fit(rows[:, varied], is_new)
        new = trees.predict_proba(before[:, varied])[:, 1]
    ratio = new / np.maximum(1 - new, 1e-9)
    return np.minimum(ratio, np.quantile(ratio, HEAVY)) * len(before) / len(now)


def _varied(rows: Floats) -> NDArray[np.bool_]:
    """Return which columns have two values at least: trees refuse others."""
    known = np.isfinite(rows)
    return np.where(known, rows, np.inf).min(axis=0) < np.where(known, rows, -np.inf).max(axis=0)
