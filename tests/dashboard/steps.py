"""What the tests of the page do again and again."""

from tests.dashboard.browser import Page
from tests.dashboard.fake import TOKEN, FakeRuntime, instant

ROWS = "document.querySelectorAll('#fleet-rows > [role=row]')"


async def sign_in(page: Page, runtime: FakeRuntime) -> None:
    await page.goto(runtime.url)
    await page.write("#token", TOKEN)
    await page.press("Enter")
    await page.until("!document.querySelector('#app').hidden")
    await page.until(f"{ROWS}.length == {min(len(runtime.rows), 50)}")


def text(selector: str) -> str:
    """Return the expression for the element's text, empty where there is none."""
    return f"(document.querySelector({selector!r})?.innerText ?? '')"


def row(instance: int) -> str:
    return text(f"#fleet-rows [data-id='{instance}']")


async def trust(runtime: FakeRuntime, instance: int, *, for_s: float = 300) -> None:
    await runtime.move(
        instance,
        "attestation:trusted",
        attestation_status="trusted",
        lifecycle_state="restored",
        remediation_state="remediation:none",
        remediation_attempts=0,
        freshness_deadline=instant(for_s),
        provenance_ref="attestation:tpm:31",
    )


async def quarantine(runtime: FakeRuntime, instance: int) -> None:
    await runtime.move(
        instance,
        "pcr-mismatch: PCR 8",
        attestation_status="untrusted",
        lifecycle_state="quarantined",
        remediation_state="remediation:investigate",
        freshness_deadline=None,
    )


async def stage(runtime: FakeRuntime, run: int, instance: int, **fields: str) -> None:
    await runtime.stage(run, instance, **fields)
    await runtime.move(
        instance,
        f"run {run} staged",
        lifecycle_state="remediating",
        remediation_state="remediation:pending-approval",
    )
