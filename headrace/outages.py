"""Servers that are gone for a while, or have no room: one error, whichever library tells of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from headrace.errors import DamagedDatabase, HeadraceError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSING = {
    "redis": {"ConnectionError", "TimeoutError", "OutOfMemoryError", "ReadOnlyError", "ClusterDownError"},
    "psycopg": {"OperationalError"},
    "psycopg_pool": {"PoolTimeout"},
    "sqlalchemy": {"OperationalError", "InterfaceError"},
}
"""By library, the errors that may pass; named, so that none is imported to look for its own."""


@contextmanager
def outages(service: str, address: str) -> Iterator[None]:
    """Turn what drivers say of a server that is gone, or full, or of a spoilt file, into an error of ours.

    Raises:
        ServerUnreachable: Such an error, or what came of one, left the block.
        DamagedDatabase: One that says that a file is no database.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        if said := DamagedDatabase.says(error):
            raise DamagedDatabase(service, address, said) from error
        if not (cause := _passing(error)):
            raise
        raise ServerUnreachable(service, address, str(cause).strip().splitlines()[0]) from error


def _passing(error: BaseException | None) -> BaseException | None:
    """Return the first in a chain of errors that may pass."""
    while error:
        for kind in type(error).__mro__:
            if kind.__name__ in PASSING.get(kind.__module__.partition(".")[0], ()):
                return error
        error = error.__cause__ or error.__context__
    return None
