"""Source ▶ staged batches ▶ gate ▶ raw tables, or quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from textwrap import shorten

from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from flows.steps.common import logger, slug, step, tracked
from headrace import ingest, quarantine
from headrace.cluster import cluster, spread
from headrace.errors import BatchRejected
from headrace.ingest import Batch, Settled
from headrace.lake import Lake, windows
from headrace.ledger import Ledger
from headrace.pipeline import Pipeline, Source
from headrace.settings import Settings
from headrace.validation import publish


@contextmanager
def staging() -> Iterator[Path]:
    """Make a folder for this run's batches; it goes with the run."""
    with ingest.workspace(Settings().home) as folder:
        yield folder


@step("read {source.name}")
def read(spec: Pipeline, source: Source, at: datetime, folder: Path) -> list[Batch]:
    """Stage what the source's windows bring."""
    settings = Settings()
    return ingest.stage(spec, source, at, Lake(settings.lake), Ledger(settings.ledger), folder)


@step("validate and land", minutes=240)
def settle(spec: Pipeline, staged: Sequence[tuple[Source, Batch]], at: datetime) -> list[Settled]:
    """Validate every batch and land what passes, in parallel on the cluster."""
    if not staged:
        return []
    settings = Settings()
    lake = Lake(settings.lake)
    with cluster(settings.dask_address, settings.dask_workers) as client:
        work = [(batch, source, lake, at) for source, batch in staged]
        done = spread(client, ingest.settle, work)
        settled = dict(tracked(done, len(work), f"ingest-{spec.name}", "batches settled"))
    return [settled[place] for place in sorted(settled)]


def tell(spec: Pipeline, settled: Sequence[Settled]) -> None:
    """Say in the flow's log, which a person at the terminal sees, what did not simply land."""
    settings, say = Settings(), logger().warning
    for s in settled:
        if s.entry:
            say("%s: %s of %s rows are in quarantine", s.batch, f"{s.entry.held.rows:,}", f"{s.entry.of:,}")
        if s.aside:
            say("%s: kept aside, because nobody declared it: %s", s.batch, ", ".join(s.aside))
    waits = quarantine.waiting(Lake(settings.lake), Ledger(settings.ledger), spec.name)
    if whole := [entry.id for entry in waits if entry.whole]:
        say("Held as a whole, and waiting for a decision: %s", ", ".join(whole))


@step("report")
def report(spec: Pipeline, settled: Sequence[Settled], at: datetime) -> None:
    """Show what was found, in the artifacts and in Data Docs.

    Raises:
        BatchRejected: Batches are held as a whole. It is raised last, when all else has landed.
    """
    settings = Settings()
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
                "kept aside": ", ".join(s.aside),
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
            row | {"rule": shorten(row["rule"], 70, placeholder="…")}
            for row in sorted(s.validation.table(), key=lambda row: row["result"] == "passed")
        ],
        description=f"## {s.batch}: {held}\n\n"
        + "\n".join(f"- {reason}" for reason in reasons)
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
            payload={"rows": entry.held.rows, "of": entry.of, "whole": entry.whole, "reasons": list(reasons)},
        )


def batches(spec: Pipeline, at: datetime) -> dict[str, int]:
    """Count, per source, the windows of which rows landed by ``at``."""
    lake = Lake(Settings().lake)
    counts = {}
    for source in spec.sources:
        due = windows(spec.start, at, source.window)
        rows = lake.table(source.table).held(str(window) for window in due).values()
        counts[source.name] = sum(map(bool, rows))
    return counts
