"""Runs of flows, as Prefect's server knows them: one that ended badly is put back to work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from headrace import services
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    import httpx

    from headrace.settings import Settings

ENDED_BADLY = ("FAILED", "CRASHED", "CANCELLED")


class NoSuchRun(HeadraceError):
    """There is no run of that name or id."""

    def __init__(self, run: str) -> None:
        self.run = run
        super().__init__(
            f"No run is called `{run}`, nor has that id. Nothing was done. Copy either from Prefect's UI."
        )


class NothingToResume(HeadraceError):
    """A run is at work, waits, or has done what it was for."""

    def __init__(self, run: str, state: str) -> None:
        self.run, self.state = run, state
        super().__init__(
            f"`{run}` is {state}: only what failed, crashed or was cancelled can go on. Nothing was done. "
            "Wait for it, or start another."
        )


class RunByHand(HeadraceError):
    """A run belongs to no deployment, so no worker can take it up."""

    def __init__(self, run: str, command: str) -> None:
        self.run, self.command = run, command
        super().__init__(
            f"`{run}` was started by hand, and no worker can take it up. Nothing was done. Start it again, "
            f"it goes on where it stopped: {command}"
        )


def resume(settings: Settings, run: str) -> dict[str, Any]:
    """Put a run that ended badly back to work, under its own id; return what Prefect knows of it.

    What it had finished stays, and its claims are its own: it goes on where it stopped. A part of a run is
    taken up by the run that it is part of.

    Args:
        settings: Where Prefect is.
        run: The run's name or id; of several of one name, the last.

    Raises:
        ServerUnreachable: Prefect does not answer.
        NoSuchRun, NothingToResume, RunByHand: There is nothing that a worker could take up.
    """
    services.reach_prefect(settings)
    with services.prefect_api(settings) as api:
        found = _whole(api, _found(api, run))
        if found["state_type"] not in ENDED_BADLY:
            raise NothingToResume(found["name"], str(found["state_name"]).lower())
        if not found["deployment_id"]:
            raise RunByHand(found["name"], _command(api, found))
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "headrace resume"}
        body = {"state": state, "force": True}
        api.post(f"flow_runs/{found['id']}/set_state", json=body).raise_for_status()
    return found


def _found(api: httpx.Client, run: str) -> dict[str, Any]:
    try:
        wanted = {"id": {"any_": [str(UUID(run))]}}
    except ValueError:
        wanted = {"name": {"any_": [run]}}
    body = {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    answer = api.post("flow_runs/filter", json=body).raise_for_status().json()
    if not answer:
        raise NoSuchRun(run)
    found: dict[str, Any] = answer[0]
    return found


def _whole(api: httpx.Client, run: dict[str, Any]) -> dict[str, Any]:
    """Return the run that a run is part of, itself if of none."""
    while task := run.get("parent_task_run_id"):
        parent = api.get(f"task_runs/{task}").raise_for_status().json()["flow_run_id"]
        run = api.get(f"flow_runs/{parent}").raise_for_status().json()
    return run


def _command(api: httpx.Client, run: dict[str, Any]) -> str:
    flow = api.get(f"flows/{run['flow_id']}").raise_for_status().json()["name"]
    given = {name: value for name, value in run["parameters"].items() if value not in (None, "")}
    options = [f"--{name.replace('_', '-')} {value!r}" for name, value in given.items() if name != "pipeline"]
    return " ".join(["python -m flows", flow, str(given.get("pipeline", "")), *options])
