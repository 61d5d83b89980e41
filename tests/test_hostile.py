"""Values, columns and messages that were made to do harm where they are shown."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import great_expectations as gx
import great_expectations.expectations as gxe
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from headrace import quarantine
from headrace.ingest.landing import named
from headrace.lake import Lake, Window
from headrace.quarantine import Lot
from headrace.settings import Settings
from headrace.validation import publish, validate
from tests.conftest import ROOT

SCRIPT = '<img src=x onerror="window.harmed = 1"><script>window.harmed = 1</script>'
TERMINAL = "\x1b[2J\x1b]0;harmed\x07[/red]"
LONG = "x" * 2**20


def batch(folder: Path, value: str, name: str = "name") -> Path:
    file = folder / "batch.parquet"
    pq.write_table(pa.table({name: [value] * 3 + ["fine"], "other": [1, 1, 2, 3]}), file)
    return file


def rules(column: str) -> gx.ExpectationSuite:
    every_kind = [
        gxe.ExpectColumnValuesToBeInSet(column=column, value_set=["fine"]),
        gxe.ExpectColumnValuesToMatchRegex(column=column, regex="^fine$"),
        gxe.ExpectColumnValuesToBeUnique(column=column),
        gxe.ExpectColumnDistinctValuesToBeInSet(column=column, value_set=["fine"]),
        gxe.ExpectColumnDistinctValuesToEqualSet(column=column, value_set=["fine", "more"]),
        gxe.ExpectColumnMostCommonValueToBeInSet(column=column, value_set=["fine"]),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=[column, "other"]),
        gxe.ExpectColumnPairValuesToBeEqual(column_A=column, column_B="other"),
        gxe.ExpectTableColumnsToMatchSet(column_set=["other", "more"]),
        gxe.UnexpectedRowsExpectation(unexpected_rows_query="SELECT * FROM {batch} WHERE other = 1"),
    ]
    return gx.ExpectationSuite("hostile", every_kind)


def test_no_script_of_the_data_runs_in_data_docs(
    tmp_path: Path, page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    for name in ("name", SCRIPT):
        found = validate([batch(tmp_path, SCRIPT, name)], rules(name))
        assert sum(not outcome.success for outcome in found.outcomes) >= 8
        docs = tmp_path / str(len(name))
        (shown,) = publish({"things/2013-01-07/1": found}, docs).values()
        for place in (shown, docs / "docs/index.html", *docs.glob("docs/expectations/**/*.html")):
            page.goto(place.as_uri())
            page.wait_for_timeout(300)
            assert page.evaluate("window.harmed") is None, place
            assert "default-src 'none'" in place.read_text(encoding="utf-8")
        page.goto(shown.as_uri())
        expect(page.get_by_text(SCRIPT).first).to_be_attached()
    assert "Exception occurred" not in caplog.text
    assert said == []
    assert {*asked} <= {file.as_uri() for file in tmp_path.rglob("*.html")}  # nothing from elsewhere


def test_what_is_said_of_a_value_is_short_and_has_no_control_characters(tmp_path: Path) -> None:
    for value in (LONG, TERMINAL):
        found = validate([batch(tmp_path, value)], rules("name"))
        for outcome in found.outcomes:
            assert len(outcome.sentence) < 2_000
            assert outcome.sentence.isprintable()


def test_what_is_kept_of_long_values_is_small(tmp_path: Path) -> None:
    publish({"things/2013-01-07/1": validate([batch(tmp_path, LONG)], rules("name"))}, tmp_path)
    kept = [*tmp_path.glob("results/**/*.json"), *tmp_path.glob("docs/**/*.html")]
    assert len(kept) == 4
    assert sum(file.stat().st_size for file in kept) < 2**21


def test_the_terminal_shows_what_is_held_and_obeys_none_of_it(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, at = Lake(settings.lake), datetime(2013, 1, 14, tzinfo=UTC)
    file = batch(tmp_path, TERMINAL, f"odd {TERMINAL}")
    lake.table("raw/things").append(pa.table({"a": [1]}), "some")
    window = Window(datetime(2013, 1, 7, tzinfo=UTC), at)
    suite = gx.ExpectationSuite("hostile", [gxe.ExpectColumnToExist(column=f"more {TERMINAL}")])
    lot = Lot("things/2013-01-07/1", "hostile", "raw/things", window, file, 4)
    monkeypatch.setattr(quarantine, "load_suite", lambda _: suite)
    quarantine.sift(lot, "hostile.things", lake, at)
    for arguments in (("list",), ("show", lot.id)):
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli", "quarantine", *arguments],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b]0" not in done.stdout
        assert "\x1b[2J" not in done.stdout
        assert r"\x1b]0;harmed\x07[/red]" in done.stdout


def test_what_flows_say_in_a_terminal_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    from flows._command import Legible

    said = logging.StreamHandler(sys.stdout)
    said.setFormatter(Legible())
    said.handle(logging.makeLogRecord({"msg": "%s: kept aside: %s", "args": ("things", f"odd {TERMINAL}")}))
    assert capsys.readouterr().out == "things: kept aside: odd \\x1b[2J\\x1b]0;harmed\\x07[/red]\n"
    assert named(f"odd {TERMINAL}") == r"`odd \x1b[2J\x1b]0;harmed\x07[/red]`"
