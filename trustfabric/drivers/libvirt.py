"""The libvirt driver: VMs as domains of one connection URI.

Blocking calls run on the executor that the application hands in, with `THREADS` for
each URI; events come over its `EventLoop`. Truth is `observe`; events are hints. Only
domains that carry our runtime's mark are ever seen or touched.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID
from xml.etree.ElementTree import Element

from trustfabric.domain.ports import ConsoleItem, ConsoleTail, Defined
from trustfabric.domain.power import Seen
from trustfabric.domain.vms import (
    ConsoleKind,
    IsolationTier,
    PowerChange,
    PowerEvent,
    VmSpec,
    VolumeTemplate,
)
from trustfabric.drivers import libvirt_domains as domains
from trustfabric.drivers import libvirt_ours as ours
from trustfabric.drivers.lanes import About
from trustfabric.drivers.launch_digest import note
from trustfabric.drivers.libvirt_connect import Credentials, parse_uri, snapshot_of
from trustfabric.drivers.libvirt_consoles import Consoles
from trustfabric.drivers.libvirt_errors import load_binding
from trustfabric.drivers.libvirt_events import EventLoop, power_change
from trustfabric.drivers.libvirt_link import CALL_S, Link, Listeners
from trustfabric.drivers.libvirt_ours import Ours
from trustfabric.drivers.libvirt_probe import Prober, Virt
from trustfabric.drivers.libvirt_stops import Stops
from trustfabric.drivers.libvirt_tiers import require_tier
from trustfabric.drivers.libvirt_xml import VirtType, domain_xml
from trustfabric.errors import UnavailableError

T = TypeVar("T")

_DEFINE_S: Final = 120.0
"""The first one has libvirt try out its QEMU: where nobody reaps, half a minute. As
long again for its disks."""
_START_S: Final = 60.0
_DESTROY_S: Final = 30.0
"""A hung QEMU is asked for ten seconds before it is killed."""
_OBSERVE_S: Final = 30.0
"""The list of domains waits for a hung QEMU to be killed."""
_CONSOLE_LINES: Final = 2000
_NOTES: Final = {
    VirtType.TEST: ("libvirt:simulated",),
    VirtType.QEMU: ("libvirt:emulated",),
}
_NO_CONSOLE: Final = "domains of libvirt's test driver have no console"


class LibvirtProvisioner:
    """A `Provisioner`; make one per URI and keep it as long as the process."""

    name = "libvirt"
    observes = True
    pauses = True

    def __init__(  # noqa: PLR0913 (what it works with, and a setting each)
        self,
        uri: str,
        *,
        events: EventLoop,
        executor: Executor,
        runtime: str,
        credentials: Credentials | None = None,
        virt: VirtType | None = None,
        scratch: VolumeTemplate | None = None,
        console: ConsoleKind | None = None,
        console_dir: Path | None = None,
        console_lines: int = _CONSOLE_LINES,
    ) -> None:
        """`runtime` marks this installation's domains; no `virt` takes the best.

        What is best is found with a guest whose disk lies where `scratch` does.
        `console` is what new ones get: that others run with another is said once.
        Console lines are kept in files of `console_dir`, and so many in memory.
        """
        self._binding = load_binding()
        self._uri = parse_uri(uri)
        self._events = events
        self._executor = executor
        self._credentials = credentials or Credentials()
        self._virt = Virt(
            VirtType.TEST if self._uri.simulated else virt,
            Prober(self._binding.libvirtError, scratch, events.time),
        )
        self._host = ours.Host(
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
        self._on_lost: Callable[[str], None] | None = None
        self._ours: dict[str, Ours] = {}
        self._strangers: frozenset[str] = frozenset()
        self._specs: dict[str, VmSpec] = {}
        self._consoles = Consoles(
            self._binding,
            events,
            here=self._uri.here,
            keep=max(console_lines, _CONSOLE_LINES),
            folder=console_dir,
            new=console,
        )
        self._stops = Stops(self._host)

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
        self._generation += 1  # what comes of an earlier one is late
        self._on_event, self._on_lost = on_event, on_lost
        self._ours = ours.runs_unknown(self._ours)
        self._link = await self._connect(self._generation)

    async def renew(self) -> None:
        old = self._up()
        if self._uri.local:
            return  # nobody is asked for credentials, and its state would be lost
        new = await self._connect(self._generation + 1)
        self._generation += 1
        self._link = new
        await self._let_go(old)

    async def close(self) -> None:
        link, self._link = self._link, None
        self._on_event = self._on_lost = None
        if link is not None:
            await self._let_go(link)
        self._consoles.drop()

    async def _connect(self, generation: int) -> Link:
        link = Link(
            self._binding, self._uri, self._credentials, self._events, self._executor
        )
        listeners = Listeners(
            lifecycle=partial(self._lifecycle, generation),
            rebooted=partial(self._rebooted, generation),
            lost=partial(self._lost, generation),
        )
        try:
            watch = await link.open(listeners, self._anchor)
        except BaseException:
            await link.close()
            raise
        if self._uri.local:
            self._anchor = watch
        return link

    async def _let_go(self, link: Link) -> None:
        with suppress(UnavailableError):  # an open stream keeps its connection
            await link.call("closing consoles", lambda _: self._consoles.detach())
        await link.close()

    async def define(self, spec: VmSpec) -> Defined:
        link = self._up()
        await require_tier(link, spec.tier, self._uri)
        notes = _NOTES.get(await self._virt.of(link), ())
        wanted = self._xml(spec)
        adopted = await self._act(
            "defining",
            spec.name,
            lambda conn: domains.define(self._host, conn, spec, wanted),
            within_s=_DEFINE_S,
        )
        self._ours.setdefault(str(spec.uuid), Ours(str(spec.uuid), spec.name))
        self._specs[spec.name] = spec
        launch = None
        if spec.tier is IsolationTier.SEV_SNP:
            launch = await self._act(
                "deriving the launch digest of",
                spec.name,
                lambda conn: domains.launch(
                    self._host, conn, spec.name, here=self._uri.here
                ),
            )
        return Defined(
            hypervisor_name=spec.name,
            tier=spec.tier,
            simulated=self.simulated,
            adopted=adopted,
            notes=notes if launch is None else (*notes, note(launch)),
            launch=launch,
        )

    async def start(self, name: str, boot: UUID) -> None:
        link, wanted, waits = self._up(), self._wanted(name), True

        def attach(domain: Any) -> None:
            if not waits:  # it stays paused: meanwhile it may have been ordered to stop
                raise UnavailableError(f"{name}: nobody waits for its start any more")
            uuid = domain.UUIDString()
            link.with_watch(lambda conn: self._consoles.boot(conn, uuid, name))

        def begin(conn: Any) -> None:
            domains.start(self._host, conn, name, wanted, boot, attach)

        try:
            await self._act("starting", name, begin, within_s=_START_S)
        finally:
            waits = False

    async def adopt(self, name: str, boot: UUID) -> None:
        wanted = self._wanted(name)
        await self._act(
            "comparing",
            name,
            lambda conn: domains.adopt(self._host, conn, name, wanted, boot),
        )

    async def mark(self, name: str, boot: UUID) -> None:
        await self._act(
            "marking",
            name,
            lambda conn: ours.mark(ours.require(self._host, conn, name), boot),
        )

    async def stop(self, name: str, *, grace_s: float) -> None:
        link = self._up()
        if grace_s > 0 and await self._stops.gently(link, name, grace_s):
            return
        await self._act(
            "destroying",
            name,
            lambda conn: domains.destroy(self._host, conn, name),
            within_s=_DESTROY_S,
            ends=True,
        )

    async def pause(self, name: str) -> None:
        await self._act("pausing", name, partial(domains.pause, self._host, name=name))

    async def resume(self, name: str) -> None:
        resume = partial(domains.resume, self._host, name=name)
        await self._act("resuming", name, resume)

    async def undefine(self, name: str, spec: VmSpec | None = None) -> None:
        def remove(conn: Any) -> None:
            domains.remove(self._host, conn, name)
            if (it := spec or self._specs.get(name)) is not None:
                domains.remove_volumes(self._host, conn, it, it.made_volumes)
            self._consoles.remove(name)

        await self._act("removing", name, remove, within_s=_DESTROY_S, ends=True)
        self._specs.pop(name, None)

    async def forget(self, spec: VmSpec) -> None:
        seed = () if spec.seed is None else (spec.seed_volume,)

        def clear(conn: Any) -> None:
            domains.remove_volumes(self._host, conn, spec, seed)
            self._consoles.remove(spec.name)

        self._specs.pop(spec.name, None)
        await self._act("forgetting", spec.name, clear)

    async def observe(self) -> Mapping[str, Seen]:
        known, strangers = dict(self._ours), self._strangers
        link = self._up()
        seen = await link.observe(
            "observing",
            lambda conn: ours.snapshot(self._host, conn, known, strangers),
            within_s=_OBSERVE_S,
        )
        defined = {u: it for u, it in self._ours.items() if it.name in self._specs}
        self._ours = {**defined, **seen.ours}
        self._strangers = frozenset(seen.strangers)
        if not self.simulated:
            await self._consoles.read_all(link, seen.ours.values())
        return {one.name: one.seen for one in seen.ours.values()}

    async def look(self, name: str) -> Seen | None:
        look = partial(ours.look, self._host, name=name)
        one = await self._up().observe(f"looking at {name}", look, about=About(name))
        if one is None:
            return None
        self._ours[one.uuid] = one
        return one.seen

    async def console_tail(self, name: str, lines: int) -> ConsoleTail:
        if self.simulated:
            await self._uuid_of(name)
            return ConsoleTail((), _NO_CONSOLE, live=False)
        await self._attached(name)
        spec = self._specs.get(name)
        return self._consoles.tail(name, lines, spec.console if spec else None)

    async def console_follow(
        self, name: str, *, after: int | None = None, beat_s: float = 15.0
    ) -> AsyncGenerator[Sequence[ConsoleItem], None]:
        if self.simulated:
            return
        await self._attached(name)
        async with aclosing(self._consoles.follow(name, after, beat_s)) as batches:
            async for batch in batches:
                yield batch

    def _wanted(self, name: str) -> Element | None:
        """Return what was asked for; None where this process didn't define it."""
        spec = self._specs.get(name)
        return None if spec is None else self._xml(spec)

    async def _act(
        self,
        doing: str,
        name: str,
        work: Callable[[Any], T],
        *,
        within_s: float = CALL_S,
        ends: bool = False,
    ) -> T:
        """Have done what may wait for the domain."""
        doing, about = f"{doing} {name}", About(name, ends)
        return await self._up().call(doing, work, within_s=within_s, about=about)

    def _xml(self, spec: VmSpec) -> Element:
        return domain_xml(spec, virt=self._virt.chosen, runtime=self._host.runtime)

    def _up(self) -> Link:
        if self._link is None:
            raise UnavailableError(f"{self.endpoint} is not open")
        return self._link

    async def _attached(self, name: str) -> None:
        """Open its console if it isn't; while the link is down, what is kept will do.

        NotFoundError.
        """
        known = self._consoles.get(name)
        if known is not None and (self._link is None or known.attached):
            return
        uuid = await self._uuid_of(name)
        await self._consoles.open(self._up(), {name: uuid})

    async def _uuid_of(self, name: str) -> str:
        uuid: str = await self._up().observe(
            f"looking for {name}",
            lambda conn: ours.require(self._host, conn, name).UUIDString(),
            about=About(name),
        )
        return uuid

    def _lifecycle(
        self, generation: int, uuid: str, name: str, event: int, detail: int
    ) -> None:
        change = power_change(event, detail)
        if change is not None:
            self._tell(generation, uuid, name, change)

    def _rebooted(self, generation: int, uuid: str, name: str) -> None:
        self._consoles.note_reboot(name)
        self._tell(generation, uuid, name, PowerChange.REBOOTED)

    def _tell(self, generation: int, uuid: str, name: str, change: PowerChange) -> None:
        if generation != self._generation or uuid not in self._ours:
            return
        self._stops.heard(name)
        if self._on_event is not None:
            self._on_event(PowerEvent(name, generation, change))

    def _lost(self, generation: int, reason: str) -> None:
        if generation != self._generation or self._link is None:
            return
        self._consoles.drop()
        if self._on_lost is not None:
            self._on_lost(reason)
