"""Attestation: challenges instances, has their evidence judged, tells trust.

One appraisal per instance at a time. A challenge is consumed in the transaction
that records its verdict; silence is `unknown`, never a failure and never trust.
Whatever is lost here on a crash is found again by the scheduler, which asks the
database who lacks evidence.

Where an instance's agent pushes, a challenge waits in the database until it is
fetched and answered; nobody waits for it here but a timer.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, assert_never

import structlog

from trustfabric.actors.appraisals import CHALLENGE_TTL, Appraiser, Settings
from trustfabric.actors.inquiries import EvidenceSource, Inquiries, Outcome
from trustfabric.actors.questions import Question
from trustfabric.actors.trust import TrustRegistry
from trustfabric.db import agents, attestations, policies
from trustfabric.db.session import Database
from trustfabric.domain.attestation.versions import Scope
from trustfabric.domain.ids import ChallengeId, InstanceId
from trustfabric.errors import BusyError, FabricError
from trustfabric.supervision import (
    Actor,
    Address,
    AskError,
    Notice,
    Request,
    Timer,
)

__all__ = [
    "CHALLENGE_TTL",
    "Answer",
    "Attest",
    "Attestation",
    "EvidenceSource",
    "InFlight",
    "Reconsider",
    "Settings",
    "Stray",
]

log = structlog.get_logger(__name__)

LOST = 500
"""Asked again at a start; what is beyond it the scheduler finds."""

AT_ONCE = 32
"""Appraisals in flight; the rest waits here, one entry per instance."""

SILENT_AT_ONCE = AT_ONCE // 2
"""Of them, those whose source did not answer the last time: each takes its time-out,
and there may be many, but whoever answers is not to wait for them."""

PUSHED_AT_ONCE = 256
"""With pushed answers; what comes beyond is asked to come again."""

CONCERNED = 50_000
"""Instances challenged at most after a document changed."""

PENALTY_S = 5.0
"""After an answer that nothing asked for, none of that sort is heard so long."""

_KEPT_PENALTIES = 4096


@dataclass(frozen=True, slots=True)
class Attest(Notice["Attestation"]):
    """Challenge an instance now."""

    instance_id: InstanceId
    purpose: str
    """`boot`, `scheduled`, `manual`, `post-run`, `release` or `policy`."""


@dataclass(frozen=True, slots=True)
class Reconsider(Notice["Attestation"]):
    """Challenge every running instance that a changed document is about."""

    scope: Scope


@dataclass(frozen=True, slots=True)
class Answer(Request["Attestation", None]):
    """Judge what an agent pushed; answered when it is in hand.

    BusyError where an appraisal of the instance is in flight already.
    """

    asked: agents.Asked
    nonce: bytes
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Stray(Request["Attestation", None]):
    """Record an answer to no open challenge, as `Answer` is answered.

    Late ones are `unknown` and challenged anew; the others are untrusted.
    """

    instance_id: InstanceId
    late: agents.Asked | None
    why: str


@dataclass(frozen=True, slots=True)
class InFlight(Request["Attestation", frozenset[InstanceId]]):
    """Which instances are being appraised, or wait for it."""


@dataclass(frozen=True, slots=True)
class InHand(Request["Attestation", bool]):
    """Whether an answer that an instance pushed is being judged."""

    instance_id: InstanceId


@dataclass(frozen=True, slots=True)
class _Done(Notice["Attestation"]):
    instance_id: InstanceId
    outcome: Outcome | BaseException


@dataclass(frozen=True, slots=True)
class _Found(Notice["Attestation"]):
    outcome: Sequence[InstanceId] | BaseException


@dataclass(frozen=True, slots=True)
class _Expired(Notice["Attestation"]):
    """Nobody answered a challenge that was there to be fetched."""

    instance_id: InstanceId
    question: Question


Own = _Done | _Found | _Expired
Message = Attest | Reconsider | Answer | Stray | InFlight | InHand | Own


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
        self._settings = settings
        self._inquiries = Inquiries(
            Appraiser(database, trust, settings, executor, entropy),
            sources,
            now=self.now,
            jitter=self.random.random,
        )
        self._in_flight: set[InstanceId] = set()
        self._answered: set[InstanceId] = set()
        self._waiting: dict[InstanceId, str] = {}
        self._silent: set[InstanceId] = set()
        """Whose source did not answer the last time."""
        self._waiting_silent: dict[InstanceId, str] = {}
        self._timed: set[ChallengeId] = set()
        self._overdue: dict[InstanceId, Question] = {}
        self._renewals: dict[InstanceId, Timer] = {}
        self._penalties: dict[InstanceId, float] = {}

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

    async def handle(self, message: Message) -> frozenset[InstanceId] | bool | None:
        match message:
            case Attest(instance_id, purpose):
                self._want(instance_id, purpose)
            case Reconsider(scope):
                _ = self.run(self._concerned(scope), _Found)
            case Answer() | Stray():
                self._pushed(message)
            case InFlight() | InHand():
                return self._in_hand(message)
            case _Done(instance_id, outcome):
                self._in_flight.discard(instance_id)
                self._answered.discard(instance_id)
                self._settle(instance_id, outcome)
            case _Found(outcome):
                self._found(outcome)
            case _Expired(instance_id, question):
                self._timed.discard(question.issued.id)
                self._overdue[instance_id] = question
            case _:
                assert_never(message)
        self._start_waiting()
        return None

    def _in_hand(self, message: InFlight | InHand) -> frozenset[InstanceId] | bool:
        if isinstance(message, InHand):
            return message.instance_id in self._answered
        return frozenset({*self._in_flight, *self._waiting, *self._waiting_silent})

    def _pushed(self, message: Answer | Stray) -> None:
        if isinstance(message, Answer):
            asked = message.asked
            work = self._inquiries.answered(asked, message.nonce, message.evidence)
            self._take(asked.instance_id, work)
            self._answered.add(asked.instance_id)
            return
        self._punish(message)
        work = self._inquiries.stray(message.instance_id, message.late, message.why)
        self._take(message.instance_id, work)

    def _want(self, instance_id: InstanceId, purpose: str) -> None:
        """Have an instance challenged: the newest reason wins, but over a run's end.

        A challenge in flight is not repeated beside itself but after itself: the
        boot may have changed.
        """
        silent = instance_id in self._silent
        queue = self._waiting_silent if silent else self._waiting
        if queue.get(instance_id) != "post-run":
            queue[instance_id] = purpose
        self._cancel_renewal(instance_id)

    def _start_waiting(self) -> None:
        for instance_id in self._overdue.keys() - self._in_flight:
            question = self._overdue.pop(instance_id)
            work = self._inquiries.unanswered(instance_id, question)
            self._start(instance_id, work)
        silent = len(self._in_flight & self._silent)
        self._start_some(self._waiting, AT_ONCE)
        self._start_some(self._waiting_silent, SILENT_AT_ONCE - silent)

    def _start_some(self, queue: dict[InstanceId, str], most: int) -> None:
        free = min(most, AT_ONCE - len(self._in_flight))
        for instance_id in list(queue) if free > 0 else ():
            if instance_id not in self._in_flight:
                purpose = queue.pop(instance_id)
                self._start(instance_id, self._inquiries.attest(instance_id, purpose))
                free -= 1
                if free <= 0:
                    return

    def _note_silence(self, instance_id: InstanceId, *, silent: bool) -> None:
        """Have it wait with its like: what is asked next is asked from there."""
        if silent and len(self._silent) < CONCERNED:
            self._silent.add(instance_id)
            old, new = self._waiting, self._waiting_silent
        else:
            self._silent.discard(instance_id)
            old, new = self._waiting_silent, self._waiting
        purpose = old.pop(instance_id, None)
        if purpose is not None:
            new[instance_id] = purpose

    def _start(
        self, instance_id: InstanceId, work: Coroutine[Any, Any, Outcome]
    ) -> None:
        self._in_flight.add(instance_id)
        _ = self.run(work, partial(_Done, instance_id))

    def _take(
        self, instance_id: InstanceId, work: Coroutine[Any, Any, Outcome]
    ) -> None:
        """Start on what was pushed, or refuse it: nothing of it waits here."""
        full = len(self._in_flight) >= PUSHED_AT_ONCE
        if full or instance_id in self._in_flight:
            work.close()
            raise BusyError("an appraisal is in flight already: try again")
        self._start(instance_id, work)

    def _punish(self, message: Stray) -> None:
        """Refuse to record more of the same at once: each would be a verdict."""
        if message.late is not None:
            return
        now = self.monotonic()
        if self._penalties.get(message.instance_id, now) > now:
            raise BusyError("answers to no challenge come too fast")
        if len(self._penalties) >= _KEPT_PENALTIES:
            kept = {at: until for at, until in self._penalties.items() if until > now}
            self._penalties = kept
        self._penalties[message.instance_id] = now + PENALTY_S

    def _settle(
        self, instance_id: InstanceId, outcome: Outcome | BaseException
    ) -> None:
        match outcome:
            case Outcome(again, waits, renew_at, silent):
                self._note_silence(instance_id, silent=silent)
                if again is not None:
                    self._want(instance_id, again)
                if waits is not None:
                    self._wait_for_agent(instance_id, waits)
                if renew_at is not None:
                    self._renew(instance_id, renew_at)
            case FabricError() | AskError():
                # Its challenge stays open; the scheduler finds who lacks evidence.
                log.warning(
                    "attestation.failed", instance_id=instance_id, error=str(outcome)
                )
                self._settings.bells.ring(instance_id)
            case Exception():
                # A bug that one instance's evidence brings out ends no other's: were it
                # raised here, each restart would ask again, until nobody is asked.
                log.error("attestation.bug", instance_id=instance_id, exc_info=outcome)
                self._settings.bells.ring(instance_id)
            case _:
                raise outcome

    def _cancel_renewal(self, instance_id: InstanceId) -> None:
        renewal = self._renewals.pop(instance_id, None)
        if renewal is not None:
            renewal.cancel()

    def _renew(self, instance_id: InstanceId, at: datetime) -> None:
        self._cancel_renewal(instance_id)
        left = max(0.0, (at - self.now()).total_seconds())
        again = Attest(instance_id, "scheduled")
        self._renewals[instance_id] = self.after(left, again)

    def _wait_for_agent(self, instance_id: InstanceId, question: Question) -> None:
        self._settings.bells.ring(instance_id)
        if question.issued.id in self._timed:
            return
        self._timed.add(question.issued.id)
        left = question.challenge.expires_at - self.now()
        self.after(max(0.0, left.total_seconds()), _Expired(instance_id, question))

    def _found(self, outcome: Sequence[InstanceId] | BaseException) -> None:
        match outcome:
            case FabricError():
                # They are judged anew when they are due.
                log.warning("attestation.not-reconsidered", error=str(outcome))
            case BaseException():
                raise outcome
            case concerned:
                for instance_id in concerned:
                    self._want(instance_id, "policy")

    async def _concerned(self, scope: Scope) -> Sequence[InstanceId]:
        async with self._database.reading() as conn:
            return await policies.list_concerned(
                conn, self._settings.runtime_id, scope, limit=CONCERNED
            )
