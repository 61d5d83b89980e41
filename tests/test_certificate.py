"""Nothing goes live that is served otherwise than it was trained: features and predictions, bit by bit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from headrace.feature_store import store as features
from headrace.feature_store.errors import NothingToCompare, ParityBroken
from headrace.gate import Gate, Verdict
from headrace.pipeline import Serving
from headrace.release.certificate import NAME, certified
from headrace.release.page import page
from headrace.serving.predictor import Predictor
from tests.conftest import utc
from tests.test_serving import AS_OF, SPEC, START, Toy, toy  # noqa: F401  # a fixture

PROMOTED = Verdict("promoted", "It is better.", "2", "1")


def given(toy: Toy, spec: Any = SPEC, verdict: Verdict = PROMOTED) -> Verdict:  # noqa: F811
    return certified(spec, verdict, toy.feast, toy.lake, toy.mlflow, AS_OF)


def test_a_promotion_has_a_certificate_and_shows_it(toy: Toy) -> None:  # noqa: F811
    verdict = given(toy)
    assert verdict.promoted
    (bound,) = verdict.bounds
    assert (bound.name, bound.value, bound.held) == (NAME, 0, True)
    assert bound.about == "of 200 from 2024-02-05 on, of 600 values of features, as joined"
    assert bound.about in page(verdict, Gate(), "nats")
    assert given(toy, replace(SPEC, serving=Serving("refuse"))).bounds == verdict.bounds
    assert given(toy, replace(SPEC, serving=Serving(defaults={"f": 9.0}))).bounds == verdict.bounds


def test_only_what_is_about_to_serve_is_certified(toy: Toy) -> None:  # noqa: F811
    assert given(toy, verdict=replace(PROMOTED, challenger="1")).bounds == ()
    refused = replace(PROMOTED, decision="rejected")
    assert given(toy, verdict=refused) is refused


def test_a_model_that_answers_otherwise_than_in_a_batch_is_rejected(
    toy: Toy,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Predictor.predicted

    def wrong(self: Predictor, inputs: Any) -> dict[str, list[Any]]:
        found = right(self, inputs)
        return {name: [values[0] + 1e-12, *values[1:]] for name, values in found.items()}

    monkeypatch.setattr(Predictor, "predicted", wrong)
    verdict = given(toy)
    assert verdict.decision == "rejected"
    assert f"It is better. Its {NAME} 1 is above 0 (of 200 from" in verdict.reason


def test_an_online_store_that_serves_another_thing_stops_it_and_nothing_is_decided(
    toy: Toy,  # noqa: F811
) -> None:
    with closing(sqlite3.connect(toy.home / "online.db")) as store, store:
        [(table,)] = store.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%places%' AND type = 'table'"
        )
        kept = store.execute(f"SELECT * FROM {table}").fetchall()
        store.execute(f"DELETE FROM {table} WHERE feature_name = 'g'")
    try:
        with pytest.raises(ParityBroken, match="`places:g` not at all"):
            given(toy)
    finally:
        with closing(sqlite3.connect(toy.home / "online.db")) as store, store:
            store.execute(f"DELETE FROM {table}")
            marks = ", ".join("?" * len(kept[0]))
            store.executemany(f"INSERT INTO {table} VALUES ({marks})", kept)
    assert given(toy).promoted


def test_of_a_window_before_the_last_what_became_known_since_is_no_mismatch(toy: Toy) -> None:  # noqa: F811
    before = replace(SPEC, spine=f"{SPEC.spine} WHERE asked_at < '2024-02-12'")
    nothing = replace(SPEC, spine=f"{SPEC.spine} WHERE false")
    later = {
        "place": "p1",
        "f": 5.0,
        "g": 5,
        "event_timestamp": utc(2024, 2, 13),
        "available_at": utc(2024, 2, 13),
    }
    toy.lake.table("features/places").append(pa.Table.from_pylist([later]), "later")
    try:
        features.materialize(toy.feast, "toys", AS_OF + timedelta(weeks=1), START)
        assert given(toy, before).promoted
        with pytest.raises(NothingToCompare):
            given(toy, nothing)
    finally:
        at = toy.lake.table("features/places").open().version() - 1
        toy.lake.table("features/places").open().restore(at)
