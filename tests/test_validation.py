from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import great_expectations as gx
import httpx
import pytest
from great_expectations import expectations as gxe
from great_expectations.data_context.store.validation_results_store import ValidationResultsStore

from headrace.lake import duckdb_connection
from headrace.validation import Validation, load_suite, publish, validate
from headrace.validation.errors import BrokenSuite, EmptySuite, UnknownSuite, UnsupportedExpectation
from headrace.validation.serve import server
from pipelines import _nycflights13 as nyc

Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    """DuckDB with ``week``, what landed in the week of 7 January 2013, as the pipeline selects it."""
    con = duckdb_connection()
    for view, file in nyc.files("flights", "airports").items():
        packed = file.suffix == ".parquet"
        rows = con.read_parquet(str(file)) if packed else con.read_csv(str(file), na_values=["NA"])
        rows.create_view(view)
    landed = "landed_at >= '2013-01-07 00:00:00+00' AND landed_at < '2013-01-14 00:00:00+00'"
    con.execute(f"CREATE TABLE week AS FROM ({nyc.FLIGHTS}) WHERE {landed} ORDER BY ALL")
    return con


@pytest.fixture
def write(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> Write:
    def write(query: str) -> Path:
        file = tmp_path / f"it's {len(list(tmp_path.iterdir()))}.parquet"
        con.sql(query).write_parquet(str(file))
        return file

    return write


def checked(*files: Path) -> Validation:
    return validate(files, load_suite("flights.flights"))


CHECKED = """
import sys
from headrace.validation import load_suite, validate
assert validate(sys.argv[1:], load_suite("flights.flights")).success
"""


def test_what_is_spilled_may_go_to_a_folder_of_any_name(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "it's temporary"
    folder.mkdir()
    command = [sys.executable, "-c", CHECKED, str(write("FROM week"))]
    subprocess.run(command, check=True, env=os.environ | {"TMPDIR": str(folder)})


def test_a_real_week_passes_every_expectation(write: Write) -> None:
    found = checked(write("FROM week"))

    assert (found.success, found.rows, found.failures) == (True, 6104, [])
    assert len(found.outcomes) >= 12
    assert {outcome.unexpected for outcome in found.outcomes} == {0}


@pytest.mark.parametrize(
    ("corrupted", "sentence"),
    [
        pytest.param(
            "SELECT * REPLACE (if(flight % 50 = 0, 'NYC', origin) AS origin) FROM week",
            '`origin` must be one of EWR, JFK, LGA, but 100 of 6,104 rows hold others (first: "NYC")',
            id="an unknown origin",
        ),
        pytest.param(
            "SELECT * REPLACE (if(flight = 1, -distance, distance) AS distance) FROM week",
            "`distance` must be above 0 and at most 5000, but 7 of 6,104 rows break this (first: -2475)",
            id="a negative distance",
        ),
        pytest.param(
            "SELECT * REPLACE (if(flight = 1, 0, distance) AS distance) FROM week",
            "`distance` must be above 0 and at most 5000, but 7 of 6,104 rows break this (first: 0)",
            id="no distance",
        ),
        pytest.param(
            "FROM week UNION ALL (FROM week ORDER BY ALL LIMIT 1)",
            "`carrier`, `flight`, `origin`, `sched_dep` must be unique together, but 2 of 6,105 rows are "
            'repeats (first: carrier "9E", flight 3314, origin "JFK", sched_dep 2013-01-07 00:45:00+00:00)',
            id="a key twice",
        ),
        pytest.param(
            "SELECT * REPLACE (if(flight = 1, NULL, carrier) AS carrier) FROM week",
            "`carrier` must not be null, but 7 of 6,104 rows are null",
            id="a null in the key",
        ),
        pytest.param(
            "SELECT * REPLACE (carrier || 'X' AS carrier) FROM week",
            '`carrier` must match `^[A-Z0-9]{2}$`, but 6,104 of 6,104 rows break this (first: "9EX")',
            id="a carrier code too long",
        ),
        pytest.param(
            "SELECT * REPLACE (landed_at::TIMESTAMP AS landed_at) FROM week",
            "`landed_at` must be of type TIMESTAMP WITH TIME ZONE, but it is TIMESTAMP",
            id="a time without its zone",
        ),
    ],
)
def test_a_corrupted_week_fails_with_one_sentence(write: Write, corrupted: str, sentence: str) -> None:
    found = checked(write(corrupted))

    assert not found.success
    assert found.failures == [sentence]


def test_a_dropped_column_fails_everything_said_of_it_and_nothing_else(write: Write) -> None:
    found = checked(write("SELECT * EXCLUDE (dest) FROM week"))

    shape, *others = found.failures
    assert shape.endswith("arrived_at, landed_at, but there is no `dest`")
    assert others == [
        "`dest` must be of type VARCHAR, but the batch has no column `dest`",
        "`dest` must not be null, but the batch has no column `dest`",
    ]


def test_what_cannot_be_evaluated_fails_with_its_reason_and_takes_nothing_with_it(write: Write) -> None:
    found = checked(write("SELECT * REPLACE (distance || ' miles' AS distance) FROM week"))

    assert found.failures == [
        "`distance` must be of type BIGINT, but it is VARCHAR",
        "`distance` must be above 0 and at most 5000, but that cannot be evaluated: Binder Error: "
        "Cannot compare values of type VARCHAR and type DOUBLE - an explicit cast is required",
    ]
    assert checked(write("FROM week")).success


def test_verdicts_and_counts_are_those_of_the_pandas_engine(
    write: Write, con: duckdb.DuckDBPyConnection
) -> None:
    file = write("""
        SELECT * REPLACE (
            if(flight % 50 = 0, 'NYC', origin) AS origin,
            if(flight = 1, -distance, distance) AS distance,
            if(flight = 3, NULL, dest) AS dest,
            if(flight % 7 = 0, lower(carrier), carrier) AS carrier,
            if(flight % 11 = 0, departed_at, arrived_at) AS arrived_at
        ) FROM week
        UNION ALL FROM week WHERE flight = 15
    """)
    # Types have other names in pandas; everything else means the same.
    rules = [e for e in load_suite("flights.flights").expectations if "type" not in e.expectation_type]
    source = gx.get_context(mode="ephemeral").data_sources.add_pandas("pandas")
    whole = source.add_dataframe_asset("week").add_batch_definition_whole_dataframe("all")
    batch = whole.get_batch({"dataframe": con.read_parquet(str(file)).df()})

    ours = validate([file], gx.ExpectationSuite("ours", rules))

    theirs = [batch.validate(rule, result_format="BASIC") for rule in rules]
    assert [(found.success, found.unexpected) for found in ours.outcomes] == [
        (bool(found.success), found.result.get("unexpected_count", 0)) for found in theirs
    ]
    assert sum(not found.success for found in ours.outcomes) == 6


def test_a_rule_reads_as_its_author_or_gx_words_it(write: Write) -> None:
    rules = [
        gxe.ExpectColumnValuesToBeBetween(column="dep_delay", max_value=60, mostly=0.99),
        gxe.ExpectColumnValuesToBeBetween(column="dep_delay", max_value=60, mostly=0.5),
        gxe.ExpectColumnMeanToBeBetween(column="distance", max_value=500),
        gxe.ExpectColumnValuesToBeUnique(column="flight", description="Flight numbers never repeat."),
        gxe.UnexpectedRowsExpectation(unexpected_rows_query="SELECT 1 FROM {batch} WHERE dest = 'HNL'"),
    ]

    found = validate([write("FROM week ORDER BY ALL")], gx.ExpectationSuite("worded", rules))

    late = "172 of 6,104 rows break this (first: 68)"
    assert found.failures == [
        f"`dep_delay` must be at most 60 in at least 99 % of the rows, but {late}",
        "distance mean must be less than or equal to 500, but it is 1001.5719",
        "Flight numbers never repeat, but 5,842 of 6,104 rows break this (first: 3314)",
        "no row may be in `SELECT 1 FROM {batch} WHERE dest = 'HNL'`, but 14 of 6,104 rows are",
    ]
    assert (found.outcomes[1].success, found.outcomes[1].observed) == (True, late)


def test_a_table_shows_what_was_found(write: Write) -> None:
    rows = checked(write("SELECT * REPLACE ('NYC' AS origin) FROM week LIMIT 1")).table()

    assert [row for row in rows if row["result"] == "failed"] == [
        {
            "result": "failed",
            "rule": "`origin` must be one of EWR, JFK, LGA",
            "observed": '1 of 1 rows holds another (first: "NYC")',
            "column": "origin",
            "expectation": "expect_column_values_to_be_in_set",
        }
    ]


def test_several_files_are_one_batch(write: Write) -> None:
    file = write("FROM week")

    assert checked(write("FROM week WHERE flight < 1000"), write("FROM week WHERE flight >= 1000")).success
    assert (
        checked(file, file)
        .failures[0]
        .startswith("`carrier`, `flight`, `origin`, `sched_dep` must be unique")
    )


def test_threads_do_not_see_each_others_batches(write: Write) -> None:
    files = [write(f"FROM week LIMIT {rows}") for rows in range(1, 7)]

    with ThreadPoolExecutor(3) as pool:
        assert [found.rows for found in pool.map(checked, files)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("source", ["flights", "schedules", "weather", "planes"])
def test_every_source_has_a_suite(source: str) -> None:
    assert len(load_suite(f"flights.{source}").expectations) >= 12


def test_an_unknown_suite_names_its_neighbour() -> None:
    with pytest.raises(UnknownSuite, match=r"No suite `flights\.wether`.*Did you mean `flights\.weather`\?"):
        load_suite("flights.wether")


def test_a_suite_whose_function_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("validations.flights.after", lambda *_: gxe.ExpectColumnToExist(colum="dest"))
    with pytest.raises(BrokenSuite, match=r"(?s)`flights\.flights` .*colum.*Mend it in"):
        load_suite("flights.flights")


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import nowhere\n")
    monkeypatch.setattr("validations.__path__", [str(tmp_path)])

    with pytest.raises(BrokenSuite, match=r"`broken` cannot be made: ModuleNotFoundError: .*nowhere"):
        load_suite("broken.suite")


def test_only_critical_failures_decide(write: Write) -> None:
    rules = [
        gxe.ExpectColumnValuesToNotBeNull(column="dest", severity="warning"),
        gxe.ExpectColumnMaxToBeBetween(column="flight", max_value=1, severity="info"),
    ]
    file = write("SELECT * REPLACE (if(flight = 1, NULL, dest) AS dest) FROM week")

    found = validate([file], gx.ExpectationSuite("told", rules))

    assert (found.suite, found.success, found.failures) == ("told", True, [])
    assert found.warnings == [
        "`dest` must not be null, but 7 of 6,104 rows are null",
        "flight maximum value must be less than or equal to 1, but it is 6055",
    ]
    assert [row["result"] for row in found.table()] == ["warning", "info"]


def test_no_row_broken_is_no_file_and_an_old_one_goes(write: Write, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    rows = "SELECT * REPLACE (if(flight = 1, NULL, dest) AS dest) FROM week"

    validate([write(rows)], load_suite("flights.flights"), broken)
    assert duckdb.read_parquet(str(broken)).fetchall()[0][1] == ["`dest` must not be null"]

    validate([write("FROM week")], load_suite("flights.flights"), broken)
    assert not broken.exists()


def test_a_rule_for_rows_that_cannot_be_evaluated_judges_none(write: Write, tmp_path: Path) -> None:
    rule = gxe.ExpectColumnValuesToNotBeNull(column="gone")

    found = validate([write("FROM week")], gx.ExpectationSuite("gone", [rule]), tmp_path / "broken.parquet")

    assert [(o.success, o.row_rule, o.unexpected) for o in found.outcomes] == [(False, False, 0)]
    assert not (tmp_path / "broken.parquet").exists()


def test_a_validation_travels_and_is_plain(write: Write) -> None:
    found = checked(write("SELECT * REPLACE (if(flight = 1, -distance, distance) AS distance) FROM week"))

    assert pickle.loads(pickle.dumps(found)) == found
    assert json.loads(json.dumps(found.result)) == found.result
    assert b"great_expectations." not in pickle.dumps(found)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (gxe.ExpectColumnValuesToBeDateutilParseable(column="dest"), "only Python's dateutil can tell"),
        (gxe.ExpectTableRowCountToEqualOtherTable(other_table_name="planes"), "a batch is one table"),
        (
            gxe.ExpectColumnValuesToNotBeNull(
                column="dest", row_condition="dest > 1", condition_parser="pandas"
            ),
            "its `row_condition` is not SQL",
        ),
        (
            gxe.ExpectColumnPairValuesToBeInSet(column_A="origin", column_B="dest", value_pairs_set=[]),
            "its `value_pairs_set` is empty",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_when_the_suite_is_loaded(
    rule: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(lambda: gx.ExpectationSuite("wrong", [rule]), monkeypatch)

    with pytest.raises(UnsupportedExpectation, match=reason) as refused:
        load_suite("flights.declared")

    assert (refused.value.suite, refused.value.expectation) == ("flights.declared", type(rule).__name__)


def test_a_suite_that_expects_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(lambda: gx.ExpectationSuite("nothing", []), monkeypatch)

    with pytest.raises(EmptySuite, match=r"`flights\.declared` expects nothing"):
        load_suite("flights.declared")


def declare(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.__module__ = "validations.flights"
    monkeypatch.setattr("validations.flights.declared", suite, raising=False)


def test_published_results_are_gx_data_docs(write: Write, tmp_path: Path) -> None:
    broken = checked(write("SELECT * REPLACE (if(flight = 1, -distance, distance) AS distance) FROM week"))
    found = {"flights/2013-01-07/1": broken, "flights/2013-01-07/2": checked(write("FROM week"))}

    pages = publish(found, tmp_path / "validations")
    assert [page.exists() for page in pages.values()] == [True, False]  # that nothing failed in
    site = server(tmp_path / "validations", 0)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{site.server_port}"
    for page in pages.values():
        place = quote(page.relative_to(tmp_path / "validations/docs").as_posix())
        assert httpx.get(f"{address}/{place}", timeout=60).text == page.read_text()
    assert httpx.get(f"{address}/expectations/flights.html", timeout=60).status_code == 200
    for lost in ("validations/flights/other/1/2.html", "expectations/fright.html", "../results/x.html"):
        assert httpx.get(f"{address}/{lost}", timeout=60).status_code == 404
    site.shutdown()

    index = (tmp_path / "validations/docs/index.html").read_text()
    assert list(pages) == list(found)
    for name, page in pages.items():
        html = page.read_text()
        assert name in html
        assert name in index
        assert ("-2475" in html) == (not found[name].success)
        assert (page.parent / linked(html)).resolve().exists()
        assert quote(page.relative_to(tmp_path / "validations/docs").as_posix()) in index
    store = ValidationResultsStore(
        {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(tmp_path / "validations/results"),
            "suppress_store_backend_id": True,
        }
    )
    stored = [store.get(key) for key in store.list_keys()]
    assert {result.meta["run_id"]["run_name"]: result.success for result in stored} == {
        "flights/2013-01-07/1": False,
        "flights/2013-01-07/2": True,
    }


def linked(html: str) -> str:
    return re.search(r'href="([^"]*expectations/flights\.html)"', html)[1]


def test_publishing_again_replaces_and_publishing_at_once_loses_nothing(write: Write, tmp_path: Path) -> None:
    found = [checked(write(f"FROM week LIMIT {rows}")) for rows in range(1, 7)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda n: publish({f"flights/{n % 3}/1": found[n]}, tmp_path), range(6)))

    assert len(list((tmp_path / "results").rglob("*.json"))) == 3
    assert not list(tmp_path.rglob("*.tmp"))
    index = (tmp_path / "docs/index.html").read_text()
    assert all(f"flights/{n}/1" in index for n in range(3))


def test_importing_the_module_does_not_import_gx() -> None:
    loaded = (
        "import sys, headrace.validation, validations.flights; print('great_expectations' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)

    assert shown.stdout == "False\n"
