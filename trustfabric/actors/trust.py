"""The trust registry actor: the one writer of trust in this process.

While a batch is being written, the changes that queue in the mailbox meanwhile are
taken and decided, to be written next. Nobody is answered before the commit. Across
processes the version column decides, not this actor: where another runtime was first,
it is read and decided anew.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, assert_never

from trustfabric.actors.changes import Applied, ApplyChange, Outcome, Round
from trustfabric.actors.counters import BATCH_SIZE, COMMIT, Counters
from trustfabric.actors.known import Known
from trustfabric.db import trust, trust_events
from trustfabric.db.faults import CommitUnknownError, ContentionError
from trustfabric.db.session import Database
from trustfabric.domain.ids import InstanceId
from trustfabric.errors import (
    ConflictError,
    FabricError,
    InvalidError,
    UnavailableError,
)
from trustfabric.supervision import Actor, MailboxSpec, Notice, Overflow, Request

__all__ = ("Applied", "ApplyChange", "OpenInstance", "TrustRegistry")

LOOK_BACK, LOOK_BACK_S = 10, 0.3
"""After a commit whose answer was lost: how often to look whether it was made."""

ATTEMPTS, CONTENDED_S = 3, 0.05
"""How often a change is tried that others are in the way of, and the rest between."""

SMALL = 32
"""Changes that are not worth two batches."""

BATCH = 1000
"""Changes in one transaction at most; the rest waits for the next (postgres.md §2b)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenInstance(Request["TrustRegistry", InstanceId]):
    """Make an instance and its registry row in one commit; answered with its id."""

    insert: trust.InstanceInsert
    actor: str


Message = ApplyChange | OpenInstance


class _InHand(Protocol):
    """A change that somebody waits to be answered about."""

    @property
    def message(self) -> ApplyChange: ...

    def answer(self, value: object) -> None: ...

    def refuse(self, error: BaseException) -> None: ...


_Group = Sequence[_InHand]


@dataclass(slots=True)
class _Own:
    """The change being handled, which is answered by returning."""

    message: ApplyChange
    _outcome: Any = None

    def answer(self, value: object) -> None:
        self._outcome = value

    refuse = answer

    def outcome(self) -> Applied:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert isinstance(self._outcome, Applied)
        return self._outcome


@dataclass(frozen=True, slots=True)
class _GoOn(Notice["TrustRegistry"]):
    """Write what was decided ahead, though nobody asks for more."""


class TrustRegistry(Actor):
    mailbox = MailboxSpec(limit=4 * BATCH, overflow=Overflow.WAIT)

    def __init__(self, database: Database, counters: Counters | None = None) -> None:
        super().__init__()
        self._database = database
        self._counters = counters or Counters()
        self._ahead: _Batch | None = None
        self._known = Known()

    async def handle(self, message: Message | _GoOn) -> Applied | InstanceId | None:
        match message:
            case ApplyChange():
                return await self._apply(message)
            case OpenInstance():
                return await self._open(message)
            case _GoOn():
                self._ahead = await self._write_on(self.take(ApplyChange, BATCH))
                if self._ahead is not None:
                    self.address.tell(_GoOn())
                return None
            case _:
                assert_never(message)

    async def _open(self, message: OpenInstance) -> InstanceId:
        async with self._database.writing() as conn:
            instance_id = await message.insert.write(conn)
            await trust.open_row(conn, instance_id, message.actor, self.now())
        return instance_id

    async def _apply(self, first: ApplyChange) -> Applied:
        """Write what was decided before, then this and what came with it."""
        own = _Own(first)
        group: _Group = [own, *self.take(ApplyChange, BATCH - 1)]
        rest: _Group = []
        if self._ahead is None and len(group) > 2 * SMALL:
            # In two halves: one is decided while the other is being written.
            group, rest = group[: len(group) // 2], group[len(group) // 2 :]
        was_idle = self._ahead is None
        self._ahead = await self._write_on(group)
        if not was_idle:
            await asyncio.sleep(0)  # whoever was answered just now may ask again
        more = self.take(ApplyChange, BATCH - len(rest))
        self._ahead = await self._write_on([*rest, *more])
        if self._ahead is not None:
            self.address.tell(_GoOn())
        return own.outcome()

    async def _write_on(self, group: "_Group") -> "_Batch | None":
        """Write the batch that is decided, if any, and decide on `group` meanwhile."""
        decided, self._ahead = self._ahead, None
        if decided is None:
            return await self._decide(group) if group else None
        if not group:
            await self._write(decided)
            return None
        async with asyncio.TaskGroup() as tasks:
            deciding = tasks.create_task(self._decide(group))
            await self._write(decided)
        return deciding.result()

    async def _decide(self, group: "_Group") -> "_Batch":
        """Decide on the rows as they are; companions have to wait for the writing."""
        if any(one.message.companions for one in group):
            return _Batch(group, None)
        rows = self._known.rows_for(one.message for one in group)
        ids = {one.message.instance_id for one in group} - rows.keys()
        round_ = Round(self.now(), remembered=frozenset(rows))
        try:
            if ids:
                rows |= await self._database.glance(partial(trust.read, ids=ids))
        except FabricError as error:
            round_.outcomes = [error] * len(group)
        else:
            for one in group:
                await round_.take(None, one.message, rows)
        return _Batch(group, round_)

    async def _write(self, batch: "_Batch") -> None:
        """Write a batch, and answer everyone in it."""
        group, round_ = batch.group, batch.round_
        outcomes: list[Outcome | None] = [None] * len(group)
        if round_ is not None:
            outcomes = await self._write_at_once(round_)
        late = [at for at, outcome in enumerate(outcomes) if outcome is None]
        written = await self._write_under_lock([group[at].message for at in late])
        for at, made in zip(late, written, strict=True):
            outcomes[at] = made
        for one, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, FabricError):
                one.refuse(outcome)
            else:
                one.answer(outcome)

    async def _write_at_once(self, round_: "Round") -> list[Outcome | None]:
        """Write with one statement; None: that has to be decided anew, under lock.

        It waits for an earlier change of the same instance, or the row was changed by
        another runtime since; or one change spoils it for all, and is to be found.
        """
        if not round_.moves:
            return round_.outcomes
        save, begun = partial(trust.save, batch=round_.moves), self.monotonic()
        # Whatever becomes of it, these are not the newest rows any more.
        self._known.forget(move.after.instance_id for move in round_.moves)
        try:
            round_.put_off(await self._database.at_once(save))
        except CommitUnknownError as error:
            made = await self._made_after_all(round_.moves)
            if not made:
                return [error] * len(round_.outcomes)
            round_.put_off({move.after.instance_id for move in round_.moves} - made)
        except (ContentionError, ConflictError, InvalidError):
            return [None] * len(round_.outcomes)
        except FabricError as error:
            return [error] * len(round_.outcomes)
        self._made(round_, begun)
        return round_.outcomes

    async def _write_under_lock(self, orders: Sequence[ApplyChange]) -> list[Outcome]:
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
        """Commit together; where one change spoils it for all, half and half again.

        Whoever is in the way of the one that is left may go away: it is tried again.
        """
        spoilt: FabricError
        for attempt in range(1, 1 + (ATTEMPTS if len(orders) == 1 else 1)):
            try:
                return await self._commit(orders)
            except ContentionError as error:
                spoilt = error
                await self.sleep(self.random.uniform(0, CONTENDED_S) * attempt)
            except (ConflictError, InvalidError) as error:
                spoilt = error
                break
            except FabricError as error:
                return [error] * len(orders)
        if len(orders) == 1:
            return [spoilt]
        half = len(orders) // 2
        return [
            *await self._commit_or_part(orders[:half]),
            *await self._commit_or_part(orders[half:]),
        ]

    async def _commit(self, orders: Sequence[ApplyChange]) -> list[Outcome | None]:
        """Decide and write in one transaction; None: its turn is in the next round."""
        round_, begun = Round(self.now()), self.monotonic()
        try:
            async with self._database.writing() as conn:
                rows = await trust.lock(conn, {one.instance_id for one in orders})
                for one in orders:
                    await round_.take(conn, one, rows)
                await round_.write_gathered(conn)
                if round_.moves and await trust.save(conn, round_.moves):
                    raise ContentionError("the registry was written past its lock")
        except CommitUnknownError:
            if not await self._made_after_all(round_.moves):
                raise
        self._made(round_, begun)
        return round_.outcomes

    def _made(self, round_: Round, begun: float) -> None:
        self._known.keep(move.after for move in round_.moves)
        round_.tell()
        self._counters.measure(COMMIT, self.monotonic() - begun)
        self._counters.measure(BATCH_SIZE, len(round_.moves))

    async def _made_after_all(
        self, moves: Sequence[trust.Transition]
    ) -> set[InstanceId]:
        """Return of whom a commit without an answer left a row; nobody: none known of.

        Under the lock that is all or nobody. A statement at once skips rows that others
        changed: each is looked for.
        """
        for _ in range(LOOK_BACK if moves else 0):
            try:
                async with self._database.reading() as conn:
                    return await trust_events.recorded(conn, moves)
            except UnavailableError:
                await self.sleep(LOOK_BACK_S)
        return set()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Changes that are decided but for the writing; without a round, not even that."""

    group: _Group
    round_: Round | None
