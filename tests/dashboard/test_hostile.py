"""S16 and S34: whatever a name, a reason or a log line says, it stays text."""

import pytest

from tests.dashboard.browser import Page
from tests.dashboard.fake import FakeRuntime
from tests.dashboard.steps import row, sign_in, stage, text

pytestmark = pytest.mark.slow
ATTACK = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>"
LINK = "javascript:window.pwned=1"


async def test_s34_markup_in_any_field_is_shown_and_never_run(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1, server_name=ATTACK, instance_id=ATTACK, provenance_ref=LINK)
    notes = [ATTACK, {"note": LINK}, {"href": LINK}]
    runtime.placement[101] = {"allowed": False, "notes": notes}
    runtime.actors = [{"path": f"fabric/{ATTACK}", "state": ATTACK, "restarts": 0}]
    hostile = {"playbook": ATTACK, "requested_by": ATTACK, "last_error": ATTACK}
    await stage(runtime, 42, 1, **hostile, playbook_snapshot=ATTACK)
    await runtime.move(1, ATTACK, remediation_state=ATTACK, attestation_status=ATTACK)
    await sign_in(page, runtime)
    await page.until(f"{text('#placement-notes')}.includes('onerror')")
    await runtime.say(42, ATTACK)
    await page.until(f"{text('#log')}.includes('onerror')")
    await page.until(f"{text('#history')}.includes('onerror')")

    assert "<img" in await page.evaluate(row(1))
    assert await page.evaluate("window.pwned") is None
    assert await page.evaluate("document.scripts.length") == 1
    assert await page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    links = "[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"
    assert await page.evaluate(links) == ["#fleet"]


async def test_s34_the_policy_stops_what_would_slip_through(
    page: Page, runtime: FakeRuntime
) -> None:
    await sign_in(page, runtime)

    injected = "document.body.append(Object.assign(document.createElement('script'), {"
    refused = await page.evaluate(
        f"(() => {{ try {{ {injected}text: 'window.pwned=1'}})); return false; }}"
        " catch { return true; } })()"
    )

    assert refused
    assert await page.evaluate("window.pwned") is None
    page.faults.clear()  # the refusal itself


async def test_s16_a_log_line_can_only_bring_colours(
    page: Page, runtime: FakeRuntime
) -> None:
    await runtime.add(1)
    await runtime.stage(42, 1, status="running", approval_state="approved")
    await sign_in(page, runtime)
    await runtime.say(42, "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x07link")
    await runtime.say(42, "user\u202etxt.exe\x00 50%\rdone\x1b[2J")
    await runtime.say(42, "x" * 100_000)
    await page.until("document.querySelectorAll('#log .line').length === 3")

    lines = await page.evaluate(
        "[...document.querySelectorAll('#log .line-text')].map((l) => l.textContent)"
    )
    assert lines[:2] == ["red link", "user⟨U+202E⟩txt.exe␀ 50%␍done"]
    assert lines[2].endswith("(line cut, 96000 characters more)")
    assert await page.evaluate(text("#log .sgr-red")) == "red"
