"""Agents that push: their tokens, and the nonces that they were told."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import dict_row

from trustfabric.db.attestations import IssuedChallenge
from trustfabric.db.session import Connection
from trustfabric.domain.ids import AttestationId, ChallengeId, InstanceId, OwnerId

# --- tokens -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token before it has an id; of its secret only the digest is kept."""

    instance_id: InstanceId
    boot_id: UUID | None
    """The boot that it is for; None: every one of the instance."""
    secret_sha256: bytes
    issued_by: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentToken:
    """One row of `attestation_agent_tokens`."""

    id: int
    instance_id: InstanceId
    boot_id: UUID | None
    issued_by: str
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


_COLUMNS: LiteralString = """
    t.id, t.runtime_vm_instance_id, t.boot_id, t.issued_by, t.issued_at, t.expires_at,
    t.revoked_at
"""

_LOCK_SQL: LiteralString = """
SELECT id FROM runtime_vm_instances WHERE id = %(id)s FOR NO KEY UPDATE
"""

_ADD_SQL: LiteralString = (
    """
INSERT INTO attestation_agent_tokens AS t
       (runtime_vm_instance_id, boot_id, secret_sha256, issued_by, issued_at,
        expires_at)
SELECT %(instance_id)s, %(boot_id)s, %(secret)s, %(issued_by)s, %(issued_at)s,
       %(expires_at)s
 WHERE (SELECT count(*) FROM attestation_agent_tokens l
          JOIN runtime_vm_instances i ON i.id = l.runtime_vm_instance_id
         WHERE l.runtime_vm_instance_id = %(instance_id)s AND l.revoked_at IS NULL
           AND l.expires_at > %(issued_at)s
           AND (l.boot_id IS NULL OR l.boot_id = i.boot_id)) < %(most)s
RETURNING"""
    + _COLUMNS
)


async def add_token(conn: Connection, new: NewToken, *, most: int) -> AgentToken | None:
    """Keep a token; None where its instance has as many that are good.

    Of tokens that are issued at once each counts those before it.
    """
    await conn.execute(_LOCK_SQL, {"id": new.instance_id})
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _ADD_SQL,
            {
                "instance_id": new.instance_id,
                "boot_id": new.boot_id,
                "secret": new.secret_sha256,
                "issued_by": new.issued_by,
                "issued_at": new.issued_at,
                "expires_at": new.expires_at,
                "most": most,
            },
        )
        row = await cursor.fetchone()
    return None if row is None else _token(row)


_HOLDS_SQL: LiteralString = """
SELECT 1 FROM attestation_agent_tokens t
  JOIN runtime_vm_instances i ON i.id = t.runtime_vm_instance_id
 WHERE t.runtime_vm_instance_id = %(instance_id)s AND t.secret_sha256 = %(secret)s
   AND t.revoked_at IS NULL AND t.expires_at > %(now)s AND i.terminated_at IS NULL
   AND (t.boot_id IS NULL OR t.boot_id = i.boot_id)
"""


async def token_holds(
    conn: Connection, instance_id: InstanceId, secret_sha256: bytes, now: datetime
) -> bool:
    """Tell whether a token is still good: for this instance, in its present boot."""
    cursor = await conn.execute(
        _HOLDS_SQL, {"instance_id": instance_id, "secret": secret_sha256, "now": now}
    )
    return await cursor.fetchone() is not None


_ANY_SQL: LiteralString = """
SELECT EXISTS (
    SELECT 1 FROM attestation_agent_tokens t
      JOIN runtime_vm_instances i ON i.id = t.runtime_vm_instance_id
     WHERE t.runtime_vm_instance_id = %(id)s AND t.revoked_at IS NULL
       AND t.expires_at > %(now)s AND (t.boot_id IS NULL OR t.boot_id = i.boot_id))
"""


async def may_push(conn: Connection, instance_id: InstanceId, now: datetime) -> bool:
    """Tell whether some agent of an instance could answer a challenge."""
    cursor = await conn.execute(_ANY_SQL, {"id": instance_id, "now": now})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


_LIST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM attestation_agent_tokens t
  JOIN runtime_vm_instances i ON i.id = t.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
 WHERE t.id > %(after)s
   AND (%(instance_id)s::bigint IS NULL OR t.runtime_vm_instance_id = %(instance_id)s)
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
 ORDER BY t.id
 LIMIT %(limit)s
"""
)


async def list_tokens(
    conn: Connection,
    owner_id: OwnerId | None,
    instance_id: InstanceId | None,
    *,
    after: int,
    limit: int,
) -> list[AgentToken]:
    """Return the tokens of an owner's instances, by id."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {
                "owner_id": owner_id,
                "instance_id": instance_id,
                "after": after,
                "limit": limit,
            },
        )
        return [_token(row) for row in await cursor.fetchall()]


_REVOKE_SQL: LiteralString = """
UPDATE attestation_agent_tokens t
   SET revoked_at = coalesce(t.revoked_at, %(now)s),
       revoked_by = coalesce(t.revoked_by, %(by)s)
  FROM runtime_vm_instances i JOIN servers s ON s.id = i.server_id
 WHERE t.id = %(id)s AND i.id = t.runtime_vm_instance_id
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""


async def revoke_token(
    conn: Connection, owner_id: OwnerId | None, token_id: int, by: str, now: datetime
) -> bool:
    """Revoke a token, again too; False where it isn't, or isn't this owner's."""
    cursor = await conn.execute(
        _REVOKE_SQL, {"id": token_id, "owner_id": owner_id, "by": by, "now": now}
    )
    return cursor.rowcount == 1


def _token(row: dict[str, Any]) -> AgentToken:
    return AgentToken(
        id=row["id"],
        instance_id=InstanceId(row["runtime_vm_instance_id"]),
        boot_id=row["boot_id"],
        issued_by=row["issued_by"],
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )


# --- challenges, as agents see them -------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A challenge that was issued, as far as whoever answers it is concerned."""

    issued: IssuedChallenge
    instance_id: InstanceId
    instance_name: str
    kind: str
    purpose: str
    boot_id: UUID | None
    issued_at: datetime
    expires_at: datetime
    used: bool
    outcome: str | None
    same_boot: bool
    """Its instance lives, and is still in the boot that was asked."""
    accelerator_id: str | None
    """Which of the instance's accelerators was asked; None: itself."""


_ASKED: LiteralString = """
SELECT c.id, c.attestation_id, c.runtime_vm_instance_id, i.instance_id AS name, c.kind,
       c.purpose, c.boot_id, c.issued_at, c.expires_at, c.used_at IS NOT NULL AS used,
       c.outcome, c.accelerator_id,
       i.terminated_at IS NULL AND i.boot_id IS NOT DISTINCT FROM c.boot_id AS same_boot
  FROM attestation_challenges c
  JOIN runtime_vm_instances i ON i.id = c.runtime_vm_instance_id
"""

_OPEN_SQL: LiteralString = (
    "SELECT DISTINCT ON (accelerator_id) * FROM ("
    + _ASKED
    + """
 WHERE c.runtime_vm_instance_id = %(id)s AND c.used_at IS NULL
   AND c.expires_at > %(now)s AND i.terminated_at IS NULL
   AND i.boot_id IS NOT DISTINCT FROM c.boot_id) o
 ORDER BY accelerator_id NULLS FIRST, id DESC
"""
)


async def list_open(
    conn: Connection, instance_id: InstanceId, now: datetime
) -> list[Asked]:
    """Return the newest challenges that wait for an answer, one for each asked.

    That of the instance itself is the first, then those of its accelerators by id.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_OPEN_SQL, {"id": instance_id, "now": now})
        return [_asked(row) for row in await cursor.fetchall()]


_FIND_SQL: LiteralString = (
    _ASKED
    + """
  JOIN attestation_tellings n ON n.challenge_id = c.id
 WHERE n.nonce_digest = %(digest)s
"""
)


async def find_told(conn: Connection, nonce_digest: bytes) -> Asked | None:
    """Return the challenge that a nonce was told for; None: we never told it."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_FIND_SQL, {"digest": nonce_digest})
        row = await cursor.fetchone()
    return None if row is None else _asked(row)


_TURN_SQL: LiteralString = """
SELECT id FROM attestation_challenges WHERE id = %(id)s FOR NO KEY UPDATE
"""

_TELL_SQL: LiteralString = """
INSERT INTO attestation_tellings (nonce_digest, challenge_id, told_at)
SELECT %(digest)s, %(id)s, %(now)s
 WHERE (SELECT count(*) FROM attestation_tellings WHERE challenge_id = %(id)s)
       < %(most)s
"""


async def tell(
    conn: Connection,
    challenge_id: ChallengeId,
    nonce_digest: bytes,
    now: datetime,
    *,
    most: int,
) -> bool:
    """Remember a nonce that is about to be told; False: it was told often enough."""
    # A statement of its own: who waited for it counts what was told meanwhile.
    await conn.execute(_TURN_SQL, {"id": challenge_id})
    cursor = await conn.execute(
        _TELL_SQL,
        {"digest": nonce_digest, "id": challenge_id, "now": now, "most": most},
    )
    return cursor.rowcount == 1


_WANTED_SQL: LiteralString = """
SELECT i.power_state = 'running'
       AND (r.lifecycle_state IN ('suspect', 'remediating')
            OR r.lifecycle_state = 'restored' AND r.freshness_deadline <= %(before)s)
  FROM runtime_vm_instances i
  JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
 WHERE i.id = %(id)s AND i.terminated_at IS NULL
"""


async def wants_evidence(
    conn: Connection, instance_id: InstanceId, before: datetime
) -> bool:
    """Tell whether an instance runs and has no evidence that lasts beyond `before`."""
    cursor = await conn.execute(_WANTED_SQL, {"id": instance_id, "before": before})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


def _asked(row: dict[str, Any]) -> Asked:
    return Asked(
        issued=IssuedChallenge(
            ChallengeId(row["id"]), AttestationId(row["attestation_id"])
        ),
        instance_id=InstanceId(row["runtime_vm_instance_id"]),
        instance_name=row["name"],
        kind=row["kind"],
        purpose=row["purpose"],
        boot_id=row["boot_id"],
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
        used=row["used"],
        outcome=row["outcome"],
        same_boot=row["same_boot"],
        accelerator_id=row["accelerator_id"],
    )
