"""The lake: idempotent commits, snapshots that never change, windows that stand alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from headrace.feature_store.catalog import last_build
from headrace.lake import (
    _KNOWN,
    DamagedTable,
    Lake,
    NotBuilt,
    Table,
    VersionGone,
    Window,
    _transactions,
    consecutive,
    duckdb_connection,
    interruptible,
    windows,
)
from tests.conftest import utc

WEEK = timedelta(weeks=1)
FIRST, SECOND = windows(utc(2013, 1, 7), utc(2013, 1, 21), WEEK)


def rows(*instants_and_values: tuple[object, int]) -> pa.Table:
    instants, values = zip(*instants_and_values, strict=True) if instants_and_values else ((), ())
    return pa.table(
        {
            "event_timestamp": pa.array(instants, pa.timestamp("us", "UTC")),
            "value": pa.array(values, pa.int64()),
        }
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_an_append_lands_once_however_often_it_is_repeated(lake: Lake) -> None:
    table = lake.table("raw/things")
    assert [table.append(rows((FIRST.start, 1)), key="a") for _ in range(3)] == [True, False, False]
    assert table.append(rows((FIRST.start, 1)), key="b")
    assert table.count() == 2
    assert table.held(["a", "b", "c"]) == {"a": 1, "b": 1}


def test_of_a_span_only_the_files_that_may_hold_its_rows_are_read(lake: Lake) -> None:
    table, con = lake.table("raw/things"), duckdb_connection()
    days, old = windows(FIRST.start, FIRST.end, timedelta(days=1)), list[str]()
    for number, day in enumerate(days):
        last = pa.array([day.end - timedelta(microseconds=1)], pa.timestamp("us", "UTC"))
        table.append(pa.table({"available_at": last, "day": [number]}), key=str(day))
        old = table.open().file_uris() if number == 3 else old
    table.append(pa.table({"available_at": last, "day": [7], "more": [1]}), key="one column more")

    def read(span: Window) -> list[tuple]:
        rows = table.relation(con, span=span).filter(span.predicate("available_at"))
        return rows.project("day, more").order("day").fetchall()

    for file in old:
        Path(file).unlink()
    assert read(Window(days[5].start, days[6].end)) == [(5, None), (6, None), (7, 1)]
    assert read(days[5]) == [(5, None)]
    assert read(Window(days[5].start, days[5].end - timedelta(microseconds=1))) == []
    assert read(Window(days[6].end, days[6].end + timedelta(days=1))) == []
    for span in (days[0], None):
        with pytest.raises(DamagedTable):
            table.relation(con, span=span)


def test_rows_of_which_it_is_not_known_since_when_are_of_any_span(lake: Lake) -> None:
    table, con = lake.table("raw/things"), duckdb_connection()
    never = pa.table({"available_at": pa.nulls(1, pa.timestamp("us", "UTC")), "value": [1]})
    table.append(never, key="a")
    assert table.relation(con, span=FIRST).fetchall() == [(None, 1)]
    other = lake.table("raw/others")
    other.append(rows((FIRST.start, 1)), key="a")
    assert len(other.relation(con, span=SECOND).fetchall()) == 1  # no column says it


def test_several_keys_are_one_commit_or_none(lake: Lake) -> None:
    table = lake.table("raw/things")
    keys = {f"key {n}": n for n in range(1, 40)}
    assert table.append_all(rows((FIRST.start, 1)), keys)
    assert table.held(keys) == keys
    version = table.open().version()
    for again in (
        {"key 7": 1},
        {"another": 1, "key 7": 1},
        {f"other {n}": 1 for n in range(39)} | {"key 9": 9},
    ):
        assert not table.append_all(rows((FIRST.start, 2)), again)
    assert table.open().version() == version


def test_windows_that_follow_each_other_are_put_together() -> None:
    days = windows(FIRST.start, FIRST.end, timedelta(days=1))
    assert consecutive([*days[:3], *days[4:]], 2) == [days[:2], days[2:3], days[4:6], days[6:]]
    assert consecutive([], 2) == []


def test_overwriting_a_window_leaves_its_neighbours_alone(lake: Lake) -> None:
    table = lake.table("features/things")
    table.overwrite(
        rows((FIRST.start, 1), (FIRST.end - timedelta(microseconds=1), 2)), FIRST, "event_timestamp"
    )
    table.overwrite(rows((SECOND.start, 3)), SECOND, "event_timestamp")
    table.overwrite(rows((FIRST.start, 4)), FIRST, "event_timestamp")
    assert sorted(lake.connect({"t": "features/things"}).sql("SELECT value FROM t").fetchall()) == [
        (3,),
        (4,),
    ]
    assert table.count(SECOND) == 1


def test_a_window_without_rows_is_held_all_the_same(lake: Lake) -> None:
    table = lake.table("features/things")
    table.overwrite(rows(), FIRST, "event_timestamp")
    assert table.holds(str(FIRST))
    assert lake.connect({"t": "features/things"}).sql("SELECT count(value) FROM t").fetchall() == [(0,)]


def test_a_snapshot_reads_the_same_after_later_writes(lake: Lake) -> None:
    table = lake.table("raw/things")
    table.append(rows((FIRST.start, 1)), key="a")
    before = table.snapshot()
    table.append(rows((FIRST.start, 2)), key="b")
    assert lake.connect({"t": before}).sql("SELECT value FROM t").fetchall() == [(1,)]
    assert table.snapshot(before.version) == before
    assert table.snapshot() != before


def test_the_fingerprint_depends_on_rows_and_not_on_files_or_order(lake: Lake) -> None:
    one, many, other = (lake.table(name) for name in ("one", "many", "other"))
    one.replace(rows((FIRST.start, 1), (FIRST.start, 1), (SECOND.start, 2)))
    many.append(rows((SECOND.start, 2)), key="a")
    many.append(rows((FIRST.start, 1), (FIRST.start, 1)), key="b")
    other.replace(rows((FIRST.start, 2), (FIRST.start, 2), (SECOND.start, 2)))
    assert one.snapshot().fingerprint == many.snapshot().fingerprint
    assert one.snapshot().fingerprint != other.snapshot().fingerprint


def test_replace_returns_the_version_it_wrote(lake: Lake) -> None:
    written = [lake.table("training/things").replace(rows((FIRST.start, value))) for value in (1, 2, 3)]
    assert written == [1, 2, 3]
    for value, version in enumerate(written, 1):
        kept = lake.connect({"t": lake.at("training/things", version)})
        assert kept.sql("SELECT value FROM t").fetchall() == [(value,)]


@pytest.mark.parametrize("folder", ["it's here", "höme & more", "river #1", "so?"])
def test_a_lake_may_lie_in_a_folder_of_any_name(tmp_path: Path, folder: str) -> None:
    lake = Lake(str(tmp_path / folder))
    lake.table("raw/things").append(rows((FIRST.start, 1)), key="a")
    lake.table("features/things").overwrite(rows((FIRST.start, 1)), FIRST, "event_timestamp")
    version = lake.table("training/things").replace(rows((FIRST.start, 1)))
    kept = lake.connect({"r": "raw/things", "f": "features/things", "t": lake.at("training/things", version)})
    assert kept.sql("FROM r JOIN f USING (value) JOIN t USING (value)").count("*").fetchone() == (1,)
    last_build("features/things", lake)  # not known where there is a `#`, but nothing else is lost for it


REPLACER = """
import sys
import pyarrow as pa
from headrace.lake import Lake
table = Lake(sys.argv[1]).table("training/things")
for value in range(int(sys.argv[2]), int(sys.argv[2]) + 15):
    print(table.replace(pa.table({"value": [value]})), value)
"""


@pytest.mark.parametrize("folder", ["lake", "höme & more", "river #1"])
def test_what_is_held_is_the_same_for_one_key_and_for_many(tmp_path: Path, folder: str) -> None:
    table = Lake(str(tmp_path / folder)).table("raw/toy")
    for commit in range(104):
        table.append(rows((FIRST.start, commit)), f"lot {commit}", number=commit, also={"newest": commit})
    keys = [*(f"lot {commit}" for commit in range(104)), "newest", "no such"]
    one_by_one = {key: number for key in keys for number in table.held([key]).values()}
    assert table.held(keys) == one_by_one == {f"lot {n}": n for n in range(104)} | {"newest": 103}
    assert list(tmp_path.rglob("*.checkpoint.parquet"))


def test_a_log_that_is_not_whole_is_left_to_delta(lake: Lake) -> None:
    table = lake.table("raw/toy")
    for commit in range(12):
        table.append(rows((FIRST.start, commit)), f"lot {commit}")
    table.open().create_checkpoint()
    log = Path(table.uri, "_delta_log")
    for file in log.glob("*.checkpoint.parquet"):  # as another writer may lay it down
        file.rename(file.with_name(file.name.replace(".checkpoint.", ".checkpoint.0000000001.0000000001.")))
    (log / f"{1:020}.json").unlink()
    _KNOWN.clear()  # as in a process that comes to it now
    keys, opened = [f"lot {commit}" for commit in range(12)], table.open()
    assert _transactions(table.uri) is None
    asked = {key: opened.transaction_version(key) for key in keys}
    assert table.held(keys) == {key: number for key, number in asked.items() if number is not None}


def test_what_a_process_knows_of_a_table_ends_with_anybodys_next_commit(lake: Lake) -> None:
    table, keys = lake.table("raw/toy"), [f"lot {n}" for n in range(8)]
    table.append(rows((FIRST.start, 0)), "lot 0")
    known = table.open()
    assert table.held(keys) == {"lot 0": 1}
    assert table.open() is known  # nobody wrote: it is not opened again
    code = f"""
import pyarrow as pa
from headrace.lake import Lake
table = Lake({lake.root!r}).table("raw/toy")
table.append(table.open().to_pyarrow_table(), "lot 1", number=7)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert table.open() is not known
    assert table.held(keys) == {"lot 0": 1, "lot 1": 7}
    assert table.count() == 2

    shutil.rmtree(table.uri)
    assert not table.exists()
    assert table.count() == 0
    for lot in ("lot 2", "lot 3"):  # made again, to the very same version
        table.append(rows((FIRST.start, 0), (FIRST.start, 1)), lot)
    assert table.held(keys) == {"lot 2": 1, "lot 3": 1}
    assert table.count() == 4


def test_merging_files_changes_no_row_and_leaves_earlier_versions_readable(lake: Lake) -> None:
    table = lake.table("raw/toy")
    for commit in range(6):
        table.append(rows((FIRST.start, commit)), f"lot {commit}")
    before = table.snapshot()
    assert table.compact(above=6) == 0
    assert table.compact(above=5) == 6
    after = table.snapshot()
    assert len(table.open().file_uris()) == 1
    assert (after.rows, after.fingerprint) == (before.rows, before.fingerprint)
    assert table.snapshot(before.version) == before
    assert table.holds("lot 3")
    assert not table.append(rows((FIRST.start, 0)), "lot 0")
    table.overwrite(rows((FIRST.start, 9)), FIRST, "event_timestamp")
    assert table.count() == 1
    assert lake.table("raw/none").compact(above=0) == 0


def aged(table: Table, days: int = 40) -> None:
    """Let all that the table has in its folder be so many days old."""
    then = time.time() - timedelta(days=days).total_seconds()
    for file in Path(table.uri).rglob("*.*"):
        os.utime(file, (then, then))


def summed_up_often(table: Table) -> None:
    """Let Delta sum the log up, and clean it, at every fifth commit instead of every hundredth."""
    table.open().alter.set_table_properties({"delta.checkpointInterval": "5"})


def made_long_ago(table: Table) -> None:
    """Make the table as it was made before it was told to keep its versions."""
    DeltaTable.create(table.uri, rows((FIRST.start, 0)).schema)


@pytest.fixture(params=["new", "existing"])
def lasting(lake: Lake, request: pytest.FixtureRequest) -> Table:
    """A table of six commits that are forty days old."""
    table = lake.table("raw/toy")
    if request.param == "existing":
        made_long_ago(table)
        for commit in range(6):
            once = CommitProperties(app_transactions=[Transaction(f"lot {commit}", commit)])
            write_deltalake(table.uri, rows((FIRST.start, commit)), mode="append", commit_properties=once)
    else:
        for commit in range(6):
            table.append(rows((FIRST.start, commit)), f"lot {commit}", commit)
    summed_up_often(table)
    table.open().create_checkpoint()
    aged(table)
    return table


WRITES = {
    "append": lambda table, number: table.append(rows((FIRST.start, number)), f"late {number}"),
    "overwrite": lambda table, number: table.overwrite(rows((FIRST.start, 9)), FIRST, "event_timestamp"),
    "replace": lambda table, number: table.replace(rows((FIRST.start, number))),
    "compact": lambda table, number: table.append(rows(), f"late {number}") and table.compact(above=1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_version_and_every_key_lasts(lasting: Table, write: Callable[[Table, int], object]) -> None:
    """By itself Delta forgets a table's versions after thirty days, at a checkpoint."""
    before = [lasting.snapshot(version) for version in range(7)]
    for number in range(12):
        write(lasting, number)
    assert list(Path(lasting.uri).rglob("*.checkpoint.parquet"))
    lasting.open().cleanup_metadata()  # what people do who tidy up
    aged(lasting)
    lasting.open().create_checkpoint()
    lasting.open().vacuum(dry_run=False, full=True)
    assert [lasting.snapshot(version) for version in range(7)] == before
    assert lasting.held(f"lot {commit}" for commit in range(6)) == {f"lot {n}": n for n in range(6)}
    assert not lasting.append(rows((FIRST.start, 0)), "lot 0")


def test_a_version_that_is_gone_is_said_to_be_gone(lake: Lake) -> None:
    table = lake.table("raw/toy")
    made_long_ago(table)
    summed_up_often(table)
    for commit in range(20):
        if commit == 10:
            aged(table)
        write_deltalake(table.uri, rows((FIRST.start, commit)), mode="append")
    with pytest.raises(VersionGone, match=r"`raw/toy` cannot .* 2; its newest is 21\. It is gone"):
        lake.connect({"t": lake.at("raw/toy", 2)})
    with pytest.raises(VersionGone, match=r"version 99; its newest is 21\. It is still to come"):
        table.snapshot(99)
    with pytest.raises(NotBuilt):
        lake.table("raw/none").open(2)
    table.compact(above=1)
    table.open().vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(VersionGone, match="version 20"):
        lake.connect({"t": lake.at("raw/toy", 20)})


def test_a_table_of_somebody_elses_is_left_as_they_set_it(tmp_path: Path) -> None:
    place = str(tmp_path / "theirs")
    theirs = Table(place, place)
    made_long_ago(theirs)
    theirs.append(rows((FIRST.start, 1)), "lot")
    assert not theirs.open().metadata().configuration


def test_each_of_processes_that_replace_a_table_at_once_learns_its_own_version(lake: Lake) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", REPLACER, lake.root, str(first)], stdout=subprocess.PIPE, text=True
        )
        for first in (100, 200, 300)
    ]
    said = [line.split() for process in started for line in process.communicate()[0].splitlines()]
    assert len(said) == 45
    for version, value in said:
        kept = lake.connect({"t": lake.at("training/things", int(version))})
        assert kept.sql("SELECT value FROM t").fetchall() == [(int(value),)]


def test_what_is_spilled_may_go_to_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    con = duckdb_connection(memory="60MB")
    spilled = con.sql("SELECT count(*) FROM (SELECT DISTINCT hash(i) FROM range(3_000_000) t(i))")
    assert spilled.fetchone() == (3_000_000,)


def test_a_table_that_is_not_there_says_which_flow_makes_it(lake: Lake) -> None:
    with pytest.raises(NotBuilt, match=r"`features/x` does not exist yet\. Run the `materialize` flow"):
        lake.connect({"x": "features/x"})
    assert lake.table("features/x").count() == 0


WRITER = """
import sys
from datetime import UTC, datetime
import pyarrow as pa
from headrace.lake import Lake
table = Lake(sys.argv[1]).table("raw/things")
rows = pa.table({"value": list(range(100))})
print(sum(table.append(rows, key=str(key)) for key in range(10)))
"""


@pytest.mark.parametrize("made", [False, True], ids=["new", "existing"])
def test_processes_that_land_the_same_batches_at_once_land_each_once(lake: Lake, made: bool) -> None:
    if made:
        DeltaTable.create(lake.table("raw/things").uri, pa.schema({"value": pa.int64()}))
    racers = [
        subprocess.Popen([sys.executable, "-c", WRITER, lake.root], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    landed = [int(racer.communicate(timeout=120)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sum(landed) == 10
    assert lake.table("raw/things").count() == 1000


@given(st.datetimes(utc(2000).replace(tzinfo=None), utc(2030).replace(tzinfo=None)), st.integers(1, 400))
def test_windows_tile_time_without_gap_or_overlap(start: object, hours: int) -> None:
    at = start.replace(tzinfo=utc(2000).tzinfo)  # type: ignore[attr-defined]
    tiles = windows(at, at + timedelta(days=60), timedelta(hours=hours))
    assert all(a.end == b.start for a, b in pairwise(tiles))
    if tiles:
        assert tiles[0].start <= at < tiles[0].end
        assert at + timedelta(days=60) - timedelta(hours=hours) < tiles[-1].end <= at + timedelta(days=60)


def test_a_window_refuses_naive_instants_and_an_end_before_its_start() -> None:
    with pytest.raises(ValueError, match="aware"):
        Window(utc(2013).replace(tzinfo=None), utc(2014))
    with pytest.raises(ValueError, match="end after it starts"):
        Window(utc(2014), utc(2013))


def test_a_time_limit_of_asyncios_own_is_not_taken_for_an_ending_from_outside() -> None:
    """It is a ``TimeoutError`` that a cancellation caused: what a server that went away looks like."""
    with pytest.raises(TimeoutError), interruptible():
        asyncio.run(asyncio.wait_for(asyncio.sleep(60), 0.01))


DAMAGES = {
    "a missing file": ("*.parquet", None, r"part-\S+parquet is missing"),
    "a cut file": ("*.parquet", lambda content: content[:50], r"part-\S+parquet"),
    "an empty file": ("*.parquet", lambda content: b"", r"part-\S+parquet"),
    "a cut commit": ("_delta_log/*3.json", lambda content: content[:100], "its log: .*Truncated record"),
    "an empty commit": ("_delta_log/*3.json", lambda content: b"", r"0+3\.json of its log is empty"),
    "a garbled commit": ("_delta_log/*0.json", lambda content: b"\0\1" + content, "its log: .*Json error"),
    "a missing commit": ("_delta_log/*1.json", None, "its log: .*gap"),
    "a cut checkpoint": ("_delta_log/*.parquet", lambda content: content[:200], "its log: .*Corrupt footer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_told_by_its_name_and_file(damage: str, tmp_path: Path) -> None:
    pattern, change, said = DAMAGES[damage]
    table = Lake(str(tmp_path)).table("raw/things")
    for number in range(12 if "checkpoint" in damage else 3):
        table.append(pa.table({"a": range(number, number + 100)}), str(number))
    file = min((tmp_path / "raw/things").glob(pattern))
    file.write_bytes(change(file.read_bytes())) if change else file.unlink()

    with pytest.raises(DamagedTable, match=rf"Table `raw/things` is damaged: .*{said}") as told:
        table.relation(duckdb_connection()).fetchall()
    assert f"Restore {tmp_path}/raw/things from a backup. Without one" in str(told.value)
    assert "run `ingest`" in str(told.value)
    if "_delta_log" in pattern:
        with pytest.raises(DamagedTable):
            table.append(pa.table({"a": [1]}), "more")
