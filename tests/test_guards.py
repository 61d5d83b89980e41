"""Guards: better on the whole is not enough if it is worse for some."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from headrace.gate import Bound, Gain, Gate, Guarded, Guards, Verdict, judge, paired_gain
from headrace.pipeline import Columns
from headrace.problem import Binary, MultiClass, Regression
from headrace.release.guards import bounds, chance_of_worse, look
from headrace.release.page import needed, page
from headrace.release.verdict import answered

DAYS, ROWS = 7, 4_000
OF = np.arange(ROWS) % DAYS
RNG = np.random.default_rng(0)
TABLE = pa.table(
    {
        "carrier": RNG.choice(["AA", "B6", "UA", None], ROWS, p=[0.2, 0.3, 0.4, 0.1]),
        "origin": RNG.choice(["EWR", "JFK"], ROWS),
        "hour": RNG.integers(5, 23, ROWS),
        "temp": np.where(RNG.random(ROWS) < 0.1, np.nan, RNG.normal(50, 10, ROWS)),
        "woman": RNG.random(ROWS) < 0.5,
    }
)
COLUMNS = Columns(categorical=("carrier", "origin"), numeric=("hour", "temp"))
TRUTH = (RNG.random(ROWS) < 0.3).astype(float)


def predicted(noise: float, seed: int) -> np.ndarray:
    """Return probabilities that know the truth, but for so much noise."""
    rng = np.random.default_rng(seed)
    return Binary().checked(1 / (1 + np.exp(-(2 * TRUTH - 1.5 + noise * rng.normal(0, 1, ROWS)))))


def looked(gate: Gate, challenger: np.ndarray, champion: np.ndarray | None = None) -> list[Guarded]:
    champion = predicted(1.0, 1) if champion is None else champion
    return look(gate, Binary(), COLUMNS, TABLE, TRUTH, champion, challenger, OF)


def spoilt(column: str, value: object, by: float = 1.5) -> np.ndarray:
    """Return what is better everywhere, but for the rows with one value of a column."""
    there = np.array([one == value for one in TABLE[column].to_pylist()])
    return np.where(there, predicted(1.0 + by, 3), predicted(0.3, 2))


def test_a_challenger_that_is_better_for_most_and_worse_for_some_is_not_promoted() -> None:
    gate, champion, challenger = Gate(), predicted(1.0, 1), spoilt("carrier", "AA", by=0.6)
    gain = paired_gain(Binary().losses(TRUTH, champion), Binary().losses(TRUTH, challenger), OF)
    assert judge(gate, "2", "1", gain).promoted
    verdict = judge(gate, "2", "1", gain, "nats", looked(gate, challenger))
    assert verdict.decision == "rejected"
    assert "But it is worse in" in verdict.reason
    assert "where carrier = AA" in verdict.reason
    assert any(not one.held for one in verdict.guards)
    assert Verdict.of(asdict(verdict)) == verdict


def test_one_that_is_better_for_all_passes_its_guards() -> None:
    gate, champion, challenger = Gate(), predicted(1.0, 1), predicted(0.3, 2)
    gain = paired_gain(Binary().losses(TRUTH, champion), Binary().losses(TRUTH, challenger), OF)
    assert judge(gate, "2", "1", gain, "nats", looked(gate, challenger)).promoted


def test_a_segment_may_be_of_a_column_that_no_model_takes() -> None:
    gate = Gate(guards=Guards(segments=("woman",), slices=0))
    found = {one.name: one for one in looked(gate, spoilt("woman", True))}
    assert {name: one.held for name, one in found.items()} == {"woman = true": False, "woman = false": True}


def test_what_is_not_worse_by_more_than_the_margin_is_not_worse() -> None:
    challenger = spoilt("carrier", "AA", by=0.3)
    [tight] = [
        one for one in looked(Gate(guards=Guards(("carrier",), 0, 0.0)), challenger) if "AA" in one.name
    ]
    [wide] = [
        one for one in looked(Gate(guards=Guards(("carrier",), 0, 0.5)), challenger) if "AA" in one.name
    ]
    assert (tight.held, wide.held) == (False, True)
    assert tight.gain == wide.gain < 0


def test_more_scores_than_the_loss_are_guarded() -> None:
    champion, ranks_worse = predicted(0.5, 1), predicted(1.6, 2)
    gate = Gate(guards=Guards(slices=0, scores={"auc": 0.01, "brier": 0.5}))
    found = {one.name: one for one in looked(gate, ranks_worse, champion)}
    assert (found["auc"].held, found["brier"].held) == (False, True)
    problem = Binary()
    apart = problem.scores(TRUTH, ranks_worse)["auc"] - problem.scores(TRUTH, champion)["auc"]
    assert found["auc"].gain == pytest.approx(apart, abs=2e-4)


@pytest.mark.parametrize("groups", [7, 30])
def test_anything_at_all_is_called_worse_by_chance_no_more_often_than_was_promised(groups: int) -> None:
    """Fifty things that overlap, of groups of unequal size and heavy tails; nothing is worse."""
    rng, called = np.random.default_rng(5), 0
    for _ in range(300):
        days = rng.standard_t(3, (1, groups)) * rng.uniform(0.2, 3, groups)
        sums = days * rng.random((50, 1)) + rng.standard_t(3, (50, groups)) * rng.uniform(0.2, 3, groups)
        called += min(chance_of_worse(sums)) <= 0.05
    assert called / 300 < 0.08


def test_of_a_single_group_nothing_is_called_worse_and_nothing_is_looked_at_where_nothing_is_asked() -> None:
    assert min(chance_of_worse([[-3.0], [2.0]])) >= 0.5
    assert chance_of_worse([[0.0, 0.0]]) == [1.0]
    assert looked(Gate(guards=None), spoilt("carrier", "AA")) == []
    assert looked(Gate(guards=Guards(slices=0)), spoilt("carrier", "AA")) == []


@pytest.mark.parametrize(
    ("problem", "truth", "right", "wrong"),
    [
        (Binary(), TRUTH, np.full(ROWS, 0.3), np.full(ROWS, 0.7)),
        (Regression(), RNG.normal(5, 1, ROWS), np.full(ROWS, 5.0), np.full(ROWS, 6.0)),
        (Regression("absolute"), RNG.normal(5, 1, ROWS), np.full(ROWS, 5.0), np.full(ROWS, 6.0)),
        (Regression("poisson"), RNG.poisson(3, ROWS) * 1.0, np.full(ROWS, 3.0), np.full(ROWS, 5.0)),
        (
            Regression("quantile"),
            RNG.normal(0, 1, ROWS),
            np.tile([-1.28, 0, 1.28], (ROWS, 1)),
            np.tile([-0.5, 0, 0.5], (ROWS, 1)),
        ),
        (
            MultiClass(classes=("a", "b", "c")),
            RNG.choice(3, ROWS, p=[0.6, 0.3, 0.1]) * 1.0,
            np.tile([0.6, 0.3, 0.1], (ROWS, 1)),
            np.tile([0.1, 0.3, 0.6], (ROWS, 1)),
        ),
    ],
)
def test_calibration_error_is_small_for_what_comes_true_and_large_for_what_does_not(
    problem: object, truth: np.ndarray, right: np.ndarray, wrong: np.ndarray
) -> None:
    off = [problem.scores(truth, of)["calibration_error"] for of in (right, wrong)]  # type: ignore[attr-defined]
    assert off[0] < 0.05
    assert off[1] > 0.15


def test_whole_numbers_that_equal_their_median_do_not_count_against_it() -> None:
    truth = np.array([0.0] * 70 + [1.0] * 30)
    assert Regression("absolute").scores(truth, np.zeros(100))["calibration_error"] == 0


def test_calibration_latency_and_size_stay_within_bounds_or_are_no_worse_than_before() -> None:
    gate, bad, costs = Gate(), np.full(ROWS, 0.7), {"latency_ms": 120.0, "size_mb": 3.0}
    found = bounds(gate, Binary(), TRUTH, predicted(0.3, 1), bad, costs)
    assert {one.name: one.held for one in found} == {
        "calibration error": False,
        "latency in ms": False,
        "size in MB": True,
    }
    assert bounds(gate, Binary(), TRUTH, bad, bad, {})[0].held
    verdict = judge(gate, "2", "1", Gain(0.02, 0.001, 500, 50, 49.0), "nats", (), found)
    assert verdict.decision == "rejected"
    assert "Its latency in ms 120 is above 100." in verdict.reason


def test_a_verdicts_page_says_what_was_looked_at_and_what_would_have_been_needed() -> None:
    gate, gain = Gate(), Gain(0.01, 0.01, 700, 7, 6.0)
    verdict = judge(
        gate, "2", "1", gain, "nats", looked(gate, spoilt("carrier", "AA")), [Bound("size", 1, 2)]
    )
    told = page(verdict, gate, "nats")
    assert "**Rejected.**" in told
    assert "| interval of 90% | \\+0.0100 to" not in told
    assert "| held | size | 1 | 2 |" in told
    assert "carrier = AA" in told
    assert "**broken**" in told
    assert needed(gain, gate).startswith(
        "On these rows, a gain above +0.0194 would have been enough; this one, in about "
    )
    groups = int(needed(gain, gate).rsplit("about ", 1)[1].split(" ")[0])
    enough = Gain(0.01, 0.01 * np.sqrt(7 / groups), 700, groups, groups - 1.0)
    short = Gain(0.01, 0.01 * np.sqrt(7 / (groups - 1)), 700, groups - 1, groups - 2.0)
    assert (judge(gate, "2", "1", enough).promoted, judge(gate, "2", "1", short).promoted) == (True, False)
    assert "groups" not in needed(Gain(-0.01, 0.01, 700, 7, 6.0), gate)


def test_a_person_says_yes_or_no_or_nothing() -> None:
    verdict, day = judge(Gate(), "2", "1", Gain(0.02, 0.001, 500, 50, 49.0)), timedelta(days=1)
    yes = answered(verdict, day, True, "Ada", "seen")
    assert (yes.promoted, yes.approved_by) == (True, "Ada")
    assert yes.reason.endswith("Approved by Ada: seen.")
    no = answered(verdict, day, False, "", "")
    assert (no.decision, no.reason.endswith("Not approved by somebody who gave no name.")) == (
        "rejected",
        True,
    )
    silent = answered(verdict, day, None)
    assert (silent.decision, silent.approved_by) == ("rejected", "")
    assert silent.reason.endswith("Nobody approved it within 1 day.")
