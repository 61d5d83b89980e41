"""``headrace up``: everything serves, and everything ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, free_port
from tests.flows.conftest import eventually


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in listed.split()]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_prefect_mlflow_feast_docs_and_a_worker_and_ends_them_all(
    ending: signal.Signals, tmp_path: Path
) -> None:
    prefect, mlflow, docs, feast = (free_port() for _ in range(4))
    wanted = {"MLFLOW": mlflow, "DOCS": docs, "FEAST": feast}
    ports = {f"HEADRACE_{server}_PORT": str(port) for server, port in wanted.items()}
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    api = f"http://127.0.0.1:{prefect}/api"
    up = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "up"],
        env=env | ports | {"HEADRACE_HOME": str(tmp_path), "PREFECT_API_URL": api},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def all_up() -> bool:
            assert up.poll() is None, up.communicate()[0]
            pages = [f"{api}/health", f"http://127.0.0.1:{mlflow}/health"]
            pages += [f"http://127.0.0.1:{docs}/", f"http://127.0.0.1:{feast}/projects-list.json"]
            if not all(answers(page) for page in pages):
                return False
            workers = httpx.post(f"{api}/work_pools/headrace/workers/filter", json={}, timeout=10)
            return workers.is_success and any(w["status"] == "ONLINE" for w in workers.json())

        eventually(all_up, seconds=120)
        assert len(httpx.post(f"{api}/deployments/filter", json={}, timeout=10).json()) == 6
        children = children_of(up.pid)
        assert answers(f"http://127.0.0.1:{docs}/")
        assert len(children) == 5
    finally:
        up.send_signal(ending)
        up.wait(timeout=60)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not answers(f"{api}/health")
