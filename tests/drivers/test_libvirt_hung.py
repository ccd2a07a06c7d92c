"""What a link does when calls hang: some domain's, or those of no domain alone."""

import asyncio
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from trustfabric.drivers.lanes import About
from trustfabric.drivers.libvirt_connect import Credentials, parse_uri
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_link import Link, Listeners
from trustfabric.errors import UnavailableError

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt

VM = About("vm")
END_OF_VM = About("vm", ends=True)


@pytest.fixture
def release(executor: ThreadPoolExecutor) -> Iterator[Event]:
    """What hangs until it is set, at the test's end at the latest."""
    event = Event()
    yield event
    event.set()


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


async def test_a_call_that_hangs_is_given_up_and_holds_its_slot(
    events: EventLoop, executor: ThreadPoolExecutor, release: Event
) -> None:
    link, lost = await an_open_link(events, executor)

    with pytest.raises(UnavailableError) as refused:
        await link.call("hanging", lambda _: release.wait(), within_s=0.05)

    assert refused.value.facts["cause"] == "deadline"
    assert await link.call("asking", lambda conn: conn.getType()) == "TEST"
    assert lost == []
    release.set()
    await link.close()


async def test_a_link_whose_calls_hang_is_lost_and_says_so_once(
    events: EventLoop, executor: ThreadPoolExecutor, release: Event
) -> None:
    link, lost = await an_open_link(events, executor)

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


def hanging(link: Link, release: Event, about: About) -> Awaitable[bool]:
    return link.call("hanging", lambda _: release.wait(), within_s=0.05, about=about)


async def test_hung_domains_hold_up_nobody_and_lose_no_link(
    events: EventLoop, executor: ThreadPoolExecutor, release: Event
) -> None:
    link, lost = await an_open_link(events, executor)

    results = await asyncio.gather(
        *(hanging(link, release, About(f"vm-{n}", ends=n % 2 > 0)) for n in range(6)),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [UnavailableError] * 6
    async with asyncio.timeout(5):
        for _ in range(5):
            name = await link.call("asking", lambda conn: conn.getType(), about=VM)
            assert name == "TEST"
    assert lost == []
    release.set()
    await link.close()


async def test_a_domain_that_does_not_answer_can_only_be_ended(
    events: EventLoop, executor: ThreadPoolExecutor, release: Event
) -> None:
    link, _ = await an_open_link(events, executor)
    with pytest.raises(UnavailableError):
        await hanging(link, release, VM)

    with pytest.raises(UnavailableError, match="earlier call") as refused:
        await link.call("asking", lambda _: True, about=VM)
    looked = await link.observe("looking", lambda _: True, about=VM)
    ended = await link.call("ending", lambda _: True, about=END_OF_VM)

    assert refused.value.facts["cause"] == "deadline"
    assert (looked, ended) == (True, True)
    with pytest.raises(UnavailableError):
        await hanging(link, release, END_OF_VM)
    with pytest.raises(UnavailableError, match="earlier call"):
        await link.call("ending", lambda _: True, about=END_OF_VM)
    release.set()
    async with asyncio.timeout(5):
        while not await answers(link, VM):
            await asyncio.sleep(0)
    await link.close()


async def answers(link: Link, about: About) -> bool:
    try:
        return await link.call("asking", lambda _: True, about=about)
    except UnavailableError:
        return False


async def test_where_many_do_not_answer_others_are_ended_but_not_asked(
    events: EventLoop, executor: ThreadPoolExecutor, release: Event
) -> None:
    link, lost = await an_open_link(events, executor)
    for n in range(8):
        with pytest.raises(UnavailableError):
            await hanging(link, release, About(f"vm-{n}"))

    with pytest.raises(UnavailableError, match="8 calls") as refused:
        await link.call("asking", lambda _: True, about=VM)
    for n in range(12):  # libvirtd has no more workers
        with pytest.raises(UnavailableError):
            await hanging(link, release, About(f"vm-{n}", ends=True))

    assert "cause" not in refused.value.facts  # it may answer, if it is asked
    assert lost == []
    release.set()
    assert await link.call("ending", lambda _: True, about=END_OF_VM)
    await link.close()


async def test_who_gives_up_waiting_leaves_no_slot_behind(
    events: EventLoop, executor: ThreadPoolExecutor, release: Event
) -> None:
    link, _ = await an_open_link(events, executor)
    waiting = [
        asyncio.ensure_future(hanging(link, release, About(f"vm-{n}")))
        for n in range(4)
    ]
    await asyncio.sleep(0)

    for each in waiting:
        each.cancel()

    async with asyncio.timeout(5):
        assert await link.call("asking", lambda _: True, about=VM)
    release.set()
    await link.close()
