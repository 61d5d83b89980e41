"""What ails an installation: versions, disk, clocks, ports, servers, declarations; each with its cure."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace import services
from headrace.addresses import database, public, revealed
from headrace.errors import HeadraceError
from headrace.pipeline import declared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.project import Project
    from headrace.services import Service

State = Literal["well", "beware", "ill"]
GIB = 2**30
LITTLE, NO_DISK = 10 * GIB, GIB
"""Free bytes of the disk below which one should beware, and below which runs fail."""
APART = 2.0
"""Seconds by which two clocks may differ."""
SPEAK = (
    "DO_NOT_TRACK",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
    "MLFLOW_DISABLE_TELEMETRY",
    "GX_ANALYTICS_ENABLED",
)
"""What turns telemetry off, if it is set as ``headrace/__init__.py`` does."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and, if it is not well, what to do."""

    what: str
    state: State
    told: str
    cure: str = ""


def examine(project: Project) -> Iterator[Finding]:
    """Yield what is found, one after the other; what fails in an unforeseen way is a finding, too."""
    for what, look in LOOKS.items():
        try:
            yield from look(project)
        except HeadraceError as error:
            told, _, cure = str(error).rpartition(". ")
            yield Finding(what, "ill", told or str(error), cure)
        except Exception as error:  # noqa: BLE001 - of whichever library: the others are looked at all the same
            yield Finding(what, "ill", f"{type(error).__name__}: {error}", "The logs may say more.")


def _python(_: Project) -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    here, wanted = platform.python_version(), metadata("headrace")["Requires-Python"]
    fits = SpecifierSet(wanted).contains(here)
    cure = "" if fits else f"make setup PYTHON=python3.12, or another that is {wanted}"
    yield Finding("Python", "well" if fits else "ill", f"{here}, {sys.executable}", cure)
    wrong = []
    light = find_spec("prefect") is None
    extras = ("",) if light else ("", "pipelines", "torch")
    for text in requires("headrace") or ():
        need = Requirement(text)
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} is {found}, and must be {need.specifier}")
    told = "; ".join(wrong) or (
        f"headrace {version('headrace')} and all that it needs"
        + " to answer with champions; flows want `pip install 'headrace[pipelines]'`" * light
    )
    cure = "make setup, in a fresh environment" if wrong else ""
    yield Finding("packages", "ill" if wrong else "well", told, cure)


def _home(project: Project) -> Iterator[Finding]:
    home = project.settings.home.absolute()
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding("home", "ill", f"{home} cannot be written: {error}", f"chown -R $USER {home}")
        return
    free = shutil.disk_usage(there).free
    state: State = "ill" if free < NO_DISK else "beware" if free < LITTLE else "well"
    cure = "" if state == "well" else "`headrace vacuum` says what nobody needs any more"
    yield Finding("home", state, f"{home}, {free / GIB:,.0f} GiB free", cure)


def _telemetry(_: Project) -> Iterator[Finding]:
    off = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    on = [name for name in SPEAK if os.environ.get(name, "").lower() != off.get(name, "false")]
    told = f"{', '.join(on)}: set otherwise than headrace does" if on else "off, of all packages"
    cure = f"unset {' '.join(on)}" if on else ""
    yield Finding("telemetry", "beware" if on else "well", told, cure)


def _ledger(project: Project) -> Iterator[Finding]:
    if _not_made(what := revealed(project.settings.ledger)):
        yield Finding("ledger", "well", f"{public(what)}, not made yet")
        return
    claims = project.ledger.running()
    told = f"{public(revealed(project.settings.ledger))}, {len(claims)} claims hold"
    yield Finding("ledger", "well", told)
    before = time.time()
    there = project.ledger.now().timestamp()
    apart = there - (before + time.time()) / 2
    if abs(apart) > APART:
        told = f"that of the ledger's database is {apart:+.1f} s off this machine's"
        yield Finding("clocks", "beware", told, "let both follow NTP: `timedatectl set-ntp true`")


def _not_made(url: str) -> bool:
    """Say whether an address is that of an embedded database that is not there: to look would make it."""
    if url.startswith("http"):
        return False
    address = database(url)
    return address.get_backend_name() == "sqlite" and not Path(address.database or "").exists()


def _lake(project: Project) -> Iterator[Finding]:
    specs = project.sound_pipelines()
    names = {name for spec in specs for name in (*spec.raw.values(), *(t.table for t in spec.feature_tables))}
    there = sum(project.lake.table(name).exists() for name in names)
    told = f"{public(project.settings.lake)}, {there} of {len(names)} tables that are declared"
    yield Finding("lake", "well", told)


def _mlflow(project: Project) -> Iterator[Finding]:
    from headrace import registry

    if _not_made(what := revealed(project.settings.mlflow)):
        yield Finding("MLflow", "well", f"{public(what)}, not made yet")
        return
    names = registry.names(project.mlflow)
    told = f"{public(revealed(project.settings.mlflow))}, {len(names)} registered models"
    yield Finding("MLflow", "well", told)


def _features(project: Project) -> Iterator[Finding]:
    import yaml

    registry = yaml.safe_load((project.folder / "features/feature_store.yaml").read_text())["registry"]
    path = registry if isinstance(registry, str) else str(registry.get("path", ""))
    if "://" not in path and not (project.settings.home / path).exists():  # to open it would make it
        yield Finding("Feast", "well", f"{path}, not made yet")
        return
    applied = project.store.list_feature_services()
    yield Finding("Feast", "well", f"{len(applied)} feature services are applied")


def _dask(project: Project) -> Iterator[Finding]:
    from headrace.cluster import cluster, crew

    settings = project.settings
    if not settings.dask_address:
        yield Finding("Dask", "well", f"on this machine, {settings.dask_workers} worker(s)")
        return
    with cluster(settings.dask_address) as client:
        workers = crew(client)
    state: State = "well" if workers else "ill"
    cure = "" if workers else "start a worker of it: `dask worker ADDRESS`"
    yield Finding("Dask", state, f"{public(settings.dask_address)}, {len(workers)} workers", cure)


def _ports(project: Project) -> Iterator[Finding]:
    """Say of each server of ``headrace up`` if it answers, and else if it could start."""
    settings = project.settings
    servers = [server(settings) for server in services.OTHERS]
    if not project.mlflow.served:
        servers.insert(0, services.mlflow_server(settings))
    if services.is_here(settings):
        servers.insert(0, services.prefect_server(settings))
    for service in servers:
        if not services.listens(service):
            yield Finding(service.name, "well", f"not up; its port is free ({_address(service)})")
        elif services.answers(service):
            yield Finding(service.name, "well", f"answers at {_address(service)}")
        else:
            cure = f"end what holds the port, or choose another with {service.setting}"
            yield Finding(service.name, "beware", f"something else is at {_address(service)}", cure)


def _prefect(project: Project) -> Iterator[Finding]:
    settings = project.settings
    here = services.is_here(settings)
    if not here or services.answers(services.prefect_server(settings)):
        services.reach_prefect(settings)
    if not here:
        yield Finding("Prefect", "well", f"answers at {public(settings.prefect_api_url)}")


def _address(service: Service) -> str:
    return service.health.split("/", 3)[2]


def _worker(project: Project) -> Iterator[Finding]:
    """Say if somebody runs what is scheduled; of a Prefect that is not up there is nothing to say."""
    import httpx

    try:
        with services.prefect_api(project.settings) as api:
            answer = api.post("work_pools/headrace/workers/filter", json={}, timeout=10)
            pools = answer.json() if answer.is_success else []
            found = api.post("deployments/filter", json={}, timeout=10).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return
    online = [one for one in pools if one.get("status") == "ONLINE"]
    state: State = "well" if online else "beware"
    cure = "" if online else "`make up` runs one; by hand, `prefect worker start --pool headrace`"
    yield Finding("worker", state, f"{len(online)} online in the work pool `headrace`", cure)
    named = {one["parameters"].get("pipeline") for one in found}
    missing = [name for name in declared() if name not in named]
    told = f"{len(found)}; none of {', '.join(missing)}" if missing else f"{len(found)}"
    cure = "add them to prefect.yaml, then `headrace deploy`" if missing else ""
    yield Finding("deployments", "beware" if missing else "well", told, cure)


def _pipelines(project: Project) -> Iterator[Finding]:
    if not declared():
        yield Finding("pipelines", "beware", "none is declared", "`headrace new` makes one of a table")
    for name in declared():
        try:
            spec = project.pipeline(name)
        except HeadraceError as error:
            yield Finding(f"pipeline {name}", "ill", str(error), f"mend pipelines/{name}.py")
        else:
            yield Finding(f"pipeline {name}", "well", spec.about)


LOOKS: dict[str, Callable[[Project], Iterator[Finding]]] = {
    "packages": _python,
    "home": _home,
    "telemetry": _telemetry,
    "ledger": _ledger,
    "lake": _lake,
    "MLflow": _mlflow,
    "Feast": _features,
    "Dask": _dask,
    "Prefect": _prefect,
    "ports": _ports,
    "worker": _worker,
    "pipelines": _pipelines,
}
