"""The service as a process: it listens, until it is told to end, and then answers what it has taken."""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.lake import Lake
    from headrace.pipeline import Pipeline
    from headrace.serving.keys import Keys
    from headrace.serving.predictor import Planned
    from headrace.serving.service import Watched
    from headrace.settings import Settings
    from headrace.tracking import MLflow

PATIENCE = 20
"""Seconds that requests may take to end when the service does."""


class OpenToAll(HeadraceError):
    """The service was to listen to other machines without asking them for a key."""

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__(
            f"`HEADRACE_SERVE_HOST` is `{host}`, where other machines reach the service, and there is no API "
            "key: everybody could ask. Nothing listens. Make one with `headrace keys add NAME`, or leave the "
            "host out."
        )


def refuse_open(host: str, keys: Keys) -> None:
    """Refuse to listen beyond this machine without keys.

    Raises:
        OpenToAll: There are none.
    """
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here and not keys.all():
        raise OpenToAll(host)


def run(
    settings: Settings,
    specs: Sequence[Pipeline],
    planned: Planned,
    mlflow: MLflow,
    lake: Lake,
    keys: Keys,
    notice: Callable[[Pipeline], str] = lambda _: "",
    watched: Callable[[Pipeline], Watched] = lambda _: (None, []),
) -> None:
    """Serve until told to end; what was taken is answered first, and the log brought into the lake.

    ``notice`` and ``watched`` are those of ``Service``.
    """
    import uvicorn

    from headrace.serving.app import application
    from headrace.serving.journal import Journal
    from headrace.serving.service import Service

    # Threads that hand each other work must not wait five milliseconds for their turn.
    sys.setswitchinterval(0.001)
    journal = Journal(settings.home / "served", lake)
    service = Service({spec.name: spec for spec in specs}, planned, mlflow, lake, journal, notice, watched)
    certificate, key = settings.serve_certificate, settings.serve_certificate_key
    uvicorn.run(
        application(service, keys),
        host=settings.serve_host,
        port=settings.serve_port,
        ssl_certfile=certificate and str(certificate),
        ssl_keyfile=key and str(key),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=PATIENCE,
    )
