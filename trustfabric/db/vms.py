"""VM instances and their own log: the statements, and the rows as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.placement import take_turn
from trustfabric.db.session import Connection
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.vms import PowerState
from trustfabric.errors import ConflictError


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One row of `runtime_vm_instances`, with its server's owner."""

    id: InstanceId
    server_id: ServerId
    owner_id: OwnerId
    name: str
    """The hypervisor's name of it: the column `instance_id`."""
    isolation_tier: str
    driver: str
    endpoint: str
    """Of the hypervisor that it was made at, without secrets."""
    image: str
    memory_mib: int
    vcpu_count: int
    config: Mapping[str, Any] = field(repr=False)
    attestation_policy: str | None
    capability_notes: Sequence[str]
    last_error: str | None
    desired_state: str
    power_state: PowerState
    boot_id: UUID | None
    runtime_owner: str | None
    """The runtime that looks after it, which alone has an actor for it."""
    owner_epoch: int | None
    """The start of a runtime that looks after it; an older one may not write."""
    defined_at: datetime | None
    """Since when its hypervisor knows it by `name`."""
    crashes: Sequence[datetime]
    """When it crashed: the newest ones, oldest first."""
    reboots_due: int
    """Reboots its hypervisor told of that no new boot covers yet."""
    terminated_at: datetime | None
    created_at: datetime
    updated_at: datetime
    gpu: Mapping[str, Any]
    """The policy of GPUs that it was launched with."""

    @property
    def attestation(self) -> Mapping[str, Any]:
        return self.config.get("attestation") or {}

    @property
    def vm(self) -> Mapping[str, Any]:
        return self.config.get("vm") or {}


_COLUMNS: LiteralString = """
    i.id, i.server_id, s.owner_id, i.instance_id AS name, i.isolation_tier, i.driver,
    i.image, i.memory_mib, i.vcpu_count, i.config, i.attestation_policy,
    i.capability_notes, i.last_error, i.desired_state, i.power_state, i.boot_id,
    i.runtime_owner, i.owner_epoch, i.defined_at, i.crashed_at,
    coalesce(i.hypervisor_endpoint, '') AS endpoint,
    i.reboots_heard - i.reboots_noted AS reboots_due,
    i.terminated_at, i.created_at, i.updated_at,
    coalesce(i.gpu_passthrough_policy, '{}') AS gpu
"""

_INSERT_SQL: LiteralString = """
INSERT INTO runtime_vm_instances
       (server_id, instance_id, isolation_tier, driver, image, memory_mib, vcpu_count,
        config, attestation_hint, attestation_policy, hypervisor_endpoint,
        hypervisor_credentials, network_template, volume_template,
        gpu_passthrough_policy, desired_state, power_state, runtime_owner, owner_epoch)
VALUES (%(server_id)s, %(name)s, %(isolation_tier)s, %(driver)s, %(image)s,
        %(memory_mib)s, %(vcpu_count)s, %(config)s, %(attestation_hint)s,
        %(attestation_policy)s, %(endpoint)s, %(credentials)s, %(network)s,
        %(volume)s, %(gpu)s, 'running', 'unknown', %(runtime_owner)s, %(owner_epoch)s)
RETURNING id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstance:
    """The insert of an instance that shall run; shares its commit with its trust."""

    server_id: ServerId
    name: str
    isolation_tier: str
    driver: str
    image: str
    memory_mib: int
    vcpu_count: int
    config: Mapping[str, Any] = field(repr=False)
    attestation_policy: str
    endpoint: str
    credentials: Mapping[str, Any]
    network: Mapping[str, Any]
    volume: Mapping[str, Any]
    gpu: Mapping[str, Any]
    runtime_owner: str
    owner_epoch: int

    async def write(self, conn: Connection) -> InstanceId:
        hint = self.config.get("attestation")
        cursor = await conn.execute(
            _INSERT_SQL,
            {
                "server_id": self.server_id,
                "name": self.name,
                "isolation_tier": self.isolation_tier,
                "driver": self.driver,
                "image": self.image,
                "memory_mib": self.memory_mib,
                "vcpu_count": self.vcpu_count,
                "config": Jsonb(dict(self.config)),
                "attestation_hint": None if hint is None else Jsonb(hint),
                "attestation_policy": self.attestation_policy,
                "endpoint": self.endpoint,
                "credentials": Jsonb(dict(self.credentials)),
                "network": Jsonb(dict(self.network)),
                "volume": Jsonb(dict(self.volume)),
                "gpu": Jsonb(dict(self.gpu)),
                "runtime_owner": self.runtime_owner,
                "owner_epoch": self.owner_epoch,
            },
        )
        row = await cursor.fetchone()
        assert row is not None
        return InstanceId(row[0])


@dataclass(frozen=True, slots=True)
class ReplaceInstance:
    """The insert of an instance that takes another's place, in one commit."""

    old: InstanceId
    insert: NewInstance

    async def write(self, conn: Connection) -> InstanceId:
        await set_desired(conn, self.old, "terminated")
        return await self.insert.write(conn)


_GET_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM runtime_vm_instances i JOIN servers s ON s.id = i.server_id
 WHERE i.id = %(id)s AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""
)


async def get_instance(
    conn: Connection, owner_id: OwnerId | None, instance_id: InstanceId
) -> Instance | None:
    """Return one instance; None where it isn't, or isn't this owner's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_GET_SQL, {"id": instance_id, "owner_id": owner_id})
        row = await cursor.fetchone()
    return None if row is None else _instance(row)


_NEWEST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM runtime_vm_instances i JOIN servers s ON s.id = i.server_id
 WHERE i.server_id = %(server_id)s
 ORDER BY i.id DESC
 LIMIT %(limit)s
"""
)


async def list_newest(
    conn: Connection, server_id: ServerId, *, limit: int
) -> list[Instance]:
    """Return a server's instances, newest first."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_NEWEST_SQL, {"server_id": server_id, "limit": limit})
        return [_instance(row) for row in await cursor.fetchall()]


_LIVING_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET runtime_owner = %(runtime)s, owner_epoch = %(epoch)s, updated_at = now()
 WHERE id IN (
       SELECT id FROM runtime_vm_instances
        WHERE terminated_at IS NULL AND id > %(after)s
          AND (runtime_owner IS NULL OR runtime_owner = %(runtime)s)
        ORDER BY id
        LIMIT %(limit)s)
   AND terminated_at IS NULL
   AND (runtime_owner IS NULL OR runtime_owner = %(runtime)s)
RETURNING id, unsettled OR reboots_heard > reboots_noted, instance_id, power_state,
          boot_id, driver, coalesce(hypervisor_endpoint, '')
"""


@dataclass(frozen=True, slots=True, order=True)
class Adopted:
    """A living instance that a start of the runtime took over."""

    id: InstanceId
    unsettled: bool
    """It isn't, or may not be, as it is wanted."""
    name: str
    power: PowerState
    boot_id: UUID | None
    driver: str
    endpoint: str


async def adopt_living(
    conn: Connection,
    runtime: str,
    epoch: int,
    *,
    after: int = 0,
    limit: int | None = None,
) -> list[Adopted]:
    """Take over this runtime's living instances under its new epoch, by id.

    In the registry's turn: its writers lock rows of many VMs too, in no order.
    """
    await take_turn(conn)
    cursor = await conn.execute(
        _LIVING_SQL,
        {"runtime": runtime, "epoch": epoch, "after": after, "limit": limit},
    )
    return sorted(
        Adopted(InstanceId(row[0]), row[1], row[2], PowerState(row[3]), *row[4:])
        for row in await cursor.fetchall()
    )


_UNSETTLED_SQL: LiteralString = """
SELECT id, desired_state FROM runtime_vm_instances
 WHERE unsettled AND runtime_owner = %(runtime)s AND id > %(after)s
 ORDER BY id
 LIMIT %(limit)s
"""


async def list_unsettled(
    conn: Connection, runtime: str, *, after: int = 0, limit: int = 100
) -> list[tuple[InstanceId, str]]:
    """Return this runtime's instances that are not as they are wanted, and how."""
    cursor = await conn.execute(
        _UNSETTLED_SQL, {"runtime": runtime, "after": after, "limit": limit}
    )
    return [(InstanceId(row[0]), row[1]) for row in await cursor.fetchall()]


_SET_DESIRED_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET desired_state = %(desired)s, last_error = NULL, updated_at = now()
 WHERE id = %(id)s AND terminated_at IS NULL AND desired_state <> 'terminated'
"""


async def set_desired(conn: Connection, instance_id: InstanceId, desired: str) -> None:
    """Say what shall be: `running`, `stopped` or `terminated`, which is final."""
    await conn.execute(_SET_DESIRED_SQL, {"id": instance_id, "desired": desired})


_SET_POWER_SQL: LiteralString = """
UPDATE runtime_vm_instances
   SET power_state = %(power)s, last_error = %(error)s,
       terminated_at = CASE WHEN %(terminated)s THEN %(now)s ELSE terminated_at END,
       updated_at = %(now)s
 WHERE id = %(id)s
"""


async def set_power(
    conn: Connection,
    instance_id: InstanceId,
    power: PowerState,
    now: datetime,
    *,
    error: str | None = None,
    terminated: bool = False,
) -> None:
    """Record what is known of its power, and why it is so where that is bad."""
    await conn.execute(
        _SET_POWER_SQL,
        {
            "id": instance_id,
            "power": power,
            "now": now,
            "error": error,
            "terminated": terminated,
        },
    )


_FENCE_SQL: LiteralString = """
SELECT owner_epoch FROM runtime_vm_instances WHERE id = %(id)s FOR NO KEY UPDATE
"""


async def fence(conn: Connection, instance_id: InstanceId, epoch: int) -> None:
    """Lock it for a start of the runtime. ConflictError where a newer one has it."""
    cursor = await conn.execute(_FENCE_SQL, {"id": instance_id})
    row = await cursor.fetchone()
    if row is not None and row[0] is not None and row[0] > epoch:
        raise ConflictError(f"instance {instance_id}: a newer start looks after it")


_LOG_SQL: LiteralString = """
INSERT INTO runtime_vm_events (runtime_vm_instance_id, event_type, payload)
VALUES (%(id)s, %(event_type)s, %(payload)s)
"""


async def log_event(
    conn: Connection,
    instance_id: InstanceId,
    event_type: str,
    payload: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to the instance's own log."""
    await conn.execute(
        _LOG_SQL,
        {
            "id": instance_id,
            "event_type": event_type,
            "payload": Jsonb(dict(payload or {})),
        },
    )


_EVENTS_SQL: LiteralString = """
SELECT event_type, payload, created_at FROM runtime_vm_events
 WHERE runtime_vm_instance_id = %(id)s ORDER BY id DESC LIMIT %(limit)s
"""


async def list_events(
    conn: Connection, instance_id: InstanceId, *, limit: int
) -> list[tuple[str, Mapping[str, Any], datetime]]:
    """Return the instance's own log, newest first: type, payload, time."""
    cursor = await conn.execute(_EVENTS_SQL, {"id": instance_id, "limit": limit})
    return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


def _instance(row: Mapping[str, Any]) -> Instance:
    return Instance(
        id=InstanceId(row["id"]),
        server_id=ServerId(row["server_id"]),
        owner_id=OwnerId(row["owner_id"]),
        name=row["name"],
        isolation_tier=row["isolation_tier"],
        driver=row["driver"],
        endpoint=row["endpoint"],
        image=row["image"],
        memory_mib=row["memory_mib"],
        vcpu_count=row["vcpu_count"],
        config=row["config"],
        attestation_policy=row["attestation_policy"],
        capability_notes=tuple(row["capability_notes"]),
        last_error=row["last_error"],
        desired_state=row["desired_state"],
        power_state=PowerState(row["power_state"]),
        boot_id=row["boot_id"],
        runtime_owner=row["runtime_owner"],
        owner_epoch=row["owner_epoch"],
        defined_at=row["defined_at"],
        crashes=tuple(row["crashed_at"]),
        reboots_due=row["reboots_due"],
        terminated_at=row["terminated_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        gpu=row["gpu"],
    )
