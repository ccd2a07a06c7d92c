"""One appraisal: who is asked, what is judged by which policy, and what is recorded."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from trustfabric.actors.bells import Bells
from trustfabric.actors.questions import (
    Question,
    Subject,
    kept_basis,
    scope_of,
    verdict_of,
)
from trustfabric.actors.trust import Applied, ApplyChange, TrustRegistry
from trustfabric.db import (
    accelerators,
    agents,
    attestations,
    memory,
    placement,
    policies,
    verdicts,
    vms,
)
from trustfabric.db.session import Database
from trustfabric.domain.attestation.appraisal import (
    no_witness,
    unreachable,
)
from trustfabric.domain.attestation.basis import Basis, judge_by
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.memory import Patience, fresh_clock
from trustfabric.domain.attestation.model import Appraisal, Challenge
from trustfabric.domain.attestation.policy import AppraisalPolicy
from trustfabric.domain.attestation.provenance import (
    Exchange,
    digest,
    provenance,
)
from trustfabric.domain.attestation.stored import Inputs
from trustfabric.domain.evidence.anchors import Anchors, Collateral
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import AttestationStatus, Change, Lifecycle, Signal
from trustfabric.errors import ConflictError
from trustfabric.supervision import Address

log = structlog.get_logger(__name__)

ASK_S = 10.0
CHALLENGE_TTL = timedelta(seconds=90)
NONCE = 32
RETRY = timedelta(seconds=30)
"""After the first challenge that nothing answered; longer after each further one."""

_SIGNALS: Mapping[AttestationStatus, Signal] = {
    AttestationStatus.TRUSTED: Signal.TRUSTED_VERDICT,
    AttestationStatus.UNTRUSTED: Signal.UNTRUSTED_VERDICT,
    AttestationStatus.UNKNOWN: Signal.UNKNOWN_VERDICT,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How evidence is asked for and judged."""

    policy: AppraisalPolicy
    """Where no policy of the database is in force."""
    anchors: Anchors
    max_age: timedelta
    timeout_s: float
    runtime_id: str
    """Whose instances are asked again when this actor starts."""
    attempts: int
    """Re-attestations after a run that may come to nothing before it is given up."""
    identity_key: bytes = field(repr=False)
    """Of the names that hardware has where verdicts are shown."""
    collateral: Callable[[str], Collateral | None] | None = None
    """Reads what makers publish, by its name; blocks."""
    bells: Bells = field(default_factory=Bells)
    """Rung when a challenge is there to be fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded:
    """What a verdict leaves to do."""

    again: str | None = None
    """Challenge it once more at once, for this purpose."""
    renew_at: datetime | None = None
    """When to ask again, where the policy wants that sooner than the scheduler."""


@dataclass(frozen=True, slots=True)
class Appraiser:
    """Does each step of an appraisal; holds nothing between two of them."""

    database: Database
    trust: Address[TrustRegistry]
    settings: Settings
    executor: Executor
    entropy: Callable[[int], bytes]

    async def read(self, instance_id: InstanceId, now: datetime) -> Subject | None:
        """Return what there is to know of an instance; None where it is gone."""
        async with self.database.reading() as conn:
            instance = await vms.get_instance(conn, None, instance_id)
            if instance is None or instance.terminated_at is not None:
                return None
            kind = _kind_of(instance)
            keys = await attestations.list_keys(conn, instance_id)
            known = await memory.get_memory(conn, instance_id)
            return Subject(
                instance=instance,
                kind=kind,
                inputs=Inputs(
                    keys=tuple(keys), last_seen=known.clock, launch=known.launch
                ),
                memory=known,
                basis=await policies.basis_for(
                    conn, scope_of(instance), kind, self.settings.policy, now
                ),
                pushes=await agents.may_push(conn, instance_id, now),
            )

    async def issue(
        self,
        instance: vms.Instance,
        kind: EvidenceKind,
        purpose: str,
        now: datetime,
        accelerator_id: str | None = None,
    ) -> Question:
        """Issue a challenge that nobody was told of yet, to it or its accelerator."""
        challenge = Challenge(
            kind=kind,
            instance_id=instance.name,
            boot_id=str(instance.boot_id),
            nonce=self.entropy(NONCE),
            issued_at=now,
            expires_at=now + CHALLENGE_TTL,
        )
        async with self.database.writing() as conn:
            if accelerator_id is not None:
                # Until it answers the gate knows no good of it.
                await placement.take_turn(conn)
                place = accelerators.Place(instance.id, accelerator_id)
                await accelerators.note_asked(conn, place, kind, now)
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
                    accelerator_id=accelerator_id,
                ),
            )
        return Question(challenge=challenge, issued=issued, purpose=purpose)

    async def judge(
        self, subject: Subject, challenge: Challenge, raw: bytes | None, now: datetime
    ) -> Appraisal:
        """Judge what came, off the event loop; None: nothing did."""
        if subject.kind.of_accelerator:  # from before such a kind was refused
            return no_witness(challenge.kind, subject.basis.policy, now)
        if raw is None:
            return unreachable(
                challenge.kind, subject.basis.policy, now, "nothing answered"
            )
        return await self.verify(subject.basis, challenge, raw, subject.inputs, now)

    async def verify(
        self,
        basis: Basis,
        challenge: Challenge,
        raw: bytes,
        inputs: Inputs,
        now: datetime,
    ) -> Appraisal:
        """Judge what came by all that is known, off the event loop."""
        work = partial(
            judge_by,
            basis,
            challenge.kind,
            raw,
            expected=inputs.expected(expected_of(challenge)),
            anchors=inputs.beside(self.settings.anchors),
            now=now,
        )
        loop = asyncio.get_running_loop()
        appraisal = await loop.run_in_executor(self.executor, work)
        return appraisal.pseudonymous(self.settings.identity_key)

    async def conclude(
        self,
        subject: Subject,
        question: Question,
        raw: bytes | None,
        appraisal: Appraisal,
        jitter: float,
    ) -> Concluded:
        """Record a verdict.

        ConflictError: the challenge was answered meanwhile, or its boot is over.
        """
        boot_id = question.challenge.boot_id
        failed = appraisal.status is AttestationStatus.UNTRUSTED
        if not failed and subject.memory.saw_reboot(appraisal, boot_id):
            await self._note_reboot(subject.instance, appraisal)
            post_run = question.purpose == "post-run"
            return Concluded(again="post-run" if post_run else "boot")
        applied = await self._record(subject, question, raw, appraisal, jitter)
        if appraisal.status is AttestationStatus.UNKNOWN and (
            applied.after.lifecycle is Lifecycle.REMEDIATING
        ):
            await self._give_up_after_retries(
                subject.instance.id, applied.after.version
            )
        return Concluded(renew_at=self.renew_at(subject.basis, question, appraisal))

    def renew_at(
        self, basis: Basis, question: Question, appraisal: Appraisal
    ) -> datetime | None:
        """Return half of the way to a deadline that the scheduler would overlook."""
        max_age = self.max_age(basis, appraisal)
        if not appraisal.accepted or max_age >= self.settings.max_age:
            return None
        return question.challenge.issued_at + max_age / 2

    async def _note_reboot(self, instance: vms.Instance, appraisal: Appraisal) -> None:
        """Begin the new boot that only its TPM told of: nobody attested it yet."""
        boot_id = UUID(bytes=self.entropy(16), version=4)
        change = Change(
            signal=Signal.BOOTED, actor="actor:attestation", reason="TPM was reset"
        )
        companions = (
            memory.NoteReboot(
                was=instance.boot_id, boot_id=boot_id, now=appraisal.verified_at
            ),
            memory.KeepClock(clock=fresh_clock(appraisal), boot_id=boot_id),
        )
        with suppress(ConflictError):  # it booted once more: that boot asks for itself
            await self.trust.ask(
                ApplyChange(
                    instance_id=instance.id, change=change, companions=companions
                ),
                within_s=ASK_S,
            )

    async def _record(
        self,
        subject: Subject,
        question: Question,
        raw: bytes | None,
        appraisal: Appraisal,
        jitter: float,
    ) -> Applied:
        issued_at = question.challenge.issued_at
        deadline = None
        if appraisal.accepted:
            deadline = appraisal.fresh_until(
                issued_at, self.max_age(subject.basis, appraisal)
            )
        basis = kept_basis(subject.basis)
        document = provenance(
            appraisal,
            Exchange(
                challenge_id=question.issued.id,
                issued_at=issued_at,
                received_at=appraisal.verified_at,
                evidence_bytes=len(raw or b""),
                deadline=deadline,
                basis_sha256=basis.sha256.hex(),
            ),
        )
        attestation_id = question.issued.attestation_id
        return await self.trust.ask(
            ApplyChange(
                instance_id=subject.instance.id,
                change=Change(
                    signal=_SIGNALS[appraisal.status],
                    actor="actor:attestation",
                    reason=appraisal.reason,
                    deadline=deadline,
                    provenance_ref=f"attestation:{appraisal.kind}:{attestation_id}",
                    provenance=document,
                    attestation_id=attestation_id,
                    challenge_issued_at=issued_at,
                    metadata={"purpose": question.purpose, "digest": digest(document)},
                ),
                companions=(
                    basis,
                    *verdicts.keep_collateral(subject.inputs.collateral),
                    verdict_of(
                        question, subject.inputs, raw, appraisal, deadline, basis
                    ),
                    self._kept(subject, question.purpose, appraisal, jitter),
                ),
            ),
            within_s=ASK_S,
        )

    def _kept(
        self, subject: Subject, purpose: str, appraisal: Appraisal, jitter: float
    ) -> memory.KeepClock | memory.KeepSilence:
        max_age = self.max_age(subject.basis, appraisal)
        return memory.keep(
            subject.memory,
            appraisal,
            subject.instance.boot_id,
            purpose=purpose,
            patience=Patience(
                first=min(RETRY, max_age / 4),
                longest=max_age,
                margin=timedelta(seconds=self.settings.timeout_s) + max_age / 8,
            ),
            jitter=jitter,
        )

    async def _give_up_after_retries(
        self, instance_id: InstanceId, version: int
    ) -> None:
        async with self.database.reading() as conn:
            count = await attestations.count_unknown_since_run(conn, instance_id)
        if count < self.settings.attempts:
            return
        await self.trust.ask(
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

    def max_age(self, basis: Basis, appraisal: Appraisal) -> timedelta:
        """Return for how long evidence that was judged so holds at most."""
        return min(self.settings.max_age, timedelta(seconds=basis.max_age_s(appraisal)))


def _kind_of(instance: vms.Instance) -> EvidenceKind:
    return EvidenceKind(str(instance.attestation.get("kind", "tpm")))
