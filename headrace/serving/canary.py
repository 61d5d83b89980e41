"""A canary: a version that answers for a share of the keys, until it is promoted, or returned."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.serving.predictor import Made, Predictor

LEAST, SHARE = 5, 0.01
"""So many rows that it could not predict, and more than that share, return it."""
PASSES = 20
"""Passes after which it may be too slow."""


@dataclass
class Canary:
    """A version, the ``share`` of keys that it answers for, and how it has done so far, in this process.

    ``most_ms`` is how long a pass may take it on average, in milliseconds; None is as long as it likes.
    """

    predictor: Predictor
    share: float
    most_ms: float | None
    rows: int = 0
    failed: int = 0
    passes: int = 0
    seconds: float = 0.0
    error: str = field(default="", repr=False)

    @property
    def version(self) -> int:
        """Which one it is."""
        return self.predictor.version

    @property
    def trouble(self) -> str:
        """Why it is to be returned; empty if it is not."""
        if self.failed >= LEAST and self.failed > SHARE * self.rows:
            return f"{self.failed:,} of {self.rows:,} rows failed: {self.error}"
        took = 1_000 * self.seconds / self.passes if self.passes >= PASSES else 0.0
        if self.most_ms is not None and took > self.most_ms:
            return f"it took {took:.0f} ms to answer, on average; {self.most_ms:g} ms are its bound"
        return ""

    def chosen(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the places of the rows that it answers: of a key always, and of other keys than the next."""
        if self.trouble:
            return []
        most, keys = self.share * 2**32, self.predictor.spec.keys
        salted = (f"{self.version}{[row[key] for key in keys]!r}" for row in rows)
        drawn = (blake2b(key.encode(), digest_size=4).digest() for key in salted)
        return [place for place, of in enumerate(drawn) if int.from_bytes(of, "big") < most]

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> Made | None:
        """Predict rows; None if it cannot: whether that is its fault, :meth:`count` is told afterwards."""
        began = time.perf_counter()
        try:
            return self.predictor.predict(rows)
        except Exception as error:  # noqa: BLE001  # whatever befalls it, the champion answers
            self.error = f"{type(error).__name__}: {error}"
            return None
        finally:
            self.passes, self.seconds = self.passes + 1, self.seconds + time.perf_counter() - began

    def count(self, rows: int, failed: bool) -> None:
        """Count rows that it was asked, and whether it failed where the champion did not."""
        self.rows += rows
        self.failed += rows if failed else 0
