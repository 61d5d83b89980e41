"""What comes from data, as a line that is safe to read: in a terminal, in a log, in a message."""

from __future__ import annotations

LONG = 200
"""Characters after which a value is cut."""


def legible(value: object, most: int = LONG) -> str:
    r"""Return ``value`` as text without what a terminal obeys, and cut if it is long.

    >>> legible("\x1b[2Jgone\n")
    '\\x1b[2Jgone\\n'
    >>> legible("a" * 1_000_000, most=3)
    'aaa… (1,000,000 characters)'
    """
    said = str(value)
    more = f"… ({len(said):,} characters)" if len(said) > most else ""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in said[:most])
    return "".join(shown) + more


def legible_lines(message: object) -> str:
    """Return a message with each of its lines made legible: they are ours, and may be longer than values."""
    return "\n".join(legible(line, 10 * LONG) for line in str(message).split("\n"))
