"""What may be wrong with a request, or keeps one from being answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Sequence


class BadRequest(HeadraceError):
    """A request is not what it may be; ``slips`` are JSON pointers into it, each with what is wrong there."""

    def __init__(self, slips: Sequence[tuple[str, str]]) -> None:
        self.slips = tuple(slips)
        told = "; ".join(f"{pointer or '/'} {slip}" for pointer, slip in self.slips[:3])
        more = f"; and {len(self.slips) - 3} more" if len(self.slips) > 3 else ""
        super().__init__(f"The request is not what it may be: {told}{more}. Nothing was predicted.")


class FeaturesMissing(BadRequest):
    """Features are missing of a pipeline that refuses to predict without them."""


class NoChampion(HeadraceError):
    """No model of a pipeline serves yet."""

    transient = True

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        super().__init__(
            f"No model of `{pipeline}` is released yet, so nothing answers for it. `train` releases the "
            "first; it then serves within seconds."
        )


class NotLogged(HeadraceError):
    """A prediction could not be written down, and so is not given."""

    transient = True

    def __init__(self, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(
            f"The prediction log in `{place}` cannot be written: {reason}. What is not logged is not "
            "answered. Make room there, or mend the disk; the service goes on by itself."
        )


class BadKeys(HeadraceError):
    """The file of API keys is none."""

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(
            f"`{file}` does not hold API keys: {reason}. Nobody is let in. Mend it, or remove it and make "
            "the keys anew with `headrace keys add NAME`."
        )
