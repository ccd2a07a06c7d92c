"""The Refresher: has certifications refreshed when due, unless distrust forbids it.

Events only wake it. What there is to do is found in the database, decided under the
certification's row lock (`domain/refreshes.step`) and written in one transaction: so
any number of runtimes may do this at once, and a crash anywhere loses nothing. It is
the one door for people's changes to certifications.
"""

from dataclasses import dataclass, replace
from typing import Any, assert_never

import structlog

from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.pace import Pace
from trustfabric.actors.streams import ActorFollower, Broadcaster, Event, Follow, Stream
from trustfabric.db import evaluations, placement, refreshes
from trustfabric.db.session import Connection, Database
from trustfabric.domain.evaluations import (
    Certification,
    CertificationId,
    Edit,
    JobStatus,
    edited,
)
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.placement import decide
from trustfabric.domain.refreshes import (
    Claim,
    End,
    Enqueue,
    Moment,
    RefreshSettings,
    step,
    veto_of,
)
from trustfabric.errors import (
    FabricError,
    NotFoundError,
    PlacementBlockedError,
    UnavailableError,
    VersionConflictError,
)
from trustfabric.supervision import Actor, Address, AskError, Notice, Request

log = structlog.get_logger(__name__)

ASK_S = 10.0
PAGE = 100
"""Certifications seen to between two looks into the mailbox."""

SEARCH = 5000
"""Certifications found by one search at most; the next one goes on from there."""

STEPS = 8
"""At most these follow from each other in one go: conclude, block, enqueue, claim …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditCertification(Request["Refresher", None]):
    """Change what the edit names. VersionConflictError where a version was stated."""

    owner_id: OwnerId | None
    certification_id: CertificationId
    edit: Edit
    expected_version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryCertification(Request["Refresher", None]):
    """Refresh it as soon as its VM runs. PlacementBlockedError with notes."""

    owner_id: OwnerId | None
    certification_id: CertificationId


@dataclass(frozen=True, slots=True)
class _Changed(Notice["Refresher"]):
    servers: frozenset[ServerId]


@dataclass(frozen=True, slots=True)
class _Pass(Notice["Refresher"]):
    """See to the servers that something happened to."""


@dataclass(frozen=True, slots=True)
class _Page(Notice["Refresher"]):
    """Go on with what was found, then with what comes after it."""

    found: tuple[CertificationId, ...]
    servers: frozenset[ServerId] | None
    """Theirs; None: all."""
    goes_on_after: CertificationId | None


@dataclass(frozen=True, slots=True)
class _Tick(Notice["Refresher"]):
    pass


@dataclass(frozen=True, slots=True)
class _Held(Notice["Refresher"]):
    """A hold came or went; it may be about anybody."""


Message = (
    EditCertification | RetryCertification | _Changed | _Pass | _Page | _Tick | _Held
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """When certifications are looked at and refreshed, and by which runtime."""

    runtime_id: str
    tick_s: float
    refresh: RefreshSettings


class Refresher(Actor):
    def __init__(
        self,
        database: Database,
        attestation: Address[Attestation],
        broadcaster: Address[Broadcaster],
        rhythm: Rhythm,
    ) -> None:
        super().__init__()
        self._database = database
        self._attestation = attestation
        self._broadcaster = broadcaster
        self._rhythm = rhythm
        self._changed: set[ServerId] = set()
        self._sweeping = False

    def on_start(self) -> None:
        self._pace = Pace(self.monotonic)
        self.address.tell(_Tick())

    async def handle(self, message: Message) -> None:
        match message:
            case EditCertification():
                await self._edit(message)
            case RetryCertification():
                await self._retry(message)
            case _Changed(servers):
                self._note(servers)
            case _Pass():
                changed, self._changed = frozenset(self._changed), set()
                with self._pace.working():
                    await self._see_to(changed)
            case _Page():
                await self._go_on(message)
            case _Tick():
                self.after(self._rhythm.tick_s, message)
                await self._follow()
                await self._sweep()
            case _Held():
                await self._sweep()
            case _:
                assert_never(message)

    def _note(self, servers: frozenset[ServerId]) -> None:
        if servers and not self._changed:
            self.after(self._pace.rest_s(), _Pass())
        self._changed |= servers

    async def _sweep(self) -> None:
        if not self._sweeping:  # else the last one's work isn't done yet
            await self._see_to(None)

    async def _follow(self) -> None:
        # Repeated, since the Broadcaster forgets its followers when it restarts.
        trust = ActorFollower(Stream.TRUST, self.address, _changed)
        holds = ActorFollower(Stream.HOLDS, self.address, _held)
        try:
            for follower in (trust, holds):
                await self._broadcaster.ask(Follow(follower), within_s=ASK_S)
        except AskError as error:
            log.warning("refresh.not-following", error=str(error))

    # --- what is due --------------------------------------------------------------

    async def _see_to(
        self, servers: frozenset[ServerId] | None, after: int = 0
    ) -> None:
        """Take each certification there may be something to do about one step on."""
        search = refreshes.Search(
            runtime=self._rhythm.runtime_id,
            look_ahead=self._rhythm.refresh.look_ahead,
            servers=servers,
            after=after,
            limit=SEARCH,
        )
        try:
            async with self._database.reading() as conn:
                found = await refreshes.list_candidates(conn, search, self.now())
        except UnavailableError as error:
            self._sweeping = self._sweeping and servers is not None
            log.warning("refresh.waits", error=str(error))
            return
        last = found[-1] if len(found) == SEARCH else None
        self._sweeping = self._sweeping or servers is None
        await self._go_on(_Page(tuple(found), servers, last))

    async def _go_on(self, page: _Page) -> None:
        now, later = page.found[:PAGE], page.found[PAGE:]
        try:
            for certification_id in now:
                # Whoever sweeps leaves be what another runtime has in hand. An event
                # may tell more than that runtime has read, so it waits its turn.
                await self._settled(certification_id, skip=page.servers is None)
        except UnavailableError as error:
            log.warning("refresh.waits", error=str(error))
            later, page = (), replace(page, goes_on_after=None)
        if later:
            self.address.tell(replace(page, found=later))
        elif page.goes_on_after is not None:
            await self._see_to(page.servers, page.goes_on_after)
        elif page.servers is None:
            self._sweeping = False

    async def _settled(self, certification_id: CertificationId, *, skip: bool) -> None:
        """Let one refusal be: the others' turn comes all the same."""
        try:
            challenged = await self._tend(certification_id, skip=skip)
        except UnavailableError:
            raise
        except FabricError as error:
            log.warning(
                "refresh.refused", certification_id=certification_id, error=str(error)
            )
        else:
            self._challenge(challenged)

    async def _tend(
        self, certification_id: CertificationId, *, skip: bool
    ) -> InstanceId | None:
        async with self._database.writing() as conn:
            found = await evaluations.lock(conn, certification_id, skip=skip)
            return None if found is None else await self._settle(conn, found, found)

    async def _settle(
        self, conn: Connection, stored: Certification, current: Certification
    ) -> InstanceId | None:
        """Take every step there is, save once, return whom to challenge.

        `stored` is the locked row as it is, `current` as it is to become.
        """
        at = Moment(self.now(), self._rhythm.refresh, self.random.random())
        runtime, challenged = self._rhythm.runtime_id, None
        veto = await self._veto(conn, current.server_id)
        for _ in range(STEPS):
            case = await refreshes.read_case(conn, current, runtime)
            taken = step(replace(case, veto=veto), at)
            if taken is None:
                break
            current = taken.after
            if taken.action is not None:
                await refreshes.act(conn, current.id, taken.action, runtime, at.now)
                _tell(current, taken.action)
            if isinstance(taken.action, Claim):
                challenged = taken.action.instance_id
        if current != stored:
            await evaluations.save(conn, current, at.now)
        return challenged

    async def _veto(self, conn: Connection, server_id: ServerId) -> str | None:
        try:
            situation = await placement.read_situation(conn, server_id, self.now())
        except NotFoundError:
            return None  # its server was deleted, which the case says as well
        return veto_of(situation, decide(situation, self.now()))

    def _challenge(self, instance_id: InstanceId | None) -> None:
        # Told after the commit. Where this is lost the lease runs out.
        if instance_id is not None:
            self._attestation.tell(Attest(instance_id, "scheduled"))

    # --- people's orders ------------------------------------------------------------

    async def _edit(self, message: EditCertification) -> None:
        now = self.now()
        async with self._database.writing() as conn:
            before = await _locked(conn, message)
            _check_version(before, message.expected_version)
            after = edited(before, message.edit, now)
            if after.next_refresh_at is None:
                await self._unqueue(conn, before)
            elif after.next_refresh_at != before.next_refresh_at:
                await refreshes.move_queued(conn, before.id, after.next_refresh_at, now)
            challenged = await self._settle(conn, before, after)
        self._challenge(challenged)
        log.info("certification.edited", certification_id=before.id)

    async def _unqueue(self, conn: Connection, before: Certification) -> None:
        runtime, now = self._rhythm.runtime_id, self.now()
        case = await refreshes.read_case(conn, before, runtime)
        if case.job is not None and case.job.status is JobStatus.QUEUED:
            end = End(JobStatus.CANCELLED, "its next refresh was cleared")
            await refreshes.act(conn, before.id, end, runtime, now)

    async def _retry(self, message: RetryCertification) -> None:
        runtime, now = self._rhythm.runtime_id, self.now()
        async with self._database.writing() as conn:
            before = await _locked(conn, message)
            await self._pass_gate(conn, before)
            case = await refreshes.read_case(conn, before, runtime)
            if case.job is None:
                await refreshes.act(conn, before.id, Enqueue(now), runtime, now)
            else:
                await refreshes.move_queued(conn, before.id, now, now)
            planned = before.is_unplanned or before.next_refresh_at is not None
            after = replace(before, next_refresh_at=now if planned else None)
            challenged = await self._settle(conn, before, after)
        self._challenge(challenged)
        log.info("certification.retried", certification_id=before.id)

    async def _pass_gate(self, conn: Connection, before: Certification) -> None:
        situation = await placement.read_situation(conn, before.server_id, self.now())
        decision = decide(situation, self.now())
        veto = veto_of(situation, decision)
        if veto is not None:
            raise PlacementBlockedError(
                f"certification {before.id}: {veto}", notes=decision.notes
            )


async def _locked(
    conn: Connection, message: EditCertification | RetryCertification
) -> Certification:
    found = await evaluations.lock(conn, message.certification_id, message.owner_id)
    if found is None:
        raise NotFoundError(f"no evaluation {message.certification_id}")
    return found


def _check_version(before: Certification, expected: int | None) -> None:
    if expected not in (None, before.version):
        raise VersionConflictError(
            f"evaluation {before.id} is at version {before.version}, not {expected}",
            expected=expected,
            current=before.version,
        )


def _tell(certification: Certification, action: object) -> None:
    log.info(
        "refresh.moved",
        action=type(action).__name__.lower(),
        certification_id=certification.id,
        server_id=certification.server_id,
        status=certification.status,
        blocked=certification.blocked_reason,
    )


def _changed(events: tuple[Event, ...] | tuple[Any, ...]) -> _Changed:
    return _Changed(
        frozenset(each.server_id for each in events if isinstance(each, TrustEvent))
    )


def _held(_: object) -> _Held:
    return _Held()
