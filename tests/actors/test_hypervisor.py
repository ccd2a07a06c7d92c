"""The link to the hypervisor: its loss says nothing, its return sees everything."""

import re
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fix_fabric import ASK_S, until
from tests.fix_machines import Machines
from trustfabric.actors import hypervisor
from trustfabric.actors.hypervisor import PowerOf, Renew, Unwatch, Watcher
from trustfabric.actors.vms import Look
from trustfabric.db.vms import Instance
from trustfabric.domain.vms import PowerState
from trustfabric.drivers.libvirt_link import Link, Listeners
from trustfabric.drivers.libvirt_xml import NAMESPACE, PREFIX
from trustfabric.errors import UnavailableError
from trustfabric.supervision import Address
from trustfabric.supervision.trace import Event

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt

LINK = "fabric/link"


@pytest.fixture
def operator() -> Any:
    return libvirt.open("test:///default")


async def power_of(
    machines: Machines, name: str, *, afresh: bool = False
) -> PowerState | None:
    nobody: Address[Any] = Address("nobody")
    watcher = Watcher(nobody, Look(), Look())
    seen = await machines.hypervisor.ask(PowerOf(name, watcher, afresh), within_s=ASK_S)
    return None if seen is None else seen.power


async def booted_again(machines: Machines, before: Instance) -> None:
    async def look() -> bool | None:
        row = await machines.read(before.id)
        running = row.power_state is PowerState.RUNNING
        return (running and row.boot_id != before.boot_id) or None

    await until(look, "a new boot")


async def test_it_knows_the_power_of_its_domains_and_of_no_other(
    machines: Machines,
) -> None:
    instance = await machines.started()

    assert await power_of(machines, instance.name, afresh=True) is PowerState.RUNNING
    assert await power_of(machines, "test") is None  # libvirt's own example
    assert await power_of(machines, "nobody") is None


async def test_a_lost_link_stops_nothing(machines: Machines) -> None:
    instance = await machines.started()

    machines.hypervisor.tell(hypervisor._Lost("cut"))
    await machines.runtime.quiet()

    assert await power_of(machines, instance.name, afresh=True) is PowerState.RUNNING
    row = await machines.read(instance.id)
    assert (row.power_state, row.boot_id) == (PowerState.RUNNING, instance.boot_id)
    assert await machines.power_log(instance.id) == ["started"]


async def test_a_killed_link_stops_nothing(machines: Machines) -> None:
    instance = await machines.started()

    await machines.kill(LINK)

    assert await power_of(machines, instance.name, afresh=True) is PowerState.RUNNING
    assert await machines.power_log(instance.id) == ["started"]


async def test_what_happened_while_the_link_was_down_is_seen_afterwards(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    await machines.provisioner.close()
    operator.lookupByName(instance.name).destroy()

    await machines.kill(LINK)
    machines.vms.children()[str(instance.id)].tell(Look())

    await booted_again(machines, instance)
    assert "crashed" in await machines.log(instance.id)


async def test_an_event_that_never_came_is_made_up_for_by_looking(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    await power_of(machines, "nobody", afresh=True)
    machines.provisioner._on_event = None
    operator.lookupByName(instance.name).destroy()
    actor = machines.vms.children()[str(instance.id)]
    watcher = Watcher(actor, Look(), Look())
    await machines.hypervisor.ask(PowerOf(instance.name, watcher), within_s=ASK_S)

    machines.clock.advance(hypervisor.RECONCILE_S)

    await booted_again(machines, instance)


async def test_while_the_link_is_down_nothing_is_known(machines: Machines) -> None:
    machines.runtime.suspend(LINK)
    await machines.provisioner.close()
    actor = machines.hypervisor.cell.actor
    assert actor is not None
    actor._seen = None  # type: ignore[attr-defined]
    machines.runtime.resume(LINK)

    with pytest.raises(UnavailableError):
        await power_of(machines, "nobody")


async def test_however_often_it_was_opened_it_looks_once_at_a_time(
    machines: Machines,
) -> None:
    for _ in range(5):
        machines.hypervisor.tell(hypervisor._Lost("cut"))
    await power_of(machines, "nobody")
    trace = machines.runtime.trace(LINK)

    machines.clock.advance(hypervisor.RECONCILE_S)
    await power_of(machines, "nobody")

    handled = [each for each in trace.events() if each.event is Event.HANDLED]
    looks = [each for each in handled if each.detail.startswith("_Reconcile")]
    assert len(looks) == 1
    trace.stop()


async def test_who_no_longer_watches_is_not_told(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()

    machines.hypervisor.tell(Unwatch(instance.name))
    operator.lookupByName(instance.name).destroy()

    async def seen() -> bool | None:
        actor = machines.hypervisor.cell.actor
        known = actor._seen[instance.name].power  # type: ignore[union-attr]
        return known is PowerState.STOPPED or None

    await until(seen, "the event")
    await machines.runtime.quiet()
    row = await machines.read(instance.id)
    assert row.power_state is PowerState.RUNNING


async def test_new_secrets_stop_nothing(machines: Machines) -> None:
    instance = await machines.started()

    machines.hypervisor.tell(Renew())
    await machines.runtime.quiet()

    assert await power_of(machines, instance.name, afresh=True) is PowerState.RUNNING
    assert await machines.power_log(instance.id) == ["started"]


async def test_a_secret_that_does_not_work_is_said_and_the_link_stays(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await machines.started()

    async def refuse() -> None:
        raise UnavailableError("wrong", cause="credentials")

    monkeypatch.setattr(machines.provisioner, "renew", refuse)
    with capture_logs() as said:
        machines.hypervisor.tell(Renew())
        await machines.runtime.quiet()

    assert await power_of(machines, instance.name) is PowerState.RUNNING
    assert [each["event"] for each in said if each["log_level"] == "error"] == [
        "hypervisor.not-renewed"
    ]


async def test_refused_credentials_are_not_tried_in_a_loop(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = machines.provisioner.open
    asked = 0

    async def refuse(*_: Any) -> None:
        nonlocal asked
        asked += 1
        raise UnavailableError("wrong", cause="credentials")

    monkeypatch.setattr(machines.provisioner, "open", refuse)
    machines.hypervisor.tell(hypervisor._Lost("cut"))
    await machines.runtime.quiet()
    machines.clock.advance(hypervisor.REFUSED_S - 1)
    await machines.runtime.quiet()
    assert asked == 1

    monkeypatch.setattr(machines.provisioner, "open", opening)
    machines.hypervisor.tell(Renew())
    assert await power_of(machines, "nobody") is None


# --- links that come back late, or go untold ----------------------------------------


async def pass_time(machines: Machines, seconds: float) -> None:
    for _ in range(int(seconds * 4)):
        machines.clock.advance(0.25)
        await machines.runtime.quiet()


@pytest.mark.parametrize("outage_s", [3, 8, 25, 60])
async def test_however_long_it_was_away_the_link_comes_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, outage_s: int
) -> None:
    """Also where the outage outlasts the next look."""
    instance = await machines.started()
    opening = machines.provisioner.open

    async def refuse(*_: Any) -> None:
        await machines.provisioner.close()
        raise UnavailableError("nobody listens")

    monkeypatch.setattr(machines.provisioner, "open", refuse)
    machines.hypervisor.tell(hypervisor._Lost("cut"))
    await pass_time(machines, outage_s)
    with pytest.raises(UnavailableError):
        await power_of(machines, instance.name)
    monkeypatch.setattr(machines.provisioner, "open", opening)
    await pass_time(machines, 3 * hypervisor.RECONNECT_S[1])

    assert await power_of(machines, instance.name) is PowerState.RUNNING


async def test_who_watched_before_the_link_was_killed_is_told_afterwards(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    await pass_time(machines, 2 * hypervisor.RECONCILE_S)

    await machines.kill(LINK)
    await pass_time(machines, 1)
    operator.lookupByName(instance.name).destroy()
    await pass_time(machines, hypervisor.RECONCILE_S)

    await booted_again(machines, instance)
    assert "crashed" in await machines.log(instance.id)


async def test_a_link_that_is_lost_while_it_is_opened_is_opened_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await machines.started()
    listen, times = Link._listen, 0

    def dying(link: Link, listeners: Listeners) -> None:
        nonlocal times
        listen(link, listeners)
        times += 1
        if times == 1:
            link.lose("connection closed: end of file")

    monkeypatch.setattr(Link, "_listen", dying)
    machines.hypervisor.tell(hypervisor._Lost("cut"))
    await pass_time(machines, 20)

    assert times == 2
    assert await power_of(machines, instance.name) is PowerState.RUNNING


async def test_a_link_of_whose_loss_nobody_told_is_opened_again(
    machines: Machines,
) -> None:
    instance = await machines.started()
    link = machines.provisioner._link
    link._listeners = None
    link.lose("untold")

    await pass_time(machines, hypervisor.RECONCILE_S * (hypervisor.UNOBSERVED + 1))

    assert machines.provisioner._link is not link
    assert await power_of(machines, instance.name) is PowerState.RUNNING


async def test_a_mark_that_somebody_wrote_over_says_nothing_and_harms_nobody(
    machines: Machines, operator: Any
) -> None:
    instance, other = await machines.started(), await machines.started()
    domain = operator.lookupByName(instance.name)
    text = domain.metadata(2, NAMESPACE, 1)
    garbled = re.sub(r'boot="[^"]*"', f'boot="{domain.ID()}:junk"', text)
    assert garbled != text
    domain.setMetadata(2, garbled, PREFIX, NAMESPACE, 1)

    assert await power_of(machines, instance.name, afresh=True) is PowerState.RUNNING
    await pass_time(machines, hypervisor.RECONCILE_S)

    report = {one.path: one for one in machines.runtime.report()}
    assert report[LINK].restart_count == 0
    assert (await machines.read(other.id)).boot_id == other.boot_id
