"""The Ledger: gathers what this runtime's runs write under their leases.

While a transaction is in flight, entries queue in the mailbox; the next one takes them
all. Nobody is answered before the commit. One that can't be stored is refused alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trustfabric.db import ledger
from trustfabric.db.faults import ContentionError
from trustfabric.db.ledger import Entered, Entry
from trustfabric.db.session import Database
from trustfabric.domain.ids import RunId
from trustfabric.errors import FabricError, InvalidError
from trustfabric.supervision import Actor, MailboxSpec, Overflow, Request

BATCH = 200
"""Entries in one transaction at most."""
LINES = 5_000
"""Lines after which a transaction takes no more entries."""

TRIES, CONTENDED_S = 4, 0.02
"""How often a run is reached for that somebody else has locked, and the first rest."""

Outcome = Entered | FabricError


@dataclass(frozen=True, slots=True)
class Enter(Request["Ledger", Entered]):
    """Make an entry; UnavailableError: it was made or not, ask again as unsure."""

    entry: Entry


class Ledger(Actor):
    mailbox = MailboxSpec(limit=4 * BATCH, overflow=Overflow.WAIT)

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    async def handle(self, message: Enter) -> Entered:
        others = self.take(Enter, BATCH - 1)
        entries = [message.entry, *(other.message.entry for other in others)]
        own, *outcomes = await self._make(entries)
        for other, outcome in zip(others, outcomes, strict=True):
            if isinstance(outcome, FabricError):
                other.refuse(outcome)
            else:
                other.answer(outcome)
        if isinstance(own, FabricError):
            raise own
        return own

    async def _make(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Make entries in rounds: one that follows another of its run waits for it."""
        outcomes: dict[int, Outcome] = {}
        waiting = dict(enumerate(entries))
        contended: dict[RunId, int] = {}
        while waiting:
            chosen = _choose(waiting)
            made = await self._write_or_part([waiting[at] for at in chosen.values()])
            for run_id, at in chosen.items():
                if run_id in made:
                    outcomes[at] = made[run_id]
                    del waiting[at]
            missed = chosen.keys() - made.keys()
            for run_id in missed:
                contended[run_id] = tries = contended.get(run_id, 0) + 1
                if tries == TRIES:
                    at = chosen[run_id]
                    outcomes[at] = ContentionError(f"run {run_id} is being changed")
                    del waiting[at]
            if missed and waiting:
                await self.sleep(self.random.uniform(0.5, 1) * CONTENDED_S)
        return [outcomes[at] for at in range(len(entries))]

    async def _write_or_part(self, entries: Sequence[Entry]) -> dict[RunId, Outcome]:
        """Write together; where one can't be stored, half and half again."""
        try:
            async with self._database.writing() as conn:
                return dict(await ledger.enter(conn, entries))
        except InvalidError as error:
            if len(entries) == 1:
                return {entries[0].run_id: error}
        except FabricError as error:
            return {one.run_id: error for one in entries}
        half = len(entries) // 2
        first = await self._write_or_part(entries[:half])
        return first | await self._write_or_part(entries[half:])


def _choose(waiting: dict[int, Entry]) -> dict[RunId, int]:
    """Return the first entry of each run, up to the bound on lines."""
    chosen: dict[RunId, int] = {}
    lines = 0
    for at, entry in waiting.items():
        if entry.run_id not in chosen:
            chosen[entry.run_id] = at
            lines += len(entry.lines)
        if lines >= LINES:
            break
    return chosen
