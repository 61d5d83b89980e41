"""The unit of ingestion and validation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from headrace.lake import Window

if TYPE_CHECKING:
    from headrace.quarantine import Lot

ASIDE = "aside"
UNDATED = Window(datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC))
"""Stands for the window of rows whose time is null: they belong to none, and must not be lost."""


@dataclass(frozen=True)
class Batch:
    """A lot of one source's rows in one window.

    It lands under ``key``, once: its window's, or one of its own if the lot is
    late. ``raw`` is the version of the raw table beside which it was made, if any.
    """

    lot: Lot
    key: str
    raw: int | None

    def __str__(self) -> str:
        return self.lot.id
