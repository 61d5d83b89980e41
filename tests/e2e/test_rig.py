"""Production, of real servers: whatever dies comes back, and nothing is lost or doubled by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from headrace import registry, services
from headrace.lake import Window
from headrace.pipeline import load
from headrace.services import Child
from headrace.serving import log
from headrace.tracking import MLflow
from tests.conftest import ROOT, utc
from tests.e2e import projects
from tests.e2e.conftest import Project
from tests.e2e.rig import PASSWORD, Rig
from tests.flows.conftest import eventually


@dataclass
class Asking:
    """Somebody asks for a prediction a few times a second, through the balancer."""

    url: str
    key: str
    answered: list[str] = field(default_factory=list)
    statuses: Counter[int | str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def go_on(self) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {self.key}"}, timeout=30) as client:
            while not self.over.wait(0.2):
                now = int(time.time())
                row = {"pump": "p7", "second": now, "load": 60.5, "since": now // 30 * 30}
                try:
                    answer = client.post(f"{self.url}/v1/pumps/predict", json={"rows": [row]})
                except httpx.HTTPError as error:
                    self.statuses[type(error).__name__] += 1
                    continue
                self.statuses[answer.status_code] += 1
                if answer.is_success:
                    self.answered += [one["id"] for one in answer.json()["predictions"]]

    @contextmanager
    def asked(self) -> Iterator[None]:
        thread = threading.Thread(target=self.go_on)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()


def die(child: Child) -> None:
    """Kill it and all that comes of it, as a machine dies with whatever runs there."""
    for pid in services._having(f"HEADRACE_CHILD={child._mark}".encode()):
        os.kill(pid, signal.SIGKILL)
    child.kill()  # of what has written over its environment, too


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig.laid() as rig:
        yield rig


@pytest.fixture
def project(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    projects.lay("pumps", tmp_path)
    config = tmp_path / "features/feature_store.yaml"
    config.unlink()
    config.symlink_to(ROOT / "deployments/feature_store.yaml")
    start = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    told = rig.machine("desk") | {"PUMPS_START": start, "PUMPS_WORLD": str(tmp_path)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


class Life:
    """The rig and a project on it, while somebody asks, and a supervisor starts again what ends."""

    def __init__(self, rig: Rig, project: Project) -> None:
        self.rig, self.project, self.parts = rig, project, dict[str, Child]()
        self.asking = Asking(f"http://{rig.at('serve')}", rig.key)
        self.begun, self.over = time.monotonic(), threading.Event()

    def say(self, what: object) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s: {what}", flush=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        rig, project = self.rig, self.project
        with ExitStack() as stack:

            def run(*started: services.Service) -> None:
                children = stack.enter_context(services.running([*started], project.settings))
                self.parts |= {child.service.name: child for child in children}

            run(*rig.foundation)
            rig.found()
            run(*rig.servers, *rig.dask)
            project.run("cycle", "pumps")
            project.run("train", "pumps")
            services.deploy(project.settings)
            run(rig.worker(1), rig.worker(2), rig.serve(1), rig.serve(2))
            supervisor = threading.Thread(target=self.supervise)
            supervisor.start()
            try:
                yield
            finally:
                self.over.set()
                supervisor.join()

    def supervise(self) -> None:
        for befell in services.keep([*self.parts.values()], lambda: not self.over.is_set()):
            self.say(befell.partition("; ")[0])

    def kill(self, *names: str) -> None:
        """Let parts die; wait until a window has been lived through all the same, and all are back."""
        for name in names:
            die(self.parts[name])
        eventually(self.project.judges(1), seconds=300)
        back = [part.service for part in self.parts.values() if part.service.health]
        eventually(lambda: all(map(services.answers, back)), seconds=120)
        lived = len(self.project.done("judgement"))
        self.say(f"{' and '.join(names)} died; {lived} windows; answers {dict(self.asking.statuses)}")


@pytest.mark.timeout(2700)
def test_each_part_dies_while_it_lives_by_the_clock(rig: Rig, project: Project) -> None:
    life = Life(rig, project)
    with life.running():
        life.say("all is up")
        eventually(lambda: examined(project)["worker"]["state"] == "well", seconds=120)
        found = examined(project)
        parts = ("ledger", "lake", "MLflow", "Feast", "Dask", "Prefect", "worker", "deployments")
        assert {name: found[name]["state"] for name in parts} == dict.fromkeys(parts, "well"), found
        locked = examined(project, PREFECT_API_AUTH_STRING="ops:another")
        assert "set PREFECT_API_AUTH_STRING" in locked["Prefect"]["told"]
        with life.asking.asked():
            eventually(project.judges(1), seconds=300)
            life.kill("prefect 1", "serve 1", "worker 1", "dask worker 1")
            life.kill("redis", "prefect services", "mlflow", "serve 2")
            store = life.parts["s3"].process
            store.send_signal(signal.SIGSTOP)  # it keeps all in memory
            time.sleep(10)
            store.send_signal(signal.SIGCONT)
            life.kill("postgres", "dask", "prefect 2")
            (project.world / "heavier").write_text(f"{time.time():.0f}")
            eventually(project.retrainings, seconds=300)
            project.schedule(on=False, seconds=600)  # each window since then calls for a training of its own
        life.say(f"answers {life.asking.statuses}")
        project.lived_once()
        answered = {*life.asking.answered}
        eventually(lambda: answered <= {*served(project)}, seconds=120)
        assert len(served(project)) == len({*served(project)})
        assert len(answered) > 0.95 * life.asking.statuses.total()
        told = rig.told()
    assert PASSWORD not in told
    assert rig.key not in told


@pytest.mark.timeout(1800)
def test_all_pipelines_live_a_short_life(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter and three weeks of flights, and four questions, of which one feeds on another's answers."""
    world = tmp_path / "world"
    aside = shutil.ignore_patterns(".*", "docs", "tests", "benchmarks", "__pycache__")
    shutil.copytree(ROOT, world, ignore=aside)
    shutil.copy(world / "deployments/feature_store.yaml", world / "features")
    for name, value in rig.machine("desk").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(world)
    project = Project(world)
    first, last = "2013-04-15", "2013-04-22"
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(services.running(rig.foundation, project.settings))
        rig.found()
        stack.enter_context(services.running([*rig.servers, *rig.dask], project.settings))
        project.run("lifecycle", "flights", "--start", "2013-04-01", "--end", last)
        print(f"{time.monotonic() - began:.0f} s flights", flush=True)
        for name in ("arrival_delay", "outcome", "next_leg"):
            before = "cycle" if name == "next_leg" else "materialize"
            for flow, as_of in ((before, first), ("train", first), ("cycle", last)):
                project.run(flow, name, "--as-of", as_of)
            print(f"{time.monotonic() - began:.0f} s {name}", flush=True)
        mlflow = MLflow(project.settings.mlflow, project.settings.home)
        for name in ("flights", "arrival_delay", "outcome", "next_leg"):
            spec, champion = load(name), registry.champion(mlflow, name)
            assert champion is not None, name
            assert champion.verdict == "promoted"
            week = Window(utc(2013, 4, 15), utc(2013, 4, 22))
            assert log.read(spec, project.lake, week).num_rows > 6_000
            judged = project.ledger.entries(name, "judgement")
            assert judged[-1].key == str(week)
        command = [*services.HEADRACE, "models", "verify", "flights@champion"]
        env = services.environment(project.settings)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in rig.told()


def examined(project: Project, **told: str) -> dict[str, dict[str, str]]:
    """Return what ``headrace doctor`` finds."""
    command = [*services.HEADRACE, "doctor", "--json"]
    env = services.environment(project.settings) | told
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout)  # of two that are told of one thing, the worse
    return {one["what"]: one for one in sorted(found, key=lambda one: one["state"] != "well")}


def served(project: Project) -> list[str]:
    con = project.lake.connect({"served": "served/pumps"})
    return [id for (id,) in con.sql("SELECT prediction_id FROM served").fetchall()]
