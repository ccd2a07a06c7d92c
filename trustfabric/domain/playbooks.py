"""Playbooks: what can be done about a distrusted instance, and who may say so."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any, Final, TypeAlias

from trustfabric.domain.documents import plain, whole_numbers
from trustfabric.domain.ids import OwnerId, PlaybookId
from trustfabric.domain.rules import check_rules
from trustfabric.domain.specs import ExecutorType, check_spec
from trustfabric.errors import ForbiddenError, InvalidError

NAME_LIMIT = 200
DESCRIPTION_LIMIT = 10_000


class Unset(Enum):
    """The type of `UNSET`: an edit does not mention this field."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybookDraft:
    """A playbook before it has an id."""

    key: str
    display_name: str
    executor_type: ExecutorType
    owner_id: OwnerId | None
    """None: shared, every owner may use it."""
    description: str | None = None
    approval_required: bool = False
    sla_duration_s: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Playbook:
    """One row of the catalogue."""

    id: PlaybookId
    key: str
    display_name: str
    description: str | None
    executor_type: ExecutorType
    owner_id: OwnerId | None
    approval_required: bool
    sla_duration_s: int | None
    metadata: Mapping[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybookEdit:
    """What a PATCH changes: UNSET keeps, None clears."""

    display_name: str | Unset = UNSET
    description: str | Unset | None = UNSET
    executor_type: ExecutorType | Unset = UNSET
    approval_required: bool | Unset = UNSET
    sla_duration_s: int | Unset | None = UNSET
    metadata: Mapping[str, Any] | Unset | None = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who writes to the catalogue."""

    owner_id: OwnerId
    is_admin: bool = False

    @property
    def scope(self) -> OwnerId | None:
        """Whose playbooks are seen beside the shared ones; None: everybody's."""
        return None if self.is_admin else self.owner_id


Checked: TypeAlias = PlaybookDraft | Playbook


def check_playbook(playbook: Checked) -> None:
    """Raise InvalidError, naming the field, where the playbook could not be used."""
    _check_text("playbook_key", playbook.key, NAME_LIMIT)
    _check_text("display_name", playbook.display_name, NAME_LIMIT)
    if playbook.description:
        _check_text("description", playbook.description, DESCRIPTION_LIMIT)
    if playbook.sla_duration_s is not None and not (
        0 < playbook.sla_duration_s < 2**31
    ):
        raise InvalidError("sla_duration_seconds: not a positive number of seconds")
    check_spec(playbook.executor_type, playbook.metadata)
    check_rules(playbook.metadata, approval_required=playbook.approval_required)


def check_author(author: Author, playbook: Checked) -> None:
    """Raise ForbiddenError where this person may not write this playbook.

    What runs programs on our hosts is the admin's; others write what calls an API,
    and only their own.
    """
    if author.is_admin:
        return
    if playbook.executor_type is not ExecutorType.CLOUD_API:
        raise ForbiddenError(
            f"only role admin writes {playbook.executor_type} playbooks"
        )
    if playbook.owner_id != author.owner_id:
        raise ForbiddenError("only role admin writes playbooks that are not their own")


def edited(playbook: Playbook, edit: PlaybookEdit) -> Playbook:
    """Return the playbook after `edit`, one version on; checked."""
    after = replace(
        playbook,
        display_name=_kept(edit.display_name, playbook.display_name),
        description=_kept(edit.description, playbook.description),
        executor_type=_kept(edit.executor_type, playbook.executor_type),
        approval_required=_kept(edit.approval_required, playbook.approval_required),
        sla_duration_s=_kept(edit.sla_duration_s, playbook.sla_duration_s),
        metadata=_kept(edit.metadata, playbook.metadata) or {},
        version=playbook.version + 1,
    )
    check_playbook(after)
    return after


def snapshot_of(playbook: Playbook) -> dict[str, Any]:
    """Return the playbook as a run keeps it: an edit never changes what will run.

    The run adds `parameters`: its payload with the playbook's defaults filled in.
    """
    return {
        "id": playbook.id,
        "playbook_key": playbook.key,
        "display_name": playbook.display_name,
        "description": playbook.description,
        "executor_type": playbook.executor_type.value,
        "owner_id": playbook.owner_id,
        "approval_required": playbook.approval_required,
        "sla_duration_seconds": playbook.sla_duration_s,
        "metadata": dict(playbook.metadata),
        "version": playbook.version,
    }


def content_sha256(
    snapshot: Mapping[str, Any], payload: Mapping[str, Any] | None
) -> str:
    """Return the digest of what will run, and nothing else of the playbook.

    It is the same again of what PostgreSQL kept as `jsonb`, which writes numbers its
    own way.
    """
    content = {**_content(snapshot), "automation_payload": payload}
    if "parameters" in snapshot:
        content["parameters"] = snapshot["parameters"]
    text = json.dumps(
        whole_numbers(content),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def still_runs(playbook: Playbook, snapshot: Mapping[str, Any]) -> bool:
    """Whether the playbook, as it is now, would run what `snapshot` pinned."""
    return _content(snapshot_of(playbook)) == _content(snapshot)


def _content(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: snapshot.get(name)
        for name in ("playbook_key", "executor_type", "metadata")
    }


def _kept(new: Any, old: Any) -> Any:
    return old if new is UNSET else new


def _check_text(name: str, value: str, limit: int) -> None:
    if not value.strip() or plain(value, limit) != value:
        raise InvalidError(f"{name}: not a text of 1 … {limit}")
