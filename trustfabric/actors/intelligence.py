"""The Scorer: keeps every server's scores as its trust, hardware and papers are now.

It listens to the database itself and scores whose inputs changed, all that gathered
meanwhile in one go: when it has heard something, it listens again after a pass. What
changed while nobody listened is made up for by scoring everybody once somebody listens
again; what time alone changes has its own wake-up.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import assert_never

import structlog

from trustfabric.actors.pace import Pace
from trustfabric.db import intelligence
from trustfabric.db.intelligence import Changes, Heard
from trustfabric.db.session import Database
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.intelligence import Inputs, changes_at, score
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.supervision import Actor, Notice, Timer
from trustfabric.supervision.exits import Exit

log = structlog.get_logger(__name__)

BATCH = 200
SILENCE_S = 10.0
"""After so long without a word the connection is tried."""

RECONNECT_S = (0.05, 5.0)
AGAIN_S = 1.0
"""Until what could not be written is tried once more."""


@dataclass(frozen=True, slots=True)
class _Connect(Notice["Scorer"]):
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class _Heard(Notice["Scorer"]):
    heard: Heard


@dataclass(frozen=True, slots=True)
class _Lost(Notice["Scorer"]):
    error: BaseException


@dataclass(frozen=True, slots=True)
class _Sweep(Notice["Scorer"]):
    """Score the servers from beyond this id."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class _Score(Notice["Scorer"]):
    """Score those that are marked."""


@dataclass(frozen=True, slots=True)
class _Due(Notice["Scorer"]):
    """Time has changed some scores."""


Message = _Connect | _Heard | _Lost | _Sweep | _Score | _Due


class Scorer(Actor):
    def __init__(
        self,
        database: Database,
        open_changes: Callable[[], Awaitable[Changes]],
        window: timedelta,
    ) -> None:
        super().__init__()
        self._database = database
        self._open_changes = open_changes
        self._window = window
        self._changes: Changes | None = None
        self._hearing: asyncio.Task[Heard] | None = None
        self._is_listening = False
        """Until what was heard, or the loss, has been looked at."""
        self._marked: set[ServerId] = set()
        self._told: set[InstanceId] = set()
        """Whose servers are to be marked."""
        self._later = _Agenda()
        self._timer: Timer | None = None

    def on_start(self) -> None:
        self._pace = Pace(self.monotonic)
        self.address.tell(_Connect())

    def on_death(self, exit_: Exit) -> None:
        super().on_death(exit_)
        if self._changes is not None and (
            self._hearing is None or self._hearing.done()
        ):
            self._changes.drop()  # otherwise it goes with the wait

    async def handle(self, message: Message) -> None:
        match message:
            case _Connect(attempt):
                await self._connect(attempt)
            case _Heard(heard):
                self._hear(heard)
            case _Lost(error):
                await self._reconnect(error)
            case _Sweep(after):
                await self._sweep(after)
            case _Score():
                await self._score()
            case _Due():
                self._mark(self._later.due(self.now()))
                self._wake_when_due()
            case _:
                assert_never(message)

    # --- hearing ------------------------------------------------------------------

    async def _connect(self, attempt: int) -> None:
        try:
            self._changes = await self._open_changes()
        except UnavailableError as error:
            log.warning("scorer.unreachable", error=str(error), attempt=attempt)
            low, high = RECONNECT_S
            self.after(min(high, low * 2**attempt), _Connect(min(attempt + 1, 16)))
            return
        # Listen first, then look: what is committed in between is heard.
        self._listen(self._changes)
        self.address.tell(_Sweep())

    def _listen(self, changes: Changes) -> None:
        self._is_listening = True
        self._hearing = self.run(changes.wait(SILENCE_S), _heard)
        changes.drop_with(self._hearing)

    def _listen_on(self) -> None:
        """Go on listening, unless that goes on, or the connection is being made."""
        if self._changes is not None and not self._is_listening:
            self._listen(self._changes)

    def _hear(self, heard: Heard) -> None:
        self._is_listening = False
        if heard.servers or heard.instances:
            self._mark(heard.servers, heard.instances)
        else:
            self._listen_on()

    async def _reconnect(self, error: BaseException) -> None:
        if not isinstance(error, FabricError):
            raise error
        log.warning("scorer.lost", error=str(error))
        self._is_listening = False
        if self._changes is not None:
            await self._changes.close()
            self._changes = None
        self.after(RECONNECT_S[0], _Connect())

    # --- scoring ------------------------------------------------------------------

    async def _sweep(self, after: int) -> None:
        try:
            async with self._database.reading() as conn:
                found = await intelligence.page_of_servers(
                    conn, after=after, limit=BATCH
                )
        except FabricError as error:
            log.warning("scorer.waits", error=str(error))
            self.after(AGAIN_S, _Sweep(after))
            return
        self._mark(found)
        if len(found) == BATCH:
            self.address.tell(_Sweep(found[-1]))

    def _mark(
        self, servers: Iterable[ServerId], instances: Iterable[InstanceId] = ()
    ) -> None:
        was_idle = not self._marked and not self._told
        self._marked.update(servers)
        self._told.update(instances)
        if was_idle and (self._marked or self._told):
            self.after(self._pace.rest_s(), _Score())

    async def _score(self) -> None:
        try:
            with self._pace.working():
                await self._find_told()
                batch = sorted(islice(self._marked, BATCH))
                await self._write(batch)
        except FabricError as error:
            log.warning("scorer.waits", error=str(error))
            self.after(AGAIN_S, _Score())
            return
        self._marked.difference_update(batch)
        if self._marked:
            self.after(self._pace.rest_s(), _Score())
        self._wake_when_due()
        self._listen_on()

    async def _find_told(self) -> None:
        if self._told:
            find = partial(intelligence.servers_of, instances=self._told)
            self._marked.update(await self._database.glance(find))
            self._told.clear()

    async def _write(self, batch: list[ServerId]) -> None:
        async with self._database.writing() as conn:
            found = await intelligence.read_inputs(conn, batch)
            now = self.now()
            scored = [(one, score(one, now, self._window)) for one in found]
            changed = await intelligence.save_scores(conn, scored, now)
        for one in found:
            self._later.put(one.server_id, self._changes_at(one, now))
        if changed:
            log.debug("scores.changed", servers=len(batch), rows=changed)

    def _changes_at(self, inputs: Inputs, now: datetime) -> datetime | None:
        return None if inputs.gone else changes_at(inputs, now, self._window)

    def _wake_when_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        earliest = self._later.earliest()
        if earliest is not None:
            delay_s = max(0.0, (earliest - self.now()).total_seconds())
            self._timer = self.after(delay_s, _Due())


class _Agenda:
    """When each server's scores change by time alone."""

    def __init__(self) -> None:
        self._when: dict[ServerId, datetime] = {}
        self._heap: list[tuple[datetime, ServerId]] = []

    def put(self, server_id: ServerId, when: datetime | None) -> None:
        """Enter a server's next moment, instead of the one before."""
        if when is None:
            self._when.pop(server_id, None)
        elif self._when.get(server_id) != when:
            self._when[server_id] = when
            heapq.heappush(self._heap, (when, server_id))

    def earliest(self) -> datetime | None:
        """Return the next moment of all."""
        while self._heap and self._is_old(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: datetime) -> list[ServerId]:
        """Take out and return the servers whose moment has come."""
        found = []
        while (earliest := self.earliest()) is not None and earliest <= now:
            _, server_id = heapq.heappop(self._heap)
            del self._when[server_id]
            found.append(server_id)
        return found

    def _is_old(self, entry: tuple[datetime, ServerId]) -> bool:
        when, server_id = entry
        return self._when.get(server_id) != when


def _heard(result: Heard | BaseException) -> _Heard | _Lost:
    return _Lost(result) if isinstance(result, BaseException) else _Heard(result)
