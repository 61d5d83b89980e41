"""Who is let in: as many requests at once as are answered in 30 milliseconds; others may come again.

What waits in an event loop waits unseen, so it is counted at the door, before a request is even read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson

from headrace.serving.http import PROBLEM

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

SECONDS = 0.03
"""How long answers may take: what is let in at once is what is answered meanwhile."""
ALWAYS = 64
"""Requests that are let in at once however slow answers are."""
REFUSED = orjson.dumps(
    {
        "type": "about:blank",
        "title": "Too much is asked",
        "status": 429,
        "detail": "More is asked than can be answered in good time. Try again a little later.",
    }
)


class Admission:
    """ASGI middleware; ``refused`` counts whom it refused."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock, self.refused = app, clock, 0
        self._inside = self._done = 0
        self._most, self._since = ALWAYS, clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with 429."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if (past := self.clock() - self._since) > 1:
            self._most = max(ALWAYS, round(self._done / past * SECONDS))
            self._done, self._since = 0, self._since + past
        if self._inside >= self._most:
            self.refused += 1
            headers = [(b"content-type", PROBLEM.encode()), (b"retry-after", b"1")]
            headers.append((b"content-length", str(len(REFUSED)).encode()))
            await send({"type": "http.response.start", "status": 429, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})
            return
        self._inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._inside -= 1
            self._done += 1
