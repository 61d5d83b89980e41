"""Source ▶ staged batch ▶ gate ▶ raw table, or quarantine.

A source is read once for all its windows that are due. What a window brings
that neither landed nor is held becomes one staged Parquet file, the batch, which
is validated as it lies; what passes lands in one commit, maybe with that of other windows.

Raw tables hold two columns of ours beside the source's: ``available_at``, the
instant (UTC) from which a row counts, and ``aside``, columns that nobody has
declared yet, as JSON.
"""

from headrace.ingest.batch import Batch
from headrace.ingest.landing import Settled, settle, settle_all
from headrace.ingest.progress import close, complete
from headrace.ingest.releasing import release
from headrace.ingest.staging import Staged, stage, workspace

__all__ = [
    "Batch",
    "Settled",
    "Staged",
    "close",
    "complete",
    "release",
    "settle",
    "settle_all",
    "stage",
    "workspace",
]
