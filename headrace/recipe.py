"""The recipe: all that it takes to make a model again, kept beside it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.cluster import Worker

FILE = "recipe.json"
LOCK = "requirements.lock"
MOST = 5_000_000
"""How many characters of changes are kept."""
CODE = (".py", ".sql", ".yaml", ".yml", ".toml", ".lock")
"""What of files that git does not know yet is code: neither data nor an .env is."""


@dataclass(frozen=True)
class Code:
    """A commit, and as a patch what had been changed since, and new code; both empty outside of a repository.

    ``cut`` says that there were more changes than are kept.
    """

    commit: str = ""
    changes: str = ""
    cut: bool = False

    @classmethod
    def of(cls, folder: Path) -> Code:
        """Return the code of the repository that ``folder`` is in: also new files that are not ignored."""
        try:
            commit, top = _git(folder, "rev-parse", "--verify", "HEAD").strip(), repository(folder)
        except (OSError, subprocess.CalledProcessError):
            return cls()
        changes = _git(top, "diff", "--binary", "HEAD")
        for name in _git(top, "ls-files", "--others", "--exclude-standard", "-z").split("\0"):
            if name.endswith(CODE) and len(changes) <= MOST:
                with suppress(subprocess.CalledProcessError):  # it is gone again
                    new = ("diff", "--binary", "--no-index", "--", os.devnull, name)
                    changes += _git(top, *new, ends=(0, 1))
        return cls(commit, changes[:MOST], len(changes) > MOST)


@dataclass(frozen=True)
class Environment:
    """What ran it: Python, the machine, the installed distributions by name, and the digest of the lock."""

    python: str
    machine: str
    cores: int
    packages: Mapping[str, str] = field(hash=False)
    lock: str = ""

    @classmethod
    def here(cls, folder: Path) -> Environment:
        """Return this process's own, and the lock file of ``folder``."""
        lock = ""
        with suppress(OSError):
            lock = hashlib.sha256((folder / LOCK).read_bytes()).hexdigest()
        return cls(platform.python_version(), platform.machine(), os.cpu_count() or 0, _installed(), lock)


@dataclass(frozen=True)
class Recipe:
    """Of which ``training`` set, by which ``candidate``, ``code`` and ``environment``, on which ``workers``.

    ``columns`` are what the model takes. The candidate's parameters are those that it was fitted with:
    what was settled on the way is among them.
    """

    pipeline: str
    candidate: Mapping[str, Any] = field(hash=False)
    columns: Sequence[str]
    spans: Sequence[str]
    training: Mapping[str, Any] = field(hash=False)
    as_of: str
    cause: str
    workers: Sequence[Mapping[str, Any]]
    code: Code
    environment: Environment

    def dump(self) -> bytes:
        """Return it as JSON."""
        return (json.dumps(asdict(self), indent=1, default=str) + "\n").encode()

    @classmethod
    def load(cls, data: bytes) -> Recipe:
        """Return what ``dump`` wrote."""
        told = json.loads(data)
        code, environment = Code(**told.pop("code")), Environment(**told.pop("environment"))
        return cls(**told, code=code, environment=environment)


def repository(folder: Path) -> Path:
    """Return where the git repository begins that ``folder`` is in."""
    return Path(_git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))


def crew_of(workers: Sequence[Worker]) -> list[dict[str, Any]]:
    """Return what of Dask's workers a model may depend on."""
    return [{"threads": worker.threads, "gpu": worker.gpu} for worker in workers]


@cache
def _installed() -> dict[str, str]:
    found = {str(one.metadata["Name"]).lower(): one.version for one in distributions()}
    return dict(sorted(found.items()))


def _git(folder: Path, *arguments: str, ends: Sequence[int] = (0,)) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode not in ends:
        raise subprocess.CalledProcessError(done.returncode, arguments)
    return done.stdout.decode(errors="surrogateescape")
