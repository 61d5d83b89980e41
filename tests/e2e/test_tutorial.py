"""The tutorial's commands, one after the other, in a shell of their own."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace import services
from headrace.settings import Settings
from tests.conftest import free_port
from tests.e2e.test_new import ROOT, installed

__all__ = ["installed"]
ELSEWHERE = ("pip install", "make setup", ". .venv", "cd rain")
"""What the test has done already: the wheel is installed by ``installed``, which is what these do."""


def blocks() -> list[tuple[str, str]]:
    """Return the tutorial's code, with what language it is in."""
    text = (ROOT / "docs/tutorial.md").read_text()
    return re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_tutorial_is_what_happens(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("HEADRACE", "PREFECT", "PYTHONPATH"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setenv("HEADRACE_SERVE_PORT", str(free_port()))
    monkeypatch.setenv("PATH", f"{installed}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "200")
    said, folder = "", tmp_path
    with ExitStack() as up:
        for language, code in blocks():
            lines = [line for line in code.splitlines() if not line.startswith(ELSEWHERE)]
            if "cd rain" in code:
                folder = tmp_path / "rain"
            if "python -m flows" in code:  # in another terminal
                monkeypatch.setenv("HEADRACE_HOME", str(folder / ".headrace"))
                settings = Settings()
                up.enter_context(services.running([services.prefect_server(settings)], settings))
                monkeypatch.delenv("HEADRACE_HOME")
            program = ["bash", "-e", "-c"] if language == "sh" else [str(installed / "python"), "-c"]
            typed = [*program, "\n".join(lines)]
            done = subprocess.run(
                typed,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
            said += done.stdout
    for expected in (
        "version 1 released",
        "on 3,987 held-out rows in 56 groups",
        '{"model":"rain","version":1',
        "IDENTICAL",
        "3 passed",
        "All is well",
    ):
        assert expected in said, said
