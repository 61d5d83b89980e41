"""Side-by-side measurements: ``python -m benchmarks [NAME ...]``; all of them without a name.

Each prints ours, the peer and the bound in one table, and writes
``benchmarks/results/<name>.json``. Compare ratios, not seconds: machines differ.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.result import Result

HERE = Path(__file__).parent
NAMES = sorted(file.stem for file in HERE.glob("[!_]*.py") if file.stem != "result")


def main(names: list[str]) -> int:
    """Run the named benchmarks; return the exit code."""
    if unknown := set(names) - set(NAMES):
        print(f"No benchmark {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    for name in names or NAMES:
        with Console(stderr=True).status(f"{name}…"):
            result: Result = import_module(f"benchmarks.{name}").run()
        _print(result)
        _write(result)
    return 0


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {platform.machine()}, {memory:.0f} GiB, Python {platform.python_version()}"


def _print(result: Result) -> None:
    table = Table(*result.columns, title=f"{result.name}: {result.about}", title_justify="left")
    for row in result.rows:
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def _write(result: Result) -> None:
    file = HERE / "results" / f"{result.name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result.as_json() | {"machine": _machine()}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
