"""The trust registry actor: the one writer of trust in this process.

While a transaction is in flight, changes queue in the mailbox; the next one takes
them all. Nobody is answered before the commit. Across processes the row locks and
the version column decide, not this actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

import structlog

from trustfabric.db import trust, trust_events
from trustfabric.db.faults import CommitUnknownError
from trustfabric.db.session import Connection, Database, savepoint
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.trust import Change, Facts, Snapshot, advance
from trustfabric.domain.wishes import Wish, order
from trustfabric.errors import (
    ConflictError,
    FabricError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VersionConflictError,
    VersionRequiredError,
)
from trustfabric.supervision import Actor, MailboxSpec, Overflow, Request

log = structlog.get_logger(__name__)

LOOK_BACK, LOOK_BACK_S = 10, 0.3
"""After a commit whose answer was lost: how often to look whether it was made."""

BATCH = 1000
"""Changes in one transaction at most; the rest waits for the next (postgres.md §2b)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A committed change; `before` and `after` are the same where nothing moved."""

    before: Snapshot
    after: Snapshot
    written: tuple[int | None, ...] = ()
    """What each companion returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyChange(Request["TrustRegistry", Applied]):
    """Change one instance's trust, with whatever must be one commit with it."""

    instance_id: InstanceId
    change: Change | Wish
    owner_id: OwnerId | None = None
    """Narrow to this owner's instances; None: the caller may see all."""
    expected_version: int | None = None
    requires_version: bool = False
    """Refuse when no expected_version is given: people must say what they saw."""
    companions: tuple[trust.Companion, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenInstance(Request["TrustRegistry", InstanceId]):
    """Make an instance and its registry row in one commit; answered with its id."""

    insert: trust.InstanceInsert
    actor: str


Message = ApplyChange | OpenInstance
Outcome = Applied | FabricError


class TrustRegistry(Actor):
    mailbox = MailboxSpec(limit=4 * BATCH, overflow=Overflow.WAIT)

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    async def handle(self, message: Message) -> Applied | InstanceId:
        match message:
            case ApplyChange():
                return await self._apply(message)
            case OpenInstance():
                return await self._open(message)
            case _:
                assert_never(message)

    async def _open(self, message: OpenInstance) -> InstanceId:
        async with self._database.writing() as conn:
            instance_id = await message.insert.write(conn)
            await trust.open_row(conn, instance_id, message.actor, self.now())
        return instance_id

    async def _apply(self, first: ApplyChange) -> Applied:
        queued = self.take(ApplyChange, BATCH - 1)
        outcomes = await self._commit_all([first, *(item.message for item in queued)])
        for item, outcome in zip(queued, outcomes[1:], strict=True):
            if isinstance(outcome, FabricError):
                item.refuse(outcome)
            else:
                item.answer(outcome)
        if isinstance(outcomes[0], FabricError):
            raise outcomes[0]
        return outcomes[0]

    async def _commit_all(self, orders: Sequence[ApplyChange]) -> list[Outcome]:
        """Commit in rounds: what follows a change of the same instance waits for it."""
        outcomes: dict[int, Outcome] = {}
        waiting = list(range(len(orders)))
        while waiting:
            round_ = await self._commit_or_part([orders[at] for at in waiting])
            outcomes.update(
                (at, outcome)
                for at, outcome in zip(waiting, round_, strict=True)
                if outcome is not None
            )
            waiting = [at for at in waiting if at not in outcomes]
        return [outcomes[at] for at in range(len(orders))]

    async def _commit_or_part(
        self, orders: Sequence[ApplyChange]
    ) -> list[Outcome | None]:
        """Commit together; where one change spoils it for all, half and half again."""
        try:
            return await self._commit(orders, self.now())
        except FabricError as error:
            spoilt = isinstance(error, ConflictError | InvalidError)
            if len(orders) == 1 or not spoilt:
                return [error] * len(orders)
        half = len(orders) // 2
        return [
            *await self._commit_or_part(orders[:half]),
            *await self._commit_or_part(orders[half:]),
        ]

    async def _commit(
        self, orders: Sequence[ApplyChange], now: datetime
    ) -> list[Outcome | None]:
        """Decide and write in one transaction; None: its turn is in the next round."""
        round_ = _Round(now)
        try:
            await self._write(orders, round_)
        except CommitUnknownError:
            if not await self._was_committed(round_.moves):
                raise
        for move in round_.moves:
            _tell(move)
        return round_.outcomes

    async def _write(self, orders: Sequence[ApplyChange], round_: "_Round") -> None:
        async with self._database.writing() as conn:
            rows = await trust.lock(conn, {one.instance_id for one in orders})
            for one in orders:
                await round_.take(conn, one, rows)
            moves = round_.moves
            if moves and len(await trust.save(conn, moves)) != len(moves):
                raise ConflictError("the registry was written past its lock")

    async def _was_committed(self, moves: Sequence[trust.Transition]) -> bool:
        """Look for a row that the lost commit would have left: all came, or none.

        UnavailableError where the database stays away: then nobody knows.
        """
        if not moves:
            return False
        for attempt in range(LOOK_BACK):
            try:
                async with self._database.reading() as conn:
                    return await trust_events.is_recorded(conn, moves[0])
            except UnavailableError:
                if attempt == LOOK_BACK - 1:
                    raise
                await self.sleep(LOOK_BACK_S)
        return False


@dataclass(slots=True)
class _Round:
    """The decisions of one transaction; at most one change for each instance."""

    now: datetime
    outcomes: list[Outcome | None] = field(default_factory=list)
    moves: list[trust.Transition] = field(default_factory=list)
    _touched: set[InstanceId] = field(default_factory=set)

    async def take(
        self,
        conn: Connection,
        one: ApplyChange,
        rows: dict[InstanceId, tuple[Snapshot, Facts]],
    ) -> None:
        """Decide one more, unless what was read of its instance is no longer true."""
        if one.instance_id in self._touched:
            self.outcomes.append(None)
            return
        try:
            applied, change = await _decide(conn, one, rows, self.now)
        except FabricError as error:
            self.outcomes.append(error)
            return
        self.outcomes.append(applied)
        moved = applied.after is not applied.before
        if moved:
            self.moves.append(trust.Transition(applied.before, applied.after, change))
        if moved or one.companions:
            self._touched.add(one.instance_id)


def _tell(move: trust.Transition) -> None:
    """Log what changed; trust confirmed once more is only in the history."""
    before, after = move.before, move.after
    is_news = (before.lifecycle, before.attestation_status) != (
        after.lifecycle,
        after.attestation_status,
    )
    if is_news:
        log.info(
            "trust.changed",
            instance_id=after.instance_id,
            signal=move.change.signal,
            lifecycle=after.lifecycle,
            status=after.attestation_status,
            version=after.version,
        )


async def _decide(
    conn: Connection,
    message: ApplyChange,
    rows: dict[InstanceId, tuple[Snapshot, Facts]],
    now: datetime,
) -> tuple[Applied, Change]:
    found = rows.get(message.instance_id)
    if found is None or message.owner_id not in (None, found[0].owner_id):
        raise NotFoundError(f"no instance {message.instance_id}")
    before, facts = found
    _check_version(message, before)
    change = message.change
    if isinstance(change, Wish):
        change = order(before, change)
    after = advance(before, facts, change, now)
    if not message.companions:
        return Applied(before=before, after=after), change
    async with savepoint(conn):
        with trust.storable():
            written = [await each.write(conn, before) for each in message.companions]
    return Applied(before=before, after=after, written=tuple(written)), change


def _check_version(message: ApplyChange, before: Snapshot) -> None:
    expected, current = message.expected_version, before.version
    if expected is None and message.requires_version:
        raise VersionRequiredError(
            "expected_version is required: send the version you decided on",
            expected=None,
            current=current,
        )
    if expected is not None and expected != current:
        raise VersionConflictError(
            f"instance {before.instance_id} is at version {current}, not {expected}",
            expected=expected,
            current=current,
        )
