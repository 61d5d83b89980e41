"""Prefect's address is one setting; the servers that `headrace up` keeps are kept."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import httpx
import pytest

from headrace import services
from headrace.errors import ServerUnreachable
from headrace.settings import Settings
from tests.conftest import ROOT, free_port

PLACES = {
    "pyproject.toml": ("pyproject.toml", '[tool.prefect]\napi.url = "http://127.0.0.1:7001/api"'),
    "prefect.toml": ("prefect.toml", '[api]\nurl = "http://127.0.0.1:7002/api"'),
    ".env": (".env", "PREFECT_API_URL=http://127.0.0.1:7003/api"),
    "the environment": (None, "http://127.0.0.1:7004/api"),
}


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address of Prefect's in the environment, nor in the current folder."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("places", range(1, len(PLACES) + 1))
@pytest.mark.usefixtures("unset")
def test_prefects_address_is_the_one_prefect_itself_would_read(
    places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings.models.root import Settings as Prefects

    for file, text in list(PLACES.values())[:places]:
        if file:
            Path(file).write_text(text)
        else:
            monkeypatch.setenv("PREFECT_API_URL", text)
    assert Settings().prefect_api_url == f"http://127.0.0.1:700{places}/api"
    assert Prefects().api.url == Settings().prefect_api_url


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("empty", ["", "/"])
def test_an_empty_address_is_none(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", empty)
    assert Settings().prefect_api_url == "http://127.0.0.1:4200/api"


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("http://127.0.0.1:24200/api/", "127.0.0.1", "24200"),
        ("http://localhost:24200/api", "localhost", "24200"),
        ("http://[::1]:24200/api", "::1", "24200"),
        ("http://127.0.0.1/api", "127.0.0.1", "80"),
    ],
)
def test_an_address_on_this_machine_is_where_prefect_is_served(
    address: str, host: str, port: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    (server,) = services.prefect(Settings())
    assert server.command[-4:] == ["--host", host, "--port", port]
    assert server.health == f"{address.rstrip('/')}/health"
    assert services.environment(Settings())["PREFECT_API_URL"] == address.rstrip("/")


@pytest.mark.parametrize(
    "address", ["http://prefect.invalid:4200/api", "https://localhost:{port}/api", "http://127.0.0.1:{port}"]
)
def test_any_other_address_must_answer(
    address: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address.format(port=free_port()))
    with pytest.raises(ServerUnreachable, match="Prefect does not answer at http"):
        services.prefect(Settings())


def test_a_service_that_keeps_ending_rests_for_longer_each_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    broken = services.Service("Broken", [sys.executable, "-c", "raise SystemExit('no luck')"])
    began = time.monotonic()
    with services.running([broken], settings) as children:
        said = list(islice(services.keep(children, lambda: True), 3))
    log = settings.home / "logs" / "broken.log"
    assert said == [
        f"Broken ended with code 1; it starts again in {rest} s. Its log: {log}" for rest in (1, 2, 4)
    ]
    assert time.monotonic() - began > 1 + 2
    assert log.read_text().split("\n")[:3] == ["no luck"] * 3


def test_a_server_that_does_not_answer_any_more_is_started_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HEADRACE_DOCS_PORT", str(free_port()))
    for seconds in ("STARTING", "SILENT", "ASKED", "ENDING"):
        monkeypatch.setattr(services, seconds, 2.0)
    server = services.docs_server(Settings())
    with services.running([server], settings) as children:
        os.kill(children[0].process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 60

        def answers() -> bool:
            try:
                return httpx.get(server.health, timeout=0.5).is_success
            except httpx.HTTPError:
                return False

        (said,) = services.keep(children, lambda: not answers() and time.monotonic() < deadline)
        assert answers()
    assert said.startswith("Data Docs does not answer; it starts again in 1 s.")
