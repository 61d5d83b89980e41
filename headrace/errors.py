"""The base of every error that headrace raises on purpose, and those that several rooms raise.

Each ends in what to do next. What one room alone has to say is its own: see its ``errors``, or the module.
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headrace.addresses import public, scrubbed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def did_you_mean(name: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """Return a question, after a space, about the one of ``known`` that is most like ``name``; or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" Did you mean `{near[0]}`?" if near else ""


class HeadraceError(Exception):
    """Base of all errors a user is expected to meet; the message says what to do.

    A ``transient`` one may not come up again when the same is tried a little later.
    """

    transient = False

    def __init__(self, message: str) -> None:
        super().__init__(scrubbed(message))

    def __reduce__(self) -> tuple[Any, ...]:
        # Else unpickling would call the class with the message alone: errors come home from Dask's workers.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class BrokenDeclaration(HeadraceError):
    """A file of ``pipelines/`` or ``features/`` does not declare what it must, in one way or several."""

    def __init__(self, file: str, slips: Sequence[str]) -> None:
        self.file, self.slips = file, tuple(slips)
        told = "\n".join(f"  - {slip}" for slip in slips)
        explained = "`headrace/pipeline.py`" if file.startswith("pipelines/") else "Feast's documentation"
        super().__init__(
            f"`{file}` does not declare what it must:\n{told}\n"
            f"Nothing was done. Mend it; {explained} explains every field."
        )


class InvalidQuery(HeadraceError):
    """A query of a declaration cannot be run."""

    def __init__(self, what: str, where: str, reason: str) -> None:
        self.what, self.where, self.reason = what, where, reason
        super().__init__(
            f"{what} cannot be run: {reason.strip()}\nNothing was written. Mend `{where}`, then run again."
        )


class DamagedDatabase(HeadraceError):
    """A database's file is no database, or not a whole one."""

    SAID = ("file is not a database", "database disk image is malformed", "file is encrypted")
    WITHOUT: Mapping[str, str] = {
        "The ledger": "move the file away: work that was done once may then be done again, and scoring waits "
        "for the next promotion",
        "MLflow's database": "move the folder `mlflow` away: the models are gone, and `train` makes a first "
        "one again",
        "Feast's online store": "move the file away: `materialize` fills it again",
    }

    def __init__(self, what: str, address: str, reason: str) -> None:
        self.what, self.address, self.reason = what, public(address), scrubbed(reason, address)
        super().__init__(
            f"{what} at {self.address} is damaged: {self.reason}. Nothing was done. Restore it from a "
            f"backup. Without one, {self.WITHOUT[what]}."
        )

    @classmethod
    def says(cls, error: BaseException) -> str:
        """Return what SQLite says of a damaged file, if that is what an error is about."""
        return next((said for said in cls.SAID if said in str(error)), "")


class DiskRefused(HeadraceError):
    """A disk is full, or what lies on it is not for this user."""

    SAID = ("No space left", "disk is full", "ermission denied", "Read-only file system", "readonly database")
    """How the system, SQLite, Delta and DuckDB put it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{reason.rstrip('.')}. Nothing is left half-written that anybody reads. Make room, or let this "
            "user read and write there, then run the same again: it goes on from what was written."
        )


@contextmanager
def disks_explained() -> Iterator[None]:
    """Turn the errors of full and forbidden disks, of which each library has its own, into one."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        said = [line for line in str(error).splitlines() if any(words in line for words in DiskRefused.SAID)]
        if not said:
            raise
        raise DiskRefused(said[0]) from error


class ServerUnreachable(HeadraceError):
    """A server that the work needs does not answer."""

    transient = True

    def __init__(self, service: str, address: str, reason: str) -> None:
        self.service, self.address, self.reason = service, public(address), scrubbed(reason, address)
        super().__init__(
            f"{service} does not answer at {self.address}: {self.reason}. Start it (`make up` starts Prefect "
            "and MLflow), or point headrace at a running one (see README, “Real servers”)."
        )
