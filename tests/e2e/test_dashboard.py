"""The dashboard on the true runtime, in Chromium, while the story happens."""

import os
from pathlib import Path

import pytest

from tests.dashboard.browser import CHROMIUM, Page, chromium, tab
from tests.e2e.story import BOSS, Story, a_story

pytestmark = [pytest.mark.slow, pytest.mark.libvirt, pytest.mark.timeout(180)]

ROW = "(document.querySelector('#fleet-rows > [role=row]')?.innerText ?? '')"


async def test_an_approver_sees_the_story_and_approves_on_the_page(
    tmp_path: Path,
) -> None:
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip(f"{CHROMIUM} is not installed; in CI that is a failure")
    with chromium(tmp_path / "profile") as devtools:
        async with a_story(tmp_path / "data") as story, tab(devtools) as page:
            await story.begin()
            await story.until("restored")
            await _sign_in(page, story)
            await page.until(f"{ROW}.includes('restored')")

            await story.tamper()
            await story.challenge()
            await page.until(f"{ROW}.includes('remediating')")
            await page.screenshot(tmp_path / "waiting.png")
            await page.click("#approve")
            await page.until("document.body.innerText.includes('a new boot')", 30)
            await page.until(f"{ROW}.includes('restored')", 30)
            await page.screenshot(tmp_path / "restored.png")

            assert page.faults == []
            await story.check()


async def _sign_in(page: Page, story: Story) -> None:
    await page.goto(story.runtime.url)
    await page.write("#token", await story.runtime.token(BOSS, "admin"))
    await page.press("Enter")
    await page.until("!document.querySelector('#app').hidden")
