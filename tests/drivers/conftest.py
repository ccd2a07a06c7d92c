"""Links to real hypervisors: libvirt's test driver, and the reference HTTP one."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.drivers.links import RUNTIME, Heard, MakeDriver
from tests.drivers.private_libvirtd import PrivateLibvirtd
from tests.drivers.reference_hypervisor import ReferenceHypervisor
from trustfabric.domain.ports import Provisioner
from trustfabric.drivers.hypervisor import HttpProvisioner

if TYPE_CHECKING:
    from trustfabric.drivers.libvirt import LibvirtProvisioner
    from trustfabric.drivers.libvirt_events import EventLoop


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=32) as pool:
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
async def make(
    events: "EventLoop", executor: ThreadPoolExecutor
) -> AsyncIterator[MakeDriver]:
    """Make libvirt drivers, and close them."""
    from trustfabric.drivers.libvirt import LibvirtProvisioner

    made: list[LibvirtProvisioner] = []
    runtime = f"{RUNTIME}-{uuid4().hex}"  # what other tests left is a stranger's

    def build(uri: str = "test:///default", **options: Any) -> LibvirtProvisioner:
        options = {"runtime": runtime, **options}
        driver = LibvirtProvisioner(uri, events=events, executor=executor, **options)
        made.append(driver)
        return driver

    yield build
    for driver in made:
        await driver.close()


@pytest.fixture
async def libvirt_driver(make: MakeDriver, heard: Heard) -> "LibvirtProvisioner":
    driver = make()
    await driver.open(heard.on_event, heard.on_lost)
    return driver


@pytest.fixture
def driver(libvirt_driver: "LibvirtProvisioner") -> "LibvirtProvisioner":
    return libvirt_driver


@pytest.fixture
async def http_driver(
    reference: ReferenceHypervisor, heard: Heard
) -> AsyncIterator[Provisioner]:
    driver = HttpProvisioner(reference.url)
    await driver.open(heard.on_event, heard.on_lost)
    yield driver
    await driver.close()


@pytest.fixture(scope="session")
def daemon() -> Iterator[PrivateLibvirtd]:
    daemon = PrivateLibvirtd.make()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def host(daemon: PrivateLibvirtd) -> PrivateLibvirtd:
    """The daemon, running, whatever an earlier test did to it."""
    if not daemon.alive:
        daemon.start()
    return daemon


@pytest.fixture
async def qemu_driver(
    host: PrivateLibvirtd,
    events: "EventLoop",
    executor: ThreadPoolExecutor,
    heard: Heard,
) -> AsyncIterator["LibvirtProvisioner"]:
    from trustfabric.drivers.libvirt import LibvirtProvisioner
    from trustfabric.drivers.libvirt_xml import VirtType

    driver = LibvirtProvisioner(
        host.uri,
        events=events,
        executor=executor,
        runtime="tests",
        virt=VirtType.QEMU,
    )
    await driver.open(heard.on_event, heard.on_lost)
    yield driver
    await driver.open(heard.on_event, heard.on_lost)
    for name in await driver.observe():
        await driver.undefine(name)
    await driver.close()
