"""``python -m flows``: see ``flows._command``. Told to end while that is imported, it ends without a word."""

import signal
import sys

signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
from flows._command import app  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)
app()
