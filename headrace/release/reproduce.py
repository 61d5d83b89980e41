"""Reproducing a release: made again from what was noted of it, and compared byte for byte."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace import spine, tracking, training
from headrace.cluster import crew, gpus
from headrace.instants import read
from headrace.lake import DamagedTable, DatasetRef, Lake, NotBuilt, VersionGone
from headrace.recipe import LOCK, Code, Environment, repository
from headrace.release.errors import NotReproducible
from headrace.training import dataset
from headrace.training.model import sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow as pa
    from dask.distributed import Client

    from headrace.pipeline import Pipeline
    from headrace.recipe import Recipe
    from headrace.registry import Release
    from headrace.tracking import MLflow

    Historical = Callable[[Mapping[str, int]], Callable[[pa.Table], pa.Table]]


@dataclass(frozen=True)
class Compared:
    """What was made again; ``off`` says how it differs, and likely why: nothing if it is the same."""

    what: str
    off: str = ""


@contextmanager
def checked_out(recipe: Recipe, folder: Path) -> Iterator[Path]:
    """Yield a folder with the code that made a model: ``folder``, or the same one in a worktree.

    Raises:
        NotReproducible: The repository has no such commit, or the changes that came on top do not fit.
    """
    if not recipe.code.commit or recipe.code == Code.of(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="headrace-reproduce-") as scratch:
        place = Path(scratch, "code")
        _git(folder, "worktree", "add", "--detach", str(place), recipe.code.commit, why=NO_COMMIT)
        try:
            if recipe.code.cut:
                raise NotReproducible("more had been changed since its commit than is kept")
            if recipe.code.changes:
                told = recipe.code.changes.encode(errors="surrogateescape")
                _git(place, "apply", "--binary", "-", given=told, why=NO_FIT)
            yield place / folder.resolve().relative_to(repository(folder).resolve())
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(place)],
                cwd=folder,
                capture_output=True,
                check=False,
            )


NO_COMMIT = "its commit {commit} is not in this repository: fetch it, then try again"
NO_FIT = "what had been changed since its commit does not fit"


def _git(folder: Path, *arguments: str, why: str, given: bytes | None = None) -> None:
    done = subprocess.run(["git", *arguments], cwd=folder, input=given, capture_output=True, check=False)
    if done.returncode:
        commit = next((a for a in arguments if len(a) == 40), "")
        raise NotReproducible(f"{why.format(commit=commit[:12])} ({done.stderr.decode().strip()})")


def environment(recipe: Recipe, folder: Path) -> list[str]:
    """Say how this environment differs from the one that made a model: in what may matter to it."""
    then, now = recipe.environment, Environment.here(folder)
    told = []
    if then.lock and now.lock and then.lock != now.lock:
        told.append(f"{LOCK} is another one than then")
    for what in ("python", "machine"):
        was, is_ = getattr(then, what), getattr(now, what)
        if was != is_:
            told.append(f"{what} was {was}, and is {is_}")
    others = {
        name: (was, now.packages.get(name, "not installed"))
        for name, was in then.packages.items()
        if now.packages.get(name) != was
    }
    told += [f"{name} was {was}, and is {is_}" for name, (was, is_) in others.items()]
    return told


def reproduce(
    spec: Pipeline,
    release: Release,
    recipe: Recipe,
    lake: Lake,
    mlflow: MLflow,
    historical: Historical,
    client: Client,
    folder: Path,
) -> Iterator[Compared]:
    """Make training set and model again, in a folder of their own, and compare them with what was kept.

    Args:
        spec: The pipeline, as the code declares it that made the model.
        release: What to make again.
        recipe: How it was made.
        lake: Where raw and feature tables are, at the versions of then.
        mlflow: Where the model is.
        historical: Returns, for versions of feature tables, what joins them to a spine.
        client: As many of Dask's workers as then.
        folder: Where the code lies.
    """
    was, as_of = DatasetRef.of(recipe.training), read(recipe.as_of)
    pins, unlike = dict(was.pins), environment(recipe, folder)
    features = {name: version for name, version in pins.items() if name not in spec.raw.values()}
    workers = crew(client)
    if any(one["gpu"] for one in recipe.workers) and not gpus(workers):
        unlike.append("it was fitted on GPUs, of which there are none here")
    suspects = f" Likely because {'; '.join(unlike)}." if unlike else ""
    with tempfile.TemporaryDirectory(prefix="headrace-reproduce-") as scratch:
        again = Lake(f"{scratch}/lake")
        try:
            made = dataset.build(spec, lake, as_of, historical(features), pins, into=again)
        except (DamagedTable, VersionGone, NotBuilt) as error:
            yield Compared("training set", f"cannot be made again: {error}")
            return
        off = _off(was, made)
        yield Compared("training set", off and off + (suspects or _code(recipe)))

        candidate = replace(spec.candidates[0], **recipe.candidate)
        rows = dataset.learnt(spec, made, again, recipe.spans)
        model = training.fit(candidate, rows, spec.columns, spec.problem, client)
        model.save(Path(scratch, "model"))
        kept = tracking.load_model(mlflow, release.model_uri)
        ours, theirs = sums(Path(scratch, "model")), tracking.sums(mlflow, release.model_uri)
        wrong = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        why = suspects or _code(recipe)
        if wrong == ["model.json"]:
            wrong, why = ["model.json, which names the versions that it was written with"], suspects
        yield Compared("model", f"differs in {', '.join(wrong)}.{why}" if wrong else "")

        held_out = dataset.read(spec, made, again, [spine.HOLDOUT])
        off_by = np.abs(model.predict(held_out) - kept.predict(held_out)).reshape(held_out.num_rows, -1)
        differ, most = int(off_by.any(axis=1).sum()), float(off_by.max(initial=0))
        told = f"{differ:,} of {held_out.num_rows:,} differ, by {most:.3g} at most.{suspects}"
        yield Compared("predictions of the holdout", told if differ else "")


def _off(was: DatasetRef, made: DatasetRef) -> str:
    if was.rows != made.rows:
        return f"has {made.rows:,} rows, and had {was.rows:,}."
    if was.fingerprint != made.fingerprint:
        return (
            f"has other values in its {made.rows:,} rows (fingerprint {made.fingerprint}, "
            f"was {was.fingerprint})."
        )
    return ""


def _code(recipe: Recipe) -> str:
    return "" if recipe.code.commit else " It is not known which code made it: it was in no repository."
