"""Attestation: challenges instances, has their evidence judged, tells trust.

One appraisal per instance at a time. A challenge is consumed in the transaction
that records its verdict; silence is `unknown`, never a failure and never trust.
Whatever is lost here on a crash is found again by the scheduler, which asks the
database who lacks evidence.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog

from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import attestations, memory, vms
from trustfabric.db.session import Database
from trustfabric.domain.attestation.appraisal import Expected, unreachable, verify
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.memory import Memory, Patience, fresh_clock
from trustfabric.domain.attestation.model import Appraisal, Challenge
from trustfabric.domain.attestation.policy import AppraisalPolicy
from trustfabric.domain.attestation.provenance import Exchange, digest, provenance
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import AttestationStatus, Change, Lifecycle, Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import ConflictError, FabricError, UnavailableError
from trustfabric.supervision import Actor, Address, AskError, Notice, Request

log = structlog.get_logger(__name__)

ASK_S = 10.0
CHALLENGE_TTL = timedelta(seconds=90)
LOST = 500
"""Asked again at a start; what is beyond it the scheduler finds."""

RETRY = timedelta(seconds=30)
"""After the first challenge that nothing answered; longer after each further one."""

AT_ONCE = 32
"""Appraisals in flight; the rest waits here, one entry per instance."""

_SIGNALS: Mapping[AttestationStatus, Signal] = {
    AttestationStatus.TRUSTED: Signal.TRUSTED_VERDICT,
    AttestationStatus.UNTRUSTED: Signal.UNTRUSTED_VERDICT,
    AttestationStatus.UNKNOWN: Signal.UNKNOWN_VERDICT,
}


class EvidenceSource(Protocol):
    """Where an instance's evidence comes from."""

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        """Answer a challenge. UnavailableError where nothing answers."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How evidence is asked for and judged."""

    policy: AppraisalPolicy
    anchors: Anchors
    max_age: timedelta
    timeout_s: float
    runtime_id: str
    """Whose instances are asked again when this actor starts."""
    attempts: int
    """Re-attestations after a run that may come to nothing before it is given up."""


@dataclass(frozen=True, slots=True)
class Attest(Notice["Attestation"]):
    """Challenge an instance now."""

    instance_id: InstanceId
    purpose: str
    """`boot`, `scheduled`, `manual`, `post-run` or `release`."""


@dataclass(frozen=True, slots=True)
class InFlight(Request["Attestation", frozenset[InstanceId]]):
    """Which instances are being appraised, or wait for it."""


@dataclass(frozen=True, slots=True)
class _Done(Notice["Attestation"]):
    instance_id: InstanceId
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class _Evidence:
    challenge: Challenge
    issued: attestations.IssuedChallenge
    raw: bytes | None
    appraisal: Appraisal
    memory: Memory


class Attestation(Actor):
    def __init__(
        self,
        database: Database,
        trust: Address[TrustRegistry],
        sources: Mapping[str, EvidenceSource],
        settings: Settings,
        executor: Executor,
        entropy: Callable[[int], bytes],
    ) -> None:
        super().__init__()
        self._database = database
        self._trust = trust
        self._sources = sources
        self._settings = settings
        self._executor = executor
        self._entropy = entropy
        self._in_flight: set[InstanceId] = set()
        self._waiting: dict[InstanceId, str] = {}

    async def on_start(self) -> None:
        """Ask again what a fallen incarnation had asked, or had been told to ask."""
        async with self._database.reading() as conn:
            lost = await attestations.list_unanswered(
                conn, self._settings.runtime_id, self.now(), limit=LOST
            )
            lost += await attestations.list_due(
                conn,
                self._settings.runtime_id,
                self.now(),
                ahead=timedelta(0),
                quiet=timedelta(0),
                limit=LOST,
            )
        for instance_id, purpose in lost:
            self.address.tell(Attest(instance_id, purpose))

    async def handle(
        self, message: Attest | InFlight | _Done
    ) -> frozenset[InstanceId] | None:
        match message:
            case Attest(instance_id, purpose):
                # The newest reason wins; a challenge in flight is not repeated
                # beside itself but after itself: the boot may have changed.
                self._waiting[instance_id] = purpose
            case InFlight():
                return frozenset({*self._in_flight, *self._waiting})
            case _Done(instance_id, error):
                self._in_flight.discard(instance_id)
                if error is not None:
                    self._failed(instance_id, error)
        self._start_waiting()
        return None

    def _start_waiting(self) -> None:
        for instance_id in list(self._waiting):
            if len(self._in_flight) >= AT_ONCE:
                return
            if instance_id not in self._in_flight:
                purpose = self._waiting.pop(instance_id)
                self._in_flight.add(instance_id)
                _ = self.run(
                    self._attest(instance_id, purpose), partial(_done, instance_id)
                )

    def _failed(self, instance_id: InstanceId, error: BaseException) -> None:
        if not isinstance(error, FabricError | AskError):
            raise error
        # Its challenge stays unanswered; the scheduler finds who lacks evidence.
        log.warning("attestation.failed", instance_id=instance_id, error=str(error))

    async def _attest(self, instance_id: InstanceId, purpose: str) -> None:
        async with self._database.reading() as conn:
            instance = await vms.get_instance(conn, None, instance_id)
            keys = await attestations.list_keys(conn, instance_id)
            known = await memory.get_memory(conn, instance_id)
        if instance is None or instance.terminated_at is not None:
            return
        if instance.power_state is not PowerState.RUNNING and purpose != "post-run":
            return
        challenge, issued = await self._issue(instance, purpose)
        raw = await self._collect(instance, challenge)
        appraisal = await self._judge(challenge, raw, keys, known)
        evidence = _Evidence(challenge, issued, raw, appraisal, known)
        if appraisal.accepted and known.saw_reboot(appraisal, challenge.boot_id):
            await self._note_reboot(instance, purpose, appraisal)
        else:
            await self._record(instance, purpose, evidence)

    async def _note_reboot(
        self, instance: vms.Instance, purpose: str, appraisal: Appraisal
    ) -> None:
        """Begin the new boot that only its TPM told of: nobody attested it yet."""
        boot_id = UUID(bytes=self._entropy(16), version=4)
        change = Change(
            signal=Signal.BOOTED, actor="actor:attestation", reason="TPM was reset"
        )
        companions = (
            memory.NoteReboot(was=instance.boot_id, boot_id=boot_id, now=self.now()),
            memory.KeepClock(clock=fresh_clock(appraisal), boot_id=boot_id),
        )
        with suppress(ConflictError):  # it booted once more: that boot asks for itself
            await self._trust.ask(
                ApplyChange(
                    instance_id=instance.id, change=change, companions=companions
                ),
                within_s=ASK_S,
            )
        again = purpose if purpose == "post-run" else "boot"
        self.address.tell(Attest(instance.id, again))

    async def _judge(
        self,
        challenge: Challenge,
        raw: bytes | None,
        keys: Sequence[EnrolledKey],
        known: Memory,
    ) -> Appraisal:
        now, policy = self.now(), self._settings.policy
        if raw is None:
            return unreachable(challenge.kind, policy, now, "nothing answered")
        judge = partial(
            verify,
            challenge.kind,
            raw,
            expected=Expected(
                binding=expected_of(challenge),
                last_seen=known.clock,
                launch=known.launch,
            ),
            anchors=replace(self._settings.anchors, keys=tuple(keys)),
            policy=policy,
            now=now,
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, judge)

    async def _issue(
        self, instance: vms.Instance, purpose: str
    ) -> tuple[Challenge, attestations.IssuedChallenge]:
        now = self.now()
        challenge = Challenge(
            kind=_kind_of(instance),
            instance_id=instance.name,
            boot_id=str(instance.boot_id),
            nonce=self._entropy(32),
            issued_at=now,
            expires_at=now + CHALLENGE_TTL,
        )
        async with self._database.writing() as conn:
            issued = await attestations.issue_challenge(
                conn,
                attestations.NewChallenge(
                    instance_id=instance.id,
                    kind=challenge.kind,
                    purpose=purpose,
                    boot_id=instance.boot_id,
                    nonce_digest=hashlib.sha256(challenge.nonce).digest(),
                    issued_at=challenge.issued_at,
                    expires_at=challenge.expires_at,
                ),
            )
        return challenge, issued

    async def _collect(
        self, instance: vms.Instance, challenge: Challenge
    ) -> bytes | None:
        source = self._sources.get(str(instance.attestation.get("source", "agent")))
        if source is None:
            return None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await source.collect(instance.name, expected_of(challenge))
        except (UnavailableError, TimeoutError) as error:
            log.info(
                "attestation.unreachable", instance_id=instance.id, error=str(error)
            )
            return None

    async def _record(
        self, instance: vms.Instance, purpose: str, evidence: _Evidence
    ) -> None:
        appraisal, challenge = evidence.appraisal, evidence.challenge
        deadline = None
        if appraisal.accepted:
            deadline = appraisal.fresh_until(challenge.issued_at, self._max_age())
        exchange = Exchange(
            challenge_id=evidence.issued.id,
            issued_at=challenge.issued_at,
            received_at=appraisal.verified_at,
            evidence_bytes=len(evidence.raw or b""),
            deadline=deadline,
        )
        document = provenance(appraisal, exchange)
        verdict = attestations.RecordVerdict(
            challenge=evidence.issued,
            kind=appraisal.kind,
            status=appraisal.status,
            code=appraisal.code,
            evidence=evidence.raw,
            claims=appraisal.claims,
            signer=appraisal.endorsements,
            nonce_digest=hashlib.sha256(challenge.nonce).digest(),
            deadline=deadline,
            notes=appraisal.notes(),
            remedies=[appraisal.consequence.remedy] if not appraisal.accepted else [],
            now=appraisal.verified_at,
        )
        try:
            applied = await self._trust.ask(
                ApplyChange(
                    instance_id=instance.id,
                    change=Change(
                        signal=_SIGNALS[appraisal.status],
                        actor="actor:attestation",
                        reason=appraisal.reason,
                        deadline=deadline,
                        provenance_ref=f"attestation:{appraisal.kind}:{evidence.issued.attestation_id}",
                        provenance=document,
                        attestation_id=evidence.issued.attestation_id,
                        challenge_issued_at=challenge.issued_at,
                        metadata={"purpose": purpose, "digest": digest(document)},
                    ),
                    companions=(verdict, self._kept(instance, purpose, evidence)),
                ),
                within_s=ASK_S,
            )
        except ConflictError as error:
            # A new boot came between question and answer: ask it instead.
            log.info("attestation.late", instance_id=instance.id, error=str(error))
            self.address.tell(Attest(instance.id, purpose))
            return
        if appraisal.status is AttestationStatus.UNKNOWN and (
            applied.after.lifecycle is Lifecycle.REMEDIATING
        ):
            await self._give_up_after_retries(instance.id, applied.after.version)

    def _kept(
        self, instance: vms.Instance, purpose: str, evidence: _Evidence
    ) -> memory.KeepClock | memory.KeepSilence:
        max_age = self._max_age()
        return memory.keep(
            evidence.memory,
            evidence.appraisal,
            instance.boot_id,
            purpose=purpose,
            patience=Patience(
                first=min(RETRY, max_age / 4),
                longest=max_age,
                margin=timedelta(seconds=self._settings.timeout_s) + max_age / 8,
            ),
            jitter=self.random.random(),
        )

    async def _give_up_after_retries(
        self, instance_id: InstanceId, version: int
    ) -> None:
        async with self._database.reading() as conn:
            count = await attestations.count_unknown_since_run(conn, instance_id)
        if count < self._settings.attempts:
            return
        await self._trust.ask(
            ApplyChange(
                instance_id=instance_id,
                change=Change(
                    signal=Signal.UNVERIFIED,
                    actor="actor:attestation",
                    reason=f"no verdict in {count} re-attestations after the run",
                ),
                expected_version=version,
            ),
            within_s=ASK_S,
        )

    def _max_age(self) -> timedelta:
        return min(
            self._settings.max_age, timedelta(seconds=self._settings.policy.max_age_s)
        )


def _kind_of(instance: vms.Instance) -> EvidenceKind:
    return EvidenceKind(str(instance.attestation.get("kind", "tpm")))


def _done(instance_id: InstanceId, result: object) -> _Done:
    return _Done(instance_id, result if isinstance(result, BaseException) else None)
