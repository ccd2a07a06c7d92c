"""Credentials at a real libvirtd that asks for them by SASL, and their rotation."""

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.drivers.links import BOOT, Heard, a_spec, powers
from tests.drivers.private_libvirtd import PrivateLibvirtd, missing
from trustfabric.config import LibvirtSettings
from trustfabric.domain.vms import NetworkTemplate, PowerState, VmSpec, VolumeTemplate
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_connect import Credentials
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.errors import UnavailableError

libvirt = pytest.importorskip("libvirt")

lacks = [
    *missing(),
    *([] if shutil.which("saslpasswd2", path="/usr/sbin:/usr/bin") else ["sasl2-bin"]),
    *(
        []
        if list(Path("/usr/lib").glob("*/sasl2/libscram.so*"))
        else ["libsasl2-modules"]
    ),
]
pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(lacks), reason=f"not installed: {lacks}"),
]
USER = "alice"


@pytest.fixture
def guarded() -> Iterator[PrivateLibvirtd]:
    """A daemon that asks everybody who he is."""
    host = PrivateLibvirtd.make(sasl=True)
    try:
        host.set_password(USER, "first")
        host.start()
        yield host
    finally:
        host.stop()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write(tmp_path / "password", "first")


def write(path: Path, password: str) -> Path:
    """Rotate as `kubectl` does: another file takes the old one's place."""
    newer = path.with_suffix(".new")
    newer.write_text(f"{password}\n", "utf-8")
    newer.chmod(0o600)
    newer.rename(path)
    return path


@pytest.fixture
def guarded_driver(
    guarded: PrivateLibvirtd,
    secret: Path,
    events: EventLoop,
    executor: ThreadPoolExecutor,
) -> LibvirtProvisioner:
    settings = LibvirtSettings(
        uri=uri_of(guarded), username=f"{USER}@vm", password_file=secret
    )
    return LibvirtProvisioner(
        settings.uri,
        events=events,
        executor=executor,
        runtime="tests",
        credentials=Credentials(settings.username, settings.read_password),
    )


def uri_of(host: PrivateLibvirtd) -> str:
    # libvirt's test driver, but behind a daemon: no guest is needed to log in.
    return f"test+unix:///default?socket={host.socket}"


def a_vm() -> VmSpec:
    spec = a_spec()
    return VmSpec(
        name=spec.name,
        uuid=spec.uuid,
        instance_id=spec.instance_id,
        server_id=spec.server_id,
        owner=spec.owner,
        image="tiny",
        network=NetworkTemplate(type="user", name=None),
        volume=VolumeTemplate(path=f"/var/lib/trustfabric/{spec.name}.qcow2"),
    )


async def opened(driver: LibvirtProvisioner, heard: Heard) -> None:
    await driver.open(heard.on_event, heard.on_lost)


async def test_the_file_s_password_opens_and_is_shown_nowhere(
    guarded_driver: LibvirtProvisioner, heard: Heard
) -> None:
    await opened(guarded_driver, heard)

    assert await powers(guarded_driver) == {}
    shown = f"{guarded_driver.credentials} {guarded_driver.endpoint}"
    assert "first" not in shown
    assert guarded_driver.credentials["secret_provided"] is True
    await guarded_driver.close()


async def test_a_wrong_password_is_one_refusal_that_keeps_it_to_itself(
    guarded: PrivateLibvirtd,
    guarded_driver: LibvirtProvisioner,
    secret: Path,
    heard: Heard,
) -> None:
    write(secret, "hunter2-is-wrong")

    with pytest.raises(UnavailableError) as refused:
        await opened(guarded_driver, heard)

    assert refused.value.facts["cause"] == "credentials"
    assert "hunter2" not in f"{refused.value} {refused.value.facts}"
    log = (guarded.root / "libvirtd.log").read_text("utf-8", "replace")
    assert log.count("remoteDispatchAuthSaslStep") == 1
    await guarded_driver.close()


async def test_a_rotation_swaps_the_link_and_loses_nothing(
    guarded: PrivateLibvirtd,
    guarded_driver: LibvirtProvisioner,
    secret: Path,
    heard: Heard,
) -> None:
    await opened(guarded_driver, heard)
    spec = a_vm()
    await guarded_driver.define(spec)
    await guarded_driver.start(spec.name, BOOT)

    guarded.set_password(USER, "second")
    write(secret, "second")
    await guarded_driver.renew()

    assert (await powers(guarded_driver))[spec.name] is PowerState.RUNNING
    await guarded_driver.stop(spec.name, grace_s=0)
    assert heard.lost == []
    await guarded_driver.undefine(spec.name)
    await guarded_driver.close()


async def test_where_the_server_was_rotated_first_the_old_link_holds_out(
    guarded: PrivateLibvirtd,
    guarded_driver: LibvirtProvisioner,
    secret: Path,
    heard: Heard,
) -> None:
    await opened(guarded_driver, heard)
    guarded.set_password(USER, "second")

    with pytest.raises(UnavailableError) as refused:
        await guarded_driver.renew()  # our file is still the old one

    assert refused.value.facts["cause"] == "credentials"
    assert await powers(guarded_driver) == {}
    assert heard.lost == []
    write(secret, "second")
    await guarded_driver.renew()
    assert await powers(guarded_driver) == {}
    await guarded_driver.close()


async def test_every_new_connection_reads_the_file_again(
    guarded: PrivateLibvirtd,
    guarded_driver: LibvirtProvisioner,
    secret: Path,
    heard: Heard,
) -> None:
    await opened(guarded_driver, heard)
    guarded.set_password(USER, "second")
    write(secret, "second")

    guarded.kill()
    await heard.until(lambda: bool(heard.lost))
    guarded.start()
    await opened(guarded_driver, heard)

    assert await powers(guarded_driver) == {}
    await guarded_driver.close()


async def test_a_storm_of_renewals_ends_with_one_link(
    guarded_driver: LibvirtProvisioner, heard: Heard
) -> None:
    await opened(guarded_driver, heard)

    def sockets() -> int:
        return sum(1 for each in Path("/proc/self/fd").iterdir() if _is_socket(each))

    await guarded_driver.renew()
    await guarded_driver.observe()
    before = sockets()
    for _ in range(10):
        await guarded_driver.renew()
        await guarded_driver.observe()

    async with asyncio.timeout(20):  # libvirt's thread closes what was let go
        while sockets() > before + 1:
            await asyncio.sleep(0.01)
    assert heard.lost == []
    await guarded_driver.close()


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


@pytest.mark.parametrize("password", ["ünïcode-✓", "quotes\"'\\", "x" * 300, " blank "])
async def test_any_password_works(
    guarded: PrivateLibvirtd,
    guarded_driver: LibvirtProvisioner,
    secret: Path,
    heard: Heard,
    password: str,
) -> None:
    guarded.set_password(USER, password)
    write(secret, password)

    await opened(guarded_driver, heard)

    assert await powers(guarded_driver) == {}
    await guarded_driver.close()
