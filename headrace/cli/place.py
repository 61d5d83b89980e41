"""Where a command was typed, and the project around it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from headrace.services import NotAProject

HERE = Path.cwd()
"""The folder in which the command was typed; it then goes to the project's."""


def enter() -> None:
    """Go to the folder of the project, which is this one or one above it, and import its code from there.

    Raises:
        NotAProject: None of them is one.
    """
    found = next((folder for folder in (HERE, *HERE.parents) if (folder / "prefect.yaml").exists()), None)
    if found is None:
        raise NotAProject(HERE)
    os.chdir(found)
    if str(found) not in sys.path:
        sys.path.insert(0, str(found))


def typed(path: str) -> str:
    """Return a path as it was meant where it was typed; a URI is one anywhere."""
    return path if "://" in path else str(HERE / path)
