"""The ledger hands each piece of work out once, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headrace.errors import AlreadyClaimed
from headrace.ledger import Ledger

NOW = datetime(2013, 7, 8, tzinfo=UTC)
LEASE = timedelta(minutes=30)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "postgres":
        # a table of its own per test: the pipeline's name keeps tests apart
        return Ledger(request.getfixturevalue("postgres"))
    return Ledger(f"sqlite:///{tmp_path}/below/ledger.db")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name


def test_work_is_claimed_once_and_its_result_is_handed_to_whoever_asks_again(
    ledger: Ledger, name: str
) -> None:
    claim = {"now": NOW, "lease": LEASE}
    assert ledger.claim(name, "training", "drift/1", holder="a", **claim) is None
    with pytest.raises(AlreadyClaimed, match=r"worked on by a until 2013-07-08 00:30:00 UTC"):
        ledger.claim(name, "training", "drift/1", holder="b", **claim)

    ledger.finish(name, "training", "drift/1", holder="a", now=NOW, promoted=True)

    done = ledger.claim(name, "training", "drift/1", holder="b", **claim)
    assert done is not None
    assert done.detail == {"promoted": True}


def test_a_retried_run_goes_on_with_its_own_claim(ledger: Ledger, name: str) -> None:
    for _ in range(2):
        assert ledger.claim(name, "training", "drift/1", holder="a", now=NOW, lease=LEASE) is None
    assert len(ledger.entries(name)) == 1


def test_a_dead_holders_work_is_taken_over_when_its_lease_has_ended(ledger: Ledger, name: str) -> None:
    ledger.claim(name, "training", "drift/1", holder="dead", now=NOW, lease=LEASE)
    later = NOW + LEASE
    assert ledger.claim(name, "training", "drift/1", holder="b", now=later, lease=LEASE) is None
    with pytest.raises(AlreadyClaimed, match="by b until"):
        ledger.claim(name, "training", "drift/1", holder="dead", now=later, lease=LEASE)


def test_the_first_result_stands(ledger: Ledger, name: str) -> None:
    ledger.finish(name, "promotion", "3", holder="a", now=NOW, reason="first")
    second = ledger.finish(name, "promotion", "3", holder="b", now=NOW, reason="second")
    assert second.detail == {"reason": "first"}


RACE = """
import sys
from datetime import UTC, datetime, timedelta
from headrace.errors import AlreadyClaimed
from headrace.ledger import Ledger
url, pipeline, holder = sys.argv[1:]
won = 0
for key in range(20):
    try:
        won += Ledger(url).claim(pipeline, "race", str(key), holder=holder,
                                 now=datetime.now(UTC), lease=timedelta(hours=1)) is None
    except AlreadyClaimed:
        pass
print(won)
"""


def test_of_processes_that_race_for_a_claim_exactly_one_wins(ledger: Ledger, name: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, ledger.url, name, f"racer {i}"], stdout=subprocess.PIPE, text=True
        )
        for i in range(4)
    ]
    assert sum(int(racer.communicate(timeout=60)[0]) for racer in racers) == 20
    assert [entry.attempt for entry in ledger.entries(name)] == [1] * 20
