"""From a training set to who serves: trials, choice, verdict and promotion, without Prefect."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import registry, release
from headrace.cluster import cluster
from headrace.lake import DamagedTable, DatasetRef, Lake
from headrace.ledger import Ledger
from headrace.pipeline import Candidate, Columns, Pipeline
from headrace.problem import Regression
from headrace.release import models
from headrace.release.card import card
from headrace.release.errors import Unproven
from headrace.tracking import MLflow
from headrace.training.errors import DamagedModel
from tests.conftest import utc

AS_OF = utc(2024, 3, 4)
GOOD = Candidate("good", "sklearn")
BLIND = Candidate("blind", "sklearn", {"alpha": 1e12})
SPEC = Pipeline(
    *("toy", "", "", utc(2024), (), (), "", ("id",)),
    spine="",
    label="",
    columns=Columns((), ("x",)),
    candidates=(BLIND, GOOD),
    problem=Regression(unit="litres"),
)


class World:
    """A lake with a training set, an MLflow, a ledger, and a cluster."""

    def __init__(self, home: Path, client: Any) -> None:
        self.client = client
        self.mlflow = MLflow(f"sqlite:///{home}/mlflow/mlflow.db", home)
        self.lake, self.ledger = Lake(str(home / "lake")), Ledger(f"sqlite:///{home}/ledger.db")

    def write(self, *, signal: float = 2.0, count: int = 2_000) -> DatasetRef:
        draw = np.random.default_rng(0)
        x, start = draw.normal(size=count), AS_OF - timedelta(hours=count)
        place = np.arange(count) / count
        spans = np.select([place < 0.7, place < 0.72, place < 0.85], ["train", "gap", "selection"], "holdout")
        rows = pa.table(
            {
                "id": np.arange(count),
                "event_timestamp": pa.array(
                    [start + timedelta(hours=n) for n in range(count)], pa.timestamp("us", "UTC")
                ),
                "x": x,
                "label": signal * x + draw.normal(size=count),
                "span": spans.astype(object),
            }
        )
        table = self.lake.table("training/toy")
        return table.snapshot(table.replace(rows))

    def tried(self, data: DatasetRef, candidate: Candidate, *, last: bool = False) -> release.Trial:
        return release.try_out(
            SPEC,
            candidate,
            data,
            final=last,
            sources=[],
            lake=self.lake,
            mlflow=self.mlflow,
            cause="a test",
            as_of=AS_OF,
            client=self.client,
        )

    def registered(self, trial: release.Trial) -> int:
        return registry.register(self.mlflow, "toy", trial.logged)


@pytest.fixture(scope="module")
def client():  # type: ignore[no-untyped-def]
    with cluster() as client:
        yield client


@pytest.fixture
def world(tmp_path: Path, client: Any) -> World:
    return World(tmp_path, client)


def test_the_best_on_the_selection_is_judged_on_the_holdout_and_promoted(world: World) -> None:
    data = world.write()
    trials = [world.tried(data, candidate) for candidate in SPEC.candidates]
    chosen = release.choose(SPEC, trials)
    assert chosen.candidate == "good"
    assert {trial.losses.size for trial in trials} == {260}

    last = world.tried(data, GOOD, last=True)
    assert last.losses.size == 300
    assert last.logged.run_id != chosen.logged.run_id
    version = world.registered(last)
    verdict = release.judge(SPEC, version, last, data, world.lake, world.mlflow, AS_OF)
    assert verdict.promoted
    assert verdict.champion is None
    assert (
        "litres² per row over a guess from the past alone on 300 held-out rows in 13 groups" in verdict.reason
    )
    assert release.first(SPEC, world.ledger) is None
    for _ in range(2):  # done again, it ends the same
        assert release.carry_out(SPEC, version, verdict, AS_OF, world.mlflow, world.ledger, "a test")
        assert release.first(SPEC, world.ledger) == AS_OF
        champion = registry.champion(world.mlflow, "toy")
        assert champion is not None
        assert champion.version == version


def test_a_first_model_that_knows_no_more_than_the_past_is_not_released(world: World) -> None:
    data = world.write(signal=0.0)
    trial = world.tried(data, GOOD, last=True)
    version = world.registered(trial)

    verdict = release.judge(SPEC, version, trial, data, world.lake, world.mlflow, AS_OF)
    assert verdict.decision == "rejected"
    assert release.carry_out(SPEC, version, verdict, AS_OF, world.mlflow, world.ledger, "a test")

    assert registry.champion(world.mlflow, "toy") is None
    assert [r.verdict for r in registry.versions(world.mlflow, "toy")] == ["rejected"]


def test_of_too_few_groups_nothing_is_concluded_of_a_first_model_either(world: World) -> None:
    data, wide = world.write(), replace(SPEC, gate=replace(SPEC.gate, group=timedelta(weeks=1)))
    trial = world.tried(data, GOOD, last=True)
    trial = replace(trial, groups=trial.groups // 7)
    verdict = release.judge(wide, world.registered(trial), trial, data, world.lake, world.mlflow, AS_OF)
    assert verdict.decision == "not enough evidence"


def test_who_is_no_better_than_the_champion_does_not_take_its_place(world: World) -> None:
    data = world.write()
    good, blind = (world.tried(data, candidate, last=True) for candidate in (GOOD, BLIND))
    first = world.registered(good)
    verdict = release.judge(SPEC, first, good, data, world.lake, world.mlflow, AS_OF)
    release.carry_out(SPEC, first, verdict, AS_OF, world.mlflow, world.ledger, "a test")

    second = world.registered(blind)
    verdict = release.judge(SPEC, second, blind, data, world.lake, world.mlflow, AS_OF)
    assert (verdict.decision, verdict.champion) == ("rejected", str(first))
    assert "over a guess" not in verdict.reason
    assert release.carry_out(SPEC, second, verdict, AS_OF, world.mlflow, world.ledger, "a test")
    champion = registry.champion(world.mlflow, "toy")
    assert champion is not None
    assert champion.version == first


def test_a_model_is_not_judged_by_rows_that_are_not_what_was_written(world: World) -> None:
    data = world.write()
    forged = replace(data, fingerprint="0" * 16)
    with pytest.raises(DamagedTable, match="training/toy"):
        world.tried(forged, GOOD, last=True)


def test_what_a_version_was_promoted_by_is_verified_and_any_change_of_it_found(world: World) -> None:
    data = world.write()
    trial = world.tried(data, GOOD, last=True)
    version = world.registered(trial)
    verdict = release.judge(SPEC, version, trial, data, world.lake, world.mlflow, AS_OF)
    with pytest.raises(Unproven, match="never promoted"):
        release.verify(SPEC, version, world.mlflow, world.ledger, world.lake)
    release.carry_out(SPEC, version, verdict, AS_OF, world.mlflow, world.ledger, "a test")

    checked = release.verify(SPEC, version, world.mlflow, world.ledger, world.lake)
    assert [what.split()[0] for what in checked] == ["receipt", "model", f"training/toy@v{data.version},"]

    tag = registry.version(world.mlflow, "toy", version).receipt
    world.mlflow.client.set_model_version_tag("toy", str(version), "headrace.receipt", "0" * 64)
    with pytest.raises(Unproven, match="another receipt"):
        release.verify(SPEC, version, world.mlflow, world.ledger, world.lake)
    world.mlflow.client.set_model_version_tag("toy", str(version), "headrace.receipt", tag)

    [file] = world.mlflow.home.rglob("*.skops")
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(DamagedModel):
        release.verify(SPEC, version, world.mlflow, world.ledger, world.lake)
    file.write_bytes(kept)

    with closing(sqlite3.connect(world.mlflow.home / "ledger.db")) as con, con:
        con.execute("UPDATE headrace_ledger SET detail = replace(detail, '\"rows\": 300', '\"rows\": 301')")
    with pytest.raises(Unproven, match="not as it was written"):
        release.verify(SPEC, version, world.mlflow, world.ledger, world.lake)


def test_a_card_says_what_the_records_do_and_no_more(world: World) -> None:
    data = world.write()
    trial = world.tried(data, GOOD, last=True)
    version = world.registered(trial)
    verdict = release.judge(SPEC, version, trial, data, world.lake, world.mlflow, AS_OF)
    release.carry_out(SPEC, version, verdict, AS_OF, world.mlflow, world.ledger, "a test")
    one = models.about(world.mlflow, registry.version(world.mlflow, "toy", version))

    told = card(SPEC, one, world.mlflow, world.ledger)

    assert told.startswith(f"# toy@{version}, champion\n")
    assert "judged by its loss in litres²" in told
    assert f"**Promoted.** {verdict.reason}" in told
    assert "| held | size in MB |" in told
    assert "promoted by the gate (a test)" in told
    # A run that was killed then finds it champion: nobody is asked about it, and its page stays.
    asking = replace(SPEC, gate=replace(SPEC.gate, approval=timedelta(hours=1)))
    late = release.judge(asking, version, trial, data, world.lake, world.mlflow, AS_OF)
    assert (late.promoted, late.gain, release.asks(asking, late, world.mlflow)) == (True, None, None)
    assert release.asks(asking, replace(late, challenger="99"), world.mlflow) == timedelta(hours=1)
    release.carry_out(asking, version, late, AS_OF, world.mlflow, world.ledger, "a test")
    assert card(SPEC, one, world.mlflow, world.ledger) == told
    assert f"| training/toy | {data.version} | 2,000 | {data.fingerprint} |" in told
    assert f"Receipt {registry.version(world.mlflow, 'toy', version).receipt}" in told
    assert "on the 300 rows held out" in told
    assert "Inputs: x." in told


def test_the_page_of_a_later_verdict_is_put_before_that_of_an_earlier_one(world: World) -> None:
    data = world.write()
    trial = world.tried(data, GOOD, last=True)
    version = world.registered(trial)
    won = release.judge(SPEC, version, trial, data, world.lake, world.mlflow, AS_OF)
    early = replace(won, decision="not enough evidence", reason="Too few days.")

    for verdict in (early, early, won):
        release.carry_out(SPEC, version, verdict, AS_OF, world.mlflow, world.ledger, "a test")

    one = models.about(world.mlflow, registry.version(world.mlflow, "toy", version))
    told = card(SPEC, one, world.mlflow, world.ledger)
    assert told.count("Too few days.") == 1
    assert told.index(f"**Promoted.** {won.reason}") < told.index("Too few days.")
