import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.dashboard.browser import CHROMIUM, Page, chromium, tab
from tests.dashboard.fake import FakeRuntime, serving


def needs(what: str, *, present: bool) -> None:
    """Skip where a tool is missing; in CI that is a failure."""
    if not present and os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    if not present:
        pytest.skip(f"{what} is not installed")


@pytest.fixture
def node() -> str:
    path = shutil.which("node")
    needs("node", present=path is not None)
    return str(path)


@pytest.fixture(scope="session")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needs("chromium", present=CHROMIUM.exists())
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
