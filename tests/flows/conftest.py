"""One river for all tests here: a real Prefect server, a worker, and four weeks of 2013 lived through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace import services
from headrace.settings import Settings
from tests.conftest import ROOT, free_port


@dataclass(frozen=True)
class River:
    """A home that has been lived in, and the servers that still run on it."""

    settings: Settings
    summary: dict[str, Any]
    said: str

    def prefect(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        """Return the Prefect server's objects of a kind, such as ``flow_runs``."""
        answer = httpx.post(f"{self.settings.prefect_api_url}/{kind}/filter", json=filters, timeout=30)
        answer.raise_for_status()
        return answer.json()  # type: ignore[no-any-return]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m flows`` in this home."""
        return flows(self.settings, *arguments)

    def command(self, *arguments: str, ends: int = 0) -> subprocess.CompletedProcess[str]:
        """Run another command line, such as Prefect's, in this home; it must succeed, or end so."""
        done = _module(self.settings, *arguments)
        assert done.returncode == ends, done.stdout + done.stderr
        return done


def _module(settings: Settings, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=services.environment(settings),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def flows(settings: Settings, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python -m flows`` in a home, for the project in ``cwd``."""
    return _module(settings, "flows", *arguments, cwd=cwd)


def eventually(claim: Callable[[], Any], seconds: float = 90) -> Any:
    """Return what ``claim`` returns once it is true; fail when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, f"never came true within {seconds} s"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="session")
def river(tmp_path_factory: pytest.TempPathFactory) -> Iterator[River]:
    home = tmp_path_factory.mktemp("river")
    lived = home / "lived.json"
    patch = pytest.MonkeyPatch()
    patch.delenv("PREFECT_HOME", raising=False)
    for name, value in {
        "HEADRACE_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "HEADRACE_MLFLOW_PORT": str(free_port()),
        "HEADRACE_FEAST_PORT": str(free_port()),
        "HEADRACE_EVIDENTLY_PORT": str(free_port()),
        "HEADRACE_SERVE_PORT": str(free_port()),
    }.items():
        patch.setenv(name, value)
    patch.chdir(ROOT)
    settings = Settings()
    with services.running([services.prefect_server(settings)], settings):
        services.deploy(settings)
        with services.running([services.prefect_worker()], settings):
            done = flows(
                settings,
                *("lifecycle", "flights", "--start", "2013-04-01", "--end", "2013-04-29"),
                *("--result", str(lived)),
            )
            assert done.returncode == 0, done.stdout + done.stderr + _logs(settings)
            yield River(settings, json.loads(lived.read_text()), done.stdout)
    patch.undo()


def _logs(settings: Settings) -> str:
    return "".join(Path(log).read_text() for log in (settings.home / "logs").glob("*.log"))


@pytest.fixture
def in_river(river: River, monkeypatch: pytest.MonkeyPatch) -> River:
    """Let flows called in this process run on the river's server and home."""
    for name, value in services.environment(river.settings).items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    return river
