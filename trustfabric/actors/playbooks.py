"""The catalogue of playbooks: its one writer in this process."""

from dataclasses import dataclass
from typing import assert_never

import structlog

from trustfabric.db import playbooks
from trustfabric.db.session import Connection, Database
from trustfabric.domain.documents import check_document
from trustfabric.domain.ids import PlaybookId
from trustfabric.domain.playbooks import (
    Author,
    Playbook,
    PlaybookDraft,
    PlaybookEdit,
    check_author,
    check_playbook,
    edited,
)
from trustfabric.errors import (
    ConflictError,
    NotFoundError,
    VersionConflictError,
    VersionRequiredError,
)
from trustfabric.supervision import Actor, Request

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePlaybook(Request["Playbooks", Playbook]):
    """Add a playbook; its draft says whose it is to be (None: shared)."""

    author: Author
    draft: PlaybookDraft


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlaybook(Request["Playbooks", Playbook]):
    """Change what the edit mentions, based on the version that was seen."""

    author: Author
    playbook_id: PlaybookId
    edit: PlaybookEdit
    expected_version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePlaybook(Request["Playbooks", None]):
    """Remove a playbook that no active run uses."""

    author: Author
    playbook_id: PlaybookId
    expected_version: int | None


Message = CreatePlaybook | UpdatePlaybook | DeletePlaybook


class Playbooks(Actor):
    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    async def handle(self, message: Message) -> Playbook | None:
        match message:
            case CreatePlaybook(author=author, draft=draft):
                return await self._create(author, draft)
            case UpdatePlaybook():
                return await self._update(message)
            case DeletePlaybook():
                await self._delete(message)
                return None
            case _:
                assert_never(message)

    async def _create(self, author: Author, draft: PlaybookDraft) -> Playbook:
        check_author(author, draft)
        check_document("metadata", draft.metadata)
        check_playbook(draft)
        async with self._database.writing() as conn:
            made = await playbooks.insert_playbook(conn, draft)
        log.info("playbook.created", playbook_id=made.id, key=made.key)
        return made

    async def _update(self, message: UpdatePlaybook) -> Playbook:
        async with self._database.writing() as conn:
            before = await _locked(conn, message)
            if isinstance(message.edit.metadata, dict):
                check_document("metadata", message.edit.metadata)
            after = edited(before, message.edit)
            check_author(message.author, after)
            saved = await playbooks.save_playbook(conn, after)
        assert saved is not None  # its row was locked
        log.info("playbook.updated", playbook_id=saved.id, version=saved.version)
        return saved

    async def _delete(self, message: DeletePlaybook) -> None:
        async with self._database.writing() as conn:
            playbook = await _locked(conn, message)
            run_id = await playbooks.active_run_of(conn, playbook.id)
            if run_id is not None:
                raise ConflictError(
                    f"playbook {playbook.key} is used by run {run_id}, "
                    "which has not ended",
                    run_id=run_id,
                )
            await playbooks.delete_playbook(conn, playbook.id)
        log.info("playbook.deleted", playbook_id=playbook.id, key=playbook.key)


async def _locked(
    conn: Connection, message: UpdatePlaybook | DeletePlaybook
) -> Playbook:
    """Return the playbook, locked, if this author may write it as they saw it."""
    found = await playbooks.lock_playbook(
        conn, message.author.scope, message.playbook_id
    )
    if found is None:
        raise NotFoundError(f"no playbook {message.playbook_id}")
    check_author(message.author, found)
    expected = message.expected_version
    if expected is None:
        raise VersionRequiredError(
            "expected_version is required: send the version you decided on",
            expected=None,
            current=found.version,
        )
    if expected != found.version:
        raise VersionConflictError(
            f"playbook {found.id} is at version {found.version}, not {expected}",
            expected=expected,
            current=found.version,
        )
    return found
