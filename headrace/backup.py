"""All state of an installation as of one point in time, in a folder; and brought back, into any other home.

ledger ─▶ MLflow, Prefect, Feast ─▶ artifacts ─▶ lake: what is copied later has all that what was copied
before refers to. What is brought back is compared with what was noted, by fingerprints.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import integrity, registry, tracking
from headrace.addresses import database, revealed
from headrace.errors import HeadraceError
from headrace.instants import stamp
from headrace.lake import DatasetRef, Lake
from headrace.ledger import Ledger
from headrace.release import study
from headrace.tracking import MLflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.project import Project
    from headrace.settings import Settings

NOTED = "backup.json"
FOLDERS = (
    *("raw", "quarantine", "features", "training", "predictions", "out_of_sample"),
    *("served", "feedback", "metrics"),
)
"""Folders of the lake."""
DATABASES = ("mlflow/mlflow.db", "prefect/prefect.db", "feast/registry.db", "feast/online.db")
"""Files below the home that processes write while they are copied; Feast's registry is written whole."""
TREES = ("mlflow/artifacts", "served", "staging", "validations")
FILES = ("api_keys.json",)
"""What else lies below the home and cannot be made again; logs, pages and downloads can."""


class KeptElsewhere(HeadraceError):
    """A server keeps what a backup would have to copy."""

    def __init__(self, what: str, setting: str) -> None:
        self.what = what
        super().__init__(
            f"{what} is kept by a server ({setting}): its own tools back it up. Nothing was copied. For one "
            "point of all, pause the schedules, and wait until `headrace claims list` has none."
        )


class NotFree(HeadraceError):
    """A backup, or what it is brought back into, would overwrite something."""

    def __init__(self, place: object, what: str) -> None:
        self.place = place
        super().__init__(f"`{place}` {what}. Nothing was written. Name a place where nothing is.")


class NoBackup(HeadraceError):
    """A folder is no backup."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"`{folder}` has no {NOTED}: `headrace backup` did not make it. Name one that it made."
        )


@dataclass(frozen=True)
class Compared:
    """What was brought back, and how it differs from what was noted; ``wrong`` is empty if it does not."""

    what: str
    wrong: str


def backup(project: Project, into: Path) -> dict[str, Any]:
    """Copy all state into the folder ``into``, whole or not at all, while flows go on; return what was noted.

    Raises:
        KeptElsewhere: A server has MLflow's database.
        NotFree: The folder is there already.
    """
    settings = project.settings
    if into.exists():
        raise NotFree(into, "is there already")
    if not _embedded(settings):
        raise KeptElsewhere("MLflow", "HEADRACE_MLFLOW")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as scratch:
        made = Path(scratch, into.name)
        made.mkdir()
        ledger = Ledger(f"sqlite:///{made / 'ledger.db'}")
        entries, studies = project.ledger.copy(ledger), study.copy(project.ledger, ledger)
        for name in DATABASES:
            _copy_database(settings.home / name, made / name)
        for name in TREES:
            _copy_tree(settings.home / name, made / name)
        for name in FILES:
            if (settings.home / name).exists():
                shutil.copy2(settings.home / name, made / name)
        _copy_lake(settings.lake, str(made / "lake"))
        noted = {
            "headrace": version("headrace"),
            "at": stamp(datetime.now(UTC)),
            "artifacts": tracking.artifact_root(settings.home),
            "entries": entries,
            "studies": studies,
            "tables": [asdict(ref) for ref in _snapshots(Lake(str(made / "lake")))],
            "models": _models(_registry(made)),
        }
        (made / NOTED).write_text(json.dumps(noted, indent=1))
        shutil.move(made, into)
    return noted


def restore(folder: Path, settings: Settings) -> Iterator[Compared]:
    """Bring a backup back to where ``settings`` point, and yield how each part compares with what was noted.

    The home must hold no state, and no other place that is set either.

    Raises:
        NoBackup: The folder is none.
        NotFree: There is state where it would go.
        KeptElsewhere: A server is to have MLflow's database.
    """
    if not (folder / NOTED).exists():
        raise NoBackup(folder)
    noted: Mapping[str, Any] = json.loads((folder / NOTED).read_text())
    if not _embedded(settings):
        raise KeptElsewhere("MLflow", "HEADRACE_MLFLOW")
    there = [name for name in (*DATABASES, *TREES) if (settings.home / name).exists()]
    lake, ledger = Lake(settings.lake), Ledger(settings.ledger)
    if there:
        raise NotFree(settings.home / there[0], "is there already")
    if any(lake.below(part) for part in FOLDERS):
        raise NotFree(settings.lake, "has tables already")
    if not ledger.empty():
        raise NotFree("HEADRACE_LEDGER", "has entries already")
    for name in (*DATABASES, *FILES):
        if (folder / name).exists():
            (settings.home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, settings.home / name)
    for name in TREES:
        _copy_tree(folder / name, settings.home / name)
    _readdress(settings.home / "mlflow/mlflow.db", noted["artifacts"], tracking.artifact_root(settings.home))
    _copy_lake(str(folder / "lake"), settings.lake)
    copied = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    counts = {"studies": study.copy(copied, ledger), "entries": copied.copy(ledger)}  # last: flows believe it
    for what, count in counts.items():
        yield Compared(
            f"ledger, {count:,} {what}", "" if count == noted[what] else f"{noted[what]:,} were noted"
        )
    yield from _compared(noted, lake, MLflow(settings.mlflow, settings.home))


def _compared(noted: Mapping[str, Any], lake: Lake, mlflow: MLflow) -> Iterator[Compared]:
    for told in noted["tables"]:
        ref = DatasetRef.of(told)
        found = lake.table(ref.table).snapshot()
        wrong = "" if found == ref else f"{found.rows:,} rows at version {found.version}, or other ones"
        yield Compared(f"{ref.table}, {ref.rows:,} rows", wrong)
    models = _models(mlflow)
    for name, versions in noted["models"].items():
        wrong = "" if models.get(name) == versions else "other versions, or other files"
        damaged = [one.wrong for one in integrity.check(name, lake, mlflow) if one.wrong]
        yield Compared(f"model {name}, {len(versions)} versions", "; ".join([wrong] * bool(wrong) + damaged))


def _models(mlflow: MLflow) -> dict[str, dict[str, Any]]:
    """Return what each version of each model is: its digest and its aliases."""
    found: dict[str, dict[str, Any]] = {}
    for name in registry.names(mlflow):
        aliases = registry.aliases(mlflow, name)
        found[name] = {
            str(one.version): [tracking.digest_of(mlflow, one.run_id), sorted(aliases.get(one.version, []))]
            for one in registry.versions(mlflow, name)
        }
    return found


def _registry(home: Path) -> MLflow:
    return MLflow(f"sqlite:///{home / 'mlflow/mlflow.db'}", home)


def _snapshots(lake: Lake) -> list[DatasetRef]:
    return [lake.table(name).snapshot() for folder in FOLDERS for name in lake.below(folder)]


def _embedded(settings: Settings) -> bool:
    url = revealed(settings.mlflow)
    if url.startswith("http"):
        return False
    place = database(url).database
    return place is not None and Path(place).absolute() == (settings.home / DATABASES[0]).absolute()


def _copy_database(source: Path, target: Path) -> None:
    """Copy a file, if it is there; a SQLite database as of one instant, whoever writes."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        is_sqlite = file.read(16).startswith(b"SQLite format 3")
    if not is_sqlite:
        shutil.copy2(source, target)
        return
    with closing(sqlite3.connect(source, timeout=60)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy the files of a folder, if it is there, but for those that somebody deletes meanwhile."""
    for file in source.rglob("*"):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # such as a batch that has landed
            shutil.copy2(file, place)


def _readdress(file: Path, old: str, new: str) -> None:
    """Let MLflow find its artifacts where they are now."""
    if not file.exists() or old == new:
        return
    with closing(sqlite3.connect(file)) as con, con:
        tables = [name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in con.execute(f'PRAGMA table_info("{table}")').fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    name = f'"{column}"'
                    changed = f'UPDATE "{table}" SET {name} = replace({name}, ?, ?) WHERE instr({name}, ?)'
                    con.execute(changed, (old, new, old))


def _copy_lake(source: str, target: str) -> None:
    """Copy the tables of a lake, each with its log first: what the log names is there when its turn comes.

    What is gone by then no log names, or else reading the copy says so.
    """
    import fsspec

    old, new = Lake(source), Lake(target)
    (store, _), (other, _) = (fsspec.core.url_to_fs(place.root) for place in (old, new))
    for name in (name for folder in FOLDERS for name in old.below(folder)):
        root = fsspec.core.url_to_fs(f"{old.root.rstrip('/')}/{name}")[1]
        files = sorted(store.find(root), key=lambda path: "/_delta_log/" not in path)
        there = fsspec.core.url_to_fs(f"{new.root.rstrip('/')}/{name}")[1]
        for file in files:
            place = f"{there}/{file.removeprefix(root).lstrip('/')}"
            other.makedirs(place.rpartition("/")[0], exist_ok=True)
            with (
                suppress(FileNotFoundError),
                store.open(file, "rb") as reader,
                other.open(place, "wb") as writer,
            ):
                shutil.copyfileobj(reader, writer, 2**20)
