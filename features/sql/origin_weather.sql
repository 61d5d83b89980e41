-- The weather at an airport as known at each whole hour: the last observation made before it.
-- An observation labelled with the hour itself is not used, and one older than six hours is none.
WITH hours AS (
    SELECT unnest(range($start, $end, INTERVAL 1 HOUR)) AS hour
), observations AS (
    -- the hour that repeats when summer time ends comes twice under one label: keep one, always the same
    SELECT * FROM weather
    QUALIFY row_number() OVER (PARTITION BY origin, observed_at ORDER BY temp, dewp, wind_dir, pressure) = 1
)
SELECT hour AS event_timestamp, hour AS available_at,
       origins.origin, epoch(hour)::BIGINT // 3600 AS known_hour,
       temp::DOUBLE AS temp, dewp::DOUBLE AS dewp, humid::DOUBLE AS humid,
       wind_dir::DOUBLE AS wind_dir, wind_speed::DOUBLE AS wind_speed, wind_gust::DOUBLE AS wind_gust,
       precip::DOUBLE AS precip, pressure::DOUBLE AS pressure, visib::DOUBLE AS visib
FROM hours CROSS JOIN (SELECT DISTINCT origin FROM observations) AS origins
ASOF JOIN observations ON origins.origin = observations.origin AND hour > observed_at
WHERE observed_at >= hour - INTERVAL 6 HOUR
