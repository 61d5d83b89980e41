"""The gate: better by more than chance, or not promoted."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headrace.gate import Gain, Gate, Verdict, best, groups, judge, lower_bound, paired_gain

WEEK = np.repeat(np.arange(7), 100)


def test_without_a_champion_the_gain_is_over_a_guess() -> None:
    gain = Gain(0.02, 0.01, 500, 100, 99.0)
    verdict = judge(Gate(), "1", None, gain, "nats")
    assert verdict.promoted
    assert "nats per row over a guess from the past alone on 500 held-out rows" in verdict.reason
    assert not judge(Gate(), "1", None, replace(gain, mean=0.0)).promoted


@pytest.mark.parametrize(
    ("gain", "decision"),
    [
        (Gain(0.02, 0.01, 500, 100, 99.0), "promoted"),
        (Gain(0.02, 0.01, 500, 7, 6.0), "promoted"),
        (Gain(0.02, 0.01, 500, 5, 4.0), "rejected"),  # t is 2.13 there
        (Gain(0.02, 0.0001, 500, 7, 2.1), "not enough evidence"),
        (Gain(0.016, 0.01, 500, 100, 99.0), "rejected"),
        (Gain(-0.02, 0.001, 500, 100, 99.0), "rejected"),
        (Gain(0.02, 0.0001, 500, 4, 3.0), "not enough evidence"),
        (Gain(0.02, math.inf, 500, 1, 0.0), "not enough evidence"),
    ],
)
def test_a_win_counts_only_when_its_lower_bound_does_and_its_groups_are_enough(
    gain: Gain, decision: str
) -> None:
    verdict = judge(Gate(), "2", "1", gain)
    assert (verdict.decision, verdict.promoted) == (decision, decision == "promoted")
    if decision != "not enough evidence":
        assert f"{gain.mean:+.4f} ± {gain.stderr:.4f}" in verdict.reason
    else:
        assert f"in {gain.groups} groups" in verdict.reason


def test_the_least_gain_is_asked_for_beyond_chance() -> None:
    refused = judge(Gate(min_gain=0.01), "2", "1", Gain(0.02, 0.01, 500, 50, 49.0))
    assert (refused.promoted, str(refused)[:23]) == (False, "version 2 not released.")


def test_the_risk_is_the_ones_of_a_one_sided_t_test() -> None:
    rng = np.random.default_rng(0)
    days = rng.normal(0.1, 1, 12)
    gain = paired_gain(days, np.zeros(12), np.arange(12))
    at = stats.ttest_1samp(days, 0, alternative="greater").pvalue
    assert lower_bound(gain, at) == pytest.approx(0, abs=1e-12)


def test_groups_of_equal_size_count_as_the_means_of_groups_do() -> None:
    rng = np.random.default_rng(0)
    savings = rng.normal(0, 1, 700) + rng.normal(0, 1, 7)[WEEK]
    gain = paired_gain(savings, np.zeros(700), WEEK)
    means = savings.reshape(7, 100).mean(axis=1)
    assert gain.mean == pytest.approx(savings.mean())
    assert gain.stderr == pytest.approx(means.std(ddof=1) / np.sqrt(7))
    assert (gain.rows, gain.groups, round(gain.df, 9)) == (700, 7, 6)


def test_of_unequal_groups_the_standard_error_and_its_freedom_are_those_of_bell_and_mccaffrey() -> None:
    sizes, rng = np.array([5, 40, 7, 90, 13, 1]), np.random.default_rng(3)
    of = np.repeat(np.arange(6), sizes)
    savings = rng.normal(0, 1, of.size)
    gain = paired_gain(savings, np.zeros(of.size), of)
    # The same by matrices, of a regression on a constant.
    one, together = np.ones((of.size, 1)), of[:, None] == of
    left = np.eye(of.size) - one @ one.T / of.size
    adjusted = []
    for group in range(6):
        rows = of == group
        values, vectors = np.linalg.eigh(left[np.ix_(rows, rows)])
        adjusted.append(left[:, rows] @ (vectors * values**-0.5) @ vectors.T @ one[rows] / of.size)
    weights = np.hstack(adjusted)
    assert gain.stderr**2 == pytest.approx(float(((weights.T @ savings) ** 2).sum()))
    spread = np.linalg.eigvalsh(weights.T @ together @ weights)
    assert gain.df == pytest.approx(spread.sum() ** 2 / (spread**2).sum())


@pytest.mark.parametrize("day", [0.0, 1.0], ids=["rows apart", "days together"])
def test_of_equal_models_no_more_are_promoted_than_was_promised(day: float) -> None:
    """Days of very unequal size; beside it, what is usual for groups, and rows taken to be independent."""
    rng = np.random.default_rng(1)
    sizes = np.array([20, 400, 60, 200, 120, 90, 310])
    of = np.repeat(np.arange(7), sizes)
    promoted = usual = naive = 0
    for _ in range(2_000):
        savings = rng.standard_t(3, of.size) + day * rng.normal(0, 1, 7)[of]
        promoted += judge(Gate(), "2", "1", paired_gain(savings, np.zeros(of.size), of)).promoted
        naive += savings.mean() > 1.645 * savings.std(ddof=1) / np.sqrt(of.size)
        strays = np.bincount(of, savings - savings.mean())
        stderr = np.sqrt(7 / 6 * (strays @ strays)) / of.size
        usual += savings.mean() > stats.t.ppf(0.95, 6) * stderr
    assert promoted / 2_000 < 0.06
    assert usual / 2_000 > 0.07
    assert naive / 2_000 > 0.3 or not day


def test_a_real_win_is_found() -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        savings = 0.5 + rng.normal(0, 1, 700) + rng.normal(0, 0.2, 7)[WEEK]
        found += judge(Gate(), "2", "1", paired_gain(savings, np.zeros(700), WEEK)).promoted
    assert found > 190


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5)), min_size=1, max_size=50))
def test_a_model_gains_nothing_over_itself_and_is_never_promoted_over_itself(
    rows: list[tuple[float, int]],
) -> None:
    losses, of = zip(*rows, strict=True)
    gain = paired_gain(losses, losses, of)
    assert gain.mean == 0
    assert not judge(Gate(), "2", "1", gain).promoted


@pytest.mark.parametrize(
    ("champion", "challenger", "of", "complaint"),
    [
        ([0.5, 0.5], [0.5], [1, 2], "equal shapes"),
        ([0.5, 0.5], [0.5, 0.5], [1], "equal shapes"),
        ([], [], [], "equal shapes"),
        ([0.5, math.inf], [0.5, 0.5], [1, 2], "finite"),
        ([0.5, 0.5], [0.5, math.nan], [1, 2], "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(champion, challenger, of, complaint) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=complaint):
        paired_gain(champion, challenger, of)


def test_rows_belong_together_by_a_span_of_time_or_by_a_column() -> None:
    start = datetime(2013, 3, 9, 22, tzinfo=UTC)
    rows = pa.table(
        {
            "event_timestamp": [start + timedelta(hours=hour) for hour in (0, 1, 2, 3, 26)],
            "shop": ["b", "a", None, "b", None],
        }
    )

    def together(gate: Gate) -> list[list[int]]:
        of = groups(gate, rows)
        return [np.flatnonzero(of == each).tolist() for each in dict.fromkeys(of.tolist())]

    assert together(Gate()) == [[0, 1], [2, 3], [4]]
    assert together(Gate(group=timedelta(hours=1))) == [[0], [1], [2], [3], [4]]
    assert together(Gate(group="shop")) == [[0, 3], [1], [2, 4]]


def test_of_candidates_that_only_chance_tells_apart_the_first_declared_is_put_forward() -> None:
    rng = np.random.default_rng(0)
    losses = {"a": rng.normal(0.5, 0.1, 700), "coin": rng.normal(0.7, 0.1, 700)}
    losses["b"] = losses["a"] + rng.normal(0, 0.01, 700)
    for order, chosen in ((("a", "b"), "a"), (("b", "a"), "b"), (("coin", "a", "b"), "a")):
        assert best(Gate(), {name: losses[name] for name in order}, WEEK) == chosen


def test_a_verdict_survives_the_ledger() -> None:
    gains = (Gain(0.02, 0.01, 500, 7, 6.0), Gain(0.02, math.inf, 500, 1, 0.0))
    for verdict in (*(judge(Gate(), "2", "1", gain) for gain in gains), judge(Gate(), "1", None, gains[0])):
        assert Verdict.of(json.loads(json.dumps(asdict(verdict), allow_nan=False))) == verdict


def test_a_verdict_of_before_there_were_groups_is_read() -> None:
    old = {"promoted": True, "reason": "better", "challenger": "2", "champion": "1"}
    old["gain"] = {"mean": 0.02, "stderr": 0.01, "rows": 500}
    assert Verdict.of(old) == Verdict("promoted", "better", "2", "1")
    assert Verdict.of(old | {"promoted": False}).decision == "rejected"
