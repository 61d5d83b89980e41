"""What ``tests/test_forkserver.py`` runs in place of Prefect's engine."""

import json
import os
import signal
import sys
import time
from pathlib import Path

what, *rest = sys.argv[1:]
if what == "tell":
    from prefect.settings import get_current_settings

    mine = [os.environ.get("GIVEN"), get_current_settings().api.url]
    print(json.dumps([rest, str(Path.cwd()), *mine]), flush=True)
    sys.exit(7)
if what == "fail":
    raise ValueError("as it should")
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    print(os.getpid(), flush=True)
    time.sleep(60)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
