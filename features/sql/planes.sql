-- What the aircraft registry said, from the instant it said so.
SELECT registered_at AS event_timestamp, registered_at AS available_at, tailnum,
       (extract(year FROM registered_at) - built)::DOUBLE AS plane_age,
       seats::DOUBLE AS plane_seats
FROM planes
WHERE registered_at >= $start AND registered_at < $end
