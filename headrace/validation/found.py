"""What a suite found in a batch, as plain values: picklable, and free of GX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What one expectation found: ``unexpected`` rows broke it (0 for rules about the whole batch).

    ``row_rule`` says whether it judged each row by itself, so that the rows that
    broke it are known. A rule for rows that could not be evaluated judged none.
    Only those of ``severity`` "critical" decide; "warning" and "info" tell.
    """

    expectation: str
    column: str
    success: bool
    observed: str
    unexpected: int
    rule: str
    severity: str
    row_rule: bool

    @property
    def breaches(self) -> int:
        """Rows that are known to break it, if it decides."""
        return self.unexpected if self.row_rule and self.severity == "critical" else 0

    @property
    def sentence(self) -> str:
        """What was expected, and what came."""
        return f"{self.rule}, but {self.observed}"


@dataclass(frozen=True)
class Validation:
    """What a suite found in one batch, in the suite's order.

    ``success`` means that no critical expectation failed; ``rows`` counts the
    batch's; ``seconds`` is what it took. ``result`` is GX's own
    ``ExpectationSuiteValidationResult`` in JSON's types; its ``success``, as GX
    has it, means that no expectation failed.
    """

    suite: str
    success: bool
    rows: int
    outcomes: tuple[Outcome, ...]
    seconds: float
    result: dict[str, Any] = field(repr=False)

    @property
    def failures(self) -> list[str]:
        """One sentence for each critical expectation that failed."""
        return [o.sentence for o in self.outcomes if not o.success and o.severity == "critical"]

    @property
    def warnings(self) -> list[str]:
        """One sentence for each other expectation that failed."""
        return [o.sentence for o in self.outcomes if not o.success and o.severity != "critical"]

    def table(self) -> list[dict[str, str]]:
        """Return one row per expectation, for a table in the terminal or the Prefect UI."""
        return [
            {
                "result": "passed" if o.success else "failed" if o.severity == "critical" else o.severity,
                "rule": o.rule,
                "observed": o.observed,
                "column": o.column,
                "expectation": o.expectation,
            }
            for o in self.outcomes
        ]
