"""The declaration: one typed ``Pipeline`` says all there is to know about a model under management."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headrace.declaration import slips
from headrace.errors import BrokenDeclaration, HeadraceError, did_you_mean
from headrace.gate import Gate
from headrace.instants import plain, shown
from headrace.monitoring.rule import DriftRule, OnShift, Policy
from headrace.problem import Binary, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.sources import Call, Feedback, Files, Predictions, Query


class UnknownPipeline(HeadraceError):
    """No declaration of that name in ``pipelines/``."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No pipeline `{name}`: `pipelines/` declares {', '.join(known) or 'none'}.{hint} "
            f"Declare it as `PIPELINE = Pipeline(...)` in `pipelines/{name}.py`."
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


T = TypeVar("T")
WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class Source:
    """Where raw rows come from, and what they must be like to land.

    ``origin`` reads them. ``time`` names the column, in UTC, that says when a
    row became known: no flow believing in an earlier instant ever sees the row.
    Rows that come after their window has landed, be it empty, count from when they came;
    windows are looked at again for such rows until ``late`` after their end.
    ``deadline``, if there is one, is how long after its end a window without rows is
    waited for: its source is asked again, and what reads it waits. Then it counts as
    empty, and as overdue. Without one a window may be empty.
    ``suite`` names what a batch must pass: a function of ``validations/``; the
    columns it lists are the declared ones. A column beyond them is kept
    ``"aside"``, as JSON beside its row, until the suite lists it, or made to
    ``"land"``, or to ``"reject"`` the batch. ``keys`` identify a row: another
    one with the same keys that comes late is set aside, never landed.
    """

    name: str
    origin: Files | Query | Call | Predictions | Feedback
    time: str
    suite: str
    keys: tuple[str, ...] = ()
    window: timedelta = WEEK
    late: timedelta = 4 * WEEK
    deadline: timedelta = timedelta(0)
    new_columns: Literal["aside", "land", "reject"] = "aside"

    @property
    def table(self) -> str:
        """The raw table's name in the lake."""
        return f"raw/{self.name}"


@dataclass(frozen=True)
class FeatureTable:
    """Features computed by one SQL file, a window at a time.

    The query sees each source as a view of its name, cut to
    ``[start - lookback, end)``, and is given ``$start`` and ``$end``. It
    returns ``event_timestamp`` and ``available_at`` (UTC) beside keys and features.
    ``suite``, if named, is what a window's rows must pass before they are written.
    """

    name: str
    sql: Path
    lookback: timedelta
    window: timedelta = WEEK
    suite: str = ""

    @property
    def table(self) -> str:
        """The feature table's name in the lake."""
        return f"features/{self.name}"


@dataclass(frozen=True)
class Float:
    """Any number from ``low`` to ``high``, ends included; ``log`` if what counts are ratios."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Int:
    """A whole number from ``low`` to ``high``, ends included; ``log`` if what counts are ratios."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of ``values``: texts, numbers, booleans or None."""

    values: tuple[str | float | bool | None, ...]


@dataclass(frozen=True)
class Candidate:
    """A model to try: which trainer fits it, with which parameters.

    ``search`` are parameters to look for the best values of, which ``tune`` does; until it has been run,
    and for all other parameters, ``params`` are those it is fitted with.

    ``trainer`` is ``xgboost``, ``torch`` or ``sklearn``, one that a package offers as an entry
    point of the group ``headrace.trainers``, or the dotted path of one's own (see
    ``headrace.training.trainers.Trainer``).
    """

    name: str
    trainer: str
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    search: Mapping[str, Float | Int | Choice] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """The model's inputs, in the order it takes them.

    A number is an integer, a float, a decimal or a boolean; what a 32-bit float
    does not hold, such as infinity, is missing to the model. A category is text,
    or one of these, which then is told apart by its text. Times and lists are refused.
    """

    categorical: tuple[str, ...]
    numeric: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs: categorical ones first."""
        return self.categorical + self.numeric


@dataclass(frozen=True)
class Weights:
    """How much a row counts in learning; what judges a model counts all rows alike.

    ``column``, of the spine or a feature, holds the weight itself: no null, not below zero. A row that is
    ``half_life`` old counts half as much as a new one. Of the rows with a label that ``keep`` names
    only that share is learnt from, always the same ones, and each counts for those left out: less is
    read, and probabilities stay what they are.
    """

    column: str = ""
    half_life: timedelta | None = None
    keep: Mapping[Any, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """What things cost, in any one currency: a ``retraining``, and a ``loss`` of 1 in the problem's unit.

    By them ``headrace backtest`` says which policy is cheapest. By default a retraining is worth it if it
    saves a hundredth of a unit of loss on each of 5,000 rows.
    """

    retraining: float = 50.0
    loss: float = 1.0


@dataclass(frozen=True)
class Serving:
    """How requests are answered where features are missing.

    That is where the online store has no row for a key, or one older than its view's ttl. With ``missing``
    as ``predict``, the model predicts from nulls, as it has learnt to, and the answer names what was missing;
    with ``refuse`` it is none. ``defaults`` are taken, by feature, in place of nulls.
    """

    missing: Literal["predict", "refuse"] = "predict"
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline:
    """One model under management.

    ``start`` (UTC) is where the first window begins, on the grid or before: rows that became
    known earlier never land. ``spine`` selects, from the raw tables, one row per prediction to make:
    ``keys``, the join keys of the feature service, and ``event_timestamp``,
    the instant the prediction is made (UTC). ``problem`` says what is asked; ``label`` selects ``keys``,
    ``label``, the truth as the problem has it, and ``available_at``, the instant it was known.
    ``columns`` may name any column of the spine and any feature. ``window`` is how
    much is scored and monitored at once. Of what is known, ``train`` holds out the
    predictions of the last ``holdout`` for the gate; of several candidates it
    chooses one by those of as long before that.
    ``weights`` say how much each row counts in learning: all alike without them.
    ``drift`` says when a window has drifted, ``policy`` what calls for a retraining, and ``costs`` what that
    is worth.
    Before they are logged, predictions must be what the problem demands, and pass ``suite``, if one is named.
    ``serving`` says how requests are answered where features are missing.
    """

    name: str
    about: str
    owner: str
    start: datetime
    sources: tuple[Source, ...]
    feature_tables: tuple[FeatureTable, ...]
    feature_service: str
    keys: tuple[str, ...]
    spine: str
    label: str
    columns: Columns
    candidates: tuple[Candidate, ...]
    problem: Problem = field(default_factory=Binary)
    weights: Weights | None = None
    gate: Gate = field(default_factory=Gate)
    drift: DriftRule = field(default_factory=DriftRule)
    policy: Policy = field(default_factory=OnShift)
    costs: Costs = field(default_factory=Costs)
    holdout: timedelta = WEEK
    window: timedelta = WEEK
    suite: str = ""
    serving: Serving = field(default_factory=Serving)

    def __post_init__(self) -> None:
        if isinstance(self.start, datetime):  # else ``load`` says so, beside whatever else is wrong
            object.__setattr__(self, "start", plain(self.start))

    @property
    def selects(self) -> bool:
        """Whether a selection span is needed: to choose a candidate, or its parameters, or when to stop."""
        asks = (c.search or c.params.get("early_stopping_rounds") for c in self.candidates)
        return len(self.candidates) > 1 or any(asks)

    @property
    def watched(self) -> Columns:
        """What is watched for drift: the inputs, and what is predicted of them."""
        import pyarrow as pa

        kinds = self.problem.columns.items()
        numbers = tuple(name for name, kind in kinds if pa.types.is_floating(kind))
        classes = tuple(name for name, kind in kinds if name not in numbers)
        return Columns(self.columns.categorical + classes, self.columns.numeric + numbers)

    @property
    def raw(self) -> dict[str, str]:
        """The raw tables, as ``{view name: table name}`` for ``Lake.connect``."""
        return {source.name: source.table for source in self.sources}


def load(name: str) -> Pipeline:
    """Return the pipeline that ``pipelines/<name>.py`` declares as ``PIPELINE``.

    Raises:
        UnknownPipeline: There is no such declaration.
        BrokenDeclaration: It cannot be imported, or something it holds is not what it must be.
        BrokenSuite: A module of ``validations/`` cannot be imported.
    """
    known = declared()
    if name not in known:
        raise UnknownPipeline(name, known)
    file = f"pipelines/{name}.py"
    try:
        pipeline = import_module(f"pipelines.{name}").PIPELINE
    except Exception as error:  # it is somebody's own code
        raise BrokenDeclaration(file, [f"{type(error).__name__}: {error}"]) from error
    if not isinstance(pipeline, Pipeline):
        raise BrokenDeclaration(file, [f"`PIPELINE` must be a `Pipeline`, but is {type(pipeline).__name__}"])
    wrong = slips(pipeline)
    if pipeline.name != name:
        wrong.append(f"`name` must be `{name}`, as its file, but is `{pipeline.name}`")
    wrong = wrong or _collisions(pipeline, [other for other in known if other != name])
    wrong = wrong or _fed(pipeline, known)
    if wrong:
        raise BrokenDeclaration(file, wrong)
    return pipeline


def _collisions(pipeline: Pipeline, others: Sequence[str]) -> list[str]:
    """Say of what pipelines share, by name, if they mean the same: it lands, and is built, once for all."""
    found = []
    for other in others:
        shared = _of(other, _by_table) or {}
        for what, own in (("sources", pipeline.sources), ("feature_tables", pipeline.feature_tables)):
            for thing in own:
                if shared.get(thing.table, thing) != thing:
                    found.append(
                        f"`{what}` names `{thing.name}`, as `{other}` does, but declares it otherwise: "
                        "declare it once, in a module that both import, or give it another name"
                    )
    return found


def _fed(pipeline: Pipeline, known: Sequence[str]) -> list[str]:
    """Say what is wrong with the sources that pipelines predict, or are told of what they predicted."""
    from headrace.sources import Feedback, Predictions

    found = []
    for i, source in enumerate(pipeline.sources):
        place, origin = f"`sources[{i}].origin`", source.origin
        if isinstance(origin, Feedback):
            if origin.pipeline not in known:
                found.append(
                    f"{place} names pipeline `{origin.pipeline}`, but pipelines/ has {', '.join(known)}"
                )
            if source.time != "told_at":
                found.append(f"`sources[{i}].time` must be `told_at`, but is `{source.time}`")
        if not isinstance(origin, Predictions):
            continue
        if origin.pipeline not in known:
            found.append(f"{place} names pipeline `{origin.pipeline}`, but pipelines/ has {', '.join(known)}")
        elif circle := _circle(pipeline.name, origin.pipeline):
            found.append(f"{place} feeds on itself: {' ▶ '.join(circle)}")
        elif not (logged := _of(origin.pipeline, _logged)):
            found.append(f"{place} names pipeline `{origin.pipeline}`, which is broken: mend that one first")
        else:
            if strange := [column for column in origin.columns if column not in logged]:
                found.append(f"{place} names {', '.join(strange)}, of which `{origin.pipeline}` logs nothing")
            if source.time != "predicted_at":
                found.append(f"`sources[{i}].time` must be `predicted_at`, but is `{source.time}`")
    return found


def _circle(name: str, fed_by: str, via: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the way from ``name``, which is fed by another, back to it; nothing if there is none."""
    from headrace.sources import Predictions

    way = (*via, name)
    if fed_by in way:
        return (*way, fed_by)
    above = _of(fed_by, lambda spec: [source.origin for source in spec.sources])
    origins = [origin for origin in above or () if isinstance(origin, Predictions)]
    return next(filter(None, (_circle(fed_by, origin.pipeline, way) for origin in origins)), ())


def _by_table(spec: Pipeline) -> dict[str, Source | FeatureTable]:
    things: tuple[Source | FeatureTable, ...] = (*spec.sources, *spec.feature_tables)
    return {thing.table: thing for thing in things}


def _logged(spec: Pipeline) -> set[str]:
    """Return the columns that a pipeline's prediction log has, but for those that headrace adds."""
    return {*spec.keys, *spec.columns.names, *spec.problem.columns}


def _of(name: str, read: Callable[[Pipeline], T]) -> T | None:
    """Return what ``read`` makes of another pipeline; None if it is broken: loading it tells."""
    try:
        return read(import_module(f"pipelines.{name}").PIPELINE)
    except Exception:  # noqa: BLE001  # it is somebody's own code
        return None


def declared() -> list[str]:
    """Return the names of the pipelines that ``pipelines/`` declares."""
    places = import_module("pipelines").__path__
    files = [file for place in places for file in Path(place).glob("[!_]*.py")]
    return sorted(file.stem for file in files)
