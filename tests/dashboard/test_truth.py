"""The page never shows old news as new, and loses and repeats nothing."""

import pytest

from tests.dashboard.browser import Page
from tests.dashboard.fake import FakeRuntime, instant
from tests.dashboard.steps import ROWS, quarantine, row, sign_in, stage, text, trust

pytestmark = pytest.mark.slow
LIVE = "document.querySelector('#fleet').dataset.live"
SEEN = "[...document.querySelectorAll('#log .line')].map((line) => line.dataset.seq)"


async def test_trust_runs_out_on_the_page_by_itself(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await sign_in(page, runtime)
    await trust(runtime, 1, for_s=3)  # so that no load of the page counts against it

    await page.until(f"/trusted/.test({row(1)})")
    await page.until(f"/expired[^]*stale/.test({row(1)})")

    assert "trusted" not in await page.evaluate(row(1))
    assert await page.evaluate(text("[data-state=stale] strong")) == "1"


async def test_without_its_streams_the_page_says_so_and_offers_no_decision(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await stage(runtime, 42, 1)
    await sign_in(page, runtime)
    await page.until("!document.querySelector('#approve').disabled")

    await runtime.fall()

    await page.until(f"{LIVE} === 'false'")
    banner = "Trust and remediation not live: shown as it was"
    await page.until(f"{text('#stale-banner')}.startsWith('{banner}')")
    assert await page.evaluate("document.querySelector('#approve').disabled")
    look = "getComputedStyle(document.querySelector('#fleet-rows .badge')).borderStyle"
    assert await page.evaluate(look) == "dashed"


async def test_after_a_cut_every_event_arrives_once(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await trust(runtime, 1)
    await runtime.stage(42, 1, status="running", approval_state="approved")
    await sign_in(page, runtime)
    await runtime.say(42, "before")
    await page.until(f"{SEEN}.join() === '1'")
    await runtime.fall()
    await page.until(f"{LIVE} === 'false'")
    await runtime.say(42, "while away")
    await quarantine(runtime, 1)

    runtime.requests.clear()
    runtime.down = False
    await page.click("#retry")

    await page.until(f"/quarantined/.test({row(1)})")
    await page.until(f"{SEEN}.join() === '1,2'")
    await page.until(f"{LIVE} === 'true'")
    streams = [each for each in runtime.requests if each[1].endswith("/stream")]
    assert {path for _, path, _ in streams} == {
        "/api/trust/registry/stream",
        "/api/trust/remediation/stream",
    }
    assert all("Last-Event-ID" in headers for _, _, headers in streams)


async def test_a_reset_reads_the_whole_registry_again(
    page: Page, runtime: FakeRuntime
) -> None:
    for instance in (1, 2):
        await runtime.add(instance)
    await sign_in(page, runtime)

    del runtime.rows[1]
    await runtime.add(3)
    await runtime.emit("trust", "reset", {})

    await page.until(f"{ROWS}.length === 2 && {row(3)} !== '' && {row(1)} === ''")


async def test_a_lagging_stream_is_not_called_live(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await sign_in(page, runtime)

    await runtime.emit("trust", "lagged", {})
    await page.until(f"{text('#connections')}.includes('catching up')")
    await runtime.emit("trust", "bookmark", {})

    await page.until(f"{LIVE} === 'true'")


async def test_an_ended_session_takes_everything_off_the_page(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1, server_name="secret-project")
    await sign_in(page, runtime)

    runtime.sessions.clear()
    await runtime.fall()
    runtime.down = False

    await page.until(f"{text('#sign-in-error')}.startsWith('Your session has ended')")
    assert "secret-project" not in await page.evaluate(
        "document.documentElement.outerHTML"
    )


async def test_signing_out_ends_the_session(page: Page, runtime: FakeRuntime) -> None:
    await runtime.add(1)
    await sign_in(page, runtime)

    await page.click("#sign-out")

    await page.until("!document.querySelector('#sign-in').hidden")
    assert runtime.sessions == set()


async def test_a_large_fleet_is_paged_and_stays_live(
    page: Page, runtime: FakeRuntime
) -> None:
    for instance in range(1, 20001):
        await runtime.add(
            instance,
            attestation_status="trusted",
            lifecycle_state="restored",
            freshness_deadline=instant(600),
        )
    await sign_in(page, runtime)
    await page.until(f"{text('#page-label')} === '1\\u201350 of 20000'", within_s=20)

    await quarantine(runtime, 19999)
    await page.until(f"{ROWS}[0].dataset.id === '19999'")
    await page.click("#next")
    await page.until(f"{text('#page-label')} === '51\\u2013100 of 20000'")
    await page.write("#search", "tf-12345")
    await page.until(f"{ROWS}.length === 1 && {ROWS}[0].dataset.id === '12345'")

    assert await page.evaluate("document.querySelectorAll('*').length") < 2500


async def test_a_storm_is_told_while_it_lasts(page: Page, runtime: FakeRuntime) -> None:
    summary = "30 of 50 living VMs were quarantined; 30 have image <b>bad</b>"
    runtime.incidents = [{"id": 1, "summary": summary}, {"id": 2, "summary": "more"}]
    await sign_in(page, runtime)

    told = f"Automatic runs are held: {summary} (and 1 more)"
    await page.until(f"{text('#incident-text')} === {told!r}")
    assert not await page.evaluate("document.querySelector('#incident-banner').hidden")

    runtime.incidents = []

    await page.until("document.querySelector('#incident-banner').hidden")
