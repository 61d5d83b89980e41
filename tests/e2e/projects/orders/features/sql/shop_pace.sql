-- known at the week's end, for what is predicted in the next one
SELECT shop, epoch($end::TIMESTAMPTZ)::BIGINT AS week, avg(waited) AS mean_wait,
       list(waited ORDER BY "order" DESC)[:3] AS last_waits,
       max(placed_at) AS event_timestamp, max(available_at) AS available_at
FROM served WHERE placed_at >= $start AND placed_at < $end GROUP BY shop
