"""Instants from outside, made plain: the standard library's ``datetime``, in UTC.

Prefect gives pendulum's datetimes on some versions of Python, pandas and databases give
their own, and people write text. Their arithmetic, comparison and conversion
to SQL differ from the standard library's; here they end.
"""

from __future__ import annotations

from datetime import UTC, datetime


def plain(at: datetime) -> datetime:
    """Return ``at`` as a plain ``datetime`` in UTC, to the microsecond; a naive one is taken to be in UTC.

    >>> import pandas as pd
    >>> plain(pd.Timestamp("2013-04-01T02:00", tz="Europe/Paris"))
    datetime.datetime(2013, 4, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    aware = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    day = aware.year, aware.month, aware.day
    return datetime(*day, aware.hour, aware.minute, aware.second, aware.microsecond, tzinfo=UTC)


def read(text: str) -> datetime:
    """Read ``2013-04-01`` or ``2013-04-01T06:00Z``; without a zone it is UTC.

    Raises:
        ValueError: It is no instant.
    """
    return plain(datetime.fromisoformat(text))


def stamp(at: datetime) -> str:
    """Return ``at`` (UTC) to the second, as keys and ids carry it.

    >>> stamp(datetime(2013, 4, 1, 6, tzinfo=UTC))
    '2013-04-01T06:00:00Z'
    """
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def shown(at: datetime) -> str:
    """Return ``at`` (UTC) as people read it: as short as it can be said, to the second where it takes that.

    >>> at = datetime(2013, 4, 1, tzinfo=UTC)
    >>> shown(at), shown(at.replace(hour=6)), shown(at.replace(second=5))
    ('2013-04-01', '2013-04-01 06:00', '2013-04-01 00:00:05')
    """
    if at == at.replace(hour=0, minute=0, second=0, microsecond=0):
        return f"{at:%Y-%m-%d}"
    return f"{at:%Y-%m-%d %H:%M:%S}" if at.second else f"{at:%Y-%m-%d %H:%M}"
