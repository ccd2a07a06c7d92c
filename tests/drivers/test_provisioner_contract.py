"""What every driver of VMs promises, run against each."""

from collections.abc import Awaitable, Callable

import pytest

from tests.drivers.links import BOOT, Heard, a_spec, powers
from trustfabric.domain.ports import ConsoleEntry, Provisioner
from trustfabric.domain.vms import PowerChange, PowerState
from trustfabric.errors import (
    AlreadyRunningError,
    FabricError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)


@pytest.fixture(
    params=[
        pytest.param("libvirt_driver", marks=pytest.mark.libvirt),
        "http_driver",
    ],
)
def provisioner(request: pytest.FixtureRequest) -> Provisioner:
    """Each driver in turn, open."""
    driver: Provisioner = request.getfixturevalue(request.param)
    return driver


async def test_a_defined_vm_is_known_and_off(provisioner: Provisioner) -> None:
    defined = await provisioner.define(a_spec())

    seen = await powers(provisioner)

    assert seen[defined.hypervisor_name] is PowerState.DEFINED


async def test_defining_twice_makes_one(provisioner: Provisioner) -> None:
    spec = a_spec()

    first = await provisioner.define(spec)
    second = await provisioner.define(spec)

    assert first.hypervisor_name == second.hypervisor_name
    assert len(await provisioner.observe()) == 1


async def test_a_vm_starts_and_says_so(provisioner: Provisioner, heard: Heard) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name

    await provisioner.start(name, BOOT)

    await heard.until_heard(name, PowerChange.STARTED)
    assert (await powers(provisioner))[name] is PowerState.RUNNING


async def test_a_running_vm_is_not_started_again(provisioner: Provisioner) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    with pytest.raises(AlreadyRunningError):
        await provisioner.start(name, BOOT)


@pytest.mark.parametrize("grace_s", [0.0, 5.0])
async def test_a_stopped_vm_is_off_when_stop_returns(
    provisioner: Provisioner, heard: Heard, grace_s: float
) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    await provisioner.stop(name, grace_s=grace_s)

    assert (await powers(provisioner))[name] is PowerState.STOPPED
    ended = {PowerChange.SHUT_DOWN, PowerChange.DESTROYED}
    await heard.until(lambda: bool(ended & set(heard.changes(name))))


async def test_stopping_twice_is_fine(provisioner: Provisioner) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    await provisioner.stop(name, grace_s=0)
    await provisioner.stop(name, grace_s=1)

    assert (await powers(provisioner))[name] is PowerState.STOPPED


async def test_a_stopped_vm_starts_again(
    provisioner: Provisioner, heard: Heard
) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)
    await provisioner.stop(name, grace_s=0)

    await provisioner.start(name, BOOT)

    assert (await powers(provisioner))[name] is PowerState.RUNNING
    await heard.until(lambda: heard.changes(name).count(PowerChange.STARTED) == 2)


async def test_an_undefined_vm_is_gone_and_undefining_again_is_fine(
    provisioner: Provisioner,
) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    await provisioner.undefine(name)
    await provisioner.undefine(name)

    assert name not in await provisioner.observe()
    with pytest.raises(NotFoundError):
        await provisioner.start(name, BOOT)


async def test_an_undefined_vm_can_be_defined_anew(provisioner: Provisioner) -> None:
    spec = a_spec()
    name = (await provisioner.define(spec)).hypervisor_name
    await provisioner.undefine(name)

    again = await provisioner.define(spec)

    assert not again.adopted
    assert await powers(provisioner) == {again.hypervisor_name: PowerState.DEFINED}


@pytest.mark.parametrize(
    "call",
    [
        lambda driver: driver.start("nobody", BOOT),
        lambda driver: driver.stop("nobody", grace_s=1),
        lambda driver: driver.stop("nobody", grace_s=0),
        lambda driver: driver.console_tail("nobody", 10),
    ],
)
async def test_an_unknown_vm_is_not_found(
    provisioner: Provisioner, call: Callable[[Provisioner], Awaitable[object]]
) -> None:
    with pytest.raises(NotFoundError):
        await call(provisioner)


async def test_pausing_works_exactly_where_it_is_said_to(
    provisioner: Provisioner,
) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    if not provisioner.pauses:
        with pytest.raises(UnsupportedError):
            await provisioner.pause(name)
        return
    await provisioner.pause(name)
    await provisioner.pause(name)
    assert (await powers(provisioner))[name] is PowerState.PAUSED
    await provisioner.resume(name)
    await provisioner.resume(name)
    assert (await powers(provisioner))[name] is PowerState.RUNNING


async def test_a_console_has_lines_or_a_reason(provisioner: Provisioner) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    tail = await provisioner.console_tail(name, 10)

    assert tail.lines or tail.why_empty


async def test_following_a_console_that_ends_ends(provisioner: Provisioner) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)

    batches = [batch async for batch in provisioner.console_follow(name)]

    entries = [entry for batch in batches for entry in batch]
    assert entries in ([], [ConsoleEntry(1, "booted")])


async def test_a_closed_link_refuses_calls_as_unavailable(
    provisioner: Provisioner,
) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name

    await provisioner.close()

    with pytest.raises(UnavailableError):
        await provisioner.start(name, BOOT)
    with pytest.raises(UnavailableError):
        await provisioner.observe()


async def test_a_link_opened_again_still_knows_its_vms(
    provisioner: Provisioner, heard: Heard
) -> None:
    name = (await provisioner.define(a_spec())).hypervisor_name
    await provisioner.start(name, BOOT)
    await heard.until_heard(name, PowerChange.STARTED)

    await provisioner.close()
    later = Heard()
    await provisioner.open(later.on_event, later.on_lost)

    assert (await powers(provisioner))[name] is PowerState.RUNNING
    await provisioner.stop(name, grace_s=0)
    await later.until(lambda: bool(later.changes(name)))
    generations = {event.generation for event in later.events}
    assert generations == {heard.events[0].generation + 1}


async def test_errors_are_ours(provisioner: Provisioner) -> None:
    with pytest.raises(FabricError):
        await provisioner.start("no-such-vm", BOOT)


def test_nothing_secret_is_shown(provisioner: Provisioner) -> None:
    assert set(provisioner.credentials) == {"username", "method", "secret_provided"}
    assert "@" not in provisioner.endpoint
