
SELECT customer, placed_at, segment, count(*) OVER (PARTITION BY customer ORDER BY placed_at) AS bought,
       placed_at AS event_timestamp, placed_at AS available_at
FROM orders LEFT JOIN customers USING (customer) WHERE placed_at >= $start AND placed_at < $end
