"""What was answered: on this machine's disk before it is, then in the lake, once, whatever is killed when.

Each process writes files of its own, lines of JSON, and forces them to the disk in groups: many
requests share one wait for it. A file that is full, or old enough, goes to the lake in one commit for each
table, under its own name, so that a second time changes nothing; then it is removed. Files of a
process that is gone are sent by whoever finds them. A last line that was cut short was never answered.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
from filelock import FileLock, Timeout

from headrace.serving.errors import NotLogged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow as pa

    from headrace.lake import Lake

EVERY = 30.0
"""Seconds after which what is on disk goes to the lake."""
LARGE = 32 * 2**20
"""Bytes after which a file is full."""
MANY = 200
"""Files that a table may have before they are merged: each half minute adds one."""
SCHEMA = "schema of"
logger = logging.getLogger(__name__)


class Journal:
    """The log of one process."""

    def __init__(self, folder: Path, lake: Lake, every: float = EVERY) -> None:
        """Keep files below ``folder``, and send them to ``lake`` every so many seconds."""
        self.folder, self.lake, self.every = folder, lake, every
        self.own = folder / uuid4().hex
        self._written = self._sent = 0
        self._ended, self._turn = threading.Event(), threading.Lock()
        self._file: Any = None
        self._opened = 0.0
        self._noted: dict[str, pa.Schema] = {}
        self._sender = threading.Thread(target=self._send_all, name="journal", daemon=True)

    @property
    def unsent(self) -> int:
        """How many rows of this process are on its disk alone."""
        return self._written - self._sent

    def start(self) -> None:
        """Begin to send; first of all what processes that are gone have left."""
        # Before it is locked, nobody may take it for one that was left.
        hidden = self.folder / f".{self.own.name}"
        hidden.mkdir(parents=True)
        self._lock = FileLock(hidden / "lock")
        self._lock.acquire()
        hidden.rename(self.own)
        self._sender.start()

    def stop(self) -> None:
        """Send all that was written, and end. What cannot be sent stays on disk for the next."""
        self._ended.set()
        self._sender.join()
        self._lock.release()
        if not list(self.own.glob("*.jsonl")):
            (self.own / "lock").unlink(missing_ok=True)
            self.own.rmdir()

    def write(
        self, table: str, schema: pa.Schema, columns: Sequence[Sequence[Any]], *, sync: bool = True
    ) -> None:
        """Write rows for a table, a list for each of its columns; with ``sync`` they are on disk afterwards.

        Raises:
            NotLogged: They cannot be written.
        """
        with self._turn:
            try:
                if self._file is None:
                    self._open()
                self._file.write(self._line(table, schema, columns))
                self._file.flush()
                if sync:
                    os.fdatasync(self._file.fileno())
            except OSError as failed:
                self._close()  # what was written of it may be cut short: nothing may follow
                error = NotLogged(str(self.own), str(failed))
                logger.error("%s", error)
                raise error from None
            self._written += len(columns[0])
            if self._file.tell() > LARGE:
                self._close()

    def _open(self) -> None:
        self._file = (self.own / f"{uuid4().hex}.jsonl").open("xb")
        _sync(self.own)
        self._opened, self._noted = time.monotonic(), {}

    def _close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                logger.error("%s", error)
        self._file = None

    def _line(self, table: str, schema: pa.Schema, columns: Sequence[Sequence[Any]]) -> bytes:
        """Return rows as a line; the table's columns come before the first of them in a file."""
        line = orjson.dumps([table, columns], default=_plain) + b"\n"
        if self._noted.get(table) is schema:
            return line
        self._noted[table] = schema
        told = base64.b64encode(schema.serialize()).decode()
        return orjson.dumps({SCHEMA: table, "columns": told}) + b"\n" + line

    def _send_all(self) -> None:
        while True:
            last = self._ended.wait(min(self.every, 1.0))
            with self._turn:
                if self._file is not None and (last or time.monotonic() - self._opened > self.every):
                    self._close()
                # Looked for before another file can be begun, which would be taken for an ended one.
                current = self._file and self._file.name
                ended = [file for file in sorted(self.own.glob("*.jsonl")) if str(file) != current]
            kept = 0
            for file in ended:
                sent = _sent(file, self.lake)
                self._sent, kept = self._sent + (sent or 0), kept + (sent is None)
            adopt(self.folder, self.lake)
            if last:
                return
            if kept:
                self._ended.wait(min(self.every, 10.0))


def adopt(folder: Path, lake: Lake) -> int:
    """Send what processes that are gone have left below ``folder``; return how many rows that were."""
    total = 0
    for own in sorted(folder.glob("[!.]*")):
        lock = FileLock(own / "lock")
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):  # it lives; or another one has just done so
            continue
        try:
            sent = [_sent(file, lake) for file in sorted(own.glob("*.jsonl"))]
            total += sum(count or 0 for count in sent)
            if None not in sent:
                with suppress(FileNotFoundError):
                    (own / "lock").unlink()
                    own.rmdir()
        finally:
            lock.release()
    return total


def _sent(file: Path, lake: Lake) -> int | None:
    """Send a file; one that cannot be sent stays, is told of, and keeps no other from being sent."""
    try:
        return send(file, lake)
    except Exception as error:  # noqa: BLE001  # whatever Delta, Arrow or a store say of it
        logger.error("What was answered stays in %s for now: %s", file, error)
        return None


def send(file: Path, lake: Lake) -> int:
    """Bring a file's rows into the lake, and remove it; return how many it had.

    Raises:
        ColumnsRetyped: A column has another type than the lake keeps it in: the file stays.
    """
    count = 0
    for table, rows in read(file).items():
        lake.table(table).refuse_retyped(rows.schema)
        lake.table(table).append(rows, f"journal/{file.stem}")
        lake.table(table).compact(MANY)
        count += rows.num_rows
    file.unlink()
    return count


def read(file: Path) -> dict[str, pa.Table]:
    """Return the rows of a file by table; a line that was cut short, and what follows, is left out."""
    import pyarrow as pa

    schemas: dict[str, pa.Schema] = {}
    columns: dict[str, list[list[Any]]] = {}
    parts: dict[str, list[pa.Table]] = {}

    def end(table: str) -> None:
        if given := columns.pop(table, None):
            named = zip(schemas[table], given, strict=True)
            arrays = [pa.array(map(_value(field.type), values), field.type) for field, values in named]
            parts.setdefault(table, []).append(pa.table(arrays, schema=schemas[table]))

    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError:
            logger.warning("%s ends in a line that was cut short; it was never answered", file)
            break
        if isinstance(told, dict):
            end(table := told[SCHEMA])
            schemas[table] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["columns"])))
            columns[table] = [[] for _ in schemas[table]]
        else:
            for values, more in zip(columns[told[0]], told[1], strict=True):
                values.extend(more)
    for table in list(columns):
        end(table)
    return {table: pa.concat_tables(of, promote_options="default") for table, of in parts.items()}


def _value(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return what makes Python's value again of what JSON has."""
    from datetime import date, datetime

    from pyarrow import types

    read: Callable[[Any], Any] | None = None
    if types.is_timestamp(kind):
        read = datetime.fromisoformat
    elif types.is_date(kind):
        read = date.fromisoformat
    elif types.is_decimal(kind):
        from decimal import Decimal

        read = lambda value: Decimal(str(value))  # noqa: E731
    elif types.is_binary(kind) or types.is_large_binary(kind):
        read = base64.b64decode
    return (lambda value: value) if read is None else lambda value: None if value is None else read(value)


def _plain(value: Any) -> Any:
    """Return what JSON has no type for as text; see ``_value``."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _sync(folder: Path) -> None:
    """Force a folder to the disk, that a file in it is found after the power was cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
