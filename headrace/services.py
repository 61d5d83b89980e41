"""The servers that `headrace up` and `headrace demo` keep: Prefect, a worker, MLflow, Data Docs, Feast's UI.

Each is a child process listening on loopback, with its log below
``<home>/logs``; all end with the caller, by their own process groups.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import NotAProject, PortInUse, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.settings import Settings

HOST = "127.0.0.1"
PREFECT = [sys.executable, "-m", "prefect"]


@dataclass(frozen=True)
class Service:
    """A child process; one that listens has a port, the setting that moves it, and a health page."""

    name: str
    command: list[str]
    port: int = 0
    setting: str = ""
    health: str = ""
    page: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def prefect_server(settings: Settings) -> Service:
    """Return a Prefect server whose database lies below the home."""
    address = f"http://{HOST}:{settings.prefect_port}"
    command = [*PREFECT, "server", "start", "--host", HOST, "--port", str(settings.prefect_port)]
    return Service(
        "Prefect",
        command,
        settings.prefect_port,
        "HEADRACE_PREFECT_PORT",
        f"{address}/api/health",
        address,
    )


def prefect_worker() -> Service:
    """Return a worker that runs deployments as processes on this machine."""
    command = [*PREFECT, "worker", "start", "--pool", "headrace", "--type", "process"]
    # By default it looks every ten seconds; what an event starts should not wait for that.
    return Service("worker", command, env={"PREFECT_WORKER_QUERY_SECONDS": "2"})


def mlflow_server(settings: Settings) -> Service:
    """Return an MLflow server on the home's tracking database."""
    from headrace.tracking import artifact_root

    address = f"http://{HOST}:{settings.mlflow_port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(settings.mlflow_port)),
        *("--workers", "1", "--backend-store-uri", settings.mlflow),
        # where processes that use the database directly keep them too
        *("--default-artifact-root", artifact_root(settings.home)),
    ]
    # Its job runners are eight more processes, 2 GB, that nothing here uses.
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Service(
        "MLflow",
        command,
        settings.mlflow_port,
        "HEADRACE_MLFLOW_PORT",
        f"{address}/health",
        f"{address}/?workflowType=machine_learning#/",
        env,
    )


def docs_server(settings: Settings) -> Service:
    """Return a web server of the Data Docs, which are plain files."""
    site = settings.home / "validations" / "docs"
    site.mkdir(parents=True, exist_ok=True)
    address = f"http://{HOST}:{settings.docs_port}"
    command = [
        sys.executable,
        "-m",
        "http.server",
        str(settings.docs_port),
        "--bind",
        HOST,
        "--directory",
        str(site),
    ]
    return Service("Data Docs", command, settings.docs_port, "HEADRACE_DOCS_PORT", f"{address}/", address)


def feast_server(settings: Settings) -> Service:
    """Return Feast's UI, on the registry that the settings name."""
    address = f"http://{HOST}:{settings.feast_port}"
    command = [
        *(sys.executable, "-m", "feast.cli.cli", "-c", "features"),
        *("ui", "--host", HOST, "--port", str(settings.feast_port)),
    ]
    return Service("Feast", command, settings.feast_port, "HEADRACE_FEAST_PORT", f"{address}/", address)


def embedded(settings: Settings) -> list[Service]:
    """Return the servers that no setting says run elsewhere."""
    from headrace import tracking

    servers = [] if "PREFECT_API_URL" in os.environ else [prefect_server(settings)]
    if not settings.mlflow.startswith("http"):
        tracking.prepare(settings.mlflow, settings.home)  # the server would not wait for our lock
        servers.append(mlflow_server(settings))
    return [*servers, docs_server(settings), feast_server(settings)]


@contextmanager
def running(services: list[Service], settings: Settings) -> Iterator[None]:
    """Run ``services`` until the block ends, each answering before the block begins.

    Raises:
        NotAProject: The current folder has no ``prefect.yaml``.
        PortInUse: Something else listens on a wanted port.
        ServerUnreachable: A service ended or did not answer within two minutes; names its log.
    """
    if not Path("prefect.yaml").exists():
        raise NotAProject(Path.cwd())
    for service in services:
        if service.port and _listens(service.port):
            raise PortInUse(service.name, service.port, service.setting)
    with contextlib.ExitStack() as stack:
        started = [(service, stack.enter_context(_process(service, settings))) for service in services]
        for service, process in started:
            _wait(service, process, settings)
        yield


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment that points a child process at this home and its Prefect server."""
    prefect_home = settings.home / "prefect"
    return os.environ | {
        "HEADRACE_HOME": str(settings.home),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(prefect_home)),
        "PREFECT_API_URL": os.environ.get("PREFECT_API_URL", f"http://{HOST}:{settings.prefect_port}/api"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }


def deploy(settings: Settings) -> str:
    """Deploy what ``prefect.yaml`` and ``deployments/`` declare; return in one line what that changed.

    Raises:
        ServerUnreachable: Prefect refused; carries what it printed.
    """
    command = [sys.executable, "-m", "deployments"]
    done = subprocess.run(command, env=environment(settings), capture_output=True, text=True, check=False)
    if done.returncode:
        address = environment(settings)["PREFECT_API_URL"]
        raise ServerUnreachable("Prefect", address, (done.stdout + done.stderr).strip())
    return done.stdout.splitlines()[-1]


def reach_prefect(settings: Settings) -> None:
    """Make sure that the Prefect server answers.

    Raises:
        ServerUnreachable: It does not.
    """
    import httpx

    address = environment(settings)["PREFECT_API_URL"]
    try:
        httpx.get(f"{address}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise ServerUnreachable("Prefect", address, str(error)) from None


def log_file(service: Service, settings: Settings) -> Path:
    """Return where a service's output is kept."""
    return settings.home / "logs" / f"{service.name.lower().replace(' ', '-')}.log"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextmanager
def _process(service: Service, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    log = log_file(service, settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            service.command,
            env=environment(settings) | dict(service.env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # a group of its own, so that its children end with it
        )
    try:
        yield process
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
                break


def _wait(
    service: Service, process: subprocess.Popen[bytes], settings: Settings, timeout: float = 120
) -> None:
    import httpx

    deadline, reason = time.monotonic() + timeout, "no answer"
    while service.health:
        if process.poll() is not None:
            reason = f"it ended with exit code {process.returncode}"
            break
        if time.monotonic() > deadline:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(service.health, timeout=5).is_success:
                return
        time.sleep(0.25)
    else:
        return
    raise ServerUnreachable(service.name, service.page, f"{reason}; see {log_file(service, settings)}")
