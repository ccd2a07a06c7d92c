"""Legible, usable by keyboard and named for a screen reader, wide and narrow."""

from collections.abc import AsyncIterator

import pytest

from tests.dashboard.browser import Page, tab
from tests.dashboard.fake import FakeRuntime
from tests.dashboard.steps import quarantine, sign_in, stage, text, trust

pytestmark = pytest.mark.slow

_FAINT = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest(":disabled")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push([walker.currentNode.data, node.className, ratio]);
  }
  return faint;
})()"""


async def _busy(runtime: FakeRuntime) -> None:
    for instance in range(1, 7):
        await runtime.add(instance, server_name=f"server-with-a-long-name-{instance}")
    await trust(runtime, 1)
    await trust(runtime, 2, for_s=-60)
    await trust(runtime, 3, for_s=30)
    await quarantine(runtime, 4)
    await quarantine(runtime, 5)
    await stage(runtime, 42, 5)
    await runtime.say(42, "out")
    await runtime.say(42, "err", "stderr")
    runtime.actors = [
        {"path": "fabric", "state": "running", "restarts": 0},
        {"path": "fabric/trust", "state": "restarting", "restarts": 2},
    ]


@pytest.fixture(
    params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
async def any_page(
    request: pytest.FixtureRequest, devtools: str, runtime: FakeRuntime
) -> AsyncIterator[Page]:
    width, scheme = request.param
    await _busy(runtime)
    async with tab(devtools, width, 800, scheme) as page:
        await sign_in(page, runtime)
        await page.until("document.querySelectorAll('#log .line').length === 2")
        await page.until("document.querySelectorAll('#actor-list li').length === 2")
        yield page
        assert page.faults == []


async def test_all_text_has_contrast_and_nothing_runs_off_the_side(
    any_page: Page, runtime: FakeRuntime
) -> None:
    over = "document.documentElement.scrollWidth - innerWidth"
    assert await any_page.evaluate(_FAINT) == []
    assert await any_page.evaluate(over) <= 0

    await runtime.fall()
    await any_page.until("document.querySelector('#fleet').dataset.live === 'false'")

    assert await any_page.evaluate(_FAINT) == []
    assert await any_page.evaluate(over) <= 0


async def test_everything_operable_has_a_name(page: Page, runtime: FakeRuntime) -> None:
    await _busy(runtime)
    await sign_in(page, runtime)

    tree = await page.call("Accessibility.getFullAXTree")
    roles = {"button", "textbox", "searchbox", "combobox", "table", "log", "region"}
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in tree["nodes"]
        if not node["ignored"] and node["role"]["value"] in roles
    ]

    assert {role for role, _ in named} == roles
    assert [each for each in named if not each[1].strip()] == []


async def test_the_keyboard_alone_chooses_filters_and_decides(
    page: Page, runtime: FakeRuntime
) -> None:
    await _busy(runtime)
    await sign_in(page, runtime)
    await page.evaluate("document.querySelector('[data-state=quarantined]').focus()")
    await page.press("Enter")
    await page.until("document.querySelectorAll('#fleet-rows > div').length === 1")
    await page.evaluate("document.querySelector('#search').focus()")
    for _ in range(2):
        await page.press("Tab")
    await page.press(" ")
    await page.until(f"{text('#instance-title')} === 'tf-0004-a1'")
    await page.evaluate("document.querySelector('#approval-notes').focus()")
    await page.press("Tab")
    await page.press("Enter")

    await page.until(f"{text('#run-state')} === 'queued'")


async def test_the_focus_stays_on_a_row_that_moves(
    page: Page, runtime: FakeRuntime
) -> None:
    await _busy(runtime)
    await sign_in(page, runtime)
    button = "#fleet-rows [data-id='1'] button"
    await page.evaluate(f'document.querySelector("{button}").focus()')

    await quarantine(runtime, 1)

    first = "document.querySelector('#fleet-rows > div').dataset.id"
    await page.until(f"{first} === '1'")
    assert await page.evaluate(
        f'document.activeElement === document.querySelector("{button}")'
    )
