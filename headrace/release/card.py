"""A version's model card: what it is for, of what it was made, how good it is for whom, and why it serves.

From records alone: nobody has to write it, and it says nothing that is not noted somewhere. After Mitchell
et al. (2019), "Model Cards for Model Reporting", arXiv:1810.03993.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from headrace import tracking
from headrace.instants import shown
from headrace.legible import legible, markdown
from headrace.release.page import table
from headrace.release.promotion import PAGE, changes, told

if TYPE_CHECKING:
    from headrace.ledger import Ledger, Record
    from headrace.pipeline import Pipeline
    from headrace.release.models import About
    from headrace.tracking import MLflow


LONG = 2_000
"""Characters of a reason."""


def card(spec: Pipeline, about: About, mlflow: MLflow, ledger: Ledger) -> str:
    """Return the card, in Markdown."""
    release, recipe = about.release, about.recipe
    lines = [
        f"# {about.name}{''.join(f', {alias}' for alias in about.aliases)}",
        "",
        f"**{markdown(spec.about)}** A {type(spec.problem).__name__.lower()} problem, judged by its loss in "
        f"{spec.problem.loss_unit}. Owner: {markdown(spec.owner) or 'nobody is named'}.",
        "",
        f"{release.candidate} ({release.trainer}), made of what was known on {shown(release.as_of)} UTC.",
        "",
        "## Why it serves, or does not",
        "",
        *_why(about, mlflow),
        "",
        *(
            f"- {legible(told(one), LONG)}"
            for one in changes(spec, ledger)
            if _concerns(one, release.version)
        ),
        *([f"- Receipt {release.receipt}"] if release.receipt else ["- There is no receipt of it."]),
        "",
        f"## How good it is, on the {about.scores.get('rows', 0):,.0f} rows held out",
        "",
        *table(("score", "value"), ((name, f"{value:.4g}") for name, value in sorted(about.scores.items()))),
    ]
    if kept := tracking.kept(mlflow, release.run_id, "segments.json"):
        segments = json.loads(kept)
        if segments:
            lines += ["", "## For whom", "", *table(segments["columns"], segments["data"])]
    lines += [
        "",
        "## What it was made of",
        "",
        *table(
            ("table", "version", "rows", "fingerprint"),
            ((ref.table, ref.version, f"{ref.rows:,}", ref.fingerprint) for ref in about.data),
        ),
        "",
        f"Inputs: {', '.join(about.features) or 'not noted'}.",
    ]
    if recipe:
        changed = ", with changes that are kept beside it" if recipe.code.changes else ""
        lines += [
            "",
            f"Code: {recipe.code.commit or 'in no repository'}{changed}. Python {recipe.environment.python}. "
            f"`headrace reproduce {about.name}` makes it again.",
        ]
    lines += [
        "",
        "## Limits",
        "",
        f"- It knows what came before {shown(release.as_of)} UTC, and was judged by the last "
        f"{spec.holdout.days} days of that.",
        "- Segments that are not in the table above were too small to be looked at one by one.",
        f"- What it predicts where features are missing: {_missing(spec)}.",
    ]
    return "\n".join(lines) + "\n"


def _why(about: About, mlflow: MLflow) -> list[str]:
    """Return the lines of the verdict's page; of releases of before there were any, the reason."""
    if page := tracking.kept(mlflow, about.release.run_id, PAGE):
        return page.decode().rstrip("\n").split("\n")
    release = about.release
    return [f"{release.verdict or 'No verdict yet'}. {legible(release.reason, LONG)}".rstrip()]


def _concerns(change: Record, version: int) -> bool:
    return str(change.detail.get("version", change.key)) == str(version)


def _missing(spec: Pipeline) -> str:
    if spec.serving.missing == "refuse":
        return "nothing, a request is refused"
    taken = ", ".join(f"{name} {value}" for name, value in spec.serving.defaults.items())
    return "from nulls, as it has learnt to" + (f", but for {taken}" if taken else "")
