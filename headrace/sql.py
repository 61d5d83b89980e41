"""SQL: names and texts put into it, and what a query says, as DuckDB's own parser reads it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
Parsed = dict[str, Any] | list[Any] | str | int | float | bool | None


def quoted(*names: str) -> str:
    """Return names, as of columns, as SQL identifiers with commas between them: any name may be one.

    >>> quoted("order", 'an "odd" one')
    '"order", "an ""odd"" one"'
    """
    return ", ".join('"{}"'.format(name.replace('"', '""')) for name in names)


def literal(value: object) -> str:
    """Return a text, such as a file's path, as an SQL literal."""
    return "'" + str(value).replace("'", "''") + "'"


def meaning(sql: str) -> str:
    """Return a text that is the same for queries that differ only in comments, space and keywords' case.

    Another version of DuckDB may read a query another way, and then says so here.
    """
    return json.dumps(_parse(sql), sort_keys=True)


def reads(sql: str) -> set[str]:
    """Return the tables and views that a query names, without those it defines itself (``WITH``).

    In lower case: a query may write a name in any.
    """
    return _tables(_parse(sql), frozenset())


def among(sql: str, named: Mapping[str, T]) -> Mapping[str, T]:
    """Return those of ``named`` that the query reads; all of them where it does not say."""
    names = reads(sql)
    return {name: value for name, value in named.items() if name.lower() in names} or named


@lru_cache
def parameters(sql: str) -> frozenset[str]:
    """Return the names, in lower case, of the parameters that a query is to be given."""
    import duckdb

    parts = duckdb.connect().extract_statements(sql)
    return frozenset(name.lower() for part in parts for name in part.named_parameters)


@lru_cache
def _parse(sql: str) -> Parsed:
    """Return the query's syntax tree without places in the text; the text where there is no tree (PIVOT)."""
    import duckdb

    # Not as a parameter: to look what kind of value one is, DuckDB imports pandas.
    ((tree,),) = duckdb.connect().execute(f"SELECT json_serialize_sql({literal(sql)})").fetchall()
    parsed = json.loads(
        tree, object_hook=lambda node: {k: v for k, v in node.items() if k != "query_location"}
    )
    return sql if parsed["error"] else parsed["statements"]


def _tables(node: Parsed, defined: frozenset[str]) -> set[str]:
    if isinstance(node, list):
        return {name for part in node for name in _tables(part, defined)}
    if not isinstance(node, dict):
        return set()
    found: set[str] = set()
    if node.get("type") == "RECURSIVE_CTE_NODE":
        defined |= {node["cte_name"].lower()}
    # A definition may read a table of its own name: it is not yet one when its query is read.
    for definition in node.get("cte_map", {"map": []})["map"]:
        found |= _tables(definition["value"], defined)
        defined |= {definition["key"].lower()}
    if node.get("type") == "BASE_TABLE" and node["table_name"].lower() not in defined:
        found.add(node["table_name"].lower())
    return found.union(*(_tables(part, defined) for name, part in node.items() if name != "cte_map"))
