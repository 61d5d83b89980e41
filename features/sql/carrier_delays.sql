-- How late a carrier's flights have been that landed in the day before each whole hour.
-- Landings are added up per hour first, so the cost does not grow with flights times hours.
WITH grid AS (
    SELECT carrier, hour
    FROM (SELECT unnest(range($start - INTERVAL 24 HOUR, $end, INTERVAL 1 HOUR)) AS hour)
    CROSS JOIN (SELECT carrier FROM schedules UNION SELECT carrier FROM flights)
), landings AS (
    SELECT carrier, date_trunc('hour', landed_at) AS hour, count(*) AS landed,
           sum(arr_delay) AS arr_delay, count_if(arr_delay >= 15) AS late
    FROM flights WHERE arr_delay IS NOT NULL
    GROUP BY ALL
), recent AS (
    SELECT carrier, hour, sum(landed) OVER past AS landed,
           sum(arr_delay) OVER past AS arr_delay, sum(late) OVER past AS late
    FROM grid LEFT JOIN landings USING (carrier, hour)
    WINDOW past AS (
        PARTITION BY carrier ORDER BY hour
        RANGE BETWEEN INTERVAL 24 HOUR PRECEDING AND INTERVAL 1 HOUR PRECEDING
    )
)
SELECT hour AS event_timestamp, hour AS available_at, carrier, epoch(hour)::BIGINT // 3600 AS known_hour,
       (arr_delay / landed)::DOUBLE AS carrier_arr_delay_24h,
       (late / landed)::DOUBLE AS carrier_late_share_24h
FROM recent
WHERE hour >= $start
