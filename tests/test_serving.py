"""Requests are answered as batches are, logged before they are answered, and what is killed loses none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as some

from headrace import registry, spine
from headrace import release as releases
from headrace.cluster import cluster
from headrace.feature_store import store as features
from headrace.feature_store.plan import Plan, online
from headrace.lake import Lake, Window, duckdb_connection
from headrace.pipeline import Candidate, Columns, Pipeline, Serving, Source
from headrace.release.errors import NothingServed
from headrace.release.replay import replay
from headrace.serving import journal as journals
from headrace.serving import log, run
from headrace.serving.admission import ALWAYS, Admission
from headrace.serving.app import application
from headrace.serving.errors import BadKeys
from headrace.serving.http import MANY
from headrace.serving.ids import new_id
from headrace.serving.journal import Journal, adopt, send
from headrace.serving.keys import Keys
from headrace.serving.predictor import Predictor
from headrace.serving.service import Service
from headrace.sources import Call, Feedback
from headrace.sources.feedback import served_by
from headrace.tracking import MLflow, load_model
from headrace.training import dataset
from headrace.training.encoding import Encoder
from headrace.training.rows import InMemory
from tests.conftest import free_port, utc

START, AS_OF, LIVE = utc(2024), utc(2024, 2, 12), utc(2024, 2, 13)
TREES = Candidate("trees", "xgboost", {"rounds": 20, "max_depth": 3}, seed=3)
SPEC = Pipeline(
    *("toy", "Is it so?", "", START),
    (Source("things", Call(lambda _: []), "asked_at", "flights.flights"),),
    *((), "toys", ("id",)),
    spine="SELECT id, asked_at AS event_timestamp, x, kind, place FROM things",
    label="SELECT id, label, asked_at + INTERVAL 1 HOUR AS available_at FROM things",
    columns=Columns(("kind",), ("x", "f", "g", "twice")),
    candidates=(TREES,),
)
ROW = {"id": 7, "x": 0.5, "kind": "k1", "place": "p1", "event_timestamp": "2024-02-12T00:00:00Z"}


@dataclass
class Toy:
    """A release of a pipeline of two views, and all that serves it."""

    home: Path
    lake: Lake
    mlflow: MLflow
    feast: Any

    def service(self, spec: Pipeline = SPEC, every: float = 30.0) -> Service:
        journal = Journal(self.home / "served", self.lake, every)
        return Service({"toy": spec}, partial(Plan, self.feast), self.mlflow, self.lake, journal)

    @contextmanager
    def client(self, spec: Pipeline = SPEC, keys: Keys | None = None) -> Iterator[TestClient]:
        app = application(self.service(spec), keys or Keys(self.home / "none.json"))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    def logged(self) -> list[dict[str, Any]]:
        table = self.lake.table(served_by("toy"))
        if not table.exists():
            return []
        return self.lake.connect({"made": served_by("toy")}).sql("FROM made").to_arrow_table().to_pylist()

    def rows(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Such rows with their features, as batch scoring has them."""
        instants = [datetime.fromisoformat(row["event_timestamp"]) for row in rows]
        timed = [{**row, "event_timestamp": at} for row, at in zip(rows, instants, strict=True)]
        return online(self.feast, "toys", pa.Table.from_pylist(timed))

    def batch(self, rows: list[dict[str, Any]]) -> list[float]:
        """What batch scoring predicts of such rows."""
        release = registry.champion(self.mlflow, "toy")
        assert release
        return load_model(self.mlflow, release.model_uri).predict(self.rows(rows)).tolist()


def open_feast(home: Path) -> Any:
    from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="toy",
            registry=str(home / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            offline_store={
                "type": "headrace.feature_store.feast.offline.DeltaOfflineStore",
                "lake": str(home / "lake"),
            },
            batch_engine={"type": "headrace.feature_store.feast.engine.DaskComputeEngine"},
            entity_key_serialization_version=3,
        )
    )


def declare(feast: Any) -> None:
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
    from feast.data_format import DeltaFormat
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64, Int64, String

    place = Entity(name="place", value_type=ValueType.STRING)
    source = FileSource(
        name="places", path="features/places", file_format=DeltaFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="available_at",
    )  # fmt: skip
    schema = [Field(name="place", dtype=String), Field(name="f", dtype=Float64), Field(name="g", dtype=Int64)]
    view = FeatureView(name="places", entities=[place], schema=schema, source=source, ttl=timedelta(days=60))
    request = RequestSource(name="asked", schema=[Field(name="x", dtype=Float64)])

    @on_demand_feature_view(sources=[request], schema=[Field(name="twice", dtype=Float64)], mode="pandas")
    def doubled(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": frame["x"] * 2})

    feast.apply([place, view, request, doubled, FeatureService(name="toys", features=[view, doubled])])


def land(lake: Lake) -> None:
    draw = np.random.default_rng(0)
    ids, x = np.arange(2_016), draw.normal(size=2_016)
    instants = pa.array([START + timedelta(minutes=30 * int(n)) for n in ids], pa.timestamp("us", "UTC"))
    label = (x + draw.normal(size=2_016) > 0).astype(np.int32)
    columns = {
        "id": ids, "asked_at": instants, "x": x, "kind": [f"k{n % 3}" for n in ids],
        "place": [f"p{n % 5}" for n in ids], "label": label, "available_at": instants,
    }  # fmt: skip
    lake.table("raw/things").append(pa.table(columns), "all")
    rows = [
        {"place": f"p{n}", "f": n / 4, "g": n, "event_timestamp": START, "available_at": START}
        for n in range(4)
    ]
    lake.table("features/places").append(pa.Table.from_pylist(rows), "all")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    home = tmp_path_factory.mktemp("served")
    lake, mlflow, feast = (
        Lake(str(home / "lake")),
        MLflow(f"sqlite:///{home}/mlflow/mlflow.db", home),
        open_feast(home),
    )
    land(lake)
    declare(feast)
    features.materialize(feast, "toys", AS_OF, START)
    made = Toy(home, lake, mlflow, feast)
    for seed, rounds in ((1, 20), (2, 5)):
        candidate = replace(TREES, seed=seed, params={**TREES.params, "rounds": rounds})
        joined = partial(features.historical, feast, "toys")
        data = dataset.build(SPEC, lake, AS_OF, joined, features.pins(feast, "toys"))
        with cluster() as client:
            trial = releases.try_out(
                *(SPEC, candidate, data), final=True, sources=(), lake=lake, mlflow=mlflow, cause=str(seed),
                as_of=AS_OF, client=client,
            )  # fmt: skip
        registry.register(mlflow, "toy", trial.logged)
    registry.set_alias(mlflow, "toy", "champion", 1)
    return made


def ask(client: Any, rows: list[dict[str, Any]], what: str = "predict") -> httpx.Response:
    return client.post(f"/v1/toy/{what}", json={"rows": rows})


def test_a_request_is_answered_as_a_batch_is(toy: Toy) -> None:
    rows = [{**ROW, "id": n, "x": n / 3 - 1, "kind": f"k{n % 4}", "place": f"p{n}"} for n in range(5)] + [
        {**ROW, "place": None},
        {**ROW, "kind": None, "x": -1e300},
    ]
    with toy.client() as client:
        answer = ask(client, rows).json()
    assert (answer["model"], answer["version"]) == ("toy", 1)
    assert [one["probability"] for one in answer["predictions"]] == toy.batch(rows)
    missing = [one["missing"] for one in answer["predictions"]]
    assert missing == [[], [], [], [], ["f", "g"], ["f", "g"], []]


def test_what_is_older_than_its_ttl_is_missing(toy: Toy) -> None:
    late = {**ROW, "event_timestamp": "2024-03-02T00:00:00Z"}
    with toy.client() as client:
        [early, old] = ask(client, [ROW, late]).json()["predictions"]
        [now] = ask(client, [{k: v for k, v in ROW.items() if k != "event_timestamp"}]).json()["predictions"]
    assert (early["missing"], old["missing"], now["missing"]) == ([], ["f", "g"], ["f", "g"])
    assert old["probability"] == now["probability"] == toy.batch([late])[0]


def test_missing_features_may_be_refused_or_have_defaults(toy: Toy) -> None:
    unknown = {**ROW, "place": "nowhere"}
    with toy.client(replace(SPEC, serving=Serving(missing="refuse"))) as client:
        refused = ask(client, [ROW, unknown])
        assert ask(client, [ROW]).status_code == 200
    assert refused.status_code == 424
    assert refused.json()["errors"] == [{"pointer": "/rows/1", "detail": "has no f, g in the online store"}]
    with toy.client(replace(SPEC, serving=Serving(defaults={"f": 0.25, "g": 1}))) as client:
        [known, other] = ask(client, [ROW, unknown]).json()["predictions"]
    assert known["probability"] == other["probability"]
    assert (known["missing"], other["missing"]) == ([], ["f", "g"])


def test_contributions_add_up_to_the_prediction(toy: Toy) -> None:
    rows = [{**ROW, "x": n / 7} for n in range(-9, 9)]
    with toy.client() as client:
        found = ask(client, rows, "explain").json()["predictions"]
    assert all(set(one["contributions"]) == {*SPEC.columns.names} for one in found)
    odds = np.array([np.log(p / (1 - p)) for p in (one["probability"] for one in found)])
    rest = odds - np.array([sum(one["contributions"].values()) for one in found])
    assert np.ptp(rest) < 1e-4  # what is left is the same for all: the model's bias


def test_all_that_is_answered_is_logged_with_what_it_was_made_of(toy: Toy) -> None:
    before = len(toy.logged())
    rows = [{**ROW, "id": 100 + n, "place": f"p{n}"} for n in range(5)]
    with toy.client() as client:
        answer = ask(client, rows).json()["predictions"]
        explained = ask(client, rows[:1], "explain").json()["predictions"]
    logged = {row["prediction_id"]: row for row in toy.logged()}
    assert len(logged) == before + 6
    for asked, one in zip([*rows, rows[0]], [*answer, *explained], strict=True):
        row = logged[one["id"]]
        assert row["id"] == asked["id"]
        assert row["kind"] == asked["kind"]
        assert row["event_timestamp"] == utc(2024, 2, 12)
        assert (row["probability"], row["missing"]) == (one["probability"], one["missing"])
        assert row["model_version"] == 1
        assert (row["f"] is None) == bool(one["missing"])
        assert row["twice"] == 2 * asked["x"]
        assert abs(row["requested_at"] - datetime.now(UTC)) < timedelta(minutes=5)


SLIPS: list[tuple[Any, int, str]] = [
    (b"{", 400, ""),
    ([], 422, ""),
    ({}, 422, "/rows"),
    ({"rows": []}, 422, "/rows"),
    ({"rows": [ROW], "more": 1}, 422, "/more"),
    ({"rows": [7]}, 422, "/rows/0"),
    ({"rows": [{**ROW, "id": "x"}]}, 422, "/rows/0/id"),
    ({"rows": [{**ROW, "id": True}]}, 422, "/rows/0/id"),
    ({"rows": [{**ROW, "id": 2**63}]}, 422, "/rows/0/id"),
    ({"rows": [{**ROW, "kind": 5}]}, 422, "/rows/0/kind"),
    ({"rows": [ROW, {**ROW, "x": "1"}]}, 422, "/rows/1/x"),
    ({"rows": [{**ROW, "knd": "k"}]}, 422, "/rows/0/knd"),
    ({"rows": [{**ROW, "event_timestamp": "yesterday"}]}, 422, "/rows/0/event_timestamp"),
    ({"rows": [{**ROW, "event_timestamp": 5}]}, 422, "/rows/0/event_timestamp"),
    ({"rows": [{k: v for k, v in ROW.items() if k != "place"}]}, 422, "/rows/0/place"),
    ({"rows": [ROW] * (MANY + 1)}, 422, "/rows"),
]


@pytest.mark.parametrize(("body", "status", "pointer"), SLIPS)
def test_a_slip_is_named_where_it_is(toy: Toy, body: Any, status: int, pointer: str) -> None:
    with toy.client() as client:
        answer = client.post("/v1/toy/predict", content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    if status == 422:
        assert [slip["pointer"] for slip in told["errors"]] == [pointer]
        assert told["errors"][0]["detail"] in told["detail"]


def test_what_is_too_large_or_is_no_page_says_so(toy: Toy) -> None:
    with toy.client() as client:
        large = client.post("/v1/toy/predict", content=b" " * (5 * 2**20))
        pages = [
            client.get("/v1/none/predict"),
            client.post("/v1/none/predict"),
            client.get("/v1/toy/predict"),
        ]
    assert large.status_code == 413
    assert [page.status_code for page in pages] == [404, 404, 405]
    assert all(page.json()["title"] for page in [large, *pages])


def test_one_request_that_cannot_be_answered_spoils_no_other(toy: Toy) -> None:
    """Those that are predicted together with it are asked once more, without it."""
    service = toy.service()
    service.refresh()
    endpoint = service.endpoints["toy"]
    good = endpoint.serving().fields.read([ROW], LIVE, 1)
    bad = [{**good[0], "place": 7}]  # no field would have let it pass

    async def both() -> list[Any]:
        loop = asyncio.get_running_loop()
        asked = [endpoint.ask(rows, LIVE, loop) for rows in (good, bad, good)]
        service.journal.start()
        endpoint.start()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(both())
    endpoint.stop()
    service.journal.stop()
    assert isinstance(second, Exception)
    assert first.predictions == third.predictions
    assert len({*first.ids, *third.ids}) == 2


def test_more_than_is_answered_in_good_time_is_not_let_in() -> None:
    """And as soon as some are answered, others are."""
    now, entered, answers = [0.0], [0], list[dict[str, Any]]()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        entered[0] += 1
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    door = Admission(slow, lambda: now[0])

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message)

    async def ask(count: int, method: str = "POST") -> list[int]:
        answers.clear()
        scope = {"type": "http", "method": method}
        await asyncio.gather(*(door(scope, None, send) for _ in range(count)))  # type: ignore[arg-type]
        return sorted(answer["status"] for answer in answers)

    async def all_of_it() -> None:
        assert await ask(ALWAYS) == [200] * ALWAYS
        assert await ask(ALWAYS + 9) == [200] * ALWAYS + [429] * 9
        assert [dict(a["headers"]).get(b"retry-after") for a in answers if a["status"] == 429] == [b"1"] * 9
        assert await ask(ALWAYS + 9, "GET") == [200] * (ALWAYS + 9)
        for _ in range(387):
            await ask(10)
        now[0] = 1.001  # 3,998 were answered in a second
        assert await ask(200) == [200] * 120 + [429] * 80

    asyncio.run(all_of_it())
    assert door.refused == 89


def test_the_next_champion_takes_over_between_two_requests(toy: Toy) -> None:
    """While requests come without a pause: none fails, and each is answered by one of the two."""
    with toy.client() as client:
        versions, ended = [], threading.Event()

        def keep_asking() -> None:
            while not ended.is_set():
                answer = ask(client, [ROW])
                versions.append(answer.json()["version"] if answer.status_code == 200 else answer.text)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            registry.set_alias(toy.mlflow, "toy", "champion", 2)
            until = time.monotonic() + 30
            while 2 not in versions and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            registry.set_alias(toy.mlflow, "toy", "champion", 1)
            ended.set()
            asking.join()
    assert set(versions) == {1, 2}
    assert versions == sorted(versions)


def test_shadows_predict_what_is_answered_and_a_broken_one_troubles_nobody(toy: Toy) -> None:
    registry.set_shadow(toy.mlflow, "toy", 2, on=True)
    try:
        with toy.client() as client:
            answered = ask(client, [{**ROW, "x": n / 5, "place": f"p{n}"} for n in range(6)]).json()
    finally:
        registry.set_shadow(toy.mlflow, "toy", 2, on=False)
    table = toy.lake.connect({"made": "shadow/toy"}).sql("FROM made").to_arrow_table().to_pylist()
    ids = [one["id"] for one in answered["predictions"]]
    told = {row["prediction_id"]: row["probability"] for row in table if row["prediction_id"] in ids}
    assert answered["version"] == 1
    assert {row["model_version"] for row in table} == {2}
    registry.set_alias(toy.mlflow, "toy", "champion", 2)
    try:
        rows = [{**ROW, "x": n / 5, "place": f"p{n}"} for n in range(6)]
        assert [told[one] for one in ids] == toy.batch(rows)
    finally:
        registry.set_alias(toy.mlflow, "toy", "champion", 1)

    service = toy.service()
    service.refresh()
    endpoint = service.endpoints["toy"]
    endpoint.shadows = [replace_native(endpoint.serving())]
    app = application(service, Keys(toy.home / "none.json"))
    service.refresh = lambda: None  # type: ignore[method-assign]
    with TestClient(app) as client:
        assert [ask(client, [ROW]).status_code for _ in range(3)] == [200] * 3
    assert endpoint.unshadowed == 3


def test_whatever_befalls_shadows_the_service_ends(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    service = toy.service()
    service.refresh()
    endpoint = service.endpoints["toy"]
    endpoint.shadows = [endpoint.serving()]
    monkeypatch.setattr(endpoint, "_beside", lambda _: 1 / 0)
    service.refresh = lambda: None  # type: ignore[method-assign]
    with TestClient(application(service, Keys(toy.home / "none.json"))) as client:
        assert [ask(client, [ROW, ROW]).status_code for _ in range(3)] == [200] * 3
    assert endpoint.unshadowed == 6


def replace_native(predictor: Any) -> Any:
    """A predictor whose model fails."""
    broken = object.__new__(type(predictor))
    broken.__dict__ |= predictor.__dict__ | {"model": None}
    return broken


def test_what_was_asked_is_put_to_another_version(toy: Toy) -> None:
    asked = [{**ROW, "id": n, "x": n / 100 - 1, "place": f"p{n % 5}"} for n in range(200)]
    began = datetime.now(UTC)
    with toy.client() as client:
        answered = ask(client, asked).json()["predictions"]
    window = Window(began, datetime.now(UTC) + timedelta(seconds=1))
    same, other = (replay(SPEC, n, window, toy.lake, toy.mlflow, LIVE) for n in (1, 2))
    assert (same.rows, same.versions, same.apart) == (200, [1], {"probability": (0.0, 0.0)})
    assert same.gain
    assert (same.gain.mean, same.gain.rows) == (0, 200)  # their keys landed, with labels
    model = load_model(toy.mlflow, registry.uri("toy", 2))
    online_rows = toy.rows(asked)
    apart = np.abs(model.predict(online_rows) - [one["probability"] for one in answered])
    assert other.apart == {"probability": (float(np.median(apart)), float(apart.max()))}
    assert other.gain
    assert other.gain.mean != 0
    with pytest.raises(NothingServed):
        replay(SPEC, 1, Window(START, AS_OF), toy.lake, toy.mlflow, LIVE)


def test_what_came_true_is_told_by_ids_and_lands_as_a_source(toy: Toy) -> None:
    model = load_model(toy.mlflow, registry.uri("toy", 1))
    predictor = Predictor(SPEC, 1, model, partial(Plan, toy.feast), toy.lake)
    week = Window(utc(2024, 2, 5), utc(2024, 2, 12))
    assert log.score(SPEC, toy.lake, week, partial(predictor.batch, since=AS_OF)) == 336
    scored = log.read(SPEC, toy.lake, week).slice(0, 1).to_pylist()[0]
    with toy.client() as client:
        ids = [one["id"] for one in ask(client, [{**ROW, "id": n} for n in (1, 2, 3)]).json()["predictions"]]

        def tell(*told: dict[str, Any]) -> httpx.Response:
            return client.post("/v1/toy/feedback", json={"feedback": list(told)})

        assert tell({"id": ids[0], "label": 1}, {"id": ids[1], "label": 0}).status_code == 202
        assert tell({"id": ids[1], "label": 1}).status_code == 202
        assert tell({"id": scored["prediction_id"], "label": 0}).status_code == 202
        slips = [
            tell({"id": "mine", "label": 1}),
            tell({"id": ids[0], "label": 2}),
            tell({"id": ids[0], "label": "1"}),
            tell({"id": ids[0]}),
            tell(),
        ]
    assert [slip.status_code for slip in slips] == [422] * 5
    pointers = [slip.json()["errors"][0]["pointer"] for slip in slips]
    assert pointers == [
        "/feedback/0/id",
        "/feedback/0/label",
        "/feedback/0/label",
        "/feedback/0",
        "/feedback",
    ]

    origin, now = Feedback("toy", ("id", "event_timestamp")), datetime.now(UTC)
    window = Window(now - timedelta(minutes=5), now + timedelta(minutes=5))
    con = duckdb_connection()
    [part] = origin.of(toy.lake).read(con, "truth", "told_at", window)
    found = con.sql(f"SELECT id, label, prediction_id FROM {part.relation} ORDER BY id").fetchall()
    assert found == [(1, 1, ids[0]), (2, 1, ids[1]), (scored["id"], 0, scored["prediction_id"])]
    # Of a column that a batch has not, what was asked is told all the same.
    [part] = Feedback("toy", ("id", "requested_at")).of(toy.lake).read(con, "asked", "told_at", window)
    assert con.sql(f"SELECT id FROM {part.relation} ORDER BY id").fetchall() == [(1,), (2,)]


def test_without_a_champion_nothing_is_answered_and_the_rest_goes_on(toy: Toy) -> None:
    with toy.client(replace(SPEC, name="other")) as client:
        answers = {page: client.get(page).status_code for page in ("/healthz", "/readyz", "/v1", "/metrics")}
        answer = ask(client, [ROW])
    assert answers == {"/healthz": 200, "/readyz": 503, "/v1": 200, "/metrics": 200}
    assert answer.status_code == 503
    assert answer.json()["title"] == "No model serves"


def test_a_registry_that_is_gone_leaves_what_serves(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    service = toy.service()
    service.refresh()

    def gone(*_: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(registry, "aliases", gone)
    monkeypatch.setattr(MLflow, "stamp", lambda _: None)  # as of a server, which must be asked
    service.refresh()
    assert service.troubles == {"toy": "OSError: no route"}
    assert service.endpoints["toy"].serving().version == 1
    monkeypatch.undo()
    service.refresh()
    assert service.troubles == {}


def test_what_people_should_know_of_a_champion_is_said_once_and_shown(
    toy: Toy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLflow, "stamp", lambda _: None)
    service = toy.service()
    service._notice = lambda _: "Somebody has moved it."
    with TestClient(application(service, Keys(toy.home / "none.json"))) as client:
        service.refresh()
        assert client.get("/v1").json()["toy"]["trouble"] == "Somebody has moved it."
        assert ask(client, [ROW]).status_code == 200
        service._notice = lambda _: ""
        service.refresh()
        assert client.get("/v1").json()["toy"]["trouble"] is None
    assert [record.message for record in caplog.records].count("Somebody has moved it.") == 1


def test_metrics_count_what_was_answered(toy: Toy) -> None:
    with toy.client() as client:
        ask(client, [ROW])
        ask(client, [ROW, ROW])
        ask(client, [])
        told = client.get("/metrics").text
    assert 'headrace_requests_total{pipeline="toy",status="200"} 2.0' in told
    assert 'headrace_requests_total{pipeline="toy",status="422"} 1.0' in told
    assert 'headrace_request_seconds_count{pipeline="toy"} 3.0' in told
    assert 'headrace_model_version{pipeline="toy"} 1.0' in told
    assert 'headrace_champion_not_serving{pipeline="toy"} 0.0' in told


def test_metrics_have_what_was_watched_of_the_last_window(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    labels = ("3", "realised", "skill", "carrier = EV", "")
    service = toy.service()
    service._watched = lambda _: (utc(2013, 4, 8), [(labels, 0.25)])
    with TestClient(application(service, Keys(toy.home / "none.json"))) as client:
        service.refresh_watched()
        told = client.get("/metrics").text
        service._watched = lambda _: 1 / 0
        service.refresh_watched()
        assert "headrace_watched{" in client.get("/metrics").text
    line = '{kind="realised",method="",metric="skill",of="carrier = EV",pipeline="toy",version="3"} 0.25'
    assert f"headrace_watched{line}" in told
    assert 'headrace_watched_window_end_timestamp_seconds{pipeline="toy"} 1.3653792e+09' in told
    assert "What is watched of toy cannot be read" in caplog.text


def test_the_example_of_the_description_works(toy: Toy) -> None:
    with toy.client() as client:
        told = client.get("/openapi.json").json()
        asked = told["paths"]["/v1/toy/predict"]["post"]["requestBody"]["content"]["application/json"]
        answer = client.post("/v1/toy/predict", json=asked["example"])
    assert answer.status_code == 200
    row = asked["schema"]["properties"]["rows"]["items"]
    assert set(row["required"]) == {"id", "x", "kind", "place"}
    assert row["properties"]["id"]["type"] == ["integer", "null"]


def test_a_key_may_do_what_it_is_for_and_no_more(toy: Toy, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    good = keys.add("shop", ("toy",), ("predict",))
    others = [keys.add("other", ("flights",), ("predict",)), keys.add("teller", ("*",), ("feedback",))]
    assert good not in keys.file.read_text()
    assert oct(keys.file.stat().st_mode)[-3:] == "600"
    with toy.client(keys=Keys(keys.file)) as client:

        def asked(**headers: str) -> int:
            return client.post("/v1/toy/predict", json={"rows": [ROW]}, headers=headers).status_code

        assert asked() == asked(Authorization="Bearer wrong") == asked(Authorization=f"Basic {good}") == 401
        assert [asked(Authorization=f"Bearer {key}") for key in (good, *others)] == [200, 403, 403]
        described = client.get("/openapi.json").json()["paths"]["/v1/toy/predict"]["post"]
        assert "example" not in described["requestBody"]["content"]["application/json"]
        assert keys.remove("shop")
        assert asked(Authorization=f"Bearer {good}") == 401
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("held", ["{", "[7]", '[{"name": "a"}]', "7"])
def test_a_file_that_holds_no_keys_lets_nobody_in_and_says_so(toy: Toy, tmp_path: Path, held: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(held)
    with toy.client(keys=Keys(file)) as client:
        answer = ask(client, [ROW])
    assert answer.status_code == 503
    assert "headrace keys add" in answer.json()["detail"]
    with pytest.raises(BadKeys):
        run.refuse_open("0.0.0.0", Keys(file))


def test_beyond_this_machine_nothing_is_open_without_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    for host in ("127.0.0.1", "localhost", "::1"):
        run.refuse_open(host, keys)
    for host in ("0.0.0.0", "::", "10.0.0.5", "models.example"):
        with pytest.raises(run.OpenToAll):
            run.refuse_open(host, keys)
    keys.add("shop", ("*",), ("predict",))
    run.refuse_open("0.0.0.0", keys)


@pytest.mark.parametrize("serving", [Serving(), Serving("refuse"), Serving(defaults={"f": 9.0})])
def test_a_batch_is_predicted_as_requests_are_and_each_prediction_has_an_id(
    toy: Toy, serving: Serving
) -> None:
    spec, model = replace(SPEC, serving=serving), load_model(toy.mlflow, registry.uri("toy", 1))
    asked = spine.rows(spec, toy.lake, Window(utc(2024, 2, 5), utc(2024, 2, 12)))
    predictor = Predictor(spec, 1, model, partial(Plan, toy.feast), toy.lake)
    made = predictor.batch(asked, AS_OF)
    again = predictor.batch(asked.slice(7, 100), AS_OF)
    assert again.equals(made.slice(7, 100))
    ids = [UUID(one) for one in made["prediction_id"].to_pylist()]
    assert len({*ids}) == len(ids) == asked.num_rows
    instants = made["event_timestamp"].to_pylist()
    assert [one.int >> 80 for one in ids] == [int(at.timestamp() * 1000) for at in instants]
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    lacking = [row["place"] not in {"p0", "p1", "p2", "p3"} for row in asked.to_pylist()]
    assert [bool(names) for names in made["missing"].to_pylist()] == lacking
    assert any(lacking)
    with toy.client(replace(SPEC, serving=replace(serving, missing="predict"))) as client:
        answer = ask(client, predictor.requests(asked)).json()["predictions"]
    assert [one["probability"] for one in answer] == made["probability"].to_pylist()
    assert [one["missing"] for one in answer] == made["missing"].to_pylist()
    filled = {f for f, none in zip(made["f"].to_pylist(), lacking, strict=True) if none}
    assert filled == {serving.defaults.get("f")}


def test_ids_are_uuids_that_begin_with_their_instant() -> None:
    ids = [UUID(new_id(LIVE + timedelta(seconds=n))) for n in range(100)]
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert ids == sorted(ids)
    assert ids[0].int >> 80 == int(LIVE.timestamp() * 1000)


VALUES = some.one_of(
    some.none(), some.booleans(), some.integers(-(2**63), 2**63 - 1), some.floats(allow_nan=False)
)


@given(
    rows=some.lists(
        some.fixed_dictionaries({"c": some.sampled_from(["a", "b", "z", None]), "n": VALUES}),
        min_size=1,
        max_size=8,
    )
)
def test_lists_are_encoded_as_tables_are(rows: list[dict[str, Any]]) -> None:
    """To the bit: integers that a float does not hold, infinities, categories never seen."""
    encoder = Encoder({"c": ("a", "b")}, ("n",))
    lists = {name: [row[name] for row in rows] for name in ("c", "n")}
    numbers = [None if value is None else float(value) for value in lists["n"]]
    table = pa.table({"c": pa.array(lists["c"], pa.string()), "n": pa.array(numbers, pa.float64())})
    assert encoder.encode(lists).tobytes() == encoder.encode(table).tobytes()


@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.float64(), pa.string()])
def test_categories_of_any_type_are_encoded_as_in_tables(kind: pa.DataType) -> None:
    values = {
        "int64": [1, 20, None],
        "bool": [True, False, None],
        "double": [1.0, 2.5, None],
        "string": ["1", "", None],
    }
    column = values[str(kind)]
    table = pa.table({"c": pa.array(column, kind)})
    encoder = Encoder.fit(InMemory(table), Columns(("c",), ()))
    assert encoder.encode({"c": column}).tobytes() == encoder.encode(table).tobytes()


SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("at", pa.timestamp("us", "UTC")),
        ("x", pa.float64()),
        ("s", pa.string()),
        ("raw", pa.binary()),
    ]
)


def columns(ids: list[int]) -> list[list[Any]]:
    texts = [None if n % 2 else "ü\n" for n in ids]
    return [ids, [LIVE] * len(ids), [n / 3 for n in ids], texts, [b"\x00"] * len(ids)]


def put(journal: Journal, *ids: int) -> None:
    journal.write("served/t", SCHEMA, columns([*ids]))


def ids_of(lake: Lake) -> list[int]:
    return sorted(n for (n,) in lake.connect({"t": "served/t"}).sql("SELECT id FROM t").fetchall())


def test_what_is_logged_comes_back_as_it_was(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    journal = Journal(tmp_path / "served", lake)
    journal.start()
    for n in range(10):
        put(journal, n, 100 + n)
    journal.stop()
    found = lake.connect({"t": "served/t"}).sql("FROM t ORDER BY id").to_arrow_table()
    assert found.to_pydict() == dict(zip(SCHEMA.names, columns([*range(10), *range(100, 110)]), strict=True))
    assert not list((tmp_path / "served").iterdir())


def test_a_file_that_was_sent_and_not_removed_is_not_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    journal = Journal(tmp_path / "served", lake, every=3600)
    monkeypatch.setattr(journals, "send", lambda *_: 0)
    journal.start()
    put(journal, 1, 2, 3)
    journal.stop()
    monkeypatch.undo()
    [file] = (tmp_path / "served").glob("*/*.jsonl")
    kept = file.read_bytes()
    assert send(file, lake) == 3
    file.write_bytes(kept)  # as if it had been killed before it was removed
    assert adopt(tmp_path / "served", lake) == 3
    assert ids_of(lake) == [1, 2, 3]
    assert not list((tmp_path / "served").iterdir())


def test_what_cannot_be_sent_stays_and_keeps_no_other_from_being_sent(tmp_path: Path) -> None:
    """A column that has another type in the lake by now, say: it waits until somebody mends that."""
    lake = Lake(str(tmp_path / "lake"))
    lake.table("served/odd").append(pa.table({"id": ["text"]}), "before")
    for n in range(3):
        journal = Journal(tmp_path / "served", lake)
        journal.own.mkdir(parents=True)
        put(journal, n)
        journal.write("served/odd", pa.schema([("id", pa.list_(pa.int64()))]), [[[n]]])
        journal._close()
        put(journal, 10 + n)
    assert adopt(tmp_path / "served", lake) == 3
    assert ids_of(lake) == [0, 1, 2, 10, 11, 12]
    assert len([*(tmp_path / "served").glob("*/*.jsonl")]) == 3


def test_files_of_half_a_minute_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MANY", 4)
    lake = Lake(str(tmp_path / "lake"))
    for n in range(7):
        journal = Journal(tmp_path / "served", lake)
        journal.own.mkdir(parents=True)
        put(journal, n)
        adopt(tmp_path / "served", lake)
    assert ids_of(lake) == list(range(7))
    assert len(lake.table("served/t").open().file_uris()) < 5


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_that_was_cut_short_is_left_out_and_what_is_before_it_kept(tmp_path: Path, cut: int) -> None:
    lake = Lake(str(tmp_path / "lake"))
    journal = Journal(tmp_path / "served", lake)
    journal.own.mkdir(parents=True)
    put(journal, 1, 2)
    put(journal, 3)
    [file] = journal.own.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-cut])
    assert adopt(tmp_path / "served", lake) == 2
    assert ids_of(lake) == [1, 2]


def test_a_log_that_cannot_be_written_answers_nothing_and_goes_on_when_it_can(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with toy.client() as client:

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", full)
        refused = ask(client, [ROW])
        monkeypatch.undo()
        answered = ask(client, [ROW]).json()["predictions"]
    assert refused.status_code == 503
    assert "No space left on device" in refused.json()["detail"]
    assert answered[0]["id"] in {row["prediction_id"] for row in toy.logged()}


def test_a_lake_that_is_gone_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    journal = Journal(tmp_path / "served", lake, every=0.1)
    calls = []

    def sometimes(file: Path, of: Lake) -> int:
        calls.append(file)
        if len(calls) < 3:
            raise OSError("no route")
        return send(file, of)

    monkeypatch.setattr(journals, "send", sometimes)
    journal.start()
    for n in range(20):
        put(journal, n)
        time.sleep(0.05)
    journal.stop()
    monkeypatch.undo()
    adopt(tmp_path / "served", lake)
    assert ids_of(lake) == list(range(20))
    assert len(calls) > 3


SERVE = """
import sys
from pathlib import Path
from functools import partial
import uvicorn
from tests import test_serving as t
home, port = Path(sys.argv[1]), int(sys.argv[2])
mlflow = t.MLflow(f"sqlite:///{home}/mlflow/mlflow.db", home)
toy = t.Toy(home, t.Lake(str(home / "lake")), mlflow, t.open_feast(home))
app = t.application(toy.service(every=0.2), t.Keys(home / "none.json"))
uvicorn.run(app, port=port, log_level="warning", access_log=False)
"""


@contextmanager
def process(toy: Toy, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A service of its own."""
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", SERVE, str(toy.home), str(port)], cwd=root) as serving:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield serving
        finally:
            serving.kill()


@pytest.fixture(scope="module")
def live(toy: Toy) -> Iterator[str]:
    """A service of its own, for clients that want a real one."""
    port = free_port()
    with process(toy, port):
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize("binary", [True, False])
def test_a_client_that_is_not_ours_asks_by_the_open_inference_protocol(
    toy: Toy, live: str, binary: bool
) -> None:
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    client = InferenceServerClient(live)
    assert client.is_server_live()
    assert client.is_model_ready("toy")
    told = client.get_model_metadata("toy")
    assert {one["name"]: one["datatype"] for one in told["inputs"]} == {
        "kind": "BYTES", "x": "FP64", "f": "FP64", "g": "INT64", "twice": "FP64",
    }  # fmt: skip
    rows = [{**ROW, "x": n / 3 - 1, "kind": f"k{n}", "place": f"p{n}"} for n in range(4)]
    columns = {
        "kind": np.array([f"k{n}" for n in range(4)], np.object_),
        "x": np.array([row["x"] for row in rows], np.float64),
        "f": np.arange(4) / 4,
        "g": np.arange(4),
        "twice": np.array([2 * row["x"] for row in rows]),
    }
    inputs = []
    for one in told["inputs"]:
        values = columns[one["name"]]
        inputs.append(InferInput(one["name"], [4], one["datatype"]))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    asked = [InferRequestedOutput("probability", binary_data=binary)]
    answer = client.infer("toy", inputs, outputs=asked, request_id="mine")
    assert answer.as_numpy("probability").tolist() == toy.batch(rows)
    assert answer.get_response()["id"] == "mine"
    assert len(set(answer.get_response()["parameters"]["prediction_ids"])) == 4
    assert client.infer("toy", inputs).as_numpy("probability").tolist() == toy.batch(rows)
    client.close()


TENSORS: list[tuple[Any, str]] = [
    ({"inputs": 7}, "list of inputs"),
    ({"inputs": [{"name": "z", "shape": [1], "datatype": "FP64", "data": [1]}]}, "is no input of the model"),
    ({"inputs": [{"name": "x", "shape": [2], "datatype": "FP64", "data": [1]}]}, "has shape"),
    ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": ["a"]}]}, "takes FP64"),
    (
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1]}]},
        "no input kind, f, g, twice",
    ),
    ({"inputs": [{"name": "x", "shape": [1], "parameters": {"binary_data_size": 8}}]}, "8 bytes, of 0"),
]


@pytest.mark.parametrize(("body", "told"), TENSORS)
def test_a_slip_in_tensors_is_named(toy: Toy, body: Any, told: str) -> None:
    with toy.client() as client:
        answer = client.post("/v2/models/toy/infer", json=body)
        unknown = client.post("/v2/models/none/infer", json=body)
    assert (answer.status_code, unknown.status_code) == (400, 404)
    assert told in answer.json()["error"]


def test_whatever_its_description_allows_is_answered_and_never_with_an_error_of_ours(live: str) -> None:
    """And what it does not allow; the same in thousands: see docs/serving.md."""
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "run", f"http://{live}/openapi.json"),
        *("--max-examples", "60", "--seed", "1", "--generation-database", "none"),
        *("--checks", "not_a_server_error,content_type_conformance,status_code_conformance"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-9000:]
    assert "passed" in done.stdout


def test_what_is_killed_under_load_has_logged_all_that_it_answered_once(toy: Toy) -> None:
    """Of several that share a lake, whoever lives brings what the killed one left; so does who comes next."""
    answered: list[str] = []
    ports = [free_port() for _ in range(3)]
    endings = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
    with ExitStack() as stack:
        serving = list(ThreadPoolExecutor(3).map(lambda port: stack.enter_context(process(toy, port)), ports))

        def keep_asking(port: int) -> None:
            with httpx.Client(timeout=60) as client:
                while True:
                    try:
                        answer = client.post(
                            f"http://127.0.0.1:{port}/v1/toy/predict", json={"rows": [ROW, ROW]}
                        )
                    except httpx.TransportError:
                        return
                    if answer.status_code == 200:
                        answered.extend(one["id"] for one in answer.json()["predictions"])

        asking = [threading.Thread(target=keep_asking, args=(port,)) for port in ports for _ in range(2)]
        for thread in asking:
            thread.start()
        for number, (one, ending) in enumerate(zip(serving, endings, strict=True), 1):
            time.sleep(1.0)
            deadline = time.monotonic() + 60  # where all is slow it is killed later, but at work
            while len(answered) < 40 * number and time.monotonic() < deadline:
                time.sleep(0.1)
            one.send_signal(ending)
        for one in serving:
            one.wait(30)
        for thread in asking:
            thread.join()
    adopt(toy.home / "served", toy.lake)
    logged = [row["prediction_id"] for row in toy.logged()]
    assert len(answered) > 100
    assert len(logged) == len(set(logged))
    assert set(answered) <= set(logged)
