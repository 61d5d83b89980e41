"""What the holdout says beside scores: for whom a model is good, and what it goes by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import training
from headrace.cluster import cluster
from headrace.pipeline import Candidate, Columns
from headrace.problem import Binary, MultiClass, Problem, Regression
from headrace.release import proof
from headrace.testing import rows
from headrace.training import xgboost as trees
from tests.conftest import utc
from tests.test_reproduce import SPEC

COLUMNS = Columns(("port", "never"), ("wind", "gust", "nothing"))
PROBLEMS = (Binary(), MultiClass(("calm", "windy", "stormy")), Regression("quantile"))
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda one: one.objective)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with cluster() as client:
        yield client


@every_problem
@pytest.mark.parametrize("name", ["xgboost", "torch", "sklearn"])
def test_what_a_model_goes_by_is_what_the_labels_follow_from(
    name: str, problem: Problem, client: Any
) -> None:
    """They follow from the port and the wind; gusts are noise, and two columns hold nothing."""
    params = {"torch": {"epochs": 25, "batch": 64, "lr": 1e-2}}.get(name, {})
    given = rows(problem)
    model = training.fit(Candidate("one", name, params), given, COLUMNS, problem, client)
    unit, found = proof.gone_by_of(model, COLUMNS, problem, given, problem.encode(given["label"]))
    shuffled = f"{problem.loss_unit} lost if shuffled"
    assert unit == ("mean |SHAP value|, before the link" if name == "xgboost" else shuffled)
    assert {*found} == {*COLUMNS.names}
    assert {*sorted(found, key=lambda one: -found[one])[:2]} == {"port", "wind"}
    assert found["never"] == pytest.approx(0, abs=1e-6)
    assert found["nothing"] == pytest.approx(0, abs=1e-6)


@every_problem
def test_what_inputs_add_sums_up_to_the_prediction(problem: Problem, client: Any) -> None:
    given = rows(problem)
    native = training.fit(Candidate("one", "xgboost", {"rounds": 20}), given, COLUMNS, problem, client).native
    names, found = trees.contributions(native, given)
    assert names == native.encoder.names
    margins = native.booster.inplace_predict(native.encoder.encode(given), predict_type="margin")
    off = np.asarray(margins) - found.sum(axis=-1)
    assert np.ptp(off, axis=0).max() < 1e-3  # what is left is the same for all rows


def test_each_segment_has_its_rows_and_its_loss() -> None:
    spec = replace(SPEC, columns=Columns(("gate",), ()), problem=Binary())
    draw = np.random.default_rng(0)
    gates = pa.array([None if n % 50 == 0 else n % 12 for n in range(1_200)])
    targets = draw.integers(0, 2, 1_200).astype(float)
    predicted = np.where(np.arange(1_200) % 12 == 3, 1 - targets, targets) * 0.8 + 0.1
    found = proof.segments(spec, pa.table({"gate": gates}), targets, predicted)
    assert sum(one["rows"] for one in found) == 1_200
    assert len(found) == proof.LARGEST + 1
    assert found[-1]["segment"] == proof.OTHERS
    losses = spec.problem.losses(targets, predicted)
    for one in found[:-1]:
        chosen = np.array([str(gate) == one["segment"] for gate in gates.to_pylist()])
        assert one["rows"] == chosen.sum()
        assert one["loss (nats)"] == pytest.approx(losses[chosen].mean(), abs=1e-5)
    assert next(one["AUC"] for one in found if one["segment"] == "3") < 0.1


def test_pictures_and_segments_are_kept_as_files(client: Any) -> None:
    spec = replace(SPEC, columns=COLUMNS, problem=Binary())
    given = rows(spec.problem)
    model = training.fit(Candidate("one", "xgboost", {"rounds": 5}), given, COLUMNS, spec.problem, client)
    targets = spec.problem.encode(given["label"])
    kept = proof.artifacts(spec, "one", model, given, targets, model.predict(given), utc(2024))
    assert kept["holdout.png"].startswith(b"\x89PNG")
    assert kept["inputs.png"].startswith(b"\x89PNG")
    told = json.loads(kept["segments.json"])
    assert told["columns"] == ["column", "segment", "rows", "loss (nats)", "AUC"]
    assert [row[:2] for row in told["data"]][-1] == ["never", "null"]
