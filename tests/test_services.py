"""Prefect's address is one setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import services
from headrace.errors import ServerUnreachable
from headrace.settings import Settings
from tests.conftest import free_port

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
