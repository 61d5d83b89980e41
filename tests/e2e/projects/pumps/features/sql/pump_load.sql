-- known at the window's end, for what is predicted in the next one
SELECT pump, epoch($end::TIMESTAMPTZ)::BIGINT AS since, avg(load) AS mean_load,
       max(read_at) AS event_timestamp, max(available_at) AS available_at
FROM readings WHERE read_at >= $start AND read_at < $end GROUP BY pump
