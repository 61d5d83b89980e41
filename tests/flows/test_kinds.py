"""Pipelines of every kind of problem live on the river's data: landed once, built once, asked otherwise."""

from __future__ import annotations

import json

import pytest

from headrace import registry, tracking
from headrace.lake import Lake, Window
from headrace.ledger import Ledger
from headrace.pipeline import load
from headrace.serving import log
from headrace.tracking import MLflow
from tests.conftest import utc
from tests.flows.conftest import River

WEEK = Window(utc(2013, 4, 15), utc(2013, 4, 22))
SHOWN = {"arrival_delay": ("mean absolute error", "minutes"), "outcome": ("AUC", "nats")}


@pytest.mark.parametrize("name", SHOWN)
def test_another_question_is_asked_of_the_same_tables(river: River, name: str) -> None:
    spec, lake = load(name), Lake(river.settings.lake)
    shared = [*spec.raw.values(), *(table.table for table in spec.feature_tables)]
    before = {table: lake.table(table).snapshot() for table in shared}
    score, unit = SHOWN[name]

    for flow, as_of in (("materialize", WEEK.start), ("train", WEEK.start), ("cycle", WEEK.end)):
        done = river.run(flow, name, "--as-of", f"{as_of:%Y-%m-%d}")
        assert done.returncode == 0, done.stdout + done.stderr

    assert {table: lake.table(table).snapshot() for table in shared} == before
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    champion = registry.champion(mlflow, name)
    assert champion is not None
    assert f"{unit} per row over a guess from the past alone" in champion.reason
    assert tracking.scores(mlflow, champion.run_id)["skill"] > 0.01

    made = log.read(spec, lake, WEEK)
    assert made.num_rows == 6_622
    assert {column: made.schema.field(column).type for column in spec.problem.columns} == spec.problem.columns
    known = log.outcomes(spec, lake, WEEK, WEEK.end)
    targets, predicted = spec.problem.encode(known["label"]), spec.problem.predicted(known)
    (judged,) = Ledger(river.settings.ledger).entries(name, "judgement")
    assert judged.key == str(WEEK)
    told = spec.problem.scores(targets, predicted)
    assert judged.detail["skill"] == pytest.approx(told["skill"])
    assert judged.detail["score"] == spec.problem.told(told, most=1)
    assert judged.detail["score"].startswith(score)

    key = {"any_": [f"candidates-{name.replace('_', '-')}"]}
    (candidates,) = river.prefect("artifacts", artifacts={"key": key})
    (first, *_) = json.loads(candidates["data"])
    assert {*spec.problem.shown.values(), f"loss ({spec.problem.loss_unit})"} <= first.keys()


def test_a_pipeline_feeds_on_the_predictions_of_another(river: River) -> None:
    spec, lake = load("next_leg"), Lake(river.settings.lake)
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    upstream = registry.versions(mlflow, "flights")[0]
    assert upstream.as_of == utc(2013, 4, 1)

    for flow, as_of in (("cycle", WEEK.start), ("train", WEEK.start), ("cycle", WEEK.end)):
        done = river.run(flow, "next_leg", "--as-of", f"{as_of:%Y-%m-%d}")
        assert done.returncode == 0, done.stdout + done.stderr

    fed = lake.connect({"fed": "raw/flights_predictions", "made": "predictions/flights"})
    ends = "SELECT model_version, min(predicted_at), max(predicted_at) FROM fed GROUP BY ALL ORDER BY ALL"
    (history, live) = fed.sql(ends).fetchall()
    assert (history[0], live[0]) == (0, 1)
    assert history[2] < utc(2013, 4, 1) <= live[1]
    unlike = "SELECT count(*) FROM fed JOIN made USING (carrier, flight, origin, sched_dep) WHERE {}"
    same = "fed.probability = made.probability AND fed.model_version = made.model_version"
    assert fed.sql(unlike.format(f"NOT ({same})")).fetchall() == [(0,)]
    assert fed.sql(unlike.format(same)).fetchall()[0][0] > 10_000
    # Out of sample they tell less than they would of rows that were learnt from, but more than nothing.
    truth, keys = load("flights").label, ", ".join(spec.keys)
    known = (
        lake.connect({"made": "out_of_sample/flights", "flights": "raw/flights"})
        .sql(f"SELECT probability, label FROM made JOIN ({truth}) USING ({keys})")
        .to_arrow_table()
    )
    assert 0.6 < spec.problem.scores(known["label"], known["probability"])["auc"] < 0.8

    (champion,) = registry.versions(mlflow, "next_leg")
    recipe = tracking.recipe(mlflow, champion.run_id)
    assert recipe
    assert recipe.training["fed_on"] == [["flights", [0, 1]]]
    run = mlflow.client.get_run(champion.run_id)
    assert run.data.tags["headrace.fed_on"] == "flights out of sample, 1"
    assert champion.verdict == "promoted", champion.reason
    assert log.read(spec, lake, WEEK).num_rows > 6_000
    shown = river.command("headrace.cli", "features", "show", "leg_before").stdout
    assert "predicted by   flights out of sample, 1" in shown

    of_upstream = {"event": {"name": ["headrace.upstream"]}}
    events = river.prefect("events", filter=of_upstream)["events"]  # type: ignore[call-overload]
    (told,) = (event for event in events if event["payload"]["version"] == 1)
    assert told["resource"]["prefect.resource.id"] == "headrace.pipeline.next_leg"
    assert told["payload"]["cause"] == "upstream/flights/1"


def test_a_model_of_another_kind_is_asked_through_mlflow_by_its_columns(river: River) -> None:
    import mlflow

    spec, lake = load("outcome"), Lake(river.settings.lake)
    ours = MLflow(river.settings.mlflow, river.settings.home)
    champion = registry.champion(ours, "outcome")
    assert champion is not None
    made = log.read(spec, lake, WEEK).slice(0, 100)
    mlflow.set_tracking_uri(ours.client.tracking_uri)
    loaded = mlflow.pyfunc.load_model(champion.model_uri)
    # By its signature numbers are floats, and MLflow takes no whole ones for them.
    frame = made.select(spec.columns.names).to_pandas().astype(dict.fromkeys(spec.columns.numeric, float))
    answered = loaded.predict(frame)
    assert answered["prediction"].tolist() == made["prediction"].to_pylist()
    assert [column.name for column in loaded.metadata.signature.outputs] == list(spec.problem.columns)
