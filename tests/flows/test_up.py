"""``headrace up``: everything serves, what dies is started again, and everything ends with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT, free_port
from tests.flows.conftest import eventually

BARE = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "HEADRACE_"))}
SLOW = """
import os, sys, time
from pathlib import Path
from prefect import flow

@flow
def slow():
    with open("taken-up", "a") as file:
        print(os.getpid(), file=file)
    while not Path("go-on").exists():
        time.sleep(0.5)
    sys.stderr.write("Not by way of Prefect.")
"""
DEPLOYMENT = """
  - name: slow
    entrypoint: flows/slow.py:slow
    work_pool: *pool
    concurrency_limit: {limit: 1, collision_strategy: CANCEL_NEW}
"""


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def gone(*pids: int) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def children_of(pid: int) -> dict[str, int]:
    """Return the children's process ids, by what each runs."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-a"], capture_output=True, text=True, check=False)
    commands = [line.split() for line in listed.stdout.splitlines()]  # pid, python, -m, module, …
    alive = [c for c in commands if len(c) > 3]
    several = ("prefect", "headrace.cli")
    return {" ".join(c[3:5]) if c[3] in several else c[3]: int(c[0]) for c in alive}


class Project:
    """A copy of this project whose ``pyproject.toml`` puts Prefect at a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, folder / "said"
        aside = shutil.ignore_patterns(".*", "docs", "tests", "benchmarks", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=aside)
        prefect, mlflow, docs, feast, evidently, models = (f"127.0.0.1:{free_port()}" for _ in range(6))
        declared = (folder / "pyproject.toml").read_text()
        assert "127.0.0.1:4200/api" in declared
        (folder / "pyproject.toml").write_text(declared.replace("127.0.0.1:4200", prefect))
        self.api = f"http://{prefect}/api"
        self.pages = [f"{self.api}/health", f"http://{mlflow}/health", f"http://{docs}/"]
        self.pages += [f"http://{feast}/projects-list.json", f"http://{models}/healthz"]
        self.pages += [f"http://{evidently}/api/projects"]
        ports = {"MLFLOW": mlflow, "DOCS": docs, "FEAST": feast, "SERVE": models, "EVIDENTLY": evidently}
        self.env = BARE | {f"HEADRACE_{server}_PORT": at.split(":")[1] for server, at in ports.items()}

    def prefect(self, kind: str) -> Any:
        """Return the Prefect server's objects of a kind; none while it does not know any."""
        answer = httpx.post(f"{self.api}/{kind}/filter", json={}, timeout=10)
        return answer.json() if answer.is_success else []

    def all_up(self) -> bool:
        if not all(map(answers, self.pages)):
            return False
        return any(w["status"] == "ONLINE" for w in self.prefect("work_pools/headrace/workers"))

    @contextmanager
    def up(self, ending: signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``headrace up`` in it until the block ends; what it says goes to the file ``said``."""
        with self.said.open("w") as said:
            command = [sys.executable, "-m", "headrace.cli", "up"]
            up = subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=said, stderr=said)

        def all_up() -> bool:
            assert up.poll() is None, self.said.read_text()
            return self.all_up()

        try:
            eventually(all_up, seconds=120)
            yield up
        finally:
            up.send_signal(ending)
            up.wait(timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_serves_prefect_mlflow_feast_docs_models_and_a_worker_and_ends_them_all(
    ending: signal.Signals, project: Project
) -> None:
    with project.up(ending) as up:
        declared = yaml.safe_load((project.folder / "prefect.yaml").read_text())["deployments"]
        assert len(project.prefect("deployments")) == len(declared)
        children = children_of(up.pid)
        assert children.keys() == {
            "prefect server",
            "mlflow",
            "headrace.validation.serve",
            "feast.cli.cli",
            "headrace.cli serve",
            "headrace.cli dashboards",
            "headrace.forkserver",
            "prefect worker",
        }
    eventually(lambda: gone(*children.values()), seconds=15 if ending == signal.SIGKILL else 1)
    assert not any(map(answers, project.pages))


def test_what_is_killed_is_started_again_and_a_run_goes_on_in_its_place(project: Project) -> None:
    (project.folder / "flows" / "slow.py").write_text(SLOW)
    with (project.folder / "prefect.yaml").open("a") as deployments:
        deployments.write(DEPLOYMENT)

    def start(name: str) -> None:
        """Run it as a person does, with the bare ``prefect`` command."""
        prefect = str(Path(sys.executable).with_name("prefect"))
        command = [prefect, "deployment", "run", "slow/slow", "--flow-run-name", name]
        subprocess.run(command, env=project.env, cwd=project.folder, check=True)

    def state(name: str) -> str:
        return str(next(run["state_type"] for run in project.prefect("flow_runs") if run["name"] == name))

    def taken_up() -> list[int]:
        """The processes of all runs so far."""
        noted = project.folder / "taken-up"
        return [int(pid) for pid in noted.read_text().split()] if noted.exists() else []

    with project.up(signal.SIGINT) as up:
        start("first")
        eventually(lambda: len(taken_up()) == 1)
        killed = children_of(up.pid)
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)

        def all_again() -> bool:
            assert up.poll() is None, project.said.read_text()
            now = children_of(up.pid)
            return now.keys() == killed.keys() and now.items().isdisjoint(killed.items())

        eventually(all_again)
        eventually(project.all_up)
        start("refused")
        eventually(lambda: state("refused") == "CANCELLED")  # the place is taken
        (project.folder / "go-on").touch()
        eventually(lambda: state("first") == "COMPLETED")
        (project.folder / "go-on").unlink()
        start("last")
        eventually(lambda: len(taken_up()) == 2)
    assert gone(*taken_up())
    for name in ("Prefect", "MLflow", "Data Docs", "Feast", "Evidently", "models", "fork server", "worker"):
        assert f"{name} was ended by SIGKILL; it starts again in 1 s. Its log: /" in project.said.read_text()
