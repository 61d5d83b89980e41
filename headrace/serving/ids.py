"""Ids of predictions: UUIDs, version 7, that begin with an instant (RFC 9562)."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH, MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)


def new_id(at: datetime) -> str:
    """Return an id that nobody else has, of what is asked ``at`` that instant."""
    return _id(int(at.timestamp() * 1000), int.from_bytes(os.urandom(10), "big"))


def batch_id(pipeline: str, keys: Sequence[object], at: datetime) -> str:
    """Return the id of what a batch predicts of ``keys`` ``at`` an instant of theirs: always the same."""
    at = at.astimezone(UTC)
    drawn = blake2b(f"{pipeline}{[*map(str, keys)]!r}{at.isoformat()}".encode(), digest_size=10).digest()
    return _id(max((at - EPOCH) // MILLISECOND, 0), int.from_bytes(drawn, "big"))


def instant_of(id: str) -> datetime:
    """Return the instant (UTC) that an id begins with, to the millisecond."""
    return EPOCH + int(id.replace("-", "")[:12], 16) * MILLISECOND


def _id(milliseconds: int, drawn: int) -> str:
    number = milliseconds << 80 | drawn
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
