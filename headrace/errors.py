"""Every error headrace raises on purpose, each ending in what to do next.

HeadraceError
├── BadSetting
├── UnknownSetting
├── UnknownPipeline
├── BrokenDeclaration
├── UnknownSuite
├── BrokenSuite
├── UnsupportedExpectation
├── EmptySuite
├── SourceUnreadable
├── SourceLate
├── BeforeStart
├── EmptySpan
├── WindowsChanged
├── MissingColumns
├── MissingInputs
├── UnfitInputs
├── BadLabels
├── MissingKeys
├── BatchRejected
├── LotChanged
├── NothingLanded
├── NotInQuarantine
├── AlreadyDecided
├── NotReleasable
├── StillRejected
├── Superseded
├── InvalidQuery
├── BadFeatureRows
├── ColumnTaken
├── NotInSource
├── NotATime
├── NotOffered
├── KeysDiffer
├── NotAKey
├── NotAFeature
├── BadFeature
├── BadKey
├── NoFeastType
├── NoInstant
├── ColumnsRetyped
├── NotBuilt
├── VersionGone
├── DamagedTable
├── DamagedFile
├── UnknownPins
├── UnknownService
├── NotEnoughData
├── NoChampion
├── DamagedModel
├── StaleFeatures
├── EvictingStore
├── ParityBroken
├── ChangesWithinWindow
├── NothingToCompare
├── NothingPredicted
├── UnknownFeature
├── AlreadyClaimed
├── DamagedDatabase
├── NotClaimed
├── NotTakenUp
├── NotAProject
├── PortInUse
├── WorkerLost
├── DiskRefused
└── ServerUnreachable
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headrace.addresses import public, scrubbed
from headrace.instants import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

    from headrace.feature_store.parity import Parity
    from headrace.lake import Window
    from headrace.pipeline import Pipeline
    from headrace.quarantine import Entry


def did_you_mean(name: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """Return a question, after a space, about the one of ``known`` that is most like ``name``; or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" Did you mean `{near[0]}`?" if near else ""


class HeadraceError(Exception):
    """Base of all errors a user is expected to meet; the message says what to do.

    A ``transient`` one may not come up again when the same is tried a little later.
    """

    transient = False

    def __init__(self, message: str) -> None:
        super().__init__(scrubbed(message))

    def __reduce__(self) -> tuple[Any, ...]:
        # Else unpickling would call the class with the message alone: errors come home from Dask's workers.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class BadSetting(HeadraceError):
    """A setting is not what it may be."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        self.name, self.value, self.reason = name, public(value), scrubbed(reason, value)
        variable = name.upper() if name.startswith("prefect") else f"HEADRACE_{name.upper()}"
        super().__init__(
            f"`{variable}` is set to `{self.value}`: {self.reason.removeprefix('Value error, ')}. "
            "Set it to something else, or leave it out for the default."
        )


class UnknownSetting(HeadraceError):
    """A variable looks like a setting, and is none."""

    def __init__(self, variable: str, known: Sequence[str]) -> None:
        self.variable, self.known = variable, tuple(known)
        hint = did_you_mean(variable, known)
        super().__init__(
            f"`{variable}` is set, but there is no such setting.{hint} Correct its name, or unset it; there "
            f"are {', '.join(known)}."
        )


class UnknownPipeline(HeadraceError):
    """No declaration of that name in ``pipelines/``."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No pipeline `{name}`: `pipelines/` declares {', '.join(known) or 'none'}.{hint} "
            f"Declare it as `PIPELINE = Pipeline(...)` in `pipelines/{name}.py`."
        )


class BrokenDeclaration(HeadraceError):
    """A file of ``pipelines/`` or ``features/`` does not declare what it must, in one way or several."""

    def __init__(self, file: str, slips: Sequence[str]) -> None:
        self.file, self.slips = file, tuple(slips)
        told = "\n".join(f"  - {slip}" for slip in slips)
        explained = "`headrace/pipeline.py`" if file.startswith("pipelines/") else "Feast's documentation"
        super().__init__(
            f"`{file}` does not declare what it must:\n{told}\n"
            f"Nothing was done. Mend it; {explained} explains every field."
        )


class UnknownSuite(HeadraceError):
    """No suite of that name in ``validations/``."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No suite `{name}`: `validations/` has {', '.join(known) or 'none'}.{hint} A suite is named "
            "`<module>.<function>`; write the function, returning a `gx.ExpectationSuite`, or correct "
            "`Source.suite` in `pipelines/`."
        )


class BrokenSuite(HeadraceError):
    """The function that returns a suite fails."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(
            f"Suite `{name}` cannot be made: {reason}\nNothing was validated. Mend it in `validations/`; "
            "`docs/expectations.md` lists what it may hold."
        )


class UnsupportedExpectation(HeadraceError):
    """A suite holds an expectation that cannot be run on a batch."""

    def __init__(self, suite: str, expectation: str, reason: str) -> None:
        self.suite, self.expectation, self.reason = suite, expectation, reason
        super().__init__(
            f"Suite `{suite}` holds `{expectation}`, which cannot be run: {reason}. Nothing was validated. "
            "Take it out of the suite in `validations/`; `docs/expectations.md` lists what can be run."
        )


class EmptySuite(HeadraceError):
    """A suite expects nothing, so that every batch would pass."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        super().__init__(
            f"Suite `{suite}` expects nothing, and every batch would pass it. Nothing was validated. Add an "
            "expectation to its function in `validations/`."
        )


class SourceUnreadable(HeadraceError):
    """A source's files are missing or cannot be parsed, or what keeps them fails (``transient``)."""

    def __init__(self, source: str, files: Sequence[str], reason: str, transient: bool = False) -> None:
        self.source, self.files = source, tuple(map(public, files))
        self.reason, self.transient = scrubbed(reason, *files), transient
        super().__init__(
            f"Source `{source}` cannot be read from {', '.join(self.files)}: {self.reason.strip()}\n"
            "Nothing was landed. Mend or replace the file, then run the same ingest again."
        )


class SourceLate(HeadraceError):
    """A source has not brought a window's rows yet, and may still do so."""

    transient = True

    def __init__(self, source: str, window: str, deadline: timedelta) -> None:
        self.source, self.window, self.deadline = source, window, deadline
        super().__init__(
            f"Source `{source}` has brought no rows of {window} yet; it is asked again until {deadline} "
            "after the window's end."
        )


class BeforeStart(HeadraceError):
    """A flow was asked to believe in an instant at which its pipeline had not begun."""

    def __init__(self, pipeline: str, as_of: datetime, start: datetime) -> None:
        self.pipeline, self.as_of, self.start = pipeline, as_of, start
        super().__init__(
            f"Pipeline `{pipeline}` begins on {shown(start)} UTC, so as of {shown(as_of)} UTC there is "
            "nothing to do. Nothing was done. Give a later `as_of`, or set `start` back before any row lands."
        )


class EmptySpan(HeadraceError):
    """A lifecycle was to end before it begins."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start, self.end = start, end
        super().__init__(
            f"A lifecycle must end after it starts, but was given {shown(start)} to {shown(end)} UTC. "
            "Nothing was done. Exchange `start` and `end`, or correct them."
        )


class WindowsChanged(HeadraceError):
    """A source's rows landed by other windows than are declared now."""

    def __init__(self, source: str, before: str, now: str) -> None:
        self.source, self.before, self.now = source, before, now
        super().__init__(
            f"`{source}` has landed by windows of {before}, and is now declared with windows of {now}: "
            "its rows would land once more. Set `window` back, or give the source another name."
        )


class MissingColumns(HeadraceError):
    """A source lacks columns its declaration names."""

    def __init__(self, source: str, missing: Sequence[str], found: Sequence[str]) -> None:
        self.source, self.missing, self.found = source, tuple(missing), tuple(found)
        super().__init__(
            f"Source `{source}` lacks {', '.join(f'`{c}`' for c in missing)}; it has {', '.join(found)}. "
            "Nothing was landed. Mend the file, or the source's declaration in `pipelines/`, and run again."
        )


class MissingInputs(HeadraceError):
    """Rows lack columns the model takes."""

    def __init__(self, missing: Sequence[str], found: Sequence[str]) -> None:
        self.missing, self.found = tuple(missing), tuple(found)
        super().__init__(
            f"The model takes {', '.join(f'`{c}`' for c in missing)}, but the rows have only "
            f"{', '.join(found) or 'no columns'}. Nothing was computed. Add the columns (null where "
            "unknown), or change `columns` in the pipeline's declaration and train again."
        )


class UnfitInputs(HeadraceError):
    """Inputs of a model are of types that no model takes."""

    def __init__(self, pipeline: str, unfit: Mapping[str, str]) -> None:
        self.pipeline, self.unfit = pipeline, dict(unfit)
        told = ", ".join(f"`{column}` ({kind})" for column, kind in unfit.items())
        super().__init__(
            f"The model of pipeline `{pipeline}` is to take {told}; it takes integers, floats, decimals and "
            "booleans, and text as a category. No training set was written. Compute from it what the model "
            "shall know, such as `hour(at)`, `epoch(at)` or `len(items)`, in the spine or in the features' "
            f"SQL, or take it out of `columns` in `pipelines/{pipeline}.py`."
        )


class BadLabels(HeadraceError):
    """The truth is something else than the problem allows."""

    def __init__(self, pipeline: str, expected: str, bad: int, rows: int, first: object) -> None:
        self.pipeline, self.expected = pipeline, expected
        self.bad, self.rows, self.first = bad, rows, first
        told = "null" if first is None else repr(first)
        super().__init__(
            f"`label` of pipeline `{pipeline}` must be {expected}, but {bad:,} of {rows:,} rows hold others "
            f"(first: {told}). Nothing was written. Correct the query `label` in `pipelines/{pipeline}.py`, "
            "or its `problem`; rows without a truth the query should leave out (`WHERE … IS NOT NULL`)."
        )


class NothingToLearn(HeadraceError):
    """What happened is the same in all rows to train on."""

    def __init__(self, pipeline: str, rows: int, label: object, as_of: datetime) -> None:
        self.pipeline, self.rows, self.label, self.as_of = pipeline, rows, label, as_of
        super().__init__(
            f"All {rows:,} rows to train pipeline `{pipeline}` on, as of {shown(as_of)} UTC, have the label "
            f"{label!r}: there is nothing to tell apart. No training set was written. Look at the query "
            f"`label` in `pipelines/{pipeline}.py`, or train later, when something else has happened."
        )


class UnknownTrainer(HeadraceError):
    """What a candidate names as its trainer is none."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"No trainer `{name}`: {reason}")


class BadOutputs(HeadraceError):
    """What a trainer predicts is no prediction of its problem."""

    def __init__(self, trainer: str, reason: str) -> None:
        self.trainer, self.reason = trainer, reason
        super().__init__(
            f"Trainer `{trainer}` does not predict what its pipeline's problem asks for. {reason} Nothing of "
            "it was kept. See `Trainer` in headrace/training/trainers.py for what `predict` returns."
        )


class MissingKeys(HeadraceError):
    """Rows lack what a feature service must be given."""

    def __init__(self, service: str, missing: Sequence[str], found: Sequence[str]) -> None:
        self.service, self.missing, self.found = service, tuple(missing), tuple(found)
        super().__init__(
            f"Feature service `{service}` must be given {', '.join(f'`{c}`' for c in missing)}, but the rows "
            f"have only {', '.join(found)}. Nothing was read. Select it in the pipeline's `spine`, or take "
            "it out of the keys of the view in `features/`."
        )


class BatchRejected(HeadraceError):
    """Batches may not pass; all of each waits in quarantine, and what else there was has landed."""

    def __init__(self, rejected: Sequence[Entry]) -> None:
        self.rejected = tuple(rejected)
        shown = []
        for entry in rejected[:3]:
            broken = "\n".join(f"  - {reason}" for reason in entry.reasons)
            shown.append(f"`{entry.id}` was rejected, all {entry.of:,} rows, by `{entry.suite}`:\n{broken}")
        if more := len(rejected) - len(shown):
            shown.append(f"So {'was 1' if more == 1 else f'were {more}'} more.")
        first = rejected[0]
        again = (
            "Mend the source and run the same ingest again, or widen the suite in `validations/`, then "
            f"`headrace quarantine release {first.id}`"
            if first.table.startswith("raw/")
            else "Mend what computes it, or widen the suite in `validations/`, and run the same again"
        )
        super().__init__(
            "\n".join(shown) + f"\nIt waits in quarantine: `headrace quarantine show {first.id}`. {again}."
        )


class LotChanged(HeadraceError):
    """Two runs put different rows before the gate under one name."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(
            f"Another run has other rows of `{id}` in quarantine: source or suite changed in between. "
            "Nothing of this run's batch was landed. Run again."
        )


class NothingLanded(HeadraceError):
    """A lake is asked what it holds, and nothing was ever landed there."""

    def __init__(self, lake: str) -> None:
        self.lake = public(lake)
        super().__init__(
            f"Nothing was ever landed in {self.lake}, so that nothing can be said of it. Run `ingest`; or, "
            "if that was done, `HEADRACE_HOME` or `HEADRACE_LAKE` is not what it was then."
        )


class NotInQuarantine(HeadraceError):
    """Nothing of that name is held."""

    def __init__(self, id: str, known: Sequence[str]) -> None:
        self.id, self.known = id, tuple(known)
        hint = did_you_mean(id, known, cutoff=0.4)
        super().__init__(f"Nothing is in quarantine as `{id}`.{hint} `headrace quarantine list` shows all.")


class AlreadyDecided(HeadraceError):
    """A quarantine entry was released or dropped before."""

    def __init__(self, id: str, decision: str, at: datetime) -> None:
        self.id, self.decision, self.at = id, decision, at
        super().__init__(
            f"`{id}` was {decision} on {at:%Y-%m-%d %H:%M} UTC, and stays so. "
            f"`headrace quarantine show {id}` shows what was held."
        )


class NotReleasable(HeadraceError):
    """What is held was computed by headrace, and is computed again rather than released."""

    def __init__(self, id: str, table: str) -> None:
        self.id, self.table = id, table
        step = {"features": "materialize"}.get(table.split("/", maxsplit=1)[0], "score")
        super().__init__(
            f"`{id}` was computed, so it is not released: mend what computes `{table}`, or widen its suite "
            f"in `validations/`, and run `{step}` again. Then `headrace quarantine drop {id}`."
        )


class StillRejected(HeadraceError):
    """What is to be released does not pass; it stays in quarantine."""

    def __init__(self, id: str, reasons: Sequence[str], suite: str) -> None:
        self.id, self.reasons, self.suite = id, tuple(reasons), suite
        broken = "\n".join(f"  - {reason}" for reason in reasons)
        super().__init__(
            f"`{id}` still does not pass:\n{broken}\nIt stays in quarantine. Widen the suite `{suite}` in "
            f"`validations/`, or mend the rows: `headrace quarantine show {id} --to rows.csv`, then "
            f"`headrace quarantine release {id} --rows rows.csv`."
        )


class Superseded(HeadraceError):
    """What is to be released was brought anew by its source."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(
            f"The source of `{id}` brought that window anew, so what is held of it cannot land any more. "
            "`headrace quarantine list` shows what waits."
        )


class InvalidQuery(HeadraceError):
    """A query of a declaration cannot be run."""

    def __init__(self, what: str, where: str, reason: str) -> None:
        self.what, self.where, self.reason = what, where, reason
        super().__init__(
            f"{what} cannot be run: {reason.strip()}\nNothing was written. Mend `{where}`, then run again."
        )


class BadFeatureRows(HeadraceError):
    """A feature table's query returned rows that cannot be kept; nothing was written."""

    def __init__(self, table: str, sql: str, reason: str) -> None:
        self.table, self.sql, self.reason = table, sql, reason
        super().__init__(
            f"The query of `{table}` {reason}. It must return `event_timestamp` and `available_at` (UTC), "
            f"the first inside `[$start, $end)`. Nothing was written. Mend `{sql}`, then build it again."
        )


class ColumnTaken(HeadraceError):
    """Rows that features are asked for already have columns of the features' names."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        super().__init__(
            f"The rows to join features to already have {', '.join(f'`{c}`' for c in columns)}. Nothing was "
            "joined. Drop or rename these columns, or ask with `full_feature_names=True`."
        )


class NotInSource(HeadraceError):
    """A feature view or source names columns that its table does not have."""

    def __init__(self, view: str, table: str, missing: Sequence[str], found: Sequence[str]) -> None:
        self.view, self.table, self.missing, self.found = view, table, tuple(missing), tuple(found)
        super().__init__(
            f"`{view}` reads {', '.join(f'`{c}`' for c in missing)} of `{table}`, which has only "
            f"{', '.join(f'`{c}`' for c in found)} (case counts). Nothing was read. Correct the view's "
            "schema or `field_mapping` in `features/`, or let the table's SQL return it and build it again."
        )


class NotATime(HeadraceError):
    """A source's column of times is of no type of date or time."""

    def __init__(self, table: str, column: str, kind: str) -> None:
        self.table, self.column, self.kind = table, column, kind
        super().__init__(
            f"`{column}` of `{table}` is {kind}, not a TIMESTAMP, so nobody knows when its rows are of. "
            f"Nothing was read. Let the table hold `{column}::TIMESTAMPTZ`, or let the source in `features/` "
            "name another column."
        )


class NotOffered(HeadraceError, NotImplementedError):
    """Feast has it, and headrace's store has not."""

    def __init__(self, what: str, instead: str) -> None:
        self.what, self.instead = what, instead
        super().__init__(f"{what}: `DeltaOfflineStore` does not offer that. {instead}.")


class KeysDiffer(HeadraceError):
    """A join key is of other kinds on the two sides of a point-in-time join, such as text and a number."""

    def __init__(self, view: str, key: str, held: str, column: str, given: str) -> None:
        self.view, self.key, self.held, self.column, self.given = view, key, held, column, given
        super().__init__(
            f"The key `{key}` of `{view}` is {held}, but `{column}` of the rows to join features to is "
            f'{given}: taken for one kind, other keys would be equal, such as "01" and "1". Nothing was '
            f"joined. Cast `{column}` to {held}."
        )


class NotAKey(HeadraceError):
    """A view that goes online has a key of a type by which online stores find no rows."""

    def __init__(self, view: str, key: str, kind: str) -> None:
        self.view, self.key, self.kind = view, key, kind
        super().__init__(
            f"The key `{key}` of `{view}` is {kind}; Feast's online stores find rows by String, Bytes, "
            "Int32, Int64 and UnixTimestamp. Nothing was registered. Declare one of these in `features/` and "
            "let the table hold it, such as text, or declare the view with `online=False`."
        )


class BadKey(HeadraceError):
    """A key's value cannot be kept online as the type that its view declares."""

    def __init__(self, key: str, kind: str, reason: str) -> None:
        self.key, self.kind, self.reason = key, kind, reason
        super().__init__(
            f"A value of the key `{key}` cannot be kept online as {kind}: {reason}. No other key stands for "
            "it. Declare a type in `features/` that holds all values, such as Int64 or String, or cast them "
            "in the table's SQL."
        )


class NotAFeature(HeadraceError):
    """A view declares a feature of a type of which Feast can give no column."""

    def __init__(self, view: str, feature: str, kind: str) -> None:
        self.view, self.feature, self.kind = view, feature, kind
        super().__init__(
            f"The feature `{feature}` of `{view}` is {kind}, of which Feast gives back no column: neither "
            "training nor serving could read it. Nothing was registered. Declare another type in `features/` "
            "and let the table hold it, such as Map of text to text, or String."
        )


class BadFeature(HeadraceError):
    """A feature's value cannot be kept, or given back, as the type that its view declares."""

    def __init__(self, feature: str, kind: str, reason: str) -> None:
        self.feature, self.kind, self.reason = feature, kind, reason
        super().__init__(
            f"A value of the feature `{feature}` is none of its declared type {kind}: {reason}. It is not "
            "cut to fit, for what is served would differ from what was trained on. Declare a type in "
            "`features/` that holds all values, or cast them in the table's SQL and build it again."
        )


class NoFeastType(HeadraceError):
    """A view's field is to be inferred from a column of a type of which Feast can infer none."""

    def __init__(self, table: str, column: str, kind: str) -> None:
        self.table, self.column, self.kind = table, column, kind
        super().__init__(
            f"`{column}` of `{table}` is {kind}, of which Feast can infer no type that is served as it is. "
            "Nothing was registered. Declare fields and keys of the view in its `schema`, such as "
            f'`Field(name="{column}", dtype=Float64)`, or let the table hold another type.'
        )


class NoInstant(HeadraceError):
    """Rows to be kept by time have none."""

    def __init__(self, target: str, rows: int, of: int) -> None:
        self.target, self.rows, self.of = target, rows, of
        super().__init__(
            f"{rows:,} of the {of:,} rows for `{target}` have no `event_timestamp`. It is read by time, so "
            "they would be lost; nothing was written. Give them one, or leave them out."
        )


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


class UnknownPins(HeadraceError):
    """Versions are pinned of tables that a feature service does not read."""

    def __init__(self, service: str, unknown: Sequence[str], known: Sequence[str]) -> None:
        self.service, self.unknown, self.known = service, tuple(unknown), tuple(known)
        super().__init__(
            f"Feature service `{service}` reads {', '.join(known) or 'no tables'}, but versions are pinned "
            f"of {', '.join(unknown)}. Nothing was read. Correct the names, or take the pins that "
            "`headrace.feature_store.store.pins` returns."
        )


class UnknownService(HeadraceError):
    """No feature service of that name is registered."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No feature service `{name}` is registered; there are {', '.join(known) or 'none at all yet'}."
            f"{hint} Declare it in `features/`, or correct `feature_service` in `pipelines/`, then run "
            "`materialize`."
        )


class NotEnoughData(HeadraceError):
    """Too few labelled rows to train or to judge."""

    def __init__(self, pipeline: str, part: str, rows: int, least: int, as_of: datetime) -> None:
        self.pipeline, self.part, self.rows, self.least, self.as_of = pipeline, part, rows, least, as_of
        super().__init__(
            f"Pipeline `{pipeline}` has {rows:,} labelled rows {part} as of {as_of:%Y-%m-%d %H:%M} UTC, and "
            f"needs {least:,}. Run `cycle` first, if more is known by now, or train as of a later instant."
        )


class NoChampion(HeadraceError):
    """Scoring or monitoring was asked for before a model was released."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        super().__init__(
            f"Pipeline `{pipeline}` has no champion yet. Run the `train` flow: what it trains is released "
            "if it beats a guess from the past alone."
        )


class NotReleased(HeadraceError):
    """There is no champion yet, and what was trained to be the first is not good enough."""

    def __init__(self, pipeline: str, reason: str) -> None:
        self.pipeline, self.reason = pipeline, reason
        super().__init__(
            f"The first model of pipeline `{pipeline}` is not released, so there is nothing to predict with: "
            f"{reason} It stays registered, with its scores. Give it more to learn from (a later `--start`, "
            f"other `columns` or `candidates` in `pipelines/{pipeline}.py`), and begin again."
        )


class DamagedModel(HeadraceError):
    """The files of a model are not those that were written; nothing of them was read."""

    def __init__(self, place: str, wrong: Mapping[str, str], model: str = "") -> None:
        self.place, self.wrong, self.model = place, dict(wrong), model
        told = ", ".join(f"`{name}` {how}" for name, how in self.wrong.items())
        super().__init__(
            f"The model {model or 'in ' + place} is damaged: {told}{f', in {place}' if model else ''}. "
            "It was not loaded, for its predictions would be others. Restore the files from a backup; or let "
            "the version before serve (in MLflow, give it the alias `champion`); or run `train`, which makes "
            "a new one."
        )


class OlderModel(HeadraceError):
    """A model was written by an earlier headrace, in another form."""

    def __init__(self, place: str) -> None:
        self.place = place
        super().__init__(
            f"The model in {place} was written by an earlier headrace, in a form that is not read any more. "
            "Nothing of it was read. If it serves, take the alias `champion` from it in MLflow; then run the "
            "`train` flow."
        )


class StaleFeatures(HeadraceError):
    """Features were to be used that are not built as they would be today."""

    def __init__(self, pipeline: str, table: str, window: str, cause: str) -> None:
        self.pipeline, self.table, self.window, self.cause = pipeline, table, window, cause
        super().__init__(
            f"Features `{table}` of {window} are not up to date ({cause}), so they are not used. "
            f"Run the `materialize` flow for `{pipeline}`, then this one again."
        )


class EvictingStore(HeadraceError):
    """The online store may drop rows to make room for others, and nobody would notice."""

    def __init__(self, address: str, policy: str) -> None:
        self.address, self.policy = public(address), policy
        super().__init__(
            f"Redis at {self.address} drops keys when its memory is full (`maxmemory-policy {policy}`), and "
            "predictions would be made without their features. Nothing was brought online. Set the policy to "
            "`noeviction`: a full store then refuses what is written, and that is told."
        )


class ParityBroken(HeadraceError):
    """The online store serves other values than the point-in-time join gives."""

    def __init__(self, spec: Pipeline, window: Window, parity: Parity) -> None:
        self.pipeline, self.window, self.parity = spec.name, window, parity
        first, *others = parity.mismatches
        more = f", and {len(others)} more mismatches" if others else ""
        end = f"{window.end:%Y-%m-%dT%H:%MZ}"
        super().__init__(
            f"The online store does not serve what `{spec.name}` is trained on: of {parity.rows:,} "
            f"predictions in {window}, {first.rows:,} get `{first.view}:{first.feature}` {first.cause} ("
            f"{first.example}){more}. `headrace features parity {spec.name} --all --as-of {end}` shows all. "
            f"`headrace features refill {spec.name} --as-of {end}` fills it again from the feature tables, "
            "in place of what is there. The store keeps each key's newest row. If it has gone on past that "
            "instant, name a later one to both; windows before it can be scored if the views have the "
            "instant in their keys, as `known_hour` in `features/flights.py`."
        )


class ChangesWithinWindow(HeadraceError):
    """A view has, in the window of a prediction, a row of its keys that became known only later."""

    def __init__(self, pipeline: str, view: str, window: str, rows: int, of: int, example: str) -> None:
        self.pipeline, self.view, self.window, self.rows = pipeline, view, window, rows
        super().__init__(
            f"View `{view}` of `{pipeline}` changes while a window is open, so it cannot be served as it is "
            f"trained on: of {of:,} predictions in {window}, {rows:,} are made before a row of the same keys "
            f"became known in it ({example}). Predictions are made when a window has closed, and of each key "
            "the online store keeps the newest row only. Either let the view's SQL give each key one row, as "
            "of the window's start; or put the instant into its keys, as `known_hour` in "
            "`features/flights.py`; or make windows shorter. Nothing was brought online."
        )


class NothingToCompare(HeadraceError):
    """A window has no predictions to make, so it shows neither parity nor its lack."""

    def __init__(self, pipeline: str, window: str) -> None:
        self.pipeline, self.window = pipeline, window
        super().__init__(
            f"Pipeline `{pipeline}` has no predictions to make in {window}, so there is nothing to compare. "
            "Name an instant whose last closed window has some, with `--as-of`."
        )


class NothingPredicted(HeadraceError):
    """No predictions were made in a window that is to be drawn, or none was judged yet."""

    def __init__(self, pipeline: str, window: str) -> None:
        self.pipeline, self.window = pipeline, window
        super().__init__(
            f"Pipeline `{pipeline}` made no predictions in {window}, so there is nothing to draw. "
            "`score` makes them, from the first release on; name another window with `--at`."
        )


class UnknownFeature(HeadraceError):
    """No feature view or feature of that name is registered."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No feature view or feature `{name}` is registered.{hint} `headrace features list` shows all "
            "there are; `materialize` registers what `features/` declares."
        )


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


class DamagedDatabase(HeadraceError):
    """A database's file is no database, or not a whole one."""

    SAID = ("file is not a database", "database disk image is malformed", "file is encrypted")
    WITHOUT: Mapping[str, str] = {
        "The ledger": "move the file away: work that was done once may then be done again, and scoring waits "
        "for the next promotion",
        "MLflow's database": "move the folder `mlflow` away: the models are gone, and `train` makes a first "
        "one again",
        "Feast's online store": "move the file away: `materialize` fills it again",
    }

    def __init__(self, what: str, address: str, reason: str) -> None:
        self.what, self.address, self.reason = what, public(address), scrubbed(reason, address)
        super().__init__(
            f"{what} at {self.address} is damaged: {self.reason}. Nothing was done. Restore it from a "
            f"backup. Without one, {self.WITHOUT[what]}."
        )

    @classmethod
    def says(cls, error: BaseException) -> str:
        """Return what SQLite says of a damaged file, if that is what an error is about."""
        return next((said for said in cls.SAID if said in str(error)), "")


class NotClaimed(HeadraceError):
    """A claim is to be freed that nobody holds."""

    def __init__(self, pipeline: str, kind: str, key: str) -> None:
        super().__init__(
            f"Nobody holds a claim on {kind} {key} of `{pipeline}`: it is done, free, or was never begun. "
            "`headrace claims list` shows those that hold."
        )


class NotTakenUp(HeadraceError):
    """A drift event started no retraining."""

    def __init__(self, pipeline: str, cause: str) -> None:
        self.pipeline, self.cause = pipeline, cause
        super().__init__(
            f"No run took up the retraining of `{pipeline}` because of {cause}. Is a worker running "
            "(`make up`), and is `train` deployed with its trigger (`headrace deploy`)?"
        )


class NotAProject(HeadraceError):
    """A command was called outside a headrace project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"`{folder}` has no `prefect.yaml`. Run this from the root of your headrace project."
        )


class PortInUse(HeadraceError):
    """A service cannot listen because something else does."""

    def __init__(self, service: str, port: int, setting: str) -> None:
        self.service, self.port, self.setting = service, port, setting
        super().__init__(
            f"Port {port}, wanted by {service}, is in use. End the program that holds it, or choose another "
            f"port with {setting}."
        )


class WorkerLost(HeadraceError):
    """A Dask worker went away in the middle of work that needs all of them."""

    transient = True

    def __init__(self, workers: Sequence[str]) -> None:
        self.workers = tuple(workers)
        super().__init__(
            f"A Dask worker among {', '.join(workers)} died during collective work. Its log says why; often "
            "it ran out of memory. Nothing was kept: run the step again, if need be on larger workers."
        )


class DiskRefused(HeadraceError):
    """A disk is full, or what lies on it is not for this user."""

    SAID = ("No space left", "disk is full", "ermission denied", "Read-only file system", "readonly database")
    """How the system, SQLite, Delta and DuckDB put it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{reason.rstrip('.')}. Nothing is left half-written that anybody reads. Make room, or let this "
            "user read and write there, then run the same again: it goes on from what was written."
        )


@contextmanager
def disks_explained() -> Iterator[None]:
    """Turn the errors of full and forbidden disks, of which each library has its own, into one."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        said = [line for line in str(error).splitlines() if any(words in line for words in DiskRefused.SAID)]
        if not said:
            raise
        raise DiskRefused(said[0]) from error


class ServerUnreachable(HeadraceError):
    """A server that the work needs does not answer."""

    transient = True

    def __init__(self, service: str, address: str, reason: str) -> None:
        self.service, self.address, self.reason = service, public(address), scrubbed(reason, address)
        super().__init__(
            f"{service} does not answer at {self.address}: {self.reason}. Start it (`make up` starts Prefect "
            "and MLflow), or point headrace at a running one (see README, “Real servers”)."
        )
