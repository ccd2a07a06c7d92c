"""Policies and reference values: their one writer in this process, and rehearsals."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

import structlog

from trustfabric.actors.appraisals import Settings
from trustfabric.actors.attestation import Attestation, Reconsider
from trustfabric.db import policies, verdicts
from trustfabric.db.session import Connection, Database
from trustfabric.domain.attestation.rehearsal import Rehearsed, rehearse, with_proposal
from trustfabric.domain.attestation.rules import check_content
from trustfabric.domain.attestation.stored import StoredVerdict
from trustfabric.domain.attestation.versions import (
    Draft,
    Noun,
    Scope,
    State,
    Version,
    moved,
)
from trustfabric.domain.documents import check_document
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import OwnerId
from trustfabric.errors import (
    ConflictError,
    NotFoundError,
    VersionConflictError,
    VersionRequiredError,
)
from trustfabric.supervision import Actor, Address, Request

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVersion(Request["Policies", Version]):
    """Add a version, staged: the first of its name, or the next."""

    draft: Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveVersion(Request["Policies", Version]):
    """Activate, deprecate or revoke a version, as it was seen."""

    noun: Noun
    version_id: int
    state: State
    until: datetime | None
    """Of a deprecation. Of an activation: until when earlier versions are believed;
    None: a policy's no longer, reference values' as long as before."""
    actor: str
    expected_version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearse(Request["Policies", Sequence[Rehearsed]]):
    """Say what a version would make of the last evidence of each instance."""

    owner_id: OwnerId | None
    """Whose instances are shown, and documents seen; None: everybody's."""
    noun: Noun
    proposed: Draft | int
    """One that is not there yet, or the id of a version."""
    state: State
    after: int
    limit: int


Message = CreateVersion | MoveVersion | Rehearse


class Policies(Actor):
    def __init__(
        self,
        database: Database,
        attestation: Address[Attestation],
        settings: Settings,
        executor: Executor,
    ) -> None:
        super().__init__()
        self._database = database
        self._attestation = attestation
        self._settings = settings
        self._executor = executor

    async def handle(self, message: Message) -> Version | Sequence[Rehearsed]:
        match message:
            case CreateVersion(draft=draft):
                return await self._create(draft)
            case MoveVersion():
                return await self._move(message)
            case Rehearse():
                return await self._rehearse(message)
            case _:
                assert_never(message)

    async def _create(self, draft: Draft) -> Version:
        _check(draft)
        async with self._database.writing() as conn:
            await policies.lock_name(conn, draft.noun, draft.name)
            newest = await policies.newest_of(conn, draft.noun, draft.name)
            number = _next_number(draft, newest)
            made = await policies.insert_version(conn, draft, number)
        log.info(
            "attestation-document.created",
            noun=made.noun,
            name=made.name,
            number=made.number,
            actor=draft.created_by,
        )
        return made

    async def _move(self, message: MoveVersion) -> Version:
        async with self._database.writing() as conn:
            before = await _locked(conn, message)
            after = moved(before, message.state, message.until)
            if message.state is State.ACTIVE:
                await self._relieve(conn, before, message.until)
            saved = await policies.save_state(conn, after)
        log.info(
            "attestation-document.moved",
            noun=saved.noun,
            name=saved.name,
            number=saved.number,
            state=saved.state,
            actor=message.actor,
        )
        self._attestation.tell(Reconsider(saved.scope))
        return saved

    async def _relieve(
        self, conn: Connection, before: Version, until: datetime | None
    ) -> None:
        """Deprecate what the version takes the place of."""
        if before.noun is Noun.REFERENCES and until is None:
            return
        for each in await policies.lock_active(
            conn, before.noun, before.name, but=before.id
        ):
            await policies.save_state(
                conn, moved(each, State.DEPRECATED, until or self.now())
            )

    async def _rehearse(self, message: Rehearse) -> Sequence[Rehearsed]:
        """Judge a page of the fleet's last evidence; the mailbox waits for it."""
        async with self._database.reading() as conn:
            proposed = await _proposed(conn, message, self.now())
            rows = await verdicts.list_last(
                conn,
                message.owner_id,
                proposed.scope,
                after=message.after,
                limit=message.limit,
            )
            works = [await self._work(conn, row, proposed) for row in rows]
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._executor, work) for work in works]

    async def _work(
        self, conn: Connection, row: verdicts.Stored, proposed: Version
    ) -> Callable[[], Rehearsed]:
        whose = Scope(owner_id=row.owner_id, image=row.image, tier=row.tier)
        kind = EvidenceKind(row.kind)
        now = await policies.basis_for(
            conn, whose, kind, self._settings.policy, self.now()
        )
        stored = stored_of(row)
        if proposed.noun is Noun.POLICIES and proposed.state is State.REVOKED:
            would_be = await policies.basis_for(
                *(conn, whose, kind, self._settings.policy, self.now()),
                without=proposed.id,
            )
        else:
            would_be = with_proposal(now, proposed, kind)
        anchors: Anchors = self._settings.anchors
        return lambda: replace(
            rehearse(row.instance_id, row.server_id, stored, anchors, now, would_be),
            accelerator_id=row.accelerator_id,
        )


def stored_of(row: verdicts.Stored) -> StoredVerdict:
    """Return a recorded verdict as what can be judged again. NotFoundError."""
    names = (
        "kind",
        "status",
        "evidence",
        "binding",
        "inputs",
        "basis",
        "verified_at",
        "code",
    )
    kept = {name: getattr(row, name) for name in names}
    return StoredVerdict.from_columns(row.id, row.instance_name, kept, row.collateral)


def _check(draft: Draft) -> None:
    check_document("document", draft.document)
    check_content(draft.noun, draft.name, draft.document)


async def _proposed(conn: Connection, message: Rehearse, now: datetime) -> Version:
    """Return what is proposed as the version that it is, or would become."""
    if isinstance(message.proposed, int):
        found = await policies.get_version(
            conn, message.owner_id, message.noun, message.proposed
        )
        if found is None:
            raise NotFoundError(f"no version {message.proposed} of {message.noun}")
        return replace(found, state=message.state, deprecated_until=None)
    draft = message.proposed
    _check(draft)
    newest = await policies.newest_of(conn, draft.noun, draft.name)
    return Version(
        id=0,
        noun=draft.noun,
        name=draft.name,
        number=1 if newest is None else newest.number + 1,
        scope=draft.scope,
        state=message.state,
        deprecated_until=None,
        document=draft.document,
        note=draft.note,
        created_by=draft.created_by,
        version=1,
        created_at=now,
        updated_at=now,
    )


def _next_number(draft: Draft, newest: Version | None) -> int:
    if newest is None:
        return 1
    if newest.scope != draft.scope:
        raise ConflictError(
            f"{draft.noun} {draft.name} are for another owner, image or tier: "
            "every version of a name has the same",
            owner_id=newest.scope.owner_id,
            image=newest.scope.image,
            tier=newest.scope.tier,
        )
    return newest.number + 1


async def _locked(conn: Connection, message: MoveVersion) -> Version:
    found = await policies.lock_version(conn, message.noun, message.version_id)
    if found is None:
        raise NotFoundError(f"no version {message.version_id} of {message.noun}")
    expected = message.expected_version
    if expected is None:
        raise VersionRequiredError(
            "expected_version is required: send the version you decided on",
            expected=None,
            current=found.version,
        )
    if expected != found.version:
        raise VersionConflictError(
            f"{found.noun} {found.name} version {found.number} is at row version "
            f"{found.version}, not {expected}",
            expected=expected,
            current=found.version,
        )
    return found
