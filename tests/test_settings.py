"""Settings say what is wrong with them."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from headrace import services
from headrace.addresses import public, scrubbed
from headrace.cli.serve import serve
from headrace.ledger import Ledger
from headrace.settings import BadSetting, Settings, UnknownSetting


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADRACE_MLFLOW_PORT", "abc"),
        ("HEADRACE_DASK_WORKERS", "0"),
        ("PREFECT_API_URL", "http://x:abc/api"),
        ("HEADRACE_HOME", f"{__file__}/home"),
    ],
)
def test_one_that_cannot_be_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSetting, match=f"`{variable}` is set to `{value}`"):
        Settings()


def test_a_misspelt_one_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOEM", "elsewhere")
    with pytest.raises(UnknownSetting, match=r"`HEADRACE_HOEM` is set.* Did you mean `HEADRACE_HOME`"):
        Settings()


@pytest.mark.parametrize(
    "variable",
    ["HEADRACE_LAKE", "HEADRACE_LEDGER", "HEADRACE_MLFLOW", "HEADRACE_DASK_ADDRESS", "PREFECT_API_URL"],
)
def test_no_words_hold_the_secrets_of_an_address(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "https://me:p@s3cret@example.org:5432/api?password=s3cret")
    settings = Settings()
    shown = [repr(settings), str(settings), settings.prefect_page, settings.mlflow_page]
    shown += [repr(Ledger(settings.ledger)), repr(services.mlflow_server(settings))]
    assert "s3cret" not in "".join(shown)
    monkeypatch.setenv(variable, "https://me:p@s3cret@example.org:port/api?password=s3cret")
    with pytest.raises(BadSetting, match=rf"`{variable}` is set to `https://example\.org:port/") as caught:
        Settings()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:s3@s3cret@x/d", "nosuch://me:s3cret@x/d", "me:s3cret@x/d"]
)
def test_a_ledger_that_cannot_be_is_named_without_its_secrets(url: str) -> None:
    with pytest.raises(BadSetting, match="`HEADRACE_LEDGER` is set to") as caught:
        Ledger(url).entries("pipeline")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me@host/d", "postgresql://host/d"),
        ("postgresql://me:a/b@host:1/d", "postgresql://host:1/d"),
        ("postgresql://me:a@b:c@host/d?sslpassword=x", "postgresql://host/d?…"),
        ("postgresql://me:a?b@host/d", "postgresql://…"),
        ("https://host/a.csv?mail=a@b", "https://host/a.csv?…"),
        ("s3://key:secret@bucket/*.csv", "s3://bucket/*.csv"),
        ("s3://bucket/of@me/*.csv", "s3://bucket/of@me/*.csv"),
        ("sqlite:////home/a@b/ledger.db", "sqlite:////home/a@b/ledger.db"),
        ("tcp://[::1]:8786", "tcp://[::1]:8786"),
        ("data/me:a@b/2013-0?.csv", "data/me:a@b/2013-0?.csv"),
    ],
)
def test_an_address_is_shown_without_user_password_and_query(address: str, shown: str) -> None:
    assert public(address) == public(shown) == shown
    assert scrubbed(f"It said: no `{address}`, (or {address}).") == f"It said: no `{shown}`, (or {shown})."


def test_a_certificate_that_is_not_there_is_told_before_anything_is_served(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_SERVE_CERTIFICATE", str(home / "server.pem"))
    with pytest.raises(BadSetting, match=r"`HEADRACE_SERVE_CERTIFICATE` .*server\.pem.* no such file"):
        serve(["flights"])
