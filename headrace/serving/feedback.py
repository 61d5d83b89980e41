"""What came true, as it is told by prediction ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from headrace.lake import AVAILABLE
from headrace.serving.errors import BadRequest

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

    from headrace.problem import Problem

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def truth_schema(problem: Problem) -> pa.Schema:
    """Return the columns of what is logged of it."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    return pa.schema(
        [
            ("prediction_id", pa.string()),
            ("label", problem.label_type),
            ("told_at", instant),
            (AVAILABLE, instant),
        ]
    )


def truths(problem: Problem, body: Any, at: datetime, most: int) -> list[tuple[Any, ...]]:
    """Return what was told as the log has it.

    Raises:
        BadRequest: Something about it is wrong.
    """
    import pyarrow as pa

    given = body.get("feedback") if isinstance(body, dict) and not body.keys() - {"feedback"} else None
    if not isinstance(given, list) or not 0 < len(given) <= most:
        raise BadRequest([("/feedback", f"must be a list, alone, of 1 to {most:,} objects")])
    slips, rows = list[tuple[str, str]](), list[tuple[Any, ...]]()
    for place, one in enumerate(given):
        if not isinstance(one, dict) or one.keys() != {"id", "label"}:
            slips.append((f"/feedback/{place}", "must be an object with `id` and `label`"))
            continue
        if not isinstance(one["id"], str) or not UUID.fullmatch(one["id"]):
            slips.append((f"/feedback/{place}/id", "must be a prediction's id"))
        try:
            label = pa.chunked_array([pa.array([one["label"]], problem.label_type)])
            fits = not len(problem.unfit(label)) and type(one["label"]) is type(label[0].as_py())
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            slips.append((f"/feedback/{place}/label", f"must be {problem.expected}"))
        rows.append((one["id"], one["label"], at, at))
    if slips:
        raise BadRequest(slips)
    return rows
