"""Pipelines of every kind of problem live on the river's data: landed once, built once, asked otherwise."""

from __future__ import annotations

import json

import pytest

from headrace import registry
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
    assert champion.metrics["skill"] > 0.01

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


def test_a_model_of_another_kind_is_asked_through_mlflow_by_its_columns(river: River) -> None:
    import mlflow.pyfunc

    spec, lake = load("outcome"), Lake(river.settings.lake)
    mlflow = MLflow(river.settings.mlflow, river.settings.home)
    champion = registry.champion(mlflow, "outcome")
    assert champion is not None
    made = log.read(spec, lake, WEEK).slice(0, 100)
    loaded = mlflow.pyfunc.load_model(champion.model_uri)
    # By its signature numbers are floats, and MLflow takes no whole ones for them.
    frame = made.select(spec.columns.names).to_pandas().astype(dict.fromkeys(spec.columns.numeric, float))
    answered = loaded.predict(frame)
    assert answered["prediction"].tolist() == made["prediction"].to_pylist()
    assert [column.name for column in loaded.metadata.signature.outputs] == list(spec.problem.columns)
