"""What a person sees: the Prefect UI in a real browser after a run."""

from __future__ import annotations

import json

import httpx
from playwright.sync_api import Page, expect

from headrace import services
from headrace.legible import markdown
from tests.flows.conftest import River


def test_the_deployments_and_the_drift_run_with_its_artifacts_are_there_to_see(
    river: River, page: Page
) -> None:
    ui = services.prefect_server(river.settings).page
    page.goto(f"{ui}/deployments")
    for flow in ("cycle", "ingest", "materialize", "train", "score", "monitor", "lifecycle"):
        expect(page.get_by_text(flow, exact=True).first).to_be_visible(timeout=30_000)

    name = "train flights because of drift/2013-04-29T00:00:00Z"
    run = river.prefect("flow_runs", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_ASC")[0]
    page.goto(f"{ui}/runs/flow-run/{run['id']}")
    expect(page.get_by_text(name).first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Completed").first).to_be_visible()
    page.get_by_text("Artifacts", exact=True).last.click()
    expect(page.get_by_text("verdict-flights").first).to_be_visible()
    expect(page.get_by_text("candidates-flights").first).to_be_visible()


def test_how_a_pipeline_is_is_one_page_with_a_picture(river: River, page: Page) -> None:
    (made,) = river.prefect("artifacts/latest", artifacts={"key": {"any_": ["status-flights"]}})
    page.goto(f"{river.settings.prefect_page}/artifacts/artifact/{made['latest_id']}")
    for title in ("Which model serves?", "How well does it do?", "What has changed?"):
        expect(page.get_by_role("heading", name=title)).to_be_visible(timeout=30_000)
    picture = page.get_by_role("img", name="AUC")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 500


def test_evidently_shows_what_was_measured_over_time_without_a_network(river: River, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    server = services.evidently_server(river.settings)
    with services.running([server], river.settings):
        projects = httpx.get(f"{server.page}/api/projects", timeout=30).json()
        (flights,) = (one for one in projects if one["name"] == "flights")
        page.goto(f"{server.page}/projects/{flights['id']}")
        for title in ("AUC", "skill", "Predictions, and those of which the truth is known"):
            expect(page.get_by_text(title, exact=True).first).to_be_visible(timeout=60_000)
        for line in ("came true", "promised", "expected (CBPE)"):
            expect(page.get_by_text(line, exact=True).first).to_be_visible()
        page.goto(f"{server.page}/projects/{flights['id']}/reports")
        report = page.get_by_text("flights, version 1, 2013-04-08 00:00 to 2013-04-15 00:00 UTC")
        expect(report.first).to_be_visible(timeout=30_000)
    assert not [url for url in asked if not url.startswith((server.page, "data:", "blob:"))]


def test_the_catalog_shows_where_features_come_from_and_what_uses_them(river: River, page: Page) -> None:
    """Feast's own UI, without a network."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    server = services.feast_server(river.settings)
    with services.running([server], river.settings):
        page.goto(f"{server.page}/p/headrace/feature-view")
        for view in ("planes", "origin_delays", "carrier_delays", "origin_weather", "schedule ondemand"):
            expect(page.get_by_role("link", name=view, exact=True)).to_be_visible()
        page.get_by_role("link", name="origin_delays", exact=True).click()
        told = ("origin_late_share_3h", "flight_delay", "raw/flights, raw/schedules", "flight-operations")
        for text in told:
            expect(page.get_by_text(text, exact=True).first).to_be_visible()
        page.goto(f"{server.page}/p/headrace/feature-service/flight_delay")
        expect(page.get_by_text("registered model", exact=True)).to_be_visible()
        expect(page.get_by_role("link", name="wind_gust", exact=True)).to_be_visible()
    assert not [url for url in asked if not url.startswith((server.page, "data:", "blob:"))]


def test_what_comes_from_data_is_text_in_an_artifact(river: River, page: Page) -> None:
    hostile = '`a_b` <img src=x onerror="document.title=1"> ![x](http://127.0.0.1/x.png) *b* ``<b>`` c|d'
    told = {"key": "hostile", "type": "table", "description": markdown(hostile)}
    # By hand: beside Playwright's event loop Prefect's client would wait to be awaited.
    made = httpx.post(
        f"{river.settings.prefect_api_url}/artifacts/",
        json={**told, "data": json.dumps([{"rule": markdown(hostile)}])},
        timeout=30,
    ).json()

    page.goto(f"{river.settings.prefect_page}/artifacts/artifact/{made['id']}")

    shown = page.get_by_text(hostile.replace("`a_b` ", ""))
    expect(shown.first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("a_b", exact=True)).to_have_count(2)
    expect(page.get_by_role("img", name="x")).to_have_count(0)
    assert page.locator("img[src='x'], img[src='http://127.0.0.1/x.png']").count() == 0


def test_mlflow_opens_at_the_models_and_sends_nothing_elsewhere(river: River, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    server = services.mlflow_server(river.settings)
    with services.running([server], river.settings):
        page.goto(services.mlflow_models(river.settings))
        expect(page.get_by_role("link", name="flights", exact=True).first).to_be_visible(timeout=60_000)
        assert "telemetry" not in page.inner_text("body").lower()
        told = httpx.get(f"{river.settings.mlflow_page}/ajax-api/3.0/mlflow/ui-telemetry", timeout=30)
        assert told.json()["disable_ui_telemetry"] is True
    assert {url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))} == set()
