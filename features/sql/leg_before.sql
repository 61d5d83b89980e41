-- What was predicted, by each whole hour, of an aircraft's last leg from New York.
-- An hour is that at which the aircraft's next leg is asked about, six hours before it is scheduled.
WITH asked AS (
    SELECT DISTINCT tailnum, date_trunc('hour', sched_dep - INTERVAL 6 HOUR) AS hour
    FROM schedules WHERE tailnum IS NOT NULL
), legs AS (
    SELECT tailnum, sched_dep, probability, greatest(predictions.available_at, schedules.available_at) AS known_at
    FROM flights_predictions predictions JOIN schedules USING (carrier, flight, origin, sched_dep)
    WHERE tailnum IS NOT NULL
)
SELECT hour AS event_timestamp, hour AS available_at, tailnum, epoch(hour)::BIGINT // 3600 AS known_hour,
       -- of two legs at once, which cannot be, the one that is likelier late
       arg_max(probability, (legs.sched_dep, probability))::DOUBLE AS leg_late,
       (epoch(hour - max(legs.sched_dep)) / 3600)::DOUBLE AS leg_hours
FROM asked JOIN legs USING (tailnum)
WHERE known_at <= hour AND legs.sched_dep > hour - INTERVAL 24 HOUR AND hour >= $start AND hour < $end
GROUP BY hour, tailnum
