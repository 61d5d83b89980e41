"""``headrace new`` on tables that nobody here has seen: what it makes of them, and what does not fool it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from headrace import services
from headrace.cli.new import _look
from headrace.scaffold import Asked, Plan, plan, write
from headrace.scaffold.errors import (
    BadColumn,
    BadEntity,
    BadName,
    BadTarget,
    BadTime,
    FileExists,
    NoDatabase,
    NoSuchColumn,
    NothingLeft,
    NoTime,
    TooLittle,
    Unreadable,
)
from headrace.scaffold.plan import checked
from headrace.settings import Settings
from tests.conftest import utc

ROWS, DAY = 3_000, timedelta(days=1)
AT = [datetime(2024, 1, 1) + n * timedelta(hours=1) for n in range(ROWS)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=ROWS)
SOLD = np.round(10 + 3 * X + RNG.normal(size=ROWS), 2)
BACK = RNG.normal(size=ROWS) + X > 0.5


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        yield con


def table(**more: object) -> pa.Table:
    """Return a calm table: when, something that tells, a shop, and how much was sold."""
    plain = {"at": AT, "x": X, "shop": [f"s{n % 7}" for n in range(ROWS)], "sold": SOLD}
    return pa.table(plain | more)  # type: ignore[arg-type]


def planned(con: duckdb.DuckDBPyConnection, given: pa.Table | Path, **asked: object) -> Plan:
    if isinstance(given, Path):
        _look(con, str(given), "UTC")
    else:
        con.register("rows", given)
        con.execute("CREATE OR REPLACE TEMP TABLE given AS FROM rows")
    return plan(con, Asked("toy", "toy.csv", **{"target": "sold", **asked}))  # type: ignore[arg-type]


def out(made: Plan) -> dict[str, str]:
    return {one.column: one.why for one in made.left_out}


def test_a_calm_table_is_learnt_from_whole(con: duckdb.DuckDBPyConnection) -> None:
    made = planned(con, table())
    assert (made.kind, made.loss, made.keys) == ("number", "squared", ("at",))
    assert (made.texts, made.numbers, made.clock) == (("shop",), ("x",), ("hour", "weekday"))
    assert made.left_out == ()
    assert (made.window, made.start) == (timedelta(weeks=1), utc(2024, 1, 1))
    assert made.first < made.end == utc(2024, 4, 29)
    assert made.holdout >= 7 * DAY
    assert 2 * made.holdout < made.first - made.start


ANSWERS = {
    "the answer in another unit": {"in_cents": SOLD * 100, "its_log": np.log(SOLD - SOLD.min() + 1)},
    "filled in after the question was asked": {"shipped": [at + DAY for at in AT]},
    "it is the same everywhere": {"country": ["DE"] * ROWS},
    "it is empty": {"gone": pa.nulls(ROWS, pa.string())},
    "it names single rows": {"note": [f"row {max(n, 9)}" for n in RNG.permutation(ROWS)]},
    "it has 1,000 values, which would be learnt by heart": {"code": [f"c{n % 1000}" for n in range(ROWS)]},
    "it is nested or binary": {"basket": [[1, 2]] * ROWS, "picture": [b"\0"] * ROWS},
}


@pytest.mark.parametrize("why", ANSWERS)
def test_what_knows_the_answer_or_says_nothing_is_left_out(con: duckdb.DuckDBPyConnection, why: str) -> None:
    columns = ANSWERS[why]
    made = planned(con, table(**columns), time="at")
    assert {*out(made)} == {*columns}
    assert all(told.startswith(why) or told.endswith(why) or why in told for told in out(made).values())
    kept = planned(con, table(**columns), time="at", keep=tuple(columns))
    assert out(kept) == {}


def test_the_answer_by_another_name_in_parts_or_in_its_gaps_is_left_out(
    con: duckdb.DuckDBPyConnection,
) -> None:
    part = RNG.uniform(size=ROWS)
    told = out(planned(con, table(one=SOLD * 0.3 + part, other=SOLD * 0.7 - part)))
    assert {*told} == {"one", "other"}
    assert all("together add up to `sold`" in why for why in told.values())

    back = np.where(BACK, "yes", "no")
    told = out(
        planned(
            con,
            table(back=back, state=np.where(BACK, "R", "K"), refund=[1.0 if b else None for b in BACK]),
            target="back",
        )
    )
    assert {*told} == {"state", "refund"}
    assert "alone it tells `back`" in told["state"]

    # Half of what is sent back has a reason, and nothing else has: it is not the answer, but gives it away.
    some = [str(n % 5) if b and n % 10 else None for n, b in enumerate(BACK)]
    told = out(planned(con, table(back=back, reason=some), target="back"))
    assert "filled in afterwards" in told["reason"]


def test_what_tells_much_by_itself_is_asked_about(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    late = SOLD + RNG.normal(size=ROWS)
    made = planned(con, table(late=late))
    assert out(made) == {}
    assert "late" in made.numbers
    assert {*made.strong} == {"x", "late"}
    assert 0.5 < made.strong["late"] < 0.98
    lay(tmp_path)
    write(con, made, tmp_path)
    assert "# late alone saves" in (tmp_path / "pipelines/toy.py").read_text()
    made = planned(con, table(late=late), not_known=("late",))
    assert out(made) == {"late": "it is only known afterwards, as you say"}
    assert {*made.strong} == {"x"}
    lay(again := tmp_path / "again")
    write(con, made, again)
    assert "late::" not in (again / "pipelines/toy.py").read_text()  # nor does it land as known


def test_rows_without_an_entity_are_left_out(con: duckdb.DuckDBPyConnection) -> None:
    shops = [None if n % 100 == 3 else f"s{n % 7}" for n in range(ROWS)]
    made = planned(con, table(shop=shops), entity="shop")
    assert (made.rows, made.nameless) == (ROWS * 99 // 100, ROWS // 100)
    made = planned(con, table(shop=shops))  # without a history it is a gap like any other
    assert (made.rows, made.nameless) == (ROWS, 0)


def test_of_many_columns_and_few_rows_any_sum_can_be_made_and_is_none(con: duckdb.DuckDBPyConnection) -> None:
    noise = {f"n{n}": RNG.normal(size=600) for n in range(590)}
    few = table().slice(0, 600).to_pydict() | noise
    few["at"] = AT[::5][:600]
    made = planned(con, pa.table(few))
    assert out(made) == {}
    # Nor does a number stop it that is empty wherever the truth is known.
    open_ = [None if n < 50 else sold for n, sold in enumerate(SOLD)]
    later = [1.0 + n % 3 if n < 50 else None for n in range(ROWS)]
    assert out(planned(con, table(sold=open_, later=later))) == {}


def test_what_waits_for_the_truth_is_left_out(con: duckdb.DuckDBPyConnection) -> None:
    known = ROWS - 200
    truth = [sold if n < known else None for n, sold in enumerate(SOLD)]
    late = [float(n % 3) if n < known else None for n in range(ROWS)]
    made = planned(con, table(sold=truth, late=late))
    assert out(made) == {"late": "it is empty wherever `sold` is not known yet: filled in afterwards"}
    assert (made.rows, made.known) == (ROWS, known)
    # One that has such gaps everywhere is not.
    gaps = [float(n % 3) if n % 2 else None for n in range(ROWS)]
    assert out(planned(con, table(sold=truth, gaps=gaps))) == {}


def test_what_names_rows_is_the_key_and_copies_are_one(con: duckdb.DuckDBPyConnection) -> None:
    given = table(order_id=np.arange(ROWS) + 10**6)
    made = planned(con, pa.concat_tables([given, given.slice(0, 100)]))
    assert (made.keys, made.rows, made.doubled) == (("order_id",), ROWS, 100)
    assert out(made) == {"order_id": "it names single rows, and is the key"}

    # Of rows that nothing tells apart, each has a number.
    made = planned(con, table(at=[AT[n // 2] for n in range(ROWS)]))
    assert (made.keys, made.numbered) == (("at", "nth"), True)
    timeless = [None if n % 10 == 3 else at for n, at in enumerate(AT)]
    made = planned(con, table(at=timeless))
    assert (made.timeless, made.rows) == (ROWS // 10, ROWS * 9 // 10)


def test_history_is_kept_of_an_entity(con: duckdb.DuckDBPyConnection) -> None:
    shops = [f"shop {n % 300}" for n in range(ROWS)]
    made = planned(con, table(shop=shops), entity="shop")
    assert made.entity is not None
    assert made.keys == ("shop", "at")
    assert "its history is learnt from" in out(made)["shop"]
    assert made.lookback > 4 * made.window


KINDS = {
    "texts": (np.where(BACK, "ja", "nein"), "binary", ("ja", "nein")),
    "booleans": (BACK, "binary", (True, False)),
    "0 and 1": (BACK.astype(int), "binary", (1, 0)),
    "three texts": (np.where(BACK, "a", np.where(X > 0, "b", "c")), "classes", ("a", "b", "c")),
    "counts": (RNG.poisson(5, ROWS), "number", ()),
}


@pytest.mark.parametrize("given", KINDS)
def test_the_question_is_seen_in_the_target(con: duckdb.DuckDBPyConnection, given: str) -> None:
    values, kind, classes = KINDS[given]
    made = planned(con, table(sold=values))
    assert (made.kind, made.classes) == (kind, classes)


def test_numbers_may_name_classes_and_a_huge_few_do_not_decide(con: duckdb.DuckDBPyConnection) -> None:
    made = planned(con, table(sold=RNG.integers(1, 6, ROWS)), number=False)
    assert (made.kind, made.classes) == ("classes", (1, 2, 3, 4, 5))
    assert planned(con, table(sold=np.exp(3 * RNG.normal(size=ROWS)))).loss == "absolute"


def test_rows_without_a_time_are_dealt_always_alike(con: duckdb.DuckDBPyConnection) -> None:
    open_ = [None if n % 30 == 0 else sold for n, sold in enumerate(SOLD)]
    given = table(sold=open_).drop_columns(["at"])
    made = planned(con, given)
    assert made.dealt
    assert (made.window, made.clock, made.end - made.first) == (DAY, (), DAY)
    days = con.sql("SELECT count(DISTINCT date_trunc('day', dealt_at)), min(dealt_at) FROM looked").fetchall()
    assert days == [(36, days[0][1])]
    late = con.sql("SELECT min(dealt_at) FROM looked WHERE sold IS NULL").fetchall()
    assert late[0][0] >= made.first
    first = con.sql("SELECT dealt_at FROM looked ORDER BY x").fetchall()
    shuffled = given.take(RNG.permutation(ROWS))
    planned(con, shuffled)
    assert con.sql("SELECT dealt_at FROM looked ORDER BY x").fetchall() == first


WRONG = {
    "target": (NoSuchColumn, "Did you mean `sold`", table(), {"target": "solt"}),
    "entity": (NoSuchColumn, "--entity", table(), {"entity": "store"}),
    "two times": (NoTime, "at, due", table(due=[at - DAY for at in AT]), {}),
    "time of text": (BadTime, "--time-format", table(), {"time": "shop"}),
    "one value": (BadTarget, "the same in every row", table(sold=[1.0] * ROWS), {}),
    "empty": (BadTarget, "empty", table(sold=pa.nulls(ROWS, pa.float64())), {}),
    "names": (BadTarget, "3,000 kinds", table(sold=[f"n{n}" for n in range(ROWS)]), {}),
    "spelling": (BadTarget, "capitals", table(sold=["Yes", "yes", "no"] * (ROWS // 3)), {}),
    "times": (
        BadTarget,
        "a target is",
        table(done=[at + DAY for at in AT]),
        {"target": "done", "time": "at"},
    ),
    "classes of fractions": (BadTarget, "whole numbers", table(), {"number": False}),
    "few": (TooLittle, "400 are needed", table().slice(0, 300), {}),
    "short": (TooLittle, "less than 12 hours", table(at=[AT[n // 400] for n in range(ROWS)]), {}),
    "known too late": (TooLittle, "By 2024", table(), {"known_after": 100 * DAY}),
    "no history": (BadEntity, "no history", table(one=np.arange(ROWS)), {"entity": "one"}),
    "entity of fractions": (BadEntity, "named by text", table(), {"entity": "x"}),
    "itself": (BadEntity, "what is predicted", table(sold=BACK.astype(str)), {"entity": "sold"}),
    "nothing left": (NothingLeft, "in_cents", pa.table({"sold": SOLD, "in_cents": SOLD * 100}), {}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_one_message_with_what_to_do(con: duckdb.DuckDBPyConnection, what: str) -> None:
    error, told, given, asked = WRONG[what]
    with pytest.raises(error, match=re.escape(told)) as raised:
        planned(con, given, **asked)
    assert "Nothing was written" in str(raised.value)


@pytest.mark.parametrize("name", ["Shop", "2nd", "a-b", "", "class", "order", "flights", "x" * 60])
def test_a_name_must_be_one_for_modules_and_tables(name: str) -> None:
    with pytest.raises(BadName):
        checked(name, ["flights"])


LINES = [f"{at:%Y-%m-%d %H:%M};{x:.3f};{sold}" for at, x, sold in zip(AT, X, SOLD, strict=True)]
COMMAS = [line.replace(".", ",") for line in LINES]
GERMAN = [f"{at:%d.%m.%Y %H:%M};{x:.3f};{s}" for at, x, s in zip(AT, X, SOLD, strict=True)]
FILES = {
    "semicolons": "at;x;sold\n" + "\n".join(LINES),
    "BOM": "\ufeffat;x;sold\n" + "\n".join(LINES),
    "decimal commas": "at;x;sold\n" + "\n".join(COMMAS),
    "Windows' lines": "at;x;sold\r\n" + "\r\n".join(LINES),
    "days first": "at;x;sold\n" + "\n".join(GERMAN),
    "quoted newlines": "at;x;sold;note\n"
    + "\n".join(f'{line};"one\ntwo {n % 3}"' for n, line in enumerate(LINES)),
    "odd names": "at;x;sold;Größe (m²);select;label;2nd;größe (m²) \n"
    + "\n".join(f"{line};{n % 3};{n % 4};{n % 5};{n % 6};{n % 7}" for n, line in enumerate(LINES)),
    "300 columns": ";".join(["at", "x", "sold", *(f"c{n}" for n in range(297))])
    + "\n"
    + "\n".join(";".join([line, *(str((n * k) % 11) for k in range(297))]) for n, line in enumerate(LINES)),
}


@pytest.mark.parametrize("what", FILES)
def test_files_as_they_come_are_read(con: duckdb.DuckDBPyConnection, tmp_path: Path, what: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(FILES[what].encode())
    made = planned(con, file)
    assert (made.rows, made.kind, made.target.kind) == (ROWS, "number", "number")
    assert made.column("x").kind == "number"
    assert made.start == utc(2024, 1, 1)
    assert len({one.name.lower() for one in made.columns}) == len(made.columns)
    assert all(re.fullmatch(r"\w+", one.name) for one in made.columns)
    low, high = con.sql("SELECT min(sold), max(sold) FROM looked").fetchall()[0]
    assert (float(low), float(high)) == pytest.approx((SOLD.min(), SOLD.max()))


BROKEN = {
    "Latin-1": ("at;größe\n2024-01-01;1\n".encode("latin-1"), "Latin-1"),
    "empty": (b"", "header"),
    "a name twice": (b"at;x;X\n2024-01-01;1;2\n", "more than one column"),
    "missing": (None, "no such file"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_files_that_cannot_be_read_are_one_message(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, what: str
) -> None:
    content, told = BROKEN[what]
    file = tmp_path / "rows.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Unreadable, match=re.escape(told)) as raised:
        planned(con, file)
    assert "Nothing was written" in str(raised.value)


def test_other_kinds_of_files_are_told_apart(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(Unreadable, match=r"no reader for `.xlsx`"):
        planned(con, tmp_path / "rows.xlsx")
    lines = [
        {"at": f"{at:%Y-%m-%dT%H:%M:%SZ}", "x": x, "sold": sold, "deep": {"a": 1}}
        for at, x, sold in zip(AT, X, SOLD, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert out(planned(con, tmp_path / "rows.jsonl")).keys() == {"deep"}
    money = pa.array([f"{s:.2f}" for s in SOLD]).cast(pa.decimal128(10, 2))
    pq.write_table(table(sold=money), tmp_path / "rows.parquet")
    made = planned(con, tmp_path / "rows.parquet")
    assert (made.kind, made.target.type) == ("number", "DECIMAL(10,2)")


def test_times_that_may_be_read_two_ways_are_asked_for(con: duckdb.DuckDBPyConnection) -> None:
    early = [f"{1 + n % 12:02}/{1 + n // 300:02}/2024" for n in range(ROWS)]
    with pytest.raises(BadTime, match="--time-format"):
        planned(con, table(at=early))
    made = planned(con, table(at=early), formats={"at": "%m/%d/%Y"})
    assert made.time.written == "%m/%d/%Y"
    assert con.sql('SELECT max("at") FROM looked').fetchall()[0][0].date() == date(2024, 12, 10)
    with pytest.raises(BadTime, match="not all are written"):
        planned(con, table(at=early), formats={"at": "%Y"})
    numbers = [int(f"{at:%Y%m%d}") for at in AT]
    assert planned(con, table(at=numbers), formats={"at": "%Y%m%d"}).start == utc(2024, 1, 1)


def test_times_of_a_zone_are_instants_also_where_the_clock_changes(con: duckdb.DuckDBPyConnection) -> None:
    made = planned(con, table(at=[at + timedelta(days=80) for at in AT]), zone="Europe/Berlin")
    [(low, changed)] = con.sql(
        """SELECT min("at")::VARCHAR, count_if("at" = TIMESTAMPTZ '2024-03-31 01:00:00+00') FROM looked"""
    ).fetchall()
    assert low == "2024-03-20 23:00:00+00"
    assert (made.rows, changed) == (ROWS, 2)  # two and three o'clock are one that night


def runs(code: str, folder: Path) -> None:
    """Run code in a process whose project is in ``folder``; it must succeed."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    environment = services.environment(Settings()) | {"PYTHONPATH": path}
    typed = [sys.executable, "-c", code]
    done = subprocess.run(typed, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def lay(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for part in ("features", "pipelines", "validations"):
        (folder / part).mkdir()
        (folder / part / "__init__.py").touch()
    (folder / "prefect.yaml").write_text("name: toy\ndeployments: []\n")


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """A database of orders, of which the variable ``SHOP`` tells."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
    monkeypatch.setenv("SHOP", url)
    engine = sa.create_engine(url)
    with engine.begin() as db:
        db.execute(sa.text("DROP TABLE IF EXISTS orders"))
        columns = "id INTEGER, shop TEXT, placed TIMESTAMP, x DOUBLE PRECISION, sold NUMERIC(9, 2)"
        db.execute(sa.text(f"CREATE TABLE orders ({columns})"))
        rows = [
            {
                "id": n,
                "shop": f"s{n % 7}",
                "placed": f"{at:%Y-%m-%d %H:%M:%S}",
                "x": float(x),
                "sold": float(sold),
            }
            for n, (at, x, sold) in enumerate(zip(AT, X, SOLD, strict=True))
        ]
        rows[5]["sold"] = None
        db.execute(sa.text("INSERT INTO orders VALUES (:id, :shop, :placed, :x, :sold)"), rows)
    return engine


def test_a_query_is_a_table_too(con: duckdb.DuckDBPyConnection, tmp_path: Path, shop: sa.Engine) -> None:
    """Its sources ask the database itself, for a week at a time, and bring what it has."""
    lay(tmp_path)
    query = "SELECT * FROM orders WHERE shop LIKE 's%'"
    dialect = _look(con, query, "UTC", "$SHOP")
    assert dialect == shop.dialect.name
    asked = Asked("toy", query, "sold", known_after=timedelta(hours=1), database="$SHOP", dialect=dialect)
    made = plan(con, asked)
    assert (made.rows, made.known, made.keys) == (ROWS, ROWS - 1, ("id",))
    write(con, made, tmp_path)
    code = """
import duckdb
from headrace.lake import Window
from headrace.pipeline import load
from tests.conftest import utc
spec, week = load("toy"), Window(utc(2024, 1, 8), utc(2024, 1, 15))
first = "2024-01-08 00:00:00+00"
for source, time in zip(spec.sources, ("placed", "known_at")):
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    (part,) = source.origin.read(con, source.name, time, week)
    ends = f"min({time})::VARCHAR, max({time})::VARCHAR"
    found = con.sql(f"SELECT count(*), {ends} FROM {part.relation}").fetchall()
    assert found == [(7 * 24, first, "2024-01-14 23:00:00+00")], found
    types = {name: kind for name, kind, *_ in con.sql(f"DESCRIBE {part.relation}").fetchall()}
    from importlib import import_module
    suites = import_module("validations.toy")
    assert types == (suites.ROWS if time == "placed" else suites.TRUTH), types
"""
    runs(code, tmp_path)
    written = (tmp_path / "pipelines/toy.py").read_text()
    assert 'DATABASE = "$SHOP"' in written
    assert os.environ["SHOP"] not in written


def test_a_query_that_cannot_be_is_one_message(
    con: duckdb.DuckDBPyConnection, shop: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, database, error, told in (
        ("SELECT * FROM orders", "", NoDatabase, "no database"),
        ("orders.csv", "$SHOP", NoDatabase, "no query"),
        ("SELECT * FROM nowhere", "$SHOP", Unreadable, "nowhere"),
        ("SELECT * FROM orders WHERE id < 0", "$SHOP", Unreadable, "no row"),
        ("SELECT * FROM orders", "$NOBODY", Unreadable, "`NOBODY` is not set"),
    ):
        with pytest.raises(error, match=re.escape(told)) as raised:
            _look(con, data, "UTC", database)
        assert "Nothing was written" in str(raised.value)
    query = 'SELECT *, x AS "the x" FROM orders'
    dialect = _look(con, query, "UTC", "$SHOP")
    with pytest.raises(BadColumn, match="AS the_x"):
        plan(con, Asked("toy", query, "sold", database="$SHOP", dialect=dialect))
    query = "SELECT id, x, sold FROM orders"
    dialect = _look(con, query, "UTC", "$SHOP")
    with pytest.raises(BadTime, match="no column of times"):
        plan(con, Asked("toy", query, "sold", database="$SHOP", dialect=dialect))


def test_what_is_written_is_a_project_that_loads(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Of each kind of question, with and without an entity, a key and a time, and with awkward names."""
    lay(tmp_path)
    (tmp_path / "data").mkdir()
    odd = {
        "Größe (m²)": X + 1,
        "select": X * 2 + RNG.normal(size=ROWS),
        'it\'s "odd"': np.where(X > 0, 'a"b', "c, d"),
    }
    asked = {
        "plain": (table(), {}),
        "classes": (table(sold=KINDS["three texts"][0]), {"entity": "shop"}),
        "yesno": (table(sold=KINDS["booleans"][0], order_id=np.arange(ROWS)), {}),
        "halves": (table(sold=np.where(BACK, 2.0, 1.0)), {}),
        "dealt": (table(**odd).drop_columns(["at"]), {"entity": "shop"}),
        "odd": (table(**odd, at=[AT[n // 2] for n in range(ROWS)]), {}),
    }
    for name, (rows, more) in asked.items():
        pq.write_table(rows, file := tmp_path / "data" / f"{name}.parquet")
        _look(con, str(file), "UTC")
        made = plan(con, Asked(name, str(file), "sold", **more))  # type: ignore[arg-type]
        files = write(con, made, tmp_path)
        assert len(files) == 5
        assert f'PROJECT / "data/{name}.parquet"' in (tmp_path / f"pipelines/{name}.py").read_text()
        with pytest.raises(FileExists, match=r"there already.*prefect\.yaml|prefect\.yaml.*there already"):
            write(con, made, tmp_path)
    code = f"""
import duckdb
from headrace.pipeline import load
from headrace.sql import reads
for name in {[*asked]}:
    spec = load(name)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        for source in spec.sources:
            con.execute(f"CREATE VIEW given AS FROM '{{source.origin.files['given']}}'")
            landed = f"SELECT *, now() AS available_at FROM ({{source.origin.select}})"
            con.execute(f"CREATE TABLE {{source.name}} AS {{landed}}")
            con.execute("DROP VIEW given")
        con.execute(f"CREATE TABLE asked AS {{spec.spine}}")
        con.execute(f"CREATE TABLE told AS {{spec.label}}")
        keys = ", ".join('"' + key + '"' for key in spec.keys)
        join = f"FROM asked JOIN told USING ({{keys}})"
        joined = con.sql(f"SELECT count(*), count(DISTINCT ({{keys}})) {{join}}").fetchall()
        assert joined == [({ROWS}, {ROWS})], (name, joined)
        history = spec.feature_tables[0].sql.read_text()
        found = con.execute(history, {{"end": spec.start + 4 * spec.window}}).fetchall()
        assert found, name
        labels = con.sql("SELECT label FROM told").to_arrow_table()["label"]
        assert len(spec.problem.unfit(labels)) == 0, name
"""
    runs(code, tmp_path)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "ruff", "check", "--config", str(root / "pyproject.toml"), str(tmp_path)]
    checked_ = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked_.returncode == 0, checked_.stdout
