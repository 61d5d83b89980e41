"""What may be wrong with suites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import HeadraceError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence


class UnknownSuite(HeadraceError):
    """No suite of that name in ``validations/``."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        hint = did_you_mean(name, known)
        super().__init__(
            f"No suite `{name}`: `validations/` has {', '.join(known) or 'none'}.{hint} A suite is named "
            "`<module>.<function>`; write the function, returning a `gx.ExpectationSuite`, or correct "
            "`Source.suite` in `pipelines/`."
        )


class BrokenSuite(HeadraceError):
    """The function that returns a suite fails."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(
            f"Suite `{name}` cannot be made: {reason}\nNothing was validated. Mend it in `validations/`; "
            "`docs/expectations.md` lists what it may hold."
        )


class UnsupportedExpectation(HeadraceError):
    """A suite holds an expectation that cannot be run on a batch."""

    def __init__(self, suite: str, expectation: str, reason: str) -> None:
        self.suite, self.expectation, self.reason = suite, expectation, reason
        super().__init__(
            f"Suite `{suite}` holds `{expectation}`, which cannot be run: {reason}. Nothing was validated. "
            "Take it out of the suite in `validations/`; `docs/expectations.md` lists what can be run."
        )


class EmptySuite(HeadraceError):
    """A suite expects nothing, so that every batch would pass."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        super().__init__(
            f"Suite `{suite}` expects nothing, and every batch would pass it. Nothing was validated. Add an "
            "expectation to its function in `validations/`."
        )
