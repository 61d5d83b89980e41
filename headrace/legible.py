"""What comes from data, as a line that is safe to read: in a terminal, a log, a message, an artifact."""

from __future__ import annotations

import re
from html import escape

LONG = 200
"""Characters after which a value is cut."""
CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")


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


def markdown(message: object) -> str:
    r"""Return a message as Markdown that shows it as it is, but for what it has between backticks, as code.

    >>> print(markdown("`a_b` is *odd* <img src=x>"))
    `a_b` is \*odd\* &lt;img src=x&gt;
    """
    line = legible(message, 10 * LONG)
    said, shown = 0, []
    for code in CODE.finditer(line):
        shown += [_plain(line[said : code.start()]), code[0]]
        said = code.end()
    return "".join([*shown, _plain(line[said:])])


def _plain(text: str) -> str:
    # With `:`, `@` and the dot of `www.`, nothing becomes a link by itself.
    return re.sub(r"([\\`*_\[\]()|~!#:@]|(?<=www)\.)", r"\\\1", escape(text, quote=False))
