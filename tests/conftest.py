"""What the tests stand on: real parts, started for the tests alone, on loopback."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling

from headrace.settings import Settings

ROOT = Path(__file__).parent.parent
collect_ignore_glob = ["e2e/projects/*", "validations/*", "forked.py"]  # what tests run, without examples
# How long an example takes says more of the machine than of the code.
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=SLOW)
hypothesis_settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if any test was skipped")


class Together(LoadScopeScheduling):
    """Keep together what shares costly parts: the flows live in one river, other tests in their module's."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "flows" if file.startswith("tests/flows/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--no-skips") and terminalreporter.stats.get("skipped"):
        terminalreporter.section("skipped although --no-skips was asked for", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # Workers have no reporter: the process that collects their results judges.
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def utc(year: int, month: int = 1, day: int = 1, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def free_port() -> int:
    """A port nothing listens at, and below those that the system gives away unasked."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh headrace home that settings read here point at."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty PostgreSQL, run for these tests alone."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian package `postgresql`)")
    binaries, port, as_user = found[-1].parent, free_port(), []
    # Not below pytest's own folder, which is for one user's eyes only.
    with tempfile.TemporaryDirectory(prefix="headrace-postgres-") as data:
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(data, "postgres", "postgres")
        env = os.environ | {"HOME": data}
        init = [*as_user, str(binaries / "initdb"), "-D", f"{data}/db", "-U", "headrace", "-A", "trust"]
        subprocess.run(init, check=True, env=env, stdout=subprocess.DEVNULL, cwd=data)
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={data} -c fsync=off"
        )
        ctl = [*as_user, str(binaries / "pg_ctl"), "-D", f"{data}/db", "-w"]
        subprocess.run([*ctl, "-o", options, "-l", f"{data}/log", "start"], check=True, env=env, cwd=data)
        yield f"postgresql+psycopg://headrace@127.0.0.1:{port}/postgres"
        subprocess.run([*ctl, "-m", "immediate", "stop"], check=True, env=env, cwd=data)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ``host:port`` of an empty Redis, run for these tests alone."""
    binary = shutil.which("redis-server")
    if not binary:
        pytest.skip("Redis is not installed (Debian package `redis-server`)")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", str(port)]
    with subprocess.Popen(
        [binary, *options], cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        assert any("Ready to accept connections" in line for line in server.stdout)
        yield f"127.0.0.1:{port}"
        server.terminate()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OFFLINE = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture
def page() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (Debian package `chromium`)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(30_000)
        yield page
        browser.close()
