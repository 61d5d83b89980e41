"""The ledger: an append-only SQL table of claims and decisions, the source of truth for exactly-once.

Events can be lost or arrive twice, and two runs may start at once. So work that
must happen once is claimed here first, under a unique key, and its result is
written beside the claim. A claim is a lease: when its holder fails or dies, the
next run takes the work over, at once if the holder's end was noticed, or when
the lease has ended.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.addresses import database, public, revealed
from headrace.errors import DamagedDatabase, HeadraceError, ServerUnreachable
from headrace.instants import plain, read
from headrace.outages import outages
from headrace.settings import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from pydantic import SecretStr
    from sqlalchemy import Connection, Engine
    from sqlalchemy import Table as SqlTable
    from tenacity import RetryCallState


class AlreadyClaimed(HeadraceError):
    """Another run holds the claim on this piece of work."""

    transient = True

    def __init__(self, what: str, holder: str, until: datetime) -> None:
        self.what, self.holder, self.until = what, holder, until
        super().__init__(
            f"{what} is being worked on by {holder} until {until:%Y-%m-%d %H:%M:%S} UTC at the latest. "
            "Wait for it. If it died unseen, the work can be taken over after that time, or at once if you "
            "free it: `headrace claims` says how."
        )


class NotClaimed(HeadraceError):
    """A claim is to be freed that nobody holds."""

    def __init__(self, pipeline: str, kind: str, key: str) -> None:
        super().__init__(
            f"Nobody holds a claim on {kind} {key} of `{pipeline}`: it is done, free, or was never begun. "
            "`headrace claims list` shows those that hold."
        )


T = TypeVar("T")
CLAIMED, GIVEN_UP, DONE = "claimed", "given up", "done"
STARTED, ENDS = "machine's start", "lease ends"
"""In the detail of a claim in a file: the id of that start, and seconds since it."""
PATIENCE = 60
"""Seconds to wait for a server that is gone."""
EVERY = ""
"""The pipeline of what is so for all of them, such as the windows of a source that they share."""


@dataclass(frozen=True)
class Record:
    """One line of the ledger.

    ``at`` is when it was written (UTC), by the database's clock: people look for what happened by it.
    The ``as_of`` that a run believes in may lie years away; where one matters, ``detail`` has it.
    """

    pipeline: str
    kind: str
    key: str
    state: str
    attempt: int
    holder: str
    at: datetime
    until: datetime
    detail: dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The ledger at an SQLAlchemy URL: SQLite, or PostgreSQL when several machines share it."""

    url: str | SecretStr

    def __repr__(self) -> str:
        return f"Ledger({public(revealed(self.url))!r})"

    def claim(
        self,
        pipeline: str,
        kind: str,
        key: str,
        *,
        holder: str,
        lease: timedelta,
        detail: Mapping[str, Any] | None = None,
    ) -> Record | None:
        """Claim a piece of work, or return the entry that says it is done already.

        ``detail`` says what is to be done, for whoever has to finish it.
        Claiming again as the same ``holder`` succeeds: a retried run goes on with its own work.
        One clock tells when a lease ends: the database's, or, in a file, this machine's since it was
        started, which nobody sets; what was claimed before that is free.

        Returns:
            ``None`` if the work is now the caller's, else its ``done`` entry.

        Raises:
            AlreadyClaimed: Another holder's lease has not ended.
        """
        from sqlalchemy.exc import IntegrityError

        past = self.entries(pipeline, kind, key)
        if done := next((entry for entry in past if entry.state == DONE), None):
            return done
        held = max(past, key=lambda entry: entry.attempt, default=None)
        given_up = {entry.attempt for entry in past if entry.state == GIVEN_UP}
        if held and held.attempt not in given_up and self._runs(held):
            if held.holder == holder:
                return None
            raise AlreadyClaimed(f"{kind} {key} of `{pipeline}`", held.holder, held.until)
        now, attempt = self.now(), held.attempt + 1 if held else 1
        noted = dict(detail or {})
        if self._in_a_file():
            noted |= {STARTED: started(), ENDS: _since_start() + lease.total_seconds()}
        try:
            self._write(Record(pipeline, kind, key, CLAIMED, attempt, holder, now, now + lease, noted))
        except IntegrityError:  # another run claimed it between our look and our write
            return self.claim(pipeline, kind, key, holder=holder, lease=lease, detail=detail)
        return None

    def finish(self, pipeline: str, kind: str, key: str, *, holder: str, **detail: Any) -> Record:
        """Record that a piece of work is done, and its result; the first record stands.

        Returns:
            The entry that stands: this one, or an earlier one.
        """
        from sqlalchemy.exc import IntegrityError

        now = self.now()
        record = Record(pipeline, kind, key, DONE, 0, holder, now, now, detail)
        try:
            self._write(record)
        except IntegrityError:
            return next(e for e in self.entries(pipeline, kind, key) if e.state == DONE)
        return record

    def give_up(self, pipeline: str, holder: str) -> None:
        """End the leases of a holder that failed or died, so that the work can be taken over at once."""
        for claim in self.entries(pipeline):
            if claim.state == CLAIMED and claim.holder == holder:
                self.free(claim)

    def free(self, claim: Record) -> None:
        """End one claim's lease. If its holder is at work after all, the work may be done twice."""
        from sqlalchemy.exc import IntegrityError

        now = self.now()
        with suppress(IntegrityError):  # given up before
            self._write(replace(claim, state=GIVEN_UP, at=now, until=now))

    def running(self) -> list[Record]:
        """Return the claims, of all pipelines, whose lease has not ended and whose work is not done."""
        entries = self.entries()
        done = {(e.pipeline, e.kind, e.key) for e in entries if e.state == DONE}
        freed = {(e.pipeline, e.kind, e.key, e.attempt) for e in entries if e.state == GIVEN_UP}
        return [
            e
            for e in entries
            if e.state == CLAIMED
            and (e.pipeline, e.kind, e.key) not in done
            and (e.pipeline, e.kind, e.key, e.attempt) not in freed
            and self._runs(e)
        ]

    def now(self) -> datetime:
        """Return the present (UTC) by the database's clock; a file has this machine's."""
        from sqlalchemy import text

        if _kind(revealed(self.url)) != "postgresql":
            return datetime.now(UTC)
        return plain(self._do(lambda con, _: con.execute(text("SELECT clock_timestamp()")).scalar_one()))

    def _in_a_file(self) -> bool:
        return _kind(revealed(self.url)) == "sqlite"

    def _runs(self, claim: Record) -> bool:
        """Say whether the lease of a claim has not ended."""
        if since := claim.detail.get(STARTED):
            return bool(since == started() and claim.detail[ENDS] > _since_start())
        return claim.until > self.now()

    def entries(
        self, pipeline: str | None = None, kind: str | None = None, key: str | None = None
    ) -> list[Record]:
        """Return the entries, oldest first: of a pipeline, a kind or a key if given."""
        from sqlalchemy import select

        wanted = {"pipeline": pipeline, "kind": kind, "key": key}

        def read_all(connection: Connection, table: SqlTable) -> list[Record]:
            query = select(table).order_by(table.c.id)
            for column, value in wanted.items():
                if value is not None:
                    query = query.where(table.c[column] == value)
            return [_record(row) for row in connection.execute(query).mappings()]

        return self._do(read_all)

    def last(self, pipeline: str, kind: str) -> Record | None:
        """Return the newest entry of a kind that says that something is done; None without one."""
        from sqlalchemy import select

        def read_last(connection: Connection, table: SqlTable) -> Record | None:
            wanted = table.c.pipeline == pipeline, table.c.kind == kind, table.c.state == DONE
            query = select(table).where(*wanted).order_by(table.c.id.desc()).limit(1)
            row = connection.execute(query).mappings().first()
            return _record(row) if row else None

        return self._do(read_last)

    def empty(self) -> bool:
        """Say whether it has no entry."""
        from sqlalchemy import select

        return not self._do(lambda con, table: con.execute(select(table.c.id).limit(1)).first())

    def copy(self, into: Ledger) -> int:
        """Copy all entries, in their order, into an empty ledger; return how many there are."""
        from sqlalchemy import insert, select

        def read_all(connection: Connection, table: SqlTable) -> list[dict[str, Any]]:
            columns = [
                column for column in table.c if column.name != "id"
            ]  # which a database gives out itself
            found = connection.execute(select(*columns).order_by(table.c.id)).mappings()
            return [dict(row) for row in found]

        if rows := self._do(read_all):
            into._do(lambda connection, table: connection.execute(insert(table), rows))
        return len(rows)

    def _write(self, entry: Record) -> None:
        values = vars(entry) | {
            "at": entry.at.isoformat(),
            "until": entry.until.isoformat(),
            "detail": json.dumps(entry.detail, default=str),
        }
        self._do(lambda connection, table: connection.execute(table.insert().values(**values)))

    def _do(self, work: Callable[[Connection, SqlTable], T]) -> T:
        """Do something in one transaction; a server that is gone for a moment is waited for.

        Raises:
            ServerUnreachable: It is gone for longer.
            DamagedDatabase: The file is none.
        """
        from sqlalchemy.exc import DatabaseError

        def once() -> T:
            engine, table = _connected(url)
            with engine.begin() as connection:
                return work(connection, table)

        url = revealed(self.url)
        if _kind(url) == "sqlite":
            try:
                return once()
            except DatabaseError as error:
                if said := DamagedDatabase.says(error):
                    raise DamagedDatabase("The ledger", url, said) from None
                raise
        from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

        again = Retrying(
            retry=retry_if_exception_type(ServerUnreachable),
            wait=wait_exponential(max=8),
            stop=stop_after_delay(PATIENCE),
            before_sleep=_say,
            reraise=True,
        )
        return again(outages("The ledger", url)(once))


def _say(waiting: RetryCallState) -> None:
    if waiting.attempt_number == 1 and waiting.outcome:
        told = "%s Trying for %s s more."
        logging.getLogger(__name__).warning(told, waiting.outcome.exception(), PATIENCE)


def _record(row: Any) -> Record:
    instants = {name: read(row[name]) for name in ("at", "until")}
    return Record(
        **{k: v for k, v in row.items() if k != "id"} | instants | {"detail": json.loads(row["detail"])}
    )


@cache
def started() -> str:
    """Return the id of this machine's start, by which Linux tells one from the next; empty elsewhere."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _since_start() -> float:
    """Return the seconds since the machine was started, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if started() else 0.0


def _kind(url: str) -> str:
    """Return which kind of database a URL is of, as SQLAlchemy names them.

    Raises:
        BadSetting: It is no URL of one.
    """
    try:
        return database(url).get_backend_name()
    except ValueError as error:
        raise BadSetting("ledger", url if "://" in url else "…", str(error)) from None


@cache
def _connected(url: str) -> tuple[Engine, SqlTable]:
    from sqlalchemy import Column, Integer, MetaData, String, Text, UniqueConstraint, create_engine
    from sqlalchemy import Table as SqlTable
    from sqlalchemy.exc import NoSuchModuleError, OperationalError, ProgrammingError

    try:
        address = database(url)
        if address.drivername == "sqlite" and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(address, connect_args={"timeout": 30})
        else:
            engine = create_engine(address, pool_pre_ping=True)
    except (ValueError, ImportError, NoSuchModuleError) as error:
        raise BadSetting("ledger", url if "://" in url else "…", str(error)) from None
    table = SqlTable(
        "headrace_ledger",
        MetaData(),
        Column("id", Integer, primary_key=True),
        *(Column(name, String(255), nullable=False) for name in ("pipeline", "kind", "key", "state")),
        Column("attempt", Integer, nullable=False),
        *(Column(name, String(255), nullable=False) for name in ("holder", "at", "until")),
        Column("detail", Text, nullable=False),
        UniqueConstraint("pipeline", "kind", "key", "state", "attempt"),
    )
    try:
        table.create(engine, checkfirst=True)
    except (OperationalError, ProgrammingError):  # two first starts at once: the other one made it
        table.create(engine, checkfirst=True)
    return engine, table
