"""Results of attestation: the verdict behind one, and the keys that sign them."""

from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.attestation.ear_result import Recorded
from trustfabric.domain.ids import AttestationId, OwnerId
from trustfabric.domain.trust import AttestationStatus, Lifecycle

_NEWEST_KEYS = 100

_RECORDED_SQL: LiteralString = """
SELECT i.instance_id AS instance, h.provenance, a.verification_status AS status,
       a.freshness_expires_at AS deadline,
       coalesce(i.hypervisor_endpoint ~ '^test[+:]', false)
       OR 'libvirt:simulated' = ANY(i.capability_notes) AS simulated,
       NOT EXISTS (
           SELECT 1 FROM runtime_vm_attestations later
            WHERE later.runtime_vm_instance_id = i.id AND later.id > a.id
              AND later.verification_status <> 'unknown'
              AND later.accelerator_id IS NULL
       ) AS newest,
       i.terminated_at IS NULL AND i.boot_id IS NOT DISTINCT FROM c.boot_id
           AS same_boot,
       r.lifecycle_state AS lifecycle
  FROM runtime_vm_attestations a
  JOIN runtime_vm_instances i ON i.id = a.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
  JOIN attestation_challenges c ON c.attestation_id = a.id
  JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
  JOIN LATERAL (
       SELECT h.provenance FROM runtime_vm_trust_history h
        WHERE h.runtime_vm_instance_id = i.id AND h.attestation_id = a.id
          AND h.provenance IS NOT NULL
        ORDER BY h.id LIMIT 1) h ON true
 WHERE a.id = %(id)s AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""


async def get_recorded(
    conn: Connection, owner_id: OwnerId | None, attestation_id: AttestationId
) -> Recorded | None:
    """Return a verdict; None where it isn't, or isn't this owner's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _RECORDED_SQL, {"id": attestation_id, "owner_id": owner_id}
        )
        row = await cursor.fetchone()
    if row is None:
        return None
    return Recorded(
        instance=row["instance"],
        provenance=row["provenance"],
        status=AttestationStatus(row["status"]),
        deadline=row["deadline"],
        simulated=row["simulated"],
        newest=row["newest"],
        same_boot=row["same_boot"],
        lifecycle=Lifecycle(row["lifecycle"]),
    )


_ADD_KEY_SQL: LiteralString = """
INSERT INTO attestation_verifier_keys (kid, jwk, runtime_id)
VALUES (%(kid)s, %(jwk)s, %(runtime_id)s)
ON CONFLICT (kid) DO NOTHING
"""


async def add_key(
    conn: Connection, kid: str, jwk: Mapping[str, Any], runtime_id: str
) -> None:
    """Publish a public key; what it signed stays verifiable after its rotation."""
    await conn.execute(
        _ADD_KEY_SQL, {"kid": kid, "jwk": Jsonb(dict(jwk)), "runtime_id": runtime_id}
    )


_LIST_KEYS_SQL: LiteralString = """
SELECT jwk FROM attestation_verifier_keys ORDER BY created_at DESC, kid LIMIT %(limit)s
"""


async def list_keys(conn: Connection) -> list[Mapping[str, Any]]:
    """Return every runtime's public keys, newest first."""
    cursor = await conn.execute(_LIST_KEYS_SQL, {"limit": _NEWEST_KEYS})
    return [row[0] for row in await cursor.fetchall()]
