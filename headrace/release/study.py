"""A study: the best values of a candidate's parameters, looked for by Optuna, the same ones each time.

Trials are asked for some at a time, in order, and fitted in parallel; what they came to is told in order,
before more are asked for. Each is drawn from what had been told by then, with a seed of its own. So neither
how many workers there are, nor who is first, nor being killed changes a single trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from headrace import cluster, spine, tracking, training
from headrace.addresses import database, revealed
from headrace.errors import HeadraceError
from headrace.instants import read
from headrace.ledger import DONE
from headrace.release.errors import NothingFound
from headrace.training import dataset
from headrace.training.errors import GaveUp
from headrace.training.trainers import losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import optuna
    from dask.distributed import Client

    from headrace.lake import DatasetRef, Lake
    from headrace.ledger import Ledger
    from headrace.pipeline import Candidate, Columns, Pipeline
    from headrace.problem import Problem
    from headrace.tracking import MLflow

KIND, AT_WORK = "study", "study at work"
LEASE = timedelta(hours=6)
AT_ONCE = 4
"""How many trials are asked for before any of them is told."""
TOLD = 8
"""How many must have been told before one is given up for having lost more than most."""
CHECKED = tuple(round(8 * 1.5**n) for n in range(14))
"""After how many rounds it is looked at whether a trial is worth going on with."""


@dataclass(frozen=True)
class Study:
    """A candidate's parameters, looked for on one training set; equal ones are the same study."""

    spec: Pipeline
    candidate: Candidate
    data: DatasetRef

    @property
    def name(self) -> str:
        """What Optuna and MLflow call it."""
        asked = [self.spec.columns.names, space_of(self.candidate), self.candidate.seed, AT_ONCE]
        what = json.dumps([asked, self.data.fingerprint, self.spec.problem.to_json()], default=str)
        return f"{self.spec.name}/{self.candidate.name}/{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    def open(self, ledger: Ledger) -> optuna.Study:
        """Open it where the ledger lies: a study that was killed goes on."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
        ledger.last(self.spec.name, KIND)  # where the ledger's database cannot be had, it says so
        url = database(revealed(ledger.url)).render_as_string(hide_password=False)
        storage = optuna.storages.RDBStorage(url)
        return optuna.create_study(
            storage=storage, study_name=self.name, direction="minimize", load_if_exists=True
        )


def copy(ledger: Ledger, into: Ledger) -> int:
    """Copy all studies beside a ledger to another one; return how many there are."""
    import optuna
    from sqlalchemy import create_engine, inspect

    old, new = (database(revealed(one.url)).render_as_string(hide_password=False) for one in (ledger, into))
    engine = create_engine(old)
    tables = inspect(engine).get_table_names()
    engine.dispose()
    if "studies" not in tables:
        return 0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    names = optuna.get_all_study_names(old)
    for name in names:
        optuna.copy_study(from_study_name=name, from_storage=old, to_storage=new)
    return len(names)


@dataclass(frozen=True)
class Tried:
    """What a trial came to: the selection's mean loss, or none if it was given up, or cannot be fitted."""

    number: int
    params: Mapping[str, Any] = field(hash=False)
    loss: float | None
    history: Mapping[str, Sequence[float]] = field(hash=False)
    seconds: float
    failed: str = ""

    @property
    def state(self) -> str:
        """How it ended, in a word."""
        return "failed" if self.failed else "given up" if self.loss is None else "done"


def space_of(candidate: Candidate) -> list[Any]:
    """Return what a study of ``candidate`` follows from, as plain values."""
    search = {name: [type(kind).__name__, asdict(kind)] for name, kind in sorted(candidate.search.items())}
    return [candidate.trainer, dict(candidate.params), search]


def tune(
    study: Study,
    trials: int,
    ledger: Ledger,
    lake: Lake,
    mlflow: MLflow,
    client: Client,
    as_of: datetime,
    holder: str,
) -> Iterator[Tried]:
    """Let there be ``trials`` trials, those of before included; yield each that is new, in order.

    Each is a run in MLflow, nested in the study's. What others had lost by the same round, of those told
    before it was asked for, decides if one is given up.

    Raises:
        AlreadyClaimed: Somebody else than ``holder`` is at it.
    """
    ledger.claim(study.spec.name, AT_WORK, study.name, holder=holder, lease=LEASE)
    try:
        yield from _trials(study, trials, ledger, lake, mlflow, client, as_of)
    finally:
        for claim in ledger.entries(study.spec.name, AT_WORK, study.name):
            if claim.holder == holder:
                ledger.free(claim)


def _trials(
    study: Study, trials: int, ledger: Ledger, lake: Lake, mlflow: MLflow, client: Client, as_of: datetime
) -> Iterator[Tried]:
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    opened, spec = study.open(ledger), study.spec
    wanted = {name: _distribution(kind) for name, kind in study.candidate.search.items()}
    rows, selection = (
        dataset.learnt(spec, study.data, lake, spans) for spans in ((spine.TRAIN,), (spine.SELECTION,))
    )
    while True:
        known = opened.get_trials(deepcopy=False)
        waiting = [trial for trial in known if trial.state == TrialState.RUNNING]
        if not waiting and len(known) >= trials:
            return
        first = min((trial.number for trial in waiting), default=len(known))
        start = first - first % AT_ONCE
        # All of them are asked for before any is told: if one has been, none is missing.
        whole = waiting and len(waiting) < len(known) - start
        for number in range(len(known), 0 if whole else min(start + AT_ONCE, trials)):
            opened.sampler = TPESampler(seed=_seed(study, number))
            opened.ask(wanted)
        due = [t for t in opened.get_trials(deepcopy=False)[start:] if t.state == TrialState.RUNNING]
        bounds = _bounds(known[:start])
        given = (study.candidate, spec.columns, spec.problem, rows, selection, bounds)
        work = [(*given, t.number, dict(t.params)) for t in due]
        done = dict(cluster.spread(client, _try, work))
        for place, trial in enumerate(due):
            tried, writer = done[place], Trial(opened, trial._trial_id)
            lost = losses(tried.history)
            for step in {*CHECKED, len(lost)} - {*trial.intermediate_values}:  # told before it was killed
                if 0 < step <= len(lost):
                    writer.report(lost[step - 1], step)
            tracking.log_trial(mlflow, spec, study.candidate, study.name, tried, study.data, as_of)
            if tried.failed:
                opened.tell(trial.number, state=TrialState.FAIL)
            elif tried.loss is None:
                opened.tell(trial.number, state=TrialState.PRUNED)
            else:
                opened.tell(trial.number, tried.loss)
            yield tried


def plots(study: Study, ledger: Ledger) -> dict[str, bytes]:
    """Return Optuna's own plots, as HTML pages by name; those that so few trials allow."""
    from optuna import visualization

    opened, found = study.open(ledger), {}
    for name in ("optimization_history", "param_importances", "intermediate_values", "slice"):
        try:
            figure = getattr(visualization, f"plot_{name}")(opened)
        except (ValueError, RuntimeError):  # of a single trial, or of parameters that never vary
            continue
        found[f"{name}.html"] = figure.to_html(include_plotlyjs="cdn").encode()
    return found


def finished(study: Study, ledger: Ledger) -> list[Tried]:
    """Return the trials that have come to their end, the best first."""
    from optuna.trial import TrialState

    ended = study.open(ledger).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [
        Tried(t.number, dict(t.params), t.value, {}, t.duration.total_seconds() if t.duration else 0.0)
        for t in ended
    ]
    return sorted(found, key=lambda tried: (tried.loss, tried.number))


def best(study: Study, ledger: Ledger) -> Tried:
    """Return the best of the trials so far.

    Raises:
        NothingFound: None has come to its end.
    """
    for tried in finished(study, ledger):
        return tried
    raise NothingFound(study.name)


def tuned(spec: Pipeline, ledger: Ledger, as_of: datetime) -> Pipeline:
    """Return ``spec`` with candidates as they were last tuned by ``as_of`` (UTC), if they were."""
    records = [record for record in ledger.entries(spec.name, KIND) if record.state == DONE]
    candidates = []
    for candidate in spec.candidates:
        space = json.loads(json.dumps(space_of(candidate), default=str))
        past = [
            record.detail
            for record in records
            if record.detail["space"] == space and read(record.detail["as_of"]) <= as_of
        ]
        found = max(past, key=lambda detail: (read(detail["as_of"]), detail["trials"]), default=None)
        candidates.append(
            replace(candidate, params={**candidate.params, **found["params"]}) if found else candidate
        )
    return replace(spec, candidates=tuple(candidates))


def _try(
    candidate: Candidate,
    columns: Columns,
    problem: Problem,
    rows: training.Rows,
    selection: training.Rows,
    bounds: Mapping[int, float],
    number: int,
    params: Mapping[str, Any],
) -> Tried:
    """Fit one trial, by one thread of a worker, and score it on the selection."""
    began = time.perf_counter()
    candidate = replace(candidate, params={**candidate.params, **params})

    def tried(loss: float | None, history: Mapping[str, Sequence[float]], failed: str = "") -> Tried:
        return Tried(number, params, loss, history, time.perf_counter() - began, failed)

    try:
        model = training.fit(candidate, rows, columns, problem, None, selection, bounds)
    except GaveUp as error:
        return tried(None, error.history)
    except (HeadraceError, OSError):  # of what all trials need: told for good, it would be another study
        raise
    except Exception as error:  # noqa: BLE001  # of one trial: what it was is told
        return tried(None, {}, f"{type(error).__name__}: {error}")
    others = selection.whole()
    lost = problem.losses(problem.encode(others["label"]), model.predict(others))
    return tried(float(lost.mean()), getattr(model.native, "history", {}))


def _bounds(told: Sequence[optuna.trial.FrozenTrial]) -> dict[int, float]:
    """Return, by round, the median of what the trials that came to their end had lost at best by then."""
    ended = [trial for trial in told if trial.state.name == "COMPLETE" and trial.intermediate_values]
    found = {}
    for step in CHECKED:
        lost = [
            min(value for at, value in trial.intermediate_values.items() if at <= step)
            for trial in ended
            if min(trial.intermediate_values) <= step
        ]
        if len(lost) >= TOLD:
            found[step] = median(lost)
    return found


def _seed(study: Study, number: int) -> int:
    told = f"{study.name}/{study.candidate.seed}/{number}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4])


def _distribution(kind: Any) -> Any:
    from optuna import distributions

    if type(kind).__name__ == "Choice":
        return distributions.CategoricalDistribution(kind.values)
    made: Any = getattr(distributions, f"{type(kind).__name__}Distribution")
    return made(kind.low, kind.high, log=kind.log)
