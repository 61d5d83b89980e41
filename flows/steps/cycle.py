"""What a cycle does beside its parts: which instants are due, who has done them, what came of it."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import MissingResult
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Crashed

from flows.steps.common import finish, logger
from flows.steps.scoring import released
from headrace.instants import plain, read, shown, stamp
from headrace.lake import edge, windows
from headrace.project import Project
from headrace.serving import log

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State

    from headrace.pipeline import Pipeline


MANY = 20
"""Files of a table that are few enough to be read one by one."""


def present() -> datetime:
    """Return the present (UTC)."""
    return plain(datetime.now(UTC))


def up_to_date(project: Project, spec: Pipeline, at: datetime) -> bool:
    """Say, also in the log, whether a cycle has brought the pipeline up to date as of ``at`` or later."""
    last = project.ledger.last(spec.name, "cycle")
    if not last or read(last.key) < at:
        return False
    logger().info("Nothing to do: %s brought it up to date as of %s UTC", last.holder, shown(read(last.key)))
    return True


def catching_up(project: Project, spec: Pipeline, at: datetime) -> list[datetime]:
    """Return the ends of the windows that closed and are not predicted yet, and ``at`` for the last.

    An online store keeps each key's newest row: windows are predicted one after the
    other, each from the store as it was at its end.
    """
    since = released(project, spec)
    if since is None:
        logger().info(
            "No model of %s is released yet, so nothing is scored: `train` releases the first", spec.name
        )
        return [at]
    since = log.reached(spec, project.lake, since, at)
    if judged := project.ledger.last(spec.name, "judgement"):
        since = max(since, read(judged.detail["end"]))
    due = [window for window in windows(since, at, spec.window) if window.start >= since]
    return [*(window.end for window in due[:-1]), at]


def closed_since(spec: Pipeline, at: datetime) -> datetime | None:
    """Return the present if a window has closed since ``at``."""
    now = present()
    return now if edge(now, spec.window) > edge(at, spec.window) else None


def one_heartbeat() -> AbstractContextManager[Any]:
    """Let parts run without a heartbeat: each would wait up to a second for its thread; the cycle has one."""
    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


class Parts:
    """The parts of a cycle as they are run, each a flow run of its own below the cycle's."""

    def __init__(self, project: Project, spec: Pipeline) -> None:
        self.project, self.spec = project, spec
        self.did: dict[str, dict[str, Any]] = {"ingest": Counter(), "score": {}, "monitor": {}}
        self.seconds: dict[str, float] = {}
        self.failed: list[State[Any]] = []

    def run(self, part: Flow[..., Any], at: datetime, after: State[Any] | None = None) -> State[Any]:
        """Run one part as of ``at``, drawn ``after`` another in the UI."""
        began = time.perf_counter()
        drawn = [_drawn(after)] if after and after.is_completed() else []
        state: Any = part(self.spec.name, at, wait_for=drawn, return_state=True)
        self.seconds[part.name] = self.seconds.get(part.name, 0) + time.perf_counter() - began
        if not state.is_completed():
            self.failed.append(state)
        elif part.name in self.did:
            self.did[part.name].update(_returned(state))
        return state

    def finish(self, at: datetime) -> None:
        """Note that the pipeline is up to date as of ``at``, or fail as the first part did that failed."""
        if self.failed:
            self.failed[0].result()
        finish(self.project, self.spec, "cycle", stamp(at))
        _tidy(self.project, self.spec)

    def summary(self) -> dict[str, Any]:
        """Return rows landed per source and scored per window, findings per window, seconds per part."""
        return {
            "landed": dict(self.did["ingest"]),
            "scored": self.did["score"],
            "findings": self.did["monitor"],
            "seconds": self.seconds,
        }


def _tidy(project: Project, spec: Pipeline) -> None:
    """Merge the files of tables that have many, so that a cycle takes as long after years as at first."""
    for name in [*spec.raw.values(), *(table.table for table in spec.feature_tables), log.table_of(spec)]:
        if files := project.lake.table(name).compact(above=MANY):
            logger().debug("Merged the %d files of %s", files, name)


def _drawn(state: State[Any]) -> State[Any]:
    """Return a state to wait for from which Prefect's graph draws an arrow.

    It looks for a subflow by its flow run, but notes the task run that stands for it.
    """
    details = state.state_details
    return state.model_copy(
        update={"state_details": details.model_copy(update={"task_run_id": details.flow_run_id})}
    )


def _returned(state: State[Any]) -> Any:
    """Return what a part did; nothing if that was before the cycle was retried, for results are not kept."""
    try:
        return state.result()
    except MissingResult:
        return {}


def settle_dead_parts(spec: Pipeline) -> None:
    """Mark parts as crashed whose cycle has ended without them: only the cycle's heartbeat is watched."""
    alive = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    runs = FlowRunFilter(
        state=FlowRunFilterState(type=alive),
        parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=False),
    )
    parts = FlowFilter(name=FlowFilterName(any_=["ingest", "materialize", "score", "monitor"]))
    with get_client(sync_client=True) as client:
        for part in client.read_flow_runs(flow_filter=parts, flow_run_filter=runs):
            if part.parameters.get("pipeline") != spec.name or not part.parent_task_run_id:
                continue
            above = client.read_task_run(part.parent_task_run_id).flow_run_id
            ended = client.read_flow_run(above).state if above else None
            if ended and ended.is_final():
                crashed: State[Any] = Crashed(message="The run that it was a part of has ended without it.")
                client.set_flow_run_state(part.id, crashed, force=True)
