"""Ids of predictions: UUIDs, version 7, that begin with an instant (RFC 9562); and batches that have them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

from headrace.lake import AVAILABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from headrace.pipeline import Pipeline

EPOCH, MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)


def new_id(at: datetime) -> str:
    """Return an id that nobody else has, of what is asked ``at`` that instant."""
    return _id(int(at.timestamp() * 1000), int.from_bytes(os.urandom(10), "big"))


def batch_id(pipeline: str, keys: Sequence[object], at: datetime) -> str:
    """Return the id of what a batch predicts of ``keys`` ``at`` an instant of theirs: always the same."""
    at = at.astimezone(UTC)
    drawn = blake2b(f"{pipeline}{[*map(str, keys)]!r}{at.isoformat()}".encode(), digest_size=10).digest()
    return _id(max((at - EPOCH) // MILLISECOND, 0), int.from_bytes(drawn, "big"))


def signed(made: pa.Table, spec: Pipeline, version: int, since: datetime) -> pa.Table:
    """Return predictions with their ids, who made them, and from when on they are available."""
    import pyarrow as pa
    import pyarrow.compute as pc

    about = zip(
        made["event_timestamp"].to_pylist(), *(made[key].to_pylist() for key in spec.keys), strict=True
    )
    ids = [batch_id(spec.name, keys, at) for at, *keys in about]
    instants = made["event_timestamp"].cast(pa.timestamp("us", "UTC"))
    first = pa.scalar(since, instants.type)
    made = made.append_column("model_version", pa.array([version] * made.num_rows, pa.int64()))
    made = made.append_column(AVAILABLE, pc.if_else(pc.less(instants, first), first, instants))
    return made.append_column("prediction_id", pa.array(ids, pa.string()))


def instant_of(id: str) -> datetime:
    """Return the instant (UTC) that an id begins with, to the millisecond."""
    return EPOCH + int(id.replace("-", "")[:12], 16) * MILLISECOND


def _id(milliseconds: int, drawn: int) -> str:
    number = milliseconds << 80 | drawn
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
