"""Validation results, kept as GX's own store keeps them and shown as GX Data Docs.

GX's own building of a site reads all results there are for every page it adds;
here its renderers and views are called for the results at hand, and the
index is made from what the stored results say. Pages of batches in which something failed are drawn at
once, others when somebody asks for them (``serve``).
"""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from datetime import datetime
from functools import partial
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from filelock import FileLock
from great_expectations import ExpectationSuite
from great_expectations.core import RunIdentifier
from great_expectations.core.expectation_validation_result import expectationSuiteValidationResultSchema
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.render.renderer.page_renderer import (
    ExpectationSuitePageRenderer,
    ValidationResultsPageRenderer,
)
from great_expectations.render.view.view import DefaultJinjaPageView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.validation.found import Validation


LONG = 5_000
"""Characters of a value, or of an exception, that are kept."""
LISTED = 100
"""How many results the index lists, the newest first; older ones keep their pages."""


REMOTE = re.compile(
    r'<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*\bsrc="https?:[^>]*>|\bonclick="[^"]*"', re.DOTALL
)
"""What GX's pages would load, from other hosts for the most part, and the scripts that need it."""

HEAD = """<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<style>{style}</style>
</head>"""

INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Data Docs</title></head><body>
<nav class="navbar sticky-top"><a class="navbar-brand" href="index.html">Data Docs</a></nav>
<main><p class="lead">What each batch was checked for, and what was found: the newest {listed}.</p>
<table><thead><tr><th>found</th><th>batch</th><th>suite</th><th class="number">expectations failed</th>
<th>checked (UTC)</th></tr></thead><tbody>
{rows}
</tbody></table></main></body></html>"""
ROW = """<tr><td class="{verdict}">{verdict}</td><td><a href="{page}">{batch}</a></td>
<td><a href="{suite_page}">{suite}</a></td><td class="number">{failed} of {of}</td><td>{checked}</td></tr>"""


def publish(found: Mapping[str, Validation], folder: Path) -> dict[str, Path]:
    """See ``headrace.validation.publish``."""
    results, docs = folder / "results", folder / "docs"
    pages, stored = {}, []
    with _alone(folder):
        for name, validation in found.items():
            said, place = _said(name, validation)
            file, pages[name] = results / f"{place}.json", docs / "validations" / f"{place}.html"
            _write(file, json.dumps(said, indent=2, sort_keys=True))
            stored.append(file)
            for kept in (file.parent, pages[name].parent):
                for other in kept.parent.iterdir() if kept.parent.exists() else ():
                    if other.name != kept.name:  # of an earlier validation of the same batch
                        shutil.rmtree(other)
            suite = docs / _suite_page(validation.suite)
            if all(outcome.success for outcome in validation.outcomes):
                suite.unlink(missing_ok=True)  # it may have changed, and is drawn anew
            else:
                _write(pages[name], _page(said))
                _write(suite, _page_of_suite(said))
        _write_index(results, docs, stored)
    return pages


def draw(folder: Path, page: Path) -> None:
    """Draw a page, named by its place below ``folder``/docs, from what is stored; none if nothing is."""
    results, file = folder / "results", folder / "docs" / page
    section, *rest = page.with_suffix("").parts
    if section == "validations":
        stored = results.joinpath(*rest[:-1], f"{rest[-1]}.json")
        if stored.exists():
            _write(file, _page(json.loads(stored.read_text())))
    elif section == "expectations":
        known = results.joinpath(*rest).glob("*/*/*.json")
        if newest := max(known, key=lambda stored: stored.stat().st_mtime, default=None):
            _write(file, _page_of_suite(json.loads(newest.read_text())))


def _write(file: Path, text: str) -> None:
    """Write a file that others may be reading."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{uuid4().hex}.tmp")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _page(said: dict[str, Any]) -> str:
    """Return the page of a stored result."""
    shown = deepcopy(said)
    for one in shown["results"]:
        one |= {part: _drawn(one[part]) for part in ("result", "exception_info") if part in one}
        one["expectation_config"] = _drawn(one["expectation_config"])
    result = expectationSuiteValidationResultSchema.load(shown)
    return _view()(ValidationResultsPageRenderer().render(result))


def _page_of_suite(said: dict[str, Any]) -> str:
    """Return the page of the suite that a stored result is of."""
    configs = [_drawn(one["expectation_config"]) for one in deepcopy(said["results"])]
    suite = ExpectationSuite(said["suite_name"], [ExpectationConfiguration(**config) for config in configs])
    return _view()(ExpectationSuitePageRenderer().render(suite))


def _suite_page(suite: str) -> str:
    return f"expectations/{suite.replace('.', '/')}.html"


def _view() -> Callable[[Any], str]:
    render = partial(DefaultJinjaPageView().render, show_how_to_buttons=False)
    return lambda content: _by_itself(render(content))


def _by_itself(page: str) -> str:
    """Return a page that loads nothing from other hosts and runs no script, whoever wrote it."""
    style = Path(__file__).with_name("docs.css").read_text(encoding="utf-8")
    return REMOTE.sub("", page).replace("</head>", HEAD.format(style=style), 1)


def _alone(folder: Path) -> FileLock:
    """Wait until no one else writes below ``folder``: GX writes pages in place."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def _drawn(value: Any) -> Any:
    """Escape every text in ``value`` as HTML: GX puts it into its pages as it is."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list | tuple):
        return [_drawn(held) for held in value]
    if not isinstance(value, dict):
        return value
    read = ("row_condition", "condition_parser")  # by GX, before it puts them there
    drawn = {_drawn(key): held if key in read else _drawn(held) for key, held in value.items()}
    if "unexpected_percent" not in drawn and "unexpected_count" in drawn:
        drawn["unexpected_count"] = 0  # distinct values, which GX would want as a share of the rows
    return drawn


def _cut(value: Any) -> Any:
    """Return a copy in which no text is so long that twenty of them would fill a disk."""
    if isinstance(value, dict):
        return {key: _cut(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(held) for held in value]
    if isinstance(value, str) and len(value) > LONG:
        return f"{value[:LONG]}… ({len(value):,} characters)"
    return deepcopy(value)


def _said(name: str, validation: Validation) -> tuple[dict[str, Any], str]:
    """Return GX's result of the batch called ``name``, in JSON's types, and where its store keeps it."""
    said = _cut(validation.result)
    at = said["meta"]["validation_time"]
    said["meta"] |= {
        "run_id": {"run_name": name, "run_time": at},
        "batch_id": name,
        "batch_spec": {"data_asset_name": name.rsplit("/", 2)[0]},
    }
    filed = quote(name, safe="").replace("~", "%7E").replace("%2F", "~")
    run = RunIdentifier(filed, at)
    key = ValidationResultIdentifier(ExpectationSuiteIdentifier(validation.suite), run, filed)
    return said, "/".join(key.to_tuple())


def _write_index(results: Path, docs: Path, stored: Sequence[Path]) -> None:
    """Write the page of the newest results; which these are is kept beside it, for next time."""
    kept = docs / "newest.json"
    if kept.exists():
        lines = json.loads(kept.read_text())
        lines += [_line(file, results) for file in stored]
    else:
        lines = [_line(file, results) for file in results.rglob("*.json")]
    newest = {(line["suite"], line["batch"]): line for line in sorted(lines, key=itemgetter("checked"))}
    lines = sorted(newest.values(), key=itemgetter("checked", "page"), reverse=True)[:LISTED]
    _write(kept, json.dumps(lines))
    rows = "\n".join(ROW.format_map({k: escape(str(v)) for k, v in line.items()}) for line in lines)
    page = _by_itself(INDEX.format(listed=LISTED, rows=rows))
    _write(docs / "index.html", page)


def _line(file: Path, results: Path) -> dict[str, Any]:
    """Return what the index says of a stored result."""
    result, page = json.loads(file.read_text()), file.relative_to(results).with_suffix(".html")
    run, suite, counted = result["meta"]["run_id"], result["suite_name"], result["statistics"]
    return {
        "verdict": "passed" if result["success"] else "failed",
        "batch": run["run_name"],
        "page": quote(f"validations/{page.as_posix()}"),
        "suite": suite,
        "suite_page": quote(_suite_page(suite)),
        "failed": counted["unsuccessful_expectations"],
        "of": counted["evaluated_expectations"],
        "checked": f"{datetime.fromisoformat(run['run_time']):%Y-%m-%d %H:%M:%S}",
    }
