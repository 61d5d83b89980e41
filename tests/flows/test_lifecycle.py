"""The whole river on a real Prefect server: what a person would find there afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace import gate, registry, services, spine, tracking
from headrace.lake import Lake, Window
from headrace.ledger import DONE, Ledger
from headrace.pipeline import load
from headrace.project import Project
from headrace.release import promotion
from headrace.release.trace import trace
from headrace.runs import NoSuchRun, NothingToResume, RunByHand, resume
from headrace.settings import Settings
from headrace.tracking import MLflow
from tests.conftest import ROOT, utc
from tests.flows.conftest import River, eventually, flows

DRIFT = "drift/2013-04-29T00:00:00Z"


def test_every_week_is_landed_scored_and_watched(river: River) -> None:
    weeks = river.summary["weeks"]
    assert [week["as_of"][:10] for week in weeks] == ["2013-04-08", "2013-04-15", "2013-04-22", "2013-04-29"]
    assert [week["scored"] for week in weeks] == [6_594, 6_614, 6_622, 6_561]
    assert all(0.6 < week["auc"] < 0.8 for week in weeks)
    assert river.summary["batches"] == {"schedules": 17, "flights": 17, "weather": 17, "planes": 1}
    predictions = Lake(river.settings.lake).table("predictions/flights")
    assert predictions.count() == sum(week["scored"] for week in weeks)


def test_a_week_is_judged_again_when_its_last_flights_have_landed(river: River) -> None:
    ledger = Ledger(river.settings.ledger)
    closed = {one.key: one.detail for one in ledger.entries("flights", "judgement")}
    again = [one.detail for one in ledger.entries("flights", "matured")]
    assert [one["window"][:10] for one in again] == ["2013-04-01", "2013-04-08", "2013-04-15"]
    for one in again:
        before = closed[one["window"]]
        assert before["outcomes"] < one["outcomes"] <= before["predictions"]
        assert one["skill"] == pytest.approx(before["skill"], abs=0.02)
    shown = [one for one in river.prefect("artifacts") if one["key"] == "matured-flights"]
    assert len(shown) == len(again)


def test_drift_starts_the_retraining_through_the_deployments_trigger(river: River) -> None:
    """The run that retrained was created by Prefect's automation, not by the lifecycle."""
    drifted = [week for week in river.summary["weeks"] if week["drifted"]]
    assert [week["cause"] for week in drifted] == [DRIFT]
    (run,) = river.prefect("flow_runs", flow_runs={"name": {"any_": [f"train flights because of {DRIFT}"]}})
    assert run["created_by"]["type"] == "AUTOMATION"
    assert run["state_type"] == "COMPLETED"
    assert run["parameters"]["as_of"].startswith("2013-04-29T00:00:00")
    ours = {"name": {"any_": ["flights"]}}
    (train,) = river.prefect("deployments", deployments=ours, flows={"name": {"any_": ["train"]}})
    assert run["deployment_id"] == train["id"]
    assert run["work_pool_name"] == "headrace"


def test_the_better_challenger_serves_afterwards(river: River) -> None:
    retraining = river.summary["weeks"][-1]["retraining"]
    assert retraining["decision"] == "promoted"
    assert gate.lower_bound(gate.Gain(**retraining["gain"]), 0.05) > 0
    assert retraining["gain"]["groups"] == 7
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    champion = registry.champion(mlflow, "flights")
    assert champion is not None
    assert (str(champion.version), champion.verdict) == (retraining["challenger"], "promoted")
    assert champion.as_of == utc(2013, 4, 29)


def test_an_event_that_arrives_again_trains_nothing(river: River) -> None:
    from prefect.events import emit_event
    from prefect.settings import PREFECT_API_URL, temporary_settings

    name = f"train flights because of {DRIFT}"
    before = len(river.prefect("flow_runs", flow_runs={"name": {"any_": [name]}}))
    with temporary_settings({PREFECT_API_URL: river.settings.prefect_api_url}):
        emit_event(
            "headrace.drift",
            resource={"prefect.resource.id": "headrace.pipeline.flights"},
            payload={"as_of": "2013-04-29T00:00:00+00:00", "cause": DRIFT, "reason": "again"},
        )

        def came_and_went() -> bool:
            runs = river.prefect("flow_runs", flow_runs={"name": {"any_": [name]}})
            return len(runs) == before + 1 and all(run["state_type"] == "COMPLETED" for run in runs)

        eventually(came_and_went)
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    assert [release.version for release in registry.versions(mlflow, "flights")] == [1, 2]
    entries = Ledger(river.settings.ledger).entries("flights", "training", DRIFT)
    assert [entry.state for entry in entries] == ["claimed", DONE]


def test_every_kind_of_run_leaves_artifacts_that_link_onwards(river: River) -> None:
    made = river.prefect("artifacts", sort="UPDATED_DESC")
    artifacts = {artifact["key"]: artifact for artifact in made}
    assert {
        *("landed-flights", "features-flights", "candidates-flights", "verdict-flights", "scored-flights"),
        *("monitor-flights", "drift-flights", "lifecycle-flights", "freshness-flights", "status-flights"),
    } <= set(artifacts)
    assert f"{river.settings.mlflow_page}/#/models/flights/versions/" in artifacts["verdict-flights"]["data"]
    drift, *quiet = (artifact["data"] for artifact in made if artifact["key"] == "monitor-flights")
    assert "[Evidently report](http" in drift
    assert all("[Its run in MLflow](http" in page for page in quiet)
    assert river.summary["weeks"][0]["feature_age_h.origin_delays"] == 1.0  # hourly, and logged as a metric
    candidates = json.loads(artifacts["candidates-flights"]["data"])
    assert {row["candidate"] for row in candidates} == {"xgboost", "torch", "baseline"}


def test_one_look_says_what_serves_how_well_it_does_and_what_was_decided(river: River) -> None:
    told = json.loads(river.command("headrace.cli", "status", "flights", "--json").stdout)[0]
    releases, windows = river.summary["releases"], told["windows"]
    assert told["champion"]["version"] == releases[-1]["version"]
    assert [one["version"] for one in windows] == [releases[0]["version"]] * 4
    assert [one["predictions"] for one in windows] == [6_594, 6_614, 6_622, 6_561]
    assert all(one["outcomes"] > 0.9 * one["predictions"] for one in windows)
    assert all(one["low"] < one["expected"] < one["high"] for one in windows)
    assert sum(one["low"] < one["realised"] < one["high"] for one in windows) >= 3
    assert "drift" in windows[-1]["notes"]
    assert [one["what"] for one in told["decided"]] == [
        f"version {releases[1]['version']} promoted ({DRIFT})",
        "drift, so train",
        f"version {releases[0]['version']} promoted (first release)",
    ]
    assert [line for line in told["changed"] if line.startswith("`temp` lies ")]
    shown = " ".join(river.command("headrace.cli", "status", "flights").stdout.split())
    for said in ("which model serves?", "more is better", "What has changed?", "drift, so train"):
        assert said in shown
    page = river.prefect("artifacts/latest", artifacts={"key": {"any_": ["status-flights"]}})[0]["data"]
    assert "## What was decided, and why?" in page


def test_a_page_is_drawn_of_drift_and_of_a_quiet_week_when_somebody_asks(river: River) -> None:
    reports = river.settings.home / "reports"

    def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headrace.cli", "report", "flights", *arguments]
        env = services.environment(river.settings)
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    drawn = {
        week["as_of"][:10]: Path(week["report"]).name for week in river.summary["weeks"] if week["report"]
    }
    assert drawn == {"2013-04-29": "flights-2013-04-29T000000Z.html"}
    last, quiet, none = asked(), asked("--at", "2013-04-10"), asked("--at", "2013-01-02")
    assert f"Written to {reports / drawn['2013-04-29']}" in last.stdout
    assert "2013-04-08T00:00Z/2013-04-15T00:00Z, version 1, 6,614 predictions." in quiet.stdout
    assert "Dataset Drift" in (reports / "flights-2013-04-15T000000Z.html").read_text(encoding="utf-8")
    assert (none.returncode, none.stdout) == (1, "")
    assert "made no predictions in 2012-12-31T00:00Z/2013-01-07T00:00Z" in none.stderr


def test_all_that_models_were_made_of_is_as_it_was_written(river: River) -> None:
    done = river.command("headrace.cli", "verify", "flights")
    assert "no" not in done.stdout.split()
    for what in ("model", "training/flights@v1", "raw/flights@v", "features/origin_weather@v"):
        assert what in done.stdout


def test_the_registered_model_says_which_rows_made_it(river: River) -> None:
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    champion = registry.champion(mlflow, "flights")
    assert champion is not None
    inputs = mlflow.client.get_run(champion.run_id).inputs.dataset_inputs
    names = {given.dataset.name.split("@v")[0] for given in inputs}
    spec = load("flights")
    features = {table.table for table in spec.feature_tables}
    assert names == {"training/flights", *spec.raw.values(), *features}
    lake = Lake(river.settings.lake)
    assert lake.table(champion.training.table).snapshot(champion.training.version) == champion.training
    run = mlflow.client.get_run(champion.run_id).data
    assert run.tags["headrace.flow_run"].startswith(f"{river.settings.prefect_page}/flow-runs/flow-run/")
    assert max(map(len, run.tags.values())) < 250  # what is long, or JSON, is an artifact


def test_a_release_is_made_again_bit_for_bit_after_newer_data_have_landed(river: River) -> None:
    done = river.command("headrace.cli", "reproduce", "flights@1")
    assert "IDENTICAL: flights version 1" in done.stdout
    assert "differs" not in done.stdout


def test_models_are_listed_searched_and_compared_without_a_ui(river: River) -> None:
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    first, *_, last = versions = registry.versions(mlflow, "flights")

    def said(*arguments: str) -> str:
        return river.command("headrace.cli", "models", *arguments).stdout

    assert [f"flights@{v.version}" in said("list") for v in versions] == [True] * len(versions)
    champion = registry.champion(mlflow, "flights")
    assert champion
    assert f"flights@{champion.version} champion" in said("list", "flights")
    told = " ".join(said("show", f"flights@{first.version}").split())
    assert f"training/flights@v{first.training.version}, {first.training.rows:,} rows" in told
    for part in (
        "promoted. The challenger saves",
        "origin_delays@v",
        "wind_gust",
        "rounds 200",
        "1 workers, 0 GPUs",
    ):
        assert part in told
    data = f"training/flights@v{last.training.version}"
    found = said(
        "search", "flights", "--data", data, "--feature", "temp", "--tag", "headrace.trainer=xgboost"
    )
    assert (f"flights@{last.version}" in found, f"flights@{first.version}" in found) == (True, False)
    assert "No version is like that" in said("search", "flights", "--metric", "auc > 0.99")
    assert "training/flights" in said("compare", "flights@1", f"flights@{last.version}")
    wrong = river.command("headrace.cli", "models", "search", "--metric", "auc is good", ends=1)
    assert "`auc is good` is no bound on a score" in " ".join(wrong.stderr.split())
    wrong = river.command("headrace.cli", "models", "show", "flights@chmpion", ends=1)
    assert "has no version or alias `chmpion`: there are champion, 1, 2" in " ".join(wrong.stderr.split())


def test_the_champion_answers_as_it_scored_and_each_answer_is_traced_to_its_raw_rows(river: River) -> None:
    project = Project(ROOT, river.settings)
    spec, lake = project.pipeline("flights"), project.lake
    con = lake.connect({**spec.raw, "made": "predictions/flights"})
    names = "carrier, flight, origin, sched_dep, tailnum, dest, distance, known_hour, event_timestamp"
    keys = "carrier, flight, origin, sched_dep"
    scored = con.sql(
        f"SELECT {names}, probability FROM ({spec.spine}) JOIN (SELECT {keys}, probability FROM made "
        f"WHERE model_version = (SELECT max(model_version) FROM made)) USING ({keys}) "
        "ORDER BY hash(flight, sched_dep) LIMIT 50"
    )
    rows = scored.to_arrow_table().to_pylist()
    told = [row.pop("probability") for row in rows]
    # The last week brought a new champion, which has scored nothing yet: the one that did answers once more.
    river.command("headrace.cli", "models", "rollback", "flights", "--reason", "to compare")
    asked = [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in rows
    ]
    with services.running([services.model_server(river.settings)], river.settings):
        page = river.settings.serve_page
        answer = httpx.post(f"{page}/v1/flights/predict", json={"rows": asked}, timeout=60).json()
        example = httpx.get(f"{page}/openapi.json", timeout=60).json()["paths"]["/v1/flights/predict"]["post"]
        body = example["requestBody"]["content"]["application/json"]["example"]
        assert httpx.post(f"{page}/v1/flights/predict", json=body, timeout=60).json()["predictions"]
        waits = answer["predictions"][0]["id"]
        # Still on disk, or in the lake already.
        assert "served/flights" in river.command("headrace.cli", "trace", waits).stdout
    predictions = answer["predictions"]
    assert [one["probability"] for one in predictions] == told

    assert answer["version"] == 1

    begun = time.perf_counter()
    found = trace(predictions[0]["id"], project.pipeline, lake, project.ledger, river.settings.home)
    assert time.perf_counter() - begun < 10
    model, *rest = found.of
    assert model.what == f"model flights@{answer['version']}, champion"
    assert "code" in model.facts
    [training, *raw] = sorted(model.of, key=lambda one: not one.what.startswith("training/"))
    assert training.what.startswith("training/flights@v")
    assert {one.what.partition("@")[0] for one in raw} >= {"raw/flights", "features/planes"}
    features = {one.what.partition("@")[0]: one for one in rest if one.what.startswith("features/")}
    assert set(features) == {table.table for table in spec.feature_tables}
    weather = features["features/origin_weather"]
    assert weather.facts["row of"].startswith(f"origin {rows[0]['origin']}")
    assert "served" not in weather.facts
    [observed] = weather.of
    assert "raw/weather@v" in observed.what
    assert re.search(r"\d{4}-\d\d-\d\d.* \(\d+ rows\)", observed.facts["batches"])
    [schedule] = [one for one in rest if one.what.startswith("raw/schedules")]
    assert schedule.facts["checked by"] == "flights.schedules"
    wrong = river.command("headrace.cli", "models", "evidence", "flights@2", ends=1)
    assert "Nothing is known of version 2 of `flights` beside the champion" in " ".join(wrong.stderr.split())
    said = river.command("headrace.cli", "trace", predictions[0]["id"]).stdout
    assert "model's digest" in said
    assert str(told[0])[:6] in said
    river.command("headrace.cli", "models", "promote", "flights@2", "--reason", "compared")


def test_what_was_predicted_as_a_batch_is_traced_by_its_id(river: River) -> None:
    project = Project(ROOT, river.settings)
    con = project.lake.connect({"made": "predictions/flights"})
    made = con.sql("FROM made ORDER BY hash(flight, sched_dep) LIMIT 1").to_arrow_table().to_pylist()[0]
    found = trace(made["prediction_id"], project.pipeline, project.lake, project.ledger, river.settings.home)
    assert found.facts["logged"].startswith("predictions/flights@v")
    assert found.facts["predicted"] == f"probability {made['probability']}"
    model, *rest = found.of
    assert model.what.startswith(f"model flights@{made['model_version']}")
    assert any(one.what.startswith("features/origin_weather@v") for one in rest)
    assert any(one.what.startswith("raw/schedules@v") for one in rest)
    assert "raw/weather@v" in river.command("headrace.cli", "trace", made["prediction_id"]).stdout


def test_a_champion_is_verified_rolled_back_and_brought_again_from_the_command_line(river: River) -> None:
    said = river.command("headrace.cli", "models", "verify", "flights@champion").stdout
    assert "is what the gate promoted" in said
    assert "training/flights@v" in said
    before = registry.champion(Project(ROOT, river.settings).mlflow, "flights")
    assert before
    why = ("--reason", "it is Friday")
    said = river.command("headrace.cli", "models", "rollback", "flights", *why).stdout
    assert f"flights@{before.version - 1} is champion again" in said
    said = river.command("headrace.cli", "models", "settle", "flights").stdout
    assert "brought back" in said
    assert "it is Friday" in said
    canary = ("headrace.cli", "models", "canary", f"flights@{before.version}")
    said = " ".join(river.command(*canary).stdout.split())
    assert "Certified: no prediction differs, of 200 from 2013-04-22 on" in said
    assert "canary" in river.command("headrace.cli", "models", "list").stdout
    assert "--share" in river.command(*canary, "--share", "5", ends=2).stderr
    assert "answers no longer" in river.command(*canary, "--off").stdout
    river.command("headrace.cli", "models", "promote", f"flights@{before.version}", *why)
    assert "champion" in river.command(*canary, ends=2).stderr
    after = registry.champion(Project(ROOT, river.settings).mlflow, "flights")
    assert after == before


def test_a_change_of_champion_that_was_cut_short_is_finished_by_the_schedule(
    river: River, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between intent and alias; the next run finds nothing else to do."""
    project = Project(ROOT, river.settings)
    spec, rooms = project.pipeline("flights"), (project.mlflow, project.ledger, "a test")
    before = registry.champion(project.mlflow, "flights")
    assert before

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_carry_out", killed)
        with pytest.raises(KeyboardInterrupt):
            promotion.rollback(spec, "a test", *rooms)
    done = river.run("cycle", "flights", "--as-of", "2013-04-29")
    assert done.returncode == 0, done.stdout + done.stderr
    found = registry.champion(project.mlflow, "flights")
    assert found
    assert found.version == before.version - 1
    assert promotion.champions(spec, project.ledger)[-1] == found.version
    promotion.move(spec, before.version, "the test is over", *rooms)


def test_no_feature_of_the_training_set_was_known_only_later(river: River) -> None:
    """Count again, for 500 rows, the flights that had landed by their hour, and find the same numbers."""
    lake = Lake(river.settings.lake)
    con = lake.connect({"training": "training/flights", "flights": "raw/flights"})
    wrong = con.sql(
        """
        WITH picked AS (
            FROM training WHERE origin_landed_3h > 0
            ORDER BY md5(concat(carrier, flight, sched_dep)) LIMIT 500
        ),
        again AS (
            SELECT picked.carrier, picked.flight, picked.origin, picked.sched_dep, origin_landed_3h,
                count(*) AS landed
            FROM picked JOIN flights ON flights.origin = picked.origin AND flights.arr_delay IS NOT NULL
                AND landed_at < date_trunc('hour', event_timestamp)
                AND landed_at >= date_trunc('hour', event_timestamp) - INTERVAL 3 HOUR
            GROUP BY ALL
        )
        SELECT count(*), count(*) FILTER (landed <> origin_landed_3h) FROM again
        """
    ).fetchall()
    assert wrong == [(500, 0)]
    late = con.sql("SELECT count(*) FROM training WHERE event_timestamp > sched_dep - INTERVAL 2 HOUR")
    assert late.fetchall() == [(0,)]


def test_what_was_served_is_what_the_point_in_time_join_says(river: River) -> None:
    """Train/serve parity: the logged inputs of every prediction, value by value, nulls included."""
    from headrace.feature_store import store as feature_store

    spec, lake = load("flights"), Lake(river.settings.lake)
    store = feature_store.open_store(ROOT / "features", river.settings)
    spine = lake.connect(spec.raw).sql(
        f"FROM ({spec.spine}) WHERE event_timestamp >= '2013-04-01' AND event_timestamp < '2013-04-29'"
    )
    joined = feature_store.historical(store, spec.feature_service, spine.to_arrow_table())
    order = [(key, "ascending") for key in spec.keys]
    served = lake.connect({"p": "predictions/flights"}).sql("FROM p").to_arrow_table().sort_by(order)
    joined = joined.sort_by(order)
    assert served.num_rows == joined.num_rows == 26_391
    for column in (*spec.keys, *spec.columns.names):
        assert served[column].to_pylist() == joined[column].to_pylist(), column
    nulls = {name: served[name].null_count / served.num_rows for name in spec.columns.names}
    assert max(share for name, share in nulls.items() if name != "wind_gust") < 0.25


def test_a_releases_training_set_is_made_again_from_the_versions_it_names(river: River) -> None:
    from headrace import registry
    from headrace.feature_store import store as feature_store
    from headrace.training import dataset

    spec, lake = load("flights"), Lake(river.settings.lake)
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    first = registry.versions(mlflow, "flights")[0]
    recipe = tracking.recipe(mlflow, first.run_id)
    assert recipe
    pins = dict(recipe.training["pins"])
    assert set(pins) == {*spec.raw.values(), *(table.table for table in spec.feature_tables)}
    assert pins["features/origin_delays"] < lake.table("features/origin_delays").open().version()
    store = feature_store.open_store(ROOT / "features", river.settings)
    whole, cuts = Window(spec.start, first.as_of), dataset.cuts(spec, first.as_of)
    asked = spine.labelled(spec, lake, whole, first.as_of, pins, cuts=cuts)
    features = {name: version for name, version in pins.items() if name.startswith("features/")}
    again = feature_store.historical(store, spec.feature_service, asked, features)
    made = dataset.read(spec, first.training, lake)
    assert again.select(made.column_names).equals(made)


def test_the_command_line_says_that_it_is_and_who_uses_which_feature(river: River) -> None:
    same = river.command("headrace.cli", "features", "parity", "flights").stdout
    assert (
        "all 4,000 values in 200 predictions of 2013-04-22T00:00Z/2013-04-29T00:00Z are the same"
        in " ".join(same.split())
    )
    shown = river.command("headrace.cli", "features", "show", "temp", "--as-of", "2013-04-29").stdout
    versions = [str(release["version"]) for release in river.summary["releases"]]
    assert re.search(rf"models .*{', '.join(f'flights {version}' for version in versions)}", shown)
    assert "raw tables     raw/weather" in shown


def test_features_that_are_not_served_as_trained_on_stop_the_scoring(river: River, tmp_path: Path) -> None:
    """The same river, from a copy of its home in which the online store has lost an airport's weather."""
    home = tmp_path / "home"
    shutil.copytree(
        river.settings.home, home, ignore=shutil.ignore_patterns("prefect", "logs", "predictions")
    )
    with sqlite3.connect(home / "feast/online.db") as con:
        con.execute("DELETE FROM headrace_origin_weather WHERE feature_name = 'temp'")
    con.close()
    settings = Settings(home=home, prefect_api_url=river.settings.prefect_api_url)
    done = flows(settings, "score", "flights", "--as-of", "2013-04-08")
    assert done.returncode == 1
    assert "`origin_weather:temp` not at all" in done.stderr
    assert not (home / "lake/predictions").exists()


def test_parameters_are_looked_for_and_then_fitted(river: River, tmp_path: Path) -> None:
    """In a copy of the river's home, for what is found is fitted from then on."""
    home = tmp_path / "home"
    shutil.copytree(river.settings.home, home, ignore=shutil.ignore_patterns("prefect", "logs"))
    settings = Settings(home=home, prefect_api_url=river.settings.prefect_api_url)
    asked = ("flights", "--as-of", "2013-04-15")
    done = flows(settings, "tune", *asked, "--trials", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "xgboost: trial 5 of 5, best 0." in done.stdout
    assert (
        flows(settings, "tune", *asked, "--trials", "5").stdout.splitlines()[-1]
        == done.stdout.splitlines()[-1]
    )

    mlflow = MLflow(settings.mlflow, home)
    (study,) = (e for e in Ledger(settings.ledger).entries("flights", "study") if e.state == DONE)
    experiment = mlflow.client.get_experiment_by_name("flights")
    runs = mlflow.client.search_runs([experiment.experiment_id], "tags.`headrace.study` != ''")
    (parent,) = (run for run in runs if run.data.tags["headrace.role"] == "study")
    assert sum(run.data.tags.get("mlflow.parentRunId") == parent.info.run_id for run in runs) == 5
    assert parent.data.metrics["loss"] == study.detail["loss"]
    drawn = {file.path for file in mlflow.client.list_artifacts(parent.info.run_id)}
    assert {"optimization_history.html", "param_importances.html", "slice.html"} <= drawn
    (shown,) = river.prefect("artifacts/latest", artifacts={"key": {"any_": ["study-flights-xgboost"]}})
    assert parent.info.run_id in shown["description"]

    done = flows(settings, "train", *asked, "--cause", "tuned")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = mlflow.client.search_runs([experiment.experiment_id], "tags.`headrace.cause` = 'tuned'")
    (fitted,) = (
        run
        for run in trials
        if (run.data.tags["headrace.candidate"], run.data.tags["headrace.role"]) == ("xgboost", "candidate")
    )
    assert {name: fitted.data.params[name] for name in study.detail["params"]} == {
        name: str(value) for name, value in study.detail["params"].items()
    }


def test_a_slip_in_the_command_is_told_in_a_line(river: River) -> None:
    for arguments, said in (
        (("lifecycle", "flights"), "`lifecycle` needs --start and --end"),
        (("ingest", "flights", "--cause", "x"), "`ingest` takes no cause"),
        (("materialise", "flights"), "Did you mean `materialize`?"),
    ):
        done = river.run(*arguments)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_living_it_again_changes_nothing(river: River) -> None:
    lake = Lake(river.settings.lake)
    names = ("raw/flights", "features/origin_delays", "training/flights", "predictions/flights")
    before = {name: lake.table(name).snapshot() for name in names}
    done = river.run("lifecycle", "flights", "--start", "2013-04-01", "--end", "2013-04-15")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: lake.table(name).snapshot() for name in names} == before
    assert len(Ledger(river.settings.ledger).entries("flights", "promotion")) == 4


def test_a_flow_that_is_run_from_the_deployment_by_hand_works(river: River) -> None:
    """As a person does with `prefect deployment run`; a day without a new window lands nothing."""
    watched = ("--watch", "--watch-timeout", "120", "--param", 'as_of="2013-04-29T12:00:00Z"')
    done = river.command("prefect", "deployment", "run", "ingest/flights", *watched)
    assert "Completed" in done.stdout


def test_the_pipelines_schedules_cover_the_whole_river(river: River) -> None:
    deployments = river.prefect("deployments", deployments={"name": {"any_": ["flights"]}})
    crons = {
        d["entrypoint"].split(":")[1]: [s["schedule"]["cron"] for s in d["schedules"]] for d in deployments
    }
    assert set(crons) == {"cycle", "ingest", "materialize", "train", "tune", "score", "monitor", "lifecycle"}
    assert {flow for flow, schedule in crons.items() if schedule} == {"cycle", "train"}
    assert load("flights").window == timedelta(weeks=1)


def test_a_training_killed_at_work_is_taken_over_at_once_and_leaves_no_double(river: River) -> None:
    """Killed -9 on the worker: the claim is let go, and the same cause, run again, trains once."""
    name, ledger = "train flights because of a kill", Ledger(river.settings.ledger)

    def states() -> list[str]:
        return [entry.state for entry in ledger.entries("flights", "training", "a kill")]

    def run() -> dict[str, Any]:
        return river.prefect("flow_runs", flow_runs={"name": {"any_": [name]}})[0]

    parameters = ("--param", 'as_of="2013-04-22T00:00:00Z"', "--param", "cause=a kill")
    river.command("prefect", "deployment", "run", "train/flights", *parameters)
    eventually(lambda: states() == ["claimed"])
    os.kill(int(run()["infrastructure_pid"].split(":")[-1]), signal.SIGKILL)
    eventually(lambda: run()["state_type"] == "CRASHED")
    eventually(lambda: states() == ["claimed", "given up"])

    done = river.run("train", "flights", "--as-of", "2013-04-22", "--cause", "a kill")

    assert done.returncode == 0, done.stdout + done.stderr
    assert states() == ["claimed", "given up", "claimed", DONE]
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    client = mlflow.client
    experiment = client.get_experiment_by_name("flights").experiment_id
    runs = client.search_runs(
        [experiment], "tags.`headrace.cause` = 'a kill' AND attributes.status = 'FINISHED'"
    )
    roles = sorted((run.data.tags["headrace.role"], run.data.tags["headrace.candidate"]) for run in runs)
    assert roles[:3] == [("candidate", name) for name in ("baseline", "torch", "xgboost")]
    assert [role for role, _ in roles[3:]] == ["challenger"]
    serving = registry.champion(mlflow, "flights")
    assert serving is not None
    assert serving.as_of == utc(2013, 4, 29), (
        "a challenger that knows less than the champion does not replace it"
    )


def test_a_run_that_was_killed_is_put_back_to_work_and_is_the_same_run(river: River) -> None:
    name, ledger = "train flights because of an accident", Ledger(river.settings.ledger)

    def states() -> list[str]:
        return [entry.state for entry in ledger.entries("flights", "training", "an accident")]

    def run() -> dict[str, Any]:
        (one,) = river.prefect("flow_runs", flow_runs={"name": {"any_": [name]}})
        return one

    parameters = ("--param", 'as_of="2013-04-22T00:00:00Z"', "--param", "cause=an accident")
    river.command("prefect", "deployment", "run", "train/flights", *parameters)
    eventually(lambda: states() == ["claimed"])
    with pytest.raises(NothingToResume, match="is running"):
        resume(river.settings, name)
    os.kill(int(run()["infrastructure_pid"].split(":")[-1]), signal.SIGKILL)
    eventually(lambda: run()["state_type"] == "CRASHED")
    eventually(lambda: states() == ["claimed", "given up"])

    said = json.loads(river.command("headrace.cli", "resume", name, "--json").stdout)
    assert (said["id"], said["was"]) == (run()["id"], "Crashed")
    eventually(lambda: run()["state_type"] == "COMPLETED", seconds=180)
    assert states() == ["claimed", "given up", "claimed", DONE]
    assert {entry.holder for entry in ledger.entries("flights", "training", "an accident")} == {
        f"flow run {run()['id']}"
    }
    with pytest.raises(NothingToResume, match="is completed"):
        resume(river.settings, run()["id"])


def test_a_run_that_no_worker_can_take_up_is_told_with_its_command(river: River) -> None:
    with pytest.raises(NoSuchRun, match="No run is called"):
        resume(river.settings, "train nothing")
    failed = river.run("score", "flights", "--as-of", "2012-01-01")
    assert failed.returncode == 1
    (one, *_) = river.prefect(
        "flow_runs", flow_runs={"state": {"type": {"any_": ["FAILED"]}}}, sort="EXPECTED_START_TIME_DESC"
    )
    with pytest.raises(RunByHand, match="python -m flows score flights --as-of '2012-01-01"):
        resume(river.settings, one["id"])


LEFT_OUT = """
from dataclasses import replace
from datetime import UTC, datetime

import pipelines.flights as declared
from flows.train import train
from headrace.pipeline import Candidate

one, other = (Candidate(name, "torch", {"depth": number}) for number, name in enumerate(("one", "other")))
*_, good = declared.PIPELINE.candidates
for cause, candidates in {"some fail": (one, good, other), "all fail": (one, other)}.items():
    declared.PIPELINE = replace(declared.PIPELINE, candidates=candidates)
    state = train("flights", datetime(2013, 4, 22, tzinfo=UTC), cause, return_state=True)
    print(state.type.value, type(state.result(raise_on_failure=False)).__name__)
"""


def test_a_candidate_that_fails_is_told_and_left_out_until_none_is_left(river: River) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OUT],
        env=services.environment(river.settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    ended = [line for line in done.stdout.splitlines() if line.startswith(("COMPLETED", "FAILED"))]
    assert ended == ["COMPLETED Verdict", "FAILED TypeError"]
    for name in ("one", "other"):
        assert re.search(rf"Candidate {name} failed, and is left out: TypeError: .*'depth'", done.stderr)
    (shown,) = (
        artifact
        for artifact in river.prefect("artifacts", sort="CREATED_DESC")
        if artifact["key"] == "candidates-flights" and "Left out" in artifact["description"]
    )
    assert [row["candidate"] for row in json.loads(shown["data"])] == ["baseline"]
    assert "**one**. TypeError" in shown["description"]
