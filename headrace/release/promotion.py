"""Who serves: intent in the ledger, then the alias, then done. Killed anywhere, it is finished once.

Every change of champion, by the gate or by hand, succeeds the one before, and of those that would succeed
the same one, one does. What a killed run left half-way whoever comes next finishes.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from headrace import registry, tracking
from headrace.instants import read, shown
from headrace.ledger import CLAIMED, DONE, GIVEN_UP, AlreadyClaimed
from headrace.release.errors import NothingBefore, Unproven
from headrace.release.page import page
from headrace.release.signature import check, sign

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.gate import Verdict
    from headrace.lake import Lake
    from headrace.ledger import Ledger, Record
    from headrace.pipeline import Pipeline
    from headrace.tracking import MLflow

LEASE = timedelta(hours=6)
PROMOTION, MOVE, SUCCESSION = "promotion", "move", "succession"
PAGE = "verdict.md"
"""The file that has a verdict's page, with the run of its challenger."""


@dataclass(frozen=True)
class Strayed:
    """The alias names another version than the ledger's last change of champion; None is no version."""

    pipeline: str
    named: int | None
    expected: int | None

    def __str__(self) -> str:
        named, expected = (f"version {n}" if n else "none" for n in (self.named, self.expected))
        return (
            f"The champion of {self.pipeline} is {named}, but {expected} was the last to be made it: "
            f"somebody has moved the alias by hand. `headrace models settle {self.pipeline}` says how it "
            "came to that, and accepts it or restores what was."
        )


def first(spec: Pipeline, ledger: Ledger) -> datetime | None:
    """Return the ``as_of`` (UTC) of the first release that the ledger knows of; None if it knows of none."""
    return min((read(one.detail["as_of"]) for one in changes(spec, ledger)), default=None)


def changes(spec: Pipeline, ledger: Ledger) -> list[Record]:
    """Return every change of champion, oldest first."""
    return [one for one in ledger.entries(spec.name) if one.kind in (PROMOTION, MOVE) and one.state == DONE]


def champions(spec: Pipeline, ledger: Ledger) -> list[int]:
    """Return the versions that served until now, but for those that were undone; the last one serves."""
    served: list[int] = []
    for one in changes(spec, ledger):
        before = str(one.detail.get("before", ""))
        if before.isdecimal() and int(before) not in served[-1:]:
            served.append(int(before))  # made it by hand, in MLflow
        if one.detail.get("undoes"):
            served.pop()
        else:
            served.append(int(one.detail.get("version", one.key)))
    return served


def carry_out(
    spec: Pipeline,
    version: int,
    verdict: Verdict,
    as_of: datetime,
    mlflow: MLflow,
    ledger: Ledger,
    holder: str,
    key: Path | None = None,
) -> bool:
    """Promote or reject ``version``, as ``verdict`` says, for ``holder``; a promotion is signed with ``key``.

    Of those that judged against one champion, one takes its place; False tells the others to judge again.
    """
    if _serving(mlflow, spec) != str(version):  # else it was promoted by a run that was killed, with its page
        release = registry.version(mlflow, spec.name, version)
        told = page(verdict, spec.gate, spec.problem.loss_unit).encode()
        earlier = tracking.kept(mlflow, release.run_id, PAGE) or b""
        if told not in earlier:  # a verdict by live traffic, say, after one by a holdout: the last one first
            pages = b"\n---\n\n".join([told, *filter(None, [earlier])])
            tracking.keep(mlflow, release.run_id, PAGE, pages)
    if not verdict.promoted:
        registry.reject(mlflow, spec.name, version, verdict.reason, as_of, verdict.decision)
        return True
    if ledger.claim(spec.name, PROMOTION, str(version), holder=holder, lease=LEASE):
        return True
    before, proof = verdict.champion or "none", receipt(spec, version, verdict, mlflow)
    if key:
        sign(registry.version(mlflow, spec.name, version), proof, key, mlflow)
    intent = {
        "kind": PROMOTION,
        "key": str(version),
        "version": version,
        "before": before,
        "as_of": as_of.isoformat(),
        "reason": verdict.reason,
        "receipt": proof,
    }
    last = _last(spec, ledger)
    if _serving(mlflow, spec) not in (before, str(version)):
        return False
    if ledger.claim(spec.name, SUCCESSION, f"after {last}", holder=holder, lease=LEASE, detail=intent):
        return False
    if _last(spec, ledger) != last or _serving(mlflow, spec) not in (before, str(version)):
        _let_go(spec, ledger, last, holder)
        return False
    _carry_out(spec, last, intent, mlflow, ledger, holder)
    return True


def move(
    spec: Pipeline,
    version: int,
    reason: str,
    mlflow: MLflow,
    ledger: Ledger,
    holder: str,
    *,
    undoes: bool = False,
) -> None:
    """Make ``version`` champion by hand; with ``undoes``, in place of the last one that was made it.

    Raises:
        AlreadyClaimed: Somebody else changes the champion at this moment.
        mlflow.MlflowException: There is no such version.
    """
    release, last = registry.version(mlflow, spec.name, version), _last(spec, ledger)
    before = _serving(mlflow, spec)
    intent = {
        "kind": MOVE,
        "key": f"{before} to {version} after {last}",
        "version": version,
        "before": before,
        "as_of": release.as_of.isoformat(),
        "reason": reason,
        "undoes": undoes,
    }
    done = ledger.claim(spec.name, SUCCESSION, f"after {last}", holder=holder, lease=LEASE, detail=intent)
    if done or _last(spec, ledger) != last or _serving(mlflow, spec) != before:
        _let_go(spec, ledger, last, holder)
        other = changes(spec, ledger)[-1:] or ledger.entries(spec.name)[-1:]
        raise AlreadyClaimed(f"The champion of `{spec.name}`", other[0].holder, other[0].at)
    _carry_out(spec, last, intent, mlflow, ledger, holder)


def rollback(spec: Pipeline, reason: str, mlflow: MLflow, ledger: Ledger, holder: str) -> int:
    """Make the champion before the last change champion again; return its version.

    Raises:
        NothingBefore: There was none.
        AlreadyClaimed: Somebody else changes the champion at this moment.
    """
    served = champions(spec, ledger)
    if len(served) < 2:
        raise NothingBefore(spec.name)
    move(spec, served[-2], reason, mlflow, ledger, holder, undoes=True)
    return served[-2]


def reconcile(spec: Pipeline, mlflow: MLflow, ledger: Ledger, holder: str) -> list[str]:
    """Finish what was begun and cut short; return what that was, in words.

    What is begun by somebody who is at work after all is finished once, whoever is quicker.
    """
    last, serving = _last(spec, ledger), _serving(mlflow, spec)
    begun = ledger.entries(spec.name, SUCCESSION, f"after {last}")
    intents = [one for one in begun if one.state == CLAIMED and "version" in one.detail]
    if not intents or any(one.state == DONE for one in begun):
        return []
    one = intents[-1]  # of several attempts the last
    names = ("kind", "key", "version", "before", "as_of", "reason", "undoes", "receipt")
    intent = {name: one.detail[name] for name in names if name in one.detail}
    # What its author let go of is to be finished only if the alias was moved already.
    given_up = any(other.state == GIVEN_UP and other.attempt == one.attempt for other in begun)
    if serving != str(intent["version"]) and (given_up or serving != intent["before"]):
        return []
    with suppress(AlreadyClaimed):  # by who began it, and is gone, or is about to do the very same
        if ledger.claim(spec.name, SUCCESSION, one.key, holder=holder, lease=LEASE, detail=intent):
            return []
    _carry_out(spec, last, intent, mlflow, ledger, holder)
    return [f"version {intent['version']} is champion of {spec.name}, which {one.holder} began"]


def strayed(spec: Pipeline, mlflow: MLflow, ledger: Ledger) -> Strayed | None:
    """Return how the alias differs from what the ledger has; None if it does not."""
    serving = registry.champion(mlflow, spec.name)
    named, served = serving.version if serving else None, champions(spec, ledger)
    expected = served[-1] if served else None
    return None if named == expected else Strayed(spec.name, named, expected)


def settle(
    spec: Pipeline, mlflow: MLflow, ledger: Ledger, holder: str, *, accept: bool, reason: str
) -> int | None:
    """End a stray: accept the version that the alias names, or restore the one that it should; return it.

    Raises:
        NothingBefore: The version that it should name is none: no release is known.
    """
    found = strayed(spec, mlflow, ledger)
    if found is None:
        return None
    if accept and found.named:
        move(spec, found.named, reason, mlflow, ledger, holder)
        return found.named
    if found.expected is None:
        raise NothingBefore(spec.name)
    registry.set_alias(mlflow, spec.name, registry.CHAMPION, found.expected)
    return found.expected


def receipt(spec: Pipeline, version: int, verdict: Verdict, mlflow: MLflow) -> dict[str, Any]:
    """Return what a version was promoted by: the verdict, its model's digest, the fingerprints of its data.

    ``sha256`` is of all of it.
    """
    release = registry.version(mlflow, spec.name, version)
    data = [release.training, *tracking.inputs(mlflow, release.run_id)]
    told: dict[str, Any] = {
        "pipeline": spec.name,
        "version": version,
        "verdict": asdict(verdict),
        "model": tracking.digest_of(mlflow, release.run_id),
        "code": recipe.code.commit if (recipe := tracking.recipe(mlflow, release.run_id)) else "",
        "data": sorted({(ref.table, ref.version, ref.rows, ref.fingerprint) for ref in data}),
    }
    return {**told, "sha256": _sum(told)}


def verify(
    spec: Pipeline, version: int, mlflow: MLflow, ledger: Ledger, lake: Lake, key: Path | None = None
) -> list[str]:
    """Check a version's receipt, model, data and, with a public ``key``, signature; return what was checked.

    Raises:
        Unproven: It has no receipt, or that is not what was written, or of another model.
        DamagedModel: The model is not what was written.
        DamagedTable: The data are not.
        VersionGone: They are not there any more.
    """
    from headrace.lake import DatasetRef

    promoted = [one for one in changes(spec, ledger) if one.kind == PROMOTION and one.key == str(version)]
    if not promoted or "receipt" not in promoted[0].detail:
        raise Unproven(spec.name, version, "the gate never promoted it, or did so before there were receipts")
    told = dict(promoted[0].detail["receipt"])
    noted = told.pop("sha256")
    if _sum(told) != noted:
        raise Unproven(spec.name, version, "its receipt in the ledger is not as it was written")
    release = registry.version(mlflow, spec.name, version)
    if release.receipt != noted:
        raise Unproven(spec.name, version, "MLflow notes another receipt of it than the ledger")
    if tracking.digest_of(mlflow, release.run_id) != told["model"]:
        raise Unproven(spec.name, version, "MLflow notes another digest of its model than its receipt")
    tracking.check_model(mlflow, release.model_uri)
    signed = check(release, noted, key, mlflow)
    checked = [f"receipt {noted[:12]}", f"model {told['model'][:12]}", *filter(None, [signed])]
    for table, number, rows, fingerprint in told["data"]:
        lake.check(DatasetRef(table, number, rows, fingerprint))
        checked.append(f"{table}@v{number}, {rows:,} rows")
    return checked


def told(record: Record) -> str:
    """Say what a change of champion was."""
    detail = record.detail
    version, at = detail.get("version", record.key), shown(record.at)
    how = "promoted by the gate" if record.kind == PROMOTION else "made champion past the gate"
    if detail.get("undoes"):
        how = "brought back"
    return f"{at} UTC: version {version} {how} ({record.holder}). {detail['reason']}"


def _carry_out(
    spec: Pipeline, last: str, intent: Mapping[str, Any], mlflow: MLflow, ledger: Ledger, holder: str
) -> None:
    """Move the alias, then say that it is done: each step once, or once more to the same end."""
    version, as_of = intent["version"], read(intent["as_of"])
    if intent["kind"] == PROMOTION:
        registry.promote(mlflow, spec.name, version, intent["reason"], as_of, intent["receipt"]["sha256"])
    else:
        registry.set_alias(mlflow, spec.name, registry.CHAMPION, version)
    detail = {name: value for name, value in intent.items() if name not in ("kind", "key")}
    # First: killed between the two, the next succession is called after this change.
    ledger.finish(spec.name, intent["kind"], intent["key"], holder=holder, **detail)
    ledger.finish(spec.name, SUCCESSION, f"after {last}", holder=holder, version=version)


def _let_go(spec: Pipeline, ledger: Ledger, last: str, holder: str) -> None:
    """Give up a claim on what somebody else has succeeded meanwhile."""
    for one in ledger.entries(spec.name, SUCCESSION, f"after {last}"):
        if one.state == CLAIMED and one.holder == holder:
            ledger.free(one)


def _last(spec: Pipeline, ledger: Ledger) -> str:
    known = changes(spec, ledger)
    return known[-1].key if known else "none"


def _serving(mlflow: MLflow, spec: Pipeline) -> str:
    champion = registry.champion(mlflow, spec.name)
    return str(champion.version) if champion else "none"


def _sum(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
