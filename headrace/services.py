"""The servers that `headrace up` and `headrace demo` keep: Prefect, a worker, MLflow, Data Docs, Feast's UI.

Each is a child process listening on loopback, with its log below
``<home>/logs``; all end with the caller, by their own process groups.
"""

from __future__ import annotations

import contextlib
import ipaddress
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
from urllib.parse import urlsplit

from headrace.errors import NotAProject, PortInUse, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.settings import Settings

HOST = "127.0.0.1"
PREFECT = [sys.executable, "-m", "prefect"]


@dataclass(frozen=True)
class Service:
    """A child process; a server has the setting that moves it, and a health page at its port."""

    name: str
    command: list[str]
    setting: str = ""
    health: str = ""
    page: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def prefect_server(settings: Settings) -> Service:
    """Return a Prefect server at the address that is set, whose database lies below the home."""
    host, port = _host_and_port(settings.prefect_api_url)
    command = [*PREFECT, "server", "start", "--host", host, "--port", str(port)]
    return Service(
        "Prefect",
        command,
        "`PREFECT_API_URL`, or `api.url` in `pyproject.toml`",
        f"{settings.prefect_api_url}/health",
        settings.prefect_page,
    )


def prefect(settings: Settings) -> list[Service]:
    """Return the Prefect server to run here: none if the address that is set is another machine's.

    Also none if Prefect answers there already, and the environment gives the
    address. What answers where a file says may be another project's.

    Raises:
        ServerUnreachable: None is to run here, and none answers elsewhere.
    """
    address = urlsplit(settings.prefect_api_url)
    here = (address.scheme, address.path) == ("http", "/api") and _on_loopback(address.hostname or "")
    named = os.environ.get("PREFECT_API_URL")
    if here and (not named or _prefect_trouble(settings)):
        return [prefect_server(settings)]
    reach_prefect(settings)
    return []


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
        "`HEADRACE_MLFLOW_PORT`",
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
    return Service("Data Docs", command, "`HEADRACE_DOCS_PORT`", f"{address}/", address)


def feast_server(settings: Settings) -> Service:
    """Return Feast's UI, on the registry that the settings name."""
    address = f"http://{HOST}:{settings.feast_port}"
    command = [
        *(sys.executable, "-m", "feast.cli.cli", "-c", "features"),
        *("ui", "--host", HOST, "--port", str(settings.feast_port)),
    ]
    return Service("Feast", command, "`HEADRACE_FEAST_PORT`", f"{address}/", address)


def embedded(settings: Settings) -> list[Service]:
    """Return the servers that no setting says run elsewhere."""
    from headrace import tracking

    servers = prefect(settings)
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
        if service.health and _listens(service):
            raise PortInUse(service.name, _host_and_port(service.health)[1], service.setting)
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
        "PREFECT_API_URL": settings.prefect_api_url,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
    }


def deploy(settings: Settings) -> None:
    """Create the work pool and every deployment of ``prefect.yaml``; again changes nothing.

    Raises:
        ServerUnreachable: Prefect refused; carries what it printed.
    """
    pool = [
        *(*PREFECT, "work-pool", "create", "headrace", "--type", "process", "--overwrite"),
        *("--base-job-template", "deployments/process-pool.json"),
    ]
    for command in (pool, [*PREFECT, "--no-prompt", "deploy", "--all"]):
        done = subprocess.run(command, env=environment(settings), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerUnreachable(
                "Prefect", environment(settings)["PREFECT_API_URL"], (done.stdout + done.stderr).strip()
            )


def reach_prefect(settings: Settings) -> None:
    """Make sure that the Prefect server answers.

    Raises:
        ServerUnreachable: It does not.
    """
    if trouble := _prefect_trouble(settings):
        raise ServerUnreachable("Prefect", settings.prefect_api_url, trouble)


def _prefect_trouble(settings: Settings) -> str:
    import httpx

    try:
        httpx.get(f"{settings.prefect_api_url}/health", timeout=5).raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error)
    except ValueError:  # such as Prefect's own pages, which answer at any path
        return "what answers is not Prefect's API, whose address ends in `/api`"
    return ""


def log_file(service: Service, settings: Settings) -> Path:
    """Return where a service's output is kept."""
    return settings.home / "logs" / f"{service.name.lower().replace(' ', '-')}.log"


def _host_and_port(url: str) -> tuple[str, int]:
    address = urlsplit(url)
    return address.hostname or "", address.port or 80


def _on_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _listens(service: Service) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(_host_and_port(service.health), timeout=5):
        return True
    return False


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
