"""The ledger hands each piece of work out once, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.ledger import AlreadyClaimed, Ledger, NotClaimed
from headrace.settings import Settings

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
    claim = {"lease": LEASE}
    assert ledger.claim(name, "training", "drift/1", holder="a", **claim) is None
    with pytest.raises(AlreadyClaimed, match=r"worked on by a until 20\d\d-.* UTC at the latest"):
        ledger.claim(name, "training", "drift/1", holder="b", **claim)

    ledger.finish(name, "training", "drift/1", holder="a", promoted=True)

    done = ledger.claim(name, "training", "drift/1", holder="b", **claim)
    assert done is not None
    assert done.detail == {"promoted": True}


def test_a_retried_run_goes_on_with_its_own_claim(ledger: Ledger, name: str) -> None:
    for _ in range(2):
        assert ledger.claim(name, "training", "drift/1", holder="a", lease=LEASE) is None
    assert len(ledger.entries(name)) == 1


def test_a_dead_holders_work_is_taken_over_when_its_lease_has_ended(ledger: Ledger, name: str) -> None:
    short = timedelta(milliseconds=200)
    ledger.claim(name, "training", "drift/1", holder="dead", lease=short)
    assert [claim.holder for claim in ledger.running() if claim.pipeline == name] == ["dead"]
    time.sleep(short.total_seconds())
    assert ledger.claim(name, "training", "drift/1", holder="b", lease=LEASE) is None
    with pytest.raises(AlreadyClaimed, match="by b until"):
        ledger.claim(name, "training", "drift/1", holder="dead", lease=LEASE)
    assert [claim.holder for claim in ledger.running() if claim.pipeline == name] == ["b"]


@pytest.mark.parametrize("off", [timedelta(days=365), timedelta(hours=7), timedelta(hours=-7)], ids=str)
def test_a_clock_that_is_set_neither_ends_a_lease_nor_lengthens_it(
    ledger: Ledger, name: str, off: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + off

    short = timedelta(seconds=1)
    ledger.claim(name, "training", "before", holder="a", lease=LEASE)
    with monkeypatch.context() as patch:
        patch.setattr("headrace.ledger.datetime", Off)
        with pytest.raises(AlreadyClaimed):
            ledger.claim(name, "training", "before", holder="b", lease=LEASE)
        ledger.claim(name, "training", "meanwhile", holder="a", lease=short)
    with pytest.raises(AlreadyClaimed):
        ledger.claim(name, "training", "meanwhile", holder="b", lease=LEASE)
    time.sleep(short.total_seconds())
    assert ledger.claim(name, "training", "meanwhile", holder="b", lease=LEASE) is None


def test_what_was_claimed_before_the_machine_was_started_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger in a file is one machine's: whoever worked on it ended with it."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.claim("p", "training", "drift/1", holder="a", lease=LEASE)
    monkeypatch.setattr("headrace.ledger.started", lambda: "another")
    assert ledger.running() == []
    assert ledger.claim("p", "training", "drift/1", holder="b", lease=LEASE) is None


def test_a_claim_is_freed_by_hand_with_a_word_of_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(settings.ledger)
    ledger.claim("flights", "training", "drift/1", holder="flow run 7", lease=LEASE)
    ledger.claim("flights", "training", "drift/2", holder="flow run 8", lease=LEASE)
    ledger.finish("flights", "training", "drift/2", holder="flow run 8")
    monkeypatch.setenv("COLUMNS", "160")
    free = ["claims", "free", "flights", "training", "drift/1"]
    told = CliRunner().invoke(app, ["claims", "list"]).output
    assert told.splitlines()[1].startswith("flights\ttraining\tdrift/1\tflow run 7\t")
    (line,) = json.loads(CliRunner().invoke(app, ["claims", "list", "--json"]).output)
    assert line["holder"] == "flow run 7"
    assert "flow run 8" not in told
    assert CliRunner().invoke(app, free, input="n\n").exit_code == 1
    with pytest.raises(AlreadyClaimed, match="headrace claims"):
        ledger.claim("flights", "training", "drift/1", holder="b", lease=LEASE)
    done = CliRunner().invoke(app, free, input="y\n")
    assert "flow run 7 claimed it at" in done.output
    assert "If it is still at work" in done.output
    assert CliRunner().invoke(app, ["claims", "list"]).output == "Nothing is claimed.\n"
    assert isinstance(CliRunner().invoke(app, free).exception, NotClaimed)
    assert ledger.claim("flights", "training", "drift/1", holder="b", lease=LEASE) is None


def test_the_first_result_stands(ledger: Ledger, name: str) -> None:
    ledger.finish(name, "promotion", "3", holder="a", reason="first")
    second = ledger.finish(name, "promotion", "3", holder="b", reason="second")
    assert second.detail == {"reason": "first"}


RACE = """
import sys
from datetime import UTC, datetime, timedelta
from headrace.ledger import AlreadyClaimed
from headrace.ledger import Ledger
url, pipeline, holder = sys.argv[1:]
won = 0
for key in range(20):
    try:
        won += Ledger(url).claim(pipeline, "race", str(key), holder=holder,
                                 lease=timedelta(hours=1)) is None
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
