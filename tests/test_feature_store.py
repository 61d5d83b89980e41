import contextlib
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from sqlalchemy.engine import make_url

from flows import steps
from headrace import quarantine
from headrace.cluster import cluster, spread
from headrace.errors import BrokenDeclaration, InvalidQuery
from headrace.feature_store import store as features
from headrace.feature_store import tables
from headrace.feature_store.errors import BadFeatureRows, UnknownService
from headrace.feature_store.feast import brought
from headrace.feature_store.plan import online
from headrace.feature_store.tables import Cause, build, look, stale
from headrace.gate import Gate
from headrace.lake import ColumnsRetyped, Lake, Window, duckdb_connection, fingerprint, windows
from headrace.ledger import Ledger
from headrace.pipeline import WEEK, Columns, Weights, load
from headrace.problem import Binary, Seasonal
from headrace.project import Project
from headrace.quarantine import BatchRejected
from headrace.serving import log
from headrace.settings import Settings
from headrace.spine import BadLabels, labelled
from headrace.sql import quoted, reads
from headrace.training import dataset
from headrace.training import rows as rows_of_training
from headrace.training.encoding import Encoder
from headrace.training.errors import BadWeights, MissingInputs, NothingToLearn, UnfitInputs
from headrace.training.model import Model
from headrace.training.xgboost import Boosted

OFFLINE = "headrace.feature_store.feast.offline.DeltaOfflineStore"
ROOT = Path(__file__).parent.parent
FLIGHTS = load("flights")
WEEKS = windows(FLIGHTS.start, datetime(2013, 1, 21, tzinfo=UTC), WEEK)
FIRST, SECOND, THIRD = WEEKS


@pytest.fixture(scope="module", autouse=True)
def feast_apply(tmp_path_factory):
    """``feast apply`` as a person runs it; started before the tests, for Feast takes long to import."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "features", project / "features", ignore=shutil.ignore_patterns("__pycache__"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    command = [Path(sys.executable).with_name("feast"), "apply"]
    with subprocess.Popen(
        command,
        cwd=project / "features",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process, project
        process.kill()


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def lake(settings):
    """Three weeks of real raw tables, and every feature table of them."""
    lake = Lake(settings.lake)
    for source in FLIGHTS.sources:
        con = duckdb_connection()
        (part,) = source.origin.read(con, source.name, source.time, Window(FIRST.start, THIRD.end))
        rows = con.sql(f"SELECT *, {source.time} AS available_at FROM {part.relation}")
        lake.table(source.table).append(rows.to_arrow_table(), "all")
    for table in FLIGHTS.feature_tables:
        for window in WEEKS:
            build(table, FLIGHTS.raw, window, lake)
    return lake


@pytest.fixture(scope="module")
def store(lake, settings):
    store = features.open_store(ROOT / "features", settings)
    features.apply(store, "features.flights")
    for window in (FIRST, SECOND):
        features.materialize(store, "flight_delay", window.end, window.start)
    return store


def spine(lake, window):
    con = lake.connect(FLIGHTS.raw)
    where = window.predicate("event_timestamp")
    return con.sql(f"FROM ({FLIGHTS.spine}) WHERE {where} ORDER BY hash(flight, sched_dep)").to_arrow_table()


def feature_rows(lake, name, rows=60):
    """Some rows of a feature table, always the same."""
    con = lake.connect({"t": f"features/{name}"})
    return con.sql(f"FROM t ORDER BY hash(known_hour, {name.split('_')[0]}) LIMIT {rows}").df()


@pytest.mark.parametrize(
    ("name", "key", "hours"), [("origin_delays", "origin", 3), ("carrier_delays", "carrier", 24)]
)
def test_delays_of_an_hour_are_those_of_flights_landed_just_before_it(lake, name, key, hours):
    flights = lake.connect(FLIGHTS.raw).sql("FROM flights WHERE arr_delay IS NOT NULL").df()
    compared = 0
    for row in feature_rows(lake, name).to_dict("records"):
        at = row["event_timestamp"]
        landed = flights[
            (flights[key] == row[key])
            & (flights.landed_at >= at - pd.Timedelta(hours=hours))
            & (flights.landed_at < at)
        ]
        late = (landed.arr_delay >= 15).mean()
        wanted = {f"{key}_arr_delay_{hours}h": landed.arr_delay.mean(), f"{key}_late_share_{hours}h": late}
        if name == "origin_delays":
            wanted |= {"origin_dep_delay_3h": landed.dep_delay.mean(), "origin_landed_3h": len(landed)}
        assert {column: row[column] for column in wanted} == pytest.approx(wanted, nan_ok=True)
        compared += len(landed)
    assert compared > 500


def test_weather_of_an_hour_is_the_last_observation_strictly_before_it(lake):
    weather = lake.connect(FLIGHTS.raw).sql("FROM weather ORDER BY observed_at").df()
    for row in feature_rows(lake, "origin_weather").to_dict("records"):
        at = row["event_timestamp"]
        seen = weather[(weather.origin == row["origin"]) & (weather.observed_at < at)]
        last = seen.iloc[-1]
        assert last.observed_at >= at - pd.Timedelta(hours=6)
        for column in ("temp", "wind_dir", "wind_gust", "pressure", "visib"):
            assert row[column] == pytest.approx(last[column], nan_ok=True)


def test_building_a_window_again_changes_no_row(lake):
    for table in FLIGHTS.feature_tables:
        before = lake.table(table.table).snapshot()
        build(table, FLIGHTS.raw, SECOND, lake)
        after = lake.table(table.table).snapshot()
        assert after.version > before.version
        assert (after.rows, after.fingerprint) == (before.rows, before.fingerprint)


def test_first_windows_built_at_once_all_land(lake):
    for attempt in range(5):
        table = replace(FLIGHTS.feature_tables[1], name=f"at_once_{attempt}")
        with ThreadPoolExecutor(len(WEEKS)) as pool:
            rows = list(pool.map(lambda window, t=table: build(t, FLIGHTS.raw, window, lake), WEEKS))
        assert rows == [3 * 168] * len(WEEKS)
        built, one_by_one = (lake.table(t).snapshot() for t in (table.table, "features/origin_delays"))
        assert built.fingerprint == one_by_one.fingerprint


def test_a_window_built_by_many_at_once_is_as_one_of_them_built_it(lake):
    table = replace(FLIGHTS.feature_tables[1], name="one_window")
    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(lambda _: build(table, FLIGHTS.raw, FIRST, lake), range(6)))
    assert rows == [3 * 168] * 6
    assert lake.table(table.table).count() == 3 * 168
    assert stale(table, FLIGHTS.raw, [FIRST], lake) == {}


def test_windows_rebuilt_at_once_may_gain_one_column(toy_lake, tmp_path):
    raw = {"toy": "raw/toy"}
    for attempt in range(5):
        name = f"gains_{attempt}"
        for columns in ("x", "x, x * 2 AS y"):
            table = replace(toy_table(tmp_path, columns), name=name)
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda window, t=table: build(t, raw, window, toy_lake), WEEKS))
        found = toy_lake.connect({"t": table.table}).sql("SELECT x, y FROM t ORDER BY x").fetchall()
        assert found == [(1, 2), (2, 4)]


def toy_table(folder, features):
    """A feature table of ``features`` over ``raw/toy``, whose rows ``x`` are 1 in the first week, then 2."""
    sql = folder / "toy.sql"
    sql.write_text(f"SELECT seen AS event_timestamp, available_at, {features} FROM Toy WHERE seen < $END")
    return replace(FLIGHTS.feature_tables[0], name="toy", sql=sql, lookback=timedelta(0), suite="")


@pytest.fixture
def toy_lake(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    times = pa.array([FIRST.start, SECOND.start], pa.timestamp("us", "UTC"))
    lake.table("raw/toy").append(pa.table({"seen": times, "available_at": times, "x": [1, 2]}), "all")
    return lake


@pytest.mark.parametrize(
    ("before", "after", "between", "at_last"),
    [
        ("x", "x, x * 2 AS y", {"x": [1, 2], "y": [2, None]}, {"x": [1, 2], "y": [2, 4]}),
        ("x, x * 2 AS y", "x", {"x": [1, 2], "y": [None, 4]}, {"x": [1, 2], "y": [None, None]}),
        ("x", "x AS y", {"x": [None, 2], "y": [1, None]}, {"x": [None, None], "y": [1, 2]}),
        ("x, 7 AS y", "8 AS y, -x AS x", {"x": [-1, 2], "y": [8, 7]}, {"x": [-1, -2], "y": [8, 8]}),
    ],
    ids=["gained", "lost", "renamed", "reordered"],
)
def test_a_table_whose_columns_changed_is_rebuilt_window_by_window(
    toy_lake, tmp_path, before, after, between, at_last
):
    def built(pin=None):
        rows = toy_lake.connect({"t": pin or "features/toy"}).sql("FROM t ORDER BY event_timestamp")
        return rows.to_arrow_table().drop_columns(["event_timestamp", "available_at"]).to_pydict()

    raw = {"toy": "raw/toy"}
    for window in (FIRST, SECOND):
        build(toy_table(tmp_path, before), raw, window, toy_lake)
    pinned = toy_lake.table("features/toy").snapshot()
    old = built()

    table = toy_table(tmp_path, after)
    build(table, raw, FIRST, toy_lake)
    assert built() == between
    assert stale(table, raw, [FIRST, SECOND], toy_lake) == {SECOND: Cause.DEFINITION}
    build(table, raw, SECOND, toy_lake)
    assert built() == at_last
    assert stale(table, raw, [FIRST, SECOND], toy_lake) == {}
    assert built(pinned) == old


def test_windows_that_follow_each_other_are_built_in_one_commit(toy_lake, tmp_path, monkeypatch):
    raw, table, built = {"toy": "raw/toy"}, toy_table(tmp_path, "x"), toy_lake.table("features/toy")
    assert build(table, raw, WEEKS, toy_lake) == 2
    assert built.open().version() == 1  # the first makes the table
    assert stale(table, raw, WEEKS, toy_lake) == {}
    whole = built.snapshot()

    assert build(table, raw, [FIRST, THIRD], toy_lake) == 1  # between them is one that must stay
    assert built.open().version() == 3
    monkeypatch.setattr(tables, "MUCH", -1)
    assert build(table, raw, WEEKS, toy_lake) == 2
    assert built.open().version() == 6
    assert replace(built.snapshot(), version=whole.version) == whole


def test_a_window_that_cannot_be_built_keeps_none_of_the_others_from_being(toy_lake, tmp_path):
    raw = {"toy": "raw/toy"}
    sql = tmp_path / "picky.sql"
    wrong = f"{SECOND.start:%Y-%m-%d}"
    sql.write_text(
        "SELECT seen AS event_timestamp, available_at, x FROM toy WHERE seen < $end "
        f"AND if($start = '{wrong}'::TIMESTAMPTZ, error('too much'), true)"
    )
    table = replace(toy_table(tmp_path, "x"), sql=sql)
    with pytest.raises(InvalidQuery, match="too much"):
        build(table, raw, WEEKS, toy_lake)
    assert [*stale(table, raw, WEEKS, toy_lake)] == [SECOND]
    assert toy_lake.table("features/toy").holds(str(THIRD))


def test_a_column_of_another_type_is_refused_not_cast(toy_lake, tmp_path):
    raw, table = {"toy": "raw/toy"}, toy_lake.table("features/toy")
    build(toy_table(tmp_path, "x"), raw, FIRST, toy_lake)
    before = table.snapshot()
    halved = toy_table(tmp_path, "(x / 2)::DOUBLE AS x")
    with pytest.raises(ColumnsRetyped, match=r"`features/toy` .* `x` was int64 and is double.* `x_2`"):
        build(halved, raw, FIRST, toy_lake)
    assert table.snapshot() == before
    assert stale(halved, raw, [FIRST], toy_lake) == {FIRST: Cause.DEFINITION}
    build(toy_table(tmp_path, "(x / 2)::DOUBLE AS x_2"), raw, FIRST, toy_lake)
    assert table.relation(duckdb_connection()).project("x, x_2").fetchall() == [(None, 0.5)]


def test_a_window_without_rows_leaves_an_empty_table(lake):
    table = replace(FLIGHTS.feature_tables[3], name="no_planes")

    assert build(table, FLIGHTS.raw, SECOND, lake) == 0

    assert lake.table("features/no_planes").exists()
    assert lake.table("features/no_planes").count() == 0


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("SELECT $end AS event_timestamp, $start AS available_at", "rows of 2013-01-14T00:00Z"),
        ("SELECT $start AS event_timestamp, $end AS then", "no available_at"),
        ("SELECT TIMESTAMP '2013-01-08' AS event_timestamp, $end AS available_at", "cast it to TIMESTAMPTZ"),
        ("SELECT $start AS event_timestamp, TIMESTAMP '2013-01-08' AS available_at", "`available_at` as"),
        ("SELECT NULL::TIMESTAMPTZ AS event_timestamp, $end AS available_at", "1 of 1 rows without an"),
        (
            "FROM (VALUES ($start, $end), (NULL, $end)) t(event_timestamp, available_at)",
            "1 of 2 rows without",
        ),
    ],
)
def test_rows_that_a_rebuild_could_not_replace_are_refused(lake, tmp_path, query, complaint):
    sql = tmp_path / "bad.sql"
    sql.write_text(query)
    table = replace(FLIGHTS.feature_tables[0], name="bad", sql=sql)

    with pytest.raises(BadFeatureRows, match=complaint):
        build(table, FLIGHTS.raw, SECOND, lake)

    assert not lake.table("features/bad").exists()


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("SELEC", 'syntax error at or near "SELEC"'),
        ("FROM fligths", "Table with name fligths does not exist"),
        ("SELECT arr_dely FROM flights", '"arr_dely" not found'),
        ("SELECT $strat AS event_timestamp", "strat"),
    ],
)
def test_a_query_that_cannot_be_run_is_named_with_what_is_wrong(lake, tmp_path, query, complaint):
    sql = tmp_path / "bad.sql"
    sql.write_text(query)
    table = replace(FLIGHTS.feature_tables[0], name="bad", sql=sql)

    with pytest.raises(InvalidQuery, match=rf"(?s)`features/bad` cannot be run: .*{complaint}.*bad\.sql"):
        build(table, FLIGHTS.raw, SECOND, lake)


def test_a_spine_or_label_that_cannot_be_run_is_named_with_what_is_wrong(lake):
    whole = Window(FLIGHTS.start, THIRD.end)
    for wrong in ({"label": FLIGHTS.label.replace("AS label", "AS late")}, {"keys": ("carier",)}):
        with pytest.raises(InvalidQuery, match=r"(?s)pipeline `flights`.*`pipelines/flights\.py`"):
            labelled(replace(FLIGHTS, **wrong), lake, whole, whole.end)


def test_an_input_that_nothing_gives_stops_the_training_set(lake):
    wanted = replace(FLIGHTS, columns=replace(FLIGHTS.columns, numeric=("distnace",)))
    with pytest.raises(MissingInputs, match="takes `distnace`"):
        dataset.build(wanted, lake, THIRD.end, lambda spine: spine, {})


def test_a_column_of_any_name_and_number_is_learnt_from_and_logged(lake):
    import xgboost

    odd = 'a "quoted" [0] < 1; b'
    value = "if(flight % 2 = 0, 'inf'::DOUBLE, distance)"
    spine = f"SELECT *, {value} AS {quoted(odd)}, flight::DECIMAL(38, 0) AS exact FROM ({FLIGHTS.spine})"
    spec = replace(FLIGHTS, name="odd", spine=spine, suite="", columns=Columns(("exact",), (odd,)))

    rows = dataset.read(spec, dataset.build(spec, lake, THIRD.end, lambda rows: rows, {}), lake)
    encoder = Encoder.fit(rows, spec.columns)
    booster = xgboost.train({}, xgboost.DMatrix(encoder.encode(rows), rows["label"].to_numpy()), 1)
    made = log.score(
        spec,
        lake,
        SECOND,
        partial(
            log.predicted,
            spec,
            model=Model("xgboost", Binary(), Boosted(encoder, booster)),
            version=1,
            since=FLIGHTS.start,
        ),
    )

    logged = log.read(spec, lake, SECOND)
    assert made == logged.num_rows > 0
    assert logged.schema.field("exact").type == pa.decimal128(38, 0)
    assert {math.isinf(number) for number in logged[odd].to_pylist()} == {True, False}


UNFIT = {
    "scheduled": "sched_dep",
    "day": "sched_dep::DATE",
    "ports": "[origin, dest]",
    "route": "{'from': origin, 'to': dest}",
    "packed": "origin::BLOB",
}


@pytest.mark.parametrize("kind", ["categorical", "numeric"])
def test_inputs_that_no_model_takes_stop_the_training_set_with_their_names_and_types(lake, kind):
    unfit = UNFIT | ({"carrier": "carrier"} if kind == "numeric" else {})
    made = ", ".join(f"{sql} AS {name}" for name, sql in UNFIT.items())
    spine = f"SELECT *, {made} FROM ({FLIGHTS.spine})"
    columns = Columns(**{"categorical": ("origin",), "numeric": ("hour",)} | {kind: ("hour", *unfit)})

    with pytest.raises(UnfitInputs) as refused:
        dataset.build(replace(FLIGHTS, spine=spine, columns=columns), lake, THIRD.end, lambda rows: rows, {})

    assert refused.value.unfit.keys() == unfit.keys()
    assert all(f"`{name}` ({kind})" in str(refused.value) for name, kind in refused.value.unfit.items())


@pytest.mark.parametrize(
    ("label", "first"),
    [
        ("nullif(label, 1)", None),
        ("label * 2", 2),
        ("label * 0.5", Decimal("0.5")),
        ("if(label = 1, 'nan'::DOUBLE, 0)", math.nan),
        ("if(label = 1, 'yes', 'no')", "no"),
    ],
)
def test_a_truth_that_is_neither_0_nor_1_stops_the_training_set(lake, label, first):
    asked = f"SELECT * REPLACE ({label} AS label) FROM ({FLIGHTS.label})"
    spec = replace(FLIGHTS, label=asked, columns=Columns((), ("hour",)))

    with pytest.raises(BadLabels) as refused:
        dataset.build(spec, lake, THIRD.end, lambda rows: rows, {})

    assert repr(refused.value.first) == repr(first)
    assert 0 < refused.value.bad <= refused.value.rows


def test_what_is_null_in_a_training_set_is_counted(lake):
    value = "CASE WHEN flight % 4 > 0 THEN distance END"
    spine = f"SELECT *, {value} AS gone, NULL::DOUBLE AS never FROM ({FLIGHTS.spine})"
    spec = replace(FLIGHTS, spine=spine, columns=Columns((), ("hour", "gone", "never")))
    data = dataset.build(spec, lake, THIRD.end, lambda rows: rows, {})
    share = dataset.read(spec, data, lake)["gone"].null_count / data.rows
    assert list(dataset.nulls(spec, data, lake).items()) == [("never", 1), ("gone", pytest.approx(share))]
    assert 0 < share < 1


def test_the_column_that_the_gate_groups_by_is_kept_or_missed_by_name(lake):
    spec = replace(FLIGHTS, columns=Columns((), ("hour",)), gate=Gate(group="tailnum"))
    data = dataset.build(spec, lake, THIRD.end, lambda rows: rows, {})
    assert dataset.read(spec, data, lake)["tailnum"].null_count < data.rows

    with pytest.raises(BrokenDeclaration, match=r"`gate\.group` names `tailnumber`"):
        dataset.build(replace(spec, gate=Gate(group="tailnumber")), lake, THIRD.end, lambda rows: rows, {})


def test_what_chooses_and_what_judges_was_not_known_when_it_was_learnt(lake):
    """Of each span, no truth was known before the next one began; what would be is of the gap, or gone."""
    label = f"SELECT * REPLACE (available_at + INTERVAL 1 DAY AS available_at) FROM ({FLIGHTS.label})"
    spec = replace(FLIGHTS, columns=Columns((), ("hour",)), label=label, holdout=timedelta(days=3))
    held_out = THIRD.end - spec.holdout
    chosen = held_out - spec.holdout

    rows = dataset.read(spec, dataset.build(spec, lake, THIRD.end, lambda rows: rows, {}), lake)
    con = lake.connect({**spec.raw})
    con.register("learnt", rows)
    ends = con.sql(
        "SELECT span, min(event_timestamp), max(event_timestamp), max(known.available_at) "
        f"FROM learnt JOIN ({label}) known USING ({quoted(*spec.keys)}) GROUP BY span"
    )
    found = {span: (first, last, known) for span, first, last, known in ends.fetchall()}
    assert found.keys() == {"train", "gap", "selection", "holdout"}
    assert found["train"][2] < chosen <= found["selection"][0]
    assert found["gap"][1] < chosen <= found["gap"][2] < held_out
    assert found["selection"][2] < held_out <= found["holdout"][0]
    assert found["holdout"][2] < THIRD.end
    assert {
        *dataset.read(spec, lake.table("training/flights").snapshot(), lake, ["gap"])["span"].to_pylist()
    } == {"gap"}

    alone = replace(spec, candidates=spec.candidates[1:2])  # of one that looks for nothing
    spans = dataset.read(alone, dataset.build(alone, lake, THIRD.end, lambda rows: rows, {}), lake)["span"]
    assert {*spans.to_pylist()} == {"train", "holdout"}


def hourly(**others):
    return replace(FLIGHTS, columns=Columns((), ("hour",)), **others)


def test_a_set_made_in_parts_is_the_set_made_at_once_and_is_read_in_its_order(lake, monkeypatch):
    whole = dataset.build(hourly(), lake, THIRD.end, lambda rows: rows, {})
    joined = []
    monkeypatch.setattr(dataset, "PART", 5_000)
    monkeypatch.setattr(rows_of_training, "PART", 1_000)
    parts = dataset.build(hourly(), lake, THIRD.end, lambda rows: joined.append(rows) or rows, {})

    assert len(joined) > 2
    assert (parts.rows, parts.fingerprint) == (whole.rows, whole.fingerprint)
    assert parts.version == whole.version + 1
    for spans in ((), ("train", "gap"), ("holdout",)):
        learnt = dataset.learnt(hourly(), parts, lake, spans)
        read = list(learnt.parts())
        assert [part.num_rows for part in read[:-1]] == [1_000] * (len(read) - 1)
        assert learnt.count == sum(part.num_rows for part in read)
        assert learnt.whole() == dataset.read(hourly(), parts, lake, spans).select(["hour", "label"])
        shares = [pickle.loads(pickle.dumps(learnt.share(n, 3))) for n in range(3)]
        assert pa.concat_tables([share.whole() for share in shares]) == learnt.whole()
        assert max(share.count for share in shares) - min(share.count for share in shares) <= 1


def test_rows_come_in_their_order_however_they_were_written(lake):
    data = dataset.build(hourly(), lake, THIRD.end, lambda rows: rows, {})
    rows = dataset.read(hourly(), data, lake)
    turned = lake.table("training/flights").replace(rows.take(np.arange(rows.num_rows)[::-1]))
    learnt = dataset.learnt(hourly(), lake.table("training/flights").snapshot(turned), lake, ())
    assert learnt.whole() == rows.select(["hour", "label"])


def test_sets_made_at_once_are_each_whole(lake, monkeypatch):
    """Of those that meet Delta lets one commit: the others are written again, from their first part on."""
    monkeypatch.setattr(dataset, "PART", 5_000)
    specs = [hourly(holdout=timedelta(days=days)) for days in (2, 3, 4)]
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda s: dataset.build(s, lake, THIRD.end, lambda r: r, {}), specs))
    assert len({ref.version for ref in made}) == 3
    for spec, ref in zip(specs, made, strict=True):
        alone = dataset.build(spec, lake, THIRD.end, lambda rows: rows, {})
        assert (ref.rows, ref.fingerprint) == (alone.rows, alone.fingerprint)


def test_a_part_that_fails_leaves_the_set_of_before(lake, monkeypatch):
    before = dataset.build(hourly(), lake, THIRD.end, lambda rows: rows, {})
    monkeypatch.setattr(dataset, "PART", 5_000)
    late = "SELECT * REPLACE (if(sched_dep > '2013-01-12', 7, label::INTEGER) AS label) FROM (%s)"
    with pytest.raises(BadLabels, match="first: 7"):
        dataset.build(hourly(label=late % FLIGHTS.label), lake, THIRD.end, lambda rows: rows, {})
    assert lake.table("training/flights").snapshot().fingerprint == before.fingerprint


def test_the_same_set_is_made_once_and_again_when_it_is_damaged(lake, tmp_path):
    ledger, joined = Ledger(f"sqlite:///{tmp_path}/ledger.db"), []

    def made(spec, as_of=THIRD.end, by="one"):
        return dataset.made(
            spec, lake, ledger, as_of, lambda rows: joined.append(rows) or rows, {}, by, "somebody"
        )

    first = made(hourly())
    assert made(hourly()) == first
    assert len(joined) == 1
    others = [
        made(hourly(), THIRD.end - timedelta(hours=1)),
        made(hourly(), by="another"),
        made(hourly(holdout=timedelta(days=4))),
        made(hourly(weights=Weights(half_life=timedelta(days=9)))),
        made(hourly(label=f"{FLIGHTS.label} AND true")),
    ]
    assert len({first.version, *(other.version for other in others)}) == 6
    assert made(hourly()) == first
    assert len(joined) == 6

    for file in lake.table("training/flights").open(first.version).file_uris():
        Path(file).unlink()
    again = made(hourly())
    assert again.version > first.version
    assert again.fingerprint == first.fingerprint


def test_rows_count_as_much_as_is_declared(lake):
    spine = f"SELECT *, hour(event_timestamp) + 1.0 AS heavy FROM ({FLIGHTS.spine})"
    weights = Weights("heavy", timedelta(days=2), keep={0: 0.25})
    spec, plain = hourly(spine=spine, weights=weights), hourly(spine=spine)
    learnt, every = (
        dataset.read(each, dataset.build(each, lake, THIRD.end, lambda rows: rows, {}), lake)
        for each in (spec, plain)
    )
    con = lake.connect({})
    con.register("learnt", learnt)
    con.register("every_row", every)
    off = con.execute(
        """SELECT max(abs(row_weight / (heavy * pow(0.5, (epoch($at) - epoch(event_timestamp)) / 172800)
               * if(label = 0 AND span IN ('train', 'gap'), 4, 1)) - 1)) FROM learnt""",
        {"at": THIRD.end},
    ).fetchall()
    assert off[0][0] < 1e-12
    counts = "SELECT span, label, count(*) FROM {} GROUP BY ALL"
    kept, all_of = (
        {(span, label): count for span, label, count in con.sql(counts.format(name)).fetchall()}
        for name in ("learnt", "every_row")
    )
    for (span, label), count in all_of.items():
        share = kept[span, label] / count
        assert (
            share == (pytest.approx(0.25, abs=0.02) if label == 0 and span == "train" else 1) or span == "gap"
        )

    for column, first in (("if(heavy > 20, NULL, heavy)", "null"), ("heavy - 2", "-1")):
        wrong = hourly(spine=f"SELECT * REPLACE ({column} AS heavy) FROM ({spine})", weights=Weights("heavy"))
        with pytest.raises(BadWeights, match=f"`heavy`.*rows hold no weight in it .first: {first}"):
            dataset.build(wrong, lake, THIRD.end, lambda rows: rows, {})


def test_labels_that_are_all_the_same_are_nothing_to_learn_from(lake):
    spec = replace(
        FLIGHTS, columns=Columns((), ("hour",)), label=FLIGHTS.label.replace("arr_delay >= 15", "true")
    )
    with pytest.raises(NothingToLearn, match="have the label 1"):
        dataset.build(spec, lake, THIRD.end, lambda rows: rows, {})


def test_what_a_seasonal_guess_goes_by_is_kept_or_missed_by_name(lake):
    spec = replace(FLIGHTS, columns=Columns((), ("hour",)), problem=Binary(naive=Seasonal(by=("dest",))))
    data = dataset.build(spec, lake, THIRD.end, lambda rows: rows, {})
    assert "dest" in dataset.read(spec, data, lake).column_names
    with pytest.raises(BrokenDeclaration, match=r"`problem\.naive\.by` names `destination`"):
        wrong = replace(spec, problem=Binary(naive=Seasonal(by=("destination",))))
        dataset.build(wrong, lake, THIRD.end, lambda rows: rows, {})


@pytest.mark.parametrize("kind", ["BOOLEAN", "DOUBLE", "DECIMAL(3, 1)", "BIGINT"])
def test_a_truth_of_another_type_is_the_same_training_set(lake, kind):
    asked = f"SELECT * REPLACE (label::{kind} AS label) FROM ({FLIGHTS.label})"
    spec = replace(FLIGHTS, columns=Columns((), ("hour",)))

    one, other = (
        dataset.build(each, lake, THIRD.end, lambda rows: rows, {})
        for each in (spec, replace(spec, label=asked))
    )

    assert one.fingerprint == other.fingerprint


def test_the_online_store_gives_what_the_point_in_time_join_gives(store, lake):
    asked = spine(lake, SECOND)

    offline, served = (read(store, "flight_delay", asked) for read in (features.historical, online))

    assert offline.num_rows > 6_000
    assert served.schema == offline.schema
    assert {name for name in offline.column_names if served[name] != offline[name]} == set()
    assert set(FLIGHTS.columns.names) <= set(offline.column_names)
    for name in FLIGHTS.columns.numeric:
        assert offline[name].null_count < 0.9 * offline.num_rows, name


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_real_servers_online_store_gives_it_too(kind, request, lake, tmp_path):
    """Pointed at Redis or PostgreSQL in ``feature_store.yaml``, as the README says."""
    if kind == "redis":
        kept = {"type": "redis", "connection_string": request.getfixturevalue("redis")}
    else:
        url = make_url(request.getfixturevalue("postgres"))
        kept = {"type": "postgres", "host": url.host, "port": url.port, "user": url.username}
        kept |= {"database": url.database, "password": "", "db_schema": "feast", "sslmode": "disable"}
    repo = tmp_path / "features"
    shutil.copytree(ROOT / "features", repo, ignore=shutil.ignore_patterns("__pycache__"))
    config = yaml.safe_load((repo / "feature_store.yaml").read_text()) | {"online_store": kept}
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    store = features.open_store(repo, Settings(home=tmp_path / "home", lake=lake.root))
    features.apply(store, "features.flights")
    features.materialize(store, "flight_delay", FIRST.end, FIRST.start)
    asked = spine(lake, FIRST)
    served = online(store, "flight_delay", asked)
    assert served == features.historical(store, "flight_delay", asked)
    assert served["plane_age"].null_count < served.num_rows / 2


def test_the_service_reads_the_same_clock_as_the_schedule(store, lake):
    asked = spine(lake, SECOND)
    computed = features.historical(store, "flight_delay", asked.drop_columns(["hour", "minute", "weekday"]))
    for name in ("hour", "minute", "weekday"):
        assert computed[name].to_pylist() == asked[name].to_pylist()


def test_retrieval_keeps_rows_order_and_types(store, lake):
    asked = spine(lake, SECOND).slice(0, 300)
    asked = pa.concat_tables([asked, asked.slice(0, 50), asked.slice(20, 5)])
    for read in (features.historical, online):
        kept = read(store, "flight_delay", asked).select(["carrier", "flight", "tailnum", "event_timestamp"])
        assert kept == asked.select(kept.column_names)
        assert read(store, "flight_delay", asked.slice(0, 0)).num_rows == 0


def test_an_hour_never_materialised_is_missing_online_not_stale(store, lake):
    asked = spine(lake, THIRD).slice(0, 500)
    served, offline = (read(store, "flight_delay", asked) for read in (online, features.historical))
    assert served["origin_landed_3h"].null_count == 500
    assert offline["origin_landed_3h"].null_count == 0
    assert served["plane_seats"] == offline["plane_seats"]


def test_a_killed_materialisation_neither_stops_readers_nor_the_next_one(store, lake, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    asked = spine(lake, SECOND).slice(0, 200)
    before = online(store, "flight_delay", asked)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("headrace.feature_store.feast.writers.Sqlite.write", killed)
        features.forget(store, "flight_delay", SECOND.start)
        features.materialize(store, "flight_delay", SECOND.end, SECOND.start)

    assert online(store, "flight_delay", asked) == before
    features.materialize(store, "flight_delay", SECOND.end, SECOND.start)
    assert online(store, "flight_delay", asked) == before


def test_what_is_about_to_be_rebuilt_is_brought_online_again(store, lake):
    def known():
        store.refresh_registry()
        return {view.name: len(view.materialization_intervals) for view in store.list_feature_views()}

    def owed():
        store.refresh_registry()
        return {view.name for view in store.list_feature_views() if brought.owed(view)}

    before = known()
    features.forget(store, "flight_delay", SECOND.end)  # nothing so late was brought
    assert known() == before
    assert min(before.values()) > 0
    features.forget(store, "flight_delay", SECOND.start)
    assert owed() == set(before)
    features.materialize(store, "flight_delay", SECOND.end, SECOND.start)
    features.materialize(store, "flight_delay", SECOND.end, SECOND.start)
    assert known() == dict.fromkeys(before, 1)  # intervals that meet are one: the registry does not grow
    assert owed() == set()


def test_a_window_is_stale_until_it_is_built_from_all_raw_rows(lake):
    """Built too early, or before late rows came: built again; otherwise left alone."""
    table = replace(FLIGHTS.feature_tables[1], name="early")
    raw = {**FLIGHTS.raw, "flights": "raw/early"}
    whole = lake.connect({"f": "raw/flights"}).sql("FROM f WHERE landed_at < '2013-01-14'").to_arrow_table()
    lake.table("raw/early").append(whole.slice(0, 100), "first")
    assert stale(table, raw, [FIRST, SECOND], lake) == {FIRST: Cause.NEW, SECOND: Cause.NEW}
    for window in (FIRST, SECOND):
        build(table, raw, window, lake)
    assert stale(table, raw, [FIRST, SECOND], lake) == {}
    lake.table("raw/early").append(whole.slice(100), "late")
    assert stale(table, raw, [FIRST, SECOND], lake)[SECOND] == Cause.RAW
    build(table, raw, SECOND, lake)
    assert stale(table, raw, [SECOND], lake) == {}


def test_windows_that_a_lookup_is_too_old_for_are_named(lake, tmp_path):
    """The aircraft are known from the start: a query that looks back a week loses them in the third."""
    table = replace(FLIGHTS.feature_tables[1], name="sizes", sql=tmp_path / "sizes.sql", suite="")
    table.sql.write_text(
        "SELECT landed_at AS event_timestamp, available_at, seats "
        "FROM flights LEFT JOIN planes USING (tailnum)"
    )
    due = [FIRST, SECOND, THIRD]
    far, near = (replace(table, lookback=timedelta(weeks=weeks)) for weeks in (4, 1))
    assert look(far, FLIGHTS.raw, due, lake).unseen == {"flights": [], "planes": []}
    assert look(near, FLIGHTS.raw, due, lake).unseen == {"flights": [], "planes": [THIRD]}


def test_a_window_is_stale_when_its_tables_definition_has_changed_in_more_than_looks(lake, tmp_path):
    table = replace(FLIGHTS.feature_tables[1], name="defined")
    build(table, FLIGHTS.raw, FIRST, lake)
    written = table.sql.read_text()

    def edited(text):
        (tmp_path / "defined.sql").write_text(text)
        return stale(replace(table, sql=tmp_path / "defined.sql"), FLIGHTS.raw, [FIRST, SECOND], lake)

    other_looks = "/* mine */\n" + written.replace("SELECT", "  select").replace(
        "-- How late", "-- How very late"
    )
    assert edited(other_looks) == {SECOND: Cause.NEW}
    assert edited(written.replace(">= 15", ">= 30")) == {FIRST: Cause.DEFINITION, SECOND: Cause.NEW}
    for change in ({"lookback": timedelta(hours=4)}, {"suite": ""}):
        assert stale(replace(table, **change), FLIGHTS.raw, [FIRST], lake) == {FIRST: Cause.DEFINITION}

    # and once built anew, it is what it is remembered as
    changed = replace(table, suite="")
    build(changed, FLIGHTS.raw, FIRST, lake)
    assert stale(changed, FLIGHTS.raw, [FIRST], lake) == {}
    assert stale(table, FLIGHTS.raw, [FIRST], lake) == {FIRST: Cause.DEFINITION}


def test_rows_of_a_raw_table_that_a_query_does_not_read_leave_its_windows_alone(lake):
    planes = replace(FLIGHTS.feature_tables[3], name="only_planes")
    first = windows(FLIGHTS.start, FIRST.end, WEEK)
    build(planes, FLIGHTS.raw, first[0], lake)
    other = lake.connect({"f": "raw/flights"}).sql("FROM f LIMIT 5").to_arrow_table()
    lake.table("raw/more").append(pa.concat_tables([other] * 2), "more")
    assert stale(planes, {**FLIGHTS.raw, "flights": "raw/more"}, first, lake) == {}


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT * FROM a JOIN b USING (k) WHERE t >= $start AND k IN (SELECT k FROM c)", {"a", "b", "c"}),
        ("WITH a AS (SELECT * FROM a), d AS (FROM a) SELECT * FROM d UNION ALL FROM e", {"a", "e"}),
        ("WITH RECURSIVE r AS (FROM a UNION ALL FROM r) FROM r ASOF JOIN b ON r.t >= b.t", {"a", "b"}),
        ("SELECT unnest(range($start, $end, INTERVAL 1 HOUR))", set()),
        ("WITH A AS (FROM Flights) FROM a JOIN WEATHER USING (origin)", {"flights", "weather"}),
    ],
)
def test_a_query_reads_the_tables_it_names_but_does_not_define(sql, tables):
    assert reads(sql) == tables


BACKFILL = """
import os, sys, time
from pathlib import Path
from headrace.cluster import cluster, spread
from headrace.feature_store.tables import build
from tests.test_feature_store import slow_tables, MANY, FLIGHTS, Lake

if __name__ == "__main__":
    lake = Lake(sys.argv[1])
    work = [(t, FLIGHTS.raw, w, lake) for t in slow_tables(Path(sys.argv[3])) for w in MANY]
    with cluster(workers=int(sys.argv[2])) as client:
        for _ in spread(client, build, work):
            print("built", flush=True)
"""
MANY = windows(FLIGHTS.start, THIRD.end, timedelta(days=1))


def slow_tables(folder):
    """Two feature tables whose windows, of a day, take a while."""
    busy = "(SELECT sum(sqrt(i)) FROM range(20_000_000) AS r(i)) > 0"
    for table in FLIGHTS.feature_tables[:2]:
        sql = folder / f"{table.name}.sql"
        sql.write_text(f"{table.sql.read_text()} AND {busy}")
        yield replace(table, name=f"slow_{folder.name}_{table.name}", sql=sql, suite="")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backfill_killed_halfway_goes_on_where_it_was(lake, tmp_path, workers):
    """``kill -9`` of the process and its workers: what was built is built once, and all ends the same."""
    tables = list(slow_tables(tmp_path))
    script = tmp_path / "backfill.py"
    script.write_text(BACKFILL)
    command = [sys.executable, script, lake.root, str(workers), tmp_path]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        seen = [process.stdout.readline() for _ in range(5)]
        os.killpg(process.pid, signal.SIGKILL)
    assert seen == ["built\n"] * 5

    left = {table: stale(table, FLIGHTS.raw, MANY, lake) for table in tables}
    done = 2 * len(MANY) - sum(map(len, left.values()))
    assert 5 <= done < 2 * len(MANY)
    with cluster(workers=workers) as client:
        work = [(table, FLIGHTS.raw, window, lake) for table, why in left.items() for window in why]
        assert len(list(spread(client, build, work))) == len(work)

    for table in tables:
        written = [v for v in lake.table(table.table).open().history() if v["operation"] == "WRITE"]
        assert len(written) == len(MANY), "no window was built twice"
        assert stale(table, FLIGHTS.raw, MANY, lake) == {}
        quick = f"features/{table.sql.stem}"
        con = lake.connect({"built": table.table, "quick": quick})
        lived = "event_timestamp >= '2013-01-01'"  # the first week begins a day before
        assert fingerprint(con.view("built")) == fingerprint(con.view("quick").filter(lived))


def test_what_goes_wrong_on_a_worker_process_comes_home_as_it_was(lake, tmp_path):
    sql = tmp_path / "bad.sql"
    sql.write_text("SELECT $start AS event_timestamp, $end AS then")
    table = replace(FLIGHTS.feature_tables[0], name="bad_at_work", sql=sql)
    work = [(table, FLIGHTS.raw, window, lake) for window in WEEKS]

    with cluster(workers=2) as client, pytest.raises(BadFeatureRows, match="no available_at") as raised:
        list(spread(client, build, work))

    assert (raised.value.table, raised.value.sql) == (table.table, str(sql))


def test_a_row_known_only_after_the_prediction_is_not_joined(store, lake):
    table, asked = lake.table("features/origin_delays"), spine(lake, SECOND)
    honest = features.historical(store, "flight_delay", asked)
    # the same hours again, better informed but too late: one known late, the other of a later time
    planted = lake.connect({"t": table.name}).sql("""
        SELECT * REPLACE (event_timestamp + late AS event_timestamp,
                          available_at + INTERVAL 1 HOUR AS available_at, 9999 AS origin_landed_3h)
        FROM t CROSS JOIN (VALUES (INTERVAL 0 HOUR), (INTERVAL 1 HOUR)) AS plant(late)
    """)
    version = table.open().version()
    table.append(planted.project("* EXCLUDE (late)").to_arrow_table(), "planted")
    try:
        assert features.historical(store, "flight_delay", asked) == honest
    finally:
        table.open().restore(version)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small view with ties, late rows and a ttl of five hours, in a store of its own."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import DeltaFormat
    from feast.types import Int64, String

    home = tmp_path_factory.mktemp("toy")
    con = duckdb_connection()
    con.execute("SELECT setseed(0.5)")
    rows = con.sql("""
        SELECT 'k' || key AS k, TIMESTAMPTZ '2013-01-01' + to_hours(hour) AS event_timestamp,
               event_timestamp + to_hours(greatest(late, 0)) AS available_at, any_value(i) AS f
        FROM (SELECT i, (random() * 4)::INT AS key, (random() * 40)::INT AS hour,
                     (random() * 12)::INT - 6 AS late
              FROM range(300) AS rows(i))
        GROUP BY ALL
    """).to_arrow_table()
    Lake(str(home)).table("features/toy").append(rows, "all")
    store = FeatureStore(
        config=RepoConfig(
            project="toy",
            registry=str(home / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            offline_store={
                "type": OFFLINE,
                "lake": str(home),
            },
        )
    )
    k = Entity(name="k", value_type=ValueType.STRING)
    source = FileSource(
        name="toy", path="features/toy", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    )  # fmt: skip
    schema = [Field(name="k", dtype=String), Field(name="f", dtype=Int64)]
    view = FeatureView(name="toy", entities=[k], schema=schema, source=source, ttl=timedelta(hours=5))
    store.apply([k, view])
    return store, rows.to_pandas()


def asked_of_toy():
    keys = ["k0", "k1", "k2", "k3", "k4", "k9", None]
    start = datetime(2013, 1, 1, tzinfo=UTC)
    rows = [{"k": k, "event_timestamp": start + timedelta(minutes=30 * i)} for i in range(100) for k in keys]
    return pd.DataFrame(rows).sample(frac=1, random_state=1).reset_index(drop=True)


def by_definition(asked, rows, known_only):
    for k, at in zip(asked.k, asked.event_timestamp, strict=True):
        valid = rows[
            (rows.k == k)
            & (rows.event_timestamp <= at)
            & (rows.event_timestamp >= at - pd.Timedelta(hours=5))
        ]
        valid = valid[valid.available_at <= at] if known_only else valid
        latest = valid.sort_values(["event_timestamp", "available_at"]).f
        yield None if latest.empty else int(latest.iloc[-1])


@pytest.mark.parametrize("known_only", [False, True])
@pytest.mark.parametrize("form", ["pandas", "arrow", "sql"])
def test_the_point_in_time_join_is_its_definition(toy, tmp_path, form, known_only):
    store, rows = toy
    asked = asked_of_toy()
    asked.to_parquet(tmp_path / "asked.parquet")
    given = {
        "pandas": asked,
        "arrow": pa.Table.from_pandas(asked),
        "sql": f"FROM '{tmp_path}/asked.parquet'",
    }[form]

    job = store.get_historical_features(given, ["toy:f"], filter_by_created_timestamp=known_only)

    found, wanted = job.to_arrow(), list(by_definition(asked, rows, known_only))
    assert found["f"].to_pylist() == wanted
    assert found["k"].to_pylist() == asked.k.tolist()
    assert 100 < sum(value is not None for value in wanted) < 600


def test_full_names_and_a_bare_data_frame_are_served(toy):
    store, _ = toy
    found = store.get_historical_features(asked_of_toy(), ["toy:f"], full_feature_names=True).to_df()
    assert list(found.columns) == ["k", "event_timestamp", "toy__f"]


def test_latest_rows_are_one_for_each_key_and_all_rows_are_all(toy):
    store, rows = toy
    start, end = datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 1, 1, 20, tzinfo=UTC)
    source = store.get_feature_view("toy").batch_source
    columns = (["k"], ["f"], "event_timestamp", "available_at", start, end)
    offline = store._get_provider().offline_store

    inside = rows[rows.event_timestamp.between(start, end)].sort_values(["event_timestamp", "available_at"])
    latest = offline.pull_latest_from_table_or_query(store.config, source, *columns).to_arrow()
    everything = offline.pull_all_from_table_or_query(store.config, source, *columns).to_df()

    assert dict(zip(latest["k"].to_pylist(), latest["f"].to_pylist(), strict=True)) == (
        inside.groupby("k").f.last().to_dict()
    )
    assert sorted(everything.f) == sorted(inside.f)


def test_a_registry_write_cut_short_leaves_the_old_registry(store, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    registry = store.registry._registry_store
    before = registry.get_registry_proto()
    monkeypatch.setattr("feast.infra.registry.file.os.fsync", killed)
    with contextlib.suppress(KeyboardInterrupt):
        registry.update_registry_proto(type(before)())

    assert [view.spec.name for view in registry.get_registry_proto().feature_views] == [
        view.spec.name for view in before.feature_views
    ]
    assert before.feature_views


def test_state_lies_below_headrace_home_whatever_the_directory(monkeypatch, tmp_path):
    from headrace.feature_store.feast.embedded import below_home

    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "elsewhere"))
    assert below_home("feast/registry.db", ROOT / "features") == tmp_path / "elsewhere/feast/registry.db"
    monkeypatch.delenv("HEADRACE_HOME")
    assert below_home("feast/online.db", tmp_path / "features") == tmp_path / ".headrace/feast/online.db"


def test_feast_apply_takes_the_repository_as_it_stands(feast_apply):
    process, project = feast_apply
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Deploying infrastructure for carrier_delays" in output
    assert {file.name for file in (project / ".headrace/feast").iterdir()} == {"registry.db", "online.db"}


# ── the gate ───────────────────────────────────────────────────────────────────


def test_a_window_of_features_that_breaks_its_suite_is_held_and_the_old_one_stays(lake, tmp_path):
    table = FLIGHTS.feature_tables[1]
    before = lake.table(table.table).snapshot()
    twice = tmp_path / "twice.sql"
    twice.write_text(f"WITH once AS ({table.sql.read_text()}) FROM once UNION ALL FROM once")
    for _ in range(2):  # again: the same rows are held once
        with pytest.raises(BatchRejected, match="must be unique together") as rejected:
            build(replace(table, sql=twice), FLIGHTS.raw, SECOND, lake, "flights")
    (entry,) = quarantine.entries(lake, table.table)
    assert rejected.value.rejected == (entry,)
    assert (entry.id, entry.whole) == ("features/origin_delays/2013-01-07/1", True)
    assert entry.held.rows == 2 * lake.table(table.table).count(SECOND)
    assert lake.table(table.table).snapshot() == before


def test_feature_rows_within_a_tolerance_are_held_and_the_rest_is_built(lake, tmp_path, monkeypatch):
    import great_expectations.expectations as gxe
    from great_expectations import ExpectationSuite

    def mild():
        rule = gxe.ExpectColumnValuesToBeBetween(column="temp", max_value=45, mostly=0.5)
        return ExpectationSuite("mild", [rule])

    monkeypatch.setattr("validations.flights.origin_weather", mild)
    mild.__module__ = "validations.flights"
    table = replace(FLIGHTS.feature_tables[0], name="mild_weather")
    written = build(table, FLIGHTS.raw, SECOND, lake, "flights")
    (entry,) = quarantine.entries(lake, "features/mild_weather")
    whole = lake.table("features/origin_weather").count(SECOND)
    assert (written + entry.held.rows, entry.whole) == (whole, False)
    assert 0 < entry.held.rows < whole / 2
    assert lake.connect({"t": table.table}).sql("SELECT max(temp) FROM t").fetchall()[0][0] <= 45


@pytest.mark.parametrize("kept_as", ["BIGINT", "INTEGER"])
def test_a_window_is_pending_while_a_row_in_it_is_not_predicted(lake, kept_as):
    start, day = SECOND.start, timedelta(days=1)
    days = [Window(start + n * day, start + (n + 1) * day) for n in range(7)]
    spec = replace(FLIGHTS, name=f"toy_{kept_as}", window=day)
    assert log.pending(spec, lake, start, SECOND.end) == days  # none was predicted

    spine = lake.connect(spec.raw).sql(f"FROM ({spec.spine}) WHERE {SECOND.predicate('event_timestamp')}")
    rows = spine.project(f"* REPLACE (flight::{kept_as} AS flight)").order("event_timestamp").to_arrow_table()
    table = lake.table(log.table_of(spec))
    table.overwrite(rows, SECOND, "event_timestamp")
    assert log.pending(spec, lake, start, SECOND.end) == []

    missing = {bisect_left(rows["event_timestamp"].to_pylist(), days[n].start) for n in (2, 5)}
    kept = [place for place in range(rows.num_rows) if place not in missing]
    table.overwrite(rows.take(kept), SECOND, "event_timestamp")
    assert log.pending(spec, lake, start, SECOND.end) == [days[2], days[5]]
    assert log.pending(spec, lake, start, days[4].end) == [days[2]]

    twice = [place + (place in missing) for place in range(rows.num_rows)]  # as many, but of other keys
    table.overwrite(rows.take(twice), SECOND, "event_timestamp")
    assert log.pending(spec, lake, start, SECOND.end) == [days[2], days[5]]


def test_predictions_that_break_their_suite_are_held_and_none_is_logged(store, lake):
    class Stuck:
        """A model that says the same of every flight."""

        problem = Binary()

        def predict(self, rows):
            return np.full(rows.num_rows, 0.5)

    def served(asked):
        rows = online(store, "flight_delay", asked)
        return log.predicted(FLIGHTS, rows, Stuck(), 1, FLIGHTS.start)

    with pytest.raises(BatchRejected, match="probability") as rejected:
        log.score(FLIGHTS, lake, SECOND, served)
    (entry,) = rejected.value.rejected
    assert (entry.id, entry.whole, entry.held.rows) == ("predictions/flights/2013-01-07/1", True, entry.of)
    assert not lake.table("predictions/flights").exists()


def test_a_service_that_nobody_declares_is_said_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(ROOT)
    spec = replace(FLIGHTS, feature_service="flight_delays")
    with pytest.raises(UnknownService, match=r"flight_delays.*Did you mean `flight_delay`"):
        steps.apply_features.fn(Project.here(), spec, {})
