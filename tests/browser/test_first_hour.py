"""A new user's first hour after the quickstart: the UI and the behaviour of a new project.

All tests share one project made by the quickstart, one webserver, one daemon and one browser. If SCREENSHOTS is a
folder, the screenshots of the documentation are written to it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.deployment import until
from tests.support.distributions import ROOT, Distributions
from tests.support.nightly_provider import NightlyProvider
from tests.support.provider import Effect, Ledger, Provider, ReceivedRequest, filtered
from tests.support.request_content import name_of
from tests.support.shop import Shop, add_assets, end, follow_quickstart

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
TIMEOUT_S = 150
"""The maximum time until a page shows a text or an element."""

pytestmark = pytest.mark.slow

ROWS = (40, 60)
"""The number of rows of `ticket_teams` in each materialization."""
ROWS_FOR_SCREENSHOTS = (40, 60, 90, 70, 80)

DATA = ROOT / "example_project" / "src" / "example_project" / "data"
PICTURES = {name_of(file.read_bytes()): file.stem.split("-") for file in DATA.glob("photos/*.png")}
REVIEWS = pd.read_csv(DATA / "reviews.csv", keep_default_na=False)
LABELS = dict(zip(REVIEWS["review"].str.strip(), REVIEWS["label"], strict=True))


def label(prompt: str) -> dict[str, Any]:
    """The model's answer to a prompt of one row or of several."""
    if prompt.startswith("["):
        rows = [{"id": row["id"], **label(f"Review: {row['x']}")} for row in json.loads(prompt)]
        return {"answers": rows}
    if "Review: " in prompt:
        return {"sentiment": LABELS[prompt.partition("Review: ")[2].strip()]}
    if "Text: " in prompt:
        return {"sentiment": "negative", "topic": "a ticket"}
    if "picture" in prompt:
        colour, product = PICTURES[prompt.rpartition("\n")[2]]
        return {"product": product, "colour": colour}
    if "unreadable" in prompt:
        return {"team": "nobody", "urgency": 1}
    number = int(prompt.rpartition("Ticket ")[2].partition(":")[0])
    return {"team": ("billing", "delivery", "product")[number % 7 % 3], "urgency": number % 5}


def filter_refused_tickets(request: ReceivedRequest) -> Effect:
    """Answer as a content filter does if the ticket is one that it refuses."""
    return filtered(request) if "It is refused." in request.prompt else None


@pytest.fixture(scope="module")
def nightly() -> Iterator[NightlyProvider]:
    """A provider whose batch jobs take two hours of its own clock."""
    with NightlyProvider(label) as running:
        running.faults.takes_s = 7200.0
        yield running


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that answers within 0.15 s."""
    with Provider(label, latency_s=0.15, fault=filter_refused_tickets) as running:
        yield running


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    distributions: Distributions,
    provider: Provider,
    nightly: NightlyProvider,
) -> Shop:
    """The quickstart's project, without a running server; its assets are materialized only for screenshots."""
    variables = {"TEST_BASE_URL": provider.base_url, "TEST_JOBS_URL": nightly.base_url, "TEST_DATA": str(DATA)}
    folder = tmp_path_factory.mktemp("first_hour")
    return follow_quickstart(distributions, folder, variables, runs="SCREENSHOTS" in os.environ)


@pytest.fixture(scope="module")
def dagster(shop: Shop) -> Iterator[Shop]:
    """The project with further assets, some of them materialized, and with a webserver and a daemon."""
    add_assets(shop)
    shop.run("uv", "run", "dg", "scaffold", "defs", "ondine_dagster.LLMAssetComponent", "ticket_moods",
             "--upstream", "first_tickets", "--column", "body")  # fmt: skip
    change(shop.folder / MOODS, "model: openai/gpt-6-luna", MODEL)
    rows = ROWS_FOR_SCREENSHOTS if "SCREENSHOTS" in os.environ else ROWS
    shop.run_python(f"from shop.defs.tickets import fill; fill{rows}")
    server = shop.serve()
    yield shop
    end(server)


MOODS = "src/shop/defs/ticket_moods/defs.yaml"
MODEL = 'model: {model: openai_compatible/m, base_url: "{{ env.TEST_BASE_URL }}"}'


def change(file: Path, old: str, new: str) -> None:
    """Replace a text that occurs once in a file."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """A window of a headless Chromium."""
    if not (BROWSER and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1440,1700"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield window
    window.quit()


@pytest.fixture
def browser(window: WebDriver) -> Iterator[WebDriver]:
    """The window, whose page is closed when the test ends."""
    yield window
    close_page(window)


def close_page(browser: WebDriver) -> None:
    """Close the page, because an open page of Dagster sends requests and draws continuously."""
    browser.get("about:blank")


def wait_for_texts(browser: WebDriver, *texts: str) -> None:
    """Wait until all of `texts` are on the page."""

    def missing() -> list[str]:
        page = browser.find_element(By.TAG_NAME, "body").text
        return [text for text in texts if text not in page]

    try:
        WebDriverWait(browser, TIMEOUT_S).until(lambda _: not missing())
    except Exception:  # noqa: BLE001  (the text of the page explains every kind of error)
        page = browser.find_element(By.TAG_NAME, "body").text
        pytest.fail(f"{missing()} are not on the page {browser.current_url}:\n{page[:3000]}")


def click(browser: WebDriver, *texts: str) -> None:
    """Click the last element that has one of `texts`."""
    path = f"//*[{' or '.join(f'normalize-space(text())={text!r}' for text in texts)}]"
    found = WebDriverWait(browser, TIMEOUT_S).until(lambda _: browser.find_elements(By.XPATH, path))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", found[-1])


def take_screenshot(browser: WebDriver, name: str) -> None:
    """Take a screenshot for the documentation, if SCREENSHOTS is set."""
    if folder := os.environ.get("SCREENSHOTS"):
        time.sleep(2)  # for elements that fade in
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


# -- a new user's next steps -----------------------------------------------------------------------------------------


def test_a_trial_does_not_change_the_table(dagster: Shop, provider: Provider, browser: WebDriver) -> None:
    """A dry run and a trial show the messages; the run after them asks only rows without an answer."""
    asset = "first_tickets"
    dry = dagster.materialize(asset, config={"dry_run": True})
    assert asked_about(provider.ledger, range(200, 208)) == {}
    browser.get(f"{dagster.address}/assets/{asset}?view=events")
    wait_for_texts(browser, "ondine/messages", "ondine/estimated_rows_skipped", "Ticket 206: It is unreadable.")
    close_page(browser)
    dagster.materialize(asset, config={"max_rows": 5, "sample": "random", "keep_replies": True})
    tried = asked_about(provider.ledger, range(200, 206))
    assert 1 <= len(tried) <= 5
    browser.get(f"{dagster.address}/assets/{asset}?view=events")
    wait_for_texts(browser, "ondine/trial/summary", "ondine/trial/rows", "ondine/trial/messages")
    take_screenshot(browser, "trial")
    close_page(browser)
    assert figures(dagster, asset) == []
    assert "missing" not in log(dagster, dry).lower()
    dagster.materialize(asset, config={"keep_replies": True})
    (made,) = figures(dagster, asset)
    assert [made[f"ondine/rows_{name}"] for name in ("total", "skipped", "failed", "succeeded")] == [10, 2, 2, 6]
    assert asked_about(provider.ledger, range(200, 206)) == dict.fromkeys(range(200, 206), 1)


def test_why_explains_a_row_and_refused_rows_are_not_asked_again(dagster: Shop, provider: Provider) -> None:
    """`why` shows a stored answer and a failed row's reply; the next run asks the invalid row, not the refused one."""
    why = ("uv", "run", "python", "-m", "ondine_core.store", "why", "--asset", "first_tickets", "--row")
    failed = dagster.run(*why, json.dumps({"body": "Ticket 206: It is unreadable."}))
    assert '"nobody"' in failed
    answered = dagster.run(*why, json.dumps({"body": "Ticket 203: It does not work."}))
    assert all(text in answered for text in ("key", "openai_compatible/labels", "$0.0000", '"urgency"'))
    before = asked_about(provider.ledger, range(200, 208))
    dagster.materialize("first_tickets")
    after = asked_about(provider.ledger, range(200, 208))
    assert {number for number in after if after[number] > before[number]} == {206}


def test_a_backfill_makes_the_calls_that_the_dry_run_planned(dagster: Shop, browser: WebDriver) -> None:
    """The daemon materializes two days in a run each; the number of calls is the planned one."""
    dagster.materialize("daily_sentiment", config={"dry_run": True}, partition="2026-01-05")
    (plan,) = observations(dagster, "daily_sentiment")
    assert len(dagster.backfill("daily_sentiment", "2026-01-05", "2026-01-06")) == 2
    made = {one["partition"]: one for one in figures(dagster, "daily_sentiment")}
    assert set(made) == {"2026-01-05", "2026-01-06"}
    assert made["2026-01-05"]["ondine/requests"] == plan["ondine/estimated_requests"] > 10
    of_day = REVIEWS[REVIEWS["date"] == "2026-01-05"]["review"].str.strip()
    expected = Counter(LABELS[review] for review in of_day if review)
    assert dict(made["2026-01-05"]["ondine/distribution"]["sentiment"]).items() >= expected.items()
    browser.get(f"{dagster.address}/assets/daily_sentiment?partition=2026-01-05&view=partitions")
    wait_for_texts(browser, "ondine/cost_usd", "ondine/rows_total", "ondine/summary", "ondine/preview", "ondine/plot")
    (picture,) = browser.find_elements(By.CSS_SELECTOR, 'img[alt="How often each value occurs"]')
    assert browser.execute_script("return arguments[0].naturalWidth", picture) > 0
    take_screenshot(browser, "review_sentiment")


def test_a_scaffolded_component_loads_and_materializes(dagster: Shop) -> None:
    """With another model than the scaffolded one; an error in the YAML has file, line and attribute."""
    names = {file.name for file in (dagster.folder / MOODS).parent.iterdir() if file.is_file()}
    assert names == {"defs.yaml", "prompt.md"}
    dagster.materialize("first_tickets", "ticket_moods")
    (made,) = figures(dagster, "ticket_moods")
    assert [made[f"ondine/rows_{name}"] for name in ("succeeded", "skipped", "failed")] == [7, 2, 1]
    assert "OPENAI_API_KEY" in dagster.run("uv", "run", "dg", "list", "envs")
    change(dagster.folder / MOODS, "batch_size: 1", "batch_size: 0")
    found = dagster.run("uv", "run", "dg", "check", "yaml", status=1)
    change(dagster.folder / MOODS, "batch_size: 0", "batch_size: 1")
    assert re.search(r"defs\.yaml:\d+ - ondine_dagster\.LLMAssetComponent attributes\.batch_size", found), found


def test_total_cost_is_at_least_the_cost_of_the_run(dagster: Shop) -> None:
    """`cost_usd_total` includes the cost of reused answers, `cost_usd` does not."""
    for asset in ("ticket_teams", "first_tickets", "daily_sentiment"):
        made = figures(dagster, asset)
        assert made
        assert all(one["ondine/cost_usd_total"] >= one["ondine/cost_usd"] for one in made)


def asked_about(ledger: Ledger, tickets: range) -> dict[int, int]:
    """The number of calls about each of these tickets of `first_tickets`, repairs included."""
    asked = Counter[int]()
    for request in ledger.requests:
        found = re.search(r"Which team.*Ticket (\d+):", str(request.messages), re.DOTALL)
        if found:
            asked[int(found[1])] += 1
    return {number: asked[number] for number in tickets if asked[number]}


def figures(shop: Shop, asset: str) -> list[dict[str, Any]]:
    """The metadata of each materialization of an asset, oldest first."""
    with dg.DagsterInstance.from_config(str(shop.home)) as instance:
        found = instance.fetch_materializations(dg.AssetKey(asset), limit=1000, ascending=True).records
    events = [record.asset_materialization for record in found]
    return [
        {"partition": event.partition} | {key: one.value for key, one in event.metadata.items()}
        for event in events
        if event
    ]


def observations(shop: Shop, asset: str) -> list[dict[str, Any]]:
    """The metadata of each observation of an asset, oldest first."""
    with dg.DagsterInstance.from_config(str(shop.home)) as instance:
        found = instance.fetch_observations(dg.AssetKey(asset), limit=1000, ascending=True).records
    events = [record.asset_observation for record in found]
    return [{key: one.value for key, one in event.metadata.items()} for event in events if event]


def log(shop: Shop, run: str) -> str:
    """All log messages of a run."""
    with dg.DagsterInstance.from_config(str(shop.home)) as instance:
        return "\n".join(event.user_message for event in instance.all_logs(run))


# -- the UI's pages -----------------------------------------------------------------------------------------------


def cells(browser: WebDriver, text: str) -> list[str]:
    """The cells of the Markdown table row that contains `text`."""
    path = f"//td[contains(normalize-space(.), {text!r})]/ancestor::tr[not(.//table)]/td"
    return [cell.text for cell in browser.find_elements(By.XPATH, path)]


def test_metadata_is_plotted_over_materializations(dagster: Shop, browser: WebDriver) -> None:
    """Every numeric value has a plot; values of running steps have separate keys."""
    browser.get(f"{dagster.address}/assets/ticket_teams")
    click(browser, "Plots")
    wait_for_texts(browser, "ondine/cost_usd", "ondine/progress/rows_done")
    take_screenshot(browser, "plots")


def test_failed_row_has_empty_cells(dagster: Shop, browser: WebDriver) -> None:
    """All its answers are empty cells; the page has the number of failures and the reasons."""
    browser.get(f"{dagster.address}/assets/ticket_teams?view=events")
    wait_for_texts(browser, "ondine/summary", " failed, $", "ondine/failures")
    found = cells(browser, "Ticket 1: It is unreadable.")
    assert found[:3] == ["", "", "Ticket 1: It is unreadable."]
    assert found[3].startswith("invalid: team")
    take_screenshot(browser, "ticket_teams")


def test_failed_rows_are_shown_with_their_reasons(dagster: Shop, browser: WebDriver) -> None:
    """The page has a preview and counts by reason; the page of the table has the error-rate check."""
    browser.get(f"{dagster.address}/assets/ticket_teams_failed")
    wait_for_texts(browser, "ondine/summary", "ondine/preview", "ondine/failures", "invalid: team")
    assert cells(browser, "Ticket 1: It is unreadable.") == ["invalid", "Ticket 1: It is unreadable."]
    take_screenshot(browser, "failed_rows")
    browser.get(f"{dagster.address}/assets/ticket_teams?view=checks")
    wait_for_texts(browser, "error_rate", "Failed", " rows failed.")


def test_the_spend_report_has_tables(dagster: Shop, browser: WebDriver) -> None:
    """Spend by asset, by model and by day is rendered as tables."""
    browser.get(f"{dagster.address}/assets/llm_spend?view=events")
    wait_for_texts(browser, "ondine/spend_by_asset", "ondine/spend_by_model", "ondine/spend_by_day", "ticket_teams")
    assert "| --- |" not in browser.find_element(By.TAG_NAME, "body").text
    assert len(cells(browser, "strict_ticket_teams")) == 4
    take_screenshot(browser, "spend")


def test_failed_step_shows_its_last_observation(dagster: Shop, browser: WebDriver) -> None:
    """The observation has the numbers of finished and failed rows."""
    browser.get(f"{dagster.address}/assets/strict_ticket_teams?view=events")
    wait_for_texts(browser, "ondine/progress/summary", "40 of 40 rows", "3 failed")
    take_screenshot(browser, "failed_step")


def test_thumbnails_are_shown(dagster: Shop, browser: WebDriver) -> None:
    """The first images are on the asset's page beside their answers, and the browser can draw them."""
    browser.get(f"{dagster.address}/assets/photo_labels?view=events")
    wait_for_texts(browser, "ondine/preview", "image blue-bowl.png, 128 x 128", "ondine/thumbnails")
    click(browser, "[Show Markdown]")
    drawn = WebDriverWait(browser, TIMEOUT_S).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, 'td img[src^="data:image/jpeg"]')
    )
    sizes = [browser.execute_script("return arguments[0].naturalWidth", one) for one in drawn]
    assert sizes == [96] * 5
    first = drawn[0].find_elements(By.XPATH, "ancestor::tr[1]/td")
    assert [cell.text for cell in first] == ["", "bowl", "blue"]
    take_screenshot(browser, "thumbnails")


def test_lineage_of_assets(dagster: Shop, browser: WebDriver) -> None:
    """The page has the assets upstream and downstream; the open-source UI does not draw the lineage of columns."""
    browser.get(f"{dagster.address}/assets/review_sentiment?view=lineage")
    wait_for_texts(browser, "review_sentiment", "reviews", "sentiment_counts")
    take_screenshot(browser, "lineage")


def test_launchpad_describes_its_fields(dagster: Shop, browser: WebDriver) -> None:
    """The fields of a run are in the Launchpad, each with its description."""
    browser.get(f"{dagster.address}/locations/shop/jobs/__ASSET_JOB/playground")
    click(browser, "Scaffold all default config")
    wait_for_texts(browser, "dry_run: false", "full_refresh: false", "sample: first")
    take_screenshot(browser, "launchpad")


def test_the_component_has_a_page(dagster: Shop, browser: WebDriver) -> None:
    """The page has the component's attributes."""
    browser.get(f"{dagster.address}/locations/shop/docs")
    click(browser, "Components")
    click(browser, "ondine_dagster")
    # Its name on this page depends on the version of Dagster.
    click(browser, "LLMAssetComponent", "ondine_dagster.LLMAssetComponent")
    wait_for_texts(browser, "ondine_dagster.LLMAssetComponent", "prompt", "batch_size")
    take_screenshot(browser, "component")


def test_addresses_in_answers_are_not_links(dagster: Shop, browser: WebDriver) -> None:
    """The preview shows addresses as text."""
    browser.get(f"{dagster.address}/assets/answers_with_links?view=events")
    wait_for_texts(browser, "ondine/preview", "evil.example/a", "me")
    assert browser.find_elements(By.CSS_SELECTOR, "td, th")
    assert not browser.find_elements(By.CSS_SELECTOR, 'a[href*="evil.example"]')
    take_screenshot(browser, "links")


def test_running_step_is_observed_and_terminated(dagster: Shop, provider: Provider, browser: WebDriver) -> None:
    """Observations arrive while the step runs; Terminate ends it within seconds, with the spend on the page."""
    answered = provider.ledger.answered
    run = dagster.launch("support_tickets", "ticket_labels", in_process=False)
    provider.ledger.wait_for(lambda ledger: ledger.answered > answered, TIMEOUT_S)
    browser.get(f"{dagster.address}/runs/{run}")
    wait_for_texts(browser, "ASSET_OBSERVATION", "rows/s")
    take_screenshot(browser, "running")
    click(browser, "Terminate")
    click(browser, "Terminate 1 run")
    dagster.wait_for_end(run, "CANCELED")
    browser.get(f"{dagster.address}/assets/ticket_labels?view=events")
    wait_for_texts(browser, "ondine/progress/rows_done")
    take_screenshot(browser, "terminated")


def test_running_batch_job_is_shown_and_the_sensor_requests_the_run_that_reads_it(
    dagster: Shop, browser: WebDriver, nightly: NightlyProvider
) -> None:
    """The asset's page shows the job's progress; the requested run has the sensor's tag and materializes the table."""
    dagster.materialize("nightly_teams")
    nightly.advance(3600.0)
    dagster.materialize("nightly_teams")
    browser.get(f"{dagster.address}/assets/nightly_teams?view=events")
    wait_for_texts(browser, "ondine/job/summary", "ondine/job/held_usd", " of 600 requests are done", "batch_1")
    take_screenshot(browser, "batch_job")
    close_page(browser)

    def requested() -> str | None:
        found = dagster.runs({"key": "dagster/sensor_name", "value": "batch_sensor"})
        return next((run for run, status in found.items() if status == "SUCCESS"), None)

    assert requested() is None
    nightly.end_all()
    last = until(requested, TIMEOUT_S, "run that the sensor requested")
    browser.get(f"{dagster.address}/runs/{last}")
    wait_for_texts(browser, "batch_sensor", "ASSET_MATERIALIZATION", "600 of 600 rows")
    take_screenshot(browser, "batch_run")
    assert nightly.ledger.created == ["batch_1"]
