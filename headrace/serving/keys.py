"""API keys: who may ask what. Kept as digests; a key itself is shown once, when it is made."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from headrace.serving.errors import BadKeys
from headrace.serving.http import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCOPES = ("predict", "feedback")
EVERY = "*"


@dataclass(frozen=True)
class Key:
    """Whose key, for which pipelines (``*``: all), and what it may do; ``digest`` is SHA-256 of the key."""

    name: str
    digest: str
    pipelines: tuple[str, ...]
    scopes: tuple[str, ...]


class Keys:
    """The keys in a JSON file, read again when it changes; without any, everybody may ask."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}

    def all(self) -> list[Key]:
        """Return the keys there are.

        Raises:
            BadKeys: The file does not hold keys.
        """
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, {}
            return []
        if (stamp := (stat.st_mtime_ns, stat.st_ino)) != self._stamp:
            try:
                told = json.loads(self.file.read_text())
                keys = [
                    Key(one["name"], one["sha256"], tuple(one["pipelines"]), tuple(one["scopes"]))
                    for one in told
                ]
            except (ValueError, KeyError, TypeError) as error:
                raise BadKeys(str(self.file), f"{type(error).__name__}: {error}") from None
            self._keys, self._stamp = {key.digest: key for key in keys}, stamp
        return list(self._keys.values())

    def add(self, name: str, pipelines: tuple[str, ...], scopes: tuple[str, ...]) -> str:
        """Make a key, and return it: nobody can look it up later."""
        made = f"hr_{secrets.token_urlsafe(32)}"
        self._write([*(k for k in self.all() if k.name != name), Key(name, _digest(made), pipelines, scopes)])
        return made

    def remove(self, name: str) -> bool:
        """Forget a key; it stops working at once. Return whether there was one."""
        kept = [key for key in self.all() if key.name != name]
        gone = len(kept) < len(self.all())
        if gone:
            self._write(kept)
        return gone

    def check(self, headers: Mapping[str, str], pipeline: str, scope: str) -> None:
        """Let a request pass that has a key which may do so, or any if there are no keys.

        Raises:
            Refused: It has none, or one that may not.
        """
        if not self.all():
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = self._keys.get(_digest(given.strip())) if scheme.lower() == "bearer" else None
        if key is None or not hmac.compare_digest(key.digest, _digest(given.strip())):
            raise Refused(
                401, "No key", "Send `Authorization: Bearer` and your key.", **{"WWW-Authenticate": "Bearer"}
            )
        if scope not in key.scopes or not {pipeline, EVERY} & {*key.pipelines}:
            raise Refused(403, "Not with this key", f"Key `{key.name}` may not {scope} for `{pipeline}`.")

    def _write(self, keys: list[Key]) -> None:
        told: list[dict[str, Any]] = [
            {"name": key.name, "sha256": key.digest, "pipelines": key.pipelines, "scopes": key.scopes}
            for key in keys
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.file.with_name(f"{self.file.name}.{uuid4().hex}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(json.dumps(told, indent=1) + "\n")
        scratch.replace(self.file)


def _digest(key: str) -> str:
    # Keys are 256 random bits: nobody guesses one, so a slow hash would only slow down each request.
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
