"""Every core expectation of GX, on DuckDB and on GX's own pandas engine: same data, same findings."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import great_expectations as gx
import pytest
from great_expectations.expectations import core
from great_expectations.expectations.expectation import Expectation
from great_expectations.util import camel_to_snake, convert_to_json_serializable

from headrace.validation import validate
from headrace.validation.suites import REFUSED

CORE = {
    camel_to_snake(name): kind
    for name, kind in vars(core).items()
    if isinstance(kind, type) and issubclass(kind, Expectation)
}

FULL = """
    SELECT i AS n, i % 4 AS k, i % 4 * 2 AS k2, (i * 0.5)::DOUBLE AS x, -i AS down, if(i = 7, 3, i) AS wobble,
           if(i = 11, 1000.0, 10.0 + i % 3)::DOUBLE AS spiky, 1 AS one,
           chr(65 + (i % 3)::INT) AS letter, chr(65 + (i % 3)::INT) || i AS code,
           '{"a": ' || i || '}' AS json, '{"a": ' || if(i = 2, '', i::VARCHAR) || '}' AS bad_json,
           strftime(DATE '2013-01-01' + i::INT, '%Y-%m-%d') AS day,
           if(i = 3, '2013-02-30', '2013-01-0' || (i % 9 + 1)) AS bad_day,
           TIMESTAMP '2013-01-01' + to_hours(i::INT) AS moment, nullif(i, 5) AS holey
    FROM range(12) AS numbers(i)
"""
NULLS = f"""
    SELECT if(n % 5 = 0, NULL, n) AS n, if(n % 4 = 3, NULL, k) AS k, if(n % 5 = 2, NULL, k2) AS k2,
           if(n % 3 = 0, if(n % 2 = 0, NULL, 'nan'::DOUBLE), x) AS x, if(n % 5 = 3, NULL, down) AS down,
           if(n % 4 = 0, NULL, wobble) AS wobble, if(n % 5 = 1, 'nan'::DOUBLE, spiky) AS spiky,
           if(n % 6 = 0, NULL, one) AS one, if(n % 4 = 2, NULL, letter) AS letter,
           if(n % 5 = 4, NULL, code) AS code, if(n % 3 = 0, NULL, json) AS json,
           if(n % 3 = 0, NULL, bad_json) AS bad_json, if(n % 4 = 0, NULL, day) AS day,
           if(n % 4 = 0, NULL, bad_day) AS bad_day, if(n % 3 = 0, NULL, moment) AS moment, holey
    FROM ({FULL})
"""
TABLES = {"full": FULL, "nulls": NULLS, "empty": f"FROM ({FULL}) WHERE false"}
COLUMNS = ["n", "k", "k2", "x", "down", "wobble", "spiky", "one", "letter", "code"]
COLUMNS += ["json", "bad_json", "day", "bad_day", "moment", "holey"]
LETTERS = ["A", "B", "C"]
HALF = {"quantiles": [0.25, 0.5], "value_ranges": [[0, 3], [2, 6]]}
THIRDS = {"values": LETTERS, "weights": [1 / 3] * 3}

PROVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "expect_column_distinct_values_to_be_in_set": (
        {"column": "letter", "value_set": LETTERS},
        {"column": "letter", "value_set": ["A", "B"]},
    ),
    "expect_column_distinct_values_to_contain_set": (
        {"column": "letter", "value_set": ["A"]},
        {"column": "letter", "value_set": ["A", "Z"]},
    ),
    "expect_column_distinct_values_to_equal_set": (
        {"column": "letter", "value_set": LETTERS},
        {"column": "letter", "value_set": ["A", "B"]},
    ),
    "expect_column_kl_divergence_to_be_less_than": (
        {"column": "letter", "partition_object": THIRDS, "threshold": 0.1},
        {
            "column": "letter",
            "partition_object": {"values": LETTERS, "weights": [0.8, 0.1, 0.1]},
            "threshold": 0.1,
        },
    ),
    "expect_column_max_to_be_between": ({"column": "x", "max_value": 6}, {"column": "x", "max_value": 5}),
    "expect_column_mean_to_be_between": ({"column": "x", "max_value": 6}, {"column": "x", "max_value": 1}),
    "expect_column_median_to_be_between": ({"column": "x", "max_value": 6}, {"column": "x", "max_value": 1}),
    "expect_column_min_to_be_between": ({"column": "x", "min_value": 0}, {"column": "x", "min_value": 3}),
    "expect_column_most_common_value_to_be_in_set": (
        {"column": "one", "value_set": [1]},
        {"column": "one", "value_set": [2]},
    ),
    "expect_column_pair_values_a_to_be_greater_than_b": (
        {"column_A": "n", "column_B": "x", "or_equal": True},
        {"column_A": "n", "column_B": "wobble", "ignore_row_if": "either_value_is_missing"},
    ),
    "expect_column_pair_values_to_be_equal": (
        {"column_A": "n", "column_B": "n"},
        {"column_A": "n", "column_B": "wobble"},
    ),
    "expect_column_pair_values_to_be_in_set": (
        {"column_A": "k", "column_B": "k2", "value_pairs_set": [(0, 0), (1, 2), (2, 4), (3, 6)]},
        {"column_A": "k", "column_B": "k2", "value_pairs_set": [(0, 0), (1, 2)]},
    ),
    "expect_column_proportion_of_non_null_values_to_be_between": (
        {"column": "x", "min_value": 0.5},
        {"column": "x", "max_value": 0.5},
    ),
    "expect_column_proportion_of_unique_values_to_be_between": (
        {"column": "k", "max_value": 0.5},
        {"column": "k", "min_value": 0.9},
    ),
    "expect_column_quantile_values_to_be_between": (
        {"column": "n", "quantile_ranges": {"quantiles": [0.0, 1.0], "value_ranges": [[0, 1], [5, 12]]}},
        {"column": "n", "quantile_ranges": {"quantiles": [0.0, 1.0], "value_ranges": [[5, 6], [5, 12]]}},
    ),
    "expect_column_stdev_to_be_between": ({"column": "x", "max_value": 6}, {"column": "x", "max_value": 1}),
    "expect_column_sum_to_be_between": ({"column": "x", "max_value": 60}, {"column": "x", "max_value": 1}),
    "expect_column_to_exist": ({"column": "n"}, {"column": "missing"}),
    "expect_column_type_to_be": ({"column": "x", "type_": "DOUBLE"}, {"column": "x", "type_": "VARCHAR"}),
    "expect_column_unique_value_count_to_be_between": (
        {"column": "k", "max_value": 4},
        {"column": "k", "max_value": 2},
    ),
    "expect_column_value_lengths_to_be_between": (
        {"column": "code", "max_value": 3},
        {"column": "code", "max_value": 2},
    ),
    "expect_column_value_lengths_to_equal": (
        {"column": "letter", "value": 1},
        {"column": "code", "value": 2},
    ),
    "expect_column_value_z_scores_to_be_less_than": (
        {"column": "spiky", "threshold": 5, "double_sided": True},
        {"column": "spiky", "threshold": 2, "double_sided": True},
    ),
    "expect_column_values_to_be_between": (
        {"column": "x", "min_value": 0, "max_value": 6},
        {"column": "x", "min_value": 0, "strict_min": True, "max_value": 3},
    ),
    "expect_column_values_to_be_decreasing": ({"column": "down", "strictly": True}, {"column": "wobble"}),
    "expect_column_values_to_be_in_set": (
        {"column": "letter", "value_set": LETTERS},
        {"column": "letter", "value_set": ["A"]},
    ),
    "expect_column_values_to_be_in_type_list": (
        {"column": "x", "type_list": ["DOUBLE", "FLOAT"]},
        {"column": "x", "type_list": ["VARCHAR", "BIGINT"]},
    ),
    "expect_column_values_to_be_increasing": ({"column": "n", "strictly": True}, {"column": "wobble"}),
    "expect_column_values_to_be_json_parseable": ({"column": "json"}, {"column": "bad_json"}),
    "expect_column_values_to_be_null": ({"column": "x", "mostly": 0.0}, {"column": "x"}),
    "expect_column_values_to_be_of_type": (
        {"column": "x", "type_": "DOUBLE"},
        {"column": "x", "type_": "VARCHAR"},
    ),
    "expect_column_values_to_be_unique": ({"column": "n"}, {"column": "wobble"}),
    "expect_column_values_to_match_like_pattern": (
        {"column": "code", "like_pattern": "_%"},
        {"column": "code", "like_pattern": "A%"},
    ),
    "expect_column_values_to_match_like_pattern_list": (
        {"column": "code", "like_pattern_list": ["A%", "B%", "C%"], "match_on": "any"},
        {"column": "code", "like_pattern_list": ["A%", "%1%"], "match_on": "all"},
    ),
    "expect_column_values_to_match_regex": (
        {"column": "code", "regex": "[0-9]$"},
        {"column": "code", "regex": "^[AB]"},
    ),
    "expect_column_values_to_match_regex_list": (
        {"column": "code", "regex_list": ["^A", "^[BC]"], "match_on": "any"},
        {"column": "code", "regex_list": ["^A", "1"], "match_on": "all"},
    ),
    "expect_column_values_to_match_strftime_format": (
        {"column": "day", "strftime_format": "%Y-%m-%d"},
        {"column": "bad_day", "strftime_format": "%Y-%m-%d"},
    ),
    "expect_column_values_to_not_be_in_set": (
        {"column": "letter", "value_set": ["Z"]},
        {"column": "letter", "value_set": ["A"]},
    ),
    "expect_column_values_to_not_be_null": ({"column": "x"}, {"column": "holey"}),
    "expect_column_values_to_not_be_outliers": (
        {"column": "x", "method": "iqr", "multiplier": 1.5},
        {"column": "spiky", "method": "iqr", "multiplier": 1.5},
    ),
    "expect_column_values_to_not_match_like_pattern": (
        {"column": "code", "like_pattern": "Z%"},
        {"column": "code", "like_pattern": "A%"},
    ),
    "expect_column_values_to_not_match_like_pattern_list": (
        {"column": "code", "like_pattern_list": ["Z%", "Y%"]},
        {"column": "code", "like_pattern_list": ["A%", "B%"]},
    ),
    "expect_column_values_to_not_match_regex": (
        {"column": "code", "regex": "^[0-9]"},
        {"column": "code", "regex": "^[AB]"},
    ),
    "expect_column_values_to_not_match_regex_list": (
        {"column": "code", "regex_list": ["^Z", "^Y"]},
        {"column": "code", "regex_list": ["^A", "1$"]},
    ),
    "expect_compound_columns_to_be_unique": (
        {"column_list": ["letter", "n"]},
        {"column_list": ["one", "k"]},
    ),
    "expect_multicolumn_sum_to_equal": (
        {"column_list": ["n", "down"], "sum_total": 0, "ignore_row_if": "any_value_is_missing"},
        {"column_list": ["n", "down", "one"], "sum_total": 0, "ignore_row_if": "any_value_is_missing"},
    ),
    "expect_multicolumn_values_to_be_equal": (
        {"column_list": ["n", "n"]},
        {"column_list": ["n", "wobble"]},
    ),
    "expect_select_column_values_to_be_unique_within_record": (
        {"column_list": ["letter", "code"]},
        {"column_list": ["n", "k", "one"]},
    ),
    "expect_table_column_count_to_be_between": ({"max_value": 16}, {"max_value": 15}),
    "expect_table_column_count_to_equal": ({"value": 16}, {"value": 15}),
    "expect_table_columns_to_match_ordered_list": (
        {"column_list": COLUMNS},
        {"column_list": COLUMNS[::-1]},
    ),
    "expect_table_columns_to_match_set": ({"column_set": COLUMNS[::-1]}, {"column_set": COLUMNS[1:]}),
    "expect_table_row_count_to_be_between": ({"min_value": 12}, {"min_value": 13}),
    "expect_table_row_count_to_equal": ({"value": 12}, {"value": 13}),
    "unexpected_rows_expectation": (
        {"unexpected_rows_query": "SELECT * FROM {batch} WHERE n < 0"},
        {"unexpected_rows_query": "SELECT * FROM {batch} WHERE n > 3"},
    ),
}
"""For each expectation one that holds on the full table, and one that does not."""


TYPES = {"DOUBLE": "float64", "FLOAT": "float32", "VARCHAR": "object", "BIGINT": "int64"}
"""Types have other names in pandas; what is proven is that the same ones are accepted."""

TWINS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "expect_column_values_to_match_like_pattern": (
        "expect_column_values_to_match_regex",
        {"column": "code", "regex": "."},
        {"column": "code", "regex": "^A"},
    ),
    "expect_column_values_to_match_like_pattern_list": (
        "expect_column_values_to_match_regex_list",
        {"column": "code", "regex_list": ["^A", "^B", "^C"], "match_on": "any"},
        {"column": "code", "regex_list": ["^A", "1"], "match_on": "all"},
    ),
    "expect_column_values_to_not_match_like_pattern": (
        "expect_column_values_to_not_match_regex",
        {"column": "code", "regex": "^Z"},
        {"column": "code", "regex": "^A"},
    ),
    "expect_column_values_to_not_match_like_pattern_list": (
        "expect_column_values_to_not_match_regex_list",
        {"column": "code", "regex_list": ["^Z", "^Y"]},
        {"column": "code", "regex_list": ["^A", "^B"]},
    ),
    "unexpected_rows_expectation": (
        "expect_column_values_to_be_between",
        {"column": "n", "min_value": 0},
        {"column": "n", "max_value": 3},
    ),
}
"""GX has these in SQL only: they are held against the pandas expectations that say the same."""

DIFFERENT = {
    ("expect_column_sum_to_be_between", "empty"): "the sum of no values is 0 in pandas and null in SQL, and "
    "null is not between",
}
"""Where GX's own SQL means something else than GX's pandas."""

JUDGED = [(kind, table, holds) for kind in PROVEN for table in TABLES for holds in (True, False)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Each table as a Parquet file, and as the pandas batch that GX's own engine reads."""
    folder, con, made = tmp_path_factory.mktemp("tables"), duckdb.connect(), {}
    for name, query in TABLES.items():
        con.sql(query).write_parquet(str(folder / f"{name}.parquet"))
        made[name] = (folder / f"{name}.parquet", on_pandas(con.sql(query)))
    return made


def on_pandas(rows: duckdb.DuckDBPyRelation) -> Any:
    """Return the batch that GX's own pandas engine reads."""
    source = gx.get_context(mode="ephemeral").data_sources.add_pandas("pandas")
    whole = source.add_dataframe_asset("table").add_batch_definition_whole_dataframe("all")
    frame = rows.df()
    nullable = [column for column, kind in frame.dtypes.items() if str(kind).startswith("Int")]
    # pandas' comparisons raise on its own nullable integers.
    return whole.get_batch({"dataframe": frame.astype(dict.fromkeys(nullable, "float64"))})


def rows_broken(file: Path) -> dict[int, list[str]]:
    return dict(duckdb.read_parquet(str(file)).fetchall()) if file.exists() else {}


def test_every_core_expectation_is_proven_or_refused() -> None:
    assert set(CORE) == PROVEN.keys() | REFUSED.keys()
    assert not PROVEN.keys() & REFUSED.keys()


@pytest.mark.parametrize(
    ("kind", "table", "holds"),
    [case for case in JUDGED if case[:2] not in DIFFERENT],
    ids=lambda value: value if isinstance(value, str) else {True: "holds", False: "broken"}[value],
)
def test_findings_are_those_of_gx_on_pandas(
    kind: str, table: str, holds: bool, tables: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    file, batch = tables[table]
    said = PROVEN[kind][0 if holds else 1]

    found = validate([file], gx.ExpectationSuite("one", [CORE[kind](**said)]), tmp_path / "broken.parquet")

    ours, outcome = found.result["results"][0], found.outcomes[0]
    twin, twice = (TWINS[kind][0], TWINS[kind][1 if holds else 2]) if kind in TWINS else (kind, said)
    theirs = batch.validate(in_pandas(twin, twice), result_format="COMPLETE")
    expected = theirs.result
    assert "that cannot be evaluated" not in outcome.observed
    assert outcome.row_rule == (documented()[kind][0] == "rows")
    assert outcome.success == ours["success"] == bool(theirs.success)
    assert table != "full" or outcome.success == holds
    if kind not in TWINS:
        # The sum of no rows is null in SQL.
        assert (ours["result"].get("unexpected_count") or 0) == expected.get("unexpected_count", 0)
    if outcome.row_rule:
        assert outcome.unexpected == expected["unexpected_count"]
    if kind not in TWINS and "type" not in kind:
        assert ours["result"].get("observed_value") == plain(expected.get("observed_value"))
    positions = sorted(expected.get("unexpected_index_list", [])) if outcome.row_rule else []
    assert list(rows_broken(tmp_path / "broken.parquet")) == positions


@pytest.mark.parametrize(("kind", "table"), DIFFERENT)
def test_where_gx_differs_by_engine_ours_is_its_sql(
    kind: str, table: str, tables: dict[str, tuple[Path, Any]]
) -> None:
    file, batch = tables[table]
    rule = CORE[kind](**PROVEN[kind][0])

    found = validate([file], gx.ExpectationSuite("one", [rule]))

    assert found.success != batch.validate(rule).success


def in_pandas(kind: str, said: dict[str, Any]) -> Any:
    if "type_" in said:
        said = said | {"type_": TYPES[said["type_"]]}
    if "type_list" in said:
        said = said | {"type_list": [TYPES[name] for name in said["type_list"]]}
    return CORE[kind](**said)


def plain(value: Any) -> Any:
    value = convert_to_json_serializable(value)
    return pytest.approx(value, nan_ok=True) if isinstance(value, float) else value


def conditional() -> list[str]:
    ignored = "expect_column_pair_values_to_be_in_set"  # by GX itself, and so refused with a condition
    return [kind for kind in PROVEN if "row_condition" in CORE[kind].__fields__ and kind != ignored]


@pytest.mark.parametrize("kind", conditional())
def test_a_row_condition_chooses_the_rows_a_rule_is_about(
    kind: str, tables: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    file, batch = tables["full"]
    some = {"row_condition": after(1)}
    twin, said = (TWINS[kind][0], TWINS[kind][2]) if kind in TWINS else (kind, PROVEN[kind][1])

    found = validate(
        [file],
        gx.ExpectationSuite("some", [CORE[kind](**PROVEN[kind][1], **some)]),
        tmp_path / "broken.parquet",
    )

    ours, outcome = found.result["results"][0]["result"], found.outcomes[0]
    theirs = batch.validate(in_pandas(twin, said | some), result_format="COMPLETE")
    assert outcome.success == bool(theirs.success)
    if outcome.row_rule:
        assert outcome.unexpected == theirs.result["unexpected_count"]
    if "type" not in kind:
        assert ours.get("observed_value") == plain(theirs.result.get("observed_value"))
    if outcome.row_rule:
        assert outcome.unexpected > 0
        positions = sorted(theirs.result["unexpected_index_list"])
        assert list(rows_broken(tmp_path / "broken.parquet")) == positions


THREE_VALUED = """
    SELECT a, b, c, row_number() OVER (ORDER BY a, b, c) AS n
    FROM (VALUES (1), (2), (NULL)) a(a), (VALUES (1), (2), (NULL)) b(b), (VALUES (1), (4), (NULL)) c(c)
    ORDER BY n
"""
PAIR, SEVERAL = {"column_A": "a", "column_B": "b"}, {"column_list": ["a", "b", "c"]}
PAIRS = [
    ("expect_column_pair_values_a_to_be_greater_than_b", PAIR),
    ("expect_column_pair_values_a_to_be_greater_than_b", PAIR | {"or_equal": True}),
    ("expect_column_pair_values_to_be_equal", PAIR),
    ("expect_column_pair_values_to_be_in_set", PAIR | {"value_pairs_set": [(1, 2), (2, 2)]}),
    ("expect_column_pair_values_to_be_in_set", PAIR | {"value_pairs_set": [(1, 2), (None, 2)]}),
]
ROWS = [
    ("expect_compound_columns_to_be_unique", {"column_list": ["a", "b"]}),
    ("expect_multicolumn_sum_to_equal", SEVERAL | {"sum_total": 7}),
    ("expect_multicolumn_values_to_be_equal", SEVERAL),
    ("expect_select_column_values_to_be_unique_within_record", SEVERAL),
]
IGNORED = {
    "both_values_are_missing": PAIRS,
    "either_value_is_missing": PAIRS,
    "neither": PAIRS,
    "all_values_are_missing": ROWS,
    "any_value_is_missing": ROWS,
    "never": ROWS,
}
B = gx.expectations.row_conditions.Column("b")
CONDITIONS = [B == 1, B != 1, B > 1, B.is_in([1]), B.is_not_in([1]), B.is_null(), B.is_not_null()]
CONDITIONS += [(B != 1) & (B > 0), (B != 1) | (B == 1)]
THREE_VALUED_RULES = [
    *[(kind, said | {"ignore_row_if": rows}) for rows, rules in IGNORED.items() for kind, said in rules],
    ("expect_column_values_to_be_in_set", {"column": "a", "value_set": [1, None]}),
    ("expect_column_values_to_not_be_in_set", {"column": "a", "value_set": [1, None]}),
    *[
        ("expect_column_values_to_be_in_set", {"column": "a", "value_set": [1], "row_condition": condition})
        for condition in CONDITIONS
    ],
]


def test_every_rule_that_may_ignore_rows_is_proven_for_each_way_to() -> None:
    proven = {kind for rules in IGNORED.values() for kind, _ in rules}

    assert proven == {k for k in PROVEN if "ignore_row_if" in CORE[k].__fields__}


@pytest.mark.parametrize(("kind", "said"), THREE_VALUED_RULES)
def test_a_rule_finds_in_rows_with_nulls_what_gx_finds_on_pandas(
    kind: str, said: dict[str, Any], tmp_path: Path
) -> None:
    rows = duckdb.sql(THREE_VALUED)
    rows.write_parquet(str(tmp_path / "rows.parquet"))

    found = validate(
        [tmp_path / "rows.parquet"],
        gx.ExpectationSuite("one", [CORE[kind](**said)]),
        tmp_path / "broken.parquet",
    )

    theirs = on_pandas(rows).validate(CORE[kind](**said), result_format="COMPLETE").result
    assert found.outcomes[0].unexpected == theirs["unexpected_count"]
    assert found.result["results"][0]["result"]["missing_count"] == theirs.get("missing_count")
    assert list(rows_broken(tmp_path / "broken.parquet")) == sorted(theirs["unexpected_index_list"])


def test_broken_rows_say_all_critical_rules_they_break_in_the_suites_order(tmp_path: Path) -> None:
    halves = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    duckdb.sql(f"FROM ({FULL}) LIMIT 7").write_parquet(str(halves[0]))
    duckdb.sql(f"FROM ({FULL}) OFFSET 7").write_parquet(str(halves[1]))
    rules = [
        core.ExpectColumnValuesToBeUnique(column="wobble", mostly=0.1),
        core.ExpectColumnValuesToBeBetween(column="n", max_value=9),
        core.ExpectColumnValuesToNotBeNull(column="holey", severity="warning"),
        core.ExpectColumnMaxToBeBetween(column="n", max_value=1),
        core.ExpectColumnValuesToNotBeInSet(column="letter", value_set=["B"], row_condition=after(9)),
    ]

    found = validate(halves, gx.ExpectationSuite("several", rules), tmp_path / "broken.parquet")

    repeated, high, listed = (found.outcomes[place].rule for place in (0, 1, 4))
    assert rows_broken(tmp_path / "broken.parquet") == {
        3: [repeated],
        7: [repeated],
        10: [high, listed],
        11: [high],
    }
    assert [outcome.row_rule for outcome in found.outcomes] == [True, True, True, False, True]
    assert found.outcomes[0].success
    assert found.warnings == ["`holey` must not be null, but 1 of 12 rows is null"]
    shape = duckdb.sql(f"DESCRIBE FROM '{tmp_path / 'broken.parquet'}'").fetchall()
    assert [column[:2] for column in shape] == [("row", "BIGINT"), ("rules", "VARCHAR[]")]


def after(number: int) -> Any:
    return gx.expectations.row_conditions.Column("n") > number


def test_the_documentation_lists_what_works_and_what_is_refused() -> None:
    assert {kind: verdict for kind, (_, verdict) in documented().items()} == {
        kind: f"refused: {REFUSED[kind]}" if kind in REFUSED else "works" for kind in CORE
    }


@cache
def documented() -> dict[str, tuple[str, str]]:
    """What `docs/expectations.md` says that each core expectation judges, and whether it works."""
    lines = Path(__file__).parent.parent.joinpath("docs/expectations.md").read_text().splitlines()
    told = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {camel_to_snake(name.strip("`")): (judges, verdict) for name, judges, verdict in told}
