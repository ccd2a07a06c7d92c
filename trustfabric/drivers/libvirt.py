"""The libvirt driver: VMs as domains of one connection URI.

Blocking calls run on the executor that the application hands in (five threads for
each URI at least), events come over its `EventLoop`. Truth is `observe`; events
are hints. Only domains that carry our runtime's mark are ever seen or touched.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from trustfabric.domain.ports import ConsoleTail, Defined
from trustfabric.domain.vms import (
    ConsoleKind,
    IsolationTier,
    PowerChange,
    PowerEvent,
    PowerState,
    VmSpec,
)
from trustfabric.drivers import libvirt_domains as domains
from trustfabric.drivers import libvirt_volumes as volumes
from trustfabric.drivers.libvirt_connect import Credentials, parse_uri, snapshot_of
from trustfabric.drivers.libvirt_console import Console
from trustfabric.drivers.libvirt_errors import load_binding
from trustfabric.drivers.libvirt_events import EventLoop, power_change
from trustfabric.drivers.libvirt_link import Link, Listeners
from trustfabric.drivers.libvirt_xml import VirtType, domain_xml
from trustfabric.errors import UnavailableError, UnsupportedError

_START_S: Final = 60.0
_DISK_S: Final = 60.0
_DESTROY_S: Final = 30.0
"""A hung QEMU is asked for ten seconds before it is killed."""
_OBSERVE_S: Final = 30.0
"""The list of domains waits for a hung QEMU to be killed."""
_POLL_S: Final = 1.0
_CONSOLE_LINES: Final = 2000
_NEEDED: Final[Mapping[IsolationTier, int]] = {
    IsolationTier.SEV: 4_005_000,
    IsolationTier.SEV_ES: 4_005_000,
    IsolationTier.SEV_SNP: 10_005_000,
    IsolationTier.TDX: 11_006_000,
}
"""libvirt's version from which it knows the tier's launchSecurity."""
_NO_CONSOLE: Final = "domains of libvirt's test driver have no console"


class LibvirtProvisioner:
    """A `Provisioner`; make one per URI and keep it as long as the process."""

    name = "libvirt"
    observes = True
    pauses = True

    def __init__(
        self,
        uri: str,
        *,
        events: EventLoop,
        executor: Executor,
        runtime: str,
        credentials: Credentials | None = None,
        virt: VirtType = VirtType.KVM,
    ) -> None:
        """`runtime` marks this installation's domains; `virt` counts for real ones."""
        self._binding = load_binding()
        self._uri = parse_uri(uri)
        self._events = events
        self._executor = executor
        self._credentials = credentials or Credentials()
        self._virt = VirtType.TEST if self._uri.simulated else virt
        self._host = domains.Host(
            error=self._binding.libvirtError,
            runtime=runtime,
            validates=not self._uri.simulated,
            starts_paused=not self._uri.simulated,
            keeps_state=not self._uri.simulated,
        )
        self._generation = 0
        self._link: Link | None = None
        self._anchor: Any | None = None
        self._on_event: Callable[[PowerEvent], None] | None = None
        self._ours: dict[str, str] = {}
        self._strangers: frozenset[str] = frozenset()
        self._specs: dict[str, VmSpec] = {}
        self._consoles: dict[str, Console] = {}
        self._offs: dict[str, asyncio.Event] = {}

    @property
    def endpoint(self) -> str:
        return self._uri.shown

    @property
    def credentials(self) -> Mapping[str, object]:
        return snapshot_of(self._credentials)

    @property
    def simulated(self) -> bool:
        return self._uri.simulated

    @property
    def volatile(self) -> bool:
        return self._uri.volatile

    async def open(
        self,
        on_event: Callable[[PowerEvent], None],
        on_lost: Callable[[str], None],
    ) -> None:
        await self.close()
        self._generation += 1
        self._on_event = on_event
        link = Link(
            self._binding, self._uri, self._credentials, self._events, self._executor
        )
        generation = self._generation
        listeners = Listeners(
            lifecycle=partial(self._lifecycle, generation),
            rebooted=partial(self._rebooted, generation),
            lost=partial(self._lost, generation, on_lost),
        )
        try:
            watch = await link.open(listeners, self._anchor)
        except BaseException:
            await link.close()
            raise
        if self._uri.local:
            self._anchor = watch
        self._link = link

    async def close(self) -> None:
        link, self._link = self._link, None
        self._on_event = None
        for console in self._consoles.values():
            console.drop()
        if link is not None:
            await link.close()

    async def define(self, spec: VmSpec) -> Defined:
        link = self._up()
        await self._require_tier(link, spec.tier)
        wanted = domain_xml(spec, virt=self._virt, runtime=self._host.runtime)
        if volumes.is_wanted(spec.volume) and not self.simulated:
            await link.call(
                f"making the disk of {spec.name}",
                lambda conn: volumes.ensure(self._host.error, conn, spec.volume),
                within_s=_DISK_S,
            )
        adopted = await link.call(
            f"defining {spec.name}",
            lambda conn: domains.define(self._host, conn, wanted),
        )
        self._ours[str(spec.uuid)] = spec.name
        self._specs[spec.name] = spec
        return Defined(
            hypervisor_name=spec.name,
            tier=spec.tier,
            simulated=self.simulated,
            adopted=adopted,
            notes=("libvirt:simulated",) if self.simulated else (),
        )

    async def start(self, name: str) -> None:
        link, spec = self._up(), self._specs.get(name)
        wanted = (
            domain_xml(spec, virt=self._virt, runtime=self._host.runtime)
            if spec is not None
            else None
        )

        def attach(domain: Any) -> None:
            uuid = domain.UUIDString()
            link.with_watch(lambda conn: self._console(name).attach(conn, uuid))

        await link.call(
            f"starting {name}",
            lambda conn: domains.start(self._host, conn, name, wanted, attach),
            within_s=_START_S,
        )

    async def stop(self, name: str, *, grace_s: float) -> None:
        link = self._up()
        if grace_s > 0 and await self._stop_gently(link, name, grace_s):
            return
        await link.call(
            f"destroying {name}",
            lambda conn: domains.destroy(self._host, conn, name),
            within_s=_DESTROY_S,
        )

    async def pause(self, name: str) -> None:
        await self._up().call(
            f"pausing {name}", lambda conn: domains.pause(self._host, conn, name)
        )

    async def resume(self, name: str) -> None:
        await self._up().call(
            f"resuming {name}", lambda conn: domains.resume(self._host, conn, name)
        )

    async def undefine(self, name: str) -> None:
        await self._up().call(
            f"removing {name}",
            lambda conn: domains.remove(self._host, conn, name),
            within_s=_DESTROY_S,
        )
        self._specs.pop(name, None)
        self._consoles.pop(name, None)

    async def observe(self) -> Mapping[str, PowerState]:
        known, strangers = dict(self._ours), self._strangers
        seen = await self._up().observe(
            "observing",
            lambda conn: domains.snapshot(self._host, conn, known, strangers),
            within_s=_OBSERVE_S,
        )
        defined = {u: n for u, n in self._ours.items() if n in self._specs}
        self._ours = {**defined, **seen.ours}
        self._strangers = frozenset(seen.strangers)
        return seen.power

    async def console_tail(self, name: str, lines: int) -> ConsoleTail:
        console = await self._attached(name)
        tail = () if console is None else console.ring.tail(lines)
        if tail or lines <= 0:
            return ConsoleTail(tail)
        if console is None:
            return ConsoleTail((), _NO_CONSOLE)
        return ConsoleTail((), self._why_empty(name, console))

    async def console_follow(self, name: str) -> AsyncIterator[str]:
        console = await self._attached(name)
        if console is None:
            return
        position = console.ring.count
        while True:
            changed = console.next_change()
            lines, position = console.ring.since(position)
            for line in lines:
                yield line
            if not console.attached:
                return
            if not lines:
                await changed.wait()

    def _up(self) -> Link:
        if self._link is None:
            raise UnavailableError(f"{self.endpoint} is not open")
        return self._link

    async def _require_tier(self, link: Link, tier: IsolationTier) -> None:
        """Refuse what this host can't do; it is never lowered instead."""
        if not tier.confidential:
            return
        if self.simulated:
            raise UnsupportedError(
                f"tier {tier}: {self.endpoint} only simulates VMs and isolates none"
            )
        version = await link.call("asking the version", lambda c: c.getLibVersion())
        if version < _NEEDED[tier]:
            raise UnsupportedError(
                f"tier {tier} needs libvirt {_dotted(_NEEDED[tier])} or newer, "
                f"{self.endpoint} has {_dotted(version)}"
            )

    async def _stop_gently(self, link: Link, name: str, grace_s: float) -> bool:
        """Tell whether it went off by itself in time."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_s
        with self._off_event(name) as off:
            if not await self._ask_to_stop(link, name, grace_s):
                return False
            while (left := deadline - clock()) > 0:
                if not await link.observe(
                    f"watching {name} stop",
                    lambda conn: domains.active(self._host, conn, name),
                ):
                    return True
                await _wait(off, min(left, _POLL_S))
        return False

    async def _ask_to_stop(self, link: Link, name: str, grace_s: float) -> bool:
        try:
            return await link.call(
                f"shutting down {name}",
                lambda conn: domains.shut_down(self._host, conn, name),
                within_s=grace_s,
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

    def _console(self, name: str) -> Console:
        console = self._consoles.get(name)
        if console is None:
            console = Console(self._host.error, self._events, _CONSOLE_LINES)
            self._consoles[name] = console
        return console

    async def _attached(self, name: str) -> Console | None:
        """Return the console, attached where that is possible; None if it has none."""
        link = self._up()
        found = await link.observe(
            f"looking for {name}",
            lambda conn: domains.require(self._host, conn, name).UUIDString(),
        )
        if self.simulated:
            return None
        console = self._console(name)
        if not console.attached:
            await link.call(
                f"opening the console of {name}",
                lambda _: link.with_watch(lambda conn: console.attach(conn, found)),
            )
        return console

    def _why_empty(self, name: str, console: Console) -> str:
        if console.attached:
            return "nothing was printed since the console was opened"
        spec = self._specs.get(name)
        if spec is not None and spec.console.kind is not ConsoleKind.PTY:
            return (
                f"LIBVIRT_CONSOLE_SOURCE is {spec.console.kind}: "
                "only a pty is read through libvirt"
            )
        return console.why_not or "its console has ended"

    def _lifecycle(
        self, generation: int, uuid: str, name: str, event: int, detail: int
    ) -> None:
        change = power_change(event, detail)
        if change is not None:
            self._tell(generation, uuid, name, change)

    def _rebooted(self, generation: int, uuid: str, name: str) -> None:
        self._tell(generation, uuid, name, PowerChange.REBOOTED)

    def _tell(self, generation: int, uuid: str, name: str, change: PowerChange) -> None:
        if generation != self._generation or uuid not in self._ours:
            return
        off = self._offs.get(name)
        if off is not None:
            off.set()
        if self._on_event is not None:
            self._on_event(PowerEvent(name, generation, change))

    def _lost(
        self, generation: int, on_lost: Callable[[str], None], reason: str
    ) -> None:
        if generation != self._generation or self._link is None:
            return
        for console in self._consoles.values():
            console.drop()
        on_lost(reason)


async def _wait(event: asyncio.Event, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return
    event.clear()


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
