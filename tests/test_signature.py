"""Releases are signed, and a signature holds for one key, one model and one receipt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from headrace import registry, release, tracking
from headrace.gate import Verdict
from headrace.release import signature
from headrace.release.errors import Unproven
from headrace.release.signature import FILE, RECEIPT, NotSigned
from tests.test_release import AS_OF, GOOD, SPEC, World, client, world  # noqa: F401  # fixtures


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key."""
    made, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        made.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def released(world: World, key: Path | None) -> int:  # noqa: F811
    version = world.registered(world.tried(world.write(), GOOD, last=True))
    verdict = Verdict("promoted", "It is better.", str(version))
    assert release.carry_out(SPEC, version, verdict, AS_OF, world.mlflow, world.ledger, "a test", key)
    return version


def checked(world: World, version: int, key: Path | None) -> list[str]:  # noqa: F811
    return release.verify(SPEC, version, world.mlflow, world.ledger, world.lake, key)


def test_a_release_is_signed_and_checked_also_without_headrace(world: World, tmp_path: Path) -> None:  # noqa: F811
    private, public = keys(tmp_path, "ours")
    version = released(world, private)
    assert "signature, by the key `ours.pub`" in checked(world, version, public)
    assert any("HEADRACE_VERIFYING_KEY" in told for told in checked(world, version, None))

    about = registry.version(world.mlflow, "toy", version)
    folder = tmp_path / "model"
    tracking.copy_model(world.mlflow, about.model_uri, folder)
    for name, where in ((RECEIPT, folder / RECEIPT), (FILE, tmp_path / FILE)):
        kept = tracking.kept(world.mlflow, about.run_id, name)
        assert kept
        where.write_bytes(kept)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(tmp_path / FILE), "--public_key", str(public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "more").write_text("x")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_another_key_receipt_or_model_is_found(world: World, tmp_path: Path) -> None:  # noqa: F811
    (private, public), (stranger, theirs) = keys(tmp_path, "ours"), keys(tmp_path, "theirs")
    version = released(world, private)
    with pytest.raises(Unproven, match="does not hold"):
        checked(world, version, theirs)
    about = registry.version(world.mlflow, "toy", version)
    signature.sign(about, {"sha256": about.receipt, "verdict": "another"}, stranger, world.mlflow)
    with pytest.raises(Unproven, match="does not hold"):
        checked(world, version, public)
    signature.sign(about, {"sha256": "0" * 64}, private, world.mlflow)
    with pytest.raises(Unproven, match="another receipt"):
        checked(world, version, public)


def test_what_is_not_signed_is_not_proven_where_signatures_are_asked_for(
    world: World,  # noqa: F811
    tmp_path: Path,
) -> None:
    _, public = keys(tmp_path, "ours")
    version = released(world, None)
    assert not any("sign" in told for told in checked(world, version, None))
    with pytest.raises(Unproven, match="it is not signed"):
        checked(world, version, public)


@pytest.mark.parametrize("held", [None, b"no key", "public"])
def test_without_a_key_that_signs_nothing_is_promoted(
    world: World,  # noqa: F811
    tmp_path: Path,
    held: Any,
) -> None:
    key = tmp_path / "key.pem"
    if held is not None:
        key.write_bytes(keys(tmp_path, "ours")[1].read_bytes() if held == "public" else held)
    with pytest.raises(NotSigned, match="HEADRACE_SIGNING_KEY"):
        released(world, key)
    assert registry.champion(world.mlflow, "toy") is None


def test_without_the_extra_it_says_what_to_install(
    world: World,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = keys(tmp_path, "ours")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(NotSigned, match=r"headrace\[signing\]"):
        released(world, private)
    version = released(world, None)
    with pytest.raises(NotSigned, match=r"headrace\[signing\]"):
        checked(world, version, public)
