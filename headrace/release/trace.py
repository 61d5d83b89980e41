"""From a prediction back to the raw rows that it came from, by what was noted on the way."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from headrace.instants import shown
from headrace.lake import AVAILABLE, Lake, Window, edge, windows
from headrace.ledger import DONE
from headrace.release.errors import UnknownPrediction
from headrace.release.promotion import PROMOTION, champions
from headrace.serving import journal
from headrace.serving.ids import instant_of
from headrace.sources.feedback import served_by
from headrace.sources.predictions import log_of
from headrace.sql import among, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from headrace.ledger import Ledger
    from headrace.pipeline import FeatureTable, Pipeline

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
AT = "event_timestamp"


@dataclass(frozen=True)
class Step:
    """One step back: what it is, facts about it, and what it came from in turn."""

    what: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    of: tuple[Step, ...] = ()


def trace(id: str, load: Callable[[str], Pipeline], lake: Lake, ledger: Ledger, home: Path) -> Step:
    """Trace a prediction, of a request or a batch: version, verdict, data, code; features, raw rows, batches.

    Neither registry nor online store are asked: the ledger has the receipt, the lake has the rows. ``load``
    returns a pipeline by its name; ``home`` has what is not in the lake yet.

    Raises:
        UnknownPrediction: There is none of that id, in the lake or on this machine's disk.
    """
    if not UUID.fullmatch(id):
        raise UnknownPrediction(id, "an id is a UUID, as the answer gave it")
    name, row, where = _found(id, lake, home)
    spec = load(name)
    given = {key: value for key, value in row.items() if key not in spec.problem.columns}
    facts = {
        "predicted": ", ".join(f"{column} {row[column]}" for column in spec.problem.columns),
        "asked": f"{row['requested_at']:%Y-%m-%d %H:%M:%S.%f} UTC",
        "about": ", ".join(f"{key} {row[key]}" for key in spec.keys),
        "at": f"{shown(row[AT])} UTC",
        "missing": ", ".join(row["missing"] or ()) or "nothing",
        "logged": where,
    }
    with lake.connect({}) as con:
        back = (
            _model(spec, row["model_version"], ledger),
            *_features(spec, given, lake, con),
            *_asked(spec, given, lake, con),
        )
    return Step(f"prediction {id} of {name}", facts, back)


def _found(id: str, lake: Lake, home: Path) -> tuple[str, dict[str, Any], str]:
    """Return whose prediction it is, its row, and where that lies."""
    at = instant_of(id)
    window = Window(at - timedelta(seconds=1), at + timedelta(seconds=1))  # an id has milliseconds
    logs = [(table, served_by(""), AVAILABLE) for table in lake.below("served")]
    logs += [(table, log_of(""), AT) for table in lake.below("predictions")]
    with lake.connect({}) as con:
        for table, below, time in logs:
            rows = lake.table(table).relation(con, span=window)
            if "prediction_id" not in rows.columns:  # of an earlier release
                continue
            found = rows.filter(f"{window.predicate(time)} AND prediction_id = {literal(id)}")
            if of := _rows(found):
                where = f"{table}@v{lake.table(table).open().version()}"
                return table.removeprefix(below), {"requested_at": of[0][AVAILABLE], **of[0]}, where
    for file in sorted((home / "served").glob("*/*.jsonl")):
        if id.encode() in file.read_bytes():
            for table, lines in journal.read(file).items():
                for row in lines.to_pylist():
                    if row.get("prediction_id") == id:
                        return table.removeprefix(served_by("")), row, f"{file}, on its way to {table}"
    raise UnknownPrediction(
        id, f"neither the lake's tables served/… and predictions/… nor {home / 'served'} has it"
    )


def _model(spec: Pipeline, version: int, ledger: Ledger) -> Step:
    promoted = [one for one in ledger.entries(spec.name, PROMOTION, str(version)) if one.state == DONE]
    serving = champions(spec, ledger)
    what = f"model {spec.name}@{version}" + (", champion" if serving[-1:] == [version] else "")
    if not promoted:
        return Step(what, {"verdict": "none that promoted it; `headrace models show` has what is known"})
    detail = promoted[0].detail
    facts = {"as of": f"{shown(datetime.fromisoformat(detail['as_of']))} UTC", "verdict": detail["reason"]}
    if receipt := detail.get("receipt"):
        facts["receipt"] = receipt["sha256"]
        facts["model's digest"] = receipt["model"]
        facts["code"] = receipt.get("code", "")
    facts["promoted by"] = promoted[0].holder
    data = receipt["data"] if receipt else []
    made = tuple(
        Step(f"{table}@v{number}", {"rows": f"{rows:,}", "fingerprint": digest})
        for table, number, rows, digest in data
    )
    return Step(what, facts, made)


def _features(
    spec: Pipeline, given: Mapping[str, Any], lake: Lake, con: DuckDBPyConnection
) -> Iterator[Step]:
    """Yield the row of each feature table that was, or would be, joined to what was asked."""
    for table in spec.feature_tables:
        columns = [column.name for column in lake.table(table.table).open().schema().fields]
        ours = {*_values(spec, columns), AT, AVAILABLE}
        keys = [name for name in columns if name in given and name not in ours]
        features = [name for name in columns if name in spec.columns.names and name not in keys]
        at, asked = given[AT], given["requested_at"]
        wanted = [f"{quoted(key)} IS NOT DISTINCT FROM {_literal(given[key])}" for key in keys]
        wanted.append(f"{AT} <= {_literal(at)}")
        rows = lake.table(table.table).relation(con).filter(" AND ".join(wanted))
        found = _rows(rows.order(f"{AT} DESC, {AVAILABLE} DESC").limit(1))
        version = lake.table(table.table).open().version()
        what, keyed = f"{table.table}@v{version}", ", ".join(f"{key} {given[key]}" for key in keys)
        if not found:
            yield Step(what, {"row of": keyed, "found": "none"})
            continue
        [row] = found
        changed = [name for name in features if row[name] != given.get(name) and given.get(name) is not None]
        facts = {
            "row of": keyed,
            "happened": f"{shown(row[AT])} UTC",
            "known": f"{shown(row[AVAILABLE])} UTC",
        }
        facts["values"] = ", ".join(f"{name} {row[name]}" for name in features)
        if row[AVAILABLE] > asked:
            facts["served"] = "no: it became known later"
        elif changed:
            facts["served"] = f"{', '.join(changed)} otherwise: the table was built again since"
        yield Step(what, facts, tuple(_raw(spec, table, row[AT], lake, con)))


def _values(spec: Pipeline, columns: list[str]) -> set[str]:
    """Return the columns of a feature table that are features, not keys: what the spine does not give."""
    asked = set(spec.keys) | set(re.findall(r"\w+", spec.spine))
    return {name for name in columns if name in spec.columns.names and name not in asked}


def _raw(
    spec: Pipeline, table: FeatureTable, at: datetime, lake: Lake, con: DuckDBPyConnection
) -> Iterator[Step]:
    """Yield the raw tables that a window of features was computed from, with the rows that it saw."""
    start = edge(at, table.window)
    seen = Window(start - table.lookback, start + table.window)
    for source in spec.sources:
        if source.name in among(table.sql.read_text(), spec.raw):
            rows = lake.table(source.table).relation(con, span=seen).filter(seen.predicate(AVAILABLE))
            [(count,)] = rows.aggregate("count(*)").fetchall()
            batches = [str(one) for one in windows(edge(seen.start, source.window), seen.end, source.window)]
            held = lake.table(source.table).held(batches)
            passed = ", ".join(f"{name} ({rows:,} rows)" for name, rows in held.items())
            facts = {
                "rows seen": f"{count:,}, known in {seen}",
                "batches": passed,
                "checked by": source.suite,
            }
            yield Step(f"{source.table}@v{lake.table(source.table).open().version()}", facts)


def _asked(spec: Pipeline, given: Mapping[str, Any], lake: Lake, con: DuckDBPyConnection) -> Iterator[Step]:
    """Yield the raw row that the spine asks about, if there is one."""
    for source in spec.sources:
        if source.name not in among(spec.spine, spec.raw):
            continue
        rows = lake.table(source.table).relation(con)
        keys = [key for key in spec.keys if key in rows.columns]
        if not keys:
            continue
        wanted = (f"{quoted(key)} IS NOT DISTINCT FROM {_literal(given[key])}" for key in keys)
        found = _rows(rows.filter(" AND ".join(wanted)))
        version = lake.table(source.table).open().version()
        if not found:
            yield Step(
                f"{source.table}@v{version}", {"found": "none: it was asked about what has not landed"}
            )
        for row in found:
            start = edge(row[source.time], source.window)
            key = str(Window(start, start + source.window))
            held = lake.table(source.table).held([key])
            facts = {
                "known": f"{shown(row[AVAILABLE])} UTC",
                "batch": f"{key}, of which {held[key]:,} rows passed" if key in held else key,
                "checked by": source.suite,
            }
            yield Step(f"{source.table}@v{version}", facts)


def _rows(found: DuckDBPyRelation) -> list[dict[str, Any]]:
    """Return rows by column; not by way of Arrow, which imports pandas for that."""
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return f"TIMESTAMPTZ '{value.isoformat()}'"
    return literal(value) if isinstance(value, str) else str(value)
