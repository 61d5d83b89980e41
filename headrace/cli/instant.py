"""How a person writes an instant on a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from headrace.instants import read

if TYPE_CHECKING:
    from datetime import datetime


def utc(text: str) -> datetime:
    """Read an instant as :func:`headrace.instants.read` does, and refuse what is none as Typer refuses."""
    try:
        return read(text)
    except ValueError:
        raise typer.BadParameter(f"`{text}` is no instant; write 2013-04-01 or 2013-04-01T06:00Z") from None
