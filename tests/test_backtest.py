"""Which policy should a pipeline retrain by: policies live through a past that is known, beside an oracle."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.backtest import peers
from headrace.backtest.errors import TooFewWindows
from headrace.backtest.policies import declaration, declared, every
from headrace.backtest.run import backtest, first_judged, live, oracle, outcome
from headrace.backtest.vintage import Vintage, with_predictions
from headrace.declaration import slips
from headrace.gate import lower_bound
from headrace.lake import Window
from headrace.monitoring.drift import preset
from headrace.monitoring.rule import Never, OnDrift, OnEstimate, Periodic
from headrace.pipeline import Columns, Costs
from headrace.problem import Binary, MultiClass
from tests.conftest import utc
from tests.test_monitoring import TOY

WEEK = timedelta(weeks=1)
ROWS = 100


class Past:
    """A history of which it is told what each vintage loses in each window, and what is found in them.

    Each row of a window costs the same.
    """

    def __init__(self, sums, *, drifts=(), worse=(), refused=()) -> None:
        self.sums = np.array(sums, np.float64)
        count = len(self.sums)
        self.spec = TOY
        self.windows = [Window(utc(2013) + n * WEEK, utc(2013) + (n + 1) * WEEK) for n in range(count)]
        self.counts = np.full(count, ROWS)
        self.drifts, self.worse, self.refused = drifts, worse, refused
        self.looked: list[tuple[int, int]] = []
        proven = pa.table({"label": [0, 1] * 50, "probability": [0.2, 0.8] * 50})
        self.vintages = [SimpleNamespace(proven=proven)] * count

    def promoted(self, serving: int, challenger: int) -> bool:
        return challenger not in self.refused

    def drifted(self, serving: int, window: int) -> bool:
        self.looked.append((serving, window))
        return window in self.drifts

    def moved(self, serving: int, window: int) -> bool:
        return window in self.drifts

    def preset(self, serving: int, window: int) -> bool:
        return True

    def foreseen(self, serving: int, window: int) -> bool:
        return window in self.worse

    def asked(self, window: int) -> pa.Table:
        return pa.table({"row": range(ROWS)})

    def once(self, key, find):
        return np.arange(ROWS), np.full(ROWS, 1 / ROWS)  # every row is like every other

    def losses(self, serving: int, window: int, by: int) -> np.ndarray:
        return np.full(ROWS, self.sums[serving, window] / ROWS)


def aging(count: int, grows: float, level: float = 100.0) -> np.ndarray:
    """What vintages lose that lose so much more with each window of age."""
    age = np.arange(count)[None, :] - np.arange(count)[:, None]
    return np.where(age >= 0, level + grows * age, np.nan)


def called(lived) -> list[int]:
    return [one.window for one in lived if one.called]


def test_a_policy_retrains_after_the_windows_that_call_and_the_new_vintage_serves_next() -> None:
    past = Past(aging(6, 10), drifts=(1, 3))
    policy = declared("on drift", OnDrift(windows=1, of=1), past)
    lived = live(past, policy.calls, 0)
    assert called(lived) == [1, 3]
    assert [one.serving for one in lived] == [0, 0, 2, 2, 4, 4]
    assert {serving for serving, _ in past.looked} == {0, 2, 4}


def test_a_challenger_that_the_gate_refuses_does_not_serve_but_is_paid_for() -> None:
    past = Past(aging(6, 10), drifts=(1, 3), refused=(2,))
    # After a retraining that did not help, the next call waits for two windows: the fourth is one of them.
    policy = declared("on drift", OnDrift(windows=1, of=1), past)
    found = outcome(past, policy, 0, Costs(retraining=5))
    assert [one.serving for one in found.lived] == [0, 0, 0, 0, 4, 4]
    assert (found.retrainings, found.promoted) == (2, 1)
    assert found.cost == pytest.approx(sum(100 + 10 * age for age in (0, 1, 2, 3, 0, 1)) + 2 * 5)
    # Without the gate both led to another champion.
    assert found.ungated == pytest.approx(6 * 100 + 10 * (0 + 1 + 0 + 1 + 0 + 1) + 2 * 5)


def test_nothing_is_retrained_after_the_last_window() -> None:
    past = Past(aging(4, 10), drifts=range(4))
    lived = live(past, declared("", OnDrift(windows=1, of=1), past).calls, 0)
    assert called(lived) == [0, 1, 2]


@pytest.mark.parametrize(("weeks", "when"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3]), (4, [3]), (13, [])])
def test_a_periodic_policy_retrains_by_the_age_of_what_was_learnt_from(weeks, when) -> None:
    past = Past(aging(6, 10))
    assert called(live(past, declared("", Periodic(every=weeks * WEEK), past).calls, 0)) == when
    assert called(live(past, peers.Cara.periodic(weeks), 0)) == when


@given(
    st.lists(st.floats(0, 100), min_size=25, max_size=25),
    st.floats(0, 200),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_no_policy_costs_less_than_the_oracle(losses, retraining, calls, refusals) -> None:
    sums = np.where(np.tri(5).T > 0, np.reshape(losses, (5, 5)), np.nan)
    past = Past(sums, refused=[n for n in range(5) if refusals[n]])
    costs = Costs(retraining=retraining)
    best = oracle(past, 0, costs)
    lived = live(past, lambda _, last: calls[last.window], 0)
    paid = sum(sums[one.serving, one.window] + retraining * one.called for one in lived)
    assert best.cost <= paid + 1e-9
    # And some way to decide, of all there are, costs as little: it is no lower bound that nobody reaches.
    every_way = product((False, True), repeat=4)
    free = Past(sums)
    least = min(
        sum(sums[one.serving, one.window] + retraining * one.called for one in live(free, by(way), 0))
        for way in every_way
    )
    assert best.cost == pytest.approx(least)


def by(way):
    """Call after the windows for which ``way`` is true."""
    return lambda _, last: way[last.window]


def test_retrainings_that_lead_nowhere_or_save_less_than_they_cost_are_in_vain() -> None:
    past = Past(aging(5, 10), drifts=(0, 1))
    policy = declared("", OnDrift(windows=1, of=1), past)
    # The first champion saves 10 in the one window until the second; that saves 10 in each of three.
    found = outcome(past, policy, 0, Costs(retraining=15))
    assert called(found.lived) == [0, 1]
    assert found.vain == 1
    assert outcome(past, policy, 0, Costs(retraining=5)).vain == 0
    assert outcome(past, policy, 0, Costs(retraining=100)).vain == 2
    past.refused = (1, 2)
    assert outcome(past, policy, 0, Costs(retraining=0)).vain == 1  # the second waits, for the first was


def test_the_cheapest_policy_is_named_with_the_line_that_declares_it() -> None:
    past = Past(aging(12, 30))
    found = backtest(past, Costs(retraining=40), 4)
    assert found.best.name == "after each window"
    assert found.best.line == "policy=Periodic(every=timedelta(days=7))"
    assert found.own.name == "on shift, as declared"
    assert lower_bound(found.saved(found.best), 0.05) > 0
    assert found.sure(found.best)
    costs = [one.cost for one in found.outcomes]
    assert costs == sorted(costs)
    assert all(found.regret(one) >= 0 for one in found.outcomes)
    # Ten times the price, and the same history says otherwise.
    assert backtest(past, Costs(retraining=4_000), 4).best.name == "never"
    told = found.to_json()
    assert {one["policy"] for one in told["policies"]} >= {"never", "ADWIN", "UPF", "CARA-T", "oracle"}
    assert told["line"] == found.best.line


@pytest.mark.parametrize("first", [1, 11])
def test_there_must_be_windows_to_set_policies_by_and_to_judge_them(first) -> None:
    windows = Past(aging(12, 1)).windows
    with pytest.raises(TooFewWindows, match=f"but there are {first} and {12 - first}"):
        first_judged("toy", windows, windows[first].start)
    assert first_judged("toy", windows) == 4


def test_what_sets_a_policy_does_not_judge_it() -> None:
    """CARA's thresholds are those that cost least in the first third, whatever comes after."""
    early, late = aging(12, 50), aging(12, 0)
    sums = np.where(np.arange(12)[None, :] < 4, early, late)
    period = next(o for o in backtest(Past(sums), Costs(retraining=10), 4).outcomes if o.name == "CARA-P")
    assert period.retrainings == 7  # after each window, as would have been best before
    never = next(o for o in backtest(Past(late), Costs(retraining=10), 4).outcomes if o.name == "CARA-P")
    assert never.retrainings == 1  # every fourth window at the most: it knows of no longer period


def test_upf_retrains_where_age_costs_more_than_a_retraining_and_only_there() -> None:
    dear = Past(aging(18, 40) + np.random.default_rng(0).normal(0, 1, (18, 18)))
    found = outcome(dear, peers.upf(dear, 6, Costs(retraining=20)), 6, Costs(retraining=20))
    assert found.retrainings >= 8
    assert found.cost < outcome(dear, declared("", Never(), dear), 6, Costs(retraining=20)).cost / 2
    still = Past(aging(18, 0) + np.random.default_rng(0).normal(0, 1, (18, 18)))
    assert (
        outcome(still, peers.upf(still, 6, Costs(retraining=500)), 6, Costs(retraining=500)).retrainings == 0
    )


def test_adwin_sees_a_jump_and_nothing_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    calm = [peers.changed(rng.random(3_000)) for _ in range(50)]
    jumped = [peers.changed(np.concatenate([rng.random(1_500), rng.random(1_500) * 0.7])) for _ in range(50)]
    assert sum(calm) <= 1
    assert all(jumped)
    assert not peers.changed(np.empty(0))
    assert not peers.changed(np.zeros(1))


def test_every_declared_policy_is_put_through_and_the_own_one_once() -> None:
    past = Past(aging(6, 1))
    names = [one.name for one in every(past)]
    assert names.count("on shift, as declared") == 1
    past.spec = replace(TOY, policy=OnDrift(windows=1, of=1))
    assert [one.name for one in every(past)][-1] == "as declared"


@pytest.mark.parametrize(
    "policy",
    [
        Never(),
        Periodic(every=timedelta(days=3.5)),
        OnDrift(windows=1, of=1, limit=3),
        OnEstimate(of=5, per=WEEK),
    ],
)
def test_the_line_to_paste_is_the_policy(policy) -> None:
    from headrace.monitoring import rule

    assert eval(declaration(policy).removeprefix("policy="), vars(rule)) == policy


def test_likeness_weighs_the_rows_that_are_like_what_is_asked() -> None:
    columns = SimpleNamespace(numeric=("x",), categorical=("c",), names=("c", "x"))
    one = pa.table({"x": [0.0, 10.0, None], "c": ["a", "b", None]})
    apart = peers._apart(one, one, columns)
    assert apart[0, 0] == apart[1, 1] == 0
    assert apart[0, 1] == 1
    assert apart[0, 2] == 1  # a missing number is as far as can be
    assert apart[2, 2] == 0.5  # and so from another; a missing category is like one


@pytest.mark.parametrize(("problem", "shape"), [(Binary(), (0,)), (MultiClass(("a", "b", "c")), (0, 3))])
def test_in_a_window_in_which_nothing_was_asked_nothing_is_predicted(tmp_path, problem, shape) -> None:
    def predict(rows: pa.Table) -> np.ndarray:
        raise AssertionError("there are no rows")

    vintage = Vintage(tmp_path)
    vintage.__dict__["model"] = SimpleNamespace(problem=problem, predict=predict)
    asked = pa.table({"x": pa.array([], pa.float64())})
    pq.write_table(asked, rows := tmp_path / "rows.parquet")
    predicted = vintage.predicted(rows)
    assert predicted.shape == vintage.predicted(rows).shape == shape
    spec = replace(TOY, problem=problem)
    assert with_predictions(spec, asked, predicted).column_names == ["x", *problem.columns]


def test_evidently_says_nothing_of_a_window_without_rows() -> None:
    columns = Columns((), ("x",))
    before = pd.DataFrame({"x": np.arange(2_000.0)})
    assert not preset(before, before.iloc[:0], columns)
    assert not preset(before, before, columns)
    assert preset(before, before + 5_000, columns)


@pytest.mark.parametrize("costs", [Costs(retraining=-1), Costs(loss=-0.5)])
def test_costs_below_zero_are_a_slip(costs) -> None:
    assert [slip for slip in slips(replace(TOY, costs=costs)) if "must not be below 0" in slip]
