"""Addresses may hold secrets: what is shown of them, and where they are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import SecretStr
    from sqlalchemy import URL

IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://\S*?(?=[\"'`.,;:)\]>]*(?:\s|$))")


def public(address: object) -> str:
    """Return an address without user, password and query; a path is as it is.

    A password may hold any character: what cannot be told from one is not shown.

    >>> public("https://me:p@ss@example.org/a.csv?sig=abc")
    'https://example.org/a.csv?…'
    >>> public("data/2013-0?.csv")
    'data/2013-0?.csv'
    """
    scheme, is_one, rest = str(address).partition("://")
    if not is_one:
        return scheme
    if re.match(r"[^/?#]*[:@]", rest):  # else an `@` is one of the path's
        secret, _, rest = rest.rpartition("@")
        if "?" in secret or "#" in secret:  # of a password, or of a query that holds an `@`
            return f"{scheme}://…"
    place, asks, _ = rest.partition("?")
    return f"{scheme}://{place}{'?…' if asks else ''}"


def scrubbed(text: str, *known: object) -> str:
    """Return a text, such as somebody else's message, with the addresses in it as ``public`` shows them.

    Those that are ``known`` are found as they are; others end at the next space.

    >>> scrubbed("404 for 'https://example.org/a.csv?sig=abc', given up")
    "404 for 'https://example.org/a.csv?…', given up"
    """
    for address in known:
        text = text.replace(str(address), public(address))
    return IN_TEXT.sub(lambda found: public(found[0]), text)


def revealed(address: str | SecretStr) -> str:
    """Return an address to connect to; not to be shown."""
    return address if isinstance(address, str) else address.get_secret_value()


def database(address: str) -> URL:
    """Read SQLAlchemy's URL of a database.

    Raises:
        ValueError: It is none. The reason does not repeat it.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise ValueError("it is no valid URL of a database, as SQLAlchemy reads them") from None
    if "@" in (url.host or ""):
        raise ValueError("it is no valid URL: in a user or a password, `@` is written `%40`")
    return url
