"""What a benchmark returns."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Result:
    """Seconds of ours, the peer and the bound (None where there is none), and a table that explains them."""

    name: str
    about: str
    ours_s: float
    peer_s: float | None
    bound_s: float | None
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    more: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the result file's content; ``ratio_to_peer`` above 1 means that ours is faster."""
        return {
            "name": self.name,
            "ours_s": round(self.ours_s, 3),
            "peer_s": self.peer_s and round(self.peer_s, 3),
            "bound_s": self.bound_s and round(self.bound_s, 3),
            "ratio_to_peer": self.peer_s and round(self.peer_s / self.ours_s, 2),
            "ratio_to_bound": self.bound_s and round(self.ours_s / self.bound_s, 2),
            "peak_mb": round(peak_mb()),
            **self.more,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
        }


def peak_mb() -> float:
    """Return the largest resident memory of this process or of a child so far, in MB."""
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1e3
    )
