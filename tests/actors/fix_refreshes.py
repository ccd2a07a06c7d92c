"""The Refresher on a real database and real streams; tests answer its challenges."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tests.fix_fabric import ASK_S, RUNTIME, Fabric, add_server, count, until
from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.refreshes import (
    EditCertification,
    Refresher,
    RetryCertification,
    Rhythm,
)
from trustfabric.db import attestations, evaluations
from trustfabric.db.session import Database
from trustfabric.domain.evaluations import Certification, CertificationId, Edit
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.refreshes import RefreshSettings
from trustfabric.domain.trust import AttestationStatus, Change, Signal
from trustfabric.errors import FabricError
from trustfabric.supervision import (
    Actor,
    Address,
    AskError,
    ChildSpec,
    ManualClock,
    Runtime,
    SupervisorSpec,
)

CADENCE = timedelta(minutes=30)
TICK_S = 60.0
SETTINGS = RefreshSettings(
    cadence=CADENCE, look_ahead=timedelta(minutes=60), lease=timedelta(seconds=90)
)
SIGNALS = {
    AttestationStatus.TRUSTED: Signal.TRUSTED_VERDICT,
    AttestationStatus.UNTRUSTED: Signal.UNTRUSTED_VERDICT,
    AttestationStatus.UNKNOWN: Signal.UNKNOWN_VERDICT,
}


class Challenger(Actor):
    """Stands where attestation does; keeps what it was asked for."""

    def __init__(self, asked: list[InstanceId]) -> None:
        super().__init__()
        self._asked = asked

    def handle(self, message: Attest) -> None:
        self._asked.append(message.instance_id)


@dataclass(kw_only=True)
class Refreshing(Fabric):
    """The tree with a Refresher; `asked` is whom it had challenged."""

    refresher: Address[Refresher] = field(default_factory=lambda: Address("refreshes"))
    attestation: Address[Attestation] = field(
        default_factory=lambda: Address("attestation")
    )
    asked: list[InstanceId] = field(default_factory=list)

    def spec(self) -> SupervisorSpec:
        below = super().spec()
        challenger: Callable[[], Any] = lambda: Challenger(self.asked)  # noqa: E731
        rhythm = Rhythm(runtime_id=self.name, tick_s=TICK_S, refresh=SETTINGS)
        return SupervisorSpec(
            name=below.name,
            max_restarts=100,
            children=(
                *below.children,
                ChildSpec(address=self.attestation, start=challenger),
                ChildSpec(
                    address=self.refresher,
                    start=lambda: Refresher(
                        self.database, self.attestation, self.broadcaster, rhythm
                    ),
                ),
            ),
        )

    async def tick(self, seconds: float = TICK_S) -> None:
        """Let time go by, and all be done that comes of it."""
        await self.runtime.quiet()  # or who is being asked would seem to be late
        self.clock.advance(seconds)
        await self.settled()

    async def settled(self) -> None:
        async def look() -> bool | None:
            await self.runtime.quiet()
            return self.refresher.cell.current is None or None

        await until(look, "the refresher to be done")

    async def machine(self, *, owner_runtime: str | None = None) -> InstanceId:
        """Add a server whose VM runs and is trusted, on evidence that is not kept."""
        server = await add_server(self.database)
        instance = await self.instance_of(server.id)
        async with self.database.writing() as conn:
            await conn.execute(
                """
                UPDATE runtime_vm_instances
                   SET power_state = 'running', desired_state = 'running',
                       runtime_owner = %s
                 WHERE id = %s
                """,
                [owner_runtime or self.name, instance],
            )
        await self.change(instance, Signal.TRUSTED_VERDICT)
        return instance

    async def certification(self, instance: InstanceId) -> Certification:
        async with self.database.reading() as conn:
            cursor = await conn.execute(
                """
                SELECT c.id FROM evaluation_certifications c
                  JOIN runtime_vm_instances i USING (server_id) WHERE i.id = %s
                """,
                [instance],
            )
            row = await cursor.fetchone()
            assert row is not None
            found = await evaluations.get_standing(conn, None, CertificationId(row[0]))
        assert found is not None
        return found.certification

    async def until_certification(
        self, instance: InstanceId, wanted: Callable[[Certification], object]
    ) -> Certification:
        async def look() -> Certification | None:
            row = await self.certification(instance)
            return row if wanted(row) else None

        return await until(look, "the certification")

    async def jobs(self, status: str) -> int:
        return await count(
            self.database,
            "SELECT count(*) FROM evaluation_refresh_jobs WHERE status = %s",
            status,
        )

    async def until_jobs(self, status: str, number: int) -> None:
        async def look() -> bool | None:
            return await self.jobs(status) == number or None

        await until(look, f"{number} jobs to be {status}")

    async def until_asked(self, number: int) -> None:
        async def look() -> bool | None:
            return len(self.asked) >= number or None

        await until(look, f"{number} challenges")

    async def answer(
        self, instance: InstanceId, status: AttestationStatus, **parts: Any
    ) -> None:
        """Issue a challenge and record its verdict, as attestation does."""
        now = self.clock.now()
        digest = hashlib.sha256(secrets.token_bytes(32)).digest()
        async with self.database.writing() as conn:
            issued = await attestations.issue_challenge(
                conn,
                attestations.NewChallenge(
                    instance_id=instance,
                    kind="tpm",
                    purpose="scheduled",
                    boot_id=None,
                    nonce_digest=digest,
                    issued_at=now,
                    expires_at=now + timedelta(seconds=90),
                ),
            )
        deadline = now + timedelta(seconds=300)
        trusted = status is AttestationStatus.TRUSTED
        verdict = attestations.RecordVerdict(
            challenge=issued,
            kind="tpm",
            status=status,
            code="ok" if trusted else "measurement",
            evidence=b"quote",
            claims={},
            signer={},
            nonce_digest=digest,
            deadline=deadline if trusted else None,
            notes=["pcrs: as expected"],
            remedies=[],
            now=now,
        )
        change = Change(
            signal=SIGNALS[status],
            actor="test",
            reason=str(status),
            deadline=deadline if trusted else None,
            attestation_id=issued.attestation_id,
            challenge_issued_at=now,
            **parts,
        )
        await self.apply(instance, change, companions=(verdict,))

    async def edit(self, instance: InstanceId, **values: Any) -> None:
        version = values.pop("expected_version", None)
        await self.refresher.ask(
            EditCertification(
                owner_id=None,
                certification_id=(await self.certification(instance)).id,
                edit=Edit(values=values),
                expected_version=version,
            ),
            within_s=ASK_S,
        )

    async def retry(self, instance: InstanceId, owner: int | None = None) -> None:
        await self.refresher.ask(
            RetryCertification(
                owner_id=None if owner is None else OwnerId(owner),
                certification_id=(await self.certification(instance)).id,
            ),
            within_s=ASK_S,
        )


@asynccontextmanager
async def refreshing_on(
    database: Database, url: str, name: str = RUNTIME
) -> AsyncIterator[Refreshing]:
    clock = ManualClock()
    runtime = Runtime(clock=clock, answers=(FabricError, AskError))
    started = Refreshing(
        runtime=runtime, clock=clock, database=database, database_url=url, name=name
    )
    await runtime.start(started.spec())
    try:
        yield started
    finally:
        await runtime.stop()
