"""How the libvirt driver connects, as whom, and what it does when calls hang."""

import asyncio
import importlib
import logging
import sys
import threading
import weakref
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.drivers.links import BOOT, RUNTIME, Heard, MakeDriver, a_spec, powers
from trustfabric.config import load_settings
from trustfabric.domain.vms import (
    PowerChange,
    vm_uuid,
)
from trustfabric.drivers import libvirt_errors
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_connect import Credentials, parse_uri
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.errors import (
    ConfigError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt


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
    "uri",
    [
        "xen:///system",
        "QEMU:///system",
        "Qemu+SSH://host/system",
        "qemu+:///system",
        "test:x://",
        "qemu://host:port/system",
        "qemu://[host/system",
        "qemu:///system bad",
        "qemu://",
    ],
)
def test_a_uri_that_cannot_be_opened_is_a_fault_of_its_variable(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"^LIBVIRT_CONNECTION_URI: "):
        load_settings({"LIBVIRT_CONNECTION_URI": uri})


_PIECES = [
    "qemu",
    "test",
    "xen",
    "Q",
    "+",
    "ssh",
    "unix",
    ":",
    "//",
    "/",
    "@",
    "h",
    "?",
    "#",
    "[",
    "x=1",
    "9",
    "system",
]


@given(st.lists(st.sampled_from([*_PIECES, " "])).map("".join))
@example("qemu+unix:///session?socket=/run/s")
def test_a_uri_that_the_settings_take_is_one_that_the_driver_takes(uri: str) -> None:
    try:
        load_settings({"LIBVIRT_CONNECTION_URI": uri})
    except ConfigError:
        return

    assert parse_uri(uri or "test:///default").text == (uri or "test:///default")


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


async def test_reopening_leaves_no_callback_behind(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)
    for _ in range(20):
        await driver.open(heard.on_event, heard.on_lost)

    await driver.start(spec.name, BOOT)

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

    assert await powers(driver) == {}
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

    assert await powers(driver) == {}


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
        await driver.start("nobody", BOOT)

    assert capfd.readouterr() == ("", "")


async def test_the_event_thread_starts_and_stops_again_and_again() -> None:
    loop = asyncio.get_running_loop()

    for _ in range(5):
        events = EventLoop(loop)
        events.start()
        before = loop.time()
        events.stop()
        events.stop()
        assert loop.time() - before < 4


async def test_what_is_buried_is_freed_on_the_event_thread_whoever_held_it_last(
    events: EventLoop,
) -> None:
    class Connection:
        pass

    freed: asyncio.Queue[str] = asyncio.Queue()

    def let_go() -> None:
        name = threading.current_thread().name
        events.deliver(freed.put_nowait, name)

    held = Connection()
    weakref.finalize(held, let_go)
    events.bury(held)
    for _ in range(2):  # the thread has been round
        later = Connection()
        weakref.finalize(later, let_go)
        events.bury(later)
        del later
        assert await asyncio.wait_for(freed.get(), 5) == "libvirt-events"
    assert held is not None
    del held

    assert await asyncio.wait_for(freed.get(), 5) == "libvirt-events"


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


def test_a_question_asked_a_second_time_is_not_answered() -> None:
    """Some transports ask a wrong password again for ever."""
    from trustfabric.drivers.libvirt_connect import _OneShot

    answers = _OneShot(Credentials("alice", lambda: SecretStr("secret")))
    question: list[list[object]] = [[5, "Password", "", None, None]]

    assert (answers(question, None), question[0][4]) == (0, "secret")
    assert answers([[5, "Password", "", None, None]], None) == -1
