"""What is known of each registered version, for people to list, search and compare."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace import registry, tracking
from headrace.release.errors import BadSearch, UnknownRelease

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.lake import DatasetRef
    from headrace.pipeline import Pipeline
    from headrace.recipe import Recipe
    from headrace.registry import Release
    from headrace.tracking import MLflow

COMPARES: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
BOUND = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>|=)\s*(\S+)\s*")


@dataclass(frozen=True)
class About:
    """A version, its ``aliases``, and what its run has: scores, parameters, tags, what it was made of.

    ``recipe`` is None for a version of before recipes were kept.
    """

    release: Release
    aliases: Sequence[str]
    scores: Mapping[str, float] = field(hash=False)
    params: Mapping[str, str] = field(hash=False)
    tags: Mapping[str, str] = field(hash=False)
    data: Sequence[DatasetRef]
    recipe: Recipe | None

    @property
    def name(self) -> str:
        """How it is called: ``flights@3``."""
        return f"{self.release.pipeline}@{self.release.version}"

    @property
    def features(self) -> list[str]:
        """What it takes."""
        return list(self.recipe.columns) if self.recipe else []


def about(mlflow: MLflow, release: Release) -> About:
    """Return what is known of a version."""
    run = mlflow.client.get_run(release.run_id)
    return About(
        release,
        registry.aliases(mlflow, release.pipeline).get(release.version, []),
        tracking.scores(mlflow, release.run_id),
        dict(run.data.params),
        dict(run.data.tags),
        tracking.inputs(mlflow, release.run_id),
        tracking.recipe(mlflow, release.run_id),
    )


def find(mlflow: MLflow, pipeline: str, which: str) -> Release:
    """Return the version that a number, or an alias such as champion, names.

    Raises:
        UnknownRelease: There is none.
    """
    aliases = {alias: number for number, of in registry.aliases(mlflow, pipeline).items() for alias in of}
    versions = {release.version: release for release in registry.versions(mlflow, pipeline)}
    number = aliases.get(which, int(which) if which.isdecimal() else 0)
    if number not in versions:
        raise UnknownRelease(pipeline, which, [*sorted(aliases), *map(str, versions)])
    return versions[number]


def search(
    mlflow: MLflow,
    pipelines: Sequence[Pipeline],
    *,
    data: str = "",
    feature: str = "",
    metric: str = "",
    tag: str = "",
) -> list[About]:
    """Return the versions of all ``pipelines`` of which each condition that is given holds.

    Args:
        mlflow: Where they are.
        pipelines: Whose they are.
        data: A table, such as ``raw/flights``, or one at a version, ``raw/flights@v12``, that it was made of.
        feature: A column that it takes.
        metric: A bound, such as ``auc > 0.7``.
        tag: A tag, or a tag and its value, such as ``headrace.trainer=xgboost``.

    Raises:
        BadSearch: ``metric`` is no bound.
    """
    bound = _bound(metric) if metric else None
    name, equals, value = tag.partition("=")
    found = []
    for spec in pipelines:
        for release in registry.versions(mlflow, spec.name):
            one = about(mlflow, release)
            made_of = {part for ref in one.data for part in (ref.table, f"{ref.table}@v{ref.version}")}
            if (
                (not data or data in made_of)
                and (not feature or feature in one.features)
                and (not bound or (bound[0] in one.scores and bound[1](one.scores[bound[0]], bound[2])))
                and (not tag or (name in one.tags and (not equals or one.tags[name] == value)))
            ):
                found.append(one)
    return found


def differences(one: About, other: About) -> dict[str, dict[str, tuple[str, str]]]:
    """Return in what two versions differ, by kind: scores, parameters, data, code; empty text is nothing."""

    def facts(of: About) -> dict[str, Mapping[str, str]]:
        code = of.recipe.code if of.recipe else None
        return {
            "scores": {name: f"{value:.5g}" for name, value in of.scores.items()},
            "parameters": {**of.params} | {"candidate": of.release.candidate, "trainer": of.release.trainer},
            "data": {ref.table: f"v{ref.version}, {ref.rows:,} rows" for ref in of.data},
            "features": dict.fromkeys(of.features, "yes"),
            "code": {"commit": code.commit[:12], "changes": "yes" if code.changes else "none"}
            if code
            else {},
            "environment": of.recipe.environment.packages if of.recipe else {},
        }

    ours, theirs = facts(one), facts(other)
    found = {}
    for kind in ours:
        names = dict.fromkeys([*ours[kind], *theirs[kind]])
        pairs = {name: (ours[kind].get(name, ""), theirs[kind].get(name, "")) for name in names}
        found[kind] = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return found


def _bound(told: str) -> tuple[str, Callable[[float, float], bool], float]:
    match = BOUND.fullmatch(told)
    try:
        if match:
            return match[1], COMPARES[match[2]], float(match[3])
    except ValueError:
        pass
    raise BadSearch(told)
