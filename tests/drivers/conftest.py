"""Links to real hypervisors: libvirt's test driver, and the reference HTTP one."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.drivers.links import RUNTIME, Heard
from tests.drivers.reference_hypervisor import ReferenceHypervisor
from trustfabric.domain.ports import Provisioner
from trustfabric.drivers.hypervisor import HttpProvisioner

if TYPE_CHECKING:
    from trustfabric.drivers.libvirt_events import EventLoop


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=6) as pool:
        yield pool


@pytest.fixture
async def events() -> AsyncIterator["EventLoop"]:
    """libvirt's event thread; skips where libvirt-python is missing."""
    if importlib.util.find_spec("libvirt") is None:
        pytest.skip("libvirt-python is not installed")
    from trustfabric.drivers.libvirt_events import EventLoop

    loop = EventLoop(asyncio.get_running_loop())
    loop.start()
    yield loop
    loop.stop()


@pytest.fixture
async def reference() -> AsyncIterator[ReferenceHypervisor]:
    async with ReferenceHypervisor() as hypervisor:
        yield hypervisor


@pytest.fixture
async def libvirt_driver(
    events: "EventLoop", executor: ThreadPoolExecutor, heard: Heard
) -> AsyncIterator[Provisioner]:
    from trustfabric.drivers.libvirt import LibvirtProvisioner

    driver = LibvirtProvisioner(
        "test:///default",
        events=events,
        executor=executor,
        runtime=f"{RUNTIME}-{uuid4().hex}",
    )
    await driver.open(heard.on_event, heard.on_lost)
    yield driver
    await driver.close()


@pytest.fixture
async def http_driver(
    reference: ReferenceHypervisor, heard: Heard
) -> AsyncIterator[Provisioner]:
    driver = HttpProvisioner(reference.url)
    await driver.open(heard.on_event, heard.on_lost)
    yield driver
    await driver.close()
