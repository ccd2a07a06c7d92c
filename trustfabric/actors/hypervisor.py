"""The link to one hypervisor: opened, watched, opened again.

It knows what its hypervisor last said of each domain and tells the VM's actor what
changes. Events are hints; the snapshot taken after every opening and at intervals
wins. A lost link means that nothing is known, never that something stopped.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import structlog

from trustfabric.domain.ports import Provisioner
from trustfabric.domain.power import UNSEEN, Seen
from trustfabric.domain.vms import PowerChange, PowerEvent, PowerState
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.supervision import Actor, Address, Notice, Request, Timer

log = structlog.get_logger(__name__)

RECONCILE_S = 10.0
RECONNECT_S = (0.05, 5.0)
UNOBSERVED = 2
"""Snapshots that come to nothing: then the link is opened anew."""
WRITE_AGAIN_S = 1.0
REFUSED_S = 60.0
"""Until the same credentials are tried again: servers lock accounts out."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told of a domain's changes, and with which notices."""

    address: Address[Any]
    changed: Notice[Any]
    unheard: Notice[Any]
    """Its changes may have been lost: the link was."""


@dataclass(frozen=True, slots=True)
class PowerOf(Request["Hypervisor", Seen | None]):
    """What is known of a domain: None where the hypervisor doesn't know it.

    The watcher is told of its changes from now on. UnavailableError while the link
    is down.
    """

    name: str
    watcher: Watcher
    afresh: bool = False
    """Ask the hypervisor itself: for a belief that must not rest on a late event."""


@dataclass(frozen=True, slots=True)
class Unwatch(Notice["Hypervisor"]):
    name: str


@dataclass(frozen=True, slots=True)
class Renew(Notice["Hypervisor"]):
    """The secrets may have changed: connect with them, and keep the link until then."""


@dataclass(frozen=True, slots=True)
class _Open(Notice["Hypervisor"]):
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class _Happened(Notice["Hypervisor"]):
    event: PowerEvent


@dataclass(frozen=True, slots=True)
class _Lost(Notice["Hypervisor"]):
    reason: str


@dataclass(frozen=True, slots=True)
class _Reconcile(Notice["Hypervisor"]):
    pass


@dataclass(frozen=True, slots=True)
class _WriteReboots(Notice["Hypervisor"]):
    pass


@dataclass(frozen=True, slots=True)
class _Written(Notice["Hypervisor"]):
    reboots: Mapping[str, int]
    error: BaseException | None


LinkMessage = Renew | _Open | _Happened | _Lost | _Reconcile
Message = PowerOf | Unwatch | _WriteReboots | _Written | LinkMessage


class Hypervisor(Actor):
    def __init__(
        self,
        provisioner: Provisioner,
        write_reboots: Callable[[Mapping[str, int]], Coroutine[Any, Any, None]],
        watchers: "dict[str, Watcher]",
    ) -> None:
        """`write_reboots` keeps how often guests, by name, rebooted.

        Their watchers are told afterwards, so that none is told of what may be lost.
        They outlive each incarnation: who watches doesn't hear that one fell.
        """
        super().__init__()
        self._provisioner = provisioner
        self._write = write_reboots
        self._writing = False
        self._watchers = watchers
        self._reboots: dict[str, int] = {}
        self._seen: dict[str, Seen] | None = None
        self._linked = False
        self._next: Timer | None = None
        self._unobserved = 0
        """Snapshots that came to nothing, one after the other."""

    @property
    def watched(self) -> int:
        """How many domains somebody asked to be told of."""
        return len(self._watchers)

    async def on_start(self) -> None:
        await self._open(0)
        self._tell_all_unheard()  # what the one before should have told

    async def on_stop(self) -> None:
        await self._provisioner.close()

    async def handle(self, message: Message) -> Seen | None:
        match message:
            case PowerOf():
                return await self._power_of(message)
            case Unwatch(name):
                self._watchers.pop(name, None)
            case _WriteReboots():
                self._write_reboots()
            case _Written():
                self._written(message)
            case _:
                await self._mind(message)
        return None

    async def _mind(self, message: LinkMessage) -> None:
        """Look after the link."""
        match message:
            case Renew():
                await self._renew()
            case _Open(attempt):
                await self._open(attempt)
            case _Happened(event):
                self._happened(event)
            case _Lost(reason):
                log.warning("hypervisor.lost", reason=reason)
                self._seen, self._linked = None, False
                self._tell_all_unheard()
                await self._open(0)
            case _Reconcile():
                if self._linked:  # else it came late: opening is what is next
                    await self._reconcile()
            case _:
                assert_never(message)

    async def _power_of(self, message: PowerOf) -> Seen | None:
        self._watchers[message.name] = message.watcher
        if self._seen is None:
            raise UnavailableError(f"{self._provisioner.endpoint}: the link is down")
        if message.afresh:
            seen = await self._provisioner.look(message.name)
            if seen is None:
                self._seen.pop(message.name, None)
            else:
                self._seen[message.name] = seen
        return self._seen.get(message.name)

    async def _open(self, attempt: int) -> None:
        me = self.address
        try:
            await self._provisioner.open(
                lambda event: _told(me.tell(_Happened(event))),
                lambda reason: _told(me.tell(_Lost(reason))),
            )
        except FabricError as error:
            self._linked = False
            self._open_later(error, attempt)
            return
        self._linked = True
        await self._reconcile()

    def _open_later(self, error: FabricError, attempt: int) -> None:
        low, high = RECONNECT_S
        delay = min(high, low * 2**attempt)
        if error.facts.get("cause") == "credentials":
            # They won't get better by asking often; Renew asks at once.
            log.error("hypervisor.credentials-refused", error=str(error))
            delay = REFUSED_S
        else:
            log.warning("hypervisor.unreachable", error=str(error), attempt=attempt)
        self._next_is(delay, _Open(min(attempt + 1, 16)))

    async def _renew(self) -> None:
        if self._seen is None:
            await self._open(0)
            return
        try:
            await self._provisioner.renew()
        except FabricError as error:
            log.error("hypervisor.not-renewed", error=str(error))  # noqa: TRY400
            return
        log.info("hypervisor.renewed")
        await self._reconcile()

    def _next_is(self, delay_s: float, message: _Open | _Reconcile) -> None:
        """Do that next, and nothing else that was to be next."""
        if self._next is not None:
            self._next.cancel()
        self._next = self.after(delay_s, message)

    async def _reconcile(self) -> None:
        """Take a snapshot; a link that gives none time and again is lost, untold."""
        self._next_is(RECONCILE_S, _Reconcile())
        try:
            seen = dict(await self._provisioner.observe())
        except UnavailableError as error:
            log.warning("hypervisor.unobserved", error=str(error))
            self._unobserved += 1
            if self._unobserved >= UNOBSERVED:
                self._unobserved = 0
                self.address.tell(_Lost(str(error)))
            return
        self._unobserved = 0
        before, self._seen = self._seen, seen
        for name, watcher in self._watchers.items():
            if before is None or before.get(name) != seen.get(name):
                watcher.address.tell(watcher.changed)

    def _happened(self, event: PowerEvent) -> None:
        if self._seen is None:
            return
        after = self._seen.get(event.name, UNSEEN).after(event.change)
        if after.power is PowerState.VANISHED:
            self._seen.pop(event.name, None)
        else:
            self._seen[event.name] = after
        if event.change is PowerChange.REBOOTED:
            self._reboots[event.name] = self._reboots.get(event.name, 0) + 1
            self._write_reboots()
        else:
            self._tell(event.name)

    def _write_reboots(self) -> None:
        """Write all that were heard; one statement at a time."""
        if self._writing or not self._reboots:
            return
        self._writing = True
        taken, self._reboots = self._reboots, {}
        _ = self.run(self._write(taken), lambda result: _written(taken, result))

    def _written(self, message: _Written) -> None:
        self._writing = False
        if message.error is None:
            for name in message.reboots:
                self._tell(name)
            self._write_reboots()
            return
        if not isinstance(message.error, FabricError):
            raise message.error
        log.warning("hypervisor.reboots-wait", error=str(message.error))
        for name, count in message.reboots.items():
            self._reboots[name] = self._reboots.get(name, 0) + count
        self.after(WRITE_AGAIN_S, _WriteReboots())

    def _tell(self, name: str) -> None:
        watcher = self._watchers.get(name)
        if watcher is not None:
            watcher.address.tell(watcher.changed)

    def _tell_all_unheard(self) -> None:
        for watcher in self._watchers.values():
            watcher.address.tell(watcher.unheard)


def hypervisor_maker(
    provisioner: Provisioner,
    write_reboots: Callable[[Mapping[str, int]], Coroutine[Any, Any, None]],
) -> Callable[[], Hypervisor]:
    """Return what makes its actor, each incarnation with the watchers of the last."""
    watchers: dict[str, Watcher] = {}
    return lambda: Hypervisor(provisioner, write_reboots, watchers)


def _written(reboots: Mapping[str, int], result: object) -> _Written:
    return _Written(reboots, result if isinstance(result, BaseException) else None)


def _told(_: object) -> None:
    """Drop whether a notice was delivered: a dead letter is counted where it dies."""
