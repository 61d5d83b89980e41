"""A process that has the libraries imported, of which each flow run is a fork.

Importing what a run needs takes longer than most runs do. ``make up`` keeps this server
beside the worker, which starts runs with ``python -m headrace.forkserver``, as
``prefect.yaml`` says. That client hands over its arguments, environment, folder and
output, passes signals on, and ends as the run does; the run does not outlive it. Where
no server answers, the client becomes an ordinary run.

Only libraries are imported here: each run reads the project's own code. The socket
opens for the same user alone.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any, NoReturn

ENGINE = "prefect.engine"
SOCKET = "HEADRACE_FORKSERVER"
"""The environment variable that names the server's socket."""
LIBRARIES = (
    "numpy pandas pyarrow.parquet duckdb duckdb_engine deltalake sqlalchemy great_expectations.expectations "
    "mlflow.pyfunc mlflow.store.tracking.sqlalchemy_store mlflow.store.model_registry.sqlalchemy_store "
    "alembic.command dask.distributed xgboost sklearn.pipeline sklearn.ensemble sklearn.isotonic "
    "evidently.presets scipy.stats plotly.graph_objects matplotlib.figure "
    "fastapi httpx pydantic_settings websockets psycopg_pool redis.asyncio torch "
    "feast.infra.passthrough_provider feast.infra.online_stores.dynamodb "  # which each run looks at
    "prefect.flow_engine prefect.task_engine prefect.events prefect.artifacts prefect.client.orchestration"
)
PR_SET_PDEATHSIG = 1
"""From Linux' <sys/prctl.h>."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Serve at the socket, if told to; else have a run done."""
    path = os.environ.get(SOCKET, "")
    if sys.argv[1:] == ["serve"]:
        serve(path)
    with contextlib.suppress(PermissionError):  # it has one already
        os.setsid()  # a worker that dies takes no run along
    server = socket.socket(socket.AF_UNIX)
    try:
        with _at(path) as address:
            server.connect(address)
    except OSError:
        os.execv(sys.executable, [sys.executable, "-m", ENGINE, *sys.argv[1:]])
    ask(server)


def ask(server: socket.socket) -> NoReturn:
    """Have this process's run done by a fork of the server, and end as it ends."""
    wanted = {"arguments": sys.argv[1:], "env": dict(os.environ), "folder": str(Path.cwd()), "path": sys.path}
    said = json.dumps(wanted).encode()
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until it is known to whom
    socket.send_fds(server, [len(said).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(said)
    pid = _number(server)
    for number in PASSED_ON:
        signal.signal(number, lambda sent, _: os.kill(pid, sent))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    status = _number(server)
    if status < 0:  # killed: whoever waits for this process is to see it too
        with contextlib.suppress(OSError):  # SIGKILL cannot be caught
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(path: str) -> NoReturn:
    """Import the libraries, then fork for each client, until this process is told to end."""
    given = dict(os.environ)
    prepare()
    set_by_libraries = {name: value for name, value in os.environ.items() if given.get(name) != value}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever serves a client is not waited for
    Path(path).unlink(missing_ok=True)
    with _at(path) as address, socket.socket(socket.AF_UNIX) as listening:
        before = os.umask(0o077)
        listening.bind(address)
        os.umask(before)
        listening.listen()
        while True:
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _attend(client, set_by_libraries)
            client.close()


def prepare() -> None:
    """Import what runs need."""
    from headrace.imports import lean

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when OpenMP is loaded; see `headrace.cluster`
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Before Feast, which makes it keep a file for each process; here they would be left behind.
        import_module("prometheus_client")
        with lean():
            import_module("feast")
            import_module("skops.io")
        for library in LIBRARIES.split():
            import_module(library)
    gc.freeze()  # memory that no collection touches stays shared


def _attend(client: socket.socket, also: dict[str, str]) -> NoReturn:
    """Fork the run that a client asks for; tell it how that ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()  # a server that dies, and is cleared away with what is left of it, takes no run along
    size, outputs, *_ = socket.recv_fds(client, 4, 3)
    wanted = json.loads(_exactly(client, int.from_bytes(size, "big")))
    if (pid := os.fork()) == 0:
        client.close()
        for number, output in enumerate(outputs):
            os.dup2(output, number)
            os.close(output)
        _run(wanted | {"env": also | wanted["env"]})
    client.sendall(pid.to_bytes(4, "big"))
    ended = os.pidfd_open(pid)
    heard, *_ = select([client.fileno(), ended], [], [])
    if client.fileno() in heard:  # it has nothing to say: it has died
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    os._exit(0)


def _run(wanted: dict[str, Any]) -> NoReturn:
    """Be the process that the client would have become; end when it, or whoever attends to it, does."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["folder"])
    sys.path[:] = wanted["path"]
    sys.argv[1:] = wanted["arguments"]
    code: object = 1
    try:
        _settle()
        runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - told, as the interpreter would
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        # As children of `multiprocessing` do: libraries would wait for threads that stayed with the server.
        os._exit(code if isinstance(code, int) else 1)


def _settle() -> None:
    """Let Prefect be as in a process of its own: it read the server's settings when it was imported."""
    if context := sys.modules.get("prefect.context"):
        context.refresh_global_settings_context()
        import_module("prefect.logging.configuration").setup_logging(incremental=False)
    sys.modules.pop(ENGINE, None)  # to be run, not to be found there


def _number(server: socket.socket) -> int:
    return int.from_bytes(_exactly(server, 4), "big", signed=True)


def _exactly(other: socket.socket, size: int) -> bytes:
    said = b""
    while len(said) < size:
        more = other.recv(size - len(said))
        if not more:
            sys.exit("The fork server has ended.")
        said += more
    return said


@contextlib.contextmanager
def _at(path: str) -> Any:
    """Give a path of any length as an address: Linux takes no longer ones than 107 bytes."""
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{Path(path).name}"
    finally:
        os.close(folder)


if __name__ == "__main__":
    main()
