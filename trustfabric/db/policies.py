"""Versions of policies and reference values: the statements, and the rows as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.attestation.basis import Basis, Rule
from trustfabric.domain.attestation.policy import AppraisalPolicy
from trustfabric.domain.attestation.rules import policy_of, reference_set_of
from trustfabric.domain.attestation.versions import Draft, Noun, Scope, State, Version
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import InstanceId, OwnerId

MOST_RULES = 4
"""Versions of a policy that one judgement tries."""

MOST_SETS = 256
"""Sets of reference values that one judgement knows."""

_COLUMNS: LiteralString = """
    d.id, d.noun, d.name, d.number, d.owner_id, d.image, d.tier, d.state,
    d.deprecated_until, d.document, d.note, d.created_by, d.version, d.created_at,
    d.updated_at
"""

_VISIBLE: LiteralString = """
   AND (%(owner_id)s::bigint IS NULL OR d.owner_id IS NULL
        OR d.owner_id = %(owner_id)s)
"""

_LOCK_NAME_SQL: LiteralString = """
SELECT pg_advisory_xact_lock(hashtextextended('attestation_documents/' || %(key)s, 0))
"""


async def lock_name(conn: Connection, noun: Noun, name: str) -> None:
    """Keep others from adding versions under this name until the commit."""
    await conn.execute(_LOCK_NAME_SQL, {"key": f"{noun}/{name}"})


_INSERT_SQL: LiteralString = (
    """
INSERT INTO attestation_documents AS d
       (noun, name, number, owner_id, image, tier, document, note, created_by)
VALUES (%(noun)s, %(name)s, %(number)s, %(owner_id)s, %(image)s, %(tier)s,
        %(document)s, %(note)s, %(created_by)s)
RETURNING"""
    + _COLUMNS
)


async def insert_version(conn: Connection, draft: Draft, number: int) -> Version:
    """Add a version, staged. Its name must be locked."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _INSERT_SQL,
            {
                "noun": draft.noun,
                "name": draft.name,
                "number": number,
                "owner_id": draft.scope.owner_id,
                "image": draft.scope.image,
                "tier": draft.scope.tier,
                "document": Jsonb(dict(draft.document)),
                "note": draft.note,
                "created_by": draft.created_by,
            },
        )
        row = await cursor.fetchone()
    assert row is not None
    return _version(row)


_NEWEST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_documents d
 WHERE d.noun = %(noun)s AND d.name = %(name)s
 ORDER BY d.number DESC
 LIMIT 1
"""
)


async def newest_of(conn: Connection, noun: Noun, name: str) -> Version | None:
    """Return the last version of a name."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_NEWEST_SQL, {"noun": noun, "name": name})
        row = await cursor.fetchone()
    return None if row is None else _version(row)


_ACTIVE_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_documents d
 WHERE d.noun = %(noun)s AND d.name = %(name)s AND d.state = 'active'
   AND d.id <> %(but)s
 ORDER BY d.number
   FOR UPDATE OF d
"""
)


async def lock_active(
    conn: Connection, noun: Noun, name: str, *, but: int
) -> list[Version]:
    """Return the active versions of a name, locked, but for one of them."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_ACTIVE_SQL, {"noun": noun, "name": name, "but": but})
        return [_version(row) for row in await cursor.fetchall()]


_GET_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_documents d
 WHERE d.noun = %(noun)s AND d.id = %(id)s
"""
    + _VISIBLE
)


async def get_version(
    conn: Connection, owner_id: OwnerId | None, noun: Noun, version_id: int
) -> Version | None:
    """Return one version; None where it isn't, or is another owner's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _GET_SQL, {"noun": noun, "id": version_id, "owner_id": owner_id}
        )
        row = await cursor.fetchone()
    return None if row is None else _version(row)


_LOCK_SQL: LiteralString = _GET_SQL + " FOR UPDATE OF d"


async def lock_version(conn: Connection, noun: Noun, version_id: int) -> Version | None:
    """Return one version, and keep others from changing it."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LOCK_SQL, {"noun": noun, "id": version_id, "owner_id": None}
        )
        row = await cursor.fetchone()
    return None if row is None else _version(row)


_LIST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_documents d
 WHERE d.noun = %(noun)s AND d.id > %(after)s
   AND (%(name)s::text IS NULL OR d.name = %(name)s)
   AND (%(state)s::text IS NULL OR d.state = %(state)s)
"""
    + _VISIBLE
    + """
 ORDER BY d.id
 LIMIT %(limit)s
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a list is narrowed to."""

    name: str | None = None
    state: State | None = None


async def list_versions(
    conn: Connection,
    owner_id: OwnerId | None,
    noun: Noun,
    only: Filter,
    *,
    after: int,
    limit: int,
) -> list[Version]:
    """Return an owner's versions and everybody's, by id, from beyond `after`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {
                "noun": noun,
                "owner_id": owner_id,
                "name": only.name,
                "state": only.state,
                "after": after,
                "limit": limit,
            },
        )
        return [_version(row) for row in await cursor.fetchall()]


_SAVE_SQL: LiteralString = (
    """
UPDATE attestation_documents d
   SET state = %(state)s, deprecated_until = %(until)s, version = d.version + 1,
       updated_at = now()
 WHERE d.id = %(id)s
RETURNING"""
    + _COLUMNS
)


async def save_state(conn: Connection, after: Version) -> Version:
    """Write the state of a version that is locked."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _SAVE_SQL,
            {"id": after.id, "state": after.state, "until": after.deprecated_until},
        )
        row = await cursor.fetchone()
    assert row is not None
    return _version(row)


_IN_FORCE_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_documents d
 WHERE d.noun = %(noun)s
   AND (d.owner_id IS NULL OR d.owner_id = %(owner_id)s)
   AND (d.image IS NULL OR d.image = %(image)s)
   AND (d.tier IS NULL OR d.tier = %(tier)s)
   AND (d.state = 'active' OR d.state = 'deprecated' AND d.deprecated_until > %(now)s)
 ORDER BY (d.owner_id IS NOT NULL) DESC, (d.image IS NOT NULL) DESC,
          (d.tier IS NOT NULL) DESC, (d.state = 'active') DESC, d.number DESC
 LIMIT %(limit)s
"""
)


async def list_policies_for(
    conn: Connection, whose: Scope, now: datetime, *, limit: int
) -> list[Version]:
    """Return the policies in force for an instance, the most specific first."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _IN_FORCE_SQL,
            _where(whose) | {"noun": "policies", "now": now, "limit": limit},
        )
        return [_version(row) for row in await cursor.fetchall()]


_REFERENCES_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_documents d
 WHERE d.noun = 'references' AND d.state <> 'staged'
   AND d.document ->> 'kind' = %(kind)s
   AND (d.owner_id IS NULL OR d.owner_id = %(owner_id)s)
   AND (d.image IS NULL OR d.image = %(image)s)
   AND (d.tier IS NULL OR d.tier = %(tier)s)
 ORDER BY (d.state = 'revoked') DESC, (d.state = 'active') DESC, d.id DESC
 LIMIT %(limit)s
"""
)


async def list_references_for(
    conn: Connection, whose: Scope, kind: str, *, limit: int
) -> list[Version]:
    """Return every set that concerns an instance, also those that are over.

    Past `limit` it is those in force that fall off: a revoked one never does.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _REFERENCES_SQL, _where(whose) | {"kind": kind, "limit": limit}
        )
        return [_version(row) for row in await cursor.fetchall()]


async def basis_for(
    conn: Connection,
    whose: Scope,
    kind: EvidenceKind,
    default: AppraisalPolicy,
    now: datetime,
    *,
    without: int | None = None,
) -> Basis:
    """Return what evidence of an instance is judged by at a moment.

    The most specific policy in force, with what of it is deprecated and not over,
    else the default; and every set of reference values that concerns it. `without` is
    the id of a version of a policy that is left out.
    """
    found = [
        each
        for each in await list_policies_for(conn, whose, now, limit=4 * MOST_RULES)
        if each.id != without
    ]
    sets = await list_references_for(conn, whose, kind, limit=MOST_SETS)
    same = [each for each in found if each.name == found[0].name][:MOST_RULES]
    rules = tuple(
        Rule(policy=policy_of(each), until=each.deprecated_until, scope=each.scope)
        for each in same
    )
    return Basis(
        rules=rules or (Rule(policy=default),),
        references=tuple(reference_set_of(each) for each in sets),
    )


_CONCERNED_SQL: LiteralString = """
SELECT i.id
  FROM runtime_vm_instances i JOIN servers s ON s.id = i.server_id
 WHERE i.runtime_owner = %(runtime)s AND i.terminated_at IS NULL
   AND i.power_state = 'running'
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
   AND (%(image)s::text IS NULL OR i.image = %(image)s)
   AND (%(tier)s::text IS NULL OR i.isolation_tier = %(tier)s)
 ORDER BY i.id
 LIMIT %(limit)s
"""


async def list_concerned(
    conn: Connection, runtime: str, scope: Scope, *, limit: int
) -> Sequence[InstanceId]:
    """Return this runtime's running instances that a document is about."""
    cursor = await conn.execute(
        _CONCERNED_SQL, _where(scope) | {"runtime": runtime, "limit": limit}
    )
    return [InstanceId(row[0]) for row in await cursor.fetchall()]


def _where(scope: Scope) -> dict[str, Any]:
    return {"owner_id": scope.owner_id, "image": scope.image, "tier": scope.tier}


def _version(row: dict[str, Any]) -> Version:
    owner_id = row["owner_id"]
    return Version(
        id=row["id"],
        noun=Noun(row["noun"]),
        name=row["name"],
        number=row["number"],
        scope=Scope(
            owner_id=None if owner_id is None else OwnerId(owner_id),
            image=row["image"],
            tier=row["tier"],
        ),
        state=State(row["state"]),
        deprecated_until=row["deprecated_until"],
        document=row["document"],
        note=row["note"],
        created_by=row["created_by"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
