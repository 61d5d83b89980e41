"""What may be wrong with what a backtest is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import HeadraceError
from headrace.instants import shown

if TYPE_CHECKING:
    from datetime import datetime


class TooFewWindows(HeadraceError):
    """There are hardly any windows to set policies by, or to judge them."""

    def __init__(self, pipeline: str, before: int, after: int, least: int) -> None:
        self.pipeline, self.before, self.after, self.least = pipeline, before, after, least
        super().__init__(
            f"A backtest of `{pipeline}` needs {least} windows or more to set policies by, and as many to "
            f"judge them, but there are {before} and {after}. Nothing was done. Give an earlier `--from`, a "
            "later `--to`, shorter windows (`--every`), or another `--judge-from`."
        )


class NotKnownYet(HeadraceError):
    """A backtest was to go on beyond what is known."""

    def __init__(self, pipeline: str, end: datetime, known: datetime) -> None:
        self.pipeline, self.end, self.known = pipeline, end, known
        super().__init__(
            f"Of `{pipeline}`, all is known up to {shown(known)} UTC, and the backtest was to go on until "
            f"{shown(end)}. Nothing was done. Give an earlier `--to`, or bring the lake up to date first: "
            f"`python -m flows ingest {pipeline}`, then `materialize`."
        )
