"""The ledger: an append-only SQL table of claims and decisions, the source of truth for exactly-once.

Events can be lost or arrive twice, and two runs may start at once. So work that
must happen once is claimed here first, under a unique key, and its result is
written beside the claim. A claim is a lease: when its holder fails or dies, the
next run takes the work over, at once if the holder's end was noticed, or when
the lease has ended.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.addresses import database, public, revealed
from headrace.errors import AlreadyClaimed, BadSetting
from headrace.instants import read

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from pydantic import SecretStr
    from sqlalchemy import Engine
    from sqlalchemy import Table as SqlTable

CLAIMED, GIVEN_UP, DONE = "claimed", "given up", "done"
EVERY = ""
"""The pipeline of what is so for all of them, such as the windows of a source that they share."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    ``at`` is when it was written (UTC), by the clock on the wall: by it leases end, and people
    look for what happened. The ``as_of`` that a run believes in may lie years away; where one
    matters, ``detail`` has it.
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
        self, pipeline: str, kind: str, key: str, *, holder: str, now: datetime, lease: timedelta
    ) -> Entry | None:
        """Claim a piece of work, or return the entry that says it is done already.

        Claiming again as the same ``holder`` succeeds: a retried run goes on
        with its own work. ``now`` is wall-clock time (UTC).

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
        until = held.until if held and held.attempt not in given_up else now
        if held and held.holder == holder and until > now:
            return None
        if held and until > now:
            raise AlreadyClaimed(f"{kind} {key} of `{pipeline}`", held.holder, held.until)
        try:
            self._write(
                Entry(
                    pipeline,
                    kind,
                    key,
                    CLAIMED,
                    held.attempt + 1 if held else 1,
                    holder,
                    now,
                    now + lease,
                    {},
                )
            )
        except IntegrityError:  # another run claimed it between our look and our write
            return self.claim(pipeline, kind, key, holder=holder, now=now, lease=lease)
        return None

    def finish(
        self, pipeline: str, kind: str, key: str, *, holder: str, now: datetime, **detail: Any
    ) -> Entry:
        """Record that a piece of work is done, and its result; the first record stands.

        ``now`` is wall-clock time (UTC).

        Returns:
            The entry that stands: this one, or an earlier one.
        """
        from sqlalchemy.exc import IntegrityError

        entry = Entry(pipeline, kind, key, DONE, 0, holder, now, now, detail)
        try:
            self._write(entry)
        except IntegrityError:
            return next(e for e in self.entries(pipeline, kind, key) if e.state == DONE)
        return entry

    def give_up(self, pipeline: str, holder: str, now: datetime) -> None:
        """End the leases of a holder that failed or died, so that the work can be taken over at once."""
        from sqlalchemy.exc import IntegrityError

        for claim in self.entries(pipeline):
            if claim.state == CLAIMED and claim.holder == holder:
                with suppress(IntegrityError):  # given up before
                    self._write(replace(claim, state=GIVEN_UP, at=now, until=now))

    def entries(self, pipeline: str, kind: str | None = None, key: str | None = None) -> list[Entry]:
        """Return the entries of a pipeline, oldest first, of one kind or key if given."""
        from sqlalchemy import select

        engine, table = _connected(revealed(self.url))
        wanted = {"pipeline": pipeline, "kind": kind, "key": key}
        query = select(table).order_by(table.c.id)
        for column, value in wanted.items():
            if value is not None:
                query = query.where(table.c[column] == value)
        with engine.connect() as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]

    def last(self, pipeline: str, kind: str) -> Entry | None:
        """Return the newest entry of a kind that says that something is done; None without one."""
        from sqlalchemy import select

        engine, table = _connected(revealed(self.url))
        query = select(table).where(table.c.pipeline == pipeline, table.c.kind == kind, table.c.state == DONE)
        with engine.connect() as connection:
            row = connection.execute(query.order_by(table.c.id.desc()).limit(1)).mappings().first()
        return _entry(row) if row else None

    def _write(self, entry: Entry) -> None:
        engine, table = _connected(revealed(self.url))
        values = vars(entry) | {
            "at": entry.at.isoformat(),
            "until": entry.until.isoformat(),
            "detail": json.dumps(entry.detail, default=str),
        }
        with engine.begin() as connection:
            connection.execute(table.insert().values(**values))


def _entry(row: Any) -> Entry:
    instants = {name: read(row[name]) for name in ("at", "until")}
    return Entry(
        **{k: v for k, v in row.items() if k != "id"} | instants | {"detail": json.loads(row["detail"])}
    )


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
