-- How late flights from an airport have been that landed in the three hours before each whole hour.
-- Landings are added up per hour first, so the cost does not grow with flights times hours.
WITH grid AS (
    SELECT origin, hour
    FROM (SELECT unnest(range($start - INTERVAL 3 HOUR, $end, INTERVAL 1 HOUR)) AS hour)
    CROSS JOIN (SELECT origin FROM schedules UNION SELECT origin FROM flights)
), landings AS (
    SELECT origin, date_trunc('hour', landed_at) AS hour, count(*) AS landed,
           sum(dep_delay) AS dep_delay, sum(arr_delay) AS arr_delay, count_if(arr_delay >= 15) AS late
    FROM flights WHERE arr_delay IS NOT NULL
    GROUP BY ALL
), recent AS (
    SELECT origin, hour, sum(landed) OVER past AS landed, sum(dep_delay) OVER past AS dep_delay,
           sum(arr_delay) OVER past AS arr_delay, sum(late) OVER past AS late
    FROM grid LEFT JOIN landings USING (origin, hour)
    WINDOW past AS (
        PARTITION BY origin ORDER BY hour
        RANGE BETWEEN INTERVAL 3 HOUR PRECEDING AND INTERVAL 1 HOUR PRECEDING
    )
)
SELECT hour AS event_timestamp, hour AS available_at, origin, epoch(hour)::BIGINT // 3600 AS known_hour,
       (dep_delay / landed)::DOUBLE AS origin_dep_delay_3h,
       (arr_delay / landed)::DOUBLE AS origin_arr_delay_3h,
       (late / landed)::DOUBLE AS origin_late_share_3h,
       coalesce(landed, 0)::BIGINT AS origin_landed_3h
FROM recent
WHERE hour >= $start
