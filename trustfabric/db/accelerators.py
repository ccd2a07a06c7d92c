"""The posture table of accelerators: what is known of each instance's hardware."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.accelerators import Accelerator
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.placement import PASSING_POSTURES

_LIST_SQL: LiteralString = """
SELECT runtime_vm_instance_id AS instance_id, accelerator_id, accelerator_type,
       posture, policy_feedback, metadata
  FROM runtime_vm_accelerator_posture
 WHERE runtime_vm_instance_id = ANY (%(ids)s)
 ORDER BY accelerator_id
"""


async def list_accelerators(
    conn: Connection, ids: Iterable[InstanceId]
) -> Mapping[InstanceId, Sequence[Accelerator]]:
    """Return the accelerators of each instance that has any, by their id."""
    found: defaultdict[InstanceId, list[Accelerator]] = defaultdict(list)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LIST_SQL, {"ids": list(ids)})
        for row in await cursor.fetchall():
            found[InstanceId(row.pop("instance_id"))].append(Accelerator(**row))
    return found


_WORSEN_SQL: LiteralString = """
INSERT INTO runtime_vm_accelerator_posture AS p
       (runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
        policy_feedback, metadata, collected_at)
VALUES (%(instance_id)s, %(accelerator_id)s, %(accelerator_type)s, %(posture)s,
        %(policy_feedback)s, %(metadata)s, %(now)s)
ON CONFLICT ON CONSTRAINT accelerator_per_instance DO UPDATE
   SET accelerator_type = excluded.accelerator_type, posture = excluded.posture,
       policy_feedback = excluded.policy_feedback, metadata = excluded.metadata,
       collected_at = excluded.collected_at
 WHERE NOT excluded.posture = ANY(%(passing)s) OR p.posture = ANY(%(passing)s)
"""


async def worsen_accelerators(
    conn: Connection,
    instance_id: InstanceId,
    accelerators: Sequence[Accelerator],
    now: datetime,
) -> None:
    """Enter what came with an enqueue: a blocking posture is never made to pass."""
    if not accelerators:
        return
    async with conn.cursor() as cursor:
        await cursor.executemany(
            _WORSEN_SQL,
            [
                {
                    "instance_id": instance_id,
                    "accelerator_id": one.accelerator_id,
                    "accelerator_type": one.accelerator_type,
                    "posture": one.posture,
                    "policy_feedback": list(one.policy_feedback),
                    "metadata": Jsonb(dict(one.metadata)),
                    "now": now,
                    "passing": sorted(PASSING_POSTURES),
                }
                for one in accelerators
            ],
        )
