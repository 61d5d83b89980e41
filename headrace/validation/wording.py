"""Sentences: what was expected, and what came."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Template
from typing import TYPE_CHECKING, Any

from headrace.legible import legible
from headrace.validation.found import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

RULES = {
    "expect_column_to_exist": "`{column}` must exist",
    "expect_column_type_to_be": "`{column}` must be of type {type_}",
    "expect_column_values_to_not_be_null": "`{column}` must not be null",
    "expect_column_values_to_be_null": "`{column}` must be null",
    "expect_column_values_to_be_unique": "`{column}` must be unique",
    "expect_column_values_to_be_in_set": "`{column}` must be one of {value_set}",
    "expect_column_values_to_not_be_in_set": "`{column}` must be none of {value_set}",
    "expect_column_values_to_be_of_type": "`{column}` must be of type {type_}",
    "expect_column_values_to_be_in_type_list": "`{column}` must be of one of the types {type_list}",
    "expect_column_values_to_match_regex": "`{column}` must match `{regex}`",
    "expect_column_values_to_not_match_regex": "`{column}` must not match `{regex}`",
    "expect_column_values_to_match_like_pattern": "`{column}` must be like `{like_pattern}`",
    "expect_column_values_to_not_match_like_pattern": "`{column}` must not be like `{like_pattern}`",
    "expect_column_values_to_match_strftime_format": "`{column}` must be a time as `{strftime_format}`",
    "expect_column_values_to_be_json_parseable": "`{column}` must be JSON",
    "expect_column_value_lengths_to_be_between": "the length of `{column}` must be {range}",
    "expect_column_value_lengths_to_equal": "the length of `{column}` must be {value}",
    "expect_column_values_to_be_between": "`{column}` must be {range}",
    "expect_column_pair_values_a_to_be_greater_than_b": "`{column_A}` must be {than} `{column_B}`",
    "expect_column_pair_values_to_be_equal": "`{column_A}` must equal `{column_B}`",
    "expect_column_pair_values_to_be_in_set": "`{column_A}`, `{column_B}` must be one of {value_pairs_set}",
    "expect_compound_columns_to_be_unique": "{column_list} must be unique together",
    "expect_multicolumn_sum_to_equal": "the sum of {column_list} must be {sum_total}",
    "expect_multicolumn_values_to_be_equal": "{column_list} must be equal",
    "expect_select_column_values_to_be_unique_within_record": "{column_list} must differ from each other",
    "expect_column_distinct_values_to_be_in_set": "the values of `{column}` must be among {value_set}",
    "expect_column_distinct_values_to_contain_set": "the values of `{column}` must include {value_set}",
    "expect_column_distinct_values_to_equal_set": "the values of `{column}` must be {value_set}",
    "expect_column_kl_divergence_to_be_less_than": "the Kullback-Leibler divergence of `{column}` from its "
    "declared distribution must be less than {threshold}",
    "expect_column_quantile_values_to_be_between": "`{column}` must have {quantile_ranges}",
    "expect_table_columns_to_match_set": "the columns must be {column_set}",
    "expect_table_row_count_to_be_between": "the number of rows must be {range}",
    "unexpected_rows_expectation": "no row may be in `{unexpected_rows_query}`",
}
"""How an expectation reads, unless its ``description`` says so; others read as GX renders them."""

BREACHES = {
    "expect_column_values_to_not_be_null": ("is null", "are null"),
    "expect_column_values_to_be_unique": ("is a repeat", "are repeats"),
    "expect_column_values_to_be_in_set": ("holds another", "hold others"),
    "expect_compound_columns_to_be_unique": ("is a repeat", "are repeats"),
    "unexpected_rows_expectation": ("is", "are"),
}
"""What rows that break a rule do, in singular and plural."""


def outcome(
    expectation: Expectation,
    result: ExpectationValidationResult,
    rows: int,
    columns: Sequence[str],
    row_rule: bool,
) -> Outcome:
    """Say what GX found of one expectation in a batch of so many ``rows`` with these ``columns``."""
    kind, kwargs = expectation.expectation_type, expectation.configuration.kwargs
    about = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    about += kwargs.get("column_list", [])
    missing = [column for column in about if column not in columns]
    detail: Mapping[str, Any] = result.result
    if kind == "unexpected_rows_expectation":
        detail = {"unexpected_count": detail.get("observed_value")}
    value = detail.get("observed_value")
    counts_rows = row_rule or kind == "unexpected_rows_expectation"  # others count distinct values
    unexpected = int(detail.get("unexpected_count") or 0) if counts_rows else 0
    if missing and not result.success:
        observed = f"the batch has no column {_listed(missing, '`')}"
    elif error := _error(result.exception_info):
        observed = f"that cannot be evaluated: {error}"
    elif unexpected:
        one, many = BREACHES.get("" if expectation.description else kind, ("breaks this", "break this"))
        examples = [_shown(held) for held in detail.get("partial_unexpected_list", []) if held is not None]
        first = f" (first: {examples[0]})" if examples else ""
        observed = f"{unexpected:,} of {rows:,} rows {one if unexpected == 1 else many}{first}"
    elif not row_rule and (odd := _odd(detail)):
        observed = " and ".join(odd)
    elif value is not None:
        shown = _shown(round(value, 4) if isinstance(value, float) else value, quote="")
        observed = f"{'found' if isinstance(value, list) else 'it is'} {shown}"
    else:
        observed = f"true of all {rows:,} rows" if result.success else "that is not so"
    severity, rule = expectation.severity.value, _rule(expectation)
    return Outcome(
        kind, ", ".join(about), bool(result.success), observed, unexpected, rule, severity, row_rule
    )


def _rule(expectation: Expectation) -> str:
    if expectation.description:
        return str(expectation.description).rstrip(".")
    template, kwargs = RULES.get(expectation.expectation_type), expectation.configuration.kwargs
    if template is None or kwargs.get("row_condition") or kwargs.get("exact_match") is False:
        return _as_gx_says(expectation)
    said = {key: _shown(value, quote="") for key, value in kwargs.items()}
    said["column_list"] = _listed(kwargs.get("column_list", ()), "`")
    said["than"] = "at least" if kwargs.get("or_equal") else "greater than"
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    lower = f"{'above' if kwargs.get('strict_min') else 'at least'} {_shown(low)}"
    upper = f"{'below' if kwargs.get('strict_max') else 'at most'} {_shown(high)}"
    said["range"] = " and ".join(end for end, bound in ((lower, low), (upper, high)) if bound is not None)
    some = f" in at least {100 * kwargs['mostly']:g} % of the rows" if kwargs.get("mostly", 1) < 1 else ""
    return template.format_map(said) + some


def _as_gx_says(expectation: Expectation) -> str:
    rendered: Any = expectation.copy()
    rendered.render()
    said = rendered.rendered_content[0].value
    params = {key: _shown(param["value"], quote="") for key, param in (said.params or {}).items()}
    return (
        Template(said.template or expectation.expectation_type.replace("_", " "))
        .safe_substitute(params)
        .rstrip(".")
    )


def _odd(detail: Mapping[str, Any]) -> list[str]:
    """Say what a set of columns, or of values, lacks and what it should not have."""
    columns = detail.get("details", {}).get("mismatched")
    told = []
    for how, which in (("no", "missing"), ("also", "unexpected")):
        if isinstance(columns, Mapping):
            found = _listed(columns.get(which) or (), "`")
        else:
            found = _shown(detail.get(f"partial_{which}_list") or ())
        told += [f"there is {how} {found}"] if found else []
    return told


def _error(info: Mapping[str, Any]) -> str:
    """Return the first line of what was raised, if anything was; GX nests it when a metric failed."""
    raised = [info] if "raised_exception" in info else list(info.values())
    messages = [str(found["exception_message"]) for found in raised if found["raised_exception"]]
    return legible(re.sub(r"^\(\S+\) ", "", messages[0].strip().splitlines()[0]), 500) if messages else ""


def _shown(value: Any, quote: str = '"') -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(held)}" for key, held in value.items())
    if isinstance(value, list | tuple | set):
        nested = isinstance(next(iter(value), None), list | tuple)
        return ", ".join(f"({_shown(held, quote)})" if nested else _shown(held, quote) for held in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # GX keeps bounds as floats
    if isinstance(value, str):
        return f"{quote}{legible(value)}{quote}"
    return "null" if value is None else legible(value)


def _listed(names: Iterable[str], quote: str) -> str:
    return ", ".join(f"{quote}{legible(name)}{quote}" for name in names)
