"""Source ▶ staged batches ▶ gate ▶ raw tables, or quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from flows.steps.common import holder, logger, progress, slug, step, tracked
from flows.steps.scoring import released
from headrace import ingest, quarantine
from headrace import release as releases
from headrace.cluster import batched, each, share_of
from headrace.feature_store import store as feature_store
from headrace.ingest import Settled, Staged
from headrace.ingest.errors import SourceLate
from headrace.instants import shown
from headrace.lake import Window, edge, windows
from headrace.legible import markdown
from headrace.pipeline import Pipeline, Source
from headrace.project import Project
from headrace.quarantine import BatchRejected
from headrace.sources import Predictions
from headrace.training import dataset
from headrace.validation import publish

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture


@contextmanager
def staging(project: Project) -> Iterator[Path]:
    """Make a folder for this run's batches; it goes with the run."""
    with ingest.workspace(project.settings.home) as folder:
        yield folder


@step("read {source.name}")
def read(project: Project, spec: Pipeline, source: Source, at: datetime, folder: Path) -> Staged:
    """Stage what the source's windows bring."""
    staged = _staged(project, spec, source, at, folder)
    if staged.earlier:
        told = (
            "%s: %s rows became known before `start`, %s UTC, and are left out; set it earlier to have them"
        )
        logger().warning(told, source.name, f"{staged.earlier:,}", shown(spec.start))
    return staged


def _staged(project: Project, spec: Pipeline, source: Source, at: datetime, folder: Path) -> Staged:
    if isinstance(source.origin, Predictions):  # there are no more than are made
        upstream = project.pipeline(source.origin.pipeline)
        since = released(project, upstream)
        at = releases.complete(upstream, project.lake, project.ledger, since, at)
    return ingest.stage(spec, source, at, project.lake, project.ledger, folder)


def predict_history(project: Project, spec: Pipeline, at: datetime) -> None:
    """See to it that what the pipeline feeds on has a history of before its release, as far as known."""
    for _, origin in releases.feeds(spec):
        upstream = project.pipeline(origin.pipeline)
        since = released(project, upstream)
        if since is None:
            told = "%s has no release yet, so that %s, which feeds on its predictions, waits"
            logger().warning(told, upstream.name, spec.name)
        elif spans := releases.missing(upstream, project.ledger, since):
            known = dataset.known_to(upstream, progress(project, upstream, at), project.lake)
            if due := [span for span in spans if span.end <= known]:
                out_of_sample(project, upstream, due)


@step("predict {upstream.name} out of sample", minutes=240)
def out_of_sample(project: Project, upstream: Pipeline, spans: list[Window]) -> int:
    """Predict what came before the first release by models of what was known before; return how many."""
    from headrace.cluster import cluster

    candidate = releases.predictor(upstream, project.mlflow)
    settings, store = project.settings, project.store
    with cluster(settings.dask_address, settings.dask_workers) as client:
        made = (
            releases.predict_history(
                upstream,
                candidate,
                span,
                project.lake,
                project.ledger,
                lambda spine: feature_store.historical(store, upstream.feature_service, spine),
                client,
                holder(),
            )
            for span in spans
        )
        what = f"spans of {upstream.name} predicted"
        done = tracked(enumerate(made), [1] * len(spans), f"history-{upstream.name}", what)
        return sum(count for _, count in done)


@dataclass
class Answers:
    """What sources answered: ``came`` is what they brought; ``failed`` are those that cannot be read."""

    came: list[tuple[Source, Staged]]
    failed: list[tuple[Source, State[Staged]]]

    @classmethod
    def of(cls, answers: Sequence[tuple[Source, State[Staged]]]) -> Answers:
        """Sort answers, which come as states of task runs."""
        came = [(source, answer.result()) for source, answer in answers if answer.is_completed()]
        return cls(came, [(source, answer) for source, answer in answers if not answer.is_completed()])


def ask(project: Project, spec: Pipeline, at: datetime, folder: Path) -> Iterator[Answers]:
    """Read every source; yield what they answer first, then the answer of each late one when it has come."""
    answers = [
        (source, read(project, spec, source, at, folder, return_state=True)) for source in spec.sources
    ]
    late = [source for source, answer in answers if _may_come(source, answer, at)]
    yield Answers.of([given for given in answers if given[0] not in late or given[1].is_completed()])
    waiting = [(source, _wait_for(project, spec, source, at, folder)) for source in late]
    for source, answer in waiting:
        answer.wait()
        yield Answers.of([(source, answer.state)])


def _may_come(source: Source, answer: State[Staged], at: datetime) -> bool:
    """Say whether a source may still bring what it has not brought: its deadline has not passed."""
    if answer.is_completed():
        return bool(_waited_for(source, answer.result()))
    return datetime.now(UTC) < edge(at, source.window) + source.deadline


def _wait_for(
    project: Project, spec: Pipeline, source: Source, at: datetime, folder: Path
) -> PrefectFuture[Staged]:
    """Ask a late source again, with growing pauses, until it has come or its deadline has passed."""
    until = edge(at, source.window) + source.deadline
    pauses = list(_pauses((until - datetime.now(UTC)).total_seconds()))
    logger().warning("%s is late, and asked again until %s UTC", source.name, shown(until))
    patient = _come.with_options(
        retries=len(pauses), retry_delay_seconds=pauses, retry_condition_fn=lambda *_: True
    )
    return patient.submit(project, spec, source, at, folder)


@step("wait for {source.name}")
def _come(project: Project, spec: Pipeline, source: Source, at: datetime, folder: Path) -> Staged:
    staged = _staged(project, spec, source, at, folder)
    if waited_for := _waited_for(source, staged):
        raise SourceLate(source.name, str(waited_for[0]), source.deadline)
    return staged


def _waited_for(source: Source, staged: Staged) -> list[Window]:
    return [window for window in staged.empty if datetime.now(UTC) < window.end + source.deadline]


def _pauses(seconds: float) -> Iterator[float]:
    """Cut a time to wait into pauses, each a quarter longer than the last; Prefect takes fifty at most."""
    pause = max(1.0, seconds / 100_000)
    while seconds > 0:
        yield min(pause, seconds)
        seconds -= pause
        pause *= 1.25


@step("validate and land", minutes=240)
def settle(
    project: Project, spec: Pipeline, staged: Sequence[tuple[Source, Staged]], at: datetime
) -> list[Settled]:
    """Validate every batch and land what passes, in parallel on the cluster; close windows without any."""
    settings, lake = project.settings, project.lake
    total = sum(len(brought.batches) for _, brought in staged)
    work = [
        (part, source, lake, at)
        for source, brought in staged
        for part in batched(brought.batches, share_of(total))
    ]
    settled: dict[int, list[Settled]] = {}
    if work:
        done = each(ingest.settle_all, work, settings.dask_address, settings.dask_workers)
        sizes = [len(part) for part, *_ in work]
        settled = dict(tracked(done, sizes, f"ingest-{spec.name}", "batches settled"))
    for source, brought in staged:
        waited_for = _waited_for(source, brought)
        closed = [window for window in brought.empty if window not in waited_for]
        ingest.close(source, closed, lake)
        _announce_overdue(spec, source, closed if source.deadline else [])
    return [each for place in sorted(settled) for each in settled[place]]


def say_unreadable(spec: Pipeline, source: Source, at: datetime) -> None:
    """Announce that a source with a deadline could not be read until then."""
    if source.deadline:
        _announce_overdue(spec, source, windows(spec.start, at, source.window)[-1:])


def _announce_overdue(spec: Pipeline, source: Source, missing: Sequence[Window]) -> None:
    """Say that windows of a source were waited for in vain, in the log and as events."""
    for window in missing:
        logger().warning("%s is overdue: nothing came for %s within %s", source.name, window, source.deadline)
        emit_event(
            "headrace.source.overdue",
            resource={
                "prefect.resource.id": f"headrace.source.{spec.name}.{source.name}",
                "prefect.resource.name": source.name,
                "headrace.pipeline": spec.name,
            },
            payload={
                "window": str(window),
                "deadline": source.deadline.total_seconds(),
                "reason": f"Nothing came for {window} within {source.deadline}.",
            },
            id=uuid5(NAMESPACE_URL, f"headrace/overdue/{spec.name}/{source.name}/{window}"),
        )


def tell(project: Project, spec: Pipeline, settled: Sequence[Settled]) -> None:
    """Say in the flow's log, which a person at the terminal sees, what did not simply land."""
    say = logger().warning
    for s in settled:
        if s.entry:
            say("%s: %s of %s rows are in quarantine", s.batch, f"{s.entry.held.rows:,}", f"{s.entry.of:,}")
        if s.aside:
            say("%s: kept aside, because nobody declared it: %s", s.batch, ", ".join(s.aside))
    waits = quarantine.waiting(project.lake, project.ledger, spec)
    if whole := [entry.id for entry in waits if entry.whole]:
        say("Held as a whole, and waiting for a decision: %s", ", ".join(whole))


@step("report")
def report(project: Project, spec: Pipeline, settled: Sequence[Settled], at: datetime) -> None:
    """Show what was found, in the artifacts and in Data Docs.

    Raises:
        BatchRejected: Batches are held as a whole. It is raised last, when all else has landed.
    """
    settings = project.settings
    if not settled:
        return
    pages = publish({str(s.batch): s.validation for s in settled}, settings.home / "validations")
    site = settings.home / "validations" / "docs"
    links = {name: f"{settings.docs_page}/{page.relative_to(site)}" for name, page in pages.items()}
    rows_landed = sum(s.landed for s in settled)
    rows_held = sum(s.entry.held.rows for s in settled if s.entry)
    create_table_artifact(
        key=slug("landed", spec.name),
        table=[
            {
                "batch": f"[{s.batch}]({links[str(s.batch)]})",
                "rows": f"{s.batch.lot.rows:,}",
                "landed": f"{s.landed:,}",
                "in quarantine": f"{s.entry.held.rows:,}" if s.entry else "",
                "kept aside": markdown(", ".join(s.aside)),
                "expectations failed": len(s.validation.failures),
                "expectations": len(s.validation.outcomes),
                "seconds to validate": f"{s.validation.seconds:.2f}",
            }
            for s in settled
        ],
        description=f"## {rows_landed:,} rows landed, {rows_held:,} held, as of {at:%Y-%m-%d %H:%M} UTC\n\n"
        "Each batch links to its Data Docs, which `make up` serves.",
    )
    latest = {s.batch.lot.table: s for s in settled}
    for s in settled:
        if s.entry or s.validation.warnings or s is latest[s.batch.lot.table]:
            _show(spec, s, links[str(s.batch)])
    if rejected := [s.entry for s in settled if s.entry and s.entry.whole]:
        raise BatchRejected(rejected)


def _show(spec: Pipeline, s: Settled, link: str) -> None:
    """Give a batch a page of its own, and tell whoever listens if some of it is held."""
    entry = s.entry
    held = f"{entry.held.rows:,} of {entry.of:,} rows wait in quarantine" if entry else "All rows landed"
    reasons = entry.reasons if entry else s.validation.warnings
    create_table_artifact(
        key=slug("checked", s.batch.lot.table),
        # What failed comes first, and what was observed must not be pushed out of sight.
        table=[
            {name: markdown(value) for name, value in row.items()}
            | {"rule": markdown(shorten(row["rule"], 70, placeholder="…"))}
            for row in sorted(s.validation.table(), key=lambda row: row["result"] == "passed")
        ],
        description=f"## {s.batch}: {held}\n\n"
        + "\n".join(f"- {markdown(reason)}" for reason in reasons)
        + f"\n\n[Data Docs]({link})"
        + (f" · `headrace quarantine show {entry.id}`" if entry else ""),
    )
    if entry:
        emit_event(
            "headrace.quarantine",
            resource={
                "prefect.resource.id": f"headrace.quarantine.{entry.id.replace('/', '.')}",
                "prefect.resource.name": entry.id,
                "headrace.pipeline": spec.name,
            },
            payload={
                **{"rows": entry.held.rows, "of": entry.of, "whole": entry.whole, "reasons": list(reasons)},
                "reason": f"{entry.held.rows:,} of {entry.of:,} rows are held: {'; '.join(reasons)}",
            },
        )


def batches(project: Project, spec: Pipeline, at: datetime) -> dict[str, int]:
    """Count, per source, the windows of which rows landed by ``at``."""
    lake = project.lake
    counts = {}
    for source in spec.sources:
        due = windows(spec.start, at, source.window)
        rows = lake.table(source.table).held(str(window) for window in due).values()
        counts[source.name] = sum(map(bool, rows))
    return counts
