"""Rows from files: CSV, JSON lines or Parquet, on disk or in an object store."""

from __future__ import annotations

import csv
import re
import zlib
from codecs import getincrementaldecoder
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.sources.errors import MissingColumns, SourceUnreadable
from headrace.sources.rows import (
    INSTANT,
    Part,
    create_view,
    described,
    explained,
    family,
    must_be_instant,
    widest,
    within,
)
from headrace.sql import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import duckdb

    from headrace.lake import Window


@dataclass(frozen=True)
class Files:
    """CSV, JSON lines or Parquet: ``{view: place}``, or a function that returns such.

    A place is a path, a glob (``*``, ``**``) or such a URI of an object store
    (``s3://…``, through fsspec). CSV is UTF-8 with a header line; ``NA`` and empty
    are null; times not in ISO form stay text. CSV and JSON lines may be gzipped.
    Whole numbers are kept digit by digit: beyond 64 bits as decimals, beyond 38 digits as text.

    ``select`` is a DuckDB query over the views. Files of the first view that have
    not the schema of most are read as parts of their own, so ``select`` must take
    its rows one by one; the other views are there to be joined to it.
    """

    files: Mapping[str, str | Path] | Callable[[], Mapping[str, str | Path]] = field(repr=False)
    select: str = ""

    def read(self, con: duckdb.DuckDBPyConnection, name: str, time: str, span: Window) -> list[Part]:
        """Fill ``con`` (in UTC) with a table per schema, of the rows whose ``time`` is in ``span`` or null.

        ``name`` is the source's, for errors. The first part has the schema of most
        files; a part may have no rows, and JSON lines without a byte give no part.
        ``time`` is made an instant; in later parts it keeps its type where it cannot.

        Raises:
            SourceUnreadable: A file is missing, cannot be parsed, is not UTF-8 or names a column twice, or
                ``time`` holds no instants.
            MissingColumns: No file has a column that ``select`` or ``time`` names.
        """
        files = self.files() if callable(self.files) else self.files
        places = [str(place) for place in files.values()]
        if not self.select and len(files) != 1:
            raise SourceUnreadable(name, places, "`select` must say how to join several files")
        view, *lookups = files
        select = self.select or f"FROM {quoted(view)}"
        needed = self.select or f"SELECT {quoted(time)} FROM {quoted(view)}"
        with explained(name, places):
            groups, *others = [_groups(con, opened(con, name, place)) for place in places]
            for lookup, place, alike in zip(lookups, places[1:], others, strict=True):
                if not alike:
                    raise SourceUnreadable(name, [place], "it holds nothing")
                if len({(c, t) for group in alike for c, t in group.types.items()}) > len(_columns(alike)):
                    raise SourceUnreadable(name, [place], "its files disagree on the type of a column")
                create_view(con, lookup, " UNION ALL BY NAME ".join(group.sql({}) for group in alike))
            parts: list[Part] = []
            for group in groups:
                found = [*group.types, *(column for alike in others for column in _columns(alike))]
                lacking = _bind(con, name, view, needed, group, groups, found)
                table = f"part{len(parts)}"
                _keep(con, name, table, select, time, span, strict=group is groups[0])
                parts.append(Part(table, tuple(lacking), tuple(found)))
        return parts


def look(con: duckdb.DuckDBPyConnection, name: str, place: str) -> None:
    """Make the view ``name`` of all rows at a place, typed as a source would have them.

    Raises:
        SourceUnreadable: Nothing is there, or it cannot be read; its files disagree on the type of a column.
    """
    with explained(name, [place]):
        groups = _groups(con, opened(con, name, place))
        if not groups:
            raise SourceUnreadable(name, [place], "it holds nothing")
        if len({pair for group in groups for pair in group.types.items()}) > len(_columns(groups)):
            raise SourceUnreadable(name, [place], "its files disagree on the type of a column")
        create_view(con, name, " UNION ALL BY NAME ".join(group.sql({}) for group in groups))


CSV = """read_csv({files}, delim = '%s', quote = '"', escape = '"', header = true,
    nullstr = ['NA', ''], dateformat = '%%Y-%%m-%%d', {how})"""
JSON = "read_json({files}, format = 'newline_delimited', dateformat = '%Y-%m-%d', {how})"
PARQUET = "read_parquet({files})"

TEXT = r"\.(csv|jsonl?)(\.gz)?$"
ENCODINGS = {
    "UTF-32": rb"\xff\xfe\0\0|\0\0\xfe\xff|[^\0]\0\0\0|\0\0\0[^\0]",
    "UTF-16": rb"\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]",
}
"""How text in another encoding than UTF-8 begins: with its mark, or with a plain character."""


@dataclass(frozen=True)
class _File:
    """A file, the DuckDB function that reads it, and its columns when it is read by itself."""

    path: str
    reader: str
    columns: dict[str, str]

    def scan(self, types: Mapping[str, str]) -> str:
        """Return the call that reads ``{files}`` of these columns; Parquet has its own types."""
        columns = ", ".join(f"{literal(column)}: {literal(kind)}" for column, kind in types.items())
        return self.reader.replace("{how}", f"auto_detect = false, columns = {{{columns}}}")


@dataclass(frozen=True)
class _Group:
    """Files of one schema, and the types that their columns take."""

    files: list[_File]
    types: dict[str, str]

    def sql(self, lacking: Mapping[str, str]) -> str:
        """Return a query for the rows of all files, with nulls for the columns that are ``lacking``."""
        spelled = {column.lower(): column for column in self.types}
        together: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for file in self.files:
            names = {column: spelled[column.lower()] for column in file.columns}
            casts = [f"{quoted(c)}::{self.types[name]} AS {quoted(name)}" for c, name in names.items()]
            casts += [f"NULL::{kind} AS {quoted(column)}" for column, kind in lacking.items()]
            scan = file.scan({column: self.types[name] for column, name in names.items()})
            own = str(file.columns) if file.reader == PARQUET else ""
            together[f"SELECT {', '.join(casts)} FROM {scan}", own].append(literal(file.path))
        return " UNION ALL BY NAME ".join(
            select.replace("{files}", f"[{', '.join(paths)}]") for (select, _), paths in together.items()
        )


def opened(con: duckdb.DuckDBPyConnection, source: str, place: str) -> list[_File]:
    """Return the files at ``place`` with their columns; JSON lines of no bytes are left out."""
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(place)
        store.invalidate_cache()  # a process that lives long must see new files
        infos = {path: store.info(path)} if store.isfile(path) else store.glob(path, detail=True)
        sizes = {path: info["size"] for path, info in sorted(infos.items()) if info["type"] == "file"}
        # A signed link's query is no part of the name.
        names = {path: path if "file" in store.protocol else path.partition("?")[0] for path in sizes}
        heads = {path: store.head(path, 2**16) for path, name in names.items() if re.search(TEXT, name)}
    except Exception as error:  # noqa: BLE001 - of that store's library, and with secrets
        reason = f"{type(error).__name__}: {error}"
        raise SourceUnreadable(source, [place], reason, transient=True) from None
    if not sizes:
        raise SourceUnreadable(source, [place], "no such file")
    local = "file" in store.protocol
    if not local and place.partition("://")[0] not in con.list_filesystems():
        con.register_filesystem(store)
    files = []
    for path, size in sizes.items():
        uri = path if local else store.unstrip_protocol(path)
        head = _plain(source, uri, heads[path]) if path in heads else b""
        if re.search(r"\.csv(\.gz)?$", names[path]):
            files.append(_csv(con, source, uri, head))
        elif names[path].endswith(".parquet"):
            files.append(_parquet(con, source, uri))
        elif path not in heads:
            raise SourceUnreadable(source, [uri], f"no reader for `{Path(names[path]).suffix}` files")
        elif size:
            columns = described(con, JSON.format(files=literal(uri), how="sample_size = -1"))
            # As a plain TIMESTAMP, DuckDB's JSON reader drops the offset of a time.
            instants = {c: re.sub(r"\bTIMESTAMP\b(?! WITH)", INSTANT, kind) for c, kind in columns.items()}
            files.append(_exact(con, _File(uri, JSON, instants)))
    return files


def _plain(source: str, path: str, head: bytes) -> bytes:
    """Return the first bytes of a text file, unpacked, if they may be UTF-8."""
    try:
        head = zlib.decompressobj(wbits=31).decompress(head, 2**16) if path.endswith(".gz") else head
    except zlib.error as error:
        raise SourceUnreadable(source, [path], str(error)) from None
    for encoding, first in ENCODINGS.items():
        if re.match(first, head, re.DOTALL):
            reason = f"it is {encoding}, and must be UTF-8: `iconv -f {encoding} -t UTF-8` converts it"
            raise SourceUnreadable(source, [path], reason)
    try:
        getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        line = head.count(b"\n", 0, error.start) + 1
        latin = "if it is Latin-1, `iconv -f ISO-8859-1 -t UTF-8` converts it"
        raise SourceUnreadable(source, [path], f"line {line} is not UTF-8: {latin}") from None
    return head


def _named_once(source: str, path: str, doubled: Iterable[str]) -> None:
    """Refuse ``doubled`` names of columns: which is which, DuckDB would make up."""
    if names := ", ".join(f"`{name}`" for name in doubled):
        raise SourceUnreadable(source, [path], f"it has more than one column of the name {names}")


def _parquet(con: duckdb.DuckDBPyConnection, source: str, path: str) -> _File:
    """Look at the file's own schema for its columns; a second ``name`` DuckDB calls ``name_1``."""
    columns = described(con, PARQUET.replace("{files}", literal(path)))
    if any(re.search(r"_\d+$", column) for column in columns):
        named = {name for (name,) in con.sql(f"SELECT name FROM parquet_schema({literal(path)})").fetchall()}
        _named_once(source, path, (re.sub(r"_\d+$", "", column) for column in columns if column not in named))
    return _File(path, PARQUET, columns)


def _csv(con: duckdb.DuckDBPyConnection, source: str, path: str, head: bytes) -> _File:
    """Look at the whole file for the types of its columns; its first line tells the delimiter."""
    import duckdb

    start = head.decode("utf-8-sig", errors="replace")
    header = start.split("\n", 1)[0].strip("\r")
    if not header:
        raise SourceUnreadable(source, [path], "it has no header line")
    delimiter = max(",;\t|", key=header.count)
    names = next(csv.reader(StringIO(start, newline=""), delimiter=delimiter))
    counts = Counter(name.lower() for name in names if name)
    _named_once(source, path, (name for name, count in counts.items() if count > 1))
    file = _File(path, CSV % delimiter, {})
    sniffed = file.reader.replace("read_csv", "sniff_csv")
    sniff = sniffed.format(files=literal(path), how="sample_size = -1, ignore_errors = true")
    try:
        (columns, stamps) = con.execute(f"SELECT Columns, TimestampFormat FROM {sniff}").fetchall()[0]
    except duckdb.InvalidInputException:
        # Reading says in which line a file is broken; sniffing does not.
        scan = file.scan({f"column{i}": "VARCHAR" for i in range(len(names))})
        con.execute(f"SELECT count(*) FROM {scan.replace('{files}', literal(path))}")
        raise
    types = {column["name"]: column["type"] for column in columns}
    if stamps:  # not ISO: which number is the day would be guessed file by file
        types = {column: "VARCHAR" if kind == "TIMESTAMP" else kind for column, kind in types.items()}
    return _exact(con, _File(path, file.reader, types))


def _exact(con: duckdb.DuckDBPyConnection, file: _File) -> _File:
    """Return ``file`` with types that keep all digits of whole numbers beyond 64 bits, which may be names.

    DuckDB would read them as floating point.
    """
    floats = [column for column, kind in file.columns.items() if kind == "DOUBLE"]
    near = list(_whole(con, file, floats, " LIMIT 2048"))  # most show a fraction at once
    return _File(file.path, file.reader, file.columns | _whole(con, file, near))


def _whole(
    con: duckdb.DuckDBPyConnection, file: _File, columns: Sequence[str], first: str = ""
) -> dict[str, str]:
    """Return those of ``columns`` that hold whole numbers only, with the type that takes them all."""
    if not columns:
        return {}
    scan = file.scan({c: "VARCHAR" if c in columns else kind for c, kind in file.columns.items()})
    rows = f"(FROM {scan.replace('{files}', literal(file.path))}{first})"
    asked = [
        f"[count_if(regexp_full_match(trim({name}), '[+-]?[0-9]+')) = count({name}), "
        f"count(TRY_CAST({name} AS DECIMAL(38, 0))) = count({name})]"
        for name in map(quoted, columns)
    ]
    found = zip(columns, con.sql(f"SELECT {', '.join(asked)} FROM {rows}").fetchall()[0], strict=True)
    return {column: "DECIMAL(38,0)" if fit else "VARCHAR" for column, (whole, fit) in found if whole}


def _groups(con: duckdb.DuckDBPyConnection, files: Sequence[_File]) -> list[_Group]:
    """Sort files by schema, that of most files first; a column that is null throughout is of any type."""
    seen: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for column, kind in file.columns.items():
            seen[column.lower()].add(family(kind))
    disputed = {column for column, families in seen.items() if len(families) > 1}
    blank = {file.path: _blank(con, file, disputed) for file in files}
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        for column, kind in file.columns.items():
            if column.lower() not in blank[file.path]:
                votes[column.lower()][family(kind)] += 1
                kinds[column.lower(), family(kind)].append(kind)
    spelled: dict[str, str] = {}
    alike: dict[frozenset[tuple[str, str]], list[_File]] = defaultdict(list)
    for file in files:
        schema = set()
        for column, kind in file.columns.items():
            name = spelled.setdefault(column.lower(), column).lower()
            usual = votes[name].most_common(1)[0][0] if votes[name] else "VARCHAR"
            # Text in CSV may look like numbers in one file.
            text = usual == "VARCHAR" and file.reader not in (JSON, PARQUET)
            schema.add((name, usual if text or name in blank[file.path] else family(kind)))
        alike[frozenset(schema)].append(file)
    groups = []
    for families, same in sorted(alike.items(), key=lambda item: -len(item[1])):
        types = {name: widest(con, kinds[name, family]) for name, family in families}
        order = {spelled[column.lower()]: types[column.lower()] for column in same[0].columns}
        groups.append(_Group(same, order))
    return groups


def _columns(groups: Sequence[_Group]) -> dict[str, str]:
    """Return the columns of all groups, typed as in the first group that has them."""
    return {column: kind for group in reversed(groups) for column, kind in group.types.items()}


def _blank(con: duckdb.DuckDBPyConnection, file: _File, columns: set[str]) -> set[str]:
    """Return those of ``columns``, in lower case, that hold nothing but nulls."""
    there = [column for column in file.columns if column.lower() in columns]
    if not there:
        return set()
    scan = file.scan(file.columns).replace("{files}", literal(file.path))
    counts = con.sql(f"SELECT {', '.join(f'count({quoted(c)})' for c in there)} FROM {scan}").fetchall()[0]
    return {column.lower() for column, count in zip(there, counts, strict=True) if not count}


def _bind(
    con: duckdb.DuckDBPyConnection,
    source: str,
    view: str,
    select: str,
    group: _Group,
    groups: Sequence[_Group],
    found: Sequence[str],
) -> list[str]:
    """Make ``view`` of a group's files such that ``select`` is valid; return the columns made up for it."""
    import duckdb

    known = {column.lower(): (column, kind) for column, kind in _columns(groups).items()}
    lacking = {column: kind for column, kind in groups[0].types.items() if column not in group.types}
    while True:
        create_view(con, view, group.sql(lacking))
        try:
            con.sql(select)
        except duckdb.BinderException as error:
            named = re.search(r'column (?:named )?"([^"]+)"', str(error), re.IGNORECASE)
            missing = named[1].lower() if named else ""
            if not named or missing in (column.lower() for column in (*found, *lacking)):
                raise
            if missing not in known:
                raise MissingColumns(source, [named[1]], found) from None
            column, kind = known[missing]
            lacking[column] = kind
        else:
            return list(lacking)


def _keep(
    con: duckdb.DuckDBPyConnection,
    source: str,
    table: str,
    select: str,
    time: str,
    span: Window,
    strict: bool,
) -> None:
    """Make ``table`` of the rows of ``select`` in ``span``, with ``time`` as an instant.

    Unless ``strict``, a ``time`` that cannot be cast stays as it is, and a row
    whose ``time`` is no instant counts as one without.
    """
    import duckdb

    types = described(con, f"({select}\n)")
    column = quoted(time)
    if time not in types:
        raise MissingColumns(source, [time], list(types))
    try:
        must_be_instant(source, time, types[time])
        rows = f"SELECT * REPLACE ({column}::{INSTANT} AS {column}) FROM ({select}\n)"
        con.execute(f"CREATE OR REPLACE TABLE {table} AS FROM ({rows}) WHERE {within(span, column)}")
    except (SourceUnreadable, duckdb.ConversionException):
        if strict:
            raise
        near = f"TRY_CAST({column}::VARCHAR AS {INSTANT})"
        con.execute(f"CREATE OR REPLACE TABLE {table} AS FROM ({select}\n) WHERE {within(span, near)}")
