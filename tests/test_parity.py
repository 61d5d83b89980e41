"""What the online store serves beside what the join gives; and how old it is."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from headrace.feature_store import freshness
from headrace.feature_store import store as features
from headrace.feature_store.errors import (
    ChangesWithinWindow,
    MissingKeys,
    NothingToCompare,
    ParityBroken,
    UnknownService,
)
from headrace.feature_store.parity import Cause, compare, refuse_changing
from headrace.feature_store.plan import Plan, online
from headrace.lake import Lake, Window
from headrace.pipeline import load
from tests.conftest import utc

OFFLINE = "headrace.feature_store.feast.offline.DeltaOfflineStore"
FIRST, THEN, FIVE, SIX = (utc(2013, 1, 1, hour) for hour in (0, 4, 5, 6))
TTL = timedelta(hours=5)


@dataclass
class Toy:
    """A store of one view, ``toy``: three keys that change at midnight and at four o'clock."""

    feast: Any
    lake: Lake
    database: Path

    def bring_online(self, end: datetime = SIX) -> None:
        features.materialize(self.feast, "toys", end, FIRST)

    def asked(self, at: datetime = FIVE) -> pa.Table:
        rows = [{"k": k, "event_timestamp": at} for k in ("a", "b", "c", "d", None)]
        return pa.Table.from_pylist(rows)

    def wrong(self, at: datetime = FIVE) -> dict[tuple[str, Cause], int]:
        found = compare(self.feast, "toys", self.asked(at))
        assert found.values == 2 * found.rows == 10
        return {(m.feature, m.cause): m.rows for m in found.mismatches}

    def put(self, feature: str, old: Any, **new: Any) -> None:
        """Write another value where the store has ``old`` of ``feature``."""
        kind = "double_val" if isinstance(old, float) else "int64_val"
        self.sql(
            "UPDATE toy_toy SET value = ? WHERE feature_name = ? AND value = ?",
            (_value(**new), feature, _value(**{kind: old})),
        )

    def sql(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        with sqlite3.connect(self.database) as con:
            assert con.execute(statement, values).rowcount > 0
        con.close()


def _value(**kind: Any) -> bytes:
    from feast.protos.feast.types.Value_pb2 import Value

    return Value(**kind).SerializeToString()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        RepoConfig,
        ValueType,
    )
    from feast.data_format import DeltaFormat
    from feast.types import Float64, Int64, String

    rows = [
        {"k": k, "f": f + step, "g": g + step, "event_timestamp": at, "available_at": at}
        for step, at in enumerate((FIRST, THEN))
        for k, f, g in (("a", 0.1, 10), ("b", -0.0, 20), ("c", math.nan, 30))
    ]
    lake = Lake(str(tmp_path / "lake"))
    lake.table("features/toy").append(pa.Table.from_pylist(rows), "all")
    feast = FeatureStore(
        config=RepoConfig(
            project="toy",
            registry=str(tmp_path / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            offline_store={
                "type": OFFLINE,
                "lake": lake.root,
            },
            batch_engine={"type": "headrace.feature_store.feast.engine.DaskComputeEngine"},
            entity_key_serialization_version=3,
        )
    )
    k = Entity(name="k", value_type=ValueType.STRING)
    source = FileSource(
        name="toy", path="features/toy", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    )  # fmt: skip
    schema = [Field(name="k", dtype=String), Field(name="f", dtype=Float64), Field(name="g", dtype=Int64)]
    view = FeatureView(name="toy", entities=[k], schema=schema, source=source, ttl=TTL)
    feast.apply([k, view, FeatureService(name="toys", features=[view])])
    yield Toy(feast, lake, tmp_path / "online.db")
    feast.teardown()


def test_what_was_brought_online_is_the_same_nulls_and_nans_and_unknown_keys_included(toy: Toy) -> None:
    toy.bring_online()
    assert toy.wrong() == {}


def test_a_key_that_is_gone_online_is_missing(toy: Toy) -> None:
    toy.bring_online()
    toy.sql("DELETE FROM toy_toy WHERE feature_name = 'g' AND value = ?", (_value(int64_val=11),))
    assert toy.wrong() == {("g", Cause.MISSING): 1}
    toy.sql("DELETE FROM toy_toy")
    # c's f is NaN, which is null online: there is nothing to miss
    assert toy.wrong() == {("f", Cause.MISSING): 2, ("g", Cause.MISSING): 3}


def test_a_store_that_was_not_filled_again_serves_older_rows(toy: Toy) -> None:
    toy.bring_online(utc(2013, 1, 1, 3))
    assert toy.wrong(utc(2013, 1, 1, 3)) == {}
    assert toy.wrong() == {("f", Cause.STALE): 2, ("g", Cause.STALE): 3}


def test_a_row_that_is_older_than_its_ttl_is_neither_joined_nor_served(toy: Toy) -> None:
    toy.bring_online()
    assert toy.wrong(THEN + TTL) == {}
    assert toy.wrong(THEN + TTL + timedelta(seconds=1)) == {}


def test_a_store_that_has_gone_on_serves_what_was_not_known_then(toy: Toy) -> None:
    toy.bring_online()
    assert toy.wrong(utc(2013, 1, 1, 3)) == {("f", Cause.NEWER): 2, ("g", Cause.NEWER): 3}
    before_all = FIRST - timedelta(seconds=1)
    assert toy.wrong(before_all) == {("f", Cause.NEWER): 2, ("g", Cause.NEWER): 3}


def test_the_same_number_as_another_type_is_found(toy: Toy) -> None:
    toy.bring_online()
    toy.put("f", 1.0, int64_val=1)
    toy.put("g", 11, string_val="11")
    assert toy.wrong() == {("f", Cause.TYPE): 1, ("g", Cause.TYPE): 1}


def test_a_float_is_the_same_only_to_its_last_bit(toy: Toy) -> None:
    toy.bring_online()
    toy.put("f", 1.1, double_val=math.nextafter(1.1, 2))
    toy.put("g", 21, int64_val=22)
    found = compare(toy.feast, "toys", toy.asked())
    assert {(m.feature, m.cause): m.example for m in found.mismatches} == {
        (
            "f",
            Cause.VALUE,
        ): "for k a at 2013-01-01T05:00Z, 1.1000000000000003 (double) instead of 1.1 (double)",
        ("g", Cause.VALUE): "for k b at 2013-01-01T05:00Z, 22 (int64) instead of 21 (int64)",
    }


def test_filling_the_store_again_mends_whatever_differs(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``headrace features refill`` does, which the error names: also what is newer than all there is."""
    from headrace.cli import app

    spec = replace(load("flights"), feature_service="toys", start=FIRST)
    project = SimpleNamespace(store=toy.feast, lake=toy.lake, ledger=None, pipeline=lambda _: spec)
    monkeypatch.setattr("headrace.cli.features._project", lambda: project)
    monkeypatch.setattr("headrace.ingest.complete", lambda spec, at, *_: {s.name: at for s in spec.sources})
    toy.bring_online()
    later = int(FIVE.replace(tzinfo=None).timestamp())  # Feast takes UTC's clock for the machine's
    toy.sql(
        "UPDATE toy_toy SET value = ?, event_ts = ? WHERE feature_name = 'g'", (_value(int64_val=9), later)
    )
    assert toy.wrong() == {("g", Cause.NEWER): 3}
    found = compare(toy.feast, "toys", toy.asked())
    told = str(ParityBroken(spec, Window(FIRST, SIX), found))
    (command,) = re.findall("`headrace (features refill [^`]*)`", told)
    done = CliRunner().invoke(app, command.split())
    assert (done.exit_code, toy.wrong()) == (0, {}), done.output
    assert "Materializing" not in done.output
    early = CliRunner().invoke(app, ["features", "parity", "flights", "--as-of", "2001-01-01"])
    assert isinstance(early.exception, NothingToCompare)


def test_what_a_spine_or_a_declaration_lacks_is_named(toy: Toy) -> None:
    toy.bring_online()
    for read in (online, features.historical):
        with pytest.raises(MissingKeys, match="`toys` must be given `k`"):
            read(toy.feast, "toys", toy.asked().drop_columns(["k"]))
    with pytest.raises(UnknownService, match=r"No feature service `toyz`.* Did you mean `toys`"):
        features.materialize(toy.feast, "toyz", SIX)


def test_what_was_rebuilt_is_brought_again_though_it_is_older_than_its_ttl(toy: Toy) -> None:
    """A reader who names the hour in the key asks for hours long past."""
    toy.bring_online()
    table = toy.lake.table("features/toy")
    rows = toy.lake.connect({"t": table.name}).sql("SELECT * REPLACE (g * 10 AS g) FROM t").to_arrow_table()
    table.replace(rows)
    assert toy.wrong() == {("g", Cause.VALUE): 3}
    features.forget(toy.feast, "toys", FIRST)
    features.materialize(toy.feast, "toys", FIRST)  # the store does not go back in time
    assert toy.wrong() == {}
    features.forget(toy.feast, "toys", FIRST)
    features.materialize(toy.feast, "toys", utc(2013, 1, 9))
    assert toy.wrong() == {}


def test_what_is_computed_on_demand_is_never_of_inputs_older_than_their_ttl(toy: Toy) -> None:
    """Feast's own serving computes it of whatever is there; the join of nothing."""
    from feast import FeatureService, Field, RequestSource
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64, Int64

    request = RequestSource(name="asked", schema=[Field(name="times", dtype=Int64)])
    view = toy.feast.get_feature_view("toy")

    @on_demand_feature_view(
        sources=[view, request], schema=[Field(name="more", dtype=Float64)], mode="pandas"
    )
    def computed_more(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"more": (frame["g"].astype(float).fillna(-1) * frame["times"])})

    services = {"computed": [computed_more], "both": [view, computed_more]}
    made = [FeatureService(name=name, features=held) for name, held in services.items()]
    toy.feast.apply([request, computed_more, *made])
    toy.bring_online()
    for name in services:
        for at, alive in ((FIVE, True), (THEN + TTL, True), (THEN + TTL + timedelta(seconds=1), False)):
            asked = toy.asked(at).append_column("times", [[2, 3, 4, 5, 6]])
            served = online(toy.feast, name, asked)
            assert served["more"].to_pylist() == ([22, 63, 124, -5, -6] if alive else [-2, -3, -4, -5, -6])
            assert served.column_names == features.historical(toy.feast, name, asked).column_names
            assert compare(toy.feast, name, asked).mismatches == ()
            plan = Plan(toy.feast, name, {field.name: field.type for field in asked.schema})
            rows = asked.select(plan.inputs).to_pylist()
            missing = plan.read(rows, [int(at.timestamp()) * 1_000_000] * len(rows)).missing
            names = ("more",) if name == "computed" else ("f", "g", "more")
            assert missing == [() if alive and key in ("a", "b", "c") else names for key in "abcd-"]
    toy.put("g", 11, int64_val=12)
    found = compare(toy.feast, "computed", toy.asked().append_column("times", [[2, 3, 4, 5, 6]]))
    assert [(m.feature, m.cause, m.rows) for m in found.mismatches] == [("more", Cause.VALUE, 1)]


PLAIN: dict[str, Any] = {"keys": ("k",), "renamed": {}, "source": {}, "dtype": "Int64", "values": (1, 2)}
KINDS: dict[str, dict[str, Any]] = {
    "without entities": {"keys": ()},
    "of a renamed key": {"renamed": {"k": "guest"}},
    "of mapped columns": {"source": {"field_mapping": {"when": "happened", "what": "f", "who": "k"}}},
    "of a table elsewhere": {"source": {"path": "elsewhere"}},
    "at a pinned version": {"pinned": True},
    "of images": {"dtype": "ImageBytes", "values": (b"old", b"new")},
    "of times": {"dtype": "UnixTimestamp", "values": (THEN, FIVE)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_of_any_kind_is_served_measured_and_blamed(tmp_path: Path, kind: str) -> None:
    """Beside a view that is not online. A value that changes under its old time is blamed as such."""
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        RepoConfig,
        ValueType,
        types,
    )
    from feast.data_format import DeltaFormat

    given = PLAIN | KINDS[kind]
    at = THEN + timedelta(milliseconds=700)
    lake = Lake(str(tmp_path))
    columns = {"happened": "when", "f": "what", "k": "who"} if "of mapped" in kind else {}

    def put(value: Any) -> None:
        rows = [{"k": k, "f": f, "happened": at} for k, f in (("a", value), ("b", None))]
        table = pa.Table.from_pylist(rows[: 2 if given["keys"] else 1])
        table = table.rename_columns([columns.get(name, name) for name in table.column_names])
        lake.table("elsewhere").replace(table)

    path = {"path": str(tmp_path / "elsewhere")} if given["source"].get("path") else {"path": "elsewhere"}
    source = FileSource(
        name="s", file_format=DeltaFormat(), timestamp_field="happened", **given["source"] | path
    )  # fmt: skip
    entity = Entity(name="k", join_keys=["k"], value_type=ValueType.STRING)
    fields = [Field(name="f", dtype=getattr(types, given["dtype"]))]
    fields += [Field(name="k", dtype=types.String)] if given["keys"] else []
    view = FeatureView(name="v", entities=[entity][: len(given["keys"])], schema=fields, source=source)
    hidden = FeatureView(
        name="hidden", entities=[entity], schema=[Field(name="k", dtype=types.String)], source=source,
        online=False,
    )  # fmt: skip
    aliased = view.with_name("other").with_join_key_map(given["renamed"]) if given["renamed"] else view
    put(given["values"][0])
    offline: dict[str, Any] = {
        "type": OFFLINE,
        "lake": lake.root,
    }
    if pinned := given.get("pinned"):
        offline["versions"] = {"elsewhere": lake.table("elsewhere").open().version()}
        put(given["values"][1])
    store = FeatureStore(
        config=RepoConfig(
            project="any",
            registry=str(tmp_path / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            offline_store=offline,
            batch_engine={"type": "headrace.feature_store.feast.engine.DaskComputeEngine"},
            entity_key_serialization_version=3,
        )
    )
    unseen = [hidden, FeatureService(name="unseen", features=[hidden])]
    store.apply([entity, view, FeatureService(name="s", features=[aliased]), *unseen])
    for service in ("s", "unseen"):
        features.materialize(store, service, SIX)
    rows = [{given["renamed"].get("k", "k"): k, "event_timestamp": FIVE} for k in ("a", "b", "c", None)]
    asked = pa.Table.from_pylist(rows)

    assert compare(store, "s", asked).mismatches == ()
    assert online(store, "s", asked) == features.historical(store, "s", asked)
    assert online(store, "s", asked)["f"].to_pylist()[0] == given["values"][0]
    (fresh,), (hid,) = (freshness.measure(store, service, SIX) for service in ("s", "unseen"))
    assert (fresh.newest, fresh.online) == (at, THEN)  # SQLite keeps whole seconds
    assert (hid.newest, hid.online) == (at, None)

    put(given["values"][1])
    wrong = () if pinned else (Cause.VALUE,)
    assert tuple(mismatch.cause for mismatch in compare(store, "s", asked).mismatches) == wrong


def test_a_view_is_as_old_as_the_newest_row_that_is_served(toy: Toy) -> None:
    def at(instant: datetime) -> freshness.Freshness:
        (found,) = freshness.measure(toy.feast, "toys", instant)
        return found

    never = at(utc(2013, 1, 1, 5))
    assert (never.newest, never.online, never.age, never.overdue) == (THEN, None, None, True)
    toy.bring_online(utc(2013, 1, 1, 3))
    behind = at(utc(2013, 1, 1, 5))
    assert (behind.newest, behind.online, behind.age) == (THEN, FIRST, timedelta(hours=5))
    toy.bring_online()
    assert at(utc(2013, 1, 1, 5)).age == timedelta(hours=1)
    assert at(utc(2013, 1, 1, 3)).online == FIRST, "what is later than the instant does not count"
    features.forget(toy.feast, "toys", FIRST)
    assert at(FIVE).online == THEN, "what is to be brought again is served meanwhile"
    assert not at(THEN + TTL).overdue
    assert at(THEN + TTL + timedelta(seconds=1)).overdue
    toy.sql("DELETE FROM toy_toy")
    assert (at(FIVE).online, at(FIVE).overdue) == (None, True)


def test_what_holds_for_ever_is_never_overdue(toy: Toy) -> None:
    for_ever = freshness.Freshness("toy", timedelta(0), None, None, utc(2013))
    assert not for_ever.overdue
    assert for_ever.line()["ttl"] == "for ever"


def test_a_view_that_changes_while_a_window_is_open_is_refused_before_it_is_brought_online(toy: Toy) -> None:
    def refuse(at: datetime, window: Window) -> None:
        """As if of each key, known or not, there were a prediction ``at`` an instant."""
        keys = "(VALUES ('a'), ('b'), ('c'), ('d'), (NULL)) AS keys(k)"
        spine = f"SELECT k, TIMESTAMPTZ '{at.isoformat()}' AS event_timestamp FROM {keys}"
        spec = replace(load("flights"), sources=(), feature_service="toys", keys=("k",), spine=spine)
        refuse_changing(toy.feast, spec, toy.lake, window)

    window, three = Window(FIRST, SIX), utc(2013, 1, 1, 3)
    refuse(FIVE, window)  # both of its rows were known by then
    refuse(three, Window(FIRST, THEN))
    told = (
        r"`toy` of `flights` changes while a window is open.*of 5 predictions in "
        r"2013-01-01T00:00Z/2013-01-01T06:00Z, 3 are made before.*"
        r"\(k a is predicted at 2013-01-01T03:00:00Z, and has another row at 2013-01-01T04:"
    )
    with pytest.raises(ChangesWithinWindow, match=told):
        refuse(three, window)
