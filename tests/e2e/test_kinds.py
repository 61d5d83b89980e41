"""One suite for any pipeline: a short whole life, and what must hold of it, whatever it asks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from headrace import integrity, registry, services, tracking
from headrace.lake import Lake, Window
from headrace.ledger import Ledger
from headrace.pipeline import Pipeline
from headrace.serving import log
from headrace.settings import Settings
from headrace.tracking import MLflow
from tests.conftest import free_port, utc
from tests.e2e import projects

WEEK = timedelta(weeks=1)
RELEASE = utc(2024, 1, 29)
LIVED = [Window(RELEASE + n * WEEK, RELEASE + (n + 1) * WEEK) for n in range(2)]
LATE = "'2024-01-22'"
QUESTIONS = {
    "yes_no": 'Binary(positive="yes", negative="no"), "if(drawn > 11, \'yes\', \'no\')"',
    "flag": 'Binary(positive=True, negative=False), "drawn > 11"',
    "level": 'MultiClass((1, 2, 3)), "CASE WHEN drawn < 9 THEN 1 WHEN drawn < 12 THEN 2 ELSE 3 END"',
    "litres": 'Regression(unit="litres", naive=Seasonal(timedelta(days=1), by=("tank",))), "drawn"',
    "buckets": 'Regression("poisson"), "round(drawn)"',
    "range": 'Regression("quantile"), "drawn"',
    # of what is predicted after the release, no truth comes
    "unknown": 'Regression("absolute"), "drawn", "if(read_at < TIMESTAMPTZ \'2024-01-28\', available_at, '
    "TIMESTAMPTZ '2030-01-01')\"",
}
# The week that judges has one class alone: a guess from the past, which had two, may cost less.
QUIET = {"quiet": f'Binary(), "(drawn > 11 AND read_at < TIMESTAMPTZ {LATE})::INTEGER"'}
CONSTANT = {"same": 'Binary(), "1"', "still": 'Regression(), "7.5"'}
RIVER = """
import json, sys
from datetime import UTC, datetime
from flows.lifecycle import lifecycle
from headrace.errors import HeadraceError
start, end, *names = sys.argv[1:]
told = {}
for name in names:
    try:
        told[name] = lifecycle(name, datetime.fromisoformat(start), datetime.fromisoformat(end))["weeks"]
    except HeadraceError as error:
        told[name] = f"{type(error).__name__}: {error}"
print("TOLD", json.dumps(told, default=str))
"""


class World:
    """The tanks' project, lived through by every pipeline, one after the other, in one process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings = folder, Settings()
        self.lake, self.ledger = Lake(self.settings.lake), Ledger(self.settings.ledger)

    def live(self, *names: str) -> dict[str, Any]:
        ends = (RELEASE.isoformat(), LIVED[-1].end.isoformat())
        done = subprocess.run(
            [sys.executable, "-c", RIVER, *ends, *names],
            env=services.environment(self.settings),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return json.loads(done.stdout.rpartition("TOLD ")[2])  # type: ignore[no-any-return]

    def snapshots(self, *tables: str) -> list[Any]:
        return [self.lake.table(table).snapshot() for table in tables]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kinds")
    projects.lay("kinds", folder)
    for name, asked in (QUESTIONS | QUIET | CONSTANT).items():
        (folder / "pipelines" / f"{name}.py").write_text(
            "from datetime import timedelta\n"
            "from headrace.problem import Binary, MultiClass, Regression, Seasonal\n"
            f"from pipelines._tanks import declare\n\nPIPELINE = declare({name!r}, {asked})\n"
        )
        (folder / "features" / f"{name}.py").write_text(
            "from feast import FeatureService\nfrom features._tanks import day, tank, tank_use\n\n"
            f"service = FeatureService(name={name!r}, features=[tank_use])\n"
        )
    patch = pytest.MonkeyPatch()
    patch.delenv("PREFECT_HOME", raising=False)
    patch.setenv("HEADRACE_HOME", str(folder / "home"))
    patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    patch.chdir(folder)
    made = World(folder)
    with services.running([services.prefect_server(made.settings)], made.settings):
        yield made
    patch.undo()


@pytest.fixture(scope="module")
def lived(world: World) -> dict[str, Any]:
    return world.live(*QUESTIONS, *QUIET, *CONSTANT)


def declared(name: str) -> Pipeline:
    """The pipeline as the project declares it; its module is not this project's."""
    from headrace.problem import Binary, MultiClass, Regression, Seasonal
    from tests.e2e.projects.kinds.pipelines._tanks import declare

    known = {"Binary": Binary, "MultiClass": MultiClass, "Regression": Regression, "Seasonal": Seasonal}
    return eval(f"declare({name!r}, {QUESTIONS[name]})", known | {"declare": declare, "timedelta": timedelta})  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_pipeline_lives(world: World, lived: dict[str, Any], name: str) -> None:
    spec = declared(name)
    assert isinstance(lived[name], list), lived[name]
    mlflow = MLflow(world.settings.mlflow, world.settings.home)
    (version, *others) = registry.versions(mlflow, name)
    assert version.verdict == "promoted", version.reason
    assert others == []
    assert "over a guess from the past alone" in version.reason
    assert version.trainer in {"xgboost", "sklearn"}

    for window in LIVED:
        made = log.read(spec, world.lake, window)
        assert made.num_rows == 6 * 7 * 24
        kinds = {column: made.schema.field(column).type for column in spec.problem.columns}
        assert kinds == spec.problem.columns
        again = tracking.load_model(mlflow, version.model_uri).predict(made)
        assert spec.problem.predicted(made).tolist() == again.tolist()  # the log says what was computed

    judged = world.ledger.entries(name, "judgement")
    assert [entry.key for entry in judged] == [str(window) for window in LIVED]
    known = "No outcome is known yet" if name == "unknown" else "Skill"
    assert all(known in entry.detail["performance"] for entry in judged)
    assert [each for each in integrity.check(name, world.lake, mlflow) if each.wrong] == []


def test_what_they_share_was_landed_and_built_once(world: World, lived: dict[str, Any]) -> None:
    raw = world.lake.table("raw/readings")
    weeks = (LIVED[-1].end - utc(2024)) // WEEK
    assert raw.count() == weeks * 7 * 24 * 6
    con = world.lake.connect({"t": "features/tank_use"})
    assert con.sql("SELECT tank, day FROM t GROUP BY ALL HAVING count(*) > 1").fetchall() == []


def test_a_holdout_of_one_class_is_judged_by_its_losses(world: World, lived: dict[str, Any]) -> None:
    assert lived["quiet"].startswith("NotReleased"), lived["quiet"]
    mlflow = MLflow(world.settings.mlflow, world.settings.home)
    (version,) = registry.versions(mlflow, "quiet")
    assert version.verdict == "rejected"
    scores = tracking.scores(mlflow, version.run_id)
    assert {"auc", "skill"}.isdisjoint(scores)
    assert scores["log_loss"] > 0


@pytest.mark.parametrize("name", CONSTANT)
def test_a_truth_that_is_always_the_same_is_nothing_to_learn(lived: dict[str, Any], name: str) -> None:
    assert lived[name].startswith("NothingToLearn")
    assert "have the label" in lived[name]


def test_living_it_again_changes_nothing(world: World, lived: dict[str, Any]) -> None:
    names = ["level", "range"]
    tables = ["raw/readings", "features/tank_use", *(f"predictions/{n}" for n in names), "training/level"]
    before = world.snapshots(*tables)
    again = world.live(*names)
    assert world.snapshots(*tables) == before
    for name in names:
        assert again[name] == [week | {"scored": 0} for week in lived[name]]
