-- known at the day's end, for what is predicted on the next one
SELECT tank, (hour // 24) + 1 AS day, avg(drawn) AS mean_drawn,
       max(read_at) AS event_timestamp, max(available_at) AS available_at
FROM truth WHERE read_at >= $start AND read_at < $end GROUP BY tank, hour // 24
