"""The servers that `headrace up` and `headrace demo` keep: Prefect, a worker, MLflow, Feast's UI, models …

Each is a child process listening on loopback, with its log below
``<home>/logs``. All end with the caller; one that ends before is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headrace.addresses import revealed
from headrace.errors import HeadraceError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import httpx

    from headrace.settings import Settings


class NotAProject(HeadraceError):
    """A command was called outside a headrace project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"`{folder}` has no `prefect.yaml`, nor has a folder above it. Run this in your headrace project."
        )


class PortInUse(HeadraceError):
    """A service cannot listen because something else does."""

    def __init__(self, service: str, port: int, setting: str) -> None:
        self.service, self.port, self.setting = service, port, setting
        super().__init__(
            f"Port {port}, wanted by {service}, is in use. End the program that holds it, or choose another "
            f"port with {setting}."
        )


HOST = "127.0.0.1"
PREFECT = [sys.executable, "-m", "prefect"]
HEADRACE = [sys.executable, "-m", "headrace.cli"]
STARTING, SILENT, ASKED, ENDING = 120.0, 60.0, 10.0, 15.0
"""Seconds: that a server may take to start, and may not answer later; between two askings; to end in."""
MODELS_UI = "?workflowType=machine_learning#/"
PR_SET_PDEATHSIG = 1
"""From Linux' <sys/prctl.h>."""


@dataclass(frozen=True)
class Service:
    """What to run; a server has the setting that moves it, and a health page at its port."""

    name: str
    command: list[str]
    setting: str = ""
    health: str = ""
    page: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


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
        # On disk: with a new server, runs still hold their places under a concurrency limit.
        {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"},
    )


def is_here(settings: Settings) -> bool:
    """Say whether Prefect's address is one of this machine's, at which a server could be started."""
    address = urlsplit(settings.prefect_api_url)
    return (address.scheme, address.path) == ("http", "/api") and _on_loopback(address.hostname or "")


def prefect(settings: Settings) -> list[Service]:
    """Return the Prefect server to run here: none if the address that is set is another machine's.

    Also none if Prefect answers there already, and the environment gives the
    address. What answers where a file says may be another project's.

    Raises:
        ServerUnreachable: None is to run here, and none answers elsewhere.
    """
    named = os.environ.get("PREFECT_API_URL")
    if is_here(settings) and (not named or _prefect_trouble(settings)):
        return [prefect_server(settings)]
    reach_prefect(settings)
    return []


def prefect_worker() -> Service:
    """Return a worker that runs deployments as processes on this machine."""
    command = [*PREFECT, "worker", "start", "--pool", "headrace", "--type", "process"]
    # By default it looks every ten seconds; what an event starts should not wait for that.
    return Service("worker", command, env={"PREFECT_WORKER_QUERY_SECONDS": "2"})


def fork_server() -> Service:
    """Return the process of which the worker's runs are forks."""
    return Service("fork server", [sys.executable, "-m", "headrace.forkserver", "serve"])


def mlflow_server(settings: Settings) -> Service:
    """Return an MLflow server on the home's tracking database."""
    from headrace.tracking import artifact_root

    address = f"http://{HOST}:{settings.mlflow_port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(settings.mlflow_port)),
        *("--workers", "1"),
        # where processes that use the database directly keep them too
        *("--default-artifact-root", artifact_root(settings.home)),
    ]
    env = {
        "MLFLOW_BACKEND_STORE_URI": revealed(settings.mlflow),  # everybody may read a command line
        # Its job runners are eight more processes, 2 GB, that nothing here uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return Service(
        "MLflow",
        command,
        "`HEADRACE_MLFLOW_PORT`",
        f"{address}/health",
        f"{address}/{MODELS_UI}",
        env,
    )


def mlflow_models(settings: Settings) -> str:
    """Return where MLflow shows the models: its plain address may open what it has for language models."""
    return f"{settings.mlflow_page}/{MODELS_UI}models"


def docs_server(settings: Settings) -> Service:
    """Return a web server of the Data Docs, which draws those that nobody has looked at yet."""
    folder = settings.home / "validations"
    address = f"http://{HOST}:{settings.docs_port}"
    command = [sys.executable, "-m", "headrace.validation.serve", str(folder), str(settings.docs_port)]
    return Service("Data Docs", command, "`HEADRACE_DOCS_PORT`", f"{address}/", address)


def feast_server(settings: Settings) -> Service:
    """Return Feast's UI, on the registry that the settings name."""
    address = f"http://{HOST}:{settings.feast_port}"
    command = [
        *(sys.executable, "-m", "feast.cli.cli", "-c", "features"),
        *("ui", "--host", HOST, "--port", str(settings.feast_port)),
    ]
    return Service("Feast", command, "`HEADRACE_FEAST_PORT`", f"{address}/", address)


def evidently_server(settings: Settings) -> Service:
    """Return Evidently's UI, on what was measured."""
    address = settings.evidently_page
    return Service(
        "Evidently", [*HEADRACE, "dashboards"], "`HEADRACE_EVIDENTLY_PORT`", f"{address}/", address
    )


def model_server(settings: Settings) -> Service:
    """Return the service that answers with champions."""
    address = settings.serve_page
    return Service(
        "models", [*HEADRACE, "serve"], "`HEADRACE_SERVE_PORT`", f"{address}/healthz", f"{address}/docs"
    )


def embedded(settings: Settings) -> list[Service]:
    """Return the servers that no setting says run elsewhere."""
    from headrace.tracking import MLflow

    servers = prefect(settings)
    if not revealed(settings.mlflow).startswith("http"):
        _ = MLflow(
            settings.mlflow, settings.home
        ).client  # makes its database: the server would not wait for our lock
        servers.append(mlflow_server(settings))
    return [*servers, *(server(settings) for server in OTHERS)]


OTHERS = (docs_server, feast_server, evidently_server, model_server)
"""Servers that always run here."""


@contextmanager
def running(services: list[Service], settings: Settings) -> Iterator[list[Child]]:
    """Run ``services`` until the block ends, each answering before the block begins.

    Raises:
        NotAProject: The current folder has no ``prefect.yaml``.
        PortInUse: Something else listens on a wanted port.
        ServerUnreachable: A service ended or did not answer within two minutes; names its log.
    """
    if not Path("prefect.yaml").exists():
        raise NotAProject(Path.cwd())
    for service in services:
        if service.health and listens(service):
            raise PortInUse(service.name, _host_and_port(service.health)[1], service.setting)
    with contextlib.ExitStack() as stack:
        children = [Child(service, settings) for service in services]
        for child in children:
            child.start()
            stack.callback(child.end)
        for child in children:
            child.wait()
        yield children


def keep(children: list[Child], while_: Callable[[], bool]) -> Iterator[str]:
    """Start again whichever of ``children`` ends or falls silent, and say so, for as long as is asked.

    One that ends within a minute, again and again, rests for 1, 2, 4 … 60 seconds before the next try.
    """
    while while_():
        for child in children:
            if child.rests_until:
                if time.monotonic() > child.rests_until:
                    child.start()
            elif trouble := child.trouble():
                child.kill()
                rest = child.rest()
                yield f"{child.service.name} {trouble}; it starts again in {rest:.0f} s. Its log: {child.log}"
        time.sleep(0.5)


class Child:
    """A service's process, and all that comes of it."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service, self.settings = service, settings
        self.log = settings.home / "logs" / f"{service.name.lower().replace(' ', '-')}.log"
        self.rests_until = self._rest = 0.0
        # All that comes of the process inherits this, also what gets a session of its own, as runs do.
        self._mark = uuid.uuid4().hex

    def start(self) -> None:
        """Start the process, which is told to end when this thread does, even by ``kill -9``."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        end_with_us = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.service.command,
                env=environment(self.settings) | dict(self.service.env) | {"HEADRACE_CHILD": self._mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # the terminal's Ctrl-C is for us; we end it in its turn
                preexec_fn=end_with_us,  # noqa: PLW1509  (one system call, which takes no lock)
            )
        self._began, self.rests_until = time.monotonic(), 0.0
        self._heard = self._began + STARTING - SILENT

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            ServerUnreachable: It ended, or is silent for too long.
        """
        while self.service.health and not answers(self.service):
            if trouble := self.trouble():
                raise ServerUnreachable(self.service.name, self.service.page, f"it {trouble}; see {self.log}")
            time.sleep(0.25)

    def trouble(self) -> str:
        """Say what is wrong, if anything is."""
        code, now = self.process.poll(), time.monotonic()
        if code is not None:
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if self.service.health and now > self._heard + ASKED:
            if answers(self.service):
                self._heard = now
            elif now > self._heard + SILENT:
                return "does not answer"
        return ""

    def rest(self) -> float:
        """Let it rest before it starts again; return for how many seconds."""
        now = time.monotonic()
        self._rest = min(2 * self._rest, 60.0) if self._rest and now < self._began + 60 else 1.0
        self.rests_until = now + self._rest
        return self._rest

    def kill(self) -> None:
        """Kill what is left of it, but not a worker's runs, which have sessions of their own: they go on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End the process, then what it left: by request, and after 15 seconds by force."""
        _end(lambda: [self.process.pid] if self.process.poll() is None else [])
        _end(lambda: _having(f"HEADRACE_CHILD={self._mark}".encode()))


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment that points a child process at this home and its Prefect server."""
    prefect_home = settings.home / "prefect"
    return os.environ | {
        "HEADRACE_HOME": str(settings.home),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(prefect_home)),
        "PREFECT_API_URL": settings.prefect_api_url,
        "HEADRACE_FORKSERVER": str(settings.home.absolute() / "forkserver.sock"),
        # A command of a work pool names no path: its `python` is this one.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
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


def prefect_api(settings: Settings) -> httpx.Client:
    """Return a client of Prefect's API, logged in as Prefect's own settings say."""
    import httpx

    login = {}
    if key := settings.prefect_api_key.get_secret_value():
        login = {"Authorization": f"Bearer {key}"}
    elif user := settings.prefect_api_auth_string.get_secret_value():
        login = {"Authorization": f"Basic {b64encode(user.encode()).decode()}"}
    return httpx.Client(base_url=settings.prefect_api_url + "/", headers=login, timeout=30)


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
        with prefect_api(settings) as api:  # its health is told to whoever asks
            answer = api.get("hello", timeout=5)
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return (
                "it wants a login: set PREFECT_API_AUTH_STRING (`user:password`), or PREFECT_API_KEY for "
                "Prefect Cloud, to one that it takes"
            )
        answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error)
    except ValueError:  # such as Prefect's own pages, which answer at any path
        return "what answers is not Prefect's API, whose address ends in `/api`"
    return ""


def _host_and_port(url: str) -> tuple[str, int]:
    address = urlsplit(url)
    return address.hostname or "", address.port or 80


def _on_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listens(service: Service) -> bool:
    """Say whether anything listens where a server is to."""
    with contextlib.suppress(OSError), socket.create_connection(_host_and_port(service.health), timeout=5):
        return True
    return False


def answers(service: Service) -> bool:
    """Say whether a server's health page answers."""
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        # On this machine and by plain HTTP: certificates, which take 60 ms to read, play no part.
        return httpx.get(service.health, timeout=2, verify=False).is_success
    return False


def _end(processes: Callable[[], list[int]]) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, ending)
        deadline = time.monotonic() + ENDING
        while processes() and time.monotonic() < deadline:
            time.sleep(0.05)


def _having(variable: bytes) -> list[int]:
    """Return the processes with ``variable`` in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or gone by now
            if variable in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found
