import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.dashboard.browser import CHROMIUM, Page, chromium, tab
from tests.dashboard.fake import FakeRuntime, serving


@pytest.fixture
def node() -> str:
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not installed; nothing but these tests needs it")
    return path


@pytest.fixture(scope="session")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip(f"{CHROMIUM} is not installed; in CI that is a failure")
    with chromium(tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    async with serving(FakeRuntime()) as runtime:
        yield runtime


@pytest.fixture
async def page(devtools: str) -> AsyncIterator[Page]:
    """A tab that no script failed in and no policy was broken in."""
    async with tab(devtools) as page:
        yield page
        assert page.faults == []
