"""Holds: places and releases people's, opens the breaker in a storm, tells of ends.

The Dispatcher asks it to look before it stages anything. Whether something is held is
never this actor's memory: everybody reads the rows, so any runtime may do any of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

import structlog

from trustfabric.db import holds, incidents, storms
from trustfabric.db.incidents import BreakerRelease
from trustfabric.db.session import Database
from trustfabric.domain.holds import Hold, HoldOrder, check_order, check_release
from trustfabric.domain.ids import HoldId, OwnerId
from trustfabric.domain.storms import Incident, StormLimits, judge, sentence
from trustfabric.errors import FabricError
from trustfabric.supervision import Actor, Notice, Request

log = structlog.get_logger(__name__)

BATCH = 100


@dataclass(frozen=True, slots=True)
class PlaceHold(Request["Holds", tuple[Hold, bool]]):
    """Place a hold; answered with it, and whether it is new."""

    order: HoldOrder
    viewer: OwnerId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHold(Request["Holds", Hold]):
    """End a hold before its time; one that has ended stays as it is."""

    hold_id: HoldId
    viewer: OwnerId | None
    by: str
    is_admin: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseBreaker(Request["Holds", list[Incident]]):
    """Let automation go on; what is due then is decided afresh."""

    order: BreakerRelease


@dataclass(frozen=True, slots=True)
class LookOut(Request["Holds", bool]):
    """Judge the breakers by what is committed now; whether one opened."""


@dataclass(frozen=True, slots=True)
class _Tick(Notice["Holds"]):
    pass


@dataclass(frozen=True, slots=True)
class _Ended(Notice["Holds"]):
    """A hold's time has come."""


Message = PlaceHold | ReleaseHold | ReleaseBreaker | LookOut | _Tick | _Ended
Answer = tuple[Hold, bool] | Hold | list[Incident] | bool | None


class Holds(Actor):
    def __init__(
        self,
        database: Database,
        limits: StormLimits,
        runtime_id: str,
        *,
        tick_s: float = 5.0,
    ) -> None:
        super().__init__()
        self._database = database
        self._limits = limits
        self._runtime_id = runtime_id
        self._tick_s = tick_s
        self._horizon = "0"
        """Up to where the breakers were judged."""

    def on_start(self) -> None:
        self.after(0, _Tick())

    async def handle(self, message: Message) -> Answer:
        match message:
            case PlaceHold(order, viewer):
                return await self._place(order, viewer)
            case ReleaseHold():
                return await self._release(message)
            case ReleaseBreaker(order):
                return await self._release_breaker(order)
            case LookOut():
                return await self._look_out()
            case _Tick():
                await self._tick()
                self.after(self._tick_s, message)
            case _Ended():
                await self._tick()
            case _:
                assert_never(message)
        return None

    async def _place(
        self, order: HoldOrder, viewer: OwnerId | None
    ) -> tuple[Hold, bool]:
        now = self.now()
        checked = check_order(order, now)
        async with self._database.writing() as conn:
            hold, is_new = await holds.place_hold(conn, checked, viewer, now)
        if is_new:
            log.info("hold.placed", hold_id=hold.id, scope=hold.scope, by=hold.by)
            self._end_in_time(hold.until)
        return hold, is_new

    async def _release(self, message: ReleaseHold) -> Hold:
        now = self.now()
        async with self._database.writing() as conn:
            hold = await holds.lock_hold(conn, message.viewer, message.hold_id)
            check_release(hold, is_admin=message.is_admin)
            after = await holds.release_hold(
                conn, hold, message.by, message.reason, now
            )
        log.info("hold.released", hold_id=after.id, by=after.released_by)
        return after

    async def _release_breaker(self, order: BreakerRelease) -> list[Incident]:
        async with self._database.writing() as conn:
            released = await incidents.release_incidents(conn, order, self.now())
        for incident in released:
            log.info("breaker.released", incident_id=incident.id, by=order.by)
        return released

    async def _look_out(self) -> bool:
        now = self.now()
        async with self._database.reading() as conn:
            horizon, is_news = await storms.read_news(conn, self._horizon)
            if not is_news:
                return False
            census = await storms.read_census(conn, now, self._limits)
        opened: list[Incident] = []
        for trip in judge(census, self._limits):
            async with self._database.writing() as conn:
                incident = await incidents.open_incident(
                    conn, trip, self._limits, now, f"runtime:{self._runtime_id}"
                )
            if incident is not None:
                opened.append(incident)
        self._horizon = horizon
        _tell(opened)
        return bool(opened)

    async def _tick(self) -> None:
        """See to what only the clock can tell; what fails now is done by the next."""
        try:
            await self._tell_expired()
            await self._grow()
        except FabricError as error:
            log.warning("holds.waits", error=str(error))

    async def _tell_expired(self) -> None:
        now = self.now()
        async with self._database.reading() as conn:
            ends = await holds.next_expiry(conn)
        if ends is not None and ends <= now:
            async with self._database.writing() as conn:
                told = await holds.tell_expired(conn, now, limit=BATCH)
            if told:
                log.info("hold.expired", count=told)
                self.address.tell(_Ended())
        else:
            self._end_in_time(ends)

    def _end_in_time(self, ends: datetime | None) -> None:
        """Wake at the very end of a hold, where that is before the next tick."""
        if ends is None:
            return
        delay_s = (ends - self.now()).total_seconds()
        if delay_s < self._tick_s:
            self.after(max(0.0, delay_s), _Ended())

    async def _grow(self) -> None:
        async with self._database.reading() as conn:
            grown = await incidents.list_incidents(
                conn, None, is_open=True, limit=BATCH
            )
        for incident in grown:
            async with self._database.writing() as conn:
                await incidents.grow_incident(conn, incident, self.now())


def _tell(opened: Sequence[Incident]) -> None:
    for incident in opened:
        log.warning(
            "breaker.opened",
            incident_id=incident.id,
            scope=incident.scope,
            owner_id=incident.owner_id,
            quarantined=incident.quarantined,
            living=incident.living,
            told=sentence(incident),
        )
