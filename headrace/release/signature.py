"""Signatures of releases, as OpenSSF's model signing makes them: over a model's files and its receipt.

Whoever has the public key can check them without headrace: ``model_signing verify key``.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import tracking
from headrace.errors import HeadraceError
from headrace.release.errors import Unproven

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.registry import Release
    from headrace.tracking import MLflow

FILE, RECEIPT = "model.sig", "receipt.json"
"""What is kept with the run of a release that is signed."""


class NotSigned(HeadraceError):
    """A release was to be signed, or its signature checked, and cannot be."""

    def __init__(self, variable: str, reason: str) -> None:
        self.variable, self.reason = variable, reason
        super().__init__(f"`{variable}` is set, but {reason}. Nothing was promoted, or is proven, by this.")


def sign(release: Release, receipt: Mapping[str, Any], key: Path, mlflow: MLflow) -> None:
    """Sign a release's files and ``receipt`` with a private ``key`` (PEM, elliptic curve); keep both.

    Done twice, the last one counts.

    Raises:
        NotSigned: There is no such key, or nothing that signs.
        DamagedModel: The model is not what was written.
    """
    try:
        from model_signing import signing
    except ImportError:
        raise NotSigned("HEADRACE_SIGNING_KEY", _missing()) from None
    told = json.dumps(receipt, sort_keys=True, default=str).encode()
    tracking.check_model(mlflow, release.model_uri)
    with _folder(release, told, mlflow) as folder, tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, FILE)
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, made)
        except (OSError, ValueError, TypeError) as error:
            raise NotSigned("HEADRACE_SIGNING_KEY", f"`{key}` does not sign: {error}") from None
        tracking.keep(mlflow, release.run_id, RECEIPT, told)
        tracking.keep(mlflow, release.run_id, FILE, made.read_bytes())


def check(release: Release, sha256: str, key: Path | None, mlflow: MLflow) -> str:
    """Check a release's signature with a public ``key``; return what is to be said of it, if anything.

    Without a key nothing is checked, and a signature that nobody asks for is said to be there.

    Raises:
        Unproven: It is not signed, or not by this key, or what was signed is not what is there.
        NotSigned: There is no such key, or nothing that checks.
    """
    made, told = (tracking.kept(mlflow, release.run_id, name) for name in (FILE, RECEIPT))
    if key is None:
        return "signed; `HEADRACE_VERIFYING_KEY` would check it" if made else ""
    try:
        from model_signing import verifying
    except ImportError:
        raise NotSigned("HEADRACE_VERIFYING_KEY", _missing()) from None
    if not key.is_file():
        raise NotSigned("HEADRACE_VERIFYING_KEY", f"`{key}` is no file")
    pipeline, version = release.pipeline, release.version
    if made is None or told is None:
        raise Unproven(pipeline, version, "it is not signed")
    if json.loads(told)["sha256"] != sha256:
        raise Unproven(pipeline, version, "what is signed is another receipt than the ledger has")
    with _folder(release, told, mlflow) as folder, tempfile.TemporaryDirectory() as scratch:
        signature = Path(scratch, FILE)
        signature.write_bytes(made)
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, signature)
        except Exception as error:  # noqa: BLE001  # of whatever kind, it is not verified
            raise Unproven(pipeline, version, f"its signature does not hold with `{key}`: {error}") from None
    return f"signature, by the key `{key.name}`"


@contextmanager
def _folder(release: Release, told: bytes, mlflow: MLflow) -> Iterator[Path]:
    """Give a folder of what is signed: the model's files, and the receipt beside them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        tracking.copy_model(mlflow, release.model_uri, folder)
        (folder / RECEIPT).write_bytes(told)
        yield folder


def _missing() -> str:
    return "nothing here signs: `pip install 'headrace[signing]'` brings it"
