"""The files of a pipeline, as a person would write them."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.scaffold import queries
from headrace.scaffold.code import block, identifier, instant, mapping, phrase, python, sequence, timespan
from headrace.scaffold.errors import FileExists
from headrace.scaffold.features import KNOWN_AT, history, of_rows, of_truth, views
from headrace.scaffold.plan import DAY, ENOUGH, HOUR
from headrace.scaffold.suites import suites

if TYPE_CHECKING:
    import duckdb

    from headrace.scaffold.plan import Plan

WIDE = 108
SMALL, FEW = 5_000, 2_000
"""Rows below which trees are kept small, and below which there is no span to choose among candidates by."""
CRONS = {HOUR: ("hourly", "5 * * * *"), DAY: ("daily", "10 0 * * *")}


def write(con: duckdb.DuckDBPyConnection, plan: Plan, folder: Path) -> list[Path]:
    """Write the files of a plan into the project at ``folder``; return them.

    Raises:
        FileExists: One is there, or ``prefect.yaml`` has deployments of that name; nothing is written.
    """
    name = plan.name
    texts = {
        Path("validations", f"{name}.py"): suites(con, plan),
        Path("features", "sql", f"{name}_history.sql"): history(plan),
        Path("features", f"{name}.py"): views(plan),
        Path("pipelines", f"{name}.py"): pipeline(plan, folder),
    }
    deployments = folder / "prefect.yaml"
    before = deployments.read_text()
    there = [str(file) for file in texts if (folder / file).exists()]
    if re.search(rf"^ +(- )?name: {name}$", before, re.MULTILINE):
        there.append("prefect.yaml")
    if there:
        raise FileExists(there)
    for file, content in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    deployments.write_text(deployed(before, plan))
    if find_spec("ruff"):  # laid out as the rest of the project is
        python_files = [str(folder / file) for file in texts if file.suffix == ".py"]
        command = [sys.executable, "-m", "ruff", "format", "--quiet", *python_files]
        subprocess.run(command, capture_output=True, check=False)
    return [*texts, Path("prefect.yaml")]


def pipeline(plan: Plan, folder: Path) -> str:
    """Return the module that declares it."""
    name = plan.name
    past = [] if plan.dealt and not plan.entity else [one.name for one in (*of_rows(plan), *of_truth(plan))]
    numeric = [*plan.numbers, *plan.ages, *plan.clock, *past]  # of rows in no order there is no past
    by_hour, thin = plan.group < DAY, plan.least < ENOUGH
    imports = [
        *(["from headrace.gate import Gate"] if by_hour else []),
        *(["from headrace.monitoring.rule import DriftRule"] if thin else []),
        "from headrace.pipeline import Candidate, Columns, FeatureTable, Pipeline, Source",
        f"from headrace.problem import {problem(plan).partition('(')[0]}",
        f"from headrace.sources import {'Query' if plan.asked.database else 'Files'}",
    ]
    more = [
        *([f"gate=Gate(group={timespan(plan.group)}),"] if by_hour else []),
        *([f"drift=DriftRule(min_rows={plan.least}),  # windows have few"] if thin else []),
    ]
    keys, when = identifier(*plan.keys), python(plan.time.name)
    reads, fill = 'Files({{"given": DATA}}, {})', ""
    if plan.asked.database:
        reads, fill = "Query(DATABASE, {})", "f"  # the query within theirs
    return f'''\
"""{block(question(plan))}

Made by `headrace new` of what its table held; all of it is yours to edit.
{_when(plan)}
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

{chr(10).join(imports)}

PROJECT = Path(__file__).parent.parent
{_table(plan, folder)}
KEYS = {sequence(plan.keys, "()")}
WINDOW = {timespan(plan.window)}  # cannot change once rows have landed

# What is known when the question is asked.
ROWS = {fill}"""
{block(queries.rows(plan))}
"""
# The truth, and when it is known.
TRUTH = {fill}"""
{block(queries.truth(plan))}
"""
{_left_out(plan)}
PIPELINE = Pipeline(
    name="{name}",
    about={python(question(plan))},
    owner="{name}",
    start={instant(plan.start)},
    sources=(
        Source("{name}", {reads.format("ROWS")}, {when}, "{name}.rows", KEYS, WINDOW),
        Source("{name}_truth", {reads.format("TRUTH")}, "{KNOWN_AT}", "{name}.truth", KEYS, WINDOW),
    ),
    feature_tables=(
        FeatureTable(
            "{name}_history",
            PROJECT / "features/sql/{name}_history.sql",
            lookback={timespan(plan.lookback - plan.window)},
            window=WINDOW,
        ),
    ),
    feature_service="{name}",
    keys=KEYS,
    problem={problem(plan)},
    spine="""
{block(queries.spine(plan))}
    """,
    label="""
        SELECT {keys}, {identifier(plan.target.name)} AS label, available_at
        FROM {name}_truth
    """,
    columns=Columns(
        categorical={sequence(plan.texts, "()", 8)},
        numeric={sequence(numeric, "()", 8)},
    ),
    candidates=(
        {_candidates(plan)}
    ),
    {(chr(10) + "    ").join(more)}
    holdout={timespan(plan.holdout)},
    window=WINDOW,
)
'''


def question(plan: Plan) -> str:
    """Return what is asked, in words."""
    target = plan.target.given
    if plan.kind == "number":
        return f"How much will {target} be?"
    return f"Will {target} be {plan.classes[0]}?" if plan.kind == "binary" else f"Which {target} will it be?"


def problem(plan: Plan) -> str:
    """Return what is asked, as code."""
    if plan.kind == "number":
        return f'Regression("{plan.loss}")'
    if plan.kind == "classes":
        return f"MultiClass({sequence(plan.classes, '()', 4)})"
    positive, negative = map(python, plan.classes)
    return f"Binary(positive={positive}, negative={negative})"


def _when(plan: Plan) -> str:
    if plan.dealt:
        told = (
            "Its rows have no time: they are dealt into days by what they hold, so that some can be held out "
            "to judge by, and those without a truth come last. Before new rows come, give the table a column "
            "that says when."
        )
    else:
        after = phrase(plan.known_after)
        told = f"A question is asked at `{plan.time.name}`, and its truth is known {after} later."
    return textwrap.fill(told, WIDE)


def _left_out(plan: Plan) -> str:
    lines = [
        textwrap.fill(f"{one.column}: {one.why}", WIDE, initial_indent="#   ", subsequent_indent="#     ")
        for one in plan.left_out
    ]
    found = ["# Not learnt from:", *lines] if lines else []
    for name, saved in plan.strong.items():
        found.append(f"# {name} alone saves {saved:.0%} of the loss: is it known when the question is asked?")
    return "\n".join(found) + "\n" if found else ""


def _candidates(plan: Plan) -> str:
    size = (
        {"max_depth": 3, "rounds": 80, "eta": 0.1, "min_child_weight": 5, "reg_lambda": 5}
        if plan.rows < SMALL
        else {"max_depth": 6, "rounds": 200, "eta": 0.05, "min_child_weight": 20, "reg_lambda": 10}
    )
    params = size | {"subsample": 0.8, "colsample_bytree": 0.7, "max_cat_to_onehot": 50}
    trees = f'Candidate("trees", "xgboost", {mapping(params, 8)}),'
    if plan.rows < FEW:
        return f"{trees}\n        # With few rows there is no span to spare for choosing among several."
    return f'{trees}\n        Candidate("linear", "sklearn", {{}}),'


def _table(plan: Plan, folder: Path) -> str:
    """Return what says where the table is."""
    if not plan.asked.database:
        return f"DATA = {_place(plan.asked.data, folder)}"
    sql = textwrap.indent(textwrap.dedent(plan.asked.data).strip().rstrip(";"), " " * 4)
    return f'DATABASE = {python(plan.asked.database)}\nGIVEN = """\n{block(sql)}\n"""'


def _place(data: str, folder: Path) -> str:
    if "://" in data:
        return python(data)
    whole, root = Path(data).absolute(), folder.absolute()
    if whole.is_relative_to(root):
        return f"PROJECT / {python(whole.relative_to(root).as_posix())}"
    return python(str(whole))


def deployed(before: str, plan: Plan) -> str:
    """Return ``prefect.yaml`` with the deployments of a pipeline added, and all else as it was."""
    name = plan.name
    slug, cron = CRONS.get(plan.window, ("weekly", "10 0 * * 1"))
    live = datetime.now(UTC) - plan.end < 3 * plan.window
    why = "" if live else "  # its rows ended long ago"
    before = re.sub(r"^deployments: *\[\]", "deployments:", before, flags=re.MULTILINE).rstrip()
    return f"""{before}

  - name: {name}
    entrypoint: flows/cycle.py:cycle
    description: Bring the pipeline up to date, from its sources to what the monitor finds.
    tags: [{name}]
    parameters: {{pipeline: {name}}}
    work_pool: *pool
    concurrency_limit: {{limit: 1, collision_strategy: CANCEL_NEW}}
    schedules:
      - {{slug: {slug}, cron: "{cron}", timezone: UTC, active: {str(live).lower()}}}{why}

  - name: {name}
    entrypoint: flows/train.py:train
    description: Train candidates; release the best if it proves better than the champion.
    tags: [{name}]
    parameters: {{pipeline: {name}}}
    work_pool: *pool
    concurrency_limit: {{limit: 1, collision_strategy: ENQUEUE}}
    triggers:
      - name: retrain {name}
        description: The policy calls for a retraining; train on what is known by then.
        match:
          prefect.resource.id: headrace.pipeline.{name}
        expect: [headrace.drift, headrace.due]
        parameters:
          pipeline: {name}
          as_of: "{{{{ event.payload.as_of }}}}"
          cause: "{{{{ event.payload.cause }}}}"
"""
