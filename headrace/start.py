"""The ``headrace`` command, before all that it imports: told to end meanwhile, it ends without a word."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        from headrace.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
