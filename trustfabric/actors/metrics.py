"""The Meter: counts what the streams tell, and reads what can only be looked up.

Each runtime counts all events, its own and others'; so these figures agree between
runtimes and are not to be added up. A reading is kept for a while, longer where it
took longer: whoever asks often costs nothing more.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never

import structlog

from trustfabric.actors.counters import (
    ATTEMPTS,
    BREACHES,
    DECISIONS,
    DELIVERY,
    EXPIRIES,
    MOVES,
    QUARANTINES,
    REFUSALS,
    RUNS,
    TO_QUARANTINE,
    TO_RESTORATION,
    VERDICTS,
    Counters,
)
from trustfabric.actors.streams import (
    ActorFollower,
    Broadcaster,
    Event,
    Follow,
    Head,
    Stream,
)
from trustfabric.db import metrics, placement
from trustfabric.db.session import Connection, Database
from trustfabric.domain.attestation.collateral import Stock
from trustfabric.domain.events import RemediationEvent, TrustEvent
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, RunId
from trustfabric.domain.placement import kind_of
from trustfabric.domain.trust import Lifecycle
from trustfabric.errors import FabricError
from trustfabric.supervision import Actor, Address, AskError, Notice, Request

log = structlog.get_logger(__name__)

ASK_S = 2.0
FOLLOW_S = 30.0
KEEP_S = 5.0
KEEP_TIMES = 50.0
"""A reading is kept for this many times as long as it took, at least `KEEP_S`."""

KNOWN = 50_000
"""Distrusted instances whose time is kept; the oldest goes first."""

PAGE = 1000
_ENDED = frozenset({"completed", "failed", "cancelled"})
_CAUSES: Mapping[str, str] = {
    "actor:attestation": "verdict",
    "user": "operator",
    "run": "run",
    "actor:dispatcher": "run",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was looked up; None and empty where the database didn't answer."""

    fleet: metrics.Fleet | None = None
    runs: Sequence[metrics.Stage] = ()
    refreshes: Sequence[metrics.Stage] = ()
    holds: Mapping[str, int] = field(default_factory=dict)
    breakers: Mapping[str, int] = field(default_factory=dict)
    lag_s: Mapping[str, float] = field(default_factory=dict)
    """How old the oldest event is that was not handed on, by stream."""
    collateral: Mapping[str, Stock] = field(default_factory=dict)
    """By maker, whether the database answers or not; empty where none is kept."""
    took_s: float = 0.0
    at: datetime
    """When; ages count from here."""


@dataclass(frozen=True, slots=True)
class Measure(Request["Meter", Reading]):
    """Look up what can't be counted as it happens, unless that was just done."""


@dataclass(frozen=True, slots=True)
class _Happened(Notice["Meter"]):
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class _Follow(Notice["Meter"]):
    pass


class Meter(Actor):
    def __init__(
        self,
        database: Database,
        broadcaster: Address[Broadcaster],
        counters: Counters,
        stock: Callable[[], Awaitable[Mapping[str, Stock]]],
    ) -> None:
        super().__init__()
        self._stock = stock
        self._database = database
        self._broadcaster = broadcaster
        self._counters = counters
        self._quarantined: dict[InstanceId, datetime] | None = None
        self._decision: int | None = None
        self._reading: Reading | None = None
        self._read_at = 0.0

    def on_start(self) -> None:
        self.address.tell(_Follow())

    async def handle(self, message: Measure | _Happened | _Follow) -> Reading | None:
        match message:
            case Measure():
                return await self._measure()
            case _Happened(events):
                await self._happened(events)
            case _Follow():
                self.after(FOLLOW_S, message)
                await self._follow()
            case _:
                assert_never(message)
        return None

    async def _follow(self) -> None:
        # Repeated, since the Broadcaster forgets its followers when it restarts.
        try:
            for stream in (Stream.TRUST, Stream.REMEDIATION):
                follower = ActorFollower(stream, self.address, _Happened)
                following = await self._broadcaster.ask(
                    Follow(follower), within_s=ASK_S
                )
                if following.anew and stream is Stream.TRUST:
                    self._quarantined = None  # some may have left it meanwhile
            if self._quarantined is None or self._decision is None:
                async with self._database.reading() as conn:
                    self._quarantined = await metrics.list_quarantined(
                        conn, limit=KNOWN
                    )
                    self._decision = await placement.newest_decision(conn)
        except (FabricError, AskError) as error:
            log.warning("meter.not-following", error=str(error))

    # --- what happens -------------------------------------------------------------

    async def _happened(self, events: Sequence[Event]) -> None:
        now = self.now()
        ended: list[RunId] = []
        for event in events:
            if isinstance(event, TrustEvent):
                self._delivered(Stream.TRUST, now, event.triggered_at)
                self._note_trust(event)
            elif isinstance(event, RemediationEvent):
                self._delivered(Stream.REMEDIATION, now, event.at)
                ended += self._note_run(event)
        if ended:
            await self._note_late(ended)

    def _delivered(self, stream: Stream, now: datetime, at: datetime) -> None:
        self._counters.measure(DELIVERY, (now - at).total_seconds(), stream)

    def _note_trust(self, event: TrustEvent) -> None:
        before, after = event.previous_lifecycle, event.lifecycle
        if event.attestation_id is not None:
            self._note_verdict(event)
        if before is None or before is after:
            return
        self._counters.count(MOVES, before, after)
        if after is Lifecycle.QUARANTINED:
            self._note_quarantine(event)
        elif after is Lifecycle.RESTORED:
            self._note_restoration(event)
        elif event.actor == "actor:scheduler":
            self._counters.count(EXPIRIES)

    def _note_verdict(self, event: TrustEvent) -> None:
        told = event.provenance or {}
        if event.provenance_ref == f"attestation:{_kind(event)}:{event.attestation_id}":
            code = _word(told.get("code"))
            self._counters.count(VERDICTS, _kind(event), event.status, code)
        else:  # it left what was believed before as it was
            self._counters.count(VERDICTS, _kind(event), "unknown", "unreachable")

    def _note_quarantine(self, event: TrustEvent) -> None:
        who = event.actor if event.actor in _CAUSES else event.actor.partition(":")[0]
        cause = _CAUSES.get(who, "other")
        self._counters.count(QUARANTINES, cause)
        if cause == "verdict" and (issued := _issued_at(event)) is not None:
            took = (event.triggered_at - issued).total_seconds()
            self._counters.measure(TO_QUARANTINE, took)
        known = self._quarantined
        if known is not None:
            known.setdefault(event.instance_id, event.triggered_at)
            if len(known) > KNOWN:
                del known[next(iter(known))]

    def _note_restoration(self, event: TrustEvent) -> None:
        since = (self._quarantined or {}).pop(event.instance_id, None)
        if since is not None:
            took = (event.triggered_at - since).total_seconds()
            self._counters.measure(TO_RESTORATION, took)

    def _note_run(self, event: RemediationEvent) -> list[RunId]:
        if event.kind != "status":
            return []
        told: Mapping[str, Any] = event.payload.get("event") or {}
        status, reason = _word(told.get("status")), told.get("failure_reason")
        if status == "running":
            self._counters.count(ATTEMPTS)
        if status not in _ENDED:
            return []
        known = {each.value for each in FailureReason}
        self._counters.count(RUNS, status, reason if reason in known else "none")
        return [event.run_id]

    async def _note_late(self, ended: Sequence[RunId]) -> None:
        try:
            async with self._database.reading() as conn:
                late = await metrics.count_late(conn, ended)
        except FabricError as error:
            log.warning("meter.waits", error=str(error))
            return
        if late:
            self._counters.count(BREACHES, by=late)

    # --- what is looked up ----------------------------------------------------------

    async def _measure(self) -> Reading:
        age_s = self.monotonic() - self._read_at
        kept = self._reading
        if kept is None or age_s >= max(KEEP_S, KEEP_TIMES * kept.took_s):
            kept = self._reading = await self._read()
            self._read_at = self.monotonic()
        return kept

    async def _read(self) -> Reading:
        begun, now, stock = self.monotonic(), self.now(), await self._stock()
        try:
            async with self._database.reading() as conn:
                reading = Reading(
                    fleet=await metrics.read_fleet(conn, now),
                    runs=await metrics.read_runs(conn, now),
                    refreshes=await metrics.read_refreshes(conn, now),
                    holds=await metrics.read_holds(conn, now),
                    breakers=await metrics.read_breakers(conn),
                    lag_s=await self._lag(conn, now),
                    collateral=stock,
                    took_s=self.monotonic() - begun,
                    at=now,
                )
                await self._count_decisions(conn)
        except (FabricError, AskError) as error:
            log.warning("meter.unreadable", error=str(error))
            return Reading(collateral=stock, at=now)
        return reading

    async def _lag(self, conn: Connection, now: datetime) -> dict[str, float]:
        lags: dict[str, float] = {}
        for stream, waiting_since in (
            (Stream.TRUST, metrics.trust_waiting_since),
            (Stream.REMEDIATION, metrics.runs_waiting_since),
        ):
            head = await self._broadcaster.ask(Head(stream), within_s=ASK_S)
            since = await waiting_since(conn, head)
            late_s = 0.0 if since is None else (now - since).total_seconds()
            lags[stream] = max(0.0, late_s)
        return lags

    async def _count_decisions(self, conn: Connection) -> None:
        if self._decision is None:
            return
        while True:
            found = await placement.decisions_after(conn, self._decision, limit=PAGE)
            for number, verb, allowed, blocking in found:
                self._decision = number
                self._counters.count(DECISIONS, verb, "true" if allowed else "false")
                for kind in {kind_of(note) for note in blocking}:
                    self._counters.count(REFUSALS, kind)
            if len(found) < PAGE:
                return


def _kind(event: TrustEvent) -> str:
    told = (event.provenance_ref or "").split(":")
    return told[1] if told[0] == "attestation" and len(told) > 1 else "unknown"


def _word(value: object) -> str:
    return value if isinstance(value, str) else "none"


def _issued_at(event: TrustEvent) -> datetime | None:
    challenge = (event.provenance or {}).get("challenge")
    if not isinstance(challenge, Mapping):
        return None
    try:
        return datetime.fromisoformat(str(challenge.get("issued_at")))
    except ValueError:
        return None
