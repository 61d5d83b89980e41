"""What MLflow keeps of a candidate, and how the registry names the one that serves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace import registry, release, tracking
from headrace.errors import ServerUnreachable
from headrace.gate import Verdict
from headrace.lake import DatasetRef, Lake
from headrace.ledger import AlreadyClaimed, Ledger
from headrace.pipeline import Candidate, Columns, Pipeline
from headrace.problem import Binary
from headrace.project import Project
from headrace.release.errors import NothingBefore
from headrace.settings import Settings
from headrace.tracking import MLflow
from headrace.training.encoding import Encoder
from headrace.training.errors import DamagedModel
from headrace.training.model import Model
from headrace.training.sklearn import Estimated
from headrace.training.xgboost import Boosted

AS_OF = datetime(2013, 6, 3, tzinfo=UTC)
TRAINING = DatasetRef("training/flights", 3, 300, "00000000000000aa")
RAW = DatasetRef("raw/flights", 0, 5000, "00000000000000bb")
SMALL = Candidate("small", "xgboost", {"max_depth": 2, "rounds": 3})
COLUMNS = Columns(categorical=("carrier",), numeric=("hour", "distance"))
SPEC = Pipeline("late", "", "", AS_OF, (), (), "", (), "", "", COLUMNS, (SMALL,))
NOON = datetime(2013, 6, 3, 12, tzinfo=UTC)
AT_ONCE = 8


def rows(n=300):
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "carrier": draw.choice(["UA", "B6", "DL"], n),
            "hour": draw.uniform(5, 23, n),
            "distance": pa.array(draw.uniform(90, 2500, n), mask=draw.random(n) < 0.1),
        }
    )


@pytest.fixture(scope="module")
def model():
    import xgboost

    encoder = Encoder.fit(rows(), COLUMNS)
    data = xgboost.DMatrix(encoder.encode(rows()), np.asarray(rows()["hour"]) > 14)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, 3)
    return Model("xgboost", Binary(), Boosted(encoder, booster))


def uri(home):
    return f"sqlite:///{home}/mlflow/mlflow.db"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A home with an empty MLflow database, made once: creating its tables takes two seconds."""
    home = tmp_path_factory.mktemp("template")
    _ = MLflow(uri(home), home).client
    return home


@pytest.fixture
def home(template, tmp_path):
    return shutil.copytree(template, tmp_path / "home")


@pytest.fixture
def mlflow(home):
    import mlflow

    mlflow.set_tracking_uri("http://127.0.0.1:9")  # where this process points, nobody looks
    return MLflow(uri(home), home)


@pytest.fixture
def pointed(mlflow):
    """MLflow as whoever uses our models has it: the process points where they are."""
    import mlflow as library

    library.set_tracking_uri(mlflow.address)
    return library


@pytest.fixture
def log(mlflow, model):
    def log(metrics=(("logloss", 0.41),), candidate=SMALL, model=model, cause="first", training=TRAINING):
        return tracking.log_candidate(
            *(mlflow, SPEC, candidate, model, dict(metrics)),
            training=training,
            sources=[RAW],
            lake=Lake(f"{mlflow.home}/lake"),
            cause=cause,
            as_of=AS_OF,
        )

    return log


def runs(mlflow):
    experiment = mlflow.client.get_experiment_by_name("late").experiment_id
    return mlflow.client.search_runs([experiment])


def test_candidates_that_are_logged_at_once_share_their_data_sets(mlflow, home, log, monkeypatch):
    from mlflow import MlflowClient

    note, all_there = MlflowClient.log_inputs, threading.Barrier(AT_ONCE)

    def together(*args):
        with contextlib.suppress(threading.BrokenBarrierError):  # second tries are not waited for
            all_there.wait(2)
        return note(*args)

    monkeypatch.setattr(MlflowClient, "log_inputs", together)
    candidates = [dataclasses.replace(SMALL, name=f"small{number}") for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        logged = [done.result() for done in [pool.submit(log, candidate=c) for c in candidates]]

    assert len(runs(mlflow)) == len(logged) == AT_ONCE
    assert {run.info.run_id for run in runs(mlflow)} == {each.run_id for each in logged}
    assert {run.info.status for run in runs(mlflow)} == {"FINISHED"}
    names = {f"{ref.table}@v{ref.version}" for ref in (TRAINING, RAW)}
    assert all({given.dataset.name for given in run.inputs.dataset_inputs} == names for run in runs(mlflow))


def test_processes_that_start_at_once_in_an_empty_home_all_find_one_sound_database(tmp_path):
    code = f"""
from pathlib import Path
from headrace.tracking import MLflow
MLflow({uri(tmp_path)!r}, Path({str(tmp_path)!r})).client
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in started]

    assert [process.returncode for process in started] == [0, 0], errors
    assert sum("Creating initial MLflow database tables" in error for error in errors) == 1


def test_a_run_names_the_delta_versions_it_was_trained_on(mlflow, log, home):
    run = mlflow.client.get_run(log().run_id)

    inputs = {
        (i.tags[0].value, i.dataset.name): (i.dataset.digest, json.loads(i.dataset.source))
        for i in run.inputs.dataset_inputs
    }
    assert inputs == {
        ("training", "training/flights@v3"): (
            TRAINING.fingerprint,
            {"path": f"{home}/lake/training/flights", "delta_table_version": 3},
        ),
        ("source", "raw/flights@v0"): (
            RAW.fingerprint,
            {"path": f"{home}/lake/raw/flights", "delta_table_version": 0},
        ),
    }


def test_equal_rows_at_two_versions_stay_two_inputs(mlflow, log):
    log()
    rewritten = dataclasses.replace(TRAINING, version=4)
    run = mlflow.client.get_run(log(training=rewritten, cause="again").run_id)

    assert "training/flights@v4" in [i.dataset.name for i in run.inputs.dataset_inputs]


def test_a_run_and_its_model_carry_parameters_scores_and_cause(mlflow, log, home):
    logged = log()
    run, kept = mlflow.client.get_run(logged.run_id), mlflow.client.get_logged_model(logged.model_id)

    assert run.info.status == "FINISHED"
    assert run.data.params == kept.params == {"max_depth": "2", "rounds": "3", "seed": "0"}
    assert run.data.metrics == {m.key: m.value for m in kept.metrics} == {"logloss": 0.41}
    assert run.data.tags["headrace.cause"] == kept.tags["headrace.cause"] == "first"
    assert kept.artifact_location.startswith(tracking.artifact_root(home) + "/late/")


def test_the_same_work_is_logged_once(mlflow, log):
    assert log() == log()
    assert len(runs(mlflow)) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"cause": 'drift\'s "alarm"'},
        {"candidate": dataclasses.replace(SMALL, params={"max_depth": 3, "rounds": 3})},
        {"candidate": dataclasses.replace(SMALL, seed=1)},
        {"training": dataclasses.replace(TRAINING, fingerprint="00000000000000cc")},
    ],
)
def test_work_that_differs_is_logged_apart(log, other):
    assert log().run_id != log(**other).run_id
    assert log(**other) == log(**other)


def test_a_step_killed_while_logging_leaves_a_killed_run_and_is_made_good_by_the_next(mlflow, log, home):
    code = f"""
import os, signal
from dataclasses import dataclass
from test_tracking import *
class Dies:
    trainer = "xgboost"
    def save(self, directory):
        os.kill(os.getpid(), signal.SIGKILL)
home = Path({str(home)!r})
tracking.log_candidate(MLflow(uri(home), home), SPEC, SMALL, Dies(), {{"logloss": 0.41}},
                       training=TRAINING, lake=Lake("lake"), cause="first", as_of=AS_OF)
"""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    died = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [run.info.status for run in runs(mlflow)] == ["RUNNING"]

    logged = log()

    assert {run.info.run_id == logged.run_id: run.info.status for run in runs(mlflow)} == {
        True: "FINISHED",
        False: "KILLED",
    }
    models = mlflow.client.search_logged_models([runs(mlflow)[0].info.experiment_id])
    assert {m.model_id == logged.model_id: str(m.status) for m in models} == {True: "READY", False: "FAILED"}


def test_what_a_model_needs_is_declared_and_not_found_by_importing_it(log, monkeypatch):
    """MLflow's own search loads the model in a new process, which takes ten times as long as all else."""
    import mlflow.models

    monkeypatch.setattr(mlflow.models, "infer_pip_requirements", lambda *_, **__: pytest.fail("searched for"))

    assert log().run_id


def test_a_released_model_predicts_as_the_fitted_one_did(mlflow, log, model):
    logged = log()
    version = registry.register(mlflow, "late", logged)
    loaded = tracking.load_model(mlflow, f"models:/late/{version}")

    np.testing.assert_array_equal(loaded.predict(rows()), model.predict(rows()))
    assert tracking.load_model(mlflow, f"models:/late/{version}") is loaded
    np.testing.assert_array_equal(
        tracking.load_model(mlflow, logged.model_uri).predict(rows()), loaded.predict(rows())
    )


def test_a_damaged_model_is_refused_by_its_version_and_file(mlflow, pointed, log):
    import mlflow.pyfunc as stock
    from mlflow import MlflowException

    logged = log()
    version = registry.register(mlflow, "late", logged)
    uri = f"models:/late/{version}"
    tags = mlflow.client.get_model_version("late", str(version)).tags
    assert tags["headrace.digest"] == mlflow.client.get_logged_model(logged.model_id).tags["headrace.digest"]
    place = Path(mlflow.client.get_logged_model(logged.model_id).artifact_location.removeprefix("file://"))
    (file,) = place.rglob("model.ubj")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    for address in (uri, logged.model_uri):
        with pytest.raises(DamagedModel, match=rf"The model {address} is damaged: `model\.ubj` is not as"):
            tracking.load_model(mlflow, address)
    with pytest.raises(DamagedModel, match=r"`model\.ubj` is not as it was written"):
        stock.load_model(uri)
    file.unlink()
    with pytest.raises(DamagedModel, match=r"`model\.ubj` is missing.*Restore the files from a backup"):
        tracking.load_model(mlflow, uri)
    shutil.rmtree(file.parent)
    with pytest.raises(DamagedModel, match="`data/model` is missing, in its artifacts"):
        tracking.load_model(mlflow, uri)
    with pytest.raises(MlflowException, match="not found"):
        tracking.load_model(mlflow, "models:/late/99")


def test_a_model_of_before_there_were_checksums_still_loads(mlflow, log, model):
    logged = log()
    version = registry.register(mlflow, "late", logged)
    mlflow.client.delete_model_version_tag("late", str(version), "headrace.digest")
    place = Path(mlflow.client.get_logged_model(logged.model_id).artifact_location.removeprefix("file://"))
    next(place.rglob("SHA256SUMS")).unlink()

    loaded = tracking.load_model(mlflow, f"models:/late/{version}")
    np.testing.assert_array_equal(loaded.predict(rows()), model.predict(rows()))


def test_a_model_is_not_loaded_by_an_alias_that_may_move(mlflow, home):
    with pytest.raises(ValueError, match="fixed version"):
        tracking.load_model(mlflow, "models:/late@champion")


def test_stock_mlflow_loads_our_models_its_own_way(pointed, log, model):
    import mlflow.pyfunc
    import mlflow.xgboost

    address = log().model_uri
    served = mlflow.pyfunc.load_model(address).predict(rows().to_pandas())

    np.testing.assert_array_equal(served["probability"], model.predict(rows()))
    assert mlflow.xgboost.load_model(address).save_raw() == model.native.booster.save_raw()


def test_stock_mlflow_takes_columns_of_any_name_and_type_that_models_take(mlflow, pointed):
    import mlflow.pyfunc as stock
    import xgboost

    odd, long = 'a "quoted" [0] < 1; b', Decimal(10**30)
    taken = pa.table(
        {
            odd: [1.0, np.inf, None] * 10,
            "flag": [True, False, True] * 10,
            "exact": pa.array([long, None, Decimal(1)] * 10, pa.decimal128(38, 0)),
            "code": pa.array(["7", "9007199254740993", None] * 10),
        }
    )
    columns = Columns(("code",), (odd, "flag", "exact"))
    encoder = Encoder.fit(taken, columns)
    data = xgboost.DMatrix(encoder.encode(taken), np.arange(30) % 3 == 0)
    booster = xgboost.train({"objective": "binary:logistic"}, data, 2)
    fitted = Model("xgboost", Binary(), Boosted(encoder, booster))
    logged = tracking.log_candidate(
        *(mlflow, dataclasses.replace(SPEC, columns=columns), SMALL, fitted, {}),
        training=TRAINING,
        lake=Lake(f"{mlflow.home}/lake"),
        cause="odd",
        as_of=AS_OF,
    )

    # By its signature, which knows numbers and text alone, MLflow refuses to read a boolean as a number.
    frame = taken.to_pandas().astype({"flag": float})
    served = stock.load_model(logged.model_uri).predict(frame)

    np.testing.assert_array_equal(served["probability"], fitted.predict(taken))


def test_stock_mlflow_loads_the_sklearn_baseline_without_pickle(pointed, log):
    import mlflow.sklearn
    from sklearn.linear_model import LogisticRegression

    encoder = Encoder.fit(rows(), COLUMNS)
    matrix = np.nan_to_num(encoder.encode(rows()))
    native = LogisticRegression(max_iter=300).fit(matrix, matrix[:, 1] > 14)
    fitted = Estimated(encoder, [native], (0, 1), 2)
    address = log(model=Model("sklearn", Binary(), fitted)).model_uri

    loaded = mlflow.sklearn.load_model(address)
    np.testing.assert_array_equal(loaded.coef_, native.coef_)


def test_a_package_holds_the_models_files_and_pinned_requirements_and_no_pickle(log, home):
    log()
    (package,) = (file.parent for file in (home / "mlflow" / "artifacts").rglob("MLmodel"))
    files = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}

    assert files == {
        *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"),
        *(
            "data/model/SHA256SUMS",
            "data/model/encoder.json",
            "data/model/model.json",
            "data/model/model.ubj",
        ),
    }
    pins = (package / "requirements.txt").read_text().split()
    assert {pin.split("==")[0] for pin in pins} >= {"headrace", "mlflow", "xgboost"}
    assert all("==" in pin for pin in pins)


@pytest.mark.parametrize("trainer", ["xgboost", "torch", "sklearn"])
def test_requirements_can_be_installed_from_the_index(trainer):
    assert not [pin for pin in tracking.requirements(trainer) if "+" in pin]


def test_a_run_is_registered_as_one_version_however_often_it_is_asked(mlflow, log):
    first, second = log(), log(cause="second")

    assert [registry.register(mlflow, "late", x) for x in (first, first, second, first)] == [1, 1, 2, 1]
    assert [release.version for release in registry.versions(mlflow, "late")] == [1, 2]


def test_a_version_of_an_earlier_release_is_listed(mlflow, log):
    version = registry.register(mlflow, "late", log())
    mlflow.client.delete_model_version_tag("late", str(version), "headrace.trainer")
    mlflow.client.set_model_version_tag("late", str(version), "headrace.framework", "torch")
    assert [release.trainer for release in registry.versions(mlflow, "late")] == ["torch"]


def test_there_is_no_champion_before_the_first_promotion(mlflow, log):
    assert registry.champion(mlflow, "late") is None
    assert registry.versions(mlflow, "late") == []
    registry.register(mlflow, "late", log())
    assert registry.champion(mlflow, "late") is None


def test_a_promoted_challenger_becomes_the_champion_with_the_reason(mlflow, log):
    logged = log()
    version = registry.register(mlflow, "late", logged, {"headrace.flow_run": "http://localhost/run"})
    registry.set_alias(mlflow, "late", registry.CHALLENGER, version)
    assert registry.challenger(mlflow, "late").verdict == ""

    for _ in range(2):  # redone after a crash, it ends the same
        registry.promote(mlflow, "late", version, "It saves 0.01 nats.", NOON)

        assert registry.challenger(mlflow, "late") is None
        assert registry.champion(mlflow, "late") == registry.Release(
            pipeline="late",
            version=1,
            run_id=logged.run_id,
            candidate="small",
            trainer="xgboost",
            training=TRAINING,
            as_of=AS_OF,
            verdict="promoted",
            reason="It saves 0.01 nats.",
        )
        assert tracking.scores(mlflow, logged.run_id) == {"logloss": 0.41}


def test_a_rejected_challenger_stays_registered_and_the_champion_serves_on(mlflow, log):
    old, new = (registry.register(mlflow, "late", log(cause=cause)) for cause in ("first", "second"))
    registry.promote(mlflow, "late", old, "first", NOON)
    registry.set_alias(mlflow, "late", registry.CHALLENGER, new)

    registry.reject(mlflow, "late", new, "It saves nothing.", NOON + timedelta(days=1))

    assert registry.champion(mlflow, "late").version == old
    assert registry.challenger(mlflow, "late") is None
    assert [(r.version, r.verdict) for r in registry.versions(mlflow, "late")] == [
        (old, "promoted"),
        (new, "rejected"),
    ]


@pytest.fixture
def train(mlflow, home, log, monkeypatch):
    """Register versions, judge and release them as training flows do, each a run of its own."""
    from flows.steps import training

    monkeypatch.setenv("HEADRACE_HOME", str(home))
    for name in ("create_markdown_artifact", "create_table_artifact"):
        monkeypatch.setattr(training, name, lambda **_: None)  # no Prefect server is needed for this

    @dataclasses.dataclass
    class Run:
        cause: str
        at: datetime = AS_OF

        def __post_init__(self):
            self.version = registry.register(mlflow, "late", log(cause=self.cause))

        def release(self, against):
            monkeypatch.setattr(training, "holder", lambda: f"run {self.cause}")
            verdict = Verdict("promoted", self.cause, str(self.version), against)
            return training.release.fn(Project.here(), SPEC, self.version, verdict, self.at)

    return Run


def test_of_trainings_that_judged_against_one_champion_one_takes_its_place(mlflow, train):
    first, older, newer = train("first"), train("older"), train("newer")
    assert first.release(against=None)
    assert newer.release(against="1")
    assert not older.release(against="1")  # and judges again, against the newer one
    assert registry.champion(mlflow, "late").version == newer.version
    assert older.release(against=str(newer.version))
    assert registry.champion(mlflow, "late").version == older.version
    entries = Ledger(Settings().ledger).entries("late", "promotion")
    assert [entry.key for entry in entries if entry.state == "done"] == ["1", "3", "2"]


@pytest.mark.parametrize("killed_in", ["promote", "finish"])
def test_a_release_that_was_killed_is_ended_by_the_next_run(mlflow, train, killed_in, monkeypatch):
    first, second = train("first"), train("second")
    assert first.release(against=None)
    with monkeypatch.context() as patch:
        place = registry if killed_in == "promote" else Ledger
        patch.setattr(place, killed_in, lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            second.release(against="1")
    if killed_in == "promote":  # nobody knows whether it will yet
        with pytest.raises(AlreadyClaimed):
            train("third").release(against="1")
        assert AlreadyClaimed.transient  # so it is tried again
    else:
        assert not train("third").release(against="1")
    for _ in range(2):
        assert second.release(against="1" if killed_in == "promote" else None)
    assert registry.champion(mlflow, "late").version == second.version
    assert not train("third").release(against="1")


def test_a_champion_that_was_brought_back_by_hand_is_succeeded_again(mlflow, train):
    first, second, third = train("first"), train("second"), train("third")
    assert first.release(against=None)
    assert second.release(against="1")
    registry.set_alias(mlflow, "late", registry.CHAMPION, first.version)
    assert third.release(against="1")
    assert registry.champion(mlflow, "late").version == third.version


def killed_at(monkeypatch, mlflow, number):
    """Let the process end at its nth write, to the ledger or to the registry; later ones would be made."""
    written = iter(range(1_000_000))

    def counted(write):
        def once(*args, **kwargs):
            if next(written) == number:
                raise KeyboardInterrupt
            return write(*args, **kwargs)

        return once

    monkeypatch.setattr(Ledger, "_write", counted(Ledger._write))
    for name in ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias"):
        monkeypatch.setattr(type(mlflow.client), name, counted(getattr(type(mlflow.client), name)))


@pytest.mark.parametrize("change", ["the gate", "by hand", "back"])
def test_a_change_of_champion_that_is_killed_anywhere_is_finished_or_never_begun(
    mlflow, train, change, monkeypatch
):
    """By whoever comes next, at once; the ledger then has it once, and names who serves."""
    ledger = Ledger(Settings().ledger)
    first, second, third = train("first"), train("second"), train("third")
    assert first.release(against=None)
    assert second.release(against="1")
    ends, number, finished = set(), 0, False
    while not finished:
        before = release.champions(SPEC, ledger)[-1]
        to = {"the gate": train(f"run {number}").version, "by hand": 3 if before != 3 else 1, "back": 0}[
            change
        ]
        count = len(release.changes(SPEC, ledger))
        with monkeypatch.context() as patch:
            killed_at(patch, mlflow, number)
            try:
                if change == "the gate":
                    verdict = Verdict("promoted", "better", str(to), str(before))
                    assert release.carry_out(SPEC, to, verdict, AS_OF, mlflow, ledger, f"killed {number}")
                elif change == "by hand":
                    release.move(SPEC, to, "I know better", mlflow, ledger, f"killed {number}")
                else:
                    to = release.rollback(SPEC, "it is bad", mlflow, ledger, f"killed {number}")
                finished = True
            except KeyboardInterrupt:
                pass
        done = release.reconcile(SPEC, mlflow, ledger, "whoever comes next")
        assert release.reconcile(SPEC, mlflow, ledger, "and then") == []
        assert release.strayed(SPEC, mlflow, ledger) is None
        made = release.changes(SPEC, ledger)[count:]
        assert len(made) <= 1
        ends.add((bool(done), len(made)))
        if change == "back" and made:  # so that there is something to go back to
            release.move(SPEC, second.version, "again", mlflow, ledger, "a test")
        number += 1
    assert ends == {(False, 0), (True, 1), (False, 1)}
    assert number >= 4
    del third


def test_what_its_author_let_go_of_is_not_finished_by_others(mlflow, train):
    ledger = Ledger(Settings().ledger)
    assert train("first").release(against=None)
    second = train("second").version
    detail = {"kind": "move", "key": "x", "version": second, "before": "1", "as_of": AS_OF.isoformat()}
    detail |= {"reason": "I know better", "undoes": False}
    lease = timedelta(hours=1)
    assert ledger.claim("late", "succession", "after 1", holder="me", lease=lease, detail=detail) is None
    ledger.give_up("late", "me")

    assert release.reconcile(SPEC, mlflow, ledger, "whoever comes next") == []
    assert registry.champion(mlflow, "late").version == 1
    registry.set_alias(mlflow, "late", registry.CHAMPION, second)  # unless it was half-way
    assert release.reconcile(SPEC, mlflow, ledger, "whoever comes next")
    assert release.strayed(SPEC, mlflow, ledger) is None


def test_of_changes_at_once_one_champion_comes_and_the_ledger_names_it(mlflow, train):
    ledger = Ledger(Settings().ledger)
    versions = [train(f"run {n}").version for n in range(6)]
    assert train("first").release(against=None)

    def change(n):
        try:
            if n % 2:
                release.move(SPEC, versions[n], "by hand", mlflow, ledger, f"hand {n}")
            else:
                verdict = Verdict("promoted", "better", str(versions[n]), "7")
                release.carry_out(SPEC, versions[n], verdict, AS_OF, mlflow, ledger, f"gate {n}")
        except AlreadyClaimed:
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(6)))
    release.reconcile(SPEC, mlflow, ledger, "whoever comes next")
    assert release.strayed(SPEC, mlflow, ledger) is None
    made = [one.detail for one in release.changes(SPEC, ledger)]
    assert [one["before"] for one in made] == ["none", *(str(one["version"]) for one in made[:-1])]
    assert len(made) >= 2


def test_going_back_is_recorded_and_may_be_gone_back_from(mlflow, train):
    ledger = Ledger(Settings().ledger)
    for cause, against in (("first", None), ("second", "1"), ("third", "2")):
        assert train(cause).release(against=against)
    assert [release.rollback(SPEC, "bad", mlflow, ledger, f"me {n}") for n in range(2)] == [2, 1]
    with pytest.raises(NothingBefore):
        release.rollback(SPEC, "bad", mlflow, ledger, "me 3")
    assert registry.champion(mlflow, "late").version == 1
    fourth = train("fourth")
    assert fourth.release(against="1")
    assert release.champions(SPEC, ledger) == [1, 4]
    assert release.rollback(SPEC, "bad", mlflow, ledger, "me 4") == 1
    told = [one.detail["reason"] for one in release.changes(SPEC, ledger)]
    assert told == ["first", "second", "third", "bad", "bad", "fourth", "bad"]


@pytest.mark.parametrize("accept", [True, False])
def test_an_alias_that_was_moved_by_hand_is_noticed_and_settled(mlflow, train, accept):
    ledger = Ledger(Settings().ledger)
    for cause, against in (("first", None), ("second", "1")):
        assert train(cause).release(against=against)
    assert release.strayed(SPEC, mlflow, ledger) is None
    registry.set_alias(mlflow, "late", registry.CHAMPION, 1)
    found = release.strayed(SPEC, mlflow, ledger)
    assert (found.named, found.expected) == (1, 2)
    assert "headrace models settle late" in str(found)
    assert release.reconcile(SPEC, mlflow, ledger, "me") == []  # it is nobody's unfinished work

    settled = release.settle(SPEC, mlflow, ledger, "me", accept=accept, reason="a mistake")

    assert settled == registry.champion(mlflow, "late").version == (1 if accept else 2)
    assert release.strayed(SPEC, mlflow, ledger) is None
    assert release.settle(SPEC, mlflow, ledger, "me", accept=True, reason="") is None


def test_promoting_leaves_a_newer_challenger_alone(mlflow, log):
    old, new = (registry.register(mlflow, "late", log(cause=cause)) for cause in ("first", "second"))
    registry.set_alias(mlflow, "late", registry.CHALLENGER, new)

    registry.promote(mlflow, "late", old, "first", NOON)

    assert registry.challenger(mlflow, "late").version == new


def test_a_server_that_is_not_there_is_reported_at_once(tmp_path):
    start = time.perf_counter()
    with pytest.raises(ServerUnreachable, match="make up"):
        _ = MLflow("http://127.0.0.1:9", tmp_path).client

    assert time.perf_counter() - start < 30  # MLflow's own retries would take minutes


def test_a_server_that_is_not_mlflow_is_reported_as_such(tmp_path):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ServerUnreachable, match="not as MLflow does"):
            _ = MLflow(f"http://127.0.0.1:{server.server_port}", tmp_path).client
    finally:
        server.shutdown()
        server.server_close()
