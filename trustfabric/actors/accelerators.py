"""The accelerators of one instance: asked, judged, and their postures recorded.

Each is an attester of its own: what it shows says nothing of the VM that has it, and
nothing here changes that VM's trust. The placement gate reads the postures.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

import structlog

from trustfabric.actors.appraisals import Appraiser
from trustfabric.actors.questions import Question, kept_basis, scope_of, verdict_of
from trustfabric.db import accelerators, agents, placement, policies, vms
from trustfabric.domain.accelerators import Attester, attesters, posture_by
from trustfabric.domain.attestation.appraisal import unreachable
from trustfabric.domain.attestation.basis import Basis
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.stored import Inputs
from trustfabric.domain.ids import InstanceId
from trustfabric.errors import ConflictError, FabricError, UnavailableError

log = structlog.get_logger(__name__)

KNOWN = 10_000
"""Accelerators that are remembered to have hung."""


@runtime_checkable
class AcceleratorSource(Protocol):
    """Where the evidence of an instance's accelerators comes from."""

    async def collect_of(
        self, name: str, accelerator: Attester, extra_data: bytes
    ) -> bytes:
        """Answer a challenge. UnavailableError where nothing answers."""
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of those that were asked."""

    silent: bool = False
    """One of them let its time run out."""
    renew_at: datetime | None = None
    """When to ask again, where a policy wants that sooner than the scheduler."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What one accelerator is judged with, as it was read at one moment."""

    basis: Basis
    device: str | None


class Accelerators:
    """Does each step for those of one instance."""

    def __init__(self, appraiser: Appraiser, now: Callable[[], datetime]) -> None:
        self._appraiser = appraiser
        self._database = appraiser.database
        self._now = now
        self._hung: set[tuple[InstanceId, str]] = set()
        """Those that let their time run out when they were asked last."""

    async def ask(
        self, instance: vms.Instance, purpose: str, source: object | None
    ) -> Answered:
        """Challenge each, and judge what the source has of it; None: it is silent.

        Once one let its time run out no other is waited for: others are to be asked.
        """
        silent, renewals = False, []
        for attester in self._in_turn(instance):
            try:
                question = await self._issue(instance, attester, purpose)
                if silent:
                    continue  # it counts as unknown where it never answered
                raw = None
                if isinstance(source, AcceleratorSource):
                    try:
                        raw = await self._collect(source, instance, attester, question)
                    except TimeoutError:
                        silent = True
                self._note(instance, attester, hung=silent)
                renewals.append(await self._conclude(instance, attester, question, raw))
            except FabricError as error:
                # Its evidence runs out, where it has any: the gate closes by itself.
                log.warning(
                    "accelerator.not-attested",
                    instance_id=instance.id,
                    accelerator_id=attester.id,
                    error=str(error),
                )
        soonest = min((each for each in renewals if each is not None), default=None)
        return Answered(silent=silent, renew_at=soonest)

    async def open(self, instance: vms.Instance, purpose: str) -> None:
        """Have a challenge there for each, for the instance's agent to fetch."""
        wanted = attesters(instance.gpu)
        if not wanted:
            return
        async with self._database.reading() as conn:
            found = await agents.list_open(conn, instance.id, self._now())
        waiting = {one.accelerator_id for one in found} if purpose != "post-run" else ()
        for attester in wanted:
            if attester.id not in waiting:
                await self._issue(instance, attester, purpose)

    async def answered(
        self,
        instance: vms.Instance,
        accelerator_id: str,
        question: Question,
        raw: bytes | None,
    ) -> None:
        """Judge what an agent pushed; None: it came too late to be judged."""
        attester = Attester(accelerator_id, question.challenge.kind)
        try:
            await self._conclude(instance, attester, question, raw)
        except ConflictError as error:
            # It was answered meanwhile, or its boot is over: the next one counts.
            log.info(
                "accelerator.late",
                instance_id=instance.id,
                accelerator_id=accelerator_id,
                error=str(error),
            )

    def _in_turn(self, instance: vms.Instance) -> list[Attester]:
        """Return whom to ask: those that let their time run out come last."""
        return sorted(
            attesters(instance.gpu), key=lambda one: (instance.id, one.id) in self._hung
        )

    def _note(self, instance: vms.Instance, attester: Attester, *, hung: bool) -> None:
        place = instance.id, attester.id
        self._hung.discard(place)
        if hung and len(self._hung) < KNOWN:
            self._hung.add(place)

    async def _collect(
        self,
        source: AcceleratorSource,
        instance: vms.Instance,
        attester: Attester,
        question: Question,
    ) -> bytes | None:
        """Return what it shows; None: it can't. TimeoutError: it says nothing."""
        extra_data = expected_of(question.challenge)
        try:
            async with asyncio.timeout(self._appraiser.settings.timeout_s):
                return await source.collect_of(instance.name, attester, extra_data)
        except (UnavailableError, TimeoutError) as error:
            log.info(
                "accelerator.unreachable",
                instance_id=instance.id,
                accelerator_id=attester.id,
                error=str(error),
            )
            if isinstance(error, TimeoutError):
                raise
        except Exception:
            # As with the VM's own: a fault of its source is its silence.
            log.exception(
                "accelerator.source-fault",
                instance_id=instance.id,
                accelerator_id=attester.id,
            )
        return None

    async def _issue(
        self, instance: vms.Instance, attester: Attester, purpose: str
    ) -> Question:
        return await self._appraiser.issue(
            instance, attester.kind, purpose, self._now(), attester.id
        )

    async def _conclude(
        self,
        instance: vms.Instance,
        attester: Attester,
        question: Question,
        raw: bytes | None,
    ) -> datetime | None:
        """Record a verdict; return when to ask again, where that is soon."""
        known = await self._read(instance, attester)
        inputs = Inputs(device=known.device)
        appraisal = await self._judged(known.basis, question, raw, inputs)
        place = accelerators.Place(instance.id, attester.id)
        if appraisal.accepted and appraisal.device is not None:
            async with self._database.reading() as conn:
                elsewhere = await accelerators.stands_elsewhere(
                    conn, appraisal.device, place, self._now()
                )
            if elsewhere:
                inputs = Inputs(device=known.device, elsewhere=True)
                appraisal = await self._judged(known.basis, question, raw, inputs)
        await self._record(place, question, raw, inputs, appraisal, known.basis)
        return self._appraiser.renew_at(known.basis, question, appraisal)

    async def _read(self, instance: vms.Instance, attester: Attester) -> _Known:
        async with self._database.reading() as conn:
            return _Known(
                basis=await policies.basis_for(
                    conn,
                    scope_of(instance),
                    attester.kind,
                    self._appraiser.settings.policy,
                    self._now(),
                ),
                device=await accelerators.get_device(
                    conn, accelerators.Place(instance.id, attester.id)
                ),
            )

    async def _judged(
        self, basis: Basis, question: Question, raw: bytes | None, inputs: Inputs
    ) -> Appraisal:
        challenge, now = question.challenge, self._now()
        if raw is None:
            why = "nothing answered in time"
            return unreachable(challenge.kind, basis.policy, now, why)
        return await self._appraiser.verify(basis, challenge, raw, inputs, now)

    async def _record(
        self,
        place: accelerators.Place,
        question: Question,
        raw: bytes | None,
        inputs: Inputs,
        appraisal: Appraisal,
        judged_by: Basis,
    ) -> None:
        deadline = None
        if appraisal.accepted:
            deadline = appraisal.fresh_until(
                question.challenge.issued_at,
                self._appraiser.max_age(judged_by, appraisal),
            )
        basis = kept_basis(judged_by)
        verdict = verdict_of(
            question, inputs, raw, appraisal, deadline, basis, place.accelerator_id
        )
        now = appraisal.verified_at
        async with self._database.writing() as conn:
            # The gate decides on postures: they don't change while it does.
            await placement.take_turn(conn)
            if appraisal.accepted and appraisal.device is not None:
                # Of two that show the same device at once the second is asked again.
                await accelerators.take_turn_of(conn, appraisal.device)
                if await accelerators.stands_elsewhere(
                    conn, appraisal.device, place, now
                ):
                    raise ConflictError("that device became another accelerator")
            await basis.keep(conn)
            await verdict.record(conn, place.instance_id)
            await accelerators.put_posture(
                conn,
                place,
                accelerators.Verdict(
                    attestation_id=question.issued.attestation_id,
                    kind=appraisal.kind,
                    posture=posture_by(appraisal.status),
                    feedback=verdict.notes,
                    fresh_until=deadline,
                    device=appraisal.device if appraisal.accepted else None,
                    now=now,
                ),
            )
