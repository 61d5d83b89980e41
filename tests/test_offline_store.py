"""The point-in-time join against its definition, against Feast's own DuckDB store, and against time.

Feast's store needs ``ibis``; without it the tests beside it are skipped.
"""

import pickle
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.data_format import DeltaFormat, ParquetFormat
from feast.errors import (
    EntityTimestampInferenceException,
    FeastEntityDFMissingColumnsError,
    SavedDatasetLocationAlreadyExists,
)
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.feature_store import store as features
from headrace.feature_store.errors import (
    ColumnTaken,
    KeysDiffer,
    NoInstant,
    NotATime,
    NotInSource,
    NotOffered,
    UnknownPins,
)
from headrace.feature_store.feast import asof, sources
from headrace.lake import (
    DamagedTable,
    Lake,
    NotBuilt,
    VersionGone,
    Window,
    duckdb_connection,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
START = datetime(2013, 1, 1, tzinfo=UTC)
OURS = "headrace.feature_store.feast.offline.DeltaOfflineStore"
A, B = (Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in "ab")


def at(hour):
    return None if hour is None else START + timedelta(hours=hour)


def rows_of(*rows):
    """Feature rows ``(a, b, event hour, created hour, f)``."""
    a, b, happened, created, f = zip(*rows, strict=True) if rows else ((),) * 5
    stamp = pa.timestamp("us", "UTC")
    return pa.table(
        {
            "a": pa.array(a, pa.string()),
            "b": pa.array(b, pa.string()),
            "happened": pa.array([at(hour) for hour in happened], stamp),
            "created": pa.array([at(hour) for hour in created], stamp),
            "f": pa.array(f, pa.int64()),
        }
    )


def asked_for(*rows):
    """A spine of ``(a, b, hour)``."""
    a, b, hours = zip(*rows, strict=True) if rows else ((),) * 3
    columns = {"a": pa.array(a, pa.string()), "b": pa.array(b, pa.string())}
    return pa.table(
        columns | {"event_timestamp": pa.array([at(h) for h in hours], pa.timestamp("us", "UTC"))}
    )


def view(name, keys=(A, B), ttl=0, created=True, path="features/r", form=None, fields=("f",), **source):
    stamps = {"timestamp_field": "happened", "created_timestamp_column": "created" if created else ""}
    return FeatureView(
        name=name,
        entities=list(keys),
        ttl=timedelta(hours=ttl),
        schema=[Field(name=name, dtype=String) for name in (key.join_key for key in keys)]
        + [Field(name=name, dtype=Int64) for name in fields],
        source=FileSource(name=name, path=path, file_format=form or DeltaFormat(), **stamps | source),
    )  # fmt: skip


def open_store(home, declared, **offline):
    home.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(
        config=RepoConfig(
            project="test",
            registry=str(home / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            offline_store=offline if "type" in offline else {"type": OURS, "lake": str(home)} | offline,
        )
    )
    store.apply(declared)
    return store


KEYS = {"none": (), "one": (A,), "two": (A, B)}
TTLS = (0, 1, 3)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A store whose views differ in keys, ttl and created time; all read the table ``features/r``."""
    home = tmp_path_factory.mktemp("lab")
    declared = [
        view(f"{keys}_{ttl}_{created}", KEYS[keys], ttl, created)
        for keys in KEYS
        for ttl in TTLS
        for created in (False, True)
    ]
    table = Lake(str(home)).table("features/r")
    table.replace(rows_of())
    return open_store(home, [A, B, *declared]), table


def joined(lab, rows, asked, view="two_0_True", known_only=False, **options):
    store, table = lab
    table.replace(rows)
    job = store.get_historical_features(
        asked, [f"{view}:f"], filter_by_created_timestamp=known_only, **options
    )
    return job.to_arrow()


def by_definition(rows, asked, keys, ttl, created, known_only):
    """What a view answers, in plain Python: Feast's definition, then the greatest feature."""
    for question in asked:
        best = None
        for row in rows:
            a, b, happened, since, f = row
            theirs, ours = (a, b)[:keys], question[:keys]
            if None in ours or theirs != ours or happened is None or question[2] is None:
                continue
            if happened > question[2] or (ttl and happened + ttl < question[2]):
                continue
            if known_only and created and (since is None or since > question[2]):
                continue
            rank = (happened, -1 if since is None or not created else since, -1 if f is None else f)
            best = max(best or rank, rank)
        yield None if best is None or best[2] == -1 else best[2]


# Concatenated, "a" + "bc" and "ab" + "c" are the same text.
first, second = st.sampled_from(["a", "ab", None]), st.sampled_from(["bc", "c", None])
hour, maybe_hour = st.integers(0, 6), st.one_of(st.none(), st.integers(0, 6))
feature_rows = st.lists(
    st.tuples(first, second, maybe_hour, maybe_hour, st.sampled_from([None, 0, 1, 2])), max_size=12
)
questions = st.lists(st.tuples(first, second, maybe_hour), max_size=8)


@settings(max_examples=150)
@given(
    rows=feature_rows, asked=questions, keys=st.sampled_from(list(KEYS)), ttl=st.sampled_from(TTLS),
    created=st.booleans(), known_only=st.booleans(),
)  # fmt: skip
def test_the_join_is_its_definition(lab, rows, asked, keys, ttl, created, known_only):
    found = joined(lab, rows_of(*rows), asked_for(*asked), f"{keys}_{ttl}_{created}", known_only)

    assert found.select(["a", "b", "event_timestamp"]) == asked_for(*asked)
    wanted = by_definition(rows, asked, len(KEYS[keys]), ttl, created, known_only)
    assert found["f"].to_pylist() == list(wanted)


def test_a_row_is_valid_from_its_own_instant_to_the_end_of_its_ttl_both_included(lab):
    tick = timedelta(microseconds=1)
    end = at(3) + timedelta(hours=1)
    times = [at(3) - tick, at(3), end, end + tick]
    asked = pa.table({"a": ["x"] * 4, "event_timestamp": pa.array(times, pa.timestamp("us", "UTC"))})
    found = joined(lab, rows_of(("x", "", 3, 3, 7)), asked, "one_1_True")
    assert found["f"].to_pylist() == [None, 7, 7, None]


def test_a_null_in_the_latest_row_is_the_answer_not_the_value_before_it(lab):
    rows = rows_of(("x", "y", 1, 1, 5), ("x", "y", 2, 2, None))
    assert joined(lab, rows, asked_for(("x", "y", 3)))["f"].to_pylist() == [None]


def test_a_row_that_does_not_say_when_it_was_created_was_never_known(lab):
    rows = rows_of(("x", "y", 1, 1, 5), ("x", "y", 2, None, 6))
    asked = asked_for(("x", "y", 3))
    assert joined(lab, rows, asked)["f"].to_pylist() == [6]
    assert joined(lab, rows, asked, known_only=True)["f"].to_pylist() == [5]


@pytest.mark.parametrize(
    "form", ["frame", "indexed frame", "naive frame", "text", "dates", "arrow", "sql", "ns"]
)
def test_a_spine_may_come_in_any_form_and_keeps_its_rows(lab, tmp_path, form):
    asked = asked_for(("x", "y", 24), ("x", "z", 0), ("x", "y", 24), ("x", "y", 0), (None, "y", 24))
    asked = asked.append_column("label", [[1, 2, 3, 4, 5]])
    frame = asked.to_pandas()
    pq.write_table(asked, tmp_path / "asked.parquet")
    given = {
        "frame": frame,
        "indexed frame": frame.set_index(pd.Index([7, 7, 1, 3, 2])),
        "naive frame": frame.assign(event_timestamp=frame.event_timestamp.dt.tz_localize(None)),
        "text": frame.assign(event_timestamp=frame.event_timestamp.dt.strftime("%Y-%m-%d %H:%M:%S")),
        "dates": frame.assign(event_timestamp=[date(2013, 1, d) for d in (2, 1, 2, 1, 2)]),
        "arrow": asked,
        "sql": f"FROM '{tmp_path}/asked.parquet'",
        "ns": asked.set_column(
            2, "event_timestamp", asked["event_timestamp"].cast(pa.timestamp("ns", "UTC"))
        ),
    }[form]

    rows = rows_of(("x", "y", 24, 24, 1), ("x", "y", -9, 0, 2), ("x", "z", -1, 0, 3))
    found = joined(lab, rows, given).to_pandas()

    assert list(found.columns) == ["a", "b", "event_timestamp", "label", "f"]
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    assert found.label.tolist() == [1, 2, 3, 4, 5]
    assert pd.to_datetime(found.event_timestamp, utc=True).tolist() == frame.event_timestamp.tolist()
    assert found.f.replace({np.nan: None}).tolist() == [1, 3, 1, 2, None]


def test_the_only_timestamp_is_the_event_time_whatever_its_name(lab):
    asked = asked_for(("x", "y", 3)).rename_columns(["a", "b", "seen at"])
    found = joined(lab, rows_of(("x", "y", 1, 1, 5)), asked)
    assert (found["f"].to_pylist(), found.column_names) == ([5], ["a", "b", "seen at", "f"])
    with pytest.raises(EntityTimestampInferenceException):
        joined(lab, rows_of(), asked.append_column("again", asked["seen at"]))


def test_what_cannot_be_joined_is_refused_by_name(lab):
    asked = asked_for(("x", "y", 3))
    with pytest.raises(FeastEntityDFMissingColumnsError, match="'b'"):
        joined(lab, rows_of(), asked.drop_columns(["b"]))
    taken = asked.append_column("f", [[1]])
    with pytest.raises(ColumnTaken, match="`f`"):
        joined(lab, rows_of(), taken)
    assert joined(lab, rows_of(), taken, full_feature_names=True).column_names[-1] == "two_0_True__f"
    with pytest.raises(NotInSource, match=r"`two_0_True` reads `f` of `features/r`, which has only `a`, `b`"):
        joined(lab, rows_of().drop_columns(["f"]), asked)
    pull = lab[0]._get_provider().offline_store.pull_all_from_table_or_query
    source = lab[0].get_feature_view("two_0_True").batch_source
    with pytest.raises(NotInSource, match="`two_0_True` reads `g`"):
        pull(lab[0].config, source, ["a"], ["g"], "happened").to_arrow()


@pytest.mark.parametrize("known_only", [False, True])
@pytest.mark.parametrize("first", [1, None])
def test_a_range_of_dates_stands_for_every_row_in_it(lab, first, known_only):
    """As Feast's SQL stores have it, with an hour of a ttl before the end if no start is given."""
    store, table = lab
    rows = [
        ("x", "y", 1, 1, 1),
        ("x", "y", 2, 9, 2),
        ("x", "z", 4, 4, 4),
        (None, "y", 2, 2, 9),
        ("x", "y", 5, 5, 5),
    ]
    table.replace(rows_of(*rows, ("x", "y", 1, 1, 1)))
    begin = None if first is None else at(first).replace(tzinfo=None)
    found = store.get_historical_features(
        None, ["one_1_True:f", "two_3_True:f"], True, start_date=begin, end_date=at(4),
        filter_by_created_timestamp=known_only,
    )  # fmt: skip
    assert found.to_arrow().column_names == ["event_timestamp", "a", "b", "one_1_True__f", "two_3_True__f"]
    late = 1 if known_only else 2
    assert [tuple(row.values()) for row in found.to_arrow().to_pylist()] == [
        (at(1), "x", "y", 1, 1), (at(1), "x", None, 1, None), (at(2), "x", "y", late, late),
        (at(2), "x", None, late, None), (at(4), "x", "z", 4, 4), (at(4), "x", None, 4, None),
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["happened", "created"])
@pytest.mark.parametrize("kind", [pa.string(), pa.int64()], ids=str)
def test_a_time_that_is_none_is_refused_by_name_wherever_rows_are_read(lab, column, kind):
    store, table = lab
    rows = rows_of(("x", "y", 1, 1, 5))
    place = rows.schema.get_field_index(column)
    table.replace(rows.set_column(place, column, pa.array(["7"]).cast(kind)))
    offline, view = store._get_provider().offline_store, store.get_feature_view("two_0_True")
    pulled = (store.config, view.batch_source, ["a", "b"], ["f"], "happened", "created", at(0), at(9))
    for read in (
        lambda: store.get_historical_features(asked_for(("x", "y", 2)), ["two_0_True:f"]).to_arrow(),
        lambda: offline.pull_latest_from_table_or_query(*pulled).to_arrow(),
        lambda: offline.pull_all_from_table_or_query(*pulled).to_arrow(),
    ):
        with pytest.raises(
            NotATime, match=rf"`{column}` of `features/r` is (VARCHAR|BIGINT), not a TIMESTAMP"
        ):
            read()


def test_what_feast_has_and_we_have_not_says_what_to_do_instead(lab):
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
    from feast.infra.offline_stores.dask import DaskOfflineStore

    store, offline = lab[0], lab[0]._get_provider().offline_store
    computed = [name for name in vars(DaskOfflineStore) if "monitoring" in name]
    assert len(computed) == 6
    for name in computed:
        with pytest.raises(NotOffered, match="The `monitor` flow watches"):
            getattr(offline, name)(store.config)
    elsewhere = PostgreSQLSource(name="elsewhere", query="SELECT 1", timestamp_field="t")
    with pytest.raises(NotOffered, match=r"`elsewhere` is a PostgreSQLSource.*FileSource"):
        sources.table(store.config, elsewhere)
    with pytest.raises(NotOffered, match=r"Logging to a NoneType.*FileLoggingDestination"):
        offline.write_logged_features(store.config, None, None, LoggingConfig(None), None)


def test_types_of_a_table_that_does_not_exist_cannot_be_inferred(tmp_path):
    declared = view("r", path="elsewhere/r", fields=())
    with pytest.raises(NotBuilt, match=r"Table `elsewhere/r` does not exist yet. No flow makes it: write it"):
        open_store(tmp_path, [A, B, declared])


def test_features_that_differ_by_case_alone_are_not_mixed_up(tmp_path):
    """DuckDB's columns have no case: both would be answered by the first."""
    rows = rows_of(("x", "y", 1, 1, 5))
    pq.write_table(rows.append_column("F", [[6]]), tmp_path / "r.parquet")
    declared = view("r", path=str(tmp_path / "r.parquet"), form=ParquetFormat(), fields=("f", "F"))
    store = open_store(tmp_path, [A, B, declared])
    asked = asked_for(("x", "y", 2))
    assert store.get_historical_features(asked, ["r:f"]).to_arrow()["f"].to_pylist() == [5]
    with pytest.raises(NotInSource, match=r"reads `F` .* \(case counts\)"):
        store.get_historical_features(asked, ["r:F"]).to_arrow()


NUMBERS = pa.array([1], pa.int64())


@pytest.mark.parametrize(
    ("held", "given", "wanted"),
    [
        (NUMBERS, pa.array(["01"]), KeysDiffer),
        (NUMBERS, pa.array(["abc"]).dictionary_encode(), KeysDiffer),
        (pa.array(["1"]), NUMBERS, KeysDiffer),
        (NUMBERS, pa.array([1.0]), [5]),
        (NUMBERS, NUMBERS.cast(pa.int16()), [5]),
        (NUMBERS, pa.nulls(1), [None]),
        (pa.array(["1"]), pa.array(["1"]).dictionary_encode(), [5]),
        (pa.array(["1"]), pa.nulls(1), [None]),
        (pa.array(["true"]), pa.array([True]), KeysDiffer),
        (NUMBERS, pa.array([True]), KeysDiffer),
        (pa.array([b"a"]), pa.array(["a"]), KeysDiffer),
        (pa.array(["2013-01-01"]), pa.array([START], pa.timestamp("us", "UTC")), KeysDiffer),
        (NUMBERS, pa.array([START], pa.timestamp("us", "UTC")), KeysDiffer),
        (pa.array([True]), pa.array([True]), [5]),
        (pa.array([b"\xff\x00"]), pa.array([b"\xff\x00"]), [5]),
        (pa.array([date(2013, 1, 1)]), pa.array([START], pa.timestamp("us", "UTC")), [5]),
        (pa.array([2**63 - 1]), pa.array([2**63 - 2]), [None]),
        (pa.array([Decimal(2**64)], pa.decimal128(38, 0)), pa.array([Decimal(2**64)]), [5]),
        (pa.array([str(UUID(int=7))]), pa.array([UUID(int=7).bytes], pa.uuid()), [5]),
        (pa.array(["none"]), pa.array([UUID(int=7).bytes], pa.uuid()), [None]),
    ],
)
def test_a_key_is_compared_with_one_of_its_own_kind_only(lab, held, given, wanted):
    rows = rows_of(("x", "y", 1, 1, 5)).set_column(0, "a", held)
    asked = asked_for(("x", "y", 2)).set_column(0, "a", given)
    if isinstance(wanted, list):
        assert joined(lab, rows, asked, "one_0_True")["f"].to_pylist() == wanted
    else:
        with pytest.raises(KeysDiffer, match=r"`a` of `one_0_True` is .* Cast `a` to"):
            joined(lab, rows, asked, "one_0_True")


@pytest.mark.parametrize("days", [700_000, 1_000_000, 3_652_500])
def test_a_ttl_may_reach_back_before_the_first_year(tmp_path, days):
    declared = view("r", ttl=24 * days)
    store = open_store(tmp_path, [A, B, declared])
    Lake(str(tmp_path)).table("features/r").replace(rows_of(("x", "y", 1, 1, 5)))
    found = store.get_historical_features(asked_for(("x", "y", 2), ("x", "y", 0)), ["r:f"])
    assert found.to_arrow()["f"].to_pylist() == [5, None]


def test_naive_feature_times_are_utc(lab):
    rows = rows_of(("x", "y", 3, 3, 5))
    for column in ("happened", "created"):
        place = rows.schema.get_field_index(column)
        rows = rows.set_column(place, column, rows[column].cast(pa.timestamp("us")))
    asked = asked_for(("x", "y", 2), ("x", "y", 3), ("x", "y", 4), ("x", "y", 5))
    found = joined(lab, rows, asked, "two_1_True", known_only=True)
    assert found["f"].to_pylist() == [None, 5, 5, None]


def test_a_large_spine_is_not_joined_by_a_nested_loop(lab):
    """DuckDB takes an Arrow table for one row, and would compare each row of it with every feature."""
    hours = np.arange(40_000) % 5_000
    stamps = pa.array(np.datetime64(START.replace(tzinfo=None), "us") + hours.astype("timedelta64[h]"))
    keys = pa.array([f"k{i % 50}" for i in range(40_000)])
    rows = pa.table({"a": keys, "b": keys, "happened": stamps, "created": stamps, "f": hours})
    asked = pa.table({"a": keys, "b": keys, "event_timestamp": stamps})
    plans, con = [], duckdb_connection()

    class Explained:
        """DuckDB, which plans before it runs."""

        def __getattr__(self, name):
            return getattr(con, name)

        def sql(self, query):
            plans.append(con.sql(f"EXPLAIN {query}").fetchall()[0][1])
            return con.sql(query)

    answers = asof.Rows(con.from_arrow(rows), (("a", "a"),), "happened", None, timedelta(0), ("f",))
    asof.join(Explained(), asked, "event_timestamp", [answers], known_only=False)
    (plan,) = plans
    assert "ASOF_JOIN" in plan
    assert "NESTED_LOOP" not in plan
    assert joined(lab, rows, asked)["f"].to_pylist() == hours.tolist()


# Feast's plug-in points beside the join


def test_latest_and_all_rows_are_feasts_with_ties_told_apart(lab):
    store, table = lab
    table.replace(
        rows_of(
            ("x", "y", 1, 1, 1), ("x", "y", 2, None, 9), ("x", "y", 2, 4, 3), ("x", "y", 2, 4, 4),
            (None, "y", 2, 2, 5), (None, "y", 3, 3, 6), ("x", "z", 5, 5, 7),
        )
    )  # fmt: skip
    source, offline = store.get_feature_view("two_0_True").batch_source, store._get_provider().offline_store

    def pulled(pull, keys, start, end):
        columns = (keys, ["f"], "happened", "created")
        return sorted(pull(store.config, source, *columns, at(start), at(end)).to_arrow()["f"].to_pylist())

    assert pulled(offline.pull_latest_from_table_or_query, ["a", "b"], 1, 4) == [4, 6]
    assert pulled(offline.pull_latest_from_table_or_query, [], 0, 9) == [7]
    assert pulled(offline.pull_all_from_table_or_query, ["a", "b"], 2, 3) == [3, 4, 5, 6, 9]
    naive = [at(hour).replace(tzinfo=None) for hour in (2, 3)]
    everything = offline.pull_all_from_table_or_query(
        store.config, source, ["a"], [], "happened", None, *naive
    )
    assert everything.to_df().columns.tolist() == ["a", "b", "created", "f", "happened"]
    assert len(everything.to_df()) == 5


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """What declarations may say: renamed keys, mapped fields, on-demand views, a service over all."""
    home = tmp_path_factory.mktemp("shop")
    return declare(home, {"type": OURS, "lake": str(home / "lake")})


def declare(home, offline):
    """Write the tables as Parquet, and declare views of them in a store of the kind ``offline`` says."""
    rng = np.random.default_rng(0)
    stamps = [START + timedelta(hours=int(hour)) for hour in rng.integers(0, 48, 400)]
    users, places = (pa.array([f"{name}{i}" for i in rng.integers(0, 6, 400)]) for name in ("user", "place"))
    late = [
        stamp + timedelta(hours=int(hour))
        for stamp, hour in zip(stamps, rng.integers(0, 5, 400), strict=True)
    ]
    table = pa.table(
        {"user": users, "place": places, "happened": stamps, "created": late, "n": rng.integers(0, 99, 400),
         "x": rng.normal(size=400)}
    )  # fmt: skip
    # Ties beyond the created time are undefined in Feast.
    alike = 'PARTITION BY "user", happened, created ORDER BY x'
    home.mkdir(exist_ok=True, parents=True)
    duckdb_connection().from_arrow(table).query(
        "rows", f"FROM rows QUALIFY row_number() OVER ({alike}) = 1 ORDER BY x"
    ).write_parquet(str(home / "visits.parquet"))
    user, place = (Entity(name=n, join_keys=[n], value_type=ValueType.STRING) for n in ("user_id", "place"))
    fields = [Field(name=name, dtype=String) for name in ("user_id", "place")]
    fields += [Field(name="visits", dtype=Int64), Field(name="x", dtype=Float64)]
    source = FileSource(
        name="visits", path=str(home / "visits.parquet"), file_format=ParquetFormat(), timestamp_field="at",
        created_timestamp_column="created",
        field_mapping={"user": "user_id", "n": "visits", "happened": "at"},
    )  # fmt: skip
    both = FeatureView(
        name="both", entities=[user, place], ttl=timedelta(hours=7), schema=fields, source=source
    )
    alone = FeatureView(name="alone", entities=[user], ttl=timedelta(0), schema=[fields[0], *fields[2:]],
                        source=FileSource(**{**vars_of(source), "name": "alone"}))  # fmt: skip
    request = RequestSource(name="request", schema=[Field(name="factor", dtype=Int64)])

    @on_demand_feature_view(
        sources=[both, request], schema=[Field(name="scaled", dtype=Float64)], mode="pandas"
    )
    def in_pandas(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"scaled": frame["x"] * frame["factor"]})

    @on_demand_feature_view(
        sources=[both, request], schema=[Field(name="doubled", dtype=Int64)], mode="python"
    )
    def in_python(columns: dict) -> dict:
        return {"doubled": [2 * value for value in columns["factor"]]}

    service = FeatureService(
        name="all",
        features=[
            both,
            alone.with_name("guest").with_join_key_map({"user_id": "guest"}),
            in_pandas,
            in_python,
        ],
    )
    store = open_store(home / offline["type"], [user, place, both, alone], **offline)
    store.apply([in_pandas, in_python, service])
    return store


def vars_of(source):
    return {
        "path": source.path, "file_format": source.file_format, "timestamp_field": source.timestamp_field,
        "created_timestamp_column": source.created_timestamp_column, "field_mapping": source.field_mapping,
    }  # fmt: skip


def customers(seed=1, count=300):
    rng = np.random.default_rng(seed)
    pick = {name: [f"{kind}{i}" for i in rng.integers(0, 8, count)] for name, kind in
            (("user_id", "user"), ("guest", "user"), ("place", "place"))}  # fmt: skip
    when = pd.to_datetime([START + timedelta(minutes=int(m)) for m in rng.integers(0, 3600, count)], utc=True)
    return pd.DataFrame(
        pick | {"event_timestamp": when.astype("datetime64[us, UTC]"), "factor": np.arange(count)}
    )


REFS = ["both:visits", "both:x", "in_pandas:scaled", "in_python:doubled"]


ALONE = ["alone:visits", "alone:x"]


@pytest.fixture(scope="module")
def peer(shop):
    """Feast's own DuckDB store, over the same files and declarations."""
    pytest.importorskip("ibis", reason="`ibis-framework[duckdb]`, of the extra `dev`, is not installed")
    return declare(Path(shop.config.offline_store.lake).parent, {"type": "duckdb"})


@pytest.mark.parametrize("known_only", [False, True])
@pytest.mark.parametrize(
    ("wanted", "full"), [(REFS, False), (REFS, True), (ALONE, False), (ALONE, True), ("all", True)]
)
def test_everything_feasts_own_duckdb_store_can_it_and_we_answer_alike(shop, peer, wanted, full, known_only):
    """Composite, renamed and mapped keys, mapped features and times, both on-demand modes, full names."""
    asked = customers()

    def answer(store):
        what = store.get_feature_service("all") if wanted == "all" else wanted
        return store.get_historical_features(
            asked.copy(), what, full_feature_names=full, filter_by_created_timestamp=known_only
        ).to_df()

    ours, theirs = answer(shop), answer(peer)

    assert list(ours.columns) == list(theirs.columns)
    # Theirs come back in any order; ours as they were asked for.
    assert ours.factor.tolist() == asked.factor.tolist()
    theirs = theirs.sort_values("factor", ignore_index=True)
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
    assert (ours.drop(columns=asked.columns).notna().sum() > 20).all()


def test_a_partly_renamed_composite_key_is_compared_whole(shop, peer):
    """Feast 0.67's DuckDB store compares the renamed part alone, and answers with other entities' rows."""
    asked = customers(seed=2)
    plain = asked.assign(user_id=asked.guest).drop(columns="guest")
    wanted = shop.get_historical_features(plain, ["both:visits", "both:x"]).to_df()
    right = []
    for store in (shop, peer):
        view = store.get_feature_view("both").with_name("theirs").with_join_key_map({"user_id": "guest"})
        partly = FeatureService(name="partly", features=[view])
        store.apply(partly)
        found = store.get_historical_features(asked.copy(), partly).to_df()
        right.append(found.sort_values("factor", ignore_index=True).x.equals(wanted.x))
    assert right == [True, False]


def test_repeated_rows_of_a_spine_are_answered_each(shop):
    """Feast's Dask store drops them (feast-dev/feast#6787, #5590); ours and its DuckDB store do not."""
    asked = pd.concat([customers(count=50)] * 2)
    found = shop.get_historical_features(asked, REFS).to_df()
    assert found.factor.tolist() == asked.factor.tolist()
    pd.testing.assert_frame_equal(found[:50], found[50:].reset_index(drop=True))


def test_views_of_different_keys_do_not_drop_each_others_rows(shop):
    """In the order user before user and place, Feast's Dask store keeps one row a user (#5590)."""
    asked = customers().assign(event_timestamp=START + timedelta(hours=40)).drop_duplicates("place")
    asked = pd.concat([asked.assign(user_id="user1"), asked.assign(user_id="user2")])
    found = shop.get_historical_features(asked, ["alone:x", "both:visits"]).to_df()
    assert found.factor.tolist() == asked.factor.tolist()
    assert found.groupby("user_id").x.nunique().tolist() == [1, 1]


def test_keys_that_are_equal_only_when_concatenated_are_told_apart(lab):
    """Row ids made by concatenation mixed such keys up in Feast's ibis stores before 0.67."""
    rows = rows_of(("a", "bc", 1, 1, 1), ("ab", "c", 1, 1, 2))
    assert joined(lab, rows, asked_for(("ab", "c", 2), ("a", "bc", 2)))["f"].to_pylist() == [2, 1]


def test_without_a_ttl_a_row_is_valid_for_ever_but_not_before_itself(lab):
    """Feast's file store once gave rows of the future when a view had no ttl (feast-dev/feast#2960)."""
    rows = rows_of(("x", "y", 2, 2, 5), ("x", "y", 900, 900, 6))
    asked = asked_for(("x", "y", 1), ("x", "y", 800))
    assert joined(lab, rows, asked)["f"].to_pylist() == [None, 5]


def test_features_may_be_called_whatever_they_like(tmp_path):
    """Feast's DuckDB store drops columns that end in ``_y``, and has an ``event_expire_timestamp``."""
    names = ("delay_y", "event_expire_timestamp", "spine", "number", "w0", "asked", 'say "f0"', "from")
    store = open_store(tmp_path, [A, B, view("odd", ttl=3, fields=names)])
    rows = rows_of(("x", "y", 1, 1, 0)).drop_columns(["f"])
    for value, name in enumerate(names):
        rows = rows.append_column(name, [[value]])
    Lake(str(tmp_path)).table("features/r").replace(rows)
    found = store.get_historical_features(asked_for(("x", "y", 2)), [f"odd:{name}" for name in names])
    assert found.to_arrow().select(names).to_pylist() == [{name: i for i, name in enumerate(names)}]


# Saved datasets, writing, logging


@pytest.mark.parametrize("form", ["delta", "parquet", "folder"])
def test_a_saved_dataset_is_read_back_as_it_was_joined(shop, form):
    path, kind = {"delta": ("saved/d", DeltaFormat()), "parquet": ("saved/p.parquet", ParquetFormat()),
                  "folder": ("saved/folder", ParquetFormat())}[form]  # fmt: skip
    storage = SavedDatasetFileStorage(path, kind)
    job = shop.get_historical_features(customers(), REFS)

    shop.create_saved_dataset(job, form, storage)

    read = shop.get_saved_dataset(form).to_df().sort_values("event_timestamp", ignore_index=True)
    wanted = job.to_df().sort_values("event_timestamp", ignore_index=True)
    key = ["event_timestamp", "user_id", "place", "visits", "x", "scaled", "doubled"]
    order = ["event_timestamp", "user_id", "place", "doubled"]
    pd.testing.assert_frame_equal(
        read[key].sort_values(order, ignore_index=True), wanted[key].sort_values(order, ignore_index=True)
    )
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        shop.create_saved_dataset(job, form, storage)
    untimed = customers(count=7)
    untimed.loc[3, "event_timestamp"] = pd.NaT
    with pytest.raises(NoInstant, match="1 of the 7 rows"):
        shop.create_saved_dataset(
            shop.get_historical_features(untimed, REFS), form, storage, allow_overwrite=True
        )
    fewer = shop.get_historical_features(customers(count=7), REFS)
    assert len(shop.create_saved_dataset(fewer, form, storage, allow_overwrite=True).to_df()) == 7


@pytest.mark.parametrize("form", ["delta", "file", "folder", "partitioned"])
def test_rows_written_through_feast_are_joined(tmp_path, form):
    first, place = rows_of(("x", "y", 1, 1, 5)), tmp_path / "features/r"
    place.parent.mkdir()
    if form == "delta":
        Lake(str(tmp_path)).table("features/r").replace(first)
    elif form == "file":
        pq.write_table(first, place)
    else:
        pq.write_to_dataset(first, place, partition_cols=["b"] if form == "partitioned" else None)
    store = open_store(
        tmp_path, [A, B, view("r", form=DeltaFormat() if form == "delta" else ParquetFormat())]
    )
    more = rows_of(("x", "y", 2, 2, 6)).to_pandas()[["f", "a", "b", "created", "happened"]]
    store.write_to_offline_store("r", more)
    asked = asked_for(("x", "y", 1), ("x", "y", 2))
    assert store.get_historical_features(asked, ["r:f"]).to_arrow()["f"].to_pylist() == [5, 6]
    with pytest.raises(ValueError, match="missing_expected_columns"):
        store.write_to_offline_store("r", more.drop(columns="f"))
    for lossy in (1.9, 2.0**70):
        with pytest.raises(ValueError, match=r"`f` of `features/r` is int64: .* Nothing was written"):
            store.write_to_offline_store("r", more.assign(f=[lossy]))
    finer = more.assign(f=[7.0], happened=more.happened + pd.Timedelta(nanoseconds=5))
    store.write_to_offline_store("r", finer)
    rows = sources.rows(duckdb_connection(), store.config, store.get_feature_view("r").batch_source)
    assert sorted(rows.project("f").fetchall()) == [(5,), (6,), (7,)]
    assert form != "file" or [path.name for path in place.parent.iterdir()] == ["r"]


@pytest.mark.parametrize("partitioned", [None, ["__log_date"]])
def test_logged_features_are_read_back(lab, partitioned):
    store, _ = lab
    logging = LoggingConfig(
        FileLoggingDestination(path=f"logs/{len(partitioned or ())}", partition_by=partitioned)
    )
    service = FeatureService(
        name="logged", features=[store.get_feature_view("two_0_True")], logging_config=logging
    )
    store.apply(service)
    logs = {"a": ["x"], "b": ["y"], "two_0_True__f": [5], "two_0_True__f__timestamp": [at(1)],
            "two_0_True__f__status": pa.array([2], pa.int32()), "__log_timestamp": [at(2)],
            "__log_date": [date(2013, 1, 1)], "__request_id": ["r"]}  # fmt: skip
    for _ in range(2):
        store.write_logged_features(pa.table(logs), service)
    provider = store._get_provider()
    read = provider.retrieve_feature_service_logs(service, at(0), at(3), store.config, store.registry)
    assert read.to_df()[["a", "two_0_True__f", "__request_id"]].values.tolist() == [["x", 5, "r"]] * 2


# Time travel


@pytest.fixture
def pinned(tmp_path):
    """A service over two tables, with rows of four weeks in weekly files."""
    first, second = view("first"), view("second", path="features/s", ttl=24, fields=("g",))
    service = FeatureService(name="both", features=[first, second])
    lake = Lake(str(tmp_path / "lake"))
    rng = np.random.default_rng(0)
    rows = [(f"a{rng.integers(9)}", "b", int(h), int(h) + int(rng.integers(3)), i)
            for i, h in enumerate(rng.integers(0, 4 * 168, 2_000))]  # fmt: skip
    for week in range(4):
        inside = rows_of(*(row for row in rows if row[2] // 168 == week))
        lake.table("features/r").append(inside, f"week {week}")
        lake.table("features/s").append(
            inside.rename_columns(["a", "b", "happened", "created", "g"]), f"week {week}"
        )
    asked = asked_for(*((f"a{rng.integers(9)}", "b", int(h)) for h in rng.integers(0, 4 * 168, 1_500)))
    lake.table("spine").replace(asked)
    return open_store(tmp_path / "lake", [A, B, first, second, service]), lake, asked


def as_bytes(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_a_pinned_join_gives_the_same_bytes_whatever_was_written_since(pinned):
    """What feast-dev/feast#2980 asks for: the same query, the same result, the next day."""
    store, lake, asked = pinned
    versions = features.pins(store, "both")
    assert versions == {"features/r": 4, "features/s": 4}
    before = features.historical(store, "both", asked)

    week = Window(at(0), at(168))
    lake.table("features/r").overwrite(rows_of(("a1", "b", 5, 5, -1)), week, "happened")

    assert as_bytes(features.historical(store, "both", asked, versions)) == as_bytes(before)
    after = features.historical(store, "both", asked)
    assert after["f"] != before["f"]
    assert after["g"] == before["g"]
    assert features.pins(store, "both") == {"features/r": 5, "features/s": 4}
    assert features.historical(store, "both", asked, {"features/r": 5}) == after


def test_versions_may_be_pinned_in_the_stores_configuration(pinned):
    store, lake, asked = pinned
    before = features.historical(store, "both", asked)
    lake.table("features/r").replace(rows_of())
    view, other = store.get_feature_view("first"), store.get_feature_view("second")
    declared = [A, B, view, other, store.get_feature_service("both")]
    fixed = open_store(Path(lake.root) / "other", declared, lake=lake.root, versions={"features/r": 4})
    assert features.historical(fixed, "both", asked) == before
    assert features.pins(fixed, "both") == {"features/r": 4, "features/s": 4}


def test_a_version_that_cannot_be_read_is_named(pinned):
    store, lake, asked = pinned
    with pytest.raises(VersionGone, match=r"`features/r` cannot be read at version 99; its newest is 4"):
        features.historical(store, "both", asked, {"features/r": 99})
    with pytest.raises(UnknownPins, match=r"reads features/r, features/s, but .* of features/x"):
        features.historical(store, "both", asked, {"features/x": 1})
    table = lake.table("features/r")
    table.replace(rows_of())
    table.open().vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(VersionGone, match="version 4"):
        features.historical(store, "both", asked, {"features/r": 4})
    with pytest.raises(NotBuilt):
        features.historical(open_store(Path(lake.root) / "no", store_objects(store)), "both", asked)
    Path(lake.table("features/s").open().file_uris()[0]).unlink()
    with pytest.raises(DamagedTable, match=r"`features/s` is damaged: .* is missing"):
        features.historical(store, "both", asked)


def store_objects(store):
    views = [store.get_feature_view(name) for name in ("first", "second")]
    return [A, B, *views, store.get_feature_service("both")]


# Pruning, and spines larger than memory


def test_files_that_cannot_hold_an_answer_are_not_opened(pinned):
    store, lake, _ = pinned
    table = lake.table("features/s")
    for path in table.open().file_uris():
        stamps = pq.read_table(path, columns=["happened"])["happened"].to_pylist()
        if not stamps or min(stamps) > at(2 * 168):
            Path(path).write_bytes(b"not Parquet")
    early = asked_for(("a1", "b", 100), ("a2", "b", 2 * 168 - 1))
    source = store.get_feature_view("second").batch_source
    rows = sources.rows(duckdb_connection(), store.config, source, at(0), at(2 * 168 - 1))
    assert rows.aggregate("max(happened) < TIMESTAMPTZ '2013-01-29', count(*) > 900").fetchone() == (
        True,
        True,
    )
    found = store.get_historical_features(early, ["second:g"]).to_arrow()
    assert found["g"].null_count == 0


def test_a_row_of_the_last_millisecond_of_a_file_is_found(lab):
    """Delta cuts the greatest time of a file to the millisecond."""
    store, table = lab
    end = at(5) + timedelta(microseconds=999_999)
    rows = rows_of(("x", "y", 5, 5, 7))
    table.replace(rows.set_column(2, "happened", pa.array([end], pa.timestamp("us", "UTC"))))
    moment = pa.array([end + timedelta(hours=1)], pa.timestamp("us", "UTC"))
    asked = pa.table({"a": ["x"], "event_timestamp": moment})
    found = store.get_historical_features(asked, ["one_1_True:f"]).to_arrow()
    assert found["f"].to_pylist() == [7]


def test_a_column_that_old_files_lack_is_null_there(lab):
    store, table = lab
    table.replace(rows_of(("x", "y", 1, 1, 5)).drop_columns(["f"]))
    from deltalake import write_deltalake

    write_deltalake(table.uri, rows_of(("x", "y", 50, 50, 6)), mode="append", schema_mode="merge")
    for asked, wanted in ((2, None), (51, 6)):
        found = store.get_historical_features(asked_for(("x", "y", asked)), ["two_3_True:f"]).to_arrow()
        assert found["f"].to_pylist() == [wanted]


@pytest.mark.parametrize("column", ["a", "f", "happened"])
@pytest.mark.parametrize("folder", ["lake", "my größe#lake"])
def test_a_table_may_be_partitioned_and_lie_in_a_folder_of_any_name(tmp_path, folder, column):
    from deltalake import write_deltalake

    lake, declared = Lake(str(tmp_path / folder)), view("r", ttl=3)
    rows = rows_of(("x y", "ü/%20", 1, 1, 5), ("1", "01", 1, 1, 6), ("x y", "ü/%20", 50, 50, 7))
    write_deltalake(lake.table("features/r").uri, rows, partition_by=[column])
    store = open_store(tmp_path / folder, [A, B, declared])
    asked = asked_for(("x y", "ü/%20", 2), ("1", "01", 2), ("01", "1", 2), ("x y", "ü/%20", 50))
    assert store.get_historical_features(asked, ["r:f"]).to_arrow()["f"].to_pylist() == [5, 6, None, 7]
    pinned = pickle.loads(pickle.dumps(sources.snapshot(store.config, declared.batch_source)))
    write_deltalake(lake.table("features/r").uri, rows_of(("z", "z", 1, 1, 8)), mode="append")
    found = pinned.relation(duckdb_connection()).project("f").fetchall()
    assert sorted(found) == [(5,), (6,), (7,)]


def test_a_source_is_read_by_the_names_its_view_gives_at_the_version_pinned(tmp_path):
    elsewhere = Lake(str(tmp_path / "else")).table("r")
    names = ["k", "b", "when", "created", "n"]
    first, _ = (elsewhere.replace(rows_of(("x", "y", 1, 1, n)).rename_columns(names)) for n in (1, 2))
    declared = view("r", path=elsewhere.uri, field_mapping={"k": "a", "when": "happened", "n": "f"})
    store = open_store(tmp_path / "home", [A, B, declared], versions={elsewhere.uri: first})
    source, con = declared.batch_source, duckdb_connection()
    for found in (
        sources.snapshot(store.config, source).relation(con),
        sources.view_rows(con, store.config, source),
    ):
        assert found.to_arrow_table() == rows_of(("x", "y", 1, 1, 1))


def test_a_join_larger_than_its_memory_goes_to_disk(tmp_path):
    store = open_store(tmp_path, [A, B, view("r")], memory_limit="100MB")
    count = 400_000
    hours = np.random.default_rng(0).integers(0, 5_000, count)
    stamps = pa.array(np.datetime64(START.replace(tzinfo=None), "us") + hours.astype("timedelta64[h]"))
    keys = pa.array(np.char.add("key", (np.arange(count) % 1_000).astype(str)))
    table = Lake(str(tmp_path)).table("features/r")
    table.replace(
        pa.table({"a": keys, "b": keys, "happened": stamps, "created": stamps, "f": np.arange(count)})
    )
    asked = pa.table({"a": keys, "b": keys, "event_timestamp": stamps})
    found = store.get_historical_features(asked, ["r:f"]).to_arrow()
    greatest = pd.Series(np.arange(count)).groupby([np.arange(count) % 1_000, hours]).transform("max")
    assert found["f"].to_pylist() == greatest.tolist()


def ordered(table):
    return table.sort_by([(name, "ascending") for name in table.column_names])


def test_what_a_join_follows_from_is_told_by_a_text(tmp_path):
    lake = Lake(str(tmp_path))
    file = tmp_path / "s.parquet"
    pq.write_table(rows_of(("x", "z", 2, 2, 6)).rename_columns(["a", "b", "happened", "created", "g"]), file)
    lake.table("features/r").replace(rows_of(("x", "y", 1, 1, 5), ("x", "z", 2, 2, 6)))
    store = open_store(tmp_path, [A, B])

    def told(keys, kind=Int64):
        source = view("first", keys).batch_source
        first = FeatureView(name="first", entities=keys, schema=[Field(name="f", dtype=kind)], source=source)
        second = view("second", (A,), path=str(file), form=ParquetFormat(), fields=("g",))
        store.apply([first, second, FeatureService(name="both", features=[first, second])])
        return features.identity(store, "both")

    seen = [told([A])]
    assert told([A]) == seen[0]  # declared again, but the same
    seen.append(told([A, B]))
    pq.write_table(pq.read_table(file).set_column(4, "g", [[70]]), file)
    seen.append(told([A, B]))
    seen.append(told([A, B], Float64))
    assert len({*seen}) == len(seen)
    lake.table("features/r").replace(rows_of(("x", "y", 1, 1, 6)))
    assert told([A, B], Float64) == seen[-1]  # a Delta table's rows are known by its version
