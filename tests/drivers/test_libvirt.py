"""The libvirt driver on libvirt's own test driver, which runs nothing but is real."""

import asyncio
import importlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from tests.drivers.links import RUNTIME, Heard, a_spec
from trustfabric.domain.vms import (
    IsolationTier,
    PowerChange,
    PowerState,
    VmSpec,
    is_structural,
    vm_uuid,
)
from trustfabric.drivers import libvirt_errors
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_connect import Credentials, parse_uri
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_link import Link, Listeners
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt

MakeDriver = Callable[..., LibvirtProvisioner]


@pytest.fixture
async def make(
    events: EventLoop, executor: ThreadPoolExecutor
) -> AsyncIterator[MakeDriver]:
    """Makes drivers, and closes them."""
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
async def driver(make: MakeDriver, heard: Heard) -> LibvirtProvisioner:
    driver = make()
    await driver.open(heard.on_event, heard.on_lost)
    return driver


@pytest.fixture
def operator() -> Any:
    """Somebody else's connection to the same hypervisor."""
    return libvirt.open("test:///default")


# --- what the test driver is ---------------------------------------------------


def test_its_domains_are_simulated_and_die_with_us(make: MakeDriver) -> None:
    driver = make()

    assert driver.simulated
    assert driver.volatile
    assert driver.observes
    assert driver.endpoint == "test:///default"


async def test_what_it_defines_is_marked_as_simulated(
    driver: LibvirtProvisioner,
) -> None:
    defined = await driver.define(a_spec())

    assert defined.simulated
    assert "libvirt:simulated" in defined.notes


@pytest.mark.parametrize("tier", [t for t in IsolationTier if t.confidential])
async def test_no_isolation_is_simulated(
    driver: LibvirtProvisioner, tier: IsolationTier
) -> None:
    with pytest.raises(UnsupportedError) as refused:
        await driver.define(a_spec(tier=tier))

    assert is_structural(refused.value)
    assert await driver.observe() == {}


async def test_an_empty_console_says_why(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)

    tail = await driver.console_tail(spec.name, 500)

    assert tail.lines == ()
    assert tail.why_empty is not None
    assert "no console" in tail.why_empty


async def test_domains_outlive_a_closed_link(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)

    await driver.close()
    await driver.open(heard.on_event, heard.on_lost)

    assert await driver.observe() == {spec.name: PowerState.RUNNING}


# --- whose a domain is -----------------------------------------------------------


async def test_strangers_are_not_seen(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    other = make(runtime="another")
    await other.open(heard.on_event, heard.on_lost)
    mine = a_spec()
    theirs = replace(a_spec(), uuid=uuid4())
    await driver.define(mine)
    await other.define(theirs)

    for _ in range(2):
        assert set(await driver.observe()) == {mine.name}
        assert set(await other.observe()) == {theirs.name}


async def test_strangers_are_not_touched(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    other = make(runtime="another")
    await other.open(heard.on_event, heard.on_lost)
    theirs = replace(a_spec(), uuid=uuid4())
    await other.define(theirs)

    with pytest.raises(NotFoundError):
        await driver.start(theirs.name)
    with pytest.raises(NotFoundError):
        await driver.stop(theirs.name, grace_s=0)
    await driver.undefine(theirs.name)
    await driver.undefine("test")

    assert set(await other.observe()) == {theirs.name}


async def test_strangers_events_are_not_told(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    other, theirs_heard = make(runtime="another"), Heard()
    await other.open(theirs_heard.on_event, theirs_heard.on_lost)
    theirs = replace(a_spec(), uuid=uuid4())
    await other.define(theirs)

    await other.start(theirs.name)

    await theirs_heard.until_heard(theirs.name, PowerChange.STARTED)
    assert heard.events == []


@pytest.mark.parametrize("taken", ["name", "uuid"])
async def test_a_strangers_name_or_uuid_is_a_conflict(
    driver: LibvirtProvisioner, operator: Any, taken: str
) -> None:
    spec = a_spec()
    name = spec.name if taken == "name" else "strange"
    uuid = spec.uuid if taken == "uuid" else uuid4()
    operator.defineXML(
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>"
        "<memory>1024</memory><os><type>hvm</type></os></domain>"
    )

    with pytest.raises(ConflictError) as refused:
        await driver.define(spec)

    assert refused.value.facts["other_uuid"] == str(uuid)
    assert await driver.observe() == {}


async def test_what_a_killed_process_left_is_adopted(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)
    heir, heirs_heard = make(), Heard()
    await heir.open(heirs_heard.on_event, heirs_heard.on_lost)

    assert await heir.observe() == {spec.name: PowerState.RUNNING}
    adopted = await heir.define(spec)
    await heir.stop(spec.name, grace_s=1)

    assert adopted.adopted
    await heirs_heard.until_heard(spec.name, PowerChange.SHUT_DOWN)


async def test_a_changed_specification_is_defined_over_the_old(
    driver: LibvirtProvisioner, operator: Any
) -> None:
    spec = a_spec()
    await driver.define(spec)

    again = await driver.define(replace(spec, memory_mib=128))

    assert not again.adopted
    info = operator.lookupByName(spec.name).info()
    assert info[1] == 128 * 1024


# --- powers and their events -----------------------------------------------------


async def test_events_come_in_order_over_a_life(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)

    await driver.start(spec.name)
    await driver.pause(spec.name)
    await driver.resume(spec.name)
    await driver.stop(spec.name, grace_s=0)
    await driver.undefine(spec.name)

    await heard.until_heard(spec.name, PowerChange.UNDEFINED)
    assert heard.changes(spec.name) == [
        PowerChange.STARTED,
        PowerChange.PAUSED,
        PowerChange.RESUMED,
        PowerChange.DESTROYED,
        PowerChange.UNDEFINED,
    ]


async def test_what_an_operator_does_behind_our_back_is_told(
    driver: LibvirtProvisioner, heard: Heard, operator: Any
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)

    operator.lookupByName(spec.name).destroy()
    await heard.until_heard(spec.name, PowerChange.DESTROYED)
    operator.lookupByName(spec.name).undefine()

    await heard.until_heard(spec.name, PowerChange.UNDEFINED)
    assert await driver.observe() == {}


async def test_a_crash_is_told_and_seen(
    driver: LibvirtProvisioner, heard: Heard, operator: Any, tmp_path: Path
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)

    dump_and_crash = 1
    operator.lookupByName(spec.name).coreDump(str(tmp_path / "core"), dump_and_crash)

    await heard.until_heard(spec.name, PowerChange.PANICKED)
    assert await driver.observe() == {spec.name: PowerState.CRASHED}


async def test_a_paused_vm_goes_on_when_started(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)
    await driver.pause(spec.name)

    await driver.start(spec.name)

    assert await driver.observe() == {spec.name: PowerState.RUNNING}


async def test_a_paused_vm_is_stopped_without_waiting_for_it(
    driver: LibvirtProvisioner,
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name)
    await driver.pause(spec.name)

    async with asyncio.timeout(5):
        await driver.stop(spec.name, grace_s=60)

    assert await driver.observe() == {spec.name: PowerState.STOPPED}


async def test_a_vm_that_is_off_cannot_be_paused(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)

    with pytest.raises(ConflictError):
        await driver.pause(spec.name)
    with pytest.raises(ConflictError):
        await driver.resume(spec.name)


async def test_a_device_slipped_in_by_an_operator_keeps_it_from_running(
    driver: LibvirtProvisioner, operator: Any
) -> None:
    spec = a_spec()
    await driver.define(spec)
    xml = operator.lookupByName(spec.name).XMLDesc(0)
    second = "<disk type='file'><source file='/x'/><target dev='vdb'/></disk>"
    operator.defineXML(xml.replace("</devices>", f"{second}</devices>"))

    with pytest.raises(InvalidError) as refused:
        await driver.start(spec.name)

    assert refused.value.facts["downgraded"] == ["2 disk instead of 1"]
    states = await driver.observe()
    assert not states[spec.name].active
    assert not (await driver.define(spec)).adopted
    await driver.start(spec.name)


# --- many, and at once -------------------------------------------------------------


async def test_racing_starts_have_one_winner(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)

    results = await asyncio.gather(
        *(driver.start(spec.name) for _ in range(16)), return_exceptions=True
    )

    assert results.count(None) == 1
    losers = [type(result) for result in results if result is not None]
    assert losers == [AlreadyRunningError] * 15


async def test_racing_lives_of_one_name_end_in_our_errors_only(
    driver: LibvirtProvisioner,
) -> None:
    spec = a_spec()

    async def live() -> None:
        await driver.define(spec)
        await driver.start(spec.name)
        await driver.stop(spec.name, grace_s=0)
        await driver.undefine(spec.name)

    results = await asyncio.gather(*(live() for _ in range(40)), return_exceptions=True)

    ours = (NotFoundError, ConflictError, type(None))
    strange = [result for result in results if not isinstance(result, ours)]
    assert strange == []
    await driver.undefine(spec.name)
    assert await driver.observe() == {}


@pytest.mark.slow
async def test_two_thousand_vms_start_and_every_event_comes(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    specs = [a_spec() for _ in range(2000)]

    async def boot(spec: VmSpec) -> None:
        await driver.define(spec)
        await driver.start(spec.name)

    async with asyncio.TaskGroup() as group:
        for spec in specs:
            group.create_task(boot(spec))

    await heard.until(lambda: len(heard.events) == len(specs), within_s=30)
    assert {event.name for event in heard.events} == {spec.name for spec in specs}
    clock = asyncio.get_running_loop().time
    before = clock()
    seen = await driver.observe()
    assert clock() - before < 5
    assert set(seen.values()) == {PowerState.RUNNING}
    assert len(seen) == len(specs)


# --- links ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "tset:///default",
        "http://host/system",
        "qemu",
        "qemu:",
        "qemu+carrier://host/system",
        "qemu+ssh://user:secret@host/system",
        "test:///default\n",
        " test:///default",
        "test://\u202e/default",
    ],
)
def test_a_uri_that_libvirt_would_guess_at_is_refused(uri: str) -> None:
    with pytest.raises(InvalidError):
        parse_uri(uri)


@pytest.mark.parametrize(
    ("uri", "simulated", "local", "volatile"),
    [
        ("test:///default", True, True, True),
        ("test:////etc/my-test.xml", True, True, True),
        ("test+unix:///default?socket=/run/x", True, False, False),
        ("qemu:///system", False, False, False),
        ("qemu:///embed?root=/run/r", False, True, False),
        ("qemu+ssh://me@host/system?keyfile=/k", False, False, False),
    ],
)
def test_a_uri_says_where_its_domains_live(
    uri: str,
    simulated: bool,  # noqa: FBT001 - a table of cases
    local: bool,  # noqa: FBT001
    volatile: bool,  # noqa: FBT001
) -> None:
    parsed = parse_uri(uri)

    assert (parsed.simulated, parsed.local, parsed.volatile) == (
        simulated,
        local,
        volatile,
    )


def test_a_shown_uri_has_neither_user_nor_parameters() -> None:
    uri = parse_uri("qemu+ssh://me@host:22/system?keyfile=/k&x=secret")

    assert uri.shown == "qemu+ssh://host:22/system"


async def test_a_uri_that_leads_nowhere_does_not_open(
    make: MakeDriver, heard: Heard
) -> None:
    driver = make("test+unix:///default?socket=/nonexistent")

    with pytest.raises(UnavailableError):
        await driver.open(heard.on_event, heard.on_lost)
    with pytest.raises(UnavailableError):
        await driver.observe()


async def test_a_call_that_hangs_is_given_up_and_holds_its_slot(
    events: EventLoop, executor: ThreadPoolExecutor
) -> None:
    link, lost = await an_open_link(events, executor)
    release = Event()

    with pytest.raises(UnavailableError) as refused:
        await link.call("hanging", lambda _: release.wait(), within_s=0.05)

    assert refused.value.facts["cause"] == "deadline"
    assert await link.call("asking", lambda conn: conn.getType()) == "TEST"
    assert lost == []
    release.set()
    await link.close()


async def test_a_link_whose_calls_hang_is_lost_and_says_so_once(
    events: EventLoop, executor: ThreadPoolExecutor
) -> None:
    link, lost = await an_open_link(events, executor)
    release = Event()

    results = await asyncio.gather(
        *(
            link.call("hanging", lambda _: release.wait(), within_s=0.05)
            for _ in range(4)
        ),
        return_exceptions=True,
    )
    await asyncio.sleep(0)

    assert [type(result) for result in results] == [UnavailableError] * 4
    assert len(lost) == 1
    with pytest.raises(UnavailableError):
        await link.call("asking", lambda conn: conn.getType())
    release.set()
    await link.close()


async def an_open_link(
    events: EventLoop, executor: ThreadPoolExecutor
) -> tuple[Link, list[str]]:
    lost: list[str] = []
    uri = parse_uri("test:///default")
    link = Link(libvirt, uri, Credentials(), events, executor)
    listeners = Listeners(
        lifecycle=lambda *_: None, rebooted=lambda *_: None, lost=lost.append
    )
    await link.open(listeners, None)
    return link, lost


async def test_reopening_leaves_no_callback_behind(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)
    for _ in range(20):
        await driver.open(heard.on_event, heard.on_lost)

    await driver.start(spec.name)

    await heard.until_heard(spec.name, PowerChange.STARTED)
    await driver.observe()
    assert heard.changes(spec.name) == [PowerChange.STARTED]


# --- credentials ---------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> str:
    """A test host of libvirt that asks who is there."""
    path = tmp_path / "host.xml"
    path.write_text(
        "<node><auth><user password='pw1'>alice</user></auth></node>", "utf-8"
    )
    return f"test:///{path}"


def a_credential(username: str, password: str) -> Credentials:
    return Credentials(username, lambda: SecretStr(password))


async def test_the_right_credentials_open(
    make: MakeDriver, heard: Heard, guarded: str
) -> None:
    driver = make(guarded, credentials=a_credential("alice", "pw1"))

    await driver.open(heard.on_event, heard.on_lost)

    assert await driver.observe() == {}
    assert driver.credentials == {
        "username": "alice",
        "method": "password",
        "secret_provided": True,
    }


@pytest.mark.parametrize(
    "credentials",
    [
        a_credential("alice", "wrong"),
        a_credential("mallory", "pw1"),
        Credentials("alice", lambda: None),
        Credentials("alice"),
        Credentials(),
    ],
)
async def test_wrong_credentials_are_one_clear_error(
    make: MakeDriver,
    heard: Heard,
    guarded: str,
    credentials: Credentials,
    capfd: pytest.CaptureFixture[str],
) -> None:
    driver = make(guarded, credentials=credentials)

    with pytest.raises(UnavailableError) as refused:
        await driver.open(heard.on_event, heard.on_lost)

    assert refused.value.facts["cause"] == "credentials"
    assert "pw1" not in str(refused.value)
    assert capfd.readouterr().err == ""


async def test_the_password_is_read_anew_for_each_opening(
    make: MakeDriver, heard: Heard, guarded: str
) -> None:
    passwords = iter(["wrong", "pw1"])
    credentials = Credentials("alice", lambda: SecretStr(next(passwords)))
    driver = make(guarded, credentials=credentials)

    with pytest.raises(UnavailableError):
        await driver.open(heard.on_event, heard.on_lost)
    await driver.open(heard.on_event, heard.on_lost)

    assert await driver.observe() == {}


async def test_a_password_that_cannot_be_read_says_so(
    make: MakeDriver, heard: Heard, guarded: str
) -> None:
    def unreadable() -> SecretStr:
        raise InvalidError("LIBVIRT_PASSWORD_FILE: no such file")

    driver = make(guarded, credentials=Credentials("alice", unreadable))

    with pytest.raises(InvalidError, match="LIBVIRT_PASSWORD_FILE"):
        await driver.open(heard.on_event, heard.on_lost)


# --- without, and around, the binding ------------------------------------------------


def test_without_the_binding_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)

    with pytest.raises(UnsupportedError, match=r"trustfabric\[libvirt\]"):
        libvirt_errors.load_binding()


def test_the_http_driver_does_without_the_binding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    monkeypatch.delitem(sys.modules, "trustfabric.drivers.hypervisor")

    module = importlib.import_module("trustfabric.drivers.hypervisor")

    assert module.HttpProvisioner("http://127.0.0.1:1").name == "http"


def test_our_numbers_are_libvirts() -> None:
    ours = {
        name: value
        for name, value in vars(libvirt_errors).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int)
    }

    assert ours == {name: getattr(libvirt, f"VIR_ERR_{name}") for name in ours}


async def test_libvirt_stays_off_standard_error(
    driver: LibvirtProvisioner, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFoundError):
        await driver.start("nobody")

    assert capfd.readouterr() == ("", "")


async def test_the_event_thread_starts_and_stops_again_and_again() -> None:
    loop = asyncio.get_running_loop()

    for _ in range(5):
        events = EventLoop(loop)
        events.start()
        before = loop.time()
        events.stop()
        events.stop()
        assert loop.time() - before < 1


async def test_what_is_heard_after_the_loop_closed_is_dropped(
    events: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    closed = asyncio.new_event_loop()
    closed.close()

    with caplog.at_level(logging.WARNING):
        EventLoop(closed).deliver(lambda: None)

    assert caplog.records == []


def test_uuids_are_ours_by_runtime() -> None:
    assert a_spec("vm-1").uuid == vm_uuid(RUNTIME, "vm-1")
