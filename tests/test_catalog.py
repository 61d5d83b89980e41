"""The catalog: every feature is described, and leads back to its raw tables and on to its models."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from headrace.feature_store import catalog
from headrace.feature_store import store as features
from headrace.feature_store.errors import UnknownFeature
from headrace.lake import Lake
from headrace.pipeline import declared, load
from headrace.settings import Settings
from headrace.sql import reads
from tests.conftest import ROOT, utc

PIPELINES = [load(name) for name in declared()]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home in which features are registered, and nothing else has happened."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    store = features.open_store(ROOT / "features", settings)
    for spec in PIPELINES:
        features.apply(store, f"features.{spec.name}")
    return settings


@pytest.fixture(scope="module")
def views(registered: Settings) -> list[catalog.View]:
    store = features.open_store(ROOT / "features", registered)
    return catalog.views(store, PIPELINES, utc(2013, 7))


def test_everything_declared_says_what_it_is_and_whose(views: list[catalog.View]) -> None:
    from feast import Entity, FeatureService, FeatureView, FileSource, OnDemandFeatureView, RequestSource

    kinds = (Entity, FeatureService, FeatureView, FileSource, OnDemandFeatureView, RequestSource)
    for spec in PIPELINES:
        module = import_module(f"features.{spec.name}")
        things = [thing for thing in vars(module).values() if isinstance(thing, kinds)]
        things += [thing.batch_source for thing in things if isinstance(thing, FeatureView)]
        assert len(things) > 10
        for thing in things:
            assert thing.description, thing.name
            assert thing.owner, thing.name
        (service,) = (thing for thing in things if isinstance(thing, FeatureService))
        assert (service.name, service.tags["pipeline"]) == (spec.feature_service, spec.name)
    for view in views:
        assert len(view.description) > 20
        assert [feature.name for feature in view.features if not feature.description] == []


def test_a_view_leads_from_raw_tables_to_its_service(views: list[catalog.View]) -> None:
    known = {view.name: view for view in views}
    delays = known["origin_delays"]
    assert delays.reads == ("raw/flights", "raw/schedules")
    assert (delays.sql, delays.table) == (ROOT / "features/sql/origin_delays.sql", "features/origin_delays")
    assert delays.services == ("arrival_delay", "flight_delay", "next_leg", "outcome")
    assert delays.pipelines == ("arrival_delay", "flights", "next_leg", "outcome")
    assert delays.tags["raw tables"] == "raw/flights, raw/schedules"
    clock = known["schedule"]
    assert (clock.reads, clock.sql, clock.freshness, clock.keys) == ((), None, None, ("sched_dep",))


def test_every_feature_table_is_a_view_and_reads_only_raw_tables_of_its_pipeline(
    views: list[catalog.View],
) -> None:
    for spec in PIPELINES:
        for table in spec.feature_tables:
            assert table.table in {view.table for view in views}
            assert reads(table.sql.read_text()) <= set(spec.raw)


@pytest.mark.parametrize(
    ("name", "near"), [("origin_delay", "origin_delays"), ("plane_seat", "plane_seats"), ("qqqq", "")]
)
def test_an_unknown_name_is_told_its_neighbour(views: list[catalog.View], name: str, near: str) -> None:
    with pytest.raises(UnknownFeature) as raised:
        catalog.find(name, views)
    assert ("Did you mean" in str(raised.value)) == bool(near)
    assert near in str(raised.value)


def test_a_feature_is_found_by_its_name_and_by_feasts(views: list[catalog.View]) -> None:
    for name in ("wind_gust", "origin_weather:wind_gust"):
        view, (feature,) = catalog.find(name, views)
        assert (view.name, feature.description) == ("origin_weather", "Wind gust speed, mph")
    assert len(catalog.find("origin_weather", views)[1]) == 9


def test_a_person_sees_the_views_and_what_is_overdue(
    registered: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.cli import app

    monkeypatch.setenv("HEADRACE_HOME", str(registered.home))
    monkeypatch.setattr("headrace.cli.features.console", Console(width=160, force_terminal=True))
    told = CliRunner().invoke(app, ["features", "list", "--as-of", "2013-07-01"])
    assert told.exit_code == 0, told.output
    text = re.sub(r"\x1b\[[0-9;]*m", "", told.output)
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert "known_hour, origin" in lines["origin_weather"]
    assert "overdue" in lines["origin_weather"]
    assert "for ever" in lines["planes"]
    assert "overdue" not in lines["planes"]
    monkeypatch.setattr("headrace.cli.features.console", Console(width=80, force_terminal=True))
    narrow = CliRunner().invoke(app, ["features", "list", "--as-of", "2013-07-01"]).output
    assert "│ origin_weather " in re.sub(r"\x1b\[[0-9;]*m", "", narrow)
    assert "…" not in narrow

    monkeypatch.setattr("headrace.cli.features.console", Console())
    piped = CliRunner().invoke(app, ["features", "list", "--as-of", "2013-07-01"]).output
    names, *lines = (line.split("\t") for line in piped.splitlines())
    views = {line[0]: dict(zip(names, line, strict=True)) for line in lines}
    assert views["origin_weather"]["keys"] == "known_hour; origin"
    as_json = CliRunner().invoke(app, ["features", "list", "--as-of", "2013-07-01", "--json"]).output
    weather = {view["view"]: view for view in json.loads(as_json)}["origin_weather"]
    assert weather["overdue"] is True
    assert weather["ttl_s"] == 3600
    assert "wind_gust" in weather["features"]
    wrong = CliRunner().invoke(app, ["features", "list", "--as-of", "soon"])
    assert (wrong.exit_code, "`soon` is no instant" in wrong.output) == (2, True)


def test_before_anything_is_registered_the_list_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.cli import app

    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    told = CliRunner().invoke(app, ["features", "list"])
    assert "materialize does it" in told.output


def test_who_predicted_is_told_once_predictions_have_landed(tmp_path: Path) -> None:
    lake, view = Lake(str(tmp_path)), SimpleNamespace(fed_by={"flights": "raw/flights_predictions"})
    assert catalog.predictors(view, lake) == {}  # type: ignore[arg-type]
    lake.table("raw/flights_predictions").append(pa.table({"model_version": [2, 0, 2]}), "some")
    assert catalog.predictors(view, lake) == {"flights": [0, 2]}  # type: ignore[arg-type]
