"""How a person writes an instant on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

import typer


def utc(text: str) -> datetime:
    """Read ``2013-04-01`` or ``2013-04-01T06:00Z``; without a zone it is UTC."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"`{text}` is no instant; write 2013-04-01 or 2013-04-01T06:00Z") from None
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
