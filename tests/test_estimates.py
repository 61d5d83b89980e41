"""Performance before the truth: estimated from what came true before, on rows whose truth is known here."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from headrace.gate import Gate
from headrace.lake import Lake, Window
from headrace.monitoring import metrics
from headrace.monitoring.contributions import gone_by, ignored, ndcg, shares
from headrace.monitoring.drift import drift
from headrace.monitoring.estimates import forecast
from headrace.monitoring.metrics import Metric
from headrace.monitoring.reference import Reference
from headrace.monitoring.rule import DriftRule
from headrace.monitoring.segments import worse
from headrace.monitoring.sketch import sketch
from headrace.pipeline import Columns, Pipeline
from headrace.problem import Binary, MultiClass, Problem, Regression
from tests.conftest import utc

DAYS, ROWS = 28, 100
"""Days of rows that are known, and rows of each."""


def spec(problem: Problem, gate: Gate | None = None) -> Pipeline:
    return Pipeline(
        *("toy", "", "", utc(2013, 1, 7), (), (), "", ("id",)),
        spine="",
        label="",
        columns=Columns(("kind",), ("x",)),
        candidates=(),
        problem=problem,
        gate=gate or Gate(),
    )


def rows(
    problem: Problem, predictions: np.ndarray, labels: np.ndarray, x: np.ndarray, first: int
) -> pa.Table:
    """Return rows of days that begin with the ``first``, ``ROWS`` of each."""
    count = len(labels)
    day = first + np.arange(count) // ROWS
    times = [utc(2013, 1, 1) + timedelta(days=int(one)) for one in day]
    return pa.table(
        {
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "kind": pa.array(np.where(x > 0, "high", "low")),
            "x": x,
            "label": pa.array(labels, problem.label_type),
            **problem.named(problem.checked(predictions)),
        }
    )


def sampled(
    seed: int, days: int, around: float, first: int = 0, *, told: float = 1.0, shock: float = 0.0
) -> pa.Table:
    """Return what is true with probability ``p``, predicted as ``p ** told``; days differ by a ``shock``."""
    rng, problem = np.random.default_rng(seed), Binary()
    x = rng.normal(around, 1, days * ROWS)
    common = np.repeat(rng.normal(0, shock, days), ROWS)
    truth = rng.random(len(x)) < 1 / (1 + np.exp(-x - common))
    return rows(problem, (1 / (1 + np.exp(-x))) ** told, truth.astype(int), x, first)


def test_scores_to_be_expected_are_those_that_come_true_if_the_truth_is_known():
    rng = np.random.default_rng(0)
    for problem in (Binary(), MultiClass(("a", "b", "c"))):
        k = len(problem.labels)
        truth = rng.integers(0, k, 500).astype(float)
        p = problem.checked(rng.random(500) if k == 2 else rng.dirichlet(np.ones(k), 500))
        hot = np.eye(k)[truth.astype(int)]
        known, ones = problem.scores(truth, p), np.ones(500)
        found = problem.expected_scores(hot, p, ones)
        assert {*problem.shown} | {"skill"} <= {*found}
        assert found == {name: pytest.approx(known[name]) for name in found}
        half = np.repeat([1.0, 0.0], 250)
        assert problem.expected_scores(hot, p, half) == {
            name: pytest.approx(value)
            for name, value in problem.scores(truth[:250], p[:250]).items()
            if name in found
        }
    for loss, name in (
        ("absolute", "mae"),
        ("squared", "rmse"),
        ("poisson", "poisson_deviance"),
        ("quantile", "pinball"),
    ):
        problem = Regression(loss)
        truth = rng.poisson(3, 500).astype(float)
        p = problem.checked(rng.random((500, 3)) * 6 if loss == "quantile" else rng.random(500) * 6)
        found = problem.expected_scores(problem.losses(truth, p), p, np.ones(500))
        assert found == {name: pytest.approx(problem.scores(truth, p)[name])}


def test_scores_of_a_window_are_foretold_though_its_rows_are_easier_or_the_model_says_too_little():
    problem = spec(Binary())
    for told in (1.0, 2.0):
        proven = sampled(0, DAYS, 0.0, told=told)
        now = sampled(1, 7, 1.0, DAYS, told=told)
        came = problem.problem.scores(problem.problem.encode(now["label"]), problem.problem.predicted(now))
        before = problem.problem.scores(
            problem.problem.encode(proven["label"]), problem.problem.predicted(proven)
        )
        found = {one.metric: one for one in forecast(problem, proven, now.drop_columns("label")).scores}
        for name in ("auc", "log_loss", "brier", "skill"):
            assert found[name].low <= came[name] <= found[name].high, name
            assert found[name].method == "CBPE"
        assert (
            abs(found["log_loss"].value - came["log_loss"]) < abs(before["log_loss"] - came["log_loss"]) / 4
        )


def test_a_relation_that_changes_is_not_seen_before_the_truth():
    """Said so in the docs: it is what nobody can know from inputs alone."""
    proven, now = sampled(0, DAYS, 0.0), sampled(1, 7, 0.0, DAYS)
    wrong = now.set_column(
        now.schema.get_field_index("label"), "label", pa.array(1 - now["label"].to_numpy(), pa.int32())
    )
    of = spec(Binary())
    found = {one.metric: one for one in forecast(of, proven, wrong).scores}
    came = of.problem.scores(of.problem.encode(wrong["label"]), of.problem.predicted(wrong))
    assert not found["auc"].low <= came["auc"] <= found["auc"].high


def test_rows_that_look_like_those_of_now_tell_more_of_them():
    """A model that ignores `kind` is right on average, and wrong wherever there is more of one kind."""
    rng, of = np.random.default_rng(0), spec(Binary())

    def table(share: float, days: int, first: int) -> pa.Table:
        x = np.where(rng.random(days * ROWS) < share, 1.0, -1.0)
        truth = rng.random(len(x)) < np.where(x > 0, 0.9, 0.3)
        return rows(
            of.problem, np.full(len(x), 0.6) + rng.normal(0, 0.01, len(x)), truth.astype(int), x, first
        )

    proven, now = table(0.5, DAYS, 0), table(0.95, 7, DAYS)
    came = of.problem.scores(of.problem.encode(now["label"]), of.problem.predicted(now))["log_loss"]
    plain, adapted = (
        {one.metric: one for one in forecast(of, proven, now, adapt=adapt).scores}["log_loss"]
        for adapt in (False, True)
    )
    assert (plain.method, adapted.method) == ("CBPE", "PAPE")
    assert abs(adapted.value - came) < abs(plain.value - came) / 3
    assert adapted.low <= came <= adapted.high


@pytest.mark.parametrize("loss", ["absolute", "squared", "quantile"])
def test_what_numbers_cost_is_foretold(loss):
    """Where ``x`` is large the truth is far from what anybody could predict."""
    rng, of = np.random.default_rng(0), spec(Regression(loss))

    def table(around: float, days: int, first: int) -> pa.Table:
        x = rng.normal(around, 1, days * ROWS)
        truth = rng.normal(0, np.exp(x / 2))
        ends = np.exp(x / 2)[:, None] * np.array([-1.28, 0, 1.28])
        return rows(of.problem, ends if loss == "quantile" else np.zeros(len(x)), truth, x, first)

    proven = table(0.0, DAYS, 0)
    for around in (0.0, 0.5):
        now = table(around, 7, DAYS)
        (found,) = forecast(of, proven, now).scores
        came, before = (
            of.problem.scores(of.problem.encode(part["label"]), of.problem.predicted(part))[found.metric]
            for part in (now, proven)
        )
        assert found.method == "DLE"
        if around:
            assert abs(found.value - came) < abs(before - came) / 3
        else:
            assert found.low <= came <= found.high


def test_what_the_rows_of_a_day_share_makes_intervals_wider():
    of = spec(Binary())
    wide, narrow = (
        {
            one.metric: one
            for one in forecast(of, sampled(0, DAYS, 2.0, shock=shock), sampled(1, 7, 2.0, DAYS)).scores
        }
        for shock in (1.5, 0.0)
    )
    assert wide["log_loss"].high - wide["log_loss"].low > 1.5 * (
        narrow["log_loss"].high - narrow["log_loss"].low
    )


def test_nothing_is_foretold_of_too_little_and_nothing_breaks_of_what_says_nothing():
    of = spec(Binary())
    proven, now = sampled(0, DAYS, 0.0), sampled(1, 7, 0.0, DAYS)
    assert forecast(of, proven.slice(0, 150), now) is None
    assert forecast(of, proven, now.slice(0, 150)) is None
    assert forecast(of, proven.slice(0, 4 * ROWS), now) is None  # four days
    far = now.set_column(now.schema.get_field_index("x"), "x", pa.array(np.full(len(now), 50.0)))
    assert forecast(of, proven, far, adapt=True) is None  # nothing is like it
    one_class = proven.set_column(
        proven.schema.get_field_index("label"), "label", pa.array(np.zeros(len(proven)), pa.int32())
    )
    assert {one.metric for one in forecast(of, one_class, now).scores} >= {"log_loss", "brier"}
    nulls = pa.nulls(len(proven), pa.float64())
    empty = proven.set_column(proven.schema.get_field_index("x"), "x", nulls)
    assert forecast(of, empty, now)
    assert forecast(of, empty, now, adapt=True) is None
    still = now.set_column(now.schema.get_field_index("x"), "x", nulls[: len(now)])
    for kind in (Binary(), Regression("absolute")):
        both = [
            rows(kind, np.full(len(part), 0.5), part["label"].to_numpy(), np.full(len(part), np.nan), 0)
            for part in (empty, still)
        ]
        for adapt in (False, True):
            assert forecast(spec(kind), *both, adapt=adapt)


def test_the_segment_that_has_become_worse_is_named_and_no_other():
    rng = np.random.default_rng(0)
    count = 35 * ROWS
    kinds = rng.choice(["a", "b", "c"], count, p=[0.7, 0.2, 0.1])
    table = pa.table({"kind": kinds, "x": rng.normal(0, 1, count)})
    groups, now = np.arange(count) // ROWS, np.arange(count) >= 28 * ROWS
    over = rng.normal(0, 0.5, count) + np.repeat(rng.normal(0, 0.05, 35), ROWS)

    def look(over: np.ndarray) -> dict[str, float]:
        return {one.name: one.p for one in worse(["kind", "x"], table, over + 1, over, groups, now)}

    assert {name for name, p in look(over).items() if p <= 0.05} == set()
    hurt = look(over + 0.4 * (now & (kinds == "c")))
    assert {name for name, p in hurt.items() if p <= 0.05} == {"kind = c"}
    better = look(over - 0.4 * (now & (kinds == "c")))
    assert not [name for name, p in better.items() if p <= 0.05]


def test_of_windows_in_which_nothing_has_changed_few_seem_worse_anywhere():
    found, draws = 0, 200
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        count = 20 * 40
        table = pa.table({"kind": rng.integers(0, 8, count), "x": rng.normal(0, 1, count)})
        groups, now = np.arange(count) // 40, np.arange(count) >= 13 * 40
        over = rng.normal(0, 0.5, count) + np.repeat(rng.normal(0, 0.2, 20), 40)
        found += worse(["kind", "x"], table, over, over, groups, now)[0].p <= 0.05
    assert found <= 0.05 * draws + 2.6 * np.sqrt(draws * 0.05 * 0.95)


def test_metrics_are_noted_once_a_look_and_the_last_look_counts(tmp_path):
    lake, of = Lake(str(tmp_path)), spec(Binary())
    week = Window(utc(2013, 4, 1), utc(2013, 4, 8))
    assert metrics.latest(of, lake) is None
    first = [
        (1, Metric("realised", "auc", 0.7, rows=10)),
        (1, Metric("estimated", "auc", 0.8, 0.7, 0.9, method="CBPE")),
    ]
    for _ in range(2):
        metrics.note(
            of, lake, week, "closed", week.end, [*first, (1, Metric("realised", "skill", float("nan")))]
        )
    metrics.note(of, lake, week, "by 20", utc(2013, 4, 9), [(1, Metric("realised", "auc", 0.6, rows=20))])
    metrics.note(of, lake, week, "by 30", utc(2013, 4, 9), [])
    known = {(one["kind"], one["metric"]): one for one in metrics.latest(of, lake).to_pylist()}
    assert {key: one["value"] for key, one in known.items()} == {
        ("realised", "auc"): 0.6,
        ("estimated", "auc"): 0.8,
    }
    assert known["estimated", "auc"]["low"] == 0.7
    assert metrics.latest(of, lake, week.end).num_rows == 0
    whole = lake.connect({"m": metrics.table_of(of)}).sql("SELECT count(*) FROM m").fetchall()
    assert whole == [(3,)]


def test_what_a_model_goes_by_is_told_beside_what_it_was_where_it_was_proven():
    """It learns from `x` alone; where `x` is always the same, it goes by the other."""
    import xgboost

    from headrace.training.encoding import Encoder
    from headrace.training.model import Model
    from headrace.training.xgboost import Boosted

    rng, of = np.random.default_rng(0), Columns(("kind",), ("x",))
    table = pa.table({"kind": rng.choice(["a", "b"], 2_000), "x": rng.normal(0, 1, 2_000)})
    chance = np.where(table["kind"].to_numpy(zero_copy_only=False) == "a", 0.4, 0.6)
    truth = np.where(table["x"].to_numpy() > 0, 0.9, 0.1) * 0.8 + chance * 0.2 > rng.random(2_000)
    encoder = Encoder.fit(table, of)
    data = xgboost.DMatrix(encoder.encode(table), truth)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, 20)
    model = Model("xgboost", Binary(), Boosted(encoder, booster))

    before = shares(model, table)
    first, second = gone_by(before, before)
    assert (first.column, second.column) == ("x", "kind")
    assert first.now == first.before > 0.6
    assert first.now + second.now == pytest.approx(1)
    assert ndcg([first, second]) == 1
    same = table.set_column(1, "x", pa.array(np.full(2_000, 0.0)))
    now = gone_by(shares(model, same), before)
    assert {one.column: one.before for one in now} == {"x": first.before, "kind": second.before}
    assert gone_by(shares(model, table.slice(0, 0)), before) == []
    assert shares(Model("sklearn", Binary(), None), table) == {}  # it cannot tell


def test_a_column_that_a_model_does_not_go_by_may_move():
    """It was the same on every row that was learnt from: whatever becomes of it changes no prediction."""
    import xgboost

    from headrace.training.encoding import Encoder
    from headrace.training.model import Model
    from headrace.training.xgboost import Boosted

    rng, of, weeks = np.random.default_rng(0), Columns((), ("x", "off")), 10
    rows = weeks * 700
    times = [utc(2013, 1, 7) + n * timedelta(minutes=14.4) for n in range(rows)]
    noise = pa.array(rng.normal(0, 1, rows))
    learnt = pa.table({"event_timestamp": times, "x": noise, "off": pa.array(np.zeros(rows))})
    encoder = Encoder.fit(learnt, of)
    truth = learnt["x"].to_numpy() > 0
    booster = xgboost.train(
        {"objective": "binary:logistic"}, xgboost.DMatrix(encoder.encode(learnt), truth), 9
    )
    unused = ignored(shares(Model("xgboost", Binary(), Boosted(encoder, booster)), learnt))
    assert unused == {"off"}

    reference = Reference.of(learnt, of)
    alive = learnt.slice(0, 700).set_column(2, "off", pa.array(rng.normal(9, 1, 700)))
    shifted = alive.set_column(1, "x", pa.array(rng.normal(3, 1, 700)))
    for window, named, called in ((alive, ("off",), ()), (shifted, ("x", "off"), ("x",))):
        now = sketch(window, of, limits=reference.whole.limits)
        found = [drift(reference, now, of, DriftRule(), ignored=each) for each in ((), unused)]
        assert [{*one.moved} for one in found] == [{*named}, {*called}]
        assert found[1].columns == found[0].columns
        told = {row["column"]: row["moved"] for row in found[1].table()}
        assert told == {"x": "yes" if called else "", "off": "ignored"}
