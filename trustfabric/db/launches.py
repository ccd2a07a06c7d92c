"""What a launch makes a guest's evidence show."""

from datetime import datetime
from typing import LiteralString

from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.attestation.launch import Launch
from trustfabric.domain.ids import InstanceId

_SET_SQL: LiteralString = """
INSERT INTO attestation_launches
       (runtime_vm_instance_id, measurement, boots_kernel, guest_policy, inputs,
        why_none, derived_at)
VALUES (%(id)s, %(measurement)s, %(boots_kernel)s, %(guest_policy)s, %(inputs)s,
        %(why_none)s, %(derived_at)s)
ON CONFLICT (runtime_vm_instance_id) DO UPDATE
   SET measurement = excluded.measurement, boots_kernel = excluded.boots_kernel,
       guest_policy = excluded.guest_policy, inputs = excluded.inputs,
       why_none = excluded.why_none, derived_at = excluded.derived_at
"""


async def set_launch(
    conn: Connection, instance_id: InstanceId, launch: Launch, now: datetime
) -> None:
    """Keep what the newest definition of an instance makes expected."""
    digest = launch.digest
    await conn.execute(
        _SET_SQL,
        {
            "id": instance_id,
            "measurement": None if digest is None else digest.measurement,
            "boots_kernel": digest is not None and digest.boots_kernel,
            "guest_policy": None if digest is None else digest.guest_policy,
            "inputs": Jsonb(dict(launch.inputs)),
            "why_none": launch.why_none,
            "derived_at": now,
        },
    )
