"""Quarantine: what is held waits, is looked at, and is released or dropped, once, by whoever decides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace import ingest, quarantine
from headrace.lake import Lake
from headrace.ledger import Ledger
from headrace.pipeline import load
from headrace.settings import Settings
from pipelines import _nycflights13 as nyc
from tests.conftest import ROOT, utc

SPEC = load("flights")
WEATHER = SPEC.sources[2]
AT = utc(2013, 1, 14)
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.lake)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for the data, with a weather file that tests may spoil."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "weather.csv").write_text(nyc.files("weather")["weather"].read_text())
    monkeypatch.setenv("NYCFLIGHTS13_DATA", str(folder))
    return folder


def spoil(data: Path, old: str, new: str, count: int = 1) -> None:
    text = (data / "weather.csv").read_text()
    assert old in text
    (data / "weather.csv").write_text(text.replace(old, new, count))


def land(lake: Lake, as_of: object = AT) -> list[ingest.Settled]:
    with ingest.workspace(Path(lake.root).parent) as folder:
        ledger = Ledger(Settings().ledger)
        staged = ingest.stage(SPEC, WEATHER, as_of, lake, ledger, folder)  # type: ignore[arg-type]
        return [ingest.settle(batch, WEATHER, lake, as_of) for batch in staged.batches]  # type: ignore[arg-type]


@pytest.fixture
def command(settings: Settings) -> Command:
    def command(
        *arguments: str, answer: str | None = None, width: int = 200
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace.cli", "quarantine", *arguments],
            env=os.environ | {"COLUMNS": str(width)},
            cwd=ROOT,
            input=answer,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return command


def test_a_rejected_batch_is_inspected_mended_and_released_once(
    data: Path, lake: Lake, settings: Settings, command: Command, tmp_path: Path
) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    (first, second) = land(lake)
    assert (first.landed, second.landed) == (411, 0)

    shown = command("list").stdout
    assert "weather/2013-01-07/1" in shown
    assert "504" in shown
    assert "weather/2013-01-07/1" in command("list", width=80).stdout
    (line,) = json.loads(command("list", "--json").stdout)
    assert (line["entry"], line["rows"], line["of"]) == ("weather/2013-01-07/1", 504, 504)
    shown = command("show", "weather/2013-01-07/1").stdout
    assert "`origin` must be one of EWR, JFK, LGA, but 24 of 504 rows hold others" in shown
    assert shown.count("NYC") == 6 + 1  # what broke a rule comes first; the reason names it too

    refused = command("release", "weather/2013-01-07/1")
    assert refused.returncode == 1
    assert "`weather/2013-01-07/1` still does not pass" in refused.stderr
    assert "Traceback" not in refused.stderr

    rows = tmp_path / "rows.csv"
    assert command("show", "weather/2013-01-07/1", "--to", str(rows)).returncode == 0
    whole = rows.read_text().replace("NYC", "EWR")
    for text, said in (
        (whole.replace("wind_dir", "temp", 1).encode(), "more than one column of the name `temp`"),
        (whole.encode("utf-16"), "it is UTF-16, and must be UTF-8"),
    ):
        rows.write_bytes(text)
        refused = command("release", "weather/2013-01-07/1", "--rows", str(rows))
        assert refused.returncode == 1
        assert said in " ".join(refused.stderr.split())
    rows.write_text(whole)
    released = command("release", "weather/2013-01-07/1", "--rows", str(rows))
    assert (released.returncode, released.stderr) == (0, "")
    assert lake.table("raw/weather").count() == 411 + 504
    on_time = "SELECT count(*) FROM w WHERE available_at = observed_at AND origin IN ('EWR', 'JFK', 'LGA')"
    assert lake.connect({"w": "raw/weather"}).sql(on_time).fetchall() == [(915,)]

    again = command("release", "weather/2013-01-07/1", "--rows", str(rows))
    assert again.returncode == 1
    assert "was released on" in again.stderr
    assert command("list").stdout.strip() == "Nothing waits in quarantine."
    assert "released" in command("list", "--all").stdout
    assert land(lake) == []
    assert lake.table("raw/weather").count() == 915


def test_a_lake_in_which_nothing_landed_is_no_all_clear(
    data: Path, lake: Lake, settings: Settings, command: Command
) -> None:
    wrong = command("list")
    assert wrong.returncode == 1
    assert f"Nothing was ever landed in {lake.root}" in " ".join(wrong.stderr.split())

    land(lake)
    assert command("list").stdout.strip() == "Nothing waits in quarantine."


def test_what_a_wider_suite_lets_pass_is_released_as_it_is(
    data: Path, lake: Lake, settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    land(lake)
    entry = quarantine.find(lake, "weather/2013-01-07/1")
    monkeypatch.setattr("validations.flights.AIRPORTS", ["EWR", "JFK", "LGA", "NYC"])
    with ingest.workspace(settings.home) as folder:
        landed = ingest.release(
            SPEC,
            entry,
            lake,
            Ledger(settings.ledger),
            folder=folder,
            as_of=AT,
            holder="a test",
        )
    assert landed == 504
    assert land(lake) == []


KILLED = """
import os, signal
from headrace.ledger import Ledger
from headrace.cli import main
Ledger.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_a_release_killed_before_it_could_say_so_is_known_by_the_rows_that_landed(
    data: Path, lake: Lake, settings: Settings, command: Command, tmp_path: Path
) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    land(lake)
    id, rows = "weather/2013-01-07/1", tmp_path / "rows.csv"
    command("show", id, "--to", str(rows))
    rows.write_text(rows.read_text().replace("NYC", "EWR"))
    release = ["quarantine", "release", id, "--rows", str(rows)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *release], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert id in command("list").stdout

    again = command("drop", id, "--yes")

    assert again.returncode == 1
    assert f"`{id}` was released on" in again.stderr
    assert command("list").stdout.strip() == "Nothing waits in quarantine."
    assert quarantine.decisions(Ledger(settings.ledger), quarantine.entries(lake))[id].detail["rows"] == 504
    assert lake.table("raw/weather").count() == 411 + 504
    assert land(lake) == []


def test_of_many_releases_and_drops_at_once_one_is_carried_out(
    data: Path, lake: Lake, settings: Settings, command: Command, tmp_path: Path
) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    land(lake)
    rows = tmp_path / "rows.parquet"
    command("show", "weather/2013-01-07/1", "--to", str(rows))
    mended = lake.connect({}).sql(f"SELECT * REPLACE ('JFK' AS origin) FROM '{rows}' WHERE origin = 'NYC'")
    mended.write_parquet(str(tmp_path / "mended.parquet"))
    release = ("release", "weather/2013-01-07/1", "--rows", str(tmp_path / "mended.parquet"))
    drop = ("drop", "weather/2013-01-07/1", "--yes")

    with ThreadPoolExecutor(4) as pool:
        done = [found.returncode for found in pool.map(lambda c: command(*c), [release, drop, release, drop])]

    assert sorted(done) == [0, 1, 1, 1]
    released = 0 in (done[0], done[2])
    assert lake.table("raw/weather").count() == 411 + (24 if released else 0)
    made = quarantine.decisions(Ledger(settings.ledger), quarantine.entries(lake))["weather/2013-01-07/1"]
    assert made.detail["decision"] == ("released" if released else "dropped")


def test_dropping_asks_keeps_the_rows_and_leaves_a_line_in_the_ledger(
    data: Path, lake: Lake, settings: Settings, command: Command
) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    land(lake)
    assert command("drop", "weather/2013-01-07/1", answer="n\n").returncode == 1
    assert "weather/2013-01-07/1" in command("list").stdout
    dropped = command("drop", "weather/2013-01-07/1", "--reason", "not ours", answer="y\n")
    assert dropped.returncode == 0
    entry = quarantine.find(lake, "weather/2013-01-07/1")
    (claimed, done) = Ledger(settings.ledger).entries("flights", "quarantine", entry.id)
    assert (claimed.state, done.state, done.detail) == (
        "claimed",
        "done",
        {"decision": "dropped", "rows": 504, "reason": "not ours"},
    )
    assert lake.table(entry.held.table).count() == 504
    assert land(lake) == []


def test_an_unknown_entry_is_told_its_neighbour(data: Path, lake: Lake, command: Command) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    land(lake)
    done = command("show", "weather/2013-01-08/1")
    assert done.returncode == 1
    assert (
        "Nothing is in quarantine as `weather/2013-01-08/1`. Did you mean `weather/2013-01-07/1`?"
        in done.stderr
    )


def test_a_released_row_that_breaks_its_rule_still_is_refused_and_a_mended_one_counts_from_its_release(
    lake: Lake, settings: Settings, command: Command, tmp_path: Path
) -> None:
    land(lake, utc(2013, 2, 18))
    id = "weather/2013-02-11/1"  # Newark's 1,048 mph
    assert "still does not pass" in command("release", id).stderr
    rows = tmp_path / "rows.csv"
    command("show", id, "--to", str(rows))
    text = rows.read_text()
    assert "1048" in text
    rows.write_text(text.replace("1048.36058", "10.36"))
    assert command("release", id, "--rows", str(rows), "--as-of", "2013-02-20").returncode == 0
    late = "SELECT wind_speed, available_at FROM w WHERE available_at != observed_at"
    assert lake.connect({"w": "raw/weather"}).sql(late).fetchall() == [(10.36, utc(2013, 2, 20))]


def test_an_instant_that_is_none_is_refused_before_anything_lands(
    data: Path, lake: Lake, command: Command
) -> None:
    spoil(data, "EWR,2013,1,8,", "NYC,2013,1,8,", 24)
    land(lake)
    done = command("release", "weather/2013-01-07/1", "--as-of", "soon")
    assert done.returncode == 2
    assert "`soon` is no instant; write 2013-04-01" in done.stderr
    assert "Traceback" not in done.stderr
    assert lake.table("raw/weather").count() == 411
