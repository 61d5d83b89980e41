"""What may be wrong with features: declared, built, joined, brought online and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.addresses import public
from headrace.errors import HeadraceError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.feature_store.parity import Parity
    from headrace.lake import Window
    from headrace.pipeline import Pipeline


class MissingKeys(HeadraceError):
    """Rows lack what a feature service must be given."""

    def __init__(self, service: str, missing: Sequence[str], found: Sequence[str]) -> None:
        self.service, self.missing, self.found = service, tuple(missing), tuple(found)
        super().__init__(
            f"Feature service `{service}` must be given {', '.join(f'`{c}`' for c in missing)}, but the rows "
            f"have only {', '.join(found)}. Nothing was read. Select it in the pipeline's `spine`, or take "
            "it out of the keys of the view in `features/`."
        )


class NotComputed(HeadraceError):
    """An on-demand view fails on what it is given."""

    def __init__(self, view: str, reason: str) -> None:
        self.view, self.reason = view, reason
        super().__init__(
            f"On-demand view `{view}` computes nothing of what it was given: {reason}. Ask with other "
            "values, or let its function in `features/` take such values."
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


class UnknownFeature(HeadraceError):
    """No feature view or feature of that name is registered."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No feature view or feature `{name}` is registered.{hint} `headrace features list` shows all "
            "there are; `materialize` registers what `features/` declares."
        )
