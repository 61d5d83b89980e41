"""The suites of ``validations/``, and which expectations they may hold."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.validation.errors import BrokenSuite, EmptySuite, UnknownSuite, UnsupportedExpectation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

REFUSED = {
    "expect_column_values_to_be_dateutil_parseable": "only Python's dateutil can tell; "
    "ExpectColumnValuesToMatchStrftimeFormat checks one format in SQL",
    "expect_column_values_to_match_json_schema": "only Python's jsonschema can tell; "
    "ExpectColumnValuesToBeJsonParseable and UnexpectedRowsExpectation check in SQL",
    "expect_multicolumn_values_to_be_unique": "GX left it without a metric; "
    "ExpectSelectColumnValuesToBeUniqueWithinRecord says the same",
    "expect_table_row_count_to_equal_other_table": "a batch is one table",
    "expect_query_results_to_match_comparison": "it reads a second data source, and a batch has one",
}
"""Core expectations that are not run, and why."""


def load_suite(name: str) -> ExpectationSuite:
    """Return the suite ``<module>.<function>``: what that function of ``validations/<module>.py`` returns.

    Raises:
        UnknownSuite: There is no such module or function.
        BrokenSuite: The function fails, or a module cannot be imported.
        EmptySuite: It expects nothing.
        UnsupportedExpectation: It holds an expectation that cannot be checked in SQL over one batch.
    """
    made = _made()
    if name not in made:
        raise UnknownSuite(name, sorted(made))
    try:
        suite: ExpectationSuite = made[name]()
    except Exception as error:  # such as a misspelt expectation; GX's own do not come home from a worker
        raise BrokenSuite(name, f"{type(error).__name__}: {error}") from error
    if not suite.expectations:
        raise EmptySuite(name)
    for expectation in suite.expectations:
        if reason := unsupported(expectation):
            raise UnsupportedExpectation(name, type(expectation).__name__, reason)
    return suite


def known() -> list[str]:
    """Return the names of the suites that ``validations/`` has, without making any.

    Raises:
        BrokenSuite: A module there cannot be imported.
    """
    return sorted(_made())


def _made() -> dict[str, Callable[[], ExpectationSuite]]:
    places = import_module("validations").__path__
    modules = [file.stem for place in places for file in Path(place).glob("[!_]*.py")]
    return {
        f"{module}.{name}": made
        for module in modules
        for name, made in vars(_imported(module)).items()
        if not name.startswith("_") and getattr(made, "__module__", "") == f"validations.{module}"
    }


def _imported(module: str) -> ModuleType:
    try:
        return import_module(f"validations.{module}")
    except Exception as error:  # it is somebody's own code
        raise BrokenSuite(module, f"{type(error).__name__}: {error}") from error


def unsupported(expectation: Expectation) -> str:
    """Return why an expectation cannot be run; nothing if it can."""
    from great_expectations.util import camel_to_snake

    kinds = [camel_to_snake(kind.__name__) for kind in type(expectation).__mro__]
    if refused := next((REFUSED[kind] for kind in kinds if kind in REFUSED), ""):
        return refused
    said = expectation.configuration.kwargs
    if said.get("row_condition") and said.get("condition_parser") in {"pandas", "spark"}:
        return "its `row_condition` is not SQL; write it with `gx.expectations.row_conditions`"
    if said.get("row_condition") and "expect_column_pair_values_to_be_in_set" in kinds:
        return "GX takes no account of its `row_condition`"
    if said.get("value_pairs_set") == []:
        return "its `value_pairs_set` is empty, so that no row could pass"
    return ""


def listed_columns(suite: ExpectationSuite) -> tuple[str, ...]:
    """Return the columns a batch must have, no more and no fewer, if the suite lists them."""
    for expectation in suite.expectations:
        kwargs = expectation.configuration.kwargs
        if expectation.expectation_type == "expect_table_columns_to_match_ordered_list":
            return tuple(kwargs["column_list"])
        if expectation.expectation_type == "expect_table_columns_to_match_set" and kwargs.get(
            "exact_match", True
        ):
            return tuple(kwargs["column_set"])
    return ()


def row_rules(suite: ExpectationSuite) -> ExpectationSuite:
    """Return the suite's rules for single rows, which hold for any part of a batch."""
    from great_expectations import ExpectationSuite
    from great_expectations.expectations import expectation as kinds

    by_row = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    return ExpectationSuite(suite.name, [e for e in suite.expectations if isinstance(e, by_row)])
