"""Great Expectations over a staged batch, through GX's own SQL engine on DuckDB.

Suites are plain GX, written in ``validations/``. DuckDB reads the batch's
Parquet files where they lie, so a batch never has to fit in memory.

    files ─▶ validate (duckdb, metrics) ─▶ Validation (found, wording) ─▶ publish (docs)
                     └─▶ broken rows

Importing this package does not import GX; calling it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.validation.found import Outcome, Validation
from headrace.validation.predictions import of_predictions
from headrace.validation.suites import listed_columns, load_suite, row_rules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from great_expectations import ExpectationSuite as ExpectationSuite  # for whoever hands one on

__all__ = [
    "Outcome",
    "Validation",
    "listed_columns",
    "load_suite",
    "of_predictions",
    "publish",
    "row_rules",
    "validate",
]


def validate(
    files: Sequence[Path],
    suite: ExpectationSuite,
    broken: Path | None = None,
    columns: Sequence[str] | None = None,
) -> Validation:
    """Run ``suite`` over the rows of ``files``: Parquet of one schema, together one batch.

    The suite sees ``columns`` only, or all of them.

    An expectation that cannot be evaluated, because a column is gone or has
    another type, fails with that reason.

    With ``broken``, the rows that break a critical row rule, within its
    tolerance or beyond, are written there as Parquet: ``row BIGINT``, the
    position in the batch (from 0, over the files in the order given), and
    ``rules VARCHAR[]``, the sentences of the rules it broke. If there is no such
    row there is no file.
    """
    from headrace.validation.run import run

    return run(files, suite, broken, columns)


def publish(found: Mapping[str, Validation], folder: Path) -> dict[str, Path]:
    """Store results, by the ids of their batches, to be shown as GX Data Docs; return each one's page.

    Results go to ``folder``/results, the site to ``folder``/docs. Pages of batches in which anything failed
    are drawn, others once ``headrace.validation.serve`` is asked for them. A result
    published again is replaced; several processes may publish at once.
    """
    from headrace.validation.docs import publish

    return publish(found, folder)
