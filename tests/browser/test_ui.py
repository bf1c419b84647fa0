"""What people see: the example and a running step in Dagster's UI, in a real browser.

With SCREENSHOTS set to a folder, the pictures of the documentation are taken anew.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.deployment import until
from tests.support.nightly_provider import NightlyProvider
from tests.support.provider import Provider
from tests.support.seeing import name_of

ROOT = Path(__file__).parents[2]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
DAY = "2026-01-05"
START_TIMEOUT_S, PATIENCE_S = 600, 150
"""Nothing is promised of how long Dagster takes to start; what is not on a page after a while will not come."""

WORKSPACE = """
load_from:
  - python_module: {module_name: example_project.definitions, location_name: example_project}
  - python_module: {module_name: tests.support.ui_project, location_name: tickets}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]


ROWS = (40, 60)
"""How many rows `ticket_teams` has, materialization by materialization."""
ROWS_OF_PICTURES = (40, 60, 90, 70, 80)


PHOTOS = ROOT / "example_project" / "src" / "example_project" / "data" / "photos"
PICTURES = {name_of(file.read_bytes()): file.stem.split("-") for file in PHOTOS.glob("*.png")}


def label(prompt: str) -> dict[str, Any]:
    if "picture" in prompt:
        colour, product = PICTURES[prompt.rpartition("\n")[2]]
        return {"product": product, "colour": colour}
    if "unreadable" in prompt:
        return {"team": "nobody", "urgency": 1}
    number = int(prompt.rpartition("Ticket ")[2].partition(":")[0])
    return {"team": ("billing", "delivery", "product")[number % 7 % 3], "urgency": number % 5}


def say(prompt: str) -> dict[str, Any]:
    return {"department": "home"} if "Product:" in prompt else {"sentiment": "neutral"}


@pytest.fixture(scope="module")
def nightly() -> Iterator[NightlyProvider]:
    """A provider whose jobs take two hours of its own clock."""
    with NightlyProvider(label) as running:
        running.faults.takes_s = 7200.0
        yield running


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory, nightly: NightlyProvider) -> Iterator[str]:
    """The address of a Dagster with the example, one day of which is done, and the project `ui_project`, filled."""
    home = tmp_path_factory.mktemp("home")
    settings = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
    (home / "dagster.yaml").write_text(settings, encoding="utf-8")
    with Provider(label, latency_s=0.15) as provider, Provider(say) as reviewer, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        addresses = {"TEST_BASE_URL": provider.base_url, "TEST_JOBS_URL": nightly.base_url}
        environment = os.environ | addresses | {"DAGSTER_HOME": str(home)}
        # What is in the pictures is from the example's own model, which takes a while.
        other = {"ONDINE_MODEL": "openai/gpt-4o-mini", "ONDINE_BASE_URL": reviewer.base_url}
        example = subprocess.run(
            [sys.executable, "-m", "example_project", DAY],
            env=environment if "SCREENSHOTS" in os.environ else environment | other,
            capture_output=True,
            text=True,
            check=False,
        )
        assert example.returncode == 0, example.stderr
        rows = ROWS_OF_PICTURES if "SCREENSHOTS" in os.environ else ROWS
        fill = f"from tests.support.ui_project import fill; fill{rows}"
        filled = subprocess.run(
            [sys.executable, "-c", fill], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert filled.returncode == 0, filled.stderr
        program = Path(sys.executable).with_name("dagster")
        (home / "workspace.yaml").write_text(WORKSPACE, encoding="utf-8")
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [program, "dev", "-w", home / "workspace.yaml", "-p", str(port)],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        address = f"http://127.0.0.1:{port}"
        try:
            until(lambda: locations(address) == 2 or None, START_TIMEOUT_S, f"dagster dev, see {home / 'log'},")
            yield address
        finally:
            server.terminate()
            server.wait(90)


def ask(address: str, query: str, **variables: Any) -> dict[str, Any]:
    """Dagster's own interface, which its UI uses, too."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  (our own server)
        found: dict[str, Any] = json.load(reply)["data"]
        return found


def locations(address: str) -> int:
    try:
        found = ask(address, "{workspaceOrError {... on Workspace {locationEntries {loadStatus}}}}")
    except OSError:
        return 0
    return sum(one["loadStatus"] == "LOADED" for one in found["workspaceOrError"]["locationEntries"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """A window of a headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1440,1700"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield window
    window.quit()


def see(browser: WebDriver, *texts: str) -> None:
    """Wait until all of `texts` are on the page."""

    def missing() -> list[str]:
        page = browser.find_element(By.TAG_NAME, "body").text
        return [text for text in texts if text not in page]

    try:
        WebDriverWait(browser, PATIENCE_S).until(lambda _: not missing())
    except Exception:  # noqa: BLE001  (whatever it was, the page says more)
        page = browser.find_element(By.TAG_NAME, "body").text
        pytest.fail(f"{missing()} are not on the page {browser.current_url}:\n{page[:3000]}")


def click(browser: WebDriver, *texts: str) -> None:
    """Click what says one of `texts`."""
    path = f"//*[{' or '.join(f'normalize-space(text())={text!r}' for text in texts)}]"
    found = WebDriverWait(browser, PATIENCE_S).until(lambda _: browser.find_elements(By.XPATH, path))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", found[-1])


def keep(browser: WebDriver, name: str) -> None:
    """Take a picture for the documentation, if one is wanted."""
    if folder := os.environ.get("SCREENSHOTS"):
        time.sleep(2)  # for what fades in
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_the_asset_shows_figures_rows_and_a_picture(dagster: str, browser: WebDriver) -> None:
    """Cost, calls, tokens, a preview of rows and the distribution of answers are on the asset's page."""
    browser.get(f"{dagster}/assets/review_sentiment?partition={DAY}&view=partitions")
    see(browser, "ondine/cost_usd", "ondine/rows_total", "ondine/summary", "ondine/preview", "ondine/plot")
    (picture,) = browser.find_elements(By.CSS_SELECTOR, 'img[alt="How often each value occurs"]')
    assert browser.execute_script("return arguments[0].naturalWidth", picture) > 0
    keep(browser, "review_sentiment")


def cells(browser: WebDriver, text: str) -> list[str]:
    """The cells of the row of a Markdown table that has `text`."""
    path = f"//td[contains(normalize-space(.), {text!r})]/ancestor::tr[not(.//table)]/td"
    return [cell.text for cell in browser.find_elements(By.XPATH, path)]


def test_figures_are_drawn_over_materializations(dagster: str, browser: WebDriver) -> None:
    """Every numeric figure is a plot; those of running steps have keys of their own."""
    browser.get(f"{dagster}/assets/ticket_teams")
    click(browser, "Plots")
    see(browser, "ondine/cost_usd", "ondine/progress/rows_done")
    keep(browser, "plots")


def test_a_failed_row_is_not_shifted(dagster: str, browser: WebDriver) -> None:
    """Its answers are empty cells, also the first one; the page says how many failed, and why."""
    browser.get(f"{dagster}/assets/ticket_teams?view=events")
    see(browser, "ondine/summary", " failed, $", "ondine/failures")
    found = cells(browser, "Ticket 1: It is unreadable.")
    assert found[:3] == ["", "", "Ticket 1: It is unreadable."]
    assert found[3].startswith("invalid: team")
    keep(browser, "ticket_teams")


def test_failed_rows_are_shown_with_their_reasons(dagster: str, browser: WebDriver) -> None:
    """A preview, and the reasons with counts; the check of the error rate is on the page of the table itself."""
    browser.get(f"{dagster}/assets/ticket_teams_failed")
    see(browser, "ondine/summary", "ondine/preview", "ondine/failures", "invalid: team")
    assert cells(browser, "Ticket 1: It is unreadable.") == ["invalid", "Ticket 1: It is unreadable."]
    keep(browser, "failed_rows")
    browser.get(f"{dagster}/assets/ticket_teams?view=checks")
    see(browser, "error_rate", "Failed", " rows failed.")


def test_the_spend_report_has_tables(dagster: str, browser: WebDriver) -> None:
    """By asset, model and day, as tables and not as their source."""
    browser.get(f"{dagster}/assets/llm_spend?view=events")
    see(browser, "ondine/spend_by_asset", "ondine/spend_by_model", "ondine/spend_by_day", "ticket_teams")
    assert "| --- |" not in browser.find_element(By.TAG_NAME, "body").text
    assert len(cells(browser, "strict_ticket_teams")) == 4
    keep(browser, "spend")


def test_a_failed_step_says_what_failed_it(dagster: str, browser: WebDriver) -> None:
    """Its last observation is on the asset's page, with what it did and cost."""
    browser.get(f"{dagster}/assets/strict_ticket_teams?view=events")
    see(browser, "ondine/progress/summary", "40 of 40 rows", "3 failed")
    keep(browser, "failed_step")


def test_images_are_shown_small(dagster: str, browser: WebDriver) -> None:
    """The first images are on the asset's page with their answers, and the browser can draw them."""
    run = launch(dagster, assetSelection=[{"path": ["photo_labels"]}])
    wait_for_end(dagster, run, "SUCCESS")
    browser.get(f"{dagster}/assets/photo_labels?view=events")
    see(browser, "ondine/preview", "image blue-bowl.png, 128 x 128", "ondine/thumbnails")
    click(browser, "[Show Markdown]")
    drawn = WebDriverWait(browser, PATIENCE_S).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, 'td img[src^="data:image/jpeg"]')
    )
    sizes = [browser.execute_script("return arguments[0].naturalWidth", one) for one in drawn]
    assert sizes == [96] * 5
    first = drawn[0].find_elements(By.XPATH, "ancestor::tr[1]/td")
    assert [cell.text for cell in first] == ["", "bowl", "blue"]
    keep(browser, "thumbnails")


LINEAGE = """{ assetNodeOrError(assetKey: {path: ["review_sentiment"]}) { ... on AssetNode {
  assetMaterializations(limit: 1) { metadataEntries { ... on TableColumnLineageMetadataEntry {
    lineage { columnName columnDeps { assetKey { path } columnName } } } } } } } }"""


def test_assets_and_columns_know_where_they_come_from(dagster: str, browser: WebDriver) -> None:
    """Lineage leads from an output column to what the prompt reads; the free UI draws that of assets only."""
    (event,) = ask(dagster, LINEAGE)["assetNodeOrError"]["assetMaterializations"]
    (lineage,) = (entry["lineage"] for entry in event["metadataEntries"] if "lineage" in entry)
    sources = {column["columnName"]: column["columnDeps"] for column in lineage}
    assert sources["sentiment"] == [{"assetKey": {"path": ["reviews"]}, "columnName": "review"}]
    browser.get(f"{dagster}/assets/review_sentiment?view=lineage")
    see(browser, "review_sentiment", "reviews", "sentiment_report")
    keep(browser, "lineage")


def test_the_launchpad_explains_what_can_be_set(dagster: str, browser: WebDriver) -> None:
    """The fields of a run are in the Launchpad, each with its description."""
    browser.get(f"{dagster}/locations/tickets/jobs/__ASSET_JOB/playground")
    click(browser, "Scaffold all default config")
    see(browser, "dry_run: false", "full_refresh: false", "sample: first")
    keep(browser, "launchpad")


def test_the_component_has_a_page(dagster: str, browser: WebDriver) -> None:
    """With what its attributes mean."""
    browser.get(f"{dagster}/locations/example_project/docs")
    click(browser, "Components")
    click(browser, "ondine_dagster")
    # Versions of Dagster differ in how they name it here.
    click(browser, "LLMAssetComponent", "ondine_dagster.LLMAssetComponent")
    see(browser, "ondine_dagster.LLMAssetComponent", "prompt", "batch_size")
    keep(browser, "component")


LAUNCH = """mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } }
}"""
RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def launch(address: str, **selection: Any) -> str:
    """Launch the assets of the project, or those of `selection`; returns the run."""
    selector = {
        "repositoryLocationName": "tickets",
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        **selection,
    }
    params = {"selector": selector, "runConfigData": {}, "mode": "default"}
    launched = ask(address, LAUNCH, params=params)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def wait_for_end(address: str, run: str, status: str) -> None:
    until(lambda: ask(address, RUN, id=run)["runOrError"]["status"] == status or None, PATIENCE_S, "end of the run")


def test_addresses_in_answers_are_no_links(dagster: str, browser: WebDriver) -> None:
    """What a model wrote is read and not clicked."""
    run = launch(dagster, assetSelection=[{"path": ["answers_with_links"]}])
    wait_for_end(dagster, run, "SUCCESS")
    browser.get(f"{dagster}/assets/answers_with_links?view=events")
    see(browser, "ondine/preview", "evil.example/a", "me")
    assert browser.find_elements(By.CSS_SELECTOR, "td, th")
    assert not browser.find_elements(By.CSS_SELECTOR, 'a[href*="evil.example"]')
    keep(browser, "links")


def test_a_running_step_is_watched_and_stopped(dagster: str, browser: WebDriver) -> None:
    """Observations come in while the step runs; Terminate ends it within seconds, with what was spent on the page."""
    run = launch(dagster, assetSelection=[{"path": [name]} for name in ("support_tickets", "ticket_labels")])
    browser.get(f"{dagster}/runs/{run}")
    see(browser, "ASSET_OBSERVATION", "rows/s")
    keep(browser, "running")
    click(browser, "Terminate")
    click(browser, "Terminate 1 run")
    wait_for_end(dagster, run, "CANCELED")
    browser.get(f"{dagster}/assets/ticket_labels?view=events")
    see(browser, "ondine/progress/rows_done")
    keep(browser, "terminated")


RUNS = """query ($sensor: String!) { runsOrError(filter: {tags: [{key: "dagster/sensor_name", value: $sensor}]}) {
  ... on Runs { results { runId status } } } }"""


def test_a_batch_job_under_way_and_the_run_that_the_sensor_requested(
    dagster: str, browser: WebDriver, nightly: NightlyProvider
) -> None:
    """The asset's page says what is under way; the sensor's run has its name and makes the table."""
    run = launch(dagster, assetSelection=[{"path": ["nightly_teams"]}])
    wait_for_end(dagster, run, "SUCCESS")
    nightly.advance(3600.0)
    again = launch(dagster, assetSelection=[{"path": ["nightly_teams"]}])
    wait_for_end(dagster, again, "SUCCESS")
    browser.get(f"{dagster}/assets/nightly_teams?view=events")
    see(browser, "ondine/job/summary", "ondine/job/held_usd", " of 600 requests are done", "batch_1")
    keep(browser, "batch_job")

    def requested() -> str | None:
        found = ask(dagster, RUNS, sensor="batch_sensor")["runsOrError"]["results"]
        return next((one["runId"] for one in found if one["status"] == "SUCCESS"), None)

    assert requested() is None
    nightly.end_all()
    last = until(requested, PATIENCE_S, "run that the sensor requested")
    browser.get(f"{dagster}/runs/{last}")
    see(browser, "batch_sensor", "ASSET_MATERIALIZATION", "600 of 600 rows")
    keep(browser, "batch_run")
    assert nightly.books.created == ["batch_1"]
