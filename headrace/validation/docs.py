"""Validation results, kept in GX's own store and shown as GX Data Docs.

GX's own building of a site reads all results there are for every page it adds;
here its store, renderers and views are called for the results at hand, and the
index is made from what the stored results say.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

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
from great_expectations.render.renderer.site_index_page_renderer import SiteIndexPageRenderer
from great_expectations.render.view.view import DefaultJinjaIndexPageView, DefaultJinjaPageView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from headrace.validation.found import Validation


LISTED = 100
"""How many results the index lists, the newest first; older ones keep their pages."""


OFFLINE = """<ul id="offline" hidden>ROWS</ul>
<script>document.getElementById("offline").hidden = Boolean(window.jQuery)</script>"""
OFFLINE_ROW = '<li><a href="{filepath}">{run_name}</a> {verdict}</li>'
"""GX's index draws its table with scripts from the web: where those cannot be had, a list stands in."""


def publish(found: Mapping[str, Validation], folder: Path) -> dict[str, Path]:
    """See ``headrace.validation.publish``."""
    results, docs = folder / "results", folder / "docs"
    store, site, view = ValidationResultsStore(_files(results)), HtmlSiteStore(_files(docs)), _view()
    pages = {}
    with _alone(folder):
        if not (docs / "static").exists():
            site.copy_static_assets()
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
        site.write_index_page(_index(results, docs / "expectations"))
    return pages


def _view() -> Any:
    return partial(DefaultJinjaPageView().render, show_how_to_buttons=False)


def _files(base: Path) -> dict[str, Any]:
    return {
        "class_name": "TupleFilesystemStoreBackend",
        "base_directory": str(base.absolute()),
        "suppress_store_backend_id": True,
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no one else writes below ``folder``: GX writes pages in place."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def _result(
    name: str, validation: Validation, drawn: Callable[[Any], Any] = deepcopy
) -> tuple[ValidationResultIdentifier, ExpectationSuiteValidationResult]:
    """Return GX's result of the batch called ``name``, as it is or as ``drawn``, and where to keep it."""
    said = deepcopy(validation.result)
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


def _index(results: Path, pages: Path) -> str:
    # Each batch has a folder in that of its suite; to look into all would take longer with each.
    suites = [results / page.relative_to(pages).with_suffix("") for page in pages.rglob("*.html")]
    batches = [folder for suite in suites if suite.exists() for folder in suite.iterdir()]
    latest = sorted(batches, key=lambda folder: folder.stat().st_mtime_ns)[-LISTED:]
    files = {file for folder in latest for file in folder.rglob("*.json")}
    newest = sorted(files, key=lambda file: (file.parent.name, file.name), reverse=True)[:LISTED]
    links = [_link(file.relative_to(results), json.loads(file.read_text())) for file in newest]
    named = {link["expectation_suite_name"]: link["expectation_suite_filepath"] for link in links}
    shown = {
        "site_name": "headrace",
        "validations_links": links,
        "expectations_links": [
            {"expectation_suite_name": name, "filepath": file} for name, file in sorted(named.items())
        ],
    }
    view = DefaultJinjaIndexPageView()
    html: str = view.render(SiteIndexPageRenderer().render(shown), show_how_to_buttons=False)
    plain = "".join(OFFLINE_ROW.format_map({k: escape(str(v)) for k, v in link.items()}) for link in links)
    return html.replace("</body>", f"{OFFLINE.replace('ROWS', plain)}</body>")


def _link(file: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    run, suite = result["meta"]["run_id"], result["suite_name"]
    return {
        "expectation_suite_name": suite,
        "expectation_suite_filepath": f"expectations/{suite.replace('.', '/')}.html",
        "filepath": quote(f"validations/{file.with_suffix('.html').as_posix()}"),
        "run_name": run["run_name"],
        "run_time": datetime.fromisoformat(run["run_time"]),
        "batch_identifier": run["run_name"],
        "batch_kwargs": {},
        "batch_spec": {},
        "validation_success": result["success"],
        "verdict": "passed" if result["success"] else "failed",
        "asset_name": suite,
    }
