"""Raw tables ▶ feature tables ▶ online store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from flows.steps.common import logger, progress, slug, step, tracked
from flows.steps.scoring import released
from headrace.cluster import each, share_of
from headrace.feature_store import freshness, parity, tables
from headrace.feature_store import store as feature_store
from headrace.feature_store.freshness import Freshness
from headrace.feature_store.tables import Cause
from headrace.instants import shown
from headrace.lake import Window, consecutive, windows
from headrace.pipeline import FeatureTable, Pipeline
from headrace.project import Project
from headrace.serving import log

Due = Mapping[FeatureTable, Mapping[Window, Cause]]


@step("find stale windows")
def stale(project: Project, spec: Pipeline, at: datetime) -> Due:
    """Return, per feature table, the windows to build of those whose sources are complete, and say why."""
    lake, due = project.lake, {}
    complete = progress(project, spec, at)
    for source in spec.sources:
        if complete[source.name] < at:
            came = shown(complete[source.name])
            logger().warning("%s is complete to %s UTC only; what reads it waits", source.name, came)
    for table in spec.feature_tables:
        closed = windows(spec.start, tables.complete(table, complete), table.window)
        seen = tables.look(table, spec.raw, closed, lake)
        due[table] = seen.causes
        for view, blind in seen.unseen.items():
            if late := [window for window in blind if window in seen.causes]:
                told = "%s: %d windows, from %s, see no row of %s, for all are older than its `lookback`, %s"
                logger().warning(told, table.name, len(late), late[0].label, view, table.lookback)
        for cause in Cause:
            if found := [window for window, why in due[table].items() if why == cause]:
                span = " to ".join(dict.fromkeys([min(found).label, max(found).label]))
                logger().info("%s: %d to build, %s (%s)", table.name, len(found), cause, span)
    return due


@step("build features", minutes=240)
def build_features(project: Project, spec: Pipeline, due: Due) -> dict[str, int]:
    """Build the windows of all tables in parallel on the cluster; return the rows written per table.

    Some windows that follow each other are one commit: what is built when a run is killed stays built.
    """
    settings, lake = project.settings, project.lake
    rows = {table.name: 0 for table, why in due.items() if why}
    total = sum(map(len, due.values()))
    work = [
        (table, spec.raw, part, lake, spec.name)
        for table, why in due.items()
        for part in consecutive(sorted(why), share_of(total))
    ]
    if not work:
        return rows
    built = each(tables.build, work, settings.dask_address, settings.dask_workers)
    sizes = [len(part) for _, _, part, *_ in work]
    for place, written in tracked(built, sizes, f"built-{spec.name}", "windows built"):
        rows[work[place][0].name] += written
    return rows


@step("apply the Feast repository", log_prints=False)  # of a Python function, dill prints the byte code
def apply_features(project: Project, spec: Pipeline, due: Due) -> None:
    """Tell Feast what ``features/<pipeline>.py`` declares, and which windows are about to change."""
    store = project.store
    feature_store.apply(store, f"features.{spec.name}")
    feature_store.views_of(store, spec.feature_service)  # of a name nobody declares, it says so now
    for table, stale in due.items():
        if stale:
            feature_store.forget(store, spec.feature_service, min(stale).start, table.table)


@step("bring {spec.feature_service} online")
def bring_online(project: Project, spec: Pipeline, at: datetime) -> None:
    """Materialise into the online store what became known since the last time, or is to be predicted from.

    Of each table, up to the end of its last window that can be built: a later end would
    lie inside the next window, and with it all of the view would have to go online again.
    And no further than can be predicted: the store keeps each key's newest row only, and
    a window that still waits for another table must find this one as it was.

    Raises:
        ChangesWithinWindow: For predictions of the last such window it would serve what came later.
    """
    store, complete = project.store, progress(project, spec, at)
    until = log.predictable(spec, complete)
    closed = windows(spec.start, until, spec.window)
    if closed:
        parity.refuse_changing(store, spec, project.lake, closed[-1])
    reached = tables.edges(spec.feature_tables, complete, until)
    since = released(project, spec)
    due = log.pending(spec, project.lake, since, until) if since else []
    start = due[0].start if due else None  # before the first that was brought online, it may be
    # Of the last window a first release shows that it is served as it was trained.
    serves = None if since or not closed else closed[-1].start
    feature_store.materialize(store, spec.feature_service, until, start, reached, serves=serves)


@step("show what was built")
def report_features(
    project: Project, spec: Pipeline, due: Due, built: Mapping[str, int], at: datetime
) -> list[Freshness]:
    """Show, per table, what was built and why; per view, how old it is. Return the overdue ones."""
    causes = {table.name: Counter(why.values()) for table, why in due.items()}
    create_table_artifact(
        key=slug("features", spec.name),
        table=[
            {"feature table": name}
            | {str(cause): count[cause] for cause in Cause}
            | {"rows written": f"{built.get(name, 0):,}"}
            for name, count in causes.items()
        ],
        description=f"## Windows of `{spec.name}` built as of {at:%Y-%m-%d %H:%M} UTC, by cause",
    )
    views = freshness.measure(project.store, spec.feature_service, at)
    create_table_artifact(
        key=slug("freshness", spec.name),
        table=[view.line() for view in views],
        description=f"## How old the features of `{spec.name}` are at {at:%Y-%m-%d %H:%M} UTC",
    )
    return [view for view in views if view.overdue]


def announce_overdue(spec: Pipeline, overdue: Iterable[Freshness], at: datetime) -> None:
    """Emit an event per view, and say so in the flow's log, which a person at the terminal sees."""
    for view in overdue:
        served = f"{view.online:%Y-%m-%d %H:%M} UTC" if view.online else "none"
        logger().warning("%s is overdue: newest row online %s, ttl %s", view.view, served, view.ttl)
        emit_event(
            "headrace.features.overdue",
            resource={
                "prefect.resource.id": f"headrace.features.{spec.name}.{view.view}",
                "prefect.resource.name": view.view,
                "headrace.pipeline": spec.name,
            },
            payload={
                "view": view.view,
                "age": view.age and view.age.total_seconds(),
                "ttl": view.ttl.total_seconds(),
                "as_of": at.isoformat(),
                "reason": f"The newest row online is of {served}, and may be {view.ttl} old.",
            },
        )


@step("check parity of {window}")
def check_parity(project: Project, spec: Pipeline, window: Window, rows: int | None = parity.SAMPLE) -> None:
    """Stop unless the online store serves ``rows`` of the window's predictions (None: all) as they should be.

    Raises:
        ParityBroken: It serves another value than the point-in-time join gives.
    """
    parity.check(project.store, spec, project.lake, window, rows)
