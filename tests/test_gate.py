"""The gate: better by more than chance, or not promoted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.gate import Gain, Gate, Verdict, best, judge, paired_gain


def test_without_a_champion_the_challenger_is_promoted() -> None:
    assert judge(Gate(), "1", None, None).promoted


@pytest.mark.parametrize(
    ("gain", "promoted"),
    [(Gain(0.02, 0.01, 500), True), (Gain(0.016, 0.01, 500), False), (Gain(-0.02, 0.001, 500), False)],
)
def test_a_win_counts_only_when_its_lower_bound_does(gain: Gain, promoted: bool) -> None:
    verdict = judge(Gate(), "2", "1", gain)
    assert verdict.promoted is promoted
    assert f"{gain.mean:+.4f} ± {gain.stderr:.4f}" in verdict.reason


def test_the_least_gain_is_asked_for_beyond_chance() -> None:
    refused = judge(Gate(min_gain=0.01), "2", "1", Gain(0.02, 0.01, 500))
    assert (refused.promoted, str(refused)[:23]) == (False, "version 2 not released.")


def test_paired_gain_is_the_mean_difference_of_log_loss_with_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    y, old, new = rng.integers(0, 2, 1000), rng.uniform(0.1, 0.9, 1000), rng.uniform(0.1, 0.9, 1000)
    loss = [-np.where(y == 1, np.log(p), np.log(1 - p)) for p in (old, new)]
    gain = paired_gain(y, old, new)
    assert gain.mean == pytest.approx(loss[0].mean() - loss[1].mean())
    assert gain.stderr == pytest.approx((loss[0] - loss[1]).std(ddof=1) / np.sqrt(1000))


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.99)), min_size=2, max_size=50))
def test_a_model_gains_nothing_over_itself_and_is_never_promoted_over_itself(
    rows: list[tuple[bool, float]],
) -> None:
    labels, scores = zip(*rows, strict=True)
    gain = paired_gain(np.array(labels, int), scores, scores)
    assert (gain.mean, gain.stderr) == (0, 0)
    assert not judge(Gate(), "2", "1", gain).promoted


@pytest.mark.parametrize(
    ("labels", "champion", "challenger", "complaint"),
    [
        ([1, 0], [0.5, 0.5], [0.5], "equal shapes"),
        ([1], [0.5], [0.5], "equal shapes"),
        ([2, 0], [0.5, 0.5], [0.5, 0.5], "0 or 1"),
        ([1, 0], [0.0, 0.5], [0.5, 0.5], "inside"),
        ([1, 0], [0.5, 0.5], [0.5, float("nan")], "inside"),
    ],
)
def test_what_cannot_be_compared_is_refused(labels, champion, challenger, complaint) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=complaint):
        paired_gain(labels, champion, challenger)


def test_of_candidates_that_only_chance_tells_apart_the_first_declared_is_put_forward() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.1, 0.9, 2000)
    labels = (rng.uniform(size=2000) < truth).astype(int)
    near = np.clip(truth + rng.normal(0, 0.01, 2000), 0.01, 0.99)
    assert best(Gate(), labels, {"a": near, "b": truth}) == "a"
    assert best(Gate(), labels, {"b": truth, "a": near}) == "b"
    assert best(Gate(), labels, {"coin": np.full(2000, 0.5), "a": near, "b": truth}) == "a"


def test_a_verdict_survives_the_ledger() -> None:
    import json
    from dataclasses import asdict

    for verdict in (judge(Gate(), "2", "1", Gain(0.02, 0.01, 500)), judge(Gate(), "1", None, None)):
        assert Verdict.of(json.loads(json.dumps(asdict(verdict)))) == verdict
