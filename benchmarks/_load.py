"""A client that costs little: prepared bytes over kept connections, on one event loop, answers counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


CONNECTIONS = 1024


@dataclass
class Told:
    """What came of some load: seconds from when each request was due to its answer, and statuses."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Answers with status 200 in a second."""
        return self.statuses[200] / self.took

    @property
    def failed(self) -> int:
        """Requests that were neither answered nor told to come again."""
        return self.statuses.total() - self.statuses[200] - self.statuses[429]

    def add(self, other: Told) -> None:
        """Count another one's requests, too."""
        self.seconds += other.seconds
        self.statuses += other.statuses
        self.took += other.took

    def quantile(self, share: float) -> float:
        """Return what that share of the answers with status 200 took, in milliseconds."""
        found = sorted(self.seconds)
        return found[min(int(share * len(found)), len(found) - 1)] * 1000


def request(path: str, body: bytes, port: int, method: str = "POST") -> bytes:
    """Return a request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._raw = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: Any = None
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, raw: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the future has its status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._raw += data
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._raw[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 : head.find(b"\r", at) if head.find(b"\r", at) > 0 else len(head)])
        if len(self._raw) >= end + 4 + size and self._answer and not self._answer.done():
            body, self._raw = self._raw[end + 4 : end + 4 + size], b""
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer and not self._answer.done():
            self._answer.set_result((0, b""))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def _connect(port: int) -> _Connection:
    _, made = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
    return made


async def _closed(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Told:
    told = Told()
    start = time.perf_counter()

    async def client(number: int) -> None:
        connection, at = await _connect(port), number
        while (begun := time.perf_counter()) < start + seconds:
            status, _ = await connection.ask(requests[at % len(requests)])
            told.statuses[status] += 1
            if status == 200:
                told.seconds.append(time.perf_counter() - begun)
            at += clients
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    told.took = time.perf_counter() - start
    return told


async def _open(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Told:
    told, waiting = Told(), set[asyncio.Task[None]]()
    free: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await _connect(port))
    start = time.perf_counter()

    async def one(due: float, raw: bytes) -> None:
        connection = await free.get()
        if connection.closed:  # nothing was asked over it for a while
            connection = await _connect(port)
        status, _ = await connection.ask(raw)
        told.statuses[status] += 1
        if status == 200:
            told.seconds.append(time.perf_counter() - due)
        free.put_nowait(connection if status else await _connect(port))

    for number in range(int(rate * seconds)):
        due = start + number / rate
        if (early := due - time.perf_counter()) > 0.0005:
            await asyncio.sleep(early)
        task = asyncio.create_task(one(due, requests[number % len(requests)]))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    told.took = time.perf_counter() - start
    while not free.empty():
        free.get_nowait().close()
    return told


def closed(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Told:
    """Ask with so many clients, each again as soon as it is answered."""
    import uvloop

    return uvloop.run(_closed(port, requests, clients, seconds))


def opened(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Told:
    """Ask so many times in a second, whether or not answers come: latencies count from when each was due."""
    import uvloop

    return uvloop.run(_open(port, requests, rate, seconds))
