"""What every step shares: how a function becomes a task, which instant it is, who claims what."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from headrace import ingest
from headrace.errors import HeadraceError
from headrace.instants import plain, shown
from headrace.lake import damage_explained, interruptible
from headrace.ledger import Record
from headrace.pipeline import BeforeStart
from headrace.project import Project

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State, TaskRun

    from headrace.pipeline import Pipeline

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
LEASE = timedelta(hours=6)
EARLY = 2.0
"""Seconds that a run may begin before its time."""


def instant(as_of: datetime | None, spec: Pipeline | None = None) -> datetime:
    """Return ``as_of`` in UTC (naive means UTC), or the instant this run was scheduled for, or the present.

    The one place that reads a clock for ``as_of``: a run that starts late or is
    retried believes in the instant it was meant for. Prefect lets a run begin a fraction of a
    second early, when the window that it is meant for is still open: that is waited for.

    Raises:
        BeforeStart: ``spec`` is given, and begins later.
    """
    at = plain(as_of or flow_run.scheduled_start_time or datetime.now(UTC))
    if not as_of:
        time.sleep(max(0.0, min((at - datetime.now(UTC)).total_seconds(), EARLY)))
    if spec and at < spec.start:
        raise BeforeStart(spec.name, at, spec.start)
    return at


def run_name() -> str:
    """Name a run by its pipeline and instant, such as ``score flights 2013-04-08``."""
    given = flow_run.parameters
    return f"{flow_run.flow_name} {given['pipeline']} {shown(instant(given.get('as_of')))}"


def train_name() -> str:
    """Name a training by why it is done, or, by hand, by its instant."""
    cause = flow_run.parameters.get("cause")
    return f"train {flow_run.parameters['pipeline']} because of {cause}" if cause else run_name()


def step(name: str, *, minutes: float = 10, log_prints: bool = True) -> Callable[[F], Any]:
    """Dress a function as a task: two retries, or three of what may pass; none of what would go wrong again.

    What libraries print belongs to the run, not on the terminal.
    """
    dress = task(
        task_run_name=name,
        retries=3,
        retry_delay_seconds=[2, 10, 30],
        retry_condition_fn=_worth_retrying,
        timeout_seconds=minutes * 60,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=log_prints,
    )
    return lambda function: dress(interruptible()(damage_explained()(function)))


def _worth_retrying(_task: Any, run: TaskRun, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return error.transient if isinstance(error, HeadraceError) else run.run_count < 3


def slug(*words: str) -> str:
    """Return ``words`` as an artifact's key, which Prefect wants in small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower())


def logger() -> Any:
    """Return the run's logger."""
    return get_run_logger()


def tracked(
    done: Iterable[tuple[int, T]], sizes: Sequence[int], key: str, what: str
) -> Iterator[tuple[int, T]]:
    """Pass on what is done, by place; show each tenth of ``sizes`` in a progress artifact and in the log."""
    progress = cast(UUID, create_progress_artifact(0.0, key=slug(key), description=what.capitalize()))
    number, share, total = 0, 0, sum(sizes)
    for place, result in done:
        yield place, result
        number += sizes[place]
        before, share = share, 100 * number // total
        if share // 10 > before // 10:
            update_progress_artifact(progress, share)
            if total >= 10:
                logger().info("%3d %% of %s %s", share, f"{total:,}", what)


def announce(
    event: str, spec: Pipeline, key: str, related: list[dict[str, str]] | None = None, **payload: Any
) -> None:
    """Emit an event of a pipeline; one of the same ``key`` has the same id, however often it is emitted."""
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"headrace.pipeline.{spec.name}",
            "prefect.resource.name": spec.name,
        },
        related=related,
        payload=payload,
        id=uuid5(NAMESPACE_URL, f"headrace/{spec.name}/{key}"),
    )


def progress(project: Project, spec: Pipeline, at: datetime) -> dict[str, datetime]:
    """Return up to which instant each source is complete, of the windows that ended by ``at``."""
    return ingest.complete(spec, at, project.lake, project.ledger)


def claim(
    project: Project, spec: Pipeline, kind: str, key: str, waits: timedelta = timedelta(0)
) -> Record | None:
    """Claim a piece of work for this flow run, or return the entry that says it is done.

    ``waits`` is how long it may have to wait for a person.
    """
    return project.ledger.claim(spec.name, kind, key, holder=holder(), lease=LEASE + waits)


def finish(project: Project, spec: Pipeline, kind: str, key: str, **detail: Any) -> Record:
    """Record the work's result; return the record that stands, which is the first."""
    return project.ledger.finish(spec.name, kind, key, holder=holder(), **detail)


def give_up(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook for a run that failed or crashed: let go of its claims."""
    Project.here().ledger.give_up(flow_run.parameters["pipeline"], f"flow run {flow_run.id}")


def holder() -> str:
    """Return by what name this flow run claims its work."""
    return f"flow run {flow_run.id}"
