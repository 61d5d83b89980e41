"""Spoil a week of flights, to see the gate at work: ``python -m pipelines._spoil 2013-04-15 FOLDER``.

Writes the flights of 2013 to FOLDER as CSV files, the named week in one of its
own in which every fiftieth flight leaves from "NYC", some distances are
negative, twenty rows come twice, and the column ``air_time`` is gone. With
``--mend``, writes that week's file as it should be. Point ``NYCFLIGHTS13_DATA``
at FOLDER to use it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from headrace.lake import Window, duckdb_connection
from pipelines import _nycflights13 as nyc

SPOILT = """
    SELECT * EXCLUDE (air_time) REPLACE (
        if(n % 50 = 0, 'NYC', origin) AS origin,
        if(n % 97 = 0, -distance, distance) AS distance
    ) FROM (SELECT *, row_number() OVER () AS n FROM (FROM week ORDER BY ALL))
"""


def spoil(
    week: Annotated[str, typer.Argument(help="The Monday it begins with, UTC.")],
    folder: Path,
    mend: Annotated[bool, typer.Option("--mend")] = False,
) -> None:
    """Write FOLDER/flights-others.csv and FOLDER/flights-<week>.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    start = datetime.fromisoformat(week).replace(tzinfo=UTC)
    within = Window(start, start + timedelta(weeks=1)).predicate("time_hour")
    con = duckdb_connection()
    con.read_parquet(str(nyc.packed("flights"))).create_view("flights")
    con.execute(f"CREATE VIEW week AS FROM flights WHERE {within}")
    spoilt = f"SELECT * EXCLUDE (n) FROM (({SPOILT}) UNION ALL ({SPOILT} LIMIT 20))"
    files = {"others": f"FROM flights WHERE NOT ({within})", week: "FROM week" if mend else spoilt}
    for name, rows in files.items():
        con.execute(f"COPY ({rows}) TO '{folder}/flights-{name}.csv' (HEADER, NULLSTR 'NA')")


if __name__ == "__main__":
    typer.run(spoil)
