"""How a VM came to run: its definition, its boots, its crashes and reboots."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from psycopg.errors import UniqueViolation

from trustfabric.db.session import Connection
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.ports import Defined
from trustfabric.domain.power import Desired
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError, NotWantedError

_SET_BOOT_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET boot_id = %(boot_id)s, power_state = 'starting',
       reboots_noted = reboots_heard, updated_at = %(now)s
 WHERE id = %(id)s AND terminated_at IS NULL
   AND (owner_epoch IS NULL OR owner_epoch <= %(epoch)s)
"""


@dataclass(frozen=True, slots=True)
class SetBoot:
    """Companion: a new boot begins; written before the domain is started."""

    boot_id: UUID
    now: datetime
    epoch: int

    async def write(self, conn: Connection, before: Snapshot) -> None:
        cursor = await conn.execute(
            _SET_BOOT_SQL,
            {
                "id": before.instance_id,
                "boot_id": self.boot_id,
                "now": self.now,
                "epoch": self.epoch,
            },
        )
        if cursor.rowcount == 0:
            raise ConflictError(
                f"instance {before.instance_id} is terminated, or another's"
            )


@dataclass(frozen=True, slots=True)
class StillWanted:
    """Companion: it boots only where it shall run, as orders before this one say.

    They take their turn with the registry's transaction. NotWantedError.
    """

    async def write(self, conn: Connection, before: Snapshot) -> None:
        cursor = await conn.execute(
            "SELECT desired_state FROM runtime_vm_instances WHERE id = %s",
            [before.instance_id],
        )
        row = await cursor.fetchone()
        if row is None or row[0] != Desired.RUNNING:
            raise NotWantedError(f"instance {before.instance_id} shall not run")


_SET_DEFINED_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET instance_id = CASE WHEN defined_at IS NULL THEN %(name)s ELSE instance_id END,
       defined_at = coalesce(defined_at, %(now)s), capability_notes = %(notes)s,
       updated_at = %(now)s
 WHERE id = %(id)s
"""


async def set_defined(
    conn: Connection,
    instance_id: InstanceId,
    defined: Defined,
    now: datetime,
) -> None:
    """Record what its hypervisor made of it: its name there, once, and its notes.

    ConflictError where the name is another instance's.
    """
    try:
        await conn.execute(
            _SET_DEFINED_SQL,
            {
                "id": instance_id,
                "name": defined.hypervisor_name,
                "notes": list(defined.notes),
                "now": now,
            },
        )
    except UniqueViolation as error:
        raise ConflictError(
            f"instance {instance_id}: its hypervisor gave it another's name, "
            f"{defined.hypervisor_name}"
        ) from error


_SET_ENDPOINT_SQL: LiteralString = """
UPDATE runtime_vm_instances SET driver = %(driver)s, hypervisor_endpoint = %(endpoint)s
 WHERE id = %(id)s
"""


async def set_endpoint(
    conn: Connection, instance_id: InstanceId, driver: str, endpoint: str
) -> None:
    """Record by which driver, and at which address, its hypervisor is reached now."""
    await conn.execute(
        _SET_ENDPOINT_SQL, {"id": instance_id, "driver": driver, "endpoint": endpoint}
    )


_ADD_CRASH_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET crashed_at = (array_append(crashed_at, %(now)s))
                    [greatest(1, cardinality(crashed_at) - 18):]
 WHERE id = %(id)s
"""


async def add_crash(conn: Connection, instance_id: InstanceId, now: datetime) -> None:
    """Remember when it crashed; the twenty newest are kept."""
    await conn.execute(_ADD_CRASH_SQL, {"id": instance_id, "now": now})


_ADD_REBOOTS_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET reboots_heard = reboots_heard + heard.count
  FROM unnest(%(names)s::text[], %(counts)s::int[]) AS heard (name, count)
 WHERE instance_id = heard.name AND terminated_at IS NULL
"""


async def add_reboots(conn: Connection, heard: Mapping[str, int]) -> None:
    """Remember how often these guests, by name, booted inside their domains."""
    await conn.execute(
        _ADD_REBOOTS_SQL, {"names": list(heard), "counts": list(heard.values())}
    )
