"""The main job as the reader of the page sees it, and decides in it."""

import pytest

from tests.dashboard.browser import Page
from tests.dashboard.fake import CSRF, TOKEN, FakeRuntime
from tests.dashboard.steps import quarantine, row, sign_in, stage, text, trust

pytestmark = pytest.mark.slow
LOG = "[...document.querySelectorAll('#log .line')].map((line) => line.dataset.seq)"


async def test_a_distrusted_vm_is_approved_remedied_and_restored_live(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1, server_name="ledger")
    await sign_in(page, runtime)
    await page.until(f"/suspect[^]*pending/.test({row(1)})")
    await trust(runtime, 1)
    await page.until(f"/restored[^]*trusted[^]*\\d:\\d\\d[^]*v2/.test({row(1)})")
    await quarantine(runtime, 1)
    await page.until(f"/quarantined[^]*untrusted[^]*none/.test({row(1)})")
    await stage(runtime, 42, 1)

    await page.until(f"{text('#run-state')} === 'needs approval'")
    await page.until(f"{text('#history')}.includes('pcr-mismatch: PCR 8')")
    await page.click("#approval-what summary")
    await page.until(f"{text('#approval-snapshot')}.includes('restart-vm')")
    await page.write("#approval-notes", "seen, go")
    await page.click("#approve")
    await page.until(f"{text('#run-state')} === 'queued'")
    await runtime.advance_run(42, "started", status="running")
    for step in ("stopping", "starting", "new boot"):
        await runtime.say(42, step)
    await page.until(f"{LOG}.join() === '1,2,3'")
    await runtime.advance_run(42, "done", status="completed")
    await trust(runtime, 1)
    await page.until(f"/restored[^]*trusted[^]*v5/.test({row(1)})")
    await page.until(f"{text('#run-state')} === 'completed'")

    decision = {"new_state": "approved", "approval_notes": "seen, go"}
    assert runtime.decisions == [{"run": 42, "expected_version": 1, **decision}]
    [(_, _, headers)] = [each for each in runtime.requests if each[0] == "POST"][1:]
    assert headers["X-CSRF-Token"] == CSRF
    assert len(headers["Idempotency-Key"]) == 32


async def test_the_token_is_in_no_url_and_no_script_can_read_it(
    page: Page, runtime: FakeRuntime
) -> None:
    await sign_in(page, runtime)

    kept = "JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage},"
    kept += "location.href, document.documentElement.outerHTML,"
    kept += "document.querySelector('#token').value])"
    assert TOKEN not in await page.evaluate(kept)
    assert not [path for _, path, _ in runtime.requests if TOKEN in path]
    assert not [path for _, path, headers in runtime.requests if "tf_session" in path]


async def test_a_wrong_token_is_refused_in_words(
    page: Page, runtime: FakeRuntime
) -> None:
    await page.goto(runtime.url)
    await page.write("#token", "not the token")
    await page.press("Enter")

    await page.until(f"{text('#sign-in-error')} === 'This token was not accepted.'")
    assert await page.evaluate("document.querySelector('#app').hidden")


async def test_a_rejection_sends_the_version_that_was_read(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await stage(runtime, 42, 1)
    await sign_in(page, runtime)

    await page.click("#reject")
    await page.until(f"{text('#run-state')} === 'cancelled'")

    decision = {"new_state": "rejected", "expected_version": 1}
    assert runtime.decisions == [{"run": 42, **decision}]


async def test_a_decision_on_an_old_version_is_refused_and_can_be_made_again(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await stage(runtime, 42, 1)
    await sign_in(page, runtime)
    await page.until("!document.querySelector('#approve').disabled")

    runtime.runs[42]["version"] = 2  # a change that the page has not heard of yet
    await page.click("#approve")

    await page.until(f"{text('#approval-error')} === 'The run has changed since.'")
    assert runtime.runs[42]["approval_state"] == "pending"
    await page.click("#approve")
    await page.until(f"{text('#run-state')} === 'queued'")
    assert [each["expected_version"] for each in runtime.decisions] == [1, 2]


async def test_a_viewer_is_told_why_there_is_no_decision(
    page: Page, runtime: FakeRuntime
) -> None:
    runtime.role = "viewer"
    await runtime.add(1)
    await stage(runtime, 42, 1)
    await sign_in(page, runtime)

    await page.until(f'{text("#approval-blocked")} === "Viewers can\'t decide."')
    assert await page.evaluate("document.querySelector('#approve').disabled")


async def test_why_an_instance_is_not_placed_is_shown_where_it_is_known(
    page: Page, runtime: FakeRuntime
) -> None:
    for instance in (1, 2):
        await runtime.add(instance)
        await quarantine(runtime, instance)
    notes = ["trust:attestation:untrusted", "trust:lifecycle:quarantined"]
    runtime.placement[101] = {"allowed": False, "notes": notes}
    await sign_in(page, runtime)

    await page.click("#fleet-rows [data-id='1']")
    await page.until(f"{text('#placement-verdict')} === 'blocked'")
    assert (await page.evaluate(text("#placement-notes"))).splitlines() == notes
    await page.click("#fleet-rows [data-id='2']")
    await page.until(f"{text('#instance-title')} === 'tf-0002-a1'")
    await page.until(f"{text('#history')}.includes('pcr-mismatch')")

    assert await page.evaluate("document.querySelector('#placement').hidden")


async def test_a_restarted_actor_stands_out(page: Page, runtime: FakeRuntime) -> None:
    trust_actor = {"path": "fabric/trust", "state": "running", "restarts": []}
    root = {"path": "fabric", "state": "running", "restarts": []}
    runtime.actors = [root, trust_actor]
    await sign_in(page, runtime)
    await page.until("document.querySelectorAll('.actor.depth-1').length === 1")

    crash = [{"at": "2026-01-01T00:00:00Z", "reason": "chaos"}]
    runtime.actors = [root, {**trust_actor, "restarts": crash}]

    await page.until(f"{text('.actor.recent')}.includes('1 restart')")
