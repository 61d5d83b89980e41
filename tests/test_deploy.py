"""Deploying: what is declared gets onto a real Prefect server, and what a person set there stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import yaml

from deployments.merge import ABSENT, differing, merge
from headrace import services
from headrace.errors import ServerUnreachable
from headrace.settings import Settings
from tests.conftest import ROOT, free_port
from tests.flows.conftest import eventually


@pytest.mark.parametrize(
    ("last", "now", "there", "wanted"),
    [
        ("a", "a", "a", "a"),
        ("a", "b", "a", "b"),
        ("a", "a", "mine", "mine"),
        ("a", "b", "mine", "b"),  # both changed: the declaration counts
        (None, "a", "mine", "a"),  # nothing is remembered
        ({"x": 1, "y": 1}, {"x": 2, "y": 1}, {"x": 1, "y": 5}, {"x": 2, "y": 5}),
        ({"x": 1}, {}, {"x": 1, "mine": 2}, {"mine": 2}),
        ({"x": 1}, {"x": 1}, {}, {}),
        ([1], [1], [1, 2], [1, 2]),
        (ABSENT, {"x": {"y": 1}}, {"x": {"z": 2}}, {"x": {"z": 2, "y": 1}}),
    ],
)
def test_what_changed_in_the_declaration_changes_and_all_else_stays(
    last: Any, now: Any, there: Any, wanted: Any
) -> None:
    assert merge(last, now, there) == wanted
    assert (differing(there, wanted) == []) is (there == wanted)


def of(declared: dict[str, Any], flow: str) -> dict[str, Any]:
    """Return what ``prefect.yaml`` declares of a flow's deployment."""
    found: dict[str, Any] = next(d for d in declared["deployments"] if d["entrypoint"].endswith(f":{flow}"))
    return found


class Project:
    """A copy of this project that may be changed, beside a Prefect server of its own."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.api = settings.prefect_api_url

    def edit(self, file: str, change: Callable[[Any], Any]) -> None:
        declared = yaml.safe_load((self.folder / file).read_text())
        change(declared)
        (self.folder / file).write_text(yaml.safe_dump(declared))

    def deploy(self) -> str:
        return services.deploy(self.settings)

    def ask(self, method: str, path: str, **json: Any) -> Any:
        def answered() -> httpx.Response | None:
            answer = httpx.request(method, f"{self.api}/{path}", json=json or None, timeout=30)
            return None if answer.status_code == 503 else answer  # SQLite is busy: as Prefect's client, again

        answer: httpx.Response = eventually(answered)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployments(self) -> dict[str, Any]:
        """Every deployment by its flow's name, less when it was last looked at."""
        found = self.ask("POST", "deployments/filter", limit=50)
        return {d["entrypoint"].rpartition(":")[2]: d | {"last_polled": None, "status": None} for d in found}

    def automations(self) -> dict[str, Any]:
        return {a["name"]: a for a in self.ask("POST", "automations/filter", limit=50)}

    def pool(self) -> dict[str, Any]:
        return self.ask("GET", "work_pools/headrace") | {"status": None}  # type: ignore[no-any-return]


@pytest.fixture
def project(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "deployments", folder / "deployments")
    shutil.copytree(ROOT / "flows", folder / "flows")
    for name in ("headrace", "pipelines", "features", "validations"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    declared["deployments"] = [each for each in declared["deployments"] if each["name"] == "flights"]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(declared))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    settings = Settings()
    with services.running([services.prefect_server(settings)], settings):
        yield Project(folder, settings)


def test_deploying_again_changes_what_changed_and_keeps_what_a_person_set(project: Project) -> None:
    def state() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return project.deployments(), project.automations(), project.pool()

    assert project.deploy().endswith(" created.")
    first = state()
    assert set(first[1]) == {"retrain flights on drift", "settle runs that died unseen"}
    assert "created" not in (said := project.deploy())
    assert "changed" not in said.replace("unchanged", "")
    assert state() == first  # with every id, and when each was last changed

    train, cycle = first[0]["train"]["id"], first[0]["cycle"]
    schedule = f"deployments/{cycle['id']}/schedules/{cycle['schedules'][0]['id']}"
    retrain = first[1]["retrain flights on drift"]["id"]
    template = first[2]["base_job_template"]
    template["variables"]["properties"]["env"]["default"] = {"HEADRACE_LAKE": "s3://lake"}
    project.ask("PATCH", schedule, active=True)
    project.ask("PATCH", f"automations/{retrain}", enabled=False)
    parameters = {"pipeline": "flights", "cause": "me"}
    project.ask("PATCH", f"deployments/{train}", paused=True, parameters=parameters)
    project.ask("PATCH", "work_pools/headrace", base_job_template=template, is_paused=True)
    mine = state()
    said = project.deploy()
    assert state() == mine
    assert "5 settings made in Prefect kept" in said

    def otherwise(declared: dict[str, Any]) -> None:
        cycle, train = of(declared, "cycle"), of(declared, "train")
        cycle["schedules"][0]["cron"] = "12 0 * * 1"
        train["concurrency_limit"]["limit"] = 2
        train["triggers"][0]["description"] = "Drift was found."

    project.edit("prefect.yaml", otherwise)
    said = project.deploy()
    assert "schedule weekly of cycle/flights changed schedule.cron, " in said
    assert "deployment train/flights changed concurrency_limit, " in said
    assert "trigger retrain flights on drift of train/flights changed description, " in said
    deployed, armed, pool = state()
    assert pool == mine[2]
    (after,), (before,) = deployed["cycle"]["schedules"], mine[0]["cycle"]["schedules"]
    assert (after["id"], after["active"], after["schedule"]["cron"]) == (before["id"], True, "12 0 * * 1")
    assert deployed["train"]["global_concurrency_limit"]["limit"] == 2
    assert deployed["train"]["paused"]
    assert deployed["train"]["parameters"] == parameters
    assert armed["retrain flights on drift"]["id"] == retrain
    assert armed["retrain flights on drift"]["description"] == "Drift was found."
    assert not armed["retrain flights on drift"]["enabled"]
    assert all(
        deployed[name] == mine[0][name] for name in ("ingest", "materialize", "score", "monitor", "lifecycle")
    )


def test_a_pool_of_another_type_keeps_its_template(project: Project) -> None:
    template = json.loads((ROOT / "deployments/kubernetes/pool.json").read_text())
    project.ask("POST", "work_pools/", name="headrace", type="kubernetes", base_job_template=template)
    said = project.deploy()
    assert "work pool headrace is of the type kubernetes, and left as it is" in said
    assert project.pool()["base_job_template"] == template
    assert project.deployments()["cycle"]["work_pool_name"] == "headrace"


def test_what_is_no_longer_declared_goes_but_a_deployment_stays_and_is_named(project: Project) -> None:
    project.deploy()
    train = project.deployments()["train"]["id"]
    mine = {"schedule": {"cron": "1 1 1 1 *", "timezone": "UTC"}, "active": False, "slug": "mine"}
    httpx.post(f"{project.api}/deployments/{train}/schedules", json=[mine], timeout=30).raise_for_status()

    def fewer(declared: dict[str, Any]) -> None:
        train = of(declared, "train")
        del train["triggers"], train["schedules"]
        declared["deployments"].remove(of(declared, "lifecycle"))

    project.edit("prefect.yaml", fewer)
    for _ in range(2):
        said = project.deploy()
        assert "deployment lifecycle/flights no longer declared, and left; " in said
        assert "`prefect deployment delete lifecycle/flights`" in said
        assert [s["slug"] for s in project.deployments()["train"]["schedules"]] == ["mine"]
        assert list(project.automations()) == ["settle runs that died unseen"]
    project.ask("DELETE", f"deployments/{project.deployments()['lifecycle']['id']}")
    assert "lifecycle" not in project.deploy()


def test_what_prefects_own_deploy_put_there_is_taken_over_with_its_ids(project: Project) -> None:
    pool = ["work-pool", "create", "headrace", "--type", "process"]
    for command in (pool, ["--no-prompt", "deploy", "--all"]):
        subprocess.run(
            [*services.PREFECT, *command],
            env=services.environment(project.settings),
            check=True,
            capture_output=True,
        )

    def ids() -> set[str]:
        armed = project.automations()["retrain flights on drift"]
        return {each["id"] for d in project.deployments().values() for each in (d, *d["schedules"], armed)}

    before = ids()
    project.deploy()
    assert ids() == before


def test_what_prefect_refuses_is_told_in_its_words_and_nothing_of_it_is_taken_for_declared(
    project: Project,
) -> None:
    project.deploy()

    def take(pipeline: Any) -> None:
        given = {"pipeline": pipeline}
        project.edit("prefect.yaml", lambda declared: declared["deployments"][0].update(parameters=given))

    take(7)
    with pytest.raises(ServerUnreachable, match="7 is not of type 'string'"):
        project.deploy()
    take("flights")
    assert "changed" not in project.deploy().replace("unchanged", "")


ASLEEP = """
import time
from prefect import flow

@flow
def ingest():
    time.sleep(600)
"""


def test_a_run_that_died_with_its_worker_is_settled_and_frees_its_place(project: Project) -> None:
    """Heartbeats come every 30 s, which is the least Prefect allows."""
    (project.folder / "asleep.py").write_text(ASLEEP)
    asleep = {
        "name": "asleep",
        "entrypoint": "asleep.py:ingest",
        "work_pool": {"name": "headrace"},
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
    }
    project.edit("prefect.yaml", lambda declared: declared.update(deployments=[asleep]))
    project.edit(
        "deployments/automations.yaml",
        lambda declared: declared["automations"][0]["trigger"].update(within=40),
    )
    project.deploy()
    id = project.deployments()["ingest"]["id"]

    def start() -> str:
        return project.ask("POST", f"deployments/{id}/create_flow_run", state={"type": "SCHEDULED"})["id"]  # type: ignore[no-any-return]

    def run(id: str) -> dict[str, Any]:
        return project.ask("GET", f"flow_runs/{id}")  # type: ignore[no-any-return]

    def slots() -> int:
        return project.deployments()["ingest"]["global_concurrency_limit"]["active_slots"]  # type: ignore[no-any-return]

    def beats() -> int:
        of_run = {"event": {"name": ["prefect.flow-run.heartbeat"]}}
        return project.ask("POST", "events/filter", filter=of_run)["total"]  # type: ignore[no-any-return]

    died = start()
    worker = services.prefect_worker()
    with subprocess.Popen(
        worker.command,
        env=services.environment(project.settings) | worker.env,
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        eventually(lambda: run(died)["state_type"] == "RUNNING")
        eventually(beats)
        refused = start()
        eventually(lambda: run(refused)["state_type"] == "CANCELLED")  # there is one place, and it is taken
        eventually(lambda: beats() > 1)
        assert run(died)["state_type"] == "RUNNING"  # one that is heard of is let be
        process.kill()
        os.kill(int(run(died)["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)
    assert slots() == 1
    eventually(lambda: run(died)["state_type"] == "CRASHED", seconds=120)
    assert "No sign of life" in run(died)["state"]["message"]
    assert slots() == 0

    stuck = start()  # as when the worker dies between Pending and Running
    project.ask("POST", f"flow_runs/{stuck}/set_state", state={"type": "PENDING"})
    assert slots() == 1
    eventually(lambda: run(stuck)["state_type"] == "CRASHED", seconds=120)
    assert slots() == 0


class Receiver:
    """A webhook on loopback, and what was posted to it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        texts = self.texts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                texts.append(json.loads(body)["text"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/t0ken"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def heard(self, start: str) -> str | None:
        return next((text for text in self.texts if text.startswith(start)), None)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()


def test_whoever_is_named_is_told_of_what_befell_and_nobody_else(
    project: Project, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.deploy()
    told = ("tell what befell data and models", "tell of runs that failed")
    assert not {*told} & {*project.automations()}

    monkeypatch.setenv("HEADRACE_NOTIFY", receiver.url)
    assert "2 created" in project.deploy()
    assert {*told} <= {*project.automations()}
    assert "unchanged" in project.deploy()
    for kept in (project.automations(), project.ask("POST", "block_documents/filter")):
        assert "t0ken" not in json.dumps(kept)

    def emit(event: str, id: str, name: str, of: UUID | None = None, **payload: str) -> None:
        resource = {"prefect.resource.id": id, "prefect.resource.name": name}
        now = datetime.now(UTC).isoformat()
        about = {"event": event, "resource": resource, "payload": payload, "id": str(of or uuid4())}
        httpx.post(f"{project.api}/events", json=[{**about, "occurred": now}], timeout=30).raise_for_status()

    one = uuid4()
    for _ in range(2):
        emit("headrace.drift", "headrace.pipeline.flights", "flights", one, reason="It calls for retraining.")
    emit("headrace.upstream", "headrace.pipeline.flights", "flights", reason="nobody asked")
    emit("headrace.worse", "headrace.pipeline.flights", "flights", reason="Skill is 0.1 and was 0.2.")
    emit("headrace.quarantine", "headrace.quarantine.weather.1", "weather/1", reason="1 of 504 rows is held")
    eventually(lambda: receiver.heard("flights: headrace.worse\nSkill is 0.1 and was 0.2."))
    eventually(lambda: receiver.heard("weather/1: headrace.quarantine\n1 of 504 rows is held"))
    id = project.deployments()["score"]["id"]
    run = project.ask("POST", f"deployments/{id}/create_flow_run", state={"type": "SCHEDULED"})
    failed = {"type": "FAILED", "message": "No champion.", "name": "Failed"}
    project.ask("POST", f"flow_runs/{run['id']}/set_state", state=failed, force=True)
    eventually(lambda: receiver.heard(f"{run['name']}: Failed\nNo champion."))
    assert receiver.heard("flights: headrace.upstream") is None
    assert receiver.texts.count("flights: headrace.drift\nIt calls for retraining.") == 1

    monkeypatch.delenv("HEADRACE_NOTIFY")
    assert "removed" in project.deploy()
    assert not {*told} & {*project.automations()}

    monkeypatch.setenv("HEADRACE_NOTIFY", "slack-webhook/nobody")
    with pytest.raises(ServerUnreachable, match="none of the type `slack-webhook` that is called `nobody`"):
        project.deploy()


def test_what_is_told_of_is_what_the_flows_announce() -> None:
    """An event that no flow emits would never be told of; one that is emitted and not named is by choice."""
    automations = yaml.safe_load((ROOT / "deployments" / "notifications.yaml").read_text())["automations"]
    told = set(automations[0]["trigger"]["expect"])
    code = "".join(file.read_text() for file in (ROOT / "flows").rglob("*.py"))
    emitted = {*re.findall(r'"(headrace(?:\.[a-z]+)+)"', code)}
    assert told <= emitted
    assert emitted - told - {"headrace.pipeline"} == {
        "headrace.upstream"
    }  # starts a training; people hear of the champion


def test_every_flow_is_watched_for_a_silent_death() -> None:
    (automation,) = yaml.safe_load((ROOT / "deployments" / "automations.yaml").read_text())["automations"]
    flow, deployment = automation["trigger"]["match_related"]
    watched = flow["prefect.resource.name"]
    assert deployment["prefect.resource.role"] == "deployment"  # others have no heartbeat
    flows = {file.stem for file in (ROOT / "flows").glob("*.py") if not file.stem.startswith("_")}
    assert flows <= set(watched)
