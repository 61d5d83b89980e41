"""A run that is a fork of the server is as a process of its own: to itself, and to whoever started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.flows.conftest import eventually

START = """
import headrace.forkserver as f
f.ENGINE, f.prepare = "tests.forked", lambda: __import__("prefect.engine")
f.main()
"""


@pytest.fixture(params=["forked", "alone"])
def socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where a server listens; or where none does, and all is to be the same."""
    folder = tmp_path / ("a folder of a long name" * 6)  # longer than an address may be
    folder.mkdir()
    path = folder / "forkserver.sock"
    if request.param == "alone":
        yield path
        return
    server = subprocess.Popen(
        [sys.executable, "-c", START, "serve"], env=_env(path) | {"GIVEN": "the server's"}, cwd=ROOT
    )
    try:
        eventually(path.exists, seconds=30)
        assert path.stat().st_mode & 0o77 == 0
        yield path
    finally:
        server.kill()
        server.wait()


def _env(path: Path) -> dict[str, str]:
    return os.environ | {"HEADRACE_FORKSERVER": str(path), "PYTHONPATH": str(ROOT)}


def _begin(path: Path, *arguments: str, folder: Path = ROOT, given: str = "mine") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        env=_env(path) | {"GIVEN": given, "PREFECT_API_URL": f"http://{given}/api"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_has_its_clients_arguments_environment_folder_and_output(socket: Path, tmp_path: Path) -> None:
    for given in ("mine", "another"):
        run = _begin(socket, "tell", "--a", "b c", folder=tmp_path, given=given)
        out, _ = run.communicate(timeout=60)
        assert json.loads(out) == [["--a", "b c"], str(tmp_path), given, f"http://{given}/api"]
        assert run.returncode == 7


def test_what_goes_wrong_is_told(socket: Path) -> None:
    run = _begin(socket, "fail")
    _, err = run.communicate(timeout=60)
    assert "ValueError: as it should" in err
    assert run.returncode == 1


def test_a_run_is_told_to_end_through_its_client(socket: Path) -> None:
    run = _begin(socket, "wait")
    assert run.stdout
    pid = int(run.stdout.readline())
    run.terminate()
    _, err = run.communicate(timeout=60)
    assert "told to end" in err
    assert run.returncode == 1
    assert not _alive(pid)


def test_a_run_does_not_outlive_its_client(socket: Path) -> None:
    run = _begin(socket, "wait")
    assert run.stdout
    pid = int(run.stdout.readline())
    run.kill()
    run.communicate(timeout=60)
    eventually(lambda: not _alive(pid), seconds=10)


def test_a_run_goes_on_when_its_server_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "forkserver.sock"
    command = [sys.executable, "-c", START, "serve"]
    server = subprocess.Popen(command, env=_env(path), cwd=ROOT, start_new_session=True)
    eventually(path.exists, seconds=30)
    run = _begin(path, "wait")
    assert run.stdout
    pid = int(run.stdout.readline())
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=1)
    assert _alive(pid)
    run.terminate()
    assert run.wait(timeout=60) == 1
    assert not _alive(pid)


def test_a_client_ends_as_its_run_was_ended(socket: Path) -> None:
    run = _begin(socket, "die")
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
