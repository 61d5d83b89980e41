"""What may be wrong with landing, and letting go what is held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta


class SourceLate(HeadraceError):
    """A source has not brought a window's rows yet, and may still do so."""

    transient = True

    def __init__(self, source: str, window: str, deadline: timedelta) -> None:
        self.source, self.window, self.deadline = source, window, deadline
        super().__init__(
            f"Source `{source}` has brought no rows of {window} yet; it is asked again until {deadline} "
            "after the window's end."
        )


class WindowsChanged(HeadraceError):
    """A source's rows landed by other windows than are declared now."""

    def __init__(self, source: str, before: str, now: str) -> None:
        self.source, self.before, self.now = source, before, now
        super().__init__(
            f"`{source}` has landed by windows of {before}, and is now declared with windows of {now}: "
            "its rows would land once more. Set `window` back, or give the source another name."
        )


class NotReleasable(HeadraceError):
    """What is held was computed by headrace, and is computed again rather than released."""

    def __init__(self, id: str, table: str) -> None:
        self.id, self.table = id, table
        step = {"features": "materialize"}.get(table.split("/", maxsplit=1)[0], "score")
        super().__init__(
            f"`{id}` was computed, so it is not released: mend what computes `{table}`, or widen its suite "
            f"in `validations/`, and run `{step}` again. Then `headrace quarantine drop {id}`."
        )


class StillRejected(HeadraceError):
    """What is to be released does not pass; it stays in quarantine."""

    def __init__(self, id: str, reasons: Sequence[str], suite: str) -> None:
        self.id, self.reasons, self.suite = id, tuple(reasons), suite
        broken = "\n".join(f"  - {reason}" for reason in reasons)
        super().__init__(
            f"`{id}` still does not pass:\n{broken}\nIt stays in quarantine. Widen the suite `{suite}` in "
            f"`validations/`, or mend the rows: `headrace quarantine show {id} --to rows.csv`, then "
            f"`headrace quarantine release {id} --rows rows.csv`."
        )
