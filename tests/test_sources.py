"""Sources: every row of the span comes, typed as its origin has it; what cannot be read is named."""

from __future__ import annotations

import gzip
import pickle
import re
import sqlite3
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from headrace.errors import ServerUnreachable
from headrace.lake import Lake, Window, duckdb_connection
from headrace.pipeline import Source
from headrace.sources import Call, Files, Part, Predictions, Query
from headrace.sources.errors import MissingColumns, SourceUnreadable
from tests.conftest import ROOT, free_port, utc

JANUARY = Window(utc(2024, 1, 1), utc(2024, 2, 1))
INSTANT = "TIMESTAMP WITH TIME ZONE"


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with closing(duckdb_connection()) as con:
        yield con


def rows(con: duckdb.DuckDBPyConnection, part: Part, columns: str = "*") -> list[tuple[Any, ...]]:
    return con.sql(f"SELECT {columns} FROM {part.relation} ORDER BY ALL").fetchall()


def types(con: duckdb.DuckDBPyConnection, part: Part) -> dict[str, str]:
    found = con.table(part.relation)
    return dict(zip(found.columns, map(str, found.types), strict=True))


def weeks(folder: Path, *texts: str) -> Files:
    """Write a CSV file for each text, and read them all."""
    for i, text in enumerate(texts):
        Path(folder, f"week{i}.csv").write_text(text)
    return Files({"weather": folder / "*.csv"})


HEAD = "at,station,temp\n"
EARLY = HEAD + "2024-01-01 00:00:00,EWR,1.5\n2024-01-02 00:00:00,JFK,NA\n"
LATE = HEAD + "2024-01-08 00:00:00,EWR,2.5\n2024-02-01 00:00:00,JFK,3.5\n"


# Files


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "jsonl.gz", "json", "parquet"])
def test_rows_of_the_span_and_rows_without_a_time_come_from_every_kind_of_file(
    kind: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    file = tmp_path / f"rows.{kind}"
    con.execute("""CREATE TABLE made AS FROM (VALUES
        (1, TIMESTAMP '2023-12-31 23:59:59', 'a'), (2, TIMESTAMP '2024-01-01', 'b'), (3, NULL, 'c'),
        (4, TIMESTAMP '2024-01-31 23:59:59', NULL), (5, TIMESTAMP '2024-02-01', 'e')) t(id, "at", note)""")
    con.execute(f"COPY made TO '{file}'" + (" (FORMAT json)" if "json" in kind else ""))
    (part,) = Files({"made": file}).read(con, "made", "at", JANUARY)
    assert rows(con, part, "id, note") == [(2, "b"), (3, "c"), (4, None)]
    assert types(con, part)["at"] == INSTANT
    assert part == Part("part0", (), ("id", "at", "note"))


def test_select_joins_the_first_view_to_the_others(tmp_path: Path, con: duckdb.DuckDBPyConnection) -> None:
    source = weeks(tmp_path, EARLY, LATE)
    (tmp_path / "stations.jsonl").write_text('{"faa": "EWR", "name": "Newark"}\n')
    both = dict(source.files) | {"stations": tmp_path / "stations.jsonl"}  # type: ignore[call-overload]
    select = 'SELECT "at", name FROM weather LEFT JOIN stations ON station = faa -- the end'
    (part,) = Files(lambda: both, select).read(con, "weather", "at", JANUARY)
    assert rows(con, part, "name") == [("Newark",), ("Newark",), (None,)]
    assert part.found == ("at", "station", "temp", "faa", "name")
    with pytest.raises(SourceUnreadable, match="must say how to join"):
        Files(both).read(con, "weather", "at", JANUARY)


@pytest.mark.parametrize(
    ("texts", "instants"),
    [
        (["2024-01-05", "2024-01-06"], [utc(2024, 1, 5), utc(2024, 1, 6)]),
        (["2024-01-05T10:00:00+02:00"], [utc(2024, 1, 5, 8)]),
        (["2024-01-05 10:00:00", "2024-01-05T10:00:00Z"], [utc(2024, 1, 5, 10)] * 2),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_times_are_utc_unless_they_say_otherwise(
    texts: list[str], instants: list[datetime], kind: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    lines = texts if kind == "csv" else [f'{{"at": "{text}"}}' for text in texts]
    (tmp_path / f"t.{kind}").write_text("\n".join(["at"] * (kind == "csv") + lines) + "\n")
    (part,) = Files({"t": tmp_path / f"t.{kind}"}).read(con, "t", "at", JANUARY)
    assert [at for (at,) in rows(con, part)] == instants


@pytest.mark.parametrize("values", ["05/01/2024", "05/01/2024 10:00:00", "1704448800", "soon"])
def test_a_time_that_is_no_instant_is_refused(
    values: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(SourceUnreadable, match=r"Source `weather`.*(`at`|05/01/2024|soon)"):
        weeks(tmp_path, f"at,x\n{values},1\n").read(con, "weather", "at", JANUARY)


def test_a_span_without_rows_gives_a_part_without_rows(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    (part,) = weeks(tmp_path, EARLY, LATE).read(con, "weather", "at", Window(utc(2025), utc(2026)))
    assert rows(con, part) == []
    assert types(con, part) == {"at": INSTANT, "station": "VARCHAR", "temp": "DOUBLE"}


def test_files_of_one_schema_are_one_part_whatever_the_order_and_spelling_of_their_columns(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    turned = "temp;At;station\n4.5;2024-01-20;LGA\n"
    (part,) = weeks(tmp_path, EARLY, LATE, turned).read(con, "weather", "at", JANUARY)
    assert rows(con, part, "station, temp") == [("EWR", 1.5), ("EWR", 2.5), ("JFK", None), ("LGA", 4.5)]
    assert part.lacking == ()


def test_a_column_null_throughout_a_file_or_whole_numbers_in_it_is_not_retyped(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    texts = ["NA", "NA", "7", "1.5"]
    source = weeks(tmp_path, *(f"{HEAD}2024-01-0{i + 1},EWR,{text}\n" for i, text in enumerate(texts)), HEAD)
    (part,) = source.read(con, "weather", "at", JANUARY)
    assert rows(con, part, "temp") == [(1.5,), (7.0,), (None,), (None,)]
    assert part.lacking == ()


def test_codes_that_look_like_numbers_in_one_file_keep_their_zeros(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    source = weeks(
        tmp_path, "at,code\n2024-01-01,A1\n", "at,code\n2024-01-02,B2\n", "at,code\n2024-01-03,007\n"
    )
    (part,) = source.read(con, "codes", "at", JANUARY)
    assert rows(con, part, "code") == [("007",), ("A1",), ("B2",)]


def test_files_that_lack_a_column_are_a_part_of_their_own(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    bad = "at,station\n2024-01-09,LGA\n"
    usual, odd = weeks(tmp_path, bad, EARLY, LATE).read(con, "weather", "at", JANUARY)
    assert (usual.lacking, odd.lacking) == ((), ("temp",))
    assert odd.found == ("at", "station")
    assert rows(con, usual, "station, temp") == [("EWR", 1.5), ("EWR", 2.5), ("JFK", None)]
    assert rows(con, odd, "station, temp") == [("LGA", None)]
    assert types(con, odd) == types(con, usual)


def test_files_with_a_column_more_are_a_part_of_their_own(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    usual, odd = weeks(tmp_path, EARLY, LATE, "at,station,temp,gust\n2024-01-09,LGA,1,9\n").read(
        con, "weather", "at", JANUARY
    )
    assert (usual.lacking, odd.lacking) == ((), ())
    assert odd.found == ("at", "station", "temp", "gust")
    assert rows(con, odd, "station, temp, gust") == [("LGA", 1.0, 9)]


def test_files_with_text_among_numbers_are_a_part_of_their_own_type(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    lines = "".join(f"2024-01-09,LGA,{i}\n" for i in range(30_000))  # more than a sniffer's sample
    usual, odd = weeks(tmp_path, EARLY, LATE, f"{HEAD}{lines}2024-01-09,LGA,cold\n").read(
        con, "weather", "at", JANUARY
    )
    assert types(con, usual)["temp"] == "DOUBLE"
    assert types(con, odd)["temp"] == "VARCHAR"
    assert con.table(odd.relation).count("*").fetchall() == [(30_001,)]


def test_files_whose_time_is_no_instant_are_a_part_that_keeps_what_they_say(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    odd_file = f"{HEAD}2024-01-09,LGA,1\nsoon,LGA,2\n2024-02-09,LGA,3\n"
    _, odd = weeks(tmp_path, EARLY, LATE, odd_file).read(con, "weather", "at", JANUARY)
    assert rows(con, odd, '"at"') == [("2024-01-09",), ("soon",)]


@pytest.mark.parametrize("named", ["gust", "weather.gust", "w.gust"])
def test_a_column_that_select_names_and_most_files_lack_is_null_there(
    named: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    source = weeks(tmp_path, EARLY, LATE, "at,station,temp,gust\n2024-01-09,LGA,1,9\n")
    alias = "w" if named.startswith("w.") else "weather"
    select = f'SELECT "at", {named} FROM weather AS {alias}'
    usual, new = Files(source.files, select).read(con, "weather", "at", JANUARY)
    assert (usual.lacking, new.lacking) == (("gust",), ())
    assert rows(con, usual, "gust") == [(None,)] * 3
    assert types(con, usual) == types(con, new) == {"at": INSTANT, "gust": "BIGINT"}
    with pytest.raises(
        MissingColumns, match=r"Source `weather` lacks `dust`; it has at, station, temp"
    ) as caught:
        Files(source.files, select.replace("gust", "dust")).read(con, "weather", "at", JANUARY)
    assert caught.value.missing == ("dust",)


def test_a_time_that_no_file_or_select_has_is_missing(tmp_path: Path, con: duckdb.DuckDBPyConnection) -> None:
    source = weeks(tmp_path, EARLY, LATE)
    with pytest.raises(MissingColumns, match="lacks `seen_at`; it has at, station, temp"):
        source.read(con, "weather", "seen_at", JANUARY)
    with pytest.raises(MissingColumns, match=r"lacks `at`; it has station\."):
        Files(source.files, "SELECT station FROM weather").read(con, "weather", "at", JANUARY)


def test_parquet_files_of_other_types_are_parts_unless_one_type_holds_all(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    at = [utc(2024, 1, 5)]
    columns = [pa.array([1], pa.int32()), pa.array([2**40]), pa.nulls(1), pa.array([0.5]), pa.array(["cold"])]
    for i, temp in enumerate(columns):
        pq.write_table(
            pa.table({"at": pa.array(at, pa.timestamp("ns", "UTC")), "temp": temp}), tmp_path / f"{i}.parquet"
        )
    usual, odd = Files({"t": f"{tmp_path}/**/*.parquet"}).read(con, "t", "at", JANUARY)
    assert rows(con, usual, "temp") == [(0.5,), (1.0,), (float(2**40),), (None,)]
    assert rows(con, odd, "temp") == [("cold",)]


def test_a_lookup_whose_files_differ_is_read_whole_unless_their_types_clash(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    source = weeks(tmp_path, EARLY, LATE)
    (tmp_path / "s1.jsonl").write_text('{"faa": "EWR", "name": "Newark"}\n')
    (tmp_path / "s2.jsonl").write_text('{"faa": "JFK"}\n')
    (tmp_path / "s3.jsonl").touch()
    both = dict(source.files) | {"stations": tmp_path / "s*.jsonl"}  # type: ignore[call-overload]
    joined = Files(both, 'SELECT "at", faa, name FROM weather JOIN stations ON station = faa')
    (part,) = joined.read(con, "weather", "at", JANUARY)
    assert rows(con, part, "faa, name") == [("EWR", "Newark"), ("EWR", "Newark"), ("JFK", None)]
    (tmp_path / "s3.jsonl").write_text('{"faa": "LGA", "name": 3}\n')
    with pytest.raises(SourceUnreadable, match=r"s\*\.jsonl: its files disagree"):
        joined.read(con, "weather", "at", JANUARY)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "values",
    [
        ["9223372036854775807", "7"],
        ["9223372036854775808", "7", None],
        ["-12345678901234567890123"],
        ["7"] * 3000 + ["9" * 38],
        ["9223372036854775808", "1.5"],
    ],
    ids=["64 bits", "more", "negative", "late", "fractions"],
)
def test_whole_numbers_keep_every_digit(
    kind: str, values: list[str | None], tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    template = '{{"at": "2024-01-01", "id": {}}}' if kind == "jsonl" else "2024-01-01,{}"
    lines = [] if kind == "jsonl" else ["at,id"]
    lines += [template.format(value or ("null" if kind == "jsonl" else "")) for value in values]
    (tmp_path / f"ids.{kind}").write_text("\n".join(lines) + "\n")

    (part,) = Files({"ids": tmp_path / f"ids.{kind}"}).read(con, "ids", "at", JANUARY)

    number = float if "1.5" in values else int
    assert Counter(rows(con, part, "id")) == Counter((value and number(value),) for value in values)


def test_whole_numbers_that_no_number_type_holds_are_text(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    long = "1" * 40
    source = weeks(tmp_path, f"at,id\n2024-01-01,{long}\n2024-01-02,7\n", "at,id\n2024-01-03,8\n")
    assert [rows(con, part, "id") for part in source.read(con, "ids", "at", JANUARY)] == [
        [(long,), ("7",), ("8",)]
    ]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.jsonl"])
def test_text_in_another_encoding_is_told_which(
    name: str, encoding: str, said: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    text = '{"at": "2024-01-01"}\n' if "json" in name else EARLY
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(text.encode(encoding)))
    with pytest.raises(SourceUnreadable, match=f"it is {said}, and must be UTF-8: `iconv -f {said}"):
        Files({"weather": tmp_path / name}).read(con, "weather", "at", JANUARY)


@pytest.mark.parametrize(
    ("name", "line", "written"),
    [
        ("rows.csv", 1, "at,größe\n2024-01-01,1\n"),
        ("rows.csv.gz", 3, "at,name\n2024-01-01,x\n2024-01-01,café\n"),
        ("rows.jsonl", 1, '{"at": "2024-01-01", "name": "café"}\n'),
    ],
)
def test_text_that_is_not_utf_8_is_told_in_which_line(
    name: str, line: int, written: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(written.encode("latin-1")))
    with pytest.raises(SourceUnreadable, match=rf"line {line} is not UTF-8: if it is Latin-1, `iconv -f"):
        Files({"weather": tmp_path / name}).read(con, "weather", "at", JANUARY)


def test_a_character_across_the_end_of_what_is_looked_at_is_no_error(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    start = "at,name\n2024-01-01,"
    text = start + "x" * (2**16 - len(start) - 1) + "é\n"
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    (part,) = Files({"weather": tmp_path / "rows.csv"}).read(con, "weather", "at", JANUARY)
    assert rows(con, part, "name")[0][0].endswith("xé")


@pytest.mark.parametrize("header", ["at,temp,temp", "at;Temp;x;temp", 'at,"temp","TEMP",,'])
def test_a_name_that_is_twice_in_a_header_is_refused(
    header: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    (tmp_path / "rows.csv").write_text(header + "\n")
    with pytest.raises(SourceUnreadable, match=r"more than one column of the name `temp`\n"):
        Files({"weather": tmp_path / "rows.csv"}).read(con, "weather", "at", JANUARY)


def test_a_name_that_is_twice_in_a_parquet_file_is_refused(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    at, one = pa.array(["2024-01-01"]), pa.array([1])
    for file, names in {"rows": ["at", "temp_1", "temp"], "twice": ["at", "temp", "temp"]}.items():
        pq.write_table(pa.Table.from_arrays([at, one, one], names), tmp_path / f"{file}.parquet")
    Files({"weather": tmp_path / "rows.parquet"}).read(con, "weather", "at", JANUARY)
    with pytest.raises(SourceUnreadable, match="more than one column of the name `temp`"):
        Files({"weather": tmp_path / "twice.parquet"}).read(con, "weather", "at", JANUARY)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("nowhere-*.csv", None, "no such file"),
        ("nowhere.csv", None, "no such file"),
        ("table.xlsx", "x", r"no reader for `.xlsx` files"),
        ("empty.csv", "", "no header line"),
        ("half.csv", 'at,b\n2024-01-01,x\n2024-01-02,"y', r"Line: 3\n.*\n.*unterminated quote"),
        (
            "ragged.csv",
            "at,b\n2024-01-01,x\n2024-01-02\n",
            "Line: 3\n.*\nExpected Number of Columns: 2 Found: 1",
        ),
        ("torn.csv.gz", "at,b", "incorrect header"),
        ("half.jsonl", '{"at": "2024-01-01"}\n{"at":', "line 2|line 3"),
        ("half.parquet", "PAR1", "too small|No magic bytes"),
    ],
)
def test_what_cannot_be_read_is_named_without_advice_on_duckdb(
    name: str, text: str | None, reason: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(
        SourceUnreadable, match=rf"`weather` cannot be read from \S*/{name.replace('*', '.')}: "
    ) as caught:
        Files({"weather": tmp_path / name}).read(con, "weather", "at", JANUARY)
    assert re.search(reason, caught.value.reason)
    assert not any(word in caught.value.reason for word in ("Possible", "strict_mode", "Candidate"))


def test_of_many_files_the_one_that_is_broken_is_named(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    source = weeks(tmp_path, EARLY, LATE, HEAD + "2024-01-09,LGA\n")
    with pytest.raises(SourceUnreadable, match=r"from \S*week2.csv: .*Line: 2"):
        source.read(con, "weather", "at", JANUARY)


def check_object_store(fs: Any, root: str, con: duckdb.DuckDBPyConnection) -> None:
    fs.pipe({f"{root}/a.csv": EARLY.encode(), f"{root}/deep/b.csv.gz": gzip.compress(LATE.encode())})
    fs.pipe(f"{root}/p.parquet", _parquet())
    (part,) = Files({"weather": f"{root}/**/*.csv*"}).read(con, "weather", "at", JANUARY)
    assert rows(con, part, "station, temp") == [("EWR", 1.5), ("EWR", 2.5), ("JFK", None)]
    fs.pipe(f"{root}/c.csv", (HEAD + "2024-01-09,LGA,4.5\n").encode())  # seen, though the listing was cached
    (part,) = Files({"weather": f"{root}/*.csv"}).read(con, "weather", "at", JANUARY)
    assert rows(con, part, "station") == [("EWR",), ("JFK",), ("LGA",)]
    (part,) = Files({"weather": f"{root}/p.parquet"}).read(con, "weather", "at", JANUARY)
    assert rows(con, part, "temp") == [(1.5,)]
    with pytest.raises(SourceUnreadable, match=rf"from {root}/none\*: no such file"):
        Files({"weather": f"{root}/none*"}).read(con, "weather", "at", JANUARY)


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"at": [utc(2024, 1, 5)], "temp": [1.5]}), sink)
    return sink.getvalue().to_pybytes()


def test_files_of_an_fsspec_store_are_read_as_local_ones_are(con: duckdb.DuckDBPyConnection) -> None:
    import fsspec

    check_object_store(fsspec.filesystem("memory"), "memory://sources", con)


def test_files_of_an_s3_bucket_are_read_as_local_ones_are(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("moto.server", reason="`moto[server]` is not installed")
    s3fs = pytest.importorskip("s3fs", reason="`s3fs` is not installed")
    running = server.ThreadedMotoServer("127.0.0.1", port=free_port())
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.mkdir("river")
        check_object_store(fs, "s3://river/raw", con)
        with pytest.raises(SourceUnreadable, match="s3://nobody/"):
            Files({"weather": "s3://nobody/a.csv"}).read(con, "weather", "at", JANUARY)
    finally:
        running.stop()


BODY = b"at,temp\n" + b"2024-01-05T00:00:00Z,1\n" * 10_000


class Signed(BaseHTTPRequestHandler):
    """Serves a signed link until it has been read ``reads`` times."""

    reads = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_GET(self) -> None:
        type(self).reads -= 1
        if self.reads < 0 or "sig=s3cret" not in self.path:
            self.send_error(403)
            return
        self.do_HEAD()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Return a function that lets a link be read so often, and returns it."""
    pytest.importorskip("aiohttp", reason="`aiohttp`, with which fsspec reads links, is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), Signed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def link(reads: int) -> str:
            monkeypatch.setattr(Signed, "reads", reads)
            return f"http://me:s3cret@127.0.0.1:{server.server_port}/a.csv?sig=s3cret"

        yield link
        server.shutdown()


def test_a_signed_link_is_read_by_the_name_before_its_query(
    signed: Callable[[int], str], con: duckdb.DuckDBPyConnection
) -> None:
    (part,) = Files({"weather": signed(99)}).read(con, "weather", "at", JANUARY)
    assert types(con, part) == {"at": INSTANT, "temp": "BIGINT"}


@pytest.mark.parametrize("reads", range(6))
def test_a_link_that_fails_is_shown_without_its_secrets_whenever_it_does(
    signed: Callable[[int], str], con: duckdb.DuckDBPyConnection, reads: int
) -> None:
    files = Files({"weather": signed(reads)})
    with pytest.raises(SourceUnreadable, match=r"http://127\.0\.0\.1:\d+/a\.csv\?…") as caught:
        files.read(con, "weather", "at", JANUARY)
    told = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in f"{told}{caught.value.files}{caught.value.reason}{files}"


@pytest.mark.parametrize(
    "place",
    [
        "http://me:s3cret@127.0.0.1:1/a.csv?sig=s3cret",
        "sftp://me:s3cret@127.0.0.1:1/a.csv",
        "nostore://me:s3cret@x/a.csv",
        "simplecache::nostore://me:s3@s3cret@x/a.csv",
    ],
)
def test_a_place_that_cannot_be_reached_is_shown_without_its_secrets(
    place: str, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(SourceUnreadable) as caught:
        Files({"weather": place}).read(con, "weather", "at", JANUARY)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_store_that_is_not_known_is_named(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(SourceUnreadable, match=r"from nostore://x/a.csv: ValueError: .*nostore"):
        Files({"weather": "nostore://x/a.csv"}).read(con, "weather", "at", JANUARY)


# Databases


TYPED = """
CREATE TABLE typed (id INTEGER, big BIGINT, ratio DOUBLE PRECISION, price NUMERIC(10, 2), ok BOOLEAN,
                    note TEXT, day DATE, at {instant}, raw {bytes}, doc {json})
"""
FIRST = (
    1,
    2**40,
    0.5,
    Decimal("3.10"),
    True,
    "a:b % c",
    date(2024, 1, 5),
    utc(2024, 1, 1),
    b"\0x",
    '{"k": [1]}',
)
LAST = (None, None, None, None, None, "last", None, utc(2024, 1, 31, 23), None, None)


def typed(url: str) -> sa.Engine:
    """Make the table ``typed``: one whole row, 25,000 of nulls, one without a time, two outside January."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    postgres = engine.dialect.name == "postgresql"
    kinds = {"instant": "TIMESTAMPTZ", "bytes": "BYTEA", "json": "JSONB"} if postgres else {}
    made = TYPED.format(**(kinds or {"instant": "TIMESTAMP", "bytes": "BLOB", "json": "JSON"}))
    nulls = (None,) * 5 + ("null",) + (None,) * 4
    late, early = (
        (*FIRST[:5], "outside", FIRST[6], at, *FIRST[8:])
        for at in (JANUARY.end, JANUARY.start - timedelta(seconds=1))
    )
    between = [(*nulls[:7], utc(2024, 1, 2), None, None)] * 25_000
    with engine.begin() as db:
        db.exec_driver_sql("DROP TABLE IF EXISTS typed")
        db.exec_driver_sql(made)
        marks = ", ".join(["%s" if postgres else "?"] * 10)
        values = [*between, FIRST, LAST, nulls, late, early]
        if not postgres:
            values = [
                tuple(
                    float(v) if isinstance(v, Decimal) else v.isoformat() if isinstance(v, date) else v
                    for v in row
                )
                for row in values
            ]
        db.exec_driver_sql(f"INSERT INTO typed VALUES ({marks})", values)
    return engine


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = (
        request.getfixturevalue("postgres")
        if request.param == "postgresql"
        else f"sqlite:///{tmp_path}/rows.db"
    )
    typed(url)
    return str(url)


def test_a_query_brings_the_span_and_what_has_no_time_in_the_databases_types(
    database: str, con: duckdb.DuckDBPyConnection
) -> None:
    (part,) = Query(database, "SELECT * FROM typed -- all;").read(con, "typed", "at", JANUARY)
    assert con.table(part.relation).count("*").fetchall() == [(25_003,)]
    assert con.sql("FROM part0 WHERE id = 1").fetchall() == [FIRST]
    assert con.sql("FROM part0 WHERE note = 'last'").fetchall() == [LAST]
    assert con.sql('SELECT note FROM part0 WHERE "at" IS NULL').fetchall() == [("null",)]
    whole = {"BIGINT"} if database.startswith("sqlite") else {"INTEGER"}
    kinds = types(con, part)
    assert {kinds.pop("id")} == whole
    named = ["BIGINT", "DOUBLE", "DECIMAL(10,2)", "BOOLEAN", "VARCHAR", "DATE", INSTANT, "BLOB", "VARCHAR"]
    assert list(kinds.values()) == named
    assert part.lacking == ()
    assert part.found[:2] == ("id", "big")


def test_what_is_older_than_a_span_is_counted_by_the_database(database: str) -> None:
    query, second = Query(database, "SELECT at FROM typed -- all;"), timedelta(seconds=1)
    early = JANUARY.start - second
    for before, older in ((early, 0), (JANUARY.start, 1), (JANUARY.start + second, 2), (utc(2100), 25_004)):
        assert query.earlier("typed", "at", before) == older
    with pytest.raises(SourceUnreadable, match="gusts"):
        Query(database, "SELECT gusts FROM typed").earlier("typed", "at", early)


def test_a_query_without_rows_gives_a_part_with_the_databases_types(
    database: str, con: duckdb.DuckDBPyConnection
) -> None:
    query = Query(database, "SELECT ok, price, at FROM typed")
    (part,) = query.read(con, "typed", "at", Window(utc(2030), utc(2031)))
    assert list(types(con, part).values()) == ["BOOLEAN", "DECIMAL(10,2)", INSTANT]
    assert rows(con, part, "ok") == [(None,)]  # the row without a time


def test_a_query_takes_colons_percents_and_the_like_as_they_are(
    database: str, con: duckdb.DuckDBPyConnection
) -> None:
    sql = "SELECT at, ' :x %s' AS odd, count(*) AS n FROM typed WHERE note LIKE 'a:%' GROUP BY at;\n"
    (part,) = Query(database, sql).read(con, "typed", "at", JANUARY)
    assert rows(con, part, "odd, n") == [(" :x %s", 1)]
    assert types(con, part)["n"] == "BIGINT"


def test_what_the_database_refuses_is_told_in_its_own_words(
    database: str, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(
        SourceUnreadable, match=r"`typed` cannot be read from (postgresql|sqlite).*: .*gusts"
    ) as caught:
        Query(database, "SELECT gusts FROM typed").read(con, "typed", "at", JANUARY)
    assert "\n" not in caught.value.reason
    with pytest.raises(MissingColumns, match="lacks `seen_at`; it has at, note"):
        Query(database, "SELECT at, note FROM typed").read(con, "typed", "seen_at", JANUARY)
    with pytest.raises(SourceUnreadable, match=r"column `id`: it is (BIGINT|INTEGER)"):
        Query(database, "SELECT id FROM typed").read(con, "typed", "id", JANUARY)


def test_postgres_types_without_a_like_become_text_or_doubles(
    postgres: str, con: duckdb.DuckDBPyConnection
) -> None:
    sql = """SELECT TIMESTAMP '2024-01-31 23:30' AS at, 1::numeric / 3 AS third, ARRAY[1, 2] AS list,
        '{"a": 1}'::json AS doc, TIME '10:30' AS clock, INTERVAL '90 minutes' AS span,
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS id, NULL AS nothing, 2::smallint AS small,
        'x'::char(3) AS c"""
    (part,) = Query(postgres, sql).read(con, "p", "at", JANUARY)
    ((at, third, *texts),) = rows(con, part, '"at", third, list, doc, id, nothing, c')
    assert (at, round(third, 6)) == (datetime(2024, 1, 31, 23, 30, tzinfo=at.tzinfo), 0.333333)
    assert texts == ["[1, 2]", '{"a": 1}', "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None, "x  "]
    assert {c: k for c, k in types(con, part).items() if c in ("clock", "span", "small")} == {
        "clock": "TIME",
        "span": "INTERVAL",
        "small": "SMALLINT",
    }


def test_postgres_reads_times_without_an_offset_as_utc_wherever_the_server_stands(
    postgres: str, con: duckdb.DuckDBPyConnection
) -> None:
    edge = "SELECT TIMESTAMP '2024-01-01 00:00' AS at UNION ALL SELECT TIMESTAMP '2024-01-31 23:59'"
    far = f"{postgres}?options=-c%20timezone%3DAsia/Tokyo"
    (part,) = Query(far, edge).read(con, "p", "at", JANUARY)
    assert len(rows(con, part)) == 2


@pytest.mark.parametrize(
    "at", ["2024-01-01 00:00:00", "2024-01-01T00:00:00Z", "2024-01-01 02:00:00+02:00", "2024-01-01"]
)
def test_sqlite_finds_a_time_at_the_edge_however_it_is_written(
    at: str, tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    with closing(sqlite3.connect(tmp_path / "t.db")) as db, db:
        db.execute("CREATE TABLE t (at TIMESTAMP)")
        db.executemany(
            "INSERT INTO t VALUES (?)", [(at,), ("2023-12-31 23:59:59.9",), ("2024-02-01T00:00:00",)]
        )
    (part,) = Query(f"sqlite:///{tmp_path}/t.db", "SELECT * FROM t").read(con, "t", "at", JANUARY)
    assert rows(con, part) == [(utc(2024, 1, 1),)]


def test_another_database_that_does_not_tell_its_types_is_read_by_its_values(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    with closing(duckdb.connect(str(tmp_path / "x.db"))) as db:
        db.execute("""CREATE TABLE t AS SELECT TIMESTAMP '2024-01-02' + to_seconds(i) AS seen, i AS n,
            IF(i > 15_000, i / 2, NULL) AS x FROM range(20_000) r(i)""")
    (part,) = Query(f"duckdb:///{tmp_path}/x.db", "SELECT * FROM t").read(con, "t", "seen", JANUARY)
    assert types(con, part) == {"seen": INSTANT, "n": "BIGINT", "x": "DOUBLE"}
    assert con.sql("SELECT count(*), count(x), max(x) FROM part0").fetchall() == [(20_000, 4_999, 9_999.5)]


def test_a_url_is_filled_in_from_the_environment_and_a_password_is_never_shown(
    postgres: str, con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql, read = "SELECT now() AS at", {"con": con, "name": "now", "time": "at", "span": JANUARY}
    with pytest.raises(SourceUnreadable, match="environment variable `ROWS_DB` is not set"):
        Query("$ROWS_DB", sql).read(**read)
    monkeypatch.setenv("ROWS_DB", postgres)
    assert len(Query("${ROWS_DB}", sql).read(**read)) == 1
    monkeypatch.setenv(
        "ROWS_DB", f"postgresql+psycopg://me:s3cret@127.0.0.1:{free_port()}/x?sslpassword=s3cret"
    )
    with pytest.raises(
        ServerUnreachable, match=r"does not answer at postgresql\+psycopg://127\.0\.0\.1:\d+/x\?…:"
    ) as caught:
        Query("$ROWS_DB", sql).read(**read)
    assert "s3cret" not in f"{caught.value}{Query('x://me:s3cret@y', sql)}"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql:/s3cret", "no valid URL"),
        ("postgresql+psycopg://me:s3cret@127.0.0.1:s3cret/x", "no valid URL"),
        ("postgresql+psycopg://me:s3cret@s3cret@127.0.0.1/x", "`@` is written `%40`"),
        ("nosuch://me:s3cret@127.0.0.1/x", "nosuch"),
    ],
)
def test_a_url_that_is_none_is_refused_and_not_shown(
    url: str, reason: str, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(SourceUnreadable, match=reason) as caught:
        Query(url, "SELECT 1 AS at").read(con, "t", "at", JANUARY)
    assert "s3cret" not in str(caught.value)


def test_an_sqlite_file_that_is_missing_is_not_made(tmp_path: Path, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(SourceUnreadable, match=r"typo.db: no such file"):
        Query(f"sqlite:///{tmp_path}/typo.db", "SELECT 1 AS at").read(con, "t", "at", JANUARY)
    assert list(tmp_path.iterdir()) == []


# Functions


def observed(span: Window) -> Iterator[pa.RecordBatch]:
    """Yield a batch of nulls, one inside the span, and one around it."""
    schema = [("at", pa.timestamp("us", "UTC")), ("temp", pa.null())]
    yield pa.record_batch([[None], [None]], schema=pa.schema(schema))
    yield pa.record_batch({"at": [span.start], "temp": [1]})
    yield pa.record_batch({"at": [span.start - timedelta(days=1), span.end], "temp": [1.5, 2.5]})
    yield pa.record_batch({"temp": [0.5], "at": [span.end - timedelta(days=1)]})


def test_a_function_is_asked_for_a_span_and_kept_to_it(con: duckdb.DuckDBPyConnection) -> None:
    (part,) = Call(observed).read(con, "observed", "at", JANUARY)
    assert rows(con, part, "temp") == [(0.5,), (1.0,), (None,)]
    assert types(con, part) == {"at": INSTANT, "temp": "DOUBLE"}
    assert part == Part("part0", (), ("at", "temp"))


def test_a_function_may_return_a_table_or_a_reader_or_nothing(con: duckdb.DuckDBPyConnection) -> None:
    table = pa.table({"at": [date(2024, 1, 5)], "k": pa.array(["a"]).dictionary_encode()})
    for made in (table, [table, table.slice(0, 0)], table.to_reader(), table.to_batches()[0]):
        (part,) = Call(lambda _, made=made: made).read(con, "t", "at", JANUARY)
        assert rows(con, part) == [(utc(2024, 1, 5), "a")]
    (part,) = Call(lambda _: pa.RecordBatchReader.from_batches(table.schema, [])).read(
        con, "t", "at", JANUARY
    )
    assert rows(con, part) == []
    assert Call(lambda _: []).read(con, "t", "at", JANUARY) == []


def failing(span: Window) -> Iterator[pa.Table]:
    yield pa.table({"at": [span.start]})
    raise KeyError("token of https://me:s3cret@example.org/?sig=s3cret")


def test_a_function_that_fails_is_named_with_what_it_said(con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(
        SourceUnreadable, match=r"`t` cannot be read from `failing`: KeyError: 'token of https://example"
    ) as caught:
        Call(failing).read(con, "t", "at", JANUARY)
    told = "".join(traceback.format_exception(caught.value))
    assert "in failing" in told  # the log says where in it
    assert "s3cret" not in told
    assert caught.value.transient  # it may be a server that was away


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "`list`|NoneType"),
        ([{"at": 1}], "expected Arrow tables or record batches, got dict"),
        ([pa.table({"at": ["soon"]})], "soon"),
        ([pa.table({"at": [1.5]})], "column `at`: it is DOUBLE"),
        (
            [pa.table({"at": ["2024-01-01"], "x": [v]}) for v in (1, "a")],
            "column `x`: it holds BIGINT and VARCHAR",
        ),
        ([pa.table({"at": ["2024-01-01"], x: [1]}) for x in "ab"], "a later batch differs in a, b"),
    ],
)
def test_what_a_function_should_not_return_is_refused(
    returned: Any, said: str, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(SourceUnreadable, match=said):
        Call(lambda _: returned).read(con, "t", "at", JANUARY)
    with pytest.raises(MissingColumns, match="lacks `at`; it has b"):
        Call(lambda _: pa.table({"b": [1]})).read(con, "t", "at", JANUARY)


# All


def test_a_server_that_goes_away_while_it_answers_is_said_to_be_unreachable(
    postgres: str, con: duckdb.DuckDBPyConnection
) -> None:
    ends_itself = "SELECT now() AS at, pg_terminate_backend(pg_backend_pid()) AS gone"
    with pytest.raises(ServerUnreachable, match="The database of `t` does not answer at postgresql"):
        Query(postgres, ends_itself).read(con, "t", "at", Window(utc(2020), utc(2100)))


def test_origins_travel_to_workers(tmp_path: Path) -> None:
    for origin in (
        Files({"t": tmp_path}),
        Files(partial(dict, t=tmp_path), "FROM t"),
        Query("$X", "SELECT 1"),
        Call(observed),
    ):
        again = pickle.loads(pickle.dumps(origin))
        assert type(again) is type(origin)
        assert str(again)[:60] == str(origin)[:60]


def test_a_connection_on_disk_that_is_short_of_memory_holds_more_than_fits(tmp_path: Path) -> None:
    at = pa.array([utc(2024, 1, 5)] * 50_000)
    table = pa.table({"at": at, "text": [f"{i}" * 40 for i in range(50_000)]})
    with closing(
        duckdb.connect(str(tmp_path / "rows.db"), config={"memory_limit": "60MB", "threads": 2})
    ) as con:
        con.execute("SET TimeZone = 'UTC'")
        (part,) = Call(lambda _: iter([table] * 10)).read(con, "t", "at", JANUARY)
        assert con.table(part.relation).count("*").fetchall() == [(500_000,)]


# The docs


def test_the_docs_sources_can_be_read_as_they_stand(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/orders-1.csv").write_text(
        "order_id,item,placed_at\n1,a,2024-01-02T03:00:00Z\n2,a,2025-01-02T00:00:00Z\n"
    )
    pq.write_table(pa.table({"item": ["a"], "price": [2.5]}), "data/prices.parquet")
    monkeypatch.setenv("SHOP_DATABASE", f"sqlite:///{tmp_path}/shop.db")
    with sa.create_engine(f"sqlite:///{tmp_path}/shop.db").begin() as db:
        db.exec_driver_sql("CREATE TABLE payments (payment_id INTEGER, booked_at TIMESTAMP)")
        db.exec_driver_sql("INSERT INTO payments VALUES (7, '2024-01-03 10:00:00')")
    given: dict[str, Any] = {"Source": Source, "Files": Files, "Query": Query, "Call": Call, "pa": pa}
    given |= {"Window": Window, "timedelta": timedelta, "Predictions": Predictions}
    lake, key = Lake(str(tmp_path / "lake")), {"carrier": "UA", "flight": 7, "origin": "JFK"}
    at = dict.fromkeys(("sched_dep", "event_timestamp", "available_at"), JANUARY.start)
    lake.table("predictions/flights").append(
        pa.Table.from_pylist([{**key, **at, "probability": 0.5, "model_version": 1}]), "one"
    )
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/sources.md").read_text(), re.DOTALL):
        exec(code, given)
    brought = {}
    for source in (found for found in given.values() if isinstance(found, Source)):
        origin = source.origin.of(lake) if isinstance(source.origin, Predictions) else source.origin
        (part,) = origin.read(con, source.name, source.time, JANUARY)
        brought[source.name] = len(con.table(part.relation))
    assert brought == {"orders": 1, "priced": 1, "payments": 1, "sensors": 1, "flights_predictions": 1}
