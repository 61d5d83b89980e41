"""Where heavy work runs: this process, local processes, or a Dask scheduler; one code path for all."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.errors import HeadraceError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from dask.distributed import Client, Future
    from dask.distributed import Worker as DaskWorker


class WorkerLost(HeadraceError):
    """A Dask worker went away in the middle of work that needs all of them."""

    transient = True

    def __init__(self, workers: Sequence[str]) -> None:
        self.workers = tuple(workers)
        super().__init__(
            f"A Dask worker among {', '.join(workers)} died during collective work. Its log says why; often "
            "it ran out of memory. Nothing was kept: run the step again, if need be on larger workers."
        )


T = TypeVar("T")
SHARES, MOST = 16, 50
"""How many shares to cut work into, unless they would hold more pieces than that."""
FEW = 2
"""Pieces of work that are done one after the other."""

PATIENCE = 5
"""Seconds a scheduler may take to answer, and then to have a worker."""
WORKERLESS = 60.0
"""Seconds for which work waits at a scheduler that has no workers: they may be about to come back."""


STARTING = Lock()
"""Workers that start at once in one process can trip over each other: one cluster after the other."""


@dataclass(frozen=True)
class Worker:
    """One Dask worker; ``gpu`` identifies the device it would use, or is empty."""

    name: str
    address: str
    threads: int
    gpu: str


@contextmanager
def cluster(address: str = "", workers: int = 1) -> Iterator[Client]:
    """Yield a client of the scheduler at ``address``, or of a cluster that lives as long as the block.

    Without an address, one worker runs inside this process, and more are processes
    of this machine that listen on the loopback only. A script that asks for
    processes needs ``if __name__ == "__main__":``, as always with spawned ones.

    Raises:
        ServerUnreachable: Nothing answers at ``address``.
    """
    from dask import config
    from dask.distributed import Client, LocalCluster
    from dask.system import CPU_COUNT

    # The memory limit would count, and then pause, the whole of this process.
    here = {"processes": False, "memory_limit": None} if workers == 1 else {"host": "127.0.0.1"}
    # Threads of one training that spin while they wait for each other take the processors from whatever else
    # runs: on a busy machine XGBoost is then ten times slower. Read when a framework is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Dask's profiler walks every stack each 10 ms. While torch is imported they are thousands of frames deep,
    # and the import takes twice as long.
    quiet = {"distributed.worker.profile.enabled": False}
    with ExitStack() as stack:
        with STARTING, config.set(quiet):
            target: Any = address or stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=max(CPU_COUNT // workers, 1),
                    # Else Dask's web servers listen to the whole network, the first of them on port 8787.
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address="127.0.0.1:0",
                    silence_logs=logging.ERROR,
                    **here,
                )
            )
            try:
                # Default clients share one setting of the process, and of two that overlap the first to close
                # leaves it pointing at nothing. This one is current for the block alone.
                client = stack.enter_context(Client(target, timeout=PATIENCE, set_as_default=False))
            except (OSError, ValueError) as error:
                raise ServerUnreachable("The Dask scheduler", address, str(error)) from error
        try:
            yield client
        except BaseException as ending:
            # Told to end, it does not wait: Dask would, half a minute, for what its threads are still at.
            if not isinstance(ending, Exception) and not address and workers == 1:
                for worker in target.workers.values():
                    target.sync(worker.close, executor_wait=False)
            raise


def crew(client: Client | None) -> list[Worker]:
    """Return the workers in a fixed order: the very one in which XGBoost ranks them.

    Without a client that is this thread alone.

    Raises:
        ServerUnreachable: The scheduler has no workers.
    """
    if client is None:
        return [Worker("here", "", 1, _gpu())]
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        address = client.scheduler_info()["address"]
        raise ServerUnreachable("A Dask worker", address, "the scheduler has none") from None
    # XGBoost ranks "10]" before "1]". A run repeats only if partitions and ranks are sorted by the same text.
    return sorted(client.run(_introduce).values(), key=lambda worker: f"{worker.name}]:{worker.address}")


def peak_mb(client: Client) -> float:
    """Return the most memory, in MB, that one of the workers has taken since it began."""
    return max(client.run(_peak_mb).values())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def gpus(workers: Sequence[Worker]) -> bool:
    """Say whether every worker has a GPU of its own, as collective training on GPUs demands."""
    found = {worker.gpu for worker in workers}
    return "" not in found and len(found) == len(workers)


def without_gpu(workers: Sequence[Worker], *, asked: bool = False) -> str:
    """Say why training on ``workers`` does without GPUs although there are some, or one is ``asked`` for."""
    if gpus(workers):
        return ""
    found = {worker.gpu for worker in workers} - {""}
    if not found:
        return "A GPU is asked for, and no worker has one: trained on the processors." if asked else ""
    return (
        f"{len(workers)} workers have {len(found)} GPUs between them, and each must have one of its own: "
        "trained on the processors. Start as many workers as there are GPUs, each with its own "
        "CUDA_VISIBLE_DEVICES."
    )


def on_each(
    client: Client | None, workers: Sequence[Worker], function: Callable[..., Any], arguments: Sequence[tuple]
) -> list[Any]:
    """Run ``function`` once on each worker, at the same time, and return the results in that order.

    ``arguments[i]`` travel straight to ``workers[i]``. One failure fails the call
    without waiting for the others.

    Raises:
        WorkerLost: A worker died.
    """
    if client is None:
        return [function(*args) for args in arguments]
    from dask.distributed import CancelledError

    places = [[worker.address] for worker in workers]
    # What is sent lives on one worker only, so Dask gives up the task of a worker that dies, and moves none.
    sent = [
        client.scatter([args], workers=place, hash=False)[0]
        for args, place in zip(arguments, places, strict=True)
    ]
    tasks = [
        client.submit(_spread, function, args, workers=place, pure=False)
        for args, place in zip(sent, places, strict=True)
    ]
    try:
        return list(client.gather(tasks))
    except CancelledError as error:
        raise WorkerLost([worker.address for worker in workers]) from error
    finally:
        client.cancel(tasks)


@contextmanager
def all_alive(client: Client, workers: Sequence[Worker]) -> Iterator[None]:
    """Turn what is said where one of ``workers`` died inside the block into the error that names it.

    Raises:
        WorkerLost: One of them is gone.
    """
    try:
        yield
    except Exception as error:
        # The others notice a closed socket at once, the scheduler a little later that a worker is gone.
        for _ in range(10):
            there = client.scheduler_info(n_workers=-1)["workers"]
            if lost := [worker.address for worker in workers if worker.address not in there]:
                raise WorkerLost(lost) from error
            time.sleep(0.2)
        raise


def spread(
    client: Client, function: Callable[..., Any], arguments: Sequence[tuple]
) -> Iterator[tuple[int, Any]]:
    """Run ``function(*arguments[i])`` for each ``i`` on any free worker; yield ``(i, result)`` as they end.

    ``function`` must be idempotent: work of a worker that dies is done again by
    another. A failure keeps nothing else from being done, and is raised at the end.

    Raises:
        WorkerLost: Workers kept dying under one piece of work.
        ServerUnreachable: The scheduler is lost, or has had no worker for a minute.
    """
    from dask.distributed import KilledWorker

    places = {client.submit(function, *args, pure=False): place for place, args in enumerate(arguments)}
    failed: list[BaseException] = []
    try:
        for future in _as_they_end(client, places):
            if future.status == "error":
                failed.append(future.exception())
            elif future.status == "cancelled":  # a scheduler that comes back knows nothing of it
                told = "the connection broke off in the middle of the work"
                raise ServerUnreachable("The Dask scheduler", _scheduler(client), told)
            else:
                yield places[future], future.result()
    finally:
        client.cancel(list(places))
    if failed and isinstance(failed[0], KilledWorker):
        raise WorkerLost([failed[0].last_worker.address]) from failed[0]
    if failed:
        raise failed[0]


def _as_they_end(client: Client, futures: Collection[Future]) -> Iterator[Future]:
    from dask.distributed import as_completed

    ending = as_completed(futures, loop=client.loop)
    heard = asked = time.monotonic()
    while not ending.is_empty():
        if ending.has_ready():
            heard = time.monotonic()
            yield next(ending)
            continue
        with ending.thread_condition:
            ending.thread_condition.wait(0.1)
        # Dask itself would wait for ever: for workers that ended with a scheduler that is back without them.
        if (now := time.monotonic()) > asked + PATIENCE:
            asked = now
            if client.scheduler_info(n_workers=-1)["workers"]:
                heard = now
            elif now > heard + WORKERLESS:
                raise ServerUnreachable("A Dask worker", _scheduler(client), "the scheduler has none")


def _scheduler(client: Client) -> str:
    return str(client.scheduler.address if client.scheduler else client.cluster)


def share_of(total: int) -> int:
    """Return how many of ``total`` small pieces of work to do at once: enough shares for every worker."""
    return min(max(total // SHARES, 1), MOST)


def batched(pieces: Sequence[T], most: int) -> list[Sequence[T]]:
    """Cut ``pieces`` into parts of at most so many."""
    return [pieces[start : start + most] for start in range(0, len(pieces), most)]


def each(
    function: Callable[..., Any], arguments: Sequence[tuple], address: str = "", workers: int = 1
) -> Iterator[tuple[int, Any]]:
    """Do as ``spread`` on a ``cluster``; few pieces of work are not worth one, unless it is there anyway."""
    if address or workers > 1 or len(arguments) > FEW:
        with cluster(address, workers) as client:
            yield from spread(client, function, arguments)
        return
    failed: list[Exception] = []
    for place, args in enumerate(arguments):
        try:
            done = function(*args)
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)
        else:
            yield place, done
    if failed:
        raise failed[0]


def listen(client: Client, worker: Worker) -> tuple[str, int, int]:
    """Open a socket on ``worker``: its host, its port, and its descriptor in that process."""
    host = worker.address.split("://")[-1].rpartition(":")[0].strip("[]")
    port, descriptor = client.run(_bind, host, workers=[worker.address])[worker.address]
    return host, port, descriptor


def _spread(function: Callable[..., Any], arguments: tuple) -> Any:
    return function(*arguments)


def _introduce(dask_worker: DaskWorker) -> Worker:
    return Worker(str(dask_worker.name), dask_worker.address, dask_worker.state.nthreads, _gpu())


def _gpu() -> str:
    """Ask the driver itself: it honours CUDA_VISIBLE_DEVICES, and nothing heavy is imported."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    failed = (
        cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetUuid_v2(uuid, device)
    )
    return "" if failed else bytes(uuid).hex()


def _bind(host: str) -> tuple[int, int]:
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    return listener.getsockname()[1], listener.detach()
