"""A study has the same trials each time: with more workers, killed anywhere, or gone on with later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace import release as releases
from headrace.cluster import cluster
from headrace.errors import BrokenDeclaration
from headrace.lake import DamagedTable, Lake
from headrace.ledger import AlreadyClaimed, Ledger
from headrace.pipeline import Candidate, Choice, Float, Int, load
from headrace.release.errors import NothingFound
from headrace.release.study import AT_ONCE, Study
from headrace.tracking import MLflow
from headrace.training import dataset
from tests.test_reproduce import AS_OF, SPEC, land

SEARCH = {
    "eta": Float(0.01, 0.9, log=True),
    "max_depth": Int(1, 8),
    "grow_policy": Choice(("depthwise", "lossguide")),
}
TREES = Candidate("trees", "xgboost", {"rounds": 60}, seed=3, search=SEARCH)
TUNED = replace(SPEC, candidates=(TREES,))
TRIALS = 18


class Room:
    """A home with the toy's data, and a study in it."""

    def __init__(self, home: Path, candidate: Candidate = TREES) -> None:
        self.home, self.lake = home, Lake(str(home / "lake"))
        self.ledger, self.mlflow = (
            Ledger(f"sqlite:///{home}/ledger.db"),
            MLflow(f"sqlite:///{home}/mlflow/mlflow.db", home),
        )
        spec = replace(SPEC, candidates=(candidate,))
        if not (home / "lake").exists():
            land(self.lake, 0, 2_016)
            dataset.build(spec, self.lake, AS_OF, lambda rows: rows, {})
        self.study = Study(spec, candidate, self.lake.table("training/toy").snapshot())

    def tune(self, client: Any, trials: int = TRIALS, holder: str = "a test") -> Iterator[releases.Tried]:
        rooms = (self.ledger, self.lake, self.mlflow, client)
        return releases.tune(self.study, trials, *rooms, AS_OF, holder)

    def trials(self) -> list[Any]:
        """Return what there is to know of each trial, in order, but for when it was."""
        return [
            (trial.number, trial.state, trial.params, trial.values, trial.intermediate_values)
            for trial in self.study.open(self.ledger).get_trials()
        ]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with cluster() as client:
        yield client


@pytest.fixture(scope="module")
def whole(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Room:
    """A study that nothing disturbed."""
    room = Room(tmp_path_factory.mktemp("whole"))
    assert [tried.number for tried in room.tune(client)] == list(range(TRIALS))
    return room


def test_a_study_finds_better_parameters_and_gives_up_what_is_hopeless(whole: Room) -> None:
    trials = whole.study.open(whole.ledger).get_trials()
    states = [trial.state.name for trial in trials]
    assert states.count("PRUNED") >= 2
    assert {"COMPLETE", "PRUNED"} == {*states}
    first, best = trials[0].value, releases.best(whole.study, whole.ledger)
    assert best.loss is not None
    assert first is not None
    assert best.loss == min(trial.value for trial in trials if trial.value is not None) < first
    ended = [len(trial.intermediate_values) for trial in trials if trial.state.name == "COMPLETE"]
    cut = [max(trial.intermediate_values) for trial in trials if trial.state.name == "PRUNED"]
    assert max(cut) < 60
    assert min(ended) > 1
    assert {*releases.plots(whole.study, whole.ledger)} >= {"optimization_history.html", "slice.html"}


def test_each_trial_is_a_run_nested_in_the_studys(whole: Room) -> None:
    experiment = whole.mlflow.client.get_experiment_by_name("toy")
    assert experiment
    runs = whole.mlflow.client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags["headrace.role"] == "study")
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == TRIALS
    trials = whole.study.open(whole.ledger).get_trials()
    for run in nested:
        trial = trials[int(run.data.tags["mlflow.runName"].split()[1])]
        assert run.data.params["eta"] == str(trial.params["eta"])
        assert run.data.metrics.get("loss") == (trial.value if trial.state.name == "COMPLETE" else None)
        assert "selection/logloss" in run.data.metrics


def test_two_worker_processes_have_the_same_trials(whole: Room, tmp_path: Path) -> None:
    room = Room(tmp_path)
    with cluster(workers=2) as two:
        assert len(list(room.tune(two))) == TRIALS
    assert room.trials() == whole.trials()


def test_a_study_that_ends_anywhere_goes_on_to_the_same_trials(
    whole: Room, client: Any, tmp_path: Path
) -> None:
    room = Room(tmp_path)
    for left in (1, 2, 3, 1, 4, 2):  # each time that many more are told, and some are left behind
        running = room.tune(client)
        for _ in range(left):
            next(running)
        running.close()  # type: ignore[attr-defined]
    list(room.tune(client))
    assert room.trials() == whole.trials()
    assert list(room.tune(client)) == []
    assert [tried.number for tried in room.tune(client, TRIALS + 2)] == [TRIALS, TRIALS + 1]


def test_of_two_that_are_at_one_study_the_second_is_told_who_is(client: Any, tmp_path: Path) -> None:
    room = Room(tmp_path)
    first = room.tune(client, 8, "one run")
    assert next(first).number == 0
    with pytest.raises(AlreadyClaimed, match="is being worked on by one run"):
        next(room.tune(client, 8, "another run"))
    assert [tried.number for tried in first] == [*range(1, 8)]
    assert [tried.number for tried in room.tune(client, 9, "another run")] == [8]


KILLED = """
import os, signal, sys
from pathlib import Path
from headrace.cluster import cluster
from headrace.release import study
from tests.test_study import Room

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    place, after = sys.argv[2], int(sys.argv[3])
    owner = study.tracking if place == "log_trial" else __import__("optuna").Study
    real, calls = getattr(owner, place), []
    def counted(*args, **kwargs):
        calls.append(1)
        return kill() if len(calls) > after else real(*args, **kwargs)
    setattr(owner, place, counted)
    with cluster() as client:
        list(Room(Path(sys.argv[1])).tune(client))
"""


@pytest.mark.parametrize(("place", "after"), [("ask", 2), ("ask", 13), ("log_trial", 5), ("tell", 6)])
def test_a_study_killed_at_any_step_goes_on_to_the_same_trials(
    whole: Room, client: Any, tmp_path: Path, place: str, after: int
) -> None:
    room = Room(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path), place, str(after)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    list(room.tune(client))
    assert room.trials() == whole.trials()


def test_a_trial_that_cannot_be_fitted_is_told_and_the_others_go_on(client: Any, tmp_path: Path) -> None:
    odd = replace(TREES, search={"max_depth": Int(1, 3), "booster": Choice(("gbtree", "no such"))})
    room = Room(tmp_path, odd)
    tried = list(room.tune(client, 8))
    failed = [one for one in tried if one.params["booster"] == "no such"]
    assert 0 < len(failed) < 8
    assert all("no such" in one.failed and one.loss is None for one in failed)
    assert releases.best(room.study, room.ledger).params["booster"] == "gbtree"

    hopeless = replace(TREES, search={"booster": Choice(("none", "no such"))})
    room = Room(tmp_path, hopeless)
    list(room.tune(client, 2))
    with pytest.raises(NothingFound, match="could be fitted"):
        releases.best(room.study, room.ledger)


def test_rows_that_cannot_be_read_end_the_study_and_spoil_no_trial(
    whole: Room, client: Any, tmp_path: Path
) -> None:
    room = Room(tmp_path)
    (file,) = (tmp_path / "lake/training/toy").glob("*.parquet")
    running = room.tune(client)
    for _ in range(AT_ONCE):
        next(running)
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(DamagedTable, match="is missing"):
        list(running)
    (tmp_path / "elsewhere").rename(file)
    list(room.tune(client))
    assert room.trials() == whole.trials()


def test_a_study_lies_in_postgresql_if_the_ledger_does(client: Any, tmp_path: Path, postgres: str) -> None:
    room = Room(tmp_path)
    room.ledger = Ledger(postgres)
    assert len(list(room.tune(client, 5))) == 5
    here = Room(tmp_path)
    list(here.tune(client, 5))
    assert room.trials() == here.trials()


def test_what_was_found_is_fitted_from_then_on(whole: Room, tmp_path: Path) -> None:
    ledger, space = Ledger(f"sqlite:///{tmp_path}/l.db"), releases.space_of(TREES)
    later = AS_OF.replace(day=20)

    def note(key: str, eta: float, trials: int, at: Any) -> None:
        found = {"as_of": at, "trials": trials, "space": space, "params": {"eta": eta}}
        ledger.finish("toy", "study", key, holder="x", **found)

    assert releases.tuned(TUNED, ledger, later) == TUNED
    note("a", 0.1, 9, AS_OF)
    note("b", 0.2, 20, AS_OF)
    note("c", 0.3, 9, later)
    for at, eta in ((AS_OF, 0.2), (later, 0.3)):
        (candidate,) = releases.tuned(TUNED, ledger, at).candidates
        assert candidate.params == {"rounds": 60, "eta": eta}
    assert releases.tuned(TUNED, ledger, AS_OF.replace(day=11)) == TUNED  # it was not known yet
    other = replace(TUNED, candidates=(replace(TREES, params={"rounds": 61}),))
    assert releases.tuned(other, ledger, later) == other  # found for something else


def test_a_search_with_a_slip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import flights

    search = {"eta": Float(0, 1, log=True), "depth": Int(5, 3), "policy": Choice(("one",))}
    candidate = replace(flights.PIPELINE.candidates[0], search=search)
    monkeypatch.setattr(flights, "PIPELINE", replace(flights.PIPELINE, candidates=(candidate,)))
    with pytest.raises(BrokenDeclaration) as refused:
        load("flights")
    for said in ("`eta` by ratios from 0", "`depth` from 5 to 3", "`policy` among 1 values"):
        assert said in str(refused.value)
