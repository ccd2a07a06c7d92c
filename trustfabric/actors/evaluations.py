"""The scheduler: what is due by the clock is found in the database and started.

Each tick writes the decays that are due and has the instances challenged whose
evidence runs out. A tick that is lost costs its time, nothing else: the deadlines
are stored, and every reader compares them with the clock itself.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog

from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import attestations, trust
from trustfabric.db.session import Database
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Change, Signal
from trustfabric.errors import ConflictError, FabricError, NotFoundError
from trustfabric.supervision import Actor, Address, AskError, Notice

log = structlog.get_logger(__name__)

ASK_S = 10.0
BATCH = 500
AGAIN_S = 1.0
"""Until the next tick where a batch was full: more is due than it could take."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """When things are due."""

    tick_s: float
    ahead: timedelta
    """How long before its deadline evidence is asked for anew."""
    quiet: timedelta
    """How long a challenged instance is left alone."""
    longest: timedelta | None = None
    """That evidence holds. A deadline beyond it: our clock went back."""


@dataclass(frozen=True, slots=True)
class _Tick(Notice["Scheduler"]):
    pass


class Scheduler(Actor):
    def __init__(
        self,
        database: Database,
        trust_registry: Address[TrustRegistry],
        attestation: Address[Attestation],
        cadence: Cadence,
        runtime_id: str,
    ) -> None:
        super().__init__()
        self._database = database
        self._trust = trust_registry
        self._attestation = attestation
        self._cadence = cadence
        self._runtime_id = runtime_id

    async def on_start(self) -> None:
        self.address.tell(_Tick())

    async def handle(self, message: _Tick) -> None:
        most = 0
        try:
            most = max(await self._decay(), await self._challenge())
        except (FabricError, AskError) as error:
            log.warning("scheduler.tick-failed", error=str(error))
        tick_s = self._cadence.tick_s
        self.after(min(AGAIN_S, tick_s) if most == BATCH else tick_s, message)

    async def _decay(self) -> int:
        """Write the decays that are due; return how many were found."""
        async with self._database.reading() as conn:
            expired = await trust.list_decayed(conn, self.now(), limit=BATCH)
        # All at once: the registry commits them together.
        await asyncio.gather(*map(self._note_decay, expired))
        return len(expired)

    async def _note_decay(self, instance_id: InstanceId) -> None:
        try:
            await self._expire(instance_id)
        except (ConflictError, NotFoundError) as error:
            log.warning(
                "scheduler.not-decayed", instance_id=instance_id, error=str(error)
            )

    async def _expire(self, instance_id: InstanceId) -> None:
        await self._trust.ask(
            ApplyChange(
                instance_id=instance_id,
                change=Change(
                    signal=Signal.EXPIRED,
                    actor="actor:scheduler",
                    reason="freshness deadline passed",
                ),
            ),
            within_s=ASK_S,
        )

    async def _challenge(self) -> int:
        """Have those challenged that need it; return how many were found."""
        async with self._database.reading() as conn:
            due = await attestations.list_due(
                conn,
                self._runtime_id,
                self.now(),
                ahead=self._cadence.ahead,
                quiet=self._cadence.quiet,
                longest=self._cadence.longest,
                limit=BATCH,
            )
        for instance_id, purpose in due:
            self._attestation.tell(Attest(instance_id, purpose))
        return len(due)
