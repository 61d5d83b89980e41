"""What ails an installation is found, and the cure is told."""

from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from headrace import doctor, services
from headrace.backup import backup, restore
from headrace.doctor import GIB, Finding, examine
from headrace.errors import ServerUnreachable
from headrace.ledger import Ledger
from headrace.project import Project
from headrace.runs import NoSuchRun, resume
from headrace.settings import Settings
from tests.conftest import free_port

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    for name in ("MLFLOW", "DOCS", "FEAST", "EVIDENTLY", "SERVE"):
        monkeypatch.setenv(f"HEADRACE_{name}_PORT", str(free_port()))
    return tmp_path


def found() -> dict[str, Finding]:
    return {f"{n} {one.what}": one for n, one in enumerate(examine(Project(ROOT, Settings())))}


def of(what: str) -> list[Finding]:
    return [one for one in found().values() if one.what == what]


def test_a_sound_home_is_well(home: Path) -> None:
    assert {one.what: one.told for one in found().values() if one.state != "well"} == {}
    assert "pipeline flights" in {one.what for one in found().values()}


def test_to_look_makes_nothing(home: Path) -> None:
    """What is not there yet is well, and a backup can still be brought back to where it was looked."""
    (saved := home / "saved").mkdir()
    backup(Project(ROOT, Settings(home=home / "other")), saved / "one")
    fresh = Settings(home=home / "fresh")
    told = {one.what: one.told for one in examine(Project(ROOT, fresh)) if one.what in ("ledger", "lake")}
    assert told["ledger"].endswith("not made yet")
    assert not (home / "fresh").exists()
    assert [one.wrong for one in restore(saved / "one", fresh)] == ["", ""]


def test_it_prints_json_and_exits_with_1_if_anything_is_ill(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from headrace.cli.doctor import doctor as command

    monkeypatch.setenv("HEADRACE_MLFLOW", "http://127.0.0.1:9")
    with pytest.raises(typer.Exit) as ended:
        command(as_json=True)
    assert ended.value.exit_code == 1
    told = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["MLflow"]["state"] == "ill"
    assert "127.0.0.1:9" in told["MLflow"]["told"]
    assert told["Feast"]["state"] == "well"  # the others are looked at all the same


@pytest.mark.parametrize(("free", "state"), [(5 * GIB, "beware"), (GIB // 2, "ill"), (50 * GIB, "well")])
def test_a_disk_that_fills_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = namedtuple("usage", "free")(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (one,) = of("home")
    assert one.state == state
    assert ("headrace vacuum" in one.cure) == (state != "well")


def test_a_port_that_something_else_holds_is_told_with_its_setting(home: Path) -> None:
    with socket.create_server(("127.0.0.1", Settings().docs_port)):
        (one,) = of("Data Docs")
    assert one.state == "beware"
    assert "HEADRACE_DOCS_PORT" in one.cure


def test_packages_that_are_not_as_they_must_be_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda _: ["numpy<1", "no-such-thing>=2", "nothing; extra == 'x'"]
    )
    (one,) = of("packages")
    assert one.state == "ill"
    assert "numpy is" in one.told
    assert "no-such-thing is missing" in one.told
    assert "nothing" not in one.told


def test_clocks_that_differ_and_telemetry_that_is_on_are_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "true")
    monkeypatch.setattr(doctor, "APART", -1.0)
    assert Ledger(Settings().ledger).running() == []  # made by that
    assert of("telemetry")[0].cure == "unset GX_ANALYTICS_ENABLED"
    assert "NTP" in of("clocks")[0].cure


def test_a_broken_declaration_is_told_beside_sound_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.errors import BrokenDeclaration

    whole = Project.pipeline

    def load(self: Project, name: str) -> object:
        if name == "outcome":
            raise BrokenDeclaration("pipelines/outcome.py", ["`keys` names none"])
        return whole(self, name)

    monkeypatch.setattr(Project, "pipeline", load)
    states = {one.what: one.state for one in found().values() if one.what.startswith("pipeline")}
    assert [name for name, state in states.items() if state == "ill"] == ["pipeline outcome"]
    assert len(states) == 4


def test_a_server_without_worker_or_deployments_is_told(home: Path) -> None:
    settings = Settings()
    with services.running([services.prefect_server(settings)], settings):
        worker, deployments = of("worker")[0], of("deployments")[0]
        assert (worker.state, deployments.state) == ("beware", "beware")
        assert "flights" in deployments.told
        services.deploy(settings)
        assert of("deployments")[0].state == "well"
        assert of("Prefect")[0].told.startswith("answers at")


def test_a_prefect_that_wants_a_login_says_so_until_it_is_given(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:s3cret")
    settings = Settings()
    with services.running([services.prefect_server(settings)], settings):
        (locked,) = (one for one in of("Prefect") if one.state == "ill")
        assert "set PREFECT_API_AUTH_STRING" in locked.told
        with pytest.raises(ServerUnreachable, match="it wants a login"):
            resume(settings, "some run")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:s3cret")
        assert [one.state for one in of("Prefect")] == ["well"]
        assert of("worker")[0].told.startswith("0 online")
        with pytest.raises(NoSuchRun):
            resume(Settings(), "some run")
        assert "s3cret" not in repr(Settings())
