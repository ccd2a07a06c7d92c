"""A guest asked to stop, and waited for: by its events, and by looking."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from trustfabric.drivers import libvirt_domains as domains
from trustfabric.drivers.lanes import About
from trustfabric.drivers.libvirt_link import Link
from trustfabric.drivers.libvirt_ours import Host
from trustfabric.errors import UnavailableError

_POLL_S: Final = 1.0


class Stops:
    """Those that go on over one hypervisor."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._offs: dict[str, asyncio.Event] = {}

    def heard(self, name: str) -> None:
        """Look at once: something happened to it."""
        off = self._offs.get(name)
        if off is not None:
            off.set()

    async def gently(self, link: Link, name: str, grace_s: float) -> bool:
        """Tell whether it went off by itself in time."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_s
        with self._off_event(name) as off:
            if not await self._ask(link, name, grace_s):
                return False
            while (left := deadline - clock()) > 0:
                if not await link.observe(
                    f"watching {name} stop",
                    lambda conn: domains.active(self._host, conn, name),
                    about=About(name),
                ):
                    return True
                await _wait(off, min(left, _POLL_S))
        return False

    async def _ask(self, link: Link, name: str, grace_s: float) -> bool:
        try:
            return await link.call(
                f"shutting down {name}",
                lambda conn: domains.shut_down(self._host, conn, name),
                within_s=grace_s,
                about=About(name),
            )
        except UnavailableError as error:
            if error.facts.get("cause") == "deadline" and link.lost is None:
                return False  # a hung guest: its power is cut
            raise

    @contextmanager
    def _off_event(self, name: str) -> Iterator[asyncio.Event]:
        event = self._offs.setdefault(name, asyncio.Event())
        try:
            yield event
        finally:
            self._offs.pop(name, None)


async def _wait(event: asyncio.Event, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
