"""The backtest as a person runs it, on a home that has been lived in: it goes on, and touches nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from headrace import registry, services, tracking
from headrace.backtest.vintage import ABOUT, Vintage
from headrace.lake import Lake
from headrace.ledger import Ledger
from headrace.tracking import MLflow
from headrace.training.model import sums
from tests.conftest import ROOT, utc
from tests.flows.conftest import River, eventually

SPAN = ("--from", "2013-03-18", "--to", "2013-04-29")


def backtest(river: River, *more: str) -> dict[str, Any]:
    done = river.command("headrace.cli", "backtest", "flights", *SPAN, "--json", *more)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def vintages(river: River) -> dict[str, Vintage]:
    """Return those that are kept, by the day of which they know."""
    found = [Vintage(file.parent) for file in (river.settings.home / "backtest/flights").glob(f"*/{ABOUT}")]
    return {f"{one.at:%m-%d}": one for one in found}


def test_killed_it_goes_on_where_it_stopped_and_touches_nothing_that_is_live(river: River) -> None:
    lake, ledger = Lake(river.settings.lake), Ledger(river.settings.ledger)
    mlflow = MLflow(river.settings.mlflow, river.settings.home)

    def live() -> tuple[Any, ...]:
        tables = {name: lake.table(name).open().version() for name in ("training/flights", "raw/flights")}
        return tables, len(ledger.entries("flights")), registry.aliases(mlflow, "flights")

    before = live()
    command = [sys.executable, "-m", "headrace.cli", "backtest", "flights", *SPAN]
    with subprocess.Popen(command, cwd=ROOT, env=services.environment(river.settings)) as first:
        eventually(lambda: len(vintages(river)) >= 2)
        first.send_signal(signal.SIGKILL)
    kept = {day: made(one) for day, one in vintages(river).items()}
    with subprocess.Popen([*command, "--json"], cwd=ROOT, env=services.environment(river.settings)) as beside:
        found = backtest(river)  # two at once: one waits for the other, and nothing is made twice
        assert beside.wait(timeout=300) == 0
    assert live() == before
    assert {day: made(one) for day, one in vintages(river).items() if day in kept} == kept
    assert sorted(vintages(river)) == ["03-18", "03-25", "04-01", "04-08", "04-15", "04-22"]
    assert not [*(river.settings.home / "backtest/flights").glob("making-*")]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")

    policies = {one["policy"]: one for one in found["policies"]}
    assert len(policies) == 15
    assert found["windows"] == 4
    assert 0.4 < policies["never"]["loss per row"] < 0.7
    assert policies["never"]["retrainings"] == []
    assert len(policies["after each window"]["retrainings"]) == 3
    assert min(one["regret"] for one in policies.values()) == policies["oracle"]["regret"] == 0
    assert found["line"] == policies[found["best"]]["line"]

    # What a retraining costs is for the one who asks to say: no model is made anew for it.
    dear = backtest(river, "--retraining", "1e6")
    assert next(one for one in dear["policies"] if one["policy"] == "oracle")["retrainings"] == []
    assert {day: made(one) for day, one in vintages(river).items() if day in kept} == kept


def made(one: Vintage) -> int:
    return (one.folder / ABOUT).stat().st_mtime_ns


def test_a_vintage_is_the_model_that_was_released_of_what_was_known_then(river: River) -> None:
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    release, vintage = registry.version(mlflow, "flights", 1), vintages(river)["04-01"]
    assert release.as_of == utc(2013, 4, 1)
    assert vintage.about["fingerprint"] == release.training.fingerprint
    assert vintage.about["candidate"] == release.candidate
    assert sums(vintage.folder / "model") == tracking.sums(mlflow, release.model_uri)


def test_it_is_told_at_once_what_cannot_be_replayed(river: River) -> None:
    ask = ("headrace.cli", "backtest", "flights", "--from", "2013-04-01")
    told = " ".join(river.command(*ask, "--to", "2013-12-30", ends=1).stderr.split())
    assert "all is known up to 2013-04-29 UTC, and the backtest was to go on until 2013-12-30" in told
    told = " ".join(river.command(*ask, "--to", "2013-04-15", ends=1).stderr.split())
    assert (
        "needs 2 windows or more to set policies by, and as many to judge them, but there are 0 and 2" in told
    )
    told = " ".join(river.command(*ask[:-1], "2013-01-07", "--to", "2013-03-25", ends=1).stderr.split())
    assert "has 0 labelled rows" in told
