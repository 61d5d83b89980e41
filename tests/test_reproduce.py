"""A release is made again from what was noted of it; what differs is named, with the likely cause."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import registry, tracking, vacuum
from headrace import release as releases
from headrace.cluster import cluster
from headrace.lake import Lake, VersionGone
from headrace.pipeline import Candidate, Columns, Pipeline, Source
from headrace.recipe import Code, Recipe
from headrace.release import models
from headrace.release.errors import BadSearch, NotReproducible, UnknownRelease
from headrace.release.reproduce import Compared, checked_out, reproduce
from headrace.sources import Call
from headrace.tracking import MLflow
from headrace.training import dataset
from tests.conftest import utc

START, AS_OF = utc(2024), utc(2024, 2, 12)
TREES = Candidate("trees", "xgboost", {"rounds": 300, "eta": 0.4, "early_stopping_rounds": 5}, seed=3)
SPEC = Pipeline(
    *("toy", "", "", START),
    (Source("things", Call(lambda _: []), "asked_at", "flights.flights"),),
    *((), "", ("id",)),
    spine="SELECT id, asked_at AS event_timestamp, x, kind FROM things",
    label="SELECT id, label, asked_at + INTERVAL 1 HOUR AS available_at FROM things",
    columns=Columns(("kind",), ("x",)),
    candidates=(TREES,),
)
NAMES = ["training set", "model", "predictions of the holdout"]


def land(lake: Lake, first: int, count: int) -> None:
    draw = np.random.default_rng(first)
    ids, x = np.arange(first, first + count), draw.normal(size=count)
    instants = pa.array([START + timedelta(minutes=30 * int(n)) for n in ids], pa.timestamp("us", "UTC"))
    label = (x + draw.normal(size=count) > 0).astype(np.int32)
    columns = {"id": ids, "asked_at": instants, "x": x, "kind": [f"k{n % 3}" for n in ids], "label": label}
    lake.table("raw/things").append(pa.table(columns | {"available_at": instants}), f"from {first}")


class Made:
    """A release of a toy, of two candidates' trials and a refit, after which newer rows have landed."""

    def __init__(self, home: Path, client: Any) -> None:
        self.lake, self.client = Lake(str(home / "lake")), client
        self.mlflow = MLflow(f"sqlite:///{home}/mlflow/mlflow.db", home)
        land(self.lake, 0, 2_016)
        data = dataset.build(SPEC, self.lake, AS_OF, lambda rows: rows, {})
        first = self.try_out(TREES, data, final=False)
        chosen = releases.settled(SPEC, first)
        self.settled = chosen.params["rounds"]
        self.candidate_run = first.logged.run_id
        trial = self.try_out(chosen, data, final=True)
        self.version = registry.register(self.mlflow, "toy", trial.logged)
        land(self.lake, 2_016, 500)
        self.release = registry.version(self.mlflow, "toy", self.version)
        recipe = tracking.recipe(self.mlflow, trial.logged.run_id)
        assert recipe
        self.recipe: Recipe = recipe

    def try_out(self, candidate: Candidate, data: Any, *, final: bool) -> releases.Trial:
        return releases.try_out(
            *(SPEC, candidate, data),
            final=final,
            sources=(),
            lake=self.lake,
            mlflow=self.mlflow,
            cause="a test",
            as_of=AS_OF,
            client=self.client,
        )

    def again(self, recipe: Recipe, lake: Lake | None = None) -> list[Compared]:
        historical = lambda _: lambda rows: rows  # noqa: E731
        told = (SPEC, self.release, recipe, lake or self.lake, self.mlflow, historical, self.client, Path())
        return list(reproduce(*told))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with cluster() as client:
        yield Made(tmp_path_factory.mktemp("made"), client)


def test_a_release_is_made_again_to_the_byte(made: Made) -> None:
    assert made.again(made.recipe) == [Compared(name) for name in NAMES]


def test_what_the_selection_settled_is_part_of_the_recipe_and_its_curve_of_the_run(made: Made) -> None:
    assert 1 <= made.settled < 300
    assert made.recipe.candidate["params"]["rounds"] == made.settled
    curve = made.mlflow.client.get_metric_history(made.candidate_run, "selection/logloss")
    assert len(curve) == made.settled + 5
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    assert min(curve, key=lambda point: point.value).step == made.settled
    assert "selection/logloss" not in tracking.scores(made.mlflow, made.candidate_run)


def test_another_model_is_told_with_the_likely_cause(made: Made) -> None:
    params = {**made.recipe.candidate["params"], "eta": 0.3}
    packages = {**made.recipe.environment.packages, "xgboost": "1.0.0"}
    other = replace(
        made.recipe,
        candidate={**made.recipe.candidate, "params": params},
        environment=replace(made.recipe.environment, packages=packages, python="2.7"),
    )
    same, model, predictions = made.again(other)
    assert same == Compared("training set")
    assert "differs in model.ubj" in model.off
    assert "Likely because python was 2.7, and is" in model.off
    assert "xgboost was 1.0.0, and is" in model.off
    assert "of 334 differ, by" in predictions.off


def test_other_rows_and_rows_that_are_gone_are_told(made: Made, tmp_path: Path) -> None:
    fewer = {**made.recipe.training, "rows": 1}
    assert "has 2,012 rows, and had 1." in made.again(replace(made.recipe, training=fewer))[0].off
    other = {**made.recipe.training, "fingerprint": "0000000000000000"}
    assert "has other values in its 2,012 rows" in made.again(replace(made.recipe, training=other))[0].off
    (gone,) = made.again(made.recipe, Lake(str(tmp_path)))
    assert "cannot be made again: Table `raw/things` does not exist yet" in gone.off
    pins = {**made.recipe.training, "pins": [["raw/things", 77]]}
    (gone,) = made.again(replace(made.recipe, training=pins))
    assert "cannot be read at version 77" in gone.off


def test_versions_are_found_and_compared(made: Made) -> None:
    registry.set_alias(made.mlflow, "toy", "champion", made.version)
    assert models.find(made.mlflow, "toy", "champion") == models.find(made.mlflow, "toy", "1")
    with pytest.raises(UnknownRelease, match="no version or alias `2`: there are champion, 1"):
        models.find(made.mlflow, "toy", "2")

    def found(**asked: str) -> bool:
        return bool(models.search(made.mlflow, [SPEC], **asked))

    assert found()
    assert found(data="training/toy", feature="kind", metric="auc > 0.6", tag="headrace.trainer")
    assert found(data=f"training/toy@v{made.release.training.version}", tag="headrace.trainer=xgboost")
    for asked in (
        {"data": "raw/thing"},
        {"feature": "id"},
        {"metric": "auc<0.6"},
        {"metric": "nothing = 0"},
        {"tag": "headrace.trainer=torch"},
    ):
        assert not found(**asked), asked
    with pytest.raises(BadSearch, match=r"'auc > 0\.7'"):
        found(metric="auc > high")
    one = models.about(made.mlflow, made.release)
    off = models.differences(one, replace(one, scores={}, data=()))
    assert {kind for kind, facts in off.items() if facts} == {"scores", "data"}
    assert off["data"] == {"training/toy": ("v1, 2,012 rows", "")}


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_code_of_then_is_checked_out_with_what_had_been_changed(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    assert Code.of(tmp_path) == Code()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("A = 1\n")
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    (folder / "a.py").write_text("A = 2\n")
    (folder / "new.py").write_text("N = 'é'\n")
    (folder / "ignored").write_text("x")
    (folder / ".env").write_text("PASSWORD=secret\n")  # not ignored by mistake
    recipe = replace(made.recipe, code=Code.of(folder))
    with checked_out(recipe, folder) as place:
        assert place == folder  # it is as it was
    assert "secret" not in recipe.code.changes
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "two")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(folder), str(clone))
    for somewhere in (folder, clone):
        with checked_out(recipe, somewhere) as place:
            assert place != somewhere
            assert (place / "a.py").read_text() == "A = 2\n"
            assert (place / "new.py").read_text() == "N = 'é'\n"
            assert not (place / "ignored").exists()
        assert not place.exists()
    (folder / "deeper").mkdir()
    (folder / "deeper/b.py").write_text("B = 1\n")
    deeper = replace(made.recipe, code=Code.of(folder / "deeper"))
    assert deeper.code == Code.of(folder)
    (folder / "deeper/b.py").write_text("B = 2\n")
    with checked_out(deeper, folder / "deeper") as place:
        assert (place / "b.py").read_text() == "B = 1\n"
        assert (place / "../a.py").read_text() == "A = 2\n"
    strange = replace(recipe, code=Code("0" * 40))
    with (
        pytest.raises(NotReproducible, match="commit 000000000000 is not in this repository"),
        checked_out(strange, folder),
    ):
        pass
    for code, why in (
        (replace(recipe.code, cut=True), "more had been changed since its commit than is kept"),
        (replace(recipe.code, changes="nothing of a patch\n"), "does not fit"),
    ):
        with pytest.raises(NotReproducible, match=why), checked_out(replace(recipe, code=code), folder):
            pass
    assert not list(folder.glob(".git/worktrees/*"))


def test_a_vacuum_frees_what_no_model_was_made_of(made: Made, tmp_path: Path) -> None:
    """In a copy: sets that no registered model was made of go, and the release is made again all the same."""
    shutil.copytree(made.lake.root, tmp_path / "lake")
    lake = Lake(str(tmp_path / "lake"))
    later = AS_OF + timedelta(days=4)
    unused = [dataset.build(SPEC, lake, later + timedelta(days=n), lambda rows: rows, {}) for n in range(3)]
    (tmp_path / "lake/training/toy/part-of-a-killed-writer.parquet").write_bytes(b"x" * 1_000)
    keep = vacuum.needed(made.mlflow)
    pins = dict(made.recipe.training["pins"])
    assert keep == {"raw/things": {pins["raw/things"]}, "training/toy": {made.release.training.version}}

    def freed(days: int, *, free: bool) -> dict[str, int]:
        found = vacuum.vacuum(lake, keep, timedelta(days=days), free=free)
        return {one.table: one.files for one in found}

    assert freed(7, free=True) == {"raw/things": 0, "training/toy": 0}  # all of it is young
    told = freed(0, free=False)
    assert told == {"raw/things": 0, "training/toy": 3}  # two sets, and what the killed writer left
    assert freed(0, free=True) == told
    assert freed(0, free=True) == {"raw/things": 0, "training/toy": 0}
    assert made.again(made.recipe, lake) == [Compared(name) for name in NAMES]
    lake.check(made.release.training)
    assert lake.table("training/toy").snapshot().fingerprint == unused[-1].fingerprint
    with pytest.raises(VersionGone):
        lake.table("training/toy").relation(lake.connect({}), unused[0].version)
