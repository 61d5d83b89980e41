"""Evidence from live traffic: it may be looked at every day, and promotes no more for that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from headrace import registry
from headrace.gate import Gate
from headrace.ledger import Ledger
from headrace.release import live, promotion
from headrace.release.errors import NothingShadowed
from headrace.release.live import growth, interval
from tests.test_serving import ROW, SPEC, START, Toy, ask, toy  # noqa: F401  # a fixture

DAYS = 365


def test_of_equal_models_no_more_are_promoted_though_somebody_looks_every_day_of_a_year() -> None:
    """Days of unequal size and heavy tails; beside it, the usual test, repeated each day."""
    rng, promoted, usual, years = np.random.default_rng(0), 0, 0, 200
    for _ in range(years):
        sums = rng.standard_t(3, DAYS) * rng.uniform(0.3, 3, DAYS)
        promoted += max(growth(sums, np.ones(DAYS), 0.0)) >= 20
        days = np.arange(5, DAYS + 1)
        tests = [stats.ttest_1samp(sums[:n], 0, alternative="greater").pvalue <= 0.05 for n in days[::20]]
        usual += any(tests)
    assert promoted / years < 0.05
    assert usual / years > 0.15


@pytest.mark.parametrize("gain", [0.4, 0.8])
def test_a_true_gain_is_found_and_its_interval_holds_it(gain: float) -> None:
    rng, found, held = np.random.default_rng(1), 0, 0
    for _ in range(40):
        sums = rng.normal(gain, 1, 200) * 10
        low, high = interval(sums, np.full(200, 10.0), 0.05)
        found, held = found + (low > 0), held + (low <= gain <= high)
    assert found >= 38
    assert held >= 36


def test_of_a_day_or_none_nothing_is_said() -> None:
    assert growth([1.0], [10], 0.0) == [1.0]
    assert growth([], [], 0.0) == []
    assert interval([1.0], [10], 0.05) == (-np.inf, np.inf)


def test_who_bets_on_a_mean_that_is_too_high_loses() -> None:
    sums, counts = np.full(100, 5.0), np.full(100, 10.0)
    assert max(growth(sums, counts, 0.4)) > 20
    assert growth(sums, counts, 0.6)[-1] <= 1


def test_a_shadow_takes_the_champions_place_once_live_traffic_has_proven_it(
    toy: Toy,  # noqa: F811
) -> None:
    """Version 1 has four times as many trees as version 2, which serves."""
    spec, ledger = replace(SPEC, gate=Gate(live=True)), Ledger(f"sqlite:///{toy.home}/ledger.db")
    rooms = (toy.feast, toy.lake, toy.mlflow, ledger, "a test")
    told = (
        toy.lake.connect({"things": "raw/things"}).sql("FROM things ORDER BY id").to_arrow_table().to_pylist()
    )
    asked = [
        {"id": one["id"], "x": one["x"], "kind": one["kind"], "place": one["place"]}
        | {"event_timestamp": one["asked_at"].isoformat()}
        for one in told
    ]
    registry.set_alias(toy.mlflow, "toy", "champion", 2)
    registry.set_shadow(toy.mlflow, "toy", 1, on=True)
    try:
        with pytest.raises(NothingShadowed):
            live.evidence(spec, 1, toy.lake, toy.mlflow, START)
        with toy.client() as client:
            for start in range(0, len(asked), 500):
                assert ask(client, asked[start : start + 500]).status_code == 200
        now = datetime.now(UTC) + timedelta(minutes=1)
        found = live.evidence(spec, 1, toy.lake, toy.mlflow, now)
        assert (found.version, found.champion, found.rows, found.groups) == (1, 2, len(asked), 42)
        assert found.lower <= found.mean <= found.upper
        assert "not known yet" not in found.within
        assert "above what is not known yet" in replace(found, lower=-np.inf).within
        assert live.judge(spec, found).decision == "promoted"
        short = live.judge(replace(spec, gate=Gate(min_gain=found.mean)), replace(found, chance=1.0))
        assert short.decision == "not enough evidence"
        assert live.judge(spec, replace(found, chance=1.0, upper=-0.1)).decision == "rejected"

        settled = live.settle(spec, 1, *rooms, now)
        assert settled
        assert settled.promoted
        champion = registry.champion(toy.mlflow, "toy")
        assert champion
        assert (champion.version, champion.verdict) == (1, "promoted")
        assert "live requests" in champion.reason
        assert registry.shadows(registry.aliases(toy.mlflow, "toy")) == []
        assert promotion.champions(spec, ledger) == [2, 1]
        assert "receipt" in promotion.changes(spec, ledger)[-1].detail

        # Killed before it let go of the shadow; and one that was promoted before, and replaced since.
        registry.set_shadow(toy.mlflow, "toy", 1, on=True)
        assert live.settle(spec, 1, *rooms, now) is None
        assert registry.shadows(registry.aliases(toy.mlflow, "toy")) == []
        promotion.move(spec, 2, "for a while", toy.mlflow, ledger, "a test")
        registry.set_shadow(toy.mlflow, "toy", 1, on=True)
        again = live.settle(spec, 1, *rooms, now)
        assert again
        assert again.promoted
        assert promotion.champions(spec, ledger) == [2, 1, 2, 1]
        assert registry.shadows(registry.aliases(toy.mlflow, "toy")) == []
    finally:
        registry.set_alias(toy.mlflow, "toy", "champion", 1)
