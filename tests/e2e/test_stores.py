"""An online store that is emptied under a pipeline that lives by the clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from headrace import services
from tests.e2e.conftest import Project

WINDOW, PUMPS = timedelta(seconds=30), 20


def test_a_redis_that_is_emptied_is_filled_again_before_anything_is_predicted(
    project: Project, redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project.world / "features/feature_store.yaml"
    whole = config.read_text()
    begin, end = whole.index("online_store:"), whole.index("offline_store:")
    config.unlink()
    online = f'online_store:\n  type: redis\n  connection_string: "{redis},db=11"\n'
    config.write_text(whole[:begin] + online + whole[end:])
    client = Redis.from_url(f"redis://{redis}/11")

    def next_window() -> None:
        now = datetime.now(UTC).timestamp()
        time.sleep(WINDOW.total_seconds() - now % WINDOW.total_seconds() + 1)

    def keys() -> int:
        return len([key for key in client.keys("*") if not key.startswith(b"headrace:")])

    with services.running([services.prefect_server(project.settings)], project.settings):
        project.run("cycle", "pumps")
        project.run("train", "pumps")
        next_window()
        project.run("cycle", "pumps")
        first, *_ = project.done("judgement")
        before = keys()
        client.flushdb()
        next_window()
        project.run("cycle", "pumps")
    judged = project.done("judgement")
    assert len(judged) >= 2
    assert judged[0] == first
    assert keys() >= before + PUMPS
    con = project.lake.connect({"p": "predictions/pumps"})
    counted = con.sql("SELECT count(*), count(mean_load), count(DISTINCT (pump, second)) FROM p").fetchall()
    assert counted == [(PUMPS * 30 * len(judged),) * 3]
    client.flushdb()
