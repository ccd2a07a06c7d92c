"""What is done about one instance at a time: ask it, judge what it pushed, give up.

Each is one piece of work beside a mailbox, and leaves an Outcome.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import structlog

from trustfabric.actors.accelerators import Accelerators
from trustfabric.actors.appraisals import Appraiser
from trustfabric.actors.questions import Question, Subject, question_of
from trustfabric.db import agents, attestations
from trustfabric.domain.attestation.appraisal import replayed, unreachable
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.collateral import NEEDED_BY, needed_by
from trustfabric.domain.attestation.model import Appraisal, Challenge
from trustfabric.domain.evidence.anchors import Collateral
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import InstanceId
from trustfabric.errors import ConflictError, UnavailableError

log = structlog.get_logger(__name__)


class EvidenceSource(Protocol):
    """Where an instance's evidence comes from."""

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        """Answer a challenge. UnavailableError where nothing answers."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an inquiry leaves to do."""

    again: str | None = None
    """Challenge it once more, for this purpose."""
    waits: Question | None = None
    """For its agent to fetch it."""
    renew_at: datetime | None = None
    """When to challenge it again; None: when the scheduler does."""
    silent: bool = False
    """Nothing came of it in time."""


_NOTHING_LEFT = Outcome()


class Inquiries:
    def __init__(
        self,
        appraiser: Appraiser,
        sources: Mapping[str, EvidenceSource],
        *,
        now: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        self._appraiser = appraiser
        self._database = appraiser.database
        self._sources = sources
        self._now = now
        self._jitter = jitter
        self._accelerators = Accelerators(appraiser, now)

    async def attest(self, instance_id: InstanceId, purpose: str) -> Outcome:
        """Challenge an instance, and judge what its source answers."""
        subject = await self._appraiser.read(instance_id, self._now())
        if subject is None or not _is_asked(subject, purpose):
            return _NOTHING_LEFT
        source = self._sources.get(_source_of(subject))
        if source is None and subject.pushes:
            waits = await self._open(subject, purpose)
            await self._accelerators.open(subject.instance, purpose)
            return Outcome(waits=waits)
        question = await self._issue(subject, purpose)
        raw = None
        if source is not None:
            raw = await self._collect(source, subject, question.challenge)
        outcome = await self._judged(subject, question, raw)
        if subject.attestable and outcome.again is None:
            # Of a guest that is silent its devices are: nobody else asks them.
            answering = None if raw is None else source
            devices = await self._accelerators.ask(subject.instance, purpose, answering)
            renewals = (outcome.renew_at, devices.renew_at)
            soonest = min((each for each in renewals if each is not None), default=None)
            silent = source is not None and devices.silent
            outcome = replace(outcome, renew_at=soonest, silent=silent)
        if source is not None and raw is None:
            return replace(outcome, silent=True)
        return outcome

    async def answered(
        self, asked: agents.Asked, nonce: bytes, evidence: bytes
    ) -> Outcome:
        """Judge what an agent pushed."""
        subject = await self._appraiser.read(asked.instance_id, self._now())
        if subject is None:
            return _NOTHING_LEFT
        question = question_of(asked, nonce)
        if asked.accelerator_id is not None:
            await self._accelerators.answered(
                subject.instance, asked.accelerator_id, question, evidence
            )
            return _NOTHING_LEFT
        return await self._judged(subject, question, evidence)

    async def stray(
        self, instance_id: InstanceId, late: agents.Asked | None, why: str
    ) -> Outcome:
        """Record an answer that came too late, or to nothing that we asked."""
        subject = await self._appraiser.read(instance_id, self._now())
        if subject is None:
            return _NOTHING_LEFT
        policy, now = subject.basis.policy, self._now()
        if late is None:
            question = await self._issue(subject, "manual")
            refused = replayed(subject.kind, policy, now, why)
            return await self._conclude(subject, question, None, refused)
        if not late.used and late.same_boot:
            question = question_of(late, b"")
            if late.accelerator_id is not None:
                await self._accelerators.answered(
                    subject.instance, late.accelerator_id, question, None
                )
            else:
                missed = unreachable(EvidenceKind(late.kind), policy, now, why)
                await self._conclude(subject, question, None, missed)
        return Outcome(again="manual")

    async def unanswered(self, instance_id: InstanceId, question: Question) -> Outcome:
        """Record silence, unless something was answered or asked since."""
        async with self._database.reading() as conn:
            waits = await attestations.is_newest_and_open(conn, question.issued.id)
        subject = await self._appraiser.read(instance_id, self._now())
        if not waits or subject is None or not _is_asked(subject, question.purpose):
            return _NOTHING_LEFT
        await self._judged(subject, question, None)
        return _NOTHING_LEFT

    async def _open(self, subject: Subject, purpose: str) -> Question:
        """Return the challenge that its agent is to fetch: the one that is open.

        After a run it must be a new one: what was asked before proves nothing now.
        """
        async with self._database.reading() as conn:
            found = await agents.list_open(conn, subject.instance.id, self._now())
        if purpose != "post-run" and found and found[0].accelerator_id is None:
            return question_of(found[0], b"")
        return await self._issue(subject, purpose)

    async def _issue(self, subject: Subject, purpose: str) -> Question:
        return await self._appraiser.issue(
            subject.instance, subject.kind, purpose, self._now()
        )

    async def _collect(
        self, source: EvidenceSource, subject: Subject, challenge: Challenge
    ) -> bytes | None:
        try:
            async with asyncio.timeout(self._appraiser.settings.timeout_s):
                return await source.collect(
                    subject.instance.name, expected_of(challenge)
                )
        except (UnavailableError, TimeoutError) as error:
            log.info(
                "attestation.unreachable",
                instance_id=subject.instance.id,
                error=str(error),
            )
        except Exception:
            # What one guest says must not end the appraisals of all others.
            log.exception("attestation.source-fault", instance_id=subject.instance.id)
        return None

    async def _judged(
        self, subject: Subject, question: Question, raw: bytes | None
    ) -> Outcome:
        if raw is not None:
            subject = await self._with_collateral(subject, question.challenge.kind, raw)
        appraisal = await self._appraiser.judge(
            subject, question.challenge, raw, self._now()
        )
        return await self._conclude(subject, question, raw, appraisal)

    async def _with_collateral(
        self, subject: Subject, kind: EvidenceKind, raw: bytes
    ) -> Subject:
        """Add what its maker publishes about the platform that the evidence is of."""
        look = self._appraiser.settings.collateral
        if look is None or kind not in NEEDED_BY:
            return subject

        def read() -> Collateral | None:
            name = needed_by(kind, raw)
            return None if name is None else look(name)

        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._appraiser.executor, read)
        return replace(subject, inputs=replace(subject.inputs, collateral=found))

    async def _conclude(
        self,
        subject: Subject,
        question: Question,
        raw: bytes | None,
        appraisal: Appraisal,
    ) -> Outcome:
        try:
            left = await self._appraiser.conclude(
                subject, question, raw, appraisal, self._jitter()
            )
        except ConflictError as error:
            # A new boot came between question and answer: ask it instead.
            log.info(
                "attestation.late", instance_id=subject.instance.id, error=str(error)
            )
            return Outcome(again=question.purpose)
        return Outcome(again=left.again, renew_at=left.renew_at)


def _is_asked(subject: Subject, purpose: str) -> bool:
    """Tell whether silence would mean something: what is off answers nobody."""
    return subject.attestable or purpose == "post-run"


def _source_of(subject: Subject) -> str:
    return str(subject.instance.attestation.get("source", "agent"))
