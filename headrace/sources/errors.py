"""What may be wrong with a source that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.addresses import public, scrubbed
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Sequence


class SourceUnreadable(HeadraceError):
    """A source's files are missing or cannot be parsed, or what keeps them fails (``transient``)."""

    def __init__(self, source: str, files: Sequence[str], reason: str, transient: bool = False) -> None:
        self.source, self.files = source, tuple(map(public, files))
        self.reason, self.transient = scrubbed(reason, *files), transient
        super().__init__(
            f"Source `{source}` cannot be read from {', '.join(self.files)}: {self.reason.strip()}\n"
            "Nothing was landed. Mend or replace the file, then run the same ingest again."
        )


class MissingColumns(HeadraceError):
    """A source lacks columns its declaration names."""

    def __init__(self, source: str, missing: Sequence[str], found: Sequence[str]) -> None:
        self.source, self.missing, self.found = source, tuple(missing), tuple(found)
        super().__init__(
            f"Source `{source}` lacks {', '.join(f'`{c}`' for c in missing)}; it has {', '.join(found)}. "
            "Nothing was landed. Mend the file, or the source's declaration in `pipelines/`, and run again."
        )
