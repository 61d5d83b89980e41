"""Serve Data Docs: ``python -m headrace.validation.serve FOLDER PORT``, on loopback only.

A page that is asked for and was not drawn yet is drawn from the stored result. The first one takes some
seconds, for Great Expectations is imported for it.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Pages(SimpleHTTPRequestHandler):
    """Files below ``folder``/docs."""

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(*args, directory=str(folder / "docs"), **kwargs)

    def do_GET(self) -> None:
        """Answer with a file, which is drawn first if need be."""
        page = Path(self.translate_path(self.path))
        if page.suffix == ".html" and not page.exists():
            from headrace.validation.docs import draw

            draw(self.folder, page.relative_to(self.folder / "docs"))
        super().do_GET()


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of the Data Docs below ``folder``, which it makes; port 0 is any that is free."""
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Pages, folder=folder.absolute()))


if __name__ == "__main__":
    server(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
