"""Validation results, kept in GX's own store and shown as GX Data Docs.

GX's own building of a site reads all results there are for every page it adds;
here its store, renderers and views are called for the results at hand, and the
index is made from what the stored results say.
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

from filelock import FileLock
from great_expectations import ExpectationSuite
from great_expectations.core import RunIdentifier
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    expectationSuiteValidationResultSchema,
)
from great_expectations.data_context.store.html_site_store import HtmlSiteStore
from great_expectations.data_context.store.validation_results_store import ValidationResultsStore
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    SiteSectionIdentifier,
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
    store, site, view = ValidationResultsStore(_files(results)), HtmlSiteStore(_files(docs)), _view()
    pages = {}
    with _alone(folder):
        for validation in {validation.suite: validation for validation in found.values()}.values():
            suite = SiteSectionIdentifier("expectations", ExpectationSuiteIdentifier(validation.suite))
            site.set(suite, view(ExpectationSuitePageRenderer().render(_suite(validation))))
        for name, validation in found.items():
            key, result = _result(name, validation)
            store.set(key, result)
            page = SiteSectionIdentifier("validations", key)
            site.set(page, view(ValidationResultsPageRenderer().render(_result(name, validation, _drawn)[1])))
            *run, batch = key.to_tuple()
            for kept in (results, docs / "validations"):
                for other in kept.joinpath(*run).parent.iterdir():
                    if other.name != run[-1]:  # of an earlier validation of the same batch
                        shutil.rmtree(other)
            pages[name] = docs.joinpath("validations", *run, f"{batch}.html")
        _write_index(results, docs, [key for key, _ in map(_result, found, found.values())])
    return pages


def _view() -> Callable[[Any], str]:
    render = partial(DefaultJinjaPageView().render, show_how_to_buttons=False)
    return lambda content: _by_itself(render(content))


def _by_itself(page: str) -> str:
    """Return a page that loads nothing from other hosts and runs no script, whoever wrote it."""
    style = Path(__file__).with_name("docs.css").read_text(encoding="utf-8")
    return REMOTE.sub("", page).replace("</head>", HEAD.format(style=style), 1)


def _files(base: Path) -> dict[str, Any]:
    return {
        "class_name": "TupleFilesystemStoreBackend",
        "base_directory": str(base.absolute()),
        "suppress_store_backend_id": True,
    }


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


def _result(
    name: str, validation: Validation, drawn: Callable[[Any], Any] = deepcopy
) -> tuple[ValidationResultIdentifier, ExpectationSuiteValidationResult]:
    """Return GX's result of the batch called ``name``, as it is or as ``drawn``, and where to keep it."""
    said = _cut(validation.result)
    for one in said["results"]:
        one |= {part: drawn(one[part]) for part in ("result", "exception_info") if part in one}
        one["expectation_config"] = drawn(one["expectation_config"])
    result = expectationSuiteValidationResultSchema.load(said)
    run = {"run_name": name, "run_time": result.meta["validation_time"]}
    result.meta |= {
        "run_id": run,
        "batch_id": name,
        "batch_spec": {"data_asset_name": name.rsplit("/", 2)[0]},
    }
    filed = quote(name, safe="").replace("~", "%7E").replace("%2F", "~")
    return (
        ValidationResultIdentifier(
            ExpectationSuiteIdentifier(validation.suite), RunIdentifier(filed, run["run_time"]), filed
        ),
        result,
    )


def _suite(validation: Validation) -> ExpectationSuite:
    said = [_drawn(result["expectation_config"]) for result in deepcopy(validation.result)["results"]]
    return ExpectationSuite(validation.suite, [ExpectationConfiguration(**config) for config in said])


def _write_index(results: Path, docs: Path, keys: Sequence[ValidationResultIdentifier]) -> None:
    """Write the page of the newest results; which these are is kept beside it, for next time."""
    kept = docs / "newest.json"
    if kept.exists():
        lines = json.loads(kept.read_text())
        files = (results.joinpath(*path[:-1], f"{path[-1]}.json") for path in (k.to_tuple() for k in keys))
        lines += [_line(file, results) for file in files]
    else:
        lines = [_line(file, results) for file in results.rglob("*.json")]
    newest = {(line["suite"], line["batch"]): line for line in sorted(lines, key=itemgetter("checked"))}
    lines = sorted(newest.values(), key=itemgetter("checked", "page"), reverse=True)[:LISTED]
    kept.write_text(json.dumps(lines))
    rows = "\n".join(ROW.format_map({k: escape(str(v)) for k, v in line.items()}) for line in lines)
    page = _by_itself(INDEX.format(listed=LISTED, rows=rows))
    (docs / "index.html").write_text(page, encoding="utf-8")


def _line(file: Path, results: Path) -> dict[str, Any]:
    """Return what the index says of a stored result."""
    result, page = json.loads(file.read_text()), file.relative_to(results).with_suffix(".html")
    run, suite, counted = result["meta"]["run_id"], result["suite_name"], result["statistics"]
    return {
        "verdict": "passed" if result["success"] else "failed",
        "batch": run["run_name"],
        "page": quote(f"validations/{page.as_posix()}"),
        "suite": suite,
        "suite_page": quote(f"expectations/{suite.replace('.', '/')}.html"),
        "failed": counted["unsuccessful_expectations"],
        "of": counted["evaluated_expectations"],
        "checked": f"{datetime.fromisoformat(run['run_time']):%Y-%m-%d %H:%M:%S}",
    }
