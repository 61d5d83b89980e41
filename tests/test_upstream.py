"""A pipeline that feeds on another's predictions has of each what could be had at its time, and no more."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import release
from headrace.cluster import cluster
from headrace.errors import BrokenDeclaration
from headrace.ingest import stage, workspace
from headrace.lake import Lake, Window, windows
from headrace.ledger import Ledger
from headrace.pipeline import Candidate, Columns, Pipeline, Source, load
from headrace.problem import Binary
from headrace.project import Project
from headrace.serving import log
from headrace.sources import Call, Predictions
from headrace.training import dataset
from headrace.validation.suites import known
from pipelines.next_leg import PIPELINE as NEXT_LEG
from tests.conftest import utc

START, WEEK = utc(2024), timedelta(weeks=1)
TURN = utc(2024, 1, 22)
RELEASED = utc(2024, 1, 31)
"""Not where windows meet."""
BEGINS = utc(2024, 2, 5)
CANDIDATE = Candidate("baseline", "sklearn")
UP = Pipeline(
    *("up", "", "", START),
    (Source("things", Call(lambda _: []), "asked_at", "flights.flights"),),
    *((), "", ("id",)),
    spine="SELECT id, asked_at AS event_timestamp, x FROM things",
    label="SELECT id, label, asked_at + INTERVAL 1 HOUR AS available_at FROM things",
    columns=Columns((), ("x",)),
    candidates=(CANDIDATE,),
    problem=Binary(),
)
FED = Source("up", Predictions("up", ("id", "probability")), "predicted_at", "next_leg.flights_predictions")
DOWN = replace(UP, name="down", sources=(*UP.sources, FED))


@pytest.fixture(scope="module")
def client():  # type: ignore[no-untyped-def]
    with cluster() as client:
        yield client


class Lived:
    """Five weeks of an upstream: what ``x`` means turns round after three of them."""

    def __init__(self, home: Path, client: Any) -> None:
        self.lake, self.ledger, self.client = (
            Lake(str(home / "lake")),
            Ledger(f"sqlite:///{home}/l.db"),
            client,
        )
        draw, count = np.random.default_rng(0), 5 * 7 * 24
        at = [START + timedelta(hours=n) for n in range(count)]
        x = draw.normal(size=count)
        sign = np.where(np.array([instant < TURN for instant in at]), 1, -1)
        label = (sign * x + 0.3 * draw.normal(size=count) > 0).astype(np.int32)
        instants = pa.array(at, pa.timestamp("us", "UTC"))
        rows = pa.table(
            {"id": np.arange(count), "asked_at": instants, "x": x, "label": label, "available_at": instants}
        )
        self.lake.table("raw/things").append(rows, "all")

    def predict(self, span: Window) -> int:
        return release.predict_history(
            UP, CANDIDATE, span, self.lake, self.ledger, lambda spine: spine, self.client, "a test"
        )

    def history(self) -> pa.Table:
        con = self.lake.connect({"made": "out_of_sample/up", "things": "raw/things"})
        return con.sql("SELECT made.*, label FROM made JOIN things USING (id) ORDER BY id").to_arrow_table()


@pytest.fixture
def lived(tmp_path: Path, client: Any) -> Lived:
    return Lived(tmp_path, client)


def test_what_was_before_the_first_release_is_predicted_by_who_knew_no_more(lived: Lived) -> None:
    assert release.complete(UP, lived.lake, lived.ledger, None, BEGINS) == START
    assert release.complete(UP, lived.lake, lived.ledger, RELEASED, BEGINS) == START
    spans = release.missing(UP, lived.ledger, RELEASED)
    assert spans == windows(START, BEGINS, WEEK)

    made = {}
    for span in spans:
        assert release.complete(UP, lived.lake, lived.ledger, RELEASED, BEGINS) == span.start
        made[span.start] = lived.predict(span)

    assert made == {span.start: 0 if span.start == START else 168 for span in spans}
    assert release.missing(UP, lived.ledger, RELEASED) == []
    assert release.complete(UP, lived.lake, lived.ledger, RELEASED, BEGINS) == BEGINS
    history = lived.history()
    right = (history["probability"].to_numpy() > 0.5) == history["label"].to_numpy()
    at = np.array(history["event_timestamp"].to_pylist())
    assert right[at < TURN].mean() > 0.85
    # Who had seen the week in which it turned, or any row of it, would not be as wrong.
    assert right[(at >= TURN) & (at < TURN + WEEK)].mean() < 0.2
    assert history["available_at"].equals(history["event_timestamp"])
    assert history["model_version"].unique().to_pylist() == [0]


def test_history_that_was_cut_short_is_made_once(lived: Lived, monkeypatch: pytest.MonkeyPatch) -> None:
    span = Window(START + WEEK, START + 2 * WEEK)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            lived.predict(span)
    assert span in release.missing(UP, lived.ledger, RELEASED)
    before = lived.history()
    assert lived.predict(span) == 168
    assert lived.history().equals(before)
    assert span not in release.missing(UP, lived.ledger, RELEASED)


class Says:
    """A model that always says the same."""

    problem = Binary()

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def predict(self, rows: pa.Table) -> Any:
        return np.full(rows.num_rows, self.probability)


def test_a_prediction_counts_from_when_its_model_had_learnt(lived: Lived, tmp_path: Path) -> None:
    for span in release.missing(UP, lived.ledger, RELEASED):
        lived.predict(span)
    first, last = Window(BEGINS - WEEK, BEGINS), Window(START, START + WEEK)
    late = first.start + timedelta(days=3)
    # Of one window, after an outage, by a model that had learnt part of it; rows of another came late.
    assert (
        log.score(UP, lived.lake, first, partial(log.predicted, UP, model=Says(0.7), version=3, since=late))
        == 168
    )
    made = log.read(UP, lived.lake, first)
    events = made["event_timestamp"].to_pylist()
    assert made["available_at"].to_pylist() == [max(event, late) for event in events]

    rows = Predictions("up", ("id", "probability")).of(lived.lake).function
    (history, scored) = rows(first)
    assert min(scored["predicted_at"].to_pylist()) == late
    assert scored["model_version"].unique().to_pylist() == [3]
    assert scored.num_rows == 168
    assert history["model_version"].unique().to_pylist() == [0]
    (nothing, none) = rows(last)
    assert (nothing.num_rows, none.num_rows) == (0, 0)


def test_windows_are_staged_as_far_as_they_are_predicted_and_named_in_the_training_set(
    lived: Lived, tmp_path: Path
) -> None:
    for span in release.missing(UP, lived.ledger, RELEASED):
        lived.predict(span)
    until = release.complete(UP, lived.lake, lived.ledger, RELEASED, BEGINS + WEEK)
    assert until == BEGINS
    with workspace(tmp_path) as folder:
        staged = stage(DOWN, FED, until, lived.lake, lived.ledger, folder)
        brought = {batch.lot.window: batch.lot.rows for batch in staged.batches}
    assert brought == dict.fromkeys(windows(START, BEGINS, WEEK)[1:], 168)
    assert [str(window) for window in staged.empty] == [str(Window(START, START + WEEK))]

    landed = pa.table(
        {
            "id": [1, 2, 3],
            "model_version": [0, 2, 7],
            "available_at": pa.array([START, START, BEGINS + WEEK], pa.timestamp("us", "UTC")),
        }
    )
    lived.lake.table("raw/up").append(landed, "some")
    ref = dataset.build(DOWN, lived.lake, BEGINS, lambda spine: spine, {})
    assert ref.fed_on == (("up", (0, 2)),)


def declare(monkeypatch: pytest.MonkeyPatch, origin: Predictions, **fields: Any) -> tuple[str, ...]:
    """Declare next_leg with another source of predictions; return what is said of it."""
    *others, fed = NEXT_LEG.sources
    module = ModuleType("pipelines.next_leg")
    sources = (*others, replace(fed, origin=origin, **fields))
    module.PIPELINE = replace(NEXT_LEG, sources=sources)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.next_leg", module)
    with pytest.raises(BrokenDeclaration) as caught:
        load("next_leg")
    return caught.value.slips


def test_a_pipeline_feeds_on_what_there_is_and_not_on_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = declare(monkeypatch, Predictions("flight", ("probability",)))
    assert said.startswith(
        "`sources[4].origin` names pipeline `flight`, but pipelines/ has arrival_delay, flights,"
    )
    (said,) = declare(monkeypatch, Predictions("next_leg", ("probability",)))
    assert said == "`sources[4].origin` feeds on itself: next_leg ▶ next_leg"
    (said,) = declare(monkeypatch, Predictions("flights", ("prediction",)))
    assert said == "`sources[4].origin` names prediction, of which `flights` logs nothing"
    (said,) = declare(monkeypatch, Predictions("flights", ("probability",)), time="sched_dep")
    assert said == "`sources[4].time` must be `predicted_at`, but is `sched_dep`"

    flights = load("flights")
    loop = Source(
        "next_legs", Predictions("next_leg", ("probability",)), "predicted_at", "next_leg.predictions"
    )
    module = ModuleType("pipelines.flights")
    module.PIPELINE = replace(flights, sources=(*flights.sources, loop))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.flights", module)
    (said,) = declare(monkeypatch, Predictions("flights", ("probability",)))
    assert said == "`sources[4].origin` feeds on itself: next_leg ▶ flights ▶ next_leg"


def test_an_upstream_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ModuleType("pipelines.flights")
    broken.PIPELINE = replace(load("flights"), columns=None)  # type: ignore[arg-type, attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.flights", broken)
    (said,) = declare(monkeypatch, Predictions("flights", ("probability",)))
    assert said == "`sources[4].origin` names pipeline `flights`, which is broken: mend that one first"


def test_a_pipeline_that_is_broken_stops_who_looks_and_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ModuleType("pipelines.outcome")
    broken.PIPELINE = replace(load("outcome"), name="another")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.outcome", broken)
    project = Project.here()
    with pytest.raises(BrokenDeclaration):
        project.pipelines()
    fed = release.downstream("flights", project.sound_pipelines())
    assert [spec.name for spec in fed] == ["next_leg"]


def test_helpers_of_suites_are_no_suites() -> None:
    named = {name for name in known() if name.startswith(("flights.", "next_leg."))}
    assert not {name.split(".")[1] for name in named} & {"features", "shape", "route", "after"}


def test_who_feeds_on_a_pipeline_is_known() -> None:
    among = [load(name) for name in ("flights", "outcome", "next_leg")]
    assert [spec.name for spec in release.downstream("flights", among)] == ["next_leg"]
    assert release.downstream("next_leg", among) == []
