"""A project of one's own, made of the one that comes with headrace, and brought to a newer headrace.

template ─▶ project, and digests of what was written ─▶ newer template ─▶ what changed here, there, or in both
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal

from headrace.scaffold.errors import BadProjectName, NotATemplate, NotEmpty

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILES = Path(__file__).parent / "files"
PACKAGE = Path(__file__).parents[1]
MADE_BY = ".headrace-files.json"
"""Which files were written, by what they held, and by which version of headrace."""
SHARED = ("flows", "deployments", "tests/test_project.py")
"""What ``upgrade`` brings: the rest is the project's own from the start."""
OWN = {
    "pyproject.toml": "pyproject.toml.in",
    "Makefile": "Makefile.in",
    "README.md": "README.md.in",
    ".gitignore": "gitignore.in",
    ".gitlab-ci.yml": "gitlab.yml.in",
    ".github/workflows/test.yml": "github.yml.in",
    "tests/test_project.py": "tests/test_project.py.in",
}


@dataclass(frozen=True)
class Change:
    """What a newer headrace has for a ``file`` of a project, and how it differs from what is there.

    It is ``new``, ``changed``, ``gone`` (headrace has it no longer), or changed in ``both`` places.
    """

    file: Path
    kind: Literal["new", "changed", "gone", "both"]
    difference: str
    content: bytes


def template() -> Path:
    """Return the folder of the project that comes with headrace: in a checkout, the checkout."""
    packed = PACKAGE / "template"
    return packed if packed.exists() else PACKAGE.parent


def init(folder: Path, *, example: bool) -> list[Path]:
    """Make a project in ``folder``, whole or not at all; return its files.

    With the ``example``, New York's flights are in it.

    Raises:
        BadProjectName: The folder's name cannot be a project's.
        NotEmpty: There is something in the folder.
    """
    name = folder.name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise BadProjectName(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise NotEmpty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    contents = dict(_contents(name, example=example))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        made = Path(scratch, name)
        for file, content in contents.items():
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).write_bytes(content)
        _note(made, {file: content for file, content in contents.items() if _shared(file)})
        if folder.exists():
            folder.rmdir()
        shutil.move(made, folder)
    return [Path(file) for file in sorted(contents)]


def upgrade(folder: Path) -> list[Change]:
    """Return what this headrace has otherwise than the project in ``folder``; nothing is written.

    Raises:
        NotATemplate: The project was not made by ``headrace init``.
    """
    noted = folder / MADE_BY
    if not noted.exists():
        raise NotATemplate(folder)
    before: Mapping[str, str] = json.loads(noted.read_text())["files"]
    now = {file: content for file, content in _contents(folder.name, example=False) if _shared(file)}
    found = []
    for file in sorted({*before, *now}):
        there = (folder / file).read_bytes() if (folder / file).exists() else None
        content, had = now.get(file), before.get(file)
        if content is None:
            if there is not None and _digest(there) == had:
                found.append(Change(Path(file), "gone", _difference(file, there, b""), b""))
        elif _digest(content) == had or content == there:
            continue  # headrace has not changed it, or the project has the same already
        elif there is None and had is not None:
            continue  # the project did without it
        else:
            kind: Literal["new", "changed", "both"] = (
                "new" if there is None else "changed" if _digest(there) == had else "both"
            )
            found.append(Change(Path(file), kind, _difference(file, there or b"", content), content))
    return found


def apply(folder: Path, changes: list[Change]) -> None:
    """Write changes to a project; where both changed a file, headrace's comes beside it, as ``.new``."""
    for change in changes:
        file = folder / change.file
        if change.kind == "gone":
            file.unlink(missing_ok=True)
            continue
        if change.kind == "both":
            file = file.with_name(f"{file.name}.new")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(change.content)
    _note(folder, {file: content for file, content in _contents(folder.name, example=False) if _shared(file)})


def _contents(name: str, *, example: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a new project, with what they hold."""
    root = template()
    parts = ["flows", "deployments", *(["features", "pipelines", "validations"] if example else [])]
    for part in parts:
        for file in sorted((root / part).rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                yield file.relative_to(root).as_posix(), file.read_bytes()
    if not example:
        for part in ("features", "pipelines", "validations"):
            yield f"{part}/__init__.py", (root / part / "__init__.py").read_bytes()
    store = (root / "features" / "feature_store.yaml").read_text()
    plain = re.sub(r"\W", "_", name).lower()
    yield "features/feature_store.yaml", store.replace("project: headrace", f"project: {plain}", 1).encode()
    yield "prefect.yaml", _deployments(root, name, example=example).encode()
    said = {"name": name, "version": version("headrace")}
    for place, of in OWN.items():
        yield place, Template((FILES / of).read_text()).substitute(said).encode()


def _deployments(root: Path, name: str, *, example: bool) -> str:
    text = (root / "prefect.yaml").read_text()
    text = re.sub(r"^name: headrace$", f"name: {name}", text, count=1, flags=re.MULTILINE)
    if example:
        return text
    about = "# Every deployment, schedule and trigger: `headrace new` adds to them, `make up` deploys them.\n"
    begin, end = text.index("name: "), text.index("deployments:\n")
    return f"{about}{text[begin:end]}deployments: []\n"


def _shared(file: str) -> bool:
    return any(file == part or file.startswith(f"{part}/") for part in SHARED)


def _note(folder: Path, contents: Mapping[str, bytes]) -> None:
    files = {file: _digest(content) for file, content in sorted(contents.items())}
    text = json.dumps({"headrace": version("headrace"), "files": files}, indent=1)
    (folder / MADE_BY).write_text(f"{text}\n")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _difference(file: str, before: bytes, after: bytes) -> str:
    old, new = (content.decode(errors="replace").splitlines(keepends=True) for content in (before, after))
    return "".join(difflib.unified_diff(old, new, f"here/{file}", f"headrace/{file}"))
