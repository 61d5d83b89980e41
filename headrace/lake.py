"""The lake: one Delta table per source, feature table, training set and prediction log.

Everything is written per window, idempotently: an append carries a transaction
id that Delta itself refuses to commit twice, and an overwrite replaces exactly
the rows of its window. Readers name a version and see that snapshot for ever.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote
from uuid import uuid4

from headrace.addresses import public, scrubbed
from headrace.errors import HeadraceError, InvalidQuery
from headrace.sql import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import duckdb
    import numpy as np
    import pyarrow as pa
    from deltalake import DeltaTable
    from numpy.typing import NDArray

    Ends = NDArray[np.float64]


class ColumnsRetyped(HeadraceError):
    """Rows have columns of other types than the table they are for; nothing was written."""

    def __init__(self, table: str, retyped: Mapping[str, tuple[object, object]]) -> None:
        self.table, self.retyped = (
            table,
            {n: (str(there), str(given)) for n, (there, given) in retyped.items()},
        )
        which = ", ".join(f"`{n}` was {there} and is {given}" for n, (there, given) in self.retyped.items())
        super().__init__(
            f"The rows for table `{table}` have columns of other types than it: {which}. A column keeps its "
            f"type, so nothing was written. Cast the new one, or call it something else, such as "
            f"`{next(iter(retyped))}_2`: the table gains it, and the old one becomes null window by window. "
            "Or write to another table."
        )


class NotBuilt(HeadraceError):
    """A table is asked for before the step that fills it has run."""

    def __init__(self, table: str, step: str | None = None) -> None:
        self.table, self.step = table, step
        super().__init__(
            f"Table `{table}` does not exist yet. "
            + (
                f"Run the `{step}` flow for this pipeline first. If it has run, nothing that belongs in it "
                "became known since the pipeline's `start`, or no declaration in `pipelines/` makes it."
                if step
                else "No flow makes it: write it first, or correct the path of the source that names it."
            )
        )


class VersionGone(HeadraceError):
    """A table is asked for at a version that cannot be read."""

    def __init__(self, table: str, version: int, newest: int) -> None:
        self.table, self.version, self.newest = table, version, newest
        why = (
            "It is still to come: name one that there is."
            if version > newest
            else "It is gone: Delta's log of it was cleaned up, or its files were vacuumed. Restore the "
            "table from a backup; without one, name a later version, or make what names this one anew."
        )
        super().__init__(
            f"Table `{table}` cannot be read at version {version}; its newest is {newest}. {why}"
        )


class DamagedTable(HeadraceError):
    """A file of a table, or of its log, is gone or cannot be read."""

    def __init__(self, table: str, place: str, reason: str, step: str | None = None) -> None:
        self.table, self.place, self.reason, self.step = table, public(place), scrubbed(reason, place), step
        again = (
            f" Without one, move the folder away and run `{step}`: it makes again what it has the input for."
            if step
            else ""
        )
        super().__init__(
            f"Table `{table}` is damaged: {self.reason.rstrip('.')}. Nothing was read or written. Restore "
            f"{self.place} from a backup.{again}"
        )


class DamagedFile(HeadraceError):
    """A Parquet file cannot be read, and its reader does not say which."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"A Parquet file that was read is damaged: {reason.rstrip('.')}. Which one is not said; "
            "`headrace verify` finds it, if a model was made of it. Restore its table from a backup."
        )


AVAILABLE = "available_at"
"""The column of raw and feature tables that says from which instant (UTC) a row may be used."""
COMMIT, CHECKPOINT = re.compile(r"\d{20}\.json"), re.compile(r"\d{20}\.checkpoint\.parquet")
FEW = 10
"""Keys that Delta itself is asked for, one by one."""
LASTING = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",  # what is cleaned up by hand
    "delta.deletedFileRetentionDuration": "interval 36500 days",  # what is vacuumed
    "delta.setTransactionRetentionDuration": "interval 36500 days",
}
"""Properties of tables whose versions and keys last: models, pins and held entries name them for good.

By itself Delta forgets a version after thirty days, and a file that only it has after seven.
"""
PROPERTIES = LASTING | {"delta.checkpointInterval": "10"}
"""Delta sums a log up every hundred commits; whoever opens the table reads those since then one by one."""
MADE_BY = {"raw": "ingest", "features": "materialize", "training": "train", "predictions": "score"}
"""Which flow makes the tables of each folder."""
MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
"""The origin of the window grid, so that weeks start on Mondays."""


@dataclass(frozen=True, order=True)
class Window:
    """A half-open interval of event time, ``[start, end)``, both in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError(f"A window needs aware instants, got {self.start!r} and {self.end!r}.")
        if self.start >= self.end:
            raise ValueError(f"A window must end after it starts, got {self.start} and {self.end}.")

    def __str__(self) -> str:
        """Name it by both ends: to the second, which whole minutes need not say; tables are keyed by this."""
        ends = (self.start.isoformat(), self.end.isoformat())  # several times faster than by a format
        return "/".join(f"{at[:16]}Z" if at[16:19] == ":00" else f"{at[:19]}Z" for at in ends)

    @property
    def label(self) -> str:
        """Its start, as short as it can be said: a date if it is some days long, or a date and a time."""
        if self.start.time() == time.min and not (self.end - self.start) % timedelta(days=1):
            return f"{self.start:%Y-%m-%d}"
        return f"{self.start:%Y-%m-%dT%H:%M:%S}" if self.start.second else f"{self.start:%Y-%m-%dT%H:%M}"

    def predicate(self, column: str) -> str:
        """Return the window as an SQL condition that Delta and DuckDB both read."""
        return f"{column} >= '{self.start.isoformat()}' AND {column} < '{self.end.isoformat()}'"


def windows(start: datetime, end: datetime, every: timedelta) -> list[Window]:
    """Return the whole windows of the Monday grid that cover ``start`` and have ended by ``end``.

    Raises:
        ValueError: ``every`` is not some whole seconds.

    >>> at = datetime(2013, 1, 1, tzinfo=UTC)
    >>> [str(w) for w in windows(at, at + timedelta(days=10), timedelta(weeks=1))]
    ['2012-12-31T00:00Z/2013-01-07T00:00Z']
    """
    if every <= timedelta(0) or every % timedelta(seconds=1):  # they are named by the second
        raise ValueError(f"A window must be some whole seconds long, got {every}.")
    first = edge(start, every)
    count = max((end - first) // every, 0)
    return [Window(first + i * every, first + (i + 1) * every) for i in range(count)]


def consecutive(due: Iterable[Window], most: int) -> list[list[Window]]:
    """Put windows together, given in order, that follow each other: at most so many."""
    found: list[list[Window]] = []
    for window in due:
        if found and found[-1][-1].end == window.start and len(found[-1]) < most:
            found[-1].append(window)
        else:
            found.append([window])
    return found


def edge(at: datetime, every: timedelta) -> datetime:
    """Return the last instant of the Monday grid, ``at`` or earlier, at which windows meet."""
    return MONDAY + (at - MONDAY) // every * every


@dataclass(frozen=True)
class DatasetRef:
    """A table at a version: what tasks pass on instead of frames.

    ``fingerprint`` depends on the rows alone, not on their order or files, so
    the same rows written twice have the same one. ``pins`` are the versions of
    the tables it was made from, ``fed_on`` the versions, by pipeline, of the models whose predictions
    are among its inputs.
    """

    table: str
    version: int
    rows: int
    fingerprint: str
    pins: tuple[tuple[str, int], ...] = ()
    fed_on: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> DatasetRef:
        """Return what ``dataclasses.asdict`` made of one, be it by way of JSON."""
        pins = tuple((str(table), int(version)) for table, version in noted.get("pins", ()))
        fed_on = tuple((str(name), tuple(versions)) for name, versions in noted.get("fed_on", ()))
        return cls(**{**noted, "pins": pins, "fed_on": fed_on})


@dataclass(frozen=True)
class Lake:
    """All tables below one root: a local directory or an object-store URI."""

    root: str

    def table(self, name: str) -> Table:
        """Return the table of that name, such as ``raw/flights``; it need not exist yet."""
        return Table(name, f"{self.root.rstrip('/')}/{name}")

    def at(self, name: str, version: int) -> DatasetRef:
        """Name a table at a version, without looking at its rows."""
        return DatasetRef(name, version, rows=-1, fingerprint="")

    def check(self, ref: DatasetRef) -> None:
        """Compare a snapshot with the rows that it was taken of.

        Raises:
            DamagedTable: There are other rows, or a file cannot be read.
            VersionGone: The table cannot be read at that version any more.
        """
        import duckdb

        table = self.table(ref.table)
        try:
            found = table.snapshot(ref.version)
        except (duckdb.Error, UnicodeDecodeError) as error:  # of names that are none
            raise table.damaged(str(error)) from None
        if (found.rows, found.fingerprint) != (ref.rows, ref.fingerprint):
            raise table.damaged(f"version {ref.version} has other rows than were written")

    def has_landed(self) -> bool:
        """Say whether there is, or was, any raw row."""
        import fsspec

        store, place = fsspec.core.url_to_fs(f"{self.root}/raw")
        return bool(store.exists(place))

    def below(self, folder: str) -> list[str]:
        """Return the names of the tables in one of its folders, such as ``raw``."""
        import fsspec

        store, place = fsspec.core.url_to_fs(f"{self.root.rstrip('/')}/{folder}")
        there = store.ls(place, detail=False) if store.exists(place) else []
        logs = sorted(path.rstrip("/") for path in there if store.exists(f"{path.rstrip('/')}/_delta_log"))
        return [f"{folder}/{path.rpartition('/')[2]}" for path in logs]

    def sizes(self, files: Iterable[str]) -> list[int]:
        """Return how many bytes those of some files below its root have that are there."""
        import fsspec

        store, root = fsspec.core.url_to_fs(self.root.rstrip("/"))
        places = (f"{root}/{unquote(file)}" for file in files)
        return [int(store.size(place) or 0) for place in places if store.exists(place)]

    def connect(self, views: Mapping[str, str | DatasetRef]) -> duckdb.DuckDBPyConnection:
        """Open DuckDB, in UTC, with a view for each of ``{view name: table name or snapshot}``.

        Raises:
            NotBuilt: A named table does not exist.
        """
        con = duckdb_connection()
        for view, wanted in views.items():
            name, version = (wanted, None) if isinstance(wanted, str) else (wanted.table, wanted.version)
            self.table(name).relation(con, version).create_view(view)
        return con


@dataclass(frozen=True)
class Table:
    """One Delta table; ``uri`` is where it lies. One that is not the lake's is named by it."""

    name: str
    uri: str

    def since(self) -> tuple[int, int, int] | None:
        """Return what tells a local table from another that is made in its place: its first commit's file."""
        return _commit(self.uri, 0)

    def exists(self) -> bool:
        """Say whether the table has ever been written."""
        from deltalake import DeltaTable

        return bool(_known(self.uri)) or DeltaTable.is_deltatable(self.uri)

    def has(self, version: int) -> bool:
        """Say whether the table can be read at ``version``."""
        try:
            self.open(version)
        except (VersionGone, NotBuilt):
            return False
        return True

    def open(self, version: int | None = None) -> DeltaTable:
        """Open the table at ``version``, or the newest, to read it: others may be given the same object.

        Raises:
            NotBuilt: The table does not exist.
            VersionGone: It has no such version any more, or yet.
            DamagedTable: Its log cannot be read.
        """
        table = self._opened(version)
        if table is None:
            raise NotBuilt(self.name, MADE_BY.get(self.name.split("/")[0]))
        return table

    def _opened(self, version: int | None = None) -> DeltaTable | None:
        """Open it to be read, unless this process knows that version already."""
        known = _known(self.uri)
        if known and version in (None, known.version):
            return known.table
        table = self._fresh(version)
        if table and version is None:
            _remember(self.uri, table)
        return table

    def _fresh(self, version: int | None = None) -> DeltaTable | None:
        """Open it for this caller alone, as who writes must: Delta refuses what came after one's own look."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            table = DeltaTable(self.uri, version=version)
        except DeltaError as error:
            if version is not None and self.exists():
                raise VersionGone(self.name, version, self.open().version()) from error
            if isinstance(error, TableNotFoundError):  # nor while somebody is making it
                return None
            if str(error).startswith("Kernel error"):  # of what the log says, not of getting at it
                raise self.damaged(f"its log: {error}") from None
            raise
        commit = Path(self.uri, "_delta_log", f"{table.version():020}.json")
        if commit.exists() and not commit.stat().st_size:  # as a machine leaves it that lost its power
            raise self.damaged(f"{commit.name} of its log is empty")
        return table

    def damaged(self, reason: str) -> DamagedTable:
        """Return the error that says so, and what makes the table again."""
        step = MADE_BY.get(self.name.split("/")[0])
        return DamagedTable(self.name, self.uri, reason.splitlines()[0], step)

    def lasting(self) -> DeltaTable:
        """Open the newest version for a write, after which every version before it stays readable.

        A table that was made without that is told so now; one that is not the lake's is left as it is.

        Raises:
            NotBuilt: The table does not exist.
        """
        table = self._fresh()
        if table is None:
            raise NotBuilt(self.name, MADE_BY.get(self.name.split("/")[0]))
        return self._told(table)

    def _told(self, table: DeltaTable) -> DeltaTable:
        from deltalake.exceptions import CommitFailedError

        if self.name == self.uri or LASTING.items() <= table.metadata().configuration.items():
            return table
        with suppress(CommitFailedError):  # somebody else wrote meanwhile: the next write sees to it
            table.alter.set_table_properties(PROPERTIES)
        return self._fresh() or table

    def append(
        self,
        rows: pa.Table | pa.RecordBatchReader,
        key: str,
        number: int = 1,
        also: Mapping[str, int] | None = None,
    ) -> bool:
        """Append ``rows`` once: a second call with the same ``key`` changes nothing.

        Two writers with one key may race; Delta lets one commit win. The key is
        then ``held`` with ``number``, and each key of ``also`` with its own. Columns
        that the table lacks are added to it, null in the rows it has.

        Returns:
            Whether this call is the one that landed the rows.
        """
        return self.append_all(rows, {key: number}, also)

    def append_all(
        self,
        rows: pa.Table | pa.RecordBatchReader,
        keys: Mapping[str, int],
        also: Mapping[str, int] | None = None,
    ) -> bool:
        """Append ``rows`` in one commit, as ``append`` does, unless one of ``keys`` was committed before."""
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError

        # One snapshot for the look and for the write: Delta refuses our commit only if the other
        # writer's came after the snapshot that ours was prepared on.
        table = self._made(rows.schema)
        if self._committed(table, keys):
            return False
        held = [Transaction(name, carried) for name, carried in {**keys, **(also or {})}.items()]
        once = CommitProperties(app_transactions=held, max_commit_retries=15)
        grows = bool(set(rows.schema.names) - {field.name for field in table.schema().fields})
        mode: Literal["merge"] | None = "merge" if grows else None
        try:
            write_deltalake(table, rows, mode="append", schema_mode=mode, commit_properties=once)
        except CommitFailedError:
            if self.held(keys):
                return False
            raise
        return True

    def _committed(self, table: DeltaTable, keys: Mapping[str, int]) -> bool:
        """Say whether one of ``keys`` is in the log of a snapshot that was opened to be written to."""
        noted = _keys(self.uri) if len(keys) > FEW else None
        # What was committed after the snapshot makes no harm here: Delta would refuse the write for it.
        asked = keys if noted is None else [key for key in keys if key in noted]
        return any(table.transaction_version(key) is not None for key in asked)

    def _made(self, schema: pa.Schema) -> DeltaTable:
        """Open the table for a write; it is made, empty, before its first rows: by one of two writers."""
        from deltalake import CommitProperties, DeltaTable
        from deltalake.exceptions import DeltaError

        if table := self._fresh():
            return self._told(table)
        # Without retries: delta-rs would commit the loser's creation once more on top of the winner's.
        once = CommitProperties(max_commit_retries=0)
        try:
            DeltaTable.create(self.uri, schema, configuration=PROPERTIES, commit_properties=once)
        except DeltaError:
            if not self.exists():
                raise
        return self.lasting()

    def holds(self, key: str) -> bool:
        """Say whether a write with this ``key`` was committed."""
        return bool(self.held([key]))

    def held(self, keys: Iterable[str]) -> dict[str, int]:
        """Return, for those of ``keys`` under which a write was committed, the number it carried."""
        wanted = list(keys)
        table = self._opened()
        noted = _keys(self.uri) if table and len(wanted) > FEW else None
        if noted is None:
            noted = {key: table.transaction_version(key) for key in wanted} if table else {}
        numbers = {key: noted.get(key) for key in wanted}
        return {key: number for key, number in numbers.items() if number is not None}

    def overwrite(
        self, rows: pa.Table, window: Window, time: str, keys: Mapping[str, int] | None = None
    ) -> None:
        """Replace the rows whose ``time`` lies in ``window`` with ``rows``.

        Readers see the old window or the new one, never a mixture. Two writers
        of one window leave it as one of them wrote it. Then ``held`` are ``keys``, each with its number, or
        else the window's name. Columns that the
        table lacks are added to it, null in other windows; those that ``rows`` lack
        are null in this one.

        Raises:
            ColumnsRetyped: A column has another type than in the table: Delta would cast it without a word.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError

        held = [Transaction(key, carried) for key, carried in (keys or {str(window): 1}).items()]
        marked = CommitProperties(app_transactions=held, max_commit_retries=15)
        for left in reversed(range(15)):
            table = self._made(rows.schema)
            there = self._refuse_retyped(table, rows.schema)
            mode: Literal["merge"] | None = "merge" if there != {*rows.schema.names} else None
            where = window.predicate(time)
            try:
                write_deltalake(
                    table, rows, mode="overwrite", schema_mode=mode, predicate=where, commit_properties=marked
                )
                return
            except CommitFailedError:  # of writers that meet in a window or in the schema, one wins
                if not left:
                    raise

    def refuse_retyped(self, schema: pa.Schema) -> None:
        """Refuse columns of other types than a table that is there has them in.

        Raises:
            ColumnsRetyped: There are some: Delta would cast them without a word.
        """
        if table := self._opened():
            self._refuse_retyped(table, schema)

    def _refuse_retyped(self, table: DeltaTable, schema: pa.Schema) -> set[str]:
        """Return which columns there are."""
        import pyarrow as pa
        from deltalake import Schema

        given = {f.name: f.type for f in pa.schema(Schema.from_arrow(schema).to_arrow())}
        there = {f.name: f.type for f in pa.schema(table.schema().to_arrow())}
        if retyped := {n: (there[n], t) for n, t in given.items() if there.get(n, t) != t}:
            raise ColumnsRetyped(self.name, retyped)
        return {*there}

    def replace(self, rows: pa.Table | Callable[[], pa.RecordBatchReader]) -> int:
        """Make ``rows`` the whole table; earlier versions stay readable.

        Any number may do so at once: one after the other is the whole table.

        Returns:
            The version this very call wrote.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError

        for left in reversed(range(15)):
            given = rows() if callable(rows) else rows
            table = self._made(given.schema)
            # Of two that replace an empty table Delta keeps both's rows, but refuses a key that both write.
            whole = CommitProperties(app_transactions=[Transaction("replaced", table.version())])
            try:
                write_deltalake(
                    table, given, mode="overwrite", schema_mode="overwrite", commit_properties=whole
                )
                break
            except CommitFailedError:
                if not left:
                    raise
        return table.version()  # not from the history, which is empty where the path has a `#`

    def compact(self, above: int) -> int:
        """Merge the table's files if they are more than ``above``; return how many there were, else 0.

        Each window is a file of its own, and whoever reads the table opens them all. No row
        changes; earlier versions stay readable. Where somebody else writes meanwhile, theirs stands.
        """
        from deltalake.exceptions import CommitFailedError

        table = self._opened()
        files = len(table.file_uris()) if table else 0
        if not table or files <= above:
            return 0
        try:
            self.lasting().optimize.compact()
        except CommitFailedError:
            return 0
        return files

    def relation(
        self, con: duckdb.DuckDBPyConnection, version: int | None = None, span: Window | None = None
    ) -> duckdb.DuckDBPyRelation:
        """Return the snapshot at ``version`` (or the newest) as a lazy DuckDB relation.

        Of a ``span`` only the files are read, and looked for, that may hold rows which became known in it.
        What they hold beside those is there, too: the caller's condition says which rows are wanted.

        Raises:
            NotBuilt: The table does not exist.
            VersionGone: It has no such version any more, or yet.
            DamagedTable: A local file of it, or its log, is missing or cannot be read.
        """
        table = self.open(version)
        files = _files_of(self.uri, table, span) if span else table.file_uris()
        if files and not Path(files[0]).is_absolute():
            return con.from_arrow(table.to_pyarrow_dataset())
        import pyarrow as pa

        def nothing() -> duckdb.DuckDBPyRelation:
            return con.from_arrow(pa.schema(table.schema().to_arrow()).empty_table())

        if not files:
            return nothing()
        files = [unquote(file) for file in files]
        self.refuse_lost(files, table.version())
        rows = self.read(con, files)
        # A file of before a column was added lacks it.
        lacking = {field.name for field in table.schema().fields} - {*rows.columns}
        if not lacking:  # as a rule; and DuckDB imports pandas to look at what is Arrow's
            return rows
        named = zip(nothing().columns, nothing().types, strict=True)
        given = (f"NULL::{kind} AS {quoted(c)}" if c in lacking else quoted(c) for c, kind in named)
        return rows.project(", ".join(given))

    def read(self, con: duckdb.DuckDBPyConnection, files: list[str]) -> duckdb.DuckDBPyRelation:
        """Return the rows of some of the table's local files.

        Raises:
            DamagedTable: One is not what a Parquet file begins and ends with.
        """
        import duckdb

        try:
            rows = con.read_parquet(files, union_by_name=True)
            _ = rows.columns  # asked for here, for their names may be damaged
        except (duckdb.Error, UnicodeDecodeError) as error:  # of names that are none
            raise self.damaged(str(error)) from None
        return rows

    def refuse_lost(self, files: Iterable[str], version: int) -> None:
        """Refuse a ``version`` if one of its local ``files`` is gone.

        Raises:
            VersionGone: One of an earlier version is.
            DamagedTable: One of the newest is.
        """
        lost = next((file for file in files if not Path(file).exists()), None)
        if not lost:
            return
        if version < (newest := self.open().version()):
            raise VersionGone(self.name, version, newest)
        raise self.damaged(f"{Path(lost).name} is missing")

    def columns(self, con: duckdb.DuckDBPyConnection) -> dict[str, str]:
        """Return the columns with DuckDB's types, from the table's log alone; none if it does not exist."""
        import pyarrow as pa

        table = self._opened()
        if not table:
            return {}
        rows = con.from_arrow(pa.schema(table.schema().to_arrow()).empty_table())
        return dict(zip(rows.columns, map(str, rows.types), strict=True))

    def snapshot(self, version: int | None = None) -> DatasetRef:
        """Pin the table at ``version`` (or the newest), with its row count and fingerprint."""
        at = self.open(version).version()
        return DatasetRef(self.name, at, *fingerprint(self.relation(duckdb_connection(), at)))

    def count(self, window: Window | None = None, time: str = "event_timestamp") -> int:
        """Count the rows, or those whose ``time`` lies in ``window``; 0 if the table does not exist."""
        if not self.exists():
            return 0
        rows = self.relation(duckdb_connection())
        if window:
            rows = rows.filter(window.predicate(time))
        (count,) = rows.aggregate("count(*)").fetchone() or (0,)
        return int(count)


@dataclass
class _Known:
    """The newest version of a local table that this process has opened, and what was read of its log.

    That is the ``keys`` in it; and its files, each with the ``ends`` between which its rows became known.

    It is the newest as long as its commit is the file it was, and there is none with the next number:
    to look for these takes the same time however long the log is; to open a table does not.
    """

    table: DeltaTable
    version: int
    commit: tuple[int, int, int]
    keys: Mapping[str, int | None] | None = None
    ends: tuple[list[str], Ends, Ends] | None = None


_KNOWN: dict[str, _Known] = {}
TABLES = 256
"""How many tables a process remembers."""


def _commit(uri: str, version: int) -> tuple[int, int, int] | None:
    """Return what tells a commit's file from another: its inode, time and size; None if there is none."""
    with suppress(OSError):
        found = Path(uri, "_delta_log", f"{version:020}.json").stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _known(uri: str) -> _Known | None:
    """Return what this process knows of a table, if nobody has written to it since."""
    known = _KNOWN.get(str(Path(uri).absolute()))
    if known and known.version == known.table.version():
        unchanged = _commit(uri, known.version) == known.commit and not _commit(uri, known.version + 1)
        return known if unchanged else None
    return None


def _remember(uri: str, table: DeltaTable) -> None:
    """Keep a table that was just opened, and the keys of the version before with those that came since."""
    place, version = str(Path(uri).absolute()), table.version()
    commit, before = _commit(uri, version), _KNOWN.pop(place, None)
    if "://" in uri or not commit:
        return
    keys = None
    if before and before.keys is not None and _commit(uri, before.version) == before.commit:
        since = _noted(Path(uri, "_delta_log"), range(before.version + 1, version + 1))
        keys = None if since is None else {**before.keys, **since}
    if len(_KNOWN) >= TABLES:
        _KNOWN.clear()
    _KNOWN[place] = _Known(table, version, commit, keys)


def _files_of(uri: str, table: DeltaTable, span: Window) -> list[str]:
    """Return the table's files, but for those of which Delta's statistics say that no row is of ``span``."""
    known = _known(uri)
    if not known or known.table is not table:
        files, least, most = _ends(table)
    else:
        files, least, most = known.ends = known.ends or _ends(table)
    start, end = (int(at.timestamp() * 1_000_000) for at in (span.start, span.end))
    # What is not known may be of any; and a statistic may be cut to less than a second.
    may = ~((least >= end) | (most < start - 1_000_000))
    return [files[place] for place in may.nonzero()[0]]


def _ends(table: DeltaTable) -> tuple[list[str], Ends, Ends]:
    """Return the files, and the first and last instant that a row of each became known, in µs since 1970."""
    import numpy as np
    import pyarrow as pa

    actions = table.get_add_actions(flatten=True)
    ends = []
    for name in (f"min.{AVAILABLE}", f"max.{AVAILABLE}"):
        if name in actions.schema.names:
            instants = pa.chunked_array(actions[name]).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
            # NaN where it is not known. Not by `to_numpy`, which imports pandas.
            ends.append(np.array(instants.cast(pa.float64()).to_pylist(), np.float64))
        else:
            ends.append(np.full(actions.num_rows, np.nan))
    return table.file_uris(), ends[0], ends[1]


def _noted(log: Path, versions: Iterable[int]) -> dict[str, int] | None:
    """Return the keys under which some versions were committed; None if one has no commit's file."""
    found: dict[str, int] = {}
    for version in versions:
        try:
            lines = (log / f"{version:020}.json").read_bytes().splitlines()
        except OSError:
            return None
        found |= _of_actions(lines)
    return found


def _of_actions(lines: Iterable[bytes]) -> dict[str, int]:
    actions = (json.loads(line) for line in lines if b'"txn"' in line)
    return {action["txn"]["appId"]: action["txn"]["version"] for action in actions if "txn" in action}


def _keys(uri: str) -> Mapping[str, int | None] | None:
    """Return what ``_transactions`` does, remembered for as long as nobody writes to the table."""
    known = _known(uri)
    if not known:
        return _transactions(uri)
    if known.keys is None:
        known.keys = _transactions(uri)
    return known.keys


def _transactions(uri: str) -> Mapping[str, int | None] | None:
    """Return all keys under which writes to a table were committed, with their numbers, from one look.

    Delta looks its log through for each key that it is asked for. None where the log is not
    as Delta writes it here: then it must be asked.
    """
    import pyarrow.parquet as pq
    from deltalake.exceptions import TableNotFoundError
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, PyFileSystem

    try:
        files = PyFileSystem(DeltaStorageHandler(uri))
    except TableNotFoundError:  # of a folder that is not there
        return {}
    there = files.get_file_info(FileSelector("_delta_log", allow_not_found=True))
    names = {file.base_name for file in there}
    whole = {int(name[:20]): name for name in names if CHECKPOINT.fullmatch(name)}
    begun = max(whole, default=-1)
    version = max([begun, *(int(name[:20]) for name in names if COMMIT.fullmatch(name))])
    found: dict[str, int] = {}
    if begun >= 0:
        with files.open_input_file(f"_delta_log/{whole[begun]}") as file:
            rows = pq.ParquetFile(file).read(columns=["txn"])["txn"].drop_null().to_pylist()
        found = {row["appId"]: row["version"] for row in rows}
    for number in range(begun + 1, version + 1):
        if (name := f"{number:020}.json") not in names:
            return None
        with files.open_input_file(f"_delta_log/{name}") as file:
            found |= _of_actions(file.read().splitlines())
    return found


def fingerprint(rows: duckdb.DuckDBPyRelation) -> tuple[int, str]:
    """Return how many rows there are, and a digest of them that does not depend on their order."""
    columns = quoted(*sorted(rows.columns))
    # A sum, not an XOR: two equal rows must not cancel out.
    digest = f"sum(md5_number_lower(row({columns})::VARCHAR)::HUGEINT) % (1::HUGEINT << 64)"
    count, total = rows.aggregate(f"count(*), coalesce({digest}, 0)").fetchone() or (0, 0)
    return count, f"{int(total):016x}"


def duckdb_connection(file: Path | None = None, memory: str = "") -> duckdb.DuckDBPyConnection:
    """Open a DuckDB in UTC: in memory, or at ``file``; it takes ``memory`` (such as 1GB) at most."""
    import duckdb

    config: dict[str, Any] = {"memory_limit": memory} if memory else {}
    if not file:
        # Made when something has to be spilled, and removed with the connection; by default it is in the
        # working folder, where processes would meet. A file's is beside it.
        config["temp_directory"] = f"{gettempdir()}/headrace-{uuid4().hex}"
    con = duckdb.connect(str(file or ":memory:"), config=config)
    con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")  # it would print on what others read
    return con


@contextmanager
def query_of(what: str, where: str) -> Iterator[None]:
    """Turn what DuckDB says about a query that somebody declared ``where`` into an error that names it."""
    import duckdb

    try:
        yield
    except (duckdb.ProgrammingError, duckdb.DataError) as error:
        raise InvalidQuery(what, where, str(error)) from None


UNREADABLE = re.compile(r"\"([^\"]+\.parquet)\"")


@contextmanager
def damage_explained() -> Iterator[None]:
    """Turn what DuckDB says of a page that it cannot read, when a query comes to it, into the table's error.

    Raises:
        DamagedTable: A file of a table is damaged.
        DamagedFile: Some file is.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        # What cannot be opened, as where there are too many open files, is not damaged for that.
        if type(error).__module__ != "_duckdb" or type(error).__name__ == "IOException":
            raise
        if found := UNREADABLE.search(str(error)):
            folder = next((f for f in Path(found[1]).parents if (f / "_delta_log").exists()), None)
            if folder:
                # Of a lake's table the name begins with one of these; another is named by its place.
                begins = [n for n, part in enumerate(folder.parts) if part in (*MADE_BY, "quarantine")]
                name = "/".join(folder.parts[begins[-1] :]) if begins else str(folder)
                raise Table(name, str(folder)).damaged(str(error)) from error
        if type(error).__name__ == "Error":  # of no kind of its own: of what reads Parquet's structures
            raise DamagedFile(str(error).splitlines()[0]) from error
        raise


@contextmanager
def interruptible() -> Iterator[None]:
    """Let through what ended a query from outside: Ctrl-C, a termination, a timeout.

    DuckDB reports each as a ``RuntimeError``, which would be taken for a failure that is worth another try.
    """
    try:
        yield
    except Exception as error:
        report, cause = error, error.__cause__
        while isinstance(cause, Exception):
            report, cause = cause, cause.__cause__
        # A time limit of asyncio's own, such as of a connection, is a TimeoutError caused by a cancellation.
        if cause and isinstance(report, RuntimeError):
            raise cause from None
        raise
