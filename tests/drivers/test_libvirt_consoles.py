"""The consoles of one hypervisor's guests, while threads make new ones."""

import asyncio
from threading import Thread

import pytest

from trustfabric.drivers.libvirt_consoles import Consoles, batched
from trustfabric.drivers.libvirt_errors import load_binding
from trustfabric.drivers.libvirt_events import EventLoop

pytestmark = pytest.mark.libvirt


async def test_a_lost_link_is_told_however_many_consoles_are_being_made() -> None:
    events = EventLoop(asyncio.get_running_loop())
    consoles = Consoles(
        load_binding(), events, here=True, keep=1, folder=None, new=None
    )

    def make() -> None:
        for number in range(20_000):
            consoles.of(f"vm-{number}")

    making = Thread(target=make)
    making.start()
    drops = 0
    while making.is_alive():
        consoles.drop()
        drops += 1
    making.join()

    assert drops > 0
    assert consoles.get("vm-19999") is not None


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 149])
def test_many_are_opened_a_few_at_a_time(count: int) -> None:
    pieces = list(batched(range(count), 50))

    assert [one for piece in pieces for one in piece] == list(range(count))
    assert all(0 < len(piece) <= 50 for piece in pieces)
