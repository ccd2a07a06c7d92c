"""The Dispatcher: has a run staged for what is distrusted, and has ready runs run.

Events only wake it. What there is to do is in the database each time, so an event
lost, or a start after a crash, costs a little time and nothing else. It is the one
door for people's orders about runs.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never

import structlog

from trustfabric.actors import orders
from trustfabric.actors.claims import Claims
from trustfabric.actors.holds import Holds
from trustfabric.actors.orders import ASK_S, Desk, settled
from trustfabric.actors.runs import LookAtLease, RunActor, RunTools
from trustfabric.actors.staging import Staging
from trustfabric.actors.streams import ActorFollower, Broadcaster, Event, Follow, Stream
from trustfabric.actors.upkeep import Upkeep
from trustfabric.db import dispatch
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.dispatch import DispatchSettings
from trustfabric.domain.events import HeldEvent, TrustEvent
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.runs import Run, RunOrder, RunStatus
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Tag
from trustfabric.errors import FabricError
from trustfabric.supervision import (
    Actor,
    Address,
    AskError,
    Down,
    DynamicAddress,
    Notice,
    Request,
    Timer,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueRun(Request["Dispatcher", Run]):
    """Stage a run of the playbook that `playbook` means for the instance's owner."""

    owner: OwnerId | None
    """Whose instances may be meant; None: everybody's (role admin)."""
    by: OwnerId
    instance_id: InstanceId
    playbook: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    automation_payload: Mapping[str, Any] | None = None
    assigned_owner_id: OwnerId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideApproval(Request["Dispatcher", Run]):
    """Approve or reject a run that waits for it; a rejection ends it."""

    owner: OwnerId | None
    run_id: RunId
    ruling: Ruling


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRun(Request["Dispatcher", Run]):
    """End a run: at once while it waits, by stopping its program while it runs."""

    owner: OwnerId | None
    run_id: RunId
    by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRun(Request["Dispatcher", Run]):
    """Stage a new run like one that has ended; the playbook is read anew."""

    owner: OwnerId | None
    run_id: RunId
    by: OwnerId


@dataclass(frozen=True, slots=True)
class TrustMoved(Notice["Dispatcher"]):
    """Something happened to trust that may be work."""

    mended: tuple[InstanceId, ...] = ()
    """Untrusted before, and trusted now."""


@dataclass(frozen=True, slots=True)
class _RunGone(Notice["Dispatcher"]):
    run_id: RunId


@dataclass(frozen=True, slots=True)
class _Pass(Notice["Dispatcher"]):
    pass


@dataclass(frozen=True, slots=True)
class _Tick(Notice["Dispatcher"]):
    pass


@dataclass(frozen=True, slots=True)
class _Nothing(Notice["Dispatcher"]):
    pass


Message = (
    EnqueueRun
    | DecideApproval
    | CancelRun
    | RetryRun
    | TrustMoved
    | _RunGone
    | _Pass
    | _Tick
    | _Nothing
)


class Dispatcher(Actor):
    def __init__(
        self,
        desk: Desk,
        tools: RunTools,
        broadcaster: Address[Broadcaster],
        holds: Address[Holds],
        running: DynamicAddress[RunActor],
        settings: DispatchSettings,
    ) -> None:
        super().__init__()
        self._desk = desk
        self._tools = tools
        self._broadcaster = broadcaster
        self._running = running
        self._settings = settings
        self._pass_due = False
        self._mended: set[InstanceId] = set()
        self._retry_timer: Timer | None = None
        self._tick_timer: Timer | None = None
        self._staging = Staging(desk, holds, settings)
        self._claims = Claims(desk, settings, tools.lease_s, self._start_actor)
        self._upkeep = Upkeep(desk, tools, settings)

    def on_start(self) -> None:
        for key, address in self._running.children().items():
            self._watch(_run_of(key), address)
        self.after(0, _Tick())

    async def handle(self, message: Message) -> Run | None:
        match message:
            case EnqueueRun() | RetryRun() | DecideApproval() | CancelRun():
                return await self._carry_out(message)
            case TrustMoved(mended):
                self._mended.update(mended)
                self._soon()
            case _RunGone():
                self._soon()
            case _Nothing():
                pass
            case _Pass():
                self._pass_due = False
                await self._guarded(self._recover, self._spare)
                await self._guarded(self._stage, self._claim)
            case _Tick():
                await self._guarded(self._follow, self._recover, self._tend)
                await self._guarded(self._stage, self._claim)
                self._tick_later(message)
            case _:
                assert_never(message)
        return None

    # --- people's orders ----------------------------------------------------------

    async def _carry_out(
        self, message: EnqueueRun | RetryRun | DecideApproval | CancelRun
    ) -> Run:
        now = self.now()
        match message:
            case EnqueueRun():
                run = await orders.enqueue_run(
                    self._desk, message.owner, _order(message), message.playbook, now
                )
            case RetryRun(owner=owner, run_id=run_id, by=by):
                run = await orders.retry_run(self._desk, owner, run_id, by, now)
            case DecideApproval(owner=owner, run_id=run_id, ruling=ruling):
                run = await orders.decide_approval(
                    self._desk,
                    owner,
                    run_id,
                    ruling,
                    now,
                    requester_may_approve=self._settings.requester_may_approve,
                )
            case CancelRun(owner=owner, run_id=run_id, by=by, reason=reason):
                run = await orders.cancel_run(
                    self._desk, owner, run_id, by, reason, now
                )
                child = self._running.child(_key(run_id))
                if child is not None:
                    child.tell(LookAtLease())
            case _:
                assert_never(message)
        self._soon()
        return run

    # --- what wakes it --------------------------------------------------------------

    async def _follow(self) -> None:
        # Repeated, since the Broadcaster forgets its followers when it restarts.
        for stream in (Stream.TRUST, Stream.HOLDS):
            follower = ActorFollower(stream, self.address, wake_for)
            await self._broadcaster.ask(Follow(follower), within_s=ASK_S)

    def _tick_later(self, tick: _Tick) -> None:
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self._tick_timer = self.after(self._settings.tick_s, tick)

    def _soon(self) -> None:
        if not self._pass_due:
            self._pass_due = True
            self.after(0, _Pass())

    def _watch(self, run_id: RunId, address: Address[RunActor]) -> None:
        def gone(_: Down) -> Notice[Dispatcher]:
            return _RunGone(run_id)

        self.watch(address, gone)

    async def _guarded(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """Take each step; what can't be done now is found again by the next pass."""
        for step in steps:
            try:
                await step()
            except (FabricError, AskError) as error:
                log.warning("dispatch.waits", step=step.__name__, error=str(error))

    # --- staging and giving out ---------------------------------------------------

    async def _stage(self) -> None:
        if await self._staging.stage(self.now()):
            self._soon()

    async def _claim(self) -> None:
        retry_at = await self._claims.claim(self.now())
        if retry_at is not None:
            self._pass_at(retry_at)

    def _pass_at(self, when: datetime) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        delay_s = max(0.0, (when - self.now()).total_seconds())
        if delay_s < self._settings.tick_s:
            self._retry_timer = self.after(delay_s, TrustMoved())

    async def _start_actor(self, run_id: RunId, epoch: int) -> None:
        address = await self._running.start_child(
            _key(run_id), lambda: RunActor(run_id, epoch, self._tools)
        )
        self._watch(run_id, address)

    # --- looking after ------------------------------------------------------

    async def _recover(self) -> None:
        """End or retry, as its playbook says, every run whose actor or runtime died.

        The other way round, an actor whose run was ended from outside is told to look.
        """
        now, runtime_id = self.now(), self._settings.runtime_id
        async with self._desk.database.reading() as conn:
            leases = await dispatch.list_leases(conn, runtime_id, now)
        for lease in leases:
            orphaned = lease.is_mine and self._running.child(_key(lease.run_id)) is None
            if orphaned or lease.is_over:
                await settled(self._take_up(lease, now, orphaned=orphaned))
        known = {_key(lease.run_id) for lease in leases}
        for key in self._running.children().keys() - known:
            child = self._running.child(key)
            if child is not None:
                child.tell(LookAtLease())

    async def _take_up(
        self, lease: dispatch.Lease, now: datetime, *, orphaned: bool
    ) -> None:
        run = await self._desk.read(None, lease.run_id)
        if run.status is not RunStatus.RUNNING:
            return
        if orphaned and not lease.is_over and not await self._upkeep.has_begun(run):
            await self._start_actor(run.id, run.lease_epoch)
            return
        jitter = self.random.random()
        await self._upkeep.end_lost(run, now, mine=orphaned, jitter=jitter)

    async def _spare(self) -> None:
        """Call off what waits for instances that were mended, as events told."""
        mended, self._mended = self._mended, set()
        if mended:
            await self._call_off_mended(mended)

    async def _call_off_mended(self, among: Collection[InstanceId] | None) -> None:
        for run in await self._upkeep.mended(among):
            why = "the evidence was found good meanwhile"
            await settled(self._upkeep.spare(run, why, self.now()))

    async def _tend(self) -> None:
        """See to what only the clock can tell, and to what events did not."""
        now = self.now()
        await self._call_off_mended(None)
        for run in await self._upkeep.forsaken():
            await settled(self._upkeep.spare(run, "its VM is gone", now))
        for run in await self._upkeep.overdue(now):
            await settled(self._upkeep.call_off(run, now))
        await self._upkeep.tell_breaches(now)
        await self._upkeep.ask_for_evidence(now)


def wake_for(events: tuple[Event, ...]) -> TrustMoved | _Nothing:
    """Return what the Dispatcher is told of events: that there may be work, or not."""
    mended = tuple(
        event.instance_id
        for event in events
        if isinstance(event, TrustEvent)
        and event.previous_status is AttestationStatus.UNTRUSTED
        and event.status is AttestationStatus.TRUSTED
    )
    is_work = bool(mended) or any(map(_is_work, events))
    return TrustMoved(mended) if is_work else _Nothing()


def _is_work(event: Event) -> bool:
    if isinstance(event, HeldEvent):
        return event.event.kind.lets_go
    return isinstance(event, TrustEvent) and (
        event.lifecycle is Lifecycle.QUARANTINED
        or event.remediation_state is Tag.AWAITING_EXECUTOR
    )


def _order(message: EnqueueRun) -> RunOrder:
    return RunOrder(
        instance_id=message.instance_id,
        requested_by=f"user:{message.by}",
        metadata=message.metadata,
        automation_payload=message.automation_payload,
        assigned_owner_id=message.assigned_owner_id,
    )


def _key(run_id: RunId) -> str:
    return f"run:{run_id}"


def _run_of(key: str) -> RunId:
    return RunId(int(key.removeprefix("run:")))
