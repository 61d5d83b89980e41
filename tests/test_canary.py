"""A canary answers for its share of the keys, and is returned if it does harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from headrace import registry
from headrace.gate import Gate, Guards
from headrace.ledger import Ledger
from headrace.release import live
from headrace.serving.app import application
from headrace.serving.keys import Keys
from headrace.serving.service import Service
from tests.test_serving import ROW, SPEC, Toy, ask, replace_native, toy  # noqa: F401  # a fixture

ROWS = [{**ROW, "id": 5_000 + n, "x": n / 100 - 2, "place": f"p{n % 5}"} for n in range(400)]


@pytest.fixture
def canary(toy: Toy) -> Iterator[Toy]:  # noqa: F811
    registry.set_canary(toy.mlflow, "toy", 2, 0.3)
    yield toy
    registry.end_canary(toy.mlflow, "toy", 2)


def versions(answer: dict[str, Any]) -> list[int]:
    return [one.get("version", answer["version"]) for one in answer["predictions"]]


def probabilities(answer: dict[str, Any]) -> list[float]:
    return [one["probability"] for one in answer["predictions"]]


@contextmanager
def broken(toy: Toy, **gate: Any) -> Iterator[tuple[Service, TestClient]]:  # noqa: F811
    """A service whose canary has no model."""
    service = toy.service(replace(SPEC, **gate))
    service.refresh()
    endpoint = service.endpoints["toy"]
    assert endpoint.canary
    endpoint.canary.predictor = replace_native(endpoint.canary.predictor)
    look, service.refresh = service.refresh, lambda: None  # type: ignore[method-assign]
    app = application(service, Keys(toy.home / "none.json"))
    with TestClient(app, raise_server_exceptions=False) as client:
        service.refresh = look  # type: ignore[method-assign]
        yield service, client


def test_it_answers_for_its_share_of_the_keys_and_of_a_key_always(canary: Toy) -> None:
    with canary.client() as client:
        assert client.get("/v1").json()["toy"]["canary"] == {"version": 2, "share": 0.3}
        together = ask(client, ROWS).json()
        alone = [ask(client, [row]).json() for row in ROWS[:60]]
        told = client.get("/metrics").text
    assert together["version"] == 1
    made_by = versions(together)
    assert set(made_by) == {1, 2}
    assert 0.2 < made_by.count(2) / len(ROWS) < 0.4
    assert [version for one in alone for version in versions(one)] == made_by[:60]
    assert [p for one in alone for p in probabilities(one)] == probabilities(together)[:60]
    count = made_by.count(2) + made_by[:60].count(2)
    assert f'headrace_canary_rows_total{{failed="no",pipeline="toy",version="2"}} {count}.0' in told


def test_each_row_is_told_and_logged_with_who_made_it_and_the_other_one_is_its_shadow(canary: Toy) -> None:
    with canary.client() as client:
        answer = ask(client, ROWS).json()
    ids = [one["id"] for one in answer["predictions"]]
    made_by, told = versions(answer), probabilities(answer)
    logged = {row["prediction_id"]: row for row in canary.logged()}
    assert [logged[one]["model_version"] for one in ids] == made_by
    assert [logged[one]["probability"] for one in ids] == told
    assert [logged[one]["x"] for one in ids] == [row["x"] for row in ROWS]
    for version in (1, 2):
        registry.set_alias(canary.mlflow, "toy", "champion", version)
        of = canary.batch(ROWS)
        registry.set_alias(canary.mlflow, "toy", "champion", 1)
        assert [p for p, by in zip(told, made_by, strict=True) if by == version] == [
            p for p, by in zip(of, made_by, strict=True) if by == version
        ]
        if version == 1:
            expected = {one: p for one, p, by in zip(ids, of, made_by, strict=True) if by == 2}
    beside = canary.lake.connect({"made": "shadow/toy"}).sql("FROM made").to_arrow_table().to_pylist()
    found = {row["prediction_id"]: row for row in beside if row["prediction_id"] in ids}
    assert {one: row["probability"] for one, row in found.items()} == expected
    assert {row["model_version"] for row in found.values()} == {1}


def test_contributions_are_those_of_who_made_it(canary: Toy) -> None:
    with canary.client() as client:
        answer = ask(client, ROWS[:40], "explain").json()
    made_by = np.array(versions(answer))
    odds = np.array([np.log(p / (1 - p)) for p in probabilities(answer)])
    rest = odds - np.array([sum(one["contributions"].values()) for one in answer["predictions"]])
    for version in (1, 2):  # what is left is the same for all: the model's bias
        assert 0 <= np.ptp(rest[made_by == version]) < 1e-4


def test_one_that_fails_costs_no_answer_and_is_returned(canary: Toy) -> None:
    with broken(canary) as (service, client):
        answer = ask(client, ROWS).json()
        assert set(versions(answer)) == {1}
        endpoint = service.endpoints["toy"]
        assert endpoint.canary
        assert "rows failed" in endpoint.canary.trouble
        assert endpoint.canary.chosen(ROWS) == []
        service.refresh()
        assert endpoint.canary is None
    assert registry.canary(canary.mlflow, "toy") is None
    tags = canary.mlflow.client.get_model_version("toy", "2").tags
    assert "rows failed: " in tags["headrace.returned"]


def test_a_request_that_nobody_can_answer_is_not_its_fault(canary: Toy) -> None:
    wrong = [{**row, "x": "much"} for row in ROWS]
    with broken(canary) as (service, client):
        endpoint = service.endpoints["toy"]
        assert endpoint.canary
        assert ask(client, wrong).status_code == 422
        champion, endpoint.predictor = endpoint.serving(), replace_native(endpoint.serving())
        assert ask(client, ROWS[:64]).status_code == 500
        endpoint.predictor = champion
        assert endpoint.canary.failed == 0


def test_one_that_is_too_slow_is_returned(canary: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    service = canary.service(replace(SPEC, gate=Gate(guards=Guards(latency_ms=5.0))))
    service.refresh()
    one = service.endpoints["toy"].canary
    assert one
    predict = one.predictor.predict
    monkeypatch.setattr(one.predictor, "predict", lambda rows: (time.sleep(0.006), predict(rows))[1])
    rows = [{**row, "event_timestamp": datetime(2024, 2, 12, tzinfo=UTC)} for row in ROWS[:1]]
    for _ in range(19):
        one.predict(rows)
    assert one.trouble == ""
    one.predict(rows)
    assert "5 ms are its bound" in one.trouble
    service.refresh()
    assert service.endpoints["toy"].canary is None
    service.refresh()
    assert service.endpoints["toy"].canary is None


def test_while_the_registry_is_gone_one_in_trouble_answers_nobody(
    canary: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> Any:
        raise ConnectionError("gone")

    with broken(canary) as (service, client):
        ask(client, ROWS)
        with monkeypatch.context() as patch:
            patch.setattr(registry, "aliases", gone)
            service.refresh()
        endpoint = service.endpoints["toy"]
        assert endpoint.canary
        assert set(versions(ask(client, ROWS).json())) == {1}
        service.refresh()
        assert registry.canary(canary.mlflow, "toy") is None


def test_one_that_becomes_champion_is_no_canary(canary: Toy) -> None:
    service = canary.service()
    service.refresh()
    assert service.endpoints["toy"].canary
    registry.set_alias(canary.mlflow, "toy", "champion", 2)
    try:
        service.refresh()
        assert service.endpoints["toy"].canary is None
    finally:
        registry.set_alias(canary.mlflow, "toy", "champion", 1)


def test_one_that_live_traffic_proves_to_be_worse_is_returned(toy: Toy) -> None:  # noqa: F811
    """Version 1, which serves, has four times as many trees as the canary."""
    spec, ledger = replace(SPEC, gate=Gate()), Ledger(f"sqlite:///{toy.home}/canary.db")
    told = toy.lake.connect({"things": "raw/things"}).sql("FROM things ORDER BY id").to_arrow_table()
    asked = [
        {name: one[name] for name in ("id", "x", "kind", "place")}
        | {"event_timestamp": one["asked_at"].isoformat()}
        for one in told.to_pylist()
    ]
    registry.set_canary(toy.mlflow, "toy", 2, 0.9)
    try:
        with toy.client() as client:
            for start in range(0, len(asked), 500):
                assert ask(client, asked[start : start + 500]).status_code == 200
        now = datetime.now(UTC) + timedelta(minutes=1)
        found = live.evidence(spec, 2, toy.lake, toy.mlflow, now)
        assert 0.85 < found.rows / len(asked) < 0.95
        assert found.mean < 0
        rooms = (toy.feast, toy.lake, toy.mlflow, ledger, "a test")
        assert live.contenders(spec, toy.mlflow) == [2]
        verdict = live.settle(spec, 2, *rooms, now)
        assert verdict
        assert verdict.decision == "rejected"
        assert registry.canary(toy.mlflow, "toy") is None
        tags = toy.mlflow.client.get_model_version("toy", "2").tags
        assert tags["headrace.returned"] == verdict.reason

        registry.set_alias(toy.mlflow, "toy", "champion", 2)
        registry.set_canary(toy.mlflow, "toy", 1, 0.1)  # the same requests, the other way round
        better = live.settle(spec, 1, *rooms, now)
        assert better
        assert better.promoted
        champion = registry.champion(toy.mlflow, "toy")
        assert champion
        assert champion.version == 2
    finally:
        registry.set_alias(toy.mlflow, "toy", "champion", 1)
        registry.end_canary(toy.mlflow, "toy", 1)
        registry.end_canary(toy.mlflow, "toy", 2)
