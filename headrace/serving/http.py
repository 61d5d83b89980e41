"""What all pages share: how much a request may have, and how what is wrong is told (RFC 9457)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request, Response

from headrace.addresses import scrubbed
from headrace.errors import HeadraceError, ServerUnreachable
from headrace.feature_store.errors import BadKey, NotComputed
from headrace.serving.errors import BadKeys, BadRequest, FeaturesMissing, NoChampion, NotLogged

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGE = 4 * 2**20
"""Bytes that a request may have."""
MANY = 1_000
"""Rows that a request may have."""
TIMEOUT = 10.0
"""Seconds after which an answer is not waited for any more."""
JSON, PROBLEM = "application/json", "application/problem+json"
STATUS: Mapping[type[Exception], tuple[int, str]] = {
    FeaturesMissing: (424, "Features are missing"),
    BadRequest: (422, "The request is not what it may be"),
    BadKey: (422, "A key is no value of its type"),
    NotComputed: (422, "Features cannot be computed of it"),
    BadKeys: (503, "The keys cannot be read"),
    NoChampion: (503, "No model serves"),
    NotLogged: (503, "The prediction cannot be logged"),
    ServerUnreachable: (503, "The online store is gone"),
}


class Refused(Exception):
    """A request ends here with a status and why (RFC 9457)."""

    def __init__(self, status: int, title: str, detail: str, **headers: str) -> None:
        self.status, self.title, self.detail, self.headers = status, title, detail, headers


async def raw_body(request: Request) -> bytes:
    """Return a request's body.

    Raises:
        Refused: It is too large.
    """
    told = request.headers.get("content-length", "")
    raw = bytearray()
    if not told.isdecimal() or int(told) <= LARGE:
        async for part in request.stream():
            raw += part
            if len(raw) > LARGE:
                break
        else:
            return bytes(raw)
    raise Refused(
        413, "The request is too large", f"It may have {LARGE:,} bytes. Ask for fewer rows at once."
    )


def status_of(error: HeadraceError) -> tuple[int, str]:
    """Return an error's HTTP status and its title."""
    return next((told for kind, told in STATUS.items() if isinstance(error, kind)), (500, "It failed"))


def problem(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """Return an answer that says what is wrong, as RFC 9457 has it."""
    told = {"type": "about:blank", "title": title, "status": status, "detail": scrubbed(detail), **more}
    return Response(orjson.dumps(told), status, dict(headers or {}), PROBLEM)
