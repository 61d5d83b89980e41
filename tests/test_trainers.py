"""Every trainer passes the tests that others may run on theirs: ours, and one that comes through the door."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import invalidate_caches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.pipeline import Candidate, Columns
from headrace.problem import Binary, MultiClass, Problem, Regression
from headrace.testing import TrainerTests, rows
from headrace.training import fit
from headrace.training.errors import BadOutputs, UnknownTrainer
from headrace.training.trainers import missing, trainer
from tests.conftest import ROOT

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/trainers.md").read_text(), re.DOTALL)


class TestXGBoost(TrainerTests):
    trainer = "xgboost"
    params = {"rounds": 30}


class TestXGBoostOnTwoWorkers(TrainerTests):
    trainer = "xgboost"
    params = {"rounds": 30}
    workers = 2
    problems = (MultiClass((1, 2, 3)), Regression("quantile", quantiles=(0.2,)))


class TestTorch(TrainerTests):
    trainer = "torch"
    params = {"epochs": 25, "batch": 64, "lr": 1e-2}


class TestTorchOnTwoWorkers(TrainerTests):
    trainer = "torch"
    params = {"epochs": 25, "batch": 64, "lr": 1e-2}
    workers = 2
    problems = (MultiClass((1, 2, 3)), Regression("poisson"))


class TestSklearn(TrainerTests):
    trainer = "sklearn"


class TestTreesOfSklearn(TrainerTests):
    trainer = "sklearn"
    params = {"estimator": "sklearn.ensemble.HistGradientBoostingClassifier", "max_iter": 30}
    problems = (Binary(positive="late", negative="on time"), MultiClass((1, 2, 3)))


def test_lightgbm_comes_through_the_door_as_the_docs_show_it(tmp_path: Path) -> None:
    """The page's two programs, as they stand there, in a project of their own."""
    *_, made, tested = PROGRAMS
    assert len(made.splitlines()) <= 30
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/lightgbm.py").write_text(made)
    (tmp_path / "test_lightgbm.py").write_text(tested)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_lightgbm.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "35 passed" in done.stdout


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, **parts: str) -> None:
    """Write ``odd_trainer.py``, a constant one, with some parts replaced or, if empty, left out."""
    whole = {
        "PACKAGES": "PACKAGES = ()",
        "fit": "def fit(*_, problem, **__): return problem.width",
        "predict": "def predict(width, rows): return np.full((rows.num_rows, width), 0.5)",
        "save": "def save(width, directory): (directory / 'width').write_text(str(width))",
        "load": "def load(directory): return int((directory / 'width').read_text())",
    }
    (folder / "odd_trainer.py").write_text("import numpy as np\n" + "\n".join((whole | parts).values()))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "odd_trainer", raising=False)
    invalidate_caches()


def test_a_trainer_may_be_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, monkeypatch)
    assert missing("odd_trainer") == ""
    given = rows(Binary())
    candidate, columns = Candidate("odd", "odd_trainer"), Columns((), ("wind",))
    model = fit(candidate, given, columns, Binary(), None)  # type: ignore[arg-type]
    assert set(model.predict(given)) == {0.5}


def test_a_package_offers_a_trainer_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, monkeypatch)
    about = tmp_path / "odd-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[headrace.trainers]\nconstant = odd_trainer\n")
    assert missing("constant") == ""
    assert trainer("constant").__name__ == "odd_trainer"
    assert "`constant`" in missing("constnt")


@pytest.mark.parametrize(
    ("predicts", "why"),
    [
        ("np.zeros((rows.num_rows, 2))", r"shape \(n,\); got \(800, 2\)"),
        ("[float('nan')] * 800", "not finite"),
    ],
)
def test_what_is_no_prediction_is_refused_with_the_trainers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predicts: str, why: str
) -> None:
    own(tmp_path, monkeypatch, predict=f"def predict(width, rows): return {predicts}")
    given = rows(Binary())
    candidate, columns = Candidate("odd", "odd_trainer"), Columns((), ("wind",))
    model = fit(candidate, given, columns, Binary(), None)  # type: ignore[arg-type]
    with pytest.raises(BadOutputs, match=f"`odd_trainer` does not predict.*{why}"):
        model.predict(given)


def test_a_trainer_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Did you mean `xgboost`?" in missing("xgbost")
    assert "there are `sklearn`, `torch`, `xgboost`" in missing("nowhere.at_all")
    for name in ("xgbost", "nowhere.at_all", "json.nothing"):
        with pytest.raises(UnknownTrainer, match=f"No trainer `{name}`"):
            trainer(name)
    own(tmp_path, monkeypatch, predict="", save="")
    with pytest.raises(UnknownTrainer, match="has no `predict`, `save`"):
        trainer("odd_trainer")
    (tmp_path / "odd_trainer.py").write_text("import a_package_that_is_not_there")
    monkeypatch.delitem(sys.modules, "odd_trainer", raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        trainer("odd_trainer")


@pytest.mark.parametrize(
    ("estimator", "problem", "why"),
    [
        ("linear_model.LogisticRegresion", Binary(), "dotted path of a class"),
        ("linear_model.Ridge", Regression("quantile"), "takes no `quantile`"),
        ("svm.LinearSVC", Binary(), "no `predict_proba`"),
    ],
)
def test_an_estimator_that_cannot_answer_is_named(estimator: str, problem: Problem, why: str) -> None:
    from headrace.cluster import cluster

    given, columns = rows(problem), Columns((), ("wind",))
    candidate = Candidate("odd", "sklearn", {"estimator": f"sklearn.{estimator}"})
    with cluster() as client, pytest.raises(UnknownTrainer, match=f"`sklearn.{estimator}`: .*{why}"):
        fit(candidate, given, columns, problem, client)


@pytest.mark.parametrize("name", ["xgboost", "torch", "sklearn"])
def test_other_names_for_the_classes_give_the_same_model(name: str) -> None:
    from headrace.cluster import cluster

    plain, named = MultiClass((1, 2, 3)), MultiClass(("un", "deux", "trois"))
    given, columns = rows(plain), Columns(("port",), ("wind", "gust"))
    place = given.schema.get_field_index("label")
    words = pa.chunked_array([[named.classes[label - 1] for label in given["label"].to_pylist()]])
    with cluster() as client:
        one, other = (
            fit(Candidate("tried", name), rows, columns, problem, client)
            for problem, rows in ((plain, given), (named, given.set_column(place, "label", words)))
        )
    np.testing.assert_array_equal(one.predict(given), other.predict(given))
    told = dict(zip(plain.classes, named.classes, strict=True))
    ours = plain.named(one.predict(given))["prediction"].to_pylist()
    assert named.named(other.predict(given))["prediction"].to_pylist() == [told[label] for label in ours]
