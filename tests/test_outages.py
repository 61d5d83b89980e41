"""Servers that are gone for a while: told by name, waited for, and nothing is lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from sqlalchemy.engine import make_url

from headrace.errors import DamagedDatabase, ServerUnreachable
from headrace.feature_store import store as features
from headrace.feature_store.plan import online
from headrace.ledger import Ledger
from tests.conftest import free_port
from tests.test_materialization import END, HOURS, START, Place, home, service_at

LEASE = timedelta(minutes=30)
assert home  # the fixture


class Door:
    """A port through which a server is reached, unless it is shut."""

    def __init__(self, host: str, port: int) -> None:
        self.target, self.port = (host, port), free_port()
        self._ends: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self.target)
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(params=["redis", "postgres"])
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    if request.param == "redis":
        host, _, port = request.getfixturevalue("redis").partition(":")
        made = Door(host, int(port))
    else:
        url = make_url(request.getfixturevalue("postgres"))
        made = Door(url.host or "", url.port or 0)
    yield made
    made.shut()


@pytest.fixture
def place(door: Door, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An online store behind a door, and with a password that is nobody's business."""
    kind = request.node.callspec.params["door"]
    if kind == "redis":
        online: dict[str, Any] = {"type": "redis", "connection_string": f"127.0.0.1:{door.port},db=7"}
    else:
        url = make_url(request.getfixturevalue("postgres"))
        online = {"type": "postgres", "host": "127.0.0.1", "port": door.port, "user": url.username}
        online |= {"password": "s3cret", "database": url.database, "sslmode": "disable"}
        online |= {"db_schema": "behind_a_door"}
    made = Place(kind, online)
    yield made
    door.shut()
    door.open()
    made.clear()


def test_an_online_store_that_is_gone_is_named_and_filled_when_it_is_back(
    home: Path, door: Door, place: Place
) -> None:
    half = START + timedelta(hours=HOURS // 2)
    store = service_at(home, place, registry={"path": str(home / f"gone-{place.kind}.db")})
    features.materialize(store, "all", half, START)
    asked = pa.table({"airport": [1], "carrier": ["carrier 1"]})
    served = online(store, "all", asked)
    door.shut()
    told = rf"Feast's online store does not answer at 127\.0\.0\.1:{door.port}"
    for what in (
        lambda: features.materialize(store, "all", END),
        lambda: online(store, "all", asked),
    ):
        with pytest.raises(ServerUnreachable, match=told) as gone:
            what()
        assert gone.value.transient
        assert "s3cret" not in str(gone.value)
    door.open()
    store = service_at(home, place, registry={"path": str(home / f"gone-{place.kind}.db")})
    assert online(store, "all", asked).equals(served)
    features.materialize(store, "all", END)
    assert len(place.cells()) == 35 * (1 if place.kind == "redis" else 15)


@pytest.mark.parametrize("door", ["redis"], indirect=True)
def test_a_redis_that_is_full_is_told_and_filled_when_it_has_room(
    home: Path, door: Door, place: Place
) -> None:
    store = service_at(home, place, registry={"path": str(home / "full.db")})
    client = place._redis()
    try:
        client.config_set("maxmemory", 1)
        with pytest.raises(ServerUnreachable, match="maxmemory"):
            features.materialize(store, "all", END, START)
    finally:
        client.config_set("maxmemory", 0)
    features.materialize(store, "all", END, START)
    assert len(place.cells()) == 35


@pytest.mark.parametrize("door", ["postgres"], indirect=True)
def test_a_ledger_that_is_gone_for_a_moment_is_waited_for(
    door: Door, postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(postgres).set(host="127.0.0.1", port=door.port, password="s3cret")
    ledger = Ledger(url.render_as_string(hide_password=False))
    assert ledger.claim("gone", "training", "1", holder="a", lease=LEASE) is None
    door.shut()
    threading.Timer(3, door.open).start()
    began = time.monotonic()
    assert ledger.finish("gone", "training", "1", holder="a", promoted=True).detail == {"promoted": True}
    assert time.monotonic() - began > 2
    assert "The ledger does not answer" in caplog.text
    assert "Trying for 60 s more" in caplog.text
    assert "s3cret" not in caplog.text

    door.shut()
    monkeypatch.setattr("headrace.ledger.PATIENCE", 1)
    with pytest.raises(ServerUnreachable, match="The ledger does not answer"):
        ledger.entries("gone")
    door.open()
    assert [entry.state for entry in ledger.entries("gone")] == ["claimed", "done"]
    with psycopg.connect(postgres.replace("+psycopg", "")) as con:
        con.execute("DELETE FROM headrace_ledger WHERE pipeline = 'gone'")


def test_a_ledger_that_is_no_database_is_told(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{file}")
    ledger.finish("p", "training", "1", holder="a")
    whole = file.read_bytes()
    for spoilt in (b"not a database, but as long as its header is " * 9, whole[:5000] + b"\xff" * 3000):
        file.write_bytes(spoilt)
        with pytest.raises(DamagedDatabase, match=r"ledger\.db is damaged: .*Restore it from a backup"):
            ledger.entries()
